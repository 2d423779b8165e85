//! Device memory of one element type, addressed by plain pointers.

use std::marker::PhantomData;
use std::sync::Arc;

use candle_core::Result;
use candle_core::cuda_backend::cudarc::driver::{
    CudaSlice, CudaStream, DevicePtr, DeviceRepr, ValidAsZeroBits,
};

use super::Gpu;

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
