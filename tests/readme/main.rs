//! Runs every command in README and docs in a shell as printed, in the order of the pages, in one
//! folder. Commands that are not run are listed in [`NOT_RUN`] with the reason.
//!
//! The only changes, [`SHORTER`] and [`ADDED`], make models small and runs short.

mod fixture;
mod pages;

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use clap::CommandFactory;
use pages::pages;
use rdpm::cli::Cli;
use rdpm::error::Result;

/// Commands that contain one of these are not run here, and why.
const NOT_RUN: &[(&str, &str)] = &[
    (
        "cargo build",
        "minutes; .ci/run builds with and without CUDA",
    ),
    ("scripts/wheel.sh", "minutes; .ci/wheel builds one"),
    ("-m venv env", "the wheel; .ci/wheel installs it"),
    ("env/bin/", "the wheel; .ci/wheel installs it"),
    ("export PATH=", "this test has the program in its own PATH"),
    ("cargo run --release -- demo", "minutes; .ci/run runs it"),
    (
        "demo/demo.safetensors",
        "after the demo; .ci/run samples it",
    ),
    ("weights=$(scripts/weights.sh)", "network; .ci/run runs it"),
    ("curl ", "network"),
    ("unzip ", "what curl fetched"),
    ("scripts/tiny_imagenet_cpu.sh", "18 minutes"),
    (
        "cargo run --release -- sample --class 207",
        "a build; tests/builtin.rs samples the model",
    ),
    ("--out three.png", "the model; tests/builtin.rs"),
    ("rdpm inspect builtin", "the model; tests/builtin.rs"),
    ("rdpm fit-probe", "the whole of Inception; tests/builtin.rs"),
    ("--probe ", "the whole of Inception; tests/builtin.rs"),
    ("rdpm serve", "it runs until it is stopped; tests/serve"),
    ("scripts/check_page.py", "a browser"),
    ("scripts/bench_serve.py", "the model, and minutes"),
    ("scripts/cuda-toolkit.sh", "network; .ci/run runs it"),
    ("--device cuda", "a GPU"),
    ("rdpm doctor --check-ops", "a GPU"),
    ("rdpm bench train-gen", "a GPU"),
    ("scripts/bench_gpu.sh", "a GPU and PyTorch"),
    ("scripts/sanitize_gpu.sh", "a GPU"),
    ("--features cuda --test check_ops", "a GPU"),
    ("scripts/check_training_gpu.sh", "a GPU"),
    ("scripts/check_train_vae_gpu.py", "a GPU"),
    ("scripts/pytorch_interop.py", "PyTorch"),
    ("scripts/check_reader.py", "PyTorch"),
    (
        "tensorboard --logdir",
        "a server; tests/train/seen.rs has its reader",
    ),
    (
        "scripts/to_wandb.py",
        "Weights & Biases; tests/train/seen.rs runs it dry",
    ),
    ("scripts/fuzz.sh", "a C++ compiler, and minutes"),
    ("mpirun -n", "MPI"),
    ("torchrun ", "PyTorch"),
    ("srun -n", "Slurm"),
];

/// The first lines of Python blocks. Those without a reason are run by the Python of
/// `$RDPM_PYTHON`, which needs NumPy, pandas, pyarrow and safetensors; .ci/run names one.
const PYTHON: [(&str, Option<&str>); 7] = [
    ("import json", Some("matplotlib")),
    ("import rdpm", Some("PyTorch")),
    ("# safetensors", None),
    ("# npy: nothing is read before it is used", None),
    (
        "# wds: what webdataset.WebDataset(\"codes-wds/codes-{00000..00002}.tar\").decode() gives",
        None,
    ),
    ("# jsonl", None),
    ("# parquet: the shape is in the file's metadata", None),
];

/// Languages of blocks without commands.
const NO_COMMANDS: [&str; 2] = ["text", "bibtex"];

/// Replacements in commands.
const SHORTER: [(&str, &str); 3] = [
    ("--num 10000", "--num 20"),
    ("cfg=0,1,2,4", "cfg=0,4"),
    // Only the first stage of Inception's weights exists.
    ("--metrics fid,kid,pr", "--metrics fid"),
];

/// Arguments added to commands with this beginning; the first match applies.
const ADDED: [(&str, &str); 6] = [
    (
        "rdpm train-vae ",
        " --steps 2 --set tokenizer.ch=32 --set tokenizer.num_res_blocks=1 \
         --set quantizer.codebook_size=64 --set train_vae.batch_size=2",
    ),
    (
        "rdpm train-gen ",
        " --steps 2 --set generator.depth=1 --set generator.width=64 --set generator.heads=2 \
         --set train_gen.batch_size=2",
    ),
    (
        "rdpm launch ",
        " --steps 2 --set tokenizer.ch=32 --set tokenizer.num_res_blocks=1 \
         --set quantizer.codebook_size=64 --set train_vae.batch_size=2",
    ),
    ("rdpm eval-fid ", " --dims 64 --metrics fid"),
    (
        "rdpm eval-vae tiny-imagenet-200/val --model runs/vae --steps-curve",
        " --metrics psnr,ssim,lpips",
    ),
    ("rdpm ", ""),
];

/// Options that name a file that a command writes.
const WRITTEN: [&str; 5] = ["--out", "--json", "--plot", "--save-stats", "--cache"];

#[test]
fn every_printed_command_runs_as_printed_or_is_listed_with_a_reason() -> Result<()> {
    let folder = tempfile::tempdir()?;
    fixture::make(folder.path())?;
    let mut listed = BTreeSet::new();
    let mut changed = BTreeSet::new();
    for page in &pages() {
        let name = &page.name;
        for block in page.blocks() {
            let first = block.text.lines().next().unwrap_or_default();
            match block.language {
                "sh" => {}
                "python" => {
                    let known = PYTHON.iter().find(|(line, _)| *line == first);
                    let Some((_, reason)) = known else {
                        panic!("{name}: nothing runs the Python that begins `{first}`");
                    };
                    if reason.is_none() {
                        run_python(&block.text, folder.path());
                    }
                    continue;
                }
                other => {
                    let known = NO_COMMANDS.contains(&other);
                    assert!(
                        known,
                        "{name}: a block at `{first}` is of no known language"
                    );
                    continue;
                }
            }
            for command in block.commands() {
                match NOT_RUN.iter().find(|(part, _)| command.contains(part)) {
                    Some((part, _)) => drop(listed.insert(*part)),
                    None => run(&command, folder.path(), &mut changed)?,
                }
            }
        }
    }
    let unused = NOT_RUN.iter().filter(|(part, _)| !listed.contains(part));
    let unused: Vec<_> = unused.map(|(part, _)| part).collect();
    assert!(unused.is_empty(), "no page prints these: {unused:?}");
    let changes = SHORTER.iter().chain(&ADDED);
    let unused: Vec<_> = changes
        .filter(|(from, _)| !changed.contains(from))
        .collect();
    assert!(unused.is_empty(), "these change no command: {unused:?}");
    let sheet = image::open(folder.path().join("samples.png"))?;
    assert!(sheet.width() >= 4 * 128);
    Ok(())
}

/// Runs a command, shortened, and checks for the files that it should have written.
fn run(command: &str, folder: &Path, changed: &mut BTreeSet<&str>) -> Result<()> {
    let mut line = command.to_string();
    for (from, to) in SHORTER {
        if line.contains(from) {
            line = line.replace(from, to);
            changed.insert(from);
        }
    }
    if let Some((start, added)) = ADDED.iter().find(|(start, _)| line.starts_with(start)) {
        // A comment would swallow it.
        let end = line.find(" #").unwrap_or(line.len());
        line.insert_str(end, added);
        changed.insert(start);
    }
    let program = Path::new(env!("CARGO_BIN_EXE_rdpm"));
    let program = program.parent().expect("a folder");
    let output = Command::new("bash")
        .args(["-euo", "pipefail", "-c", &line])
        .current_dir(folder)
        .env(
            "PATH",
            format!("{}:{}", program.display(), std::env::var("PATH")?),
        )
        .env("XDG_CACHE_HOME", folder.join("cache"))
        .env("XDG_CONFIG_HOME", folder.join("config"))
        .env("weights", fixture::WEIGHTS)
        .env_remove("RDPM_MODEL")
        .output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{line}\n{said}");
    if !line.contains("--dry-run") {
        let words: Vec<&str> = line.split_whitespace().collect();
        for pair in words.windows(2).filter(|pair| WRITTEN.contains(&pair[0])) {
            assert!(
                folder.join(pair[1]).exists(),
                "{line}\nthere is no {}",
                pair[1]
            );
        }
    }
    Ok(())
}

/// Runs a block with the Python that the environment names, if any.
fn run_python(text: &str, folder: &Path) {
    let Some(python) = std::env::var_os("RDPM_PYTHON") else {
        eprintln!("RDPM_PYTHON names no Python: not run\n{text}");
        return;
    };
    let output = Command::new(python)
        .args(["-c", text])
        .current_dir(folder)
        .output()
        .expect("Python runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}\n{said}");
}

/// The long options of a command and of its subcommands.
fn options(command: &clap::Command) -> BTreeSet<String> {
    let long = command.get_arguments().filter_map(|a| a.get_long());
    let mut found: BTreeSet<String> = long.map(|name| format!("--{name}")).collect();
    for below in command.get_subcommands() {
        found.extend(options(below));
    }
    found
}

#[test]
fn every_command_and_option_in_running_text_exists() {
    let mut cli = Cli::command();
    cli.build();
    let all = options(&cli);
    for page in pages() {
        for code in page.inline_code() {
            let words: Vec<&str> = code.split_whitespace().collect();
            let known = match words[..] {
                // A placeholder for any command.
                ["rdpm", name, ..] if name != "COMMAND" => {
                    let command = cli.find_subcommand(name);
                    assert!(command.is_some(), "{}: no command `{code}`", page.name);
                    command.map(options).unwrap_or_default()
                }
                [first, ..] if first.starts_with("--") => all.clone(),
                _ => continue,
            };
            for option in words.iter().filter(|word| word.starts_with("--")) {
                let option = option.split('=').next().unwrap_or_default();
                // The last one is an option of scripts/bench_cpu.py.
                let exists = known.contains(option) || option == "--help" || option == "--only";
                assert!(exists, "{}: no option {option} in `{code}`", page.name);
            }
        }
    }
}

/// GitHub's anchor for a heading.
fn anchor(heading: &str) -> String {
    let kept = heading.trim_start_matches('#').trim().to_lowercase();
    let kept = kept
        .chars()
        .filter(|c| c.is_alphanumeric() || " -_".contains(*c));
    kept.map(|c| if c == ' ' { '-' } else { c }).collect()
}

#[test]
fn every_link_to_a_file_or_a_heading_leads_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut links = 0;
    for page in pages() {
        let folder = root
            .join(&page.name)
            .parent()
            .expect("a folder")
            .to_path_buf();
        for target in page.text.split("](").skip(1) {
            let target = target.split(')').next().unwrap_or_default();
            if target.starts_with("http") {
                continue;
            }
            links += 1;
            let (file, heading) = target.split_once('#').unwrap_or((target, ""));
            let file = match file {
                "" => root.join(&page.name),
                file => folder.join(file),
            };
            assert!(file.exists(), "{}: no {target}", page.name);
            if !heading.is_empty() {
                let text = std::fs::read_to_string(&file).expect("a page");
                let mut headings = text.lines().filter(|line| line.starts_with('#'));
                let found = headings.any(|line| anchor(line) == heading);
                assert!(found, "{}: no heading for {target}", page.name);
            }
        }
    }
    assert!(links > 20, "{links} links");
}
