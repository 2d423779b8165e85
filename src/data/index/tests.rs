use std::fs;
use std::path::Path;
use std::sync::atomic::AtomicU64;

use super::*;
use crate::data::labelling::label;
use crate::data::numbering::numbering;
use crate::data::paths::expand;
use crate::data::{folder, shards, source};
use crate::error::report;

const SUMMARY: &str = "a summary";

fn write(root: &Path, name: &str, bytes: &[u8]) {
    let path = root.join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, bytes).unwrap();
}

fn tar(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (name, bytes) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        tar.append_data(&mut header, name, *bytes).unwrap();
    }
    tar.into_inner().unwrap()
}

/// A folder of two classes, beside the folder `cache`.
fn animals() -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    write(root.path(), "set/cat/a.png", b"12");
    write(root.path(), "set/cat/b.png", b"345");
    write(root.path(), "set/dog/more/c.jpg", b"6");
    root
}

/// A folder whose labels are files, and a shard.
fn labelled() -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    write(root.path(), "set/a.png", b"12");
    write(root.path(), "set/a.cls", b"1");
    let members: [(&str, &[u8]); 4] = [
        ("x.png", b"1"),
        ("x.cls", b"0"),
        ("y.png", b"23"),
        ("y.cls", b"1"),
    ];
    write(root.path(), "set-0.tar", &tar(&members));
    root
}

fn given(root: &Path) -> Vec<Given> {
    let pattern = root.join("set*").display().to_string();
    expand(&[pattern]).unwrap()
}

fn look(root: &Path) -> (Vec<Part>, Classes) {
    let scan = |given| match given {
        Given::Folder(path) => folder::scan(&path, true).unwrap(),
        Given::Shard(path) => shards::scan(&path, true, &AtomicU64::new(0), 1 << 20).unwrap(),
        Given::Images { folder, images } => folder::scan_images(&folder, &images).unwrap(),
    };
    let mut parts: Vec<Part> = given(root).into_iter().map(scan).collect();
    label(&mut parts, true).unwrap();
    let classes = numbering(&parts, None).unwrap();
    (parts, classes)
}

/// Keeps an index of what lies in `root`, as if all of it were old.
fn keep(root: &Path) -> Result<(PathBuf, Table)> {
    let (mut parts, classes) = look(root);
    save_at(stamp::now() + 100, root, &mut parts, &classes)
}

/// Keeps an index of `parts` at the time `now`.
fn save_at(
    now: i64,
    root: &Path,
    parts: &mut [Part],
    classes: &Classes,
) -> Result<(PathBuf, Table)> {
    let table = source::table(parts, classes).unwrap();
    let contents = Contents {
        parts,
        table: &table,
        classes,
        summary: SUMMARY,
        doubts: vec!["a doubt".to_string()],
        passed: &["a line".to_string()],
        sharing: &Some("another".to_string()),
        fingerprint: "ab",
    };
    save_in(&root.join("cache"), contents, now)
}

fn found(root: &Path) -> Option<Saved> {
    find_in(&root.join("cache"), &given(root))
}

fn items(table: &Table) -> Vec<String> {
    let item = |i| format!("{:?}", table.item(i));
    (0..table.len()).map(item).collect()
}

#[test]
fn what_is_kept_is_found() {
    for root in [animals(), labelled()] {
        let (mut parts, classes) = look(root.path());
        parts[0].notice(true, "a notice".to_string());
        let table = source::table(&mut parts, &classes).unwrap();
        let (path, mapped) = keep(root.path()).unwrap();
        let found = found(root.path()).unwrap();
        assert_eq!(items(&mapped), items(&table));
        assert_eq!(items(&found.table), items(&table));
        assert_eq!((found.path, found.classes), (path, classes));
        let Saved {
            summary,
            doubts,
            passed,
            sharing,
            fingerprint,
            ..
        } = found;
        assert_eq!((&*summary, &*fingerprint), (SUMMARY, "ab"));
        assert_eq!((&*doubts[0], &*passed[0]), ("a doubt", "a line"));
        assert_eq!(sharing.as_deref(), Some("another"));
        for (found, part) in found.parts.iter().zip(&parts) {
            assert_eq!((&found.path, found.kind), (&part.path, part.kind));
        }
    }
}

#[test]
fn a_set_is_the_same_by_another_name() {
    let root = animals();
    keep(root.path()).unwrap();
    std::os::unix::fs::symlink(root.path().join("set"), root.path().join("link")).unwrap();
    let given = vec![Given::Folder(root.path().join("link"))];
    let found = find_in(&root.path().join("cache"), &given).unwrap();
    assert_eq!(found.parts[0].path, root.path().join("link"));
    assert_eq!(found.table.len(), 3);
}

/// Of whatever kind: a file that came or went at any depth, a label, a shard.
#[test]
fn an_index_of_what_has_changed_is_not_taken() {
    let set = |root: &Path| root.join("set");
    let changes: [fn(&Path); 5] = [
        |root| write(root, "set/dog/more/d.png", b"1"),
        |root| fs::remove_file(root.join("set/cat/a.png")).unwrap(),
        |root| fs::create_dir(root.join("set/horse")).unwrap(),
        |root| fs::rename(root.join("set/dog"), root.join("set/wolf")).unwrap(),
        |root| {
            let (old, new) = (root.join("set"), root.join("new"));
            fs::create_dir(&new).unwrap();
            for class in ["cat", "dog"] {
                fs::rename(old.join(class), new.join(class)).unwrap();
            }
            fs::remove_dir(&old).unwrap();
            fs::rename(new, old).unwrap();
        },
    ];
    for (number, change) in changes.iter().enumerate() {
        let root = animals();
        keep(root.path()).unwrap();
        assert!(found(root.path()).is_some());
        change(root.path());
        assert!(
            set(root.path()).is_dir() && found(root.path()).is_none(),
            "{number}"
        );
    }
    for (file, bytes) in [("set/a.cls", &b"2"[..]), ("set-0.tar", b"")] {
        let root = labelled();
        keep(root.path()).unwrap();
        assert!(found(root.path()).is_some());
        let bytes = match bytes {
            [] => fs::read(root.path().join(file)).unwrap(),
            other => other.to_vec(),
        };
        // The same size, at another time.
        std::thread::sleep(Duration::from_millis(20));
        fs::write(root.path().join(file), bytes).unwrap();
        assert!(found(root.path()).is_none(), "{file}");
    }
}

#[test]
fn no_index_is_kept_of_what_could_change_unseen() {
    let refusal = |root: &Path| {
        let text = report(&keep(root).unwrap_err()).0;
        assert!(!root.join("cache").exists());
        text
    };
    let root = animals();
    std::os::unix::fs::symlink("nowhere", root.path().join("set/cat/c.png")).unwrap();
    assert!(refusal(root.path()).contains("something in it is bad"));
    let root = labelled();
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    packed
        .write_all(&fs::read(root.path().join("set-0.tar")).unwrap())
        .unwrap();
    write(root.path(), "set-1.tar.gz", &packed.finish().unwrap());
    assert!(refusal(root.path()).contains("gzipped shards are read whole"));
    // What has changed within a tick of the clock may change again in the same one.
    let root = animals();
    let (mut parts, classes) = look(root.path());
    let error = save_at(stamp::now(), root.path(), &mut parts, &classes).unwrap_err();
    assert!(report(&error).0.contains("just changed"));
}

/// Whatever bytes are in the file, also under a checksum that fits.
#[test]
fn a_hostile_index_is_refused_or_means_what_it_says() {
    for root in [animals(), labelled()] {
        let (path, _) = keep(root.path()).unwrap();
        let whole = fs::read(&path).unwrap();
        let body = whole.len() - DIGEST;
        for length in 0..whole.len() {
            fs::write(&path, &whole[..length]).unwrap();
            assert!(found(root.path()).is_none(), "cut at {length}");
        }
        let mut taken = 0;
        for at in 0..body {
            for change in [1, 0x80] {
                let mut bytes = whole.clone();
                bytes[at] ^= change;
                fs::write(&path, &bytes).unwrap();
                assert!(found(root.path()).is_none(), "byte {at}");
                let digest = Sha256::digest(&bytes[..body]);
                bytes[body..].copy_from_slice(&digest);
                fs::write(&path, &bytes).unwrap();
                if let Some(found) = found(root.path()) {
                    taken += 1;
                    for i in 0..found.table.len() {
                        let item = found.table.item(i);
                        let path = found.parts[item.part].path.join(item.name);
                        assert!(!path.display().to_string().contains("/../"));
                        // An error or other bytes, but no panic and nothing beyond the shard.
                        let _ = found.parts[item.part].bytes(item.name, &item.place);
                    }
                }
            }
        }
        assert!(taken > 50, "{taken}");
    }
}

#[test]
fn a_name_that_leads_out_of_its_folder_is_refused() {
    let root = animals();
    let (mut parts, classes) = look(root.path());
    let place = crate::data::part::Place::File { size: 1 };
    let label = crate::data::part::Label::None;
    parts[0].found.push("../../etc/x.png", label, place);
    let error = save_at(stamp::now() + 100, root.path(), &mut parts, &classes).unwrap_err();
    assert!(format!("{error:#}").contains("leads out of its folder"));
    assert!(found(root.path()).is_none());
}

/// A file of a large set, whose size nobody has looked at.
#[test]
fn a_file_that_was_written_to_is_found_by_its_time() {
    let root = animals();
    // The system's clock of files steps by up to 10 ms.
    let pause = || std::thread::sleep(Duration::from_millis(30));
    pause();
    keep(root.path()).unwrap();
    pause();
    let found = found(root.path()).unwrap();
    let read = |index: usize| {
        let item = found.table.item(index);
        found.parts[item.part].bytes(item.name, &item.place)
    };
    assert_eq!(read(1).unwrap(), b"345");
    for bytes in [&b"678"[..], b"6"] {
        write(root.path(), "set/cat/b.png", bytes);
        let text = report(&read(1).unwrap_err()).0;
        assert!(text.contains("it has been written to since"), "{text}");
    }
    assert_eq!(read(0).unwrap(), b"12");
}
