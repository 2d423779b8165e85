//! Maps of bf16 matrices, and of windows over maps, for Hopper's copy engine (TMA), which a kernel
//! takes by value (tensor_copy.cuh).
//!
//! A map keeps an address and does not follow it: as a raw pointer, it is safe to make, and the
//! launch that takes it is `unsafe`.

use candle_core::cuda_backend::cudarc::driver::sys;
use candle_core::{Result, bail};

/// The driver's map: where a matrix lies, and the box of it that one copy moves.
#[derive(Debug, Clone, Copy)]
#[repr(transparent)]
pub struct TensorMap(sys::CUtensorMap);

impl TensorMap {
    /// Its bytes, for a structure that holds it.
    pub fn words(self) -> [u64; 16] {
        self.0.opaque
    }

    /// Boxes of 64 columns, in shared memory as swizzled rows of 128 bytes. Sizes with the columns
    /// last; nothing between the rows.
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

    /// Boxes of 64 or 32 columns in shared memory as swizzled rows of 128 or 64 bytes. `strides` in
    /// elements, one a size; the columns lie side by side.
    ///
    /// Errors: as above.
    pub fn strided<const N: usize>(
        address: u64,
        sizes: [usize; N],
        strides: [usize; N],
        boxes: [usize; N],
    ) -> Result<Self> {
        use sys::CUtensorMapSwizzle::{CU_TENSOR_MAP_SWIZZLE_64B, CU_TENSOR_MAP_SWIZZLE_128B};
        let swizzle = match boxes[N - 1] {
            64 => CU_TENSOR_MAP_SWIZZLE_128B,
            32 => CU_TENSOR_MAP_SWIZZLE_64B,
            other => bail!("boxes of {other} columns are not swizzled"),
        };
        Self::encode(address, sizes, strides, boxes, swizzle)
    }

    /// Windows of a map [B,H,W,C] (im2col): one copy moves `positions` windows' values of 64
    /// channels under one tap, swizzled as above. The windows' first taps lie from `low` = (y, x)
    /// on, negative in the padding before the map, every `stride`-th up to and with (H - 1, W - 1)
    /// + `high`.
    ///
    /// Errors: as above.
    pub fn im2col(
        address: u64,
        sizes: [usize; 4],
        low: [i32; 2],
        high: [i32; 2],
        stride: usize,
        positions: usize,
    ) -> Result<Self> {
        let [images, height, width, channels] = sizes.map(|size| size as u64);
        let lengths = [channels, width, height, images];
        let line = channels * width * 2;
        let strides = [channels * 2, line, line * height];
        let steps = [1, stride as u32, stride as u32, 1];
        let (low, high) = ([low[1], low[0]], [high[1], high[0]]); // across first
        let mut map = sys::CUtensorMap { opaque: [0; 16] };
        // SAFETY: every array has as many elements as the driver reads; the address is kept, not
        // followed.
        let status = unsafe {
            sys::cuTensorMapEncodeIm2col(
                &mut map,
                sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
                4,
                address as *mut _,
                lengths.as_ptr(),
                strides.as_ptr(),
                low.as_ptr(),
                high.as_ptr(),
                64,
                positions as u32,
                steps.as_ptr(),
                sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
                sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
                sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
            )
        };
        match status {
            sys::CUresult::CUDA_SUCCESS => Ok(Self(map)),
            _ => bail!(
                "the driver has no map of windows of {sizes:?} from {low:?} to {high:?}, stride {stride}: {status:?}"
            ),
        }
    }

    fn new<const N: usize>(
        address: u64,
        sizes: [usize; N],
        boxes: [usize; N],
        swizzle: sys::CUtensorMapSwizzle,
    ) -> Result<Self> {
        let mut strides = [1; N];
        for i in (1..N).rev() {
            strides[i - 1] = strides[i] * sizes[i];
        }
        Self::encode(address, sizes, strides, boxes, swizzle)
    }

    fn encode<const N: usize>(
        address: u64,
        sizes: [usize; N],
        strides: [usize; N],
        boxes: [usize; N],
        swizzle: sys::CUtensorMapSwizzle,
    ) -> Result<Self> {
        // The driver counts from the innermost dimension, and strides in bytes, without the
        // innermost.
        let mut lengths = sizes.map(|size| size as u64);
        let mut parts = boxes.map(|size| size as u32);
        let mut strides = strides.map(|stride| 2 * stride as u64);
        lengths.reverse();
        parts.reverse();
        strides.reverse();
        let mut map = sys::CUtensorMap { opaque: [0; 16] };
        // SAFETY: every array has as many elements as the driver reads; the address is kept, not
        // followed.
        let status = unsafe {
            sys::cuTensorMapEncodeTiled(
                &mut map,
                sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
                N as u32,
                address as *mut _,
                lengths.as_ptr(),
                strides[1..].as_ptr(),
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
