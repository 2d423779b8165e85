//! What patterns and names stand for.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;

use super::{contents, failure, names, opened, png, tar, write};
use crate::data::paths::{Named, each_once, unread};

#[test]
fn a_pattern_matches_no_hidden_file() {
    let root = tempfile::tempdir().unwrap();
    fs::write(root.path().join("a.tar"), tar(&[("c/x.png", png(1))])).unwrap();
    fs::write(root.path().join("._a.tar"), b"AppleDouble").unwrap();
    write(
        root.path(),
        &[
            ("__MACOSX/b.tar", vec![1; 600]),
            ("s/b.tar", tar(&[("d/y.png", png(2))])),
        ],
    );
    assert_eq!(opened(root.path(), &["*.tar"], false).unwrap().len(), 1);
    assert_eq!(opened(root.path(), &["**/*.tar"], false).unwrap().len(), 2);
    // Unless it is named.
    let text = failure(opened(root.path(), &["._*.tar"], false));
    assert!(text.contains("._a.tar: tar damaged"), "{text}");
}

#[test]
fn brackets_in_a_folder_that_exists_are_its_name() {
    let root = tempfile::tempdir().unwrap();
    write(
        root.path(),
        &[
            ("br[v2]/a.tar", tar(&[("c/x.png", png(1))])),
            ("br[v2]/b.tar", tar(&[("c/y.png", png(2))])),
            ("brv/a.tar", tar(&[("c/z.png", png(3))])),
            ("x*[1]/d[2]/a.png", png(4)),
        ],
    );
    assert_eq!(
        opened(root.path(), &["br[v2]/*.tar"], false).unwrap().len(),
        2
    );
    assert_eq!(
        opened(root.path(), &["br[v2]/[ab].tar"], false)
            .unwrap()
            .len(),
        2
    );
    assert_eq!(
        opened(root.path(), &["b[r]v/*.tar"], false).unwrap().len(),
        1
    );
    assert_eq!(
        opened(root.path(), &["x*[1]/d[2]/*"], false).unwrap().len(),
        1
    );
    let text = failure(opened(root.path(), &["br[v2]/*.tgz"], false));
    assert!(text.contains("br[v2] has nothing called *.tgz"), "{text}");
}

#[test]
fn a_file_given_twice_is_taken_once() {
    let root = tempfile::tempdir().unwrap();
    write(
        root.path(),
        &[
            ("ok/n01/a.png", png(1)),
            ("ok/n02/b.png", png(2)),
            ("ok/s.tar", tar(&[("n03/c.png", png(3))])),
        ],
    );
    symlink("ok", root.path().join("also")).unwrap();
    symlink("ok/s.tar", root.path().join("s.tar")).unwrap();
    fs::hard_link(
        root.path().join("ok/n01/a.png"),
        root.path().join("hard.png"),
    )
    .unwrap();
    for patterns in [
        &["ok", "./ok", "also"][..],
        &["ok", "ok/../ok", "ok/"],
        &["ok", "ok/n01"],
        &["also", "ok/n01/a.png"],
    ] {
        let source = opened(root.path(), patterns, false).unwrap();
        assert_eq!(source.len(), 2, "{patterns:?}");
        assert_eq!(names(&*source), ["n01", "n02"], "{patterns:?}");
    }
    assert_eq!(
        opened(root.path(), &["s.tar", "ok/s.tar"], false)
            .unwrap()
            .len(),
        1
    );
    // A scan of a folder does not read shards in it.
    assert_eq!(
        opened(root.path(), &["ok", "s.tar"], false).unwrap().len(),
        3
    );
    let images = &["ok/n01/*.png", "ok/n01/a.png", "./ok/n01/a.png"];
    assert_eq!(opened(root.path(), images, false).unwrap().len(), 1);
}

#[test]
fn what_is_named_twice_is_said() {
    let root = tempfile::tempdir().unwrap();
    write(
        root.path(),
        &[("a.tar", vec![0; 1024]), ("d/x.png", png(1))],
    );
    let at = |name: &str| (root.path().join(name), Named::ByItself);
    fs::hard_link(root.path().join("a.tar"), root.path().join("b.tar")).unwrap();
    fs::hard_link(root.path().join("a.tar"), root.path().join("c.tar")).unwrap();
    symlink("d", root.path().join("e")).unwrap();
    for (given, kept, said) in [
        (&["d", "d"][..], 1, Some("/d")),
        (&["a.tar", "a.tar"], 1, Some("/a.tar")),
        (&["b.tar", "a.tar"], 1, Some("/b.tar is ")),
        (&["c.tar", "b.tar", "d"], 2, Some("/c.tar is ")),
        (&["d", "e"], 1, Some("/e is ")),
        (&["d", "d/x.png"], 1, Some("/d/x.png lies in ")),
        (&["d", "a.tar"], 2, None),
    ] {
        let (once, again) = each_once(given.iter().map(|name| at(name)).collect());
        assert_eq!(
            (once.len(), again.count),
            (kept, given.len() - kept),
            "{given:?}"
        );
        match said {
            Some(said) => assert!(again.first.contains(said), "{}", again.first),
            None => assert_eq!(again.first, ""),
        }
    }
}

/// In the words that a folder has for them.
#[test]
fn what_a_pattern_matches_beside_images_is_counted_by_kind() {
    let paths = |names: &[&str]| names.iter().map(PathBuf::from).collect::<Vec<_>>();
    let images = paths(&["d/a.jpg", "d/b.png"]);
    let others = paths(&[
        "d/a.cls",
        "d/a.npy",
        "e/a.npy",
        "d/readme.txt",
        "d/c.gif",
        "d/IMG_1",
    ]);
    let line = unread(&images, &others).line().unwrap();
    let expected = "passed over as files of kinds that are not read: 1 .gif (`d/c.gif`), \
                    1 .npy (`e/a.npy`), 1 without a suffix (`d/IMG_1`)";
    assert_eq!(line, expected);
    assert_eq!(unread(&images, &others[..2]).line(), None);
}

#[test]
fn what_a_pattern_matches_is_data_by_the_same_rule() {
    let root = tempfile::tempdir().unwrap();
    write(
        root.path(),
        &[
            ("d/0.jpg", png(1)),
            ("d/0.seg.png", png(9)),
            ("d/0.cls", b"1".to_vec()),
            ("d/1.jpg", png(2)),
            ("d/1.seg.png", png(9)),
            ("d/1.cls", b"0".to_vec()),
            ("d/readme.md", b"x".to_vec()),
        ],
    );
    let expected = [("0".to_string(), 1, 1), ("1".to_string(), 0, 2)];
    for pattern in ["d/*", "d/*.*g", "d", "d/?.jpg"] {
        let source = opened(root.path(), &[pattern], false).unwrap();
        assert_eq!(contents(&*source), expected, "{pattern}");
    }
    // A mask that is named explicitly is used.
    assert_eq!(
        opened(root.path(), &["d/0.seg.png"], false).unwrap().len(),
        1
    );
    let text = failure(opened(root.path(), &["d/*.md"], false));
    assert!(text.contains("readme.md: neither a folder"), "{text}");
}

#[test]
fn folders_named_one_by_one_give_no_labels_and_that_is_said() {
    let root = tempfile::tempdir().unwrap();
    write(
        root.path(),
        &[("t/n01/a.png", png(1)), ("t/n02/b.png", png(2))],
    );
    for patterns in [&["t/*"][..], &["t/*/*.png"], &["t/n01", "t/n02"]] {
        let source = opened(root.path(), patterns, false).unwrap();
        assert!(source.classes().is_empty());
        assert!(
            source.doubts()[0].contains("2 folders have no labels"),
            "{:?}",
            source.doubts()
        );
    }
}

#[test]
fn what_is_not_there_or_not_read_says_so() {
    let root = tempfile::tempdir().unwrap();
    write(
        root.path(),
        &[("t/s.tar.zst", vec![1]), ("t/s.zip", vec![1])],
    );
    for (name, what) in [
        ("t/x/y.tar", "t is there, the rest is not"),
        ("train-{000..009}.tar", "braces are the shell's"),
        ("t/s.tar.zst", "compressed by zstd"),
        ("t/*.zip", "compressed by zip"),
    ] {
        let text = failure(opened(root.path(), &[name], false));
        assert!(text.contains(what) && text.contains("\nhint: "), "{text}");
    }
}
