//! Memory on a device as candle's tensor.

use candle_core::cuda_backend::CudaDType;
use candle_core::cuda_backend::cudarc::driver::{CudaSlice, DeviceRepr};
use candle_core::op::BackpropOp;
use candle_core::{CudaDevice, CudaStorage, Shape, Storage, Tensor};

/// A tensor of memory that is already filled, or will be in the stream's order.
pub(super) fn of_slice<T: CudaDType + DeviceRepr>(
    slice: CudaSlice<T>,
    shape: Shape,
    device: &CudaDevice,
) -> Tensor {
    let storage = Storage::Cuda(CudaStorage::wrap_cuda_slice(slice, device.clone()));
    Tensor::from_storage(storage, shape, BackpropOp::none(), false)
}
