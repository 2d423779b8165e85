//! What tells that a file or a folder may have changed: its size and its times.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// Size, time of the last change of the content, time of the last change of the inode, each time in
/// seconds and nanoseconds.
///
/// A folder's changes when an entry is added, removed or renamed, not when a file's content is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Stamp([i64; 5]);

/// A clock's coarsest step: what changes within it may keep its time.
const TICK: i64 = 2;

impl Stamp {
    pub fn of(metadata: &Metadata) -> Self {
        let size = if metadata.is_dir() {
            0
        } else {
            metadata.size()
        };
        Self([
            size as i64,
            metadata.mtime(),
            metadata.mtime_nsec(),
            metadata.ctime(),
            metadata.ctime_nsec(),
        ])
    }

    pub fn size(&self) -> u64 {
        self.0[0] as u64
    }

    /// Whether a change from `now` (seconds since 1970) on would show: not if the last one has just
    /// been, nor on a file system that keeps no times.
    pub fn is_telling(&self, now: i64) -> bool {
        let [_, modified, _, changed, _] = self.0;
        let settled = |time: i64| time < now - TICK || time > now + 60;
        modified > 0 && settled(modified) && settled(changed)
    }
}

/// Seconds since 1970.
pub(super) fn now() -> i64 {
    Moment::now().0
}

/// When a data set was looked through: seconds since 1970, and nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) struct Moment(i64, u32);

impl Moment {
    pub fn now() -> Self {
        Self::of(SystemTime::now())
    }

    fn of(time: SystemTime) -> Self {
        let since = time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        Self(since.as_secs() as i64, since.subsec_nanos())
    }

    /// Whether a file's content has been written since, or another file has taken its name.
    ///
    /// A change of owner, mode or number of links is none. A time of the content alone proves
    /// nothing, since any program may set it; one of the inode's is the system's.
    pub fn is_before_content_of(self, metadata: &Metadata) -> bool {
        let nanoseconds = |n: i64| u32::try_from(n).unwrap_or(0);
        let modified = Self(metadata.mtime(), nanoseconds(metadata.mtime_nsec()));
        let changed = Self(metadata.ctime(), nanoseconds(metadata.ctime_nsec()));
        let is_new = metadata.created().is_ok_and(|born| Self::of(born) > self);
        is_new || modified.min(changed) > self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_just_changed_tells_nothing() {
        let stamp = |modified, changed| Stamp([1, modified, 0, changed, 0]);
        assert!(stamp(100, 100).is_telling(103));
        assert!(!stamp(100, 100).is_telling(102));
        assert!(!stamp(50, 101).is_telling(102));
        // Clocks that are ahead by more than any step are no reason.
        assert!(stamp(1000, 1000).is_telling(102));
        assert!(!stamp(0, 50).is_telling(102));
    }

    #[test]
    fn a_moment_is_before_what_was_written_after_it_and_before_nothing_else() {
        use std::fs::{self, File, Permissions};
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        let is_before = |moment: Moment| moment.is_before_content_of(&fs::metadata(&path).unwrap());
        // The system's clock of files steps by up to 10 ms.
        let pause = || std::thread::sleep(Duration::from_millis(30));
        fs::write(&path, b"a").unwrap();
        pause();
        let moment = Moment::now();
        assert!(!is_before(moment));
        pause();
        let times = |days: u64| UNIX_EPOCH + Duration::from_secs(days * 86_400);
        let file = File::options().write(true).open(&path).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
        fs::hard_link(&path, folder.path().join("b")).unwrap();
        file.set_modified(times(1000)).unwrap();
        assert!(!is_before(moment));
        // In its place, of the same size.
        fs::write(&path, b"b").unwrap();
        assert!(is_before(moment));
        file.set_modified(times(1000)).unwrap();
        // Another file, though its content is old.
        fs::write(folder.path().join("c"), b"c").unwrap();
        let file = File::options().write(true).open(folder.path().join("c"));
        file.unwrap().set_modified(times(1000)).unwrap();
        fs::rename(folder.path().join("c"), &path).unwrap();
        // Not every file system says when a file was made.
        let says = fs::metadata(&path).unwrap().created().is_ok();
        assert_eq!(is_before(moment), says);
    }

    #[test]
    fn a_stamp_changes_with_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        let stamp = || Stamp::of(&std::fs::metadata(&path).unwrap());
        std::fs::write(&path, b"a").unwrap();
        let first = stamp();
        assert_eq!((first, first.size()), (stamp(), 1));
        std::fs::write(&path, b"ab").unwrap();
        assert_ne!(stamp(), first);
    }
}
