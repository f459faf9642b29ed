//! One exercise: a conversation, the answer to learn, and how an answer is judged. The same shape is written to
//! `eval.jsonl` and read by the test of the shipped model.

use serde::{Deserialize, Serialize};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Task {
    Facts,
    FactsUnseen,
    Passages,
    Refusal,
    Spam,
    Json,
    Rewrite,
    Stories,
    SmallTalk,
    Drills,
}

/// Templates of `HeldOut` are never trained on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Split {
    Train,
    HeldOut,
}

impl Split {
    pub(super) fn pick<'a, T>(self, train: &'a [T], held_out: &'a [T]) -> &'a [T] {
        match self {
            Split::Train => train,
            Split::HeldOut => held_out,
        }
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Expect {
    /// The answer holds every one of these, whole words, whatever the case.
    Contains(Vec<String>),
    /// The answer is this text.
    Equals(String),
    /// The answer parses as this JSON value.
    Json(serde_json::Value),
    /// The answer is one sentence of 6 to 40 words that holds these words.
    Sentence(Vec<String>),
}

impl Expect {
    pub(super) fn accepts(&self, answer: &str) -> bool {
        let answer = answer.trim();
        match self {
            Expect::Contains(parts) => parts.iter().all(|part| contains_word(answer, part)),
            Expect::Equals(text) => answer == text,
            Expect::Json(value) => {
                serde_json::from_str::<serde_json::Value>(answer).is_ok_and(|v| v == *value)
            }
            Expect::Sentence(words) => {
                let body = answer.strip_suffix('.').unwrap_or("");
                let n_words = body.split_whitespace().count();
                (6..=40).contains(&n_words)
                    && !body.contains(['.', '!', '?'])
                    && words.iter().all(|word| contains_word(body, word))
            }
        }
    }
}

/// Whether `part` stands in `text` without a letter or digit on either side.
fn contains_word(text: &str, part: &str) -> bool {
    let (text, part) = (text.to_lowercase(), part.to_lowercase());
    text.match_indices(&part).any(|(at, _)| {
        let before = text[..at].chars().next_back();
        let after = text[at + part.len()..].chars().next();
        !before.is_some_and(char::is_alphanumeric) && !after.is_some_and(char::is_alphanumeric)
    })
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Item {
    pub(super) task: Task,
    pub(super) prompt: String,
    pub(super) expect: Expect,
    /// What the training text answers; other right answers are accepted too.
    pub(super) answer: String,
}

/// Fills `{name}` places of a template.
pub(super) fn fill(template: &str, values: &[(&str, &str)]) -> String {
    let mut text = template.to_owned();
    for (name, value) in values {
        text = text.replace(&format!("{{{name}}}"), value);
    }
    text
}

/// One of a list that is never empty.
pub(super) fn one<T: Copy>(rng: &mut impl rand::Rng, from: &[T]) -> T {
    from[rng.random_range(0..from.len())]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_judged_by_whole_words() {
        let paris = Expect::Contains(vec!["Paris".into()]);
        assert!(paris.accepts("The capital of France is Paris."));
        assert!(!paris.accepts("The Parisian"));
        assert!(!paris.accepts(""));
        let cited = Expect::Contains(vec!["Oslo".into(), "[2]".into()]);
        assert!(cited.accepts("Anna lives in Oslo [2]."));
        assert!(!cited.accepts("Anna lives in Oslo [1]."));
    }

    #[test]
    fn json_is_compared_by_value_and_stories_by_shape() {
        let json = Expect::Json(serde_json::json!({"name": "Anna", "age": 3}));
        assert!(json.accepts(r#"{ "age": 3, "name": "Anna" }"#));
        assert!(!json.accepts(r#"{"name": "Anna", "age": "3"}"#));
        let story = Expect::Sentence(vec!["fox".into()]);
        assert!(story.accepts("Once upon a time, a fox found a coin."));
        assert!(!story.accepts("A fox ran. It was fast and very happy."));
    }
}
