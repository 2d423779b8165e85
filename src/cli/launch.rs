//! `rdpm launch`: starts a command in several processes, and sees to it that they end together.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use clap::Parser;
use signal_hook::consts::{SIGHUP, SIGINT, SIGKILL, SIGTERM, SIGUSR1};
use signal_hook::iterator::Signals;

use super::{Cli, Context, Shared};
use crate::error::{Context as _, Result, hinted, interrupted, usage};
use crate::interrupt::is_ignored;
use crate::store::digest::hex;
use crate::world::Port;

/// Between two looks at the processes.
const PAUSE: Duration = Duration::from_millis(20);

/// How long the others may take to end by themselves after one has failed: they notice.
const NOTICE: Duration = Duration::from_secs(3);

/// And how long after SIGTERM.
const GRACE: Duration = Duration::from_secs(10);

/// Start a command in several processes that train one run, or divide samples or images
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Processes on this machine
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub nproc: u16,
    /// Machines, each of which runs this command with its own --node-rank
    #[arg(long, value_name = "M", default_value_t = 1, requires = "master",
          value_parser = clap::value_parser!(u16).range(1..))]
    nnodes: u16,
    /// The number of this machine, from 0
    #[arg(long, value_name = "R", default_value_t = 0)]
    node_rank: u16,
    /// Where all processes meet: machine 0 and a free port of it; $RDPM_TOKEN must be the same
    /// random word on all machines
    #[arg(long, value_name = "HOST:PORT")]
    master: Option<String>,
    /// Start all processes again, at most K times, when one fails; a command that trains must have
    /// --out DIR --resume auto
    #[arg(long, value_name = "K", default_value_t = 0)]
    restarts: u32,
    /// The command with its options: train-vae, train-gen, sample, eval-fid, eval-vae, or encode
    /// with --shard-size
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<String>,
}

pub fn run(args: &Args, _: &Context) -> Result<()> {
    args.check()?;
    let signals = Forwarded::listen()?;
    let mut restarts = args.restarts;
    loop {
        let Some(failure) = Group::start(args, signals.running.clone())?.wait() else {
            return Ok(());
        };
        let stopped = signals.received.load(Ordering::SeqCst);
        if restarts == 0 || stopped || !failure.may_pass() {
            return Err(failure.error(stopped));
        }
        restarts -= 1;
        tracing::warn!(
            "{}: all start again ({restarts} restarts left)",
            failure.text()
        );
    }
}

impl Args {
    fn check(&self) -> Result<()> {
        let words = ["rdpm"]
            .into_iter()
            .chain(self.command.iter().map(String::as_str));
        let parsed = Cli::try_parse_from(words).unwrap_or_else(|error| error.exit());
        let goes_on = match parsed.command.shared() {
            Some(Shared::Training(train)) => train.is_auto(),
            Some(Shared::Batches { part: None }) => true,
            Some(Shared::Batches { part: Some(_) }) => {
                return Err(usage(
                    "one part for all processes: each would do the same work",
                    "leave the part out: processes that start together divide the work themselves",
                ));
            }
            None => {
                return Err(usage(
                    format!("rdpm {} is one process", self.command[0]),
                    "rdpm launch starts train-vae, train-gen, sample, eval-fid, eval-vae, and encode to shards",
                ));
            }
        };
        if self.node_rank >= self.nnodes {
            return Err(usage(
                format!("--node-rank {} of {} machines", self.node_rank, self.nnodes),
                "machines are counted from 0",
            ));
        }
        if self.nnodes > 1 && std::env::var("RDPM_TOKEN").unwrap_or_default().is_empty() {
            return Err(usage(
                "--nnodes without a token: nothing tells these processes from others'",
                "set RDPM_TOKEN to the same long random word on all machines",
            ));
        }
        if self.restarts > 0 && !goes_on {
            return Err(usage(
                "--restarts for a command that does not go on with its run",
                format!("as rdpm {} --out DIR --resume auto does", self.command[0]),
            ));
        }
        Ok(())
    }

    /// Where the processes meet, and what keeps that place for them.
    fn meeting(&self) -> Result<(String, u16, Option<Port>)> {
        let Some(master) = &self.master else {
            let port = Port::reserve().context("no free port")?;
            return Ok(("127.0.0.1".to_string(), port.number(), Some(port)));
        };
        let parts = master.rsplit_once(':');
        let parts =
            parts.and_then(|(host, port)| Some((host.to_string(), port.parse().ok()?, None)));
        parts.ok_or_else(|| {
            usage(
                format!("--master {master}: expected HOST:PORT"),
                "as in --master node1:29400",
            )
        })
    }
}

/// The processes that have not ended, with their ranks.
type Running = Arc<Mutex<Vec<(usize, Child)>>>;

/// Signals to this process, which go on to the others: each is to save and stop.
struct Forwarded {
    running: Running,
    received: Arc<AtomicBool>,
}

impl Forwarded {
    fn listen() -> Result<Self> {
        let running = Running::default();
        let received: Arc<AtomicBool> = Arc::default();
        // As `Interrupt` does: what nohup ignores stays ignored, but an interrupt always stops.
        let kept = [SIGHUP, SIGUSR1].into_iter();
        let kept = kept.filter(|signal| !is_ignored(*signal));
        let mut signals = Signals::new([SIGINT, SIGTERM].into_iter().chain(kept))
            .context("cannot listen for interrupts")?;
        let (to, flag) = (running.clone(), received.clone());
        thread::Builder::new()
            .name("rdpm-signals".to_string())
            .spawn(move || {
                for signal in signals.forever() {
                    // The first is passed on as one that never ends a process at once: whoever
                    // signals the launcher may signal its processes too, and two would end them.
                    let is_first = !flag.swap(true, Ordering::SeqCst);
                    let gentle = is_first && !is_ignored(SIGUSR1);
                    send(&to, if gentle { SIGUSR1 } else { signal });
                }
            })?;
        Ok(Self { running, received })
    }
}

/// Processes that train together.
struct Group {
    running: Running,
    printers: Vec<JoinHandle<()>>,
    _port: Option<Port>,
}

/// The rank that failed first, and how it ended.
struct Failure {
    rank: usize,
    status: ExitStatus,
}

impl Group {
    fn start(args: &Args, running: Running) -> Result<Self> {
        let program = std::env::current_exe().context("cannot find this program")?;
        let (host, port, reserved) = args.meeting()?;
        let token = match std::env::var("RDPM_TOKEN") {
            Ok(token) if !token.is_empty() => token,
            _ => random_word()?,
        };
        let (local, nodes) = (usize::from(args.nproc), usize::from(args.nnodes));
        let mut group = Self {
            running,
            printers: Vec::new(),
            _port: reserved,
        };
        for local_rank in 0..local {
            let rank = usize::from(args.node_rank) * local + local_rank;
            let mut command = Command::new(&program);
            command
                .args(&args.command)
                .env("RANK", rank.to_string())
                .env("WORLD_SIZE", (local * nodes).to_string())
                .env("LOCAL_RANK", local_rank.to_string())
                .env("LOCAL_WORLD_SIZE", local.to_string())
                .env("MASTER_ADDR", &host)
                .env("MASTER_PORT", port.to_string())
                .env("RDPM_TOKEN", &token)
                .env_remove("RDPM_PORT")
                .env_remove("TORCHELASTIC_USE_AGENT_STORE")
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                // A terminal's interrupt reaches this process alone, which hands it on once.
                .process_group(0);
            end_with_parent(&mut command);
            let mut child = command.spawn().context("cannot start a process")?;
            let (out, err) = (child.stdout.take(), child.stderr.take());
            lock(&group.running).push((rank, child));
            if let Some(out) = out {
                group.print(rank, out, String::new(), io::stdout)?;
            }
            if let Some(err) = err {
                group.print(rank, err, format!("[{rank}] "), io::stderr)?;
            }
        }
        Ok(group)
    }

    /// Prints what a rank says, line by line.
    fn print<W: Write>(
        &mut self,
        rank: usize,
        from: impl Read + Send + 'static,
        before: String,
        to: impl Fn() -> W + Send + 'static,
    ) -> Result<()> {
        let body = move || {
            for line in BufReader::new(from).split(b'\n').map_while(io::Result::ok) {
                let line = [before.as_bytes(), &line, b"\n"].concat();
                // The terminal may have closed; the processes go on.
                let _ = to().write_all(&line);
            }
        };
        let printer = thread::Builder::new()
            .name(format!("rdpm-rank-{rank}"))
            .spawn(body);
        self.printers
            .push(printer.context("cannot start a thread")?);
        Ok(())
    }

    /// Waits for all to end, which is soon after the first failure.
    fn wait(mut self) -> Option<Failure> {
        let mut failure: Option<Failure> = None;
        let (mut since, mut told, mut killed) = (Instant::now(), false, false);
        while !lock(&self.running).is_empty() {
            lock(&self.running).retain_mut(|(rank, child)| {
                let Ok(Some(status)) = child.try_wait() else {
                    return true;
                };
                // Whoever was killed is the reason why others failed.
                let is_first = failure.as_ref().is_none_or(|failure| {
                    failure.status.signal().is_none() && status.signal().is_some() && !told
                });
                if !status.success() && is_first {
                    if failure.is_none() {
                        since = Instant::now();
                    }
                    failure = Some(Failure {
                        rank: *rank,
                        status,
                    });
                }
                false
            });
            if failure.is_some() && since.elapsed() > NOTICE && !told {
                told = true;
                send(&self.running, SIGTERM);
            }
            if told && since.elapsed() > NOTICE + GRACE && !killed {
                killed = true;
                send(&self.running, SIGKILL);
            }
            thread::sleep(PAUSE);
        }
        for printer in self.printers.drain(..) {
            // A panic has been printed.
            let _ = printer.join();
        }
        failure
    }
}

/// No process is left behind, whatever happens here.
impl Drop for Group {
    fn drop(&mut self) {
        for (_, mut child) in lock(&self.running).drain(..) {
            // It may have ended.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Failure {
    fn text(&self) -> String {
        match (self.status.signal(), self.status.code()) {
            (Some(signal), _) => format!("rank {} was killed by signal {signal}", self.rank),
            (None, code) => format!(
                "rank {} ended with exit code {}",
                self.rank,
                code.unwrap_or(1)
            ),
        }
    }

    /// Whether another attempt may end otherwise.
    fn may_pass(&self) -> bool {
        !matches!(self.status.code(), Some(2 | 130))
    }

    fn error(&self, stopped: bool) -> crate::error::Error {
        let hint = "its own message, above, says why";
        match self.status.code() {
            Some(130) => interrupted(
                "all ranks were interrupted",
                "their message, above, says how to continue",
            ),
            Some(2) => usage(self.text(), hint),
            _ if stopped => interrupted(self.text(), hint),
            _ => hinted(self.text(), hint),
        }
    }
}

fn lock(running: &Running) -> MutexGuard<'_, Vec<(usize, Child)>> {
    running.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Sends a signal to each process; none of them has been waited for, so its number is its own.
fn send(to: &Running, signal: i32) {
    for (_, child) in lock(to).iter() {
        // SAFETY: kill takes any two numbers.
        unsafe { libc::kill(child.id() as libc::pid_t, signal) };
    }
}

/// Lets the kernel end a child, with a checkpoint, when this process is killed. The signal comes
/// once for every thread of this process, and only of SIGUSR1 a second one does no harm.
#[cfg(target_os = "linux")]
fn end_with_parent(command: &mut Command) {
    // SAFETY: between fork and exec only this system call runs, which touches no memory.
    unsafe {
        command.pre_exec(|| {
            libc::prctl(libc::PR_SET_PDEATHSIG, SIGUSR1);
            Ok(())
        });
    }
}

#[cfg(not(target_os = "linux"))]
fn end_with_parent(_: &mut Command) {}

/// What only this job's processes know.
fn random_word() -> Result<String> {
    let mut bytes = [0; 16];
    std::fs::File::open("/dev/urandom")
        .and_then(|mut random| random.read_exact(&mut bytes))
        .context("cannot read /dev/urandom")?;
    Ok(hex(&bytes))
}
