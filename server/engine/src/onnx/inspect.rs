//! What an ONNX file says of itself, read before the runtime sees it.
//!
//! The runtime trusts lengths, recurses along the graph and opens the files that the graph names. So nothing reaches it
//! whose lengths leave their message, whose graph has a cycle or too many nodes, which has graphs within graphs, or
//! which names a file outside of its folder.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use super::protobuf::{Fields, Value};
use crate::LoadError;

/// The largest encoders have a third of it. The runtime recurses once per node of a chain.
const MOST_NODES: usize = 16_384;
/// Its checks compare each with each.
const MOST_INPUTS: usize = 64;
/// Elements of a tensor, 64 times those of the largest table of words.
const MOST_ELEMENTS: u64 = 1 << 36;

/// What the weights are.
#[derive(Debug, Default)]
pub(super) struct Inspected {
    /// Elements of all tensors in the graph.
    pub(super) parameters: u64,
    /// Elements by ONNX's number of their type.
    by_type: BTreeMap<u64, u64>,
    /// Files beside the graph's that hold weights: plain names.
    pub(super) external: BTreeSet<String>,
    /// Activations are rounded by their largest value in the batch, which is another one in another batch.
    pub(super) rounds_by_batch: bool,
    nodes: usize,
}

impl Inspected {
    /// The type that most weights are stored in.
    pub(super) fn stored_as(&self) -> String {
        let most = self.by_type.iter().max_by_key(|(_, n)| **n).map(|(kind, _)| *kind);
        let name = match most {
            Some(1) => "F32",
            Some(2) => "U8",
            Some(3) => "I8",
            Some(10) => "F16",
            Some(11) => "F64",
            Some(16) => "BF16",
            _ => "other",
        };
        name.to_owned()
    }
}

/// Messages that hold others. Whatever else has a length is text or numbers.
#[derive(Clone, Copy)]
enum Message {
    Model,
    Graph,
    Node,
    Attribute,
    Tensor,
    ValueInfo,
    Type,
    TensorType,
    Shape,
    Leaf,
}

/// The message in a field; `None` = none is there.
fn inner(of: Message, field: u64) -> Option<Message> {
    Some(match (of, field) {
        (Message::Model, 7) => Message::Graph,
        (Message::Model, 8 | 14) => Message::Leaf,
        (Message::Graph, 1) => Message::Node,
        (Message::Graph, 5) => Message::Tensor,
        (Message::Graph, 11..=13) => Message::ValueInfo,
        (Message::Node, 5) => Message::Attribute,
        (Message::Attribute, 5 | 10) => Message::Tensor,
        (Message::Tensor, 13) => Message::Leaf,
        (Message::ValueInfo, 2) => Message::Type,
        (Message::Type, 1) => Message::TensorType,
        (Message::TensorType, 2) => Message::Shape,
        (Message::Shape, 1) => Message::Leaf,
        _ => return None,
    })
}

/// Reads a whole `ModelProto` without its weights.
///
/// # Errors
/// `Corrupt` for what is no such file, `Unsupported` for what the runtime is not to be given; both name the part.
pub(super) fn inspect(file: &str, bytes: &[u8]) -> Result<Inspected, LoadError> {
    let mut found = Inspected::default();
    let mut reader = Reader { file, found: &mut found };
    reader.bounds(Message::Model, bytes)?;
    let graphs: Vec<_> = reader.all(bytes, 7).collect();
    let [graph] = graphs[..] else {
        return Err(reader.corrupt(format!("it has {} graphs where an ONNX model has one", graphs.len())));
    };
    reader.graph(graph)?;
    Ok(found)
}

struct Reader<'f, 'r> {
    file: &'f str,
    found: &'r mut Inspected,
}

impl Reader<'_, '_> {
    fn corrupt(&self, what: impl Into<String>) -> LoadError {
        LoadError::corrupt(self.file, what)
    }

    fn refuse(&self, what: String, hint: &str) -> LoadError {
        LoadError::unsupported(self.file, what, hint)
    }

    /// Checks that each field lies in its message. Recurses as deep as [`inner`] goes, which is seven messages.
    fn bounds(&self, message: Message, bytes: &[u8]) -> Result<(), LoadError> {
        for field in Fields::of(bytes) {
            let cut = || self.corrupt("it is cut off, or no ONNX file: a field ends behind its message");
            let (number, value) = field.map_err(|()| cut())?;
            let Value::Bytes(inside) = value else { continue };
            match (message, number) {
                (Message::Attribute, 6 | 11) => {
                    let hint = "export the model again with fixed branches, or simplify the graph";
                    return Err(
                        self.refuse("a graph within the graph (`If`, `Loop`, `Scan`)".to_owned(), hint)
                    );
                }
                (Message::Type, 4 | 5 | 9) => {
                    return Err(
                        self.refuse("a value that is no tensor".to_owned(), "export the encoder alone")
                    );
                }
                (Message::Graph, 15) | (Message::Attribute, 22 | 23) => {
                    return Err(
                        self.refuse("a sparse tensor".to_owned(), "export the model with dense weights")
                    );
                }
                _ => {}
            }
            if let Some(inner) = inner(message, number) {
                self.bounds(inner, inside)?;
            }
        }
        Ok(())
    }

    /// The values with a length of one field.
    fn all<'a>(&self, message: &'a [u8], field: u64) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        Fields::of(message).filter_map(move |found| match found {
            Ok((number, Value::Bytes(bytes))) if number == field => Some(bytes),
            _ => None,
        })
    }

    fn text<'a>(&self, message: &'a [u8], field: u64) -> Result<&'a str, LoadError> {
        self.texts(message, field).last().unwrap_or(Ok(""))
    }

    fn texts<'a>(
        &self,
        message: &'a [u8],
        field: u64,
    ) -> impl Iterator<Item = Result<&'a str, LoadError>> + use<'a, '_> {
        let file = self.file;
        self.all(message, field).map(move |bytes| {
            std::str::from_utf8(bytes).map_err(|_| LoadError::corrupt(file, "a name in it is not UTF-8"))
        })
    }

    fn graph(&mut self, graph: &[u8]) -> Result<(), LoadError> {
        let mut known = HashSet::new();
        for (field, what) in [(11, "inputs"), (12, "outputs")] {
            let n = self.all(graph, field).count();
            if n > MOST_INPUTS {
                return Err(self.refuse(format!("a graph of {n} {what}"), "an encoder has three inputs"));
            }
        }
        for input in self.all(graph, 11) {
            known.insert(self.text(input, 1)?);
        }
        for tensor in self.all(graph, 5) {
            known.insert(self.text(tensor, 8)?);
            self.tensor(tensor)?;
        }
        for node in self.all(graph, 1) {
            self.node(node, &mut known)?;
        }
        for output in self.all(graph, 12) {
            let name = self.text(output, 1)?;
            if !known.contains(name) {
                return Err(self.corrupt(format!("nothing computes its output `{name}`")));
            }
        }
        Ok(())
    }

    /// The format has each node behind those that it reads from, so that there can be no cycle.
    fn node<'a>(&mut self, node: &'a [u8], known: &mut HashSet<&'a str>) -> Result<(), LoadError> {
        self.found.nodes += 1;
        if self.found.nodes > MOST_NODES {
            return Err(self.refuse(format!("a graph of more than {MOST_NODES} nodes"), "simplify the graph"));
        }
        let (name, operator) = (self.text(node, 3)?, self.text(node, 4)?);
        for input in self.texts(node, 1) {
            let input = input?;
            if !input.is_empty() && !known.contains(input) {
                let what =
                    format!("node `{name}` ({operator}) reads `{input}`, which nothing before it gives");
                return Err(self.corrupt(what));
            }
        }
        for output in self.texts(node, 2) {
            let output = output?;
            if !output.is_empty() && !known.insert(output) {
                let what = format!("node `{name}` ({operator}) gives `{output}`, which there is already");
                return Err(self.corrupt(what));
            }
        }
        self.found.rounds_by_batch |= operator == "DynamicQuantizeLinear";
        for attribute in self.all(node, 5) {
            for tensor in self.all(attribute, 5).chain(self.all(attribute, 10)) {
                self.tensor(tensor)?;
            }
        }
        Ok(())
    }

    fn tensor(&mut self, tensor: &[u8]) -> Result<(), LoadError> {
        let name = self.text(tensor, 8)?;
        let (mut elements, mut kind) = (1u64, 0);
        let mut size = |size: u64| elements = elements.saturating_mul(size);
        for field in Fields::of(tensor) {
            match field {
                Ok((1, Value::Integer(n))) => size(n),
                Ok((1, Value::Bytes(packed))) => varints(packed).for_each(&mut size),
                Ok((2, Value::Integer(n))) => kind = n,
                _ => {}
            }
        }
        if elements > MOST_ELEMENTS {
            return Err(self.corrupt(format!("tensor `{name}` has dimensions that no file holds")));
        }
        self.found.parameters = self.found.parameters.saturating_add(elements);
        let of_kind = self.found.by_type.entry(kind).or_default();
        *of_kind = of_kind.saturating_add(elements);
        for entry in self.all(tensor, 13) {
            if self.text(entry, 1)? != "location" {
                continue;
            }
            let location = self.text(entry, 2)?;
            let plain = !location.is_empty() && !location.contains(['/', '\\', '\0']) && location != "..";
            if !plain || location == "." {
                let what = format!("tensor `{name}` lies in `{location}`, outside of the graph's folder");
                return Err(self.corrupt(what));
            }
            self.found.external.insert(location.to_owned());
        }
        Ok(())
    }
}

/// Packed numbers; what is cut off at the end is left out, as [`Reader::bounds`] does not look into them.
fn varints(mut bytes: &[u8]) -> impl Iterator<Item = u64> {
    std::iter::from_fn(move || {
        let mut value = 0u64;
        for (i, byte) in bytes.iter().take(10).enumerate() {
            value |= u64::from(byte & 0x7f) << (7 * i as u32).min(63);
            if byte & 0x80 == 0 {
                bytes = &bytes[i + 1..];
                return Some(value);
            }
        }
        None
    })
}
