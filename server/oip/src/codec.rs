//! Protobuf as tonic's own codec reads and writes it, after a look at how much a message would grow to: an empty tensor is two
//! bytes on the wire, and hundreds as a struct.

use std::marker::PhantomData;

use prost::{
    Message,
    bytes::{Buf, Bytes},
    encoding::{WireType, decode_key, decode_varint},
};
use tonic::{
    Status,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
};

/// Fields of one message with those of its tensors, texts of a batch among them.
const MAX_FIELDS: usize = 16 << 10;
/// Bytes of numbers that are spelled out (`shape`, `contents.int64_contents` …): each may become eight.
const MAX_NUMBER_BYTES: usize = 1 << 20;

/// `inputs` of `ModelInferRequest`; no other request has messages in a field of this number.
const INPUTS: u32 = 5;
/// `contents` of an input.
const CONTENTS: u32 = 5;

#[derive(Debug)]
pub struct Checked<T, U>(PhantomData<(T, U)>);

impl<T, U> Default for Checked<T, U> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T, U> Codec for Checked<T, U>
where
    T: Message + Send + 'static,
    U: Message + Default + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = Writer<T>;
    type Decoder = Reader<U>;

    fn encoder(&mut self) -> Writer<T> {
        Writer(PhantomData)
    }

    fn decoder(&mut self) -> Reader<U> {
        Reader(PhantomData)
    }
}

#[derive(Debug)]
pub struct Writer<T>(PhantomData<T>);

impl<T: Message> Encoder for Writer<T> {
    type Item = T;
    type Error = Status;

    fn encode(&mut self, item: T, buf: &mut EncodeBuf<'_>) -> Result<(), Status> {
        item.encode(buf).map_err(|err| Status::internal(format!("cannot write an answer: {err}")))
    }
}

#[derive(Debug)]
pub struct Reader<U>(PhantomData<U>);

impl<U: Message + Default> Decoder for Reader<U> {
    type Item = U;
    type Error = Status;

    fn decode(&mut self, buf: &mut DecodeBuf<'_>) -> Result<Option<U>, Status> {
        let bytes = buf.copy_to_bytes(buf.remaining());
        check(&bytes).map_err(Status::invalid_argument)?;
        let item = U::decode(bytes);
        item.map(Some).map_err(|err| Status::invalid_argument(format!("cannot read the message: {err}")))
    }
}

/// Where a field lies, as far as its meaning matters here.
#[derive(Clone, Copy, PartialEq)]
enum Level {
    Message,
    Input,
    Contents,
}

#[derive(Default)]
struct Seen {
    fields: usize,
    number_bytes: usize,
}

/// Refuses what would take far more memory as a message than as bytes.
fn check(message: &Bytes) -> Result<(), String> {
    walk(message, Level::Message, &mut Seen::default())
}

fn walk(mut bytes: &[u8], level: Level, seen: &mut Seen) -> Result<(), String> {
    let broken =
        || "the message is not protobuf: it ends within a field, or has one of no known kind".to_owned();
    while bytes.has_remaining() {
        seen.fields += 1;
        if seen.fields > MAX_FIELDS {
            return Err(format!(
                "the message has more than {MAX_FIELDS} fields: send fewer texts, or tensors as `raw_input_contents`"
            ));
        }
        let (tag, wire_type) = decode_key(&mut bytes).map_err(|_| broken())?;
        let skip = match wire_type {
            WireType::Varint => {
                decode_varint(&mut bytes).map_err(|_| broken())?;
                0
            }
            WireType::ThirtyTwoBit => 4,
            WireType::SixtyFourBit => 8,
            WireType::LengthDelimited => {
                let n = decode_varint(&mut bytes).map_err(|_| broken())?;
                usize::try_from(n).map_err(|_| broken())?
            }
            // Groups are of no message here; prost would follow them.
            WireType::StartGroup | WireType::EndGroup => return Err(broken()),
        };
        let field = bytes.get(..skip).ok_or_else(broken)?;
        bytes = &bytes[skip..];
        if wire_type != WireType::LengthDelimited {
            continue;
        }
        match (level, tag) {
            (Level::Message, INPUTS) => walk(field, Level::Input, seen)?,
            (Level::Input, CONTENTS) => walk(field, Level::Contents, seen)?,
            // `shape`, and every list of numbers; `bytes_contents` is field 8.
            (Level::Input, 3) | (Level::Contents, 1..=7) => seen.number_bytes += field.len(),
            _ => {}
        }
        if seen.number_bytes > MAX_NUMBER_BYTES {
            return Err(format!(
                "the message spells out more than {MAX_NUMBER_BYTES} bytes of numbers: send tensors as \
                 `raw_input_contents`"
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inference::{InferTensorContents, ModelInferRequest, model_infer_request::InferInputTensor};

    fn encoded(inputs: Vec<InferInputTensor>) -> Bytes {
        ModelInferRequest { inputs, ..Default::default() }.encode_to_vec().into()
    }

    fn contents(contents: InferTensorContents) -> InferInputTensor {
        InferInputTensor { name: "a".into(), contents: Some(contents), ..Default::default() }
    }

    #[test]
    fn a_batch_of_texts_and_ids_is_fine() {
        let texts =
            InferTensorContents { bytes_contents: vec![b"a text"[..].into(); 2048], ..Default::default() };
        let ids = InferTensorContents { int64_contents: vec![30_000; 64 * 512], ..Default::default() };
        assert_eq!(check(&encoded(vec![contents(texts), contents(ids)])), Ok(()));
    }

    #[test]
    fn what_would_grow_is_refused_before_it_is_built() {
        assert!(check(&encoded(vec![InferInputTensor::default(); MAX_FIELDS + 1])).is_err());
        let texts = InferTensorContents {
            bytes_contents: vec![Default::default(); MAX_FIELDS],
            ..Default::default()
        };
        assert!(check(&encoded(vec![contents(texts)])).is_err());
        let numbers =
            InferTensorContents { bool_contents: vec![true; MAX_NUMBER_BYTES + 1], ..Default::default() };
        assert!(check(&encoded(vec![contents(numbers)])).is_err());
        let shape = InferInputTensor { shape: vec![1; MAX_NUMBER_BYTES + 1], ..Default::default() };
        assert!(check(&encoded(vec![shape])).is_err());
    }

    #[test]
    fn broken_bytes_are_refused() {
        for bytes in [
            &[0x2a][..],
            &[0x2a, 5, 1],
            &[0x2a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1],
            &[0x2b],
            &[0x07],
            &[0x09, 1],
            &[0x2a, 2, 0x2a, 9],
        ] {
            assert!(check(&Bytes::copy_from_slice(bytes)).is_err(), "{bytes:?}");
        }
    }
}
