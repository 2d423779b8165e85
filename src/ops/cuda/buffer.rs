//! Device memory of one element type, addressed by plain pointers.

use std::marker::PhantomData;
use std::sync::Arc;

use candle_core::cuda_backend::cudarc::driver::{
    CudaSlice, CudaStream, DevicePtr, DeviceRepr, ValidAsZeroBits, result,
};
use candle_core::{Result, Shape, Tensor};

use super::Gpu;
use super::tensor::of_slice;

/// `len` elements on the device, freed in the stream's order.
pub struct Buffer<T> {
    slice: CudaSlice<T>,
    stream: Arc<CudaStream>,
    pointer: u64,
    element: PhantomData<T>,
}

impl<T: DeviceRepr + ValidAsZeroBits> Buffer<T> {
    /// Zeros.
    pub fn zeros(gpu: &Gpu, len: usize) -> Result<Self> {
        let stream = gpu.stream().clone();
        let slice = stream
            .alloc_zeros::<T>(len.max(1))
            .map_err(candle_core::Error::wrap)?;
        let pointer = slice.device_ptr(&stream).0;
        Ok(Self {
            slice,
            stream,
            pointer,
            element: PhantomData,
        })
    }

    pub fn from_host(gpu: &Gpu, values: &[T]) -> Result<Self> {
        let mut buffer = Self::zeros(gpu, values.len())?;
        buffer.write(values)?;
        Ok(buffer)
    }

    pub fn len(&self) -> usize {
        self.slice.len()
    }

    pub fn is_empty(&self) -> bool {
        self.slice.is_empty()
    }

    /// Address of element 0.
    pub fn address(&self) -> u64 {
        self.pointer
    }

    /// Address of element `i`.
    pub fn at(&self, i: usize) -> u64 {
        assert!(i <= self.len(), "element {i} of a buffer of {}", self.len());
        self.pointer + (i * size_of::<T>()) as u64
    }

    /// Sets the first elements from the host.
    pub fn write(&mut self, values: &[T]) -> Result<()> {
        let mut part = self.slice.slice_mut(..values.len());
        self.stream
            .memcpy_htod(values, &mut part)
            .map_err(candle_core::Error::wrap)
    }

    /// Takes another buffer's elements, of the same number, on the card.
    pub fn copy_from(&self, from: &Self) -> Result<()> {
        assert_eq!(self.len(), from.len());
        let bytes = self.len() * size_of::<T>();
        // SAFETY: both reach that far, and the work stays in the stream's order.
        unsafe {
            result::memcpy_dtod_async(self.pointer, from.pointer, bytes, self.stream.cu_stream())
        }
        .map_err(candle_core::Error::wrap)
    }

    /// All elements; waits for the stream.
    pub fn read(&self) -> Result<Vec<T>>
    where
        T: Clone + Default,
    {
        let mut out = vec![T::default(); self.len()];
        self.stream
            .memcpy_dtoh(&self.slice, &mut out)
            .and_then(|()| self.stream.synchronize())
            .map_err(candle_core::Error::wrap)?;
        Ok(out)
    }

    pub fn slice(&self) -> &CudaSlice<T> {
        &self.slice
    }
}

impl Buffer<f32> {
    /// A copy of the elements from `from` on, as a tensor on this device.
    pub fn tensor(&self, gpu: &Gpu, from: usize, shape: impl Into<Shape>) -> Result<Tensor> {
        let (shape, device) = (shape.into(), gpu.device());
        let count = shape.elem_count();
        // SAFETY: the copy below writes every element.
        let mut out = unsafe { device.alloc::<f32>(count)? };
        self.stream
            .memcpy_dtod(&self.slice.slice(from..from + count), &mut out)
            .map_err(candle_core::Error::wrap)?;
        Ok(of_slice(out, shape, device))
    }
}
