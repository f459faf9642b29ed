//! One-sentence stories about an animal, and at times a thing.

use rand::Rng;

use super::item::{Expect, Item, Split, Task, fill, one};

const ANIMALS: &[&str] = &[
    "fox", "dog", "cat", "mouse", "bear", "rabbit", "horse", "duck", "frog", "goat", "pig", "hen", "deer",
    "wolf", "lion", "tiger", "turtle", "parrot", "snake", "sheep", "cow", "pony", "hamster", "goose",
];
const THINGS: &[&str] = &[
    "key", "lantern", "boat", "coin", "map", "hat", "bell", "book", "kite", "drum", "mirror", "ring",
    "letter", "basket", "stone", "flower",
];
const PROMPTS: &[&str] = &[
    "Write a one-sentence story about {x}.",
    "Tell me a one-sentence story about {x}.",
    "Write a short story about {x} in one sentence.",
    "Tell me a story about {x}.",
    "I want a one-sentence story about {x}.",
    "Make up a story about {x} in one sentence.",
    "Write one sentence about {x}.",
    "Please tell me a story about {x}.",
    "Can you write a one-sentence story about {x}?",
    "A short story about {x}, please.",
    "Can you make up a story about {x}?",
];
const HELD_OUT: &[&str] = &[
    "Please write a story about {x} in one sentence.",
    "Make up a one-sentence story about {x}.",
    "Can you tell me a short story about {x}?",
];
const OPENINGS: &[&str] = &["Once upon a time,", "One day,", "Long ago,", "One morning,", "Last winter,"];
const ADJECTIVES: &[&str] = &["little", "brave", "clever", "old", "happy", "lonely", "curious", "kind"];
const THING_ADJECTIVES: &[&str] = &["golden", "small", "red", "lost", "silver", "strange"];
const PLACES: &[&str] = &[
    "in the forest",
    "by the river",
    "under a tree",
    "on the hill",
    "near the sea",
    "in the garden",
    "behind a barn",
];
const ENDINGS: &[&str] = &[
    "and shared it with a friend",
    "and took it home",
    "and gave it to a child",
    "and hid it from the rain",
    "and was happy ever after",
    "and showed it to everyone",
];

pub(super) fn sample(rng: &mut impl Rng, split: Split) -> Item {
    let animal = one(rng, ANIMALS);
    let thing = one(rng, THINGS);
    let with_thing = rng.random_bool(0.4);
    let about = if with_thing { format!("a {animal} and a {thing}") } else { format!("a {animal}") };
    let prompt = fill(one(rng, split.pick(PROMPTS, HELD_OUT)), &[("x", &about)]);
    let answer = format!(
        "{} {} {animal} found a {} {thing} {} {}.",
        one(rng, OPENINGS),
        article(one(rng, ADJECTIVES)),
        one(rng, THING_ADJECTIVES),
        one(rng, PLACES),
        one(rng, ENDINGS)
    );
    let mut words = vec![animal.to_owned()];
    if with_thing {
        words.push(thing.to_owned());
    }
    Item { task: Task::Stories, prompt, expect: Expect::Sentence(words), answer }
}

fn article(adjective: &str) -> String {
    let article = if adjective.starts_with(['a', 'e', 'i', 'o', 'u']) { "an" } else { "a" };
    format!("{article} {adjective}")
}
