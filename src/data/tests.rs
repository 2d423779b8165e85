//! Sources as a user meets them: folders, shards, patterns, and what is wrong with them.

mod layout;
mod paths;
mod shards;

use std::fs;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use flate2::write::GzEncoder;
use image::{Rgb, RgbImage};

use super::shards as shard;
use super::{Classes, Loader, LoaderOptions, Source, open, open_numbered};
use crate::error::{Result, report};

/// A PNG of one colour, told from others by its red.
fn png(red: u8) -> Vec<u8> {
    let mut bytes = std::io::Cursor::new(Vec::new());
    let image = RgbImage::from_pixel(8, 8, Rgb([red, 0, 0]));
    image.write_to(&mut bytes, image::ImageFormat::Png).unwrap();
    bytes.into_inner()
}

fn write(root: &Path, files: &[(&str, Vec<u8>)]) {
    for (name, bytes) in files {
        let path = root.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
}

fn tar(files: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (name, bytes) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, name, bytes.as_slice())
            .unwrap();
    }
    tar.into_inner().unwrap()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut gz = GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gz.write_all(bytes).unwrap();
    gz.finish().unwrap()
}

fn opened(root: &Path, patterns: &[&str], skip_bad: bool) -> Result<Arc<dyn Source>> {
    let join = |p: &&str| root.join(p).display().to_string();
    open(&patterns.iter().map(join).collect::<Vec<_>>(), skip_bad)
}

/// Key, label and red of every image.
fn contents(source: &dyn Source) -> Vec<(String, u32, u8)> {
    let one = |i| source.read(i).unwrap();
    (0..source.len())
        .map(one)
        .map(|e| (e.key, e.label, e.image.get_pixel(0, 0)[0]))
        .collect()
}

fn expected(list: &[(&str, u32, u8)]) -> Vec<(String, u32, u8)> {
    list.iter()
        .map(|(key, label, red)| (key.to_string(), *label, *red))
        .collect()
}

fn names(source: &dyn Source) -> Vec<String> {
    source
        .classes()
        .iter()
        .map(|class| class.wnid.clone())
        .collect()
}

/// The message and hint of what must fail.
fn failure(result: Result<Arc<dyn Source>>) -> String {
    report(&result.err().expect("an error")).0
}

fn animals() -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("cat/b.png", png(2)),
        ("dog/a.PNG", png(3)),
        ("cat/a.png", png(1)),
        ("dog/more/b.png", png(4)),
    ]
}

const ANIMALS: [(&str, u32, u8); 4] = [
    ("cat/a", 0, 1),
    ("cat/b", 0, 2),
    ("dog/a", 1, 3),
    ("dog/more/b", 1, 4),
];

#[test]
fn the_class_of_an_image_is_its_sub_folder() {
    let root = tempfile::tempdir().unwrap();
    write(root.path(), &animals());
    let ignored = vec![
        ("cat/notes.txt", b"x".to_vec()),
        ("cat/._a.png", b"x".to_vec()),
        ("readme.md", b"x".to_vec()),
    ];
    write(root.path(), &ignored);
    let source = opened(root.path(), &[""], false).unwrap();
    assert_eq!(names(&*source), ["cat", "dog"]);
    assert_eq!(contents(&*source), expected(&ANIMALS));
}

#[test]
fn images_without_sub_folders_have_no_classes() {
    let root = tempfile::tempdir().unwrap();
    write(root.path(), &[("set/b.png", png(2)), ("set/a.png", png(1))]);
    for patterns in [&["set"][..], &["set/*.png"], &["set/b.png", "set/a.png"]] {
        let source = opened(root.path(), patterns, false).unwrap();
        assert!(source.classes().is_empty());
        assert_eq!(contents(&*source), expected(&[("a", 0, 1), ("b", 0, 2)]));
    }
}

#[test]
fn a_shard_plain_or_gzipped_is_what_its_folder_is() {
    let root = tempfile::tempdir().unwrap();
    let mut files = animals();
    files.sort_by_key(|(name, _)| *name);
    files.pop();
    write(&root.path().join("folder"), &files);
    fs::write(root.path().join("s.tar"), tar(&files)).unwrap();
    // Named .tar, yet gzipped: the content decides.
    fs::write(root.path().join("z.tar"), gzip(&tar(&files))).unwrap();
    fs::write(root.path().join("z.tgz"), gzip(&tar(&files))).unwrap();
    let folder = opened(root.path(), &["folder"], false).unwrap();
    assert_eq!(contents(&*folder), expected(&ANIMALS[..3]));
    for shard in ["s.tar", "z.tar", "z.tgz"] {
        let shard = opened(root.path(), &[shard], false).unwrap();
        assert_eq!(contents(&*shard), contents(&*folder));
        assert_eq!(shard.classes(), folder.classes());
        assert_eq!(shard.fingerprint().unwrap(), folder.fingerprint().unwrap());
    }
}

#[test]
fn paths_are_sorted_and_each_is_taken_once() {
    let root = tempfile::tempdir().unwrap();
    fs::write(root.path().join("1.tar"), tar(&[("cat/x.png", png(1))])).unwrap();
    fs::write(root.path().join("2.tar"), tar(&[("ant/x.png", png(2))])).unwrap();
    let all = expected(&[("cat/x", 1, 1), ("ant/x", 0, 2)]);
    for patterns in [&["?.tar"][..], &["2.tar", "1.tar"], &["1.tar", "*.tar"]] {
        let source = opened(root.path(), patterns, false).unwrap();
        assert_eq!(contents(&*source), all, "{patterns:?}");
        assert_eq!(names(&*source), ["ant", "cat"]);
    }
}

#[test]
fn a_webdataset_names_the_class_in_cls_or_json() {
    let root = tempfile::tempdir().unwrap();
    let text = |t: &str| t.as_bytes().to_vec();
    let files = [
        ("000.cls", text("3\n")),
        ("000.png", png(1)),
        ("001.json", text(r#"{"label": 1, "caption": "x"}"#)),
        ("001.png", png(2)),
        ("002.png", png(3)),
        ("002.json", text(r#"{"cls": "0"}"#)),
        ("dir/003.json", text(r#"{"label": 0}"#)),
        ("dir/003.img.png", png(4)),
        ("dir/003.cls", text("2")),
        ("dir.with/a.dot.cls", text("1")),
        ("dir.with/a.dot.png", png(5)),
    ];
    fs::write(root.path().join("w.tar"), tar(&files)).unwrap();
    let source = opened(root.path(), &["w.tar"], false).unwrap();
    assert_eq!(names(&*source), ["0", "1", "2", "3"]);
    let labels: Vec<(u32, u8)> = contents(&*source)
        .iter()
        .map(|(_, l, red)| (*l, *red))
        .collect();
    assert_eq!(labels, [(3, 1), (1, 2), (0, 3), (2, 4), (1, 5)]);

    let files = [
        ("0.cls", text("dog")),
        ("0.png", png(1)),
        ("1.json", text(r#"{"label":"cat"}"#)),
        ("1.png", png(2)),
    ];
    fs::write(root.path().join("names.tar"), tar(&files)).unwrap();
    let source = opened(root.path(), &["names.tar"], false).unwrap();
    assert_eq!(contents(&*source), expected(&[("0", 1, 1), ("1", 0, 2)]));
}

#[test]
fn sorted_wnids_get_their_index_and_imagenets_words() {
    let root = tempfile::tempdir().unwrap();
    write(
        root.path(),
        &[("n02099601/a.png", png(1)), ("n01443537/a.png", png(2))],
    );
    let source = opened(root.path(), &[""], false).unwrap();
    assert_eq!(source.classes().resolve("golden retriever").unwrap(), [1]);
    assert_eq!(source.classes().title(0), Some("goldfish"));
}

#[test]
fn validation_takes_the_numbering_of_training() {
    let root = tempfile::tempdir().unwrap();
    write(
        root.path(),
        &[("val/dog/a.png", png(1)), ("new/dogs/a.png", png(1))],
    );
    fs::write(
        root.path().join("4.tar"),
        tar(&[("a.png", png(1)), ("a.cls", b"4".to_vec())]),
    )
    .unwrap();
    let training = Classes::named(["ant", "cat", "dog"]);
    let numbered = |name: &str, classes: &Classes| {
        open_numbered(
            &[root.path().join(name).display().to_string()],
            classes,
            false,
        )
    };
    let val = numbered("val", &training).unwrap();
    assert_eq!(contents(&*val), expected(&[("dog/a", 2, 1)]));
    assert_eq!(val.classes(), &training);
    let unknown = failure(numbered("new", &training));
    assert!(
        unknown.contains("dogs/a.png: the class `dogs`") && unknown.contains("`dog`"),
        "{unknown}"
    );

    let numbers = |count: u32| Classes::named((0..count).map(|i| i.to_string()));
    assert_eq!(numbered("4.tar", &numbers(10)).unwrap().classes().len(), 10);
    let beyond = failure(numbered("4.tar", &numbers(4)));
    assert!(
        beyond.contains("class 4 is not among") && beyond.contains("0 to 3"),
        "{beyond}"
    );
    assert!(failure(numbered("4.tar", &training)).contains("has names (`ant`"));
}

#[test]
fn a_truncated_shard_is_refused_or_kept_as_far_as_it_is_whole() {
    let root = tempfile::tempdir().unwrap();
    let files: Vec<(String, Vec<u8>)> = (0..5).map(|i| (format!("c/{i}.png"), png(i))).collect();
    let files: Vec<(&str, Vec<u8>)> = files.iter().map(|(n, b)| (n.as_str(), b.clone())).collect();
    let whole = tar(&files);
    let path = root.path().join("t.tar");
    // Every member takes a header and one block: cut in a header, in a member, between members,
    // before the end.
    for (length, images) in [
        (100, 0),
        (2048 + 100, 2),
        (2048 + 530, 2),
        (2048, 2),
        (5120, 5),
    ] {
        fs::write(&path, &whole[..length]).unwrap();
        let message = failure(opened(root.path(), &["t.tar"], false));
        let told = format!("{images} images are whole");
        assert!(
            message.contains("t.tar: tar damaged after") && message.contains(&told),
            "{message}"
        );
        match opened(root.path(), &["t.tar"], true) {
            Ok(source) => assert_eq!(contents(&*source).len(), images),
            Err(_) => assert_eq!(images, 0),
        }
    }
    fs::write(&path, &whole).unwrap();
    assert_eq!(opened(root.path(), &["t.tar"], false).unwrap().len(), 5);
}

#[test]
fn a_truncated_gzip_is_refused_or_kept_as_far_as_it_is_whole() {
    let root = tempfile::tempdir().unwrap();
    // Noise does not compress, so that half of the stream is half of the images.
    let noise = |i: u32| {
        let image = RgbImage::from_fn(64, 64, |x, y| {
            let v = (x * 7919 + y * 104_729 + i * 31).wrapping_mul(2_654_435_761);
            Rgb([(v >> 24) as u8, (v >> 16) as u8, (v >> 8) as u8])
        });
        let mut bytes = std::io::Cursor::new(Vec::new());
        image.write_to(&mut bytes, image::ImageFormat::Png).unwrap();
        bytes.into_inner()
    };
    let files: Vec<(String, Vec<u8>)> = (0..8).map(|i| (format!("c/{i}.png"), noise(i))).collect();
    let files: Vec<(&str, Vec<u8>)> = files.iter().map(|(n, b)| (n.as_str(), b.clone())).collect();
    let whole = gzip(&tar(&files));
    fs::write(root.path().join("t.tgz"), &whole[..whole.len() / 2]).unwrap();
    let message = failure(opened(root.path(), &["t.tgz"], false));
    assert!(message.contains("t.tgz: gzip damaged after"), "{message}");
    let kept = opened(root.path(), &["t.tgz"], true).unwrap();
    assert!((1..8).contains(&kept.len()), "{}", kept.len());
    assert_eq!(contents(&*kept).len(), kept.len());
}

#[test]
fn gzipped_shards_beyond_the_limit_are_refused() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("z.tgz");
    fs::write(&path, gzip(&tar(&animals()))).unwrap();
    let scan = |used: u64| shard::scan(&path, false, &AtomicU64::new(used), 1 << 20);
    assert_eq!(scan(0).unwrap().found.len(), 4);
    let (text, _) = report(&scan((1 << 20) - 10).unwrap_err());
    assert!(
        text.contains("more than 1 MiB") && text.contains("gunzip"),
        "{text}"
    );
}

#[test]
fn a_label_that_is_none_is_refused_or_left_out() {
    let root = tempfile::tempdir().unwrap();
    let good = [
        ("a.png", png(1)),
        ("a.cls", b"0".to_vec()),
        ("b.png", png(2)),
    ];
    for (name, text, problem) in [
        ("b.cls", "-1", "class -1 is not in 0..1000000"),
        ("b.cls", "1000000", "not in 0.."),
        ("b.cls", "1.5", "not in 0.."),
        ("b.cls", " \n", "empty"),
        ("b.json", "{\"label\": [1]}", "number or a string"),
        ("b.json", "{\"label", "not JSON"),
    ] {
        let mut files = good.to_vec();
        files.push((name, text.as_bytes().to_vec()));
        fs::write(root.path().join("l.tar"), tar(&files)).unwrap();
        let message = failure(opened(root.path(), &["l.tar"], false));
        assert!(
            message.contains(&format!("l.tar: `{name}`: ")) && message.contains(problem),
            "{message}"
        );
        assert_eq!(opened(root.path(), &["l.tar"], true).unwrap().len(), 1);
    }
}

#[test]
fn what_holds_no_images_says_so_with_its_path() {
    let root = tempfile::tempdir().unwrap();
    fs::create_dir(root.path().join("empty")).unwrap();
    write(
        root.path(),
        &[
            ("shards/x.tar", tar(&animals())),
            ("text.txt", b"x".to_vec()),
            ("text.tar", vec![b'x'; 2000]),
            ("zstd.tar", [&b"\x28\xB5\x2F\xFD"[..], &[7; 2000]].concat()),
        ],
    );
    fs::write(
        root.path().join("none.tar"),
        tar(&[("a/readme.txt", b"x".to_vec())]),
    )
    .unwrap();
    for (pattern, message, hint) in [
        ("empty", "empty: no images", ".jpg"),
        ("shards", "shards: no images", "shards/*.tar*"),
        ("absent", "there is no", "folders, tar shards"),
        ("*.tgz", "nothing matches", "glob"),
        ("text.txt", "text.txt: neither a folder nor", ".tar"),
        (
            "text.tar",
            "text.tar: tar damaged after 0 bytes",
            "--skip-bad-images",
        ),
        (
            "zstd.tar",
            "zstd.tar: tar damaged after 0 bytes (it is zstd)",
            "make the shard again",
        ),
        ("none.tar", "none.tar: no images", ".jpg"),
    ] {
        let text = failure(opened(root.path(), &[pattern], false));
        let (first, second) = text.split_once("\nhint: ").unwrap();
        assert!(
            first.contains(message) && second.contains(hint),
            "{pattern}: {text}"
        );
    }
    assert!(failure(open(&[], false)).contains("no data given"));
}

#[test]
fn classes_that_cannot_be_numbered_are_refused() {
    let root = tempfile::tempdir().unwrap();
    write(
        root.path(),
        &[
            ("loose/cat/a.png", png(1)),
            ("loose/b.png", png(2)),
            ("cat/a.png", png(3)),
        ],
    );
    assert!(failure(opened(root.path(), &["loose"], false)).contains("beside class folders"));
    write(
        root.path(),
        &[("gap/cat/a.png", png(1)), ("gap/dog/readme.txt", vec![])],
    );
    assert!(
        failure(opened(root.path(), &["gap"], false))
            .contains("the class folder `dog` holds no images")
    );
    fs::write(root.path().join("n.tar"), tar(&[("dog/a.png", png(1))])).unwrap();
    fs::write(root.path().join("u.tar"), tar(&[("a.png", png(1))])).unwrap();
    fs::write(
        root.path().join("i.tar"),
        tar(&[("a.png", png(1)), ("a.cls", b"1".to_vec())]),
    )
    .unwrap();
    let text = failure(opened(root.path(), &["n.tar", "u.tar"], false));
    assert!(
        text.contains("others none") && text.contains("u.tar: a.png"),
        "{text}"
    );
    let text = failure(opened(root.path(), &["n.tar", "i.tar"], false));
    assert!(
        text.contains("others names") && text.contains("n.tar: dog/a.png"),
        "{text}"
    );
}

#[cfg(unix)]
#[test]
fn links_are_followed_but_not_in_circles() {
    let root = tempfile::tempdir().unwrap();
    write(
        root.path(),
        &[("set/cat/a.png", png(1)), ("elsewhere/b.png", png(2))],
    );
    std::os::unix::fs::symlink("../elsewhere", root.path().join("set/dog")).unwrap();
    let source = opened(root.path(), &["set"], false).unwrap();
    assert_eq!(
        contents(&*source),
        expected(&[("cat/a", 0, 1), ("dog/b", 1, 2)])
    );
    std::os::unix::fs::symlink("../../set", root.path().join("set/cat/loop")).unwrap();
    assert!(failure(opened(root.path(), &["set"], false)).contains("leads back"));
}

#[test]
fn a_bad_image_in_a_shard_is_named_or_skipped() {
    let root = tempfile::tempdir().unwrap();
    let jpeg = include_bytes!("../../tests/data/images/rgb.jpg");
    let files = [
        ("c/0.png", png(1)),
        ("c/1.jpg", b"this is text".to_vec()),
        ("c/2.jpg", jpeg[..jpeg.len() / 2].to_vec()),
        ("c/3.png", vec![]),
        ("c/4.jpg", jpeg.to_vec()),
    ];
    fs::write(root.path().join("b.tar"), tar(&files)).unwrap();
    let source = opened(root.path(), &["b.tar"], false).unwrap();
    let options = LoaderOptions {
        batch_size: 8,
        workers: 2,
        skip_bad: false,
    };
    let mut loader = Loader::ordered(source.clone(), &options, 8, false).unwrap();
    let (text, code) = report(&loader.next().unwrap().unwrap_err());
    assert!(
        text.contains("b.tar: c/1.jpg: not an image") && text.contains("--skip-bad"),
        "{text}"
    );
    assert_eq!(code, 1);
    assert!(loader.next().is_none());

    let options = LoaderOptions {
        skip_bad: true,
        ..options
    };
    let mut loader = Loader::ordered(source, &options, 8, false).unwrap();
    assert_eq!(loader.next().unwrap().unwrap().indices, [0, 4]);
    assert_eq!(loader.skipped(), 3);
}

/// A file that was written to in its place, which no folder tells: no bad image that may be
/// skipped.
#[test]
fn data_that_has_changed_since_it_was_opened_is_an_error() {
    for skip_bad in [false, true] {
        let root = tempfile::tempdir().unwrap();
        write(root.path(), &animals());
        let source = opened(root.path(), &[""], skip_bad).unwrap();
        fs::write(root.path().join("cat/b.png"), [png(2), vec![0]].concat()).unwrap();
        let options = LoaderOptions {
            batch_size: 4,
            workers: 1,
            skip_bad,
        };
        let mut loader = Loader::ordered(source, &options, 8, false).unwrap();
        let (text, code) = report(&loader.next().unwrap().unwrap_err());
        let size = png(2).len();
        let expected = format!("b.png: it has {} bytes, and had {size}", size + 1);
        assert!(text.contains(&expected), "{text}");
        let refresh = format!("rdpm index --refresh {}", root.path().display());
        assert!(text.contains(&refresh) && code == 2, "{text}");
    }
    let root = tempfile::tempdir().unwrap();
    let members = [("x/a.png", png(1)), ("y/b.png", png(2))];
    write(root.path(), &[("a.tar", tar(&members))]);
    let source = opened(root.path(), &["a.tar"], true).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(20));
    write(root.path(), &[("a.tar", tar(&members))]);
    let text = report(&source.read(0).unwrap_err()).0;
    assert!(text.contains("x/a.png: it has been written to"), "{text}");
}
