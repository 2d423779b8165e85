//! Statistics on disk: pytorch-fid's `.npz` (`mu` [D], `sigma` [D,D]) and ADM's (also `mu_s`,
//! `sigma_s` of the spatial features, and images in `arr_0`).
//!
//! Files that this program writes also hold `rdpm`: JSON that names the network, weights and
//! resize. Other tools ignore it.

use std::io::{Seek, Write};
use std::path::Path;

use faer::Mat;
use serde::{Deserialize, Serialize};

use super::images::Images;
use super::statistics::Gaussian;
use crate::error::{Context, Result, hinted};
use crate::store::atomic;
use crate::store::npz::{Element, Npz, NpzWriter};

/// Number of images in ADM's reference files.
const REFERENCE_IMAGES: usize = 10_000;

/// What made the statistics.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MadeBy {
    pub network: String,
    pub weights: String,
    pub preprocess: String,
    pub images: usize,
    /// Width and height.
    pub size: Option<(u32, u32)>,
    pub version: String,
}

/// The statistics of a set of images.
#[derive(Debug, Clone)]
pub struct Statistics {
    pub fid: Gaussian,
    /// sFID's statistics, in ADM's files.
    pub spatial: Option<Gaussian>,
    /// Unknown for files of other tools.
    pub made_by: Option<MadeBy>,
}

impl Statistics {
    /// Reads the file at `path`; none if it has no `mu`.
    ///
    /// Errors: arrays whose shapes do not match, that are not finite, or that are not a covariance.
    pub fn read(path: &Path) -> Result<Option<Self>> {
        let mut npz = Npz::open(path)?;
        if !npz.has("mu") {
            return Ok(None);
        }
        let fid = gaussian(&mut npz, path, "mu", "sigma")?;
        let spatial = match npz.has("mu_s") {
            true => Some(gaussian(&mut npz, path, "mu_s", "sigma_s")?),
            false => None,
        };
        let mut made_by = None;
        if npz.has("rdpm") {
            let mut text = Vec::new();
            npz.bytes("rdpm", usize::MAX, 1 << 12, |piece| {
                text.extend_from_slice(piece);
                Ok(())
            })?;
            let damaged = || format!("{}: array `rdpm`", path.display());
            made_by = Some(serde_json::from_slice(&text).with_context(damaged)?);
        }
        Ok(Some(Self {
            fid,
            spatial,
            made_by,
        }))
    }

    /// Writes the statistics, with up to 10,000 of `images` of `size` (width, height) in `arr_0`,
    /// if there are any: ADM's evaluator computes precision and recall from them.
    pub fn write(&self, path: &Path, images: Option<(&Images, (u32, u32))>) -> Result<()> {
        atomic::write_with(path, |file| self.fill(file, images))
    }

    fn fill(&self, file: impl Write + Seek, images: Option<(&Images, (u32, u32))>) -> Result<()> {
        let mut npz = NpzWriter::new(file);
        let spatial = self.spatial.as_ref().map(|s| ("mu_s", "sigma_s", s));
        for (mu, sigma, gaussian) in [("mu", "sigma", &self.fid)].into_iter().chain(spatial) {
            let width = gaussian.width();
            npz.array(mu, Element::F64, &[width])?;
            for x in &gaussian.mean {
                npz.write(&x.to_le_bytes())?;
            }
            npz.array(sigma, Element::F64, &[width, width])?;
            for j in 0..width {
                // Symmetric: a column equals a row.
                let row = gaussian.covariance.col(j).iter();
                let bytes: Vec<u8> = row.flat_map(|x| x.to_le_bytes()).collect();
                npz.write(&bytes)?;
            }
        }
        if let Some(made_by) = &self.made_by {
            let text = serde_json::to_vec(made_by)?;
            npz.array("rdpm", Element::U8, &[text.len()])?;
            npz.write(&text)?;
        }
        if let Some((images, (width, height))) = images {
            let count = images.count().min(REFERENCE_IMAGES);
            npz.array(
                "arr_0",
                Element::U8,
                &[count, height as usize, width as usize, 3],
            )?;
            images.each(64, count, &mut |batch, _| {
                batch.iter().try_for_each(|image| npz.write(image.as_raw()))
            })?;
        }
        npz.finish()?;
        Ok(())
    }
}

fn gaussian(npz: &mut Npz, path: &Path, mu: &str, sigma: &str) -> Result<Gaussian> {
    let (mean, covariance) = (npz.floats(mu)?, npz.floats(sigma)?);
    let (d, name) = (mean.values.len(), path.display());
    if mean.shape != [d] || covariance.shape != [d, d] || d == 0 {
        return Err(hinted(
            format!(
                "{name}: expected `{mu}` [D] and `{sigma}` [D,D], found {:?} and {:?}",
                mean.shape, covariance.shape
            ),
            "make the statistics again: rdpm eval-fid … --save-stats FILE.npz",
        ));
    }
    let at = |i: usize, j: usize| covariance.values[i * d + j];
    let gaussian = Gaussian {
        mean: mean.values,
        covariance: Mat::from_fn(d, d, |i, j| 0.5 * (at(i, j) + at(j, i))),
    };
    gaussian.check(&format!("{name}: `{mu}`, `{sigma}`"))?;
    if let Some(why) = no_covariance(&at, d) {
        return Err(hinted(
            format!("{name}: `{sigma}` is not a covariance: {why}"),
            "the file is damaged, or `sigma` is something else: make the statistics again",
        ));
    }
    Ok(gaussian)
}

/// Why the matrix cannot be a covariance of `d` dimensions, allowing for rounding.
fn no_covariance(at: &impl Fn(usize, usize) -> f64, d: usize) -> Option<String> {
    let largest = (0..d).map(|i| at(i, i).abs()).fold(0.0, f64::max);
    // The variance of a constant feature may be slightly negative because of rounding.
    if let Some(i) = (0..d).find(|&i| at(i, i) < -1e-6 * largest) {
        return Some(format!("the variance of dimension {i} is {}", at(i, i)));
    }
    let rounding = 1e-3 * largest;
    for i in 0..d {
        for j in 0..i {
            if (at(i, j) - at(j, i)).abs() > rounding {
                return Some("it is not symmetric".into());
            }
            if at(i, j).abs() > (at(i, i) * at(j, j)).max(0.0).sqrt() + rounding {
                return Some(format!(
                    "{} of dimensions {j} and {i}, whose variances are {} and {}",
                    at(i, j),
                    at(j, j),
                    at(i, i)
                ));
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use image::RgbImage;

    use super::*;
    use crate::error::report;

    fn of_width(d: usize) -> Gaussian {
        Gaussian {
            mean: (0..d).map(|i| i as f64 + 0.25).collect(),
            covariance: Mat::from_fn(d, d, |i, j| 1.0 / (1 + i + j) as f64),
        }
    }

    #[test]
    fn what_is_written_is_read() -> Result<()> {
        let root = tempfile::tempdir()?;
        let folder = root.path().join("images");
        std::fs::create_dir(&folder)?;
        for i in 0..3u8 {
            RgbImage::from_pixel(5, 4, image::Rgb([i; 3])).save(folder.join(format!("{i}.png")))?;
        }
        let images = Images::open(&folder, None)?;
        let made_by = MadeBy {
            network: "inception".into(),
            weights: "abc".into(),
            preprocess: "adm".into(),
            images: 3,
            size: Some((5, 4)),
            version: "1".into(),
        };
        let path = root.path().join("stats.npz");
        let written = Statistics {
            fid: of_width(4),
            spatial: Some(of_width(3)),
            made_by: Some(made_by.clone()),
        };
        written.write(&path, Some((&images, (5, 4))))?;
        let read = Statistics::read(&path)?.expect("it has statistics");
        assert_eq!(read.fid.mean, written.fid.mean);
        assert_eq!(read.fid.covariance, written.fid.covariance);
        assert_eq!(read.spatial.map(|s| s.width()), Some(3));
        assert_eq!(read.made_by, Some(made_by));
        assert_eq!(Images::open(&path, None)?.count(), 3);
        Ok(())
    }

    #[test]
    fn statistics_that_are_none_are_refused_by_name() -> Result<()> {
        let root = tempfile::tempdir()?;
        let path = root.path().join("bad.npz");
        let write = |mu: &[f64], shape: &[usize], sigma: &[f64]| -> Result<String> {
            let mut npz = NpzWriter::new(File::create(&path)?);
            for (name, shape, values) in [("mu", &[mu.len()][..], mu), ("sigma", shape, sigma)] {
                npz.array(name, Element::F64, shape)?;
                for x in values {
                    npz.write(&x.to_le_bytes())?;
                }
            }
            npz.finish()?;
            let error = Statistics::read(&path).err();
            Ok(error.map_or(String::new(), |e| report(&e).0))
        };
        let nan = write(&[0.0, 1.0], &[2, 2], &[1.0, 0.0, 0.0, f64::NAN])?;
        assert!(nan.contains("not finite"), "{nan}");
        let shape = write(&[0.0, 1.0], &[4], &[1.0, 0.0, 0.0, 1.0])?;
        assert!(
            shape.contains("expected `mu` [D] and `sigma` [D,D]"),
            "{shape}"
        );
        let askew = write(&[0.0, 1.0], &[2, 2], &[1.0, 0.5, 0.0, 1.0])?;
        assert!(askew.contains("not symmetric"), "{askew}");
        let negative = write(&[0.0, 1.0], &[2, 2], &[1.0, 0.0, 0.0, -0.5])?;
        let why = "the variance of dimension 1 is -0.5";
        assert!(
            negative.contains(why) && negative.contains("hint: "),
            "{negative}"
        );
        let beyond = write(&[0.0, 1.0], &[2, 2], &[1.0, 3.0, 3.0, 4.0])?;
        assert!(beyond.contains("3 of dimensions 0 and 1"), "{beyond}");
        let mean = write(&[0.0, f64::NAN], &[2, 2], &[1.0, 0.0, 0.0, 1.0])?;
        assert!(mean.contains("not finite"), "{mean}");
        assert_eq!(write(&[0.0, 1.0], &[2, 2], &[1.0, 0.5, 0.5, 1.0])?, "");
        Ok(())
    }
}
