use std::io::Write;

use super::*;
use crate::error::report;
use candle_core::Device;
use half::bf16;
use sha2::{Digest, Sha256};

/// Images of the cache of [`cache`], in parts of two.
const IMAGES: usize = 5;

pub fn meta() -> CacheMeta {
    CacheMeta {
        tokenizer: "ab".repeat(32),
        data: "cd".repeat(32),
        image_size: 64,
        flip: true,
        shape: [2, 3, 4],
    }
}

/// Blocks of one image; image i of flip f holds 100·f + i, label i + 7.
fn blocks(images: Range<usize>, flip: bool) -> Vec<Result<(Tensor, Vec<u32>)>> {
    let block = |flip: usize, image: usize| {
        let values = vec![(100 * flip + image) as f32; 24];
        let latents = Tensor::from_vec(values, (1, 2, 3, 4), &Device::Cpu)?;
        Ok((latents, vec![image as u32 + 7]))
    };
    let once = images.clone().map(|image| block(0, image));
    match flip {
        true => once.chain(images.map(|image| block(1, image))).collect(),
        false => once.collect(),
    }
}

fn begin(path: &Path, meta: &CacheMeta) -> Result<Option<(Maker, Vec<usize>)>> {
    Maker::begin(path, meta, IMAGES, Some(2))
}

/// Makes what is missing at `path`.
fn make(path: &Path, meta: &CacheMeta) -> Result<Vec<usize>> {
    let Some((maker, missing)) = begin(path, meta)? else {
        return Ok(Vec::new());
    };
    for part in &missing {
        maker.write(*part, blocks(maker.range(*part), meta.flip))?;
    }
    maker.finish()?;
    Ok(missing)
}

/// A cache of five images in three parts, made at `path`.
pub fn cache(path: &Path) -> LatentCache {
    make(path, &meta()).unwrap();
    LatentCache::open(path, &meta()).unwrap()
}

fn read(cache: &LatentCache, image: usize, mirrored: bool) -> (Vec<f32>, u32) {
    let mut bytes = vec![0; cache.bytes_of_one()];
    let label = cache.read(image, mirrored, &mut bytes).unwrap();
    let (pairs, _) = bytes.as_chunks::<2>();
    let values = pairs.iter().map(|pair| bf16::from_le_bytes(*pair).to_f32());
    (values.collect(), label)
}

fn holds_all(cache: &LatentCache, flip: bool) {
    assert_eq!(cache.len(), IMAGES);
    for i in 0..IMAGES {
        for copy in 0..1 + usize::from(flip) {
            let expected = (vec![(100 * copy + i) as f32; 24], i as u32 + 7);
            assert_eq!(read(cache, i, copy == 1), expected);
        }
    }
}

/// The files of a folder and their bytes.
fn files(folder: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut files: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| (path.clone(), fs::read(path).unwrap()))
        .collect();
    files.sort();
    files
}

fn text<T: std::fmt::Debug>(result: Result<T>) -> String {
    report(&result.unwrap_err()).0
}

#[test]
fn what_was_written_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("latents");
    holds_all(&cache(&path), true);
    assert!(begin(&path, &meta()).unwrap().is_none());
    // Any reader of safetensors can read a part.
    let part = path.join("part-00001.safetensors");
    let tensors = candle_core::safetensors::load(part, &Device::Cpu).unwrap();
    assert_eq!(tensors["latents"].dims(), [2, 2, 2, 3, 4]);
    assert_eq!(tensors["labels"].to_vec1::<u32>().unwrap(), [9, 10]);
    assert_eq!(tensors["checksums"].dims(), [2, 2]);
}

#[test]
fn without_flips_every_image_is_in_it_once() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("latents");
    let meta = CacheMeta {
        flip: false,
        ..meta()
    };
    make(&path, &meta).unwrap();
    holds_all(&LatentCache::open(&path, &meta).unwrap(), false);
}

#[test]
fn a_cache_of_no_images_is_not_made() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("latents");
    let (maker, missing) = begin(&path, &meta()).unwrap().unwrap();
    for part in missing {
        maker.write(part, Vec::new()).unwrap();
    }
    assert!(text(maker.finish()).contains("no image could be encoded"));
    assert!(!path.join("cache.json").exists());
}

#[test]
fn parts_without_some_images_are_read_as_if_these_were_not_there() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("latents");
    let (maker, _) = begin(&path, &meta()).unwrap().unwrap();
    // As where bad images were left out.
    for (part, images) in [(0, 0..1), (1, 0..0), (2, 4..5)] {
        maker.write(part, blocks(images, true)).unwrap();
    }
    maker.finish().unwrap();
    let cache = LatentCache::open(&path, &meta()).unwrap();
    assert_eq!(cache.len(), 2);
    assert_eq!(read(&cache, 1, true), (vec![104.0; 24], 11));
}

#[test]
fn what_a_kill_left_is_completed_to_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    make(&at("whole"), &meta()).unwrap();
    let whole = files(&at("whole"));
    assert_eq!(whole.len(), 4);
    let names = |path: PathBuf| path.file_name().unwrap().to_owned();
    // Whatever was done, also the last and a part alone that was removed later.
    for missing in [&["0", "1", "2"][..], &["1", "2"], &["0"], &["2"], &[]] {
        let path = at("again");
        fs::create_dir(&path).unwrap();
        for (file, bytes) in &whole {
            let name = names(file.clone());
            let number = name.to_string_lossy().replace("part-0000", "");
            if !missing.iter().any(|part| number.starts_with(part)) {
                fs::write(path.join(name), bytes).unwrap();
            }
        }
        if missing.len() != 1 {
            fs::remove_file(path.join("cache.json")).unwrap();
        }
        let made = make(&path, &meta()).unwrap();
        let made: Vec<String> = made.iter().map(|part| part.to_string()).collect();
        assert_eq!(made, missing);
        let found = files(&path).into_iter().map(|(f, b)| (names(f), b));
        let expected = whole.iter().map(|(f, b)| (names(f.clone()), b.clone()));
        assert!(found.eq(expected), "{missing:?}");
        fs::remove_dir_all(path).unwrap();
    }
}

#[test]
fn a_failed_part_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("latents");
    let (maker, _) = begin(&path, &meta()).unwrap().unwrap();
    let mut stopped = blocks(0..2, true);
    stopped[2] = Err(hinted("path/3.jpg: bad", ""));
    assert!(text(maker.write(0, stopped)).contains("path/3.jpg: bad"));
    let half = blocks(0..2, true).into_iter().take(3);
    assert!(text(maker.write(0, half)).contains("mirrored"));
    assert!(files(&path).is_empty());
    assert!(text(LatentCache::open(&path, &meta())).contains("not whole"));
}

/// A cache of version 1, as it was written.
fn write_single(path: &Path) {
    let latents: Vec<u8> = (0..2 * IMAGES)
        .flat_map(|i| vec![bf16::from_f32((100 * (i / IMAGES) + i % IMAGES) as f32); 24])
        .flat_map(|value| value.to_le_bytes())
        .collect();
    let labels = (7..7 + IMAGES as u32).flat_map(|label| label.to_le_bytes());
    let body: Vec<u8> = latents.iter().copied().chain(labels).collect();
    let (end, all) = (latents.len(), body.len());
    let json = serde_json::json!({
        "__metadata__": {
            "format": "rdpm-latents/1",
            "tokenizer": meta().tokenizer,
            "data": meta().data,
            "image_size": "64",
            "flip": "true",
            "sha256": crate::store::digest::hex(&Sha256::digest(&body)),
        },
        "latents": {"dtype": "BF16", "shape": [2, IMAGES, 2, 3, 4], "data_offsets": [0, end]},
        "labels": {"dtype": "U32", "shape": [IMAGES], "data_offsets": [end, all]},
    });
    let mut header = json.to_string().into_bytes();
    header.resize(1016, b' ');
    let mut file = fs::File::create(path).unwrap();
    file.write_all(&1016u64.to_le_bytes()).unwrap();
    file.write_all(&header).unwrap();
    file.write_all(&body).unwrap();
}

#[test]
fn a_file_of_version_1_is_still_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("latents");
    write_single(&path);
    assert!(begin(&path, &meta()).unwrap().is_none());
    holds_all(&LatentCache::open(&path, &meta()).unwrap(), true);
    let whole = fs::read(&path).unwrap();
    let refuses = |bytes: &[u8]| {
        fs::write(&path, bytes).unwrap();
        let error = text(LatentCache::open(&path, &meta()));
        assert!(error.contains("not a whole latent cache"), "{error}");
    };
    for length in [0, 7, 500, 1024, whole.len() - 1] {
        refuses(&whole[..length]);
    }
    for at in [1024, whole.len() / 2, whole.len() - 1] {
        let mut bytes = whole.clone();
        bytes[at] ^= 1;
        refuses(&bytes);
    }
}

#[test]
fn a_stale_cache_is_refused_with_what_differs() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    make(&at("whole"), &meta()).unwrap();
    // One that is not whole, too, and a file of version 1.
    make(&at("begun"), &meta()).unwrap();
    fs::remove_file(at("begun/cache.json")).unwrap();
    fs::remove_file(at("begun/part-00000.safetensors")).unwrap();
    write_single(&at("single"));
    let other = "ef".repeat(32);
    let with = |change: &dyn Fn(&mut CacheMeta)| {
        let mut meta = meta();
        change(&mut meta);
        meta
    };
    for (expected, what) in [
        (
            with(&|meta| meta.tokenizer = other.clone()),
            "its tokenizer is abab",
        ),
        (with(&|meta| meta.data = other.clone()), "its data is cdcd"),
        (
            with(&|meta| meta.image_size = 32),
            "its image_size is 64, expected 32",
        ),
        (
            with(&|meta| meta.flip = false),
            "its flip is true, expected false",
        ),
        (with(&|meta| meta.shape = [2, 3, 8]), "latents"),
    ] {
        for name in ["whole", "begun", "single"] {
            let error = match name {
                "begun" => text(begin(&at(name), &expected)),
                _ => text(LatentCache::open(&at(name), &expected)),
            };
            assert!(
                error.contains(what) || (name == "begun" && error.contains("header is damaged")),
                "{name}: {error}"
            );
            assert!(error.contains("hint: remove"), "{name}: {error}");
        }
    }
}

#[test]
fn a_truncated_or_damaged_part_is_named_with_the_remedy() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("latents");
    make(&path, &meta()).unwrap();
    let part = path.join("part-00001.safetensors");
    let whole = fs::read(&part).unwrap();
    let named = |text: String| {
        assert!(text.contains("part-00001.safetensors: "), "{text}");
        assert!(text.contains("it alone is made again"), "{text}");
    };
    for length in [0, 500, 1024, whole.len() - 1] {
        fs::write(&part, &whole[..length]).unwrap();
        named(text(LatentCache::open(&path, &meta())));
    }
    // The header, a latent, the tables: found when the part is used, and no sooner.
    for at in [20, 1024 + 50, whole.len() - 1] {
        let mut bytes = whole.clone();
        bytes[at] ^= 1;
        fs::write(&part, bytes).unwrap();
        let cache = LatentCache::open(&path, &meta()).unwrap();
        read(&cache, 0, true);
        read(&cache, 4, false);
        let mut out = vec![0; cache.bytes_of_one()];
        // The damaged latent is that of image 3.
        named(text(cache.read(3, false, &mut out)));
        named(text(cache.verify()));
    }
    fs::remove_file(&part).unwrap();
    assert_eq!(make(&path, &meta()).unwrap(), [1]);
    assert_eq!(fs::read(&part).unwrap(), whole);
    LatentCache::open(&path, &meta()).unwrap().verify().unwrap();
    // Parts that are not whole are found before the others are made.
    fs::remove_file(path.join("cache.json")).unwrap();
    fs::remove_file(path.join("part-00002.safetensors")).unwrap();
    fs::write(&part, &whole[..whole.len() / 2]).unwrap();
    named(text(begin(&path, &meta())));
    // A part in the place of another.
    fs::copy(path.join("part-00000.safetensors"), &part).unwrap();
    named(text(begin(&path, &meta())));
}

#[test]
fn a_damaged_list_of_parts_is_made_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("latents");
    make(&path, &meta()).unwrap();
    let list = path.join("cache.json");
    let whole = fs::read_to_string(&list).unwrap();
    for damaged in [
        &whole[..whole.len() / 2],
        &whole.replace("\"bytes\": 1", "\"bytes\": 2"),
    ] {
        assert_ne!(damaged, whole);
        fs::write(&list, damaged).unwrap();
        let error = text(LatentCache::open(&path, &meta()));
        assert!(error.contains("cache.json: it is damaged"), "{error}");
        assert!(error.contains("made again from the parts"), "{error}");
    }
    fs::remove_file(&list).unwrap();
    assert!(make(&path, &meta()).unwrap().is_empty());
    assert_eq!(fs::read_to_string(&list).unwrap(), whole);
}

#[test]
fn parts_of_another_size_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("latents");
    make(&path, &meta()).unwrap();
    for whole in [true, false] {
        if !whole {
            fs::remove_file(path.join("cache.json")).unwrap();
        }
        let error = text(Maker::begin(&path, &meta(), IMAGES, Some(3)));
        assert!(error.contains("parts of 2 images, not of 3"), "{error}");
        // What was begun goes on as it is.
        let begun = Maker::begin(&path, &meta(), IMAGES, None).unwrap();
        assert_eq!(
            begun.map(|(maker, _)| maker.part_size()),
            (!whole).then_some(2)
        );
    }
}

#[test]
fn a_file_or_folder_that_is_something_else_is_named_and_not_to_be_removed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file");
    let refusal = || text(LatentCache::open(&path, &meta()));
    fs::write(&path, b"\x89PNG\r\n\x1a\n and more").unwrap();
    assert!(refusal().contains("is a PNG image; expected a cache of latents"));
    let metadata = [("format".to_string(), "rdpm-bundle/1".to_string())];
    let none = std::collections::BTreeMap::new();
    crate::store::safetensors::write(&path, &none, &metadata.into()).unwrap();
    let error = refusal();
    assert!(
        error.contains("is a bundle (rdpm-bundle/1)") && !error.contains("remove"),
        "{error}"
    );
    let error = text(begin(folder.path(), &meta()));
    assert!(
        error.contains("it holds file") && !error.contains("remove"),
        "{error}"
    );
    // An empty folder is as good as none.
    let empty = folder.path().join("empty");
    fs::create_dir(&empty).unwrap();
    assert_eq!(make(&empty, &meta()).unwrap(), [0, 1, 2]);
}

#[test]
fn opening_looks_at_sizes_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("latents");
    make(&path, &meta()).unwrap();
    let before = files(&path);
    for (file, bytes) in &before {
        if file.extension().is_some_and(|e| e == "safetensors") {
            fs::write(file, vec![0; bytes.len()]).unwrap();
        }
    }
    let cache = LatentCache::open(&path, &meta()).unwrap();
    assert_eq!(cache.len(), IMAGES);
}

#[test]
fn a_cache_is_described_whole_cut_and_unfinished() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cache");
    assert_eq!(describe(&path).unwrap(), None);
    cache(&path);
    let bytes = |number| fs::metadata(part_path(&path, number)).unwrap().len();
    let all = (0..3).map(bytes).sum::<u64>();
    let found = describe(&path).unwrap().unwrap();
    assert_eq!((found.parts, found.bytes), (3, all));
    let made = found.made.unwrap();
    assert_eq!((&made.meta, made.images, made.parts), (&meta(), 5, 3));
    assert_eq!(made.wrong, None);
    fs::write(part_path(&path, 1), "cut").unwrap();
    let made = describe(&path).unwrap().unwrap().made.unwrap();
    let wrong = made.wrong.unwrap();
    assert!(
        wrong.contains("part-00001") && wrong.contains("3 bytes"),
        "{wrong}"
    );
    fs::remove_file(path.join("cache.json")).unwrap();
    let found = describe(&path).unwrap().unwrap();
    assert_eq!((found.made, found.parts), (None, 3));
    // Another folder with a file of such a name is none.
    fs::write(path.join("notes.txt"), "").unwrap();
    assert_eq!(describe(&path).unwrap(), None);
}
