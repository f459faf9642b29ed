//! `ModelStreamInfer`: requests and responses over one call, where one request has as many responses as it has tokens. What
//! is wrong with one request is said in a response; the call goes on.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use candela_oip::inference::{ModelInferRequest, ModelInferResponse, ModelStreamInferResponse};
use futures::{FutureExt, Stream, StreamExt, future, stream, stream::BoxStream};
use serde_json::{Map, Value};
use tokio::{
    sync::watch,
    time::{Instant, timeout},
};
use tonic::{Status, Streaming};

use super::{
    super::{
        contract::{Delivery, Work},
        run::{self, Answer, Output, Since, ending},
    },
    Asked, Known, asked, convert, status,
};
use crate::{
    api::{ApiError, Generation, Happening},
    app::App,
    lifecycle::Stage,
};

/// Requests of one call that are answered at the same time; further ones wait to be read.
const SIDE_BY_SIDE: usize = 16;

/// Says of each response whether its request has more.
const FINAL: &str = "triton_final_response";

type Responses = BoxStream<'static, ModelStreamInferResponse>;

/// Everything that the call answers.
pub(super) fn responses(
    app: Arc<App>,
    known: Known,
    messages: Streaming<ModelInferRequest>,
) -> impl Stream<Item = Result<ModelStreamInferResponse, Status>> + Send + 'static {
    // The client is told when it was not the one who ended the call.
    let left = Arc::new(AtomicBool::new(false));
    let leaving = Arc::clone(&left);
    let ours = Arc::clone(&app);
    let (asked, answering) = watch::channel(0usize);
    let messages = stream::unfold(messages, move |mut messages| {
        let (app, leaving, mut answering) = (Arc::clone(&ours), Arc::clone(&leaving), answering.clone());
        async move {
            // As long as a connection may rest: whoever waits for an answer does not.
            let rested = async {
                loop {
                    // The sender lives as long as the call, so waiting cannot fail.
                    let _ = answering.wait_for(|n| *n == 0).await;
                    let begun = timeout(app.limits.idle, answering.wait_for(|n| *n > 0)).await;
                    if begun.is_err() {
                        return;
                    }
                }
            };
            tokio::select! {
                biased;
                next = messages.message() => next.transpose().map(|next| (next, messages)),
                () = rested => {
                    leaving.store(true, Relaxed);
                    None
                }
                () = app.lifecycle.reached(Stage::Closing) => {
                    leaving.store(true, Relaxed);
                    None
                }
            }
        }
    });
    let answered = messages.flat_map_unordered(SIDE_BY_SIDE, move |message| match message {
        Err(status) => stream::once(future::ready(Err(status))).boxed(),
        Ok(message) => {
            let known = Known { since: Since { arrived: Instant::now(), ..known.since }, ..known.clone() };
            let answered = Answering::begin(&asked);
            of_one(Arc::clone(&app), known, message)
                .map(move |response| {
                    let _ = &answered;
                    Ok(response)
                })
                .boxed()
        }
    });
    let end = stream::once(future::lazy(move |_| left.load(Relaxed)));
    let end = end.filter_map(|left| {
        let status = Status::unavailable(
            "the server ends this call, as it shuts down or nothing was asked for long: call again",
        );
        future::ready(left.then_some(Err(status)))
    });
    answered.chain(end)
}

/// One request of a call, until its last response is made.
struct Answering(watch::Sender<usize>);

impl Answering {
    fn begin(all: &watch::Sender<usize>) -> Self {
        all.send_modify(|n| *n += 1);
        Self(all.clone())
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        self.0.send_modify(|n| *n -= 1);
    }
}

/// Everything that one request is answered.
fn of_one(
    app: Arc<App>,
    known: Known,
    message: ModelInferRequest,
) -> impl Stream<Item = ModelStreamInferResponse> + Send {
    let (name, id) = (message.model_name.clone(), message.id.clone());
    async move {
        match begun(&app, known, message).await {
            Ok(responses) => responses,
            Err(err) => stream::once(future::ready(failed(&err, name, id))).boxed(),
        }
    }
    .flatten_stream()
}

async fn begun(app: &Arc<App>, known: Known, message: ModelInferRequest) -> Result<Responses, ApiError> {
    let name = message.model_name.clone();
    let Asked { work, version, id, terms } = asked(app, &known, message, Delivery::Streamed).await?;
    let job = match work {
        Work::Generate(job) if job.delivery.stream => known.since.bound(app, &terms, *job),
        work => {
            let mut answer = run::whole(app, work, &terms, known.since).await?;
            answer.parameters.insert(FINAL.to_owned(), true.into());
            let response = convert::response(name, version, id, answer);
            return Ok(stream::once(future::ready(fine(response))).boxed());
        }
    };
    let generation = Generation::begin(app, &job.target, job.request, job.arrived)?;
    let tokens = Tokens {
        generation: Some(generation),
        last: None,
        name,
        version,
        id,
        empty_final: terms.empty_final,
    };
    Ok(stream::unfold(tokens, |mut tokens| async { Some((tokens.next().await?, tokens)) }).boxed())
}

/// A generation, response by response.
struct Tokens {
    /// `None` once it has ended.
    generation: Option<Generation>,
    /// The empty response that comes after the end.
    last: Option<ModelInferResponse>,
    name: String,
    version: String,
    id: String,
    empty_final: bool,
}

impl Tokens {
    async fn next(&mut self) -> Option<ModelStreamInferResponse> {
        if let Some(last) = self.last.take() {
            return Some(fine(last));
        }
        let generation = self.generation.as_mut()?;
        loop {
            match generation.next().await {
                // Text that is not certain yet comes with a later token.
                Ok(Happening::Token(token)) if token.text.is_empty() => {}
                Ok(Happening::Token(token)) => return Some(fine(self.said(token.text, Map::new(), false))),
                Ok(Happening::Finished(finished)) => {
                    self.generation = None;
                    if !self.empty_final {
                        let text = finished.text.clone();
                        return Some(fine(self.said(text, ending(&finished), true)));
                    }
                    let mut last = self.said(String::new(), ending(&finished), true);
                    (last.outputs, last.raw_output_contents) = (Vec::new(), Vec::new());
                    if finished.text.is_empty() {
                        return Some(fine(last));
                    }
                    self.last = Some(last);
                    return Some(fine(self.said(finished.text, Map::new(), false)));
                }
                Err(err) => {
                    self.generation = None;
                    return Some(failed(&err, self.name.clone(), self.id.clone()));
                }
            }
        }
    }

    fn said(&self, text: String, mut parameters: Map<String, Value>, last: bool) -> ModelInferResponse {
        parameters.insert(FINAL.to_owned(), last.into());
        let answer = Answer { output: Output::text(text), parameters };
        convert::response(self.name.clone(), self.version.clone(), self.id.clone(), answer)
    }
}

fn fine(response: ModelInferResponse) -> ModelStreamInferResponse {
    ModelStreamInferResponse { error_message: String::new(), infer_response: Some(response) }
}

/// With the request's id, so that the client knows which one.
fn failed(err: &ApiError, name: String, id: String) -> ModelStreamInferResponse {
    let last = convert::choice(true.into()).map(|last| (FINAL.to_owned(), last));
    let response = ModelInferResponse {
        model_name: name,
        id,
        parameters: last.into_iter().collect::<HashMap<_, _>>(),
        ..ModelInferResponse::default()
    };
    ModelStreamInferResponse {
        error_message: status(err).message().to_owned(),
        infer_response: Some(response),
    }
}
