//! Exercises in finding and copying words, which every task from passages to JSON is made of. Names and values are
//! drawn anew each time, so that nothing in them can be learned by heart. They are only trained on, mostly at first.

use rand::{Rng, seq::SliceRandom};
use serde_json::json;

use super::{
    item::one,
    passages,
    words::{CITIES, COLORS, DAYS, FOODS, JOBS, MEN, PETS, SPORTS, WOMEN},
};

const VALUES: &[&[&str]] = &[CITIES, JOBS, PETS, FOODS, SPORTS, COLORS, DAYS];

/// What stands between a name and its value.
const BETWEEN: &[&str] =
    &[": ", " ", " has ", " - ", " and the ", " is with a ", " now wants the ", " often asks for "];

type Turns = Vec<(String, String)>;

pub(super) fn conversation(rng: &mut impl Rng) -> Turns {
    match rng.random_range(0..10) {
        0..3 => vec![repeat(rng)],
        3..7 => look_up(rng),
        7..8 => typed(rng),
        _ => vec![array(rng)],
    }
}

fn names(rng: &mut impl Rng, n: usize) -> Vec<&'static str> {
    let mut names: Vec<&str> = WOMEN.iter().chain(MEN).copied().collect();
    names.shuffle(rng);
    names.truncate(n);
    names
}

fn word(rng: &mut impl Rng) -> &'static str {
    let list = one(rng, VALUES);
    one(rng, list)
}

/// The same words once more; many at once, because each of them shows what copying is.
fn repeat(rng: &mut impl Rng) -> (String, String) {
    let n = rng.random_range(4..40);
    let words: Vec<&str> =
        (0..n).map(|_| if rng.random_bool(0.3) { one(rng, WOMEN) } else { word(rng) }).collect();
    let text = words.join(" ");
    (format!("Repeat: {text}"), text)
}

/// Numbered pairs of a name and a word; each question is a name, at times one that is not there.
fn look_up(rng: &mut impl Rng) -> Turns {
    let n = rng.random_range(2..=7);
    let mut people: Vec<(usize, &str, &str)> =
        names(rng, n + 1).into_iter().enumerate().map(|(i, name)| (i, name, word(rng))).collect();
    let lines: Vec<String> = people[..n]
        .iter()
        .map(|(i, name, value)| format!("[{}] {name}{}{value}", i + 1, one(rng, BETWEEN)))
        .collect();
    let list = lines.join("\n");
    people.shuffle(rng);
    let turn = |(at, (i, name, value)): (usize, &(usize, &str, &str))| {
        let question =
            if at == 0 { format!("{list}\nWhat is with {name}?") } else { format!("What is with {name}?") };
        let answer =
            if *i < n { format!("{name} has {value} [{}].", i + 1) } else { passages::REFUSAL.to_owned() };
        (question, answer)
    };
    people.iter().enumerate().map(turn).collect()
}

/// A row of words of different kinds; each question is a kind, at times one that is not there.
fn typed(rng: &mut impl Rng) -> Turns {
    const KINDS: &[(&str, &[&str])] = &[
        ("city", CITIES),
        ("job", JOBS),
        ("pet", PETS),
        ("food", FOODS),
        ("sport", SPORTS),
        ("color", COLORS),
        ("day", DAYS),
        ("name", WOMEN),
        ("name", MEN),
    ];
    let mut kinds = KINDS.to_vec();
    kinds.shuffle(rng);
    kinds.dedup_by_key(|(kind, _)| *kind);
    kinds.truncate(rng.random_range(3..=5));
    let mut told: Vec<(&str, &str)> = kinds.iter().map(|(kind, list)| (*kind, one(rng, list))).collect();
    let list: Vec<&str> = told.iter().map(|(_, value)| *value).collect();
    let list = list.join(" and ");
    told.shuffle(rng);
    let turn = |(at, (kind, value)): (usize, &(&str, &str))| {
        let question = format!("Which {kind}?");
        let question = if at == 0 { format!("Look at {list}\n{question}") } else { question };
        (question, format!("The {kind} is {value}."))
    };
    told.iter().enumerate().map(turn).collect()
}

/// Words and numbers as a JSON array.
fn array(rng: &mut impl Rng) -> (String, String) {
    let n = rng.random_range(2..6);
    let values: Vec<serde_json::Value> = (0..n)
        .map(|_| match rng.random_range(0..4) {
            0 => json!(rng.random_range(2..80)),
            1 => json!(if rng.random_bool(0.5) { one(rng, WOMEN) } else { one(rng, MEN) }),
            _ => json!(word(rng)),
        })
        .collect();
    let plain: Vec<String> =
        values.iter().map(|v| v.as_str().map_or_else(|| v.to_string(), str::to_owned)).collect();
    let quoted: Vec<String> = values.iter().map(ToString::to_string).collect();
    (format!("Write as JSON: {}", plain.join(", ")), format!("[{}]", quoted.join(", ")))
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    use super::*;
    use crate::train::words;

    fn words_of(text: &str) -> HashSet<&str> {
        text.split(|c: char| !c.is_alphanumeric()).collect()
    }

    #[test]
    fn every_value_of_an_answer_stands_in_the_conversation_before_it() {
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        let values: HashSet<&str> = words::values().collect();
        for _ in 0..2000 {
            let mut said = String::new();
            for (question, answer) in conversation(&mut rng) {
                said.push_str(&question);
                let told = words_of(&said);
                for word in words_of(&answer).intersection(&values) {
                    assert!(told.contains(word), "`{word}` is in {answer:?} only; before it: {said:?}");
                }
                said.push_str(&answer);
            }
        }
    }

    #[test]
    fn who_is_not_in_the_list_is_refused_and_nobody_else() {
        let mut rng = ChaCha8Rng::seed_from_u64(4);
        for _ in 0..500 {
            let turns = look_up(&mut rng);
            let (list, _) = turns[0].0.rsplit_once('\n').unwrap_or_default();
            for (question, answer) in &turns {
                let name = question.rsplit(' ').next().unwrap_or_default().trim_end_matches('?');
                let listed = words_of(list).contains(name);
                assert_eq!(answer != passages::REFUSAL, listed, "{name}: {answer} from {list}");
            }
        }
    }
}
