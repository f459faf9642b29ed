//! Greedy answers of the model in training, and scores by task.

use std::collections::BTreeMap;

use anyhow::Result;
use candle_core::D;

use super::{
    item::{Item, Task},
    model::Model,
    tokenizer::Chat,
};

/// Tokens an answer may have; all trained answers are shorter.
const MAX_ANSWER: usize = 56;
/// Rows per forward pass.
const MAX_ROWS: usize = 6144;

pub(super) type Scores = BTreeMap<Task, Score>;

#[derive(Clone, Copy, Debug, Default, serde::Serialize)]
pub(super) struct Score {
    pub(super) right: usize,
    pub(super) asked: usize,
}

impl Score {
    pub(super) fn percent(self) -> f64 {
        (1000.0 * self.right as f64 / self.asked.max(1) as f64).round() / 10.0
    }
}

/// Answers by greedy decoding. Every step runs the whole conversation again: slow, but the trainer needs no cache.
pub(super) fn answers(model: &Model, chat: &Chat, items: &[Item]) -> Result<Vec<String>> {
    struct Open {
        index: usize,
        ids: Vec<u32>,
        start: usize,
    }
    let mut out = vec![String::new(); items.len()];
    let mut open = Vec::new();
    for (index, item) in items.iter().enumerate() {
        let ids = chat.prompt(&item.prompt)?;
        open.push(Open { index, start: ids.len(), ids });
    }
    while !open.is_empty() {
        let mut still_open = Vec::new();
        let mut rest = open.into_iter().peekable();
        while rest.peek().is_some() {
            let (mut group, mut n_rows) = (Vec::new(), 0);
            while let Some(next) = rest.next_if(|next| n_rows == 0 || n_rows + next.ids.len() <= MAX_ROWS) {
                n_rows += next.ids.len();
                group.push(next);
            }
            let tokens: Vec<u32> = group.iter().flat_map(|o| o.ids.iter().copied()).collect();
            let lengths: Vec<usize> = group.iter().map(|o| o.ids.len()).collect();
            let mut last = 0;
            let ends: Vec<u32> = lengths
                .iter()
                .map(|n| {
                    last += *n as u32;
                    last - 1
                })
                .collect();
            let hidden = model.hidden(&tokens, &lengths)?.detach();
            let ends = candle_core::Tensor::from_vec(ends, lengths.len(), hidden.device())?;
            let next = model.logits(&hidden.index_select(&ends, 0)?)?.argmax(D::Minus1)?.to_vec1::<u32>()?;
            for (mut o, id) in group.into_iter().zip(next) {
                let done = id == chat.end() || o.ids.len() - o.start >= MAX_ANSWER;
                if done {
                    out[o.index] = chat.decode(&o.ids[o.start..])?;
                } else {
                    o.ids.push(id);
                    still_open.push(o);
                }
            }
        }
        open = still_open;
    }
    Ok(out)
}

/// Scores by task, and one wrong answer of each for the log.
pub(super) fn score(items: &[Item], answers: &[String]) -> (Scores, BTreeMap<Task, (String, String)>) {
    let mut scores = Scores::new();
    let mut wrong = BTreeMap::new();
    for (item, answer) in items.iter().zip(answers) {
        let score = scores.entry(item.task).or_default();
        score.asked += 1;
        if item.expect.accepts(answer) {
            score.right += 1;
        } else {
            wrong.insert(item.task, (item.prompt.clone(), answer.clone()));
        }
    }
    (scores, wrong)
}
