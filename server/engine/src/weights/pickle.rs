//! Reads the pickle of a PyTorch state dict without executing anything: the few opcodes that such a file needs build
//! plain nodes, a class or function is a name, and calling one other than those that PyTorch uses to rebuild tensors is
//! an error.

use std::collections::HashMap;

/// What is wrong with the pickle, in words.
type Result<T> = std::result::Result<T, String>;

/// A tensor as the pickle describes it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct PickledTensor {
    /// As in `torch.FloatStorage`.
    pub(super) storage_class: String,
    /// Names the file of the archive that holds the elements.
    pub(super) storage_key: String,
    /// In elements.
    pub(super) offset: usize,
    pub(super) shape: Vec<usize>,
    pub(super) stride: Vec<usize>,
}

/// Nodes refer to each other by number: a chain of a million of them takes no stack when it is dropped.
type Id = u32;

#[derive(Clone, Debug)]
enum Node {
    None,
    Bool,
    Int(i64),
    Float,
    Text(String),
    Tuple(Vec<Id>),
    List(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    Global(String),
    Storage {
        class: String,
        key: String,
    },
    Tensor(Box<PickledTensor>),
    /// A result of a call that holds no weights, such as an empty hook dict.
    Opaque,
}

/// State dicts of the largest models have some thousand tensors of a dozen nodes each.
const MAX_NODES: usize = 1 << 20;
const MAX_TENSORS: usize = 1 << 16;
/// Of a tensor's, class's or storage's name: each may be copied for every value that refers to it.
const MAX_NAME: usize = 512;

/// The tensors of a pickled dict, in its order. A checkpoint that wraps it is looked into one level deep, under the
/// names that training scripts use.
pub(super) fn tensors(pickle: &[u8]) -> Result<Vec<(String, PickledTensor)>> {
    let mut machine = Machine { bytes: pickle, ..Machine::default() };
    let root = machine.run()?;
    let Node::Dict(entries) = machine.node(root) else {
        return Err("it does not hold a dict of tensors".to_owned());
    };
    let found = machine.named_tensors(entries)?;
    if !found.is_empty() {
        return Ok(found);
    }
    for (key, value) in entries {
        if let (Node::Text(name), Node::Dict(inner)) = (machine.node(*key), machine.node(*value))
            && matches!(name.as_str(), "state_dict" | "model_state_dict" | "model" | "module")
        {
            return machine.named_tensors(inner);
        }
    }
    Err("its dict holds no tensors".to_owned())
}

#[derive(Default)]
struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    nodes: Vec<Node>,
    stack: Vec<Id>,
    /// Heights of the stack.
    marks: Vec<usize>,
    memo: HashMap<u32, Id>,
}

impl Machine<'_> {
    fn run(&mut self) -> Result<Id> {
        loop {
            let at = self.at;
            let [op] = self.array()?;
            match op {
                b'.' => return self.pop(),
                _ => self.step(op).map_err(|e| format!("at byte {at}: {e}"))?,
            }
        }
    }

    fn step(&mut self, op: u8) -> Result<()> {
        match op {
            // PROTO, FRAME
            0x80 => self.array::<1>().map(drop),
            0x95 => self.array::<8>().map(drop),
            b'(' => {
                self.marks.push(self.stack.len());
                Ok(())
            }
            b'0' => self.pop().map(drop),
            b'1' => self.since_mark().map(drop),
            b'N' => self.push(Node::None),
            0x88 | 0x89 => self.push(Node::Bool),
            b'J' => self.array().and_then(|b| self.push(Node::Int(i32::from_le_bytes(b).into()))),
            b'K' => self.array().and_then(|[b]| self.push(Node::Int(b.into()))),
            b'M' => self.array().and_then(|b| self.push(Node::Int(u16::from_le_bytes(b).into()))),
            0x8a => {
                let [n] = self.array()?;
                let digits = self.take(n.into())?;
                if digits.len() > 8 {
                    return Err(format!("an integer of {n} bytes"));
                }
                let negative = digits.last().is_some_and(|b| b & 0x80 != 0);
                let mut wide = [if negative { 0xff } else { 0 }; 8];
                wide[..digits.len()].copy_from_slice(digits);
                self.push(Node::Int(i64::from_le_bytes(wide)))
            }
            b'G' => self.array::<8>().and_then(|_| self.push(Node::Float)),
            b'X' => self.array().and_then(|n| self.text(u32::from_le_bytes(n) as usize)),
            0x8c => self.array().and_then(|[n]| self.text(n.into())),
            b'c' => {
                let name = format!("{}.{}", self.line()?, self.line()?);
                self.push(Node::Global(name))
            }
            0x93 => {
                let (name, module) = (self.pop()?, self.pop()?);
                let (Node::Text(module), Node::Text(name)) = (self.node(module), self.node(name)) else {
                    return Err("a name that is not text".to_owned());
                };
                if module.len() + name.len() > MAX_NAME {
                    return Err(format!("a name above {MAX_NAME} bytes"));
                }
                let name = format!("{module}.{name}");
                self.push(Node::Global(name))
            }
            b')' => self.push(Node::Tuple(Vec::new())),
            0x85..=0x87 => {
                let n = usize::from(op - 0x84);
                let at = self.stack.len().checked_sub(n).filter(|at| *at >= self.floor());
                let items = self.stack.split_off(at.ok_or("the stack is empty")?);
                self.push(Node::Tuple(items))
            }
            b't' => self.since_mark().and_then(|items| self.push(Node::Tuple(items))),
            b']' => self.push(Node::List(Vec::new())),
            b'l' => self.since_mark().and_then(|items| self.push(Node::List(items))),
            b'a' => self.pop().and_then(|item| self.append(vec![item])),
            b'e' => self.since_mark().and_then(|items| self.append(items)),
            b'}' => self.push(Node::Dict(Vec::new())),
            b's' => {
                let (value, key) = (self.pop()?, self.pop()?);
                self.set(vec![key, value])
            }
            b'u' => self.since_mark().and_then(|items| self.set(items)),
            b'q' => self.array().and_then(|[slot]| self.memoize(slot.into())),
            b'r' => self.array().and_then(|slot| self.memoize(u32::from_le_bytes(slot))),
            0x94 => self.memoize(self.memo.len() as u32),
            b'h' => self.array().and_then(|[slot]| self.recall(slot.into())),
            b'j' => self.array().and_then(|slot| self.recall(u32::from_le_bytes(slot))),
            b'Q' => self.persistent(),
            b'R' => self.reduce(),
            // BUILD: attributes of an object, such as the metadata of an ordered dict. They hold no weights.
            b'b' => self.pop().map(drop),
            _ => Err(format!("the opcode {op:#04x}, which a state dict does not need")),
        }
    }

    /// `torch.storage` as a persistent id: ("storage", class, key, device, elements).
    fn persistent(&mut self) -> Result<()> {
        let id = self.pop()?;
        let Node::Tuple(items) = self.node(id) else {
            return Err("a reference that is no storage".to_owned());
        };
        let (class, key) = match items[..] {
            [kind, class, key, _, _] => match (self.node(kind), self.node(class), self.node(key)) {
                (Node::Text(kind), Node::Global(class), Node::Text(key))
                    if kind == "storage" && key.len() <= MAX_NAME =>
                {
                    (class.clone(), key.clone())
                }
                _ => return Err("a reference that is no storage".to_owned()),
            },
            _ => return Err("a reference that is no storage".to_owned()),
        };
        self.push(Node::Storage { class, key })
    }

    fn reduce(&mut self) -> Result<()> {
        let (arguments, function) = (self.pop()?, self.pop()?);
        let Node::Global(function) = self.node(function) else { return Err("a call of a value".to_owned()) };
        let Node::Tuple(arguments) = self.node(arguments) else {
            return Err(format!("a call of `{function}` without arguments"));
        };
        let made = match function.as_str() {
            "collections.OrderedDict" => Node::Dict(Vec::new()),
            "torch._utils._rebuild_tensor_v2" | "torch._utils._rebuild_tensor" => {
                Node::Tensor(Box::new(self.tensor(arguments)?))
            }
            "torch._utils._rebuild_parameter" => match arguments.first().map(|id| self.node(*id)) {
                Some(Node::Tensor(tensor)) => Node::Tensor(tensor.clone()),
                _ => return Err("a parameter without a tensor".to_owned()),
            },
            "torch.Size" | "torch.device" => Node::Opaque,
            other => return Err(format!("a call of `{other}`, which is not executed here")),
        };
        self.push(made)
    }

    fn tensor(&self, arguments: &[Id]) -> Result<PickledTensor> {
        let [storage, offset, shape, stride, ..] = arguments else {
            return Err("a tensor with too few arguments".to_owned());
        };
        let Node::Storage { class, key } = self.node(*storage) else {
            return Err("a tensor without storage".to_owned());
        };
        let sizes = |id: Id| -> Result<Vec<usize>> {
            let Node::Tuple(items) = self.node(id) else { return Err("a shape that is no tuple".to_owned()) };
            if items.len() > 8 {
                return Err(format!("a tensor of {} dimensions", items.len()));
            }
            items.iter().map(|id| self.size(*id)).collect()
        };
        let (shape, stride) = (sizes(*shape)?, sizes(*stride)?);
        if shape.len() != stride.len() {
            return Err("a tensor whose shape and stride differ in length".to_owned());
        }
        Ok(PickledTensor {
            storage_class: class.clone(),
            storage_key: key.clone(),
            offset: self.size(*offset)?,
            shape,
            stride,
        })
    }

    fn size(&self, id: Id) -> Result<usize> {
        match self.node(id) {
            Node::Int(n) => usize::try_from(*n).map_err(|_| format!("the size {n}")),
            _ => Err("a size that is no integer".to_owned()),
        }
    }

    fn named_tensors(&self, entries: &[(Id, Id)]) -> Result<Vec<(String, PickledTensor)>> {
        let mut found = Vec::new();
        for (key, value) in entries {
            let (Node::Text(name), Node::Tensor(tensor)) = (self.node(*key), self.node(*value)) else {
                continue;
            };
            if name.len() > MAX_NAME || found.len() >= MAX_TENSORS {
                return Err(format!("more than {MAX_TENSORS} tensors, or a name above {MAX_NAME} bytes"));
            }
            found.push((name.clone(), (**tensor).clone()));
        }
        Ok(found)
    }

    fn node(&self, id: Id) -> &Node {
        &self.nodes[id as usize]
    }

    fn push(&mut self, node: Node) -> Result<()> {
        if self.nodes.len() >= MAX_NODES {
            return Err(format!("more than {MAX_NODES} values"));
        }
        self.stack.push(self.nodes.len() as Id);
        self.nodes.push(node);
        Ok(())
    }

    /// Below this the stack belongs to what is outside the innermost mark.
    fn floor(&self) -> usize {
        self.marks.last().copied().unwrap_or(0)
    }

    fn pop(&mut self) -> Result<Id> {
        match self.stack.len() > self.floor() {
            true => self.stack.pop().ok_or_else(|| "the stack is empty".to_owned()),
            false => Err("the stack is empty".to_owned()),
        }
    }

    fn since_mark(&mut self) -> Result<Vec<Id>> {
        let mark = self.marks.pop().ok_or("no mark is set")?;
        Ok(self.stack.split_off(mark))
    }

    fn top(&mut self) -> Result<&mut Node> {
        let id = self.stack.last().ok_or("the stack is empty")?;
        Ok(&mut self.nodes[*id as usize])
    }

    fn append(&mut self, items: Vec<Id>) -> Result<()> {
        match self.top()? {
            Node::List(list) => {
                list.extend(items);
                Ok(())
            }
            Node::Opaque => Ok(()),
            _ => Err("an append to what is no list".to_owned()),
        }
    }

    fn set(&mut self, items: Vec<Id>) -> Result<()> {
        let (pairs, rest) = items.as_chunks::<2>();
        match self.top()? {
            _ if !rest.is_empty() => Err("a key without a value".to_owned()),
            Node::Dict(entries) => {
                entries.extend(pairs.iter().map(|[key, value]| (*key, *value)));
                Ok(())
            }
            Node::Opaque => Ok(()),
            _ => Err("an item set on what is no dict".to_owned()),
        }
    }

    fn memoize(&mut self, slot: u32) -> Result<()> {
        let id = *self.stack.last().ok_or("the stack is empty")?;
        self.memo.insert(slot, id);
        Ok(())
    }

    fn recall(&mut self, slot: u32) -> Result<()> {
        let id = *self.memo.get(&slot).ok_or_else(|| format!("nothing is kept in slot {slot}"))?;
        self.stack.push(id);
        Ok(())
    }

    fn text(&mut self, n: usize) -> Result<()> {
        let text = std::str::from_utf8(self.take(n)?).map_err(|_| "text that is not UTF-8")?.to_owned();
        self.push(Node::Text(text))
    }

    fn line(&mut self) -> Result<String> {
        let rest = &self.bytes[self.at..];
        let rest = &rest[..rest.len().min(MAX_NAME)];
        let n = rest.iter().position(|b| *b == b'\n').ok_or("a name without end")?;
        let line = std::str::from_utf8(&rest[..n]).map_err(|_| "a name that is not UTF-8")?.to_owned();
        self.at += n + 1;
        Ok(line)
    }

    fn take(&mut self, n: usize) -> Result<&[u8]> {
        let end = self.at.checked_add(n).filter(|end| *end <= self.bytes.len());
        let end = end.ok_or("it ends in the middle of a value")?;
        let taken = &self.bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N)?);
        Ok(out)
    }
}
