//! Which folder names a class, which files are data, and which warnings are given: the same for a
//! folder and for its tar.

use std::fs;
use std::path::Path;
use std::sync::atomic::AtomicU64;

use super::{contents, failure, names, opened, png, tar, write};
use crate::data::{folder, plausible, shards};

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

/// What is said to be passed over, of the files as a folder and as a shard.
fn passed_over(files: &Files) -> Vec<String> {
    let root = tempfile::tempdir().unwrap();
    write(&root.path().join("d"), files);
    fs::write(root.path().join("t.tar"), tar(files)).unwrap();
    let parts = [
        folder::scan(&root.path().join("d"), false).unwrap(),
        shards::scan(&root.path().join("t.tar"), false, &AtomicU64::new(0), 0).unwrap(),
    ];
    let [folder, shard] = parts.map(|part| plausible::passed_over(&[part]));
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
        message.contains("1 .gif (`c/a.gif`), 1 hidden (`c/.b/d.png`)"),
        "{message}"
    );
}

/// As in ImageFolder: its absence would shift the numbers of the classes behind it.
#[test]
fn a_class_whose_every_file_is_passed_over_is_an_error_in_a_folder_and_in_a_shard() {
    let root = tempfile::tempdir().unwrap();
    for class in ["n1 n2 n3", "n01440764 n01443537 n02099601"] {
        let classes: Vec<&str> = class.split(' ').collect();
        for (file, what) in [
            ("x.qoi", ", but files of kinds that are not read (.qoi)"),
            ("x.mp4", ", but files of kinds that are not read (.mp4)"),
            (
                "IMG_0001",
                ", but files of kinds that are not read (without a suffix)",
            ),
            ("notes.txt", "\n"),
            (".thumbs/a.png", "\n"),
        ] {
            let paths = [
                format!("{}/a.png", classes[0]),
                format!("{}/{file}", classes[1]),
                format!("{}/c.png", classes[2]),
            ];
            let files: Files = paths.iter().map(|path| (path.as_str(), png(1))).collect();
            fs::remove_dir_all(root.path().join("d")).ok();
            write(&root.path().join("d"), &files);
            fs::write(root.path().join("t.tar"), tar(&files)).unwrap();
            for name in ["d", "t.tar"] {
                let text = failure(opened(root.path(), &[name], false));
                let expected = format!("the class folder `{}` holds no images{what}", classes[1]);
                assert!(text.contains(&expected), "{name}: {text}");
            }
        }
    }
    // Beside `images/` it is no class.
    let mut split = images(&["images/a.png", "images/b.png"]);
    split.push(("labels/a.txt", text("0 0.5 0.5 1 1")));
    assert_eq!(classes(&split), ["images"]);
}

#[test]
fn every_kind_that_is_not_read_is_counted() {
    let kinds = "qoi pam pfm arw raf dcm fits ras xbm icns eps j2c heics npy mp4 gif md tar";
    let names: Vec<String> = kinds
        .split(' ')
        .map(|kind| format!("n1/x.{kind}"))
        .collect();
    let mut files = images(&["n1/a.png", "n2/b.png", "n2/b.gif", "n1/IMG_0001", "README"]);
    files.extend(names.iter().map(|name| (name.as_str(), text("?"))));
    // Fields, and texts that may be some.
    files.extend([("n1/a.xml", text("?")), ("words.txt", text("?"))]);
    let lines = passed_over(&files);
    let [line] = &lines[..] else {
        panic!("{lines:?}");
    };
    // Nineteen kinds, in order, of which twelve are named.
    let expected = "passed over as files of kinds that are not read: 1 .arw (`n1/x.arw`), \
                    1 .dcm (`n1/x.dcm`), 1 .eps (`n1/x.eps`), 1 .fits (`n1/x.fits`), \
                    2 .gif (`n1/x.gif`), 1 .heics (`n1/x.heics`), 1 .icns (`n1/x.icns`), \
                    1 .j2c (`n1/x.j2c`), 1 .md (`n1/x.md`), 1 .mp4 (`n1/x.mp4`), \
                    1 .npy (`n1/x.npy`), 1 .pam (`n1/x.pam`), and 7 more kinds";
    assert_eq!(line, expected);
    let unnamed = passed_over(&images(&["n1/a.png", "n1/IMG_0001", "n1/IMG_0002"]));
    assert!(
        unnamed[0].ends_with("2 without a suffix (`n1/IMG_0001`)"),
        "{unnamed:?}"
    );
}

#[test]
fn hidden_images_are_counted() {
    let files = images(&[
        "n1/a.png",
        "n2/b.png",
        ".git/objects/x.png",
        "n1/.thumbs/a.png",
        "n2/.hid.png",
        "n2/._b.png",
        "__MACOSX/n2/._b.png",
        ".classes/notes.md",
    ]);
    let expected =
        "3 files passed over as hidden, or below hidden folders: `.git/objects/x.png`, ...";
    assert_eq!(passed_over(&files), [expected]);
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

#[test]
fn fields_that_give_no_label_are_named() {
    for field in ["npy", "label", "index", "cls.npy"] {
        let names = [format!("0.{field}"), format!("1.{field}")];
        let mut files = images(&["0.jpg", "1.jpg"]);
        files.extend(names.iter().map(|name| (name.as_str(), text("1"))));
        let (classes, _, doubts) = both(&files);
        let said = format!("2 images have files beside them (.{field}) that give no label");
        assert!(
            classes.is_empty() && doubts[0].contains(&said),
            "{doubts:?}"
        );
    }
    // So of two images of the key one is taken.
    let mut boxes = images(&["a/x.jpg", "a/x.png", "b/y.jpg", "b/y.png"]);
    boxes.extend([("a/x.bbox", text("1")), ("b/y.bbox", text("1"))]);
    assert_eq!(
        both(&boxes).1,
        [("a/x".to_string(), 0), ("b/y".to_string(), 1)]
    );
}

#[test]
fn cls_comes_before_cls_txt_wherever_they_stand() {
    let mut fields = [("a.cls", text("0")), ("a.cls.txt", text("1"))];
    for _ in 0..2 {
        let mut files: Files = vec![("a.jpg", png(1))];
        files.extend(fields.clone());
        files.extend([("b.jpg", png(2)), ("b.cls", text("1"))]);
        let expected = [("a".to_string(), 0), ("b".to_string(), 1)];
        assert_eq!(both(&files).1, expected);
        fields.reverse();
    }
}

#[test]
fn numbers_in_texts_that_folders_outweigh_are_said_not_to_be_taken() {
    let mut files = images(&["n1/a.jpg", "n2/b.jpg"]);
    files.extend([("n1/a.txt", text("0")), ("n2/b.txt", text("1"))]);
    let (classes, _, doubts) = both(&files);
    assert_eq!(classes, ["n1", "n2"]);
    let [doubt] = &doubts[..] else {
        panic!("{doubts:?}");
    };
    assert!(
        doubt.contains("the numbers in .txt beside 2 images are not taken: the folders name"),
        "{doubt}"
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

/// The name of the data itself, as the command line and a run's configuration have it.
#[test]
fn data_whose_path_is_not_utf_8_is_opened_by_its_printed_name() {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    let root = tempfile::tempdir().unwrap();
    let odd = OsStr::from_bytes(b"n\xE9d");
    assert_eq!(crate::data::printed(odd), "n\\xE9d");
    let set = root.path().join(odd);
    write(&set, &images(&["cat/a.png", "dog/b.png"]));
    fs::write(set.join("s.tar"), tar(&images(&["cat/a.png", "dog/b.png"]))).unwrap();
    for (pattern, count) in [
        ("n\\xE9d", 2),
        ("n\\xE9d/s.tar", 2),
        ("n\\xE9d/cat/*.png", 1),
        ("n*d/*.tar", 2),
    ] {
        let found = opened(root.path(), &[pattern], false).map_or(0, |source| source.len());
        assert_eq!(found, count, "{pattern}");
    }
    // A folder that is called so comes first.
    write(&root.path().join("n\\xE9d"), &images(&["cat/c.png"]));
    assert_eq!(opened(root.path(), &["n\\xE9d"], false).unwrap().len(), 1);
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
