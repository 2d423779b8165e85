//! Opening the two sides of `eval-fid`, and collecting their features.

use std::path::{Path, PathBuf};
use std::rc::Rc;

use candle_core::Device;

use super::{Args, only_for_models};
use crate::error::{Result, usage};
use crate::metrics::collect::Collector;
use crate::metrics::images::Images;
use crate::metrics::inception;
use crate::metrics::known;
use crate::metrics::report::Set;
use crate::metrics::requirements::Facts;
use crate::metrics::sampled::Sampling;
use crate::metrics::side::Side;
use crate::metrics::statistics::Groups;
use crate::metrics::stats_file::Statistics;
use crate::metrics::{FeatureNetwork, Tap};
use crate::sample::{Pretrained, SampleOptions};
use crate::store::atomic;
use crate::store::digest;
use crate::store::npz::{Element, Npz, NpzWriter};
use crate::telemetry::Progress;

/// A side that exists: images, statistics, or both.
pub struct Opened {
    /// As it was named.
    path: String,
    is_file: bool,
    images: Option<Images>,
    /// Width and height of the first image.
    size: Option<(u32, u32)>,
    statistics: Option<Statistics>,
}

/// One set of samples: on disk, or to be drawn.
pub enum Setting {
    Opened(Box<Opened>),
    Drawn {
        model: Rc<Pretrained>,
        /// As it was named.
        path: String,
        classes: Vec<u32>,
        count: usize,
        options: SampleOptions,
    },
}

/// Opens what lies at `path`.
pub fn open(path: &Path, crop: Option<usize>) -> Result<Opened> {
    let is_npz = path.extension().is_some_and(|e| e == "npz");
    let statistics = if is_npz {
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
        path: path.display().to_string(),
        is_file: path.is_file(),
        size: size.or(made_by.and_then(|m| m.size)),
        images,
        statistics,
    })
}

/// The sets of samples to evaluate, one after the other. A run or a bundle is a model, anything else is on disk.
pub fn settings(args: &Args, crop: Option<usize>, device: &Device) -> Result<Vec<Setting>> {
    let path = &args.samples;
    let is_model = path.extension().is_some_and(|e| e == "safetensors")
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
    let setting = |options| Setting::Drawn {
        model: model.clone(),
        path: path.display().to_string(),
        classes: classes.clone(),
        count: args.sampling.num as usize,
        options,
    };
    Ok(all.into_iter().map(setting).collect())
}

impl Opened {
    pub fn facts(&self) -> Facts<'_> {
        Facts {
            path: &self.path,
            images: self.images.as_ref().map(Images::count),
            size: self.size,
            statistics: self.statistics.as_ref(),
        }
    }

    /// The side with its features, if its images are needed or are all it has.
    pub fn collect(
        &self,
        what: &str,
        networks: &[Box<dyn FeatureNetwork>],
        groups: Groups,
        keep: &dyn Fn(&str) -> bool,
        needs_images: bool,
        batch: usize,
    ) -> Result<Side> {
        let mut set = Set {
            path: self.path.clone(),
            kind: self.kind(),
            size: self.size,
            ..Set::default()
        };
        let mut features = None;
        if let Some(images) = &self.images
            && (needs_images || self.statistics.is_none())
        {
            let mut collector = Collector::new(networks, groups, |tap: &Tap| keep(tap.name));
            let mut progress = Progress::new(what, images.count() as u64, 0);
            images.each(batch, usize::MAX, &mut |images| {
                collector.images(&images)?;
                progress.set(collector.count() as u64, "");
                Ok(())
            })?;
            let found = collector.finish();
            set.images = Some(found.count);
            set.hash = found.pixels.clone();
            features = Some(found);
        }
        if self.is_file {
            set.hash = digest::sha256(Path::new(&self.path))?;
        }
        if let Some(made_by) = self.statistics.as_ref().and_then(|s| s.made_by.as_ref()) {
            set.images = set.images.or(Some(made_by.images));
        }
        set.name = known::name_of(&set.hash)?;
        Ok(Side {
            set,
            statistics: self.statistics.clone(),
            inception: place_of_inception(networks),
            features,
        })
    }

    fn kind(&self) -> &'static str {
        match (&self.images, &self.statistics) {
            (Some(_), Some(_)) => "statistics and images",
            (None, _) => "statistics",
            (Some(Images::Array { .. }), _) => "array of images",
            (Some(Images::Files { .. }), _) if self.is_file => "shard",
            (Some(Images::Files { .. }), _) => "folder",
        }
    }
}

impl Setting {
    pub fn facts(&self) -> Facts<'_> {
        match self {
            Setting::Opened(opened) => opened.facts(),
            Setting::Drawn {
                model, path, count, ..
            } => Facts {
                path,
                images: Some(*count),
                size: Some(size_of(model)),
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

    pub fn collect(
        &self,
        args: &Args,
        groups: Groups,
        networks: &[Box<dyn FeatureNetwork>],
        keep: &dyn Fn(&str) -> bool,
        needs_images: bool,
    ) -> Result<Side> {
        let batch = args.batch_size as usize;
        let (model, path, classes, count, options) = match self {
            Setting::Opened(opened) => {
                return opened.collect("samples", networks, groups, keep, needs_images, batch);
            }
            Setting::Drawn {
                model,
                path,
                classes,
                count,
                options,
            } => (model, path, classes, *count, *options),
        };
        let sampling = Sampling {
            model,
            classes: classes.clone(),
            count,
            seed: args.sampling.seed,
            options,
            batch,
        };
        let identity = sampling.identity()?;
        let hash = digest::of_bytes(identity.to_string().as_bytes());
        let work = match &args.sampling.work {
            // Of a sweep, a folder a setting.
            Some(work) if args.sampling.sweep.is_some() => work.join(&hash[..12]),
            Some(work) => work.clone(),
            None => PathBuf::from(format!("runs/eval-fid-{}", &hash[..12])),
        };
        let mut collector = Collector::new(networks, groups, |tap: &Tap| keep(tap.name));
        sampling.collect(&work, networks, &mut collector)?;
        let features = collector.finish();
        Ok(Side {
            set: Set {
                path: path.clone(),
                kind: "samples of a model",
                hash,
                name: None,
                images: Some(features.count),
                size: Some(size_of(model)),
                sampling: Some(identity),
            },
            statistics: None,
            inception: place_of_inception(networks),
            features: Some(features),
        })
    }
}

fn size_of(model: &Pretrained) -> (u32, u32) {
    let side = model.config.data.image_size as u32;
    (side, side)
}

pub fn place_of_inception(networks: &[Box<dyn FeatureNetwork>]) -> Option<usize> {
    networks.iter().position(|n| n.name() == inception::NAME)
}

/// Writes every tap's rows as f32 [N,D], by the tap's name.
pub fn save_features(path: &Path, side: &Side, networks: &[Box<dyn FeatureNetwork>]) -> Result<()> {
    atomic::write_with(path, |file| {
        let mut npz = NpzWriter::new(file);
        for (place, network) in networks.iter().enumerate() {
            for tap in network.taps() {
                let rows = side.rows(place, tap.name)?;
                npz.array(tap.name, Element::F32, &[rows.count(), rows.width])?;
                for row in rows.iter() {
                    let bytes: Vec<u8> = row.iter().flat_map(|x| x.to_le_bytes()).collect();
                    npz.write(&bytes)?;
                }
            }
        }
        npz.finish()?;
        Ok(())
    })
}
