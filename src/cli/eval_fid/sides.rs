//! Opening the two sides of `eval-fid`: what they are, before anything is computed.

use std::path::{Path, PathBuf};
use std::rc::Rc;

use candle_core::Device;
use serde_json::json;

use super::{Args, only_for_models};
use crate::data::printed;
use crate::error::{Result, usage};
use crate::metrics::images::{Images, is_npz};
use crate::metrics::probe::Probe;
use crate::metrics::requirements::Facts;
use crate::metrics::sampled::Sampling;
use crate::metrics::stats_file::Statistics;
use crate::sample::Pretrained;
use crate::store::npz::Npz;
use crate::store::{builtin, digest};

/// Samples to draw if --num is left out: the number behind FIDs in papers.
const DEFAULT_COUNT: u32 = 50_000;

/// A side that exists on disk: images, statistics, or both.
pub struct Opened {
    /// As given on the command line.
    pub(super) path: String,
    pub(super) place: PathBuf,
    pub(super) images: Option<Images>,
    /// Width and height of the first image.
    pub(super) size: Option<(u32, u32)>,
    pub(super) statistics: Option<Statistics>,
}

/// One set of samples: on disk, or drawn from a model.
pub enum Setting {
    Opened(Box<Opened>),
    Drawn {
        /// As given on the command line.
        path: String,
        sampling: Box<Sampling>,
        work: PathBuf,
    },
}

/// Opens the side at `path`.
pub fn open(path: &Path, crop: Option<usize>) -> Result<Opened> {
    let statistics = if is_npz(path) {
        Statistics::read(path)?
    } else {
        None
    };
    let images = match &statistics {
        Some(_) if !Npz::open(path)?.has("arr_0") => None,
        _ => Some(Images::open(path, crop)?),
    };
    let size = images.as_ref().map(Images::size).transpose()?;
    let made_by = statistics.as_ref().and_then(|s| s.made_by.as_ref());
    Ok(Opened {
        path: printed(path.as_os_str()),
        place: path.to_path_buf(),
        size: size.or(made_by.and_then(|m| m.size)),
        images,
        statistics,
    })
}

/// The sets of samples to evaluate, in order. A run or a bundle is a model, anything else is on
/// disk.
pub fn settings(args: &Args, crop: Option<usize>, device: &Device) -> Result<Vec<Setting>> {
    let path = &args.samples;
    let is_model = path == Path::new(builtin::NAME)
        || path.extension().is_some_and(|e| e == "safetensors")
        || path.join("config.toml").is_file()
        || path.join("state.json").is_file();
    if !is_model {
        only_for_models(args)?;
        return Ok(vec![Setting::Opened(Box::new(open(path, crop)?))]);
    }
    let model = Rc::new(Pretrained::open(Some(path), device)?);
    model.generator()?;
    let options = args.drawing.options(&model.config.sample)?;
    let all = match &args.sampling.sweep {
        Some(sweep) => sweep.apply(&options)?,
        None => vec![options],
    };
    if all.len() > 1 && (args.details.save_stats.is_some() || args.details.save_features.is_some())
    {
        return Err(usage(
            "--save-stats and --save-features write the samples of one setting",
            "leave out --sweep",
        ));
    }
    let classes = match &args.sampling.class {
        Some(class) => model.classes.resolve(class)?,
        None if model.classes.is_empty() => vec![0],
        None => (0..model.classes.len() as u32).collect(),
    };
    let sampling = Sampling {
        hashes: [model.hash()?, model.config_hash()?],
        model,
        classes,
        count: args.sampling.num.unwrap_or(DEFAULT_COUNT) as usize,
        seed: args.sampling.seed,
        options,
        batch: args.batch_size as usize,
    };
    let setting = |options| {
        let mut sampling = Box::new(sampling.clone());
        sampling.options = options;
        Setting::Drawn {
            path: printed(path.as_os_str()),
            work: work(args, &sampling),
            sampling,
        }
    };
    Ok(all.into_iter().map(setting).collect())
}

/// The folder of features. Its default name depends on the samples alone.
fn work(args: &Args, sampling: &Sampling) -> PathBuf {
    let identity = sampling.stream().to_string();
    let name = &digest::of_bytes(identity.as_bytes())[..12];
    match &args.sampling.work {
        // A sweep has one folder per setting.
        Some(work) if args.sampling.sweep.is_some() => work.join(name),
        Some(work) => work.clone(),
        None => PathBuf::from(format!("runs/eval-fid-{name}")),
    }
}

impl Opened {
    /// What must be equal at all ranks.
    pub fn same(&self, what: &str) -> Vec<(String, String)> {
        let images = self.images.as_ref().map(Images::count);
        vec![
            (format!("the {what}"), self.path.clone()),
            (
                format!("of {what}, images:"),
                format!("{images:?}, size {:?}", self.size),
            ),
        ]
    }

    pub fn facts(&self) -> Facts<'_> {
        Facts {
            path: &self.path,
            images: self.images.as_ref().map(Images::count),
            size: self.size,
            statistics: self.statistics.as_ref(),
        }
    }

    pub(super) fn kind(&self) -> &'static str {
        match (&self.images, &self.statistics) {
            (Some(_), Some(_)) => "statistics and images",
            (None, _) => "statistics",
            (Some(Images::Array { .. }), _) => "array of images",
            (Some(Images::Files { .. }), _) if self.place.is_dir() => "folder",
            (Some(Images::Files { .. }), _) => "shard",
        }
    }
}

impl Setting {
    pub fn facts(&self) -> Facts<'_> {
        match self {
            Setting::Opened(opened) => opened.facts(),
            Setting::Drawn { path, sampling, .. } => Facts {
                path,
                images: Some(sampling.count),
                size: Some(size_of(&sampling.model)),
                statistics: None,
            },
        }
    }

    /// The images and their size, where they are on disk.
    pub fn images(&self) -> Option<(&Images, (u32, u32))> {
        match self {
            Setting::Opened(opened) => opened.images.as_ref().zip(opened.size),
            Setting::Drawn { .. } => None,
        }
    }

    /// Errors: the samples have no labels, or the probe does not know one of their classes.
    pub fn check_classes(&self, probe: &Probe) -> Result<()> {
        let unlabelled = |path: &str, hint: &str| {
            Err(usage(
                format!("--probe: the images of {path} do not say what they should show"),
                hint,
            ))
        };
        match self {
            Setting::Drawn { path, sampling, .. } if sampling.model.classes.is_empty() => {
                unlabelled(
                    path,
                    "the model was trained without labels: leave out --probe",
                )
            }
            Setting::Drawn { sampling, .. } => {
                probe.classes_of(&sampling.model.classes, &sampling.classes)?;
                Ok(())
            }
            Setting::Opened(opened) => match opened.images.as_ref().and_then(Images::classes) {
                Some(classes) => {
                    let all: Vec<u32> = (0..classes.len() as u32).collect();
                    probe.classes_of(classes, &all)?;
                    Ok(())
                }
                None => unlabelled(
                    &opened.path,
                    "name a folder with a folder a class, shards with labels, or a model",
                ),
            },
        }
    }

    /// What must be equal at all ranks.
    pub fn same(&self) -> Vec<(String, String)> {
        match self {
            Setting::Opened(opened) => opened.same("samples"),
            Setting::Drawn { sampling, .. } => {
                let mut identity = sampling.identity();
                identity["batch size"] = json!(sampling.batch);
                let facts = identity.as_object().into_iter().flatten();
                facts
                    .map(|(key, value)| (format!("the {key}"), value.to_string()))
                    .collect()
            }
        }
    }
}

pub(super) fn size_of(model: &Pretrained) -> (u32, u32) {
    let side = model.config.data.image_size as u32;
    (side, side)
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;

    use super::*;

    /// File systems of other systems do not take such a name.
    #[test]
    fn a_path_that_is_no_text_is_printed_as_it_can_be_named() -> Result<()> {
        let root = tempfile::tempdir()?;
        let folder = root.path().join(OsStr::from_bytes(b"images-\xff"));
        std::fs::create_dir(&folder)?;
        image::RgbImage::new(8, 8).save(folder.join("a.png"))?;
        let opened = open(&folder, None)?;
        let path = opened.facts().path;
        assert!(!path.contains('\u{fffd}'), "{path}");
        assert_eq!(path, printed(folder.as_os_str()));
        Ok(())
    }
}
