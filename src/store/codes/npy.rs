//! Codes as a folder of NumPy arrays: `codes.npy` [N,T,h,w], `labels.npy` [N], `mirrored.npy` [N],
//! `latents.npy` [N,d,h,w], `noise.npy` [N,T,d,h,w], and `about.json` with the names and where the
//! codes come from.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::rows::{Rows, Shape};
use super::{Codes, FORMAT, Origin, damaged};
use crate::error::{Context, Result};
use crate::store::atomic;
use crate::store::bundle::check_format;
use crate::store::npz::{Element, Npy, npy_header};

/// The file that makes a folder one of codes.
pub(super) const ABOUT: &str = "about.json";

#[derive(Serialize, Deserialize)]
struct About {
    format: String,
    #[serde(flatten)]
    origin: Origin,
    names: Vec<String>,
}

pub(super) fn write(codes: &Codes, path: &Path) -> Result<()> {
    let (t, n, h, w) = codes.codes.dims4()?;
    let rows = Rows::of(codes)?;
    let d = rows.shape.embed_dim;
    let element = element(codes.origin.codebook_size);
    atomic::write_folder(path, |folder| {
        let save = |name: &str, element, shape: &[usize], bytes: &mut dyn Iterator<Item = u8>| {
            array(&folder.join(name), element, shape, bytes)
                .map_err(|e| atomic::cannot_write(&path.join(name), &e))
        };
        save(
            "codes.npy",
            element,
            &[n, t, h, w],
            &mut packed(&rows.codes, element),
        )?;
        if !codes.labels.is_empty() {
            let labels = codes.labels.iter();
            let mut bytes = labels.flat_map(|l| i64::from(*l).to_le_bytes());
            save("labels.npy", Element::I64, &[n], &mut bytes)?;
        }
        if !codes.mirrored.is_empty() {
            let mut bytes = codes.mirrored.iter().map(|m| u8::from(*m));
            save("mirrored.npy", Element::Bool, &[n], &mut bytes)?;
        }
        if let Some(latents) = &rows.latents {
            let shape = [n, d, h, w];
            save(
                "latents.npy",
                Element::F32,
                &shape,
                &mut float_bytes(latents),
            )?;
        }
        if let Some(noise) = &rows.noise {
            let shape = [n, t, d, h, w];
            save("noise.npy", Element::F32, &shape, &mut float_bytes(noise))?;
        }
        let about = About {
            format: FORMAT.to_string(),
            origin: codes.origin.clone(),
            names: codes.names.clone(),
        };
        let about = serde_json::to_vec(&about)?;
        fs::write(folder.join(ABOUT), about)
            .map_err(|e| atomic::cannot_write(&path.join(ABOUT), &e))
    })
}

/// Whether the folder at `path` is one of codes, which may be replaced: it holds nothing else.
pub(super) fn is_codes(path: &Path) -> bool {
    let about = fs::read(path.join(ABOUT)).unwrap_or_default();
    let about: serde_json::Value = serde_json::from_slice(&about).unwrap_or_default();
    let ours = FORMAT.split('/').next();
    let format = about["format"].as_str();
    let is_ours = format.is_some_and(|format| format.split('/').next() == ours);
    let mut entries = fs::read_dir(path).into_iter().flatten();
    is_ours
        && entries.all(|entry| {
            let name = entry.map(|entry| entry.file_name()).unwrap_or_default();
            name == ABOUT || Path::new(&name).extension() == Some("npy".as_ref())
        })
}

/// The type that codes below `codebook_size` are stored in.
pub(super) fn element(codebook_size: usize) -> Element {
    match codebook_size <= 1 << 16 {
        true => Element::U16,
        false => Element::U32,
    }
}

/// The bytes of codes.
pub(super) fn packed(codes: &[u32], element: Element) -> impl Iterator<Item = u8> {
    let bytes = element.size();
    codes
        .iter()
        .flat_map(move |code| code.to_le_bytes().into_iter().take(bytes))
}

fn float_bytes(values: &[f32]) -> impl Iterator<Item = u8> {
    values.iter().flat_map(|value| value.to_le_bytes())
}

fn array(
    path: &Path,
    element: Element,
    shape: &[usize],
    mut bytes: &mut dyn Iterator<Item = u8>,
) -> io::Result<()> {
    let mut file = BufWriter::new(File::create(path)?);
    file.write_all(&npy_header(element, shape))?;
    let mut block = Vec::with_capacity(1 << 16);
    loop {
        block.clear();
        block.extend((&mut bytes).take(1 << 16));
        if block.is_empty() {
            return file.flush();
        }
        file.write_all(&block)?;
    }
}

pub(super) fn read(path: &Path) -> Result<Codes> {
    let about = path.join(ABOUT);
    let text = fs::read(&about).map_err(|e| {
        damaged(
            path,
            format!("it is a folder, and its {ABOUT} cannot be read ({e})"),
        )
    })?;
    let format: serde_json::Value = serde_json::from_slice(&text)
        .map_err(|e| damaged(path, format!("its {ABOUT} is damaged ({e})")))?;
    check_format(&about, format["format"].as_str(), FORMAT)?;
    let about: About = serde_json::from_value(format)
        .map_err(|e| damaged(path, format!("its {ABOUT} is damaged ({e})")))?;
    let bytes = |name: &str| -> Result<Option<Vec<u8>>> {
        match fs::read(path.join(name)) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            read => Ok(Some(read.with_context(|| {
                format!("could not read {}", path.join(name).display())
            })?)),
        }
    };
    let bad = |name: &'static str| {
        move |error: crate::error::Error| damaged(path, format!("{name}: {error:#}"))
    };
    let file = bytes("codes.npy")?
        .ok_or_else(|| damaged(path, "it holds no array codes.npy".to_string()))?;
    let array = Npy::parse(&file).map_err(bad("codes.npy"))?;
    let Ok([n, steps, height, width]) = <[usize; 4]>::try_from(array.shape.as_slice()) else {
        let shape = &array.shape;
        return Err(damaged(path, format!("its codes have shape {shape:?}")));
    };
    let values = array.codes().map_err(bad("codes.npy"))?;
    // The array of N images, and d.
    let floats = |name: &'static str, before: &[usize]| -> Result<Option<(Vec<f32>, usize)>> {
        let Some(file) = bytes(name)? else {
            return Ok(None);
        };
        let array = Npy::parse(&file).map_err(bad(name))?;
        let d = array.shape.get(before.len()).copied().unwrap_or_default();
        if array.shape != [before, &[d, height, width]].concat() {
            return Err(damaged(path, format!("{name} has shape {:?}", array.shape)));
        }
        Ok(Some((array.floats().map_err(bad(name))?, d)))
    };
    let latents = floats("latents.npy", &[n])?;
    let noise = floats("noise.npy", &[n, steps])?;
    let dims = [&latents, &noise].map(|floats| floats.as_ref().map(|(_, d)| *d));
    if let [Some(one), Some(other)] = dims
        && one != other
    {
        return Err(damaged(path, format!("latents of {one}, noise of {other}")));
    }
    let list = |name: &'static str, element: Element| -> Result<Option<Vec<u8>>> {
        let Some(file) = bytes(name)? else {
            return Ok(None);
        };
        let array = Npy::parse(&file).map_err(bad(name))?;
        match array.element == element && array.shape.len() == 1 {
            true => Ok(Some(array.bytes.to_vec())),
            false => Err(damaged(path, format!("{name} is of another type or rank"))),
        }
    };
    let labels = list("labels.npy", Element::I64)?.unwrap_or_default();
    let (labels, _) = labels.as_chunks();
    let label = |bytes: &[u8; 8]| u32::try_from(i64::from_le_bytes(*bytes));
    let labels: Result<Vec<u32>, _> = labels.iter().map(label).collect();
    let mirrored = list("mirrored.npy", Element::Bool)?.unwrap_or_default();
    let rows = Rows {
        shape: Shape {
            steps,
            height,
            width,
            embed_dim: dims[0].or(dims[1]).unwrap_or(0),
        },
        codes: values,
        noise: noise.map(|(values, _)| values),
        latents: latents.map(|(values, _)| values),
    };
    Ok(Codes {
        labels: labels.map_err(|_| damaged(path, "a label is no class".into()))?,
        names: about.names,
        mirrored: mirrored.iter().map(|byte| *byte != 0).collect(),
        ..Codes::of_rows(rows, n, about.origin)?
    })
}
