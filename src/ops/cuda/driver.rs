//! Whether this machine can compute with CUDA: its driver, its GPUs, the libraries; and what to do
//! where it cannot.

use std::ffi::c_int;

use candle_core::cuda_backend::cudarc::driver::{result, sys};

use super::folders;
use super::libraries::{self, Found};
use crate::error::{Error, Result, hinted};
use crate::gpu_error;

/// CUDA's version as its headers write it: 13000 is 13.0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(u32);

impl Version {
    pub fn major(self) -> u32 {
        self.0 / 1000
    }
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.0 / 1000, self.0 % 1000 / 10)
    }
}

/// The toolkit that this program was built with, and the least that a driver must support.
pub const BUILT_WITH: Version = Version(sys::CUDA_VERSION);

/// The newest CUDA that the driver supports; none without a driver.
pub fn version() -> Option<Version> {
    let mut version: c_int = 0;
    // SAFETY: writes one number.
    let status = unsafe { sys::cuDriverGetVersion(&mut version) };
    (status == sys::CUresult::CUDA_SUCCESS).then_some(Version(version as u32))
}

/// The driver's own version, `580.95.05`, where the kernel module shows it.
pub fn release() -> Option<String> {
    let text = std::fs::read_to_string("/sys/module/nvidia/version").ok()?;
    Some(text.trim().to_string())
}

/// GPUs that the driver shows to this process; none without a driver.
///
/// Errors: a driver that does not start.
pub fn gpus() -> Result<usize> {
    if version().is_none() {
        return Ok(0);
    }
    match result::init().and_then(|()| result::device::get_count()) {
        Ok(count) => Ok(count as usize),
        Err(e) if e.0 == sys::CUresult::CUDA_ERROR_NO_DEVICE => Ok(0),
        Err(e) => Err(hinted(
            format!("NVIDIA's driver does not start: {e}"),
            "`nvidia-smi` says what is wrong with it; --device cpu computes without a GPU",
        )),
    }
}

/// The names of the first `count` GPUs.
pub fn names(count: usize) -> Vec<String> {
    let name = |i| result::device::get(i).and_then(result::device::get_name);
    (0..count as c_int)
        .map(|i| name(i).unwrap_or_else(|e| format!("without a name ({e})")))
        .collect()
}

/// Errors: no driver, one too old for this program, no GPU, or a library that is missing.
pub fn ready() -> Result<()> {
    let found = libraries::found();
    if let Some(error) = found
        .iter()
        .filter(|f| f.library.name == "cuda")
        .find_map(missing)
    {
        return Err(error);
    }
    version().map_or(Ok(()), new_enough)?;
    if gpus()? == 0 {
        return Err(no_gpu());
    }
    found
        .iter()
        .filter(|f| f.library.needed)
        .find_map(missing)
        .map_or(Ok(()), Err)
}

/// Errors: a driver that supports only an older CUDA than this program's.
fn new_enough(driver: Version) -> Result<()> {
    match driver < BUILT_WITH {
        true => Err(hinted(
            format!(
                "NVIDIA's driver supports CUDA {driver} at most, and this program needs {BUILT_WITH}"
            ),
            "install a newer driver, or build rdpm with a toolkit as old as the driver; --device cpu computes \
             without a GPU",
        )),
        false => Ok(()),
    }
}

fn no_gpu() -> Error {
    hinted(
        "NVIDIA's driver shows no GPU",
        "`nvidia-smi -L` lists the GPUs; CUDA_VISIBLE_DEVICES may hide them, and a container must be started with \
         them (`docker run --gpus all`); --device cpu computes without one",
    )
}

/// Errors: a GPU that is older than the kernels. A number without a GPU passes: opening it fails.
pub fn serves(number: usize) -> Result<()> {
    use sys::CUdevice_attribute as Attribute;
    let (major, minor) = (
        Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR,
        Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR,
    );
    let Ok(device) = result::device::get(number as c_int) else {
        return Ok(());
    };
    // SAFETY: the driver has just given the device.
    let attribute = |which| unsafe { result::device::get_attribute(device, which) };
    match (attribute(major), attribute(minor)) {
        (Ok(major), Ok(minor)) => {
            let name = result::device::get_name(device).unwrap_or_else(|_| format!("GPU {number}"));
            gpu_error::check_capability(&name, (major, minor))
        }
        _ => Ok(()),
    }
}

/// What is wrong and what to do, where a library was not found.
pub fn missing(found: &Found) -> Option<crate::error::Error> {
    let said = found.place.as_ref().err()?;
    let name = found.library.name;
    if name == "cuda" {
        return Some(hinted(
            format!("no NVIDIA driver: {said}"),
            "install NVIDIA's driver, until `nvidia-smi` shows the GPU; a container must be started with it \
             (`docker run --gpus all`); --device cpu computes without one",
        ));
    }
    let places = match folders::existing().len() {
        0 => "and there is no folder of NVIDIA's Python packages or of a toolkit".to_string(),
        count => format!("nor in the {count} folders that `rdpm doctor` lists"),
    };
    Some(hinted(
        format!("lib{name} was not found by the system's loader, {places} ({said})"),
        install(),
    ))
}

/// Where a user gets the toolkit's libraries.
pub fn install() -> String {
    let (major, of_12) = match BUILT_WITH.major() {
        12 => (12, "-cu12"),
        major => (major, ""),
    };
    format!(
        "`pip install nvidia-cublas{of_12} nvidia-curand{of_12} nvidia-cuda-runtime{of_12}` in an active virtual \
         environment (a PyTorch for CUDA {major} has them already), or NVIDIA's CUDA toolkit {major}; if they lie \
         elsewhere, name their folder in LD_LIBRARY_PATH; --device cpu computes without them"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::report;

    #[test]
    fn an_older_driver_is_refused_with_both_versions() {
        let older = Version(BUILT_WITH.0 - 1000);
        let (text, _) = report(&new_enough(older).unwrap_err());
        for part in [&older.to_string(), &BUILT_WITH.to_string()] {
            assert!(text.contains(part.as_str()), "{text}");
        }
        assert!(text.contains("install a newer driver"), "{text}");
        for newer in [BUILT_WITH, Version(BUILT_WITH.0 + 10)] {
            assert!(new_enough(newer).is_ok());
        }
    }
}
