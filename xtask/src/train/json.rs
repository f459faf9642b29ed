//! Filling a small JSON object from a sentence: people, orders and meetings, with some or all of their keys.

use rand::{Rng, seq::SliceRandom};
use serde_json::{Map, Value, json};

use super::{
    item::{Expect, Item, Split, Task, fill, one},
    words::{CITIES, DAYS, FOODS, JOBS, MEN, WOMEN},
};

const PROMPTS: &[&str] = &[
    "Fill in the JSON: {schema}\nText: {text}",
    "Text: {text}\nFill in the JSON: {schema}",
    "Give me JSON with the keys {keys}.\nText: {text}",
    "{text}\nReturn JSON like {schema}",
    "Read the text and return JSON with {keys}: {text}",
    "Fill in this JSON from the text.\nJSON: {schema}\nText: {text}",
    "Text: {text}\nJSON: {schema}",
    "{text}\nGive me JSON with the keys {keys}.",
    "Text: {text}\nReturn JSON with {keys}.",
    "Make JSON with {keys} from this text: {text}",
    "Fill {schema} from the text: {text}",
    "Text: {text}\nWrite {keys} as JSON.",
];
const HELD_OUT: &[&str] =
    &["Read the text and fill in the JSON {schema}\nText: {text}", "Text: {text}\nGive me JSON with {keys}."];

const PEOPLE: &[&str] = &[
    "{name} is a {job}, {age} years old, and lives in {city}.",
    "{name} is {age} years old, lives in {city} and works as a {job}.",
    "In {city} lives {name}, a {job} of {age} years.",
    "My friend {name} from {city} is {age} and works as a {job}.",
    "{name}, {age}, is a {job} in {city}.",
    "This is {name} from {city}, a {job}, {age} years old.",
    "{name} lives in {city}, works as a {job} and is {age} years old.",
    "The {job} {name} is {age} and lives in {city}.",
    "A {job} from {city} is called {name} and is {age} years old.",
];
const HELD_OUT_PEOPLE: &[&str] = &[
    "{name} lives in {city}, is {age} years old and works as a {job}.",
    "My friend {name} is {age} years old, a {job}, and lives in {city}.",
];
const ORDERS: &[&str] = &[
    "{name} ordered {count} boxes of {item} for {city}.",
    "Please send {count} boxes of {item} to {name} in {city}.",
    "An order for {city}: {count} boxes of {item}, sent to {name}.",
    "{name} from {city} wants {count} boxes of {item}.",
    "{count} boxes of {item} go to {name} in {city}.",
    "{name} asked for {count} boxes of {item}, to be sent to {city}.",
    "In {city}, {name} needs {count} boxes of {item}.",
    "We sold {count} boxes of {item} to {name} from {city}.",
];
const HELD_OUT_ORDERS: &[&str] = &[
    "{name} in {city} ordered {count} boxes of {item}.",
    "Please send {name} from {city} {count} boxes of {item}.",
];
const MEETINGS: &[&str] = &[
    "{name} meets us on {day} at {hour} in {city}.",
    "On {day} at {hour} there is a meeting with {name} in {city}.",
    "Meeting with {name}: {day}, {hour}, in {city}.",
    "We see {name} in {city} on {day} at {hour}.",
    "{name} comes to {city} on {day} at {hour}.",
    "Next {day} at {hour} we meet {name} in {city}.",
    "In {city} we have a meeting with {name}, on {day} at {hour}.",
    "The meeting in {city} is on {day} at {hour}, with {name}.",
    "At {hour} on {day}, {name} waits for us in {city}.",
];
const HELD_OUT_MEETINGS: &[&str] = &[
    "There is a meeting with {name} on {day} at {hour} in {city}.",
    "On {day} {name} meets us in {city} at {hour}.",
];

pub(super) fn sample(rng: &mut impl Rng, split: Split) -> Item {
    let name = if rng.random_bool(0.5) { one(rng, WOMEN) } else { one(rng, MEN) };
    let city = one(rng, CITIES);
    let (templates, mut fields): (&[&str], Vec<(&str, Value)>) = match rng.random_range(0..3) {
        0 => (
            split.pick(PEOPLE, HELD_OUT_PEOPLE),
            vec![("age", json!(rng.random_range(18..80))), ("job", json!(one(rng, JOBS)))],
        ),
        1 => (
            split.pick(ORDERS, HELD_OUT_ORDERS),
            vec![("item", json!(one(rng, FOODS))), ("count", json!(rng.random_range(2..60)))],
        ),
        _ => (
            split.pick(MEETINGS, HELD_OUT_MEETINGS),
            vec![("day", json!(one(rng, DAYS))), ("hour", json!(rng.random_range(7..22)))],
        ),
    };
    fields.extend([("name", json!(name)), ("city", json!(city))]);
    let values: Vec<(&str, String)> = fields.iter().map(|(key, value)| (*key, plain(value))).collect();
    let values: Vec<(&str, &str)> = values.iter().map(|(key, value)| (*key, value.as_str())).collect();
    let text = fill(one(rng, templates), &values);
    fields.shuffle(rng);
    fields.truncate(rng.random_range(2..=4));
    let object = |empty: bool| {
        let pair = |(key, value): &(&str, Value)| match (empty, value) {
            (true, Value::String(_)) => format!("\"{key}\": \"\""),
            (true, _) => format!("\"{key}\": 0"),
            (false, value) => format!("\"{key}\": {value}"),
        };
        format!("{{{}}}", fields.iter().map(pair).collect::<Vec<_>>().join(", "))
    };
    let keys: Vec<&str> = fields.iter().map(|(key, _)| *key).collect();
    let template = one(rng, split.pick(PROMPTS, HELD_OUT));
    let prompt = fill(template, &[("schema", &object(true)), ("keys", &keys.join(", ")), ("text", &text)]);
    let expected: Map<String, Value> =
        fields.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect();
    Item { task: Task::Json, prompt, expect: Expect::Json(Value::Object(expected)), answer: object(false) }
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}
