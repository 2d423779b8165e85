use std::sync::Arc;

use image::{Rgb, RgbImage};

use super::*;
use crate::data::{Augment, Batch, Loader, LoaderOptions, open};

/// Images of many sizes in folders of classes, one flat and one high, and their names of class.
fn photographs(folder: &Path, classes: &[&str]) {
    let sizes = [
        (50, 37),
        (37, 50),
        (32, 32),
        (16, 16),
        (90, 41),
        (20, 13),
        (65, 130),
    ];
    for (at, (width, height)) in sizes.into_iter().enumerate() {
        let image = RgbImage::from_fn(width, height, |x, y| {
            Rgb([
                (x * y + 31 * at as u32) as u8,
                (x * 5) as u8,
                (y * y / 3) as u8,
            ])
        });
        let class = folder.join(classes[at % classes.len()]);
        fs::create_dir_all(&class).unwrap();
        image.save(class.join(format!("im.{at}.png"))).unwrap();
    }
}

struct Folder(tempfile::TempDir);

impl Folder {
    fn new(classes: &[&str]) -> Self {
        let folder = Self(tempfile::tempdir().unwrap());
        photographs(&folder.0.path().join("data"), classes);
        folder
    }

    fn source(&self) -> Arc<dyn Source> {
        open(&[self.path("data")], false).unwrap()
    }

    fn packed(&self) -> Result<Arc<dyn Source>> {
        open(&[self.path("packed/*.tar")], false)
    }

    fn path(&self, name: &str) -> String {
        self.0.path().join(name).to_str().unwrap().to_string()
    }

    fn packing(&self, crop: Crop) -> Packing {
        Packing {
            out: self.0.path().join("packed"),
            size: 16,
            crop,
            shard_images: 3,
            encoding: Encoding::Ppm,
            skip_bad: false,
        }
    }
}

/// Images, labels and numbers of a batch.
type Bits = (Vec<u32>, Vec<u32>, Vec<u64>);

fn bits(batch: Batch) -> Result<Bits> {
    let values: Vec<f32> = batch.images.flatten_all()?.to_vec1()?;
    let values = values.into_iter().map(f32::to_bits).collect();
    Ok((values, batch.labels, batch.indices))
}

fn batches(source: Arc<dyn Source>, crop: Crop) -> Result<Vec<Bits>> {
    let options = LoaderOptions {
        batch_size: 4,
        workers: 2,
        skip_bad: false,
    };
    let augment = Augment {
        size: 16,
        crop,
        flip: true,
    };
    let loader = Loader::shuffled(source, &options, augment, 3, 0)?;
    loader.take(9).map(|batch| bits(batch?)).collect()
}

#[test]
fn training_on_a_pack_has_the_bits_of_training_on_its_source() {
    for encoding in [Encoding::Ppm, Encoding::Png] {
        for crop in [Crop::Random, Crop::Center] {
            let folder = Folder::new(&["cat", "dog"]);
            let packing = Packing {
                encoding,
                ..folder.packing(crop)
            };
            let packed = pack(&*folder.source(), &packing).unwrap();
            assert_eq!((packed.shards, packed.kept, packed.skipped), (3, 0, 0));
            let (source, packed) = (folder.source(), folder.packed().unwrap());
            assert_eq!(packed.classes(), source.classes());
            let expected = batches(source.clone(), crop).unwrap();
            assert_eq!(batches(packed.clone(), crop).unwrap(), expected);
            // A pack for random crops serves center crops too.
            let centered = batches(source.clone(), Crop::Center).unwrap();
            assert_eq!(batches(packed.clone(), Crop::Center).unwrap(), centered);
            for place in 0..source.len() {
                let name = source.read(place).unwrap().key.replace(['/', '.'], "_");
                let packed = packed.read(place).unwrap();
                assert_eq!(packed.key, format!("{place:08}-{name}"));
                let (w, h) = packed.image.dimensions();
                assert_eq!(w.min(h), 16);
            }
        }
    }
}

#[test]
fn labels_survive_whatever_classes_are_called() {
    for classes in [
        &["cat", "x"][..],
        &["0", "1"],
        &["00", "01"],
        &[" a", "b"],
        &[""],
    ] {
        let folder = Folder::new(classes);
        let source = folder.source();
        pack(&*source, &folder.packing(Crop::Center)).unwrap();
        let packed = folder.packed().unwrap();
        let labels = |source: &Arc<dyn Source>| -> Vec<u32> {
            (0..source.len())
                .map(|place| source.read(place).unwrap().label)
                .collect()
        };
        assert_eq!(labels(&packed), labels(&source), "{classes:?}");
        assert_eq!(packed.classes().len(), source.classes().len());
    }
}

/// Sorted as text, "10" comes before "9": class 0 has the name of class 10.
#[test]
fn a_class_named_like_another_ones_number_is_refused() {
    let folder = Folder::new(&["10", "9", "x"]);
    let text = refusal(pack(&*folder.source(), &folder.packing(Crop::Center)));
    assert!(text.contains("the class `10` is number 0"), "{text}");
}

#[test]
fn a_pack_that_was_stopped_goes_on_with_what_is_missing() {
    let folder = Folder::new(&["cat", "dog"]);
    let (source, packing) = (folder.source(), folder.packing(Crop::Random));
    pack(&*source, &packing).unwrap();
    let shard = |number| fs::read(shard_path(&packing.out, number)).unwrap();
    let whole: Vec<Vec<u8>> = (0..3).map(shard).collect();
    fs::remove_file(shard_path(&packing.out, 1)).unwrap();
    let again = pack(&*source, &packing).unwrap();
    assert_eq!((again.shards, again.kept), (3, 2));
    assert_eq!((0..3).map(shard).collect::<Vec<_>>(), whole);
    let bytes: usize = whole.iter().map(Vec::len).sum();
    assert_eq!(again.bytes, bytes as u64);
    assert_eq!(pack(&*source, &packing).unwrap().kept, 3);
}

fn refusal<T>(result: Result<T>) -> String {
    format!("{:#}", result.err().expect("an error"))
}

#[test]
fn a_pack_of_another_size_or_crop_is_refused_by_name() {
    let folder = Folder::new(&["cat", "dog"]);
    pack(&*folder.source(), &folder.packing(Crop::Center)).unwrap();
    let packed = folder.packed().unwrap();
    let text = refusal(packed.serve(32, Crop::Center));
    for part in ["pack-00000.tar", "16×16", "32×32"] {
        assert!(text.contains(part), "{text}");
    }
    assert!(refusal(batches(packed.clone(), Crop::Random)).contains("center crops only"));
    let text = refusal(batches(packed.clone(), Crop::RandomResized));
    assert!(text.contains("random-resized"), "{text}");
    // A pack of a pack would be resized twice.
    let other = Packing {
        size: 8,
        out: folder.0.path().join("other"),
        ..folder.packing(Crop::Center)
    };
    assert!(refusal(pack(&*packed, &other)).contains("16×16"));
    assert!(!other.out.exists());
    let resized = folder.packing(Crop::RandomResized);
    assert!(refusal(pack(&*folder.source(), &resized)).contains("random-resized"));
}

#[test]
fn another_content_of_the_folder_stays_as_it_is() {
    let folder = Folder::new(&["cat", "dog"]);
    let (source, packing) = (folder.source(), folder.packing(Crop::Center));
    pack(&*source, &packing).unwrap();
    let first = shard_path(&packing.out, 0);
    let before = fs::read(&first).unwrap();
    let others = [
        (
            Packing {
                size: 8,
                ..packing.clone()
            },
            "its size is 16, expected 8",
        ),
        (folder.packing(Crop::Random), "its crop is Center"),
        (
            Packing {
                shard_images: 4,
                ..packing.clone()
            },
            "images a shard is 3, expected 4",
        ),
    ];
    for (other, says) in others {
        let text = refusal(pack(&*source, &other));
        assert!(text.contains(says), "{text}");
    }
    photographs(&folder.0.path().join("data"), &["zebra"]);
    let text = refusal(pack(&*folder.source(), &packing));
    assert!(text.contains("other data"), "{text}");
    assert_eq!(fs::read(&first).unwrap(), before);
    fs::write(packing.out.join("notes.txt"), "mine").unwrap();
    assert!(refusal(pack(&*source, &packing)).contains("notes.txt exists"));
}

#[test]
fn a_bad_image_is_an_error_or_left_out() {
    let folder = Folder::new(&["cat", "dog"]);
    fs::write(folder.path("data/cat/bad.png"), b"\x89PNG\r\n\x1a\nno").unwrap();
    let (source, packing) = (folder.source(), folder.packing(Crop::Random));
    assert!(refusal(pack(&*source, &packing)).contains("bad.png"));
    assert!(!shard_path(&packing.out, 0).exists());
    let skipping = Packing {
        skip_bad: true,
        ..packing
    };
    let packed = pack(&*source, &skipping).unwrap();
    assert_eq!(packed.skipped, 1);
    assert_eq!(folder.packed().unwrap().len(), 7);
}
