//! Draws pictures, a batch at a time. What is in a batch does not depend on who draws it.

use image::RgbImage;

use super::plan::SampleSheet;
use crate::error::{Context, Result};
use crate::metrics::probe::reject::Rejection;
use crate::sample::{Draws, LatentDecoder, Picture, Put, SampleOptions, Sampler};
use crate::world::{Bytes, Parcel};

pub struct Drawer<'a> {
    pub sampler: Sampler<'a>,
    pub decoder: LatentDecoder<'a>,
    pub options: SampleOptions,
    pub plan: &'a SampleSheet,
    pub seed: u64,
    /// Images that are sampled at a time.
    pub batch: usize,
    /// Whether a picture shows the decoded sum after every step.
    pub show_steps: bool,
    pub rejection: Option<&'a Rejection>,
}

/// The pictures of a batch.
pub struct Drawn {
    pub pictures: Vec<Picture>,
    /// With rejection, the probability of each picture's class.
    pub probabilities: Vec<f32>,
}

impl Drawer<'_> {
    fn candidates(&self) -> usize {
        self.rejection.map_or(1, Rejection::candidates)
    }

    /// Pictures that are drawn together.
    fn size(&self) -> usize {
        (self.batch / self.candidates()).max(1)
    }

    /// How many batches there are.
    pub fn batches(&self) -> usize {
        self.plan.numbers.len().div_ceil(self.size())
    }

    /// The numbers of the pictures in a batch.
    pub fn numbers(&self, batch: usize) -> &[u64] {
        let first = batch * self.size();
        let end = (first + self.size()).min(self.plan.numbers.len());
        &self.plan.numbers[first..end]
    }

    /// The pictures of a batch.
    pub fn batch(&self, batch: usize) -> Result<Drawn> {
        let (numbers, candidates) = (self.numbers(batch), self.candidates());
        let of = |number: &u64| match self.rejection {
            Some(rejection) => rejection.numbers(*number),
            None => *number..*number + 1,
        };
        let drawn: Vec<u64> = numbers.iter().flat_map(of).collect();
        let of = |number: &u64| vec![self.plan.label(*number); candidates];
        let labels: Vec<u32> = numbers.iter().flat_map(of).collect();
        let mut steps: Vec<Vec<RgbImage>> = Vec::new();
        for (numbers, labels) in drawn.chunks(self.batch).zip(labels.chunks(self.batch)) {
            let more = self.draw(numbers, labels)?;
            steps.resize_with(more.len(), Vec::new);
            let parts = steps.iter_mut().zip(more);
            parts.for_each(|(images, more)| images.extend(more));
        }
        let (mut pictures, mut probabilities) = (Vec::new(), Vec::new());
        for (i, number) in numbers.iter().enumerate() {
            let (first, label) = (i * candidates, self.plan.label(*number));
            let chosen = match (self.rejection, steps.last()) {
                (Some(rejection), Some(images)) => {
                    let best = rejection.best(&images[first..first + candidates], label)?;
                    probabilities.push(best.probability);
                    first + best.place
                }
                _ => first,
            };
            pictures.push(Picture {
                images: steps.iter().map(|images| images[chosen].clone()).collect(),
                label,
                number: *number,
            });
        }
        Ok(Drawn {
            pictures,
            probabilities,
        })
    }

    /// The decoded sum after every step, or after the last.
    fn draw(&self, numbers: &[u64], labels: &[u32]) -> Result<Vec<Vec<RgbImage>>> {
        let draws = Draws::Seeded {
            seed: self.seed,
            indices: numbers,
        };
        let shown = match self.show_steps {
            true => self.sampler.latents(labels, &draws, &self.options)?,
            false => vec![self.sampler.latent(labels, &draws, &self.options)?],
        };
        let decoded = shown.iter().map(|z| {
            let name = |i: usize| format!("image {} (class {})", numbers[i], labels[i]);
            self.decoder.images(z, name)
        });
        decoded.collect()
    }
}

impl Drawn {
    /// Puts all pictures; adds what they contribute to the mean probability of `count` pictures.
    pub fn put(self, put: &mut Put, mean: &mut f64, count: usize) -> Result<()> {
        for probability in self.probabilities {
            *mean += f64::from(probability) / count as f64;
        }
        self.pictures.into_iter().try_for_each(put)
    }
}

impl Parcel for Drawn {
    fn pack(&self, bytes: &mut Bytes) {
        bytes.put_f32s(&self.probabilities);
        bytes.put_u32(self.pictures.len() as u32);
        for picture in &self.pictures {
            bytes.put_u32(picture.label);
            bytes.put_u64(picture.number);
            bytes.put_u32(picture.images.len() as u32);
            for image in &picture.images {
                bytes.put_u32(image.width());
                bytes.put_u32(image.height());
                bytes.put_bytes(image.as_raw());
            }
        }
    }

    fn unpack(bytes: &mut Bytes) -> Result<Self> {
        let probabilities = bytes.f32s()?;
        let picture = |bytes: &mut Bytes| -> Result<Picture> {
            let (label, number) = (bytes.u32()?, bytes.u64()?);
            let image = |bytes: &mut Bytes| {
                let (width, height) = (bytes.u32()?, bytes.u32()?);
                let image = RgbImage::from_raw(width, height, bytes.bytes()?.to_vec());
                image.context("an image of another size than it says")
            };
            let images = (0..bytes.u32()?).map(|_| image(bytes));
            Ok(Picture {
                images: images.collect::<Result<_>>()?,
                label,
                number,
            })
        };
        let pictures = (0..bytes.u32()?).map(|_| picture(bytes));
        Ok(Self {
            pictures: pictures.collect::<Result<_>>()?,
            probabilities,
        })
    }
}
