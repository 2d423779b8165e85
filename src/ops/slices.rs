//! The f32 values of contiguous tensors on the CPU, for the fast versions.

use candle_core::{CpuStorage, DType, Layout, Result, Storage, Tensor, bail};

/// Whether the CPU version applies: f32, all on the CPU.
pub(super) fn are_f32_on_cpu(tensors: &[&Tensor]) -> bool {
    tensors
        .iter()
        .all(|t| t.device().is_cpu() && t.dtype() == DType::F32)
}

/// Whether maps of these dtypes are where an operation with a GPU version has kernels: f32 on the
/// CPU, f32 or bf16 on a GPU.
pub(super) fn have_kernels(maps: &[&Tensor]) -> bool {
    let on_gpu = |t: &Tensor| {
        cfg!(feature = "cuda")
            && t.device().is_cuda()
            && matches!(t.dtype(), DType::F32 | DType::BF16)
    };
    are_f32_on_cpu(maps) || maps.iter().all(|t| on_gpu(t))
}

/// Like [`have_kernels`], for maps combined with weights: f32, on the same device.
pub(super) fn meet_kernels(maps: &[&Tensor], weights: &[&Tensor]) -> bool {
    have_kernels(maps)
        && weights
            .iter()
            .all(|t| t.dtype() == DType::F32 && t.device().is_cuda() == maps[0].device().is_cuda())
}

/// The values of an operation's input.
pub(super) fn of<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    match layout.contiguous_offsets() {
        Some((from, to)) => Ok(&storage.as_slice::<f32>()?[from..to]),
        None => bail!("a contiguous tensor is required, found {layout:?}"),
    }
}

/// Runs `f` on the values of the tensors, which are first made contiguous.
pub fn read<const N: usize, R>(
    tensors: [&Tensor; N],
    f: impl FnOnce([&[f32]; N]) -> R,
) -> Result<R> {
    let contiguous = tensors.map(|t| t.contiguous());
    let mut locked = Vec::with_capacity(N);
    for tensor in &contiguous {
        match tensor {
            Ok(tensor) => locked.push(tensor.storage_and_layout()),
            Err(e) => bail!("{e}"),
        }
    }
    let mut values = [&[] as &[f32]; N];
    for (value, (storage, layout)) in values.iter_mut().zip(&locked) {
        *value = match &**storage {
            Storage::Cpu(storage) => of(storage, layout)?,
            _ => bail!("a tensor on the CPU is required"),
        };
    }
    Ok(f(values))
}

/// A gradient of the shape of its input, or none if the graph does not track that.
pub(super) fn gradient(input: &Tensor, values: Vec<f32>) -> Result<Option<Tensor>> {
    if !input.track_op() {
        return Ok(None);
    }
    Ok(Some(Tensor::from_vec(
        values,
        input.shape(),
        input.device(),
    )?))
}

pub(super) fn narrowed(values: Vec<f64>) -> Vec<f32> {
    values.into_iter().map(|v| v as f32).collect()
}
