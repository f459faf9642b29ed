//! A slice of which tasks write disjoint parts.

use std::marker::PhantomData;

/// Hands out parts of a slice to several threads at once; that they are disjoint is the caller's promise.
pub(crate) struct SharedMut<'a, T> {
    start: *mut T,
    len: usize,
    slice: PhantomData<&'a mut [T]>,
}

// SAFETY: it is a slice whose parts go to several threads, which `T: Send` allows; the promise of `slice` keeps two of
// them from the same part.
#[expect(unsafe_code, reason = "shares a slice between tasks")]
unsafe impl<T: Send> Sync for SharedMut<'_, T> {}

impl<'a, T> SharedMut<'a, T> {
    pub(crate) fn new(slice: &'a mut [T]) -> Self {
        Self { start: slice.as_mut_ptr(), len: slice.len(), slice: PhantomData }
    }

    /// Elements `first..first + n`; panics where there are none.
    ///
    /// # Safety
    /// No other part that is in use at the same time may share an element with this one.
    #[expect(unsafe_code, clippy::mut_from_ref, reason = "the caller keeps the parts apart")]
    pub(crate) unsafe fn slice(&self, first: usize, n: usize) -> &mut [T] {
        assert!(first <= self.len && n <= self.len - first, "part {first}+{n} of {}", self.len);
        // SAFETY: within the slice, which is borrowed for as long as `self`; not shared by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(first), n) }
    }
}
