//! The gradient of the mean cross-entropy with respect to all parameters: a hand-written backward
//! pass from the activations that the forward pass kept; recomputed activations are bit-identical.
//!
//! Walks the blocks from the last; `dx` is the gradient of the residual stream. A branch's gradient
//! is written by the [`adaln_backward`] of whatever came after it, already times its gate.

use candle_core::Result;
use half::bf16;

use super::activations::{Activations, Scratch};
use super::forward::{Modulation, Network};
use crate::model::generator::TIME_FEATURES;
use crate::ops::adaln::cuda::{AdalnGradient, Gated, Residual, adaln_backward};
use crate::ops::attention::cuda::{AttentionGradient, attention_backward};
use crate::ops::condition;
use crate::ops::cross_entropy::cuda::cross_entropy;
use crate::ops::cuda::{Buffer, View, ViewMut};
use crate::ops::product::cublaslt::{Product, Strides};
use crate::ops::swiglu::cuda::{swiglu_backward, swiglu_in_products, swiglu_product_backward};

impl Network {
    /// Loss and hits of the batch's logits, and the gradient of `weight`·(mean loss) in
    /// `gradients`, laid out as the parameters: added to what is there if `accumulate`, else
    /// instead of it.
    pub fn backward(
        &self,
        a: &Activations,
        scratch: &Scratch,
        gradients: &Buffer<f32>,
        weight: f32,
        accumulate: bool,
    ) -> Result<()> {
        let pass = Pass {
            network: self,
            a,
            scratch,
            gradients,
            accumulate,
        };
        let (s, gpu, c) = (&self.sizes, &*self.gpu, self.sizes.width);
        let scale = weight / s.rows() as f32;
        cross_entropy(
            gpu,
            [s.rows(), s.codes],
            a.trunk.logits.view_mut(),
            a.codes.view(),
            a.loss.view_mut(),
            a.hits.view_mut(),
            scale,
        )?;
        condition::tally(
            gpu,
            [s.batch, s.tokens, s.steps],
            a.loss.view(),
            a.hits.view(),
            a.conditions.t.view(),
            a.image_sums.view_mut(),
            a.tally.view_mut(),
        )?;

        pass.linear(
            "head",
            true,
            [s.rows(), c, s.codes],
            &a.trunk.logits,
            &a.trunk.y,
            Some(&scratch.dy),
        )?;
        let last = a.trunk.ends(s.depth - 1);
        pass.adaln(
            None,
            Stream::Kept(&a.trunk.x),
            &a.trunk.rstd,
            self.last_modulations(),
            Some((&last.h2, self.modulation(s.depth - 1, Modulation::Gate2))),
            &scratch.dx[0],
        )?;
        for i in (0..s.depth).rev() {
            pass.block(i)?;
        }
        pass.inputs()?;
        pass.condition()
    }
}

/// The stream that a normalisation read: kept as it was, or from before its last branch, which is
/// added again.
#[derive(Clone, Copy)]
enum Stream<'a> {
    Kept(&'a Buffer<bf16>),
    Before(&'a Buffer<bf16>),
}

/// One backward pass.
struct Pass<'a> {
    network: &'a Network,
    a: &'a Activations,
    scratch: &'a Scratch,
    gradients: &'a Buffer<f32>,
    accumulate: bool,
}

impl Pass<'_> {
    /// The gradients from that of the parameter of this name on.
    fn gradient(&self, name: &str) -> Result<ViewMut<'_, f32>> {
        let place = self.network.flat.place(name)?;
        Ok(self.gradients.view_mut().tail(place))
    }

    /// dweight = dyᵀ·x, f32; dbias = Σ dy if there is one; dx = dy·weight if there is a `dx`. Sizes
    /// [rows, input, output].
    fn linear(
        &self,
        name: &str,
        bias: bool,
        [rows, input, output]: [usize; 3],
        dy: &Buffer<bf16>,
        x: &Buffer<bf16>,
        dx: Option<&Buffer<bf16>>,
    ) -> Result<()> {
        let weight = format!("{name}.weight");
        let product = Product {
            accumulate: self.accumulate,
            ..Product::weight_gradient(rows, input, output)
        };
        let to = self.gradient(&weight)?;
        self.network
            .product(&product, dy.view(), x.view(), to, None)?;
        if bias {
            let to = self.gradient(&format!("{name}.bias"))?;
            self.row_sums([rows, output], dy, to)?;
        }
        let Some(dx) = dx else {
            return Ok(());
        };
        let product = Product::input_gradient(rows, input, output);
        let weight = self.network.bf16(&weight)?;
        self.network
            .product(&product, dy.view(), weight, dx.view_mut(), None)
    }

    fn row_sums(&self, sizes: [usize; 2], x: &Buffer<bf16>, to: ViewMut<f32>) -> Result<()> {
        let scratch = self.scratch.row_sums.view_mut();
        let gpu = &self.network.gpu;
        condition::row_sums(gpu, sizes, x.view(), scratch, to, self.accumulate)
    }

    /// Through y = norm(x')·(1 + scale) + shift and x' = x + gate·branch: `stream` gives x', `dsum`
    /// is the gradient of x' from further on, if there is one, `dy`'s buffer holds that of y.
    /// `branch`: its output, and its gate's place.
    fn adaln(
        &self,
        dsum: Option<&Buffer<bf16>>,
        stream: Stream,
        rstd: &Buffer<f32>,
        [shift, scale]: [usize; 2],
        branch: Option<(&Buffer<bf16>, usize)>,
        dx: &Buffer<bf16>,
    ) -> Result<()> {
        let (a, scratch) = (self.a, self.scratch);
        let modulation = |place: usize| a.conditions.modulations.view().tail(place);
        let out = |place: usize| scratch.dmodulations.view_mut().tail(place);
        let (x, add) = match stream {
            Stream::Kept(x) => (x, false),
            Stream::Before(x) => (x, true),
        };
        adaln_backward(
            &self.network.gpu,
            self.network.sizes.adaln(),
            AdalnGradient {
                dsum: dsum.map(Buffer::view),
                dy: scratch.dy.view(),
                x: x.view(),
                add,
                rstd: rstd.view(),
                scale: modulation(scale),
                gated: branch.map(|(branch, gate)| Gated {
                    branch: branch.view(),
                    gate: modulation(gate),
                }),
                dx: dx.view_mut(),
                dbranch: scratch.dbranch.view_mut(),
                partials: scratch.partials.view_mut(),
                dshift: out(shift),
                dscale: out(scale),
                dgate: branch.map(|(_, gate)| out(gate)),
            },
        )
    }

    /// From dx[0] and the gradient of the MLP branch to the same before the block.
    fn block(&self, i: usize) -> Result<()> {
        let (network, a, scratch) = (self.network, self.a, self.scratch);
        let (s, gpu) = (&network.sizes, &*network.gpu);
        if let Some(dropout) = a.dropping() {
            condition::dropout(gpu, s.map(), scratch.dbranch.view_mut(), i, dropout)?;
        }
        if !a.trunk.keeps_inner(i) {
            let stream = Residual::whole(a.trunk.ends(i).x.view());
            network.inner(i, s, &a.trunk, stream, a.conditions.modulations.view())?;
            network.gated(i, s, &a.trunk, true)?;
        }
        self.mlp(i)?;
        self.attention(i)
    }

    /// From dx[0] and the gradient of the MLP branch to dx[1] and that of attention's branch.
    fn mlp(&self, i: usize) -> Result<()> {
        let (network, a, scratch) = (self.network, self.a, self.scratch);
        let (s, gpu, c) = (&network.sizes, &*network.gpu, network.sizes.width);
        let kept = a.trunk.inner(i);
        let name = |part: &str| format!("blocks.{i}.{part}");
        let at = |which| network.modulation(i, which);

        // dX and dW of w3 are computed separately because SwiGLU's backward may be fused into the
        // dX matmul.
        let weight = network.bf16(&name("mlp.w3.weight"))?;
        let (dbranch, gate_up) = (scratch.dbranch.view(), kept.gate_up.view());
        let dgate_up = scratch.dgate_up.view_mut();
        if swiglu_in_products(gpu, s.rows()) {
            swiglu_product_backward(gpu, s.gated(), dbranch, weight, gate_up, dgate_up)?;
        } else {
            let product = Product::input_gradient(s.rows(), s.hidden, c);
            let dhidden = &scratch.dhidden;
            network.product(&product, dbranch, weight, dhidden.view_mut(), None)?;
            let sizes = [s.rows(), s.hidden];
            swiglu_backward(gpu, sizes, gate_up, dhidden.view(), dgate_up)?;
        }
        self.linear(
            &name("mlp.w3"),
            false,
            [s.rows(), s.hidden, c],
            &scratch.dbranch,
            &kept.hidden,
            None,
        )?;
        self.linear(
            &name("mlp.w12"),
            false,
            [s.rows(), c, 2 * s.hidden],
            &scratch.dgate_up,
            &kept.y2,
            Some(&scratch.dy),
        )?;
        self.adaln(
            Some(&scratch.dx[0]),
            Stream::Before(&a.trunk.ends(i).x),
            &kept.rstd2,
            [at(Modulation::Shift2), at(Modulation::Scale2)],
            Some((&kept.h1, at(Modulation::Gate1))),
            &scratch.dx[1],
        )
    }

    /// From dx[1] and the gradient of attention's branch to dx[0] and that of the branch before the
    /// block.
    fn attention(&self, i: usize) -> Result<()> {
        let (network, a, scratch) = (self.network, self.a, self.scratch);
        let (s, gpu, c) = (&network.sizes, &*network.gpu, network.sizes.width);
        let kept = a.trunk.inner(i);
        let name = |part: &str| format!("blocks.{i}.{part}");
        let at = |which| network.modulation(i, which);
        self.linear(
            &name("attn.proj"),
            false,
            [s.rows(), c, c],
            &scratch.dbranch,
            &kept.attention,
            Some(&scratch.dattention),
        )?;
        attention_backward(
            gpu,
            s.attention(),
            network.rotation(),
            AttentionGradient {
                qkv: kept.qkv.view(),
                out: kept.attention.view(),
                dout: scratch.dattention.view(),
                lse: kept.lse.view(),
                dqkv: scratch.dqkv.view_mut(),
                parts: scratch.attention_parts.view_mut(),
            },
        )?;
        self.linear(
            &name("attn.qkv"),
            false,
            [s.rows(), c, 3 * c],
            &scratch.dqkv,
            &kept.y1,
            Some(&scratch.dy),
        )?;
        let before = i.checked_sub(1);
        self.adaln(
            Some(&scratch.dx[1]),
            Stream::Kept(&a.trunk.ends(i).x),
            &kept.rstd1,
            [at(Modulation::Shift1), at(Modulation::Scale1)],
            before.map(|j| {
                (
                    &a.trunk.ends(j).h2,
                    network.modulation(j, Modulation::Gate2),
                )
            }),
            &scratch.dx[0],
        )
    }

    /// Positions, x_embedder and mix.
    fn inputs(&self) -> Result<()> {
        let (a, scratch, s) = (self.a, self.scratch, &self.network.sizes);
        let dx = &scratch.dx[0];
        if self.network.positions {
            let to = self.gradient("pos_embed")?;
            self.row_sums([s.batch, s.tokens * s.width], dx, to)?;
        }
        self.linear(
            "x_embedder",
            true,
            [s.rows(), s.mix, s.width],
            dx,
            &a.trunk.mixed,
            Some(&scratch.dmixed),
        )?;
        self.linear(
            "mix",
            true,
            [s.rows(), 2 * s.latent, s.mix],
            &scratch.dmixed,
            &a.trunk.joined,
            None,
        )
    }

    /// All modulations: the gradients of their weights and biases, and of the condition.
    fn modulations(&self) -> Result<()> {
        let (network, a, scratch) = (self.network, self.a, self.scratch);
        let (s, c) = (&network.sizes, network.sizes.width);
        self.linear(
            "blocks.0.adaLN_modulation",
            true,
            [s.batch, c, s.modulations()],
            &scratch.dmodulations,
            &a.conditions.condition,
            None,
        )?;
        let product = Product {
            f32_out: true,
            ..Product::input_gradient(s.batch, c, s.modulations())
        };
        network.product(
            &product,
            scratch.dmodulations.view(),
            network.bf16("blocks.0.adaLN_modulation.weight")?,
            scratch.dcondition.view_mut(),
            None,
        )
    }

    /// The same of modulations of low rank: the biases in one, the wide halves and the last
    /// modulation by their columns, then all narrow halves at once.
    fn modulations_of_low_rank(&self, rank: usize) -> Result<()> {
        let (network, a, scratch) = (self.network, self.a, self.scratch);
        let (s, c) = (&network.sizes, network.sizes.width);
        let (narrow, columns, accumulate) = (s.narrow(), s.modulations(), self.accumulate);
        let bias = self.gradient("blocks.0.adaLN_modulation.1.bias")?;
        self.row_sums([s.batch, columns], &scratch.dmodulations, bias)?;
        let strides = |a, b, c| Strides { a, b, c };
        let dy_from = |place: usize| -> View<bf16> { scratch.dmodulations.view().tail(place) };
        for i in 0..s.depth {
            let name = format!("blocks.{i}.adaLN_modulation.1.weight");
            let dy = dy_from(network.modulation(i, Modulation::Shift1));
            let product = Product {
                accumulate,
                strides: strides(columns, narrow, 0),
                ..Product::weight_gradient(s.batch, rank, 6 * c)
            };
            let x = a.conditions.narrow.view().tail(i * rank);
            network.product(&product, dy, x, self.gradient(&name)?, None)?;
            let product = Product {
                strides: strides(columns, 0, narrow),
                ..Product::input_gradient(s.batch, rank, 6 * c)
            };
            let dx = scratch.dnarrow.view_mut().tail(i * rank);
            network.product(&product, dy, network.bf16(&name)?, dx, None)?;
        }

        let (x, dcondition) = (&a.conditions.condition, &scratch.dcondition);
        let [last, _] = network.last_modulations();
        let product = Product {
            accumulate,
            strides: strides(columns, 0, 0),
            ..Product::weight_gradient(s.batch, c, 2 * c)
        };
        let to = self.gradient("adaLN_modulation.weight")?;
        network.product(&product, dy_from(last), x.view(), to, None)?;
        let product = Product {
            f32_out: true,
            strides: strides(columns, 0, 0),
            ..Product::input_gradient(s.batch, c, 2 * c)
        };
        let weight = network.bf16("adaLN_modulation.weight")?;
        network.product(&product, dy_from(last), weight, dcondition.view_mut(), None)?;

        let (name, dy) = ("blocks.0.adaLN_modulation.0", &scratch.dnarrow);
        self.linear(name, false, [s.batch, c, narrow], dy, x, None)?;
        let product = Product {
            f32_out: true,
            accumulate: true, // to the last modulation's
            ..Product::input_gradient(s.batch, c, narrow)
        };
        let weight = network.bf16(&format!("{name}.weight"))?;
        network.product(&product, dy.view(), weight, dcondition.view_mut(), None)
    }

    /// All modulations, the label embedding and the time MLP.
    fn condition(&self) -> Result<()> {
        let (network, a, scratch) = (self.network, self.a, self.scratch);
        let (s, gpu, c) = (&network.sizes, &*network.gpu, network.sizes.width);
        match s.rank {
            None => self.modulations()?,
            Some(rank) => self.modulations_of_low_rank(rank)?,
        }
        let (dcondition, dpre, count) = (&scratch.dcondition, &scratch.dpre, s.batch * c);
        let through_silu = |x: &Buffer<f32>| {
            condition::silu_gradient(gpu, count, dcondition.view(), x.view(), dpre.view_mut())
        };
        through_silu(&a.conditions.pre)?;
        condition::embedding_gradient(
            gpu,
            s.labelled(),
            dpre.view(),
            a.conditions.labels.view(),
            self.gradient("y_embedder.weight")?,
            self.accumulate,
        )?;
        self.linear(
            "t_embedder.2",
            true,
            [s.batch, c, c],
            dpre,
            &a.conditions.middle_silu,
            None,
        )?;
        let weights = network.bf16("t_embedder.2.weight")?;
        let product = Product {
            f32_out: true,
            ..Product::input_gradient(s.batch, c, c)
        };
        network.product(&product, dpre.view(), weights, dcondition.view_mut(), None)?;
        through_silu(&a.conditions.middle)?;
        self.linear(
            "t_embedder.0",
            true,
            [s.batch, TIME_FEATURES, c],
            dpre,
            &a.conditions.features,
            None,
        )
    }
}
