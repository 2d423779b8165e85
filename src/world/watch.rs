//! Signs of life between ranks, on connections of their own: whichever rank fails, is killed or
//! falls silent, all others end at once and name it.
//!
//! Every rank but the first has such a connection to rank 0, on which both sides say each second
//! how many steps they have done. A thread for each connection listens. A broken connection, or
//! none of these signs for [`SILENCE`], ends the process with an error; rank 0 first tells the
//! other ranks why, so that all say the same.

use std::io::{self, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::wire::{self, Kind, SHORT};
use crate::error::{self, Context, Error, Result, hinted};

/// Between two signs of life.
const BEAT: Duration = Duration::from_secs(1);

/// Without a sign of life for so long, a rank counts as dead.
const SILENCE: Duration = Duration::from_secs(20);

/// How long whoever lost a connection for data waits to be ended by the thread that knows why.
const VERDICT: Duration = Duration::from_secs(5);

/// What a failed rank tells, or rank 0 of it.
#[derive(Debug, Serialize, Deserialize)]
struct Failure {
    text: String,
    hint: String,
    code: u8,
}

/// What ranks do together, for messages.
#[derive(Debug, Clone, Copy)]
pub struct Work {
    /// What they count: step.
    pub unit: &'static str,
    /// What to do when a rank fails and does not say it.
    pub remedy: &'static str,
}

impl Work {
    pub const TRAINING: Work = Work {
        unit: "step",
        remedy: "the run's newest checkpoint is whole: start all ranks again with --resume",
    };
}

/// The watched connections of this process.
#[derive(Debug)]
pub struct Watch(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    rank: usize,
    work: Work,
    /// Of each rank.
    hosts: Vec<String>,
    /// Steps that each rank has done, as far as this one knows.
    steps: Vec<AtomicU64>,
    /// This process has done its work, or is being ended: what happens to others no longer
    /// matters.
    left: AtomicBool,
    /// When this process last gave a sign of life.
    beaten: Mutex<Instant>,
    /// With their ranks.
    connections: Vec<(usize, Mutex<TcpStream>)>,
}

impl Watch {
    /// Watches `connections` to other ranks.
    pub fn start(
        rank: usize,
        work: Work,
        hosts: Vec<String>,
        connections: Vec<(usize, TcpStream)>,
    ) -> Result<Self> {
        let mut listening = Vec::new();
        for (peer, connection) in &connections {
            connection.set_read_timeout(Some(SILENCE))?;
            // A rank that no longer reads must not hold up the news for the others.
            connection.set_write_timeout(Some(BEAT))?;
            listening.push((*peer, connection.try_clone()?));
        }
        let connections = connections.into_iter();
        let shared = Arc::new(Shared {
            rank,
            work,
            steps: hosts.iter().map(|_| AtomicU64::new(0)).collect(),
            hosts,
            left: AtomicBool::new(false),
            beaten: Mutex::new(Instant::now()),
            connections: connections.map(|(peer, c)| (peer, Mutex::new(c))).collect(),
        });
        let failed = "could not start a thread that watches the other ranks";
        for (peer, connection) in listening {
            let shared = shared.clone();
            thread::Builder::new()
                .name(format!("rdpm-watch-{peer}"))
                .spawn(move || shared.listen(peer, connection))
                .context(failed)?;
        }
        let beating = shared.clone();
        thread::Builder::new()
            .name("rdpm-beat".to_string())
            .spawn(move || beating.beat())
            .context(failed)?;
        Ok(Self(shared))
    }

    /// This process has done so many steps.
    pub fn at(&self, step: u64) {
        self.0.steps[self.0.rank].store(step, Ordering::Relaxed);
    }

    /// From here on it is no failure if another rank ends.
    pub fn part(&self) {
        self.0.left.store(true, Ordering::SeqCst);
    }

    /// Says goodbye or, unless all have parted, why this process fails.
    pub fn leave(&self, failure: Option<&Error>) {
        let parted = self.0.left.swap(true, Ordering::SeqCst);
        let failure = failure.filter(|_| !parted).map(|error| {
            let (text, code) = error::report(error);
            let text = text.lines().next().unwrap_or_default();
            Failure {
                text: text.trim_start_matches("error: ").to_string(),
                hint: error::hint(error).unwrap_or(self.0.work.remedy).to_string(),
                code,
            }
        });
        // An error that another rank says is all ranks' own.
        match failure.filter(|failure| !failure.text.is_empty()) {
            None => self.0.tell_all_but(self.0.rank, Kind::Bye, &[]),
            Some(failure) if self.0.rank == 0 => {
                let text = format!("{}: {}", self.0.stopped(0), failure.text);
                self.0.tell(0, &Failure { text, ..failure });
            }
            Some(failure) => self.0.tell(self.0.rank, &failure),
        }
    }

    /// The error of a lost connection to `peer`, unless the thread that watches it knows better and
    /// ends the process.
    pub fn lost(&self, peer: usize, why: &io::Error) -> Error {
        thread::sleep(VERDICT);
        hinted(
            format!("{}: {why}", self.0.stopped(peer)),
            self.0.work.remedy,
        )
    }

    pub fn name(&self, rank: usize) -> String {
        self.0.name(rank)
    }
}

/// Ends the threads.
impl Drop for Watch {
    fn drop(&mut self) {
        self.0.left.store(true, Ordering::SeqCst);
        for (_, connection) in &self.0.connections {
            let connection = connection.lock().unwrap_or_else(PoisonError::into_inner);
            // Already closed by the other side: the same.
            let _ = connection.shutdown(Shutdown::Both);
        }
    }
}

impl Shared {
    fn name(&self, rank: usize) -> String {
        format!("rank {rank} ({})", self.hosts[rank])
    }

    /// Where `rank` stopped. All ranks do the same steps, so this one's own count is as good, and
    /// newer.
    fn stopped(&self, rank: usize) -> String {
        let [own, its] = [self.rank, rank].map(|r| self.steps[r].load(Ordering::Relaxed));
        let (name, unit) = (self.name(rank), self.work.unit);
        format!("{name} stopped after {unit} {}", own.max(its))
    }

    fn beat(&self) {
        while !self.left.load(Ordering::SeqCst) {
            *self.beaten.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
            let step = self.steps[self.rank].load(Ordering::Relaxed);
            self.tell_all_but(self.rank, Kind::Beat, &step.to_le_bytes());
            thread::sleep(BEAT);
        }
    }

    /// Whether this process itself did not run, as when a scheduler or a terminal suspends a job:
    /// then nobody else did.
    fn was_suspended(&self) -> bool {
        let beaten = *self.beaten.lock().unwrap_or_else(PoisonError::into_inner);
        beaten.elapsed() > SILENCE / 2
    }

    fn listen(&self, peer: usize, mut from: TcpStream) {
        loop {
            match wire::receive(&mut from, SHORT) {
                Ok((Kind::Beat, step)) => {
                    let step = step.try_into().map(u64::from_le_bytes).unwrap_or_default();
                    self.steps[peer].store(step, Ordering::Relaxed);
                }
                Ok((Kind::Bye, _)) => return,
                Ok((Kind::Failed, told)) => {
                    let told = serde_json::from_slice(&told).unwrap_or_else(|error| Failure {
                        text: format!("it failed and did not say why ({error})"),
                        hint: self.work.remedy.to_string(),
                        code: 1,
                    });
                    return self.end(peer, Some(told), "");
                }
                Ok((kind, _)) => return self.end(peer, None, &format!("it sent {kind:?}")),
                Err(error) => {
                    let why = match error.kind() {
                        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
                            if self.was_suspended() {
                                continue;
                            }
                            format!("no sign of life for {} s", SILENCE.as_secs())
                        }
                        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset => {
                            "its connection closed, as if it was killed".to_string()
                        }
                        _ => format!("its connection failed ({error})"),
                    };
                    return self.end(peer, None, &why);
                }
            }
        }
    }

    /// Ends this process because `peer` has failed, as it `told` or as seen here.
    fn end(&self, peer: usize, told: Option<Failure>, seen: &str) {
        if self.left.swap(true, Ordering::SeqCst) {
            return;
        }
        let failure = match told {
            // Rank 0 tells the whole sentence.
            Some(told) if self.rank != 0 => told,
            Some(told) => Failure {
                text: format!("{}: {}", self.stopped(peer), told.text),
                ..told
            },
            None => Failure {
                text: format!("{}: {seen}", self.stopped(peer)),
                hint: self.work.remedy.to_string(),
                code: 1,
            },
        };
        if self.rank == 0 {
            self.tell(peer, &failure);
        }
        let error = hinted(failure.text, failure.hint);
        print(&error);
        exit(failure.code);
    }

    /// Tells the others, but for one rank, of a failure.
    fn tell(&self, all_but: usize, failure: &Failure) {
        let bytes = serde_json::to_vec(failure).unwrap_or_default();
        self.tell_all_but(all_but, Kind::Failed, &bytes);
    }

    fn tell_all_but(&self, rank: usize, kind: Kind, bytes: &[u8]) {
        for (peer, connection) in &self.connections {
            let mut connection = connection.lock().unwrap_or_else(PoisonError::into_inner);
            if *peer != rank {
                // Whoever cannot be told is gone, and the thread that listens to it sees that.
                let _ = wire::send(&mut *connection, kind, bytes);
            }
        }
    }
}

/// Ends this process with an error, whatever its other threads do.
pub fn end_process(error: &Error) -> ! {
    print(error);
    exit(error::report(error).1)
}

fn print(error: &Error) {
    // The terminal may have closed.
    let _ = writeln!(io::stderr(), "{}", error::report(error).0);
}

/// The main thread may be anywhere: in a step, in a checkpoint that appears whole or not at all, or
/// waiting for what never comes. So nothing of it is waited for, nor are the libraries asked to
/// tidy up beneath it.
fn exit(code: u8) -> ! {
    // SAFETY: it takes any number, and does not return.
    unsafe { libc::_exit(i32::from(code)) }
}
