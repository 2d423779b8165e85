//! Tars in all their formats, compared with what Python's tarfile and webdataset read from the same
//! files (scripts/test_shards.py).

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;
use sha2::{Digest, Sha256};

use super::{contents, failure, gzip, names, opened, png, tar};
use crate::data::members::members;
use crate::data::{Source, open};
use crate::error::{Result, report};
use crate::store::digest::hex;

fn shards() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/shards")
}

fn shard(name: &str) -> Result<std::sync::Arc<dyn Source>> {
    open(&[shards().join(name).display().to_string()], false)
}

fn labels(source: &dyn Source) -> Vec<u32> {
    let label = |i| source.read(i).unwrap().label;
    (0..source.len()).map(label).collect()
}

#[test]
fn members_of_every_form_are_those_of_pythons_tarfile() {
    let text = fs::read(shards().join("members.json")).unwrap();
    let expected: Value = serde_json::from_slice(&text).unwrap();
    for (name, expected) in expected.as_object().unwrap() {
        let tar = fs::read(shards().join(name)).unwrap();
        let (members, damage) = members(&tar.as_slice());
        assert_eq!(damage, None, "{name}");
        let found: Vec<Value> = members
            .files
            .iter()
            .map(|file| {
                let bytes = file.place.read(&tar.as_slice()).unwrap();
                Value::from(vec![file.name.clone(), hex(&Sha256::digest(bytes))])
            })
            .collect();
        assert_eq!(&Value::from(found), expected, "{name}");
        let dangling = usize::from(name.starts_with("links"));
        assert_eq!(members.links.count, dangling, "{name}");
        assert_eq!(members.followed, 3 * dangling, "{name}");
    }
}

#[test]
fn labels_in_fields_are_webdatasets() {
    let text = fs::read(shards().join("labels.json")).unwrap();
    let expected: Value = serde_json::from_slice(&text).unwrap();
    for (name, samples) in expected.as_object().unwrap() {
        let source = shard(name).unwrap();
        let labels = labels(&*source);
        let samples = samples.as_array().unwrap();
        assert_eq!(labels.len(), samples.len(), "{name}");
        for (label, sample) in labels.into_iter().zip(samples) {
            // What webdataset returns as text, to be parsed by its user, is a label here.
            match &sample[2] {
                Value::Null => assert!(label < 2, "{name}"),
                expected => assert_eq!(&Value::from(label), expected, "{name}: {}", sample[0]),
            }
        }
        let doubted = name == "onebased.tar";
        assert_eq!(
            !source.doubts().is_empty(),
            doubted,
            "{name}: {:?}",
            source.doubts()
        );
    }
    for (name, expected) in [("txt.tar", [0, 1, 0, 1]), ("cls_txt.tar", [0, 1, 0, 1])] {
        assert_eq!(labels(&*shard(name).unwrap()), expected, "{name}");
    }
}

#[test]
fn labels_from_one_are_doubted() {
    let source = shard("onebased.tar").unwrap();
    assert_eq!(names(&*source), ["0", "1", "2"]);
    assert!(
        source.doubts()[0].contains("labels begin at 1"),
        "{:?}",
        source.doubts()
    );
}

/// As tar unpacks them: within the folder.
#[test]
fn names_that_lead_out_of_a_shard_lie_in_it() {
    let root = tempfile::tempdir().unwrap();
    let mut tar = tar::Builder::new(Vec::new());
    for (name, red) in [("../n1/a.png", 1), ("../../n2/b.png", 2)] {
        let bytes = png(red);
        let mut header = tar::Header::new_old();
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_size(bytes.len() as u64);
        header.set_cksum();
        tar.append(&header, bytes.as_slice()).unwrap();
    }
    fs::write(root.path().join("t.tar"), tar.into_inner().unwrap()).unwrap();
    let source = opened(root.path(), &["t.tar"], false).unwrap();
    let expected = [("n1/a".to_string(), 0, 1), ("n2/b".to_string(), 1, 2)];
    assert_eq!(contents(&*source), expected);
    assert_eq!(names(&*source), ["n1", "n2"]);
}

#[test]
fn a_hidden_folder_of_a_shard_is_no_class() {
    let source = shard("ipynb.tar").unwrap();
    assert_eq!(names(&*source), ["n01", "n02"]);
    assert_eq!(labels(&*source), [0, 0, 1, 1]);
}

#[test]
fn the_first_folder_that_differs_names_the_class() {
    let source = shard("tiny.tar").unwrap();
    assert_eq!(names(&*source), ["n01", "n02"]);
    assert_eq!(labels(&*source), [0, 0, 1, 1]);
    assert!(
        source.summary().contains("the folders in train/"),
        "{}",
        source.summary()
    );
}

#[test]
fn json_without_a_label_loses_no_image() {
    let source = shard("json_nan_nolabel.tar").unwrap();
    assert_eq!(names(&*source), ["n00", "n01"]);
    assert_eq!(labels(&*source), [0, 1, 0, 1]);
}

#[test]
fn archives_one_behind_another_are_all_read() {
    assert_eq!(shard("concat.tar").unwrap().len(), 4);
    let root = tempfile::tempdir().unwrap();
    let (a, b) = (
        tar(&[("0.png", png(1)), ("0.cls", b"0".to_vec())]),
        tar(&[("0.png", png(2)), ("0.cls", b"1".to_vec())]),
    );
    let expected = [("0".to_string(), 0, 1), ("0".to_string(), 1, 2)];
    for (name, bytes) in [
        ("plain.tar", [a.clone(), b.clone()].concat()),
        ("one_stream.tgz", gzip(&[a.clone(), b.clone()].concat())),
        ("two_streams.tgz", [gzip(&a), gzip(&b)].concat()),
        (
            "zeros_between.tgz",
            [gzip(&a), vec![0; 100_000], gzip(&b), vec![0; 5]].concat(),
        ),
    ] {
        fs::write(root.path().join(name), bytes).unwrap();
        // Keys repeat: each archive has its own.
        assert_eq!(
            contents(&*opened(root.path(), &[name], false).unwrap()),
            expected,
            "{name}"
        );
    }
    // The second archive is truncated.
    fs::write(
        root.path().join("cut.tar"),
        [a.clone(), b[..600].to_vec()].concat(),
    )
    .unwrap();
    assert!(failure(opened(root.path(), &["cut.tar"], false)).contains("1 images are whole"));
}

#[test]
fn padding_is_no_damage_and_other_bytes_behind_the_end_are_passed_over() {
    assert_eq!(shard("gz_trailing.tar.gz").unwrap().len(), 2);
    let root = tempfile::tempdir().unwrap();
    let whole = tar(&[("c/0.png", png(1))]);
    let gz = gzip(&whole);
    for (name, bytes) in [
        ("zeros.tar", [whole.clone(), vec![0; 30_000]].concat()),
        ("odd.tar", [whole.clone(), vec![0; 77]].concat()),
        ("text.tar", [whole.clone(), vec![b'x'; 3000]].concat()),
        ("zeros.tgz", [gz.clone(), vec![0; 200_000]].concat()),
        ("text.tgz", [gz.clone(), b"signature".to_vec()].concat()),
    ] {
        fs::write(root.path().join(name), bytes).unwrap();
        assert_eq!(
            opened(root.path(), &[name], false).unwrap().len(),
            1,
            "{name}"
        );
    }
}

#[test]
fn an_empty_shard_is_called_so_and_stops_no_other() {
    let root = tempfile::tempdir().unwrap();
    fs::write(root.path().join("0.tar"), []).unwrap();
    fs::write(root.path().join("1.tar"), vec![0; 10_240]).unwrap();
    fs::write(root.path().join("2.tar"), tar(&[("a/0.png", png(1))])).unwrap();
    fs::write(root.path().join("3.tgz"), gzip(&[])).unwrap();
    fs::write(root.path().join("4.tgz"), gzip(&[0; 1024])).unwrap();
    for (name, what) in [
        ("0.tar", "0.tar: an empty file"),
        ("1.tar", "1.tar: an empty tar"),
        ("3.tgz", "3.tgz: an empty file"),
        ("4.tgz", "4.tgz: an empty tar"),
    ] {
        let text = failure(opened(root.path(), &[name], false));
        assert!(text.contains(what), "{text}");
    }
    let three = ["1.tar", "2.tar", "4.tgz"];
    assert_eq!(opened(root.path(), &three, false).unwrap().len(), 1);
    assert_eq!(opened(root.path(), &["?.t*"], true).unwrap().len(), 1);
}

#[test]
fn what_is_no_tar_is_named_and_its_bytes_are_not_printed() {
    let root = tempfile::tempdir().unwrap();
    let lfs = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n".to_vec();
    let mut wild = tar(&[("c/0.png", png(1))]);
    wild.splice(1024..1024, (0..=255).cycle().take(512));
    for (name, bytes, what) in [
        ("lfs.tar", lfs, "a git-LFS pointer"),
        ("page.tar", b"<!DOCTYPE html><html>".repeat(100), "HTML"),
        (
            "apple.tar",
            [
                [0, 5, 0x16, 7].to_vec(),
                (128..=255).cycle().take(2000).collect(),
            ]
            .concat(),
            "no tar header at byte 0",
        ),
        ("wild.tar", wild, "no tar header at byte 1024"),
    ] {
        fs::write(root.path().join(name), bytes).unwrap();
        let text = failure(opened(root.path(), &[name], false));
        assert!(text.contains(what) && text.is_ascii(), "{name}: {text}");
    }
}

#[test]
fn a_map_of_holes_that_cannot_be_is_that_members_fault_alone() {
    let whole = fs::read(shards().join("sparse_pax_0.1.tar")).unwrap();
    let at = whole.windows(7).position(|w| w == b",65536,").unwrap();
    let mut wrong = whole.clone();
    wrong[at..at + 7].copy_from_slice(b",00001,");
    let (found, damage) = members(&wrong.as_slice());
    assert_eq!((damage, found.files.len()), (None, 3));
    let error = found.files[0]
        .place
        .read(&wrong.as_slice())
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("sparse") && error.contains("out of order"),
        "{error}"
    );
    assert!(found.files[1].place.read(&wrong.as_slice()).is_ok());
    let root = tempfile::tempdir().unwrap();
    fs::write(root.path().join("s.tar"), wrong).unwrap();
    let source = opened(root.path(), &["s.tar"], false).unwrap();
    let (text, _) = report(&source.read(0).unwrap_err());
    assert!(
        text.contains("s.tar: n01/few.jpg: sparse") && text.contains("\nhint: "),
        "{text}"
    );
}
