//! The objects of a pickle, and where among them the state dict is.
//!
//! Objects are in an arena and refer to each other by index, so that neither cycles nor deep
//! nesting can overflow the stack.

use std::collections::{BTreeMap, HashSet};

use safetensors::Dtype;

use crate::store::elements;

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

/// Keys under which a training checkpoint may hold its state dict. Of several the one with the most
/// tensors is taken, and of equal ones the first: the moving average, as `--init` does of a run.
const WRAPPERS: [&str; 11] = [
    "ema",
    "model_ema",
    "ema_state_dict",
    "state_dict_ema",
    "params_ema",
    "state_dict",
    "model_state_dict",
    "model",
    "params",
    "module",
    "net",
];

pub(super) type Id = u32;

/// The element type of a storage or a tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Elements {
    Read(Dtype),
    /// A type that is not read: its name, and the bytes per element if known.
    Unread(String, Option<usize>),
}

impl Elements {
    /// A storage without a type; its tensors have their own.
    pub const BYTES: Self = Elements::Read(Dtype::U8);

    pub fn unread(name: &str) -> Self {
        Elements::Unread(name.to_string(), None)
    }

    /// The type of torch.FloatStorage, given `Float`.
    pub fn of_storage(name: &str) -> Option<Self> {
        let wide = |bytes| Elements::Unread(format!("{name}Storage"), Some(bytes));
        Some(match name {
            "Bool" => Elements::Read(Dtype::BOOL),
            "Byte" => Elements::Read(Dtype::U8),
            "Char" => Elements::Read(Dtype::I8),
            "Short" => Elements::Read(Dtype::I16),
            "Int" => Elements::Read(Dtype::I32),
            "Long" => Elements::Read(Dtype::I64),
            "Half" => Elements::Read(Dtype::F16),
            "BFloat16" => Elements::Read(Dtype::BF16),
            "Float" => Elements::Read(Dtype::F32),
            "Double" => Elements::Read(Dtype::F64),
            "QUInt8" | "QInt8" | "QUInt4x2" | "QUInt2x4" => wide(1),
            "QInt32" => wide(4),
            "ComplexFloat" => wide(8),
            "ComplexDouble" => wide(16),
            _ => return None,
        })
    }

    pub fn width(&self) -> Option<usize> {
        match self {
            Elements::Read(dtype) => elements::width(*dtype),
            Elements::Unread(_, width) => *width,
        }
    }
}

/// A storage that a pickle refers to, to be read from the file.
#[derive(Debug, Clone)]
pub(super) struct StorageRef {
    pub key: String,
    pub elements: Elements,
}

/// A tensor that a pickle refers to; strides and offset count elements.
#[derive(Debug, Clone)]
pub(super) struct TensorRef {
    /// Key of its storage.
    pub key: String,
    pub elements: Elements,
    pub offset: usize,
    pub shape: Vec<usize>,
    pub strides: Vec<usize>,
}

/// A tensor that is not a plain array of numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Unread {
    pub what: &'static str,
    pub remedy: &'static str,
}

impl Unread {
    pub const SPARSE: Self = Self {
        what: "a sparse tensor",
        remedy: "save tensor.to_dense() in its place",
    };
    pub const QUANTIZED: Self = Self {
        what: "a quantized tensor",
        remedy: "save tensor.dequantize() in its place",
    };
    pub const META: Self = Self {
        what: "a tensor without data, of the device `meta`",
        remedy: "save the model after its weights are loaded",
    };
    pub const NESTED: Self = Self {
        what: "a nested tensor",
        remedy: "save its parts as separate tensors",
    };
    pub const SUBCLASS: Self = Self {
        what: "a tensor of a subclass",
        remedy: "save plain tensors in its place",
    };
    pub const FROM_NUMPY: Self = Self {
        what: "a tensor of another device, kept as a NumPy array",
        remedy: "save tensor.cpu() in its place",
    };
    pub const OLDEST: Self = Self {
        what: "a tensor in a form that PyTorch no longer writes",
        remedy: "load it in PyTorch and save it again",
    };
}

#[derive(Debug, Clone)]
pub(super) enum Global {
    /// torch._utils._rebuild_tensor and _rebuild_tensor_v2
    Tensor,
    /// torch._utils._rebuild_tensor_v3, whose storage has no type
    TypedTensor,
    /// A callable that returns its first argument, such as a parameter its tensor.
    First,
    /// torch._tensor._rebuild_from_type_v2
    FromType,
    /// torch.Tensor, torch.FloatTensor, …
    TensorClass,
    Unread(Unread),
    /// An OrderedDict, a defaultdict, a Counter.
    Dict,
    /// A container of items: a deque, a set.
    List,
    /// _codecs.encode, by which the protocols up to 2 write bytes.
    Bytes,
    /// torch.Size, of a tuple.
    Size,
    Storage(Elements),
    Dtype(Elements),
    /// A class of TorchScript.
    Module,
    /// A name that has no meaning here.
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
    Unread(Unread),
    /// An object whose value does not matter: a float, a library's object.
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

    /// The boolean value of `key` in a dict.
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

    /// Bytes per element of every storage.
    pub(super) fn storage_widths(&self) -> BTreeMap<String, usize> {
        self.objects
            .iter()
            .filter_map(|object| match object {
                Object::Storage(s) => Some((s.key.clone(), s.elements.width()?)),
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

    /// The named tensors of the state dict, wherever it is; for a TorchScript module, the tensors
    /// of its parts, by path.
    ///
    /// Errors: there is no state dict, or more than one; none of its tensors is of a kind that is
    /// read.
    pub(super) fn state_dict(&mut self) -> Outcome<StateDict> {
        if let Object::Module(_) = self.get(self.root) {
            return Ok(StateDict {
                tensors: self.module_tensors(),
                notes: Vec::new(),
            });
        }
        let mut notes = Vec::new();
        let found = match &self.find(self.root, 0, &mut HashSet::new())[..] {
            [one] => {
                if !one.others.is_empty() {
                    notes.push(format!(
                        "`{}` is taken, and `{}` is not; to take another, save it alone: \
                         torch.save(torch.load(FILE)[\"{}\"], OTHER)",
                        one.path,
                        one.others.join("`, `"),
                        one.others[0].replace('.', "\"][\"")
                    ));
                }
                one.id
            }
            [] => return refuse("it holds no named tensors", WANTED),
            several => {
                let names: Vec<String> = several.iter().map(|f| format!("`{}`", f.path)).collect();
                return refuse(
                    format!("it holds several state dicts: {}", names.join(", ")),
                    "load it in PyTorch and save the one that you want alone",
                );
            }
        };
        let Object::Dict(items) = self.get(found) else {
            return broken("has no dict where one was found");
        };
        let (mut tensors, mut unread) = (Vec::new(), Vec::new());
        for (key, value) in items {
            let Some(name) = self.text(*key) else {
                continue;
            };
            match self.get(*value) {
                Object::Tensor(tensor) => match &tensor.elements {
                    Elements::Read(_) => tensors.push((name.to_string(), tensor.clone())),
                    Elements::Unread(kind, _) => unread.push(Refusal {
                        what: format!("`{name}` has elements of type {kind}, which is not read"),
                        hint: "save it as float32, or leave it out of what you save",
                    }),
                },
                Object::Unread(kind) => unread.push(Refusal {
                    what: format!("`{name}` is {}, which is not read", kind.what),
                    hint: kind.remedy,
                }),
                _ => {}
            }
        }
        // A buffer that nobody needs may stand beside the weights.
        let count = unread.len();
        match unread.into_iter().next() {
            Some(first) if tensors.is_empty() => return Err(first),
            Some(first) if count == 1 => notes.push(format!("{}: left out", first.what)),
            Some(first) => notes.push(format!("{count} tensors are left out: {}", first.what)),
            None => {}
        }
        Ok(StateDict { tensors, notes })
    }

    /// The tensors of the root module and its parts, `part.part.name`. Each part is visited once.
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

    /// The dicts of tensors at `id` or below; only one if a wrapper's key or the tensors beside it
    /// decide. Each dict is visited once.
    fn find(&self, id: Id, depth: usize, seen: &mut HashSet<Id>) -> Vec<Found> {
        let Object::Dict(items) = self.get(id) else {
            return Vec::new();
        };
        let has = |wanted: &str| items.iter().any(|(key, _)| self.text(*key) == Some(wanted));
        let is_optimizer = has("state") && has("param_groups");
        if is_optimizer || depth > DEEPEST || !seen.insert(id) {
            return Vec::new();
        }
        let under = |name: &str, mut found: Vec<Found>| {
            for path in found.iter_mut().flat_map(Found::paths) {
                *path = match path.as_str() {
                    "" => name.to_string(),
                    path => format!("{name}.{path}"),
                };
            }
            found
        };
        let mut wrapped: Vec<Vec<Found>> = Vec::new();
        for wrapper in WRAPPERS {
            let item = items.iter().find(|(k, _)| self.text(*k) == Some(wrapper));
            let found = item.map(|(_, value)| self.find(*value, depth + 1, seen));
            let found = found.filter(|found| !found.is_empty());
            wrapped.extend(found.map(|found| under(wrapper, found)));
        }
        let size = |found: &Vec<Found>| found.iter().map(|one| one.tensors).sum::<usize>();
        // The first of those of the same size.
        let most = (0..wrapped.len()).rev().max_by_key(|i| size(&wrapped[*i]));
        if let Some(most) = most {
            let mut taken = wrapped.swap_remove(most);
            let others = wrapped.into_iter().flatten().map(|other| other.path);
            if let Some(first) = taken.first_mut() {
                first.others.extend(others);
            }
            return taken;
        }
        let named = |(k, v): &&(Id, Id)| {
            let tensor = matches!(self.get(*v), Object::Tensor(_) | Object::Unread(_));
            tensor && self.text(*k).is_some()
        };
        let tensors = items.iter().filter(named).count();
        if tensors > 0 {
            return vec![Found {
                id,
                tensors,
                path: String::new(),
                others: Vec::new(),
            }];
        }
        // An optimizer's state has numbers for keys.
        let below = |(key, value): &(Id, Id)| match self.text(*key) {
            Some(name) => under(name, self.find(*value, depth + 1, seen)),
            None => Vec::new(),
        };
        items.iter().flat_map(below).collect()
    }
}

/// The tensors of a file, and what there is to say of it.
pub(super) struct StateDict {
    pub tensors: Vec<(String, TensorRef)>,
    pub notes: Vec<String>,
}

/// A dict of tensors, and the keys that lead to it.
struct Found {
    id: Id,
    /// How many of them.
    tensors: usize,
    path: String,
    /// The keys that lead to others, which are not taken.
    others: Vec<String>,
}

impl Found {
    fn paths(&mut self) -> impl Iterator<Item = &mut String> {
        std::iter::once(&mut self.path).chain(&mut self.others)
    }
}

/// Maximum nesting depth of a state dict.
const DEEPEST: usize = 5;

const WANTED: &str = "expected a state_dict, or a checkpoint that holds one under `state_dict`, `model` or a similar key";
