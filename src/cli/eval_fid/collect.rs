//! Collecting the features of the two sides of `eval-fid`, all ranks together, and saving them.

use std::cell::RefCell;
use std::path::{Path, PathBuf};

use serde_json::json;

use super::super::part::Part;
use super::sides::{Opened, Setting, size_of};
use crate::data::printed;
use crate::error::{Context, Error, Result, hinted, said, usage};
use crate::interrupt::{self, Interrupt};
use crate::metrics::collect::{Collector, features};
use crate::metrics::feature_log::{self, FeatureLog};
use crate::metrics::features::Features;
use crate::metrics::images::Images;
use crate::metrics::inception;
use crate::metrics::known;
use crate::metrics::report::Set;
use crate::metrics::sampled::Sampling;
use crate::metrics::side::{Labels, Side};
use crate::metrics::statistics::Groups;
use crate::metrics::{FeatureNetwork, Tap};
use crate::store::npz::{Element, NpzWriter};
use crate::store::{atomic, digest};
use crate::telemetry::Progress;
use crate::world::World;

impl Opened {
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
}

impl Setting {
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
                    printed(work.as_os_str()),
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
