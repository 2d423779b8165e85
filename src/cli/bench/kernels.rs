//! Benchmarks of single GPU kernels, on the buffers of a one-block generator after a real forward
//! and backward pass.

use std::sync::Arc;

use candle_core::Device;

use super::clock::random_bf16;
use super::{CLASSES, config, generator};
use crate::error::Result;
use crate::model::Quantizer;
use crate::model::gpu::kernels::{
    self, AdalnGradient, Adam, AttentionGradient, CONTROL, Residual, Trained,
};
use crate::model::gpu::{Activations, Network, Scratch};
use crate::ops::cuda::{Buffer, Gpu, Product};
use crate::ops::product::cuda::{self as product, Added};
use crate::ops::quantize::cuda::{ExamplesAt, NoiseAt, QuantizedAt, Tables, Until};
use crate::ops::sample::{Advance, Cuts, Streams, advance, choose};
use crate::rng::{Purpose, Stream};
use crate::store::Scope;

/// A kernel's cost and how to launch it.
pub struct Case<'a> {
    pub name: String,
    pub flop: f64,
    pub bytes: f64,
    pub launch: Box<dyn Fn() -> candle_core::Result<()> + 'a>,
}

/// The buffers that the kernels work on.
pub struct Bench {
    pub gpu: Arc<Gpu>,
    network: Network,
    a: Activations,
    scratch: Scratch,
    tables: Tables,
    side: usize,
    gradients: Buffer<f32>,
    moments: [Buffer<f32>; 3],
    control: Buffer<f32>,
    partials: Buffer<f32>,
    indices: Buffer<u64>,
    order: Buffer<u32>,
    seed: Buffer<u32>,
    latents: Buffer<f32>,
    codes: Buffer<u32>,
    sums: Buffer<f32>,
    wide: Buffer<half::bf16>,
    products: Buffer<half::bf16>,
}

impl Bench {
    /// One block of the width that a generator of `depth` blocks has, over a map of side².
    pub fn new(gpu: Arc<Gpu>, depth: u16, side: u16, batch: usize) -> Result<Self> {
        let mut config = config(depth, side);
        config.generator.width = Some(64 * usize::from(depth));
        config.generator.heads = Some(depth.into());
        config.generator.depth = 1;
        let (_, params) = generator(&config)?;
        let mut network = Network::new(gpu.clone(), &config, CLASSES, batch)?;
        network.load(&params.tensors())?;
        let d = config.tokenizer.embed_dim;
        let scope = Scope::init(2, &Device::Cpu);
        let quantizer = Quantizer::new(&config.quantizer, &config.schedule, d, &scope)?;
        let tables = Tables::new(&gpu, &quantizer.codebook, &quantizer.schedule)?;
        let s = network.sizes;
        let mut a = Activations::new(&gpu, &s, 0)?;
        let mut values = vec![0f32; s.rows() * d];
        Stream::new(3, Purpose::Noise, 0, 1).fill_normal(&mut values);
        a.noise.write(&values)?;
        a.sum.write(&values)?;
        let latents = Buffer::from_host(&gpu, &values)?;
        let count = |i: usize, n: usize| (i.wrapping_mul(2_654_435_761) % n) as u32;
        let map = |len: usize, n: usize| (0..len).map(|i| count(i, n)).collect::<Vec<u32>>();
        a.codes.write(&map(s.rows(), s.codes))?;
        a.conditions.labels.write(&map(batch, CLASSES))?;
        let t: Vec<u32> = (0..batch).map(|i| 1 + (i % s.steps) as u32).collect();
        a.conditions.t.write(&t)?;
        let scratch = Scratch::new(&gpu, &s)?;
        let zeros = || Buffer::<f32>::zeros(&gpu, network.flat.len);
        let gradients = zeros()?;
        network.forward(&a)?;
        network.backward(&a, &scratch, &gradients, 1.0, false)?;
        let widest = s.rows() * (2 * s.hidden).max(3 * s.width).max(s.codes);
        let mut control = vec![0f32; CONTROL];
        (control[0], control[1], control[2]) = (1e-4, 1.0, 0.9999);
        Ok(Self {
            moments: [zeros()?, zeros()?, zeros()?],
            control: Buffer::from_host(&gpu, &control)?,
            partials: Buffer::zeros(&gpu, 1024)?,
            indices: Buffer::from_host(&gpu, &(0..batch as u64).collect::<Vec<_>>())?,
            order: Buffer::from_host(&gpu, &Until::longest_first(&t))?,
            seed: Buffer::from_host(&gpu, &[7, 0])?,
            codes: Buffer::zeros(&gpu, s.steps * s.rows())?,
            sums: Buffer::zeros(&gpu, s.rows() * d)?,
            wide: random_bf16(&gpu, widest)?,
            products: Buffer::zeros(&gpu, widest)?,
            side: side.into(),
            gpu,
            network,
            a,
            scratch,
            tables,
            gradients,
            latents,
        })
    }

    pub fn cases(&self) -> Result<Vec<Case<'_>>> {
        let mut cases = self.quantizer_and_sampling();
        cases.extend(self.elementwise());
        cases.extend(self.attention());
        cases.extend(self.products());
        Ok(cases)
    }

    fn quantizer_and_sampling(&self) -> Vec<Case<'_>> {
        let (gpu, s, a) = (&*self.gpu, &self.network.sizes, &self.a);
        let map = [s.batch, self.side, self.side];
        let (rows, d, k) = (s.rows() as f64, s.latent as f64, s.codes as f64);
        let noise = NoiseAt::Drawn {
            seed: 7,
            indices: self.indices.address(),
        };
        let streams = Streams {
            seed: self.seed.address(),
            indices: self.indices.address(),
        };
        let search = 2.0 * rows * k * d;
        let to = ExamplesAt {
            noise: a.noise.address(),
            sum: self.sums.address(),
            codes: self.codes.address(),
        };
        let latents = self.latents.address();
        let cuts = move |lambda, top_k, top_p| Cuts {
            lambda,
            tau: 1.0,
            top_k,
            top_p,
            gumbel: true,
            t: 5,
        };
        // Half of the rows stand for the unconditional ones.
        let half = [s.batch / 2, s.tokens, s.codes];
        let choose = move |cuts: Cuts| {
            let (logits, codes) = (self.wide.address(), self.codes.address());
            choose(
                gpu,
                half,
                logits,
                streams,
                codes,
                self.partials.address(),
                &cuts,
            )
        };
        let at = Advance {
            codes: self.codes.address(),
            before: self.latents.address(),
            after: self.sums.address(),
            rows: a.trunk.joined.address(),
            copies: 1,
            t: 5,
        };
        let chosen = half[0] as f64 * s.tokens as f64 * k * 4.0;
        vec![
            case(
                format!("quantize, {} steps", s.steps),
                s.steps as f64 * search,
                rows * (d * 4.0 + s.steps as f64 * 4.0),
                move || {
                    let to = QuantizedAt {
                        codes: self.codes.address(),
                        ..QuantizedAt::default()
                    };
                    self.tables.all(gpu, latents, map, noise, to)
                },
            ),
            case(
                "quantize until t",
                (s.steps + 1) as f64 / 2.0 * search,
                rows * d * 12.0,
                move || {
                    let until = Until {
                        t: a.conditions.t.address(),
                        order: self.order.address(),
                    };
                    self.tables.until(gpu, latents, map, noise, until, to)
                },
            ),
            case("sample: choose, guided", 0.0, chosen, move || {
                choose(cuts(2.0, None, None))
            }),
            case("sample: choose, top-k and top-p", 0.0, chosen, move || {
                choose(cuts(2.0, Some(600), Some(0.95)))
            }),
            case("sample: advance", 0.0, rows * d * 12.0, move || {
                advance(
                    gpu,
                    [s.batch, self.side, self.side, s.latent],
                    self.tables.lookup(),
                    streams,
                    &at,
                )
            }),
        ]
    }

    fn elementwise(&self) -> Vec<Case<'_>> {
        let (gpu, s, a) = (&*self.gpu, &self.network.sizes, &self.a);
        let (ends, kept) = (a.trunk.ends(0), a.trunk.inner(0));
        let (rows, c, f) = (s.rows() as f64, s.width as f64, s.hidden as f64);
        let at = |i: usize| a.conditions.modulations.at(i * s.width);
        let (scratch, n) = (&self.scratch, &self.network);
        let from = Residual {
            x: ends.x.address(),
            branch: kept.h1.address(),
            gate: at(2),
        };
        let gradient = AdalnGradient {
            dsum: scratch.dx[0].address(),
            dy: scratch.dy.address(),
            x: ends.x.address(),
            add: true,
            rstd: kept.rstd2.address(),
            scale: at(4),
            branch: kept.h1.address(),
            gate: at(2),
            dx: scratch.dx[1].address(),
            dbranch: scratch.dbranch.address(),
            partials: scratch.partials.address(),
            dshift: scratch.dmodulations.at(3 * s.width),
            dscale: scratch.dmodulations.at(4 * s.width),
            dgate: scratch.dmodulations.at(2 * s.width),
        };
        let trained = Trained {
            gradients: self.gradients.address(),
            parameters: n.parameters.address(),
            first: self.moments[0].address(),
            second: self.moments[1].address(),
            average: self.moments[2].address(),
            half: n.half.address(),
        };
        let adam = Adam {
            beta1: 0.9,
            beta2: 0.95,
            eps: 1e-8,
            weight_decay: 0.03,
        };
        let (x, h) = (kept.gate_up.address(), kept.hidden.address());
        let flop = 2.0 * rows * c * f;
        let weights = self.network.half.address();
        let mut cases = Vec::new();
        if kernels::swiglu_in_products(gpu, s) {
            cases = vec![
                case(
                    "w12 with swiglu",
                    2.0 * flop,
                    rows * (c + f) * 2.0,
                    move || {
                        let y = kept.y2.address();
                        kernels::swiglu_product_forward(gpu, s, y, weights, 0, h)
                    },
                ),
                case(
                    "w12 with swiglu, gate and up kept",
                    2.0 * flop,
                    rows * (c + 3.0 * f) * 2.0,
                    move || {
                        let y = kept.y2.address();
                        kernels::swiglu_product_forward(gpu, s, y, weights, x, h)
                    },
                ),
                case(
                    "w3 dX with swiglu backward",
                    flop,
                    rows * (c + 4.0 * f) * 2.0,
                    move || {
                        let (dy, dx) = (scratch.dbranch.address(), scratch.dgate_up.address());
                        kernels::swiglu_product_backward(gpu, s, dy, weights, x, dx)
                    },
                ),
            ];
        }
        if product::serves_many(gpu, s.rows(), s.width) {
            let to = Added {
                x: a.trunk.x.address(),
                gate: at(5),
                tokens: s.tokens,
                stride: s.modulations(),
            };
            let sizes = [s.rows(), s.hidden, s.width];
            let bytes = rows * (f + 2.0 * c) * 2.0;
            cases.push(case(
                "w3 added to the residual stream",
                flop,
                bytes,
                move || product::added_to(gpu, sizes, h, weights, to, a.trunk.x_mid.address()),
            ));
        }
        cases.extend([
            case("adaln forward", 0.0, rows * c * 8.0, move || {
                kernels::adaln_forward(
                    gpu,
                    s,
                    from,
                    [at(3), at(4)],
                    a.trunk.x_mid.address(),
                    kept.y2.address(),
                    kept.rstd2.address(),
                )
            }),
            case("adaln backward", 0.0, rows * c * 12.0, move || {
                kernels::adaln_backward(gpu, s, &gradient)
            }),
            case("swiglu forward", 0.0, rows * f * 6.0, move || {
                kernels::swiglu_forward(gpu, s, x, h)
            }),
            case("swiglu backward", 0.0, rows * f * 10.0, move || {
                kernels::swiglu_backward(gpu, s, x, self.wide.address(), scratch.dgate_up.address())
            }),
            case(
                "cross-entropy with gradient",
                0.0,
                rows * s.codes as f64 * 4.0,
                move || {
                    kernels::cross_entropy(
                        gpu,
                        s,
                        a.trunk.logits.address(),
                        a.codes.address(),
                        a.loss.address(),
                        a.hits.address(),
                        1e-3,
                    )
                },
            ),
            case(
                format!("optimizer, {:.1} M", n.flat.len as f64 / 1e6),
                0.0,
                n.flat.len as f64 * 42.0,
                move || {
                    kernels::adamw(
                        gpu,
                        &trained,
                        &adam,
                        [n.flat.decayed, n.flat.len],
                        self.partials.address(),
                        self.control.address(),
                    )
                },
            ),
        ]);
        cases
    }

    fn attention(&self) -> Vec<Case<'_>> {
        let (gpu, s) = (&*self.gpu, &self.network.sizes);
        let kept = self.a.trunk.inner(0);
        let (rows, c) = (s.rows() as f64, s.width as f64);
        let flop = 4.0 * rows * s.tokens as f64 * c;
        let rope = self.network.rotation();
        let gradient = AttentionGradient {
            qkv: kept.qkv.address(),
            out: kept.attention.address(),
            dout: self.scratch.dattention.address(),
            lse: kept.lse.address(),
            dqkv: self.scratch.dqkv.address(),
            parts: self.scratch.attention_parts.address(),
        };
        vec![
            case("attention forward", flop, rows * c * 8.0, move || {
                kernels::attention_forward(
                    gpu,
                    s,
                    rope,
                    kept.qkv.address(),
                    kept.attention.address(),
                    kept.lse.address(),
                )
            }),
            case(
                "attention backward",
                2.5 * flop,
                rows * c * 16.0,
                move || kernels::attention_backward(gpu, s, rope, &gradient),
            ),
        ]
    }

    /// The matmuls of a block and of the head: forward, input gradient and weight gradient.
    fn products(&self) -> Vec<Case<'_>> {
        let s = &self.network.sizes;
        let (rows, c) = (s.rows(), s.width);
        let mut cases = Vec::new();
        for (name, input, output) in [
            ("qkv", c, 3 * c),
            ("proj", c, c),
            ("w12", c, 2 * s.hidden),
            ("w3", s.hidden, c),
            ("head", c, s.codes),
        ] {
            let kinds = [
                ("forward", Product::forward(rows, input, output)),
                ("dX", Product::input_gradient(rows, input, output)),
                ("dW", Product::weight_gradient(rows, input, output)),
            ];
            for (kind, shape) in kinds {
                let (m, n, k) = (shape.m as f64, shape.n as f64, shape.k as f64);
                let out = if shape.f32_out { 4.0 } else { 2.0 };
                let bytes = 2.0 * (m * k + k * n) + out * m * n;
                cases.push(case(
                    format!("matmul {name} {kind}"),
                    shape.flop(),
                    bytes,
                    move || {
                        let a = self.wide.address();
                        let (b, to) = match shape.f32_out {
                            true => (a, self.gradients.address()),
                            false => (self.network.half.address(), self.products.address()),
                        };
                        let sizes = [rows, input, output];
                        if kind == "forward" && product::of_few(&self.gpu, sizes, a, b, 0, to)? {
                            return Ok(());
                        }
                        // SAFETY: `wide` and `products` hold rows of the widest matmul; the
                        // gradient and bf16 weight buffers hold every weight.
                        unsafe { self.gpu.matmul()?.run(&self.gpu, &shape, a, b, to, 0) }
                    },
                ));
            }
        }
        cases
    }
}

fn case<'a>(
    name: impl Into<String>,
    flop: f64,
    bytes: f64,
    launch: impl Fn() -> candle_core::Result<()> + 'a,
) -> Case<'a> {
    Case {
        name: name.into(),
        flop,
        bytes,
        launch: Box::new(launch),
    }
}
