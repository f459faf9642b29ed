//! What the next step computes. In each step every sequence that generates gets one token, oldest first; what is left of
//! the budget goes to prompts, first come first served; what is left then, to drafts of those who asked for them.
//!
//! Sequences are known by their number of arrival. Those that have blocks are always the oldest ones: blocks are given
//! out in order of arrival and taken back, when they run out, from the youngest, whose keys and values are computed
//! again later. So the oldest sequence advances in every step, and nobody waits forever.

use std::collections::BTreeMap;

use super::{
    BLOCK_TOKENS, Salt,
    blocks::{BlockPool, Key},
    draft::draft,
};
use crate::Speculation;

/// Number of arrival, ascending.
pub(crate) type Id = u64;

/// Drafts in a step at most, of all sequences together: bounds the logits that a step may want.
pub(crate) const MAX_DRAFT_ROWS: usize = 32;

#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) n_blocks: usize,
    /// Rows of a step at most; not below the number of sequences that are here at the same time.
    pub(crate) step_tokens: usize,
}

/// A sequence as it arrives.
pub(crate) struct Work {
    pub(crate) prompt: Vec<u32>,
    /// Prompt and output at most.
    pub(crate) max_len: usize,
    pub(crate) salt: Salt,
    pub(crate) speculation: Option<Speculation>,
}

/// What one sequence computes in a step.
#[derive(Clone, Debug)]
pub(crate) struct Part {
    pub(crate) id: Id,
    pub(crate) tokens: Vec<u32>,
    /// Position of the first of them.
    pub(crate) start: usize,
    /// Logits that are wanted, after the last tokens: 0 in the middle of a prompt, else one and one for each draft.
    pub(crate) n_logits: usize,
    /// A prompt, or what has to be computed again.
    pub(crate) is_prefill: bool,
}

impl Part {
    /// Guessed tokens, the last ones of [`Part::tokens`].
    pub(crate) fn draft(&self) -> &[u32] {
        &self.tokens[self.tokens.len() + 1 - self.n_logits.max(1)..]
    }
}

/// Totals, and blocks as they are now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Figures {
    /// Tokens of arriving sequences, and those of them whose keys and values were there.
    pub(crate) prefix_queries: u64,
    pub(crate) prefix_hits: u64,
    pub(crate) preemptions: u64,
    pub(crate) drafted: u64,
    pub(crate) accepted: u64,
    pub(crate) used_blocks: usize,
    pub(crate) total_blocks: usize,
    /// Tokens of sequences whose keys and values are there.
    pub(crate) tokens: usize,
}

struct Track {
    /// Prompt and output.
    tokens: Vec<u32>,
    /// Tokens whose keys and values are there.
    n_computed: usize,
    max_len: usize,
    /// Empty = waits for blocks.
    blocks: Vec<u32>,
    root: Key,
    /// Of full blocks, as far as they were needed.
    keys: Vec<Key>,
    /// Blocks that may be shared.
    n_published: usize,
    speculation: Option<Speculation>,
    /// It generates, unless it computes what it lost.
    has_begun: bool,
    was_counted: bool,
}

impl Track {
    fn is_running(&self) -> bool {
        !self.blocks.is_empty()
    }

    /// Tokens whose keys and values are still to be computed.
    fn n_pending(&self) -> usize {
        self.tokens.len() - self.n_computed
    }

    fn generates(&self) -> bool {
        self.is_running() && self.has_begun && self.n_pending() == 1
    }

    fn block_tokens(&self, i: usize) -> &[u32] {
        &self.tokens[i * BLOCK_TOKENS..(i + 1) * BLOCK_TOKENS]
    }

    /// The key of the `i`th block, which is full.
    fn key(&mut self, i: usize) -> Key {
        while self.keys.len() <= i {
            let parent = self.keys.last().copied().unwrap_or(self.root);
            self.keys.push(parent.chain(self.block_tokens(self.keys.len())));
        }
        self.keys[i]
    }

    fn part(&self, id: Id, n: usize) -> Part {
        let tokens = self.tokens[self.n_computed..self.n_computed + n].to_vec();
        let n_logits = usize::from(n == self.n_pending());
        Part { id, tokens, start: self.n_computed, n_logits, is_prefill: !self.generates() }
    }
}

/// See the module.
pub(crate) struct Scheduler {
    step_tokens: usize,
    pool: BlockPool,
    tracks: BTreeMap<Id, Track>,
    totals: Figures,
    /// In the last plan, somebody had to wait for blocks.
    is_short: bool,
}

impl Scheduler {
    pub(crate) fn new(limits: Limits) -> Self {
        Self {
            step_tokens: limits.step_tokens,
            pool: BlockPool::new(limits.n_blocks),
            tracks: BTreeMap::new(),
            totals: Figures::default(),
            is_short: false,
        }
    }

    /// Takes a sequence in, behind all others: `id` is larger than any before.
    ///
    /// # Errors
    /// In words, if it would not fit into all blocks together.
    pub(crate) fn submit(&mut self, id: Id, work: Work) -> Result<(), String> {
        let Work { prompt, max_len, salt, speculation } = work;
        // The last token is never computed.
        let n_blocks = max_len.max(prompt.len() + 1).saturating_sub(1).div_ceil(BLOCK_TOKENS);
        if prompt.is_empty() || n_blocks > self.pool.total() {
            return Err(format!(
                "a sequence of up to {max_len} tokens does not fit into {} KV blocks of {BLOCK_TOKENS}",
                self.pool.total()
            ));
        }
        let track = Track {
            max_len: max_len.max(prompt.len() + 1),
            tokens: prompt,
            n_computed: 0,
            blocks: Vec::new(),
            root: Key::root(&salt),
            keys: Vec::new(),
            n_published: 0,
            speculation,
            has_begun: false,
            was_counted: false,
        };
        self.tracks.insert(id, track);
        Ok(())
    }

    /// Whether a sequence waits for blocks, so that another would only wait behind it.
    pub(crate) fn is_short_of_blocks(&self) -> bool {
        self.is_short
    }

    /// The next step; empty if there is nothing to do. Every part is to be answered by [`Scheduler::complete`] or
    /// [`Scheduler::remove`] before the next one is planned.
    pub(crate) fn plan(&mut self) -> Vec<Part> {
        self.grow();
        self.is_short = false;
        let mut budget = self.step_tokens;
        let mut parts = Vec::new();
        for (id, track) in self.tracks.iter().filter(|(_, track)| track.generates()).take(budget) {
            parts.push(track.part(*id, 1));
        }
        budget -= parts.len();
        let n_generating = parts.len();
        let ids: Vec<Id> =
            self.tracks.iter().filter(|(_, track)| !track.generates()).map(|(id, _)| *id).collect();
        for id in ids {
            // Who came later waits until those before have their blocks, and the budget is theirs first.
            if budget == 0 {
                break;
            }
            if !self.admit(id) {
                self.is_short = true;
                break;
            }
            if let Some(track) = self.tracks.get(&id) {
                let n = track.n_pending().min(budget);
                parts.push(track.part(id, n));
                budget -= n;
            }
        }
        let mut room = budget.min(MAX_DRAFT_ROWS);
        for (i, part) in parts[..n_generating].iter_mut().enumerate() {
            room -= self.speculate(part, room.div_ceil(n_generating - i));
        }
        parts
    }

    /// The blocks of a sequence: the `i`th holds its positions from `i` · [`BLOCK_TOKENS`] on.
    pub(crate) fn blocks(&self, id: Id) -> &[u32] {
        self.tracks.get(&id).map_or(&[], |track| &track.blocks)
    }

    /// A part was computed, and `chosen` are the tokens that follow: none after the middle of a prompt, else one after
    /// each draft that was right and one more.
    pub(crate) fn complete(&mut self, part: &Part, chosen: &[u32]) {
        let Some(track) = self.tracks.get_mut(&part.id) else { return };
        let n_draft = part.draft().len();
        let n_accepted = chosen.len().saturating_sub(1).min(n_draft);
        self.totals.accepted += n_accepted as u64;
        // What was computed for wrong drafts is behind this, and written over later.
        track.n_computed = part.start + part.tokens.len() - n_draft + n_accepted;
        track.tokens.extend(chosen);
        track.has_begun |= !chosen.is_empty();
        while (track.n_published + 1) * BLOCK_TOKENS <= track.n_computed {
            let i = track.n_published;
            let key = track.key(i);
            self.pool.publish(track.blocks[i], key, track.block_tokens(i));
            track.n_published += 1;
        }
    }

    /// A sequence is over, or its step failed. Blocks that it did not complete are not used again.
    pub(crate) fn remove(&mut self, id: Id) {
        if let Some(track) = self.tracks.remove(&id) {
            track.blocks.iter().rev().for_each(|block| self.pool.release(*block));
        }
    }

    pub(crate) fn figures(&self) -> Figures {
        Figures {
            used_blocks: self.pool.total() - self.pool.available(),
            total_blocks: self.pool.total(),
            tokens: self.tracks.values().map(|track| track.n_computed).sum(),
            ..self.totals
        }
    }

    /// Gives every running sequence the blocks for the tokens that it has, the oldest first.
    fn grow(&mut self) {
        let running: Vec<Id> =
            self.tracks.iter().filter(|(_, track)| track.is_running()).map(|(id, _)| *id).collect();
        for id in running {
            while let Some(track) = self.tracks.get_mut(&id).filter(|track| track.is_running())
                && track.blocks.len() * BLOCK_TOKENS < track.tokens.len()
            {
                match self.pool.allocate() {
                    Some(block) => track.blocks.push(block),
                    None => self.preempt_youngest(),
                }
            }
        }
    }

    fn preempt_youngest(&mut self) {
        if let Some(track) = self.tracks.values_mut().rev().find(|track| track.is_running()) {
            track.blocks.drain(..).rev().for_each(|block| self.pool.release(block));
            (track.n_computed, track.n_published) = (0, 0);
            self.totals.preemptions += 1;
        }
    }

    /// Gives a sequence blocks for all tokens that it has, if it has none yet: those that are known already, up to the
    /// last token, whose logits are wanted. False = it has to wait.
    fn admit(&mut self, id: Id) -> bool {
        let Some(track) = self.tracks.get_mut(&id) else { return false };
        if track.is_running() {
            return true;
        }
        let mut found = Vec::new();
        for i in 0..(track.tokens.len() - 1) / BLOCK_TOKENS {
            let key = track.key(i);
            match self.pool.find(&key, track.block_tokens(i)) {
                Some(block) => found.push(block),
                None => break,
            }
        }
        // Room for the next token is asked for as well, or it could be sent away at once.
        let wanted = (track.tokens.len() + 1).min(track.max_len - 1).div_ceil(BLOCK_TOKENS);
        let n_left = found.iter().filter(|block| !self.pool.is_held(**block)).count();
        if wanted - found.len() > self.pool.available() - n_left {
            return false;
        }
        found.iter().for_each(|block| self.pool.share(*block));
        track.n_published = found.len();
        track.n_computed = found.len() * BLOCK_TOKENS;
        track.blocks = found;
        while track.blocks.len() * BLOCK_TOKENS < track.tokens.len() {
            let Some(block) = self.pool.allocate() else { break };
            track.blocks.push(block);
        }
        // What it computes again after a preemption is no second question.
        if !track.was_counted {
            track.was_counted = true;
            self.totals.prefix_queries += track.tokens.len() as u64;
            self.totals.prefix_hits += track.n_computed as u64;
        }
        true
    }

    /// Adds a draft of up to `most` tokens to a part; how many it were. Nobody is preempted for it.
    fn speculate(&mut self, part: &mut Part, most: usize) -> usize {
        let Some(track) = self.tracks.get_mut(&part.id) else { return 0 };
        let Some(speculation) = track.speculation else { return 0 };
        // The last token is never computed.
        let room = (track.max_len - 1).saturating_sub(track.tokens.len());
        let most = most.min(speculation.max_draft as usize).min(room);
        let guess = draft(&track.tokens, speculation.ngram as usize, most);
        let end = track.tokens.len() + guess.len();
        while track.blocks.len() * BLOCK_TOKENS < end
            && let Some(block) = self.pool.allocate()
        {
            track.blocks.push(block);
        }
        let room = track.blocks.len() * BLOCK_TOKENS - track.tokens.len();
        let guess = &guess[..guess.len().min(room)];
        part.tokens.extend(guess);
        part.n_logits += guess.len();
        self.totals.drafted += guess.len() as u64;
        guess.len()
    }
}

#[cfg(test)]
impl Scheduler {
    /// Ids of all sequences, oldest first.
    pub(super) fn ids(&self) -> Vec<Id> {
        self.tracks.keys().copied().collect()
    }

    /// Whether a block has one owner and may be written at this position of its sequence.
    pub(super) fn may_write(&self, id: Id, position: usize) -> bool {
        let track = &self.tracks[&id];
        let i = position / BLOCK_TOKENS;
        i >= track.n_published && self.pool.references(track.blocks[i]) == 1
    }

    /// Whether references and block tables agree, and whether those with blocks are the oldest.
    pub(super) fn check(&self) {
        self.pool.check();
        let mut references = vec![0; self.pool.total()];
        let mut is_waiting = false;
        for track in self.tracks.values() {
            track.blocks.iter().for_each(|block| references[*block as usize] += 1);
            assert!(!(is_waiting && track.is_running()), "a younger sequence has blocks, an older one waits");
            is_waiting |= !track.is_running();
        }
        for (block, n) in references.into_iter().enumerate() {
            assert_eq!(self.pool.references(block as u32), n, "block {block}");
        }
    }
}
