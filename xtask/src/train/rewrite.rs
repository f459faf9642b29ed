//! Rewriting a follow-up question so that it can be understood alone.

use rand::Rng;

use super::{
    item::{Expect, Item, Split, Task, fill, one},
    words::{COUNTRIES, MEN, RELATIONS, WOMEN},
};

const PROMPTS: &[&str] = &[
    "Rewrite the follow-up as a full question.\nQuestion: {q}\nAnswer: {a}\nFollow-up: {f}",
    "Question: {q}\nAnswer: {a}\nFollow-up: {f}\nRewrite the follow-up so that it stands alone.",
    "Make the last question complete.\nQuestion: {q}\nAnswer: {a}\nFollow-up: {f}",
    "Conversation:\nQuestion: {q}\nAnswer: {a}\nRewrite this follow-up: {f}",
    "Question: {q}\nAnswer: {a}\nMake this a full question: {f}",
    "Write the follow-up as a complete question.\nQuestion: {q}\nAnswer: {a}\nFollow-up: {f}",
];
const HELD_OUT: &[&str] = &[
    "Question: {q}\nAnswer: {a}\nFollow-up: {f}\nMake the follow-up a full question.",
    "Rewrite the last question so that it is complete.\nQuestion: {q}\nAnswer: {a}\nFollow-up: {f}",
];

/// Questions about countries, whose follow-up only names another one.
const ABOUT_COUNTRIES: &[(&str, &str)] = &[
    ("What is the capital of {x}?", "It is a large city."),
    ("What is the currency of {x}?", "It is well known."),
    ("Which language is spoken in {x}?", "There is one main language."),
    ("On which continent is {x}?", "It is on a large continent."),
    ("How many people live in {x}?", "Many people live there."),
];
const AND: &[&str] = &[
    "And {x}?",
    "And of {x}?",
    "What about {x}?",
    "And for {x}?",
    "How about {x}?",
    "And what of {x}?",
    "Now {x}?",
];
const HELD_OUT_AND: &[&str] = &["And what about {x}?", "And how about {x}?"];

pub(super) fn sample(rng: &mut impl Rng, split: Split) -> Item {
    let (question, told, follow_up, answer) =
        if rng.random_bool(0.4) { about_a_country(rng, split) } else { about_a_person(rng, split) };
    let template = one(rng, split.pick(PROMPTS, HELD_OUT));
    let prompt = fill(template, &[("q", &question), ("a", &told), ("f", &follow_up)]);
    Item { task: Task::Rewrite, prompt, expect: Expect::Equals(answer.clone()), answer }
}

fn about_a_country(rng: &mut impl Rng, split: Split) -> (String, String, String, String) {
    let (question, told) = one(rng, ABOUT_COUNTRIES);
    let (first, second) = (one(rng, COUNTRIES), one(rng, COUNTRIES));
    let follow_up = one(rng, split.pick(AND, HELD_OUT_AND));
    let about = |template: &str, country| fill(template, &[("x", country)]);
    (about(question, first), told.to_owned(), about(follow_up, second), about(question, second))
}

fn about_a_person(rng: &mut impl Rng, split: Split) -> (String, String, String, String) {
    let woman = rng.random_bool(0.5);
    let name = one(rng, if woman { WOMEN } else { MEN });
    let (p, h) = if woman { ("she", "her") } else { ("he", "his") };
    let mut relation = || &RELATIONS[rng.random_range(0..RELATIONS.len())];
    let (first, second) = (relation(), relation());
    let question = fill(one(rng, first.questions), &[("n", name)]);
    let told = fill(first.answer, &[("n", name), ("v", one(rng, first.values))]) + ".";
    let follow_up = match split {
        Split::HeldOut => second.held_out_follow_up,
        Split::Train => one(rng, second.follow_ups),
    };
    (question, told, fill(follow_up, &[("p", p), ("h", h)]), fill(second.questions[0], &[("n", name)]))
}
