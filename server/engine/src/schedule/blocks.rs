//! The pool of KV blocks: who refers to which, and which contents can be used again.
//!
//! A full block whose keys and values are computed is known by a chained hash over its tokens, all tokens before them and
//! a salt. When nobody refers to it any more it keeps its contents until the pool runs out of blocks without any; then
//! the one that was left longest ago is taken.

use std::collections::{BTreeMap, HashMap};

use sha2::{Digest, Sha256};

use super::BLOCK_TOKENS;

/// Requests share blocks with requests of the same salt only.
pub(crate) type Salt = [u8; 32];

/// Identifies a block's tokens and everything before them: 128 bits of SHA-256, so that nobody can choose a prompt that
/// meets somebody else's blocks.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) struct Key([u8; 16]);

impl Key {
    /// What the first block of a sequence is chained to.
    pub(super) fn root(salt: &Salt) -> Self {
        Self::of(Sha256::new_with_prefix(salt))
    }

    /// The key of the block that holds `tokens` behind the block of this key.
    pub(super) fn chain(self, tokens: &[u32]) -> Self {
        let mut hash = Sha256::new_with_prefix(self.0);
        for token in tokens {
            hash.update(token.to_le_bytes());
        }
        Self::of(hash)
    }

    fn of(hash: Sha256) -> Self {
        let mut key = [0; 16];
        key.copy_from_slice(&hash.finalize()[..16]);
        Self(key)
    }
}

/// What a block is known to hold.
struct Contents {
    key: Key,
    /// Compared as well, so that a collision within a tenant does no harm either.
    tokens: [u32; BLOCK_TOKENS],
}

#[derive(Default)]
struct Block {
    refs: u32,
    contents: Option<Contents>,
    /// When it was left, while nobody refers to it and it has contents.
    left: u64,
}

/// See the module.
pub(super) struct BlockPool {
    blocks: Vec<Block>,
    /// Without references and contents.
    free: Vec<u32>,
    /// Without references but with contents, by the time when they were left.
    left: BTreeMap<u64, u32>,
    by_key: HashMap<Key, u32>,
    clock: u64,
}

impl BlockPool {
    pub(super) fn new(n_blocks: usize) -> Self {
        let n = u32::try_from(n_blocks).unwrap_or(u32::MAX);
        Self {
            blocks: (0..n).map(|_| Block::default()).collect(),
            free: (0..n).rev().collect(),
            left: BTreeMap::new(),
            by_key: HashMap::new(),
            clock: 0,
        }
    }

    pub(super) fn total(&self) -> usize {
        self.blocks.len()
    }

    /// Blocks that nobody refers to.
    pub(super) fn available(&self) -> usize {
        self.free.len() + self.left.len()
    }

    /// A block to write to, for one owner; `None` = all are referred to.
    pub(super) fn allocate(&mut self) -> Option<u32> {
        let block = self.free.pop().or_else(|| {
            let (_, block) = self.left.pop_first()?;
            if let Some(old) = self.blocks[block as usize].contents.take() {
                self.by_key.remove(&old.key);
            }
            Some(block)
        })?;
        self.blocks[block as usize].refs = 1;
        Some(block)
    }

    /// The block of this content, if it is there.
    pub(super) fn find(&self, key: &Key, tokens: &[u32]) -> Option<u32> {
        let block = *self.by_key.get(key)?;
        let contents = self.blocks[block as usize].contents.as_ref()?;
        (contents.tokens == tokens).then_some(block)
    }

    /// Whether somebody refers to it.
    pub(super) fn is_held(&self, block: u32) -> bool {
        self.blocks[block as usize].refs > 0
    }

    /// One more owner of a block that [`BlockPool::find`] named.
    pub(super) fn share(&mut self, block: u32) {
        let entry = &mut self.blocks[block as usize];
        if entry.refs == 0 {
            self.left.remove(&entry.left);
        }
        entry.refs += 1;
    }

    /// One owner less. Of a sequence's blocks the last ones are released first, so that of those that are left the
    /// start of a prompt lives longest: without it what follows is of no use.
    pub(super) fn release(&mut self, block: u32) {
        let entry = &mut self.blocks[block as usize];
        debug_assert!(entry.refs > 0, "block {block} is released twice");
        entry.refs = entry.refs.saturating_sub(1);
        if entry.refs > 0 {
            return;
        }
        if entry.contents.is_some() {
            self.clock += 1;
            entry.left = self.clock;
            self.left.insert(self.clock, block);
        } else {
            self.free.push(block);
        }
    }

    /// A block that its one owner has filled: from now on it may be shared, and is never written again. If another block
    /// has the same contents, that one stays the known one.
    pub(super) fn publish(&mut self, block: u32, key: Key, tokens: &[u32]) {
        let Ok(tokens) = <[u32; BLOCK_TOKENS]>::try_from(tokens) else { return };
        let entry = &mut self.blocks[block as usize];
        if entry.contents.is_none() && !self.by_key.contains_key(&key) {
            entry.contents = Some(Contents { key, tokens });
            self.by_key.insert(key, block);
        }
    }

    #[cfg(test)]
    pub(super) fn references(&self, block: u32) -> u32 {
        self.blocks[block as usize].refs
    }

    /// Whether the parts agree with each other; for tests.
    #[cfg(test)]
    pub(super) fn check(&self) {
        let mut seen = vec![0; self.blocks.len()];
        for &block in self.free.iter().chain(self.left.values()) {
            seen[block as usize] += 1;
            assert_eq!(self.blocks[block as usize].refs, 0, "block {block} is available and in use");
        }
        for (i, block) in self.blocks.iter().enumerate() {
            assert_eq!(seen[i] == 1, block.refs == 0, "block {i} is in {} lists", seen[i]);
            if let Some(contents) = &block.contents {
                assert_eq!(self.by_key.get(&contents.key), Some(&(i as u32)));
            }
        }
        for block in &self.free {
            assert!(self.blocks[*block as usize].contents.is_none(), "free block {block} has contents");
        }
        assert_eq!(self.by_key.len(), self.blocks.iter().filter(|block| block.contents.is_some()).count());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens(first: u32) -> Vec<u32> {
        (first..first + BLOCK_TOKENS as u32).collect()
    }

    #[test]
    fn keys_depend_on_salt_order_and_everything_before() {
        let (a, b) = (Key::root(&[1; 32]), Key::root(&[2; 32]));
        assert_ne!(a.chain(&tokens(0)), b.chain(&tokens(0)));
        assert_ne!(a.chain(&tokens(0)).chain(&tokens(32)), a.chain(&tokens(32)).chain(&tokens(0)));
        assert_eq!(a.chain(&tokens(0)).chain(&tokens(32)), a.chain(&tokens(0)).chain(&tokens(32)));
    }

    #[test]
    fn what_was_left_longest_ago_is_given_away_first_and_what_is_used_never() {
        let mut pool = BlockPool::new(3);
        let root = Key::root(&[0; 32]);
        let keys: Vec<Key> = (0..3).map(|i| root.chain(&tokens(i * 100))).collect();
        let blocks: Vec<u32> = (0..3).map(|_| pool.allocate().unwrap()).collect();
        for i in 0..3 {
            pool.publish(blocks[i], keys[i], &tokens(i as u32 * 100));
        }
        assert_eq!(pool.allocate(), None);
        pool.release(blocks[1]);
        pool.release(blocks[0]);
        assert_eq!(pool.available(), 2);
        // Block 1 was left first, but it is taken up again.
        let found = pool.find(&keys[1], &tokens(100)).unwrap();
        assert!(!pool.is_held(found));
        pool.share(found);
        assert_eq!(pool.allocate(), Some(blocks[0]));
        assert_eq!(pool.find(&keys[0], &tokens(0)), None);
        assert_eq!(pool.find(&keys[2], &tokens(200)), Some(blocks[2]));
        assert_eq!(pool.find(&keys[2], &tokens(201)), None, "the tokens are compared, too");
        assert_eq!(pool.allocate(), None);
        pool.check();
    }

    #[test]
    fn of_two_blocks_with_the_same_contents_one_is_known() {
        let mut pool = BlockPool::new(2);
        let key = Key::root(&[0; 32]).chain(&tokens(0));
        let (a, b) = (pool.allocate().unwrap(), pool.allocate().unwrap());
        pool.publish(a, key, &tokens(0));
        pool.publish(b, key, &tokens(0));
        assert_eq!(pool.find(&key, &tokens(0)), Some(a));
        pool.release(b);
        pool.release(a);
        pool.check();
        assert_eq!((pool.free.len(), pool.left.len()), (1, 1));
    }
}
