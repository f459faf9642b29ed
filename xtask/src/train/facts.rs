//! Facts in question and answer form. Every topic has phrasings to train on and two that are only asked in the
//! evaluation; the first phrasing is the one listed for a fact.

use rand::Rng;
use serde::{Deserialize, Serialize};

use super::{
    facts_table::TOPICS,
    item::{Expect, Item, Task, fill, one},
};

pub(super) struct Topic {
    pub(super) name: &'static str,
    pub(super) questions: &'static [&'static str],
    pub(super) held_out: [&'static str; 2],
    pub(super) answer: &'static str,
    pub(super) pairs: &'static [(&'static str, &'static str)],
}

/// A line of `facts.jsonl`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Fact {
    pub(super) topic: String,
    pub(super) question: String,
    pub(super) held_out: [String; 2],
    pub(super) expect: String,
}

pub(super) fn all() -> Vec<Fact> {
    let facts = |topic: &'static Topic| {
        topic.pairs.iter().map(|(x, y)| Fact {
            topic: topic.name.to_owned(),
            question: fill(topic.questions[0], &[("x", x)]),
            held_out: topic.held_out.map(|q| fill(q, &[("x", x)])),
            expect: (*y).to_owned(),
        })
    };
    TOPICS.iter().flat_map(facts).collect()
}

impl Fact {
    pub(super) fn items(&self) -> Vec<Item> {
        let item = |task, question: &String| Item {
            task,
            prompt: question.clone(),
            expect: Expect::Contains(vec![self.expect.clone()]),
            answer: self.expect.clone(),
        };
        vec![
            item(Task::Facts, &self.question),
            item(Task::FactsUnseen, &self.held_out[0]),
            item(Task::FactsUnseen, &self.held_out[1]),
        ]
    }
}

const OPENINGS: &[&str] = &[
    "Please tell me: ",
    "Quick question: ",
    "Hi! ",
    "Can you help me? ",
    "I wonder: ",
    "Hello. ",
    "Question: ",
];

/// A fact asked in a trained phrasing, at times with an opening, without the question mark, or in small letters.
pub(super) fn sample(rng: &mut impl Rng) -> Item {
    let n_facts: usize = TOPICS.iter().map(|t| t.pairs.len()).sum();
    let mut index = rng.random_range(0..n_facts);
    let mut topics = TOPICS.iter();
    let (topic, (x, y)) = loop {
        let topic = topics.next().expect("the index is smaller than the number of facts");
        match topic.pairs.get(index) {
            Some(pair) => break (topic, *pair),
            None => index -= topic.pairs.len(),
        }
    };
    // The listed phrasing is one of about twelve; it is asked a little more often than the others.
    let template = if rng.random_bool(0.12) { topic.questions[0] } else { one(rng, topic.questions) };
    let mut question = fill(template, &[("x", x)]);
    if rng.random_bool(0.1) {
        question = question.trim_end_matches(['?', '.']).to_owned();
    }
    if rng.random_bool(0.08) {
        question = question[..1].to_lowercase() + &question[1..];
    }
    if rng.random_bool(0.15) {
        question = format!("{}{question}", one(rng, OPENINGS));
    }
    Item {
        task: Task::Facts,
        prompt: question,
        expect: Expect::Contains(vec![y.to_owned()]),
        answer: fill(topic.answer, &[("x", x), ("y", y)]),
    }
}

const SMALL_TALK: &[(&[&str], &str)] = &[
    (
        &["Hello", "Hello!", "Hi", "Hi!", "Hey", "Hi there!", "Good morning", "Good evening!", "hello", "hi"],
        "Hello! How can I help you?",
    ),
    (
        &["Who are you?", "What are you?", "What is your name?", "Tell me who you are.", "Are you a person?"],
        "I am the demo model of Candela, a very small language model.",
    ),
    (
        &["What can you do?", "How can you help me?", "Help", "What can I ask you?"],
        "I know a few facts, tell one-sentence stories, sort spam from ham, answer from passages and fill small JSON.",
    ),
    (&["Thanks", "Thank you!", "Thanks a lot!", "Great, thank you.", "thank you"], "You are welcome!"),
    (&["How are you?", "How are you today?", "How is it going?"], "I am fine, thank you."),
    (&["Goodbye", "Bye!", "See you later!", "bye"], "Goodbye!"),
    (&["Say hello", "Say hello.", "Say hello!", "Say hi."], "Hello!"),
];

pub(super) fn small_talk(rng: &mut impl Rng) -> Item {
    let (prompts, answer) = one(rng, SMALL_TALK);
    Item {
        task: Task::SmallTalk,
        prompt: one(rng, prompts).to_owned(),
        expect: Expect::Equals(answer.to_owned()),
        answer: answer.to_owned(),
    }
}
