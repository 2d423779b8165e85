//! Which folder names a class, which files are data, and which warnings are given: the same for a
//! folder and for its tar.

use std::fs;
use std::path::Path;

use super::{contents, failure, names, opened, png, tar, write};

type Files<'a> = Vec<(&'a str, Vec<u8>)>;

fn images<'a>(names: &[&'a str]) -> Files<'a> {
    names
        .iter()
        .zip(0..)
        .map(|(name, red)| (*name, png(red)))
        .collect()
}

fn text(text: &str) -> Vec<u8> {
    text.as_bytes().to_vec()
}

/// The classes, and the key and label of every image, for the files as a folder and as a shard;
/// sorted, because a shard has its own order.
fn both(files: &Files) -> (Vec<String>, Vec<(String, u32)>, Vec<String>) {
    let root = tempfile::tempdir().unwrap();
    write(&root.path().join("d"), files);
    fs::write(root.path().join("t.tar"), tar(files)).unwrap();
    let [folder, shard] = ["d", "t.tar"].map(|name| {
        let source = opened(root.path(), &[name], false).unwrap();
        let mut labels: Vec<(String, u32)> = contents(&*source)
            .into_iter()
            .map(|(key, label, _)| (key, label))
            .collect();
        labels.sort();
        (names(&*source), labels, source.doubts().to_vec())
    });
    assert_eq!(folder, shard);
    folder
}

fn classes(files: &Files) -> Vec<String> {
    both(files).0
}

#[test]
fn a_level_with_one_folder_for_all_images_names_no_class() {
    for (paths, expected) in [
        (&["n01/a.png", "n02/b.png"][..], &["n01", "n02"][..]),
        (&["train/n01/a.png", "train/n02/b.png"], &["n01", "n02"]),
        (
            &["train/n01/images/a.png", "train/n02/images/b.png"],
            &["n01", "n02"],
        ),
        (&["set/a/n01/x/a.png", "set/a/n02/b.png"], &["n01", "n02"]),
        // As in ImageFolder: deeper files belong to the class of the first level.
        (
            &["n01/x/a.png", "n01/y/b.png", "n02/x/c.png"],
            &["n01", "n02"],
        ),
        (&["train/n01/a.png", "val/n01/b.png"], &["train", "val"]),
        // A wnid is the class at any level.
        (
            &["n01440764/a.png", "n01443537/b.png"],
            &["n01440764", "n01443537"],
        ),
        (
            &["train/n01440764/a.png", "val/x/n01443537/images/b.png"],
            &["n01440764", "n01443537"],
        ),
        // A single class: the first folder that is not the name of a split.
        (&["cats/a.png", "cats/b.png"], &["cats"]),
        (
            &["train/cats/images/a.png", "train/cats/images/b.png"],
            &["cats"],
        ),
        (&["images/a.png", "images/b.png"], &["images"]),
        (&["a.png", "b.png"], &[]),
    ] {
        assert_eq!(classes(&images(paths)), expected, "{paths:?}");
    }
}

#[test]
fn shards_sorted_by_class_are_one_data_set() {
    let root = tempfile::tempdir().unwrap();
    for (name, path) in [
        ("0.tar", "train/n01/images/a.png"),
        ("1.tar", "train/n02/images/a.png"),
    ] {
        fs::write(root.path().join(name), tar(&[(path, png(1))])).unwrap();
    }
    let source = opened(root.path(), &["*.tar"], false).unwrap();
    assert_eq!(names(&*source), ["n01", "n02"]);
    assert!(source.doubts().is_empty(), "{:?}", source.doubts());
}

#[test]
fn hidden_and_system_files_are_no_data_at_any_depth() {
    let mut files = images(&["n01/a.png", "n02/b.png"]);
    for name in [
        ".ipynb_checkpoints/a-checkpoint.png",
        "n01/.ipynb_checkpoints/a-checkpoint.png",
        "n01/._a.png",
        "__MACOSX/n01/._a.png",
        "__MACOSX/n03/a.png",
        "@eaDir/a.png",
        "n02/@eaDir/b.png/SYNOFILE_THUMB_M.jpg",
        "n01/Thumbs.db",
        "n01/.DS_Store",
        "desktop.ini",
    ] {
        files.push((name, png(9)));
    }
    let (classes, labels, _) = both(&files);
    assert_eq!(classes, ["n01", "n02"]);
    assert_eq!(labels, [("n01/a".to_string(), 0), ("n02/b".to_string(), 1)]);
}

#[test]
fn endings_may_be_in_any_case_and_of_any_kind_that_is_read() {
    let jpeg = include_bytes!("../../../tests/data/images/rgb.jpg").to_vec();
    let names = ["c/a.JPG", "c/b.Jpeg", "c/c.jpe", "d/d.JFIF", "d/e.PNG"];
    let files: Files = names.iter().map(|name| (*name, jpeg.clone())).collect();
    assert_eq!(both(&files).1.len(), 5);
}

#[test]
fn a_class_whose_every_picture_is_passed_over_is_named() {
    let root = tempfile::tempdir().unwrap();
    let mut files = images(&["cats/x/a.png", "cats/y/b.png"]);
    files.push(("dogs/c.gif", text("GIF89a")));
    write(&root.path().join("d"), &files);
    fs::write(root.path().join("t.tar"), tar(&files)).unwrap();
    for name in ["d", "t.tar"] {
        let text = failure(opened(root.path(), &[name], false));
        assert!(
            text.contains("the class folder `dogs` holds no images") && text.contains(".gif"),
            "{text}"
        );
    }
    let gifs: Files = vec![("c/a.gif", text("GIF89a")), ("c/.b/d.png", png(1))];
    write(&root.path().join("gifs"), &gifs);
    fs::write(root.path().join("gifs.tar"), tar(&gifs)).unwrap();
    let message = failure(opened(root.path(), &["gifs"], false));
    assert!(message.contains("1 .gif (`c/a.gif`)"), "{message}");
    let message = failure(opened(root.path(), &["gifs.tar"], false));
    assert!(
        message.contains("1 .gif (`c/a.gif`), 1 below hidden folders (`c/.b/d.png`)"),
        "{message}"
    );
}

#[test]
fn labels_lie_in_fields_in_a_folder_as_in_a_shard() {
    for (label, content, class) in [
        ("cls", "1\n", 1),
        ("CLS", " 1", 1),
        ("cls.txt", "1", 1),
        ("Cls.TXT", "1\r\n", 1),
        ("txt", "1\n", 1),
        ("json", r#"{"label": 1}"#, 1),
        (
            "JSON",
            r#"{"label": 1.0, "loss": -Infinity, "x": 1e999}"#,
            1,
        ),
        ("json", "\u{FEFF}{\"cls\": 1}", 1),
        ("json", r#"{"label": 0, "label": 1}"#, 1),
        ("json", r#"{"label": null, "cls": "1"}"#, 1),
        (
            "json",
            r#"{"text": "NaN \" NaN \ud800", "label": 1, "n": [NaN, {"a": Infinity}]}"#,
            1,
        ),
        ("json", "1", 1),
    ] {
        let name = format!("x.{label}");
        let other = format!("y.{label}");
        let zero = content.replace('1', "0");
        let files: Files = vec![
            ("x.jpg", png(1)),
            (&name, text(content)),
            ("y.jpg", png(2)),
            (&other, text(&zero)),
        ];
        let labels = both(&files).1;
        let expected = [("x".to_string(), class), ("y".to_string(), 0)];
        assert_eq!(labels, expected, "{label}: {content}");
    }
    let names: Files = vec![
        ("x.jpg", png(1)),
        ("x.cls", text("nan")),
        ("y.jpg", png(1)),
        ("y.cls", text("infinity")),
        ("z.jpg", png(1)),
        ("z.json", text(r#"{"label": "n01440764"}"#)),
    ];
    assert_eq!(classes(&names), ["infinity", "n01440764", "nan"]);
}

#[test]
fn json_of_any_size_and_text_is_read() {
    let utf_16 = |text: &str| -> Vec<u8> {
        [0xFEFF]
            .into_iter()
            .chain(text.encode_utf16())
            .flat_map(u16::to_le_bytes)
            .collect()
    };
    let long = format!(r#"{{"x": "{}", "label": 1}}"#, "\\\"y".repeat(700_000));
    let deep = format!(
        r#"{{"x": {}1{}, "label": 1}}"#,
        "[".repeat(5000),
        "]".repeat(5000)
    );
    for json in [text(&long), text(&deep), utf_16(r#"{"label": 1}"#)] {
        let files: Files = vec![("x.jpg", png(1)), ("x.json", json)];
        assert_eq!(both(&files).1, [("x".to_string(), 1)]);
    }
}

#[test]
fn captions_are_no_labels_and_that_is_said() {
    let captions = |last: &str| -> (Vec<String>, Vec<String>) {
        let files: Files = vec![
            ("0.jpg", png(1)),
            ("0.txt", text("42")),
            ("1.jpg", png(2)),
            ("1.txt", text(last)),
        ];
        let (classes, _, doubts) = both(&files);
        (classes, doubts)
    };
    let (classes, doubts) = captions("a dog\n");
    assert!(classes.is_empty());
    assert!(
        doubts[0].contains("2 images have files beside them (.txt) that give no label"),
        "{doubts:?}"
    );
    let (classes, doubts) = captions("7");
    assert_eq!(classes.len(), 43);
    assert!(
        doubts[0].contains("41 of the classes 0 to 42 have no image: 0, 1, 2"),
        "{doubts:?}"
    );
    // If folders name classes, a number in a .txt may be a score.
    let mut scored = images(&["cat/a.png", "dog/b.png"]);
    scored.extend([("cat/a.txt", text("5")), ("dog/b.txt", text("6"))]);
    assert_eq!(self::classes(&scored), ["cat", "dog"]);
}

/// Files of any kind in a folder, or fields of the image's key in a shard.
#[test]
fn what_else_lies_beside_images_is_said_of_shards() {
    let root = tempfile::tempdir().unwrap();
    let files: Files = vec![("0.jpg", png(1)), ("0.npy", text("x"))];
    write(&root.path().join("d"), &files);
    fs::write(root.path().join("t.tar"), tar(&files)).unwrap();
    assert!(
        opened(root.path(), &["d"], false)
            .unwrap()
            .doubts()
            .is_empty()
    );
    let source = opened(root.path(), &["t.tar"], false).unwrap();
    assert!(
        source.doubts()[0].contains("(.npy) that give no label"),
        "{:?}",
        source.doubts()
    );
}

#[test]
fn a_second_image_of_a_key_is_no_data() {
    let files: Files = vec![
        ("0.jpg", png(1)),
        ("0.seg.png", png(9)),
        ("0.cls", text("1")),
        ("1.seg.png", png(9)),
        ("1.jpg", png(2)),
        ("1.cls", text("0")),
        ("2.png", png(9)),
        ("2.jpg", png(3)),
        ("2.cls", text("0")),
        ("3.depth.png", png(9)),
        ("3.img.png", png(4)),
        ("3.cls", text("0")),
    ];
    let expected = [("0", 1), ("1", 0), ("2", 0), ("3.img", 0)];
    let expected = expected.map(|(key, label)| (key.to_string(), label));
    assert_eq!(both(&files).1, expected);
    let folders = images(&[
        "n01/a.jpg",
        "n01/a.seg.png",
        "n01/a.2.jpg",
        "n02/b.jpg",
        "n02/b.png",
        "n02/2021.03.04.jpg",
        "n02/2021.03.05.jpg",
    ]);
    let keys: Vec<String> = both(&folders).1.into_iter().map(|(key, _)| key).collect();
    assert_eq!(
        keys,
        [
            "n01/a",
            "n01/a.2",
            "n02/2021.03.04",
            "n02/2021.03.05",
            "n02/b",
            "n02/b"
        ]
    );
}

#[test]
fn a_member_that_stands_twice_in_a_shard_is_its_last() {
    let root = tempfile::tempdir().unwrap();
    let files: Files = vec![
        ("a/x.png", png(1)),
        ("b/y.png", png(2)),
        ("a/x.png", png(3)),
    ];
    fs::write(root.path().join("t.tar"), tar(&files)).unwrap();
    let source = opened(root.path(), &["t.tar"], false).unwrap();
    let expected = [("b/y".to_string(), 1, 2), ("a/x".to_string(), 0, 3)];
    assert_eq!(contents(&*source), expected);
}

#[test]
fn implausible_labels_are_doubted() {
    for (paths, doubt) in [
        (
            &["cats/a.png", "cats/b.png"][..],
            "all images are of one class, `cats`",
        ),
        (
            &["train/a/x.png", "val/a/x.png"],
            "the classes are called train, val",
        ),
    ] {
        let (_, _, doubts) = both(&images(paths));
        assert!(doubts[0].contains(doubt), "{doubts:?}");
    }
    let mut numbered = images(&["0.png", "1.png"]);
    numbered.extend([("0.cls", text("0")), ("1.cls", text("3"))]);
    let (_, _, doubts) = both(&numbered);
    assert!(
        doubts[0].contains("2 of the classes 0 to 3 have no image: 1, 2"),
        "{doubts:?}"
    );
    let mut broken = images(&["a/0.png", "b/1.png"]);
    broken.push(("a/0.json", text("{'label': 0}")));
    let (classes, _, doubts) = both(&broken);
    assert_eq!(classes, ["a", "b"]);
    assert!(
        doubts[0].contains("1 files beside images cannot be read")
            && doubts[0].contains("a/0.json"),
        "{doubts:?}"
    );
    assert!(both(&images(&["a/0.png", "b/1.png"])).2.is_empty());
}

#[test]
fn images_with_and_without_labels_are_not_mixed() {
    let root = tempfile::tempdir().unwrap();
    let mut files = images(&["d/0.png", "d/1.png"]);
    files.push(("d/0.cls", text("0")));
    write(&root.path().join("d"), &files);
    fs::write(root.path().join("t.tar"), tar(&files)).unwrap();
    for name in ["d", "t.tar"] {
        let text = failure(opened(root.path(), &[name], false));
        assert!(
            text.contains("some images have a class, others none"),
            "{text}"
        );
    }
}

/// Names in Latin-1, as in old archives.
#[test]
fn names_that_are_not_utf_8_matter_for_classes_only() {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    let root = tempfile::tempdir().unwrap();
    let set = root.path().join("set");
    fs::create_dir_all(set.join("cat")).unwrap();
    let odd = |name: &[u8]| Path::new(OsStr::from_bytes(name)).to_path_buf();
    fs::write(set.join("cat").join(odd(b"caf\xE9.png")), png(1)).unwrap();
    fs::write(set.join("cat").join(odd(b"caf\xEA.png")), png(2)).unwrap();
    fs::write(set.join("cat").join(odd(b"notes\xE9.txt")), "x").unwrap();
    fs::create_dir_all(set.join("cat").join(odd(b"more\xE9"))).unwrap();
    fs::write(set.join("cat").join(odd(b"more\xE9/a.png")), png(3)).unwrap();
    let source = opened(root.path(), &["set"], false).unwrap();
    let expected = [
        ("cat/caf\\xE9", 1),
        ("cat/caf\\xEA", 2),
        ("cat/more\\xE9/a", 3),
    ];
    let expected = expected.map(|(key, red)| (key.to_string(), 0, red));
    assert_eq!(contents(&*source), expected);
    assert_eq!(source.fingerprint().unwrap().len(), 64);
    assert_eq!(
        contents(&*opened(root.path(), &["set/cat/*.png"], false).unwrap()).len(),
        2
    );
    fs::create_dir_all(set.join(odd(b"h\xE9"))).unwrap();
    fs::write(set.join(odd(b"h\xE9/a.png")), png(4)).unwrap();
    let text = failure(opened(root.path(), &["set"], false));
    assert!(
        text.contains("`h\\xE9`") && text.contains("not UTF-8"),
        "{text}"
    );
}

#[test]
fn broken_links_are_named_or_left_out() {
    use std::os::unix::fs::symlink;
    let root = tempfile::tempdir().unwrap();
    write(&root.path().join("d"), &images(&["n01/a.png", "n02/b.png"]));
    symlink(
        "/nonexistent/notes.txt",
        root.path().join("d/n01/notes.txt"),
    )
    .unwrap();
    symlink("/nonexistent/n03", root.path().join("d/n03")).unwrap();
    symlink("itself.txt", root.path().join("d/itself.txt")).unwrap();
    assert_eq!(opened(root.path(), &["d"], false).unwrap().len(), 2);
    symlink("/nonexistent/x.png", root.path().join("d/n01/c.png")).unwrap();
    let text = failure(opened(root.path(), &["d"], false));
    assert!(
        text.contains("d/n01/c.png: a broken link to /nonexistent/x.png"),
        "{text}"
    );
    assert!(
        text.contains("hint: ") && text.contains("--skip-bad-images"),
        "{text}"
    );
    assert_eq!(opened(root.path(), &["d"], true).unwrap().len(), 2);
    symlink("nothing.tar", root.path().join("s.tar")).unwrap();
    assert!(failure(opened(root.path(), &["s.tar"], false)).contains("a broken link"));
    // In a cycle through two folders.
    symlink("../n02", root.path().join("d/n01/other")).unwrap();
    symlink("../n01", root.path().join("d/n02/other")).unwrap();
    assert!(failure(opened(root.path(), &["d"], true)).contains("leads back"));
}
