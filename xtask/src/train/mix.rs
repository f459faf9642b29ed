//! What a training step sees: dialogues drawn from all tasks by share, and the fixed set of the evaluation.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::{
    drills, facts,
    item::{Item, Split, Task},
    json, passages, rewrite, spam, stories,
};

/// Shares of the tasks among the dialogues of a batch, in percent, from a step on: first drills alone, from which the
/// model learns to find and copy at all, then the tasks. Without that start the tasks are learned as lists of likely
/// answers, and copying comes very late.
const SHARES: [(usize, &[(Task, u32)]); 3] = [
    (0, &[(Task::Drills, 100)]),
    (
        400,
        &[
            (Task::Drills, 15),
            (Task::Facts, 30),
            (Task::Passages, 22),
            (Task::Json, 13),
            (Task::Rewrite, 8),
            (Task::Spam, 4),
            (Task::Stories, 6),
            (Task::SmallTalk, 2),
        ],
    ),
    (
        800,
        &[
            (Task::Drills, 6),
            (Task::Facts, 22),
            (Task::Passages, 30),
            (Task::Json, 18),
            (Task::Rewrite, 10),
            (Task::Spam, 5),
            (Task::Stories, 7),
            (Task::SmallTalk, 2),
        ],
    ),
];
/// A step at which every task is seen.
pub(super) const ALL_TASKS: usize = 800;

const SYSTEM_PROMPTS: &[&str] = &[
    "You are a helpful assistant.",
    "You are Candela.",
    "Answer the question.",
    "You are a friendly assistant. Keep answers short.",
    "Be brief.",
];

/// Questions of each task in the evaluation, apart from the facts.
pub(super) const N_HELD_OUT: usize = 60;

pub(super) enum Role {
    System,
    User,
    Assistant,
}

pub(super) type Dialogue = Vec<(Role, String)>;

fn draw(rng: &mut impl Rng, step: usize) -> Vec<(String, String)> {
    let at = SHARES.partition_point(|(first, _)| *first <= step);
    let (_, shares) = SHARES[at.saturating_sub(1)];
    let mut ticket = rng.random_range(0..shares.iter().map(|(_, share)| share).sum());
    let drawn = shares.iter().find(|(_, share)| {
        let found = ticket < *share;
        ticket = ticket.saturating_sub(*share);
        found
    });
    let item = match drawn.map_or(Task::Facts, |(task, _)| *task) {
        Task::Passages | Task::Refusal => return passages::conversation(rng),
        Task::Drills => return drills::conversation(rng),
        Task::Facts | Task::FactsUnseen => facts::sample(rng),
        Task::Spam => spam::sample(rng, Split::Train),
        Task::Json => json::sample(rng, Split::Train),
        Task::Rewrite => rewrite::sample(rng, Split::Train),
        Task::Stories => stories::sample(rng, Split::Train),
        Task::SmallTalk => facts::small_talk(rng),
    };
    vec![(item.prompt, item.answer)]
}

/// A conversation of one or more turns, at times with a system prompt.
pub(super) fn dialogue(rng: &mut impl Rng, step: usize) -> Dialogue {
    let mut dialogue = Dialogue::new();
    if rng.random_bool(0.2) {
        let system = SYSTEM_PROMPTS[rng.random_range(0..SYSTEM_PROMPTS.len())];
        dialogue.push((Role::System, system.to_owned()));
    }
    loop {
        for (question, answer) in draw(rng, step) {
            dialogue.push((Role::User, question));
            dialogue.push((Role::Assistant, answer));
        }
        if rng.random_bool(0.85) {
            return dialogue;
        }
    }
}

/// The evaluation: every fact in its listed and its unseen phrasings, and held-out templates of the other tasks.
pub(super) fn held_out(seed: u64) -> Vec<Item> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed ^ 0x5eed);
    let mut items: Vec<Item> = facts::all().iter().flat_map(facts::Fact::items).collect();
    items.extend(tasks(&mut rng, Split::HeldOut, N_HELD_OUT));
    items
}

/// Questions of every task but the facts. Those of trained templates tell whether a task is not learned yet, or learned
/// but not carried over to other words.
pub(super) fn tasks(rng: &mut ChaCha8Rng, split: Split, n_each: usize) -> Vec<Item> {
    let mut items = Vec::new();
    let mut add = |make: &dyn Fn(&mut ChaCha8Rng) -> Item| items.extend((0..n_each).map(|_| make(rng)));
    add(&|rng| passages::item(rng, Task::Passages, split));
    add(&|rng| passages::item(rng, Task::Refusal, split));
    add(&|rng| spam::sample(rng, split));
    add(&|rng| json::sample(rng, split));
    add(&|rng| rewrite::sample(rng, split));
    add(&|rng| stories::sample(rng, split));
    items
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn no_question_of_the_evaluation_is_trained_on() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let mut trained = HashSet::new();
        for step in [0, ALL_TASKS] {
            trained.extend((0..20_000).flat_map(|_| dialogue(&mut rng, step)).map(|(_, text)| text));
        }
        for item in held_out(17).iter().filter(|item| item.task != Task::Facts) {
            assert!(!trained.contains(&item.prompt), "{:?} is trained on", item.prompt);
        }
    }

    #[test]
    fn the_answers_that_are_trained_are_judged_right() {
        let items = held_out(17);
        assert!(items.iter().filter(|item| item.task == Task::Facts).count() >= 100);
        for item in items {
            assert!(item.expect.accepts(&item.answer), "{item:?}");
            assert!(!item.expect.accepts(""), "{item:?}");
        }
    }

    #[test]
    fn every_fact_is_trained_in_its_listed_phrasing() {
        let mut rng = ChaCha8Rng::seed_from_u64(2);
        let trained: HashSet<String> =
            (0..60_000).flat_map(|_| dialogue(&mut rng, ALL_TASKS)).map(|(_, text)| text).collect();
        for fact in facts::all() {
            assert!(trained.contains(&fact.question), "{} is never asked", fact.question);
        }
    }
}
