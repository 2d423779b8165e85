//! Folders in which CUDA's libraries lie where the system's loader does not look: those of NVIDIA's
//! Python packages, which `rdpm[cuda13]` and PyTorch bring, beside this program and in the Pythons
//! within reach, then those of toolkits.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

/// The folders of Python's packages and of toolkits that exist here, in the order in which they are
/// looked through.
pub fn existing() -> Vec<PathBuf> {
    let variable = |name| std::env::var_os(name).map(PathBuf::from);
    // Installed by pip, the program lies in its environment's bin: what is beside it was chosen for
    // it, whatever environment is active.
    let own = own_prefix();
    let mut pythons: Vec<PathBuf> = own.clone().into_iter().collect();
    pythons.extend(
        ["VIRTUAL_ENV", "CONDA_PREFIX"]
            .into_iter()
            .filter_map(variable),
    );
    let path = std::env::var_os("PATH").unwrap_or_default();
    for folder in std::env::split_paths(&path) {
        let python = folder.join("python3");
        // A virtual environment's python3 is a link out of it: both ends have packages.
        for python in [python.canonicalize().ok(), Some(python)]
            .into_iter()
            .flatten()
            .rev()
        {
            if python.is_file()
                && let Some(prefix) = python.parent().and_then(Path::parent)
            {
                pythons.push(prefix.into());
            }
        }
    }
    pythons.extend(variable("HOME").map(|home| home.join(".local")));
    pythons.extend(["/usr/local", "/usr"].map(PathBuf::from));
    let mut folders: Vec<PathBuf> = own.iter().flat_map(|p| nvidia_folders(p)).collect();
    folders.extend(pythons.iter().flat_map(|p| python_folders(p)));

    let mut toolkits: Vec<PathBuf> = ["CUDA_HOME", "CUDA_PATH", "CONDA_PREFIX"]
        .into_iter()
        .filter_map(variable)
        .collect();
    toolkits.push("/opt/cuda".into());
    toolkits.extend(newest_first(matching(Path::new("/usr/local"), |name| {
        name.starts_with("cuda")
    })));
    for toolkit in toolkits {
        for part in [
            "lib64",
            "lib",
            "targets/x86_64-linux/lib",
            "targets/sbsa-linux/lib",
        ] {
            folders.push(toolkit.join(part));
        }
    }
    let mut seen = HashSet::new();
    folders.retain(|folder| folder.is_dir() && seen.insert(folder.clone()));
    folders
}

/// PREFIX of this program in `PREFIX/bin`, links to it followed.
fn own_prefix() -> Option<PathBuf> {
    prefix_of(&std::env::current_exe().ok()?.canonicalize().ok()?)
}

fn prefix_of(program: &Path) -> Option<PathBuf> {
    let folder = program.parent().filter(|folder| folder.ends_with("bin"))?;
    folder.parent().map(Path::to_path_buf)
}

/// `nvidia/*/lib` in a folder of Python's packages, which is also the prefix after `pip install
/// --target`.
fn nvidia_folders(packages: &Path) -> Vec<PathBuf> {
    let parts = matching(&packages.join("nvidia"), |_| true);
    parts.into_iter().map(|part| part.join("lib")).collect()
}

/// `lib/python3.N/site-packages/nvidia/*/lib` under a Python's prefix; Debian says dist-packages,
/// Fedora lib64.
fn python_folders(prefix: &Path) -> Vec<PathBuf> {
    let mut folders = Vec::new();
    for lib in ["lib", "lib64"] {
        let versions = matching(&prefix.join(lib), |name| name.starts_with("python3"));
        for version in newest_first(versions) {
            for packages in ["site-packages", "dist-packages"] {
                folders.extend(nvidia_folders(&version.join(packages)));
            }
        }
    }
    folders
}

/// Folders by the numbers in their names: python3.13 before python3.9.
fn newest_first(mut folders: Vec<PathBuf>) -> Vec<PathBuf> {
    let version = |folder: &PathBuf| -> Vec<u64> {
        let name = folder.file_name().unwrap_or_default().to_string_lossy();
        let numbers = name.split(|c: char| !c.is_ascii_digit());
        numbers.filter_map(|number| number.parse().ok()).collect()
    };
    folders.sort_by_key(|folder| std::cmp::Reverse(version(folder)));
    folders
}

/// Entries of a folder by name, sorted; none where there is no such folder.
fn matching(folder: &Path, wanted: impl Fn(&str) -> bool) -> Vec<PathBuf> {
    let mut entries: Vec<PathBuf> = std::fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| wanted(&entry.file_name().to_string_lossy()))
        .map(|entry| entry.path())
        .collect();
    entries.sort();
    entries
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_of_python_packages_are_found_in_every_layout() {
        let prefix = tempfile::tempdir().expect("a folder");
        let wanted = [
            "lib/python3.13/site-packages/nvidia/cu13/lib",
            "lib/python3.12/site-packages/nvidia/cu13/lib",
            "lib/python3.11/site-packages/nvidia/cublas/lib",
            "lib/python3.9/site-packages/nvidia/cublas/lib",
            "lib/python3/dist-packages/nvidia/curand/lib",
            "lib64/python3.12/site-packages/nvidia/cublas/lib",
        ]
        .map(|folder| prefix.path().join(folder));
        for folder in &wanted {
            std::fs::create_dir_all(folder).expect("made");
        }
        assert_eq!(python_folders(prefix.path()), wanted);
    }

    #[test]
    fn a_program_in_bin_has_its_environment_as_its_prefix() {
        let of = |path: &str| prefix_of(Path::new(path));
        assert_eq!(of("/home/me/.venv/bin/rdpm"), Some("/home/me/.venv".into()));
        assert_eq!(of("/home/me/rdpm/target/release/rdpm"), None);
    }
}
