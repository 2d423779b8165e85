//! The generator's forward pass over kernels: noise, sum, labels and t of [`Activations`] → logits.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::{Device, Result, Tensor};
use half::bf16;

use super::activations::{Activations, Conditions, Trunk};
use super::flat::Flat;
use super::sizes::Sizes;
use crate::config::Config;
use crate::model::generator::{EPS, Generator, TIME_FEATURES};
use crate::ops::adaln::cuda::{Gated, Residual, adaln_forward};
use crate::ops::attention::cuda::{Rotation, attention_forward};
use crate::ops::condition::{self, DropoutOnGpu};
use crate::ops::cuda::{Buffer, Element, Gpu, View, ViewMut};
use crate::ops::product::cublaslt::{Epilogue, Product, Strides};
use crate::ops::product::cuda::{self as product, Added};
use crate::ops::swiglu::cuda::{swiglu_forward, swiglu_in_products, swiglu_product_forward};
use crate::ops::{RopeKind, RopeTable};
use crate::store::Scope;

/// The generator's parameters on the GPU, and its sizes.
pub struct Network {
    pub gpu: Arc<Gpu>,
    pub sizes: Sizes,
    pub flat: Flat,
    /// f32, and the copy that the matmuls read.
    pub parameters: Buffer<f32>,
    pub bf16_weights: Buffer<bf16>,
    /// cos, sin f32 [N, 32].
    rotation: (Buffer<f32>, Buffer<f32>),
    pub(super) positions: bool,
}

/// A modulation's place among the six of a block.
#[derive(Clone, Copy)]
pub(super) enum Modulation {
    Shift1 = 0,
    Scale1 = 1,
    Gate1 = 2,
    Shift2 = 3,
    Scale2 = 4,
    Gate2 = 5,
}

/// A linear layer's rows, inputs and outputs, and whether it has a bias.
struct Layer<'a> {
    name: &'a str,
    bias: bool,
    sizes: [usize; 3],
}

impl Network {
    /// A generator of `batch` images per pass; its parameters are zeros until [`Network::load`].
    ///
    /// Errors: sizes that the kernels do not support, by name.
    pub fn new(gpu: Arc<Gpu>, config: &Config, classes: usize, batch: usize) -> Result<Self> {
        let (side, generator) = (config.grid(), &config.generator);
        let sizes = Sizes::of(config, classes, batch)?;
        let plan = Scope::plan();
        Generator::new(config, classes, &plan)?;
        let flat = Flat::new(plan.shapes(), sizes.depth);
        let rope = RopeTable::new(
            (side, side),
            sizes.width / sizes.heads,
            generator.rope_base,
            RopeKind::from(generator.rope),
            &Device::Cpu,
        )?;
        let table = |x: &Tensor| Buffer::from_host(&gpu, &x.flatten_all()?.to_vec1::<f32>()?);
        Ok(Self {
            rotation: (table(rope.cos())?, table(rope.sin())?),
            parameters: Buffer::zeros(&gpu, flat.len)?,
            bf16_weights: Buffer::zeros(&gpu, flat.len)?,
            positions: generator.pos_embed != 0.0,
            sizes,
            flat,
            gpu,
        })
    }

    /// Sets all parameters, and their bf16 copy.
    ///
    /// Errors: a name is missing.
    pub fn load(&mut self, tensors: &BTreeMap<String, Tensor>) -> Result<()> {
        let values = self.flat.gather(tensors)?;
        self.parameters.write(&values)?;
        let rounded: Vec<bf16> = values.iter().map(|&x| bf16::from_f32(x)).collect();
        self.bf16_weights.write(&rounded)
    }

    /// The bf16 parameters from the one of this name on.
    pub(super) fn bf16(&self, name: &str) -> Result<View<'_, bf16>> {
        Ok(self.bf16_weights.view().tail(self.flat.place(name)?))
    }

    /// The f32 parameters from the one of this name on.
    pub(super) fn f32(&self, name: &str) -> Result<View<'_, f32>> {
        Ok(self.parameters.view().tail(self.flat.place(name)?))
    }

    pub fn rotation(&self) -> Rotation<'_> {
        Rotation {
            cos: self.rotation.0.view(),
            sin: self.rotation.1.view(),
        }
    }

    /// Element of a modulation of block `block` within an image's row of them.
    pub(super) fn modulation(&self, block: usize, which: Modulation) -> usize {
        (6 * block + which as usize) * self.sizes.width
    }

    /// Elements of the last shift and scale.
    pub(super) fn last_modulations(&self) -> [usize; 2] {
        let at = 6 * self.sizes.depth * self.sizes.width;
        [at, at + self.sizes.width]
    }

    pub(super) fn product<C: Element>(
        &self,
        product: &Product,
        a: View<bf16>,
        b: View<bf16>,
        c: ViewMut<C>,
        bias: Option<View<C>>,
    ) -> Result<()> {
        self.gpu.matmul()?.run(&self.gpu, product, a, b, c, bias)
    }

    /// rows·weightᵀ (+ bias) to bf16 rows.
    fn linear(&self, layer: &Layer, x: View<bf16>, mut y: ViewMut<bf16>) -> Result<()> {
        let (name, sizes) = (layer.name, layer.sizes);
        let weight = self.bf16(&format!("{name}.weight"))?;
        let bias = match layer.bias {
            true => Some(self.bf16(&format!("{name}.bias"))?),
            false => None,
        };
        if product::of_few(&self.gpu, sizes, x, weight, bias, y.again())? {
            return Ok(());
        }
        let [rows, input, output] = sizes;
        let mut product = Product::forward(rows, input, output);
        if layer.bias {
            product.epilogue = Epilogue::Bias;
        }
        self.product(&product, x, weight, y, bias)
    }

    /// rows·weightᵀ + bias to f32 rows.
    fn linear_f32(
        &self,
        name: &str,
        [rows, input, output]: [usize; 3],
        x: &Buffer<bf16>,
        y: &Buffer<f32>,
    ) -> Result<()> {
        let product = Product {
            f32_out: true,
            epilogue: Epilogue::Bias,
            ..Product::forward(rows, input, output)
        };
        let (weight, bias) = (format!("{name}.weight"), format!("{name}.bias"));
        self.product(
            &product,
            x.view(),
            self.bf16(&weight)?,
            y.view_mut(),
            Some(self.f32(&bias)?),
        )
    }

    /// Logits of a batch whose noise, sum, labels and t are in place.
    pub fn forward(&self, a: &Activations) -> Result<()> {
        let (s, gpu) = (&self.sizes, &*self.gpu);
        self.condition(s, &a.conditions)?;
        condition::join_inputs(
            gpu,
            [s.rows(), s.latent],
            a.noise.view(),
            a.sum.view(),
            a.trunk.joined.view_mut(),
        )?;
        let modulations = a.conditions.modulations.view();
        self.pass(s, &a.trunk, modulations, a.dropping())
    }

    /// Logits of `s.batch` images from their joined inputs and modulations f32 [B,(6L+2)C].
    pub fn trunk(&self, s: &Sizes, a: &Trunk, modulations: View<f32>) -> Result<()> {
        self.pass(s, a, modulations, None)
    }

    fn pass(
        &self,
        s: &Sizes,
        a: &Trunk,
        modulations: View<f32>,
        dropout: Option<DropoutOnGpu>,
    ) -> Result<()> {
        let gpu = &*self.gpu;
        let mix = Layer {
            name: "mix",
            bias: true,
            sizes: [s.rows(), 2 * s.latent, s.mix],
        };
        self.linear(&mix, a.joined.view(), a.mixed.view_mut())?;
        let first = &a.ends(0).x;
        let embedder = Layer {
            name: "x_embedder",
            bias: true,
            sizes: [s.rows(), s.mix, s.width],
        };
        self.linear(&embedder, a.mixed.view(), first.view_mut())?;
        if self.positions {
            let positions = self.bf16("pos_embed")?;
            condition::add_position(gpu, s.map(), first.view_mut(), positions)?;
        }
        let mut before = Residual::whole(first.view());
        for i in 0..s.depth {
            before = self.block(i, s, a, before, modulations, dropout)?;
        }
        adaln_forward(
            gpu,
            s.adaln(),
            EPS as f32,
            before,
            self.last_modulations().map(|place| modulations.tail(place)),
            a.x.view_mut(),
            a.y.view_mut(),
            a.rstd.view_mut(),
        )?;
        let head = Layer {
            name: "head",
            bias: true,
            sizes: [s.rows(), s.width, s.codes],
        };
        self.linear(&head, a.y.view(), a.logits.view_mut())
    }

    /// Labels and t of `s.batch` images → condition and all modulations.
    pub fn condition(&self, s: &Sizes, c: &Conditions) -> Result<()> {
        let gpu = &*self.gpu;
        condition::time_features(gpu, s.batch, c.t.view(), c.features.view_mut())?;
        self.linear_f32(
            "t_embedder.0",
            [s.batch, TIME_FEATURES, s.width],
            &c.features,
            &c.middle,
        )?;
        let count = s.batch * s.width;
        condition::silu(gpu, count, c.middle.view(), c.middle_silu.view_mut())?;
        self.linear_f32(
            "t_embedder.2",
            [s.batch, s.width, s.width],
            &c.middle_silu,
            &c.time,
        )?;
        condition::condition(
            gpu,
            s.labelled(),
            c.time.view(),
            self.f32("y_embedder.weight")?,
            c.labels.view(),
            c.pre.view_mut(),
            c.condition.view_mut(),
        )?;
        match s.rank {
            // The weights of all blocks lie side by side: one matmul for all modulations.
            None => self.linear_f32(
                "blocks.0.adaLN_modulation",
                [s.batch, s.width, s.modulations()],
                &c.condition,
                &c.modulations,
            ),
            Some(rank) => self.modulations_of_low_rank(s, c, rank),
        }
    }

    /// One matmul for the narrow halves of all blocks, one per block for the wide ones, and the
    /// last modulation.
    fn modulations_of_low_rank(&self, s: &Sizes, c: &Conditions, rank: usize) -> Result<()> {
        let narrow = Layer {
            name: "blocks.0.adaLN_modulation.0",
            bias: false,
            sizes: [s.batch, s.width, s.narrow()],
        };
        self.linear(&narrow, c.condition.view(), c.narrow.view_mut())?;
        let part = |input, output, a| Product {
            f32_out: true,
            epilogue: Epilogue::Bias,
            strides: Strides {
                a,
                c: s.modulations(),
                ..Strides::default()
            },
            ..Product::forward(s.batch, input, output)
        };
        for i in 0..s.depth {
            let name = |part: &str| format!("blocks.{i}.adaLN_modulation.1.{part}");
            let place = self.modulation(i, Modulation::Shift1);
            self.product(
                &part(rank, 6 * s.width, s.narrow()),
                c.narrow.view().tail(i * rank),
                self.bf16(&name("weight"))?,
                c.modulations.view_mut().tail(place),
                Some(self.f32(&name("bias"))?),
            )?;
        }
        let [last, _] = self.last_modulations();
        self.product(
            &part(s.width, 2 * s.width, 0),
            c.condition.view(),
            self.bf16("adaLN_modulation.weight")?,
            c.modulations.view_mut().tail(last),
            Some(self.f32("adaLN_modulation.bias")?),
        )
    }

    /// From the stream before block `i` to the one after it; modulations f32 [B,(6L+2)C].
    fn block<'a>(
        &self,
        i: usize,
        s: &Sizes,
        a: &'a Trunk,
        before: Residual,
        modulations: View<'a, f32>,
        dropout: Option<DropoutOnGpu>,
    ) -> Result<Residual<'a>> {
        self.inner(i, s, a, before, modulations)?;
        self.gated(i, s, a, a.keeps_inner(i))?;
        let h2 = &a.ends(i).h2;
        let gate = modulations.tail(self.modulation(i, Modulation::Gate2));
        let name = format!("blocks.{i}.mlp.w3");
        let w3 = Layer {
            name: &name,
            bias: false,
            sizes: [s.rows(), s.hidden, s.width],
        };
        let hidden = a.inner(i).hidden.view();
        let after = &a.ends(i + 1).x; // without a gradient all blocks' are one
        let stream = self.branch(s, a, &w3, hidden, (&a.x_mid, h2, gate), after)?;
        if let Some(dropout) = dropout {
            condition::dropout(&self.gpu, s.map(), h2.view_mut(), i, dropout)?;
        }
        Ok(stream)
    }

    /// Output projection of a branch, rows·weightᵀ: to `branch`, which is to be added to the stream
    /// `x` times `gate`; or, if no gradient needs the branch itself, added at once, to `sum`.
    fn branch<'a>(
        &self,
        s: &Sizes,
        a: &Trunk,
        layer: &Layer,
        rows: View<bf16>,
        (x, branch, gate): (&'a Buffer<bf16>, &'a Buffer<bf16>, View<'a, f32>),
        sum: &'a Buffer<bf16>,
    ) -> Result<Residual<'a>> {
        if a.gradient || !product::serves_many(&self.gpu, s.rows(), s.width) {
            self.linear(layer, rows, branch.view_mut())?;
            return Ok(Residual {
                x: x.view(),
                add: Some(Gated {
                    branch: branch.view(),
                    gate,
                }),
            });
        }
        let to = Added {
            x: x.view(),
            gate,
            tokens: s.tokens,
            stride: s.modulations(),
        };
        let weight = self.bf16(&format!("{}.weight", layer.name))?;
        product::added_to(&self.gpu, layer.sizes, rows, weight, to, sum.view_mut())?;
        Ok(Residual::whole(sum.view()))
    }

    /// SiLU(gate)·up of w12's matmul; gate | up too, if it is kept or computed on the way.
    pub(super) fn gated(&self, i: usize, s: &Sizes, a: &Trunk, keep: bool) -> Result<()> {
        let (gpu, name) = (&*self.gpu, format!("blocks.{i}.mlp.w12"));
        let inner = a.inner(i);
        let (y, gate_up, hidden) = (inner.y2.view(), &inner.gate_up, &inner.hidden);
        let weight = self.bf16(&format!("{name}.weight"))?;
        if swiglu_in_products(gpu, s.rows()) {
            let kept = keep.then(|| gate_up.view_mut());
            return swiglu_product_forward(gpu, s.gated(), y, weight, kept, hidden.view_mut());
        }
        // If a gradient follows, a block that is recomputed takes the same path as the first time.
        if !a.gradient && product::swiglu_of_few(gpu, s.gated(), y, weight, hidden.view_mut())? {
            return Ok(());
        }
        let w12 = Layer {
            name: &name,
            bias: false,
            sizes: [s.rows(), s.width, 2 * s.hidden],
        };
        self.linear(&w12, y, gate_up.view_mut())?;
        let sizes = [s.rows(), s.hidden];
        swiglu_forward(gpu, sizes, gate_up.view(), hidden.view_mut())
    }

    /// All between a block's ends up to w12's input; the stream before it too, if `before` has a
    /// branch to add.
    pub(super) fn inner(
        &self,
        i: usize,
        s: &Sizes,
        a: &Trunk,
        before: Residual,
        modulations: View<f32>,
    ) -> Result<()> {
        let (gpu, c) = (&*self.gpu, s.width);
        let (x, inner) = (&a.ends(i).x, a.inner(i));
        let at = |which| modulations.tail(self.modulation(i, which));
        let name = |part: &str| format!("blocks.{i}.{part}");

        adaln_forward(
            gpu,
            s.adaln(),
            EPS as f32,
            before,
            [at(Modulation::Shift1), at(Modulation::Scale1)],
            x.view_mut(),
            inner.y1.view_mut(),
            inner.rstd1.view_mut(),
        )?;
        let qkv = Layer {
            name: &name("attn.qkv"),
            bias: false,
            sizes: [s.rows(), c, 3 * c],
        };
        self.linear(&qkv, inner.y1.view(), inner.qkv.view_mut())?;
        attention_forward(
            gpu,
            s.attention(),
            self.rotation(),
            inner.qkv.view(),
            inner.attention.view_mut(),
            inner.lse.view_mut(),
        )?;
        let proj = Layer {
            name: &name("attn.proj"),
            bias: false,
            sizes: [s.rows(), c, c],
        };
        let to = (x, &inner.h1, at(Modulation::Gate1));
        let middle = self.branch(s, a, &proj, inner.attention.view(), to, &a.x_mid)?;
        adaln_forward(
            gpu,
            s.adaln(),
            EPS as f32,
            middle,
            [at(Modulation::Shift2), at(Modulation::Scale2)],
            a.x_mid.view_mut(),
            inner.y2.view_mut(),
            inner.rstd2.view_mut(),
        )
    }
}
