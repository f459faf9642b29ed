//! From labels of tokens to what is named in a text, in the way and with the names of transformers' pipeline
//! `token-classification`, its quirks included: people compare.

use std::ops::Range;

use tokenizers::{Decoder, ModelWrapper, Tokenizer};

use crate::{
    TextError,
    text::{Text, guarded},
};

/// How tokens become entities.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Aggregation {
    /// Each token is one.
    None,
    /// Neighbours with the same label are one; a word may fall apart.
    Simple,
    /// As `Simple`, but of words; a word has the label of its first token.
    First,
    /// The word has the likeliest label in the mean of its tokens.
    Average,
    /// The word has the label of the token that is the surest.
    Max,
}

/// What is named in a text, or one token of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Entity {
    /// As `id2label` names it; of several tokens, without what stands before its first `-`.
    pub label: String,
    /// Probability; of several, their mean.
    pub score: f32,
    /// Of the token in the input, with [`Aggregation::None`].
    pub index: Option<usize>,
    /// As the tokenizer writes it.
    pub word: String,
    /// Characters of the text.
    pub start: usize,
    pub end: usize,
}

/// The probabilities of all labels for each token that is the text's own.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenLabels {
    /// `(tokens, labels)`
    pub(super) probabilities: Vec<f32>,
    pub(super) tokens: Vec<LabelledToken>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct LabelledToken {
    /// In the input, the tokenizer's own tokens included.
    pub(super) index: usize,
    pub(super) id: u32,
    /// Bytes of the text.
    pub(super) start: usize,
    pub(super) end: usize,
}

impl TokenLabels {
    /// `rows` are the logits of each token of an input.
    pub(super) fn of<'l>(
        rows: impl Iterator<Item = &'l [f32]>,
        ids: &[u32],
        spans: &[Option<(usize, usize)>],
    ) -> Self {
        let (mut probabilities, mut tokens) = (Vec::new(), Vec::new());
        for (index, ((row, id), span)) in rows.zip(ids).zip(spans).enumerate() {
            let Some((start, end)) = *span else { continue };
            tokens.push(LabelledToken { index, id: *id, start, end });
            let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let total: f32 = row.iter().map(|x| (x - largest).exp()).sum();
            probabilities.extend(row.iter().map(|x| (x - largest).exp() / total));
        }
        Self { probabilities, tokens }
    }

    pub(super) fn is_finite(&self) -> bool {
        self.probabilities.iter().all(|x| x.is_finite())
    }
}

/// What makes entities of one model.
pub(super) struct Namer {
    /// By number.
    pub(super) labels: Vec<String>,
    /// Words are told by the tokenizer's mark of tokens that continue one, instead of by spaces.
    marks_words: bool,
}

/// A token with all that its neighbours ask of it.
struct Piece<'l> {
    token: LabelledToken,
    word: String,
    scores: &'l [f32],
    continues: bool,
}

/// Tokens with one label: one, or those of a word.
struct Labelled {
    pieces: Range<usize>,
    label: usize,
    score: f32,
}

impl Namer {
    pub(super) fn new(labels: Vec<String>, tokenizer: &Tokenizer) -> Self {
        let marks_words = match tokenizer.get_model() {
            ModelWrapper::WordPiece(model) => !model.continuing_subword_prefix.is_empty(),
            ModelWrapper::BPE(model) => {
                model.continuing_subword_prefix.as_ref().is_some_and(|mark| !mark.is_empty())
            }
            ModelWrapper::WordLevel(_) | ModelWrapper::Unigram(_) => false,
        };
        Self { labels, marks_words }
    }

    /// Entities of `source`, whose tokens have these labels; without those whose label is one of `ignored`.
    pub(super) fn entities(
        &self,
        text: &Text,
        source: &str,
        of: &TokenLabels,
        how: Aggregation,
        ignored: &[String],
    ) -> Result<Vec<Entity>, TextError> {
        let pieces = self.pieces(text, source, of);
        let labelled: Vec<Labelled> = match how {
            Aggregation::None | Aggregation::Simple => (0..pieces.len())
                .map(|i| {
                    let (label, score) = likeliest(pieces[i].scores);
                    Labelled { pieces: i..i + 1, label, score }
                })
                .collect(),
            _ => words(&pieces).into_iter().map(|word| labelled_word(&pieces, word, how)).collect(),
        };
        let groups: Vec<Range<usize>> = match how {
            Aggregation::None => (0..labelled.len()).map(|i| i..i + 1).collect(),
            _ => self.groups(&labelled),
        };
        let names: Vec<&str> = self.labels.iter().map(|name| shown(name, how)).collect();
        let is_ignored: Vec<bool> =
            names.iter().map(|name| ignored.iter().any(|other| other == name)).collect();
        let mut characters = Characters { source, byte: 0, character: 0 };
        let mut entities = Vec::new();
        for group in groups {
            let group = &labelled[group];
            let label = group[0].label;
            if is_ignored[label] {
                continue;
            }
            let word = |one: &Labelled| match how {
                Aggregation::None | Aggregation::Simple => Ok(pieces[one.pieces.start].word.clone()),
                _ => {
                    joined(text, pieces[one.pieces.clone()].iter().map(|piece| piece.word.clone()).collect())
                }
            };
            let word = match how {
                Aggregation::None => word(&group[0])?,
                _ => joined(text, group.iter().map(word).collect::<Result<_, _>>()?)?,
            };
            let (first, last) =
                (&pieces[group[0].pieces.start], &pieces[group[group.len() - 1].pieces.end - 1]);
            entities.push(Entity {
                label: names[label].to_owned(),
                score: group.iter().map(|one| one.score).sum::<f32>() / group.len() as f32,
                index: (how == Aggregation::None).then_some(first.token.index),
                word,
                start: characters.at(source.floor_char_boundary(first.token.start)),
                end: characters.at(source.ceil_char_boundary(last.token.end)),
            });
        }
        Ok(entities)
    }

    fn pieces<'l>(&self, text: &Text, source: &str, of: &'l TokenLabels) -> Vec<Piece<'l>> {
        let scores = of.probabilities.chunks_exact(self.labels.len().max(1));
        let piece = |(token, scores): (&LabelledToken, &'l [f32])| {
            let start = source.floor_char_boundary(token.start);
            let covered = &source[start..source.ceil_char_boundary(token.end).max(start)];
            let is_unknown = text.unknown == Some(token.id);
            let word = match is_unknown {
                true => covered.to_owned(),
                false => text.tokenizer.id_to_token(token.id).unwrap_or_default(),
            };
            let continues = if self.marks_words {
                word.chars().count() != covered.chars().count()
            } else {
                let (before, after) = (source[..start].chars().next_back(), source[start..].chars().next());
                before.is_some_and(|before| before != ' ') && after != Some(' ')
            };
            Piece { token: *token, word, scores, continues: continues && !is_unknown }
        };
        of.tokens.iter().zip(scores).map(piece).collect()
    }

    /// Neighbours with the same label, unless the second one begins anew.
    fn groups(&self, labelled: &[Labelled]) -> Vec<Range<usize>> {
        let tag = |i: usize| {
            let name = self.labels[labelled[i].label].as_str();
            let begins = name.strip_prefix("B-");
            (begins.or_else(|| name.strip_prefix("I-")).unwrap_or(name), begins.is_some())
        };
        split(labelled.len(), |i| {
            let (name, begins) = tag(i);
            begins || name != tag(i - 1).0
        })
    }
}

/// Without what stands before the first `-`, where tokens are put together.
fn shown(name: &str, how: Aggregation) -> &str {
    match name.split_once('-') {
        Some((_, rest)) if how != Aggregation::None => rest,
        _ => name,
    }
}

/// The first of the largest.
fn likeliest(scores: &[f32]) -> (usize, f32) {
    let larger =
        |best: (usize, f32), (i, score): (usize, &f32)| if *score > best.1 { (i, *score) } else { best };
    scores.iter().enumerate().fold((0, f32::NEG_INFINITY), larger)
}

fn words(pieces: &[Piece<'_>]) -> Vec<Range<usize>> {
    split(pieces.len(), |i| !pieces[i].continues)
}

/// `0..n`, cut before each at which something begins.
fn split(n: usize, begins: impl Fn(usize) -> bool) -> Vec<Range<usize>> {
    let mut starts: Vec<usize> = (0..n).filter(|i| *i == 0 || begins(*i)).collect();
    starts.push(n);
    starts.windows(2).map(|pair| pair[0]..pair[1]).collect()
}

fn labelled_word(pieces: &[Piece<'_>], word: Range<usize>, how: Aggregation) -> Labelled {
    let own = &pieces[word.clone()];
    let (label, score) = match how {
        Aggregation::Average => {
            let mut means = own[0].scores.to_vec();
            for piece in &own[1..] {
                means.iter_mut().zip(piece.scores).for_each(|(sum, score)| *sum += score);
            }
            means.iter_mut().for_each(|sum| *sum /= own.len() as f32);
            likeliest(&means)
        }
        Aggregation::Max => {
            let best: Vec<_> = own.iter().map(|piece| likeliest(piece.scores)).collect();
            let scores: Vec<f32> = best.iter().map(|(_, score)| *score).collect();
            best[likeliest(&scores).0]
        }
        Aggregation::First | Aggregation::None | Aggregation::Simple => likeliest(own[0].scores),
    };
    Labelled { pieces: word, label, score }
}

/// Tokens as text.
fn joined(text: &Text, tokens: Vec<String>) -> Result<String, TextError> {
    match text.tokenizer.get_decoder() {
        Some(decoder) => guarded(|| decoder.decode(tokens)),
        None => Ok(tokens.join(" ")),
    }
}

/// Counts from where it was asked last: tokens come in the text's order.
struct Characters<'t> {
    source: &'t str,
    byte: usize,
    character: usize,
}

impl Characters<'_> {
    /// Characters before a byte, which is the first of one.
    fn at(&mut self, byte: usize) -> usize {
        if byte >= self.byte {
            self.character += self.source[self.byte..byte].chars().count();
        } else {
            self.character -= self.source[byte..self.byte].chars().count();
        }
        self.byte = byte;
        self.character
    }
}

#[cfg(test)]
mod tests;
