//! Sets of images in a fixed order and of one size: a folder, tar shards, an ADM `.npz`.

use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use image::RgbImage;
use rayon::prelude::*;
use sha2::{Digest, Sha256};

use crate::config::Crop;
use crate::data::augment::center_crop;
use crate::data::{self, Classes, Example, Source};
use crate::error::{self, Context, Error, Result, hinted, rehinted};
use crate::store::digest::hex;
use crate::store::foreign;
use crate::store::npz::Npz;

/// Where a set's images come from.
pub enum Images {
    /// A folder, shards, or single files.
    Files {
        source: Arc<dyn Source>,
        /// ADM's center crop to this size.
        crop: Option<usize>,
    },
    /// `arr_0` u8 [N,H,W,3] of an `.npz`.
    Array { path: PathBuf, shape: [usize; 4] },
}

/// Receives images in order, a batch at a time, with their labels: indices of
/// [`Images::classes`], empty for an array.
pub type Take<'a> = dyn FnMut(Vec<RgbImage>, &[u32]) -> Result<()> + 'a;

impl Images {
    /// Opens the images at `path`; `crop` is for files of any size.
    ///
    /// Errors: there is nothing at `path`, or no image in it; an `.npz` without images.
    pub fn open(path: &Path, crop: Option<usize>) -> Result<Self> {
        if is_npz(path) {
            return Self::array(path);
        }
        // Data of other kinds is recognised by its suffix, so a file that is none of these must be
        // named here.
        if path.is_file()
            && let Some(kind @ (foreign::NPY | foreign::TORCH)) = foreign::of(path)
        {
            return Err(hinted(
                format!(
                    "{} is {}; expected a folder, a tar shard, an image or an .npz",
                    path.display(),
                    kind.name
                ),
                match kind {
                    foreign::NPY => {
                        "numpy.savez(FILE, images) writes an .npz of them, u8 [N,H,W,3]"
                    }
                    _ => "name images; samples may also be a run or a bundle",
                },
            ));
        }
        let source = data::open(&[data::printed(path.as_os_str())], false).map_err(own_remedy)?;
        if let Some(size) = crop {
            source.serve(size, Crop::Center)?;
        }
        Ok(Images::Files { source, crop })
    }

    fn array(path: &Path) -> Result<Self> {
        let (element, shape) = Npz::open(path)?.describe("arr_0")?;
        match (element.as_str(), &shape[..]) {
            ("|u1" | "<u1" | ">u1", &[n, h, w, 3]) if n * h * w > 0 => Ok(Images::Array {
                path: path.to_path_buf(),
                shape: [n, h, w, 3],
            }),
            _ => Err(hinted(
                format!(
                    "{}: expected images u8 [N,H,W,3] in `arr_0`, found `{element}` {shape:?}",
                    path.display()
                ),
                "`rdpm sample --out FILE.npz` writes such a file",
            )),
        }
    }

    /// N.
    pub fn count(&self) -> usize {
        match self {
            Images::Files { source, .. } => source.len(),
            Images::Array { shape, .. } => shape[0],
        }
    }

    /// What the labels stand for; none where images have no labels by name.
    pub fn classes(&self) -> Option<&Classes> {
        match self {
            Images::Files { source, .. } => Some(source.classes()).filter(|c| !c.is_empty()),
            Images::Array { .. } => None,
        }
    }

    /// Width and height of the first image.
    pub fn size(&self) -> Result<(u32, u32)> {
        match self {
            Images::Files { source, crop } => Ok(one(&**source, *crop, 0)?.image.dimensions()),
            Images::Array { shape, .. } => Ok((shape[2] as u32, shape[1] as u32)),
        }
    }

    /// Passes all images, or `limit` of them, to `take`, at most `batch` at a time.
    ///
    /// The `limit` images are evenly spaced: from a set sorted by class, all classes.
    ///
    /// Errors: an image that cannot be read, or that has another size than the first.
    pub fn each(&self, batch: usize, limit: usize, take: &mut Take) -> Result<()> {
        let count = self.count();
        let limit = count.min(limit);
        let mut archive = self.archive()?;
        let mut batches = self.batches(&mut archive)?;
        for start in (0..limit).step_by(batch) {
            let chosen = (start..limit.min(start + batch)).map(|i| spread(i, count, limit));
            let (images, labels) = batches.read(&chosen.collect::<Vec<_>>())?;
            take(images, &labels)?;
        }
        batches.end()
    }
}

/// Batches of a set of images, read in ascending order.
pub struct Batches<'a> {
    images: &'a Images,
    /// The bytes of an array, from the next image on, whose number is `at`.
    stream: Option<Box<dyn Read + 'a>>,
    at: usize,
    size: Option<(u32, u32)>,
}

impl Images {
    /// The archive that [`Images::batches`] reads an array from.
    pub fn archive(&self) -> Result<Option<Npz>> {
        match self {
            Images::Files { .. } => Ok(None),
            Images::Array { path, .. } => Npz::open(path).map(Some),
        }
    }

    /// Errors: an array cannot be read.
    pub fn batches<'a>(&'a self, archive: &'a mut Option<Npz>) -> Result<Batches<'a>> {
        let stream = match (self, archive) {
            (Images::Array { path, shape }, Some(npz)) => {
                let stream = npz.stream("arr_0", shape);
                Some(stream.with_context(|| format!("{}: array `arr_0`", path.display()))?)
            }
            _ => None,
        };
        Ok(Batches {
            images: self,
            stream,
            at: 0,
            size: None,
        })
    }
}

impl Batches<'_> {
    /// The images of these numbers, which rise and of which none was read yet, and their labels as
    /// in [`Images::each`].
    ///
    /// Errors: an image that cannot be read, or that has another size than the first.
    pub fn read(&mut self, numbers: &[usize]) -> Result<(Vec<RgbImage>, Vec<u32>)> {
        match self.images {
            Images::Files { source, crop } => {
                let read = |number: &usize| one(&**source, *crop, *number);
                let examples: Vec<_> = numbers.par_iter().map(read).collect::<Result<_>>()?;
                for example in &examples {
                    same_size(&example.key, &example.image, &mut self.size)?;
                }
                let labels = examples.iter().map(|example| example.label).collect();
                Ok((examples.into_iter().map(|e| e.image).collect(), labels))
            }
            Images::Array { path, shape } => {
                let [_, height, width, _] = *shape;
                let picture = height * width * 3;
                let stream = self.stream.as_mut().context("no array was opened")?;
                let mut at = self.at;
                let mut one = |number: usize| -> Result<RgbImage> {
                    let passed = ((number - at) * picture) as u64;
                    io::copy(&mut stream.take(passed), &mut io::sink())?;
                    at = number + 1;
                    let mut bytes = vec![0; picture];
                    stream.read_exact(&mut bytes)?;
                    let image = RgbImage::from_raw(width as u32, height as u32, bytes);
                    image.context("an image of the wrong size")
                };
                let images: Result<_> = numbers.iter().map(|number| one(*number)).collect();
                self.at = at;
                Ok((images.map_err(|e| damaged(path, &e))?, Vec::new()))
            }
        }
    }

    /// Compares an array's checksum.
    pub fn end(mut self) -> Result<()> {
        match (self.images, &mut self.stream) {
            (Images::Array { path, .. }, Some(stream)) => {
                let rest = io::copy(stream, &mut io::sink());
                rest.map(drop).map_err(|e| damaged(path, &e.into()))
            }
            _ => Ok(()),
        }
    }
}

fn damaged(path: &Path, error: &Error) -> Error {
    hinted(
        format!(
            "{}: array `arr_0`: it is damaged, or ends early ({error})",
            path.display()
        ),
        "copy or write it again",
    )
}

/// Index `i` of `limit` evenly spaced indices in 0..count.
///
/// Both the saved images and the compared features are selected by this function, so that metrics
/// of saved statistics match those of their images.
pub fn spread(i: usize, count: usize, limit: usize) -> usize {
    i * count / limit
}

/// Image number `i`, cropped.
fn one(source: &dyn Source, crop: Option<usize>, i: usize) -> Result<Example> {
    let mut example = source.read(i).map_err(own_remedy)?;
    if let Some(side) = crop {
        example.image = center_crop(&example.image, side);
    }
    Ok(example)
}

/// Whether `path` names an array file, by its suffix or its content.
pub fn is_npz(path: &Path) -> bool {
    let ending = path.extension().map(|e| e.to_ascii_lowercase());
    ending.is_some_and(|e| e == "npz") || (path.is_file() && Npz::is(path))
}

/// Replaces the hint of an `error` of the data. The original hint may name options for leaving out
/// bad images, which only training and encoding have.
fn own_remedy(error: Error) -> Error {
    match error::hint(&error).is_some_and(|hint| hint.contains("--")) {
        true => rehinted(
            &error,
            "replace or remove the file: metrics are computed on all images",
        ),
        false => error,
    }
}

/// Refuses `image` if its size differs from the first image's.
fn same_size(key: &str, image: &RgbImage, first: &mut Option<(u32, u32)>) -> Result<()> {
    let found = image.dimensions();
    let expected = *first.get_or_insert(found);
    if found == expected {
        return Ok(());
    }
    Err(hinted(
        format!(
            "image `{key}` is {}×{}, those before it {}×{}",
            found.0, found.1, expected.0, expected.1
        ),
        "--crop SIZE center-crops every image and resizes it as ADM does",
    ))
}

/// A hash of pixels: equal for equal images in the same order, whatever format they are stored in.
#[derive(Default)]
pub struct PixelHash(Sha256);

impl PixelHash {
    pub fn add(&mut self, image: &RgbImage) {
        let (w, h) = image.dimensions();
        self.0.update(w.to_le_bytes());
        self.0.update(h.to_le_bytes());
        self.0.update(image.as_raw());
    }

    pub fn finish(self) -> String {
        hex(&self.0.finalize())
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;
    use crate::error::report;
    use crate::store::npz::{Element, NpzWriter};

    fn hash(images: &Images, batch: usize) -> Result<(usize, String)> {
        let (mut count, mut hash) = (0, PixelHash::default());
        images.each(batch, usize::MAX, &mut |batch, _| {
            count += batch.len();
            batch.iter().for_each(|image| hash.add(image));
            Ok(())
        })?;
        Ok((count, hash.finish()))
    }

    #[test]
    fn a_folder_and_an_array_of_the_same_images_are_the_same() -> Result<()> {
        let root = tempfile::tempdir()?;
        let folder = root.path().join("images");
        std::fs::create_dir(&folder)?;
        let mut npz = NpzWriter::new(File::create(root.path().join("a.npz"))?);
        npz.array("arr_0", Element::U8, &[5, 4, 6, 3])?;
        for i in 0..5u8 {
            let image = RgbImage::from_fn(6, 4, |x, y| image::Rgb([i, x as u8, y as u8]));
            image.save(folder.join(format!("{i}.png")))?;
            npz.write(image.as_raw())?;
        }
        npz.finish()?;
        let files = Images::open(&folder, None)?;
        let array = Images::open(&root.path().join("a.npz"), None)?;
        let expected = hash(&files, 5)?;
        assert_eq!(expected.0, 5);
        assert_eq!(hash(&files, 2)?, expected);
        assert_eq!(hash(&array, 2)?, expected);
        // A selection: images 0, 1 and 3 of five.
        for images in [files, array] {
            let mut reds = Vec::new();
            images.each(2, 3, &mut |batch, _| {
                reds.extend(batch.iter().map(|image| image.get_pixel(0, 0)[0]));
                Ok(())
            })?;
            assert_eq!(reds, [0, 1, 3]);
        }
        Ok(())
    }

    #[test]
    fn images_of_different_sizes_need_a_crop() -> Result<()> {
        let root = tempfile::tempdir()?;
        for (i, side) in [8, 12].into_iter().enumerate() {
            RgbImage::new(side, side).save(root.path().join(format!("{i}.png")))?;
        }
        let error = hash(&Images::open(root.path(), None)?, 1).unwrap_err();
        let (text, _) = report(&error);
        assert!(
            text.contains("`1` is 12×12") && text.contains("--crop"),
            "{text}"
        );
        assert_eq!(hash(&Images::open(root.path(), Some(8))?, 1)?.0, 2);
        Ok(())
    }

    #[test]
    fn an_array_of_another_kind_and_an_empty_folder_are_refused() -> Result<()> {
        let root = tempfile::tempdir()?;
        let path = root.path().join("a.npz");
        for (element, shape) in [
            (Element::F32, vec![2, 4, 4, 3]),
            (Element::U8, vec![2, 4, 4]),
            (Element::U8, vec![0, 4, 4, 3]),
        ] {
            let mut npz = NpzWriter::new(File::create(&path)?);
            npz.array("arr_0", element, &shape)?;
            let bytes = shape.iter().product::<usize>() * element.size();
            npz.write(&vec![0; bytes])?;
            npz.finish()?;
            let error = Images::open(&path, None).err().map(|e| report(&e).0);
            assert!(error.is_some_and(|e| e.contains("expected images u8")));
        }
        let empty = root.path().join("empty");
        std::fs::create_dir(&empty)?;
        assert!(Images::open(&empty, None).is_err());
        Ok(())
    }
}
