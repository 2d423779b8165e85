//! What a fat binary holds.

use std::ffi::{CStr, c_char};
use std::ptr::{null, null_mut};

use candle_core::Result;
use candle_core::cuda_backend::cudarc::driver::sys::{
    CUfunction, CUmodule, CUresult, cuFuncGetName,
};
use candle_core::cuda_backend::cudarc::driver::{CudaStream, result};

// Newer than cudarc's list of the driver's functions.
unsafe extern "C" {
    fn cuModuleGetFunctionCount(count: *mut u32, module: CUmodule) -> CUresult;
    fn cuModuleEnumerateFunctions(
        functions: *mut CUfunction,
        count: u32,
        module: CUmodule,
    ) -> CUresult;
}

/// The names of its kernels, as this card's driver sees them.
pub fn kernels(stream: &CudaStream, binary: &[u8]) -> Result<Vec<String>> {
    let failed = candle_core::Error::wrap;
    stream.context().bind_to_thread().map_err(failed)?;
    let binary = binary.to_vec(); // aligned, which what the program carries need not be
    // SAFETY: a fat binary that the build made; what is asked of the module is asked before it is
    // unloaded, and the names are copied.
    unsafe {
        let module = result::module::load_data(binary.as_ptr().cast()).map_err(failed)?;
        let names = names(module);
        result::module::unload(module).map_err(failed)?;
        names
    }
}

/// # Safety
/// `module` is loaded.
unsafe fn names(module: CUmodule) -> Result<Vec<String>> {
    let failed = candle_core::Error::wrap;
    let mut count = 0;
    // SAFETY: the caller's promise; the list has room for `count` functions.
    let functions = unsafe {
        cuModuleGetFunctionCount(&mut count, module)
            .result()
            .map_err(failed)?;
        let mut functions: Vec<CUfunction> = vec![null_mut(); count as usize];
        cuModuleEnumerateFunctions(functions.as_mut_ptr(), count, module)
            .result()
            .map_err(failed)?;
        functions
    };
    functions
        .into_iter()
        .map(|function| {
            let mut name: *const c_char = null();
            // SAFETY: a function of the module; its name is a C string that lives as long as the
            // module.
            unsafe {
                cuFuncGetName(&mut name, function)
                    .result()
                    .map_err(failed)?;
                Ok(CStr::from_ptr(name).to_string_lossy().into_owned())
            }
        })
        .collect()
}
