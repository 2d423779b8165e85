//! The loop that both stages share: batch → gradients → update, then log line, sample images,
//! checkpoint, interrupt.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};
use tracing::info_span;

use super::checkpoint::{self, Contents, State};
use super::grads::{self, Gradients};
use super::lr::learning_rate;
use super::patience::Patience;
use super::step_metrics::{StepMetrics, round};
use super::watchdog::Watchdog;
use crate::config::TrainConfig;
use crate::error::{self, Result, hinted, interrupted};
use crate::interrupt::Interrupt;
use crate::ops::global_norm;
use crate::sample::Scale;
use crate::store::digest;
use crate::store::run::{Run, RunFolder};
use crate::telemetry::{Progress, pulse};
use crate::world::World;

/// The result of a micro-batch.
pub struct Micro<P> {
    /// Gradients of the parameters that the learning rate and the clipping apply to.
    pub gradients: Gradients,
    pub metrics: StepMetrics,
    /// What else an update needs; dropped if the step is skipped.
    pub rest: P,
}

/// What an update needs to know about its step.
#[derive(Debug, Clone, Copy)]
pub struct Update<'a> {
    /// Whose micro-batches the step has.
    pub world: &'a World,
    /// Counted from 0.
    pub step: u64,
    /// Total steps of the run.
    pub steps: u64,
    pub lr: f64,
    /// Multiplies the summed gradients: averages over micro-batches, and clips.
    pub scale: f64,
}

/// What the loop needs from every stage.
pub trait Checkpointed {
    /// What a log line has besides the means of the steps' metrics.
    fn metrics(&mut self) -> Result<Map<String, Value>>;
    /// Writes a sheet of images to `path`, and returns metrics that are expensive to compute.
    fn images(&mut self, path: &Path, scale: Scale) -> Result<Map<String, Value>>;
    fn contents(&self) -> Result<Contents>;
    /// Continues from what [`Checkpointed::contents`] and [`Checkpointed::counters`] returned.
    fn restore(&mut self, contents: Contents, counters: &BTreeMap<String, u64>) -> Result<()>;
    fn counters(&self) -> Result<BTreeMap<String, u64>>;
    /// Consecutive skipped steps so far, for a stage that reports them late.
    fn skipped(&self) -> Result<u64> {
        Ok(0)
    }
}

/// A stage that runs its own step.
pub trait Step: Checkpointed {
    /// One step with all its micro-batches, of which this process computes its share; it changes
    /// nothing if a metric is not finite.
    fn step(
        &mut self,
        world: &World,
        config: &TrainConfig,
        step: u64,
        steps: u64,
    ) -> Result<StepMetrics>;
}

/// A stage that computes gradients and applies their sum over a step's micro-batches.
pub trait Stage: Checkpointed {
    type Batch;
    type Rest;

    /// The next micro-batch.
    fn next(&mut self) -> Result<Self::Batch>;
    /// Gradients and metrics; has no effect that a skipped step would have to undo.
    fn compute(&mut self, batch: Self::Batch, step: u64) -> Result<Micro<Self::Rest>>;
    fn update(
        &mut self,
        gradients: &Gradients,
        rest: Vec<Self::Rest>,
        update: Update,
    ) -> Result<StepMetrics>;
}

impl<S: Stage> Step for S {
    fn step(
        &mut self,
        world: &World,
        config: &TrainConfig,
        step: u64,
        steps: u64,
    ) -> Result<StepMetrics> {
        let (mut sum, mut metrics, mut rest) = (grads::Sum::new(world), Vec::new(), Vec::new());
        for _ in 0..config.accumulate / world.size() {
            let batch = self.next()?;
            let micro = self.compute(batch, step)?;
            sum.add(micro.gradients)?;
            metrics.push(micro.metrics);
            rest.push(micro.rest);
        }
        let sum = sum.finish()?;
        #[cfg(feature = "cuda")]
        world.settle()?;
        let mut metrics = StepMetrics::of_all(world, metrics)?;
        let norm = (global_norm(sum.values())? / config.accumulate as f64)?;
        metrics.add_scalar("grad_norm", &norm);
        metrics.fetch()?;
        let norm = metrics.mean("grad_norm").unwrap_or(f64::NAN);
        if metrics.first_bad().is_none() {
            let update = Update {
                world,
                step,
                steps,
                lr: learning_rate(config, step, steps),
                scale: clip(config.clip, norm) / config.accumulate as f64,
            };
            let more = info_span!("optimizer").in_scope(|| self.update(&sum, rest, update))?;
            metrics.merge(&more);
        }
        Ok(metrics)
    }
}

/// What ranks agree on after a step: to save and stop, or to save.
const STOP: u8 = 1;
const SAVE: u8 = 2;

/// Between two looks for a signal, where a finished run waits for room on the disk.
const PAUSE: Duration = Duration::from_millis(50);

/// A log line, and the sheet of images beside it.
type Line = (Map<String, Value>, Option<PathBuf>);

/// What a watchdog looks at, until it is dropped.
struct Watched(Watchdog);

impl Drop for Watched {
    fn drop(&mut self) {
        self.0.end();
    }
}

/// A run that is about to start or to continue.
pub struct Job<'a> {
    pub world: &'a World,
    pub folder: &'a RunFolder,
    /// The run to write to, at rank 0.
    pub run: Option<&'a mut Run>,
    pub config: &'a TrainConfig,
    pub steps: u64,
    /// The run's position: steps, examples, counters.
    pub state: State,
    /// The means of the log line in progress.
    pub interval: StepMetrics,
    pub interrupt: Interrupt,
    /// Whether the current position is not saved yet.
    pub save_first: bool,
    /// Of the sheets of images.
    pub scale: Scale,
    /// Ends the run when it hangs.
    pub watchdog: Option<Watchdog>,
    /// How long a full disk may keep it from being saved.
    pub patience: Patience,
}

impl Job<'_> {
    /// Trains until the last step is done.
    ///
    /// Errors: a signal (after a checkpoint); too many consecutive steps with a loss or gradient
    /// that is not finite.
    pub fn train<S: Step>(&mut self, stage: &mut S) -> Result<()> {
        let mut clock = Clock::new();
        if self.save_first {
            // Save at once: a run that cannot be saved fails now, and one that is killed can always
            // be resumed.
            let contents = self.contents(stage)?;
            self.save(stage, contents)?;
        }
        let watchdog = self.watchdog.clone();
        let mut progress = (self.world.is_first())
            .then(|| Progress::new(&self.state.stage, self.steps, self.state.step));
        while self.state.step < self.steps {
            let step = self.state.step;
            let begin = Instant::now();
            let lr = learning_rate(self.config, step, self.steps);
            watchdog.iter().for_each(|dog| dog.begin(step + 1));
            let metrics = info_span!("step", step)
                .in_scope(|| stage.step(self.world, self.config, step, self.steps))?;
            watchdog.iter().for_each(Watchdog::end);
            match metrics.first_bad() {
                None => {
                    self.state.bad_steps = 0;
                    self.interval.merge(&metrics);
                }
                Some(name) => self.skip(step + 1, name, self.state.bad_steps + 1)?,
            }
            self.advance();
            clock.add(begin.elapsed(), self.config.batch_size);
            let (step, last) = (self.state.step, self.state.finished);
            self.world.at(step);
            let own = [
                (self.interrupt.requested(), STOP),
                (clock.saving(self.config) || self.patience.wants_try(), SAVE),
            ];
            let own = own.iter().filter(|(asked, _)| *asked);
            let agreed = self
                .world
                .agree(own.fold(0, |flags, (_, flag)| flags | flag))?;
            let stop = agreed & STOP != 0 && !last;
            if let Some(progress) = &mut progress {
                progress.set(step, "");
                self.log(stage, lr, &mut clock, progress)?;
            } else if due(step, self.config.log_every) || last {
                // As rank 0 does for its log line.
                self.count_skipped(stage)?;
            }
            if due(step, self.config.checkpoint_every) || agreed & SAVE != 0 || stop || last {
                self.checkpoint(stage, stop)?;
                clock.saved();
            }
            if stop {
                // Nobody ends before the checkpoint is whole: a launcher may end all with the
                // first.
                self.world.part()?;
                return Err(self.interrupted());
            }
        }
        self.world.part()
    }

    /// Writes the log line of this step, if it has one.
    fn log<S: Checkpointed>(
        &mut self,
        stage: &mut S,
        lr: f64,
        clock: &mut Clock,
        progress: &mut Progress,
    ) -> Result<()> {
        let step = self.state.step;
        let Some((line, picture)) = self.line(stage, lr, clock)? else {
            return Ok(());
        };
        if !line.is_empty() {
            progress.log(step, &sentence(&line));
            tracing::debug!("step {step}: {}", json!(line));
        }
        let Some(run) = &mut self.run else {
            return Ok(());
        };
        // A full disk loses the line; the run continues.
        if let Some(events) = &mut run.events
            && let Err(error) = events.append(step, &line, picture.as_deref())
        {
            tracing::warn!("step {step}: TensorBoard's events are lost: {error:#}");
        }
        if !line.is_empty()
            && let Err(error) = run.metrics.append(step, line)
        {
            tracing::warn!("step {step}: its log line is lost: {error:#}");
        }
        Ok(())
    }

    /// From here on the watchdog wants signs of work, until the value is dropped.
    fn watched(&self, what: &'static str) -> Option<Watched> {
        let watchdog = self.watchdog.clone()?;
        watchdog.begin_after(self.state.step, what);
        Some(Watched(watchdog))
    }

    /// Takes what a stage reports late.
    fn count_skipped<S: Checkpointed>(&mut self, stage: &S) -> Result<()> {
        let watched = self.watched("the GPU does not get done");
        let skipped = stage.skipped()?;
        drop(watched);
        match skipped {
            0 => Ok(()),
            bad => self.skip(self.state.step, "grad_norm", bad),
        }
    }

    /// Logs a skipped step, the last of `bad` in a row: no update, no average, no counts.
    fn skip(&mut self, step: u64, name: &str, bad: u64) -> Result<()> {
        self.state.bad_steps = bad;
        if self.world.is_first() {
            tracing::warn!("step {step} skipped: {name} is not finite ({bad} in a row)");
        }
        if bad < self.config.max_bad_steps {
            return Ok(());
        }
        let last = self.folder.latest()?;
        // Every rank counts the same steps: each says so itself.
        self.world.part()?;
        Err(self.of_all(hinted(
            format!("{bad} steps in a row were skipped, the last for {name}: the run has diverged"),
            format!(
                "the last good checkpoint is {}; a smaller lr or a longer warm-up may hold",
                last.display()
            ),
        )))
    }

    /// Advances the state by one step.
    fn advance(&mut self) {
        let state = &mut self.state;
        state.step += 1;
        state.index += self.config.batch_size as u64;
        state.epoch = state.index / state.images;
        state.position = state.index % state.images;
        state.finished = state.step == self.steps;
    }

    /// One log line: the means since the last line, the speed, and the metrics computed with the
    /// images; and the sheet of images, if this step has one.
    fn line<S: Checkpointed>(
        &mut self,
        stage: &mut S,
        lr: f64,
        clock: &mut Clock,
    ) -> Result<Option<Line>> {
        let (step, last) = (self.state.step, self.state.finished);
        let (mut line, mut picture) = (Map::new(), None);
        if due(step, self.config.log_every) || last {
            let epochs = self.state.index as f64 / self.state.images as f64;
            line.insert("epoch".into(), json!(round(epochs)));
            line.insert("lr".into(), json!(round(lr)));
            line.extend(std::mem::take(&mut self.interval).to_json());
            self.count_skipped(stage)?;
            let metrics = stage.metrics()?;
            warn_of_bad(step, &metrics);
            line.extend(metrics);
            line.insert("images_per_second".into(), json!(round(clock.rate())));
            line.insert("eta_seconds".into(), json!(clock.left(self.steps - step)));
            clock.restart();
        }
        if due(step, self.config.image_every) || last {
            let path = self.folder.images().join(format!("step-{step:08}.png"));
            match stage.images(&path, self.scale) {
                Ok(metrics) => {
                    warn_of_bad(step, &metrics);
                    line.extend(metrics);
                    picture = Some(path);
                }
                // For instance a full disk, or a model with outputs that are not finite: the run
                // continues.
                Err(error) => tracing::warn!("step {step}: no image: {error:#}"),
            }
        }
        let is_written = !line.is_empty() || picture.is_some();
        Ok(is_written.then_some((line, picture)))
    }

    /// Saves a checkpoint. While the disk is full that comes later; but before the run ends, it is
    /// tried until it succeeds or the patience ends, and only once if a signal is why it ends.
    fn checkpoint<S: Checkpointed>(&mut self, stage: &S, mut stop: bool) -> Result<()> {
        let _span = info_span!("checkpoint").entered();
        let _watched = self.watched("the checkpoint does not get done");
        let contents = self.contents(stage)?;
        let (step, last) = (self.state.step, self.state.finished);
        let waits = self.patience.is_failing() && !self.patience.wants_try();
        if self.run.is_none() || waits && !stop && !last {
            return Ok(());
        }
        loop {
            match self.save(stage, contents.clone()) {
                Ok(()) => {
                    self.patience.saved(step);
                    return Ok(());
                }
                Err(error) if stop => return Err(self.not_saved(&error)),
                Err(error) => self.patience.failed(step, error)?,
            }
            if !last {
                return Ok(());
            }
            let since = Instant::now();
            while since.elapsed() < self.patience.pause() && !stop {
                thread::sleep(PAUSE);
                pulse::beat();
                stop = self.interrupt.requested();
            }
        }
    }

    /// What a checkpoint holds; all ranks must have the same parameters.
    fn contents<S: Checkpointed>(&self, stage: &S) -> Result<Contents> {
        let contents = stage.contents()?;
        if self.world.size() > 1 {
            let what = format!("after step {} parameters of SHA-256", self.state.step);
            self.world
                .same(&[(&what, digest::of_tensors(&contents.model)?)])?;
        }
        Ok(contents)
    }

    /// Writes a checkpoint, at rank 0.
    fn save<S: Checkpointed>(&mut self, stage: &S, mut contents: Contents) -> Result<()> {
        let Some(run) = &mut self.run else {
            return Ok(());
        };
        contents.optimizer.extend(self.interval.tensors()?);
        self.state.counters = stage.counters()?;
        // The log lines up to this step must be on disk before the checkpoint.
        if let Err(error) = run.metrics.sync() {
            tracing::warn!("{error:#}");
        }
        let folder = self.folder.checkpoints();
        let saved = checkpoint::save(
            &folder,
            &self.state,
            &contents,
            self.config.keep_checkpoints,
        )?;
        tracing::debug!("saved {}", saved.display());
        Ok(())
    }

    /// An error that all ranks have, and rank 0 tells.
    fn of_all(&self, error: error::Error) -> error::Error {
        match self.world.is_first() {
            true => error,
            false => error::said(&error),
        }
    }

    /// The error of a run that a signal stops before the disk has room for it.
    fn not_saved(&self, error: &error::Error) -> error::Error {
        let newest = self.folder.info().map_or(0, |info| info.step);
        hinted(
            format!(
                "interrupted after step {}, and not saved: {error:#}",
                self.state.step
            ),
            format!(
                "the steps after {newest} are lost; free some space, and continue with: rdpm {} --resume {}",
                self.state.stage,
                self.folder.path().display()
            ),
        )
    }

    fn interrupted(&self) -> error::Error {
        self.of_all(interrupted(
            format!(
                "interrupted after step {}; the run is saved",
                self.state.step
            ),
            format!(
                "continue with: rdpm {} --resume {}",
                self.state.stage,
                self.folder.path().display()
            ),
        ))
    }
}

/// Warns of the stage's own metrics that are not finite; they are null in the log.
fn warn_of_bad(step: u64, metrics: &Map<String, Value>) {
    let bad = |value: &Value| match value {
        Value::Array(curve) => curve.iter().any(Value::is_null),
        value => value.is_null(),
    };
    let names: Vec<&str> = metrics
        .iter()
        .filter_map(|(name, value)| bad(value).then_some(name.as_str()))
        .collect();
    if !names.is_empty() {
        tracing::warn!("step {step}: not finite: {}", names.join(", "));
    }
}

fn due(step: u64, every: u64) -> bool {
    every > 0 && step.is_multiple_of(every)
}

/// The factor by which gradients are multiplied, as in PyTorch's clip_grad_norm_.
pub fn clip(largest: f64, norm: f64) -> f64 {
    match largest > 0.0 {
        true => (largest / (norm + 1e-6)).min(1.0),
        false => 1.0,
    }
}

/// The log line as text: losses and speed.
fn sentence(line: &Map<String, Value>) -> String {
    const SAID: [(&str, &str); 7] = [
        ("loss", "loss"),
        ("mse", "mse"),
        ("psnr", "PSNR"),
        ("adaptive_weight", "λ"),
        ("grad_norm", "‖g‖"),
        ("lr", "lr"),
        ("images_per_second", "img/s"),
    ];
    let figure = |(key, name): &(&str, &str)| match line.get(*key)? {
        Value::Null => Some(format!("{name} not finite")),
        x => Some(format!("{name} {}", short(x.as_f64()?))),
    };
    SAID.iter()
        .filter_map(figure)
        .collect::<Vec<_>>()
        .join("  ")
}

/// Three significant digits.
fn short(x: f64) -> String {
    let x: f64 = format!("{x:.2e}").parse().unwrap_or(x);
    match x != 0.0 && x.abs() < 1e-3 {
        true => format!("{x:e}"),
        false => x.to_string(),
    }
}

/// Training time, without log lines, images and checkpoints.
struct Clock {
    spent: Duration,
    steps: u64,
    images: u64,
    /// For the whole session, to estimate the remaining time.
    total: (Duration, u64),
    last_save: Instant,
}

impl Clock {
    fn new() -> Self {
        Self {
            spent: Duration::ZERO,
            steps: 0,
            images: 0,
            total: (Duration::ZERO, 0),
            last_save: Instant::now(),
        }
    }

    fn add(&mut self, time: Duration, images: usize) {
        self.spent += time;
        self.steps += 1;
        self.images += images as u64;
        self.total = (self.total.0 + time, self.total.1 + 1);
    }

    /// Images per second since the last line.
    fn rate(&self) -> f64 {
        self.images as f64 / self.spent.as_secs_f64().max(1e-9)
    }

    /// Estimated seconds for `steps` more.
    fn left(&self, steps: u64) -> u64 {
        let (time, done) = self.total;
        (time.as_secs_f64() / done.max(1) as f64 * steps as f64).round() as u64
    }

    fn restart(&mut self) {
        (self.spent, self.steps, self.images) = (Duration::ZERO, 0, 0);
    }

    /// Whether a checkpoint is due by time.
    fn saving(&self, config: &TrainConfig) -> bool {
        let minutes = config.checkpoint_minutes;
        minutes > 0.0 && self.last_save.elapsed().as_secs_f64() >= 60.0 * minutes
    }

    fn saved(&mut self) {
        self.last_save = Instant::now();
    }
}

#[cfg(test)]
mod tests;
