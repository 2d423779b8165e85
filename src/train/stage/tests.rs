//! The training loop around a stage that only records its calls.

use std::fs;

use candle_core::{Device, Tensor};

use super::*;
use crate::config::Config;
use crate::error::report;
use crate::train::checkpoint::steps;

/// A gradient whose step is reported as skipped only when it is logged, as on a GPU.
const LATE: f32 = 1e9;

/// A stage whose gradient and loss at micro-batch i are both `gradients[i]`.
struct Told {
    gradients: Vec<f32>,
    next: usize,
    /// Scale and summed gradient of every update.
    updates: Vec<(u64, f64, f32)>,
}

impl Stage for Told {
    type Batch = f32;
    type Rest = ();

    fn next(&mut self) -> Result<f32> {
        self.next += 1;
        Ok(self.gradients[self.next - 1])
    }

    fn compute(&mut self, batch: f32, _: u64) -> Result<Micro<()>> {
        let gradient = Tensor::new(&[batch], &Device::Cpu)?;
        let mut metrics = StepMetrics::default();
        metrics.add("loss", f64::from(batch));
        Ok(Micro {
            gradients: Gradients::from([("w".to_string(), gradient)]),
            metrics,
            rest: (),
        })
    }

    fn update(&mut self, gradients: &Gradients, _: Vec<()>, update: Update) -> Result<StepMetrics> {
        let sum = gradients["w"].to_vec1::<f32>()?[0];
        self.updates.push((update.step, update.scale, sum));
        Ok(StepMetrics::default())
    }
}

impl Checkpointed for Told {
    fn metrics(&mut self) -> Result<Map<String, Value>> {
        let psnr = json!(if self.next == 2 { f64::NAN } else { 20.0 });
        Ok(Map::from_iter([("psnr".to_string(), psnr)]))
    }

    fn images(&mut self, path: &Path, scale: Scale) -> Result<Map<String, Value>> {
        assert_eq!(scale, Scale::Times(3));
        match path.ends_with("step-00000004.png") {
            true => Err(hinted("cannot write step-00000004.png", "")),
            false => Ok(Map::from_iter([("psnr_t".to_string(), json!([1.0, 2.0]))])),
        }
    }

    fn contents(&self) -> Result<Contents> {
        Ok(Contents::default())
    }

    fn restore(&mut self, _: Contents, _: &BTreeMap<String, u64>) -> Result<()> {
        Ok(())
    }

    fn counters(&self) -> Result<BTreeMap<String, u64>> {
        Ok(BTreeMap::new())
    }

    fn skipped(&self) -> Result<u64> {
        let last = self.updates.iter().rev();
        Ok(last.take_while(|u| u.2 == LATE).count() as u64)
    }
}

/// The result of a run.
struct Ended {
    result: Result<()>,
    updates: Vec<(u64, f64, f32)>,
    state: State,
    lines: Vec<Value>,
    /// Steps of the checkpoints.
    saved: Vec<u64>,
}

/// Trains on `gradients`.
fn train(gradients: &[f32], change: impl FnOnce(&mut TrainConfig)) -> Result<Ended> {
    let root = tempfile::tempdir()?;
    let mut config = TrainConfig {
        batch_size: 2,
        log_every: 2,
        checkpoint_every: 3,
        keep_checkpoints: 2,
        max_bad_steps: 2,
        clip: 0.0,
        ..TrainConfig::vae()
    };
    change(&mut config);
    let steps_planned = (gradients.len() / config.accumulate) as u64;
    let path = root.path().join("run");
    let mut run = Run::create(Some(&path), "train-vae", &Config::default())?;
    let mut stage = Told {
        gradients: gradients.to_vec(),
        next: 0,
        updates: Vec::new(),
    };
    let folder = run.folder().clone();
    let mut job = Job {
        world: &World::alone(),
        folder: &folder,
        run: Some(&mut run),
        config: &config,
        steps: steps_planned,
        state: State::new("train-vae", 0, 5, String::new()),
        interval: StepMetrics::default(),
        interrupt: Interrupt::listen()?,
        save_first: true,
        scale: Scale::Times(3),
        watchdog: None,
        patience: Patience::new(Duration::ZERO),
    };
    let result = job.train(&mut stage);
    let state = job.state.clone();
    let text = fs::read_to_string(path.join("metrics.jsonl"))?;
    let lines = text
        .lines()
        .map(serde_json::from_str)
        .collect::<Result<_, _>>()?;
    Ok(Ended {
        result,
        updates: stage.updates,
        state,
        lines,
        saved: steps(&path.join("checkpoints"))?,
    })
}

#[test]
fn a_bad_step_is_left_out_and_the_run_goes_on() -> Result<()> {
    let nan = f32::NAN;
    let ended = train(&[1.0, nan, 3.0, f32::INFINITY, 5.0], |_| {})?;
    ended.result?;
    let (state, lines) = (ended.state, ended.lines);
    let updated: Vec<u64> = ended.updates.iter().map(|u| u.0).collect();
    assert_eq!(updated, [0, 2, 4]);
    assert_eq!((state.step, state.bad_steps, state.finished), (5, 0, true));
    let losses: Vec<&Value> = lines.iter().map(|line| &line["loss"]).collect();
    assert_eq!(losses, [&json!(1.0), &json!(3.0), &json!(5.0)]);
    Ok(())
}

#[test]
fn a_figure_that_is_not_finite_is_null_and_a_picture_that_fails_costs_its_line_nothing_else()
-> Result<()> {
    let ended = train(&[1.0; 6], |config| config.image_every = 2)?;
    ended.result?;
    let of =
        |key: &str| -> Vec<Value> { ended.lines.iter().map(|line| line[key].clone()).collect() };
    assert_eq!(of("psnr"), [Value::Null, json!(20.0), json!(20.0)]);
    assert_eq!(
        of("psnr_t"),
        [json!([1.0, 2.0]), Value::Null, json!([1.0, 2.0])]
    );
    assert_eq!(of("loss"), [json!(1.0), json!(1.0), json!(1.0)]);
    let said = sentence(ended.lines[0].as_object().expect("a line"));
    assert!(
        said.contains("PSNR not finite") && !said.contains("null"),
        "{said}"
    );
    Ok(())
}

#[test]
fn bad_steps_in_a_row_stop_the_run_and_name_the_last_checkpoint() -> Result<()> {
    let nan = f32::NAN;
    let ended = train(&[1.0, 1.0, 1.0, nan, nan, 1.0], |_| {})?;
    let (text, code) = report(&ended.result.unwrap_err());
    assert!(
        text.contains("2 steps in a row") && text.contains("step-00000003"),
        "{text}"
    );
    assert_eq!((code, ended.updates.len(), ended.state.step), (1, 3, 4));
    assert_eq!(ended.saved, [0, 3]);
    Ok(())
}

#[test]
fn bad_steps_that_are_told_late_stop_the_run_too() -> Result<()> {
    let ended = train(&[1.0, LATE, LATE, 1.0, LATE, LATE], |_| {})?;
    let (text, _) = report(&ended.result.unwrap_err());
    assert!(
        text.contains("2 steps in a row") && text.contains("step-00000003"),
        "{text}"
    );
    assert_eq!(ended.state.step, 6);
    Ok(())
}

#[test]
fn micro_batches_are_averaged_and_the_mean_is_clipped() -> Result<()> {
    let ended = train(&[3.0, 5.0, 0.1, 0.3], |config| {
        config.accumulate = 2;
        config.clip = 1.0;
    })?;
    ended.result?;
    let [(_, clipped, sum), (_, whole, _)] = ended.updates[..] else {
        panic!("two updates: {:?}", ended.updates);
    };
    assert_eq!(sum, 8.0);
    assert!(
        (clipped * 8.0 - 1.0).abs() < 1e-5,
        "a mean of norm 4, clipped to 1: {clipped}"
    );
    assert_eq!(whole, 0.5);
    assert_eq!(ended.lines[0]["loss"], json!(2.1));
    let state = ended.state;
    assert_eq!((state.index, state.epoch, state.position), (4, 0, 4));
    Ok(())
}

#[test]
fn checkpoints_come_at_the_start_every_n_steps_and_at_the_end() -> Result<()> {
    let ended = train(&[1.0; 7], |config| config.keep_checkpoints = 9)?;
    ended.result?;
    assert_eq!(ended.saved, [0, 3, 6, 7]);
    assert_eq!(train(&[1.0; 7], |_| {})?.saved, [6, 7]);
    Ok(())
}
