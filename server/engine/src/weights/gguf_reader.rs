//! The GGUF container: header, metadata and tensor table, read from a byte slice.
//!
//! Our own reader rather than candle's, because the file is hostile input: candle's divides by the alignment that
//! the file claims and holds each array element in a 32-byte enum.

use std::collections::HashMap;

use candle_core::quantized::GgmlDType;

/// What is wrong with the file, in words; the caller adds its name.
pub(crate) type Result<T> = std::result::Result<T, String>;

/// The largest vocabulary that exists has 262,144 entries; merges can be about twice that.
const MAX_ARRAY: u64 = 1 << 23;
const MAX_STRING: u64 = 64 << 20;
const MAX_DIMENSIONS: u32 = 4;

/// Everything in front of the tensor data.
pub(crate) struct Header {
    pub(crate) metadata: HashMap<String, Value>,
    pub(crate) tensors: HashMap<String, TensorInfo>,
}

/// One metadata value; widths are widened.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value {
    Int(i128),
    Float(f64),
    Bool(bool),
    String(String),
    Ints(Vec<i64>),
    Floats(Vec<f32>),
    Strings(Vec<String>),
}

/// Where a tensor lies. `start..end` was checked against the file.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct TensorInfo {
    /// Rows first, as PyTorch prints it.
    pub(crate) shape: Vec<usize>,
    pub(crate) dtype: GgmlDType,
    pub(crate) start: usize,
    pub(crate) end: usize,
}

struct Reader<'a> {
    bytes: &'a [u8],
    position: usize,
}

impl Header {
    pub(crate) fn read(bytes: &[u8]) -> Result<Self> {
        let mut reader = Reader { bytes, position: 0 };
        if reader.take(4)? != b"GGUF" {
            return Err("it does not begin with `GGUF`".to_owned());
        }
        let version = reader.u32()?;
        if !(2..=3).contains(&version) {
            return Err(format!(
                "GGUF version {version} is not 2 or 3 (a big-endian file reads like this too)"
            ));
        }
        let n_tensors = reader.u64()?;
        let n_metadata = reader.u64()?;
        let mut metadata = HashMap::new();
        // Counts are not trusted: each entry must be there, and nothing is reserved in advance.
        for _ in 0..n_metadata {
            let key = reader.string()?;
            let value = reader.value().map_err(|e| format!("metadata `{key}`: {e}"))?;
            if metadata.insert(key.clone(), value).is_some() {
                return Err(format!("metadata `{key}` is there twice"));
            }
        }
        let mut table = Vec::new();
        for _ in 0..n_tensors {
            table.push(reader.tensor()?);
        }
        let alignment = match metadata.get("general.alignment") {
            None => 32,
            Some(Value::Int(n)) if (8..=1 << 20).contains(n) && n % 8 == 0 => *n as usize,
            Some(other) => return Err(format!("`general.alignment` is {other:?}, not a multiple of 8")),
        };
        let data_start = reader.position.div_ceil(alignment) * alignment;
        let mut tensors = HashMap::new();
        for (name, mut info, offset) in table {
            let size = info.end;
            let start = usize::try_from(offset).ok().filter(|offset| offset % alignment == 0);
            let start = start.ok_or_else(|| format!("tensor `{name}` has the unaligned offset {offset}"))?;
            let range =
                data_start.checked_add(start).and_then(|start| Some((start, start.checked_add(size)?)));
            (info.start, info.end) = range
                .filter(|&(_, end)| end <= bytes.len())
                .ok_or_else(|| format!("tensor `{name}` of {size} bytes lies past the end of the file"))?;
            if tensors.insert(name.clone(), info).is_some() {
                return Err(format!("tensor `{name}` is there twice"));
            }
        }
        Ok(Self { metadata, tensors })
    }

    pub(crate) fn str(&self, key: &str) -> Result<Option<&str>> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(wrong_type(key, "a string", other)),
        }
    }

    pub(crate) fn u32(&self, key: &str) -> Result<Option<u32>> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Value::Int(n)) => {
                u32::try_from(*n).map(Some).map_err(|_| format!("metadata `{key}` is {n}, out of range"))
            }
            // Some converters write one value per layer; all alike is one value.
            Some(Value::Ints(all)) if all.first().is_some_and(|first| all.iter().all(|n| n == first)) => {
                u32::try_from(all[0]).map(Some).map_err(|_| format!("metadata `{key}` is out of range"))
            }
            Some(other) => Err(wrong_type(key, "an integer", other)),
        }
    }

    pub(crate) fn f64(&self, key: &str) -> Result<Option<f64>> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Value::Float(x)) => Ok(Some(*x)),
            Some(other) => Err(wrong_type(key, "a float", other)),
        }
    }

    pub(crate) fn bool(&self, key: &str) -> Result<Option<bool>> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Value::Bool(b)) => Ok(Some(*b)),
            Some(other) => Err(wrong_type(key, "a boolean", other)),
        }
    }

    pub(crate) fn strings(&self, key: &str) -> Result<Option<&[String]>> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Value::Strings(all)) => Ok(Some(all)),
            // Some writers give an empty array another element type.
            Some(Value::Ints(all)) if all.is_empty() => Ok(Some(&[])),
            Some(other) => Err(wrong_type(key, "an array of strings", other)),
        }
    }

    pub(crate) fn ints(&self, key: &str) -> Result<Option<&[i64]>> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Value::Ints(all)) => Ok(Some(all)),
            Some(other) => Err(wrong_type(key, "an array of integers", other)),
        }
    }

    pub(crate) fn floats(&self, key: &str) -> Result<Option<&[f32]>> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Value::Floats(all)) => Ok(Some(all)),
            Some(other) => Err(wrong_type(key, "an array of floats", other)),
        }
    }
}

fn wrong_type(key: &str, want: &str, value: &Value) -> String {
    let is = match value {
        Value::Int(_) => "an integer",
        Value::Float(_) => "a float",
        Value::Bool(_) => "a boolean",
        Value::String(_) => "a string",
        Value::Ints(_) => "an array of integers",
        Value::Floats(_) => "an array of floats",
        Value::Strings(_) => "an array of strings",
    };
    format!("metadata `{key}` is {is}, not {want}")
}

impl<'a> Reader<'a> {
    fn take(&mut self, n: usize) -> Result<&'a [u8]> {
        let end = self.position.checked_add(n).filter(|&end| end <= self.bytes.len());
        let end = end.ok_or_else(|| format!("it ends at byte {} inside its header", self.bytes.len()))?;
        let taken = &self.bytes[self.position..end];
        self.position = end;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N)?);
        Ok(out)
    }

    fn u32(&mut self) -> Result<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64> {
        self.array().map(u64::from_le_bytes)
    }

    fn string(&mut self) -> Result<String> {
        let len = self.u64()?;
        if len > MAX_STRING {
            return Err(format!("a string of {len} bytes is longer than any real one"));
        }
        // Token texts of old converters are not always UTF-8.
        Ok(String::from_utf8_lossy(self.take(len as usize)?).into_owned())
    }

    fn value(&mut self) -> Result<Value> {
        let kind = self.u32()?;
        Ok(match kind {
            6 | 12 => Value::Float(self.float(kind)?),
            7 => Value::Bool(self.bool()?),
            8 => Value::String(self.string()?),
            9 => self.values()?,
            _ => Value::Int(self.int(kind)?),
        })
    }

    fn values(&mut self) -> Result<Value> {
        let kind = self.u32()?;
        let len = self.u64()?;
        if len > MAX_ARRAY {
            return Err(format!("an array of {len} elements is longer than any real one"));
        }
        Ok(match kind {
            6 | 12 => Value::Floats((0..len).map(|_| Ok(self.float(kind)? as f32)).collect::<Result<_>>()?),
            7 => Value::Ints((0..len).map(|_| self.bool().map(i64::from)).collect::<Result<_>>()?),
            8 => Value::Strings((0..len).map(|_| self.string()).collect::<Result<_>>()?),
            9 => return Err("arrays of arrays are not part of any model".to_owned()),
            _ => {
                let mut all = Vec::new();
                for _ in 0..len {
                    let n = self.int(kind)?;
                    all.push(i64::try_from(n).map_err(|_| format!("{n} is out of range"))?);
                }
                Value::Ints(all)
            }
        })
    }

    fn int(&mut self, kind: u32) -> Result<i128> {
        Ok(match kind {
            0 => self.array().map(u8::from_le_bytes)?.into(),
            1 => self.array().map(i8::from_le_bytes)?.into(),
            2 => self.array().map(u16::from_le_bytes)?.into(),
            3 => self.array().map(i16::from_le_bytes)?.into(),
            4 => self.u32()?.into(),
            5 => self.array().map(i32::from_le_bytes)?.into(),
            10 => self.u64()?.into(),
            11 => self.array().map(i64::from_le_bytes)?.into(),
            _ => return Err(format!("unknown value type {kind}")),
        })
    }

    fn float(&mut self, kind: u32) -> Result<f64> {
        if kind == 6 {
            self.array().map(|b| f32::from_le_bytes(b).into())
        } else {
            self.array().map(f64::from_le_bytes)
        }
    }

    fn bool(&mut self) -> Result<bool> {
        match self.take(1)? {
            [0] => Ok(false),
            [1] => Ok(true),
            other => Err(format!("{other:?} is not a boolean")),
        }
    }

    /// Name, shape and type, with the size in `end`, and the offset still to be checked.
    fn tensor(&mut self) -> Result<(String, TensorInfo, u64)> {
        let name = self.string()?;
        let n_dimensions = self.u32()?;
        if !(1..=MAX_DIMENSIONS).contains(&n_dimensions) {
            return Err(format!("tensor `{name}` has {n_dimensions} dimensions"));
        }
        let mut shape = Vec::new();
        for _ in 0..n_dimensions {
            let n = self.u64()?;
            if n == 0 {
                return Err(format!("tensor `{name}` has a dimension of 0"));
            }
            shape.push(usize::try_from(n).map_err(|_| format!("tensor `{name}` has a dimension of {n}"))?);
        }
        let kind = self.u32()?;
        let offset = self.u64()?;
        let dtype = dtype(kind).ok_or_else(|| {
            format!(
                "tensor `{name}` has the type {}, which this build cannot compute; use Q4_0, Q4_K, Q6_K, Q8_0 or F16",
                type_name(kind)
            )
        })?;
        let elements = shape.iter().try_fold(1usize, |product, &n| product.checked_mul(n));
        // Blocks lie along the first dimension, which is a row.
        let size = elements
            .filter(|_| shape[0] % dtype.block_size() == 0)
            .and_then(|n| (n / dtype.block_size()).checked_mul(dtype.type_size()))
            .ok_or_else(|| format!("tensor `{name}` has the impossible shape {shape:?} for {dtype:?}"))?;
        shape.reverse();
        Ok((name, TensorInfo { shape, dtype, start: 0, end: size }, offset))
    }
}

fn dtype(kind: u32) -> Option<GgmlDType> {
    Some(match kind {
        0 => GgmlDType::F32,
        1 => GgmlDType::F16,
        2 => GgmlDType::Q4_0,
        3 => GgmlDType::Q4_1,
        6 => GgmlDType::Q5_0,
        7 => GgmlDType::Q5_1,
        8 => GgmlDType::Q8_0,
        10 => GgmlDType::Q2K,
        11 => GgmlDType::Q3K,
        12 => GgmlDType::Q4K,
        13 => GgmlDType::Q5K,
        14 => GgmlDType::Q6K,
        30 => GgmlDType::BF16,
        _ => return None,
    })
}

fn type_name(kind: u32) -> String {
    let name = match kind {
        16 => "IQ2_XXS",
        17 => "IQ2_XS",
        18 => "IQ3_XXS",
        19 => "IQ1_S",
        20 => "IQ4_NL",
        21 => "IQ3_S",
        22 => "IQ2_S",
        23 => "IQ4_XS",
        29 => "IQ1_M",
        34 => "TQ1_0",
        35 => "TQ2_0",
        39 => "MXFP4",
        _ => return format!("number {kind}"),
    };
    name.to_owned()
}
