//! Generates one jump stub per function of CUDA's libraries, resolved lazily
//! (`src/ops/cuda/trampolines.rs`), so that the linker does not need the libraries.
//!
//! candle asks the linker for `-lcuda`, `-lcublas` and others as shared libraries. A folder with
//! empty archives of these names is searched first and satisfies the linker. The functions
//! themselves are trampolines in this crate, one for every function that the toolkit's headers
//! declare. `-lcudart` becomes the toolkit's static runtime.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::Path;
use std::process::Command;

/// The library's name, its header, and the prefixes of its functions' names, longer prefixes first.
const LIBRARIES: [(&str, &str, &str); 5] = [
    ("cublasLt", "cublasLt.h", "cublasLt"),
    ("cublas", "cublas_v2.h", "cublas"),
    ("curand", "curand.h", "curand"),
    ("nvrtc", "nvrtc.h", "nvrtc"),
    ("cuda", "cuda.h", "cu"),
];

/// An archive without members.
const EMPTY_ARCHIVE: &[u8] = b"!<arch>\n";
/// What it needs (dl, rt, pthread) Rust's standard library links after it; Zig's linker would not
/// find these in a script.
const STATIC_RUNTIME: &str = "INPUT ( -lcudart_static )\n";

/// Writes `trampolines.s` and `functions.rs` to `out`, and the folder that the linker searches
/// first.
pub fn write(nvcc: &Path, out: &Path) -> Result<(), String> {
    let mut functions = BTreeSet::new();
    for declared in declared_functions(&declarations(nvcc, out)?) {
        let library = LIBRARIES.iter().find(|(_, _, prefix)| {
            declared
                .strip_prefix(prefix)
                .is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_uppercase()))
        });
        if let Some((library, ..)) = library {
            functions.insert((*library, declared));
        }
    }
    let (mut assembly, mut table) = (String::new(), String::from("[\n"));
    for (library, name) in &functions {
        // Writing to a String cannot fail.
        let _ = writeln!(assembly, "trampoline {name}");
        let _ = writeln!(table, "    ({library:?}, c{name:?}),");
    }
    table.push(']');
    let folder = out.join("instead-of-cuda");
    let io = |e: std::io::Error| format!("OUT_DIR cannot be written: {e}");
    std::fs::create_dir_all(&folder).map_err(io)?;
    for (library, ..) in LIBRARIES {
        std::fs::write(folder.join(format!("lib{library}.a")), EMPTY_ARCHIVE).map_err(io)?;
    }
    std::fs::write(folder.join("libcudart.a"), STATIC_RUNTIME).map_err(io)?;
    std::fs::write(out.join("trampolines.s"), assembly).map_err(io)?;
    std::fs::write(out.join("functions.rs"), table).map_err(io)?;
    println!("cargo:rustc-link-search=native={}", folder.display());
    Ok(())
}

/// The preprocessed headers of the libraries; preprocessing gives functions the names that are
/// linked (`cuMemAlloc_v2`).
fn declarations(nvcc: &Path, out: &Path) -> Result<String, String> {
    let source = out.join("declarations.c");
    let includes: String = LIBRARIES
        .iter()
        .map(|(_, header, _)| format!("#include <{header}>\n"))
        .collect();
    std::fs::write(&source, includes).map_err(|e| format!("OUT_DIR cannot be written: {e}"))?;
    let output = Command::new(nvcc)
        .args(["-E", "-x", "c"])
        .arg(&source)
        .output()
        .map_err(|e| format!("nvcc cannot be started ({e})"))?;
    if !output.status.success() {
        let complaint = String::from_utf8_lossy(&output.stderr);
        return Err(format!(
            "the CUDA toolkit's headers cannot be read: {complaint}"
        ));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Every name that is followed by a parenthesis.
fn declared_functions(source: &str) -> impl Iterator<Item = String> {
    source.match_indices('(').filter_map(|(at, _)| {
        let before = source[..at].trim_end();
        let name = before
            .rfind(|c: char| !c.is_ascii_alphanumeric() && c != '_')
            .map_or(before, |end| &before[end + 1..]);
        (!name.is_empty()).then(|| name.to_string())
    })
}
