//! Codes in formats that other programs read, in shards, resumed and shared by processes.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use candle_core::Tensor;
use rdpm::error::Result;
use rdpm::store::codes::Codes;

use super::{fails, prepare, rdpm, succeeds};

const MODEL: &str = "--model model.safetensors";

/// Every format with its ending.
const FORMATS: [(&str, &str); 5] = [
    ("safetensors", ".safetensors"),
    ("npy", ""),
    ("wds", ".tar"),
    ("jsonl", ".jsonl"),
    ("parquet", ".parquet"),
];

/// All files below `folder` by name.
fn contents(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("a file").path();
        match path.is_dir() {
            true => found.extend(contents(&path)),
            false => drop(found.insert(path.clone(), fs::read(&path).expect("a file"))),
        }
    }
    let names = found.into_iter();
    names
        .map(|(path, bytes)| match path.strip_prefix(folder) {
            Ok(name) => (name.to_path_buf(), bytes),
            Err(_) => (path, bytes),
        })
        .collect()
}

fn flat(tensor: &Tensor) -> Result<Vec<f32>> {
    Ok(tensor.flatten_all()?.to_vec1()?)
}

#[test]
fn every_format_holds_the_same_codes_and_decodes_to_the_same_images() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let at = folder.path();
    prepare(at, "model.safetensors", 1)?;
    let encode = format!("encode images {MODEL} --seed 5 --batch-size 3 --flip --latents");
    let mut first = None;
    for (format, ending) in FORMATS {
        // One file by its name or by --format, and shards.
        let named = match format {
            "npy" => "--format npy --out codes".to_string(),
            _ => format!("--out codes{ending}"),
        };
        succeeds(at, &format!("{encode} {named}"));
        let sharded = format!("--format {format} --shard-size 4 --out set-{format}");
        let said = succeeds(at, &format!("{encode} {sharded}"));
        assert!(said.contains("22 images in 3 shards"), "{said}");
        for (out, codes) in [
            ("whole.npz", format!("codes{ending}")),
            ("set.npz", format!("set-{format}")),
        ] {
            succeeds(at, &format!("decode {codes} {MODEL} --out {out}"));
        }
        let pictures = fs::read(at.join("whole.npz"))?;
        assert!(pictures == fs::read(at.join("set.npz"))?, "{format}");

        let whole = Codes::read(&at.join(format!("codes{ending}")))?;
        assert_eq!(whole.codes.dims(), [4, 22, 8, 8]);
        assert_eq!(
            whole.names[..4],
            [
                "checkers/000008",
                "checkers/000008",
                "cross/000005",
                "cross/000005"
            ]
        );
        assert_eq!(whole.mirrored[..4], [false, true, false, true]);
        assert_eq!(whole.labels[..4], [8, 8, 5, 5]);
        let mut names = Vec::new();
        for shard in 0..3 {
            let path = at.join(format!("set-{format}/codes-{shard:05}{ending}"));
            names.extend(Codes::read(&path)?.names);
        }
        assert_eq!(names, whole.names);
        let codes = whole.codes.flatten_all()?.to_vec1::<u32>()?;
        let latents = flat(&whole.latents.expect("asked for"))?;
        let (c, l, p) = first.get_or_insert((codes.clone(), latents.clone(), pictures.clone()));
        assert!(*c == codes && *l == latents && *p == pictures, "{format}");
    }
    // Of the images themselves, codes are those without flips.
    succeeds(
        at,
        &format!("encode images {MODEL} --seed 5 --out plain.tar"),
    );
    let plain = Codes::read(&at.join("plain.tar"))?;
    let both = Codes::read(&at.join("codes.tar"))?;
    let even: Vec<u32> = (0..22).step_by(2).collect();
    let even = Tensor::new(even, both.codes.device())?;
    assert_eq!(
        both.codes
            .index_select(&even, 1)?
            .flatten_all()?
            .to_vec1::<u32>()?,
        plain.codes.flatten_all()?.to_vec1::<u32>()?
    );
    // The mirror images' latents are those of images that somebody mirrored.
    let images = fs::read_dir(at.join("images/cross"))?;
    fs::create_dir(at.join("turned"))?;
    for path in images {
        let path = path?.path();
        let image = image::imageops::flip_horizontal(&image::open(&path)?.into_rgb8());
        image.save(at.join("turned").join(path.file_name().expect("a name")))?;
    }
    succeeds(
        at,
        &format!("encode turned {MODEL} --latents --out turned.npy --format npy"),
    );
    let turned = Codes::read(&at.join("turned.npy"))?
        .latents
        .expect("asked for");
    let latents = both.latents.expect("asked for");
    assert_eq!(flat(&latents.get(3)?)?, flat(&turned.get(0)?)?);
    Ok(())
}

#[test]
fn a_set_goes_on_where_it_was_stopped_and_parts_make_the_same_files() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let at = folder.path();
    prepare(at, "model.safetensors", 1)?;
    for (format, ending) in FORMATS {
        let encode = format!("encode images {MODEL} --format {format} --shard-size 3");
        succeeds(at, &format!("{encode} --out {format}/whole"));
        let whole = contents(&at.join(format!("{format}/whole")));

        // By parts, in the order in which nobody would run them.
        for part in ["2/3", "0/3", "1/3"] {
            let out = format!("--out {format}/parts --part {part}");
            let said = succeeds(at, &format!("{encode} {out}"));
            assert!(
                said.contains(&format!("shards of 4, part {part}")),
                "{said}"
            );
        }
        let parts = contents(&at.join(format!("{format}/parts")));
        assert!(whole == parts, "{format}");

        // Without one of its shards, which is made again alone.
        let lost = at.join(format!("{format}/parts/codes-00001{ending}"));
        let kept = at.join(format!("{format}/parts/codes-00002{ending}"));
        let written = fs::metadata(&kept)?.modified()?;
        match lost.is_dir() {
            true => fs::remove_dir_all(&lost)?,
            false => fs::remove_file(&lost)?,
        }
        let (errors, _) = fails(at, &format!("decode {format}/parts {MODEL}"));
        assert!(
            errors.contains("3 of 4 shards are there") && errors.contains("hint: "),
            "{errors}"
        );
        let said = succeeds(at, &format!("{encode} --out {format}/parts"));
        assert!(said.contains("3 of them there already"), "{said}");
        assert!(
            whole == contents(&at.join(format!("{format}/parts"))),
            "{format}"
        );
        assert_eq!(fs::metadata(&kept)?.modified()?, written);

        // A shard that is damaged is named, not passed over.
        let file = match kept.is_dir() {
            true => kept.join("codes.npy"),
            false => kept.clone(),
        };
        let bytes = fs::read(&file)?;
        fs::write(&file, &bytes[..bytes.len() / 2])?;
        for line in [
            format!("{encode} --out {format}/parts"),
            format!("decode {format}/parts {MODEL}"),
        ] {
            let (errors, code) = fails(at, &line);
            assert!(
                errors.contains("codes-00002") && errors.contains("hint: ") && code == Some(1),
                "{errors}"
            );
        }
    }
    Ok(())
}

#[test]
fn a_folder_of_something_else_is_neither_added_to_nor_replaced() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let at = folder.path();
    prepare(at, "model.safetensors", 1)?;
    prepare(at, "other.safetensors", 2)?;
    let encode = "encode images --format wds --shard-size 6";
    succeeds(at, &format!("{encode} {MODEL} --out set"));
    let before = contents(&at.join("set"));
    for (line, words) in [
        (
            format!("{encode} --model other.safetensors --out set"),
            "its tokenizer is",
        ),
        (
            format!("{encode} {MODEL} --out set --seed 1"),
            "its seed is 0, expected 1",
        ),
        (
            format!("{encode} {MODEL} --out set --flip"),
            "its flip is false",
        ),
        (
            format!("encode images {MODEL} --format npy --shard-size 6 --out set"),
            "its files is \"wds\"",
        ),
        (
            format!("encode images/star {MODEL} --format wds --shard-size 6 --out set"),
            "it",
        ),
        (
            format!("{encode} {MODEL} --out images"),
            "holds no set of codes",
        ),
        (
            format!("encode images {MODEL} --format npy --out images"),
            "exists and holds no codes",
        ),
        (
            format!("encode images {MODEL} --format npy --out codes.tar"),
            "the name of a wds file",
        ),
        (
            format!("{encode} {MODEL} --out a.tar"),
            "shards need a folder",
        ),
        (format!("{encode} {MODEL} --part 4/4"), "the last is 3/4"),
        (format!("{encode} {MODEL} --part 1"), "such as 0/4"),
        (format!("encode images {MODEL} --part 0/4"), "--shard-size"),
    ] {
        let (errors, code) = fails(at, &line);
        assert!(
            errors.contains(words) && code == Some(2),
            "{line}\n{errors}"
        );
    }
    assert!(contents(&at.join("set")) == before);
    assert!(at.join("images/star").is_dir());
    let missing = format!("encode images {MODEL} --out nowhere/codes.tar");
    let (errors, _) = fails(at, &missing);
    assert!(errors.contains("make its folder first"), "{errors}");
    Ok(())
}

#[test]
fn codes_of_two_tokenizers_are_not_decoded_together() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let at = folder.path();
    prepare(at, "model.safetensors", 1)?;
    prepare(at, "other.safetensors", 2)?;
    succeeds(at, &format!("encode images {MODEL} --out a.tar"));
    succeeds(
        at,
        "encode images --model other.safetensors --out b.parquet",
    );
    let (errors, code) = fails(at, &format!("decode a.tar b.parquet {MODEL}"));
    assert!(
        errors.contains("a.tar and b.parquet are of different tokenizers") && code == Some(2),
        "{errors}"
    );
    assert!(!at.join("decoded.png").exists());
    // Files of one tokenizer are, whatever their formats.
    succeeds(at, &format!("encode images {MODEL} --out c.jsonl"));
    succeeds(at, &format!("decode a.tar c.jsonl {MODEL} --out both"));
    assert_eq!(fs::read_dir(at.join("both"))?.count(), 22);
    Ok(())
}

/// Runs a command with files limited to so many KiB, as on a disk that is full then.
fn limited(at: &Path, kib: u32, line: &str) -> (String, Option<i32>) {
    let script = format!("trap '' XFSZ; ulimit -f {kib}; exec \"$0\" {line}");
    let output = Command::new("bash")
        .args(["-c", &script, env!("CARGO_BIN_EXE_rdpm")])
        .current_dir(at)
        .output()
        .expect("bash runs");
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    (errors, output.status.code())
}

#[test]
fn a_shard_that_finds_no_room_leaves_the_whole_ones_and_nothing_else() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let at = folder.path();
    prepare(at, "model.safetensors", 1)?;
    for (format, _) in FORMATS {
        let encode = format!("encode images {MODEL} --format {format} --shard-size 6 --latents");
        let encode = format!("{encode} --save-noise --out {format}");
        succeeds(at, &format!("{encode} --part 0/2"));
        let before = contents(&at.join(format));
        let (errors, code) = limited(at, 8, &encode);
        assert!(
            errors.contains("cannot write")
                && errors.contains("codes-00001")
                && errors.contains("hint: ")
                && errors.contains("whole shards are kept")
                && code == Some(1),
            "{format}: {errors}"
        );
        assert!(contents(&at.join(format)) == before, "{format}");
        succeeds(at, &encode);
        succeeds(at, &format!("decode {format} {MODEL}"));
    }
    Ok(())
}

#[test]
fn images_that_cannot_be_read_are_missing_from_their_shard_only() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let at = folder.path();
    prepare(at, "model.safetensors", 1)?;
    fs::write(at.join("images/disc/0.png"), "no image")?;
    let encode = format!("encode images {MODEL} --format jsonl --shard-size 6 --out set");
    let (errors, _) = fails(at, &encode);
    assert!(errors.contains("disc/0.png"), "{errors}");
    let said = succeeds(at, &format!("{encode} --skip-bad-images --json"));
    let said: serde_json::Value = serde_json::from_str(&said)?;
    assert_eq!((&said["images"], &said["skipped"]), (&11.into(), &1.into()));
    succeeds(
        at,
        &format!("encode images {MODEL} --skip-bad-images --out whole.jsonl"),
    );
    let lines = |name: &str, images: usize| -> Result<String> {
        let text = fs::read_to_string(at.join(name))?;
        assert_eq!(text.lines().count(), images, "{name}");
        Ok(text.replace(&format!("\"images\":{images},"), ""))
    };
    let shards = lines("set/codes-00000.jsonl", 5)? + &lines("set/codes-00001.jsonl", 6)?;
    assert!(shards == lines("whole.jsonl", 11)?);
    let inspected = rdpm(at, "inspect set --json");
    let set: serde_json::Value = serde_json::from_slice(&inspected.stdout)?;
    assert_eq!(
        (&set["kind"], &set["images"]),
        (&"set of codes".into(), &12.into())
    );
    Ok(())
}
