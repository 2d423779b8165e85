use super::super::text::render;
use super::*;
use crate::error::report;
use crate::store::bundle::Tensors;
use crate::store::codes::Origin;
use crate::store::npz::{Element, NpzWriter};
use crate::store::run::{CHECKPOINT_FORMAT, Run};
use crate::store::safetensors;
use candle_core::{DType, Device, Tensor};

fn tensors() -> Result<Tensors> {
    let zeros = |shape: &[usize]| Tensor::zeros(shape, DType::F32, &Device::Cpu);
    Ok(Tensors::from([
        ("encoder.conv_in.weight".into(), zeros(&[64, 12, 3, 3])?),
        ("encoder.conv_in.bias".into(), zeros(&[64])?),
        ("quantize.embedding.weight".into(), zeros(&[512, 8])?),
    ]))
}

#[test]
fn a_bundle_tells_its_parts_configuration_and_origin() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("a.safetensors");
    let mut bundle = Bundle::new(Config::load(Some("demo"), &[])?, tensors()?);
    bundle.metrics = json!({ "train_vae": { "psnr": 25.5 } });
    bundle.provenance = json!({ "train_vae": { "step": 900 } });
    bundle.write(&path, false)?;
    let facts = of(&path, true)?;
    assert_eq!(facts["kind"], "bundle");
    let encoder = &facts["parameters"]["tokenizer.encoder"];
    assert_eq!(
        *encoder,
        json!({ "tensors": 2, "parameters": 64 * 12 * 9 + 64 })
    );
    assert_eq!(facts["tokenizer_hash"], bundle.tokenizer_hash()?);
    assert_eq!(facts["sha256"], digest::sha256(&path)?);
    let text = render(&facts)?;
    for words in [
        "bundle (rdpm-bundle/1)",
        "11,072",
        "25.5",
        "codebook_size = 512",
        "[512,8]",
    ] {
        assert!(text.contains(words), "{words}: {text}");
    }
    Ok(())
}

/// A run folder as training leaves it.
fn run(path: &Path) -> Result<Run> {
    let mut run = Run::create(Some(path), "train-vae", &Config::load(Some("demo"), &[])?)?;
    run.metrics
        .append(10, Map::from_iter([("psnr".into(), json!(20.0))]))?;
    let folder = run.checkpoints().join("step-00000010");
    fs::create_dir(&folder)?;
    let mut hashes = Map::new();
    for name in ["model", "ema", "optimizer"].map(|n| format!("{n}.safetensors")) {
        safetensors::write(&folder.join(&name), &tensors()?, &Default::default())?;
        hashes.insert(name.clone(), json!(digest::sha256(&folder.join(&name))?));
    }
    let state = json!({
        "format": CHECKPOINT_FORMAT, "stage": "train-vae", "step": 10, "finished": true, "seed": 3,
        "version": "0.1.0", "sha256": hashes, "frozen": {},
    });
    fs::write(folder.join("state.json"), state.to_string())?;
    Ok(run)
}

#[test]
fn a_run_tells_its_step_and_a_damaged_checkpoint() -> Result<()> {
    let root = tempfile::tempdir()?;
    let path = root.path().join("run");
    let run = run(&path)?;
    let facts = of(&path, false)?;
    assert_eq!(
        (&facts["kind"], &facts["stage"]),
        (&json!("run"), &json!("train-vae"))
    );
    assert_eq!(
        (&facts["step"], &facts["finished"]),
        (&json!(10), &json!(true))
    );
    assert_eq!(facts["metrics"]["psnr"], 20.0);
    assert!(!render(&facts)?.contains("DAMAGED"));
    let checkpoint = run.checkpoints().join("step-00000010");
    let file = checkpoint.join("ema.safetensors");
    let mut bytes = fs::read(&file)?;
    *bytes.last_mut().expect("not empty") ^= 1;
    fs::write(&file, bytes)?;
    for path in [path, checkpoint] {
        let facts = of(&path, false)?;
        assert_eq!(facts["files"]["ema.safetensors"]["as_recorded"], false);
        assert!(render(&facts)?.contains("DAMAGED"));
    }
    Ok(())
}

#[test]
fn a_run_without_a_checkpoint_is_told_too() -> Result<()> {
    let root = tempfile::tempdir()?;
    let path = root.path().join("run");
    let _run = Run::create(Some(&path), "train-vae", &Config::default())?;
    let text = render(&of(&path, false)?)?;
    assert!(
        text.contains("run: run") && text.contains("[quantizer]"),
        "{text}"
    );
    Ok(())
}

#[test]
fn codes_and_other_peoples_weights_are_told() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("codes.safetensors");
    let codes = Codes {
        codes: Tensor::zeros((10, 3, 8, 8), DType::U32, &Device::Cpu)?,
        labels: Vec::new(),
        names: Vec::new(),
        mirrored: Vec::new(),
        noise: None,
        latents: None,
        origin: Origin {
            tokenizer: "abc".into(),
            codebook_size: 512,
            seed: 5,
        },
    };
    for format in [Format::Npy, Format::Wds, Format::Jsonl, Format::Parquet] {
        let path = folder.path().join(format!("a {format} file"));
        codes.write(&path, format)?;
        let facts = of(&path, false)?;
        assert_eq!(
            (&facts["kind"], &facts["images"], &facts["tokenizer_hash"]),
            (&json!("codes"), &json!(3), &json!("abc"))
        );
    }
    codes.write(&path, Format::Safetensors)?;
    let facts = of(&path, false)?;
    assert_eq!((&facts["images"], &facts["steps"]), (&json!(3), &json!(10)));
    assert!(render(&facts)?.contains("U16"));

    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/weights");
    let facts = of(&data.join("lightning.ckpt"), false)?;
    assert_eq!(facts["format"], "torch.save");
    assert_eq!(facts["parameters"]["0"]["parameters"], 4);
    Ok(())
}

#[test]
fn what_is_nothing_of_ours_is_refused() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let text = |path: &Path| report(&of(path, false).unwrap_err()).0;
    assert!(text(folder.path()).contains("not a run folder"));
    assert!(text(&folder.path().join("none")).contains("cannot read"));
    let path = folder.path().join("a.safetensors");
    fs::write(&path, b"")?;
    assert!(text(&path).contains("is empty"));
    fs::write(&path, [0xff; 64])?;
    assert!(text(&path).contains("safetensors"));
    Ok(())
}

#[test]
fn an_npz_tells_its_arrays() -> Result<()> {
    let root = tempfile::tempdir()?;
    let path = root.path().join("a.npz");
    let mut npz = NpzWriter::new(fs::File::create(&path)?);
    npz.array("arr_0", Element::U8, &[2, 1, 1, 3])?;
    npz.write(&[7; 6])?;
    npz.finish()?;
    let text = render(&of(&path, false)?)?;
    assert!(text.contains("arrays (npz)"), "{text}");
    assert!(
        text.contains("arr_0") && text.contains("U8    [2,1,1,3]"),
        "{text}"
    );
    fs::write(&path, "PK")?;
    let (text, _) = report(&of(&path, false).unwrap_err());
    assert!(text.contains("a.npz"), "{text}");
    Ok(())
}

/// Labels of a type that is not read elsewhere are shown with their type. File names may be
/// upper-case or without a suffix.
#[test]
fn an_npz_of_any_types_and_any_name_is_told() -> Result<()> {
    let root = tempfile::tempdir()?;
    for name in ["a.npz", "A.NPZ", "array"] {
        let path = root.path().join(name);
        let mut npz = NpzWriter::new(fs::File::create(&path)?);
        npz.array("arr_0", Element::U8, &[2, 1, 1, 3])?;
        npz.write(&[7; 6])?;
        npz.array("arr_1", Element::I32, &[2])?;
        npz.write(&[0; 8])?;
        npz.finish()?;
        let text = render(&of(&path, false)?)?;
        assert!(
            text.contains("arr_1") && text.contains("I32   [2]"),
            "{text}"
        );
    }
    for (descriptor, expected) in [
        ("<f4", "F32"),
        (">i8", "I64"),
        ("|b1", "BOOL"),
        ("<c16", "C128"),
        ("|O", "|O"),
        ("<U5", "<U5"),
        ("[('a', '<f4')]", "[('a', '<f4')]"),
    ] {
        assert_eq!(dtype(descriptor), expected);
    }
    Ok(())
}

#[test]
fn a_pth_tells_the_types_of_its_file() -> Result<()> {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/weights");
    let facts = of(&data.join("elements.pth"), true)?;
    for (name, dtype) in [
        ("int8", "I8"),
        ("uint16", "U16"),
        ("float8_e5m2", "F8_E5M2"),
        ("bool", "BOOL"),
    ] {
        assert_eq!(facts["tensors"][name]["dtype"], dtype);
    }
    Ok(())
}

#[test]
fn a_folder_of_latents_is_told() -> Result<()> {
    let folder = tempfile::tempdir()?;
    crate::data::latent_cache::tests::cache(folder.path());
    let facts = of(folder.path(), false)?;
    let text = render(&facts)?;
    assert!(text.contains(": latent cache (rdpm-latents/2)"), "{text}");
    assert!(text.contains("  images          5\n"), "{text}");
    assert!(!text.contains("wrong"), "{text}");
    std::fs::remove_file(folder.path().join("part-00002.safetensors"))?;
    let text = render(&of(folder.path(), false)?)?;
    assert!(
        text.contains("  wrong ") && text.contains("part-00002"),
        "{text}"
    );
    Ok(())
}
