//! `starts.jsonl` in a run's folder: a line for each start of it, with when, after which step, by
//! which command and on what machine. For `rdpm report`; nothing else reads it.

use std::ffi::OsString;
use std::fs::File;
use std::io::Write;
use std::time::SystemTime;

use candle_core::Device;
use serde_json::json;

use crate::error::{Context, Result};
use crate::store::run::{RunFolder, unix_seconds};
use crate::telemetry::shell;
use crate::world::World;

/// Appends the line of this process's start.
pub fn append(folder: &RunFolder, step: u64, world: &World, device: &Device) -> Result<()> {
    append_of(folder, step, world, device, std::env::args_os().skip(1))
}

/// What of an argument is not UTF-8 is U+FFFD in the line.
fn append_of(
    folder: &RunFolder,
    step: u64,
    world: &World,
    device: &Device,
    arguments: impl Iterator<Item = OsString>,
) -> Result<()> {
    let arguments = arguments.map(|argument| shell::word(&argument.to_string_lossy()));
    let line = json!({
        "time": unix_seconds(SystemTime::now()) as u64,
        "step": step,
        "version": env!("CARGO_PKG_VERSION"),
        "device": name_of(device),
        "threads": rayon::current_num_threads(),
        "processes": world.size(),
        "command": format!("rdpm {}", arguments.collect::<Vec<_>>().join(" ")),
    });
    let path = folder.starts();
    let file = File::options().create(true).append(true).open(&path);
    file.and_then(|mut file| file.write_all(format!("{line}\n").as_bytes()))
        .with_context(|| format!("cannot write {}", path.display()))
}

fn name_of(device: &Device) -> String {
    #[cfg(feature = "cuda")]
    if let Device::Cuda(cuda) = device
        && let Ok(gpu) = crate::ops::cuda::Gpu::of(cuda)
        && let Ok(name) = gpu.description()
    {
        return name;
    }
    match device {
        Device::Cpu => cpu(),
        _ => "GPU".to_string(),
    }
}

/// The processor's name, as Linux tells it.
fn cpu() -> String {
    let told = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let mut lines = told.lines().filter_map(|line| line.split_once(':'));
    let name = lines.find(|(key, _)| key.trim() == "model name");
    let name = name.map_or("", |(_, name)| name.trim());
    match name.is_empty() {
        true => format!("CPU ({})", std::env::consts::ARCH),
        false => name.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_start_has_a_line() -> Result<()> {
        let root = tempfile::tempdir()?;
        let folder = RunFolder::of_another(root.path().to_path_buf());
        for step in [0, 7] {
            append(&folder, step, &World::alone(), &Device::Cpu)?;
        }
        let text = std::fs::read_to_string(folder.starts())?;
        let lines: Vec<serde_json::Value> = text
            .lines()
            .map(serde_json::from_str)
            .collect::<std::result::Result<_, _>>()?;
        assert_eq!((lines.len(), &lines[1]["step"]), (2, &json!(7)));
        assert!(
            lines[0]["device"]
                .as_str()
                .is_some_and(|name| !name.is_empty())
        );
        Ok(())
    }

    #[test]
    fn a_command_that_is_not_utf_8_is_recorded() -> Result<()> {
        use std::os::unix::ffi::OsStringExt;
        let root = tempfile::tempdir()?;
        let folder = RunFolder::of_another(root.path().to_path_buf());
        let arguments = [
            b"train-vae".to_vec(),
            b"--out".to_vec(),
            b"runs/\xff 1".to_vec(),
        ];
        let arguments = arguments.into_iter().map(OsString::from_vec);
        append_of(&folder, 0, &World::alone(), &Device::Cpu, arguments)?;
        let line: serde_json::Value = serde_json::from_slice(&std::fs::read(folder.starts())?)?;
        assert_eq!(line["command"], "rdpm train-vae --out 'runs/\u{fffd} 1'");
        Ok(())
    }
}
