use super::*;
use crate::error::report;
use crate::rng::{Purpose, Stream};
use candle_core::Device;

fn bundle() -> Result<Bundle> {
    let tensor = |shape: &[usize]| Tensor::full(1.0f32 + 1.0 / 256.0, shape, &Device::Cpu);
    let tokenizer = Tensors::from([
        ("encoder.conv_in.weight".into(), tensor(&[4, 3, 3, 3])?),
        ("encoder.conv_in.bias".into(), tensor(&[4])?),
        ("quantize.embedding.weight".into(), tensor(&[16, 2])?),
    ]);
    Ok(Bundle {
        classes: json!([{"index": 0, "wnid": "n01", "words": "tench, Tinca tinca"}]),
        metrics: json!({"train_vae": {"psnr": 25.5}}),
        provenance: json!({"version": "0.1.0"}),
        generator: Some(Tensors::from([("head.bias".into(), tensor(&[16])?)])),
        ..Bundle::new(Config::load(Some("demo"), &[])?, tokenizer)
    })
}

#[test]
fn other_files_are_named_for_what_they_are() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("a.safetensors");
    let lfs = b"version https://git-lfs.github.com/spec/v1\noid sha256:a\nsize 123\n";
    let mut tar = vec![0; 1024];
    tar[257..262].copy_from_slice(b"ustar");
    for (bytes, words) in [
        (&lfs[..], "is a git-LFS pointer"),
        (b"<html><body>404</body></html>", "is an HTML page"),
        (b"\x1f\x8b\x08\0\0\0\0\0\0\x03", "is gzip-compressed"),
        (&tar, "is a tar archive"),
    ] {
        std::fs::write(&path, bytes)?;
        let (text, code) = report(&Bundle::read(&path).unwrap_err());
        assert!(text.contains(words) && text.contains("\nhint: "), "{text}");
        assert!(text.contains("a.safetensors") && code == 1, "{text}");
    }
    Ok(())
}

#[test]
fn a_bundle_is_read_as_it_was_written() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("a.safetensors");
    let written = bundle()?;
    written.write(&path, false)?;
    let read = Bundle::read(&path)?;
    assert_eq!(read.config, written.config);
    assert_eq!(read.classes, written.classes);
    assert_eq!(read.metrics, written.metrics);
    assert_eq!(read.provenance, written.provenance);
    assert_eq!(read.tokenizer_hash()?, written.tokenizer_hash()?);
    assert_eq!(read.generator()?.len(), 1);
    Ok(())
}

#[test]
fn bf16_halves_matrices_and_keeps_codebook_and_vectors() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("a.safetensors");
    bundle()?.write(&path, true)?;
    let types: Vec<String> = Reader::open(&path)?
        .header()?
        .tensors
        .into_iter()
        .map(|(name, (dtype, _))| format!("{name} {dtype:?}"))
        .collect();
    assert_eq!(
        types,
        [
            "generator.head.bias F32",
            "tokenizer.encoder.conv_in.bias F32",
            "tokenizer.encoder.conv_in.weight BF16",
            "tokenizer.quantize.embedding.weight F32",
        ]
    );
    let read = Bundle::read(&path)?;
    assert!(read.tokenizer.values().all(|t| t.dtype() == DType::F32));
    Ok(())
}

/// Large tensors of normal numbers beside small ones and those that stay exact.
fn large() -> Result<Bundle> {
    let mut index = 0;
    let mut tensor = |shape: &[usize]| {
        let mut values = vec![0f32; shape.iter().product()];
        Stream::new(1, Purpose::Init, index, 0).fill_normal(&mut values);
        index += 1;
        Tensor::from_vec(values, shape, &Device::Cpu)
    };
    let mut bundle = bundle()?;
    bundle.tokenizer = Tensors::from([
        ("encoder.conv_in.weight".into(), tensor(&[160, 3, 3, 3])?),
        ("encoder.mid.conv1.bias".into(), tensor(&[32])?),
        ("encoder.mid.conv1.weight".into(), tensor(&[32, 32, 3, 3])?),
        ("quantize.embedding.weight".into(), tensor(&[512, 8])?),
    ]);
    let head = ("head.weight".into(), tensor(&[96, 64])?);
    bundle.generator = Some(Tensors::from([head]));
    Ok(bundle)
}

#[test]
fn eight_bits_keep_names_shapes_and_all_but_a_hundredth() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (int8, plain) = (folder.path().join("8"), folder.path().join("32"));
    let written = large()?;
    written.write_int8(&int8)?;
    let header = Reader::open(&int8)?.header()?;
    assert_eq!(header.metadata["format"], "rdpm-bundle/2");
    let types: Vec<String> = header
        .tensors
        .into_iter()
        .map(|(name, (dtype, shape))| format!("{name} {dtype:?} {shape:?}"))
        .collect();
    assert_eq!(
        types,
        [
            "generator.head.weight I8 [96, 64]",
            "generator.head.weight_scale F32 [96]",
            "tokenizer.encoder.conv_in.weight F32 [160, 3, 3, 3]",
            "tokenizer.encoder.mid.conv1.bias F32 [32]",
            "tokenizer.encoder.mid.conv1.weight I8 [32, 32, 3, 3]",
            "tokenizer.encoder.mid.conv1.weight_scale F32 [32]",
            "tokenizer.quantize.embedding.weight F32 [512, 8]",
        ]
    );
    let read = Bundle::read(&int8)?;
    assert_eq!(
        (&read.config, &read.classes, &read.metrics),
        (&written.config, &written.classes, &written.metrics)
    );
    for ((prefix, name, before), (_, same, after)) in written.named().zip(read.named()) {
        assert_eq!((name, before.dims()), (same, after.dims()));
        let norm = |x: &Tensor| x.sqr()?.sum_all()?.sqrt()?.to_scalar::<f32>();
        let error = norm(&(before - after)?)? / norm(before)?;
        let range = match int8::applies_to(name, before) {
            true => 0.004..0.008,
            false => 0.0..f32::MIN_POSITIVE,
        };
        assert!(range.contains(&error), "{prefix}{name}: {error}");
    }
    // Dequantised once, it is the same model in either file.
    read.write(&plain, false)?;
    let again = Bundle::read(&plain)?;
    assert_eq!(again.tokenizer_hash()?, read.tokenizer_hash()?);
    let (again, read) = (again.generator()?.clone(), read.generator()?);
    assert_eq!(digest::of_tensors(&again)?, digest::of_tensors(read)?);
    Ok(())
}

#[test]
fn damaged_and_hostile_scales_are_refused_by_name() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("a.safetensors");
    large()?.write_int8(&path)?;
    let good = std::fs::read(&path)?;
    let reader = Reader::open(&path)?;
    let metadata = reader.header()?.metadata;
    let scales = "generator.head.weight_scale";
    // The file with one tensor replaced, or left out.
    let refusal = |name: &str, raw: Option<Raw<'static>>| -> Result<String> {
        let other = folder.path().join("b.safetensors");
        let mut raws = reader.raws()?;
        match raw {
            Some(raw) => raws.insert(name.to_string(), raw),
            None => raws.remove(name),
        };
        let views = raws.iter().map(|(name, raw)| (name.as_str(), raw.clone()));
        safetensors::write_views(&other, views.collect(), &metadata)?;
        let (text, code) = report(&Bundle::read(&other).unwrap_err());
        assert!(text.contains("b.safetensors") && code == 1, "{text}");
        assert!(text.contains("hint: "), "{text}");
        Ok(text)
    };
    let of = |dtype, shape: &[usize], numbers: &[f32]| Raw {
        dtype,
        shape: shape.to_vec(),
        bytes: numbers.iter().flat_map(|x| x.to_le_bytes()).collect(),
    };
    for bad in [0.0, -1.0, f32::NAN, f32::INFINITY] {
        let mut numbers = [1f32; 96];
        numbers[7] = bad;
        let text = refusal(scales, Some(of(Dtype::F32, &[96], &numbers)))?;
        let expected = format!("`generator.head.weight` has the scale {bad} in row 7");
        assert!(text.contains(&expected), "{text}");
    }
    let text = refusal(scales, Some(of(Dtype::F32, &[64], &[1.0; 64])))?;
    assert!(text.contains("expected scales F32 [96], found F32 [64]"));
    assert!(refusal(scales, None)?.contains("`generator.head.weight` is I8 and has no"));
    let text = refusal("generator.head.weight", None)?;
    assert!(text.contains("scales `generator.head.weight`, which is not I8"));
    let text = refusal(
        "generator.head.weight",
        Some(of(Dtype::F32, &[96, 1], &[1.0; 96])),
    )?;
    assert!(text.contains("which is not I8"), "{text}");
    for cut in [1, 100, good.len() / 2, good.len() - 9] {
        std::fs::write(&path, &good[..good.len() - cut])?;
        let (text, _) = report(&Bundle::read(&path).unwrap_err());
        assert!(text.contains("a.safetensors"), "{text}");
    }
    Ok(())
}

#[test]
fn a_tokenizer_alone_is_valid_and_cannot_sample() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("a.safetensors");
    let whole = bundle()?;
    Bundle::new(whole.config, whole.tokenizer).write(&path, false)?;
    let (text, code) = report(&Bundle::read(&path)?.generator().unwrap_err());
    assert!(text.contains("a tokenizer only"), "{text}");
    assert_eq!(code, 2);
    Ok(())
}

#[test]
fn other_formats_are_refused_by_name() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("a.safetensors");
    let refusal = |metadata: &[(&str, &str)]| -> Result<String> {
        let metadata = metadata.iter().map(|(k, v)| (k.to_string(), v.to_string()));
        safetensors::write(&path, &Tensors::new(), &metadata.collect())?;
        Ok(report(&Bundle::read(&path).unwrap_err()).0)
    };
    assert!(refusal(&[])?.contains("no file of rdpm's own; expected a bundle"));
    assert!(refusal(&[("format", "rdpm-bundle/9")])?.contains("found rdpm-bundle/9"));
    assert!(refusal(&[("format", "rdpm-codes/1")])?.contains("is a file of codes"));
    assert!(refusal(&[("format", "rdpm-latents/1")])?.contains("is a cache of latents"));
    assert!(refusal(&[("format", "rdpm-other/1")])?.contains("another kind"));
    let text = refusal(&[
        ("format", FORMAT),
        ("config", "{\"quantizer\":{\"stepz\":1}}"),
    ])?;
    assert!(
        text.contains("stepz") && text.contains("a.safetensors"),
        "{text}"
    );
    Ok(())
}
