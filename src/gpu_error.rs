//! What to do about an error of a GPU: its memory is full, it or its driver is too old for the
//! kernels, or it failed.
//!
//! CUDA's libraries name their errors, and cudarc and candle keep the names in their texts: that is
//! what is looked at, so that it works for every call that may fail, and without a GPU.

use crate::error::{Error, hint, hinted, rehinted};

/// What an error of the driver or of a library means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// No memory is left on the GPU.
    OutOfMemory,
    /// The GPU or its driver does not know the kernels' code.
    TooOld,
    /// The GPU, its memory, its link or its driver failed; all further calls of the process fail.
    Failed,
}

const NAMES: [(Cause, &[&str]); 3] = [
    (
        Cause::OutOfMemory,
        &[
            "CUDA_ERROR_OUT_OF_MEMORY",
            "CUBLAS_STATUS_ALLOC_FAILED",
            "CURAND_STATUS_ALLOCATION_FAILED",
        ],
    ),
    (
        Cause::TooOld,
        &[
            "CUDA_ERROR_NO_BINARY_FOR_GPU",
            "CUDA_ERROR_INVALID_PTX",
            "CUDA_ERROR_UNSUPPORTED_PTX_VERSION",
            "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH",
            "CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE",
            "CUBLAS_STATUS_ARCH_MISMATCH",
            "CURAND_STATUS_ARCH_MISMATCH",
        ],
    ),
    (
        Cause::Failed,
        &[
            "CUDA_ERROR_ECC_UNCORRECTABLE",
            "CUDA_ERROR_NVLINK_UNCORRECTABLE",
            "CUDA_ERROR_DEVICE_UNAVAILABLE",
            "CUDA_ERROR_DEVICES_UNAVAILABLE",
            "CUDA_ERROR_CONTAINED",
            "CUDA_ERROR_EXTERNAL_DEVICE",
            "CUDA_ERROR_HARDWARE_STACK_ERROR",
            "CUDA_ERROR_ILLEGAL_ADDRESS",
            "CUDA_ERROR_ILLEGAL_INSTRUCTION",
            "CUDA_ERROR_INVALID_ADDRESS_SPACE",
            "CUDA_ERROR_INVALID_PC",
            "CUDA_ERROR_LAUNCH_FAILED",
            "CUDA_ERROR_LAUNCH_TIMEOUT",
            "CUDA_ERROR_MISALIGNED_ADDRESS",
            "CUDA_ERROR_TENSOR_MEMORY_LEAK",
            "CUDA_ERROR_UNKNOWN",
        ],
    ),
];

/// The least compute capability that the kernels run on (build.rs compiles PTX for it).
pub const LEAST_CAPABILITY: (i32, i32) = (8, 0);

/// What an error's text says of the GPU, if anything.
pub fn cause(text: &str) -> Option<Cause> {
    let named = |names: &&[&str]| names.iter().any(|name| text.contains(name));
    let found = NAMES.iter().find(|(_, names)| named(names));
    found.map(|(cause, _)| *cause)
}

/// `error` with its remedy, if it is a GPU's and has none; `less_memory` says what needs less of
/// it, `again` how to go on after a failure.
pub fn explained(error: Error, less_memory: &str, again: &str) -> Error {
    let text = format!("{error:#}");
    let Some(cause) = cause(&text) else {
        return error;
    };
    if hint(&error).is_some_and(|hint| !hint.is_empty()) {
        return error;
    }
    match cause {
        Cause::OutOfMemory => out_of_memory(
            format!("the GPU has not enough memory: {text}"),
            less_memory,
        ),
        Cause::TooOld => rehinted(&error, too_old()),
        Cause::Failed => rehinted(
            &error,
            format!(
                "the GPU or its driver failed, and `dmesg | grep Xid` may say why; {again}; what \
                 fails at the same place again is a bug in rdpm: please report it"
            ),
        ),
    }
}

/// The error of a GPU whose memory is full.
pub fn out_of_memory(message: impl Into<String>, less_memory: &str) -> Error {
    hinted(
        message,
        format!("{less_memory}; `nvidia-smi` shows what else takes the GPU's memory"),
    )
}

/// What the kernels need.
fn too_old() -> String {
    let (major, minor) = LEAST_CAPABILITY;
    format!(
        "the kernels in this program need a GPU of compute capability {major}.{minor} or newer (Ampere, \
         2020) and a driver as new as their CUDA: `rdpm doctor` shows both; --device cpu computes \
         without a GPU"
    )
}

/// Errors: a GPU that is older than the kernels.
pub fn check_capability(name: &str, found: (i32, i32)) -> Result<(), Error> {
    match found < LEAST_CAPABILITY {
        true => Err(hinted(
            format!("{name} has compute capability {}.{}", found.0, found.1),
            too_old(),
        )),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::report;
    use anyhow::anyhow;

    const LESS: &str = "a smaller --batch-size needs less";
    const AGAIN: &str = "go on with --resume";

    fn told(error: Error) -> (String, u8) {
        report(&explained(error, LESS, AGAIN))
    }

    // The texts are as cudarc and candle put them.
    #[test]
    fn a_gpu_that_failed_has_a_remedy() {
        let error = anyhow!(
            "DriverError(CUDA_ERROR_ILLEGAL_ADDRESS, \"an illegal memory access was encountered\")"
        );
        let (text, code) = told(error.context("could not copy the loss"));
        assert!(
            text.starts_with("error: could not copy the loss: DriverError("),
            "{text}"
        );
        assert!(text.contains("Xid") && text.contains(AGAIN), "{text}");
        assert_eq!(code, 1);
    }

    #[test]
    fn a_full_memory_has_the_commands_remedy() {
        for said in [
            "DriverError(CUDA_ERROR_OUT_OF_MEMORY, \"out of memory\")",
            "CublasError(CUBLAS_STATUS_ALLOC_FAILED)",
        ] {
            let (text, code) = told(anyhow!(said).context("encoding"));
            assert_eq!(
                text,
                format!(
                    "error: the GPU has not enough memory: encoding: {said}\nhint: {LESS}; \
                     `nvidia-smi` shows what else takes the GPU's memory"
                )
            );
            assert_eq!(code, 1);
        }
    }

    #[test]
    fn a_gpu_or_driver_too_old_says_what_the_kernels_need() {
        let said = "DriverError(CUDA_ERROR_NO_BINARY_FOR_GPU, \"no kernel image is available\")";
        let (text, _) = told(anyhow!("kernels of `conv2d`: {said}"));
        assert!(
            text.contains("kernels of `conv2d`") && text.contains("8.0 or newer"),
            "{text}"
        );
        let error = check_capability("Tesla T4", (7, 5)).unwrap_err();
        let (text, code) = report(&error);
        assert!(
            text.starts_with("error: Tesla T4 has compute capability 7.5\nhint: "),
            "{text}"
        );
        assert!(text.contains("--device cpu"), "{text}");
        assert_eq!(code, 1);
        for served in [(8, 0), (8, 9), (9, 0), (12, 0)] {
            assert!(check_capability("GPU", served).is_ok(), "{served:?}");
        }
    }

    #[test]
    fn other_errors_keep_their_own() {
        for error in [
            hinted("CUDA_ERROR_UNKNOWN", "start the driver"),
            hinted("CUDA_ERROR_OUT_OF_MEMORY", "recompute more blocks"),
            anyhow!("no such file"),
        ] {
            let before = report(&error).0;
            assert_eq!(told(error).0, before);
        }
    }
}
