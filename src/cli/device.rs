//! `--device`: auto, cpu, cuda or cuda:N, and what to do if it is not available.

use std::fmt;
use std::str::FromStr;

use candle_core::Device;

#[cfg(feature = "cuda")]
use crate::error::Context as _;
use crate::error::{Result, hinted};

/// The value of --device.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum DeviceChoice {
    /// The first GPU if this binary was built for CUDA and the driver finds one, else the CPU.
    #[default]
    Auto,
    Cpu,
    Cuda(usize),
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DeviceChoice::Auto => f.write_str("auto"),
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
            "auto" => return Ok(DeviceChoice::Auto),
            "cpu" => return Ok(DeviceChoice::Cpu),
            "cuda" => return Ok(DeviceChoice::Cuda(0)),
            _ => {}
        }
        s.strip_prefix("cuda:")
            .and_then(|n| n.parse().ok())
            .map(DeviceChoice::Cuda)
            .ok_or_else(|| "expected auto, cpu, cuda or cuda:N, as in cuda:1".into())
    }
}

impl DeviceChoice {
    /// Errors: this binary was built without CUDA, or this machine lacks the GPU, the driver or a
    /// library.
    pub fn open(self) -> Result<Device> {
        match self.resolve()? {
            DeviceChoice::Cuda(n) => cuda(n),
            _ => Ok(Device::Cpu),
        }
    }

    /// Never `Auto`.
    #[cfg(feature = "cuda")]
    pub fn resolve(self) -> Result<Self> {
        if self != DeviceChoice::Auto {
            return Ok(self);
        }
        if crate::ops::cuda::driver::gpus()? > 0 {
            return Ok(DeviceChoice::Cuda(0));
        }
        tracing::info!("no NVIDIA GPU found (see `rdpm doctor`): computing on the CPU");
        Ok(DeviceChoice::Cpu)
    }

    /// Never `Auto`.
    #[cfg(not(feature = "cuda"))]
    pub fn resolve(self) -> Result<Self> {
        Ok(match self {
            DeviceChoice::Auto => DeviceChoice::Cpu,
            other => other,
        })
    }
}

impl DeviceChoice {
    /// The choice of process number `rank` of `size` on this machine: the GPU of its number, where
    /// they see several and none was named. A launcher that gives each process a GPU of its own
    /// shows it that one alone. Never `Auto`.
    ///
    /// Errors: fewer GPUs than processes.
    #[cfg(feature = "cuda")]
    pub fn of_rank(self, rank: usize, size: usize) -> Result<Self> {
        let found = self.resolve()?;
        if found != DeviceChoice::Cuda(0) {
            return Ok(found);
        }
        match crate::ops::cuda::driver::gpus()? {
            0 | 1 => Ok(found),
            gpus if gpus >= size => Ok(DeviceChoice::Cuda(rank)),
            gpus => Err(hinted(
                format!("{size} processes on this machine, which has {gpus} GPUs"),
                "start one process for each GPU, or compute with --device cpu",
            )),
        }
    }

    /// The choice of process number `rank` of `size` on this machine. Never `Auto`.
    #[cfg(not(feature = "cuda"))]
    pub fn of_rank(self, _rank: usize, _size: usize) -> Result<Self> {
        self.resolve()
    }
}

#[cfg(feature = "cuda")]
fn cuda(number: usize) -> Result<Device> {
    use crate::ops::cuda::driver;
    let device = DeviceChoice::Cuda(number);
    driver::ready()
        .and_then(|()| driver::serves(number))
        .with_context(|| format!("--device {device}"))?;
    Device::new_cuda(number).map_err(|e| {
        let cause = e.to_string();
        let cause = cause.lines().next().unwrap_or("no reason given");
        hinted(
            format!("--device {device}: GPU {number} cannot be opened ({cause})"),
            "`nvidia-smi -L` lists the GPUs that the driver sees: without a line for this number there is no such \
             GPU (CUDA_VISIBLE_DEVICES may hide it); --device cpu computes without one",
        )
    })
}

#[cfg(not(feature = "cuda"))]
fn cuda(number: usize) -> Result<Device> {
    Err(hinted(
        format!(
            "--device {}: this binary was built without CUDA",
            DeviceChoice::Cuda(number)
        ),
        "build it with `cargo build --release --features cuda`; \
         scripts/cuda-toolkit.sh makes the toolkit where there is none",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_read_and_written_alike() {
        for text in ["auto", "cpu", "cuda", "cuda:3"] {
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
        let (text, code) = crate::error::report(&DeviceChoice::Cuda(1).open().unwrap_err());
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
