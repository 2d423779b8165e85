//! Says whether there is a model to build in, with the feature `builtin-model`.
//!
//! Compiles the CUDA kernels (`src/ops/*/kernel*.cu`) into fat binaries that are embedded in the
//! program, and prepares linking without CUDA's libraries (build/trampolines.rs). Only with the
//! feature `cuda`.
//!
//! `RDPM_CUDA_ARCHS` lists the targets, separated by spaces or commas: `80` is machine code for
//! compute capability 8.0, `80+PTX` is PTX, which a driver compiles for later GPUs. A
//! `kernel*_sm90.cu` is compiled only for `90a`.

#[path = "build/trampolines.rs"]
mod trampolines;

use std::collections::BTreeMap;
use std::env;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

/// As in src/store/builtin.rs.
const MODEL: &str = "models/tiny-imagenet-64.safetensors";

const DEFAULT_ARCHS: &str = "80 90a 80+PTX";
const TOOLKIT: &str = "set CUDA_HOME, or make a toolkit with scripts/cuda-toolkit.sh";

fn main() {
    for source in ["build.rs", "build"] {
        println!("cargo:rerun-if-changed={source}");
    }
    find_model();
    if env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return;
    }
    for name in ["RDPM_CUDA_ARCHS", "NVCC", "CUDA_HOME"] {
        println!("cargo:rerun-if-env-changed={name}");
    }
    let target = |part| env::var(format!("CARGO_CFG_TARGET_{part}")).unwrap_or_default();
    let (system, processor) = (target("OS"), target("ARCH"));
    if system != "linux" || !matches!(processor.as_str(), "x86_64" | "aarch64") {
        fail(&format!(
            "the feature cuda is for Linux on x86_64 and aarch64, not for {system} on {processor}"
        ));
    }
    let archs = env::var("RDPM_CUDA_ARCHS").unwrap_or_else(|_| DEFAULT_ARCHS.into());
    let archs: Vec<&str> = archs.split([' ', ',']).filter(|a| !a.is_empty()).collect();
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    trampolines::write(&nvcc(), &out).unwrap_or_else(|e| fail(&format!("{e}; {TOOLKIT}")));
    let kernels = kernels();
    list(&kernels, &out);
    let version = compiler_version();
    let jobs = env::var("NUM_JOBS").ok().and_then(|jobs| jobs.parse().ok());
    let waiting = Mutex::new(kernels.into_iter());
    let next = || waiting.lock().ok()?.next();
    std::thread::scope(|scope| {
        for _ in 0..jobs.unwrap_or(1) {
            scope.spawn(|| {
                while let Some(source) = next() {
                    let to = out.join(fat_binary_name(&source));
                    compile(&source, &to, &code_flags(&source, &archs), &version);
                }
            });
        }
    });
}

/// Sets `builtin_model` if the feature is on and the model is there: a published crate has none.
fn find_model() {
    println!("cargo:rustc-check-cfg=cfg(builtin_model)");
    // A folder that is there with and without the model: a missing path would build all again,
    // every time.
    println!("cargo:rerun-if-changed=models");
    if env::var_os("CARGO_FEATURE_BUILTIN_MODEL").is_some() && Path::new(MODEL).is_file() {
        println!("cargo:rustc-cfg=builtin_model");
    }
}

/// Every `src/ops/<op>/kernel*.cu`.
fn kernels() -> Vec<PathBuf> {
    let mut found = Vec::new();
    for folder in std::fs::read_dir("src/ops").expect("src/ops is part of the crate") {
        let folder = folder.expect("src/ops can be listed").path();
        let Ok(files) = std::fs::read_dir(&folder) else {
            continue;
        };
        // Adding a file changes its folder.
        println!("cargo:rerun-if-changed={}", folder.display());
        for file in files.flatten().map(|f| f.path()) {
            let extension = file.extension().and_then(|e| e.to_str());
            if matches!(extension, Some("cu" | "cuh")) {
                println!("cargo:rerun-if-changed={}", file.display());
            }
            if extension == Some("cu") {
                found.push(file);
            }
        }
    }
    found.sort();
    found
}

/// Writes what `src/ops/cuda/mod.rs` includes: each fat binary under its operation's name.
fn list(kernels: &[PathBuf], out: &Path) {
    let entries: String = kernels
        .iter()
        .map(|source| {
            let file = fat_binary_name(source);
            let name = file.trim_end_matches(".fatbin");
            let path = out.join(&file);
            format!("({name:?}, include_bytes!({path:?}).as_slice()),\n")
        })
        .collect();
    std::fs::write(out.join("fat_binaries.rs"), format!("&[{entries}]"))
        .expect("OUT_DIR can be written");
}

/// `attention/kernel_sm90.cu` becomes `attention_sm90.fatbin`, `attention/kernel.cu`
/// `attention.fatbin`.
fn fat_binary_name(source: &Path) -> String {
    let part = |p: Option<&std::ffi::OsStr>| {
        p.expect("a kernel lies in a folder")
            .to_string_lossy()
            .into_owned()
    };
    let op = part(source.parent().and_then(Path::file_name));
    let kind = part(source.file_stem()).replacen("kernel", "", 1);
    format!("{op}{kind}.fatbin")
}

fn code_flags(source: &Path, archs: &[&str]) -> Vec<String> {
    let hopper = source.to_string_lossy().ends_with("_sm90.cu");
    archs
        .iter()
        .filter(|arch| !hopper || **arch == "90a")
        .map(|arch| match arch.strip_suffix("+PTX") {
            Some(arch) => format!("-gencode=arch=compute_{arch},code=compute_{arch}"),
            None => format!("-gencode=arch=compute_{arch},code=sm_{arch}"),
        })
        .collect()
}

fn compile(source: &Path, to: &Path, flags: &[String], version: &str) {
    if flags.is_empty() {
        std::fs::write(to, []).expect("OUT_DIR can be written"); // not in RDPM_CUDA_ARCHS
        return;
    }
    // By content, not by time: in a new clone every file is new.
    let made_from = to.with_extension("made-from");
    let wanted = format!("{version}\n{flags:?}\n{:016x}", digest(source));
    if to.exists() && std::fs::read_to_string(&made_from).is_ok_and(|text| text == wanted) {
        return;
    }
    let _ = std::fs::remove_file(&made_from);
    let status = Command::new(nvcc())
        .args(["-O3", "-std=c++17", "-fatbin"])
        .args(flags)
        .arg("-o")
        .arg(to)
        .arg(source)
        .status();
    match status {
        Ok(status) if status.success() => {
            std::fs::write(&made_from, wanted).expect("OUT_DIR can be written");
        }
        Ok(status) => fail(&format!("nvcc failed on {} ({status})", source.display())),
        Err(e) => fail(&format!("nvcc cannot be started ({e}); {TOOLKIT}")),
    }
}

/// A digest of a kernel's text and that of every header it includes.
fn digest(source: &Path) -> u64 {
    let mut texts = BTreeMap::new();
    let mut unread = vec![source.to_path_buf()];
    while let Some(path) = unread.pop() {
        if texts.contains_key(&path) {
            continue;
        }
        let text = std::fs::read_to_string(&path)
            .unwrap_or_else(|e| fail(&format!("{} cannot be read: {e}", path.display())));
        let folder = path.parent().expect("a kernel lies in a folder");
        unread.extend(
            text.lines()
                .filter_map(|line| line.strip_prefix("#include \"")?.split('"').next())
                .map(|included| folder.join(included)),
        );
        texts.insert(path, text);
    }
    let mut hasher = DefaultHasher::new();
    texts.hash(&mut hasher);
    hasher.finish()
}

/// What the compiler says of its version.
fn compiler_version() -> String {
    match Command::new(nvcc()).arg("--version").output() {
        Ok(output) => String::from_utf8_lossy(&output.stdout).into_owned(),
        Err(e) => fail(&format!("nvcc cannot be started ({e}); {TOOLKIT}")),
    }
}

fn fail(message: &str) -> ! {
    println!("cargo:warning={message}");
    std::process::exit(1)
}

fn nvcc() -> PathBuf {
    let in_home = |name| env::var_os(name).map(|home| PathBuf::from(home).join("bin/nvcc"));
    env::var_os("NVCC")
        .map(PathBuf::from)
        .or_else(|| in_home("CUDA_HOME").filter(|path| path.exists()))
        .unwrap_or_else(|| "nvcc".into())
}
