//! What tells that a file or a folder may have changed: its size and its times.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::time::{SystemTime, UNIX_EPOCH};

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
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs() as i64)
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
