use super::*;
use candle_core::Device;

pub fn meta() -> CacheMeta {
    CacheMeta {
        tokenizer: "ab".repeat(32),
        data: "cd".repeat(32),
        image_size: 64,
        flip: true,
        shape: [2, 3, 4],
    }
}

/// Five images in blocks of 3 and 2, twice; image i of flip f holds 100·f + i, label i + 7.
fn blocks() -> Vec<Result<(Tensor, Vec<u32>)>> {
    let block = |flip: u32, images: std::ops::Range<u32>| {
        let values: Vec<f32> = images
            .clone()
            .flat_map(|i| [(100 * flip + i) as f32; 24])
            .collect();
        let shape = (images.len(), 2, 3, 4);
        Ok((
            Tensor::from_vec(values, shape, &Device::Cpu)?,
            images.map(|i| i + 7).collect(),
        ))
    };
    vec![
        block(0, 0..3),
        block(0, 3..5),
        block(1, 0..3),
        block(1, 3..5),
    ]
}

/// A cache of [`blocks`], made at `path`.
pub fn cache(path: &Path) -> LatentCache {
    LatentCache::create(path, &meta(), blocks()).unwrap()
}

fn read(cache: &LatentCache, image: usize, mirrored: bool) -> Vec<f32> {
    let mut bytes = vec![0; cache.bytes_of_one()];
    cache.read(image, mirrored, &mut bytes).unwrap();
    let (pairs, _) = bytes.as_chunks::<2>();
    let values = pairs.iter().map(|pair| bf16::from_le_bytes(*pair).to_f32());
    values.collect()
}

#[test]
fn what_was_written_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("latents");
    let cache = LatentCache::create(&path, &meta(), blocks()).unwrap();
    assert_eq!(cache.len(), 5);
    for (i, flip) in [(0, false), (4, false), (0, true), (3, true)] {
        let expected = [(100 * u32::from(flip) + i as u32) as f32; 24];
        assert_eq!(read(&cache, i, flip), expected);
        assert_eq!(cache.label(i), i as u32 + 7);
    }
    // Any reader of safetensors can read it.
    let tensors = candle_core::safetensors::load(&path, &Device::Cpu).unwrap();
    assert_eq!(tensors["latents"].dims(), [2, 5, 2, 3, 4]);
    assert_eq!(
        tensors["labels"].to_vec1::<u32>().unwrap(),
        [7, 8, 9, 10, 11]
    );
}

#[test]
fn a_cache_of_no_images_is_not_made() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("latents");
    let error = LatentCache::create(&path, &meta(), Vec::new()).unwrap_err();
    assert!(error.to_string().contains("no image"), "{error}");
    assert!(!path.exists());
}

#[test]
fn without_flips_every_image_is_in_it_once() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("latents");
    let meta = CacheMeta {
        flip: false,
        ..meta()
    };
    let cache = LatentCache::create(&path, &meta, blocks().into_iter().take(2)).unwrap();
    assert_eq!(cache.len(), 5);
    assert_eq!(read(&cache, 4, false), [4.0; 24]);
    assert_eq!(cache.label(4), 11);
}

#[test]
fn a_stale_cache_is_refused_with_what_differs() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("latents");
    LatentCache::create(&path, &meta(), blocks()).unwrap();
    let other = "ef".repeat(32);
    for (expected, what) in [
        (
            CacheMeta {
                tokenizer: other.clone(),
                ..meta()
            },
            "its tokenizer is abab",
        ),
        (
            CacheMeta {
                data: other.clone(),
                ..meta()
            },
            "its data is cdcd",
        ),
        (
            CacheMeta {
                image_size: 32,
                ..meta()
            },
            "its image_size is 64, expected 32",
        ),
        (
            CacheMeta {
                flip: false,
                ..meta()
            },
            "its flip is true, expected false",
        ),
        (
            CacheMeta {
                shape: [2, 3, 8],
                ..meta()
            },
            "[2, 5, 2, 3, 4], expected BF16 [2, 5, 2, 3, 8]",
        ),
    ] {
        let error = LatentCache::open(&path, &expected).unwrap_err().to_string();
        assert!(error.contains(what) && error.contains("latents"), "{error}");
    }
}

#[test]
fn a_truncated_or_damaged_cache_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("latents");
    LatentCache::create(&path, &meta(), blocks()).unwrap();
    let whole = std::fs::read(&path).unwrap();
    let refuses = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        let error = LatentCache::open(&path, &meta()).unwrap_err().to_string();
        assert!(error.contains("not a whole latent cache"), "{error}");
    };
    for length in [0, 7, 500, HEADER, whole.len() - 1] {
        refuses(&whole[..length]);
    }
    for at in [HEADER, whole.len() / 2, whole.len() - 1] {
        let mut bytes = whole.clone();
        bytes[at] ^= 1;
        refuses(&bytes);
    }
}

#[test]
fn a_file_that_is_something_else_is_named_and_not_to_be_removed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file");
    let refusal = || crate::error::report(&LatentCache::open(&path, &meta()).unwrap_err()).0;
    std::fs::write(&path, b"\x89PNG\r\n\x1a\n and more").unwrap();
    assert!(refusal().contains("is a PNG image; expected a cache of latents"));
    let metadata = [("format".to_string(), "rdpm-bundle/1".to_string())];
    let none = std::collections::BTreeMap::new();
    crate::store::safetensors::write(&path, &none, &metadata.into()).unwrap();
    let text = refusal();
    assert!(
        text.contains("is a bundle (rdpm-bundle/1)") && !text.contains("remove"),
        "{text}"
    );
}

#[test]
fn a_cache_is_opened_again_only_as_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("latents");
    let cache = cache(&path);
    cache.open_again().unwrap();
    assert_eq!(read(&cache, 4, false), [4.0; 24]);
    let other = CacheMeta {
        data: "ef".repeat(32),
        ..meta()
    };
    LatentCache::create(&path, &other, blocks()).unwrap();
    let error = cache.open_again().unwrap_err();
    assert!(error.to_string().contains("another file"), "{error}");
}

#[test]
fn an_interrupted_cache_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("latents");
    let mut stopped = blocks();
    stopped[2] = Err(hinted("path/3.jpg: bad", ""));
    let error = LatentCache::create(&path, &meta(), stopped).unwrap_err();
    assert_eq!(error.to_string(), "path/3.jpg: bad");
    let half = LatentCache::create(&path, &meta(), blocks().into_iter().take(3));
    assert!(half.unwrap_err().to_string().contains("mirrored"));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}
