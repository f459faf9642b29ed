//! Which model a request asks for.

use std::{
    borrow::Cow,
    sync::{Arc, OnceLock},
};

use candela_wire::config::Task;
use serde::Deserialize;

use super::{Control, Entry, Lease, Registry};
use crate::{api::ApiError, model::Served};

/// The model that a request turned out to ask for, for whoever is around its handler.
#[derive(Clone, Default)]
pub(crate) struct Chosen(Arc<OnceLock<Answering>>);

/// What the head of an answer says of its model.
#[derive(Clone, Debug)]
pub(crate) struct Answering {
    pub(crate) name: String,
    pub(crate) revision: String,
}

impl Answering {
    fn of(served: &Served) -> Self {
        Self { name: served.name.clone(), revision: served.revision.clone() }
    }
}

impl Chosen {
    pub(crate) fn set(&self, served: &Served) {
        // A request asks for one model, once.
        let _ = self.0.set(Answering::of(served));
    }
}

#[derive(Deserialize)]
struct Asked<'a> {
    #[serde(borrow)]
    model: Cow<'a, str>,
}

/// The name in a body that has one.
pub(crate) fn name_in(body: &[u8]) -> Option<String> {
    serde_json::from_slice::<Asked<'_>>(body).ok().map(|asked| asked.model.into_owned())
}

impl Registry {
    /// Whether there is one model, so that requests can mean no other.
    fn is_single(&self) -> bool {
        self.0.repository.is_none() && self.0.aliases.is_empty() && self.snapshot().fixed.len() == 1
    }

    /// The model of an answer: the only one, or the one that its request asked for.
    pub(crate) fn answering(&self, chosen: &Chosen) -> Option<Answering> {
        if self.is_single() {
            return self.fixed().next().map(|served| Answering::of(&served));
        }
        chosen.0.get().cloned()
    }

    /// The model that a request asks for. One that names none means the first that is for `task`, and where there is no
    /// such model, or it is no JSON at all, the first one: its route says what is wrong with it.
    pub(crate) fn asked(&self, body: &[u8], task: Task) -> Result<Lease, ApiError> {
        if !self.is_single()
            && let Some(name) = name_in(body)
        {
            return self.named(&name, None);
        }
        let snapshot = self.snapshot();
        // Looked at before it is leased: a lease counts as a use.
        let fits = |entry: &&Entry| {
            let served = entry.served.first();
            served.is_some_and(|served| served.loaded.task() == task)
        };
        let first = snapshot.entries().filter(fits).find_map(Entry::lease);
        let first = first.or_else(|| snapshot.entries().find_map(Entry::lease));
        first.ok_or_else(|| ApiError::NoSuchModel { asked: String::new(), served: snapshot.names() })
    }

    /// Bounds a body before it is known whose it is; a model that is not loaded may take more than those that are.
    pub(crate) fn longest_context(&self) -> u32 {
        const OF_UNKNOWN: u32 = 128 << 10;
        let loaded = self.loaded().map(|served| served.loaded.facts().context_length).max();
        match self.0.options.control {
            Control::OnDemand if self.0.repository.is_some() => loaded.unwrap_or(0).max(OF_UNKNOWN),
            _ => loaded.unwrap_or_default(),
        }
    }
}
