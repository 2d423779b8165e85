//! Weights f32 [O,I,kh,kw] in bf16 as Hopper's kernels read them (kernel_pack_sm90.cu):
//! [O,kh,kw,I], or folded for a convolution behind an upsampling, [O,4,4,I].
//!
//! A copy serves as long as its weight surely keeps its value: that of a frozen weight lies in its
//! layer ([`Packed`]), those of trained weights in a table from the beginning of a step's passes to
//! their end ([`Held`]), and any other in the operation, from its forward to its backward pass.

use std::cell::RefCell;
use std::collections::HashMap;
use std::marker::PhantomData;

use candle_core::{Result, Tensor, bail};
use half::bf16;

use super::hopper_upsampled::FOLDED;
use super::op::Conv2d;
use crate::ops::cuda::{Gpu, Output, View, ViewMut, launch};

/// What channels are multiples of, and the fewest that Hopper's kernels are for.
const ALIGNED: usize = 8;
const FEWEST: usize = 32;
/// Weights of a launch, numbers of a block, and pairs of channels of a block (kernel_pack_sm90.cu).
const LISTED: usize = 120;
const NUMBERS: usize = 4096;
const PAIRS: usize = 2048;

/// The order of a copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(in crate::ops) enum Form {
    /// [O,kh,kw,I]
    Packed,
    /// [O,4,4,I] of a 3×3 weight
    Folded,
}

/// A weight [O,I,kh,kw] by its place on the card.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Place {
    address: u64,
    outputs: usize,
    inputs: usize,
    taps: usize,
}

impl Place {
    fn of(op: &Conv2d, weight: View<f32>) -> Self {
        let (inputs, outputs) = op.channels;
        assert_eq!(weight.len(), outputs * inputs * op.taps());
        Self {
            address: weight.address(),
            outputs,
            inputs,
            taps: op.taps(),
        }
    }

    fn elements(&self, form: Form) -> usize {
        let taps = match form {
            Form::Packed => self.taps,
            Form::Folded => FOLDED,
        };
        self.outputs * self.inputs * taps
    }
}

/// The copies of a thread's held weights; a weight without one in some form has none yet.
struct Table {
    /// Keeps the memory from being given to another weight.
    _weights: Vec<Tensor>,
    places: Vec<Place>,
    copies: HashMap<(Place, Form), Tensor>,
}

thread_local! {
    static HELD: RefCell<Option<Table>> = const { RefCell::new(None) };
}

/// Copies of weights, for all convolutions of this thread until it is dropped.
pub(super) struct Held {
    /// Makes it stay on its thread.
    _thread: PhantomData<*const ()>,
}

impl Held {
    /// Packs those of `weights` that Hopper's kernels read, in as few launches as possible.
    ///
    /// Errors: this thread already holds weights.
    pub fn new(gpu: &Gpu, weights: &[&Tensor]) -> Result<Self> {
        if HELD.with_borrow(Option::is_some) {
            bail!("conv2d: this thread already holds packed weights");
        }
        let mut table = Table {
            _weights: weights.iter().map(|weight| weight.detach()).collect(),
            places: Vec::new(),
            copies: HashMap::new(),
        };
        for weight in weights {
            if let [outputs, inputs, kh, kw] = *weight.dims()
                && serves(gpu, (inputs, outputs))
            {
                table.places.push(Place {
                    address: View::<f32>::of(weight)?.address(),
                    outputs,
                    inputs,
                    taps: kh * kw,
                });
            }
        }
        let elements = |place: &Place| place.elements(Form::Packed);
        let mut all = Output::<bf16>::new(gpu.device(), table.places.iter().map(elements).sum())?;
        pack(gpu, &table.places, Form::Packed, all.view_mut())?;
        let (len, mut from) = (all.view().len(), 0);
        let all = all.tensor(len);
        for &place in &table.places {
            let copy = all.narrow(0, from, elements(&place))?;
            from += elements(&place);
            table.copies.insert((place, Form::Packed), copy);
        }
        HELD.set(Some(table));
        Ok(Self {
            _thread: PhantomData,
        })
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        drop(HELD.take());
    }
}

/// Whether weights of (I, O) channels are for Hopper's kernels on this card.
pub(super) fn serves(gpu: &Gpu, (inputs, outputs): (usize, usize)) -> bool {
    let channels = |c: usize| c.is_multiple_of(ALIGNED) && c >= FEWEST;
    gpu.is_hopper() && channels(inputs) && channels(outputs)
}

/// A convolution's weight in `form`: the copy that there is, or a new one.
pub(super) fn copy(gpu: &Gpu, op: &Conv2d, weight: View<f32>, form: Form) -> Result<Tensor> {
    let own = op.packed.as_ref().map(|packed| packed.on_gpu(form));
    if let Some(copy) = own.and_then(|own| own.get()) {
        return Ok(copy.clone());
    }
    let place = Place::of(op, weight);
    let make = || {
        let mut copy = Output::<bf16>::new(gpu.device(), place.elements(form))?;
        pack(gpu, &[place], form, copy.view_mut())?;
        Ok(copy.tensor(place.elements(form)))
    };
    let held = HELD.with_borrow_mut(|held| {
        let table = held.as_mut().filter(|held| held.places.contains(&place))?;
        if let Some(copy) = table.copies.get(&(place, form)) {
            return Some(Ok(copy.clone()));
        }
        let made = make();
        if let Ok(copy) = &made {
            table.copies.insert((place, form), copy.clone());
        }
        Some(made)
    });
    if let Some(copy) = held {
        return copy;
    }
    let copy = make()?;
    Ok(match own {
        Some(own) => own.get_or_init(|| copy).clone(),
        None => copy,
    })
}

/// As in kernel_pack_sm90.cu.
#[derive(Clone, Copy, Default)]
#[repr(C)]
struct Listed {
    weight: u64,
    packed: u64,
    first_block: i32,
    pairs: i32,
    inputs: i32,
    taps: i32,
}

#[derive(Clone, Copy)]
#[repr(C)]
struct List {
    count: i32,
    unused: i32,
    of: [Listed; LISTED],
}

/// Weights in `form`, one after the other.
fn pack(gpu: &Gpu, places: &[Place], form: Form, mut to: ViewMut<bf16>) -> Result<()> {
    let mut from = 0;
    for some in places.chunks(LISTED) {
        let mut list = List {
            count: some.len() as i32,
            unused: 0,
            of: [Listed::default(); LISTED],
        };
        let mut blocks = 0;
        for (listed, place) in list.of.iter_mut().zip(some) {
            let pairs = place.outputs * place.inputs;
            assert!(place.inputs.is_multiple_of(ALIGNED) && pairs <= i32::MAX as usize);
            assert!(form == Form::Packed || place.taps == 9);
            *listed = Listed {
                weight: place.address,
                packed: to.part(from, place.elements(form)).address(),
                first_block: blocks as i32,
                pairs: pairs as i32,
                inputs: place.inputs as i32,
                taps: match form {
                    Form::Packed => place.taps as i32,
                    Form::Folded => 0,
                },
            };
            from += place.elements(form);
            blocks += pairs.div_ceil((NUMBERS / place.taps).min(PAIRS) / ALIGNED * ALIGNED);
        }
        let kernel = gpu.kernel("conv2d_pack_sm90", "pack_weights", 0)?;
        let mut launch = gpu.launch(&kernel);
        launch.structure(&list);
        // SAFETY: the weights have O·I·kh·kw elements, as their views said; the copies lie in `to`,
        // one after the other.
        unsafe { launch.run((blocks as u32, 1, 1), 256, 0)? };
    }
    Ok(())
}

/// The gradient f32 [I,O,4,4] of a folded weight as that of the weight, [O,I,3,3].
pub(super) fn unfold_gradient(
    gpu: &Gpu,
    (i, o): (usize, usize),
    folded: View<f32>,
    weight: ViewMut<f32>,
) -> Result<()> {
    const SIDE: usize = 16;
    assert_eq!(folded.len(), i * o * FOLDED);
    assert_eq!(weight.len(), i * o * 9);
    let grid = (i.div_ceil(SIDE) as u32, o.div_ceil(SIDE) as u32, 1);
    // SAFETY: I·O·16 and O·I·9 elements.
    unsafe {
        launch!(gpu, "conv2d_pack_sm90", "unfold_gradient", grid, 256, 0; folded, weight, o as i32, i as i32)
    }
}
