//! Device memory of one element type, which kernels take as views of it.

use std::marker::PhantomData;
use std::sync::Arc;

use candle_core::cuda_backend::cudarc::driver::{
    CudaSlice, CudaStream, DevicePtr, DeviceRepr, ValidAsZeroBits, result,
};
use candle_core::{Result, Shape, Tensor};

use super::tensor::of_slice;
use super::{Gpu, View, ViewMut};

/// `len` elements on the device, freed in the stream's order.
///
/// The host holds no reference to them, and all work on them runs in the stream's order: so they
/// are written through a shared borrow, as a `Cell` is ([`Buffer::view_mut`]).
pub struct Buffer<T> {
    slice: CudaSlice<T>,
    stream: Arc<CudaStream>,
    pointer: u64,
    len: usize,
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
            len,
            element: PhantomData,
        })
    }

    pub fn from_host(gpu: &Gpu, values: &[T]) -> Result<Self> {
        let mut buffer = Self::zeros(gpu, values.len())?;
        buffer.write(values)?;
        Ok(buffer)
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The elements, to be read.
    pub fn view(&self) -> View<'_, T> {
        View::new(self.pointer, self.len)
    }

    /// The elements, to be written.
    pub fn view_mut(&self) -> ViewMut<'_, T> {
        ViewMut::new(self.pointer, self.len)
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
        let mut out = vec![T::default(); self.len];
        self.stream
            .memcpy_dtoh(&self.slice.slice(..self.len), &mut out)
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
