//! One admitted generation: the engine's events over a bounded channel, with everything that may end it early.

use std::{
    ops::ControlFlow,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use candela_engine::{
    CancelToken, Event, FinishReason, Finished, GenerateRequest, SubmitError, Timings, Token, Usage,
};
use tokio::{
    sync::mpsc::{self, error::TrySendError},
    time::{Instant, sleep_until},
};

use super::{
    error::ApiError,
    prepare::{Target, request_limit},
};
use crate::{
    app::App,
    lifecycle::{InFlight, Stage},
    metrics::ModelMetrics,
    telemetry::{self, RequestSpan},
};

/// What the engine may be late with ending a request whose time is up: about a step.
const ENGINE_SLACK: Duration = Duration::from_secs(1);

/// Dropping it cancels the generation, which frees its slot at the engine's next step.
pub(crate) struct Generation {
    app: Arc<App>,
    /// Its served name.
    model: String,
    metrics: Arc<ModelMetrics>,
    events: mpsc::Receiver<Event>,
    cancel: CancelToken,
    /// The client did not keep up, and the engine let go.
    overflowed: Arc<AtomicBool>,
    arrived: Instant,
    /// For the whole request, from its arrival.
    limit: Duration,
    last_token: Option<Instant>,
    /// What it is counted as when it ends now.
    outcome: &'static str,
    of_engine: Option<(Usage, Timings)>,
    span: Option<RequestSpan>,
    _in_flight: InFlight,
}

/// What comes next.
pub(crate) enum Next {
    Token(Token),
    Finished(Finished),
}

impl Generation {
    /// Admits `request`, or says why not.
    pub(crate) fn begin(
        app: &Arc<App>,
        target: &Target,
        request: GenerateRequest,
        arrived: Instant,
    ) -> Result<Self, ApiError> {
        let limit = match request.deadline {
            Some(deadline) => deadline.saturating_duration_since(arrived.into_std()),
            None => request_limit(app),
        };
        let (prompt_tokens, max_tokens) = (request.prompt_tokens.len() as u64, request.max_tokens);
        let (sender, events) = mpsc::channel(app.limits.unread_tokens.max(1));
        let overflowed = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&overflowed);
        let sink = Box::new(move |event| match sender.try_send(event) {
            Ok(()) => ControlFlow::Continue(()),
            Err(TrySendError::Full(_)) => {
                flag.store(true, Ordering::Release);
                ControlFlow::Break(())
            }
            Err(TrySendError::Closed(_)) => ControlFlow::Break(()),
        });
        let in_flight = app.lifecycle.begin();
        let span = telemetry::current();
        if let Some(span) = &span {
            span.admitted(&target.name, &request);
        }
        let cancel = target.engine.submit(request, sink).map_err(|err| match err {
            SubmitError::ShuttingDown => app.engine_ended(&target.name),
            err => ApiError::submit(err, max_tokens),
        })?;
        let metrics = app.metrics.of(&target.label);
        metrics.prompt_tokens.inc_by(prompt_tokens);
        Ok(Self {
            app: Arc::clone(app),
            model: target.name.clone(),
            metrics,
            events,
            cancel,
            overflowed,
            arrived,
            limit,
            last_token: None,
            outcome: "client_gone",
            of_engine: None,
            span,
            _in_flight: in_flight,
        })
    }

    /// The next event. Nothing is lost if it is dropped while it waits.
    pub(crate) async fn next(&mut self) -> Result<Next, ApiError> {
        let first_token = self.app.config.timeouts.first_token_ms.map(Duration::from_millis);
        let late = async {
            match first_token.filter(|_| self.last_token.is_none()) {
                None => std::future::pending().await,
                Some(limit) => {
                    sleep_until(self.arrived + limit).await;
                    limit
                }
            }
        };
        // The engine keeps the deadline itself, between steps. This one is for an engine that finishes none.
        let limit = self.limit;
        let overdue = sleep_until(self.arrived + limit + ENGINE_SLACK);
        let received = tokio::select! {
            biased;
            received = self.events.recv() => received,
            () = overdue => return self.fail("request_timeout", ApiError::Deadline { limit }),
            limit = late => return self.fail("first_token_timeout", ApiError::FirstToken { limit }),
            () = self.app.lifecycle.reached(Stage::Ending) => {
                return self.engine_ended();
            }
        };
        match received {
            Some(Event::Token(token)) => {
                self.count_token();
                Ok(Next::Token(token))
            }
            Some(Event::Finished(finished)) => self.finished(finished),
            None if self.overflowed.load(Ordering::Acquire) => {
                self.fail("client_too_slow", ApiError::SlowReader)
            }
            None => self.fail("error", ApiError::Engine("the engine let go of it".to_owned())),
        }
    }

    fn count_token(&mut self) {
        let now = Instant::now();
        self.metrics.generated_tokens.inc();
        match self.last_token.replace(now) {
            None => self.metrics.time_to_first_token.observe((now - self.arrived).as_secs_f64()),
            Some(last) => self.metrics.inter_token.observe((now - last).as_secs_f64()),
        }
    }

    fn finished(&mut self, finished: Finished) -> Result<Next, ApiError> {
        self.of_engine = Some((finished.usage, finished.timings));
        match finished.reason {
            FinishReason::Stop => self.outcome = "stop",
            FinishReason::Length => self.outcome = "length",
            FinishReason::Deadline => {
                let limit = self.limit;
                return self.fail("request_timeout", ApiError::Deadline { limit });
            }
            // We cancel by dropping, so this was the engine's own shutdown.
            FinishReason::Cancelled => return self.engine_ended(),
            FinishReason::Error(ref what) => {
                tracing::error!(error = %what, "the engine failed on a request");
                let public = "computing the next token failed".to_owned();
                return self.fail("error", ApiError::Engine(public));
            }
        }
        self.metrics.finished(&finished, self.arrived.elapsed());
        Ok(Next::Finished(finished))
    }

    fn engine_ended(&mut self) -> Result<Next, ApiError> {
        let outcome = if self.app.is_ending() { "ended_by_drain" } else { "ended_by_unload" };
        self.fail(outcome, self.app.engine_ended(&self.model))
    }

    fn fail(&mut self, outcome: &'static str, err: ApiError) -> Result<Next, ApiError> {
        self.outcome = outcome;
        Err(err)
    }
}

impl Drop for Generation {
    fn drop(&mut self) {
        self.cancel.cancel();
        self.metrics.ended(self.outcome);
        if let Some(span) = &self.span {
            span.generated(self.outcome, self.of_engine);
        }
    }
}
