//! A byte-level BPE trained on the generated text, and the chat format.

use anyhow::{Context, Result, anyhow};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use tokenizers::{
    AddedToken, Tokenizer, TokenizerBuilder,
    decoders::byte_level::ByteLevel as ByteLevelDecoder,
    models::bpe::{BPE, BpeTrainerBuilder},
    normalizers::NormalizerWrapper,
    pre_tokenizers::byte_level::ByteLevel,
    processors::PostProcessorWrapper,
};

use super::{
    mix::{self, Dialogue, Role},
    model::Batch,
    words,
};

pub(super) const END: &str = "<|end|>";
const SYSTEM: &str = "<|system|>";
const USER: &str = "<|user|>";
const ASSISTANT: &str = "<|assistant|>";

/// The same format as [`Chat::open`] and [`Chat::add`], for servers. Written for the sandboxed Jinja of transformers.
pub(super) const CHAT_TEMPLATE: &str = "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}";

/// Weight in the loss of what is asked. Questions are random draws: learning to guess them is noise in the gradient,
/// and rows without weight need no logits.
const PROMPT_WEIGHT: f32 = 0.0;

pub(super) fn train(seed: u64, vocab: usize, n_dialogues: usize) -> Result<Tokenizer> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed ^ 0xb9e);
    let mut texts: Vec<String> = (0..n_dialogues)
        .flat_map(|i| mix::dialogue(&mut rng, if i % 8 == 0 { 0 } else { mix::ALL_TASKS }))
        .map(|(_, text)| text)
        .collect();
    // A word or number that is copied is one token, after a space as well as after a quote: a model this small learns
    // to copy one token, and hardly to copy three in a row.
    let whole = words::values().map(str::to_owned).chain((0..100).map(|n: u32| n.to_string()));
    for word in whole {
        texts.push(format!("{word} {word}\n").repeat(200));
    }
    let special = [END, SYSTEM, USER, ASSISTANT].map(|token| AddedToken::from(token, true)).to_vec();
    let mut trainer = BpeTrainerBuilder::new()
        .show_progress(false)
        .vocab_size(vocab)
        .min_frequency(2)
        .special_tokens(special)
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .build();
    let mut tokenizer =
        TokenizerBuilder::<BPE, NormalizerWrapper, ByteLevel, PostProcessorWrapper, ByteLevelDecoder>::new()
            .with_model(BPE::default())
            .with_normalizer(None)
            .with_pre_tokenizer(Some(ByteLevel::new(false, true, true)))
            .with_post_processor(None)
            .with_decoder(Some(ByteLevelDecoder::new(false, true, true)))
            .build()
            .map_err(|e| anyhow!(e))?;
    tokenizer.train(&mut trainer, texts.into_iter()).map_err(|e| anyhow!(e))?;
    let json = tokenizer.to_string(false).map_err(|e| anyhow!(e))?;
    json.parse().map_err(|e: tokenizers::Error| anyhow!(e))
}

/// Token ids of conversations.
pub(super) struct Chat {
    pub(super) tokenizer: Tokenizer,
    end: u32,
    system: u32,
    user: u32,
    assistant: u32,
}

impl Chat {
    pub(super) fn new(tokenizer: Tokenizer) -> Result<Self> {
        let id =
            |token| tokenizer.token_to_id(token).with_context(|| format!("the tokenizer lacks `{token}`"));
        let (end, system, user, assistant) = (id(END)?, id(SYSTEM)?, id(USER)?, id(ASSISTANT)?);
        Ok(Self { tokenizer, end, system, user, assistant })
    }

    pub(super) fn end(&self) -> u32 {
        self.end
    }

    fn encode(&self, text: &str) -> Result<Vec<u32>> {
        Ok(self.tokenizer.encode_fast(text, false).map_err(|e| anyhow!(e))?.get_ids().to_vec())
    }

    /// A question as the model is asked it, up to where its answer begins.
    pub(super) fn prompt(&self, question: &str) -> Result<Vec<u32>> {
        let mut ids = vec![self.user];
        ids.extend(self.encode(question)?);
        ids.extend([self.end, self.assistant]);
        Ok(ids)
    }

    pub(super) fn decode(&self, ids: &[u32]) -> Result<String> {
        self.tokenizer.decode(ids, true).map_err(|e| anyhow!(e))
    }

    /// Appends one dialogue; each position learns the token after it, answers with full weight.
    pub(super) fn push(&self, batch: &mut Batch, dialogue: &Dialogue) -> Result<()> {
        let (mut ids, mut weights) = (Vec::new(), Vec::new());
        for (role, text) in dialogue {
            let (token, weight) = match role {
                Role::System => (self.system, PROMPT_WEIGHT),
                Role::User => (self.user, PROMPT_WEIGHT),
                Role::Assistant => (self.assistant, 1.0),
            };
            ids.push(token);
            weights.push(0.0);
            let text = self.encode(text)?;
            weights.extend(text.iter().map(|_| weight));
            weights.push(if weight < 1.0 { 0.0 } else { 1.0 });
            ids.extend(text);
            ids.push(self.end);
        }
        let n = ids.len() - 1;
        batch.lengths.push(n);
        batch.tokens.extend(&ids[..n]);
        batch.targets.extend(&ids[1..]);
        batch.weights.extend(&weights[1..]);
        Ok(())
    }
}
