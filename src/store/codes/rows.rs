//! Codes image by image, for formats that store one image after the other.

use std::path::Path;

use candle_core::{Device, Tensor};

use super::{Codes, Origin, damaged};
use crate::error::Result;

/// All values of N images in PyTorch's order, an image's values next to one another.
pub(super) struct Rows {
    pub shape: Shape,
    /// [N,T,h,w]
    pub codes: Vec<u32>,
    /// [N,T,d,h,w]
    pub noise: Option<Vec<f32>>,
    /// [N,d,h,w]
    pub latents: Option<Vec<f32>>,
}

/// T, h, w of all images, and d if there is noise or there are latents, else 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(super) struct Shape {
    pub steps: usize,
    pub height: usize,
    pub width: usize,
    pub embed_dim: usize,
}

impl Shape {
    /// Codes of an image.
    pub fn codes(&self) -> usize {
        self.steps
            .saturating_mul(self.height)
            .saturating_mul(self.width)
    }

    /// Values of an image's latents.
    pub fn latents(&self) -> usize {
        self.embed_dim
            .saturating_mul(self.height)
            .saturating_mul(self.width)
    }

    /// Values of an image's noise.
    pub fn noise(&self) -> usize {
        self.steps.saturating_mul(self.latents())
    }
}

impl Rows {
    pub fn of(codes: &Codes) -> Result<Self> {
        let (steps, _, height, width) = codes.codes.dims4()?;
        let with_d = codes.latents.as_ref().or(codes.noise.as_ref());
        let embed_dim = with_d.map_or(Ok(0), |tensor| tensor.dim(candle_core::D::Minus1))?;
        let floats = |tensor: Tensor| tensor.flatten_all()?.to_vec1::<f32>();
        let noise = codes.noise.as_ref();
        let latents = codes.latents.as_ref();
        Ok(Self {
            shape: Shape {
                steps,
                height,
                width,
                embed_dim,
            },
            // [T,N,h,w] -> [N,T,h,w]
            codes: codes
                .codes
                .permute((1, 0, 2, 3))?
                .flatten_all()?
                .to_vec1()?,
            // [T,N,h,w,d] -> [N,T,d,h,w]
            noise: noise
                .map(|noise| floats(noise.permute((1, 0, 4, 2, 3))?))
                .transpose()?,
            // [N,h,w,d] -> [N,d,h,w]
            latents: latents
                .map(|latents| floats(latents.permute((0, 3, 1, 2))?))
                .transpose()?,
        })
    }

    pub fn codes_of(&self, image: usize) -> &[u32] {
        row(&self.codes, image, self.shape.codes())
    }

    pub fn noise_of(&self, image: usize) -> Option<&[f32]> {
        let noise = self.noise.as_ref()?;
        Some(row(noise, image, self.shape.noise()))
    }

    pub fn latents_of(&self, image: usize) -> Option<&[f32]> {
        let latents = self.latents.as_ref()?;
        Some(row(latents, image, self.shape.latents()))
    }
}

fn row<T>(values: &[T], image: usize, size: usize) -> &[T] {
    &values[image * size..][..size]
}

/// The codes of one image as a file has them.
#[derive(Debug, Default)]
pub(super) struct Row {
    pub name: Option<String>,
    pub label: Option<u32>,
    pub mirrored: bool,
    /// [T,h,w]
    pub codes: Vec<u32>,
    /// [d,h,w]
    pub latents: Option<Vec<f32>>,
    /// [T,d,h,w]
    pub noise: Option<Vec<f32>>,
}

/// Codes in the making, from rows of equal shape.
pub(super) struct Gathered<'a> {
    path: &'a Path,
    shape: Option<Shape>,
    rows: usize,
    codes: Vec<u32>,
    labels: Vec<u32>,
    names: Vec<String>,
    mirrored: Vec<bool>,
    latents: Vec<f32>,
    noise: Vec<f32>,
}

impl<'a> Gathered<'a> {
    pub fn new(path: &'a Path) -> Self {
        Self {
            path,
            shape: None,
            rows: 0,
            codes: Vec::new(),
            labels: Vec::new(),
            names: Vec::new(),
            mirrored: Vec::new(),
            latents: Vec::new(),
            noise: Vec::new(),
        }
    }

    /// Errors: a row of another shape than the first, or with and without what that has.
    pub fn push(&mut self, shape: Shape, row: Row) -> Result<()> {
        let number = self.rows;
        let refused = |what: String| Err(damaged(self.path, format!("image {number} {what}")));
        let first = *self.shape.get_or_insert(shape);
        if shape != first {
            return refused(format!("is of {shape:?}, the first of {first:?}"));
        }
        for (what, found, expected) in [
            ("codes", Some(row.codes.len()), shape.codes()),
            (
                "latents",
                row.latents.as_ref().map(Vec::len),
                shape.latents(),
            ),
            (
                "values of noise",
                row.noise.as_ref().map(Vec::len),
                shape.noise(),
            ),
        ] {
            if let Some(found) = found.filter(|found| *found != expected) {
                return refused(format!("has {found} {what}, expected {expected}"));
            }
        }
        for (what, is_there, before) in [
            ("a label", row.label.is_some(), self.labels.len()),
            ("a name", row.name.is_some(), self.names.len()),
            (
                "latents",
                row.latents.is_some(),
                self.latents.len().min(number),
            ),
            ("noise", row.noise.is_some(), self.noise.len().min(number)),
        ] {
            if number > 0 && is_there != (before > 0) {
                let has = if is_there { "has" } else { "lacks" };
                return refused(format!("{has} {what}, other than those before it"));
            }
        }
        self.codes.extend(row.codes);
        self.labels.extend(row.label);
        self.names.extend(row.name);
        self.mirrored.push(row.mirrored);
        self.latents.extend(row.latents.into_iter().flatten());
        self.noise.extend(row.noise.into_iter().flatten());
        self.rows += 1;
        Ok(())
    }

    /// Errors: there were no rows.
    pub fn finish(self, origin: Origin) -> Result<Codes> {
        let Some(shape) = self.shape else {
            return Err(damaged(self.path, "it holds no images".into()));
        };
        let any_mirrored = self.mirrored.contains(&true);
        Codes::of_rows(
            Rows {
                shape,
                codes: self.codes,
                noise: (!self.noise.is_empty()).then_some(self.noise),
                latents: (!self.latents.is_empty()).then_some(self.latents),
            },
            self.rows,
            origin,
        )
        .map(|codes| Codes {
            labels: self.labels,
            names: self.names,
            mirrored: match any_mirrored {
                true => self.mirrored,
                false => Vec::new(),
            },
            ..codes
        })
    }
}

impl Codes {
    /// Codes of `rows` of `count` images, without labels and names.
    pub(super) fn of_rows(rows: Rows, count: usize, origin: Origin) -> Result<Codes> {
        let Shape {
            steps,
            height,
            width,
            embed_dim,
        } = rows.shape;
        let device = &Device::Cpu;
        let codes = Tensor::from_vec(rows.codes, (count, steps, height, width), device)?;
        let noise = rows.noise.map(|noise| -> Result<Tensor> {
            let shape = (count, steps, embed_dim, height, width);
            let noise = Tensor::from_vec(noise, shape, device)?;
            Ok(noise.permute((1, 0, 3, 4, 2))?.contiguous()?)
        });
        let latents = rows.latents.map(|latents| -> Result<Tensor> {
            let latents = Tensor::from_vec(latents, (count, embed_dim, height, width), device)?;
            Ok(latents.permute((0, 2, 3, 1))?.contiguous()?)
        });
        Ok(Codes {
            codes: codes.permute((1, 0, 2, 3))?.contiguous()?,
            labels: Vec::new(),
            names: Vec::new(),
            mirrored: Vec::new(),
            noise: noise.transpose()?,
            latents: latents.transpose()?,
            origin,
        })
    }
}
