//! CUDA's functions as this program links them: a jump each, to where the library turns out to lie.
//!
//! The build script lists every function that the toolkit's headers declare (build/trampolines.rs).
//! The first call of any of them has all slots filled, from the libraries that [`super::libraries`]
//! finds; a function whose library is missing returns its library's error code instead.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::sync::Once;
use std::sync::atomic::{AtomicPtr, Ordering};

use super::libraries;

/// Library and name of every trampoline, in the slots' order.
const FUNCTIONS: &[(&str, &CStr)] = &include!(concat!(env!("OUT_DIR"), "/functions.rs"));

#[cfg(target_arch = "x86_64")]
std::arch::global_asm!(
    include_str!("trampolines/x86_64.s"),
    include_str!(concat!(env!("OUT_DIR"), "/trampolines.s")),
    fill = sym first_call,
);
#[cfg(target_arch = "aarch64")]
std::arch::global_asm!(
    include_str!("trampolines/aarch64.s"),
    include_str!(concat!(env!("OUT_DIR"), "/trampolines.s")),
    fill = sym first_call,
);

unsafe extern "C" {
    #[link_name = "rdpm_cuda_slots"]
    static SLOTS: [AtomicPtr<c_void>; FUNCTIONS.len()];
}

/// A linker that reads archives in order would leave the trampolines out of a program that refers
/// to candle alone.
#[used]
static FOR_THE_LINKER: &[AtomicPtr<c_void>; FUNCTIONS.len()] =
    // SAFETY: the assembly above makes one slot a function, and their type is atomic.
    unsafe { &SLOTS };

/// Points every slot at its function, once. The assembly calls it, on any thread, and on several at
/// once.
extern "C" fn first_call() {
    static FILLED: Once = Once::new();
    FILLED.call_once(|| {
        let found = libraries::found();
        for ((library, name), slot) in FUNCTIONS.iter().zip(FOR_THE_LINKER) {
            let function = found
                .iter()
                .find(|f| f.library.name == *library)
                .and_then(|f| f.place.as_ref().ok())
                .and_then(|opened| opened.function(name));
            slot.store(
                function.unwrap_or_else(|| instead(library, name)),
                Ordering::Release,
            );
        }
    });
}

/// What stands in for a function that is not here: each library's code for "not there", or a text
/// where it gives one.
fn instead(library: &str, name: &CStr) -> *mut c_void {
    extern "C" fn text() -> *const c_char {
        c"the library is not loaded".as_ptr()
    }
    extern "C" fn driver() -> c_int {
        34 // CUDA_ERROR_STUB_LIBRARY
    }
    extern "C" fn cublas() -> c_int {
        1 // CUBLAS_STATUS_NOT_INITIALIZED
    }
    extern "C" fn curand() -> c_int {
        101 // CURAND_STATUS_NOT_INITIALIZED
    }
    extern "C" fn nvrtc() -> c_int {
        11 // NVRTC_ERROR_INTERNAL_ERROR
    }
    let name = name.to_bytes();
    let gives_text = ["GetStatusName", "GetStatusString", "nvrtcGetErrorString"]
        .iter()
        .any(|end| name.ends_with(end.as_bytes()));
    match library {
        _ if gives_text => text as *mut c_void,
        "cuda" => driver as *mut c_void,
        "curand" => curand as *mut c_void,
        "nvrtc" => nvrtc as *mut c_void,
        _ => cublas as *mut c_void,
    }
}
