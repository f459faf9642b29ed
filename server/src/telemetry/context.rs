//! W3C Trace Context: which trace a request belongs to, and whether its caller records it.

use http::HeaderMap;
use rand::Rng;

/// Of the caller's span.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Context {
    pub(super) trace_id: [u8; 16],
    pub(super) span_id: [u8; 8],
    pub(super) is_sampled: bool,
    /// Of vendors; passed on as it is.
    pub(super) state: String,
}

/// Longer ones may be left out, says the specification.
const MAX_STATE_BYTES: usize = 512;

impl Context {
    /// From `traceparent` and `tracestate`; `None` where there is none that is valid, which begins a new trace.
    pub(super) fn of(headers: &HeaderMap) -> Option<Self> {
        let mut given = headers.get_all("traceparent").iter();
        let (parent, None) = (given.next()?.to_str().ok()?.trim(), given.next()) else { return None };
        let mut parts = parent.split('-');
        let (version, trace, span, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        let version = bytes::<1>(version)?[0];
        // Later versions may have more behind this, the first has not.
        if version == 0xff || (version == 0 && parts.next().is_some()) {
            return None;
        }
        let (trace_id, span_id) = (bytes::<16>(trace)?, bytes::<8>(span)?);
        if trace_id == [0; 16] || span_id == [0; 8] {
            return None;
        }
        let state = headers.get_all("tracestate").iter().filter_map(|value| value.to_str().ok());
        let state = state.collect::<Vec<_>>().join(",");
        Some(Self {
            trace_id,
            span_id,
            is_sampled: bytes::<1>(flags)?[0] & 1 == 1,
            state: if state.len() > MAX_STATE_BYTES { String::new() } else { state },
        })
    }
}

/// Of lower-case hex digits, as the specification wants them.
fn bytes<const N: usize>(text: &str) -> Option<[u8; N]> {
    let mut out = [0; N];
    let is_lower = !text.bytes().any(|b| b.is_ascii_uppercase());
    (is_lower && hex::decode_to_slice(text, &mut out).is_ok()).then_some(out)
}

/// An id of a trace or span, which is never 0.
pub(super) fn random_id<const N: usize>() -> [u8; N] {
    let mut id = [0; N];
    while id == [0; N] {
        rand::rng().fill(&mut id[..]);
    }
    id
}

/// Which requests are recorded, as `OTEL_TRACES_SAMPLER` says it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Sampler {
    /// A caller's decision goes before ours.
    pub(super) by_parent: bool,
    /// Of the other ones, from 0 to 1.
    pub(super) ratio: f64,
}

impl Sampler {
    pub(super) fn records(self, parent: Option<&Context>) -> bool {
        match parent {
            Some(parent) if self.by_parent => parent.is_sampled,
            // By the trace's id, so that everybody with the same ratio keeps the same traces.
            Some(parent) => {
                let mut low = [0; 8];
                low.copy_from_slice(&parent.trace_id[8..]);
                self.keeps(u64::from_be_bytes(low))
            }
            None => self.keeps(rand::random()),
        }
    }

    fn keeps(self, random: u64) -> bool {
        // 63 bits, as the SDKs do it.
        (random >> 1) < (self.ratio * (1u64 << 63) as f64) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(parent: &str) -> Option<Context> {
        let mut headers = HeaderMap::new();
        headers.insert("traceparent", parent.parse().unwrap());
        headers.append("tracestate", "a=1".parse().unwrap());
        headers.append("tracestate", "b=2".parse().unwrap());
        Context::of(&headers)
    }

    #[test]
    fn traceparents_are_read_as_the_specification_says() {
        let context = of("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01").unwrap();
        assert_eq!(hex::encode(context.trace_id), "0af7651916cd43dd8448eb211c80319c");
        assert_eq!(hex::encode(context.span_id), "b7ad6b7169203331");
        assert_eq!((context.is_sampled, context.state.as_str()), (true, "a=1,b=2"));
        assert!(!of("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00").unwrap().is_sampled);
        assert!(
            of("01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more").is_some(),
            "a later version"
        );
        for wrong in [
            "",
            "00",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b716920333g-01",
        ] {
            assert_eq!(of(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_caller_decides_first_and_else_the_ratio() {
        let parent =
            |is_sampled| Context { trace_id: [0xff; 16], span_id: [1; 8], is_sampled, state: String::new() };
        let by_parent = Sampler { by_parent: true, ratio: 0.0 };
        assert!(by_parent.records(Some(&parent(true))));
        assert!(!by_parent.records(Some(&parent(false))));
        assert!(!by_parent.records(None));
        assert!(Sampler { by_parent: false, ratio: 1.0 }.records(Some(&parent(false))));
        assert!(!Sampler { by_parent: false, ratio: 0.99 }.records(Some(&parent(true))), "the highest id");
        let half = Sampler { by_parent: true, ratio: 0.5 };
        let kept = (0..10_000).filter(|_| half.records(None)).count();
        // Of a fair coin, beyond ten standard deviations.
        assert!((4500..5500).contains(&kept), "{kept}");
    }
}
