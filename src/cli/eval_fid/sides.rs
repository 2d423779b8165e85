//! Opening the two sides of `eval-fid`, and collecting their features.

use std::path::{Path, PathBuf};

use candle_core::Device;

use super::{Args, only_for_models};
use crate::error::{Result, usage};
use crate::metrics::collect::Collector;
use crate::metrics::evaluate::Options;
use crate::metrics::images::Images;
use crate::metrics::inception;
use crate::metrics::known;
use crate::metrics::report::Set;
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
    path: PathBuf,
    images: Option<Images>,
    statistics: Option<Statistics>,
}

/// The samples: on disk, or to be drawn.
pub enum Samples {
    Opened(Box<Opened>),
    Model(Box<Pretrained>),
}

/// One set of samples of a sweep.
pub enum Setting {
    Opened(Box<Opened>),
    Model(std::rc::Rc<Pretrained>, SampleOptions),
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
    Ok(Opened {
        path: path.to_path_buf(),
        images,
        statistics,
    })
}

/// Opens --samples: a run or a bundle is a model, anything else is on disk.
pub fn open_samples(args: &Args, crop: Option<usize>, device: &Device) -> Result<Samples> {
    let path = &args.samples;
    let is_model = path.extension().is_some_and(|e| e == "safetensors")
        || path.join("config.toml").is_file()
        || path.join("state.json").is_file();
    if is_model {
        let model = Pretrained::open(Some(path), device)?;
        model.generator()?;
        return Ok(Samples::Model(Box::new(model)));
    }
    only_for_models(args)?;
    Ok(Samples::Opened(Box::new(open(path, crop)?)))
}

impl Samples {
    pub fn has_images(&self) -> bool {
        match self {
            Samples::Opened(opened) => opened.has_images(),
            Samples::Model(_) => true,
        }
    }

    pub fn has_spatial(&self) -> bool {
        match self {
            Samples::Opened(opened) => opened.has_spatial(),
            Samples::Model(_) => true,
        }
    }
}

/// The sets of samples to evaluate, one after the other.
pub fn settings(args: &Args, samples: Samples) -> Result<Vec<Setting>> {
    let model = match samples {
        Samples::Opened(opened) => return Ok(vec![Setting::Opened(opened)]),
        Samples::Model(model) => std::rc::Rc::new(*model),
    };
    let options = args.drawing.options(&model.config.sample)?;
    let settings = match &args.sampling.sweep {
        Some(sweep) => sweep.apply(&options)?,
        None => vec![options],
    };
    if settings.len() > 1
        && (args.details.save_stats.is_some() || args.details.save_features.is_some())
    {
        return Err(usage(
            "--save-stats and --save-features write the samples of one setting",
            "leave out --sweep",
        ));
    }
    Ok(settings
        .into_iter()
        .map(|options| Setting::Model(model.clone(), options))
        .collect())
}

impl Opened {
    pub fn has_images(&self) -> bool {
        self.images.is_some()
    }

    pub fn has_spatial(&self) -> bool {
        self.statistics.as_ref().is_none_or(|s| s.spatial.is_some())
    }

    /// Refuses statistics of features of other widths than `dims`, before anything is computed.
    pub fn check_width(&self, dims: usize) -> Result<()> {
        match &self.statistics {
            Some(statistics) if statistics.fid.width() != dims => Err(usage(
                format!(
                    "{}: statistics of {} dimensions, --dims is {dims}",
                    self.path.display(),
                    statistics.fid.width()
                ),
                "give --dims of the statistics",
            )),
            _ => Ok(()),
        }
    }

    /// Refuses samples whose figure is of statistics: groups of them cannot be left out.
    pub fn check_interval(&self) -> Result<()> {
        match &self.statistics {
            Some(_) => Err(usage(
                format!(
                    "--interval: {} holds statistics, of which no group of samples can be left out",
                    self.path.display()
                ),
                "leave out --interval, or name the samples' images; the reference may be statistics",
            )),
            None => Ok(()),
        }
    }

    /// The side with its features, if its images are needed or are all it has.
    pub fn collect(
        self,
        what: &str,
        networks: &[Box<dyn FeatureNetwork>],
        groups: Groups,
        keep: &dyn Fn(&str) -> bool,
        needs_images: bool,
        batch: usize,
    ) -> Result<Side> {
        let mut set = Set {
            path: self.path.display().to_string(),
            kind: self.kind(),
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
            (set.images, set.size) = (Some(found.count), found.size);
            set.hash = found.pixels.clone();
            features = Some(found);
        }
        if self.path.is_file() {
            set.hash = digest::sha256(&self.path)?;
        }
        if let Some(made_by) = self.statistics.as_ref().and_then(|s| s.made_by.as_ref()) {
            set.images = set.images.or(Some(made_by.images));
            set.size = set.size.or(made_by.size);
        }
        set.name = known::name_of(&set.hash)?;
        Ok(Side {
            set,
            statistics: self.statistics,
            inception: place_of_inception(networks),
            features,
        })
    }

    fn kind(&self) -> &'static str {
        match (&self.images, &self.statistics) {
            (Some(_), Some(_)) => "statistics and images",
            (None, _) => "statistics",
            (Some(Images::Array { .. }), _) => "array of images",
            (Some(Images::Files { .. }), _) if self.path.is_dir() => "folder",
            (Some(Images::Files { .. }), _) => "shard",
        }
    }
}

impl Setting {
    pub fn collect(
        self,
        args: &Args,
        options: &Options,
        networks: &[Box<dyn FeatureNetwork>],
        keep: &dyn Fn(&str) -> bool,
        needs_images: bool,
    ) -> Result<Side> {
        let batch = args.batch_size as usize;
        let (model, drawing) = match self {
            Setting::Opened(opened) => {
                return opened.collect(
                    "samples",
                    networks,
                    options.groups(),
                    keep,
                    needs_images,
                    batch,
                );
            }
            Setting::Model(model, drawing) => (model, drawing),
        };
        let classes = match &args.sampling.class {
            Some(class) => model.classes.resolve(class)?,
            None if model.classes.is_empty() => vec![0],
            None => (0..model.classes.len() as u32).collect(),
        };
        let sampling = Sampling {
            model: &model,
            classes,
            count: args.sampling.num as usize,
            seed: args.sampling.seed,
            options: drawing,
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
        let mut collector = Collector::new(networks, options.groups(), |tap: &Tap| keep(tap.name));
        sampling.collect(&work, networks, &mut collector)?;
        let features = collector.finish();
        let side = model.config.data.image_size as u32;
        Ok(Side {
            set: Set {
                path: model.path.display().to_string(),
                kind: "samples of a model",
                hash,
                name: None,
                images: Some(features.count),
                size: Some((side, side)),
                sampling: Some(identity),
            },
            statistics: None,
            inception: place_of_inception(networks),
            features: Some(features),
        })
    }
}

pub fn place_of_inception(networks: &[Box<dyn FeatureNetwork>]) -> Option<usize> {
    networks.iter().position(|n| n.name() == inception::NAME)
}

/// Writes `statistics`, with the images of `samples` for ADM's evaluator where they lie on disk.
pub fn save_statistics(
    path: &Path,
    statistics: &Statistics,
    samples: &Path,
    crop: Option<u32>,
    size: Option<(u32, u32)>,
) -> Result<()> {
    let is_model = samples.extension().is_some_and(|e| e == "safetensors")
        || samples.join("config.toml").is_file();
    let images = match (&statistics.spatial, size) {
        (Some(_), Some(size)) if !is_model => open(samples, crop.map(|c| c as usize))?
            .images
            .map(|images| (images, size)),
        _ => None,
    };
    let images = images.as_ref().map(|(images, size)| (images, *size));
    statistics.write(path, images)
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
