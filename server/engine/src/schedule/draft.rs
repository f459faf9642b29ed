//! Guesses at what comes next, from what was said before (prompt lookup).

/// `max` tokens that followed the latest earlier occurrence of the last `n` tokens of `history`; none without such an
/// occurrence. Where the occurrence reaches the end, the guess is that it goes on repeating itself.
pub(super) fn draft(history: &[u32], n: usize, max: usize) -> Vec<u32> {
    if n == 0 || history.len() <= n {
        return Vec::new();
    }
    let n_before = history.len() - n;
    let last = &history[n_before..];
    let Some(start) = (0..n_before).rev().find(|start| history[*start..*start + n] == *last) else {
        return Vec::new();
    };
    let mut guess = Vec::with_capacity(max);
    for at in (start + n..).take(max) {
        guess.push(history.get(at).copied().unwrap_or_else(|| guess[at - history.len()]));
    }
    guess
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_draft_is_what_followed_the_latest_occurrence() {
        assert_eq!(draft(&[1, 2, 3, 9, 1, 2, 4, 8, 1, 2], 2, 2), [4, 8]);
        assert_eq!(draft(&[1, 2, 3, 1, 2], 2, 7), [3, 1, 2, 3, 1, 2, 3]);
        assert_eq!(draft(&[7, 7, 7], 2, 3), [7, 7, 7]);
        for (history, n, max) in
            [(&[1, 2, 3][..], 2, 4), (&[1], 1, 4), (&[], 1, 4), (&[1, 1], 1, 0), (&[1, 1], 0, 3)]
        {
            assert!(draft(history, n, max).is_empty(), "{history:?}");
        }
    }
}
