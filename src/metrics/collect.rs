//! Collects features of a set of images in a single pass: moments always, rows only if a metric
//! needs every image's features.

use image::RgbImage;

use super::features::{FeatureNetwork, Rows, Tap};
use super::images::PixelHash;
use super::statistics::{GroupedMoments, Groups};
use crate::error::{Result, hinted};

/// What is kept for a tap.
pub struct TapFeatures {
    pub name: &'static str,
    pub width: usize,
    pub moments: GroupedMoments,
    /// All rows, if requested.
    pub rows: Option<Rows>,
}

/// Runs the networks on one set of images.
pub struct Collector<'a> {
    networks: &'a [Box<dyn FeatureNetwork>],
    /// One list per network.
    taps: Vec<Vec<TapFeatures>>,
    size: Option<(u32, u32)>,
    pixels: PixelHash,
    count: usize,
}

/// The features of a whole set.
pub struct SetFeatures {
    pub count: usize,
    /// Width and height, if images were seen.
    pub size: Option<(u32, u32)>,
    /// A hash of all pixels in order.
    pub pixels: String,
    taps: Vec<Vec<TapFeatures>>,
}

impl<'a> Collector<'a> {
    /// Moments in `groups`; rows for the taps that `keep` selects.
    pub fn new(
        networks: &'a [Box<dyn FeatureNetwork>],
        groups: Groups,
        keep: impl Fn(&Tap) -> bool,
    ) -> Self {
        let tap = |tap: &Tap| TapFeatures {
            name: tap.name,
            width: tap.width,
            moments: GroupedMoments::new(groups, tap.width),
            rows: keep(tap).then(|| Rows::empty(tap.width)),
        };
        let taps = networks
            .iter()
            .map(|network| network.taps().iter().map(tap).collect())
            .collect();
        Self {
            taps,
            networks,
            size: None,
            pixels: PixelHash::default(),
            count: 0,
        }
    }

    /// Number of images so far.
    pub fn count(&self) -> usize {
        self.count
    }

    /// The features of `images`, the next of the set, one matrix per tap; they are kept by
    /// [`Collector::rows`].
    pub fn features(&mut self, images: &[RgbImage]) -> Result<Vec<Rows>> {
        self.first(images);
        let pixels = &mut self.pixels;
        // Hashing takes as long as a GPU's features.
        std::thread::scope(|scope| {
            scope.spawn(|| images.iter().for_each(|image| pixels.add(image)));
            features(self.networks, images)
        })
    }

    /// Takes note of `images`, the next of the set, whose features another process computes.
    pub fn see(&mut self, images: &[RgbImage]) {
        self.first(images);
        images.iter().for_each(|image| self.pixels.add(image));
    }

    fn first(&mut self, images: &[RgbImage]) {
        if let Some(first) = images.first() {
            self.size.get_or_insert(first.dimensions());
        }
    }

    /// Keeps known features, one matrix per tap.
    pub fn rows(&mut self, features: &[Rows]) -> Result<()> {
        let count = features.first().map_or(0, Rows::count);
        for (tap, rows) in self.taps.iter_mut().flatten().zip(features) {
            check_features(rows, self.count)?;
            tap.moments.add(rows);
            if let Some(all) = &mut tap.rows {
                all.values.extend_from_slice(&rows.values);
            }
        }
        self.count += count;
        Ok(())
    }

    pub fn finish(self) -> SetFeatures {
        SetFeatures {
            count: self.count,
            size: self.size,
            pixels: self.pixels.finish(),
            taps: self.taps,
        }
    }
}

/// The features of `images`, one matrix per tap of all `networks`.
pub fn features(networks: &[Box<dyn FeatureNetwork>], images: &[RgbImage]) -> Result<Vec<Rows>> {
    let of_each = networks.iter().map(|network| network.features(images));
    let of_each = of_each.collect::<Result<Vec<_>>>()?;
    Ok(of_each.into_iter().flatten().collect())
}

/// Refuses features with a row that is not finite; the rows belong to the images from number
/// `first` on.
pub fn check_features(rows: &Rows, first: usize) -> Result<()> {
    let bad = |row: &[f32]| !row.iter().all(|x| x.is_finite());
    match rows.iter().position(bad) {
        None => Ok(()),
        Some(place) => Err(hinted(
            format!(
                "image number {} (from 0): its features are not finite",
                first + place
            ),
            "the weights are damaged, or belong to another network",
        )),
    }
}

impl SetFeatures {
    /// The tap `name` of network `network`, an index.
    pub fn tap(&self, network: usize, name: &str) -> Option<&TapFeatures> {
        self.taps.get(network)?.iter().find(|tap| tap.name == name)
    }
}
