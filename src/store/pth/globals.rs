//! The names that a pickle may refer to.
//!
//! None of them is ever run. A name stands for one of the few things that are built here (tensors,
//! storages, dicts, bytes), for a tensor that is not read, or for an inert object. The list is that
//! of PyTorch's own `weights_only` loader, plus the plain objects that training checkpoints also
//! hold (NumPy's arrays and scalars, Lightning's, argparse's, paths).

use safetensors::Dtype;

use super::objects::{Elements, Global, Outcome, Unread, refuse};

const CALLS: &str =
    "weights need no code; if you trust the file, open it in PyTorch and save its state_dict alone";

const GATHER: &str = "gather it before saving: tensor.full_tensor(), or get_model_state_dict with \
                      StateDictOptions(full_state_dict=True)";

/// Libraries whose objects appear beside the state dict in training checkpoints.
const INERT_LIBRARIES: [&str; 15] = [
    "pytorch_lightning",
    "lightning",
    "lightning_fabric",
    "lightning_utilities",
    "omegaconf",
    "argparse",
    "pathlib",
    "datetime",
    "typing",
    "decimal",
    "fractions",
    "easydict",
    "yacs",
    "ml_collections",
    "addict",
];

/// The meaning of a global; refused unless weights or checkpoints use it.
pub(super) fn global(module: &str, name: &str) -> Outcome<Global> {
    // Protocols up to 2 use Python 2's module names.
    let module = match module {
        "__builtin__" => "builtins",
        module => module,
    };
    known(module, name).map_or_else(|| refused(module, name), Ok)
}

fn known(module: &str, name: &str) -> Option<Global> {
    let root = module.split('.').next().unwrap_or_default();
    Some(match (module, name) {
        ("torch._utils", "_rebuild_tensor" | "_rebuild_tensor_v2") => Global::Tensor,
        ("torch._utils", "_rebuild_tensor_v3") => Global::TypedTensor,
        ("torch._utils", "_rebuild_parameter" | "_rebuild_parameter_with_state") => Global::First,
        ("torch._utils", "_rebuild_device_tensor_from_cpu_tensor") => Global::First,
        ("torch.nn.parameter", "Parameter" | "Buffer") => Global::First,
        ("torch._tensor", "_rebuild_from_type_v2") => Global::FromType,
        ("torch" | "torch._utils", name) if memory_format(name) => Global::Inert,
        ("torch._utils", name) => Global::Unread(match name {
            "_rebuild_sparse_tensor" => Unread::SPARSE,
            "_rebuild_qtensor" => Unread::QUANTIZED,
            "_rebuild_meta_tensor_no_storage" => Unread::META,
            "_rebuild_nested_tensor" => Unread::NESTED,
            "_rebuild_wrapper_subclass" => Unread::SUBCLASS,
            "_rebuild_device_tensor_from_numpy" => Unread::FROM_NUMPY,
            _ => return None,
        }),
        ("torch.serialization", "_get_layout") => Global::Inert,
        ("torch.storage", "TypedStorage") => Global::Inert,
        ("torch.storage", "UntypedStorage") => Global::Storage(Elements::BYTES),
        ("torch", "Size") => Global::Size,
        ("torch", "device") => Global::Inert,
        ("torch.torch_version", "TorchVersion") => Global::Inert,
        ("torch" | "torch.cuda" | "torch.sparse" | "torch.cuda.sparse", name) => torch(name)?,
        ("collections", "OrderedDict" | "defaultdict" | "Counter") => Global::Dict,
        ("collections", "deque") => Global::List,
        ("_codecs", "encode") | ("builtins", "bytes" | "bytearray") => Global::Bytes,
        ("builtins", "set" | "frozenset" | "list" | "tuple") => Global::List,
        ("builtins", "dict") => Global::Dict,
        ("builtins", "int" | "float" | "bool" | "complex" | "str" | "object") => Global::Inert,
        ("builtins", "range" | "xrange" | "slice") => Global::Inert,
        ("types", "SimpleNamespace") => Global::Inert,
        // Lists of numbers among a TorchScript module's attributes.
        ("torch.jit._pickle", _) => Global::Inert,
        _ if root == "__torch__" => Global::Module,
        _ if INERT_LIBRARIES.contains(&root) => Global::Inert,
        _ if root == "numpy" && of_numpy(module, name) => Global::Inert,
        _ => return None,
    })
}

/// Storages, dtypes, tensor classes, and what a quantized tensor refers to.
fn torch(name: &str) -> Option<Global> {
    if let Some(elements) = name.strip_suffix("Storage") {
        return Elements::of_storage(elements).map(Global::Storage);
    }
    if name.ends_with("Tensor") {
        return Some(Global::TensorClass);
    }
    if let Some(dtype) = dtype(name) {
        return Some(Global::Dtype(dtype));
    }
    let scheme = name.starts_with("per_tensor_") || name.starts_with("per_channel_");
    scheme.then_some(Global::Inert)
}

/// torch.contiguous_format and the like, whose names contain their module.
fn memory_format(name: &str) -> bool {
    matches!(
        name.trim_start_matches("torch."),
        "contiguous_format" | "preserve_format" | "channels_last" | "channels_last_3d"
    )
}

/// torch.float32 and the like.
fn dtype(name: &str) -> Option<Elements> {
    let known = match name {
        "bool" => Dtype::BOOL,
        "uint8" => Dtype::U8,
        "int8" => Dtype::I8,
        "int16" | "short" => Dtype::I16,
        "uint16" => Dtype::U16,
        "int32" | "int" => Dtype::I32,
        "uint32" => Dtype::U32,
        "int64" | "long" => Dtype::I64,
        "uint64" => Dtype::U64,
        "float16" | "half" => Dtype::F16,
        "bfloat16" => Dtype::BF16,
        "float32" | "float" => Dtype::F32,
        "float64" | "double" => Dtype::F64,
        "float8_e4m3fn" => Dtype::F8_E4M3,
        "float8_e5m2" => Dtype::F8_E5M2,
        _ => {
            // Rarer dtypes may appear in checkpoints as values; tensors of these types are not
            // read.
            let kinds = [
                "float", "bfloat", "complex", "int", "uint", "qint", "quint", "bits",
            ];
            let of_kind = |kind: &&str| {
                let rest = name.strip_prefix(*kind).unwrap_or_default();
                rest.starts_with(|c: char| c.is_ascii_digit())
            };
            let known = kinds.iter().any(of_kind) || matches!(name, "cfloat" | "cdouble");
            return known.then(|| Elements::unread(name));
        }
    };
    Some(Elements::Read(known))
}

/// Arrays, scalars, their types, and states of random generators.
fn of_numpy(module: &str, name: &str) -> bool {
    match module {
        "numpy" => {
            matches!(name, "ndarray" | "dtype" | "generic" | "number")
                || [
                    "bool",
                    "str",
                    "bytes",
                    "void",
                    "object",
                    "datetime",
                    "timedelta",
                    "int",
                    "uint",
                    "float",
                    "complex",
                    "longlong",
                    "ulonglong",
                    "longdouble",
                    "half",
                    "single",
                    "double",
                    "string",
                    "unicode",
                    "record",
                    "recarray",
                ]
                .iter()
                .any(|kind| {
                    let rest = name.strip_prefix(kind).unwrap_or("-");
                    rest.chars().all(|c| c.is_ascii_digit() || c == '_')
                })
        }
        "numpy.core.multiarray" | "numpy._core.multiarray" => {
            matches!(name, "scalar" | "_reconstruct")
        }
        "numpy.core.numeric" | "numpy._core.numeric" => name == "_frombuffer",
        "numpy.dtypes" => name.ends_with("DType"),
        "numpy.ma.core" => matches!(name, "_mareconstruct" | "MaskedArray"),
        "numpy.random" => name == "RandomState",
        "numpy.random._pickle" => name.ends_with("_ctor"),
        _ => {
            // The bit generators: numpy.random._mt19937.MT19937.
            module
                .strip_prefix("numpy.random._")
                .is_some_and(|part| part == name.to_ascii_lowercase() && part != "pickle")
        }
    }
}

fn refused(module: &str, name: &str) -> Outcome<Global> {
    if module == "torch.distributed" || module.starts_with("torch.distributed.") {
        return refuse(
            format!(
                "refused: it holds a distributed tensor (`{module}.{name}`), a part of one that other processes hold"
            ),
            GATHER,
        );
    }
    refuse(
        format!("refused: its pickle asks for `{module}.{name}`"),
        CALLS,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_could_run_is_refused_whatever_module_it_hides_in() {
        for (module, name) in [
            ("posix", "system"),
            ("builtins", "eval"),
            ("__builtin__", "getattr"),
            ("numpy.testing._private.utils", "runstring"),
            ("numpy", "load"),
            ("numpy", "fromfile"),
            ("numpy.core.multiarray", "fromfile"),
            ("torch", "load"),
            ("torch.storage", "_load_from_bytes"),
            ("torch._utils", "_import_dotted_name"),
            ("collections", "namedtuple"),
            ("types", "FunctionType"),
            ("_codecs", "decode"),
        ] {
            let refusal = global(module, name).expect_err("it must be refused");
            assert!(refusal.what.contains(name), "{}", refusal.what);
        }
    }

    #[test]
    fn every_plain_name_of_pytorchs_safe_loader_is_known() {
        // torch 2.11: sorted(torch._weights_only_unpickler._get_allowed_globals()).
        let names = include_str!("../../../tests/data/weights/allowed-globals.txt");
        let lines: Vec<&str> = names.lines().collect();
        assert!(lines.len() > 100, "{} names", lines.len());
        for line in lines {
            let (module, name) = line.rsplit_once('.').expect("module.name");
            if let Err(refusal) = global(module, name) {
                panic!("{line}: {}", refusal.what);
            }
        }
    }
}
