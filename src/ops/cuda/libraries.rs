//! CUDA's libraries on this machine, opened where they are found.
//!
//! Looked for in this order: where the system's loader looks (`LD_LIBRARY_PATH` and the system's
//! folders), then in [`folders`]: Python's packages and toolkits. The version that this program was
//! built with is looked for everywhere before another.

use std::ffi::{CStr, CString, OsStr, c_int, c_void};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use candle_core::cuda_backend::cudarc::driver::sys::CUDA_VERSION;

use super::folders;

/// One of CUDA's libraries.
pub struct Library {
    /// `cublas` of `libcublas.so.13`.
    pub name: &'static str,
    /// The versions that will do, the best first.
    versions: &'static [&'static str],
    /// A function that it surely has, and by which it gives its version (but for the driver).
    probe: &'static CStr,
    /// Whether nothing can be computed without it.
    pub needed: bool,
}

/// The toolkit's libraries keep their interfaces from one major version to the next; the kernels in
/// this program ask for the driver alone.
const TOOLKIT: &[&str] = match CUDA_VERSION / 1000 {
    11 => &["11", "12"],
    12 => &["12", "13"],
    _ => &["13", "12"],
};

/// Those that a library needs itself come before it.
static LIBRARIES: [Library; 5] = [
    Library {
        name: "cuda",
        versions: &["1"],
        probe: c"cuInit",
        needed: true,
    },
    Library {
        name: "cublasLt",
        versions: TOOLKIT,
        probe: c"cublasLtGetProperty",
        needed: true,
    },
    Library {
        name: "cublas",
        versions: TOOLKIT,
        probe: c"cublasGetProperty",
        needed: true,
    },
    Library {
        name: "curand",
        versions: &["10"],
        probe: c"curandGetProperty",
        needed: true,
    },
    Library {
        name: "nvrtc",
        versions: TOOLKIT,
        probe: c"nvrtcVersion",
        needed: false,
    },
];

/// Only several processes on GPUs need it.
static NCCL: Library = Library {
    name: "nccl",
    versions: &["2"],
    probe: c"ncclGetVersion",
    needed: false,
};

impl Library {
    /// `libcublas.so.13`, the best version's file first.
    pub fn files(&self) -> impl Iterator<Item = String> {
        self.versions
            .iter()
            .map(|version| format!("lib{}.so.{version}", self.name))
    }
}

/// Where a driver may lie that the loader does not know: WSL, NVIDIA's containers, NixOS.
const DRIVER_FOLDERS: [&str; 3] = [
    "/usr/lib/wsl/lib",
    "/usr/local/nvidia/lib64",
    "/run/opengl-driver/lib",
];

/// A library and its file, or what the loader said.
pub struct Found {
    pub library: &'static Library,
    pub place: std::result::Result<Opened, String>,
}

/// A loaded library, never unloaded.
pub struct Opened {
    handle: *mut c_void,
    pub path: PathBuf,
}

// SAFETY: the handle is only read, and the loader's functions may be called by any thread.
unsafe impl Send for Opened {}
// SAFETY: as above.
unsafe impl Sync for Opened {}

impl Opened {
    /// Errors: the loader's words.
    fn open(file: &Path) -> std::result::Result<Self, String> {
        let name = CString::new(file.as_os_str().as_bytes()).map_err(|e| e.to_string())?;
        // SAFETY: loads NVIDIA's library, whose constructors are written for that.
        let handle = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
        if handle.is_null() {
            // SAFETY: dlerror gives null or a string that lasts until this thread's next call.
            let said = unsafe { libc::dlerror().as_ref().map(|text| CStr::from_ptr(text)) };
            return Err(
                said.map_or_else(|| "no reason given".into(), |s| s.to_string_lossy().into())
            );
        }
        Ok(Self {
            handle,
            path: file.to_path_buf(),
        })
    }

    pub fn function(&self, name: &CStr) -> Option<*mut c_void> {
        // SAFETY: an open library's handle and a name.
        let address = unsafe { libc::dlsym(self.handle, name.as_ptr()) };
        (!address.is_null()).then_some(address)
    }

    /// The file that the loader chose for a library without a folder in its name.
    fn locate(&mut self, probe: &CStr) {
        let Some(address) = self.function(probe) else {
            return;
        };
        let mut info = std::mem::MaybeUninit::<libc::Dl_info>::zeroed();
        // SAFETY: dladdr fills `info` and gives 0 where it cannot; its name is a string that lasts
        // with the library.
        unsafe {
            if libc::dladdr(address, info.as_mut_ptr()) != 0
                && let Some(name) = info.assume_init().dli_fname.as_ref()
            {
                self.path = Path::new(OsStr::from_bytes(CStr::from_ptr(name).to_bytes())).into();
            }
        }
    }
}

impl Found {
    /// The version of a library that gives it as one number.
    pub fn number(&self) -> Option<c_int> {
        let function = self.place.as_ref().ok()?.function(self.library.probe)?;
        // SAFETY: ncclGetVersion's signature.
        let get: extern "C" fn(*mut c_int) -> c_int = unsafe { std::mem::transmute(function) };
        let mut number = 0;
        (get(&mut number) == 0).then_some(number)
    }

    /// `13.0.2`, as the library says it; the driver's version is not the library's.
    pub fn version(&self) -> Option<String> {
        let probe = self.library.probe;
        let function = self.place.as_ref().ok()?.function(probe)?;
        match self.library.name {
            "cuda" => None,
            "nccl" => Some(super::nccl::Version(self.number()?).to_string()),
            "nvrtc" => {
                // SAFETY: nvrtcVersion's signature.
                let get: extern "C" fn(*mut c_int, *mut c_int) -> c_int =
                    unsafe { std::mem::transmute(function) };
                let (mut major, mut minor) = (0, 0);
                (get(&mut major, &mut minor) == 0).then(|| format!("{major}.{minor}"))
            }
            _ => {
                // SAFETY: the signature of every library's GetProperty.
                let get: extern "C" fn(c_int, *mut c_int) -> c_int =
                    unsafe { std::mem::transmute(function) };
                let mut parts = [0; 3];
                for (which, part) in (0..).zip(&mut parts) {
                    if get(which, part) != 0 {
                        return None;
                    }
                }
                Some(parts.map(|part| part.to_string()).join("."))
            }
        }
    }
}

/// NCCL, looked for at the first call, and by no process that is alone.
pub fn nccl() -> &'static Found {
    static FOUND: OnceLock<Found> = OnceLock::new();
    FOUND.get_or_init(|| Found {
        library: &NCCL,
        place: look_for(&NCCL, &folders::existing()),
    })
}

/// Every other library, looked for once.
pub fn found() -> &'static [Found] {
    static FOUND: OnceLock<Vec<Found>> = OnceLock::new();
    FOUND.get_or_init(|| {
        let (drivers, folders) = (DRIVER_FOLDERS.map(PathBuf::from), folders::existing());
        LIBRARIES
            .iter()
            .map(|library| Found {
                library,
                place: match library.name {
                    "cuda" => look_for(library, &drivers),
                    _ => look_for(library, &folders),
                },
            })
            .collect()
    })
}

fn look_for(library: &Library, folders: &[PathBuf]) -> std::result::Result<Opened, String> {
    let mut said = Vec::new();
    for file in library.files() {
        match Opened::open(Path::new(&file)) {
            Ok(mut opened) => {
                opened.locate(library.probe);
                return Ok(opened);
            }
            Err(e) => said.push(e),
        }
        for path in folders.iter().map(|folder| folder.join(&file)) {
            if path.exists() {
                match Opened::open(&path) {
                    Ok(opened) => return Ok(opened),
                    Err(e) => said.push(e),
                }
            }
        }
    }
    Err(said.join("; "))
}
