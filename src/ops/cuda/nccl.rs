//! Sums over the GPUs of several processes, by NVIDIA's NCCL, in the order of this device's stream.
//!
//! The library is opened by the first process that has others to sum with; one that is alone never
//! loads it. Its functions are found by name, with the signatures of nccl.h, which have not changed
//! since 2.13. Its result codes are plain integers here: a newer library may know more of them than
//! any list.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::Duration;

use candle_core::cuda_backend::cudarc::driver::{CudaEvent, CudaStream};
use candle_core::{Device, Tensor};

use super::libraries::{self, Opened};
use super::{Buffer, Output, View};
use crate::error::{Context, Result, hinted};

/// ncclGetLastError, which says what went wrong, came with 2.13.
const LEAST: Version = Version(21300);

/// ncclInProgress: an asynchronous operation goes on.
const IN_PROGRESS: c_int = 7;

/// ncclUint32 and ncclFloat32 of ncclDataType_t.
const U32: c_int = 3;
const F32: c_int = 7;

/// ncclSum of ncclRedOp_t.
const SUM: c_int = 0;

/// Between two looks whether the other GPUs are done.
const PAUSE: Duration = Duration::from_micros(50);

const MORE: &str = "NCCL_DEBUG=WARN has NCCL say more";

/// As ncclGetVersion writes it: 22809 is 2.28.9.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub c_int);

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{}.{}.{}",
            self.0 / 10_000,
            self.0 / 100 % 100,
            self.0 % 100
        )
    }
}

/// What one process makes and all others need to meet it (ncclUniqueId).
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Id(pub [u8; 128]);

type Handle = *mut c_void;
type Stream = *mut c_void;

/// Declares [`Library`] and its functions by their names in NCCL and their signatures in nccl.h.
macro_rules! library {
    ($($field:ident = $name:literal: fn($($argument:ty),*) -> $result:ty;)*) => {
        /// The functions of NCCL that are used, and its version.
        pub struct Library {
            pub version: Version,
            $($field: unsafe extern "C" fn($($argument),*) -> $result,)*
        }

        impl Library {
            /// Errors: a function that the library does not have.
            fn of(opened: &Opened, version: Version) -> Result<Self> {
                let function = |name: &CStr| {
                    opened.function(name).with_context(|| {
                        format!("{}: it has no function {name:?}", opened.path.display())
                    })
                };
                Ok(Self {
                    version,
                    $($field: {
                        let address = function($name)?;
                        // SAFETY: the function of this name, with its signature.
                        unsafe {
                            std::mem::transmute::<
                                *mut c_void,
                                unsafe extern "C" fn($($argument),*) -> $result,
                            >(address)
                        }
                    },)*
                })
            }
        }
    };
}

library! {
    get_unique_id = c"ncclGetUniqueId": fn(*mut Id) -> c_int;
    comm_init_rank = c"ncclCommInitRank": fn(*mut Handle, c_int, Id, c_int) -> c_int;
    comm_get_async_error = c"ncclCommGetAsyncError": fn(Handle, *mut c_int) -> c_int;
    comm_abort = c"ncclCommAbort": fn(Handle) -> c_int;
    comm_destroy = c"ncclCommDestroy": fn(Handle) -> c_int;
    group_start = c"ncclGroupStart": fn() -> c_int;
    group_end = c"ncclGroupEnd": fn() -> c_int;
    all_reduce = c"ncclAllReduce":
        fn(*const c_void, *mut c_void, usize, c_int, c_int, Handle, Stream) -> c_int;
    all_gather = c"ncclAllGather":
        fn(*const c_void, *mut c_void, usize, c_int, Handle, Stream) -> c_int;
    get_error_string = c"ncclGetErrorString": fn(c_int) -> *const c_char;
    get_last_error = c"ncclGetLastError": fn(Handle) -> *const c_char;
}

/// NCCL, opened at the first call.
///
/// Errors: it is not on this machine, or too old.
pub fn library() -> Result<&'static Library> {
    static OPENED: OnceLock<Library> = OnceLock::new();
    if let Some(library) = OPENED.get() {
        return Ok(library);
    }
    let opened = open()?;
    Ok(OPENED.get_or_init(|| opened))
}

fn open() -> Result<Library> {
    let found = libraries::nccl();
    let opened = found.place.as_ref().map_err(|said| {
        hinted(
            format!("several processes on GPUs need NCCL, and libnccl.so.2 was not found ({said})"),
            install(),
        )
    })?;
    let version = found.number().map(Version);
    let version = version
        .with_context(|| format!("{}: it does not say its version", opened.path.display()))?;
    if version < LEAST {
        return Err(hinted(
            format!(
                "{}: NCCL {version}, and {LEAST} is the least that will do",
                opened.path.display()
            ),
            install(),
        ));
    }
    Library::of(opened, version)
}

/// Where a user gets NCCL.
pub fn install() -> String {
    let major = super::driver::BUILT_WITH.major();
    format!(
        "`pip install nvidia-nccl-cu{major}` in an active virtual environment (a PyTorch for CUDA {major} has it \
         already), or a folder with libnccl.so.2 in LD_LIBRARY_PATH; without it, train in one process"
    )
}

impl Library {
    /// Errors: what NCCL says of a call that failed.
    fn check(&self, what: &str, handle: Handle, code: c_int) -> Result<()> {
        if code == 0 || code == IN_PROGRESS {
            return Ok(());
        }
        // SAFETY: both give null or a string that lasts until the next error.
        let [name, more] = unsafe {
            [(self.get_error_string)(code), (self.get_last_error)(handle)]
        }
        .map(|text| match text.is_null() {
            true => String::new(),
            // SAFETY: as above.
            false => unsafe { CStr::from_ptr(text) }
                .to_string_lossy()
                .trim()
                .to_string(),
        });
        let more = match more.is_empty() {
            true => more,
            false => format!(": {more}"),
        };
        Err(hinted(
            format!("NCCL {}, {what}: {name}{more}", self.version),
            MORE,
        ))
    }

    /// Errors: NCCL finds no network to meet on.
    pub fn unique_id(&self) -> Result<Id> {
        let mut id = Id([0; 128]);
        // SAFETY: it fills the id.
        let code = unsafe { (self.get_unique_id)(&mut id) };
        self.check("the processes' meeting point", std::ptr::null_mut(), code)?;
        Ok(id)
    }
}

/// This process's place among others that sum with it, each with a GPU. All must call the same
/// methods in the same order.
pub struct Communicator {
    library: &'static Library,
    /// Null once it has ended.
    handle: Mutex<Ended>,
    stream: Arc<CudaStream>,
    size: usize,
    /// When this process's own work before the last call is done, and when that call is.
    before: CudaEvent,
    after: CudaEvent,
}

/// A communicator's handle, or null.
struct Ended(Handle);

// SAFETY: NCCL lets any thread use a communicator, one at a time, which the mutex sees to.
unsafe impl Send for Ended {}

/// Elements that are added.
#[derive(Debug, Clone, Copy)]
struct Part {
    from: u64,
    to: u64,
    len: usize,
    kind: c_int,
}

impl Communicator {
    /// Waits for all of `size` processes, of which this is `rank`, with the same `id`.
    ///
    /// Errors: what NCCL says, such as that two have the same GPU.
    pub fn new(stream: &Arc<CudaStream>, id: Id, rank: usize, size: usize) -> Result<Self> {
        let library = library()?;
        let event = || stream.record_event(None);
        stream.context().bind_to_thread()?;
        let mut handle = std::ptr::null_mut();
        // SAFETY: it writes the handle; the id is one that a process of this group made.
        let code =
            unsafe { (library.comm_init_rank)(&mut handle, size as c_int, id, rank as c_int) };
        library.check("connecting the GPUs", std::ptr::null_mut(), code)?;
        Ok(Self {
            library,
            handle: Mutex::new(Ended(handle)),
            size,
            before: event()?,
            after: event()?,
            stream: stream.clone(),
        })
    }

    fn handle(&self) -> MutexGuard<'_, Ended> {
        self.handle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets each of `floats`, and `counts`, to its sum over all processes, in one call.
    pub fn sum(&self, floats: &[&Buffer<f32>], counts: &[&Buffer<u32>]) -> Result<()> {
        let part = |address, len, kind| Part {
            from: address,
            to: address,
            len,
            kind,
        };
        let floats = floats
            .iter()
            .map(|b| part(b.view().address(), b.len(), F32));
        let counts = counts
            .iter()
            .map(|b| part(b.view().address(), b.len(), U32));
        let parts: Vec<Part> = floats.chain(counts).collect();
        // SAFETY: each buffer has as many elements, and what reads them comes later in the stream.
        unsafe { self.all_reduce(&parts) }
    }

    /// The sums of f32 `tensors` over all processes, in one call; theirs have the same shapes.
    ///
    /// Errors: a tensor of another type or not on this GPU.
    pub fn sums(&self, tensors: &[&Tensor]) -> Result<Vec<Tensor>> {
        let (mut owned, mut sums, mut parts) = (Vec::new(), Vec::new(), Vec::new());
        for tensor in tensors {
            let tensor = tensor.detach().contiguous()?;
            let (sum, len) = (
                self.output(tensor.device(), tensor.elem_count())?,
                tensor.elem_count(),
            );
            let sum = sum.tensor(tensor.shape());
            parts.push(Part {
                from: View::<f32>::of(&tensor)?.address(),
                to: View::<f32>::of(&sum)?.address(),
                len,
                kind: F32,
            });
            owned.push(tensor);
            sums.push(sum);
        }
        // SAFETY: each pair has `len` elements; memory is freed in the stream's order, after this.
        unsafe { self.all_reduce(&parts)? };
        Ok(sums)
    }

    fn output(&self, device: &Device, len: usize) -> Result<Output<f32>> {
        Ok(Output::<f32>::new(device.as_cuda_device()?, len)?)
    }

    /// # Safety
    /// Every address reaches `len` elements, until the stream has passed this call.
    unsafe fn all_reduce(&self, parts: &[Part]) -> Result<()> {
        self.call("a sum over the GPUs", |library, handle, stream| {
            let mut codes = Vec::new();
            for part in parts.iter().filter(|part| part.len > 0) {
                let (from, to) = (part.from as *const c_void, part.to as *mut c_void);
                // SAFETY: the caller's promise.
                codes.push(unsafe {
                    (library.all_reduce)(from, to, part.len, part.kind, SUM, handle, stream)
                });
            }
            codes
        })
    }

    /// `own` f32 of every process, by rank: [W, n] of this one's n elements.
    pub fn gather(&self, own: &Tensor) -> Result<Tensor> {
        let own = own.detach().flatten_all()?.contiguous()?;
        let n = own.elem_count();
        let all = self
            .output(own.device(), self.size * n)?
            .tensor((self.size, n));
        let (from, to) = (
            View::<f32>::of(&own)?.address() as *const c_void,
            View::<f32>::of(&all)?.address() as *mut c_void,
        );
        self.call("values of all GPUs", |library, handle, stream| {
            // SAFETY: n elements of this process, size·n of all.
            vec![unsafe { (library.all_gather)(from, to, n, F32, handle, stream) }]
        })?;
        Ok(all)
    }

    /// Runs `body` as one group of calls on the stream.
    fn call(
        &self,
        what: &str,
        body: impl FnOnce(&Library, Handle, Stream) -> Vec<c_int>,
    ) -> Result<()> {
        self.stream.context().bind_to_thread()?;
        let (library, ended) = (self.library, self.handle());
        let handle = ended.0;
        anyhow::ensure!(!handle.is_null(), "NCCL, {what}: the processes have parted");
        self.before.record(&self.stream)?;
        // SAFETY: a group is begun and ended.
        library.check(what, handle, unsafe { (library.group_start)() })?;
        let codes = body(library, handle, self.stream.cu_stream().cast());
        // SAFETY: as above.
        let end = unsafe { (library.group_end)() };
        for code in codes.into_iter().chain([end]) {
            library.check(what, handle, code)?;
        }
        self.after.record(&self.stream)?;
        Ok(())
    }

    /// Waits for this process's own work before the last call; what it then waits for are the
    /// others ([`Communicator::wait`]).
    pub fn wait_own(&self) -> Result<()> {
        Ok(self.before.synchronize()?)
    }

    /// Waits until the last call is done.
    ///
    /// Errors: NCCL's own, such as a connection between GPUs that broke.
    pub fn wait(&self) -> Result<()> {
        while !self.after.try_is_complete()? {
            self.check()?;
            thread::sleep(PAUSE);
        }
        Ok(())
    }

    /// Errors: a call has failed since. Does not wait, not even for a thread that is in a call.
    pub fn check(&self) -> Result<()> {
        let Ok(ended) = self.handle.try_lock() else {
            return Ok(());
        };
        if ended.0.is_null() {
            return Ok(());
        }
        let mut found = 0;
        // SAFETY: the handle is whole while the lock is held; any thread may ask.
        let code = unsafe { (self.library.comm_get_async_error)(ended.0, &mut found) };
        self.library.check("a look for errors", ended.0, code)?;
        self.library.check("between the GPUs", ended.0, found)
    }

    /// Ends it when all processes have done their work.
    pub fn finish(&self) -> Result<()> {
        let handle = std::mem::replace(&mut self.handle().0, std::ptr::null_mut());
        if handle.is_null() {
            return Ok(());
        }
        self.stream.context().bind_to_thread()?;
        // SAFETY: a whole handle, which nobody can have from now on.
        let code = unsafe { (self.library.comm_destroy)(handle) };
        self.library.check("parting", std::ptr::null_mut(), code)
    }

    /// Ends it without the others: what waits for them on this GPU ends too.
    pub fn abort(&self) {
        let handle = std::mem::replace(&mut self.handle().0, std::ptr::null_mut());
        if !handle.is_null() {
            // SAFETY: as for `finish`. What it returns no longer matters.
            unsafe { (self.library.comm_abort)(handle) };
        }
    }
}

impl std::fmt::Debug for Communicator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Communicator of {}", self.size)
    }
}

impl Drop for Communicator {
    fn drop(&mut self) {
        self.abort();
    }
}
