//! The answers to one prompt, generated side by side.

use std::{pin::Pin, sync::Arc, time::Duration};

use candela_engine::{Finished, GenerateRequest};
use candela_wire::openai::{CompletionTokensDetails, PromptTokensDetails, Timings, Usage};
use futures::future::select_all;
use tokio::time::{Instant, timeout};

use super::{
    error::ApiError,
    generation::{Generation, Next},
    prepare::Target,
};
use crate::app::App;

/// Dropping it cancels those under way.
pub(crate) struct Choices {
    live: Vec<(u32, Generation)>,
    tally: Tally,
}

/// What came of which answer.
pub(crate) enum Happened {
    Of(u32, Next),
    /// Nothing for the time that was asked for.
    Silence,
}

impl Choices {
    /// Admits all of them, or says why not.
    pub(crate) fn begin(
        app: &Arc<App>,
        target: &Target,
        request: &GenerateRequest,
        n: u32,
        arrived: Instant,
    ) -> Result<Self, ApiError> {
        let most = app.limits.sequences + app.limits.queue;
        if n as usize > most {
            // It would be told to come again for ever.
            return Err(ApiError::invalid(
                "n",
                format!("`n` is {n}, and this server takes {most} requests at once"),
            ));
        }
        let one = |index: u32| {
            let mut request = request.clone();
            // Answers of one seed differ from each other, and are the same the next time.
            request.sampling.seed = request.sampling.seed.map(|seed| seed.wrapping_add(index.into()));
            Ok((index, Generation::begin(app, target, request, arrived)?))
        };
        let live = (0..n).map(one).collect::<Result<Vec<_>, ApiError>>()?;
        let prompt = request.prompt_tokens.len() as u64;
        let drafts = request.speculation.map(|_| CompletionTokensDetails::default());
        Ok(Self { live, tally: Tally::new(prompt, n, drafts) })
    }

    /// What happens next; `None` once all have ended.
    pub(crate) async fn next(&mut self, patience: Duration) -> Result<Option<Happened>, ApiError> {
        if self.live.is_empty() {
            return Ok(None);
        }
        let all = self.live.iter_mut().map(|(_, generation)| Box::pin(generation.next()) as Pin<Box<_>>);
        let Ok((next, at, others)) = timeout(patience, select_all(all)).await else {
            return Ok(Some(Happened::Silence));
        };
        drop(others);
        let next = next?;
        let index = self.live[at].0;
        match &next {
            Next::Token(_) => self.tally.of[index as usize] += 1,
            Next::Finished(finished) => self.tally.finished(index, finished),
        }
        if matches!(next, Next::Finished(_)) {
            self.live.remove(at);
        } else {
            // The others are asked first the next time: one that always has something does not hold them up.
            self.live.rotate_left(at + 1);
        }
        Ok(Some(Happened::Of(index, next)))
    }

    /// Of all answers, once they have ended.
    pub(crate) fn usage(&self) -> Usage {
        let completion = self.tally.of.iter().sum();
        let prompt_tokens_details =
            self.tally.cached.map(|cached_tokens| PromptTokensDetails { cached_tokens });
        let completion_tokens_details = self.tally.drafts;
        let timings = Some(self.tally.timings);
        Usage { prompt_tokens_details, completion_tokens_details, timings, ..self.tally.usage(completion) }
    }

    /// Of one answer so far.
    pub(crate) fn usage_of(&self, index: u32) -> Usage {
        self.tally.usage(self.tally.of[index as usize])
    }
}

struct Tally {
    prompt: u64,
    /// Tokens of each answer.
    of: Vec<u64>,
    drafts: Option<CompletionTokensDetails>,
    /// Of the answer that found least: the others may have found what that one computed.
    cached: Option<u64>,
    timings: Timings,
}

impl Tally {
    fn new(prompt: u64, n: u32, drafts: Option<CompletionTokensDetails>) -> Self {
        Self { prompt, of: vec![0; n as usize], cached: None, drafts, timings: Timings::default() }
    }

    fn finished(&mut self, index: u32, finished: &Finished) {
        // With the token that ended it, which has no text.
        self.of[index as usize] = finished.usage.completion_tokens.into();
        if let Some(drafts) = &mut self.drafts {
            drafts.accepted_prediction_tokens += u64::from(finished.usage.accepted_draft_tokens);
            drafts.rejected_prediction_tokens += u64::from(finished.usage.rejected_draft_tokens);
        }
        let cached = u64::from(finished.usage.cached_tokens);
        self.cached = Some(self.cached.map_or(cached, |least| least.min(cached)));
        let longer = |so_far: &mut f64, phase: Duration| {
            let micros = phase.as_micros().min(u128::from(u32::MAX)) as f64;
            *so_far = so_far.max(micros / 1000.0);
        };
        let (timings, took) = (&mut self.timings, finished.timings);
        longer(&mut timings.queue_ms, took.queue);
        longer(&mut timings.prefill_ms, took.prefill);
        longer(&mut timings.decode_ms, took.decode);
    }

    fn usage(&self, completion_tokens: u64) -> Usage {
        let prompt_tokens = self.prompt;
        let total_tokens = prompt_tokens + completion_tokens;
        Usage { prompt_tokens, completion_tokens, total_tokens, ..Usage::default() }
    }
}
