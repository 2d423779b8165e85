//! A pickle machine that builds data and runs no code.
//!
//! It has the instructions of protocols 2 to 5. The only callables it knows are those that rebuild
//! tensors (listed in [`global`]); results of other callables are inert placeholders.

use std::collections::HashMap;

use super::bytes::Bytes;
use super::globals::global;
use super::objects::{
    Elements, Global, Id, Object, Outcome, Pickle, StorageRef, TensorRef, Unread, broken,
};

/// More objects than any weights file has.
const MOST_OBJECTS: usize = 1 << 21;

/// Reads one pickle from the start of `bytes`; also returns its length.
pub(super) fn load(bytes: &[u8]) -> Outcome<(Pickle, usize)> {
    let mut machine = Machine {
        bytes: Bytes { bytes, at: 0 },
        objects: Vec::new(),
        stack: Vec::new(),
        marks: Vec::new(),
        memo: HashMap::new(),
    };
    let root = machine.run()?;
    let pickle = Pickle {
        objects: machine.objects,
        root,
    };
    Ok((pickle, machine.bytes.at))
}

struct Machine<'a> {
    bytes: Bytes<'a>,
    objects: Vec<Object>,
    stack: Vec<Id>,
    marks: Vec<usize>,
    memo: HashMap<u32, Id>,
}

impl<'a> Machine<'a> {
    /// Runs up to STOP; returns the object on top of the stack.
    fn run(&mut self) -> Outcome<Id> {
        loop {
            let [op] = self.bytes.array()?;
            match op {
                b'.' => return self.pop(),
                0x80 => self.bytes.skip(1)?,
                0x95 => self.bytes.skip(8)?,
                b'(' => self.marks.push(self.stack.len()),
                b'0' => drop(self.pop()?),
                b'1' => drop(self.pop_mark()?),
                b'2' => {
                    let top = self.top()?;
                    self.stack.push(top);
                }
                b'N' => self.push(Object::Nothing)?,
                0x88 => self.push(Object::Bool(true))?,
                0x89 => self.push(Object::Bool(false))?,
                b'J' => {
                    let n = i32::from_le_bytes(self.bytes.array()?);
                    self.push(Object::Int(n.into()))?;
                }
                b'K' => {
                    let n = u8::from_le_bytes(self.bytes.array()?);
                    self.push(Object::Int(n.into()))?;
                }
                b'M' => {
                    let n = u16::from_le_bytes(self.bytes.array()?);
                    self.push(Object::Int(n.into()))?;
                }
                0x8a => {
                    let n = self.bytes.length1()?;
                    self.long(n)?;
                }
                0x8b => {
                    let n = self.bytes.length4()?;
                    self.long(n)?;
                }
                b'G' => {
                    self.bytes.skip(8)?;
                    self.push(Object::Inert)?;
                }
                // Text and bytes, with lengths of 1, 4 or 8 bytes.
                0x8c => {
                    let n = self.bytes.length1()?;
                    self.text(n)?;
                }
                b'X' => {
                    let n = self.bytes.length4()?;
                    self.text(n)?;
                }
                0x8d => {
                    let n = self.bytes.length8()?;
                    self.text(n)?;
                }
                b'C' | b'U' => {
                    let n = self.bytes.length1()?;
                    self.raw(n)?;
                }
                b'B' | b'T' => {
                    let n = self.bytes.length4()?;
                    self.raw(n)?;
                }
                // BINBYTES8 and BYTEARRAY8.
                0x8e | 0x96 => {
                    let n = self.bytes.length8()?;
                    self.raw(n)?;
                }
                b')' => self.push(Object::Tuple(Vec::new()))?,
                0x85..=0x87 => {
                    let items = self.pop_many(usize::from(op - 0x84))?;
                    self.push(Object::Tuple(items))?;
                }
                b't' => {
                    let items = self.pop_mark()?;
                    self.push(Object::Tuple(items))?;
                }
                b']' | 0x8f => self.push(Object::List(Vec::new()))?,
                b'l' | 0x91 => {
                    let items = self.pop_mark()?;
                    self.push(Object::List(items))?;
                }
                b'a' => {
                    let item = self.pop()?;
                    self.append(&[item])?;
                }
                b'e' | 0x90 => {
                    let items = self.pop_mark()?;
                    self.append(&items)?;
                }
                b'}' => self.push(Object::Dict(Vec::new()))?,
                b'd' => {
                    let items = self.pop_mark()?;
                    self.push(Object::Dict(Vec::new()))?;
                    self.set_items(&items)?;
                }
                b's' => {
                    let items = self.pop_many(2)?;
                    self.set_items(&items)?;
                }
                b'u' => {
                    let items = self.pop_mark()?;
                    self.set_items(&items)?;
                }
                b'c' => {
                    let (module, name) = (self.bytes.line()?, self.bytes.line()?);
                    let global = global(&module, &name)?;
                    self.push(Object::Global(global))?;
                }
                0x93 => {
                    let names = self.pop_many(2)?;
                    let [Object::Text(module), Object::Text(name)] =
                        [names[0], names[1]].map(|id| self.object(id).clone())
                    else {
                        return broken("names a global by something other than text");
                    };
                    let global = global(&module, &name)?;
                    self.push(Object::Global(global))?;
                }
                b'R' | 0x81 => {
                    let (arguments, callable) = (self.pop()?, self.pop()?);
                    self.rebuild(callable, arguments)?;
                }
                // NEWOBJ_EX: class, arguments, keywords
                0x92 => {
                    self.pop_many(2)?;
                    let class = self.pop()?;
                    self.rebuild(class, class)?;
                }
                b'b' => {
                    let state = self.pop()?;
                    self.build(state)?;
                }
                b'q' => {
                    let n = self.bytes.length1()?;
                    self.memorize(n as u32)?;
                }
                b'r' => {
                    let n = self.bytes.length4()?;
                    self.memorize(n as u32)?;
                }
                0x94 => self.memorize(self.memo.len() as u32)?,
                b'h' => {
                    let n = self.bytes.length1()?;
                    self.recall(n as u32)?;
                }
                b'j' => {
                    let n = self.bytes.length4()?;
                    self.recall(n as u32)?;
                }
                b'Q' => {
                    let id = self.pop()?;
                    self.storage(id)?;
                }
                other => return broken(&format!("has the unknown instruction {other:#04x}")),
            }
        }
    }

    fn long(&mut self, n: usize) -> Outcome<()> {
        let bytes = self.bytes.take(n)?;
        let object = if n > 8 {
            Object::Bytes(bytes.to_vec())
        } else {
            let negative = bytes.last().is_some_and(|b| *b >= 0x80);
            let mut padded = [if negative { 0xff } else { 0 }; 8];
            padded[..n].copy_from_slice(bytes);
            Object::Int(i64::from_le_bytes(padded))
        };
        self.push(object)
    }

    fn text(&mut self, n: usize) -> Outcome<()> {
        let text = String::from_utf8_lossy(self.bytes.take(n)?).into_owned();
        self.push(Object::Text(text))
    }

    fn raw(&mut self, n: usize) -> Outcome<()> {
        let bytes = self.bytes.take(n)?.to_vec();
        // Python 2's strings are bytes; names of tensors may be such.
        self.push(match String::from_utf8(bytes) {
            Ok(text) => Object::Text(text),
            Err(e) => Object::Bytes(e.into_bytes()),
        })
    }

    fn object(&self, id: Id) -> &Object {
        &self.objects[id as usize]
    }

    fn push(&mut self, object: Object) -> Outcome<()> {
        if self.objects.len() >= MOST_OBJECTS {
            return broken("has more objects than weights have");
        }
        self.stack.push(self.objects.len() as Id);
        self.objects.push(object);
        Ok(())
    }

    fn top(&self) -> Outcome<Id> {
        let floor = self.marks.last().copied().unwrap_or(0);
        match self.stack.last() {
            Some(id) if self.stack.len() > floor => Ok(*id),
            _ => broken("pops more than it has pushed"),
        }
    }

    fn pop(&mut self) -> Outcome<Id> {
        let id = self.top()?;
        self.stack.pop();
        Ok(id)
    }

    fn pop_many(&mut self, n: usize) -> Outcome<Vec<Id>> {
        let floor = self.marks.last().copied().unwrap_or(0);
        match self.stack.len().checked_sub(n) {
            Some(from) if from >= floor => Ok(self.stack.split_off(from)),
            _ => broken("pops more than it has pushed"),
        }
    }

    fn pop_mark(&mut self) -> Outcome<Vec<Id>> {
        match self.marks.pop() {
            Some(mark) => Ok(self.stack.split_off(mark)),
            None => broken("pops more than it has pushed"),
        }
    }

    fn append(&mut self, items: &[Id]) -> Outcome<()> {
        let top = self.top()?;
        match &mut self.objects[top as usize] {
            Object::List(list) => list.extend(items),
            Object::Inert => {}
            _ => return broken("appends to something that is not a list"),
        }
        Ok(())
    }

    fn set_items(&mut self, items: &[Id]) -> Outcome<()> {
        let top = self.top()?;
        let (pairs, []) = items.as_chunks::<2>() else {
            return broken("has a key without a value");
        };
        match &mut self.objects[top as usize] {
            Object::Dict(dict) => dict.extend(pairs.iter().map(|[k, v]| (*k, *v))),
            Object::Inert => {}
            _ => return broken("sets an item of something that is not a dict"),
        }
        Ok(())
    }

    /// Sets a TorchScript module's attributes; the state of any other object holds no tensor.
    fn build(&mut self, state: Id) -> Outcome<()> {
        let top = self.top()?;
        if let (Object::Module(_), Object::Dict(items)) = (self.object(top), self.object(state)) {
            self.objects[top as usize] = Object::Module(items.clone());
        }
        Ok(())
    }

    fn memorize(&mut self, key: u32) -> Outcome<()> {
        let top = self.top()?;
        self.memo.insert(key, top);
        Ok(())
    }

    fn recall(&mut self, key: u32) -> Outcome<()> {
        let Some(id) = self.memo.get(&key) else {
            return broken("reads a memo entry that it has not written");
        };
        self.stack.push(*id);
        Ok(())
    }

    /// REDUCE and NEWOBJ: the results of the few known callables.
    fn rebuild(&mut self, callable: Id, arguments: Id) -> Outcome<()> {
        let global = match self.object(callable) {
            Object::Global(global) => global.clone(),
            Object::Inert => Global::Inert,
            _ => return broken("calls something that is not a function"),
        };
        let items = match self.object(arguments) {
            Object::Tuple(items) => items.clone(),
            // NEWOBJ_EX passes the class as its arguments.
            _ => Vec::new(),
        };
        match (global, &items[..]) {
            (Global::Inert | Global::Dtype(_), _) => self.push(Object::Inert),
            (Global::Module, _) => self.push(Object::Module(Vec::new())),
            (Global::Unread(unread), _) => self.push(Object::Unread(unread)),
            (Global::TensorClass, _) => self.push(Object::Unread(Unread::OLDEST)),
            (Global::Tensor, [storage, offset, shape, strides, ..]) => {
                self.tensor([*storage, *offset, *shape, *strides], None)
            }
            (Global::TypedTensor, [storage, offset, shape, strides, _, _, dtype, ..]) => {
                let Object::Global(Global::Dtype(elements)) = self.object(*dtype) else {
                    return broken("has a tensor without a type");
                };
                let elements = elements.clone();
                self.tensor([*storage, *offset, *shape, *strides], Some(elements))
            }
            (Global::First, [first, ..]) => {
                self.stack.push(*first);
                Ok(())
            }
            (Global::FromType, [function, _, arguments, ..]) => match self.object(*function) {
                // Not another of the same kind, so that the recursion ends.
                Object::Global(Global::FromType) => broken("rebuilds a tensor without end"),
                _ => self.rebuild(*function, *arguments),
            },
            (Global::Dict, items) => {
                let pairs = self.pairs(items.first().copied());
                self.push(Object::Dict(pairs))
            }
            (Global::List, items) => {
                let held = match items.first().map(|id| self.object(*id)) {
                    Some(Object::List(held) | Object::Tuple(held)) => held.clone(),
                    _ => Vec::new(),
                };
                self.push(Object::List(held))
            }
            (Global::Size, [sizes]) => {
                self.stack.push(*sizes);
                Ok(())
            }
            (Global::Bytes, items) => {
                let bytes = self.encoded(items)?;
                self.push(Object::Bytes(bytes))
            }
            _ => broken("calls a function with wrong arguments"),
        }
    }

    /// bytes(), bytearray(b"…"), and _codecs.encode("…", "latin1"), whose characters are the bytes.
    fn encoded(&self, arguments: &[Id]) -> Outcome<Vec<u8>> {
        match arguments.first().map(|id| self.object(*id)) {
            None => Ok(Vec::new()),
            Some(Object::Bytes(bytes)) => Ok(bytes.clone()),
            Some(Object::Text(text)) => {
                let bytes: Option<Vec<u8>> = text.chars().map(|c| u8::try_from(c).ok()).collect();
                Ok(bytes.unwrap_or_else(|| text.clone().into_bytes()))
            }
            Some(_) => broken("makes bytes of something that is not text"),
        }
    }

    /// OrderedDict([(k, v), …]), as old files have it, or Counter({k: v, …}).
    fn pairs(&self, held: Option<Id>) -> Vec<(Id, Id)> {
        let items = match held.map(|id| self.object(id)) {
            Some(Object::List(items)) => items,
            Some(Object::Dict(pairs)) => return pairs.clone(),
            _ => return Vec::new(),
        };
        items
            .iter()
            .filter_map(|id| match self.object(*id) {
                Object::Tuple(pair) | Object::List(pair) if pair.len() == 2 => {
                    Some((pair[0], pair[1]))
                }
                _ => None,
            })
            .collect()
    }

    /// From (storage, offset, shape, strides), with the element type of the storage or `elements`.
    fn tensor(
        &mut self,
        [storage, offset, shape, strides]: [Id; 4],
        elements: Option<Elements>,
    ) -> Outcome<()> {
        let tensor = match (
            self.object(storage),
            self.size(offset),
            self.sizes(shape),
            self.sizes(strides),
        ) {
            (Object::Storage(storage), Some(offset), Some(shape), Some(strides))
                if shape.len() == strides.len() =>
            {
                TensorRef {
                    key: storage.key.clone(),
                    elements: elements.unwrap_or_else(|| storage.elements.clone()),
                    offset,
                    shape,
                    strides,
                }
            }
            _ => return broken("has a tensor with an invalid storage, shape or strides"),
        };
        self.push(Object::Tensor(tensor))
    }

    fn size(&self, id: Id) -> Option<usize> {
        match self.object(id) {
            Object::Int(n) => usize::try_from(*n).ok(),
            _ => None,
        }
    }

    fn sizes(&self, id: Id) -> Option<Vec<usize>> {
        match self.object(id) {
            Object::Tuple(items) | Object::List(items) => {
                items.iter().map(|id| self.size(*id)).collect()
            }
            _ => None,
        }
    }

    /// BINPERSID of ('storage', type, key, location, elements[, view]).
    fn storage(&mut self, id: Id) -> Outcome<()> {
        let Object::Tuple(items) = self.object(id) else {
            return broken("refers to a missing storage");
        };
        let object = |i: usize| items.get(i).map(|id| self.object(*id));
        let storage = match (object(0), object(1), object(2), object(5)) {
            (
                Some(Object::Text(kind)),
                Some(Object::Global(Global::Storage(elements))),
                Some(Object::Text(key)),
                None | Some(Object::Nothing),
            ) if kind == "storage" => StorageRef {
                key: key.clone(),
                elements: elements.clone(),
            },
            _ => return broken("refers to something that is not a storage"),
        };
        self.push(Object::Storage(storage))
    }
}
