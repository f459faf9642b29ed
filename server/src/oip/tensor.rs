//! One input of a request, whichever way its data came. Checked before anything is made of it: the shape against the data,
//! the data against the datatype.

use bytes::{Buf, Bytes};
use candela_oip::inference::InferTensorContents;
use serde_json::{Number, Value};

use crate::api::ApiError;

/// Dimensions of a tensor at most; ours have two.
const MAX_DIMENSIONS: usize = 8;

#[derive(Debug)]
pub(crate) struct Tensor {
    pub(crate) name: String,
    pub(crate) datatype: String,
    pub(crate) shape: Vec<i64>,
    pub(crate) data: Data,
}

/// Elements in row-major order.
#[derive(Debug)]
pub(crate) enum Data {
    /// Little-endian numbers; texts with their length in four bytes before each.
    Raw(Bytes),
    /// Of a JSON request, nested as the shape or flat.
    Json(Value),
    /// Of a gRPC message.
    Contents(InferTensorContents),
}

impl Tensor {
    /// Elements that its shape has room for.
    pub(crate) fn n_elements(&self) -> Result<usize, ApiError> {
        let Self { name, shape, .. } = self;
        if shape.len() > MAX_DIMENSIONS {
            let what =
                format!("`{name}`: its shape has {} dimensions, at most {MAX_DIMENSIONS}", shape.len());
            return Err(ApiError::invalid(name, what));
        }
        let mut n: usize = 1;
        for size in shape {
            let size = usize::try_from(*size).map_err(|_| {
                ApiError::invalid(name, format!("`{name}`: its shape {shape:?} has a size below 0"))
            })?;
            n = n.checked_mul(size).ok_or_else(|| {
                let what = format!("`{name}`: its shape {shape:?} is that of more elements than can be");
                ApiError::invalid(name, what)
            })?;
        }
        Ok(n)
    }

    /// Of any length, for messages.
    pub(super) fn shown_shape(&self) -> String {
        match self.shape.get(..=MAX_DIMENSIONS) {
            Some(first) => format!("{first:?} and more"),
            None => format!("{:?}", self.shape),
        }
    }

    /// Texts, at most so many, from a tensor of BYTES.
    pub(crate) fn texts(&self, most: usize) -> Result<Vec<String>, ApiError> {
        if self.datatype != "BYTES" {
            return Err(self.wrong_datatype("BYTES"));
        }
        let n = self.bounded(most)?;
        match &self.data {
            Data::Raw(raw) => {
                let mut rest = raw.clone();
                let mut texts = Vec::with_capacity(n.min(raw.len() / 4));
                while rest.has_remaining() {
                    let length = rest.try_get_u32_le().map_err(|_| self.cut_off(texts.len()))? as usize;
                    if length > rest.len() {
                        return Err(self.cut_off(texts.len()));
                    }
                    if texts.len() == n {
                        return Err(self.miscounted("more", n));
                    }
                    texts.push(self.text(&rest.split_to(length), texts.len())?);
                }
                self.counted(texts, n)
            }
            Data::Json(json) => {
                let text = |(at, value): (usize, &Value)| match value {
                    Value::String(text) => Ok(text.clone()),
                    _ => Err(self.invalid(format!("element {at} is not a string"))),
                };
                self.flat(json, n)?.into_iter().enumerate().map(text).collect()
            }
            Data::Contents(contents) => {
                let texts = contents.bytes_contents.iter().enumerate().map(|(at, text)| self.text(text, at));
                self.counted(texts.collect::<Result<_, _>>()?, n)
            }
        }
    }

    /// Whole numbers, at most so many, from a tensor of any integer type.
    pub(crate) fn integers(&self, most: usize) -> Result<Vec<i64>, ApiError> {
        let n = self.bounded(most)?;
        let width = match self.datatype.as_str() {
            "INT8" | "UINT8" => 1,
            "INT16" | "UINT16" => 2,
            "INT32" | "UINT32" => 4,
            "INT64" | "UINT64" => 8,
            _ => return Err(self.wrong_datatype("INT64")),
        };
        let too_large = || self.invalid("has a number above 2^63 - 1".to_owned());
        match &self.data {
            Data::Raw(raw) => {
                self.check_bytes(raw, n, width)?;
                let signed = self.datatype.starts_with('I');
                let number = |bytes: &[u8]| {
                    let mut wide = [0; 8];
                    wide[..width].copy_from_slice(bytes);
                    let unsigned = u64::from_le_bytes(wide);
                    // The sign is the highest bit of its own width.
                    let shift = 64 - 8 * width;
                    match signed {
                        true => Ok(((unsigned << shift) as i64) >> shift),
                        false => i64::try_from(unsigned).map_err(|_| too_large()),
                    }
                };
                raw.chunks_exact(width).map(number).collect()
            }
            Data::Json(json) => {
                let number = |(at, value): (usize, &Value)| {
                    value.as_i64().ok_or_else(|| self.invalid(format!("element {at} is not a whole number")))
                };
                self.flat(json, n)?.into_iter().enumerate().map(number).collect()
            }
            Data::Contents(contents) => {
                let numbers: Vec<i64> = match self.datatype.as_str() {
                    "INT64" => contents.int64_contents.clone(),
                    "UINT64" => {
                        let numbers = contents.uint64_contents.iter().map(|n| i64::try_from(*n));
                        numbers.collect::<Result<_, _>>().map_err(|_| too_large())?
                    }
                    "UINT8" | "UINT16" | "UINT32" => {
                        contents.uint_contents.iter().map(|n| (*n).into()).collect()
                    }
                    _ => contents.int_contents.iter().map(|n| (*n).into()).collect(),
                };
                self.counted(numbers, n)
            }
        }
    }

    /// The one value of a tensor that holds a wish, as JSON.
    pub(crate) fn scalar(&self) -> Result<Value, ApiError> {
        match self.datatype.as_str() {
            "BYTES" => Ok(Value::String(self.one(self.texts(1)?)?)),
            "BOOL" => self.one(self.booleans()?).map(Value::Bool),
            "FP32" | "FP64" => {
                let number = self.one(self.floats()?)?;
                Number::from_f64(number)
                    .map(Value::Number)
                    .ok_or_else(|| self.invalid(format!("is {number}, which is no number that can be used")))
            }
            _ => self.one(self.integers(1)?).map(Value::from),
        }
    }

    fn booleans(&self) -> Result<Vec<bool>, ApiError> {
        let n = self.bounded(1)?;
        match &self.data {
            Data::Raw(raw) => {
                self.check_bytes(raw, n, 1)?;
                Ok(raw.iter().map(|byte| *byte != 0).collect())
            }
            Data::Json(json) => {
                let boolean = |value: &Value| {
                    value.as_bool().ok_or_else(|| self.invalid("must be true or false".to_owned()))
                };
                self.flat(json, n)?.into_iter().map(boolean).collect()
            }
            Data::Contents(contents) => self.counted(contents.bool_contents.clone(), n),
        }
    }

    fn floats(&self) -> Result<Vec<f64>, ApiError> {
        let n = self.bounded(1)?;
        let single = self.datatype == "FP32";
        match &self.data {
            Data::Raw(raw) => {
                self.check_bytes(raw, n, if single { 4 } else { 8 })?;
                let mut rest = raw.clone();
                Ok((0..n)
                    .map(|_| if single { rest.get_f32_le().into() } else { rest.get_f64_le() })
                    .collect())
            }
            Data::Json(json) => {
                let number =
                    |value: &Value| value.as_f64().ok_or_else(|| self.invalid("must be a number".to_owned()));
                self.flat(json, n)?.into_iter().map(number).collect()
            }
            Data::Contents(contents) if single => {
                self.counted(contents.fp32_contents.iter().map(|x| f64::from(*x)).collect(), n)
            }
            Data::Contents(contents) => self.counted(contents.fp64_contents.clone(), n),
        }
    }

    fn one<T>(&self, mut values: Vec<T>) -> Result<T, ApiError> {
        match (values.pop(), values.is_empty()) {
            (Some(value), true) => Ok(value),
            _ => Err(self.invalid(format!("must have one element, but its shape is {:?}", self.shape))),
        }
    }

    /// The elements that its shape has, which must be no more than `most`.
    fn bounded(&self, most: usize) -> Result<usize, ApiError> {
        let n = self.n_elements()?;
        if n > most {
            let shape = &self.shape;
            return Err(self.invalid(format!("its shape {shape:?} has {n} elements, more than {most}")));
        }
        Ok(n)
    }

    fn check_bytes(&self, raw: &[u8], n: usize, width: usize) -> Result<(), ApiError> {
        // Both are bounded.
        if raw.len() == n * width {
            return Ok(());
        }
        let Self { shape, datatype, .. } = self;
        let what = format!(
            "has {} bytes of data, but its shape {shape:?} of {datatype} takes {}",
            raw.len(),
            n * width
        );
        Err(self.invalid(what))
    }

    fn text(&self, bytes: &[u8], at: usize) -> Result<String, ApiError> {
        let text = std::str::from_utf8(bytes);
        text.map(str::to_owned).map_err(|_| self.invalid(format!("element {at} is not UTF-8")))
    }

    /// The leaves of nested lists, which must be as many as `n`. JSON's own parser bounds the depth.
    fn flat<'a>(&self, json: &'a Value, n: usize) -> Result<Vec<&'a Value>, ApiError> {
        fn walk<'a>(value: &'a Value, out: &mut Vec<&'a Value>) {
            match value {
                Value::Array(list) => list.iter().for_each(|inner| walk(inner, out)),
                leaf => out.push(leaf),
            }
        }
        let mut leaves = Vec::new();
        walk(json, &mut leaves);
        self.counted(leaves, n)
    }

    fn counted<T>(&self, values: Vec<T>, n: usize) -> Result<Vec<T>, ApiError> {
        match values.len() {
            given if given == n => Ok(values),
            given => Err(self.miscounted(&given.to_string(), n)),
        }
    }

    fn miscounted(&self, given: &str, n: usize) -> ApiError {
        let Self { shape, datatype, .. } = self;
        self.invalid(format!(
            "has {given} elements of {datatype} in its data, but {n} by its shape {shape:?}"
        ))
    }

    fn cut_off(&self, at: usize) -> ApiError {
        self.invalid(format!(
            "element {at} is cut off: each element of BYTES has its length before it, as a little-endian uint32"
        ))
    }

    pub(crate) fn wrong_datatype(&self, wanted: &str) -> ApiError {
        let given: String = self.datatype.chars().take(32).collect();
        self.invalid(format!("is of datatype `{given}`, must be {wanted}"))
    }

    pub(crate) fn invalid(&self, what: String) -> ApiError {
        ApiError::invalid(&self.name, format!("input `{}` {what}", self.name))
    }
}

#[cfg(test)]
mod tests;
