//! 8-bit weights: W [R,…] as q i8 [R,…] and s f32 [R], so that W ≈ s·q row by row.
//!
//! Symmetric: s = max |w| / 127 over a row, q = round(w / s) in −127..127. A row is an output: of a
//! matrix [out, in], a kernel [out, in, k, k] or a table of embeddings. In a file the scales of
//! `NAME` are `NAME_scale`.

use std::borrow::Cow;

use candle_core::{Device, Tensor};
use safetensors::Dtype;

use super::safetensors::Raw;
use crate::error::{Result, hinted};

/// What the name of a tensor's scales ends with.
pub const SCALE: &str = "_scale";

/// The largest |q|.
const MOST: f32 = 127.0;

/// Tensors of fewer elements stay f32: they are a thousandth of a model.
const LARGE: usize = 4096;

/// Parts that stay f32 at any size. Codes are chosen by distance to the codebook, and the
/// convolutions at the pixels have few weights a row, whose errors do not average out. A learned
/// position embedding [1,N,C] is a single row.
const EXACT: [&str; 4] = [
    "quantize.",
    "encoder.conv_in.",
    "decoder.conv_out.",
    "pos_embed",
];

/// Whether the tensor `name` (without its part's prefix) is stored in 8 bits.
pub fn applies_to(name: &str, tensor: &Tensor) -> bool {
    tensor.rank() >= 2
        && tensor.elem_count() >= LARGE
        && !EXACT.iter().any(|part| name.starts_with(part))
}

/// q and s.
#[derive(Debug, Clone, PartialEq)]
pub struct Int8 {
    pub shape: Vec<usize>,
    pub values: Vec<i8>,
    pub scales: Vec<f32>,
}

impl Int8 {
    /// Errors: the tensor holds NaN, infinity, or numbers whose neighbours are.
    pub fn of(name: &str, tensor: &Tensor) -> Result<Self> {
        let weights = tensor.flatten_all()?.to_vec1::<f32>()?;
        let row = weights.len() / tensor.dim(0)?.max(1);
        let mut values = Vec::with_capacity(weights.len());
        let mut scales = Vec::new();
        for weights in weights.chunks_exact(row.max(1)) {
            if !weights.iter().all(|w| w.abs() < f32::MAX / 2.0) {
                return Err(hinted(
                    format!("`{name}` holds NaN or infinity, which 8 bits cannot"),
                    "the run has diverged: export an earlier checkpoint, or with --dtype f32",
                ));
            }
            let largest = weights.iter().fold(0f32, |most, w| most.max(w.abs()));
            // Any scale serves a row of zeros; a subnormal one would lose digits.
            let scale = match largest / MOST {
                scale if scale.is_normal() => scale,
                _ if largest == 0.0 => 1.0,
                _ => f32::MIN_POSITIVE,
            };
            let nearest = |w: &f32| (w / scale).round().clamp(-MOST, MOST) as i8;
            values.extend(weights.iter().map(nearest));
            scales.push(scale);
        }
        Ok(Self {
            shape: tensor.dims().to_vec(),
            values,
            scales,
        })
    }

    /// The tensor `name` of a file, from its values and its scales.
    ///
    /// Errors say what is wrong, in words that follow the tensor's name: scales of another type or
    /// number; a scale that is not a positive number.
    pub fn read(values: &Raw<'_>, scales: Option<&Raw<'_>>) -> Result<Self, String> {
        let scales = scales.ok_or_else(|| format!("is I8 and has no `{SCALE}`"))?;
        let rows = match values.shape.first() {
            Some(rows) if values.dtype == Dtype::I8 => *rows,
            _ => return Err(format!("{:?} {:?} has no rows", values.dtype, values.shape)),
        };
        if scales.dtype != Dtype::F32 || scales.shape != [rows] {
            return Err(format!(
                "{:?}: expected scales F32 [{rows}], found {:?} {:?}",
                values.shape, scales.dtype, scales.shape
            ));
        }
        let (scales, _) = scales.bytes.as_chunks();
        let scales: Vec<f32> = scales.iter().map(|b| f32::from_le_bytes(*b)).collect();
        let usable = |scale: &f32| *scale > 0.0 && (scale * 128.0).is_finite();
        if let Some(row) = scales.iter().position(|scale| !usable(scale)) {
            return Err(format!(
                "has the scale {} in row {row}; expected a positive number below infinity / 128",
                scales[row]
            ));
        }
        Ok(Self {
            shape: values.shape.clone(),
            values: values.bytes.iter().map(|b| *b as i8).collect(),
            scales,
        })
    }

    /// q and s as a file holds them.
    pub fn raws(&self) -> (Raw<'_>, Raw<'_>) {
        let values = self.values.iter().map(|q| *q as u8).collect();
        let scales = self.scales.iter().flat_map(|s| s.to_le_bytes()).collect();
        let raw = |dtype, shape: &[usize], bytes| Raw {
            dtype,
            shape: shape.to_vec(),
            bytes: Cow::Owned(bytes),
        };
        (
            raw(Dtype::I8, &self.shape, values),
            raw(Dtype::F32, &[self.scales.len()], scales),
        )
    }

    /// s·q in f32.
    pub fn dequantize(&self) -> candle_core::Result<Tensor> {
        let row = self.values.len() / self.scales.len().max(1);
        let mut weights = Vec::with_capacity(self.values.len());
        for (values, scale) in self.values.chunks_exact(row.max(1)).zip(&self.scales) {
            weights.extend(values.iter().map(|q| f32::from(*q) * scale));
        }
        Tensor::from_vec(weights, &self.shape[..], &Device::Cpu)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::{Purpose, Stream};

    fn normal(shape: &[usize]) -> Result<Tensor> {
        let mut values = vec![0f32; shape.iter().product()];
        Stream::new(3, Purpose::Init, 0, 0).fill_normal(&mut values);
        Ok(Tensor::from_vec(values, shape, &Device::Cpu)?)
    }

    fn norm(x: &Tensor) -> Result<f32> {
        Ok(x.sqr()?.sum_all()?.sqrt()?.to_scalar()?)
    }

    /// A normal row of 512 reaches 3 σ: a step of 3 σ / 127, whose uniform error is .29 steps.
    #[test]
    fn the_error_of_normal_weights_is_seven_thousandths() -> Result<()> {
        let weights = normal(&[256, 512])?;
        let read = Int8::of("w", &weights)?.dequantize()?;
        let error = norm(&(&read - &weights)?)? / norm(&weights)?;
        assert!((0.005..0.008).contains(&error), "{error}");
        // A row's scale is its own: one of 2^-20 of the others' size loses no more.
        let small = weights.affine(2f64.powi(-20), 0.0)?;
        let both = Tensor::cat(&[&weights, &small], 0)?;
        let read = Int8::of("w", &both)?.dequantize()?.narrow(0, 256, 256)?;
        let other = norm(&(&read - &small)?)? / norm(&small)?;
        assert!((other / error - 1.0).abs() < 1e-3, "{other}");
        Ok(())
    }

    #[test]
    fn zeros_and_the_smallest_numbers_get_a_usable_scale() -> Result<()> {
        let rows = [[0f32; 2], [1e-45, -1e-45], [2e-38, 1e-38], [1e38, -1.0]];
        let int8 = Int8::of("w", &Tensor::new(&rows, &Device::Cpu)?)?;
        assert!(int8.scales.iter().all(|s| s.is_normal() && *s > 0.0));
        let read = int8.dequantize()?.to_vec2::<f32>()?;
        assert_eq!(read[0], [0.0, 0.0]);
        for (row, read) in rows.iter().zip(&read) {
            let step = row[0].abs().max(row[1].abs()) / 127.0;
            for (w, r) in row.iter().zip(read) {
                assert!((w - r).abs() <= step.max(f32::MIN_POSITIVE), "{w} {r}");
            }
        }
        for bad in [f32::NAN, f32::NEG_INFINITY, f32::MAX] {
            let bad = Tensor::new(&[[1.0, bad]], &Device::Cpu)?;
            let text = Int8::of("head.weight", &bad).unwrap_err().to_string();
            assert!(text.contains("`head.weight` holds NaN"), "{text}");
        }
        Ok(())
    }

    #[test]
    fn what_stays_exact_is_small_or_named() -> Result<()> {
        for (name, shape, expected) in [
            (
                "encoder.mid.block_1.conv1.weight",
                &[64, 64, 3, 3][..],
                true,
            ),
            ("head.weight", &[4096, 384], true),
            ("y_embedder.weight", &[201, 384], true),
            ("decoder.conv_in.weight", &[256, 32, 3, 3], true),
            ("quantize.embedding.weight", &[4096, 32], false),
            ("quantize.bias_conv.weight", &[32, 32, 3, 3], false),
            ("encoder.conv_in.weight", &[128, 12, 3, 3], false),
            ("decoder.conv_out.weight", &[12, 128, 3, 3], false),
            ("pos_embed", &[1, 64, 384], false),
            ("mix.weight", &[32, 64], false),
            ("head.bias", &[4096], false),
        ] {
            let tensor = Tensor::zeros(shape, candle_core::DType::F32, &Device::Cpu)?;
            assert_eq!(applies_to(name, &tensor), expected, "{name}");
        }
        Ok(())
    }

    #[test]
    fn scales_that_are_no_scales_are_refused() {
        let raw = |dtype, shape: &[usize], bytes: Vec<u8>| Raw {
            dtype,
            shape: shape.to_vec(),
            bytes: Cow::Owned(bytes),
        };
        let values = raw(Dtype::I8, &[2, 3], vec![1, 2, 3, 0xff, 0x80, 0x81]);
        let of = |scales: [f32; 2]| {
            let bytes = scales.iter().flat_map(|s| s.to_le_bytes()).collect();
            Int8::read(&values, Some(&raw(Dtype::F32, &[2], bytes)))
        };
        let good = of([0.5, 2.0]).and_then(|read| read.dequantize().map_err(|e| e.to_string()));
        let good = good.and_then(|t| t.to_vec2::<f32>().map_err(|e| e.to_string()));
        assert_eq!(
            good,
            Ok(vec![vec![0.5, 1.0, 1.5], vec![-2.0, -256.0, -254.0]])
        );
        let huge = f32::MAX / 100.0;
        for bad in [
            0.0,
            -0.0,
            -1.0,
            f32::NAN,
            f32::INFINITY,
            f32::NEG_INFINITY,
            huge,
        ] {
            let text = of([1.0, bad]).expect_err("this must be refused");
            assert!(text.contains(&format!("scale {bad} in row 1")), "{text}");
        }
        for wrong in [
            raw(Dtype::F32, &[1], vec![0; 4]),
            raw(Dtype::F32, &[2, 1], vec![0; 8]),
            raw(Dtype::F16, &[2], vec![0; 4]),
        ] {
            let text = Int8::read(&values, Some(&wrong)).expect_err("this must be refused");
            assert!(text.contains("expected scales F32 [2]"), "{text}");
        }
        let text = Int8::read(&values, None).expect_err("this must be refused");
        assert!(text.contains("has no `_scale`"), "{text}");
        let number = raw(Dtype::I8, &[], vec![1]);
        let text = Int8::read(&number, Some(&number)).expect_err("this must be refused");
        assert!(text.contains("has no rows"), "{text}");
    }
}
