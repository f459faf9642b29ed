//! What a training step sees: dialogues drawn from all tasks by share, and the fixed set of the evaluation.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::{
    facts,
    item::{Item, Split, Task},
    json, passages, rewrite, spam, stories,
};

/// Shares of the tasks among the dialogues of a batch, in percent: at first mostly facts, which are quickly learned,
/// then mostly the tasks that need to find and copy something.
const SHARES: [&[(Task, u32)]; 2] = [
    &[
        (Task::Facts, 34),
        (Task::Passages, 29),
        (Task::Json, 13),
        (Task::Rewrite, 9),
        (Task::Spam, 8),
        (Task::Stories, 5),
        (Task::SmallTalk, 2),
    ],
    &[
        (Task::Facts, 24),
        (Task::Passages, 36),
        (Task::Json, 20),
        (Task::Rewrite, 6),
        (Task::Spam, 4),
        (Task::Stories, 8),
        (Task::SmallTalk, 2),
    ],
];
const FACTS_FIRST: usize = 800;

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
    let shares = SHARES[usize::from(step >= FACTS_FIRST)];
    let mut ticket = rng.random_range(0..shares.iter().map(|(_, share)| share).sum());
    let drawn = shares.iter().find(|(_, share)| {
        let found = ticket < *share;
        ticket = ticket.saturating_sub(*share);
        found
    });
    let item = match drawn.map_or(Task::Facts, |(task, _)| *task) {
        Task::Passages | Task::Refusal => return passages::conversation(rng),
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
    let mut add = |make: fn(&mut ChaCha8Rng) -> Item| items.extend((0..N_HELD_OUT).map(|_| make(&mut rng)));
    add(|rng| passages::held_out(rng, Task::Passages));
    add(|rng| passages::held_out(rng, Task::Refusal));
    add(|rng| spam::sample(rng, Split::HeldOut));
    add(|rng| json::sample(rng, Split::HeldOut));
    add(|rng| rewrite::sample(rng, Split::HeldOut));
    add(|rng| stories::sample(rng, Split::HeldOut));
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
        for step in [0, FACTS_FIRST] {
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
            (0..60_000).flat_map(|_| dialogue(&mut rng, 0)).map(|(_, text)| text).collect();
        for fact in facts::all() {
            assert!(trained.contains(&fact.question), "{} is never asked", fact.question);
        }
    }
}
