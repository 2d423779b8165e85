//! Smoothing between blocks of progressive files that end before all bits are present, as in
//! libjpeg-turbo.
//!
//! The first AC coefficients that are unknown and zero are estimated from the DC values of a block
//! and its 24 neighbours (T.81, K.8, with a wider window). If no AC coefficient is known at all, DC
//! values are smoothed too.

use super::coefficients::Coefficients;
use super::frame::{Coding, Component, Frame};
use super::segments::NATURAL;

/// Weights of the DC values around a block, [5,5].
type Window = [[i64; 5]; 5];

/// Estimates of AC coefficients 1 to 9 in zigzag order, if no AC coefficient is known.
const FROM_DC_ALONE: [Window; 9] = [
    [
        [-1, -1, 0, 1, 1],
        [-3, 13, 0, -13, 3],
        [-3, 38, 0, -38, 3],
        [-3, 13, 0, -13, 3],
        [-1, -1, 0, 1, 1],
    ],
    [
        [-1, -3, -3, -3, -1],
        [-1, 13, 38, 13, -1],
        [0; 5],
        [1, -13, -38, -13, 1],
        [1, 3, 3, 3, 1],
    ],
    [
        [0, 0, 1, 0, 0],
        [0, 2, 7, 2, 0],
        [0, -5, -14, -5, 0],
        [0, 2, 7, 2, 0],
        [0, 0, 1, 0, 0],
    ],
    [
        [-1, 0, 0, 0, 1],
        [0, 9, 0, -9, 0],
        [0; 5],
        [0, -9, 0, 9, 0],
        [1, 0, 0, 0, -1],
    ],
    [
        [0; 5],
        [0, 2, -5, 2, 0],
        [1, 7, -14, 7, 1],
        [0, 2, -5, 2, 0],
        [0; 5],
    ],
    [
        [0; 5],
        [0, 1, 0, -1, 0],
        [0, 2, 0, -2, 0],
        [0, 1, 0, -1, 0],
        [0; 5],
    ],
    [[0; 5], [0, 1, -3, 1, 0], [0; 5], [0, -1, 3, -1, 0], [0; 5]],
    [
        [0; 5],
        [0, 1, 0, -1, 0],
        [0, -3, 0, 3, 0],
        [0, 1, 0, -1, 0],
        [0; 5],
    ],
    [[0; 5], [0, 1, 2, 1, 0], [0; 5], [0, -1, -2, -1, 0], [0; 5]],
];

/// The DC value in this case.
const DC: Window = [
    [-2, -6, -8, -6, -2],
    [-6, 6, 42, 6, -6],
    [-8, 42, 152, 42, -8],
    [-6, 6, 42, 6, -6],
    [-2, -6, -8, -6, -2],
];

/// AC coefficients 1 to 5, if some AC coefficients are known.
const BESIDE_AC: [Window; 5] = [
    [[0; 5], [0; 5], [-7, 50, 0, -50, 7], [0; 5], [0; 5]],
    [
        [0, 0, -7, 0, 0],
        [0, 0, 50, 0, 0],
        [0; 5],
        [0, 0, -50, 0, 0],
        [0, 0, 7, 0, 0],
    ],
    [
        [0, 0, -1, 0, 0],
        [0, 0, 13, 0, 0],
        [0, 0, -24, 0, 0],
        [0, 0, 13, 0, 0],
        [0, 0, -1, 0, 0],
    ],
    [
        [0, -1, 0, 1, 0],
        [-1, 10, 0, -10, 1],
        [0; 5],
        [1, -10, 0, 10, -1],
        [0, 1, 0, -1, 0],
    ],
    [[0; 5], [0; 5], [-1, 13, -24, 13, -1], [0; 5], [0; 5]],
];

/// The coefficients that may be estimated, whose quantization steps must not be 0.
const ESTIMATED: usize = 9;

/// Whether libjpeg smooths: all DC values are present, but not all bits of the first AC
/// coefficients.
pub fn applies(frame: &Frame, blocks: &[Coefficients]) -> bool {
    let divisible = |component: &Component| {
        let steps = component.steps();
        NATURAL[..=ESTIMATED]
            .iter()
            .all(|&place| steps[usize::from(place)] != 0)
    };
    frame.coding == Coding::Progressive
        && frame.components.iter().all(divisible)
        && blocks.iter().all(|of| of.missing[0] >= 0)
        && blocks
            .iter()
            .any(|of| of.missing[1..=ESTIMATED].iter().any(|&bits| bits != 0))
}

/// A block with its estimates.
pub fn block(
    frame: &Frame,
    component: &Component,
    of: &Coefficients,
    (x, y): (usize, usize),
) -> [i16; 64] {
    let mut block = *of.block(x, y);
    let steps = component.steps().map(i64::from);
    let dc = surroundings(frame, component, of, (x, y));
    let estimate = |window: &Window, step: i64| {
        let products = window
            .iter()
            .flatten()
            .zip(dc.iter().flatten())
            .map(|(w, d)| w * d);
        let value = steps[0] * products.sum::<i64>();
        let rounded = (128 * step + value.abs()) / (256 * step);
        (rounded, value < 0)
    };
    let alone = of.missing[1..=ESTIMATED].iter().all(|&bits| bits == -1);
    let windows = if alone {
        &FROM_DC_ALONE[..]
    } else {
        &BESIDE_AC[..]
    };
    for (k, window) in (1..).zip(windows) {
        let place = usize::from(NATURAL[k]);
        let missing = of.missing[k];
        if missing == 0 || block[place] != 0 {
            continue;
        }
        let (mut size, negative) = estimate(window, steps[place]);
        if missing > 0 {
            // A larger value would be visible in the known bits.
            size = size.min((1 << missing) - 1);
        }
        block[place] = if negative { -size } else { size } as i16;
    }
    if alone {
        let (size, negative) = estimate(&DC, steps[0]);
        block[0] = if negative { -size } else { size } as i16;
    }
    block
}

/// The DC values of a block and its neighbours, [5,5], replicated at the edges.
fn surroundings(
    frame: &Frame,
    component: &Component,
    of: &Coefficients,
    (x, y): (usize, usize),
) -> Window {
    // libjpeg counts rows as if every MCU row had as many as this one, so in the last MCU row fewer
    // rows count as being below an edge.
    let mcu = y / component.v;
    let rows_here = component.v.min(component.high - mcu * component.v);
    let (row, rows) = (
        mcu * rows_here + y % component.v,
        rows_here * frame.mcus_high,
    );
    let above = if row > 0 { y - 1 } else { y };
    let below = if row + 1 < rows { y + 1 } else { y };
    let ys = [
        if row > 1 { y - 2 } else { above },
        above,
        y,
        below,
        if row + 2 < rows { y + 2 } else { below },
    ];
    ys.map(|y| {
        std::array::from_fn(|i| {
            let x = (x + i).saturating_sub(2).min(component.wide - 1);
            of.block(x, y)[0].into()
        })
    })
}
