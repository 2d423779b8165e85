//! The network's blocks (Szegedy et al. 2015, Figures 5 to 7) and their order.

use candle_core::{Result, Tensor};

use super::Output;
use super::layers::{Builder, HALVING_POOL, Layer, Windows};
use crate::ops;
use crate::store::Scope;

/// Branches of the same input, concatenated along the channels.
pub(super) struct Block(Vec<Vec<Layer>>);

/// Blocks up to a layer whose output may be requested.
pub(super) struct Stage {
    pub blocks: Vec<Block>,
    pub output: Output,
}

/// 35×35: 64 + 64 + 96 + `pool` channels.
fn block_a(b: &Builder, c: usize, pool: usize) -> Result<Block> {
    Ok(Block(vec![
        vec![b.same("branch1x1", (1, 1), (c, 64))?],
        vec![
            b.same("branch5x5_1", (1, 1), (c, 48))?,
            b.same("branch5x5_2", (5, 5), (48, 64))?,
        ],
        vec![
            b.same("branch3x3dbl_1", (1, 1), (c, 64))?,
            b.same("branch3x3dbl_2", (3, 3), (64, 96))?,
            b.same("branch3x3dbl_3", (3, 3), (96, 96))?,
        ],
        vec![b.of_average("branch_pool", (c, pool))?],
    ]))
}

/// 35×35 → 17×17: 384 + 96 + 288 channels.
fn block_b(b: &Builder, c: usize) -> Result<Block> {
    Ok(Block(vec![
        vec![b.halving("branch3x3", (c, 384))?],
        vec![
            b.same("branch3x3dbl_1", (1, 1), (c, 64))?,
            b.same("branch3x3dbl_2", (3, 3), (64, 96))?,
            b.halving("branch3x3dbl_3", (96, 96))?,
        ],
        vec![HALVING_POOL],
    ]))
}

/// 17×17: four times 192 channels, through `m`.
fn block_c(b: &Builder, c: usize, m: usize) -> Result<Block> {
    Ok(Block(vec![
        vec![b.same("branch1x1", (1, 1), (c, 192))?],
        vec![
            b.same("branch7x7_1", (1, 1), (c, m))?,
            b.same("branch7x7_2", (1, 7), (m, m))?,
            b.same("branch7x7_3", (7, 1), (m, 192))?,
        ],
        vec![
            b.same("branch7x7dbl_1", (1, 1), (c, m))?,
            b.same("branch7x7dbl_2", (7, 1), (m, m))?,
            b.same("branch7x7dbl_3", (1, 7), (m, m))?,
            b.same("branch7x7dbl_4", (7, 1), (m, m))?,
            b.same("branch7x7dbl_5", (1, 7), (m, 192))?,
        ],
        vec![b.of_average("branch_pool", (c, 192))?],
    ]))
}

/// 17×17 → 8×8: 320 + 192 + 768 channels.
fn block_d(b: &Builder, c: usize) -> Result<Block> {
    Ok(Block(vec![
        vec![
            b.same("branch3x3_1", (1, 1), (c, 192))?,
            b.halving("branch3x3_2", (192, 320))?,
        ],
        vec![
            b.same("branch7x7x3_1", (1, 1), (c, 192))?,
            b.same("branch7x7x3_2", (1, 7), (192, 192))?,
            b.same("branch7x7x3_3", (7, 1), (192, 192))?,
            b.halving("branch7x7x3_4", (192, 192))?,
        ],
        vec![HALVING_POOL],
    ]))
}

/// 8×8: 320 + 768 + 768 + 192 channels, the last of them after `pooled`.
fn block_e(b: &Builder, c: usize, pooled: Vec<Layer>) -> Result<Block> {
    let fork = |across: &str, along: &str| -> Result<Layer> {
        Ok(Layer::Fork(vec![
            b.same(across, (1, 3), (384, 384))?,
            b.same(along, (3, 1), (384, 384))?,
        ]))
    };
    Ok(Block(vec![
        vec![b.same("branch1x1", (1, 1), (c, 320))?],
        vec![
            b.same("branch3x3_1", (1, 1), (c, 384))?,
            fork("branch3x3_2a", "branch3x3_2b")?,
        ],
        vec![
            b.same("branch3x3dbl_1", (1, 1), (c, 448))?,
            b.same("branch3x3dbl_2", (3, 3), (448, 384))?,
            fork("branch3x3dbl_3a", "branch3x3dbl_3b")?,
        ],
        pooled,
    ]))
}

/// All stages up to the output `last`.
pub(super) fn stages(scope: &Scope, divisor: usize, last: Output) -> Result<Vec<Stage>> {
    let top = Builder { scope, divisor };
    let within = |name: &str, make: &dyn Fn(&Builder) -> Result<Block>| {
        let scope = &scope.push(name);
        make(&Builder { scope, divisor })
    };
    let valid =
        |name: &str, io, stride| top.convolution(name, (3, 3), io, Windows::Valid { stride });
    let chain = |layers| Block(vec![layers]);
    let mut stages = vec![Stage {
        blocks: vec![chain(vec![
            valid("Conv2d_1a_3x3", (3, 32), 2)?,
            valid("Conv2d_2a_3x3", (32, 32), 1)?,
            top.same("Conv2d_2b_3x3", (3, 3), (32, 64))?,
            HALVING_POOL,
        ])],
        output: Output::Pool64,
    }];
    if last >= Output::Pool192 {
        stages.push(Stage {
            blocks: vec![chain(vec![
                top.same("Conv2d_3b_1x1", (1, 1), (64, 80))?,
                valid("Conv2d_4a_3x3", (80, 192), 1)?,
                HALVING_POOL,
            ])],
            output: Output::Pool192,
        });
    }
    if last >= Output::Spatial {
        stages.push(Stage {
            blocks: vec![
                within("Mixed_5b", &|b| block_a(b, 192, 32))?,
                within("Mixed_5c", &|b| block_a(b, 256, 64))?,
                within("Mixed_5d", &|b| block_a(b, 288, 64))?,
                within("Mixed_6a", &|b| block_b(b, 288))?,
                within("Mixed_6b", &|b| block_c(b, 768, 128))?,
                within("Mixed_6c", &|b| block_c(b, 768, 160))?,
                within("Mixed_6d", &|b| block_c(b, 768, 160))?,
            ],
            output: Output::Spatial,
        });
    }
    if last >= Output::Pool768 {
        stages.push(Stage {
            blocks: vec![within("Mixed_6e", &|b| block_c(b, 768, 192))?],
            output: Output::Pool768,
        });
    }
    if last >= Output::Pool2048 {
        let average =
            |b: &Builder, c| -> Result<_> { Ok(vec![b.of_average("branch_pool", (c, 192))?]) };
        let largest = |b: &Builder, c| -> Result<_> {
            let (stride, padding) = (1, 1);
            let pool = Layer::MaxPool { stride, padding };
            Ok(vec![pool, b.same("branch_pool", (1, 1), (c, 192))?])
        };
        stages.push(Stage {
            blocks: vec![
                within("Mixed_7a", &|b| block_d(b, 768))?,
                within("Mixed_7b", &|b| block_e(b, 1280, average(b, 1280)?))?,
                within("Mixed_7c", &|b| block_e(b, 2048, largest(b, 2048)?))?,
            ],
            output: Output::Pool2048,
        });
    }
    Ok(stages)
}

impl Block {
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let mut maps = Vec::new();
        for branch in &self.0 {
            let (mut x, mut branch) = (x.clone(), branch.iter().peekable());
            while let Some(layer) = branch.next() {
                match branch.peek() {
                    Some(_) => x = layer.forward(&x)?,
                    None => maps.extend(layer.outputs(&x)?),
                }
            }
        }
        ops::concatenate(&maps)
    }
}
