//! The generator's forward pass over kernels: noise, sum, labels and t of [`Activations`] → logits.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::{Device, Result, Tensor};
use half::bf16;

use super::activations::{Activations, Conditions, Trunk};
use super::flat::Flat;
use super::kernels::{self, Residual, Rotation, Sizes};
use crate::config::{Config, Rope};
use crate::model::generator::Generator;
use crate::ops::cuda::{Buffer, Epilogue, Gpu, Product, Strides};
use crate::ops::product::cuda::{self as product, Added};
use crate::ops::{RopeKind, RopeTable};
use crate::store::Scope;

/// The generator's parameters on the card, and its sizes.
pub struct Network {
    pub gpu: Arc<Gpu>,
    pub sizes: Sizes,
    pub flat: Flat,
    /// f32, and the copy that the products read.
    pub parameters: Buffer<f32>,
    pub half: Buffer<bf16>,
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

impl Network {
    /// A generator of `batch` images a pass; its parameters are zeros until [`Network::load`].
    ///
    /// Errors: sizes that the kernels do not serve, by name.
    pub fn new(gpu: Arc<Gpu>, config: &Config, classes: usize, batch: usize) -> Result<Self> {
        let (side, generator) = (config.grid(), &config.generator);
        let sizes = Sizes::of(config, classes, batch)?;
        let plan = Scope::plan();
        Generator::new(config, classes, &plan)?;
        let flat = Flat::new(plan.shapes(), sizes.depth);
        let kind = match generator.rope {
            Rope::OneD => RopeKind::OneD,
            Rope::TwoD => RopeKind::TwoD,
        };
        let rope = RopeTable::new(
            (side, side),
            sizes.width / sizes.heads,
            generator.rope_base,
            kind,
            &Device::Cpu,
        )?;
        let table = |x: &Tensor| Buffer::from_host(&gpu, &x.flatten_all()?.to_vec1::<f32>()?);
        Ok(Self {
            rotation: (table(rope.cos())?, table(rope.sin())?),
            parameters: Buffer::zeros(&gpu, flat.len)?,
            half: Buffer::zeros(&gpu, flat.len)?,
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
        let halves: Vec<bf16> = values.iter().map(|&x| bf16::from_f32(x)).collect();
        self.half.write(&halves)
    }

    pub(super) fn half(&self, name: &str) -> Result<u64> {
        Ok(self.half.at(self.flat.place(name)?))
    }

    pub(super) fn full(&self, name: &str) -> Result<u64> {
        Ok(self.parameters.at(self.flat.place(name)?))
    }

    pub fn rotation(&self) -> Rotation {
        Rotation {
            cos: self.rotation.0.address(),
            sin: self.rotation.1.address(),
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

    pub(super) fn product(
        &self,
        product: &Product,
        a: u64,
        b: u64,
        c: u64,
        bias: u64,
    ) -> Result<()> {
        // SAFETY: the operands are buffers of this network, sized for its `Sizes`.
        unsafe { self.gpu.matmul()?.run(&self.gpu, product, a, b, c, bias) }
    }

    /// rows·weightᵀ (+ bias) to bf16 rows.
    fn linear(
        &self,
        name: &str,
        bias: bool,
        [rows, input, output]: [usize; 3],
        x: u64,
        y: u64,
    ) -> Result<()> {
        let weight = self.half(&format!("{name}.weight"))?;
        let at = match bias {
            true => self.half(&format!("{name}.bias"))?,
            false => 0,
        };
        if product::of_few(&self.gpu, [rows, input, output], x, weight, at, y)? {
            return Ok(());
        }
        let mut product = Product::forward(rows, input, output);
        if bias {
            product.epilogue = Epilogue::Bias;
        }
        self.product(&product, x, weight, y, at)
    }

    /// rows·weightᵀ + bias to f32 rows.
    fn linear_f32(
        &self,
        name: &str,
        [rows, input, output]: [usize; 3],
        x: u64,
        y: u64,
    ) -> Result<()> {
        let product = Product {
            f32_out: true,
            epilogue: Epilogue::Bias,
            ..Product::forward(rows, input, output)
        };
        let (weight, bias) = (format!("{name}.weight"), format!("{name}.bias"));
        self.product(&product, x, self.half(&weight)?, y, self.full(&bias)?)
    }

    /// Logits of a batch whose noise, sum, labels and t are in place.
    pub fn forward(&self, a: &Activations) -> Result<()> {
        let (s, gpu) = (&self.sizes, &*self.gpu);
        self.condition(s, &a.conditions)?;
        kernels::join_inputs(
            gpu,
            s,
            a.noise.address(),
            a.sum.address(),
            a.trunk.joined.address(),
        )?;
        self.trunk(s, &a.trunk, a.conditions.modulations.address())
    }

    /// Logits of `s.batch` images from their joined inputs and modulations, an address of f32 [B,(6L+2)C].
    pub fn trunk(&self, s: &Sizes, a: &Trunk, modulations: u64) -> Result<()> {
        let gpu = &*self.gpu;
        self.linear(
            "mix",
            true,
            [s.rows(), 2 * s.latent, s.mix],
            a.joined.address(),
            a.mixed.address(),
        )?;
        let first = a.ends(0).x.address();
        self.linear(
            "x_embedder",
            true,
            [s.rows(), s.mix, s.width],
            a.mixed.address(),
            first,
        )?;
        if self.positions {
            kernels::add_position(gpu, s, first, self.half("pos_embed")?)?;
        }
        let at = |place: usize| modulations + (place * size_of::<f32>()) as u64;
        let mut before = Residual {
            x: first,
            branch: 0,
            gate: 0,
        };
        for i in 0..s.depth {
            before = self.block(i, s, a, before, modulations)?;
        }
        kernels::adaln_forward(
            gpu,
            s,
            before,
            self.last_modulations().map(at),
            a.x.address(),
            a.y.address(),
            a.rstd.address(),
        )?;
        self.linear(
            "head",
            true,
            [s.rows(), s.width, s.codes],
            a.y.address(),
            a.logits.address(),
        )
    }

    /// Labels and t of `s.batch` images → condition and all modulations.
    pub fn condition(&self, s: &Sizes, c: &Conditions) -> Result<()> {
        let gpu = &*self.gpu;
        kernels::time_features(gpu, s, c.t.address(), c.features.address())?;
        self.linear_f32(
            "t_embedder.0",
            [s.batch, 256, s.width],
            c.features.address(),
            c.middle.address(),
        )?;
        kernels::silu(gpu, s, c.middle.address(), c.middle_silu.address())?;
        self.linear_f32(
            "t_embedder.2",
            [s.batch, s.width, s.width],
            c.middle_silu.address(),
            c.time.address(),
        )?;
        let embedding = self.full("y_embedder.weight")?;
        kernels::condition(
            gpu,
            s,
            c.time.address(),
            embedding,
            c.labels.address(),
            c.pre.address(),
            c.condition.address(),
        )?;
        match s.rank {
            // The weights of all blocks lie side by side: one product for all modulations.
            None => self.linear_f32(
                "blocks.0.adaLN_modulation",
                [s.batch, s.width, s.modulations()],
                c.condition.address(),
                c.modulations.address(),
            ),
            Some(rank) => self.modulations_of_low_rank(s, c, rank),
        }
    }

    /// One product for the narrow halves of all blocks, one a block for the wide ones, and the last
    /// modulation.
    fn modulations_of_low_rank(&self, s: &Sizes, c: &Conditions, rank: usize) -> Result<()> {
        let condition = c.condition.address();
        self.linear(
            "blocks.0.adaLN_modulation.0",
            false,
            [s.batch, s.width, s.narrow()],
            condition,
            c.narrow.address(),
        )?;
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
            self.product(
                &part(rank, 6 * s.width, s.narrow()),
                c.narrow.at(i * rank),
                self.half(&name("weight"))?,
                c.modulations.at(self.modulation(i, Modulation::Shift1)),
                self.full(&name("bias"))?,
            )?;
        }
        let [last, _] = self.last_modulations();
        self.product(
            &part(s.width, 2 * s.width, 0),
            condition,
            self.half("adaLN_modulation.weight")?,
            c.modulations.at(last),
            self.full("adaLN_modulation.bias")?,
        )
    }

    /// `before`: what the stream before the block is made of; `modulations`: address of f32 [B,(6L+2)C]. Returns the same of the stream after it.
    fn block(
        &self,
        i: usize,
        s: &Sizes,
        a: &Trunk,
        before: Residual,
        modulations: u64,
    ) -> Result<Residual> {
        self.inner(i, s, a, before, modulations)?;
        self.gated(i, s, a, a.keeps_inner(i))?;
        let gate = self.modulation(i, Modulation::Gate2) * size_of::<f32>();
        let stream = Residual {
            x: a.x_mid.address(),
            branch: a.ends(i).h2.address(),
            gate: modulations + gate as u64,
        };
        let name = format!("blocks.{i}.mlp.w3");
        let hidden = a.inner(i).hidden.address();
        let after = a.ends(i + 1).x.address(); // without a gradient all blocks' are one
        let stream = self.branch(s, a, &name, (hidden, s.hidden), stream, after)?;
        if let Some(dropout) = a.dropout {
            kernels::dropout(&self.gpu, s, stream.branch, i, dropout)?;
        }
        Ok(stream)
    }

    /// The last product of a branch, of rows of so many columns at an address; the stream it is to be added to. Where no gradient needs
    /// the branch itself it is added at once, to `sum`.
    fn branch(
        &self,
        s: &Sizes,
        a: &Trunk,
        name: &str,
        (rows, columns): (u64, usize),
        stream: Residual,
        sum: u64,
    ) -> Result<Residual> {
        let sizes = [s.rows(), columns, s.width];
        if a.gradient || !product::serves_many(&self.gpu, s.rows(), s.width) {
            self.linear(name, false, sizes, rows, stream.branch)?;
            return Ok(stream);
        }
        let to = Added {
            x: stream.x,
            gate: stream.gate,
            tokens: s.tokens,
            stride: s.modulations(),
        };
        let weight = self.half(&format!("{name}.weight"))?;
        product::added_to(&self.gpu, sizes, rows, weight, to, sum)?;
        Ok(Residual {
            x: sum,
            branch: 0,
            gate: 0,
        })
    }

    /// SiLU(gate)·up of w12's product; gate | up too, where it is kept or on the way.
    pub(super) fn gated(&self, i: usize, s: &Sizes, a: &Trunk, keep: bool) -> Result<()> {
        let (gpu, name) = (&*self.gpu, format!("blocks.{i}.mlp.w12"));
        let [y, gate_up, hidden] =
            [&a.inner(i).y2, &a.inner(i).gate_up, &a.inner(i).hidden].map(Buffer::address);
        let weight = self.half(&format!("{name}.weight"))?;
        if kernels::swiglu_in_products(gpu, s) {
            let kept = if keep { gate_up } else { 0 };
            return kernels::swiglu_product_forward(gpu, s, y, weight, kept, hidden);
        }
        let sizes = [s.rows(), s.width, s.hidden];
        // Where a gradient follows, a block that is computed again takes the same way as the first time.
        if !a.gradient && product::swiglu_of_few(gpu, sizes, y, weight, hidden)? {
            return Ok(());
        }
        self.linear(&name, false, [s.rows(), s.width, 2 * s.hidden], y, gate_up)?;
        kernels::swiglu_forward(gpu, s, gate_up, hidden)
    }

    /// All between a block's ends up to w12's input; the stream before it too, where `before` has a branch.
    pub(super) fn inner(
        &self,
        i: usize,
        s: &Sizes,
        a: &Trunk,
        before: Residual,
        modulations: u64,
    ) -> Result<()> {
        let (gpu, c) = (&*self.gpu, s.width);
        let (x, inner) = (a.ends(i).x.address(), a.inner(i));
        let at = |which| modulations + (self.modulation(i, which) * size_of::<f32>()) as u64;
        let name = |part: &str| format!("blocks.{i}.{part}");

        let norm = [at(Modulation::Shift1), at(Modulation::Scale1)];
        kernels::adaln_forward(
            gpu,
            s,
            before,
            norm,
            x,
            inner.y1.address(),
            inner.rstd1.address(),
        )?;
        self.linear(
            &name("attn.qkv"),
            false,
            [s.rows(), c, 3 * c],
            inner.y1.address(),
            inner.qkv.address(),
        )?;
        kernels::attention_forward(
            gpu,
            s,
            self.rotation(),
            inner.qkv.address(),
            inner.attention.address(),
            inner.lse.address(),
        )?;
        let stream = Residual {
            x,
            branch: inner.h1.address(),
            gate: at(Modulation::Gate1),
        };
        let attention = (inner.attention.address(), c);
        let sum = a.x_mid.address();
        let middle = self.branch(s, a, &name("attn.proj"), attention, stream, sum)?;
        let norm = [at(Modulation::Shift2), at(Modulation::Scale2)];
        kernels::adaln_forward(
            gpu,
            s,
            middle,
            norm,
            a.x_mid.address(),
            inner.y2.address(),
            inner.rstd2.address(),
        )
    }
}
