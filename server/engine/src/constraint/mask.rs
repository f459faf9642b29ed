//! Masks over the vocabulary, computed beside the engine's thread.

use std::{
    io,
    sync::{Arc, mpsc},
    thread,
    time::Duration,
};

use llguidance::{Matcher, api::StopReason, toktrie::SimpleVob};

use super::Constraint;
use crate::contained;

/// Fuel bounds a mask to some tens of milliseconds; an engine that waits for longer than this is better off without
/// the request.
const PATIENCE: Duration = Duration::from_secs(5);

/// The matcher with what may come next.
type Computed = Result<(Box<Matcher>, Arc<SimpleVob>), String>;

struct Job {
    matcher: Box<Matcher>,
    reply: mpsc::SyncSender<Computed>,
}

/// The thread that computes masks, in the order in which they are wanted. It ends with the last clone.
#[derive(Clone)]
pub(super) struct Masks {
    jobs: mpsc::Sender<Job>,
}

impl Masks {
    pub(super) fn start() -> io::Result<Self> {
        let (jobs, wanted) = mpsc::channel::<Job>();
        let work = move || {
            for Job { mut matcher, reply } in wanted {
                let mask = contained::run(|| matcher.compute_mask());
                let computed = match mask {
                    Ok(Ok(mask)) => Ok((matcher, Arc::new(mask))),
                    Ok(Err(err)) => Err(err.to_string().lines().next().unwrap_or_default().to_owned()),
                    Err(_) => Err("computing the tokens that may come next panicked".to_owned()),
                };
                // The request may have ended.
                let _ = reply.send(computed);
            }
        };
        thread::Builder::new().name("candela-masks".to_owned()).spawn(work)?;
        Ok(Self { jobs })
    }
}

/// One output on its way through its constraint.
pub(crate) struct Tracker {
    state: State,
    masks: Masks,
}

enum State {
    Ready(Box<Matcher>, Arc<SimpleVob>),
    Computing(mpsc::Receiver<Computed>),
    Over,
}

impl Tracker {
    pub(crate) fn new(constraint: Constraint) -> Self {
        let Constraint { matcher, first, masks } = constraint;
        Self { state: State::Ready(Box::new(matcher), first), masks }
    }

    /// Makes the tokens that may not come next impossible.
    pub(crate) fn restrict(&mut self, logits: &mut [f32]) -> Result<(), String> {
        if let State::Computing(reply) = &self.state {
            let late = |_| Err("the tokens that may come next were not computed in time".to_owned());
            let (matcher, mask) = reply.recv_timeout(PATIENCE).unwrap_or_else(late)?;
            self.state = State::Ready(matcher, mask);
        }
        let State::Ready(_, mask) = &self.state else {
            return Err("a token is wanted after the end".to_owned());
        };
        let mut any = false;
        for (word, logits) in mask.as_slice().iter().zip(logits.chunks_mut(u32::BITS as usize)) {
            for (bit, logit) in logits.iter_mut().enumerate() {
                if word >> bit & 1 == 0 {
                    *logit = f32::NEG_INFINITY;
                } else {
                    any |= *logit != f32::NEG_INFINITY;
                }
            }
        }
        if any { Ok(()) } else { Err("no token can follow".to_owned()) }
    }

    /// Takes the token that was chosen. True = the output is whole, and nothing may follow.
    pub(crate) fn advance(&mut self, id: u32) -> Result<bool, String> {
        let State::Ready(mut matcher, _) = std::mem::replace(&mut self.state, State::Over) else {
            return Err("a token came before its mask".to_owned());
        };
        let taken = contained::run(|| matcher.consume_token(id));
        match taken {
            Ok(Ok(())) => {}
            Ok(Err(err)) => return Err(err.to_string().lines().next().unwrap_or_default().to_owned()),
            Err(_) => return Err("following the constraint panicked".to_owned()),
        }
        match matcher.stop_reason() {
            StopReason::NotStopped => {}
            reason if reason.is_ok() => return Ok(true),
            reason => return Err(format!("the constraint cannot be followed further: {reason}")),
        }
        let (reply, computed) = mpsc::sync_channel(1);
        let gone = |_| "the thread that computes masks has ended".to_owned();
        self.masks.jobs.send(Job { matcher, reply }).map_err(gone)?;
        self.state = State::Computing(computed);
        Ok(false)
    }
}
