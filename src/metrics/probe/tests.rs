use image::RgbImage;

use super::fit::{Settings, fit};
use super::reject::{Kept, Rejection};
use super::*;
use crate::error::report;
use crate::metrics::features::Tap;
use crate::rng::{Purpose, Stream};

const D: usize = 12;
const K: usize = 5;

/// Features around a centre a class, of columns with unlike means and sizes.
fn clusters(count: usize, seed: u64) -> (Rows, Vec<u32>) {
    let normal = |index, count| {
        let mut values = vec![0f32; count];
        Stream::new(7, Purpose::Noise, index, 0).fill_normal(&mut values);
        values
    };
    let (centres, noise) = (normal(0, K * D), normal(seed, count * D));
    let labels: Vec<u32> = (0..count).map(|i| (i * 7 % K) as u32).collect();
    let mut values = noise;
    for (row, label) in values.chunks_exact_mut(D).zip(&labels) {
        for (j, x) in row.iter_mut().enumerate() {
            *x =
                0.1 * 3f32.powi(j as i32 % 4) * (*x + 1.5 * centres[*label as usize * D + j]) + 2.0;
        }
    }
    (Rows { width: D, values }, labels)
}

const SETTINGS: Settings = Settings {
    epochs: 20,
    batch_size: 50,
    lr: 1e-2,
    weight_decay: 1e-2,
    seed: 0,
};

fn made_by() -> MadeBy {
    MadeBy {
        network: inception::NAME.into(),
        weights: "w".into(),
        preprocess: "adm".into(),
        images: 600,
        size: None,
        version: "0".into(),
    }
}

fn probe() -> Result<Probe> {
    let (rows, labels) = clusters(600, 1);
    let parameters = fit(rows, &labels, K, &SETTINGS, |_, _| Ok(()))?;
    let names = (0..K).map(|k| format!("n{k}"));
    Probe::new(parameters, Classes::named(names), made_by()).map_err(Error::msg)
}

#[test]
fn a_fitted_probe_sees_the_classes_of_new_features() -> Result<()> {
    let probe = probe()?;
    let (rows, labels) = clusters(500, 2);
    let verdict = probe.judge(&rows, &labels)?;
    assert!(
        verdict.top1 > 0.9 && verdict.probability > 0.85,
        "{verdict:?}"
    );
    // Asked for the next class, none shows it.
    let other: Vec<u32> = labels.iter().map(|k| (k + 1) % K as u32).collect();
    let verdict = probe.judge(&rows, &other)?;
    assert!(
        verdict.top1 < 0.1 && verdict.probability < 0.1,
        "{verdict:?}"
    );
    // Whole rows of probabilities, each the same alone.
    let p = probe.probabilities(&rows)?;
    assert!(p.iter().all(|p| (p.iter().sum::<f32>() - 1.0).abs() < 1e-5));
    let one = Rows {
        width: D,
        values: rows.values[17 * D..18 * D].to_vec(),
    };
    assert_eq!(
        probe.probabilities(&one)?.values,
        p.values[17 * K..18 * K].to_vec()
    );
    Ok(())
}

#[test]
fn features_that_say_nothing_teach_nothing() -> Result<()> {
    let (rows, mut labels) = clusters(2000, 1);
    let mut draws = Stream::new(3, Purpose::Subset, 0, 0).draws();
    draws.shuffle(&mut labels);
    let parameters = fit(rows, &labels, K, &SETTINGS, |_, _| Ok(()))?;
    let classes = Classes::named((0..K).map(|k| format!("n{k}")));
    let probe = Probe::new(parameters, classes, made_by()).map_err(Error::msg)?;
    let (rows, labels) = clusters(2000, 2);
    let top1 = probe.judge(&rows, &labels)?.top1;
    assert!((0.1..0.3).contains(&top1), "{top1}");
    Ok(())
}

#[test]
fn the_same_seed_fits_the_same_bits_and_every_class_is_needed() -> Result<()> {
    let of = |seed| {
        let (rows, labels) = clusters(300, 1);
        let settings = Settings { seed, ..SETTINGS };
        fit(rows, &labels, K, &settings, |_, _| Ok(()))
    };
    assert_eq!(of(1)?, of(1)?);
    assert_ne!(of(1)?, of(2)?);
    let (rows, labels) = clusters(300, 1);
    let none = fit(rows, &labels, K + 1, &SETTINGS, |_, _| Ok(()));
    let text = report(&none.unwrap_err()).0;
    assert!(text.contains("class number 5 of 6"), "{text}");
    Ok(())
}

#[test]
fn a_probe_is_read_as_it_was_written() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("probe.safetensors");
    let mut written = probe()?;
    written.metrics = json!({"top1": 0.5});
    written.write(&path)?;
    let read = Probe::read(&path)?;
    assert_eq!(read.hash, digest::sha256(&path)?);
    assert_eq!(
        (
            &read.parameters,
            &read.classes,
            &read.made_by,
            &read.metrics
        ),
        (
            &written.parameters,
            &written.classes,
            &written.made_by,
            &written.metrics
        )
    );
    let (rows, labels) = clusters(100, 3);
    assert_eq!(read.judge(&rows, &labels)?, written.judge(&rows, &labels)?);
    // The file grows by a byte a weight.
    let bytes = std::fs::metadata(&path)?.len() as usize;
    assert!(bytes < K * D + 2048, "{bytes}");
    Ok(())
}

#[test]
fn damaged_probes_and_other_files_are_refused() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("probe.safetensors");
    let good = probe()?;
    type Damage = fn(&mut Probe);
    let damages: [(Damage, &str); 7] = [
        (|p| p.parameters.std[3] = 0.0, "`std` holds"),
        (|p| p.parameters.std[3] = f32::NAN, "`std` holds"),
        (|p| p.parameters.bias[0] = f32::INFINITY, "`bias` or `mean`"),
        (|p| p.parameters.mean.truncate(3), "expected `weight` [K,D]"),
        (
            |p| p.parameters.weight.scales[1] = f32::NAN,
            "scale NaN in row 1",
        ),
        (|p| p.parameters.weight.scales[1] = 0.0, "scale 0 in row 1"),
        (
            |p| p.classes = Classes::named(["a"]),
            "1 classes and rows for 5",
        ),
    ];
    for (damage, words) in damages {
        let mut probe = good.clone();
        damage(&mut probe);
        probe.write(&path)?;
        let (text, code) = report(&Probe::read(&path).unwrap_err());
        assert!(text.contains(words) && code == 1, "{text}");
        assert!(text.contains("probe.safetensors") && text.contains("hint: "));
    }
    let metadata = Metadata::from([("format".to_string(), "rdpm-bundle/1".to_string())]);
    safetensors::write(&path, &Default::default(), &metadata)?;
    let text = report(&Probe::read(&path).unwrap_err()).0;
    assert!(
        text.contains("is a bundle") && text.contains("expected a probe"),
        "{text}"
    );
    Ok(())
}

#[test]
fn classes_are_found_by_name_and_others_are_named() -> Result<()> {
    let probe = probe()?;
    let classes = Classes::named(["n3", "n0", "cat"]);
    assert_eq!(probe.classes_of(&classes, &[0, 1, 0])?, [3, 0, 3]);
    let (text, code) = report(&probe.classes_of(&classes, &[0, 2]).unwrap_err());
    assert!(text.contains("index:2 (cat) is not among its 5"), "{text}");
    assert_eq!(code, 2);
    Ok(())
}

/// Features are the first D pixels' reds.
struct Reds([Tap; 1]);

impl FeatureNetwork for Reds {
    fn name(&self) -> &'static str {
        inception::NAME
    }

    fn weights_hash(&self) -> &str {
        "w"
    }

    fn preprocess(&self) -> &'static str {
        "adm"
    }

    fn taps(&self) -> &[Tap] {
        &self.0
    }

    fn features(&self, images: &[RgbImage]) -> Result<Vec<Rows>> {
        let reds = |image: &RgbImage| {
            image
                .pixels()
                .map(|p| f32::from(p.0[0]))
                .collect::<Vec<_>>()
        };
        Ok(vec![Rows {
            width: D,
            values: images.iter().flat_map(reds).collect(),
        }])
    }
}

fn reds(width: usize) -> Box<dyn FeatureNetwork> {
    Box::new(Reds([Tap {
        name: "2048",
        width,
    }]))
}

/// Class k is where red k is largest.
fn brightest() -> Result<Probe> {
    let mut values = vec![0; K * D];
    (0..K).for_each(|k| values[k * D + k] = 100);
    let parameters = Parameters {
        weight: Int8 {
            shape: vec![K, D],
            values,
            scales: vec![0.01; K],
        },
        bias: vec![0.0; K],
        mean: vec![100.0; D],
        std: vec![20.0; D],
    };
    let classes = Classes::named((0..K).map(|k| format!("n{k}")));
    Probe::new(parameters, classes, made_by()).map_err(Error::msg)
}

#[test]
fn the_best_candidate_is_kept_and_the_first_of_equals() -> Result<()> {
    let classes = Classes::named(["n4", "cat", "n1"]);
    let rejection = Rejection::new(reds(D), brightest()?, &classes, &[0, 2], 4)?;
    assert_eq!(rejection.candidates(), 4);
    let numbers: Vec<u64> = (0..3).flat_map(|i| rejection.numbers(i)).collect();
    assert_eq!(numbers, (0..12).collect::<Vec<u64>>());
    let image = |bright: u32, red: u8| {
        RgbImage::from_fn(D as u32, 1, |x, _| {
            image::Rgb([if x == bright { red } else { 50 }, 0, 0])
        })
    };
    let images = [image(1, 90), image(4, 120), image(4, 180), image(4, 180)];
    let of_four = rejection.best(&images, 0)?;
    assert_eq!(of_four.place, 2);
    assert!(of_four.probability > 0.9, "{of_four:?}");
    assert_eq!(rejection.best(&images, 2)?.place, 0);
    // A candidate's probability is its own, whatever it is compared with.
    let alone = rejection.best(&images[2..3], 0)?;
    assert_eq!(
        alone,
        Kept {
            place: 0,
            ..of_four
        }
    );
    assert!(rejection.best(&images, 1).is_err());
    Ok(())
}

#[test]
fn rejection_refuses_what_the_probe_cannot_judge() -> Result<()> {
    let classes = Classes::named(["n4", "cat"]);
    let refused = |network, used: &[u32]| -> Result<String> {
        let found = Rejection::new(network, brightest()?, &classes, used, 2);
        Ok(found.err().map_or(String::new(), |e| report(&e).0))
    };
    assert_eq!(refused(reds(D), &[0])?, "");
    assert!(refused(reds(D), &[0, 1])?.contains("(cat) is not among"));
    assert!(refused(reds(7), &[0])?.contains("expected 7 features, found 12"));
    Ok(())
}
