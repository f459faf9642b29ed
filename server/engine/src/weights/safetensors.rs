//! Safetensors: a JSON header that says where each tensor lies.

use std::collections::HashMap;

use safetensors::{Dtype, SafeTensors};

use super::folder::Entry;
use crate::{LoadError, kernels::StoredType};

/// The tensors of a file, each with the place of its elements.
pub(super) fn read(name: &str, bytes: &[u8]) -> Result<HashMap<String, Entry>, LoadError> {
    // The crate bounds the header by the file and by 100 MB, and checks that shapes, types and offsets agree and cover
    // the data without gaps, before anything is allocated for tensors.
    let (header_len, header) =
        SafeTensors::read_metadata(bytes).map_err(|e| LoadError::corrupt(name, e.to_string()))?;
    let data_start = header_len.saturating_add(8);
    let mut entries = HashMap::new();
    for (tensor, info) in header.tensors() {
        let (start, end) = info.data_offsets;
        let range = data_start.saturating_add(start)..data_start.saturating_add(end);
        if range.end > bytes.len() {
            return Err(LoadError::corrupt(name, format!("tensor `{tensor}` lies past the end")));
        }
        let dtype = match info.dtype {
            Dtype::F32 => Some(StoredType::F32),
            Dtype::F16 => Some(StoredType::F16),
            Dtype::BF16 => Some(StoredType::BF16),
            _ => None,
        };
        entries.insert(
            tensor,
            Entry { dtype, label: format!("{:?}", info.dtype), shape: info.shape.clone(), range },
        );
    }
    Ok(entries)
}
