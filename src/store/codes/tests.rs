use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use ::safetensors::tensor::Dtype;
use candle_core::{DType, Device};

use super::*;
use crate::error::report;
use crate::store::safetensors::{self as file, Metadata, Reader};

const ALL: [Format; 5] = [
    Format::Safetensors,
    Format::Npy,
    Format::Wds,
    Format::Jsonl,
    Format::Parquet,
];

fn codes(codebook_size: usize) -> Result<Codes> {
    let device = Device::Cpu;
    let (t, n, h, w, d) = (2usize, 3usize, 2usize, 4usize, 5usize);
    let count = |n: usize| Tensor::arange(0f32, n as f32, &device)? * 0.1;
    Ok(Codes {
        codes: Tensor::arange(0u32, (t * n * h * w) as u32, &device)?.reshape((t, n, h, w))?,
        labels: vec![7, 0, 9],
        names: ["a/b.c", "äöü", "a/b.c"].map(String::from).to_vec(),
        mirrored: vec![false, false, true],
        noise: Some(count(t * n * h * w * d)?.reshape((t, n, h, w, d))?),
        latents: Some(count(n * h * w * d)?.reshape((n, h, w, d))?),
        origin: Origin {
            tokenizer: "abc".into(),
            codebook_size,
            seed: u64::MAX,
        },
    })
}

fn bare(codebook_size: usize) -> Result<Codes> {
    Ok(Codes {
        labels: Vec::new(),
        names: Vec::new(),
        mirrored: Vec::new(),
        noise: None,
        latents: None,
        ..codes(codebook_size)?
    })
}

fn assert_same(a: &Codes, b: &Codes, what: &str) -> Result<()> {
    let flat = |t: &Option<Tensor>| -> Result<Option<(Vec<usize>, Vec<f32>)>> {
        let flat = |t: &Tensor| Ok((t.dims().to_vec(), t.flatten_all()?.to_vec1()?));
        t.as_ref().map(flat).transpose()
    };
    assert_eq!(a.codes.dims(), b.codes.dims(), "{what}");
    assert_eq!(
        a.codes.flatten_all()?.to_vec1::<u32>()?,
        b.codes.flatten_all()?.to_vec1::<u32>()?,
        "{what}"
    );
    assert_eq!(
        (&a.labels, &a.names, &a.mirrored, &a.origin),
        (&b.labels, &b.names, &b.mirrored, &b.origin),
        "{what}"
    );
    assert_eq!(flat(&a.noise)?, flat(&b.noise)?, "{what}");
    assert_eq!(flat(&a.latents)?, flat(&b.latents)?, "{what}");
    Ok(())
}

#[test]
fn every_format_is_read_as_it_was_written_in_both_widths() -> Result<()> {
    let folder = tempfile::tempdir()?;
    for format in ALL {
        // The content says what it is, not the name.
        let path = folder.path().join(format.to_string());
        for codebook_size in [1 << 16, (1 << 16) + 1] {
            for written in [codes(codebook_size)?, bare(codebook_size)?] {
                written.write(&path, format)?;
                assert_same(&written, &Codes::read(&path)?, &format.to_string())?;
                assert_eq!(Format::of(&path), format);
                assert_eq!(
                    Format::is_codes(&path),
                    format != Format::Safetensors,
                    "{format}"
                );
            }
        }
    }
    Ok(())
}

#[test]
fn more_images_than_a_row_group_keep_their_order() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("codes.parquet");
    let n = 2500;
    let values: Vec<u32> = (0..2 * n as u32).map(|i| i * 7 % 64).collect();
    let written = Codes {
        codes: Tensor::from_vec(values, (2, n, 1, 1), &Device::Cpu)?,
        labels: (0..n as u32).collect(),
        names: (0..n).map(|i| format!("n{i}")).collect(),
        ..bare(64)?
    };
    written.write(&path, Format::Parquet)?;
    assert_same(&written, &Codes::read(&path)?, "parquet")
}

#[test]
fn a_tensor_file_has_pytorchs_names_and_shapes() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("codes.safetensors");
    for (codebook_size, dtype) in [(1 << 16, Dtype::U16), ((1 << 16) + 1, Dtype::U32)] {
        let written = codes(codebook_size)?;
        written.write(&path, Format::Safetensors)?;
        let header = Reader::open(&path)?.header()?;
        assert_eq!(header.tensors["codes"], (dtype, vec![3, 2, 2, 4]));
        assert_eq!(header.tensors["noise"].1, [3, 2, 5, 2, 4]);
        assert_eq!(header.tensors["latents"].1, [3, 5, 2, 4]);
        let noise = read_noise(&path)?.flatten_all()?.to_vec1::<f32>()?;
        let expected = written.noise.expect("there").flatten_all()?;
        assert_eq!(noise, expected.to_vec1::<f32>()?);
    }
    bare(4096)?.write(&path, Format::Safetensors)?;
    let (text, _) = report(&read_noise(&path).unwrap_err());
    assert!(text.contains("no tensor `noise`"), "{text}");
    Ok(())
}

#[test]
fn codes_that_cannot_be_decoded_are_refused() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("codes.safetensors");
    let with = |change: &dyn Fn(&mut Codes)| -> Result<Codes> {
        let mut codes = codes(4096)?;
        change(&mut codes);
        Ok(codes)
    };
    let small = Tensor::zeros((3, 2, 5, 4), DType::F32, &Device::Cpu)?;
    let empty = Tensor::zeros((1, 3, 0, 5), DType::U32, &Device::Cpu)?;
    for (codes, words) in [
        (
            with(&|codes| codes.origin.codebook_size = 47)?,
            "code 47 in a codebook of 47",
        ),
        (
            with(&|codes| codes.labels = vec![1])?,
            "1 labels for 3 images",
        ),
        (
            with(&|codes| codes.names.truncate(2))?,
            "2 names for 3 images",
        ),
        (
            with(&|codes| {
                codes.latents = Some(small.clone());
                codes.noise = None;
            })?,
            "its latents do not fit",
        ),
        (
            with(&|codes| {
                codes.codes = empty.clone();
                (codes.latents, codes.noise) = (None, None);
            })?,
            "its codes have shape [3, 1, 0, 5]",
        ),
    ] {
        codes.write(&path, Format::Safetensors)?;
        let (text, code) = report(&Codes::read(&path).unwrap_err());
        assert!(text.contains(words), "{text}");
        assert_eq!(code, 1);
    }
    file::write(&path, &BTreeMap::new(), &Metadata::new())?;
    assert!(Codes::read(&path).is_err());
    Ok(())
}

/// The file of `format` that holds most bytes.
fn largest(path: PathBuf, format: Format) -> PathBuf {
    match format {
        Format::Npy => path.join("codes.npy"),
        _ => path,
    }
}

#[test]
fn a_file_that_is_cut_anywhere_is_refused_with_its_path_and_a_remedy() -> Result<()> {
    let folder = tempfile::tempdir()?;
    for format in ALL {
        let path = folder.path().join(format.name("codes"));
        codes(4096)?.write(&path, format)?;
        let file = largest(path.clone(), format);
        let whole = fs::read(&file)?;
        // A tar ends with zeros, of which a part may be missing.
        let end = match format {
            Format::Wds => whole.len() - 1024 - 512,
            _ => whole.len(),
        };
        // Between two lines too.
        let line_ends = whole[..end - 1].iter().enumerate();
        let line_ends = line_ends.filter(|(_, byte)| **byte == b'\n');
        let line_ends = line_ends.map(|(at, _)| at + 1);
        for length in (0..end).step_by(97).chain([end - 1]).chain(line_ends) {
            fs::write(&file, &whole[..length])?;
            let error = Codes::read(&path).expect_err(&format!("{format} cut at {length}"));
            let (text, code) = report(&error);
            assert!(
                text.contains("codes") && text.contains("hint: ") && code == 1,
                "{format} cut at {length}: {text}"
            );
        }
    }
    Ok(())
}

#[test]
fn lines_of_two_tokenizers_in_a_file_are_told_apart() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (a, b) = (folder.path().join("a.jsonl"), folder.path().join("b.jsonl"));
    let mut codes = codes(4096)?;
    codes.write(&a, Format::Jsonl)?;
    codes.origin.tokenizer = "def".into();
    codes.write(&b, Format::Jsonl)?;
    fs::write(&a, [fs::read(&a)?, fs::read(&b)?].concat())?;
    let (text, _) = report(&Codes::read(&a).unwrap_err());
    assert!(
        text.contains("line 4 was made by another tokenizer") && text.contains("a.jsonl"),
        "{text}"
    );
    // Equal codes of one tokenizer are one set.
    fs::write(&a, fs::read(&b)?.repeat(2))?;
    assert_eq!(Codes::read(&a)?.len(), 6);
    // One that was cut is found before and after another.
    let whole = fs::read_to_string(&b)?;
    let (first, _) = whole.split_once('\n').expect("three lines");
    for text in [format!("{first}\n{whole}"), format!("{whole}{first}\n")] {
        fs::write(&a, text)?;
        let said = report(&Codes::read(&a).unwrap_err()).0;
        assert!(said.contains("of 3 images are there"), "{said}");
    }
    // Chosen on purpose.
    let chosen = first.replace("\"images\":3,", "");
    fs::write(&a, format!("{chosen}\n{chosen}\n"))?;
    assert_eq!(Codes::read(&a)?.len(), 2);
    Ok(())
}

#[test]
fn other_files_of_these_kinds_are_refused_by_name() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("file");
    let refusal = |bytes: &[u8]| -> Result<String> {
        fs::write(&path, bytes)?;
        assert!(!Format::is_codes(&path) || bytes.starts_with(b"PAR1"));
        Ok(report(&Codes::read(&path).unwrap_err()).0)
    };
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(0);
    tar.append_data(&mut header, "a.jpg", &[][..])?;
    let text = refusal(&tar.into_inner()?)?;
    assert!(text.contains("its first member is `a.jpg`"), "{text}");
    let text = refusal(b"{\"image\": \"a.jpg\"}\n")?;
    assert!(text.contains("expected a file of codes"), "{text}");
    let text = refusal(b"{\"format\": \"rdpm-codes/9\"}\n")?;
    assert!(text.contains("found rdpm-codes/9"), "{text}");
    let text = refusal(b"PAR1 and so on")?;
    assert!(text.contains("not a valid codes file"), "{text}");
    Ok(())
}
