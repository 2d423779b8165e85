//! `--device`: cpu, cuda or cuda:N, and what to do where it cannot be had.

use std::fmt;
use std::str::FromStr;

use candle_core::Device;

use crate::error::{Result, hinted};

/// The value of --device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceChoice {
    Cpu,
    Cuda(usize),
}

/// A binary that was built for CUDA computes there unless it is told otherwise.
impl Default for DeviceChoice {
    fn default() -> Self {
        if cfg!(feature = "cuda") {
            DeviceChoice::Cuda(0)
        } else {
            DeviceChoice::Cpu
        }
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DeviceChoice::Cpu => f.write_str("cpu"),
            DeviceChoice::Cuda(0) => f.write_str("cuda"),
            DeviceChoice::Cuda(n) => write!(f, "cuda:{n}"),
        }
    }
}

impl FromStr for DeviceChoice {
    type Err = String;

    fn from_str(s: &str) -> std::result::Result<Self, String> {
        match s {
            "cpu" => return Ok(DeviceChoice::Cpu),
            "cuda" => return Ok(DeviceChoice::Cuda(0)),
            _ => {}
        }
        s.strip_prefix("cuda:")
            .and_then(|n| n.parse().ok())
            .map(DeviceChoice::Cuda)
            .ok_or_else(|| "expected cpu, cuda or cuda:N, as in cuda:1".into())
    }
}

impl DeviceChoice {
    /// Errors: this binary has no CUDA in it, or this machine has no such GPU or no driver.
    pub fn open(self) -> Result<Device> {
        match self {
            DeviceChoice::Cpu => Ok(Device::Cpu),
            DeviceChoice::Cuda(_) if !cfg!(feature = "cuda") => Err(hinted(
                format!("--device {self}: this binary was built without CUDA"),
                "build it with `cargo build --release --features cuda`; \
                 scripts/cuda-toolkit.sh makes the toolkit where there is none",
            )),
            DeviceChoice::Cuda(n) => Device::new_cuda(n).map_err(|e| {
                let cause = e.to_string();
                let cause = cause.lines().next().unwrap_or("no reason given");
                hinted(
                    format!("--device {self}: GPU {n} cannot be opened ({cause})"),
                    "`nvidia-smi -L` lists the GPUs this machine's driver sees: without it there is no \
                     NVIDIA driver, without a line for this number no such GPU (CUDA_VISIBLE_DEVICES \
                     may hide it); --device cpu computes without one",
                )
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::report;

    #[test]
    fn a_device_is_read_and_written_alike() {
        for text in ["cpu", "cuda", "cuda:3"] {
            assert_eq!(
                text.parse::<DeviceChoice>().map(|d| d.to_string()),
                Ok(text.into())
            );
        }
        for text in ["gpu", "cuda:", "cuda:-1", "CPU", ""] {
            assert!(text.parse::<DeviceChoice>().is_err(), "{text}");
        }
    }

    #[test]
    #[cfg(not(feature = "cuda"))]
    fn cuda_without_the_feature_says_how_to_build_it() {
        let (text, code) = report(&DeviceChoice::Cuda(1).open().unwrap_err());
        assert!(
            text.contains("cuda:1: this binary was built without CUDA"),
            "{text}"
        );
        assert!(
            text.contains("cargo build --release --features cuda"),
            "{text}"
        );
        assert_eq!(code, 1);
    }
}
