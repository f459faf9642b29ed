//! The only place that maps files into memory.

use std::{fs::File, io};

use memmap2::Mmap;

/// Maps a whole file for reading.
#[expect(unsafe_code, reason = "mapping a file is unsafe: another process could change or truncate it")]
pub(crate) fn map(file: &File) -> io::Result<Mmap> {
    // SAFETY: the mapping is read-only and private to this process. Weights lie in an emptyDir that only our init
    // step writes (by atomic rename, before the server starts), on a volume mounted read-only, or in a folder the
    // operator of a bare process named; changing such a file in place while it is being loaded is documented as
    // unsupported. The bytes are only read as plain integers and floats, for which every bit pattern is valid, and
    // the mapping is dropped when loading ends.
    unsafe { Mmap::map(file) }
}
