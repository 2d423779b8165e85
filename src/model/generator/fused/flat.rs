//! All parameters in one buffer: names → places, so that the optimizer is one kernel and a
//! gradient's place is known before it exists.
//!
//! Order: tensors of two or more dimensions (which take weight decay) first, the modulations'
//! weights of all blocks and the last one side by side at their end, the narrow halves of
//! modulations of low rank before them; then the rest, the modulations' biases likewise. Every
//! place is a multiple of eight elements.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Result, Shape, Tensor, bail};

/// Multiple of every place, in elements: 16 bytes of bf16.
const ALIGN: usize = 8;

#[derive(Debug, Clone)]
pub struct Flat {
    places: BTreeMap<String, (usize, Shape)>,
    /// Elements from the start that take weight decay.
    pub decayed: usize,
    /// Elements in all.
    pub len: usize,
}

impl Flat {
    /// Lays out parameters of the given names and shapes for a generator of `depth` blocks.
    pub fn new(shapes: impl IntoIterator<Item = (String, Shape)>, depth: usize) -> Self {
        // Whether it is no narrow half, and of which block.
        let modulation = |name: &str| {
            name.starts_with("adaLN_modulation.")
                .then_some((true, depth))
                .or_else(|| {
                    let (block, rest) = name.strip_prefix("blocks.")?.split_once('.')?;
                    let rest = rest.strip_prefix("adaLN_modulation.")?;
                    Some((rest != "0.weight", block.parse().ok()?))
                })
        };
        let mut ordered: Vec<(String, Shape)> = shapes.into_iter().collect();
        ordered.sort_by_key(|(name, shape)| (shape.rank() < 2, modulation(name), name.clone()));
        let (mut places, mut len, mut decayed) = (BTreeMap::new(), 0, 0);
        for (name, shape) in ordered {
            let (elements, decays) = (shape.elem_count(), shape.rank() >= 2);
            places.insert(name, (len, shape));
            len += elements.next_multiple_of(ALIGN);
            if decays {
                decayed = len;
            }
        }
        Self {
            places,
            decayed,
            len,
        }
    }

    /// First element of a parameter.
    pub fn place(&self, name: &str) -> Result<usize> {
        match self.places.get(name) {
            Some((place, _)) => Ok(*place),
            None => bail!("the generator has no parameter `{name}`"),
        }
    }

    /// Values in the buffer's order, zeros between tensors.
    ///
    /// Errors: a parameter is missing or of another shape.
    pub fn gather(&self, tensors: &BTreeMap<String, Tensor>) -> Result<Vec<f32>> {
        let mut values = vec![0f32; self.len];
        for (name, place, shape) in self.iter() {
            let Some(tensor) = tensors.get(name) else {
                bail!("parameter `{name}` is missing");
            };
            if tensor.shape() != shape {
                bail!(
                    "parameter `{name}`: expected {shape:?}, found {:?}",
                    tensor.shape()
                );
            }
            let from = tensor
                .to_dtype(DType::F32)?
                .flatten_all()?
                .to_vec1::<f32>()?;
            values[place..place + from.len()].copy_from_slice(&from);
        }
        Ok(values)
    }

    /// The buffer's values by name.
    pub fn scatter(&self, values: &[f32]) -> Result<BTreeMap<String, Tensor>> {
        self.iter()
            .map(|(name, place, shape)| {
                let part = &values[place..place + shape.elem_count()];
                let tensor = Tensor::from_slice(part, shape.clone(), &Device::Cpu)?;
                Ok((name.to_string(), tensor))
            })
            .collect()
    }

    pub fn iter(&self) -> impl Iterator<Item = (&str, usize, &Shape)> {
        self.places
            .iter()
            .map(|(name, (place, shape))| (name.as_str(), *place, shape))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modulations_of_all_blocks_lie_side_by_side() -> Result<()> {
        let c = 16;
        let mut shapes = vec![
            (
                "adaLN_modulation.weight".to_string(),
                Shape::from((2 * c, c)),
            ),
            ("adaLN_modulation.bias".to_string(), Shape::from(2 * c)),
            ("head.weight".to_string(), Shape::from((20, c))),
            ("head.bias".to_string(), Shape::from(20)),
        ];
        for i in 0..11 {
            shapes.push((
                format!("blocks.{i}.adaLN_modulation.weight"),
                Shape::from((6 * c, c)),
            ));
            shapes.push((
                format!("blocks.{i}.adaLN_modulation.bias"),
                Shape::from(6 * c),
            ));
            shapes.push((
                format!("blocks.{i}.attn.qkv.weight"),
                Shape::from((3 * c, c)),
            ));
        }
        let flat = Flat::new(shapes, 11);
        let first = flat.place("blocks.0.adaLN_modulation.weight")?;
        for i in 0..11 {
            let weight = flat.place(&format!("blocks.{i}.adaLN_modulation.weight"))?;
            assert_eq!(weight, first + i * 6 * c * c);
        }
        assert_eq!(
            flat.place("adaLN_modulation.weight")?,
            first + 11 * 6 * c * c
        );
        assert_eq!(flat.decayed, first + (11 * 6 + 2) * c * c);
        let bias = flat.place("blocks.0.adaLN_modulation.bias")?;
        assert_eq!(flat.place("adaLN_modulation.bias")?, bias + 11 * 6 * c);
        assert!(flat.place("head.bias")? >= flat.decayed);
        Ok(())
    }

    #[test]
    fn halves_of_modulations_of_low_rank_lie_side_by_side_each() -> Result<()> {
        let (c, r) = (24, 8);
        let mut shapes = vec![
            (
                "adaLN_modulation.weight".to_string(),
                Shape::from((2 * c, c)),
            ),
            ("adaLN_modulation.bias".to_string(), Shape::from(2 * c)),
            ("head.bias".to_string(), Shape::from(20)),
        ];
        for i in 0..11 {
            let name = |part: &str| format!("blocks.{i}.adaLN_modulation.{part}");
            shapes.push((name("0.weight"), Shape::from((r, c))));
            shapes.push((name("1.weight"), Shape::from((6 * c, r))));
            shapes.push((name("1.bias"), Shape::from(6 * c)));
        }
        let flat = Flat::new(shapes, 11);
        let place =
            |i: usize, part: &str| flat.place(&format!("blocks.{i}.adaLN_modulation.{part}"));
        for i in 0..11 {
            assert_eq!(place(i, "0.weight")?, i * r * c);
            assert_eq!(place(i, "1.weight")?, 11 * r * c + i * 6 * c * r);
            assert_eq!(place(i, "1.bias")?, place(0, "1.bias")? + i * 6 * c);
        }
        let last = 11 * r * c + 11 * 6 * c * r;
        assert_eq!(flat.place("adaLN_modulation.weight")?, last);
        assert_eq!(flat.decayed, last + 2 * c * c);
        let bias = place(0, "1.bias")?;
        assert_eq!(flat.place("adaLN_modulation.bias")?, bias + 11 * 6 * c);
        Ok(())
    }
}
