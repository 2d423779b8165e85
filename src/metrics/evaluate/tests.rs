//! Evaluations end to end with a network that needs no weights: an image's features are its pixels.

use image::{Rgb, RgbImage};

use super::*;
use crate::data::Classes;
use crate::error::{Error, report};
use crate::metrics::collect::Collector;
use crate::metrics::features::Tap;
use crate::metrics::probe::{Parameters, Probe};
use crate::metrics::report::Set;
use crate::metrics::requirements::Facts;
use crate::metrics::side::Labels;
use crate::metrics::stats_file::{MadeBy, Statistics};
use crate::rng::{Purpose, Stream};
use crate::store::int8::Int8;

/// Features are the colours of two pixels; the class is given by the sign of the first green value.
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
        save_statistics: false,
        probe: false,
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
        let features = collector.features(batch)?;
        collector.rows(&features)?;
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
        labels: None,
    })
}

fn evaluate(reference: &Side, samples: &Side, options: &Options) -> Result<Evaluation> {
    Evaluator::new(options, &pixels(), reference).evaluate(samples)
}

fn value(evaluation: &Evaluation, name: &str) -> f64 {
    evaluation
        .measurement(name)
        .expect("it was asked for")
        .value
}

#[test]
fn the_batch_size_changes_no_bit() -> Result<()> {
    let (reference, samples) = (images(1, 700), images(2, 900));
    let first = evaluate(&side(&reference, 16)?, &side(&samples, 16)?, &options())?;
    let second = evaluate(&side(&reference, 700)?, &side(&samples, 7)?, &options())?;
    for (name, measurement) in &first.metrics {
        assert_eq!(
            measurement.value.to_bits(),
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
    let measurement = found.measurement("fid").expect("asked for");
    let [low, high] = measurement.interval.expect("asked for");
    assert!(low < measurement.value && measurement.value < high);
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
    let measurement = found.measurement("fid_infinity").expect("asked for");
    assert_eq!(
        (measurement.samples, measurement.reference),
        (Some(38), Some(500))
    );
    assert!(found.warnings.is_empty());
    options.fid = Output::Pool192;
    let found = evaluate(&reference, &samples, &options)?;
    let warning = "19 samples of the smallest subset in 20 dimensions";
    assert!(found.warnings[0].contains(warning), "{found:?}");
    Ok(())
}

/// The error of `options` for `samples` and `reference`, before anything is computed.
fn refused(options: &Options, samples: Facts, reference: Facts) -> (String, u8) {
    let checked = options.check(&pixels(), samples, Some(reference));
    checked.err().map_or_else(Default::default, |e| report(&e))
}

#[test]
fn what_cannot_be_compared_is_refused_before_anything_is_computed() -> Result<()> {
    let reference = side(&images(1, 50), 50)?;
    let facts = Facts {
        path: "a",
        images: Some(50),
        size: Some((2, 1)),
        statistics: None,
    };
    assert_eq!(refused(&options(), facts, facts).0, "");
    let large = Facts {
        path: "b",
        size: Some((4, 4)),
        ..facts
    };
    let (text, _) = refused(&options(), large, facts);
    assert!(text.contains("4×4") && text.contains("2×1"), "{text}");

    let made_by = |preprocess: &str| {
        Some(MadeBy {
            network: inception::NAME.into(),
            weights: "none".into(),
            preprocess: preprocess.into(),
            images: 50,
            size: None,
            version: String::new(),
        })
    };
    let statistics = Statistics {
        fid: reference.gaussian(0, "2048")?,
        spatial: None,
        made_by: made_by("adm"),
    };
    let known = Facts {
        images: None,
        statistics: Some(&statistics),
        ..facts
    };
    let asking = |metrics: &[Metric]| Options {
        metrics: metrics.to_vec(),
        ..options()
    };
    assert_eq!(refused(&asking(&[Metric::Fid]), known, known).0, "");
    // Neither images nor spatial statistics.
    for (metric, lacks) in [(Metric::Pr, "images"), (Metric::Sfid, "mu_s")] {
        let options = asking(&[metric]);
        for (samples, reference) in [(known, facts), (facts, known)] {
            let (text, _) = refused(&options, samples, reference);
            assert!(text.contains(lacks), "{text}");
        }
    }
    let clean = Statistics {
        made_by: made_by("clean"),
        ..statistics.clone()
    };
    let clean = Facts {
        statistics: Some(&clean),
        ..known
    };
    let (text, _) = refused(&asking(&[Metric::Fid]), facts, clean);
    assert!(text.contains("--preprocess clean"), "{text}");
    // Statistics of spatial features with the width of these.
    let narrow = Statistics {
        spatial: Some(side(&images(1, 50), 50)?.gaussian(0, "logits")?),
        ..statistics.clone()
    };
    let narrow = Facts {
        statistics: Some(&narrow),
        ..known
    };
    let (text, code) = refused(&asking(&[Metric::Sfid]), facts, narrow);
    assert!(text.contains("of 4 dimensions") && code == 2, "{text}");

    let with_statistics = Side {
        set: Set::default(),
        statistics: Some(statistics),
        inception: Some(0),
        features: None,
        labels: None,
    };
    let same = evaluate(&with_statistics, &reference, &asking(&[Metric::Fid]))?;
    assert!(value(&same, "fid").abs() < 1e-9);
    Ok(())
}

/// Classes are reds and blues; the probe compares the two colours.
#[test]
fn a_probe_says_how_many_samples_show_their_class() -> Result<()> {
    let colours = |red: bool, count: usize| {
        let colour = if red { [200, 20, 40] } else { [30, 10, 210] };
        vec![RgbImage::from_pixel(2, 1, Rgb(colour)); count]
    };
    let parameters = Parameters {
        weight: Int8 {
            shape: vec![2, 3],
            values: vec![100, 0, -100, -100, 0, 100],
            scales: vec![0.01; 2],
        },
        bias: vec![0.0; 2],
        mean: vec![2.0, 0.0, 2.0],
        std: vec![0.5; 3],
    };
    let networks = pixels();
    let made_by = |preprocess: &str| MadeBy {
        network: inception::NAME.into(),
        weights: "none".into(),
        preprocess: preprocess.into(),
        images: 2,
        size: None,
        version: "0".into(),
    };
    let probe = |preprocess: &str| {
        let classes = Classes::named(["red", "blue"]);
        Probe::new(parameters.clone(), classes, made_by(preprocess)).map_err(Error::msg)
    };
    let images = [colours(true, 3), colours(false, 1)].concat();
    let mut samples = side(&images, 2)?;
    // All are meant to be red, by the numbers of a model that knows more.
    samples.labels = Some(Labels {
        classes: Classes::named(["green", "red"]),
        indices: vec![1; 4],
    });
    let mut found = Evaluation::default();
    probe("adm")?.check(&*networks[0])?;
    probe("adm")?.measure(&samples, &networks, &mut found)?;
    assert_eq!(value(&found, "probe_top1"), 0.75);
    let mean = value(&found, "probe_prob");
    assert!((mean - 0.75).abs() < 0.01, "{mean}");
    let asked = Options {
        probe: true,
        metrics: Vec::new(),
        ..options()
    };
    assert_eq!(asked.outputs(), [Output::Pool2048]);
    assert!(asked.keeps_sample_rows("2048") && !asked.keeps_reference_rows("2048"));
    let (text, _) = report(&probe("clean")?.check(&*networks[0]).unwrap_err());
    assert!(text.contains("fitted with the resize clean"), "{text}");
    samples.labels = Some(Labels {
        classes: Classes::named(["green", "red"]),
        indices: vec![1, 1, 0, 1],
    });
    let unknown = probe("adm")?.measure(&samples, &networks, &mut found);
    assert!(report(&unknown.unwrap_err()).0.contains("(green)"));
    Ok(())
}

#[test]
fn statistics_that_are_saved_ask_for_their_features() {
    for metrics in [vec![Metric::Is], vec![Metric::FdDinov2], vec![]] {
        let mut options = Options {
            metrics,
            fid: Output::Pool192,
            ..options()
        };
        assert!(!options.outputs().contains(&Output::Pool192));
        options.save_statistics = true;
        assert!(options.outputs().contains(&Output::Pool192));
    }
}

#[test]
fn too_few_images_are_refused_before_anything_is_computed() {
    let of = |count: usize| Facts {
        path: "a",
        images: Some(count),
        size: None,
        statistics: None,
    };
    let asking = |metric: Metric| Options {
        metrics: vec![metric],
        ..options()
    };
    let mut subsets = asking(Metric::Kid);
    subsets.kid_subset_size = Some(60);
    let mut interval = asking(Metric::Fid);
    interval.interval = true;
    for (options, samples, reference, why) in [
        (
            asking(Metric::Pr),
            50,
            3,
            "a set of 3 images has no third neighbour",
        ),
        (asking(Metric::FidInf), 29, 50, "29 samples"),
        (
            subsets,
            80,
            50,
            "60 images cannot be drawn from 80 samples and 50",
        ),
        (interval, 19, 50, "19 samples are too few for 10 groups"),
    ] {
        let (text, _) = refused(&options, of(samples), of(reference));
        assert!(text.contains(why), "{text}");
        assert_eq!(refused(&options, of(80), of(80)).0, "");
    }
}
