//! The command line: one file per subcommand, with its arguments and its `run()`.
//!
//! Raw flags end here. A subcommand is a module with `Args` (clap), whose doc comment is its help
//! text, and `run(&Args, &Context) -> Result<()>`. It is named twice: as a `mod` and in
//! `subcommands!`.

pub mod bench;
pub mod completions;
pub mod config;
pub mod decode;
pub mod demo;
pub mod device;
pub mod doctor;
pub mod encode;
pub mod eval_fid;
pub mod eval_vae;
pub mod export;
pub mod fit_probe;
mod gpu_memory;
pub mod index;
mod inputs;
pub mod inspect;
pub mod launch;
pub mod man;
pub mod pack;
mod part;
mod parts;
pub mod reconstruct;
pub mod report;
pub mod sample;
pub mod serve;
mod sheet;
mod train;
pub mod train_gen;
pub mod train_vae;

use std::io::Write;
use std::path::PathBuf;

use candle_core::Device;
use clap::{ArgAction, Parser, Subcommand};

use crate::error::{Result, hinted, usage};
use crate::gpu_error;
use crate::interrupt::Interrupt;
use crate::telemetry;
use crate::world::{Place, Work, World};

pub use config::ConfigArgs;
pub use device::DeviceChoice;
pub use sheet::ScaleArgs;

/// Autograd walks and drops its graph recursively: a deep network needs a deep stack.
const STACK_BYTES: usize = 256 << 20;

macro_rules! subcommands {
    ($($name:ident => $module:ident,)*) => {
        #[derive(Debug, Subcommand)]
        #[allow(clippy::large_enum_variant, reason = "a process has one")]
        pub enum Command {
            $($name($module::Args),)*
        }

        impl Command {
            /// As it is typed.
            fn name(&self) -> String {
                let module = match self {
                    $(Command::$name(_) => stringify!($module),)*
                };
                module.replace('_', "-")
            }

            fn run(&self, context: &Context) -> Result<()> {
                match self {
                    $(Command::$name(args) => {
                        let _span = tracing::info_span!(stringify!($module)).entered();
                        $module::run(args, context)
                    })*
                }
            }
        }
    };
}

subcommands! {
    Demo => demo,
    TrainVae => train_vae,
    TrainGen => train_gen,
    Sample => sample,
    Serve => serve,
    Reconstruct => reconstruct,
    Encode => encode,
    Decode => decode,
    EvalFid => eval_fid,
    FitProbe => fit_probe,
    Export => export,
    EvalVae => eval_vae,
    Index => index,
    Inspect => inspect,
    Report => report,
    Pack => pack,
    Bench => bench,
    Launch => launch,
    Doctor => doctor,
    Completions => completions,
    Man => man,
}

/// A command that several processes share, if a launcher starts it in several.
enum Shared<'a> {
    /// They train one run.
    Training(&'a train::TrainArgs),
    /// They divide samples or images; a command with --part does its own without the others.
    Batches { part: Option<part::Part> },
}

impl Command {
    fn shared(&self) -> Option<Shared<'_>> {
        match self {
            Command::TrainVae(args) => Some(Shared::Training(&args.train)),
            Command::TrainGen(args) => Some(Shared::Training(&args.train)),
            Command::Sample(args) => Some(Shared::Batches { part: args.part }),
            Command::EvalFid(args) => Some(Shared::Batches { part: args.part }),
            Command::EvalVae(args) => Some(Shared::Batches { part: args.part }),
            Command::Encode(args) if args.has_shards() => Some(Shared::Batches { part: args.part }),
            _ => None,
        }
    }

    /// Whether it writes files that several processes would write at once.
    fn writes_alone(&self) -> bool {
        match self {
            Command::Encode(args) => !args.has_shards(),
            Command::Demo(_)
            | Command::Reconstruct(_)
            | Command::Decode(_)
            | Command::FitProbe(_)
            | Command::Export(_)
            | Command::Index(_)
            | Command::Report(_)
            | Command::Pack(_) => true,
            _ => false,
        }
    }

    /// Errors: a launcher started several processes of a command that writes alone, and this is not
    /// the first of them, which goes on.
    fn check_alone(&self) -> Result<()> {
        let place = self.writes_alone().then(Place::of_environment);
        match place.and_then(|found| found.ok().flatten()) {
            Some(place) if place.rank > 0 => Err(usage(
                format!(
                    "{} is one process, and a launcher started {}: this is rank {}",
                    self.name(),
                    place.size,
                    place.rank
                ),
                "start it once, without the launcher; what processes share are train-vae, train-gen, sample, eval-fid, \
                 eval-vae, and the shards of encode",
            )),
            _ => Ok(()),
        }
    }
}

/// Trains, samples and evaluates the Recurrent Diffusion Probabilistic Model (arXiv 2412.18390)
#[derive(Debug, Parser)]
#[command(name = "rdpm", version, propagate_version = true)]
pub struct Cli {
    #[command(flatten)]
    pub global: GlobalArgs,
    #[command(subcommand)]
    pub command: Command,
}

/// Options of every subcommand.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Global options")]
pub struct GlobalArgs {
    /// Print more on stderr: all metrics, files and checkpoints; given twice, every image read
    #[arg(short, long, global = true, action = ArgAction::Count, conflicts_with = "quiet")]
    pub verbose: u8,
    /// Print warnings and errors only
    #[arg(short, long, global = true)]
    pub quiet: bool,
    /// Write a trace for chrome://tracing or ui.perfetto.dev
    #[arg(long, global = true, value_name = "FILE")]
    pub trace: Option<PathBuf>,
    /// CPU threads, at most 1024 [default: $RAYON_NUM_THREADS, or all that this process may use]
    #[arg(long, global = true, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub threads: Option<u16>,
    /// Device to compute on: cpu, cuda, cuda:N, or auto: a GPU if there is one
    #[arg(long, global = true, value_name = "DEVICE", default_value_t)]
    pub device: DeviceChoice,
}

/// What a subcommand's `run()` gets besides its own arguments.
#[derive(Debug, Clone)]
pub struct Context {
    pub threads: usize,
    device: DeviceChoice,
}

impl Context {
    pub fn new(device: DeviceChoice, threads: usize) -> Self {
        Self { threads, device }
    }

    /// The device of --device; an error says what this machine or this binary lacks.
    pub fn device(&self) -> Result<Device> {
        self.device.open()
    }

    /// Meets the processes that train together, as their launcher says, each of them on the GPU of
    /// its number if they see several; without a launcher this one is alone.
    ///
    /// Errors: more processes on this machine than GPUs.
    pub fn join(&self) -> Result<(Self, World)> {
        let Some(place) = Place::of_environment()? else {
            return Ok((self.clone(), World::alone()));
        };
        Ok((self.of_rank(&place)?, World::join(&place, Work::TRAINING)?))
    }

    /// This process's own, on the device of its number.
    fn of_rank(&self, place: &Place) -> Result<Self> {
        Ok(Self {
            device: self.device.of_rank(place.local_rank, place.local_size)?,
            ..self.clone()
        })
    }

    /// Runs `body` together with the processes that a launcher started, each of them on the GPU of
    /// its number if they see several; without a launcher, or with `alone`, this one is alone.
    ///
    /// Errors: those of `body` at any of them; more processes on this machine than GPUs.
    pub fn share(
        &self,
        alone: bool,
        work: Work,
        body: impl FnOnce(&Context, &World) -> Result<()>,
    ) -> Result<()> {
        let place = match alone {
            true => None,
            false => Place::of_environment()?,
        };
        let Some(place) = place else {
            return body(self, &World::alone());
        };
        let own = self.of_rank(&place)?;
        World::join(&place, work)?.run(|world| {
            // A signal before the first samples lets all ranks stop together after them.
            let _listening = Interrupt::listen()?;
            body(&own, world)?;
            world.part()
        })
    }

    /// What --device asks for.
    pub fn choice(&self) -> DeviceChoice {
        self.device
    }
}

/// NCCL's sums within NVLink's switches, whose order, and so whose last bits, differ from call to
/// call.
const IN_SWITCH: &str = "NCCL_NVLS_ENABLE";

/// Sets up threads, log and trace, then runs the subcommand on a thread with a deep stack.
pub fn run(cli: Cli) -> Result<()> {
    cli.command.check_alone()?;
    // What is wrong with a launcher's variables is said where they matter.
    let together = match cli.command.shared() {
        Some(Shared::Training(_)) => true,
        Some(Shared::Batches { part }) => part.is_none(),
        None => false,
    };
    let place = together.then(Place::of_environment);
    let place = place.and_then(|found| found.ok().flatten());
    let local = match &cli.command {
        // What it starts takes the number from the environment.
        Command::Launch(args) => args.nproc.into(),
        _ => place.as_ref().map_or(1, |place| place.local_size),
    };
    let threads = set_environment(cli.global.threads, local)?;
    if cfg!(feature = "cuda") && place.is_some() && std::env::var_os(IN_SWITCH).is_none() {
        // SAFETY: as in `set_environment`.
        unsafe { std::env::set_var(IN_SWITCH, "0") };
    }
    let _telemetry = telemetry::init(&telemetry::Options {
        verbose: cli.global.verbose,
        quiet: cli.global.quiet,
        trace: cli.global.trace.clone(),
        rank: place.map(|place| place.rank),
    })?;
    let context = Context::new(cli.global.device, threads);
    let worker = std::thread::Builder::new()
        .name("rdpm".into())
        .stack_size(STACK_BYTES)
        .spawn(move || {
            start_pool(threads)?;
            let less_memory = cli.command.needs_less_memory();
            (cli.command.run(&context))
                .map_err(|error| gpu_error::explained(error, less_memory, "run the command again"))
        })?;
    worker.join().unwrap_or_else(|_| {
        Err(hinted(
            "internal error: a thread panicked (message above)",
            "this is a bug in rdpm: please report it with this command line and the output with RUST_BACKTRACE=1",
        ))
    })
}

/// More than any machine's cores; each has a stack and buffers of its own.
const MOST_THREADS: usize = 1024;

/// Sets the number of threads of rayon's pool and of gemm's splits, and returns it: unless it is
/// given, the processor's share of one of `local` processes that work together on this machine.
/// candle's own pool, whose threads spin at barriers, gets one thread.
///
/// Errors: more than [`MOST_THREADS`].
///
/// RUST_BACKTRACE stays for panics only: otherwise candle would put a backtrace into the text of
/// every error.
fn set_environment(asked: Option<u16>, local: usize) -> Result<usize> {
    let from_environment = std::env::var("RAYON_NUM_THREADS")
        .ok()
        .and_then(|n| n.parse::<usize>().ok())
        .filter(|n| *n > 0);
    let threads = asked
        .map(usize::from)
        .or(from_environment)
        .unwrap_or_else(|| {
            let all = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
            (all / local.max(1)).clamp(1, MOST_THREADS)
        });
    if threads > MOST_THREADS {
        let from = match asked {
            Some(_) => "--threads",
            None => "$RAYON_NUM_THREADS",
        };
        return Err(usage(
            format!("{from}: {threads} threads, at most {MOST_THREADS}"),
            "each takes memory of its own, and more than there are cores compute no faster",
        ));
    }
    let or = |name, default: &str| std::env::var(name).unwrap_or_else(|_| default.into());
    for (name, value) in [
        ("RAYON_NUM_THREADS", threads.to_string()),
        ("CANDLE_NUM_THREADS", or("CANDLE_NUM_THREADS", "1")),
        ("RUST_LIB_BACKTRACE", or("RUST_LIB_BACKTRACE", "0")),
    ] {
        // SAFETY: this is the first thing that main does: no other thread is running that could
        // read the environment.
        unsafe { std::env::set_var(name, value) };
    }
    Ok(threads)
}

/// Tasks that faer divides its products and decompositions into. The last bits of eigenvalues
/// depend on their number, and the number of threads on that of the processes beside this one.
const TASKS: usize = 8;

/// Makes the calling thread the first of rayon's pool, so that it takes part in an operation's
/// work. Otherwise it would hand over all work and wait to be woken, which costs a small operation
/// more than its arithmetic.
fn start_pool(threads: usize) -> Result<()> {
    faer::set_global_parallelism(faer::Par::rayon(TASKS));
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .use_current_thread()
        .build_global()
        .map_err(|e| usage(format!("--threads {threads}: {e}"), "ask for fewer"))
}

/// Writes a result to stdout; a reader that has closed the pipe (`rdpm inspect … | head`) is no
/// error.
pub fn print(text: &str) -> Result<()> {
    let mut stdout = std::io::stdout().lock();
    match stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
    {
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        Err(e) => Err(hinted(
            format!("cannot write the result to stdout: {e}"),
            match e.kind() {
                std::io::ErrorKind::StorageFull => "the disk that it is redirected to is full",
                _ => "redirect it to a file that can be written",
            },
        )),
        Ok(()) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_subcommand_says_what_it_does() {
        for command in Cli::command().get_subcommands() {
            assert!(command.get_about().is_some(), "{}", command.get_name());
        }
    }

    /// A number of images is held in memory before the first of them is drawn.
    #[test]
    fn a_number_of_images_is_bounded_where_it_is_read() {
        let parse = |num| Cli::try_parse_from(["rdpm", "sample", "--num", num]);
        assert!(parse("10000000").is_ok());
        let error = parse("10000001").expect_err("this must be refused");
        assert!(error.to_string().contains("1..=10000000"), "{error}");
    }

    #[test]
    fn global_options_may_stand_after_the_subcommand() {
        let cli = Cli::parse_from(["rdpm", "completions", "zsh", "--threads", "3", "-vv"]);
        assert_eq!((cli.global.threads, cli.global.verbose), (Some(3), 2));
        for wrong in [["--threads", "0"], ["--device", "gpu"]] {
            let error = Cli::try_parse_from(["rdpm", "completions", "zsh"].iter().chain(&wrong))
                .expect_err("this must be refused");
            assert_eq!(error.exit_code(), 2);
        }
    }
}
