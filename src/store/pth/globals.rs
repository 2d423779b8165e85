//! The names a pickle may ask for.

use candle_core::DType;

use super::objects::{Global, Outcome, refuse};

const CALLS: &str =
    "weights need no code; if you trust the file, open it in PyTorch and save its state_dict alone";

/// What a global stands for; refused unless weights or checkpoints have it.
pub(super) fn global(module: &str, name: &str) -> Outcome<Global> {
    let storage = match (module, name) {
        ("torch._utils", "_rebuild_tensor" | "_rebuild_tensor_v2") => return Ok(Global::Tensor),
        ("torch._utils", "_rebuild_parameter") => return Ok(Global::Parameter),
        ("collections", "OrderedDict") => return Ok(Global::OrderedDict),
        ("torch", "FloatStorage") => DType::F32,
        ("torch", "DoubleStorage") => DType::F64,
        ("torch", "HalfStorage") => DType::F16,
        ("torch", "BFloat16Storage") => DType::BF16,
        ("torch", "LongStorage") => DType::I64,
        ("torch", "IntStorage") => DType::I32,
        ("torch", "ShortStorage") => DType::I16,
        ("torch", "ByteStorage" | "BoolStorage") => DType::U8,
        // Lists of numbers among a TorchScript module's attributes.
        ("torch.jit._pickle", _) => return Ok(Global::Inert),
        ("torch", "Size" | "device") => return Ok(Global::Inert),
        _ => {
            let root = module.split('.').next().unwrap_or_default();
            // Objects of these stand beside the state dict of training checkpoints (taming-transformers').
            if root == "__torch__" {
                return Ok(Global::Module);
            }
            let inert = ["pytorch_lightning", "lightning", "omegaconf", "numpy"];
            if inert.contains(&root) {
                return Ok(Global::Inert);
            }
            return refuse(
                format!("refused: its pickle asks for `{module}.{name}`"),
                CALLS,
            );
        }
    };
    Ok(Global::Storage(storage))
}
