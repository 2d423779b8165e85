//! What a pickle is made of, and where in it the state dict lies.
//!
//! Objects lie in an arena and refer to each other by number, so that neither cycles nor deep nesting can exhaust
//! the stack.

use std::collections::{BTreeMap, HashSet};

use candle_core::DType;

/// Why a pickle is refused.
#[derive(Debug)]
pub(super) struct Refusal {
    pub what: String,
    pub hint: &'static str,
}

pub(super) type Outcome<T> = std::result::Result<T, Refusal>;

const BROKEN: &str = "it is damaged; copy or download it again";

pub(super) fn refuse<T>(what: impl Into<String>, hint: &'static str) -> Outcome<T> {
    Err(Refusal {
        what: what.into(),
        hint,
    })
}

pub(super) fn broken<T>(what: &str) -> Outcome<T> {
    refuse(format!("its pickle {what}"), BROKEN)
}

/// Where a state dict may lie in a training checkpoint.
const WRAPPERS: [&str; 8] = [
    "state_dict",
    "model_state_dict",
    "model",
    "params_ema",
    "params",
    "ema",
    "module",
    "net",
];

pub(super) type Id = u32;

/// A storage named by a pickle, to be read from the file.
#[derive(Debug, Clone)]
pub(super) struct StorageRef {
    pub key: String,
    pub dtype: DType,
}

/// A tensor named by a pickle; strides and offset count elements.
#[derive(Debug, Clone)]
pub(super) struct TensorRef {
    pub storage: StorageRef,
    pub offset: usize,
    pub shape: Vec<usize>,
    pub strides: Vec<usize>,
}

#[derive(Debug, Clone)]
pub(super) enum Global {
    /// torch._utils._rebuild_tensor and _rebuild_tensor_v2
    Tensor,
    /// torch._utils._rebuild_parameter
    Parameter,
    OrderedDict,
    Storage(DType),
    /// A class of TorchScript.
    Module,
    /// A name that stands for nothing here.
    Inert,
}

#[derive(Debug, Clone)]
pub(super) enum Object {
    Nothing,
    Bool(bool),
    Int(i64),
    /// An integer beyond 64 bits, or bytes.
    Bytes(Vec<u8>),
    Text(String),
    Tuple(Vec<Id>),
    List(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    /// A TorchScript module's attributes.
    Module(Vec<(Id, Id)>),
    Global(Global),
    Storage(StorageRef),
    Tensor(TensorRef),
    /// Something whose value does not matter: a float, a library's object.
    Inert,
}

/// The object of one pickle.
pub(super) struct Pickle {
    pub objects: Vec<Object>,
    pub root: Id,
}

impl Pickle {
    fn get(&self, id: Id) -> &Object {
        &self.objects[id as usize]
    }

    pub(super) fn is_long(&self, little_endian: &[u8]) -> bool {
        matches!(self.get(self.root), Object::Bytes(b) if b == little_endian)
    }

    /// The strings of a list.
    pub(super) fn strings(&self) -> Vec<String> {
        let Object::List(items) = self.get(self.root) else {
            return Vec::new();
        };
        items
            .iter()
            .filter_map(|id| self.text(*id).map(str::to_string))
            .collect()
    }

    /// The truth value of `key` in a dict.
    pub(super) fn flag(&self, key: &str) -> Option<bool> {
        let Object::Dict(items) = self.get(self.root) else {
            return None;
        };
        let (_, value) = items.iter().find(|(k, _)| self.text(*k) == Some(key))?;
        match self.get(*value) {
            Object::Bool(b) => Some(*b),
            _ => None,
        }
    }

    /// Bytes an element of every storage.
    pub(super) fn storage_widths(&self) -> BTreeMap<String, usize> {
        self.objects
            .iter()
            .filter_map(|object| match object {
                Object::Storage(s) => Some((s.key.clone(), s.dtype.size_in_bytes())),
                _ => None,
            })
            .collect()
    }

    fn text(&self, id: Id) -> Option<&str> {
        match self.get(id) {
            Object::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The named tensors of the state dict, wherever it lies; of a TorchScript module those of its parts, by path.
    pub(super) fn state_dict(&mut self) -> Outcome<Vec<(String, TensorRef)>> {
        if let Object::Module(_) = self.get(self.root) {
            return Ok(self.module_tensors());
        }
        let Some(found) = self.find(self.root, 0, &mut HashSet::new()) else {
            return refuse(
                "it holds no named tensors",
                "expected a state_dict, or a checkpoint that holds one under `state_dict`, `model` or the like",
            );
        };
        let Object::Dict(items) = self.get(found) else {
            return broken("has no dict where it was");
        };
        let mut named = Vec::new();
        for (key, value) in items {
            if let (Some(name), Object::Tensor(tensor)) = (self.text(*key), self.get(*value)) {
                named.push((name.to_string(), tensor.clone()));
            }
        }
        Ok(named)
    }

    /// The tensors of the root module and its parts, `part.part.name`. Each part is looked at once.
    fn module_tensors(&self) -> Vec<(String, TensorRef)> {
        let (mut named, mut seen) = (Vec::new(), HashSet::new());
        let mut waiting = vec![(String::new(), self.root)];
        while let Some((prefix, id)) = waiting.pop() {
            let Object::Module(items) = self.get(id) else {
                continue;
            };
            if !seen.insert(id) {
                continue;
            }
            for (key, value) in items {
                let Some(name) = self.text(*key).map(|name| format!("{prefix}{name}")) else {
                    continue;
                };
                match self.get(*value) {
                    Object::Tensor(tensor) => named.push((name, tensor.clone())),
                    Object::Module(_) => waiting.push((format!("{name}."), *value)),
                    _ => {}
                }
            }
        }
        named
    }

    /// The dict of tensors at `id` or below. Each dict is looked at once.
    fn find(&self, id: Id, depth: usize, seen: &mut HashSet<Id>) -> Option<Id> {
        let Object::Dict(items) = self.get(id) else {
            return None;
        };
        if depth > 3 || !seen.insert(id) {
            return None;
        }
        let wrapped = WRAPPERS.iter().find_map(|wrapper| {
            let (_, value) = items.iter().find(|(k, _)| self.text(*k) == Some(wrapper))?;
            self.find(*value, depth + 1, seen)
        });
        if wrapped.is_some() {
            return wrapped;
        }
        let named = |(k, v): &(Id, Id)| {
            self.text(*k).is_some() && matches!(self.get(*v), Object::Tensor(_))
        };
        if items.iter().any(named) {
            return Some(id);
        }
        let below: Vec<Id> = items
            .iter()
            .filter_map(|(_, value)| self.find(*value, depth + 1, seen))
            .collect();
        match below[..] {
            [one] => Some(one),
            _ => None,
        }
    }
}
