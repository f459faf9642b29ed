//! PyTorch's state dicts (`.bin`, `.pt`, `.pth`): a zip archive of a pickle and one file per storage. Nothing of it is
//! executed. The elements are read where they lie, which PyTorch's own writer makes possible: it never compresses.

use std::{collections::HashMap, ops::Range};

use super::{folder::Entry, pickle};
use crate::{LoadError, kernels::StoredType};

/// Pickles name tensors, they do not hold them; the largest models' have a megabyte.
const MAX_PICKLE: usize = 64 << 20;
const CONVERT: &str = "save it as safetensors: `model.save_pretrained(folder)` in Python with the packages torch and transformers";

/// The tensors of a file, each with the place of its elements.
pub(super) fn read(name: &str, bytes: &[u8]) -> Result<HashMap<String, Entry>, LoadError> {
    let corrupt = |what: String| LoadError::corrupt(name, what);
    if !bytes.starts_with(b"PK") {
        return Err(LoadError::unsupported(name, "PyTorch's format from before version 1.6", CONVERT));
    }
    let files = archive(bytes).map_err(corrupt)?;
    if files.keys().any(|path| path.contains("/code/") || path.ends_with("/constants.pkl")) {
        return Err(LoadError::unsupported(name, "TorchScript, which is a program", CONVERT));
    }
    let mut pickles = files.iter().filter(|(path, _)| path.ends_with("/data.pkl") || *path == "data.pkl");
    let (Some((path, range)), None) = (pickles.next(), pickles.next()) else {
        return Err(corrupt("the archive does not hold exactly one `data.pkl`".to_owned()));
    };
    if files.get(&path.replace("data.pkl", "byteorder")).is_some_and(|r| &bytes[r.clone()] == b"big") {
        return Err(LoadError::unsupported(name, "the byte order of another machine", CONVERT));
    }
    if range.len() > MAX_PICKLE {
        return Err(corrupt(format!("a pickle of {} bytes is longer than any real one", range.len())));
    }
    let tensors = pickle::tensors(&bytes[range.clone()]).map_err(|e| corrupt(format!("`{path}`: {e}")))?;
    let mut entries = HashMap::new();
    for (tensor, described) in tensors {
        let storage = path.replace("data.pkl", &format!("data/{}", described.storage_key));
        let storage = files
            .get(&storage)
            .ok_or_else(|| corrupt(format!("tensor `{tensor}`: the archive does not hold `{storage}`")))?;
        let entry = locate(&described, storage).map_err(|e| corrupt(format!("tensor `{tensor}`: {e}")))?;
        entries.insert(tensor, entry);
    }
    Ok(entries)
}

fn locate(tensor: &pickle::PickledTensor, storage: &Range<usize>) -> Result<Entry, String> {
    let (dtype, width) = match tensor.storage_class.as_str() {
        "torch.FloatStorage" => (Some(StoredType::F32), 4),
        "torch.HalfStorage" => (Some(StoredType::F16), 2),
        "torch.BFloat16Storage" => (Some(StoredType::BF16), 2),
        // Position ids and counters: they may be there, but are no weights.
        "torch.LongStorage" | "torch.DoubleStorage" => (None, 8),
        "torch.IntStorage" => (None, 4),
        "torch.ShortStorage" => (None, 2),
        "torch.BoolStorage" | "torch.ByteStorage" | "torch.CharStorage" => (None, 1),
        other => return Err(format!("the storage `{other}`")),
    };
    let mut expected = 1usize;
    for (n, stride) in tensor.shape.iter().zip(&tensor.stride).rev() {
        if *n > 1 && *stride != expected {
            return Err("its elements do not lie in order (a transposed view)".to_owned());
        }
        expected = expected.checked_mul(*n).ok_or("its shape is impossible")?;
    }
    let start = tensor.offset.checked_mul(width).and_then(|n| storage.start.checked_add(n));
    let end = expected.checked_mul(width).and_then(|n| start?.checked_add(n));
    match (start, end) {
        (Some(start), Some(end)) if end <= storage.end => {
            let label = tensor.storage_class.trim_start_matches("torch.").trim_end_matches("Storage");
            Ok(Entry { dtype, label: label.to_owned(), shape: tensor.shape.clone(), range: start..end })
        }
        _ => Err("it lies past the end of its storage".to_owned()),
    }
}

/// Names and places of an archive's files, which must be stored as they are.
fn archive(bytes: &[u8]) -> Result<HashMap<String, Range<usize>>, String> {
    const END: &[u8] = b"PK\x05\x06";
    const END64: &[u8] = b"PK\x06\x06";
    // The end record has 22 bytes and a comment of at most 64 KiB.
    let tail = bytes.len().saturating_sub(22 + 0xffff);
    let end = (tail..bytes.len().saturating_sub(21)).rev().find(|at| bytes[*at..].starts_with(END));
    let end = end.ok_or("it is no zip archive, or cut off")?;
    let (mut count, mut directory) =
        (u64::from(u16_at(bytes, end + 10)?), u64::from(u32_at(bytes, end + 16)?));
    if let Some(locator) = end.checked_sub(20).filter(|at| bytes[*at..].starts_with(b"PK\x06\x07")) {
        let at = to_usize(u64_at(bytes, locator + 8)?)?;
        if !bytes.get(at..).is_some_and(|rest| rest.starts_with(END64)) {
            return Err("its zip64 record is not where it should be".to_owned());
        }
        (count, directory) = (u64_at(bytes, at + 32)?, u64_at(bytes, at + 48)?);
    }
    let mut at = to_usize(directory)?;
    let mut files = HashMap::new();
    // Each entry has at least 46 bytes, so the count is not trusted for more than the file can hold.
    for _ in 0..count {
        if !bytes.get(at..).is_some_and(|rest| rest.starts_with(b"PK\x01\x02")) {
            return Err("its directory is cut off".to_owned());
        }
        let method = u16_at(bytes, at + 10)?;
        let [n_name, n_extra, n_comment] =
            [28, 30, 32].map(|field| u16_at(bytes, at + field).map(usize::from));
        let (n_name, n_extra, n_comment) = (n_name?, n_extra?, n_comment?);
        let name: &[u8] = slice(bytes, at + 46, n_name)?;
        let name = String::from_utf8_lossy(name).into_owned();
        let extra = slice(bytes, at + 46 + n_name, n_extra)?;
        let mut wide = Wide::of(extra)?;
        let size = wide.or_narrow(u32_at(bytes, at + 24)?)?;
        let compressed = wide.or_narrow(u32_at(bytes, at + 20)?)?;
        let local = to_usize(wide.or_narrow(u32_at(bytes, at + 42)?)?)?;
        if method != 0 || size != compressed {
            return Err(format!("`{name}` is compressed, which PyTorch never does"));
        }
        if !bytes.get(local..).is_some_and(|rest| rest.starts_with(b"PK\x03\x04")) {
            return Err(format!("`{name}` is not where the directory says"));
        }
        let skip = 30 + usize::from(u16_at(bytes, local + 26)?) + usize::from(u16_at(bytes, local + 28)?);
        let start = local.checked_add(skip).ok_or("an impossible offset")?;
        let range = start..start.checked_add(to_usize(size)?).ok_or("an impossible size")?;
        if range.end > bytes.len() {
            return Err(format!("`{name}` lies past the end of the file"));
        }
        if files.insert(name.clone(), range).is_some() {
            return Err(format!("`{name}` is there twice"));
        }
        at = at + 46 + n_name + n_extra + n_comment;
    }
    Ok(files)
}

/// The zip64 field: 8-byte values in the order in which the directory needs them.
struct Wide<'a> {
    values: &'a [u8],
}

impl<'a> Wide<'a> {
    fn of(mut extra: &'a [u8]) -> Result<Self, String> {
        while extra.len() >= 4 {
            let (kind, n) = (u16_at(extra, 0)?, usize::from(u16_at(extra, 2)?));
            let field = slice(extra, 4, n)?;
            if kind == 1 {
                return Ok(Self { values: field });
            }
            extra = &extra[4 + n..];
        }
        Ok(Self { values: &[] })
    }

    fn or_narrow(&mut self, narrow: u32) -> Result<u64, String> {
        if narrow != u32::MAX {
            return Ok(narrow.into());
        }
        let value = u64_at(self.values, 0)?;
        self.values = &self.values[8..];
        Ok(value)
    }
}

fn to_usize(n: u64) -> Result<usize, String> {
    usize::try_from(n).map_err(|_| format!("the impossible size {n}"))
}

fn slice(bytes: &[u8], at: usize, n: usize) -> Result<&[u8], String> {
    let end = at.checked_add(n).ok_or("an impossible offset")?;
    bytes.get(at..end).ok_or_else(|| "it is cut off".to_owned())
}

fn u16_at(bytes: &[u8], at: usize) -> Result<u16, String> {
    slice(bytes, at, 2).map(|b| u16::from_le_bytes([b[0], b[1]]))
}

fn u32_at(bytes: &[u8], at: usize) -> Result<u32, String> {
    slice(bytes, at, 4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]))
}

fn u64_at(bytes: &[u8], at: usize) -> Result<u64, String> {
    let (low, high) = (u32_at(bytes, at)?, u32_at(bytes, at.saturating_add(4))?);
    Ok(u64::from(low) | u64::from(high) << 32)
}
