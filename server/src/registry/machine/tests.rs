use std::collections::{BTreeMap, BTreeSet};

use rand::{Rng, SeedableRng, rngs::StdRng};

use super::*;

fn key(name: &str) -> Key {
    Key { name: name.into(), version: 1 }
}

#[derive(Default)]
struct Uses {
    held: BTreeSet<Key>,
    last: BTreeMap<Key, u64>,
}

impl Usage for Uses {
    fn is_in_use(&self, key: &Key) -> bool {
        self.held.contains(key)
    }

    fn last_used(&self, key: &Key) -> u64 {
        self.last.get(key).copied().unwrap_or(0)
    }
}

fn load(key: &Key, limit: impl Into<Option<u64>>) -> Action {
    Action::Load { key: key.clone(), limit: limit.into() }
}

/// Loads it with all that it needs.
fn loaded(machine: &mut Machine, uses: &Uses, key: &Key, bytes: u64) {
    let mut actions = machine.step(Event::Load(key.clone()), uses);
    if let [Action::Load { limit: Some(limit), .. }] = actions[..]
        && bytes > limit
    {
        actions = machine.step(Event::Needs { key: key.clone(), bytes }, uses);
    }
    assert!(matches!(&actions[..], [Action::Load { .. }]), "{actions:?}");
    assert_eq!(machine.step(Event::Loaded { key: key.clone(), bytes }, uses), []);
    assert_eq!(machine.state(key), State::Ready);
}

#[test]
fn a_hundred_clients_that_want_one_model_load_it_once() {
    let (a, uses) = (key("a"), Uses::default());
    let mut machine = Machine::new(None, 2);
    assert_eq!(machine.step(Event::Load(a.clone()), &uses), [load(&a, None)]);
    for _ in 0..99 {
        assert_eq!(machine.step(Event::Load(a.clone()), &uses), []);
    }
    assert_eq!(machine.step(Event::Loaded { key: a.clone(), bytes: 5 }, &uses), []);
    assert_eq!(machine.step(Event::Load(a.clone()), &uses), []);
    assert_eq!((machine.state(&a), machine.counts.loaded), (State::Ready, 1));
}

#[test]
fn the_least_recently_used_idle_model_makes_room() {
    let [a, b, c, d] = ["a", "b", "c", "d"].map(key);
    let mut uses = Uses::default();
    let mut machine = Machine::new(Some(100), 1);
    for (model, used) in [(&a, 3), (&b, 1), (&c, 2)] {
        loaded(&mut machine, &uses, model, 30);
        uses.last.insert(model.clone(), used);
    }
    uses.held.insert(b.clone());
    let _ = machine.step(Event::Load(d.clone()), &uses);
    // 10 are free; b is the oldest but in use, so c goes, and that is enough.
    let actions = machine.step(Event::Needs { key: d.clone(), bytes: 40 }, &uses);
    assert_eq!(actions, [Action::Drain(c.clone())]);
    assert_eq!((machine.state(&c), machine.state(&d)), (State::Draining, State::Loading));
    assert_eq!(machine.used_bytes(), 90, "what drains still takes its memory");
    assert_eq!(machine.step(Event::Drained(c.clone()), &uses), [load(&d, 40)]);
    assert_eq!(machine.state(&a), State::Ready);
    assert_eq!((machine.counts.evicted, machine.counts.unloaded), (1, 0));
}

#[test]
fn a_model_that_finds_no_room_says_how_much_it_needs_and_moves_nobody() {
    let [a, b] = ["a", "b"].map(key);
    let mut uses = Uses::default();
    let mut machine = Machine::new(Some(100), 2);
    loaded(&mut machine, &uses, &a, 50);
    uses.held.insert(a.clone());
    let reason = |machine: &Machine| machine.models[&b].reason.clone();
    for (needs, words) in [(101, "may take 100"), (60, "50 are free")] {
        let _ = machine.step(Event::Load(b.clone()), &uses);
        assert_eq!(machine.step(Event::Needs { key: b.clone(), bytes: needs }, &uses), []);
        assert_eq!(machine.state(&b), State::Failed);
        assert!(reason(&machine).contains(words), "{}", reason(&machine));
        assert!(reason(&machine).contains(&format!("about {needs} bytes")));
    }
    assert_eq!(machine.state(&a), State::Ready);
}

#[test]
fn what_is_asked_for_meanwhile_is_done_afterwards() {
    let (a, uses) = (key("a"), Uses::default());
    let mut machine = Machine::new(None, 1);
    let _ = machine.step(Event::Load(a.clone()), &uses);
    assert_eq!(machine.step(Event::Unload(a.clone()), &uses), []);
    let done = Event::Loaded { key: a.clone(), bytes: 5 };
    assert_eq!(machine.step(done.clone(), &uses), [Action::Drain(a.clone())]);
    assert_eq!(machine.step(Event::Load(a.clone()), &uses), [], "not while it drains");
    assert_eq!(machine.step(Event::Drained(a.clone()), &uses), [load(&a, None)]);
    // Wanted, unwanted, wanted: the last word counts.
    let _ = machine.step(Event::Unload(a.clone()), &uses);
    let _ = machine.step(Event::Load(a.clone()), &uses);
    assert_eq!(machine.step(done, &uses), []);
    assert_eq!(machine.state(&a), State::Ready);
}

#[test]
fn a_load_that_fails_lets_the_next_one_begin_and_may_be_tried_again() {
    let [a, b] = ["a", "b"].map(key);
    let uses = Uses::default();
    let mut machine = Machine::new(Some(100), 1);
    assert_eq!(machine.step(Event::Load(a.clone()), &uses), [load(&a, 50)]);
    assert_eq!(machine.step(Event::Load(b.clone()), &uses), []);
    let failed = Event::Failed { key: a.clone(), reason: "corrupt".to_owned() };
    assert_eq!(machine.step(failed.clone(), &uses), [load(&b, 50)]);
    assert_eq!((machine.state(&a), machine.models[&a].reason.as_str()), (State::Failed, "corrupt"));
    assert_eq!(machine.step(failed, &uses), [], "heard twice, counted once");
    assert_eq!(machine.counts.failed, 1);
    let _ = machine.step(Event::Loaded { key: b.clone(), bytes: 50 }, &uses);
    assert_eq!(machine.step(Event::Load(a.clone()), &uses), [load(&a, 25)]);
}

#[test]
fn a_load_that_never_has_enough_ends() {
    let (a, uses) = (key("a"), Uses::default());
    let mut machine = Machine::new(Some(100), 1);
    let _ = machine.step(Event::Load(a.clone()), &uses);
    assert_eq!(machine.step(Event::Needs { key: a.clone(), bytes: 60 }, &uses), [load(&a, 60)]);
    assert_eq!(machine.step(Event::Needs { key: a.clone(), bytes: 60 }, &uses), []);
    assert_eq!(machine.state(&a), State::Failed);
}

/// A machine and everything that it tells others to do.
struct World {
    machine: Machine,
    uses: Uses,
    rng: StdRng,
    budget: Option<u64>,
    /// What each model takes at least.
    needs: BTreeMap<Key, u64>,
    loads: BTreeMap<Key, Option<u64>>,
    drains: BTreeSet<Key>,
    clock: u64,
}

impl World {
    fn step(&mut self, event: Event) {
        let states: BTreeMap<Key, State> =
            self.needs.keys().map(|key| (key.clone(), self.machine.state(key))).collect();
        let by_itself = match &event {
            Event::Unload(key) | Event::Loaded { key, .. } => Some(key.clone()),
            _ => None,
        };
        for action in self.machine.step(event, &self.uses) {
            match action {
                Action::Load { key, limit } => {
                    assert!(!self.drains.contains(&key), "{key} is loaded while it drains");
                    assert_eq!(self.loads.insert(key, limit), None, "two loads of one model");
                }
                Action::Drain(key) => {
                    assert!(!self.loads.contains_key(&key));
                    assert!(self.drains.insert(key.clone()), "{key} is drained twice");
                    if by_itself.as_ref() != Some(&key) {
                        assert_eq!(states[&key], State::Ready);
                        assert!(!self.uses.held.contains(&key), "{key} is evicted in use");
                        self.check_order(&key, &states);
                    }
                }
            }
        }
        self.check();
    }

    /// No idle model that was used earlier stays where `evicted` had to go.
    fn check_order(&self, evicted: &Key, states: &BTreeMap<Key, State>) {
        for (key, state) in states {
            let stays = *state == State::Ready && self.machine.state(key) == State::Ready;
            let older = self.uses.last_used(key) < self.uses.last_used(evicted);
            assert!(!(stays && older && !self.uses.held.contains(key)), "{evicted} went before {key}");
        }
    }

    fn check(&self) {
        if let Some(budget) = self.budget {
            assert!(self.machine.used_bytes() <= budget, "over budget: {:?}", self.machine);
        }
        assert!(self.loads.len() <= 2, "too many loads at once");
        for (key, model) in self.machine.models() {
            assert_eq!(model.state == State::Draining, self.drains.contains(key), "{key}");
            assert!(!self.loads.contains_key(key) || model.state == State::Loading, "{key}");
            if matches!(model.state, State::Unavailable | State::Failed) {
                assert_eq!(model.bytes, 0, "{key}");
            }
        }
    }

    fn end_a_load(&mut self) {
        let Some((key, limit)) = self.loads.pop_first() else { return };
        let needs = self.needs[&key];
        if limit.is_some_and(|limit| limit < needs) {
            return self.step(Event::Needs { key, bytes: needs });
        }
        if self.rng.random_ratio(1, 6) {
            return self.step(Event::Failed { key, reason: "corrupt".to_owned() });
        }
        let most = limit.unwrap_or(needs * 3).max(needs);
        let bytes = self.rng.random_range(needs..=most);
        self.step(Event::Loaded { key, bytes });
    }

    fn end_a_drain(&mut self) {
        if let Some(key) = self.drains.pop_first() {
            self.uses.held.remove(&key);
            self.step(Event::Drained(key));
        }
    }

    fn random_step(&mut self) {
        let at = self.rng.random_range(0..self.needs.len());
        let key = self.needs.keys().nth(at).cloned().unwrap();
        match self.rng.random_range(0..10) {
            0..=2 => self.step(Event::Load(key)),
            3 => self.step(Event::Unload(key)),
            4 | 5 => self.end_a_load(),
            6 => self.end_a_drain(),
            7 => drop(self.uses.held.remove(&key)),
            8 if self.rng.random_ratio(1, 20) => {
                // Heard of what is not: nothing comes of it.
                if !self.loads.contains_key(&key) {
                    self.step(Event::Failed { key: key.clone(), reason: "stray".to_owned() });
                    self.step(Event::Loaded { key: key.clone(), bytes: 1 << 40 });
                }
                if !self.drains.contains(&key) {
                    self.step(Event::Drained(key));
                }
            }
            _ => {
                if self.machine.state(&key) == State::Ready {
                    self.clock += 1;
                    self.uses.last.insert(key.clone(), self.clock);
                    self.uses.held.insert(key);
                }
            }
        }
    }
}

#[test]
fn whatever_happens_the_budget_holds_and_everything_that_was_begun_ends() {
    for seed in 0..300 {
        let mut rng = StdRng::seed_from_u64(seed);
        let budget = (seed % 4 > 0).then_some(100);
        let needs: BTreeMap<Key, u64> =
            (0..6).map(|n| (key(&format!("m{n}")), rng.random_range(1..=120))).collect();
        let mut world = World {
            machine: Machine::new(budget, 2),
            uses: Uses::default(),
            rng,
            budget,
            needs,
            loads: BTreeMap::new(),
            drains: BTreeSet::new(),
            clock: 0,
        };
        for _ in 0..400 {
            world.random_step();
        }
        // Whoever waits is woken: with everything under way ended, nothing is half done.
        for _ in 0..200 {
            world.end_a_load();
            world.end_a_drain();
        }
        for (key, model) in world.machine.models() {
            let at_rest = !matches!(model.state, State::Loading | State::Draining);
            assert!(at_rest, "seed {seed}: {key} is {model:?} for ever");
        }
        assert!(world.machine.queue.is_empty());
    }
}

#[test]
fn a_load_that_gets_no_further_holds_up_nobody() {
    let [a, b, c] = ["a", "b", "c"].map(key);
    let uses = Uses::default();
    let mut machine = Machine::new(Some(100), 1);
    assert_eq!(machine.step(Event::Load(a.clone()), &uses), [load(&a, 50)]);
    assert_eq!(machine.step(Event::Load(b.clone()), &uses), [], "one at a time");
    assert_eq!(machine.step(Event::Quiet(a.clone()), &uses), [load(&b, 25)]);
    assert_eq!(machine.used_bytes(), 75, "what it may take still counts");
    // What it holds is not waited for either.
    assert_eq!(machine.step(Event::Needs { key: b.clone(), bytes: 60 }, &uses), []);
    assert_eq!(machine.state(&b), State::Failed);

    let stalled = Event::Stalled { key: a.clone(), reason: "silence".to_owned() };
    assert_eq!(machine.step(stalled, &uses), []);
    assert_eq!(machine.state(&a), State::Failed);
    assert_eq!(machine.step(Event::Load(a.clone()), &uses), [], "there is a thread at it");
    // It comes round.
    let _ = machine.step(Event::Loaded { key: a.clone(), bytes: 40 }, &uses);
    assert_eq!((machine.state(&a), machine.used_bytes()), (State::Ready, 40));

    // Unwanted meanwhile: it goes as soon as it can.
    let _ = machine.step(Event::Load(c.clone()), &uses);
    let _ = machine.step(Event::Stalled { key: c.clone(), reason: String::new() }, &uses);
    assert_eq!(machine.step(Event::Unload(c.clone()), &uses), []);
    let loaded = Event::Loaded { key: c.clone(), bytes: 10 };
    assert_eq!(machine.step(loaded, &uses), [Action::Drain(c.clone())]);

    // Threads are not without end.
    let mut machine = Machine::new(None, 2);
    let begun = (0..100).filter(|at| {
        let key = key(&at.to_string());
        let begun = !machine.step(Event::Load(key.clone()), &uses).is_empty();
        let _ = machine.step(Event::Quiet(key), &uses);
        begun
    });
    assert_eq!(begun.count(), 2 + QUIET_AT_MOST);
}
