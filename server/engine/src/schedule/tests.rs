//! Thousands of random runs over a model that is a function of the tokens it finds in the blocks.

use std::collections::{BTreeMap, HashSet};

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::{
    BLOCK_TOKENS, Id,
    scheduler::{Limits, Part, Scheduler, Work},
};
use crate::Speculation;

const VOCABULARY: u32 = 5;
/// What nobody wrote.
const NOTHING: u32 = u32::MAX;

/// The next token, which depends on all before, and often on the last two only, so that drafts are often right.
fn next(history: impl Iterator<Item = u32>) -> u32 {
    let (mut hash, mut last) = (7u64, (0, 0));
    for token in history {
        assert_ne!(token, NOTHING, "a row sees what was not computed");
        hash = (hash ^ u64::from(token)).wrapping_mul(0x0100_0000_01b3);
        last = (last.1, token);
    }
    let whole = (hash >> 20) as u32;
    if whole.is_multiple_of(7) { whole / 7 % VOCABULARY } else { (last.0 * 3 + last.1 + 1) % VOCABULARY }
}

fn alone(prompt: &[u32], n: usize) -> Vec<u32> {
    let mut tokens = prompt.to_vec();
    for _ in 0..n {
        tokens.push(next(tokens.iter().copied()));
    }
    tokens.split_off(prompt.len())
}

/// Blocks hold the tokens themselves.
struct Model {
    blocks: Vec<[u32; BLOCK_TOKENS]>,
}

impl Model {
    /// Writes the tokens of a part, then says what follows each row whose logits are wanted. A failing one leaves
    /// rubbish behind.
    fn forward(&mut self, part: &Part, table: &[u32], fails: bool) -> Vec<u32> {
        let slot = |position: usize| (table[position / BLOCK_TOKENS] as usize, position % BLOCK_TOKENS);
        for (position, token) in (part.start..).zip(&part.tokens) {
            let (block, at) = slot(position);
            self.blocks[block][at] = if fails { NOTHING } else { *token };
        }
        let end = part.start + part.tokens.len();
        let wanted = if fails { end..end } else { end - part.n_logits..end };
        wanted.map(|row| next((0..=row).map(&slot).map(|(block, at)| self.blocks[block][at]))).collect()
    }
}

struct Request {
    prompt: Vec<u32>,
    max_output: usize,
    output: Vec<u32>,
}

#[derive(Default)]
struct Seen {
    finished: usize,
    cancelled: usize,
    failed: usize,
    preemptions: u64,
    hits: u64,
    accepted: u64,
    rejected: u64,
}

fn run(seed: u64, seen: &mut Seen) {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let n_blocks = rng.random_range(1..12);
    let max_sequences = rng.random_range(1..8);
    let step_tokens = max_sequences + rng.random_range(0..70);
    let mut scheduler = Scheduler::new(Limits { n_blocks, step_tokens });
    let mut model = Model { blocks: vec![[NOTHING; BLOCK_TOKENS]; n_blocks] };
    let prefixes: Vec<Vec<u32>> =
        (0..3).map(|_| (0..150).map(|_| rng.random_range(0..VOCABULARY)).collect()).collect();
    let context = n_blocks * BLOCK_TOKENS;
    let mut requests: BTreeMap<Id, Request> = BTreeMap::new();
    let (mut arrived, n_requests) = (0, rng.random_range(1..25));
    let mut last_first_token = 0;
    for step in 0.. {
        assert!(step < 20_000, "seed {seed}: no end");
        while arrived < n_requests && requests.len() < max_sequences && rng.random_bool(0.5) {
            arrived += 1;
            let prefix = &prefixes[rng.random_range(0..3)];
            let shared = rng.random_range(0..=prefix.len().min(context - 1));
            let mut prompt = prefix[..shared].to_vec();
            let own = rng.random_range(0..=(context - 1 - shared).min(40));
            prompt.extend((0..own).map(|_| rng.random_range(0..VOCABULARY)));
            if prompt.is_empty() {
                prompt.push(1);
            }
            let max_output = rng.random_range(1..=(context - prompt.len()).min(80));
            let speculation = rng
                .random_bool(0.4)
                .then(|| Speculation { ngram: rng.random_range(1..4), max_draft: rng.random_range(1..9) });
            let max_len = prompt.len() + max_output;
            let salt = [rng.random_range(0..2); 32];
            scheduler.submit(arrived, Work { prompt: prompt.clone(), max_len, salt, speculation }).unwrap();
            requests.insert(arrived, Request { prompt, max_output, output: Vec::new() });
        }
        if rng.random_bool(0.03)
            && let Some(&id) = requests.keys().nth(rng.random_range(0..max_sequences))
        {
            // Its client left: the blocks are back before the next step.
            let request = requests.remove(&id).unwrap();
            scheduler.remove(id);
            assert!(scheduler.blocks(id).is_empty());
            scheduler.check();
            assert!(alone(&request.prompt, request.max_output).starts_with(&request.output));
            seen.cancelled += 1;
        }
        let parts = scheduler.plan();
        scheduler.check();
        assert_eq!(scheduler.ids(), requests.keys().copied().collect::<Vec<_>>());
        assert!(parts.iter().map(|part| part.tokens.len()).sum::<usize>() <= step_tokens);
        assert_eq!(parts.iter().map(|part| part.id).collect::<HashSet<_>>().len(), parts.len());
        if let Some(oldest) = requests.keys().next() {
            assert!(parts.iter().any(|part| part.id == *oldest && !part.tokens.is_empty()), "seed {seed}");
        } else if arrived == n_requests {
            break;
        }
        let mut written = HashSet::new();
        for part in &parts {
            for position in part.start..part.start + part.tokens.len() {
                assert!(scheduler.may_write(part.id, position), "seed {seed}: writes what is shared");
                let block = scheduler.blocks(part.id)[position / BLOCK_TOKENS];
                assert!(written.insert((block, position % BLOCK_TOKENS)), "two write one place");
            }
        }
        let fails = rng.random_bool(0.005);
        for part in &parts {
            let rows = model.forward(part, scheduler.blocks(part.id), fails);
            if fails {
                scheduler.remove(part.id);
                requests.remove(&part.id);
                seen.failed += 1;
                continue;
            }
            let request = requests.get_mut(&part.id).unwrap();
            let n_right = rows.iter().zip(part.draft()).take_while(|(row, draft)| row == draft).count();
            let chosen = &rows[..rows.len().min(n_right + 1)];
            seen.rejected += (part.draft().len() - n_right) as u64;
            if request.output.is_empty() && !chosen.is_empty() {
                assert!(part.id > last_first_token, "seed {seed}: first tokens come in order of arrival");
                last_first_token = part.id;
            }
            request.output.extend(chosen);
            scheduler.complete(part, chosen);
            if request.output.len() >= request.max_output {
                let request = requests.remove(&part.id).unwrap();
                assert_eq!(request.output, alone(&request.prompt, request.max_output), "seed {seed}");
                scheduler.remove(part.id);
                seen.finished += 1;
            }
        }
    }
    scheduler.check();
    let figures = scheduler.figures();
    assert_eq!((figures.used_blocks, figures.total_blocks, figures.tokens), (0, n_blocks, 0));
    seen.preemptions += figures.preemptions;
    seen.hits += figures.prefix_hits;
    seen.accepted += figures.accepted;
}

#[test]
fn whatever_happens_each_output_is_what_it_is_alone() {
    let mut seen = Seen::default();
    for seed in 0..4000 {
        run(seed, &mut seen);
    }
    // The runs are worth something only if all of it happened.
    assert!(seen.finished > 20_000 && seen.cancelled > 2000 && seen.failed > 200);
    assert!(
        seen.preemptions > 2000 && seen.hits > 100_000 && seen.accepted > 50_000 && seen.rejected > 10_000
    );
}

fn work(prompt: Vec<u32>, max_output: usize) -> Work {
    Work { max_len: prompt.len() + max_output, prompt, salt: [0; 32], speculation: None }
}

/// Runs the next step with 1 as every chosen token; ids and numbers of tokens.
fn step(scheduler: &mut Scheduler) -> Vec<(Id, usize)> {
    let parts = scheduler.plan();
    for part in &parts {
        scheduler.complete(part, &vec![1; part.n_logits]);
    }
    parts.iter().map(|part| (part.id, part.tokens.len())).collect()
}

#[test]
fn streams_go_first_and_prompts_share_the_rest_in_order() {
    let mut scheduler = Scheduler::new(Limits { n_blocks: 100, step_tokens: 10 });
    scheduler.submit(1, work(vec![1], 100)).unwrap();
    assert_eq!(step(&mut scheduler), [(1, 1)]);
    scheduler.submit(2, work(vec![2; 12], 100)).unwrap();
    scheduler.submit(3, work(vec![3; 12], 100)).unwrap();
    assert_eq!(step(&mut scheduler), [(1, 1), (2, 9)]);
    assert!(!scheduler.is_short_of_blocks(), "3 waits for its turn, not for blocks");
    assert_eq!(step(&mut scheduler), [(1, 1), (2, 3), (3, 6)]);
    assert_eq!(step(&mut scheduler), [(1, 1), (2, 1), (3, 6)]);
    assert_eq!(step(&mut scheduler), [(1, 1), (2, 1), (3, 1)]);
}

#[test]
fn a_prefix_is_computed_once_per_salt_and_the_last_token_always() {
    let mut scheduler = Scheduler::new(Limits { n_blocks: 10, step_tokens: 200 });
    let prompt: Vec<u32> = (0..96).collect();
    scheduler.submit(1, work(prompt.clone(), 1)).unwrap();
    assert_eq!(step(&mut scheduler), [(1, 96)]);
    // Still running, and already shared: all but the block of the last token.
    scheduler.submit(2, work(prompt.clone(), 1)).unwrap();
    scheduler.submit(3, Work { salt: [1; 32], ..work(prompt.clone(), 1) }).unwrap();
    assert_eq!(step(&mut scheduler)[1..], [(2, 32), (3, 96)]);
    let figures = scheduler.figures();
    assert_eq!((figures.prefix_queries, figures.prefix_hits), (3 * 96, 64));
    (1..=3).for_each(|id| scheduler.remove(id));
    assert_eq!(scheduler.figures().used_blocks, 0);
    scheduler.submit(4, work([prompt, vec![1; 10]].concat(), 1)).unwrap();
    assert_eq!(step(&mut scheduler), [(4, 10)], "freed blocks are used again");
}

#[test]
fn the_youngest_gives_way_and_comes_back() {
    let mut scheduler = Scheduler::new(Limits { n_blocks: 3, step_tokens: 100 });
    scheduler.submit(1, work(vec![1; 31], 40)).unwrap();
    scheduler.submit(2, work(vec![2; 31], 40)).unwrap();
    assert_eq!(step(&mut scheduler), [(1, 31), (2, 31)]);
    assert_eq!(step(&mut scheduler), [(1, 1), (2, 1)]);
    // Both fill their block now; one block is left, and it is the older one's.
    assert_eq!(step(&mut scheduler), [(1, 1)]);
    assert!(scheduler.is_short_of_blocks());
    assert_eq!(scheduler.figures().preemptions, 1);
    scheduler.remove(1);
    // Its first block was left in place, so only the rest is computed again.
    assert_eq!(step(&mut scheduler), [(2, 1)]);
    assert!(!scheduler.is_short_of_blocks());
}

#[test]
fn what_can_never_fit_is_refused() {
    let mut scheduler = Scheduler::new(Limits { n_blocks: 2, step_tokens: 8 });
    assert!(scheduler.submit(1, work(vec![1; 60], 6)).is_err());
    assert!(scheduler.submit(2, work(vec![], 6)).is_err());
    scheduler.submit(3, work(vec![1; 60], 5)).unwrap();
    assert_eq!(step(&mut scheduler), [(3, 8)]);
}
