use super::*;
use crate::error::report;
use candle_core::{DType, Device};

/// A file that PyTorch wrote for scripts/weights_testdata.py.
fn data(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/data/weights")
        .join(name)
}

fn refusal(path: &Path) -> String {
    let (text, code) = report(&read(path).expect_err("this must be refused"));
    assert_eq!(code, 1);
    let name = path.file_name().unwrap().to_str().unwrap();
    assert!(text.contains(name), "{text}");
    text
}

/// Reads a file that holds `bytes`.
fn read_bytes(bytes: &[u8]) -> Result<BTreeMap<String, Tensor>> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("x.pth");
    std::fs::write(&path, bytes)?;
    read(&path)
}

fn values(tensor: &Tensor) -> Result<Vec<f32>> {
    Ok(tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?)
}

#[test]
fn both_formats_of_torch_save_give_every_view_and_type() -> Result<()> {
    let grid = Tensor::arange(0f32, 24.0, &Device::Cpu)?;
    for name in ["zip.pth", "legacy.pth"] {
        let found = read(&data(name))?;
        let whole = grid.reshape((2, 3, 4))?;
        for (key, expected) in [
            ("f32", whole.clone()),
            ("offset", grid.narrow(0, 6, 6)?.reshape((2, 3))?),
            ("transposed", grid.narrow(0, 0, 6)?.reshape((2, 3))?.t()?),
            ("permuted", whole.permute((2, 0, 1))?),
            ("column", grid.reshape((6, 4))?.narrow(1, 1, 1)?.squeeze(1)?),
            (
                "expanded",
                grid.narrow(0, 3, 2)?.reshape((2, 1))?.expand((2, 3))?,
            ),
        ] {
            assert_eq!(found[key].dims(), expected.dims(), "{name} {key}");
            assert_eq!(values(&found[key])?, values(&expected)?, "{name} {key}");
        }
        for (key, dtype, expected) in [
            ("f64", DType::F64, vec![0., 1., 2.]),
            ("f16", DType::F16, vec![0., 1., 2.]),
            ("bf16", DType::BF16, vec![0., 1., 2.]),
            ("i32", DType::I32, vec![-1., 0., 1.]),
            ("i64", DType::I64, vec![7.]),
            ("bool", DType::U8, vec![1., 0.]),
            ("empty", DType::F32, vec![]),
            ("parameter", DType::F32, vec![0., 1.]),
        ] {
            assert_eq!(found[key].dtype(), dtype, "{name} {key}");
            assert_eq!(values(&found[key])?, expected, "{name} {key}");
        }
        assert_eq!(found["i64"].rank(), 0);
        assert_eq!(found["empty"].dims(), [0, 3]);
        assert_eq!(found.len(), 14);
    }
    Ok(())
}

#[test]
fn a_training_checkpoint_gives_its_state_dict_and_its_objects_stay_inert() -> Result<()> {
    for name in ["lightning.ckpt", "lightning-legacy.ckpt"] {
        let found = read(&data(name))?;
        let names: Vec<&str> = found.keys().map(String::as_str).collect();
        assert_eq!(
            names,
            [
                "0.bias",
                "0.weight",
                "1.bias",
                "1.num_batches_tracked",
                "1.running_mean",
                "1.running_var",
                "1.weight"
            ]
        );
        assert_eq!(found["1.num_batches_tracked"].to_scalar::<i64>()?, 1);
        assert_eq!(found["0.weight"].dims(), [2, 1, 1, 1]);
    }
    Ok(())
}

#[test]
fn a_pickle_that_would_run_something_is_refused_and_runs_nothing() {
    for name in ["evil.pth", "evil-legacy.pth"] {
        let text = refusal(&data(name));
        assert!(
            text.contains("refused: its pickle asks for `posix.system`"),
            "{text}"
        );
    }
    assert!(!Path::new("rdpm-pickle-ran").exists());
}

#[test]
fn what_holds_no_named_tensors_is_said_so() {
    assert!(refusal(&data("list.pth")).contains("no named tensors"));
    let text = refusal(&data("module.pth"));
    assert!(text.contains("`torch.nn.modules.linear.Linear`"), "{text}");
    assert!(text.contains("save its state_dict alone"), "{text}");
    assert!(refusal(&data("complex.pth")).contains("ComplexFloatStorage"));
}

/// Written in each of the ways of torch.save, and as torch.load(weights_only=True) reads them: the
/// state dict is found, and nothing beside it gets in the way.
#[test]
fn every_plain_thing_may_stand_beside_the_state_dict() -> Result<()> {
    for name in ["plain.pth", "plain-legacy.pth", "plain-5.pth"] {
        let found = read(&data(name))?;
        let names: Vec<&str> = found.keys().map(String::as_str).collect();
        assert_eq!(names, ["attributed", "parameter", "w"], "{name}");
        assert_eq!(values(&found["w"])?, [0., 1., 2., 3., 4., 5.]);
        assert_eq!(values(&found["attributed"])?, [0., 1., 2.]);
        assert_eq!(values(&found["parameter"])?, [0., 1.]);
    }
    Ok(())
}

#[test]
fn numbers_of_every_type_keep_their_values() -> Result<()> {
    use safetensors::Dtype;
    for name in ["elements.pth", "elements-legacy.pth"] {
        let found = read_typed(&data(name))?;
        for (key, dtype) in [
            ("int8", Dtype::I8),
            ("int16", Dtype::I16),
            ("uint16", Dtype::U16),
            ("uint32", Dtype::U32),
            ("uint64", Dtype::U64),
            ("float8_e4m3fn", Dtype::F8_E4M3),
            ("float8_e5m2", Dtype::F8_E5M2),
            ("uint8", Dtype::U8),
            ("bfloat16", Dtype::BF16),
        ] {
            let (tensor, found) = &found[key];
            assert_eq!(*found, dtype, "{name} {key}");
            assert_eq!(values(tensor)?, [1., 3.], "{name} {key}");
        }
        assert_eq!(values(&found["bool"].0)?, [1., 1.], "{name}");
        assert_eq!(found.len(), 10);
    }
    Ok(())
}

#[test]
fn tensors_that_are_no_plain_arrays_are_refused_by_name() {
    for (name, words) in [
        ("sparse.pth", "`w` is a sparse tensor"),
        ("sparse-csr.pth", "`w` is a sparse tensor"),
        ("quantized.pth", "`w` is a quantized tensor"),
        ("meta.pth", "`w` is a tensor without data"),
        ("nested.pth", "`w` is a nested tensor"),
        ("fnuz.pth", "`w` has elements of type float8_e5m2fnuz"),
        ("dtensor.pth", "a distributed tensor (`torch.distributed."),
        (
            "two.pth",
            "several state dicts: `generator`, `discriminator`",
        ),
    ] {
        let text = refusal(&data(name));
        assert!(text.contains(words) && text.contains("hint: "), "{text}");
    }
}

/// Of the weights and their moving average the average is taken, as of a run.
#[test]
fn the_moving_average_is_taken() -> Result<()> {
    let found = read(&data("averaged.pth"))?;
    assert_eq!(found.keys().collect::<Vec<_>>(), ["bias", "weight"]);
    assert_eq!(values(&found["weight"])?, [2., 2.]);
    Ok(())
}

#[test]
fn neither_an_optimizer_nor_a_buffer_that_is_not_read_gets_in_the_way() -> Result<()> {
    for name in ["beside.pth", "beside-legacy.pth"] {
        let found = read(&data(name))?;
        assert_eq!(found.keys().collect::<Vec<_>>(), ["w"], "{name}");
        assert_eq!(values(&found["w"])?, [0., 1.], "{name}");
    }
    Ok(())
}

#[test]
fn a_state_dict_is_found_in_nests_and_a_network_without_its_wrappers_names() -> Result<()> {
    let named = read(&data("nests.pth"))?;
    assert_eq!(named.keys().collect::<Vec<_>>(), ["module._orig_mod.w"]);
    let network = read_network(&data("nests.pth"))?;
    assert_eq!(network.keys().collect::<Vec<_>>(), ["w"]);
    Ok(())
}

#[test]
fn weights_that_are_not_finite_are_no_network() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("bad.safetensors");
    for bad in [f32::NAN, f32::INFINITY] {
        let good = Tensor::ones(2, DType::F32, &Device::Cpu)?;
        let tensors = BTreeMap::from([
            ("a.weight".to_string(), good),
            (
                "b.weight".to_string(),
                Tensor::new(&[1.0, bad], &Device::Cpu)?,
            ),
        ]);
        super::super::safetensors::write(&path, &tensors, &Default::default())?;
        assert!(read(&path).is_ok());
        let (text, _) = report(&read_network(&path).expect_err("this must be refused"));
        assert!(text.contains("`b.weight` holds NaN or infinity"), "{text}");
    }
    Ok(())
}

#[test]
fn truncated_files_are_refused_at_every_length() -> Result<()> {
    for name in ["zip.pth", "legacy.pth"] {
        let bytes = std::fs::read(data(name))?;
        assert!(read_bytes(&bytes).is_ok());
        for length in (0..bytes.len()).step_by(7) {
            let error = read_bytes(&bytes[..length]).expect_err("cut short");
            assert!(report(&error).0.contains("x.pth"));
        }
    }
    Ok(())
}

/// No changed byte may lead to a panic, an abort or a huge allocation; the result may be wrong
/// numbers.
#[test]
fn damaged_bytes_never_stop_the_process() -> Result<()> {
    for name in [
        "zip.pth",
        "legacy.pth",
        "lightning-legacy.ckpt",
        "plain-legacy.pth",
    ] {
        let bytes = std::fs::read(data(name))?;
        // 13 is coprime to every length and period in these files.
        for at in (0..bytes.len()).step_by(13) {
            for value in [0, 0x7f, 0xff, b'('] {
                let mut damaged = bytes.clone();
                damaged[at] = value;
                let _ = read_bytes(&damaged);
            }
        }
    }
    Ok(())
}

/// A legacy file with the given object pickle and storage keys, no storage.
fn legacy(object: &[u8]) -> Vec<u8> {
    let magic = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.";
    let rest = [
        &b"\x80\x02M\xe9\x03."[..],
        b"\x80\x02}.",
        object,
        b"\x80\x02].",
    ];
    [&magic[..], &rest.concat()].concat()
}

#[test]
fn hostile_pickles_end_in_an_error() {
    // A tensor of 2^62 elements over a missing storage, with strides of 0.
    let mut tensor = b"\x80\x02}(X\x01\0\0\0wctorch._utils\n_rebuild_tensor_v2\n((X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\0kX\x03\0\0\0cpuK\x01tQK\0".to_vec();
    tensor.extend(b"\x8a\x08\0\0\0\0\0\0\0\x40\x85K\0\x85\x89}tRu.");
    for object in [
        &tensor[..],
        // Deeply nested tuples.
        &[&b"\x80\x02)"[..], &vec![0x85; 3 << 20], b"."].concat(),
        // A list that contains itself.
        b"\x80\x02]q\0h\0a.",
        // A dict that contains itself as its state dict.
        b"\x80\x02}q\0X\x0a\0\0\0state_dicth\0s.",
        // Lengths beyond the end of the file.
        b"\x80\x02X\xff\xff\xff\xff.",
        b"\x80\x04\x8d\xff\xff\xff\xff\xff\xff\xff\xff.",
        // An empty stack, marks without an end, an unknown instruction.
        b"\x80\x02.",
        b"\x80\x02t.",
        b"\x80\x02((((.",
        b"\x80\x02R.",
        b"\x80\x02\xee.",
        b"",
    ] {
        assert!(read_bytes(&legacy(object)).is_err());
    }
}

#[test]
fn other_files_are_named_as_what_they_are_not() -> Result<()> {
    for (bytes, words) in [
        (&b""[..], "is empty"),
        (b"hello, world, this is text", "is text; expected weights"),
        (
            b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR",
            "is a PNG image; expected weights",
        ),
        (
            b"version https://git-lfs.github.com/spec/v1\n",
            "is a git-LFS pointer",
        ),
        (b"<!DOCTYPE html>\n<html>", "is an HTML page"),
        (b"\x93NUMPY\x01\0v\0{'descr': '<f4'", "is a .npy array"),
        (b"\x1f\x8b\x08\0\0\0\0\0", "is gzip-compressed"),
        (b"\x80\x04\x95\x0a\0\0\0\0\0\0\0", "is a Python pickle"),
        (
            &[0xfe, 0xff, 0, 1, 2, 3, 4, 5, 6, 7],
            "is not a weights file",
        ),
        (b"PK\x03\x04 and nothing more", "x.pth"),
    ] {
        let (text, _) = report(&read_bytes(bytes).expect_err("this must be refused"));
        assert!(text.contains(words), "{text}");
    }
    assert!(refusal(Path::new("/no/such/weights.pth")).contains("cannot read"));
    assert!(read(Path::new("/")).is_err());
    Ok(())
}

#[test]
fn a_torchscript_archive_gives_its_modules_tensors_by_path() -> Result<()> {
    let found = read(&data("script.pt"))?;
    let names: Vec<&str> = found.keys().map(String::as_str).collect();
    let expected = ["0.bias", "0.weight", "1.0.bias", "1.0.weight", "scale"];
    assert_eq!(names, expected);
    assert_eq!(found["0.weight"].dims(), [3, 2]);
    assert_eq!(found["0.weight"].dtype(), DType::F16);
    assert_eq!(values(&found["0.weight"])?, [0., 1., 2., 3., 4., 5.]);
    assert_eq!(values(&found["1.0.bias"])?, [0., 1.]);
    Ok(())
}
