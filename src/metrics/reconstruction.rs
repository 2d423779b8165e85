//! How well a tokenizer reconstructs: each image compared with its reconstruction (PSNR, SSIM,
//! LPIPS), and the set of originals compared with the set of reconstructions (rFID, rsFID).
//!
//! All metrics use 8-bit images, as they would be written, in batches of images of equal size.

use candle_core::Device;
use image::RgbImage;
use rayon::prelude::*;

use super::collect::check_features;
use super::frechet::Reference;
use super::statistics::Moments;
use super::{FeatureNetwork, Inception, Rows, psnr, ssim};
use crate::error::Result;
use crate::model::Lpips;
use crate::sample::from_rgb;

/// The mean of a metric over images.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Mean {
    pub count: usize,
    sum: f64,
    squares: f64,
    /// The first image whose value is not finite; then the mean is not finite either.
    pub bad: Option<usize>,
}

impl Mean {
    pub fn add(&mut self, value: f64) {
        if !value.is_finite() {
            self.bad.get_or_insert(self.count);
        }
        self.count += 1;
        self.sum += value;
        self.squares += value * value;
    }

    pub fn value(self) -> f64 {
        self.sum / self.count as f64
    }

    /// The 95 % confidence interval: the mean ± 1.96 standard errors. None for a single image, or
    /// if the mean is not finite.
    pub fn interval(self) -> Option<[f64; 2]> {
        if self.bad.is_some() {
            return None;
        }
        let (n, mean) = (self.count as f64, self.value());
        let variance = (self.squares - n * mean * mean).max(0.0) / (n - 1.0);
        let half = 1.96 * (variance / n).sqrt();
        half.is_finite().then_some([mean - half, mean + half])
    }
}

/// The networks and metrics that were requested.
pub struct Judge {
    /// Gives FID's features, and sFID's if requested.
    pub inception: Option<Inception>,
    pub lpips: Option<Lpips>,
    pub psnr: bool,
    pub ssim: bool,
    pub device: Device,
}

/// Images whose features for LPIPS are on a GPU at a time, in f32.
const LPIPS_IMAGES: usize = 16;

/// The quality of one set of reconstructions.
#[derive(Debug, Clone, Default)]
pub struct Quality {
    pub psnr: Mean,
    pub ssim: Mean,
    pub lpips: Mean,
    /// The moments of each of Inception's outputs.
    pub features: Vec<Moments>,
}

/// What each of a batch of images contributes to a [`Quality`]; a metric that was not requested has
/// no figures.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Compared {
    pub psnr: Vec<f64>,
    pub ssim: Vec<f64>,
    pub lpips: Vec<f64>,
    /// Inception's outputs, a matrix each.
    pub features: Vec<Rows>,
}

impl Quality {
    /// Adds the batch that follows those before it.
    ///
    /// Errors: an image's features are not finite.
    pub fn add(&mut self, batch: &Compared) -> Result<()> {
        for (mean, figures) in [
            (&mut self.psnr, &batch.psnr),
            (&mut self.ssim, &batch.ssim),
            (&mut self.lpips, &batch.lpips),
        ] {
            figures.iter().for_each(|figure| mean.add(*figure));
        }
        for rows in &batch.features {
            check_features(rows, self.features.first().map_or(0, Moments::count))?;
        }
        if self.features.is_empty() {
            let empty = |rows: &Rows| Moments::new(rows.width);
            self.features = batch.features.iter().map(empty).collect();
        }
        for (moments, rows) in self.features.iter_mut().zip(&batch.features) {
            rows.iter().for_each(|row| moments.add(row));
        }
        Ok(())
    }
}

impl Judge {
    /// Compares a batch of `images` with their `originals`.
    pub fn compare(&self, originals: &[RgbImage], images: &[RgbImage]) -> Result<Compared> {
        let pairs = || originals.par_iter().zip(images);
        let mut compared = Compared::default();
        if self.psnr {
            compared.psnr = pairs().map(|(a, b)| psnr(a, b)).collect();
        }
        if self.ssim {
            compared.ssim = pairs().map(|(a, b)| ssim(a, b)).collect::<Result<_>>()?;
        }
        if let Some(lpips) = &self.lpips {
            // On a CPU one by one, where the maps of one stay in the caches.
            let together = if self.device.is_cpu() {
                1
            } else {
                LPIPS_IMAGES
            };
            for (a, b) in originals.chunks(together).zip(images.chunks(together)) {
                let [a, b] = [a, b].map(|images| from_rgb(images, &self.device));
                let found = lpips.distances(&a?, &b?)?;
                compared.lpips.extend(found.into_iter().map(f64::from));
            }
        }
        compared.features = self.features(images)?;
        Ok(compared)
    }

    /// Like [`Judge::compare`], for steps before the last: PSNR and features only.
    pub fn compare_step(&self, originals: &[RgbImage], images: &[RgbImage]) -> Result<Compared> {
        let pairs = originals.par_iter().zip(images);
        Ok(Compared {
            psnr: pairs.map(|(a, b)| psnr(a, b)).collect(),
            features: self.features(images)?,
            ..Compared::default()
        })
    }

    /// Inception's features of `images`, if requested, a matrix for each of its outputs.
    pub fn features(&self, images: &[RgbImage]) -> Result<Vec<Rows>> {
        match &self.inception {
            Some(inception) => inception.features(images),
            None => Ok(Vec::new()),
        }
    }
}

/// The originals' features, which every set of reconstructions is compared with.
pub struct Originals(Vec<Reference>);

impl Originals {
    pub fn new(originals: &Quality) -> Result<Self> {
        let features = originals.features.iter();
        features
            .map(|moments| Reference::new(&moments.gaussian()?))
            .collect::<Result<_>>()
            .map(Self)
    }

    /// The number of Inception outputs that are compared.
    pub fn outputs(&self) -> usize {
        self.0.len()
    }

    /// The Fréchet distance for Inception output number `output`.
    pub fn distance(&self, output: usize, images: &Quality) -> Result<f64> {
        self.0[output].distance(&images.features[output].gaussian()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mean_has_an_interval_of_its_standard_error() {
        let mut mean = Mean::default();
        [1.0, 2.0, 3.0, 6.0].into_iter().for_each(|x| mean.add(x));
        // s² = 14/3, s/√4 = 1.0801
        let [low, high] = mean.interval().unwrap();
        assert_eq!((mean.value(), mean.count), (3.0, 4));
        assert!(
            (high - 3.0 - 1.96 * 1.080_123_449_7).abs() < 1e-9 && (low + high - 6.0).abs() < 1e-12
        );
        let mut one = Mean::default();
        one.add(2.0);
        assert_eq!(one.interval(), None);
    }

    #[test]
    fn a_mean_with_a_bad_figure_is_no_figure_and_says_whose_it_was() {
        for bad in [f64::NAN, f64::INFINITY] {
            let mut mean = Mean::default();
            [1.0, 2.0, bad, 3.0, bad]
                .into_iter()
                .for_each(|x| mean.add(x));
            assert!(!mean.value().is_finite());
            assert_eq!((mean.bad, mean.interval()), (Some(2), None));
        }
    }

    #[test]
    fn noise_costs_every_figure_and_equal_images_cost_none() -> Result<()> {
        let judge = Judge {
            inception: None,
            lpips: None,
            psnr: true,
            ssim: true,
            device: Device::Cpu,
        };
        let image = RgbImage::from_fn(16, 12, |x, y| image::Rgb([(x * 9) as u8, (y * 9) as u8, 7]));
        let mut worse = image.clone();
        worse.pixels_mut().step_by(3).for_each(|p| p[1] ^= 31);
        let mut quality = [Quality::default(), Quality::default()];
        let originals = [image.clone(), image.clone()];
        quality[0].add(&judge.compare(&originals, &originals)?)?;
        quality[1].add(&judge.compare(&originals, &[image, worse])?)?;
        let [equal, noisy] = &quality;
        assert_eq!((equal.psnr.value(), equal.ssim.count), (100.0, 2));
        assert!((equal.ssim.value() - 1.0).abs() < 1e-12);
        assert!(noisy.psnr.value() < 70.0 && noisy.ssim.value() < 0.99);
        Ok(())
    }
}
