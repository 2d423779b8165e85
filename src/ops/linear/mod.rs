//! A linear layer: y = x·wᵀ + bias. x [..,I], w [O,I], bias [O] → y [..,O].
//!
//! Gradients: dx = dy·w, dw = dyᵀ·x, dbias = Σ dy over rows; each only if the graph tracks the
//! input.

mod cpu;
pub(super) mod reference;

#[cfg(test)]
mod tests;

use candle_core::{Result, Tensor, bail};

use super::conv2d::{check_bias, check_elements};
use super::product::Panels;
use super::{Packed, Padding, arrange, conv2d_packed, slices, tape};
use cpu::Linear;

/// `x` [..,I] times `weight` [O,I] transposed, plus `bias` [O]: [..,O].
pub fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    linear_packed(x, weight, bias, None)
}

/// [`linear`] with a packed copy of this weight, which must not change afterwards.
pub fn linear_packed(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    packed: Option<&Packed>,
) -> Result<Tensor> {
    let [o, i] = *weight.dims() else {
        bail!(
            "linear: the weight must be [O,I], found {:?}",
            weight.dims()
        );
    };
    if x.dims().last() != Some(&i) {
        bail!(
            "linear: the weight [{o},{i}] takes rows of {i}, found [..,I] = {:?}",
            x.dims()
        );
    }
    check_bias("linear", bias, o)?;
    check_elements("linear", &[x, weight])?;
    if !slices::are_f32_on_cpu(&[x, weight]) {
        return elsewhere(x, weight, bias, packed);
    }
    let op = Linear {
        inputs: i,
        outputs: o,
        packed: packed.cloned(),
    };
    match bias {
        Some(bias) => tape::apply3(x, weight, bias, op),
        None => tape::apply2(x, weight, op),
    }
}

/// Makes the packed copy of `weight` [O,I] now, so that no thread waits for another to make it.
pub fn pack_linear(weight: &Tensor, packed: &Packed) -> Result<()> {
    let (o, i) = weight.dims2()?;
    slices::read([weight], |[weight]| {
        packed.get_or_make(|| Panels::of_outputs(weight, o, i, 1));
    })
}

/// On a GPU a 1×1 convolution, if that has kernels; else plain candle operations.
fn elsewhere(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    packed: Option<&Packed>,
) -> Result<Tensor> {
    let (o, i) = weight.dims2()?;
    if slices::meet_kernels(&[x], &[weight]) {
        let mut shape = x.dims().to_vec();
        shape.pop();
        shape.push(o);
        let rows = arrange::reshape(x, (1, (), 1, i))?;
        let weight = arrange::reshape(weight, (o, i, 1, 1))?;
        let y = conv2d_packed(&rows, &weight, bias, 1, Padding::same(0), packed)?;
        return arrange::reshape(&y, shape);
    }
    match bias {
        Some(bias) => tape::plain([x, weight, bias], |[x, weight, bias]| {
            reference::linear(x, weight, Some(bias))
        }),
        None => tape::plain([x, weight], |[x, weight]| {
            reference::linear(x, weight, None)
        }),
    }
}
