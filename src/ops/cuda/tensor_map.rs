//! Maps of bf16 matrices for Hopper's copy engine (TMA), which a kernel takes by value (tensor_copy.cuh).

use candle_core::cuda_backend::cudarc::driver::sys;
use candle_core::{Result, bail};

/// The driver's map: where a matrix lies, and the box of it that one copy moves.
#[derive(Debug, Clone, Copy)]
#[repr(transparent)]
pub struct TensorMap(sys::CUtensorMap);

impl TensorMap {
    /// Boxes of 64 columns, in shared memory as swizzled rows of 128 bytes. Sizes with the columns last; nothing between the rows.
    ///
    /// Errors: sizes or an address that the driver refuses: both are multiples of 16 bytes.
    pub fn swizzled<const N: usize>(
        address: u64,
        sizes: [usize; N],
        boxes: [usize; N],
    ) -> Result<Self> {
        use sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B;
        Self::new(address, sizes, boxes, CU_TENSOR_MAP_SWIZZLE_128B)
    }

    /// Boxes whose rows lie one after the other in shared memory.
    ///
    /// Errors: as above.
    pub fn plain<const N: usize>(
        address: u64,
        sizes: [usize; N],
        boxes: [usize; N],
    ) -> Result<Self> {
        use sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_NONE;
        Self::new(address, sizes, boxes, CU_TENSOR_MAP_SWIZZLE_NONE)
    }

    fn new<const N: usize>(
        address: u64,
        sizes: [usize; N],
        boxes: [usize; N],
        swizzle: sys::CUtensorMapSwizzle,
    ) -> Result<Self> {
        // The driver counts from the innermost dimension, and strides in bytes, without the innermost.
        let mut lengths = sizes.map(|size| size as u64);
        let mut parts = boxes.map(|size| size as u32);
        lengths.reverse();
        parts.reverse();
        let mut strides = [2; N];
        for i in 0..N {
            strides[i] = lengths[i] * if i == 0 { 2 } else { strides[i - 1] };
        }
        let mut map = sys::CUtensorMap { opaque: [0; 16] };
        // SAFETY: every array has as many elements as the driver reads; the address is kept, not followed.
        let status = unsafe {
            sys::cuTensorMapEncodeTiled(
                &mut map,
                sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
                N as u32,
                address as *mut _,
                lengths.as_ptr(),
                strides.as_ptr(),
                parts.as_ptr(),
                [1u32; N].as_ptr(),
                sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
                swizzle,
                sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
            )
        };
        match status {
            sys::CUresult::CUDA_SUCCESS => Ok(Self(map)),
            _ => {
                bail!("the driver has no tensor map of {sizes:?} in boxes of {boxes:?}: {status:?}")
            }
        }
    }
}
