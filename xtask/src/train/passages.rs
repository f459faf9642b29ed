//! Answering from numbered passages with a citation, and saying so when they do not hold the answer.

use rand::{Rng, seq::SliceRandom};

use super::{
    item::{Expect, Item, Split, Task, fill, one},
    words::{MEN, RELATIONS, Relation, WOMEN},
};

const PROMPTS: &[&str] = &[
    "{passages}\nQuestion: {q}",
    "Answer from the passages.\n{passages}\nQuestion: {q}",
    "Use only these passages:\n{passages}\n{q}",
    "{passages}\nAnswer with the number of the passage: {q}",
    "Read the passages and answer.\n{passages}\n{q}",
    "Passages:\n{passages}\nQuestion: {q}",
    "Passages:\n{passages}\nAnswer this from the passages: {q}",
    "{passages}\n{q}",
    "Passages:\n{passages}\n{q}",
    "Use the passages to answer.\n{passages}\nQuestion: {q}",
    "Here are some passages:\n{passages}\n{q}",
    "Find the answer in the passages and give its number.\n{passages}\n{q}",
];
const HELD_OUT: &[&str] = &[
    "Read these passages:\n{passages}\nQuestion: {q}",
    "Answer the question from the passages.\n{passages}\n{q}",
    "Use only the passages and answer with the number.\n{passages}\nQuestion: {q}",
];
pub(super) const REFUSAL: &str = "The passages do not say.";

/// Two to four passages about different people.
struct Scene {
    /// People of the passages, then one who is in none of them.
    names: Vec<&'static str>,
    told: Vec<(&'static Relation, &'static str)>,
    passages: String,
}

struct Question {
    question: String,
    answer: String,
    expect: Expect,
}

impl Scene {
    fn new(rng: &mut impl Rng, split: Split) -> Self {
        let n = rng.random_range(2..=4);
        let mut names: Vec<&str> = WOMEN.iter().chain(MEN).copied().collect();
        names.shuffle(rng);
        names.truncate(n + 1);
        let (mut told, mut lines) = (Vec::new(), Vec::new());
        for (i, name) in names[..n].iter().enumerate() {
            let relation = &RELATIONS[rng.random_range(0..RELATIONS.len())];
            let value = one(rng, relation.values);
            let template = match split {
                Split::HeldOut => relation.held_out_sentence,
                Split::Train => one(rng, relation.sentences),
            };
            lines.push(format!("[{}] {}", i + 1, fill(template, &[("n", name), ("v", value)])));
            told.push((relation, value));
        }
        Self { names, told, passages: lines.join("\n") }
    }

    /// What is told about a person or, without one, a question without an answer. Half of the questions without an answer name somebody else, half ask for something that is not told about a
    /// person who is there.
    fn ask(&self, rng: &mut impl Rng, split: Split, person: Option<usize>) -> Question {
        let n = self.told.len();
        let answered = person.is_some();
        let at = person.unwrap_or_else(|| rng.random_range(0..n));
        let (mut relation, value) = self.told[at];
        let mut name = self.names[at];
        if !answered {
            if rng.random_bool(0.5) {
                name = self.names[n];
            } else {
                let others: Vec<&Relation> =
                    RELATIONS.iter().filter(|r| !std::ptr::eq(*r, relation)).collect();
                relation = one(rng, &others);
            }
        }
        let question = match split {
            Split::HeldOut => relation.held_out_question,
            Split::Train => one(rng, relation.questions),
        };
        let question = fill(question, &[("n", name)]);
        if !answered {
            return Question { question, answer: REFUSAL.into(), expect: Expect::Equals(REFUSAL.into()) };
        }
        let citation = format!("[{}]", at + 1);
        Question {
            question,
            answer: format!("{} {citation}.", fill(relation.answer, &[("n", name), ("v", value)])),
            expect: Expect::Contains(vec![value.to_owned(), citation]),
        }
    }

    fn prompt(&self, rng: &mut impl Rng, split: Split, question: &str) -> String {
        fill(one(rng, split.pick(PROMPTS, HELD_OUT)), &[("passages", &self.passages), ("q", question)])
    }
}

/// Turns of a conversation to train on: the passages come with the first question, more questions follow. Each person
/// is asked about once, and between them come questions without an answer: many answers for one reading.
pub(super) fn conversation(rng: &mut impl Rng) -> Vec<(String, String)> {
    let scene = Scene::new(rng, Split::Train);
    let n = scene.told.len();
    let mut about: Vec<Option<usize>> = (0..n).map(Some).collect();
    about.extend((0..rng.random_range(1..=n)).map(|_| None));
    about.shuffle(rng);
    let mut turns = Vec::new();
    for (i, person) in about.into_iter().enumerate() {
        let q = scene.ask(rng, Split::Train, person);
        let prompt = if i == 0 { scene.prompt(rng, Split::Train, &q.question) } else { q.question };
        turns.push((prompt, q.answer));
    }
    turns
}

pub(super) fn item(rng: &mut impl Rng, task: Task, split: Split) -> Item {
    let scene = Scene::new(rng, split);
    let person = (task == Task::Passages).then(|| rng.random_range(0..scene.told.len()));
    let q = scene.ask(rng, split, person);
    let prompt = scene.prompt(rng, split, &q.question);
    Item { task, prompt, expect: q.expect, answer: q.answer }
}
