//! Every option that a message names exists in the command that prints the message.
//!
//! The messages are the string literals of the sources, without tests. A table says which commands
//! reach a file; a file that names an option but has no row fails the test.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use clap::CommandFactory;
use rdpm::cli::Cli;

const TRAINING: &[&str] = &["train-vae", "train-gen"];
const ENCODING: &[&str] = &["encode", "reconstruct", "eval-vae"];
const ANY: &[&str] = &["completions"];

/// The commands that print a file's messages, each of which must have the option; the first row
/// whose path is a prefix of the file's path counts.
const REACHED_BY: &[(&str, &[&str])] = &[
    ("src/cli/train.rs", TRAINING),
    ("src/cli/config.rs", TRAINING),
    ("src/cli/inputs.rs", ENCODING),
    ("src/cli/parts.rs", &["sample", "eval-vae"]),
    // The command line that draws the same.
    ("src/serve/request.rs", &["sample"]),
    ("src/serve", &["serve"]),
    ("src/cli/mod.rs", ANY),
    ("src/cli/device.rs", ANY),
    ("src/gpu_error.rs", ANY),
    (
        "src/cli/gpu_memory.rs",
        &[
            "sample",
            "serve",
            "reconstruct",
            "encode",
            "decode",
            "eval-fid",
            "eval-vae",
            "fit-probe",
        ],
    ),
    ("src/cli/bench/train_gen.rs", &["bench train-gen"]),
    ("src/cli/bench/train_vae.rs", &["bench train-vae"]),
    ("src/cli/bench/ops.rs", &["bench ops"]),
    ("src/train/start_vae.rs", &["train-vae"]),
    ("src/train/start_generator.rs", &["train-gen"]),
    ("src/train/generator", &["train-gen"]),
    ("src/train/latents.rs", &["train-gen"]),
    ("src/train", TRAINING),
    ("src/config", TRAINING),
    ("src/data/latent_cache", &["train-gen"]),
    ("src/data/pack", &["pack"]),
    (
        "src/data",
        &[
            "train-vae",
            "train-gen",
            "encode",
            "reconstruct",
            "eval-vae",
            "pack",
        ],
    ),
    ("src/cli/fit_probe.rs", &["fit-probe"]),
    ("src/metrics/inception.rs", &["eval-fid"]),
    (
        "src/metrics/weights/mod.rs",
        &["eval-fid", "eval-vae", "fit-probe", "sample"],
    ),
    ("src/metrics/probe", &["eval-fid", "sample"]),
    ("src/metrics", &["eval-fid"]),
    ("src/sample/output.rs", &["sample", "reconstruct", "decode"]),
    (
        "src/sample/grid.rs",
        &[
            "sample",
            "reconstruct",
            "decode",
            "demo",
            "train-vae",
            "train-gen",
        ],
    ),
    ("src/store/int8.rs", &["export"]),
    ("src/store/run.rs", TRAINING),
    ("src/store/codes", &["encode"]),
    (
        "src/store/hub",
        &["sample", "encode", "reconstruct", "decode", "eval-vae"],
    ),
    (
        "src/store/model.rs",
        &["sample", "encode", "reconstruct", "decode", "eval-vae"],
    ),
    ("src/ops/cuda", ANY),
    ("src/telemetry", ANY),
    ("src/world", TRAINING),
];

/// Options that name one network's file: at least one command must have each.
const OF_A_NETWORK: &str = "src/metrics/weights/published.rs";

/// Options of other programs that messages mention: cargo's and docker's.
const OF_OTHERS: [&str; 4] = ["--features", "--release", "--bench", "--gpus"];

/// The options of every command, by `NAME` or `NAME SUBCOMMAND`.
fn options() -> BTreeMap<String, Vec<String>> {
    let mut cli = Cli::command();
    cli.build();
    let mut found = BTreeMap::new();
    let long = |command: &clap::Command| -> Vec<String> {
        let names = command.get_arguments().filter_map(|a| a.get_long());
        names.map(|name| format!("--{name}")).collect()
    };
    for command in cli.get_subcommands() {
        found.insert(command.get_name().to_string(), long(command));
        for part in command.get_subcommands() {
            let name = format!("{} {}", command.get_name(), part.get_name());
            found.insert(name, long(part));
        }
    }
    found
}

/// The string literals of a source file before its tests, with their lines.
fn literals(source: &str) -> Vec<(usize, String)> {
    let source = source
        .split("\n#[cfg(test)]\nmod tests")
        .next()
        .unwrap_or_default();
    let (mut found, mut chars, mut line) = (Vec::new(), source.chars().peekable(), 1);
    while let Some(c) = chars.next() {
        match c {
            '\n' => line += 1,
            '/' if chars.peek() == Some(&'/') => {
                while chars.peek().is_some_and(|c| *c != '\n') {
                    chars.next();
                }
            }
            // A character literal; a lifetime has no closing quote that close.
            '\'' => {
                let rest: String = chars.clone().take(3).collect();
                if rest.starts_with('\\') || rest.chars().nth(1) == Some('\'') {
                    if chars.next() == Some('\\') {
                        chars.next();
                    }
                    while chars.next().is_some_and(|c| c != '\'') {}
                }
            }
            '"' => {
                let (start, mut text) = (line, String::new());
                while let Some(c) = chars.next() {
                    match c {
                        '"' => break,
                        '\\' => {
                            if chars.next() == Some('\n') {
                                line += 1;
                                while chars.peek().is_some_and(|c| c.is_whitespace()) {
                                    line += usize::from(chars.next() == Some('\n'));
                                }
                            }
                        }
                        '\n' => {
                            line += 1;
                            text.push('\n');
                        }
                        c => text.push(c),
                    }
                }
                found.push((start, text));
            }
            _ => {}
        }
    }
    found
}

/// The options that `text` mentions, each with the command line around it, if any: `rdpm NAME …
/// --option`.
fn named(text: &str) -> Vec<(String, Option<String>)> {
    let word = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let mut found = Vec::new();
    for (at, _) in text.match_indices("--") {
        let before = text[..at].chars().next_back();
        let name: String = text[at..].chars().take_while(|c| word(*c)).collect();
        if before.is_some_and(word) || name.len() < 4 || name.starts_with("---") {
            continue;
        }
        // The command line ends at a quote or at the end of the sentence.
        let line = text[..at]
            .rsplit(['`', ';', ',', '\n'])
            .next()
            .unwrap_or_default();
        // The demo's last lines use this program's own name.
        let line = line.replace("{rdpm} ", "rdpm ");
        let command = line.rsplit_once("rdpm ").map(|(_, rest)| {
            let first = rest.split_whitespace().next().unwrap_or_default();
            first.to_string()
        });
        found.push((name.trim_end_matches('-').to_string(), command));
    }
    found
}

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("a folder of sources") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") && !path.ends_with("tests.rs") {
            found.push(path);
        }
    }
}

/// The commands that print the messages of `file`.
fn reached_by(file: &str) -> Vec<String> {
    if let Some((_, commands)) = REACHED_BY.iter().find(|(path, _)| file.starts_with(path)) {
        return commands.iter().map(|c| c.to_string()).collect();
    }
    // A file or folder in src/cli belongs to one command.
    let own = file.strip_prefix("src/cli/").unwrap_or_default();
    let own = own.split(['/', '.']).next().unwrap_or_default();
    vec![own.replace('_', "-")]
}

#[test]
fn every_hint_names_options_that_its_command_has() {
    let (options, mut files) = (options(), Vec::new());
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    sources(&root.join("src"), &mut files);
    let (mut wrong, mut seen) = (Vec::new(), 0);
    for path in files {
        let file = path
            .strip_prefix(root)
            .expect("of the sources")
            .display()
            .to_string();
        let source = fs::read_to_string(&path).expect("a source");
        for (line, text) in literals(&source) {
            for (option, command) in named(&text) {
                if OF_OTHERS.contains(&option.as_str()) {
                    continue;
                }
                seen += 1;
                let place = format!("{file}:{line}: {option}");
                let has = |command: &String| {
                    let known = options.get(command);
                    known.is_some_and(|all| all.contains(&option))
                };
                if file == OF_A_NETWORK {
                    if !["eval-fid", "eval-vae"].map(String::from).iter().any(has) {
                        wrong.push(format!("{place} is no option of eval-fid or eval-vae"));
                    }
                    continue;
                }
                let commands = match &command {
                    // `rdpm {stage} --resume {run}`: the stage's own command.
                    Some(name) if name.starts_with('{') => {
                        TRAINING.iter().map(|c| c.to_string()).collect()
                    }
                    Some(name) => vec![name.clone()],
                    None => reached_by(&file),
                };
                for command in commands.iter().filter(|command| !has(command)) {
                    wrong.push(format!(
                        "{place} is no option of `rdpm {command}`, which prints: {text}"
                    ));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(seen > 80, "only {seen} options were found in messages");
}

#[test]
fn options_are_found_in_messages_and_nowhere_else() {
    let source = "//! --comment\nlet c = '\"'; // --more\nlet x = \"one --two-three, \\\n   --four\"; fn f<'a>() {}\nlet y = \"a--b `rdpm encode --five`\";\n#[cfg(test)]\nmod tests { \"--six\" }";
    let found: Vec<_> = literals(source)
        .iter()
        .flat_map(|(_, text)| named(text))
        .collect();
    let names: Vec<&str> = found.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["--two-three", "--four", "--five"]);
    assert_eq!(found[2].1.as_deref(), Some("encode"));
}
