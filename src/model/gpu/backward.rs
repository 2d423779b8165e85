//! The gradient of the mean cross-entropy in all parameters, by hand, from the activations that the forward pass kept, and the rest of them
//! computed again, to the same bits.
//!
//! Walks the blocks from the last; `dx` is the gradient of the residual stream. A branch's gradient leaves [`kernels::adaln_backward`] of
//! whatever came after it, already times its gate.

use candle_core::Result;

use super::activations::{Activations, Scratch};
use super::forward::{Modulation, Network};
use super::kernels::{self, AdalnGradient, AttentionGradient, Residual};
use crate::ops::cuda::{Buffer, Product, Strides};

impl Network {
    /// Loss and hits of the batch's logits, and the gradient of `weight`·(mean loss) in `gradients`, laid out as the parameters: added to
    /// what is there where `accumulate` is set, else instead of it.
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
        kernels::cross_entropy(
            gpu,
            s,
            a.trunk.logits.address(),
            a.codes.address(),
            a.loss.address(),
            a.hits.address(),
            scale,
        )?;
        kernels::tally(
            gpu,
            s,
            a.loss.address(),
            a.hits.address(),
            a.conditions.t.address(),
            a.image_sums.address(),
            a.tally.address(),
        )?;

        pass.linear(
            "head",
            true,
            s.rows(),
            c,
            s.codes,
            a.trunk.logits.address(),
            a.trunk.y.address(),
            scratch.dy.address(),
        )?;
        let last = a.trunk.ends(s.depth - 1);
        let [shift, scale] = self.last_modulations();
        pass.adaln(
            0,
            Stream::Kept(a.trunk.x.address()),
            a.trunk.rstd.address(),
            [shift, scale],
            Some((
                last.h2.address(),
                self.modulation(s.depth - 1, Modulation::Gate2),
            )),
            scratch.dx[0].address(),
        )?;
        for i in (0..s.depth).rev() {
            pass.block(i)?;
        }
        pass.inputs()?;
        pass.condition()
    }
}

/// The stream that a normalisation read: kept as it was, or from before its last branch, which is added once more.
#[derive(Clone, Copy)]
enum Stream {
    Kept(u64),
    Before(u64),
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
    fn gradient(&self, name: &str) -> Result<u64> {
        Ok(self.gradients.at(self.network.flat.place(name)?))
    }

    /// dweight = dyᵀ·x, f32; dbias = Σ dy where there is one; dx = dy·weight where `dx` is not 0.
    #[allow(clippy::too_many_arguments)] // a product's shape and its three operands
    fn linear(
        &self,
        name: &str,
        bias: bool,
        rows: usize,
        input: usize,
        output: usize,
        dy: u64,
        x: u64,
        dx: u64,
    ) -> Result<()> {
        let weight = format!("{name}.weight");
        let product = Product {
            accumulate: self.accumulate,
            ..Product::weight_gradient(rows, input, output)
        };
        self.network
            .product(&product, dy, x, self.gradient(&weight)?, 0)?;
        if bias {
            let to = self.gradient(&format!("{name}.bias"))?;
            kernels::row_sums(
                &self.network.gpu,
                dy,
                rows,
                output,
                self.scratch.row_sums.address(),
                to,
                self.accumulate,
            )?;
        }
        if dx == 0 {
            return Ok(());
        }
        let product = Product::input_gradient(rows, input, output);
        self.network
            .product(&product, dy, self.network.half(&weight)?, dx, 0)
    }

    /// Through y = norm(x')·(1 + scale) + shift and x' = x + gate·branch: `stream` gives x', `dsum` is the gradient of x' from further on, 0 for none, `dy`'s
    /// buffer holds that of y. `branch`: its output, and its gate's place.
    fn adaln(
        &self,
        dsum: u64,
        stream: Stream,
        rstd: u64,
        [shift, scale]: [usize; 2],
        branch: Option<(u64, usize)>,
        dx: u64,
    ) -> Result<()> {
        let (a, scratch) = (self.a, self.scratch);
        let out = |place: usize| scratch.dmodulations.at(place);
        let (x, add) = match stream {
            Stream::Kept(x) => (x, false),
            Stream::Before(x) => (x, true),
        };
        kernels::adaln_backward(
            &self.network.gpu,
            &self.network.sizes,
            &AdalnGradient {
                dsum,
                dy: scratch.dy.address(),
                x,
                add,
                rstd,
                scale: a.conditions.modulations.at(scale),
                branch: branch.map_or(0, |(at, _)| at),
                gate: branch.map_or(0, |(_, gate)| a.conditions.modulations.at(gate)),
                dx,
                dbranch: scratch.dbranch.address(),
                partials: scratch.partials.address(),
                dshift: out(shift),
                dscale: out(scale),
                dgate: branch.map_or(0, |(_, gate)| out(gate)),
            },
        )
    }

    /// From dx[0] and the gradient of the MLP branch to the same before the block.
    fn block(&self, i: usize) -> Result<()> {
        let (network, a, scratch) = (self.network, self.a, self.scratch);
        let (s, gpu, c) = (&network.sizes, &*network.gpu, network.sizes.width);
        let (ends, kept) = (a.trunk.ends(i), a.trunk.inner(i));
        let name = |part: &str| format!("blocks.{i}.{part}");
        let at = |which| network.modulation(i, which);
        let [dx, dx_mid] = [&scratch.dx[0], &scratch.dx[1]].map(Buffer::address);
        let dbranch = scratch.dbranch.address();
        if let Some(dropout) = a.trunk.dropout {
            kernels::dropout(gpu, s, dbranch, i, dropout)?;
        }

        if !a.trunk.keeps_inner(i) {
            let stream = Residual {
                x: ends.x.address(),
                branch: 0,
                gate: 0,
            };
            network.inner(i, s, &a.trunk, stream, a.conditions.modulations.address())?;
            network.gated(i, s, &a.trunk, true)?;
        }

        // The products of w3 come in two parts, for SwiGLU's gradient lies within the one or after it.
        let weight = network.half(&name("mlp.w3.weight"))?;
        let [gate_up, dgate_up, dhidden] =
            [&kept.gate_up, &scratch.dgate_up, &scratch.dhidden].map(Buffer::address);
        if kernels::swiglu_in_products(gpu, s) {
            kernels::swiglu_product_backward(gpu, s, dbranch, weight, gate_up, dgate_up)?;
        } else {
            let product = Product::input_gradient(s.rows(), s.hidden, c);
            network.product(&product, dbranch, weight, dhidden, 0)?;
            kernels::swiglu_backward(gpu, s, gate_up, dhidden, dgate_up)?;
        }
        self.linear(
            &name("mlp.w3"),
            false,
            s.rows(),
            s.hidden,
            c,
            dbranch,
            kept.hidden.address(),
            0,
        )?;
        self.linear(
            &name("mlp.w12"),
            false,
            s.rows(),
            c,
            2 * s.hidden,
            dgate_up,
            kept.y2.address(),
            scratch.dy.address(),
        )?;
        self.adaln(
            dx,
            Stream::Before(ends.x.address()),
            kept.rstd2.address(),
            [at(Modulation::Shift2), at(Modulation::Scale2)],
            Some((kept.h1.address(), at(Modulation::Gate1))),
            dx_mid,
        )?;

        let dattention = scratch.dattention.address();
        self.linear(
            &name("attn.proj"),
            false,
            s.rows(),
            c,
            c,
            dbranch,
            kept.attention.address(),
            dattention,
        )?;
        kernels::attention_backward(
            gpu,
            s,
            network.rotation(),
            &AttentionGradient {
                qkv: kept.qkv.address(),
                out: kept.attention.address(),
                dout: dattention,
                lse: kept.lse.address(),
                dqkv: scratch.dqkv.address(),
                parts: scratch.attention_parts.address(),
            },
        )?;
        let dqkv = scratch.dqkv.address();
        self.linear(
            &name("attn.qkv"),
            false,
            s.rows(),
            c,
            3 * c,
            dqkv,
            kept.y1.address(),
            scratch.dy.address(),
        )?;
        let before = i.checked_sub(1);
        self.adaln(
            dx_mid,
            Stream::Kept(ends.x.address()),
            kept.rstd1.address(),
            [at(Modulation::Shift1), at(Modulation::Scale1)],
            before.map(|j| {
                (
                    a.trunk.ends(j).h2.address(),
                    network.modulation(j, Modulation::Gate2),
                )
            }),
            dx,
        )
    }

    /// Positions, x_embedder and mix.
    fn inputs(&self) -> Result<()> {
        let (network, a, scratch) = (self.network, self.a, self.scratch);
        let s = &network.sizes;
        let dx = scratch.dx[0].address();
        if network.positions {
            let to = self.gradient("pos_embed")?;
            kernels::row_sums(
                &network.gpu,
                dx,
                s.batch,
                s.tokens * s.width,
                scratch.row_sums.address(),
                to,
                self.accumulate,
            )?;
        }
        self.linear(
            "x_embedder",
            true,
            s.rows(),
            s.mix,
            s.width,
            dx,
            a.trunk.mixed.address(),
            scratch.dmixed.address(),
        )?;
        self.linear(
            "mix",
            true,
            s.rows(),
            2 * s.latent,
            s.mix,
            scratch.dmixed.address(),
            a.trunk.joined.address(),
            0,
        )
    }

    /// All modulations: the gradients of their weights and biases, and of the condition.
    fn modulations(&self) -> Result<()> {
        let (network, a, scratch) = (self.network, self.a, self.scratch);
        let (s, c) = (&network.sizes, network.sizes.width);
        let dmodulations = scratch.dmodulations.address();
        self.linear(
            "blocks.0.adaLN_modulation",
            true,
            s.batch,
            c,
            s.modulations(),
            dmodulations,
            a.conditions.condition.address(),
            0,
        )?;
        let product = Product {
            f32_out: true,
            ..Product::input_gradient(s.batch, c, s.modulations())
        };
        let weights = network.half("blocks.0.adaLN_modulation.weight")?;
        let dcondition = scratch.dcondition.address();
        network.product(&product, dmodulations, weights, dcondition, 0)
    }

    /// The same of modulations of low rank: the biases in one, the wide halves and the last
    /// modulation by their columns, then all narrow halves at once.
    fn modulations_of_low_rank(&self, rank: usize) -> Result<()> {
        let (network, a, scratch) = (self.network, self.a, self.scratch);
        let (s, c) = (&network.sizes, network.sizes.width);
        let (narrow, columns, accumulate) = (s.narrow(), s.modulations(), self.accumulate);
        kernels::row_sums(
            &network.gpu,
            scratch.dmodulations.address(),
            s.batch,
            columns,
            scratch.row_sums.address(),
            self.gradient("blocks.0.adaLN_modulation.1.bias")?,
            accumulate,
        )?;
        let strides = |a, b, c| Strides { a, b, c };
        for i in 0..s.depth {
            let name = format!("blocks.{i}.adaLN_modulation.1.weight");
            let dy = scratch
                .dmodulations
                .at(network.modulation(i, Modulation::Shift1));
            let product = Product {
                accumulate,
                strides: strides(columns, narrow, 0),
                ..Product::weight_gradient(s.batch, rank, 6 * c)
            };
            let x = a.conditions.narrow.at(i * rank);
            network.product(&product, dy, x, self.gradient(&name)?, 0)?;
            let product = Product {
                strides: strides(columns, 0, narrow),
                ..Product::input_gradient(s.batch, rank, 6 * c)
            };
            let dx = scratch.dnarrow.at(i * rank);
            network.product(&product, dy, network.half(&name)?, dx, 0)?;
        }

        let (x, dcondition) = (
            a.conditions.condition.address(),
            scratch.dcondition.address(),
        );
        let [last, _] = network.last_modulations();
        let dy = scratch.dmodulations.at(last);
        let product = Product {
            accumulate,
            strides: strides(columns, 0, 0),
            ..Product::weight_gradient(s.batch, c, 2 * c)
        };
        let to = self.gradient("adaLN_modulation.weight")?;
        network.product(&product, dy, x, to, 0)?;
        let product = Product {
            f32_out: true,
            strides: strides(columns, 0, 0),
            ..Product::input_gradient(s.batch, c, 2 * c)
        };
        let weight = network.half("adaLN_modulation.weight")?;
        network.product(&product, dy, weight, dcondition, 0)?;

        let (name, dy) = ("blocks.0.adaLN_modulation.0", scratch.dnarrow.address());
        self.linear(name, false, s.batch, c, narrow, dy, x, 0)?;
        let product = Product {
            f32_out: true,
            accumulate: true, // to the last modulation's
            ..Product::input_gradient(s.batch, c, narrow)
        };
        let weight = network.half(&format!("{name}.weight"))?;
        network.product(&product, dy, weight, dcondition, 0)
    }

    /// All modulations, the label embedding and the time MLP.
    fn condition(&self) -> Result<()> {
        let (network, a, scratch) = (self.network, self.a, self.scratch);
        let (s, gpu, c) = (&network.sizes, &*network.gpu, network.sizes.width);
        match s.rank {
            None => self.modulations()?,
            Some(rank) => self.modulations_of_low_rank(rank)?,
        }
        let dcondition = scratch.dcondition.address();

        let dpre = scratch.dpre.address();
        kernels::silu_gradient(gpu, s, dcondition, a.conditions.pre.address(), dpre)?;
        let embedding = self.gradient("y_embedder.weight")?;
        kernels::embedding_gradient(
            gpu,
            s,
            dpre,
            a.conditions.labels.address(),
            embedding,
            self.accumulate,
        )?;
        self.linear(
            "t_embedder.2",
            true,
            s.batch,
            c,
            c,
            dpre,
            a.conditions.middle_silu.address(),
            0,
        )?;
        let weights = network.half("t_embedder.2.weight")?;
        let product = Product {
            f32_out: true,
            ..Product::input_gradient(s.batch, c, c)
        };
        network.product(&product, dpre, weights, dcondition, 0)?;
        kernels::silu_gradient(gpu, s, dcondition, a.conditions.middle.address(), dpre)?;
        self.linear(
            "t_embedder.0",
            true,
            s.batch,
            256,
            c,
            dpre,
            a.conditions.features.address(),
            0,
        )
    }
}
