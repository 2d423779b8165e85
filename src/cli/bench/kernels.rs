//! Benchmarks of single GPU kernels, on the buffers of a one-block generator after a real forward
//! and backward pass.

use std::sync::Arc;

use candle_core::Device;

use super::clock::random_bf16;
use super::{CLASSES, config, generator};
use crate::error::Result;
use crate::model::Quantizer;
use crate::model::generator::EPS;
use crate::model::generator::fused::{Activations, Network, Scratch};
use crate::ops::adaln::cuda::{AdalnGradient, Gated, Residual, adaln_backward, adaln_forward};
use crate::ops::attention::cuda::{AttentionGradient, attention_backward, attention_forward};
use crate::ops::cross_entropy::cuda::cross_entropy;
use crate::ops::cuda::{Buffer, Gpu};
use crate::ops::optimizer::flat::{Adam, CONTROL, FlatTrained, PARTIALS, adamw};
use crate::ops::product::cublaslt::Product;
use crate::ops::product::cuda::{self as product, Added};
use crate::ops::quantize::cuda::{ExamplesAt, NoiseAt, QuantizedAt, Tables, Until};
use crate::ops::sample::{Advance, Cuts, Streams, advance, choose};
use crate::ops::swiglu::cuda::{
    swiglu_backward, swiglu_forward, swiglu_in_products, swiglu_product_backward,
    swiglu_product_forward,
};
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
    damaged: Buffer<u32>,
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
            partials: Buffer::zeros(&gpu, PARTIALS)?,
            indices: Buffer::from_host(&gpu, &(0..batch as u64).collect::<Vec<_>>())?,
            order: Buffer::from_host(&gpu, &Until::longest_first(&t))?,
            seed: Buffer::from_host(&gpu, &[7, 0])?,
            damaged: Buffer::from_host(&gpu, &[u32::MAX])?,
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
            indices: self.indices.view(),
        };
        let streams = Streams {
            seed: self.seed.view(),
            indices: self.indices.view(),
        };
        let search = 2.0 * rows * k * d;
        let latents = self.latents.view();
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
            let (codes, damaged) = (self.codes.view_mut(), self.damaged.view_mut());
            choose(gpu, half, self.wide.view(), streams, codes, damaged, &cuts)
        };
        let chosen = half[0] as f64 * s.tokens as f64 * k * 4.0;
        vec![
            case(
                format!("quantize, {} steps", s.steps),
                s.steps as f64 * search,
                rows * (d * 4.0 + s.steps as f64 * 4.0),
                move || {
                    let to = QuantizedAt {
                        codes: Some(self.codes.view_mut()),
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
                        t: a.conditions.t.view(),
                        order: self.order.view(),
                    };
                    let to = ExamplesAt {
                        noise: a.noise.view_mut(),
                        sum: self.sums.view_mut(),
                        codes: self.codes.view_mut(),
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
                let at = Advance {
                    codes: Some(self.codes.view()),
                    before: Some(self.latents.view()),
                    after: Some(self.sums.view_mut()),
                    rows: Some(a.trunk.joined.view_mut()),
                    copies: 1,
                    t: 5,
                };
                let sizes = [s.batch, self.side, self.side, s.latent];
                advance(gpu, sizes, self.tables.lookup()?, streams, at)
            }),
        ]
    }

    fn elementwise(&self) -> Vec<Case<'_>> {
        let (gpu, s, a) = (&*self.gpu, &self.network.sizes, &self.a);
        let (ends, kept) = (a.trunk.ends(0), a.trunk.inner(0));
        let (rows, c, f) = (s.rows() as f64, s.width as f64, s.hidden as f64);
        let at = |i: usize| a.conditions.modulations.view().tail(i * s.width);
        let (scratch, n) = (&self.scratch, &self.network);
        let gated = Gated {
            branch: kept.h1.view(),
            gate: at(2),
        };
        let from = Residual {
            x: ends.x.view(),
            add: Some(gated),
        };
        let adam = Adam {
            beta1: 0.9,
            beta2: 0.95,
            eps: 1e-8,
            weight_decay: 0.03,
        };
        let (x, h) = (&kept.gate_up, &kept.hidden);
        let flop = 2.0 * rows * c * f;
        let weights = self.network.bf16_weights.view();
        let (within, alone) = (s.gated(), [s.rows(), s.hidden]);
        let mut cases = Vec::new();
        if swiglu_in_products(gpu, s.rows()) {
            cases = vec![
                case(
                    "w12 with swiglu",
                    2.0 * flop,
                    rows * (c + f) * 2.0,
                    move || {
                        let (y, h) = (kept.y2.view(), h.view_mut());
                        swiglu_product_forward(gpu, within, y, weights, None, h)
                    },
                ),
                case(
                    "w12 with swiglu, gate and up kept",
                    2.0 * flop,
                    rows * (c + 3.0 * f) * 2.0,
                    move || {
                        let (y, h) = (kept.y2.view(), h.view_mut());
                        let x = Some(x.view_mut());
                        swiglu_product_forward(gpu, within, y, weights, x, h)
                    },
                ),
                case(
                    "w3 dX with swiglu backward",
                    flop,
                    rows * (c + 4.0 * f) * 2.0,
                    move || {
                        let (dy, dx) = (scratch.dbranch.view(), scratch.dgate_up.view_mut());
                        swiglu_product_backward(gpu, within, dy, weights, x.view(), dx)
                    },
                ),
            ];
        }
        if product::serves_many(gpu, s.rows(), s.width) {
            let to = Added {
                x: a.trunk.x.view(),
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
                move || {
                    let sum = a.trunk.x_mid.view_mut();
                    product::added_to(gpu, sizes, h.view(), weights, to, sum)
                },
            ));
        }
        cases.extend([
            case("adaln forward", 0.0, rows * c * 8.0, move || {
                adaln_forward(
                    gpu,
                    s.adaln(),
                    EPS as f32,
                    from,
                    [at(3), at(4)],
                    a.trunk.x_mid.view_mut(),
                    kept.y2.view_mut(),
                    kept.rstd2.view_mut(),
                )
            }),
            case("adaln backward", 0.0, rows * c * 12.0, move || {
                let out = |i: usize| scratch.dmodulations.view_mut().tail(i * s.width);
                let gradient = AdalnGradient {
                    dsum: Some(scratch.dx[0].view()),
                    dy: scratch.dy.view(),
                    x: ends.x.view(),
                    add: true,
                    rstd: kept.rstd2.view(),
                    scale: at(4),
                    gated: Some(gated),
                    dx: scratch.dx[1].view_mut(),
                    dbranch: scratch.dbranch.view_mut(),
                    partials: scratch.partials.view_mut(),
                    dshift: out(3),
                    dscale: out(4),
                    dgate: Some(out(2)),
                };
                adaln_backward(gpu, s.adaln(), gradient)
            }),
            case("swiglu forward", 0.0, rows * f * 6.0, move || {
                swiglu_forward(gpu, alone, x.view(), h.view_mut())
            }),
            case("swiglu backward", 0.0, rows * f * 10.0, move || {
                let dx = scratch.dgate_up.view_mut();
                swiglu_backward(gpu, alone, x.view(), self.wide.view(), dx)
            }),
            case(
                "cross-entropy with gradient",
                0.0,
                rows * s.codes as f64 * 4.0,
                move || {
                    cross_entropy(
                        gpu,
                        [s.rows(), s.codes],
                        a.trunk.logits.view_mut(),
                        a.codes.view(),
                        a.loss.view_mut(),
                        a.hits.view_mut(),
                        1e-3,
                    )
                },
            ),
            case(
                format!("optimizer, {:.1} M", n.flat.len as f64 / 1e6),
                0.0,
                n.flat.len as f64 * 42.0,
                move || {
                    let trained = FlatTrained {
                        gradients: self.gradients.view(),
                        parameters: n.parameters.view_mut(),
                        first: self.moments[0].view_mut(),
                        second: self.moments[1].view_mut(),
                        average: self.moments[2].view_mut(),
                        bf16_weights: n.bf16_weights.view_mut(),
                    };
                    adamw(
                        gpu,
                        trained,
                        &adam,
                        [n.flat.decayed, n.flat.len],
                        self.partials.view_mut(),
                        self.control.view_mut(),
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
        vec![
            case("attention forward", flop, rows * c * 8.0, move || {
                attention_forward(
                    gpu,
                    s.attention(),
                    rope,
                    kept.qkv.view(),
                    kept.attention.view_mut(),
                    kept.lse.view_mut(),
                )
            }),
            case(
                "attention backward",
                2.5 * flop,
                rows * c * 16.0,
                move || {
                    let gradient = AttentionGradient {
                        qkv: kept.qkv.view(),
                        out: kept.attention.view(),
                        dout: self.scratch.dattention.view(),
                        lse: kept.lse.view(),
                        dqkv: self.scratch.dqkv.view_mut(),
                        parts: self.scratch.attention_parts.view_mut(),
                    };
                    attention_backward(gpu, s.attention(), rope, gradient)
                },
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
                        let (gpu, matmul, a) = (&self.gpu, self.gpu.matmul()?, self.wide.view());
                        if shape.f32_out {
                            let to = self.gradients.view_mut();
                            return matmul.run(gpu, &shape, a, a, to, None);
                        }
                        let weights = self.network.bf16_weights.view();
                        let mut to = self.products.view_mut();
                        let sizes = [rows, input, output];
                        if kind == "forward"
                            && product::of_few(gpu, sizes, a, weights, None, to.again())?
                        {
                            return Ok(());
                        }
                        matmul.run(gpu, &shape, a, weights, to, None)
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
