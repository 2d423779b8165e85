//! Between candle's tensors on a device and plain device addresses.

use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::CudaDType;
use candle_core::cuda_backend::cudarc::driver::{CudaSlice, DevicePtr, DeviceRepr};
use candle_core::op::BackpropOp;
use candle_core::{CudaDevice, CudaStorage, Result, Shape, Storage, Tensor, bail};

/// Where the elements of a contiguous tensor begin.
///
/// Errors: another type, not contiguous, not on a GPU.
pub fn address<T: CudaDType + DeviceRepr>(x: &Tensor) -> Result<u64> {
    let (storage, layout) = x.storage_and_layout();
    let Storage::Cuda(cuda) = &*storage else {
        bail!("a tensor of {:?} is not on the GPU", x.shape());
    };
    if !layout.is_contiguous() {
        bail!("a tensor of {:?} is not contiguous", x.shape());
    }
    let stream = cuda.device().cuda_stream();
    let (pointer, _guard) = cuda.as_cuda_slice::<T>()?.device_ptr(&stream);
    Ok(pointer + (layout.start_offset() * size_of::<T>()) as u64)
}

/// A tensor whose elements a kernel is to write, all of them, and its address.
pub fn fresh<T: CudaDType + DeviceRepr>(
    device: &CudaDevice,
    shape: impl Into<Shape>,
) -> Result<(Tensor, u64)> {
    let shape = shape.into();
    // SAFETY: the caller has every element written before anything reads it, in the stream's order.
    let slice = unsafe { device.alloc::<T>(shape.elem_count())? };
    let tensor = of_slice(slice, shape, device);
    let at = address::<T>(&tensor)?;
    Ok((tensor, at))
}

/// A tensor of memory that is already filled, or will be in the stream's order.
pub(super) fn of_slice<T: CudaDType + DeviceRepr>(
    slice: CudaSlice<T>,
    shape: Shape,
    device: &CudaDevice,
) -> Tensor {
    let storage = Storage::Cuda(CudaStorage::wrap_cuda_slice(slice, device.clone()));
    Tensor::from_storage(storage, shape, BackpropOp::none(), false)
}
