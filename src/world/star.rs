//! How ranks meet, and their connections for data: every rank has one to rank 0.
//!
//! Rank 0 listens until all others have come, each with two connections (data, and signs of life:
//! [`super::watch`]), and answers each. Whoever does not know the job's token is turned away and
//! waited past; a rank of another version or number, or one that comes twice, is an error by name.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream, ToSocketAddrs};
#[cfg(feature = "cuda")]
use std::sync::Arc;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::place::Place;
use super::visitors::Visitors;
use super::watch::{Watch, Work};
use super::wire::{self, Kind, LONG, SHORT};
use crate::error::{self, Context, Result, hinted, usage};
#[cfg(feature = "cuda")]
use crate::ops::cuda::nccl::Communicator;
use crate::store::lock::host_name;

const PROGRAM: &str = "rdpm-world/1";

/// Between two attempts to connect, or to accept.
const PAUSE: Duration = Duration::from_millis(50);

/// How long connecting may take, or an answer to whoever has connected.
const INTRODUCTION: Duration = Duration::from_secs(5);

/// How long a rank that rank 0 has let in tries to connect a second time: rank 0 turns away whoever
/// else comes first.
const SECOND: Duration = Duration::from_secs(30);

/// When to say whom rank 0 still waits for.
const IMPATIENT: Duration = Duration::from_secs(10);

/// Who connects.
#[derive(Debug, Serialize, Deserialize)]
struct Hello {
    program: String,
    version: String,
    token: String,
    rank: usize,
    size: usize,
    host: String,
    channel: Channel,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Channel {
    Data,
    Watch,
}

/// This process's connections to others.
#[derive(Debug)]
pub struct Link {
    pub rank: usize,
    pub size: usize,
    /// At rank 0 one for each other rank, in order; elsewhere the one to rank 0.
    data: Mutex<Vec<TcpStream>>,
    /// When this process last waited for another; none while it does.
    waited: Mutex<Option<Instant>>,
    pub watch: Watch,
    /// What the ranks' GPUs sum with, once they are connected.
    #[cfg(feature = "cuda")]
    pub gpus: Mutex<Option<Arc<Communicator>>>,
}

impl Link {
    /// Meets the other processes of the job.
    pub fn join(place: &Place, work: Work) -> Result<Self> {
        let (data, watched, hosts) = match place.rank {
            0 => receive_all(place)?,
            _ => visit(place)?,
        };
        for connection in &data {
            connection.set_read_timeout(None)?;
            connection.set_nodelay(true)?;
        }
        let peers = match place.rank {
            0 => 1..place.size,
            _ => 0..1,
        };
        Ok(Self {
            rank: place.rank,
            size: place.size,
            data: Mutex::new(data),
            waited: Mutex::new(Some(Instant::now())),
            #[cfg(feature = "cuda")]
            gpus: Mutex::new(None),
            watch: Watch::start(place.rank, work, hosts, peers.zip(watched).collect())?,
        })
    }

    fn data(&self) -> MutexGuard<'_, Vec<TcpStream>> {
        self.data.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn waited(&self) -> MutexGuard<'_, Option<Instant>> {
        self.waited.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From here on this process waits for another, until the value is dropped.
    pub fn wait(&self) -> Waiting<'_> {
        *self.waited() = None;
        Waiting(self)
    }

    /// Since when, after `begin`, this process has not waited for others: now if it waits.
    pub fn alone_since(&self, begin: Instant) -> Instant {
        self.waited().unwrap_or_else(Instant::now).max(begin)
    }

    /// With the connection to each other rank in order, at rank 0.
    pub fn with_others(
        &self,
        mut body: impl FnMut(usize, &mut TcpStream) -> io::Result<()>,
    ) -> Result<()> {
        let _waiting = self.wait();
        for (rank, connection) in (1..).zip(self.data().iter_mut()) {
            body(rank, connection).map_err(|error| self.watch.lost(rank, &error))?;
        }
        Ok(())
    }

    /// With the connection to rank 0, at any other.
    pub fn with_first<T>(&self, body: impl FnOnce(&mut TcpStream) -> io::Result<T>) -> Result<T> {
        let (_waiting, mut data) = (self.wait(), self.data());
        body(&mut data[0]).map_err(|error| self.watch.lost(0, &error))
    }
}

/// This process waits for another.
pub struct Waiting<'a>(&'a Link);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        *self.0.waited() = Some(Instant::now());
    }
}

/// Connections for data and for signs of life, and the hosts of all ranks.
type Met = (Vec<TcpStream>, Vec<TcpStream>, Vec<String>);

/// Waits for all other ranks, at rank 0.
fn receive_all(place: &Place) -> Result<Met> {
    let listener = listen(place)?;
    listener.set_nonblocking(true)?;
    let mut hosts = vec![String::new(); place.size];
    hosts[0] = host_name();
    let mut come = [(); 2].map(|()| (0..place.size).map(|_| None).collect());
    if let Err(error) = fill(place, &listener, &mut come, &mut hosts) {
        let (text, _) = error::report(&error);
        let text = text.lines().next().unwrap_or_default();
        for mut waiting in come.into_iter().flatten().flatten() {
            // It may have gone.
            let _ = wire::send(&mut waiting, Kind::Refused, text.as_bytes());
        }
        return Err(error);
    }
    let [data, watched] = come.map(|channel| channel.into_iter().flatten().collect::<Vec<_>>());
    let told = serde_json::to_vec(&hosts)?;
    for (rank, mut connection) in (1..).zip(&data) {
        wire::send(&mut connection, Kind::Start, &told)
            .with_context(|| format!("rank {rank} ({}) is gone", hosts[rank]))?;
    }
    Ok((data, watched, hosts))
}

/// Waits until both connections of each other rank have come.
fn fill(
    place: &Place,
    listener: &TcpListener,
    come: &mut [Vec<Option<TcpStream>>; 2],
    hosts: &mut [String],
) -> Result<()> {
    let (begin, mut said) = (Instant::now(), false);
    let mut visitors = Visitors::default();
    let missing = |come: &[Vec<Option<TcpStream>>; 2]| -> Vec<usize> {
        let all = 1..place.size;
        all.filter(|&rank| come.iter().any(|channel| channel[rank].is_none()))
            .collect()
    };
    loop {
        let absent = missing(come);
        if absent.is_empty() {
            return Ok(());
        }
        let waited = begin.elapsed();
        if waited > place.patience {
            return Err(hinted(
                format!(
                    "ranks {absent:?} of {} did not come to {}:{} within {} s",
                    place.size,
                    place.host,
                    place.port,
                    waited.as_secs()
                ),
                "start as many processes as their number says, all with the same MASTER_ADDR and MASTER_PORT",
            ));
        }
        if waited > IMPATIENT && !said {
            tracing::info!("waiting for ranks {absent:?} of {}", place.size);
            said = true;
        }
        visitors.accept(listener).context("rank 0 cannot listen")?;
        let introduced = visitors.introduced();
        if introduced.is_empty() {
            thread::sleep(PAUSE);
        }
        for (visitor, said) in introduced {
            receive(place, visitor, said, come, hosts)?;
        }
    }
}

/// Gives a visitor its seat. Errors: it is of this job, but none is for it.
fn receive(
    place: &Place,
    mut visitor: TcpStream,
    said: io::Result<(Kind, Vec<u8>)>,
    come: &mut [Vec<Option<TcpStream>>; 2],
    hosts: &mut [String],
) -> Result<()> {
    visitor.set_nonblocking(false)?;
    visitor.set_write_timeout(Some(INTRODUCTION))?;
    let hello = match said.and_then(hello) {
        Ok(hello) if hello.program == PROGRAM && hello.token == place.token => hello,
        // Some other program, or another job's process: neither is a reason to fail.
        other => {
            let who = visitor
                .peer_addr()
                .map_or_else(|e| e.to_string(), |a| a.to_string());
            tracing::warn!("turned away {who}, which is not of this job");
            if other.is_ok() {
                let text = "its job is another: the token differs";
                let _ = wire::send(&mut visitor, Kind::Refused, text.as_bytes());
            }
            return Ok(());
        }
    };
    let seat = come[hello.channel as usize].get(hello.rank);
    if let Err(text) = fits(place, &hello, seat.is_some_and(Option::is_some)) {
        let _ = wire::send(&mut visitor, Kind::Refused, text.as_bytes());
        return Err(usage(
            format!("rank {} ({}): {text}", hello.rank, hello.host),
            "start each rank once, with the same program and the same number of processes",
        ));
    }
    // It may have gone again; then its connections say so soon.
    let _ = wire::send(&mut visitor, Kind::Welcome, &[]);
    visitor.set_write_timeout(None)?;
    hosts[hello.rank] = hello.host;
    come[hello.channel as usize][hello.rank] = Some(visitor);
    Ok(())
}

pub(super) fn listen(place: &Place) -> Result<TcpListener> {
    TcpListener::bind((&*place.host, place.port)).map_err(|error| {
        let at = format!("{}:{}", place.host, place.port);
        hinted(
            format!("rank 0 cannot listen at {at}: {error}"),
            match error.kind() {
                io::ErrorKind::AddrInUse => {
                    "another program has this port: set RDPM_PORT to another one for all ranks"
                }
                _ => "MASTER_ADDR must be a name or an address of the machine of rank 0",
            },
        )
    })
}

/// What a visitor says of itself.
fn hello((kind, bytes): (Kind, Vec<u8>)) -> io::Result<Hello> {
    wire::check(kind, Kind::Hello)?;
    Ok(serde_json::from_slice(&bytes)?)
}

/// Reads bytes as each frame that a process may be sent; whether they are one.
pub fn read_frames(bytes: &[u8]) -> bool {
    let mut frames = bytes;
    let mut accepted = wire::receive(&mut &*bytes, SHORT).and_then(hello).is_ok();
    while let Ok((kind, contents)) = wire::receive(&mut frames, LONG) {
        let hosts = serde_json::from_slice::<Vec<String>>(&contents);
        accepted |= kind == Kind::Start && hosts.is_ok();
    }
    for kind in [Kind::Gather, Kind::Agree] {
        accepted |= receive_list(&mut &*bytes, kind, LONG).is_ok();
    }
    for kind in [Kind::Sum, Kind::Copy] {
        let mut numbers = [0f32; 4];
        let read = wire::receive_numbers(&mut &*bytes, kind, &mut numbers, |sum, x| *sum += x);
        accepted |= read.is_ok();
    }
    accepted
}

/// Whether a process of this job has its place here.
fn fits(place: &Place, hello: &Hello, is_taken: bool) -> std::result::Result<(), String> {
    let own = env!("CARGO_PKG_VERSION");
    if hello.version != own {
        return Err(format!("it is rdpm {}, rank 0 is {own}", hello.version));
    }
    if hello.size != place.size {
        return Err(format!(
            "it counts {} processes, rank 0 counts {}",
            hello.size, place.size
        ));
    }
    if hello.rank == 0 || hello.rank >= place.size || is_taken {
        return Err("another process has this rank".to_string());
    }
    Ok(())
}

/// Goes to rank 0, at any other.
fn visit(place: &Place) -> Result<Met> {
    let deadline = Instant::now() + place.patience;
    let data = enter(place, Channel::Data, deadline)?;
    // Rank 0 is there now, or no longer.
    let watched = enter(place, Channel::Watch, deadline.min(Instant::now() + SECOND));
    // The others may need as long as this one may wait.
    data.set_read_timeout(Some(place.patience))?;
    let not_started = |why: &dyn fmt::Display| {
        let at = format!("{}:{}", place.host, place.port);
        hinted(
            format!("rank 0 at {at} does not start: {why}"),
            "its own message says more",
        )
    };
    let hosts = match wire::receive(&mut &data, SHORT).map_err(|error| not_started(&error))? {
        (Kind::Start, hosts) => hosts,
        (Kind::Refused, text) => return Err(not_started(&String::from_utf8_lossy(&text))),
        (kind, _) => return Err(not_started(&format!("it sent {kind:?}"))),
    };
    let watched = watched?;
    let hosts: Vec<String> = serde_json::from_slice(&hosts)?;
    if hosts.len() != place.size {
        return Err(hinted("rank 0 counts other processes", ""));
    }
    Ok((vec![data], vec![watched], hosts))
}

/// Connects until rank 0 says welcome.
fn enter(place: &Place, channel: Channel, deadline: Instant) -> Result<TcpStream> {
    let hello = serde_json::to_vec(&Hello {
        program: PROGRAM.to_string(),
        version: env!("CARGO_PKG_VERSION").to_string(),
        token: place.token.clone(),
        rank: place.rank,
        size: place.size,
        host: host_name(),
        channel,
    })?;
    loop {
        let error = match attempt(place, &hello, deadline) {
            Ok((connection, None)) => return Ok(connection),
            Ok((_, Some(refused))) => {
                return Err(usage(
                    format!("rank 0 refuses rank {}: {refused}", place.rank),
                    "all ranks need the same program, number of processes and job; MASTER_PORT must be this job's own",
                ));
            }
            Err(error) => error,
        };
        if Instant::now() > deadline {
            return Err(hinted(
                format!(
                    "rank {} found no rank 0 at {}:{} within {} s ({error})",
                    place.rank,
                    place.host,
                    place.port,
                    place.patience.as_secs()
                ),
                "start rank 0 too, with the same MASTER_ADDR and MASTER_PORT, and let its port be reached",
            ));
        }
        thread::sleep(PAUSE);
    }
}

/// A connection, and why it is refused if it is.
fn attempt(
    place: &Place,
    hello: &[u8],
    deadline: Instant,
) -> io::Result<(TcpStream, Option<String>)> {
    let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
    for address in (&*place.host, place.port).to_socket_addrs()? {
        let mut connection = match TcpStream::connect_timeout(&address, INTRODUCTION) {
            Ok(connection) => connection,
            Err(error) => {
                last = error;
                continue;
            }
        };
        let left = deadline.saturating_duration_since(Instant::now());
        connection.set_read_timeout(Some(left.max(PAUSE)))?;
        wire::send(&mut connection, Kind::Hello, hello)?;
        let (answer, text) = wire::receive(&mut connection, SHORT)?;
        return match answer {
            Kind::Welcome => Ok((connection, None)),
            Kind::Refused => {
                let text = String::from_utf8_lossy(&text).into_owned();
                Ok((connection, Some(text)))
            }
            _ => Err(io::ErrorKind::InvalidData.into()),
        };
    }
    Err(last)
}

/// Sends a list of byte strings.
pub fn send_list(to: &mut impl Write, kind: Kind, list: &[Vec<u8>]) -> io::Result<()> {
    let mut bytes = Vec::new();
    for one in list {
        bytes.extend_from_slice(&(one.len() as u64).to_le_bytes());
        bytes.extend_from_slice(one);
    }
    wire::send(to, kind, &bytes)
}

/// Receives what [`send_list`] sent.
pub fn receive_list(from: &mut impl Read, kind: Kind, most: u64) -> io::Result<Vec<Vec<u8>>> {
    let bytes = wire::expect(from, kind, most)?;
    let (mut list, mut rest) = (Vec::new(), bytes.as_slice());
    while !rest.is_empty() {
        let split = rest.split_first_chunk().and_then(|(len, rest)| {
            let len = usize::try_from(u64::from_le_bytes(*len)).ok()?;
            rest.split_at_checked(len)
        });
        let (one, after) = split.ok_or(io::ErrorKind::UnexpectedEof)?;
        list.push(one.to_vec());
        rest = after;
    }
    Ok(list)
}
