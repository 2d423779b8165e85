//! A folder with a small data set and configuration, in which the binary is run.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use image::{Rgb, RgbImage};
use tempfile::TempDir;

pub const VAE: &str = "train-vae";
pub const GENERATOR: &str = "train-gen";

/// All losses except the perceptual one, two micro-batches, a discriminator from step 2 on,
/// restarts of dead codes every 4 steps.
const CONFIG: &str = r#"
[data]
image_size = 16
[tokenizer]
ch = 8
ch_mult = [1, 2]
num_res_blocks = 1
embed_dim = 4
norm_groups = 4
[quantizer]
codebook_size = 24
steps = 3
restart_every = 4
init_std = 0.8
[schedule]
kind = "linear"
[loss]
perceptual = "none"
disc_start = 2
disc_ramp = 4
disc_layers = 1
disc_lr = 1e-3
[generator]
depth = 1
width = 32
heads = 2
label_dropout = 0.3
[train_vae]
batch_size = 4
accumulate = 2
lr = 1e-3
warmup_steps = 3
ema_decay = 0.9
steps = 12
log_every = 2
image_every = 0
checkpoint_every = 5
keep_checkpoints = 3
[train_gen]
batch_size = 4
accumulate = 2
lr = 1e-3
warmup_steps = 3
ema_decay = 0.9
steps = 12
log_every = 2
image_every = 0
checkpoint_every = 5
keep_checkpoints = 3
"#;

pub struct Lab {
    root: TempDir,
}

impl Lab {
    /// Two classes of nine images: a bright rectangle on a dark background, taller than wide or
    /// wider than tall.
    pub fn new() -> Self {
        let root = tempfile::tempdir().expect("a temporary folder");
        for (class, name) in ["high", "wide"].into_iter().enumerate() {
            let folder = root.path().join("data").join(name);
            fs::create_dir_all(&folder).expect("the class's folder");
            for i in 0..9u32 {
                let picture = RgbImage::from_fn(18, 18, |x, y| {
                    let (a, b) = if class == 0 { (x, y) } else { (y, x) };
                    let inside = (4 + i % 4..9 + i % 4).contains(&a) && (2..15).contains(&b);
                    let level = if inside {
                        250 - 20 * i as u8
                    } else {
                        10 * i as u8
                    };
                    Rgb([level, level / 2 + 7 * i as u8, 255 - level])
                });
                picture
                    .save(folder.join(format!("{i}.png")))
                    .expect("a picture");
            }
        }
        fs::write(root.path().join("tiny.toml"), CONFIG).expect("the configuration");
        Self { root }
    }

    /// So many images of each class: a link each, to the same few files.
    pub fn more_images(&self, count: usize) {
        for class in ["high", "wide"] {
            for i in 9..count {
                let (of, at) = (format!("{}.png", i % 9), format!("data/{class}/{i}.png"));
                std::os::unix::fs::symlink(of, self.path(&at)).expect("a link");
            }
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    /// `rdpm` with `arguments`, in this folder.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_rdpm"));
        command
            .args(arguments)
            .current_dir(self.root.path())
            .env_remove("RUST_LOG")
            .env("RAYON_NUM_THREADS", "2")
            .stdin(Stdio::null());
        command
    }

    /// `rdpm` with `arguments`, where faults of faults.c happen.
    pub fn faulty(&self, arguments: &[&str], faults: &[(&str, &str)]) -> Command {
        let mut command = self.command(arguments);
        command.env("LD_PRELOAD", faults_library());
        command.envs(faults.iter().copied());
        command
    }

    /// Starts `command` in the background; what it says is in the file `name`.
    pub fn spawn_said(&self, command: &mut Command, name: &str) -> Child {
        let said = fs::File::create(self.path(name)).expect("a file");
        command.stdout(Stdio::null()).stderr(said);
        command.spawn().expect("it starts")
    }

    /// Waits until `child`, which says it in the file `name`, has said `words`.
    pub fn until_said(&self, child: &mut Child, name: &str, words: &str) {
        self.until(words, || {
            let said = fs::read_to_string(self.path(name)).expect("a file");
            if said.contains(words) {
                return true;
            }
            let ended = child.try_wait().expect("a state");
            assert!(ended.is_none(), "it ended without `{words}`: {said}");
            false
        });
    }

    /// The arguments for a new run of `stage` at `out`; a generator uses the tokenizer of the run
    /// `vae`.
    pub fn start<'a>(&self, stage: &'a str, out: &'a str, more: &[&'a str]) -> Vec<&'a str> {
        let mut arguments = vec![
            stage,
            "--config",
            "tiny.toml",
            "--data",
            "data",
            "--out",
            out,
        ];
        if stage == GENERATOR {
            arguments.extend(["--vae", "vae"]);
        }
        arguments.extend(more);
        arguments
    }

    /// Runs to the end; the exit code must be 0.
    pub fn run(&self, arguments: &[&str]) {
        let output = self.output(arguments);
        assert!(
            output.status.success(),
            "{arguments:?}: {}",
            stderr(&output)
        );
    }

    pub fn output(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().expect("rdpm runs")
    }

    /// A complete run of `stage`, with the tokenizer that it needs.
    pub fn train(&self, stage: &str, out: &str, more: &[&str]) {
        if stage == GENERATOR && !self.path("vae").exists() {
            self.run(&self.start(VAE, "vae", &["--steps", "3"]));
        }
        self.run(&self.start(stage, out, more));
    }

    /// A shell's `script` in this folder, whose `$0` is `rdpm`.
    pub fn shell(&self, script: &str) -> Command {
        let mut command = Command::new("sh");
        command
            .args(["-c", script, env!("CARGO_BIN_EXE_rdpm")])
            .current_dir(self.root.path())
            .env_remove("RUST_LOG")
            .env("RAYON_NUM_THREADS", "2")
            .stdin(Stdio::null());
        command
    }

    /// Starts in the background and waits until `out` has logged `step`.
    pub fn spawn_until(&self, arguments: &[&str], out: &str, step: u64) -> Child {
        let mut command = self.command(arguments);
        self.wait_until(command.stderr(Stdio::piped()), out, step)
    }

    /// Like [`Lab::spawn_until`], for any command.
    pub fn wait_until(&self, command: &mut Command, out: &str, step: u64) -> Child {
        let mut child = command.stdout(Stdio::null()).spawn().expect("it starts");
        self.until(&format!("step {step} comes"), || {
            let ended = child.try_wait().expect("a state");
            assert!(ended.is_none(), "it ended before step {step}: {ended:?}");
            self.last_step(out).is_some_and(|s| s >= step)
        });
        child
    }

    /// Waits until `done`.
    pub fn until(&self, what: &str, mut done: impl FnMut() -> bool) {
        let begin = Instant::now();
        while !done() {
            assert!(begin.elapsed() < Duration::from_secs(300), "never: {what}");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// The last step that the run `out` logged.
    pub fn last_step(&self, out: &str) -> Option<u64> {
        last_step(&self.path(out).join("metrics.jsonl"))
    }
}

/// faults.c as a library.
fn faults_library() -> &'static Path {
    static LIBRARY: OnceLock<PathBuf> = OnceLock::new();
    LIBRARY.get_or_init(|| {
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/train/faults.c");
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let [made, library] = [
            format!("faults-{}.so", std::process::id()),
            "faults.so".to_string(),
        ]
        .map(|name| folder.join(name));
        let mut compiler = Command::new("cc");
        compiler.args(["-O1", "-shared", "-fPIC", "-o"]);
        let compiled = compiler.arg(&made).args([source, "-ldl"]).status();
        assert!(compiled.expect("a C compiler").success());
        // Another process of tests may be using it.
        fs::rename(&made, &library).expect("in place");
        library
    })
}

pub fn send(signal: &str, process: u32) {
    let sent = Command::new("kill")
        .args([signal, &process.to_string()])
        .status();
    assert!(sent.expect("kill runs").success());
}

/// The files of a folder, by name, but for those that vanish meanwhile.
pub fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let files = fs::read_dir(folder).into_iter().flatten().flatten();
    let named = files.filter_map(|file| {
        let bytes = fs::read(file.path()).ok()?;
        Some((file.file_name().to_string_lossy().into_owned(), bytes))
    });
    named.collect()
}

pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn last_step(metrics: &Path) -> Option<u64> {
    let text = fs::read_to_string(metrics).ok()?;
    let line: serde_json::Value = serde_json::from_str(text.lines().last()?).ok()?;
    line["step"].as_u64()
}

/// The lines of metrics without what depends on the clock.
pub fn metrics(run: &Path) -> Vec<serde_json::Value> {
    let text = fs::read_to_string(run.join("metrics.jsonl")).expect("metrics");
    text.lines()
        .map(|line| {
            let mut line: serde_json::Value = serde_json::from_str(line).expect("whole lines");
            let figures = line.as_object_mut().expect("an object");
            figures.remove("images_per_second");
            figures.remove("eta_seconds");
            line
        })
        .collect()
}

/// Both runs are at the same step, with identical bytes in every file of their newest checkpoint
/// and identical logs.
pub fn assert_same(a: &Path, b: &Path) {
    let newest = |run: &Path| {
        let name = fs::read_to_string(run.join("checkpoints/latest")).expect("a checkpoint");
        run.join("checkpoints").join(name.trim())
    };
    let (x, y) = (newest(a), newest(b));
    assert_eq!(x.file_name(), y.file_name());
    for name in [
        "model.safetensors",
        "ema.safetensors",
        "optimizer.safetensors",
        "state.json",
    ] {
        let [p, q] = [&x, &y].map(|folder| fs::read(folder.join(name)).expect("a file"));
        assert!(
            p == q,
            "{name} differs between {} and {}",
            x.display(),
            y.display()
        );
    }
    assert_eq!(metrics(a), metrics(b));
}
