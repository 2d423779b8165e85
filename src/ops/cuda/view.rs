//! Elements on the device as kernels take them: where they begin, of which type, and how many.
//!
//! A [`View`] is read, a [`ViewMut`] written; both borrow what owns the memory, which is freed in
//! the stream's order, so that it may be dropped as soon as the launch is made. An [`Output`] is
//! memory that one kernel writes whole.

use std::marker::PhantomData;

use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::CudaDType;
use candle_core::cuda_backend::cudarc::driver::{CudaSlice, DevicePtr, DevicePtrMut, DeviceRepr};
use candle_core::{CudaDevice, CudaStorage, Layout, Result, Shape, Storage, Tensor, Var, bail};
use half::{bf16, f16};

use super::tensor::of_slice;
use super::{Argument, Value};

/// An element type of the kernels, and how their names end in it.
pub trait Element: CudaDType + DeviceRepr {
    const NAME: &'static str;
}

macro_rules! elements {
    ($($type:ty: $name:literal),*) => {$(
        impl Element for $type {
            const NAME: &'static str = $name;
        }
    )*};
}
elements!(f32: "f32", f64: "f64", bf16: "bf16", f16: "f16", u8: "u8", u32: "u32");

/// `len` elements from an address on, to be read.
pub struct View<'a, T> {
    address: u64,
    len: usize,
    elements: PhantomData<&'a [T]>,
}

impl<T> Clone for View<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for View<'_, T> {}

impl<'a, T: Element> View<'a, T> {
    /// The elements of a contiguous tensor.
    ///
    /// Errors: another type, not contiguous, not on a GPU.
    pub fn of(tensor: &'a Tensor) -> Result<Self> {
        let (storage, layout) = tensor.storage_and_layout();
        let Storage::Cuda(storage) = &*storage else {
            bail!("a tensor of {:?} is not on the GPU", tensor.shape());
        };
        let View { address, len, .. } = View::<T>::stored(storage, layout)?;
        // The tensor keeps its storage alive, which the guard only locks.
        Ok(Self {
            address,
            len,
            elements: PhantomData,
        })
    }

    /// The elements of an operation's contiguous input.
    ///
    /// Errors: another type, not contiguous.
    pub fn stored(storage: &'a CudaStorage, layout: &Layout) -> Result<Self> {
        let Some((from, to)) = layout.contiguous_offsets() else {
            bail!("a contiguous tensor is required, found {layout:?}");
        };
        let stream = storage.device().cuda_stream();
        let (address, _guard) = storage.as_cuda_slice::<T>()?.device_ptr(&stream);
        Ok(Self {
            address: address + (from * size_of::<T>()) as u64,
            len: to - from,
            elements: PhantomData,
        })
    }
}

impl<T> View<'_, T> {
    pub(super) fn new(address: u64, len: usize) -> Self {
        Self {
            address,
            len,
            elements: PhantomData,
        }
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Where a driver's call or a tensor map begins to read.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// How many channels of a map's rows a thread takes at a time: eight where rows and address
    /// allow 16 bytes, else one.
    pub fn vector(&self, channels: usize) -> usize {
        match channels.is_multiple_of(8) && self.address.is_multiple_of(16) {
            true => 8,
            false => 1,
        }
    }

    /// How many of the elements, the first ones, are read in vectors of eight: none where the
    /// address does not allow 16 bytes.
    pub fn whole(&self) -> usize {
        match self.address.is_multiple_of(16) {
            true => self.len / 8 * 8,
            false => 0,
        }
    }

    /// The first `len` elements: what a kernel reads.
    pub fn first(&self, len: usize) -> Self {
        self.part(0, len)
    }

    /// The elements from `from` on.
    pub fn tail(&self, from: usize) -> Self {
        assert!(from <= self.len, "elements {from}.. of {}", self.len);
        self.part(from, self.len - from)
    }

    /// `len` of the elements, from `from` on.
    pub fn part(&self, from: usize, len: usize) -> Self {
        assert!(
            from + len <= self.len,
            "elements {from}..{} of {}",
            from + len,
            self.len
        );
        Self {
            address: self.address + (from * size_of::<T>()) as u64,
            len,
            elements: PhantomData,
        }
    }
}

/// `len` elements from an address on, to be written.
pub struct ViewMut<'a, T> {
    address: u64,
    len: usize,
    elements: PhantomData<&'a mut [T]>,
}

impl<'a, T: Element> ViewMut<'a, T> {
    /// The elements of a variable, to be changed in place: what was made of them before keeps what
    /// it was made of, in the stream's order.
    ///
    /// Errors: another type, not contiguous, not on a GPU.
    pub fn variable(var: &'a Var) -> Result<Self> {
        let View { address, len, .. } = View::<T>::of(var.as_tensor())?;
        Ok(Self {
            address,
            len,
            elements: PhantomData,
        })
    }
}

impl<T> ViewMut<'_, T> {
    pub(super) fn new(address: u64, len: usize) -> Self {
        Self {
            address,
            len,
            elements: PhantomData,
        }
    }

    /// The first `len` elements: what a kernel writes.
    pub fn first(self, len: usize) -> Self {
        assert!(len <= self.len, "elements 0..{len} of {}", self.len);
        Self { len, ..self }
    }

    /// The elements from `from` on.
    pub fn tail(self, from: usize) -> Self {
        assert!(from <= self.len, "elements {from}.. of {}", self.len);
        Self {
            address: self.address + (from * size_of::<T>()) as u64,
            len: self.len - from,
            ..self
        }
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Where a driver's call or a tensor map begins to write.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// The same elements, borrowed for one of several launches.
    pub fn again(&mut self) -> ViewMut<'_, T> {
        ViewMut {
            address: self.address,
            len: self.len,
            elements: PhantomData,
        }
    }

    /// `len` of the elements, from `from` on.
    pub fn part(&mut self, from: usize, len: usize) -> ViewMut<'_, T> {
        assert!(
            from + len <= self.len,
            "elements {from}..{} of {}",
            from + len,
            self.len
        );
        ViewMut {
            address: self.address + (from * size_of::<T>()) as u64,
            len,
            elements: PhantomData,
        }
    }

    /// The same elements, to be read.
    pub fn read(&self) -> View<'_, T> {
        View {
            address: self.address,
            len: self.len,
            elements: PhantomData,
        }
    }
}

impl<T> Argument for View<'_, T> {
    fn value(self) -> Value {
        Value::Word(self.address)
    }
}

impl<T> Argument for ViewMut<'_, T> {
    fn value(self) -> Value {
        Value::Word(self.address)
    }
}

/// A pointer that a kernel takes for none where it is null.
impl<T> Argument for Option<View<'_, T>> {
    fn value(self) -> Value {
        Value::Word(self.map_or(0, |view| view.address))
    }
}

/// A pointer that a kernel writes nothing to where it is null.
impl<T> Argument for Option<ViewMut<'_, T>> {
    fn value(self) -> Value {
        Value::Word(self.map_or(0, |view| view.address))
    }
}

/// Memory that a kernel is to write, every element of it, before anything reads it.
pub struct Output<T> {
    slice: CudaSlice<T>,
    len: usize,
    device: CudaDevice,
}

impl<T: Element> Output<T> {
    pub fn new(device: &CudaDevice, len: usize) -> Result<Self> {
        // SAFETY: the caller has every element written before anything reads it, in the stream's
        // order.
        // The driver allocates no empty memory.
        let slice = unsafe { device.alloc::<T>(len.max(1))? };
        Ok(Self {
            slice,
            len,
            device: device.clone(),
        })
    }

    /// Every byte zero.
    pub fn zero(&mut self) -> Result<()>
    where
        T: candle_core::cuda_backend::cudarc::driver::ValidAsZeroBits,
    {
        let stream = self.device.cuda_stream();
        stream
            .memset_zeros(&mut self.slice)
            .map_err(candle_core::Error::wrap)
    }

    pub fn view_mut(&mut self) -> ViewMut<'_, T> {
        let stream = self.device.cuda_stream();
        let len = self.len;
        let (address, _guard) = self.slice.device_ptr_mut(&stream);
        ViewMut {
            address,
            len,
            elements: PhantomData,
        }
    }

    /// What a copy fills.
    pub(super) fn slice_mut(&mut self) -> &mut CudaSlice<T> {
        &mut self.slice
    }

    pub fn view(&self) -> View<'_, T> {
        let stream = self.device.cuda_stream();
        let (address, _guard) = self.slice.device_ptr(&stream);
        View {
            address,
            len: self.len,
            elements: PhantomData,
        }
    }

    /// What an operation gives back.
    pub fn storage(self) -> CudaStorage {
        CudaStorage::wrap_cuda_slice(self.slice, self.device)
    }

    /// A tensor of these elements that no graph tracks.
    pub fn tensor(self, shape: impl Into<Shape>) -> Tensor {
        let shape = shape.into();
        assert_eq!(shape.elem_count(), self.len);
        of_slice(self.slice, shape, &self.device)
    }
}
