//! Files and folders that appear completely or not at all.
//!
//! Everything is written under a hidden name beside its destination, synced, and renamed. After a
//! crash, a `kill -9` or a full disk, the previous content is still there.
//!
//! The writer holds a lock ([`super::lock`]) on each temporary file or folder. A killed process
//! loses its locks; what it left is removed by the next process that writes into the same folder.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, Once, PoisonError};
use std::time::Duration;

use super::lock::{self, Busy, Lock};
use crate::error::{Error, Result, disk_full, hinted};
use crate::telemetry::pulse;

/// The suffix of every temporary name; [`sweep`] removes what a killed process left.
const PARTIAL: &str = ".partial";

/// The suffix of a folder that is moved aside for its replacement.
const ASIDE: &str = ".old.partial";

/// Number of attempts at a name that another process holds; a process that sweeps releases it
/// quickly.
const ATTEMPTS: u32 = 20;
const PAUSE: Duration = Duration::from_millis(5);

/// Bytes that are written before they must be on the disk.
const PART: usize = 32 << 20;

/// A file that goes to the disk in parts, each a sign that this process gets on: a file of many
/// gigabytes may take longer than a process may be silent.
pub struct InParts {
    file: File,
    unsynced: usize,
    /// Called after each write.
    beat: fn(),
}

impl Write for InParts {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(&bytes[..bytes.len().min(PART)])?;
        self.unsynced += written;
        if self.unsynced >= PART {
            self.file.sync_data()?;
            self.unsynced = 0;
        }
        (self.beat)();
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Seek for InParts {
    fn seek(&mut self, position: SeekFrom) -> io::Result<u64> {
        self.file.seek(position)
    }
}

/// Writes `bytes` to `path`.
pub fn write_file(path: &Path, bytes: &[u8]) -> Result<()> {
    write_with(path, |file| Ok(file.write_all(bytes)?))
}

/// Writes to `path` whatever `fill` writes.
///
/// Errors: the path and the system's reason (a full disk, a missing folder); the file at `path` is
/// unchanged. A bare `io::Error` from `fill` is reported as an error of this file; any other error,
/// also one with a context, is passed on.
pub fn write_with(
    path: &Path,
    fill: impl FnOnce(&mut BufWriter<InParts>) -> Result<()>,
) -> Result<()> {
    check_kind(path)?;
    let temporary = beside(path, PARTIAL);
    sweep_beside(path);
    // Held until the file is in place, or removed.
    let mut lock = None;
    let written = (|| -> Result<()> {
        let (file, held) = patiently(|| {
            let file = File::options()
                .create(true)
                .truncate(false)
                .write(true)
                .open(&temporary)?;
            let lock = own(&file, &temporary)?;
            Ok((file, lock))
        })?;
        lock = Some(held);
        file.set_len(0)?;
        let file = InParts {
            file,
            unsynced: 0,
            beat: pulse::beat,
        };
        let mut file = BufWriter::with_capacity(1 << 20, file);
        fill(&mut file)?;
        let written = file.into_inner().map_err(io::IntoInnerError::into_error)?;
        written.file.sync_all()?;
        fs::rename(&temporary, path)?;
        sync_folder(parent(path))?;
        Ok(())
    })();
    if written.is_err() && lock.is_some() {
        // Report the first error.
        let _ = fs::remove_file(&temporary);
    }
    pulse::beat();
    written.map_err(|error| match error.chain().count() {
        1 => error
            .downcast::<io::Error>()
            .map_or_else(|other| other, |e| cannot_write(path, &e)),
        _ => error,
    })
}

/// Checks that a file can be written to `path`, before hours of work whose result goes there.
pub fn check_writable(path: &Path) -> Result<()> {
    check_kind(path)?;
    sweep_beside(path);
    let trial = beside(path, ".trial.partial");
    let made = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&trial);
    made.and_then(|_| remove(&trial))
        .map_err(|e| cannot_write(path, &e))
}

/// Refuses anything but a file: renaming over a device or a pipe would replace it.
fn check_kind(path: &Path) -> Result<()> {
    match fs::metadata(path).is_ok_and(|m| !m.is_file()) {
        true => Err(hinted(
            format!("cannot write {}: not a file", path.display()),
            "choose another name",
        )),
        false => Ok(()),
    }
}

/// Makes the folder `path` with the content that `fill` writes into the folder it is given.
/// Replaces an existing folder.
///
/// Errors: a file or a device is at `path`, and would be lost.
pub fn write_folder(path: &Path, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    if fs::metadata(path).is_ok_and(|m| !m.is_dir()) {
        return Err(hinted(
            format!("cannot write {}: not a folder", path.display()),
            "choose another name",
        ));
    }
    let temporary = beside(path, PARTIAL);
    sweep_beside(path);
    let failed = |e: io::Error| cannot_write(path, &e);
    let _lock = patiently(|| new_folder(&temporary)).map_err(failed)?;
    let filled = fill(&temporary).and_then(|()| put_in_place(&temporary, path).map_err(failed));
    if filled.is_err() {
        let _ = remove(&temporary);
    }
    filled
}

/// An empty folder in place of what a killed process left, and the lock on it.
fn new_folder(path: &Path) -> io::Result<Lock> {
    let left = match File::open(path) {
        Ok(left) => Some(own(&left, path)?),
        Err(e) if e.kind() == io::ErrorKind::NotFound => None,
        Err(e) => return Err(e),
    };
    remove(path)?;
    // The new folder gets a lock of its own.
    drop(left);
    fs::create_dir(path)?;
    own(&File::open(path)?, path)
}

/// Retries for a moment while another process holds the name.
fn patiently<T>(mut attempt: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    for _ in 1..ATTEMPTS {
        match attempt() {
            Err(e) if e.kind() == io::ErrorKind::ResourceBusy => std::thread::sleep(PAUSE),
            result => return result,
        }
    }
    attempt()
}

/// Locks the temporary file or folder at `path` for this process.
pub fn own(temporary: &File, path: &Path) -> io::Result<Lock> {
    let busy = || io::Error::new(io::ErrorKind::ResourceBusy, "another process is writing it");
    let lock = Lock::acquire(temporary.try_clone()?, path).map_err(|error| {
        let by = Busy::of(&error).map(|by| match by.remedy() {
            Some(remedy) => format!("{by} is writing it; {remedy}"),
            None => format!("{by} is writing it"),
        });
        match by {
            Some(text) => io::Error::new(io::ErrorKind::ResourceBusy, text),
            None => error,
        }
    })?;
    // Before the lock was free, its owner may have moved the file into place, and another process
    // may have started a new one.
    let (own, there) = (temporary.metadata()?, fs::metadata(path));
    match there.is_ok_and(|there| (there.dev(), there.ino()) == (own.dev(), own.ino())) {
        true => Ok(lock),
        false => Err(busy()),
    }
}

/// Syncs all of `temporary` and renames it to its final name.
fn put_in_place(temporary: &Path, path: &Path) -> io::Result<()> {
    sync_all(temporary)?;
    // A folder cannot be renamed over a non-empty one: the old folder is moved aside first, locked
    // like every temporary name.
    let old = beside(path, ASIDE);
    remove(&old)?;
    let _held = File::open(path).and_then(|folder| Lock::acquire(folder, &old));
    match fs::rename(path, &old) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    fs::rename(temporary, path)?;
    sync_folder(parent(path))?;
    remove(&old)
}

/// Sweeps the folder that `path` is written to, once per process.
///
/// Errors are ignored: what could not be swept stays.
pub fn sweep_beside(path: &Path) {
    static SWEPT: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());
    let folder = parent(path);
    let mut swept = SWEPT.lock().unwrap_or_else(PoisonError::into_inner);
    if swept.contains(folder) || !folder.is_dir() {
        return;
    }
    swept.insert(folder.to_path_buf());
    drop(swept);
    if let Err(error) = sweep(folder) {
        tracing::debug!("{error:#}");
    }
}

/// Removes incomplete files and folders that killed processes left in `folder`, and nothing that a
/// living process is writing.
pub fn sweep(folder: &Path) -> Result<()> {
    let failed = |e: io::Error| hinted(format!("cannot clean {}: {e}", folder.display()), "");
    for entry in fs::read_dir(folder).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with('.') && name.ends_with(PARTIAL) && name.len() > 1 + PARTIAL.len() {
            sweep_one(&path, &name).map_err(failed)?;
        }
        if name
            .strip_suffix(lock::OWNER)
            .is_some_and(|of| of.ends_with(PARTIAL))
            && !path.with_extension("").exists()
        {
            // Of what is in place already.
            lock::sweep(&path);
        }
    }
    Ok(())
}

fn sweep_one(path: &Path, name: &str) -> io::Result<()> {
    let kind = fs::symlink_metadata(path).map(|m| m.file_type());
    if !kind.is_ok_and(|kind| kind.is_file() || kind.is_dir()) {
        return Ok(());
    }
    // If it cannot be opened or locked, another process owns it.
    let Ok(left) = File::open(path) else {
        return Ok(());
    };
    let Ok(_held) = own(&left, path) else {
        return Ok(());
    };
    // Its replacement never came: the folder that was moved aside is the only copy.
    let place = name.strip_prefix('.').and_then(|n| n.strip_suffix(ASIDE));
    match place.map(|place| path.with_file_name(place)) {
        Some(place) if !place.exists() => fs::rename(path, place)?,
        _ => {
            tracing::debug!("removing {}, which a killed process left", path.display());
            remove(path)?;
        }
    }
    Ok(())
}

/// `.NAME<ending>` in the folder of `path`, so that a rename stays in one file system.
fn beside(path: &Path, ending: &str) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}{ending}"))
}

fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

fn remove(path: &Path) -> io::Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Ok(m) if m.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(e) => Err(e),
    };
    match removed {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Syncs everything in a folder, at any depth, and the folder itself.
fn sync_all(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        match path.is_dir() {
            true => sync_all(&path)?,
            false => File::open(&path)?.sync_all()?,
        }
    }
    sync_folder(folder)
}

/// A rename is durable only once its folder is synced. Some file systems (CIFS, FUSE) cannot sync a
/// folder; there it is as durable as they make it.
fn sync_folder(folder: &Path) -> io::Result<()> {
    static SAID: Once = Once::new();
    match File::open(folder)?.sync_all() {
        Err(error) if cannot_sync(&error) => {
            SAID.call_once(|| tracing::debug!("cannot sync {}: {error}", folder.display()));
            Ok(())
        }
        synced => synced,
    }
}

/// Whether a file system does not know how to sync a folder: EINVAL, EOPNOTSUPP, ENOSYS.
fn cannot_sync(error: &io::Error) -> bool {
    use io::ErrorKind::{InvalidInput, Unsupported};
    matches!(error.kind(), InvalidInput | Unsupported)
}

/// The error of `path` that the system gives as `cause`.
pub fn cannot_write(path: &Path, cause: &io::Error) -> Error {
    let hint = match cause.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            "free some space: what was there before is unchanged"
        }
        io::ErrorKind::NotFound => "make its folder first",
        io::ErrorKind::ResourceBusy => "wait for it, or choose another name",
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            "choose a folder that you may write to"
        }
        _ => "",
    };
    let text = format!("cannot write {}: {cause}", path.display());
    match cause.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => disk_full(text, hint),
        _ => hinted(text, hint),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::report;

    fn names(folder: &Path) -> Result<Vec<String>> {
        let mut names = fs::read_dir(folder)?
            .map(|e| Ok(e?.file_name().to_string_lossy().into_owned()))
            .collect::<io::Result<Vec<_>>>()?;
        names.sort();
        Ok(names)
    }

    #[test]
    fn a_failed_write_keeps_what_was_there() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("a");
        write_file(&path, b"old")?;
        let full = || io::Error::from(io::ErrorKind::StorageFull);
        let error = write_with(&path, |file| {
            file.write_all(b"half")?;
            Err(full().into())
        })
        .unwrap_err();
        let (text, code) = report(&error);
        assert!(text.contains(&path.display().to_string()), "{text}");
        assert!(text.contains("free some space"), "{text}");
        assert_eq!(code, 1);
        assert_eq!(fs::read(&path)?, b"old");
        assert_eq!(names(folder.path())?, ["a"]);
        Ok(())
    }

    #[test]
    fn a_large_file_goes_to_the_disk_in_parts_each_of_them_a_sign_of_work() -> Result<()> {
        thread_local!(static BEATS: std::cell::Cell<usize> = const { std::cell::Cell::new(0) });
        let bytes: Vec<u8> = (0..2 * PART + 5).map(|i| i as u8).collect();
        let mut file = InParts {
            file: tempfile::tempfile()?,
            unsynced: 0,
            beat: || BEATS.set(BEATS.get() + 1),
        };
        file.write_all(&bytes)?;
        assert_eq!((BEATS.get(), file.unsynced), (3, 5));
        let mut read = Vec::new();
        file.seek(SeekFrom::Start(0))?;
        io::Read::read_to_end(&mut file.file, &mut read)?;
        assert!(read == bytes);
        Ok(())
    }

    #[test]
    fn a_full_disk_and_a_folder_without_sync_are_known_by_their_numbers() {
        let of = io::Error::from_raw_os_error;
        for (number, is_full) in [
            (libc::ENOSPC, true),
            (libc::EDQUOT, true),
            (libc::EFBIG, false),
            (libc::EIO, false),
        ] {
            let error = cannot_write(Path::new("a"), &of(number));
            assert_eq!(crate::error::is_disk_full(&error), is_full, "{error}");
        }
        assert!(
            [libc::EINVAL, libc::EOPNOTSUPP, libc::ENOSYS]
                .map(of)
                .iter()
                .all(cannot_sync)
        );
        assert!(![libc::EIO, libc::ENOSPC].map(of).iter().any(cannot_sync));
    }

    #[test]
    fn a_folder_replaces_no_file_and_no_device() -> Result<()> {
        let root = tempfile::tempdir()?;
        let (file, socket) = (root.path().join("file"), root.path().join("socket"));
        write_file(&file, b"old")?;
        let _listener = std::os::unix::net::UnixListener::bind(&socket)?;
        for path in [&file, &socket] {
            let (text, _) = report(&write_folder(path, |_| Ok(())).unwrap_err());
            assert!(text.contains("not a folder"), "{text}");
        }
        assert_eq!(fs::read(&file)?, b"old");
        assert_eq!(names(root.path())?, ["file", "socket"]);
        Ok(())
    }

    #[test]
    fn a_failed_folder_keeps_what_was_there() -> Result<()> {
        let root = tempfile::tempdir()?;
        let path = root.path().join("step-1");
        write_folder(&path, |f| Ok(fs::write(f.join("x"), "1")?))?;
        let failed = write_folder(&path, |f| {
            fs::write(f.join("x"), "2")?;
            Err(hinted("no", ""))
        });
        assert!(failed.is_err());
        assert_eq!(fs::read_to_string(path.join("x"))?, "1");
        write_folder(&path, |f| Ok(fs::write(f.join("y"), "3")?))?;
        assert_eq!(names(&path)?, ["y"]);
        assert_eq!(names(root.path())?, ["step-1"]);
        Ok(())
    }

    #[test]
    fn the_second_writer_of_one_path_is_refused() -> Result<()> {
        let root = tempfile::tempdir()?;
        let [file, folder] = ["a", "b"].map(|name| root.path().join(name));
        let mut refused = Vec::new();
        write_with(&file, |out| {
            refused.push(write_file(&file, b"second"));
            Ok(out.write_all(b"first")?)
        })?;
        write_folder(&folder, |at| {
            refused.push(write_folder(&folder, |_| Ok(())));
            Ok(fs::write(at.join("x"), "first")?)
        })?;
        for refused in refused {
            let (text, _) = report(&refused.unwrap_err());
            assert!(text.contains("another process is writing it"), "{text}");
        }
        assert_eq!(fs::read(&file)?, b"first");
        assert_eq!(fs::read(folder.join("x"))?, b"first");
        assert_eq!(names(root.path())?, ["a", "b"]);
        Ok(())
    }

    #[test]
    fn sweep_removes_what_a_killed_process_left_and_nothing_else() -> Result<()> {
        let root = tempfile::tempdir()?;
        fs::write(root.path().join(".a.partial"), "")?;
        fs::create_dir_all(root.path().join(".d.partial/x"))?;
        fs::create_dir(root.path().join(".b.old.partial"))?;
        fs::create_dir(root.path().join("b"))?;
        for other in ["c", ".partial", "x.partial", ".partial.txt"] {
            fs::write(root.path().join(other), "")?;
        }
        sweep(root.path())?;
        assert_eq!(
            names(root.path())?,
            [".partial", ".partial.txt", "b", "c", "x.partial"]
        );
        Ok(())
    }

    #[test]
    fn a_folder_that_stepped_aside_comes_back_where_its_successor_never_came() -> Result<()> {
        let root = tempfile::tempdir()?;
        fs::create_dir(root.path().join(".b.old.partial"))?;
        fs::write(root.path().join(".b.old.partial/x"), "old")?;
        sweep(root.path())?;
        assert_eq!(names(root.path())?, ["b"]);
        assert_eq!(fs::read(root.path().join("b/x"))?, b"old");
        Ok(())
    }

    #[test]
    fn writing_sweeps_its_folder_and_keeps_what_a_living_writer_holds() -> Result<()> {
        let root = tempfile::tempdir()?;
        let at = |name: &str| root.path().join(name);
        for left in [".killed.npz.partial", ".gone.npz.partial"] {
            fs::write(at(left), "half")?;
        }
        fs::create_dir_all(at(".samples.partial/x"))?;
        let (file, folder) = (at("living.npz"), at("living"));
        write_with(&file, |out| {
            fs::create_dir(at(".killed.again.partial"))?;
            write_folder(&folder, |inside| {
                fs::write(inside.join("x"), "whole")?;
                // As the next process that writes here would.
                sweep(root.path())
            })?;
            assert_eq!(names(root.path())?, [".living.npz.partial", "living"]);
            Ok(out.write_all(b"whole")?)
        })?;
        assert_eq!(names(root.path())?, ["living", "living.npz"]);
        assert_eq!(fs::read(&file)?, b"whole");
        assert_eq!(fs::read(folder.join("x"))?, b"whole");
        Ok(())
    }

    #[test]
    fn a_device_or_a_missing_folder_is_refused() {
        let tries: [fn(&Path) -> Result<()>; 2] = [|path| write_file(path, b""), check_writable];
        for write in tries {
            let error = write(Path::new("/dev/null")).unwrap_err();
            assert!(report(&error).0.contains("not a file"));
            let (text, _) = report(&write(Path::new("/no/such/folder/a")).unwrap_err());
            assert!(
                text.contains("/no/such/folder/a") && text.contains("hint: make its folder"),
                "{text}"
            );
        }
    }

    #[test]
    fn a_trial_leaves_nothing_behind() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("a");
        check_writable(&path)?;
        assert!(names(folder.path())?.is_empty());
        write_file(&path, b"old")?;
        check_writable(&path)?;
        assert_eq!(fs::read(&path)?, b"old");
        assert_eq!(names(folder.path())?, ["a"]);
        Ok(())
    }
}
