//! The index of a data set as a user meets it: made by hand, taken by a later start, made again
//! when something has changed.

use std::fs;
use std::path::Path;
use std::process::Command;

use image::{Rgb, RgbImage};

struct Home(tempfile::TempDir);

impl Home {
    /// Runs `rdpm` there; gives whether it succeeded, and what it said, with paths as from there.
    fn run(&self, arguments: &[&str]) -> (bool, String) {
        let output = Command::new(env!("CARGO_BIN_EXE_rdpm"))
            .args(arguments)
            .current_dir(self.0.path())
            .env_remove("RUST_LOG")
            .env("XDG_CACHE_HOME", self.0.path().join("cache"))
            .output()
            .expect("the binary starts");
        let text = [output.stdout, output.stderr].concat();
        let here = format!("{}/", self.0.path().display());
        let text = String::from_utf8_lossy(&text).replace(&here, "");
        (output.status.success(), text)
    }

    /// What a dry run says of `data`, without times.
    fn dry_run(&self, data: &str) -> String {
        let (whole, text) = self.run(&[
            "train-vae",
            "--config",
            "smoke",
            "--dry-run",
            "--data",
            data,
        ]);
        assert!(whole, "{text}");
        let without_time = |line: &str| {
            line.split_once('Z')
                .map_or(line, |(_, rest)| rest)
                .to_string()
        };
        text.lines()
            .map(without_time)
            .collect::<Vec<_>>()
            .join("\n")
    }
}

fn png(path: &Path, side: u32) {
    fs::create_dir_all(path.parent().expect("a folder")).expect("the folder is made");
    let image = RgbImage::from_fn(side, side, |x, y| Rgb([x as u8, y as u8, 7]));
    image.save(path).expect("the image is written");
}

#[test]
fn a_set_is_looked_through_once() {
    let home = Home(tempfile::tempdir().expect("a folder"));
    let image = |name: &str, side| png(&home.0.path().join("data").join(name), side);
    for name in ["cat/a.png", "cat/b.png", "dog/c.png"] {
        image(name, 32);
    }
    fs::write(home.0.path().join("data/cat/d.gif"), "GIF8").expect("the file is written");
    let before = home.dry_run("data");
    assert!(
        before.contains("opened data: 3 images of 2 classes"),
        "{before}"
    );
    assert!(before.contains("not read: 1 .gif"), "{before}");
    // Unasked, none is kept of so few.
    assert!(!home.0.path().join("cache/rdpm/index").exists());

    let (whole, text) = home.run(&["index", "data"]);
    assert!(whole && text.contains("3 images: index made"), "{text}");
    let (whole, text) = home.run(&["index", "data/../data"]);
    assert!(whole && text.contains("nothing has changed"), "{text}");
    assert_eq!(home.dry_run("data"), before);

    // Written to in its place: no folder tells, the reader does.
    image("dog/c.png", 40);
    assert_eq!(home.dry_run("data"), before);
    let train = [
        "train-vae",
        "--config",
        "smoke",
        "--steps",
        "2",
        "--out",
        "run",
        "--data",
        "data",
    ];
    let (whole, text) = home.run(&train);
    assert!(!whole && text.contains("dog/c.png: it has"), "{text}");
    assert!(
        text.contains("hint: look through the data again: rdpm index --refresh data"),
        "{text}"
    );
    let (whole, text) = home.run(&["index", "--refresh", "data"]);
    assert!(whole && text.contains("index made"), "{text}");
    fs::remove_dir_all(home.0.path().join("run")).ok();
    let (whole, text) = home.run(&train);
    assert!(whole, "{text}");

    // A file that has come is in the set at the next start.
    image("dog/e.png", 32);
    let after = home.dry_run("data");
    assert!(
        after.contains("opened data: 4 images of 2 classes"),
        "{after}"
    );
    assert!(after.contains("has changed since it was made"), "{after}");

    // A damaged index is no index.
    let kept = fs::read_dir(home.0.path().join("cache/rdpm/index")).expect("a folder");
    for entry in kept {
        let path = entry.expect("an entry").path();
        let mut bytes = fs::read(&path).expect("an index");
        bytes[100] ^= 1;
        fs::write(&path, bytes).expect("the index is written");
    }
    let text = home.dry_run("data");
    assert!(
        text.contains("opened data: 4 images") && text.contains("damaged index"),
        "{text}"
    );
}

#[test]
fn a_set_of_which_no_index_can_be_kept_is_an_error_that_says_why() {
    let home = Home(tempfile::tempdir().expect("a folder"));
    png(&home.0.path().join("data/a.png"), 32);
    let (whole, text) = home.run(&["index", "data/a.png"]);
    assert!(
        !whole && text.contains("no index is kept of images that are named"),
        "{text}"
    );
    assert!(text.contains("hint: name their folder"), "{text}");
}
