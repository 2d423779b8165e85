//! Locks on what one process writes: the system's, or where a file system has none (some mounts of
//! NFS and Lustre, FUSE), a file beside it that names the process.
//!
//! Such a file, `NAME.owner`, holds host, process and when that process started. It is respected
//! where locks work too, since another machine may see the same files through another mount. Its
//! owner removes it; one whose process is gone from this machine is taken over. Whether a process
//! of another machine lives cannot be known from here: it counts as living until the file is
//! removed.

use std::ffi::CStr;
use std::fmt;
use std::fs::{self, File, TryLockError};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::Once;
use std::time::Duration;

/// What is added to the name of a locked file or folder.
pub const OWNER: &str = ".owner";

/// How long a process waits before it believes that nobody else has made itself the owner of the
/// same file.
const DOUBT: Duration = Duration::from_millis(50);

/// A lock that is held until it is dropped, or the process ends.
#[derive(Debug)]
pub struct Lock {
    /// Holds the system's lock.
    _file: File,
    _owned: Option<Owned>,
}

/// A file that names this process; removed when dropped.
#[derive(Debug)]
struct Owned {
    path: PathBuf,
    owner: Owner,
}

/// A process that writes.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Owner {
    host: String,
    process: u32,
    /// In the system's ticks since it started; tells a process from a later one of the same number.
    start: u64,
}

/// Who holds a lock.
#[derive(Debug, PartialEq, Eq)]
pub enum Busy {
    /// A process of this machine, or of another if the file system carries locks between them.
    Unknown,
    /// The process of this number on this machine.
    Here(u32),
    /// What the file says of a process elsewhere.
    Elsewhere {
        process: u32,
        host: String,
        file: PathBuf,
    },
}

impl Busy {
    /// Who holds the lock that could not be had for `error`.
    pub fn of(error: &io::Error) -> Option<&Self> {
        error.get_ref()?.downcast_ref()
    }

    /// What to do about it besides waiting.
    pub fn remedy(&self) -> Option<String> {
        match self {
            Busy::Unknown | Busy::Here(_) => None,
            Busy::Elsewhere { host, file, .. } => Some(format!(
                "if it no longer runs on {host}, remove {}",
                file.display()
            )),
        }
    }
}

impl fmt::Display for Busy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Busy::Unknown => f.write_str("another process"),
            Busy::Here(process) => write!(f, "another process, {process},"),
            Busy::Elsewhere { process, host, .. } => write!(f, "process {process} on {host}"),
        }
    }
}

impl std::error::Error for Busy {}

impl Lock {
    /// Locks `file`, which is open at `path`, for this process.
    ///
    /// Errors: of kind `ResourceBusy` with a [`Busy`] if another process holds the lock; else what
    /// the system says.
    pub fn acquire(file: File, path: &Path) -> io::Result<Self> {
        let owner_file = beside(path);
        let owned = match file.try_lock() {
            Ok(()) => {
                refuse_others(&owner_file)?;
                None
            }
            Err(TryLockError::WouldBlock) => return Err(busy(Busy::Unknown)),
            Err(TryLockError::Error(error)) if is_missing(&error) => {
                warn_once(path, &error);
                Some(Owned::claim(owner_file)?)
            }
            Err(TryLockError::Error(error)) => return Err(error),
        };
        Ok(Self {
            _file: file,
            _owned: owned,
        })
    }
}

fn busy(by: Busy) -> io::Error {
    io::Error::new(ErrorKind::ResourceBusy, by)
}

/// The name of the file that names the owner of `path`.
fn beside(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_os_string();
    name.push(OWNER);
    name.into()
}

/// Whether the file system has no locks: ENOSYS, EOPNOTSUPP, or ENOLCK.
fn is_missing(error: &io::Error) -> bool {
    error.kind() == ErrorKind::Unsupported || error.raw_os_error() == Some(libc::ENOLCK)
}

fn warn_once(path: &Path, error: &io::Error) {
    static SAID: Once = Once::new();
    SAID.call_once(|| {
        tracing::warn!(
            "the file system of {} has no locks ({error}): files named *{OWNER} say which process writes",
            path.display()
        );
    });
}

/// Errors: a living process has named itself in the file at `path`. What a dead one left is
/// removed.
fn refuse_others(path: &Path) -> io::Result<()> {
    let text = match fs::read_to_string(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        text => text?,
    };
    // One that says nothing was left by a process that ended as it wrote it.
    match Owner::parse(&text) {
        Some(owner) if owner.host != host_name() => Err(busy(Busy::Elsewhere {
            process: owner.process,
            host: owner.host,
            file: path.to_path_buf(),
        })),
        Some(owner) if owner.lives() => Err(busy(Busy::Here(owner.process))),
        _ => match fs::remove_file(path) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        },
    }
}

/// Removes the file of an owner that is gone from this machine; whether there is none any more.
pub fn sweep(path: &Path) -> bool {
    refuse_others(path).is_ok()
}

impl Owned {
    /// Makes this process the owner.
    fn claim(path: PathBuf) -> io::Result<Self> {
        let owner = Owner::this();
        match owner.write(&path) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            written => return written.map(|()| Self { path, owner }),
        }
        refuse_others(&path)?;
        owner.write(&path).map_err(|error| match error.kind() {
            ErrorKind::AlreadyExists => busy(Busy::Unknown),
            _ => error,
        })?;
        // Two may have seen the same dead owner; the second removes what the first has written.
        std::thread::sleep(DOUBT);
        match owner.is_named_in(&path) {
            true => Ok(Self { path, owner }),
            false => Err(busy(Busy::Unknown)),
        }
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        if self.owner.is_named_in(&self.path) {
            // What stays is taken over by the next process of this machine.
            let _ = fs::remove_file(&self.path);
        }
    }
}

impl Owner {
    fn this() -> Self {
        let process = std::process::id();
        Self {
            host: host_name(),
            process,
            start: started(process).unwrap_or(0),
        }
    }

    fn text(&self) -> String {
        format!("{} {} {}\n", self.host, self.process, self.start)
    }

    /// Errors: there is a file at `path` already.
    fn write(&self, path: &Path) -> io::Result<()> {
        let mut options = File::options();
        let mut file = options.write(true).create_new(true).open(path)?;
        let written = file.write_all(self.text().as_bytes());
        if written.is_err() {
            // One that says nothing is nobody's.
            let _ = fs::remove_file(path);
        }
        written
    }

    fn is_named_in(&self, path: &Path) -> bool {
        let text = fs::read_to_string(path).ok();
        text.and_then(|text| Self::parse(&text)).as_ref() == Some(self)
    }

    fn parse(text: &str) -> Option<Self> {
        let mut words = text.split_whitespace();
        Some(Self {
            host: words.next()?.to_string(),
            process: words.next()?.parse().ok()?,
            start: words.next()?.parse().ok()?,
        })
    }

    /// Whether it runs on this machine.
    fn lives(&self) -> bool {
        match started(self.process) {
            Some(start) => start == self.start,
            // SAFETY: signal 0 is sent to nobody; it asks whether the process is there.
            None => {
                cfg!(not(target_os = "linux"))
                    && unsafe { libc::kill(self.process as libc::pid_t, 0) } == 0
            }
        }
    }
}

/// When a process of this machine started, in ticks since the machine did; as Linux tells it.
fn started(process: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // After the name in parentheses, which may hold spaces: field 22 of proc(5), counted from 3.
    let (_, after) = stat.rsplit_once(") ")?;
    after.split(' ').nth(19)?.parse().ok()
}

/// This machine's name.
pub fn host_name() -> String {
    let mut name = [0u8; 256];
    // SAFETY: gethostname writes at most `name.len()` bytes to it.
    let failed = unsafe { libc::gethostname(name.as_mut_ptr().cast(), name.len()) } != 0;
    let name = CStr::from_bytes_until_nul(&name).unwrap_or_default();
    match name.to_string_lossy().split_whitespace().next() {
        Some(name) if !failed => name.to_string(),
        _ => "unknown-host".to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn busy_of(result: io::Result<Owned>) -> Busy {
        let error = result.expect_err("it is held");
        assert_eq!(error.kind(), ErrorKind::ResourceBusy);
        let inner = error.into_inner().expect("who holds it");
        *inner.downcast::<Busy>().expect("who holds it")
    }

    #[test]
    fn a_file_names_its_owner_until_it_is_dropped() -> io::Result<()> {
        let root = tempfile::tempdir()?;
        let path = root.path().join(".lock.owner");
        let first = Owned::claim(path.clone())?;
        let here = std::process::id();
        let text = fs::read_to_string(&path)?;
        assert!(
            text.starts_with(&format!("{} {here} ", host_name())),
            "{text}"
        );
        assert_eq!(busy_of(Owned::claim(path.clone())), Busy::Here(here));
        assert!(path.exists(), "whoever is refused leaves it");
        drop(first);
        assert!(!path.exists());
        drop(Owned::claim(path)?);
        Ok(())
    }

    #[test]
    fn a_living_process_is_respected_and_a_dead_one_is_replaced() -> io::Result<()> {
        let root = tempfile::tempdir()?;
        let path = root.path().join(".lock.owner");
        let mut child = std::process::Command::new("sleep").arg("60").spawn()?;
        let start = started(child.id()).expect("Linux tells it");
        let text = format!("{} {} {start}\n", host_name(), child.id());
        fs::write(&path, &text)?;
        assert_eq!(busy_of(Owned::claim(path.clone())), Busy::Here(child.id()));
        assert!(!sweep(&path) && path.exists());
        // Of the same number, but started at another time.
        fs::write(
            &path,
            format!("{} {} {}\n", host_name(), child.id(), start + 1),
        )?;
        drop(Owned::claim(path.clone())?);
        fs::write(&path, &text)?;
        child.kill()?;
        child.wait()?;
        let owned = Owned::claim(path.clone())?;
        assert!(owned.owner.is_named_in(&path));
        drop(owned);
        fs::write(&path, &text)?;
        assert!(sweep(&path) && !path.exists());
        Ok(())
    }

    #[test]
    fn a_process_elsewhere_counts_as_living_and_what_to_remove_is_named() -> io::Result<()> {
        let root = tempfile::tempdir()?;
        let path = root.path().join(".lock.owner");
        fs::write(&path, "node7.example 12 345\n")?;
        let held = busy_of(Owned::claim(path.clone()));
        assert_eq!(held.to_string(), "process 12 on node7.example");
        let remedy = held.remedy().expect("there is one");
        assert!(remedy.contains(&path.display().to_string()), "{remedy}");
        // Also where locks work.
        let locked = root.path().join(".lock");
        let error = Lock::acquire(File::create(&locked)?, &locked).expect_err("it is held");
        assert_eq!(Busy::of(&error), Some(&held));
        fs::remove_file(&path)?;
        let _lock = Lock::acquire(File::create(&locked)?, &locked)?;
        assert!(!path.exists());
        Ok(())
    }

    #[test]
    fn what_says_nothing_is_nobodys() -> io::Result<()> {
        let root = tempfile::tempdir()?;
        let path = root.path().join(".lock.owner");
        for text in ["", "host", "host x 3", "\u{0}"] {
            fs::write(&path, text)?;
            drop(Owned::claim(path.clone())?);
        }
        Ok(())
    }

    #[test]
    fn a_missing_lock_is_told_from_a_failing_one() {
        let of = |number| is_missing(&io::Error::from_raw_os_error(number));
        assert!(of(libc::ENOSYS) && of(libc::ENOLCK) && of(libc::EOPNOTSUPP));
        assert!(!of(libc::EIO) && !of(libc::EACCES) && !of(libc::EWOULDBLOCK));
    }
}
