use super::matrix::multiply;
use super::{BLOCK, DEPTH, Frozen, Matrix, Packed, Panels, Plain, outer, ranges, strassen, times};
use crate::ops::blocks;
use crate::ops::testing::{normal, on_threads};

fn drawn(seed: u64, count: usize) -> Vec<f32> {
    let t = normal(seed, count);
    t.to_vec1().expect("f32 values")
}

/// x·w + bias in f64.
fn exact(x: &[f32], w: &[f32], depth: usize, outputs: usize, bias: &[f32]) -> Vec<f64> {
    x.chunks_exact(depth)
        .flat_map(|row| {
            (0..outputs).map(|o| {
                let column = w[o..].iter().step_by(outputs);
                let products = row.iter().zip(column);
                let sum: f64 = products.map(|(&x, &w)| f64::from(x) * f64::from(w)).sum();
                sum + f64::from(bias[o])
            })
        })
        .collect()
}

#[test]
fn times_is_the_product_across_blocks_and_depths() {
    for (rows, depth, outputs) in [
        (BLOCK + 1, DEPTH + 1, 9),
        (1, 3, 4),
        (2 * BLOCK, 2, 1),
        (5, 2 * DEPTH, 50),
    ] {
        let (x, w) = (drawn(1, rows * depth), drawn(2, depth * outputs));
        let bias = drawn(3, outputs);
        let y = times(
            &Plain::new(&x, depth),
            &Panels::of_rows(&w, outputs),
            Some(&bias),
        );
        let scale = (depth as f64).sqrt();
        for (y, e) in y.iter().zip(exact(&x, &w, depth, outputs, &bias)) {
            assert!(
                (f64::from(*y) - e).abs() < 1e-5 * scale,
                "{y}, expected {e}"
            );
        }
    }
}

#[test]
fn an_element_is_one_chain_of_multiply_adds_whatever_stands_beside_it() {
    let (depth, outputs) = (DEPTH + 30, 4 * 16 + 2 * 16 + 5);
    let (w, bias) = (drawn(2, depth * outputs), drawn(3, outputs));
    let panels = Panels::of_rows(&w, outputs);
    for rows in (1..14).chain([BLOCK + 3]) {
        let x = drawn(1, rows * depth);
        let expected: Vec<f32> = x
            .chunks_exact(depth)
            .flat_map(|row| {
                let (w, bias) = (&w, &bias);
                (0..outputs).map(move |o| {
                    let column = w[o..].iter().step_by(outputs);
                    let terms = row.iter().zip(column);
                    terms.fold(bias[o], |sum, (x, w)| x.mul_add(*w, sum))
                })
            })
            .collect();
        let rows = Plain::new(&x, depth);
        assert!(times(&rows, &panels, Some(&bias)) == expected);
        assert!(blocks::serially(|| times(&rows, &panels, Some(&bias))) == expected);
    }
}

#[test]
fn panels_of_outputs_are_those_of_the_transposed_weight() {
    let (outputs, inputs, taps) = (37, 5, 9);
    let weight = drawn(1, outputs * inputs * taps);
    let mut rows = Vec::new();
    for tap in 0..taps {
        for input in 0..inputs {
            rows.extend((0..outputs).map(|o| weight[(o * inputs + input) * taps + tap]));
        }
    }
    let x = drawn(2, 7 * inputs * taps);
    let x = Plain::new(&x, inputs * taps);
    let expected = times(&x, &Panels::of_rows(&rows, outputs), None);
    assert!(
        times(
            &x,
            &Panels::of_outputs(&weight, outputs, inputs, taps),
            None
        ) == expected
    );
}

#[test]
fn a_small_result_is_one_chain_of_multiply_adds_on_every_processor() {
    let depth = 100;
    for (rows, columns) in [(2, 2), (3, 17), (16, 16)] {
        let (a, b) = (drawn(1, rows * depth), drawn(2, columns * depth));
        let transposed = Matrix::dense(&b, (columns, depth)).transposed();
        let mut y = vec![0f32; rows * columns];
        multiply(
            &mut y,
            columns,
            Matrix::dense(&a, (rows, depth)),
            transposed,
            false,
        );
        let expected = a.chunks(depth).flat_map(|a| {
            b.chunks(depth).map(|b| {
                let terms = a.iter().zip(b);
                terms.fold(0f32, |sum, (a, b)| a.mul_add(*b, sum))
            })
        });
        assert!(y.into_iter().eq(expected), "{rows}×{columns}");
    }
}

#[test]
fn outer_has_the_same_bits_on_any_number_of_threads() {
    let (rows, depth, outputs) = (3000, 40, 200);
    let (x, g) = (drawn(1, rows * depth), drawn(2, rows * outputs));
    let run = |threads| on_threads(threads, || outer(&Plain::new(&x, depth), &g, outputs));
    let once = run(1);
    assert!(once == run(2) && once == run(7));
    let bias: f64 = g.iter().step_by(outputs).map(|&g| f64::from(g)).sum();
    assert!((f64::from(once.1[0]) - bias).abs() < 1e-3);
}

#[test]
fn ranges_cover_everything_once_in_equal_parts() {
    let all: Vec<_> = ranges(1025, 512).collect();
    assert_eq!(all, [0..342, 342..684, 684..1025]);
    let one: Vec<_> = ranges(512, 512).collect();
    assert!(one.len() == 1 && one[0] == (0..512));
    let lengths: Vec<_> = ranges(4097, 64).map(|r| r.len()).collect();
    assert!(lengths.iter().all(|n| [63, 64].contains(n)), "{lengths:?}");
}

/// A frozen weight [O,I] with the products of units of `unit` rows.
fn fast(weight: &[f32], (outputs, inputs, unit): (usize, usize, usize), x: &[f32]) -> Vec<f32> {
    let packed = Packed::for_fast_products();
    let bias = drawn(3, outputs);
    let frozen = Frozen {
        weight,
        outputs,
        inputs,
        unit,
        packed: &packed,
    };
    frozen.times(x, Some(&bias))
}

#[test]
fn seven_products_are_the_product() {
    // The last has more pairs than are taken at a time.
    for (outputs, inputs, unit) in [(32, 64, 32), (96, 130, 46), (160, 72, 2 * 48 + 34)] {
        assert!(strassen::is_worth(unit, outputs, inputs));
        let (x, weight) = (drawn(1, 3 * unit * inputs), drawn(2, outputs * inputs));
        let columns: Vec<f32> = (0..inputs)
            .flat_map(|i| weight[i..].iter().step_by(inputs).copied())
            .collect();
        let expected = exact(&x, &columns, inputs, outputs, &drawn(3, outputs));
        let found = fast(&weight, (outputs, inputs, unit), &x);
        let norm =
            |values: &mut dyn Iterator<Item = f64>| values.map(|x| x * x).sum::<f64>().sqrt();
        let error = norm(&mut found.iter().zip(&expected).map(|(y, e)| f64::from(*y) - e));
        let error = error / norm(&mut expected.iter().copied());
        assert!(error < 1e-6, "{outputs}x{inputs}: {error:e}");
    }
}

#[test]
fn seven_products_give_a_unit_the_same_bits_in_every_batch_and_on_every_number_of_threads() {
    let (outputs, inputs, unit) = (96, 64, 36);
    let (x, weight) = (drawn(1, 5 * unit * inputs), drawn(2, outputs * inputs));
    let sizes = (outputs, inputs, unit);
    let expected: Vec<f32> = x
        .chunks_exact(unit * inputs)
        .flat_map(|x| blocks::serially(|| fast(&weight, sizes, x)))
        .collect();
    assert!(blocks::serially(|| fast(&weight, sizes, &x)) == expected);
    for threads in [1, 2, 3, 16] {
        let found = on_threads(threads, || fast(&weight, sizes, &x));
        assert!(found == expected, "{threads} threads");
    }
}

#[test]
fn products_without_whole_halves_are_made_plainly() {
    for (outputs, inputs, unit) in [(48, 64, 32), (32, 65, 32), (32, 64, 33), (32, 64, 1)] {
        let (x, weight) = (drawn(1, 2 * unit * inputs), drawn(2, outputs * inputs));
        let panels = Panels::of_outputs(&weight, outputs, inputs, 1);
        let plain = times(&Plain::new(&x, inputs), &panels, Some(&drawn(3, outputs)));
        assert!(fast(&weight, (outputs, inputs, unit), &x) == plain);
    }
}
