//! Evaluations end to end with a network that needs no weights: an image's features are its pixels.

use image::{Rgb, RgbImage};

use super::*;
use crate::error::report;
use crate::metrics::collect::Collector;
use crate::metrics::features::Tap;
use crate::metrics::report::Set;
use crate::metrics::resize::Preprocess;
use crate::metrics::stats_file::{MadeBy, Statistics};
use crate::rng::{Purpose, Stream};

/// Two pixels: colours are features; the class is how the first green leans.
struct Pixels([Tap; 4]);

fn pixels() -> Vec<Box<dyn FeatureNetwork>> {
    let tap = |name, width| Tap { name, width };
    vec![Box::new(Pixels([
        tap("2048", 3),
        tap("spatial", 3),
        tap("logits", 4),
        tap("192", 20),
    ]))]
}

impl FeatureNetwork for Pixels {
    fn name(&self) -> &'static str {
        inception::NAME
    }

    fn weights_hash(&self) -> &str {
        "none"
    }

    fn preprocess(&self) -> &'static str {
        "adm"
    }

    fn taps(&self) -> &[Tap] {
        &self.0
    }

    fn features(&self, images: &[RgbImage]) -> Result<Vec<Rows>> {
        let rows = |width: usize, f: &dyn Fn(&RgbImage) -> Vec<f32>| Rows {
            width,
            values: images.iter().flat_map(f).collect(),
        };
        let pixel = |image: &RgbImage, x: u32| {
            image
                .get_pixel(x, 0)
                .0
                .map(|c| f32::from(c) / 64.0)
                .to_vec()
        };
        let class = |image: &RgbImage| {
            let place = usize::from(image.get_pixel(0, 0).0[1] / 64);
            (0..4).map(|i| if i == place { 9.0 } else { 0.0 }).collect()
        };
        Ok(vec![
            rows(3, &|image| pixel(image, 0)),
            rows(3, &|image| pixel(image, 1)),
            rows(4, &class),
            rows(20, &|image| {
                let sum: f32 = pixel(image, 0).iter().sum();
                (0..20).map(|i| (i as f32 * sum).sin()).collect()
            }),
        ])
    }
}

fn images(seed: u64, count: usize) -> Vec<RgbImage> {
    let mut draws = Stream::new(seed, Purpose::Drawing, 0, 0).draws();
    let mut colour = || Rgb([0; 3].map(|_: u8| draws.below(256) as u8));
    (0..count)
        .map(|_| {
            let pair = [colour(), colour()];
            RgbImage::from_fn(2, 1, |x, _| pair[x as usize])
        })
        .collect()
}

fn options() -> Options {
    Options {
        metrics: vec![
            Metric::Fid,
            Metric::Sfid,
            Metric::Is,
            Metric::Pr,
            Metric::Kid,
        ],
        fid: Output::Pool2048,
        interval: false,
        arithmetic: Arithmetic::Exact,
        kid_subsets: 1,
        kid_subset_size: None,
        seed: 0,
    }
}

fn side(images: &[RgbImage], batch: usize) -> Result<Side> {
    let networks = pixels();
    let options = Options {
        interval: true,
        ..options()
    };
    let mut collector = Collector::new(&networks, options.groups(), |_| true);
    for batch in images.chunks(batch) {
        collector.images(batch)?;
    }
    let features = collector.finish();
    Ok(Side {
        set: Set {
            size: features.size,
            ..Set::default()
        },
        statistics: None,
        inception: Some(0),
        features: Some(features),
    })
}

fn evaluate(reference: &Side, samples: &Side, options: &Options) -> Result<Evaluation> {
    Evaluator::new(options, &pixels(), reference).evaluate(samples)
}

fn value(evaluation: &Evaluation, name: &str) -> f64 {
    evaluation.figure(name).expect("it was asked for").value
}

#[test]
fn the_batch_size_changes_no_bit() -> Result<()> {
    let (reference, samples) = (images(1, 700), images(2, 900));
    let first = evaluate(&side(&reference, 16)?, &side(&samples, 16)?, &options())?;
    let second = evaluate(&side(&reference, 700)?, &side(&samples, 7)?, &options())?;
    for (name, figure) in &first.metrics {
        assert_eq!(
            figure.value.to_bits(),
            value(&second, name).to_bits(),
            "{name}"
        );
    }
    Ok(())
}

#[test]
fn samples_sorted_by_class_change_the_ordered_inception_score_alone() -> Result<()> {
    let mut samples = images(2, 10_000);
    let reference = side(&images(1, 1000), 100)?;
    let options = Options {
        metrics: vec![Metric::Fid, Metric::Sfid, Metric::Is, Metric::Pr],
        ..options()
    };
    let mixed = evaluate(&reference, &side(&samples, 100)?, &options)?;
    samples.sort_by_key(|image| image.get_pixel(0, 0).0[1]);
    let sorted = evaluate(&reference, &side(&samples, 100)?, &options)?;
    for name in ["fid", "sfid", "precision", "recall"] {
        let (a, b) = (value(&mixed, name), value(&sorted, name));
        assert!((a - b).abs() < 1e-9 * a.abs().max(1.0), "{name}: {a} {b}");
    }
    let ratio = |name| value(&sorted, name) / value(&mixed, name);
    assert!((ratio("is_shuffled") - 1.0).abs() < 0.02);
    // Each half of the sorted samples holds two of the four classes.
    assert!((ratio("is") - 0.5).abs() < 0.05, "{}", ratio("is"));
    Ok(())
}

#[test]
fn an_interval_holds_the_figure_and_few_samples_are_warned_of() -> Result<()> {
    let reference = side(&images(1, 500), 100)?;
    let options = Options {
        interval: true,
        metrics: vec![Metric::Fid],
        ..options()
    };
    let found = evaluate(&reference, &side(&images(2, 400), 100)?, &options)?;
    let figure = found.figure("fid").expect("asked for");
    let [low, high] = figure.interval.expect("asked for");
    assert!(low < figure.value && figure.value < high);
    assert!(found.warnings.is_empty());
    let options = Options {
        interval: false,
        ..options
    };
    let few = evaluate(&reference, &side(&images(2, 3), 3)?, &options)?;
    assert!(
        few.warnings[0].contains("3 samples in 3 dimensions"),
        "{few:?}"
    );
    let one = evaluate(&reference, &side(&images(2, 1), 1)?, &options);
    assert!(one.unwrap_err().to_string().contains("fewer than two"));
    Ok(())
}

#[test]
fn fid_infinity_counts_its_own_samples_and_warns_of_small_subsets() -> Result<()> {
    let reference = side(&images(1, 500), 100)?;
    let mut samples = side(&images(2, 38), 38)?;
    let mut options = Options {
        metrics: vec![Metric::FidInf],
        ..options()
    };
    // Statistics of more images than the file holds.
    samples.statistics = Some(Statistics {
        fid: samples.gaussian(0, "2048")?,
        spatial: None,
        made_by: Some(MadeBy {
            network: inception::NAME.into(),
            weights: "none".into(),
            preprocess: "adm".into(),
            images: 50_000,
            size: None,
            version: String::new(),
        }),
    });
    let found = evaluate(&reference, &samples, &options)?;
    let figure = found.figure("fid_infinity").expect("asked for");
    assert_eq!((figure.samples, figure.reference), (Some(38), Some(500)));
    assert!(found.warnings.is_empty());
    options.fid = Output::Pool192;
    let found = evaluate(&reference, &samples, &options)?;
    let warning = "19 samples of the smallest subset in 20 dimensions";
    assert!(found.warnings[0].contains(warning), "{found:?}");
    Ok(())
}

#[test]
fn what_cannot_be_compared_is_an_error() -> Result<()> {
    let reference = side(&images(1, 50), 50)?;
    let large: Vec<_> = (0..50)
        .map(|i| RgbImage::from_pixel(4, 4, Rgb([i; 3])))
        .collect();
    let error = evaluate(&reference, &side(&large, 50)?, &options()).unwrap_err();
    assert!(report(&error).0.contains("4×4") && report(&error).0.contains("2×1"));

    let networks = pixels();
    let made_by = MadeBy {
        network: inception::NAME.into(),
        weights: "none".into(),
        preprocess: "clean".into(),
        images: 50,
        size: None,
        version: String::new(),
    };
    let statistics = Side {
        set: Set::default(),
        statistics: Some(Statistics {
            fid: reference.gaussian(0, "2048")?,
            spatial: None,
            made_by: Some(made_by),
        }),
        inception: Some(0),
        features: None,
    };
    let error = statistics
        .check_network(&networks, Preprocess::Adm)
        .unwrap_err();
    assert!(error.to_string().contains("--preprocess clean"), "{error}");
    // Neither images nor spatial statistics.
    for (metric, lacks) in [(Metric::Pr, "images"), (Metric::Sfid, "mu_s")] {
        let options = Options {
            metrics: vec![metric],
            ..options()
        };
        let error = evaluate(&statistics, &reference, &options).unwrap_err();
        assert!(error.to_string().contains(lacks), "{error}");
    }
    let options = Options {
        metrics: vec![Metric::Fid],
        ..options()
    };
    let same = evaluate(&statistics, &reference, &options)?;
    assert!(value(&same, "fid").abs() < 1e-9);
    Ok(())
}
