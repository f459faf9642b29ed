//! Texts to tokens. What a text may hold in memory is bounded by the model's context before it is kept.

use tokenizers::{Encoding, Tokenizer, TruncationDirection};

use crate::{
    TextError,
    text::{Text, guarded},
};

/// One text, or a pair of texts, in tokens.
#[derive(Clone, Debug, PartialEq)]
pub struct Input {
    pub(super) ids: Vec<u32>,
    /// Which of a pair's texts a token is of; empty = all of the first.
    pub(super) types: Vec<u32>,
    /// Bytes of the text that each token stands for, `None` for the tokenizer's own; empty where nobody asks for them.
    pub(super) spans: Vec<Option<(usize, usize)>>,
}

impl Input {
    /// Tokens, the tokenizer's own included.
    pub fn n_tokens(&self) -> usize {
        self.ids.len()
    }

    pub(super) fn of_ids(ids: Vec<u32>) -> Self {
        Self { ids, types: Vec::new(), spans: Vec::new() }
    }
}

/// What makes [`Input`]s of one model.
pub(crate) struct Tokens {
    pub(super) text: Text,
    /// The same tokenizer, cutting what is too long.
    pub(super) truncating: Tokenizer,
    pub(super) max_tokens: usize,
    /// Whether somebody asks which bytes a token stands for.
    pub(super) spans: bool,
}

impl Tokens {
    pub(super) fn of_text(&self, text: &str, truncate: bool) -> Result<Input, TextError> {
        let text = self.head(text, truncate)?;
        let tokenizer = if truncate { &self.truncating } else { &self.text.tokenizer };
        self.input(&guarded(|| tokenizer.encode(text, true))?)
    }

    pub(super) fn pairs(&self, query: &str, truncate: bool) -> Result<Pairs<'_>, TextError> {
        Ok(Pairs { tokens: self, query: self.piece(query, usize::MAX, truncate)?, truncate })
    }

    /// What is cut off need not be tokenised first; no token is longer than the longest.
    fn head<'t>(&self, text: &'t str, truncate: bool) -> Result<&'t str, TextError> {
        let limit_bytes = self.text.longest_token.saturating_mul(self.max_tokens).saturating_mul(4);
        if text.len() > limit_bytes && !truncate {
            return Err(TextError::TooLong { bytes: text.len(), limit_bytes });
        }
        Ok(&text[..text.floor_char_boundary(limit_bytes)])
    }

    /// One text of a pair, without the tokenizer's own tokens. As many as the model takes are as good as more: the
    /// longer text of a pair is the one that is cut, and neither keeps more than that.
    fn piece(&self, text: &str, most: usize, truncate: bool) -> Result<Encoding, TextError> {
        let text = self.head(text, truncate)?;
        let mut piece = guarded(|| self.text.tokenizer.encode(text, false))?;
        if !truncate {
            self.check(piece.len())?;
        }
        piece.truncate(self.max_tokens.min(most), 0, TruncationDirection::Right);
        piece.take_overflowing();
        Ok(piece)
    }

    fn check(&self, tokens: usize) -> Result<(), TextError> {
        let max_tokens = self.max_tokens;
        if tokens > max_tokens { Err(TextError::TooManyTokens { tokens, max_tokens }) } else { Ok(()) }
    }

    fn input(&self, encoding: &Encoding) -> Result<Input, TextError> {
        self.check(encoding.len())?;
        let types = encoding.get_type_ids();
        let spans = encoding.get_offsets().iter().zip(encoding.get_special_tokens_mask());
        let spans = spans.filter(|_| self.spans).map(|(span, own)| (*own == 0).then_some(*span));
        Ok(Input {
            ids: encoding.get_ids().to_vec(),
            types: if types.iter().all(|kind| *kind == 0) { Vec::new() } else { types.to_vec() },
            spans: spans.collect(),
        })
    }
}

/// One query, to be paired with documents.
pub struct Pairs<'e> {
    tokens: &'e Tokens,
    query: Encoding,
    truncate: bool,
}

impl Pairs<'_> {
    /// Tokens of the pair: of the document at most so many. With truncation, the longer of the two loses its end until
    /// both fit.
    pub fn with(&self, document: &str, most: usize) -> Result<Input, TextError> {
        let cut = self.truncate || most < self.tokens.max_tokens;
        let document = self.tokens.piece(document, most, cut)?;
        let tokenizer = if self.truncate { &self.tokens.truncating } else { &self.tokens.text.tokenizer };
        let pair = guarded(|| tokenizer.post_process(self.query.clone(), Some(document), true))?;
        self.tokens.input(&pair)
    }
}
