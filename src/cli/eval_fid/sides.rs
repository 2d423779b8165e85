//! Opening the two sides of `eval-fid`, and collecting their features.

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use candle_core::Device;
use serde_json::json;

use super::super::part::Part;
use super::{Args, only_for_models};
use crate::error::{Context, Error, Result, hinted, said, usage};
use crate::interrupt::{self, Interrupt};
use crate::metrics::collect::{Collector, features};
use crate::metrics::feature_log::{self, FeatureLog};
use crate::metrics::features::Features;
use crate::metrics::images::{Images, is_npz};
use crate::metrics::inception;
use crate::metrics::known;
use crate::metrics::probe::Probe;
use crate::metrics::report::Set;
use crate::metrics::requirements::Facts;
use crate::metrics::sampled::Sampling;
use crate::metrics::side::{Labels, Side};
use crate::metrics::statistics::Groups;
use crate::metrics::stats_file::Statistics;
use crate::metrics::{FeatureNetwork, Tap};
use crate::sample::Pretrained;
use crate::store::npz::{Element, Npz, NpzWriter};
use crate::store::{atomic, builtin, digest};
use crate::telemetry::Progress;
use crate::world::World;

/// Samples to draw if --num is left out: the number behind FIDs in papers.
const DEFAULT_COUNT: u32 = 50_000;

/// A side that exists on disk: images, statistics, or both.
pub struct Opened {
    /// As given on the command line.
    path: String,
    place: PathBuf,
    images: Option<Images>,
    /// Width and height of the first image.
    size: Option<(u32, u32)>,
    statistics: Option<Statistics>,
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
        path: path.display().to_string(),
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
            path: path.display().to_string(),
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

    /// The side at rank 0, with its features, if its images are needed or are all it has: all ranks
    /// compute them.
    pub fn collect(
        &self,
        what: &str,
        networks: &[Box<dyn FeatureNetwork>],
        groups: Groups,
        keep: &dyn Fn(&str) -> bool,
        needs_images: bool,
        (batch, world): (usize, &World),
    ) -> Result<Option<Side>> {
        let mut set = Set {
            path: self.path.clone(),
            kind: self.kind(),
            size: self.size,
            ..Set::default()
        };
        let (mut features, mut labels) = (None, None);
        if let Some(images) = &self.images
            && (needs_images || self.statistics.is_none())
        {
            let mut collector = Collector::new(networks, groups, |tap: &Tap| keep(tap.name));
            let indices = self.features(what, images, &mut collector, networks, (batch, world))?;
            let found = collector.finish();
            set.images = Some(found.count);
            set.hash = found.pixels.clone();
            features = Some(found);
            labels = images.classes().map(|classes| Labels {
                classes: classes.clone(),
                indices,
            });
        }
        if !world.is_first() {
            return Ok(None);
        }
        if self.place.is_file() {
            set.hash = digest::sha256(&self.place)?;
        }
        if let Some(made_by) = self.statistics.as_ref().and_then(|s| s.made_by.as_ref()) {
            set.images = set.images.or(Some(made_by.images));
        }
        set.name = known::name_of(&set.hash)?;
        Ok(Some(Side {
            set,
            statistics: self.statistics.clone(),
            inception: place_of_inception(networks),
            features,
            labels,
        }))
    }

    /// Passes the features of all `images` to `collector` at rank 0, and returns their labels.
    fn features(
        &self,
        what: &str,
        images: &Images,
        collector: &mut Collector,
        networks: &[Box<dyn FeatureNetwork>],
        (batch, world): (usize, &World),
    ) -> Result<Vec<u32>> {
        let (count, batches) = (images.count(), images.count().div_ceil(batch));
        let range = |number: usize| number * batch..((number + 1) * batch).min(count);
        let mut progress = world
            .is_first()
            .then(|| Progress::new(what, count as u64, 0));
        let interrupt = Interrupt::listen()?;
        let mut archive = images.archive()?;
        let reader = RefCell::new(images.batches(&mut archive)?);
        let (collector, indices) = (RefCell::new(collector), RefCell::new(Vec::new()));
        // Rank 0 sees all images in order: their hash names the set.
        let read = |number: usize| {
            let (pictures, labels) = reader
                .borrow_mut()
                .read(&range(number).collect::<Vec<_>>())?;
            indices.borrow_mut().extend(labels);
            Ok::<_, Error>(pictures)
        };
        let stopped = world.parcels(
            0..batches,
            || interrupt.requested(),
            |number| {
                let pictures = read(number)?;
                let features = match world.is_first() {
                    true => collector.borrow_mut().features(&pictures),
                    false => features(networks, &pictures),
                };
                features.map(Features).with_context(|| self.path.clone())
            },
            |number, features: Features| {
                let mut collector = collector.borrow_mut();
                if number % world.size() != 0 {
                    collector.see(&read(number)?);
                }
                collector
                    .rows(&features.0)
                    .with_context(|| self.path.clone())?;
                if let Some(progress) = &mut progress {
                    progress.set(collector.count() as u64, "");
                }
                Ok(())
            },
        )?;
        if let Some(next) = stopped.filter(|next| *next < batches) {
            world.part()?;
            let done = range(next).start;
            let error = interrupt::stopped(
                format!(
                    "after {done} of {count} images of the {what}, {}",
                    self.path
                ),
                "nothing is kept; the same command starts from scratch".into(),
            );
            return Err(match world.is_first() {
                true => error,
                false => said(&error),
            });
        }
        if world.is_first() {
            reader.into_inner().end()?;
        }
        Ok(indices.into_inner())
    }

    fn kind(&self) -> &'static str {
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

    /// The features that are already known, if samples are drawn from a model: with those of a job
    /// array's parts, if there are any.
    ///
    /// Errors: a part is missing or not whole.
    pub fn log(&self, networks: &[Box<dyn FeatureNetwork>]) -> Result<Option<FeatureLog>> {
        let Setting::Drawn { sampling, work, .. } = self else {
            return Ok(None);
        };
        let mut log = FeatureLog::open(work, &sampling.stream(), networks)?;
        let parts = Part::all_in(work, "")?;
        if parts.is_empty() || log.count() >= sampling.count {
            return Ok(Some(log));
        }
        let (mut logs, mut lacking) = (Vec::new(), Vec::new());
        for part in parts {
            let all = sampling.count_of_part(part.index, part.count);
            let known = match work.join(part.name("")).is_dir() {
                true => {
                    let log = part_log(sampling, work, part, networks)?;
                    let known = log.count();
                    logs.push(log);
                    known
                }
                false => 0,
            };
            if known < all || logs.len() <= part.index {
                lacking.push((part, known, all));
            }
        }
        if let Some((first, ..)) = lacking.first() {
            let each = lacking
                .iter()
                .map(|(part, known, all)| format!("{part} ({known} of {all} samples)"));
            return Err(hinted(
                format!(
                    "{}: parts are not whole: {}",
                    work.display(),
                    each.collect::<Vec<_>>().join(", ")
                ),
                format!(
                    "the same command with --part {first} makes one whole; without the folders of parts, all samples are drawn here"
                ),
            ));
        }
        sampling.join(&mut logs, &mut log)?;
        Ok(Some(log))
    }

    /// Computes the features of one part, and keeps them for a command that joins all. Returns
    /// where, and of how many samples they are.
    pub fn collect_part(
        &self,
        part: Part,
        networks: &[Box<dyn FeatureNetwork>],
    ) -> Result<(PathBuf, usize)> {
        let Setting::Drawn { sampling, work, .. } = self else {
            return Err(usage("--part: no samples of a model", ""));
        };
        feature_log::claim(work, &sampling.stream())?;
        let mut log = part_log(sampling, work, part, networks)?;
        let Part { index, count } = part;
        sampling.collect_part(&mut log, networks, (index, count))?;
        Ok((
            work.join(part.name("")),
            sampling.count_of_part(index, count),
        ))
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

    /// The side at rank 0, whose features all ranks compute.
    pub fn collect(
        &self,
        log: Option<FeatureLog>,
        groups: Groups,
        networks: &[Box<dyn FeatureNetwork>],
        keep: &dyn Fn(&str) -> bool,
        needs_images: bool,
        (batch, world): (usize, &World),
    ) -> Result<Option<Side>> {
        let (path, sampling) = match self {
            Setting::Opened(opened) => {
                let shared = (batch, world);
                return opened.collect("samples", networks, groups, keep, needs_images, shared);
            }
            Setting::Drawn { path, sampling, .. } => (path, sampling),
        };
        // Classes alternate.
        let groups = Groups {
            period: sampling.classes.len(),
            ..groups
        };
        let mut collector = Collector::new(networks, groups, |tap: &Tap| keep(tap.name));
        sampling.collect(log, &mut collector, networks, world)?;
        if !world.is_first() {
            return Ok(None);
        }
        let features = collector.finish();
        let identity = sampling.identity();
        Ok(Some(Side {
            set: Set {
                path: path.clone(),
                kind: "samples of a model",
                hash: digest::of_bytes(identity.to_string().as_bytes()),
                name: None,
                images: Some(features.count),
                size: Some(size_of(&sampling.model)),
                sampling: Some(identity),
            },
            statistics: None,
            inception: place_of_inception(networks),
            features: Some(features),
            labels: Some(Labels {
                classes: sampling.model.classes.clone(),
                indices: (0..sampling.count).map(|i| sampling.label(i)).collect(),
            }),
        }))
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

/// The features of a part of the samples, in a folder of its own.
fn part_log(
    sampling: &Sampling,
    work: &Path,
    part: Part,
    networks: &[Box<dyn FeatureNetwork>],
) -> Result<FeatureLog> {
    let mut identity = sampling.stream();
    identity["part"] = json!(part.to_string());
    // It decides which samples are in the part.
    identity["batch size"] = json!(sampling.batch);
    FeatureLog::open(&work.join(part.name("")), &identity, networks)
}

fn size_of(model: &Pretrained) -> (u32, u32) {
    let side = model.config.data.image_size as u32;
    (side, side)
}

pub fn place_of_inception(networks: &[Box<dyn FeatureNetwork>]) -> Option<usize> {
    networks.iter().position(|n| n.name() == inception::NAME)
}

/// Writes the rows of every tap as f32 [N,D], under the tap's name.
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
