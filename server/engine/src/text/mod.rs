//! Text to tokens and back: tokenizer, chat template, end-of-text tokens.

mod chat_template;
mod gguf_tokenizer;
mod hf_tokenizer;
mod output;
mod python_json;
mod token_bytes;

use std::collections::BTreeSet;

use tokenizers::Tokenizer;

pub(crate) use chat_template::ChatTemplate;
pub(crate) use gguf_tokenizer::from_gguf;
pub(crate) use hf_tokenizer::from_folder;
pub(crate) use output::{Grown, Output};

use crate::{ChatRequest, SpecialTokens, TextError, contained};

/// What turns text into tokens for one model.
pub(crate) struct Text {
    pub(crate) tokenizer: Tokenizer,
    /// Put in front by [`SpecialTokens::Add`] when the tokenizer has no post-processor that does (GGUF).
    pub(crate) begin: Option<u32>,
    /// Put behind likewise.
    pub(crate) end: Option<u32>,
    /// Generation ends at any of these.
    pub(crate) end_of_text: BTreeSet<u32>,
    pub(crate) template: Option<ChatTemplate>,
    /// Stands for what the vocabulary lacks.
    pub(crate) unknown: Option<u32>,
    /// Bytes of the longest token: a text of more than this times the context cannot fit.
    pub(crate) longest_token: usize,
}

impl Text {
    pub(crate) fn new(tokenizer: Tokenizer) -> Self {
        let longest_token = tokenizer.get_vocab(true).keys().map(String::len).max().unwrap_or(1);
        Self {
            tokenizer,
            begin: None,
            end: None,
            end_of_text: BTreeSet::new(),
            template: None,
            unknown: None,
            longest_token,
        }
    }

    pub(crate) fn encode(
        &self,
        text: &str,
        special: SpecialTokens,
        context_length: u32,
    ) -> Result<Vec<u32>, TextError> {
        let limit_bytes = self.longest_token.saturating_mul(context_length as usize);
        if text.len() > limit_bytes {
            return Err(TextError::TooLong { bytes: text.len(), limit_bytes });
        }
        let add = special == SpecialTokens::Add;
        let encoding = guarded(|| self.tokenizer.encode_fast(text, add))?;
        let ids = encoding.get_ids();
        let (begin, end) = if add { (self.begin, self.end) } else { (None, None) };
        Ok(begin.into_iter().chain(ids.iter().copied()).chain(end).collect())
    }

    pub(crate) fn decode(&self, tokens: &[u32]) -> Result<String, TextError> {
        guarded(|| self.tokenizer.decode(tokens, true))
    }

    /// The text of one token on its own, for lists of log-probabilities.
    pub(crate) fn token_text(&self, id: u32) -> String {
        guarded(|| self.tokenizer.decode(&[id], false)).unwrap_or_default()
    }

    /// The bytes of that token; `text` as above.
    pub(crate) fn token_bytes(&self, id: u32, text: &str) -> Vec<u8> {
        token_bytes::token_bytes(text, self.tokenizer.id_to_token(id).as_deref())
    }

    /// See [`token_bytes::vocabulary_bytes`].
    pub(crate) fn vocabulary_bytes(&self, n: u32) -> Result<Vec<Vec<u8>>, String> {
        contained::run(|| token_bytes::vocabulary_bytes(&self.tokenizer, n))
            .unwrap_or_else(|_| Err("reading its vocabulary panicked".to_owned()))
    }

    pub(crate) fn render_chat(&self, request: &ChatRequest) -> Result<String, TextError> {
        let template = self.template.as_ref().ok_or(TextError::NoChatTemplate)?;
        template.render(request)
    }
}

/// Runs the tokenizer library on input that others chose. Its errors are boxed and its panics (a regular
/// expression that gives up, an index into a vocabulary with holes) must not end the engine.
pub(crate) fn guarded<T>(work: impl FnOnce() -> tokenizers::Result<T>) -> Result<T, TextError> {
    match contained::run(work) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(TextError::Tokenizer(error.to_string())),
        Err(_) => Err(TextError::Tokenizer("it panicked on this input".to_owned())),
    }
}
