//! What goes wrong, when, and for whom. A plan is data: the same plan and the same requests give the same faults.

use std::collections::BTreeMap;

use super::route::Target;

/// Which requests a rule counts.
#[derive(Clone, Debug, Default)]
pub struct On {
    /// Verbs of the audit log; empty = every write.
    pub verbs: Vec<&'static str>,
    /// Kind, such as `Deployment`; empty = all but `Lease` and `Event`.
    pub kind: Option<&'static str>,
    pub subresource: Option<&'static str>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The connection breaks, nothing is stored.
    DropBefore,
    /// Stored; the connection breaks before the answer.
    DropAfter,
    /// Refused with this code, nothing is stored.
    Refuse(u16),
    /// Stored, yet answered with this code (504: the ambiguous commit).
    RefuseAfter(u16),
    /// The client dies before the request is handled.
    KillBefore,
    /// Stored; the client dies before the answer.
    KillAfter,
}

/// The `nth` (from 1) request of `client` that matches `on` meets `fault`, and so do the next `times - 1`.
#[derive(Clone, Debug)]
pub struct Rule {
    pub client: String,
    pub on: On,
    pub nth: u64,
    pub times: u64,
    pub fault: Fault,
}

impl Rule {
    /// One fault at the nth write of a client.
    pub fn at_write(client: &str, nth: u64, fault: Fault) -> Self {
        Self { client: client.to_owned(), on: On::default(), nth, times: 1, fault }
    }

    pub fn on(self, on: On) -> Self {
        Self { on, ..self }
    }

    pub fn times(self, times: u64) -> Self {
        Self { times, ..self }
    }
}

impl On {
    pub(super) fn matches(&self, verb: &str, target: &Target) -> bool {
        let kind = target.kind.kind;
        let verb_ok = if self.verbs.is_empty() {
            matches!(verb, "create" | "update" | "patch" | "delete" | "deletecollection")
        } else {
            self.verbs.contains(&verb)
        };
        verb_ok
            && self.kind.map_or_else(|| !matches!(kind, "Lease" | "Event"), |want| want == kind)
            && self.subresource.is_none_or(|want| target.subresource.as_deref() == Some(want))
    }
}

/// What a client's connection is like.
#[derive(Clone, Debug, Default)]
pub struct Link {
    /// Dead processes neither write nor read.
    pub dead: bool,
    /// Watches deliver nothing; reads that accept any version are served from this one.
    pub frozen_at: Option<u64>,
    /// Watches end when this number grows.
    pub closed: u64,
    /// Watches get an in-stream 410 when this number grows.
    pub expired: u64,
    /// Events of this kind that watches of this client skip, counted down.
    pub hide: BTreeMap<&'static str, u64>,
}

#[derive(Debug, Default)]
pub struct Faults {
    rules: Vec<(Rule, u64)>,
    pub links: BTreeMap<String, Link>,
    /// Rules that have fired.
    pub fired: u64,
}

impl Faults {
    pub fn add(&mut self, rule: Rule) {
        self.rules.push((rule, 0));
    }

    pub fn link(&mut self, client: &str) -> &mut Link {
        self.links.entry(client.to_owned()).or_default()
    }

    /// Counts the request, and says what it meets.
    pub fn meet(&mut self, client: &str, verb: &str, target: &Target) -> Option<Fault> {
        let mut met = None;
        for (rule, seen) in &mut self.rules {
            if rule.client == client && rule.on.matches(verb, target) {
                *seen += 1;
                if *seen >= rule.nth && *seen < rule.nth + rule.times && met.is_none() {
                    met = Some(rule.fault);
                }
            }
        }
        self.fired += u64::from(met.is_some());
        met
    }
}
