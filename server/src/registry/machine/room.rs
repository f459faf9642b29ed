//! Where the memory for a model comes from.

use super::{Key, Machine, Model, State, Usage};

pub(super) enum Room {
    Now(Option<u64>),
    /// Once these are unloaded, or what is under way already is over.
    Later(Vec<Key>),
    Never(String),
}

impl Machine {
    pub(super) fn room(&self, key: &Key, usage: &dyn Usage) -> Room {
        let Some(budget) = self.budget else { return Room::Now(None) };
        let free = budget.saturating_sub(self.used_bytes());
        // A cache takes what it gets: half of the room is left for the next model, unless this one needs more.
        let Some(needs) = self.models.get(key).and_then(|model| model.needs) else {
            return Room::Now(Some(free / 2));
        };
        if needs > budget {
            return Room::Never(format!(
                "it needs about {needs} bytes, and all models of the repository together may take {budget}: raise the \
                 memory limit or `--model-memory-bytes`, or lower `contextLength`"
            ));
        }
        if needs <= free {
            return Room::Now(Some(needs.max(free / 2)));
        }
        let coming = |model: &&Model| model.state == State::Draining || model.is_loading();
        let mut room = self
            .models
            .values()
            .filter(|model| model.state == State::Draining)
            .fold(free, |room, model| room.saturating_add(model.bytes));
        let idle =
            self.models.iter().filter(|(key, model)| model.state == State::Ready && !usage.is_in_use(key));
        let mut idle: Vec<_> = idle.map(|(key, model)| (usage.last_used(key), key, model.bytes)).collect();
        idle.sort();
        let mut evicted = Vec::new();
        for (_, key, bytes) in idle {
            if room >= needs {
                break;
            }
            room = room.saturating_add(bytes);
            evicted.push(key.clone());
        }
        if room >= needs {
            return Room::Later(evicted);
        }
        if self.models.values().any(|model| coming(&model)) {
            // They may leave more than they take now.
            return Room::Later(Vec::new());
        }
        Room::Never(format!(
            "it needs about {needs} bytes; of the {budget} for models of the repository {free} are free, and the \
             others are in use: unload one of them, or come again"
        ))
    }
}
