//! What to do about errors of a GPU that are not the run's own.

use crate::error::{Error, hint, rehinted};

/// CUDA's names of errors that a GPU, its memory, its link or its driver has; after each of them
/// all further calls of the process fail.
const FAULTS: [&str; 16] = [
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
];

/// `error` with the remedy for a GPU that failed, if that is what it says and it has none.
pub fn explained(error: Error) -> Error {
    let text = format!("{error:#}");
    let is_fault = FAULTS.iter().any(|name| text.contains(name));
    match is_fault && hint(&error).is_none_or(str::is_empty) {
        false => error,
        true => rehinted(
            &error,
            "the GPU or its driver failed, and `dmesg | grep Xid` may say why; go on with --resume, \
             or let `rdpm launch --nproc 1 --restarts 3` do that; what fails at the same step again is \
             a bug in rdpm: please report it",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{hinted, report};
    use anyhow::anyhow;

    #[test]
    fn a_gpu_that_failed_has_a_remedy() {
        // As cudarc and candle put it.
        let told =
            "DriverError(CUDA_ERROR_ILLEGAL_ADDRESS, \"an illegal memory access was encountered\")";
        let error = anyhow!(told).context("could not copy the loss");
        let (text, code) = report(&explained(error));
        assert!(
            text.starts_with("error: could not copy the loss: DriverError("),
            "{text}"
        );
        assert!(text.contains("Xid") && text.contains("--resume"), "{text}");
        assert_eq!(code, 1);
    }

    #[test]
    fn other_errors_keep_their_own() {
        for error in [
            anyhow!("DriverError(CUDA_ERROR_OUT_OF_MEMORY, \"out of memory\")"),
            hinted("CUDA_ERROR_UNKNOWN", "start the driver"),
            anyhow!("no such file"),
        ] {
            let before = report(&error).0;
            assert_eq!(report(&explained(error)).0, before);
        }
    }
}
