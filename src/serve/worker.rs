//! The thread that computes: one batch of the queue after the other.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use axum::http::StatusCode;
use candle_core::Tensor;

use super::metrics::Metrics;
use super::queue::{Batch, Image, Job, Queue, Upload, Work};
use super::refusal::Refusal;
use super::stream::Reconstruction;
use crate::data::{Limits, augment, decode_within};
use crate::error::{Error, Result, rehinted};
use crate::interrupt::Interrupt;
use crate::metrics::psnr;
use crate::ops::{Noise, finite};
use crate::sample::{
    LatentDecoder, Pretrained, Sample, SampleOptions, Sampler, Steps, from_rgb, not_finite,
};

/// How often a waiting worker looks for a signal.
const GLANCE: Duration = Duration::from_millis(50);

/// Of an uploaded image: 4,700 × 4,700 pixels in RGB, which take a second or two. Encoders write
/// about ten scans, each of a part of the image.
const UPLOAD: Limits = Limits {
    bytes: 64 << 20,
    scans: 32,
};

pub struct Worker<'a> {
    model: &'a Pretrained,
    sampler: Sampler<'a>,
    decoder: LatentDecoder<'a>,
    queue: &'a Queue,
    metrics: &'a Metrics,
    interrupt: &'a Interrupt,
    /// Images that are drawn together.
    batch: usize,
}

impl<'a> Worker<'a> {
    /// Errors: the model is a tokenizer only.
    pub fn new(
        model: &'a Pretrained,
        queue: &'a Queue,
        metrics: &'a Metrics,
        interrupt: &'a Interrupt,
        batch: usize,
    ) -> Result<Self> {
        Ok(Self {
            sampler: model.sampler()?,
            decoder: LatentDecoder::new(&model.tokenizer),
            model,
            queue,
            metrics,
            interrupt,
            batch,
        })
    }

    /// Until a signal asks to stop.
    pub fn run(&self) {
        while !self.is_stopped() {
            match self.queue.next(self.batch, GLANCE) {
                Some(Batch::Draw { options, images }) => self.draw(&options, images),
                Some(Batch::Reconstruct(job)) => self.reconstruct(&job),
                None => {}
            }
        }
    }

    /// Whether a signal has asked to stop; then nobody waits in vain.
    fn is_stopped(&self) -> bool {
        let stopped = self.interrupt.requested();
        if stopped {
            self.queue.close();
        }
        stopped
    }

    fn draw(&self, options: &SampleOptions, images: Vec<Image>) {
        let (begin, count) = (Instant::now(), images.len());
        let jobs: Vec<Arc<Job>> = images.iter().map(|image| image.job.clone()).collect();
        if let Err(error) = self.steps(options, images) {
            tracing::error!("{error:#}");
            let refusal = Refusal::of(StatusCode::INTERNAL_SERVER_ERROR, &error);
            for job in jobs {
                job.fail(refusal.clone());
            }
        }
        self.metrics.batch(count, begin.elapsed());
    }

    fn steps(&self, options: &SampleOptions, mut images: Vec<Image>) -> Result<()> {
        let steps = self.model.config.quantizer.steps;
        let samples = images.iter().map(|image| image.sample).collect();
        let mut drawing = Steps::new(&self.sampler, samples, options)?;
        loop {
            self.is_stopped();
            let wanted = |image: &Image| !self.queue.is_over(&image.job);
            let places: Vec<usize> = (0..images.len()).filter(|i| wanted(&images[*i])).collect();
            if places.is_empty() {
                return Ok(());
            }
            drawing.keep(&places)?;
            images = kept(images, &places);
            let Some((t, z)) = drawing.advance()? else {
                return Ok(());
            };
            self.show(t, t == steps, z, &images)?;
        }
    }

    /// Decodes what clients want to see of z'_t and sends it to them.
    fn show(&self, t: usize, last: bool, z: &Tensor, images: &[Image]) -> Result<()> {
        let seen = |image: &Image| last || image.job.previews();
        let seen: Vec<usize> = (0..images.len()).filter(|i| seen(&images[*i])).collect();
        if seen.is_empty() {
            return Ok(());
        }
        let rows: Vec<u32> = seen.iter().map(|i| *i as u32).collect();
        let z = match seen.len() == images.len() {
            true => z.clone(),
            false => z.index_select(&Tensor::new(rows, z.device())?, 0)?,
        };
        let name = |i: usize| {
            let Sample { label, number, .. } = images[seen[i]].sample;
            format!("image {number} (class {label})")
        };
        let mut pictures = self.decoder.images(&z, name)?.into_iter();
        let seen: Vec<&Image> = seen.iter().map(|i| &images[*i]).collect();
        for of_one in seen.chunk_by(|a, b| Arc::ptr_eq(&a.job, &b.job)) {
            let numbers = of_one.iter().map(|image| image.sample.number);
            let shown = numbers.zip(pictures.by_ref()).collect();
            if last {
                self.metrics.images.fetch_add(of_one.len() as u64, Relaxed);
            }
            of_one[0].job.show(t, shown, last);
        }
        Ok(())
    }

    fn reconstruct(&self, job: &Job) {
        let Work::Reconstruct(upload) = &job.work else {
            return;
        };
        let result = self.reconstruction(upload);
        if result.is_ok() {
            self.metrics.reconstructions.fetch_add(1, Relaxed);
        }
        job.answer(result);
    }

    fn reconstruction(&self, upload: &Upload) -> std::result::Result<Reconstruction, Refusal> {
        let image = decode_within(&upload.bytes, "the image", UPLOAD).map_err(|error| {
            let hint = "send a JPEG, PNG, WebP, BMP, PNM or TIFF of a moderate size";
            Refusal::of(StatusCode::UNPROCESSABLE_ENTITY, &rehinted(&error, hint))
        })?;
        let original = augment::center_crop(&image, self.model.config.data.image_size);
        drop(image);
        self.reconstructed(original, upload.seed)
            .map_err(|error: Error| {
                tracing::error!("{error:#}");
                Refusal::of(StatusCode::INTERNAL_SERVER_ERROR, &error)
            })
    }

    /// As `rdpm reconstruct` of this image alone.
    fn reconstructed(&self, original: image::RgbImage, seed: u64) -> Result<Reconstruction> {
        let (tokenizer, device) = (&self.model.tokenizer, &self.model.device);
        let images = from_rgb(std::slice::from_ref(&original), device)?;
        let v = tokenizer.encode(&images)?;
        if finite::first_bad_row(&v)?.is_some() {
            return Err(not_finite("the image", "its latents"));
        }
        let indices = [0];
        let noise = Noise::Drawn {
            seed,
            indices: &indices,
        };
        let quantized = tokenizer.quantizer.quantize(&v, &noise)?;
        let steps = tokenizer.quantizer.steps();
        // [T,1,h,w,d] without z'_0
        let z = quantized.sums.narrow(0, 1, steps)?.squeeze(1)?;
        let steps = self.decoder.images(&z, |t| format!("step {}", t + 1))?;
        let last = steps.last().map_or(0.0, |image| psnr(&original, image));
        Ok(Reconstruction {
            codes: quantized.codes.squeeze(1)?.to_vec3()?,
            psnr: last,
            original,
            steps,
        })
    }
}

/// The images at these places, in order.
fn kept(images: Vec<Image>, places: &[usize]) -> Vec<Image> {
    let mut places = places.iter().peekable();
    let numbered = images.into_iter().enumerate();
    numbered
        .filter(|(i, _)| places.next_if(|place| *place == i).is_some())
        .map(|(_, image)| image)
        .collect()
}
