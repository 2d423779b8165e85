use candle_core::Device;

use super::*;

const NOISE: Purpose = Purpose::Noise;

fn filled(kind: Kind, stream: Stream, n: usize) -> Vec<f32> {
    let mut out = vec![0f32; n];
    stream.fill(kind, 0, &mut out);
    out
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}

#[test]
fn the_streams_never_change() {
    // Computed from the same formulas in exact rational arithmetic, rounded where f32 rounds. If
    // the streams changed, every saved run, cache and sample would change.
    let stream = Stream::new(
        0x0123_4567_89ab_cdef,
        Purpose::Gumbel,
        0x0011_2233_4455_6677,
        10,
    );
    assert_eq!(
        stream.words(0),
        [0x2adb_553c, 0x1226_3775, 0x66f6_138a, 0x0dd0_8582]
    );
    let normal = filled(Kind::Normal, stream, 70);
    assert_eq!(
        bits(&normal[..6]),
        [
            0x3fda_63d0,
            0x3f50_8b09,
            0x3fa2_ec92,
            0x3ee5_d6f9,
            0x3fe1_7a84,
            0xbf86_1ed3
        ]
    );
    assert_eq!(bits(&normal[67..]), [0xbefa_89d1, 0x3d98_31cf, 0x3ed8_121c]);
    let uniform = filled(Kind::Uniform, stream, 70);
    assert_eq!(
        bits(&uniform[..4]),
        [0x3e2b_6d54, 0x3d91_31b8, 0x3ecd_ec26, 0x3d5d_0850]
    );
    assert_eq!(
        bits(&uniform[67..]),
        [0x3f68_9795, 0x3f69_8b27, 0x3e63_97ac]
    );
}

#[test]
fn every_instruction_set_gives_equal_bits() {
    // Without fused multiply-add instructions, each becomes a call of the C library's exact
    // function.
    let stream = Stream::new(5, NOISE, 3, 2);
    for kind in [Kind::Uniform, Kind::Normal] {
        let mut plain = vec![0f32; 100_003];
        Fill {
            stream: &stream,
            kind,
            first_block: 0,
            out: &mut plain,
        }
        .with_simd(pulp::Scalar::new());
        assert_eq!(bits(&plain), bits(&filled(kind, stream, plain.len())));
    }
}

#[test]
fn a_number_depends_on_its_place_only() -> Result<()> {
    let n = 40_000;
    for kind in [Kind::Uniform, Kind::Normal] {
        let whole = filled(kind, Stream::new(5, NOISE, 3, 2), n);
        for short in [0, 1, 3, 4, 63, 64, 65, 129] {
            let part = filled(kind, Stream::new(5, NOISE, 3, 2), short);
            assert_eq!(bits(&part), bits(&whole[..short]));
        }
        // In a batch with others, split into pieces for the threads.
        let stream = |index| Stream::new(5, NOISE, index, 2);
        let batch = tensor(kind, stream, &[9, 3, 1 << 40], &[8, n / 8], &Device::Cpu)?;
        assert_eq!(batch.dims(), [3, 8, n / 8]);
        assert_eq!(bits(&batch.get(1)?.flatten_all()?.to_vec1()?), bits(&whole));
    }
    Ok(())
}

#[test]
fn streams_are_told_apart_by_everything_that_names_them() {
    let base = Stream::new(1, NOISE, 1, 1);
    let others = [
        Stream::new(2, NOISE, 1, 1),
        Stream::new(1 + (1 << 32), NOISE, 1, 1),
        Stream::new(1, Purpose::Gumbel, 1, 1),
        Stream::new(1, NOISE, 2, 1),
        Stream::new(1, NOISE, 1 + (1 << 32), 1),
        Stream::new(1, NOISE, 1, 2),
    ];
    let n = 1 << 16;
    let a = filled(Kind::Normal, base, n);
    for other in others {
        let b = filled(Kind::Normal, other, n);
        let correlation: f64 =
            a.iter().zip(&b).map(|(x, y)| f64::from(x * y)).sum::<f64>() / n as f64;
        assert!(correlation.abs() < 4.5 / (n as f64).sqrt(), "{other:?}");
    }
}

#[test]
fn uniforms_are_uniform() {
    let n = 1 << 22;
    let values = filled(Kind::Uniform, Stream::new(7, Purpose::Init, 0, 0), n);
    assert!(values.iter().all(|u| *u > 0.0 && *u < 1.0));
    let mut counts = [0u32; 256];
    for u in values {
        counts[(u * 256.0) as usize] += 1;
    }
    let expected = n as f64 / 256.0;
    let chi2: f64 = counts
        .iter()
        .map(|c| (f64::from(*c) - expected).powi(2) / expected)
        .sum();
    // 255 degrees of freedom: mean 255, standard deviation 22.6.
    assert!((160.0..360.0).contains(&chi2), "{chi2}");
}

#[test]
fn normals_are_normal() {
    let n = 1 << 22;
    let mut values = filled(Kind::Normal, Stream::new(7, Purpose::Init, 0, 0), n);
    let moment = |p: i32| values.iter().map(|x| f64::from(*x).powi(p)).sum::<f64>() / n as f64;
    // Expected value and the standard deviation of one x^p.
    for (p, expected, spread) in [
        (1, 0.0, 1.0),
        (2, 1.0, 2f64.sqrt()),
        (3, 0.0, 15f64.sqrt()),
        (4, 3.0, 96f64.sqrt()),
    ] {
        let found = moment(p);
        assert!(
            (found - expected).abs() < 4.5 * spread / (n as f64).sqrt(),
            "moment {p}: {found}"
        );
    }
    for lag in 1..5 {
        let correlation: f64 = values
            .iter()
            .zip(&values[lag..])
            .map(|(x, y)| f64::from(x * y))
            .sum::<f64>()
            / n as f64;
        assert!(correlation.abs() < 4.5 / (n as f64).sqrt(), "lag {lag}");
    }
    // Kolmogorov–Smirnov at quantiles of the normal distribution; 1.95/√n is passed once in a
    // thousand times.
    values.sort_unstable_by(f32::total_cmp);
    for (p, quantile) in [
        (0.000_1, 3.719_016_5),
        (0.001, 3.090_232_3),
        (0.01, 2.326_347_9),
        (0.05, 1.644_853_6),
        (0.1, 1.281_551_6),
        (0.2, 0.841_621_2),
        (0.3, 0.524_400_5),
        (0.4, 0.253_347_1),
        (0.5, 0.0),
    ] {
        for (p, quantile) in [(p, -quantile), (1.0 - p, quantile)] {
            let below = values.partition_point(|x| *x < quantile) as f64 / n as f64;
            assert!((below - p).abs() < 1.95 / (n as f64).sqrt(), "{p}: {below}");
        }
    }
}
