//! What GPU operations share: kernels, launches, buffers and typed views of one device and stream.
//!
//! Kernels and their launchers lie with their operations (`src/ops/<op>`); the build script
//! compiles them, and the program carries them. Everything runs on candle's stream of the device,
//! in order.
//!
//! CUDA's libraries are opened when one of their functions is first called ([`libraries`],
//! [`driver`]): the same program runs where they are missing.

mod buffer;
pub mod check_nccl;
pub mod compare;
mod contents;
pub mod driver;
pub mod folders;
mod graph;
pub mod libraries;
pub mod nccl;
pub mod operands;
mod tensor;
mod tensor_map;
mod trampolines;
mod upload;
mod view;

use std::any::{Any, TypeId};
use std::collections::{BTreeSet, HashMap};
use std::ffi::c_void;
use std::sync::{Arc, Mutex};

use candle_core::cuda_backend::DeviceId;
use candle_core::cuda_backend::cudarc::driver::sys::{self, CUfunction_attribute};
use candle_core::cuda_backend::cudarc::driver::{CudaFunction, CudaModule, CudaStream};
use candle_core::cuda_backend::cudarc::nvrtc::Ptx;
use candle_core::{CudaDevice, Result, bail};

pub use buffer::Buffer;
pub use graph::Graph;
pub use tensor_map::TensorMap;
pub use upload::Upload;
pub use view::{Element, Output, View, ViewMut};

/// Shared memory a block gets without asking for more.
const DEFAULT_SHARED: u32 = 48 * 1024;

/// One fat binary for each kernel file, by name; the build script lists them.
static FAT_BINARIES: &[(&str, &[u8])] = include!(concat!(env!("OUT_DIR"), "/fat_binaries.rs"));

/// One launch: `launch!(gpu, op, kernel, grid, threads, shared; arguments…)`; `launch!(early gpu,
/// …)` of a kernel that waits for the one before it. An `unsafe` operation: the arguments are the
/// kernel's in type and order, and each view reaches as far as the kernel goes.
macro_rules! launch {
    (early $gpu:expr, $($rest:tt)*) => { $crate::ops::cuda::launch!(@ true, $gpu, $($rest)*) };
    (@ $early:literal, $gpu:expr, $op:literal, $kernel:expr, $grid:expr, $threads:expr, $shared:expr; $($arg:expr),* $(,)?) => {{
        let function = $gpu.kernel($op, $kernel, $shared)?;
        let mut launch = $gpu.launch(&function);
        if $early {
            launch.early();
        }
        $(launch.value($arg);)*
        launch
            .run($grid, $threads, $shared)
            .map_err(|e| e.context(format!("kernel {}/{}", $op, $kernel)))
    }};
    ($gpu:expr, $($rest:tt)*) => { $crate::ops::cuda::launch!(@ false, $gpu, $($rest)*) };
}
pub(crate) use launch;

/// A device with the kernels loaded on it.
pub struct Gpu {
    device: CudaDevice,
    stream: Arc<CudaStream>,
    kernels: Arc<Kernels>,
    kept: Kept,
    capability: (i32, i32),
    hopper: bool,
    /// Whether a kernel that waits by itself may begin while the one before it ends.
    early: bool,
    multiprocessors: u32,
}

/// A value of each type that an operation keeps for a device.
type Kept = Mutex<HashMap<TypeId, Arc<dyn Any + Send + Sync>>>;

/// A kernel, and the bytes of dynamic shared memory that are allowed to it.
type Allowed = (CudaFunction, u32);

/// What was loaded so far.
#[derive(Default)]
struct Kernels {
    modules: Mutex<HashMap<&'static str, Arc<CudaModule>>>,
    functions: Mutex<HashMap<(&'static str, String), Allowed>>,
}

impl Gpu {
    /// Errors: the driver refuses the device.
    pub fn new(device: &CudaDevice) -> Result<Self> {
        use candle_core::cuda_backend::cudarc::driver::sys::CUdevice_attribute as Attribute;
        let stream = device.cuda_stream();
        keep_memory(&stream)?;
        let attribute = |a| {
            stream
                .context()
                .attribute(a)
                .map_err(candle_core::Error::wrap)
        };
        let capability = (
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        );
        Ok(Self {
            kept: Kept::default(),
            capability,
            hopper: capability == (9, 0)
                && fat_binary("attention_sm90").is_some_and(|b| !b.is_empty()),
            early: true,
            multiprocessors: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)? as u32,
            device: device.clone(),
            stream,
            kernels: Arc::default(),
        })
    }

    /// A view of this device that reports `multiprocessors` SMs and, if `general`, disables
    /// architecture-specific kernels: the checks use it to reach every code path.
    pub fn taken_for(&self, general: bool, multiprocessors: u32) -> Self {
        Self {
            device: self.device.clone(),
            stream: self.stream.clone(),
            kernels: self.kernels.clone(),
            kept: Kept::default(),
            capability: self.capability,
            hopper: self.hopper && !general,
            early: self.early,
            multiprocessors,
        }
    }

    /// The same device, on which no kernel begins before the last one has ended.
    pub fn in_order(&self) -> Self {
        Self {
            early: false,
            ..self.taken_for(false, self.multiprocessors)
        }
    }

    /// The one of a device that operations on tensors share, made at its first use and never
    /// dropped.
    pub fn of(device: &CudaDevice) -> Result<Arc<Self>> {
        static SHARED: Mutex<Vec<(DeviceId, Arc<Gpu>)>> = Mutex::new(Vec::new());
        let mut shared = SHARED
            .lock()
            .expect("no thread panics while it holds this lock");
        if let Some((_, gpu)) = shared.iter().find(|(id, _)| *id == device.id()) {
            return Ok(gpu.clone());
        }
        let gpu = Arc::new(Self::new(device)?);
        shared.push((device.id(), gpu.clone()));
        Ok(gpu)
    }

    pub fn device(&self) -> &CudaDevice {
        &self.device
    }

    pub fn stream(&self) -> &Arc<CudaStream> {
        &self.stream
    }

    /// What an operation keeps for this device, one value of its type, made at the first call.
    pub fn kept<T: Any + Send + Sync>(
        &self,
        make: impl FnOnce(&Self) -> Result<T>,
    ) -> Result<Arc<T>> {
        let mut kept = self
            .kept
            .lock()
            .expect("no thread panics while it holds this lock");
        let known = kept.get(&TypeId::of::<T>()).cloned();
        if let Some(Ok(value)) = known.map(Arc::downcast) {
            return Ok(value);
        }
        let value = Arc::new(make(self)?);
        kept.insert(TypeId::of::<T>(), value.clone());
        Ok(value)
    }

    /// Whether the GPU runs the kernels for compute capability 9.0a, and they are in this binary.
    pub fn is_hopper(&self) -> bool {
        self.hopper
    }

    pub fn multiprocessors(&self) -> u32 {
        self.multiprocessors
    }

    /// The GPU's name, compute capability and memory.
    pub fn description(&self) -> Result<String> {
        let context = self.stream.context();
        let name = context.name().map_err(candle_core::Error::wrap)?;
        let bytes = context.total_mem().map_err(candle_core::Error::wrap)?;
        let (major, minor) = self.capability;
        let gib = bytes as f64 / f64::from(1 << 30);
        Ok(format!(
            "{name}, compute capability {major}.{minor}, {gib:.0} GiB"
        ))
    }

    /// Peak device memory of this process's buffers and tensors, in bytes; without the driver's
    /// own.
    pub fn peak_memory(&self) -> Result<u64> {
        let mut bytes = 0u64;
        // SAFETY: the attribute is a u64. Everything is allocated from the device's pool of this
        // process.
        unsafe {
            sys::cuMemPoolGetAttribute(
                pool(&self.stream)?,
                sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_USED_MEM_HIGH,
                (&raw mut bytes).cast(),
            )
        }
        .result()
        .map_err(candle_core::Error::wrap)?;
        Ok(bytes)
    }

    /// Waits until the GPU has finished all work of the stream.
    pub fn synchronize(&self) -> Result<()> {
        self.stream.synchronize().map_err(candle_core::Error::wrap)
    }

    /// The kernel `name` of operation `op`, with `shared` bytes of dynamic shared memory allowed to
    /// it.
    ///
    /// Errors: no such kernel; more shared memory than the GPU has.
    pub fn kernel(&self, op: &'static str, name: &str, shared: u32) -> Result<CudaFunction> {
        let key = (op, name.to_string());
        let mut functions = self
            .kernels
            .functions
            .lock()
            .expect("no thread panics while it holds this lock");
        let (function, allowed) = match functions.get(&key) {
            Some(known) => known.clone(),
            None => {
                let function = self
                    .module(op)?
                    .load_function(name)
                    .map_err(|e| candle_core::Error::Msg(format!("kernel {op}/{name}: {e}")))?;
                (function, DEFAULT_SHARED)
            }
        };
        if shared > allowed {
            function
                .set_attribute(
                    CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
                    shared as i32,
                )
                .map_err(|e| {
                    candle_core::Error::Msg(format!(
                        "kernel {op}/{name}, {shared} bytes of shared memory: {e}"
                    ))
                })?;
        }
        functions.insert(key, (function.clone(), shared.max(allowed)));
        Ok(function)
    }

    fn module(&self, op: &'static str) -> Result<Arc<CudaModule>> {
        let mut modules = self
            .kernels
            .modules
            .lock()
            .expect("no thread panics while it holds this lock");
        if let Some(module) = modules.get(op) {
            return Ok(module.clone());
        }
        let Some(binary) = fat_binary(op) else {
            bail!("no kernels of operation `{op}` are in this binary");
        };
        let module = self
            .stream
            .context()
            .load_module(Ptx::from_binary(binary.to_vec()))
            .map_err(|e| candle_core::Error::Msg(format!("kernels of `{op}`: {e}")))?;
        modules.insert(op, module.clone());
        Ok(module)
    }

    /// Kernels in this binary for this GPU that nothing has asked for yet, as `operation/kernel`.
    pub fn unused_kernels(&self) -> Result<BTreeSet<String>> {
        let functions = self
            .kernels
            .functions
            .lock()
            .expect("no thread panics while it holds this lock");
        let mut unused = BTreeSet::new();
        for &(op, binary) in FAT_BINARIES {
            if binary.is_empty() || (op.ends_with("_sm90") && !self.hopper) {
                continue;
            }
            for name in contents::kernels(&self.stream, binary)? {
                if !functions.contains_key(&(op, name.clone())) {
                    unused.insert(format!("{op}/{name}"));
                }
            }
        }
        Ok(unused)
    }

    /// Starts building a launch of `function` on this device's stream.
    pub fn launch<'a>(&'a self, function: &'a CudaFunction) -> Launch<'a> {
        Launch {
            gpu: self,
            function,
            values: Vec::new(),
            structure: Vec::new(),
            early: false,
        }
    }
}

/// The device's pool, which buffers and tensors are allocated from.
fn pool(stream: &CudaStream) -> Result<sys::CUmemoryPool> {
    let mut pool = std::ptr::null_mut();
    // SAFETY: the device is the stream's.
    unsafe { sys::cuDeviceGetMemPool(&mut pool, stream.context().cu_device()) }
        .result()
        .map_err(candle_core::Error::wrap)?;
    Ok(pool)
}

/// Has the pool keep what is freed for the next allocation: by default the driver takes it back at
/// every wait.
fn keep_memory(stream: &CudaStream) -> Result<()> {
    let mut threshold = u64::MAX;
    // SAFETY: the attribute is a u64.
    unsafe {
        sys::cuMemPoolSetAttribute(
            pool(stream)?,
            sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD,
            (&raw mut threshold).cast(),
        )
    }
    .result()
    .map_err(candle_core::Error::wrap)
}

/// Grid of a grid-stride loop over `count` elements, `each` per block and turn.
pub fn grid_of(count: usize, each: usize) -> (u32, u32, u32) {
    const MOST: usize = 132 * 16;
    (count.div_ceil(each).clamp(1, MOST) as u32, 1, 1)
}

/// A block for every line of the maps, and as many beside it as its work needs.
pub fn lines(images: usize, lines: usize, columns: usize, vectors: usize) -> (u32, u32, u32) {
    let across = (columns * vectors).div_ceil(256);
    ((images * lines) as u32, across as u32, 1)
}

fn fat_binary(op: &str) -> Option<&'static [u8]> {
    FAT_BINARIES
        .iter()
        .find(|(name, _)| *name == op)
        .map(|(_, binary)| *binary)
}

/// The arguments of one launch, in the kernel's order, each by value.
pub struct Launch<'a> {
    gpu: &'a Gpu,
    function: &'a CudaFunction,
    values: Vec<Value>,
    structure: Vec<u64>,
    early: bool,
}

/// An argument: at most eight bytes, first byte first, or a tensor map.
pub enum Value {
    Word(u64),
    Map(TensorMap),
}

/// What a kernel takes by value.
pub trait Argument {
    fn value(self) -> Value;
}

impl Argument for TensorMap {
    fn value(self) -> Value {
        Value::Map(self)
    }
}

macro_rules! arguments {
    ($($type:ty),*) => {$(
        impl Argument for $type {
            fn value(self) -> Value {
                let mut word = [0u8; 8];
                let bytes = self.to_ne_bytes();
                word[..bytes.len()].copy_from_slice(&bytes);
                Value::Word(u64::from_ne_bytes(word))
            }
        }
    )*};
}
arguments!(u64, i64, i32, u32, f32, f64);

impl Launch<'_> {
    pub fn value(&mut self, value: impl Argument) {
        self.values.push(value.value());
    }

    /// The first argument, a structure laid out as in C without padding.
    pub fn structure<T: Copy>(&mut self, value: &T) {
        let words = size_of::<T>() / size_of::<u64>();
        assert_eq!(words * size_of::<u64>(), size_of::<T>());
        self.structure = vec![0; words];
        // SAFETY: as many bytes as the words have, none of them padding.
        unsafe {
            std::ptr::copy_nonoverlapping(
                (&raw const *value).cast::<u8>(),
                self.structure.as_mut_ptr().cast::<u8>(),
                size_of::<T>(),
            );
        }
    }

    /// Enables programmatic dependent launch on sm_90: the kernel may begin while the one before it
    /// ends, and waits for that itself (launch.cuh).
    pub fn early(&mut self) {
        self.early = self.gpu.hopper && self.gpu.early;
    }

    /// Launches `grid` blocks of `threads` with `shared` bytes of dynamic shared memory.
    ///
    /// # Safety
    /// The arguments are those of the kernel in type and order, and every address reaches as far as
    /// the kernel goes; an early kernel is one that waits.
    pub unsafe fn run(self, grid: (u32, u32, u32), threads: u32, shared: u32) -> Result<()> {
        let stream = &self.gpu.stream;
        // The driver copies as many bytes from an argument's address as the kernel's parameter has.
        let structure = self
            .structure
            .first()
            .map(|first| (&raw const *first).cast::<c_void>());
        let values = self.values.iter().map(|value| match value {
            Value::Word(word) => (&raw const *word).cast(),
            Value::Map(map) => (&raw const *map).cast(),
        });
        let mut arguments: Vec<*mut c_void> = structure
            .into_iter()
            .chain(values)
            .map(<*const c_void>::cast_mut)
            .collect();
        let mut early = sys::CUlaunchAttribute {
            id: sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
            pad: [0; 4],
            value: sys::CUlaunchAttributeValue {
                programmaticStreamSerializationAllowed: 1,
            },
        };
        let config = sys::CUlaunchConfig {
            gridDimX: grid.0,
            gridDimY: grid.1,
            gridDimZ: grid.2,
            blockDimX: threads,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: shared,
            hStream: stream.cu_stream(),
            attrs: &raw mut early,
            numAttrs: self.early.into(),
        };
        stream
            .context()
            .bind_to_thread()
            .map_err(candle_core::Error::wrap)?;
        // SAFETY: the configuration and the arguments outlive the call, which copies them; the rest
        // is the caller's promise.
        unsafe {
            sys::cuLaunchKernelEx(
                &config,
                self.function.cu_function(),
                arguments.as_mut_ptr(),
                std::ptr::null_mut(),
            )
        }
        .result()
        .map_err(|e| {
            candle_core::Error::Msg(format!(
                "a kernel of {grid:?} blocks, {threads} threads and {shared} bytes of shared memory: {e}"
            ))
        })
    }
}
