//! `rdpm sample`: images of given classes from a trained generator (Algorithm 2).

mod drawer;
mod drawing;
mod parts;
mod plan;

use std::path::PathBuf;
use std::time::Instant;

use serde_json::{Value, json};

use super::part::Part;
use super::{Context, ScaleArgs};
use crate::data::Classes;
use crate::error::{Error, Result, is_interrupted, said, usage};
use crate::interrupt::{self, Interrupt};
use crate::metrics::probe::Probe;
use crate::metrics::probe::reject::Rejection;
use crate::metrics::weights::{self, Network};
use crate::metrics::{Inception, Output as InceptionOutput, sampled};
use crate::sample::{LatentDecoder, Output, Pictures, Pretrained, Put, SampleOptions};
use crate::store::digest;
use crate::telemetry::Progress;
use crate::world::{Work, World};
use drawer::{Drawer, Drawn};
pub use drawing::DrawingArgs;
use parts::Parts;
use plan::SampleSheet;

/// Sample images of given classes
///
/// On a CPU, the same seed gives the same images for any batch size and number of threads. Image i
/// is of the i-th class of --class, cycling: 0, 1, 2, 0, 1, 2, … Labels in the output (file names
/// in a folder, `arr_1` of an .npz) are the classes' indices in the model, from 0.
///
/// Several processes of a launcher (see `rdpm launch`) divide the batches.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A run folder of train-gen, a bundle, a folder of `export --hf`, hf://owner/repo[@revision],
    /// or `builtin`, the built-in model [default: $RDPM_MODEL, else the newest finished run under
    /// runs/, else builtin]
    #[arg(long, value_name = "RUN|BUNDLE")]
    model: Option<PathBuf>,
    /// What to sample: a class's name, wnid, one of its words, or number (ImageNet's if all classes
    /// are wnids, else the class's index); index:N is always the index; a comma-separated list of
    /// these; or all
    #[arg(long, value_name = "CLASS")]
    class: Option<String>,
    /// Total number of images, spread over the classes, 10 million at most [default: 16, or the
    /// next multiple of the number of classes]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    num: Option<u32>,
    /// A sheet (.png), a folder of PNGs named indexCLASS-NUMBER.png (any other name), or ADM's
    /// array file (.npz)
    #[arg(long, value_name = "PATH", default_value = "samples.png")]
    out: PathBuf,
    /// Seed of all random numbers
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Images per batch [default: the model's sample.batch_size]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    batch_size: Option<u32>,
    /// Write each image as a strip: the decoded sum after every step
    #[arg(long)]
    show_steps: bool,
    /// Draw the batches I, I+N, I+2N, … only, into OUT.parts, so that N processes that nothing
    /// connects share the images; the same command without --part then joins the parts to OUT. I
    /// counts from 0
    #[arg(long, value_name = "I/N")]
    pub(super) part: Option<Part>,
    /// Print a summary as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    scale: ScaleArgs,
    #[command(flatten)]
    drawing: DrawingArgs,
    #[command(flatten)]
    rejection: RejectionArgs,
}

/// The paper's rejection sampling, off by default.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Rejection")]
struct RejectionArgs {
    /// Draw N candidates for every image and keep the one that --probe finds most likely to show
    /// its class
    #[arg(long, value_name = "N", requires = "probe",
          value_parser = clap::value_parser!(u32).range(2..))]
    reject: Option<u32>,
    /// A probe of `rdpm fit-probe`, for --reject
    #[arg(long, value_name = "FILE", requires = "reject")]
    probe: Option<PathBuf>,
    /// Inception's weights, for --reject: a file, an address, or hf://owner/repo/file [default:
    /// from the cache folder]
    #[arg(long, value_name = "FILE|URL", requires = "reject")]
    weights: Option<String>,
    /// Download missing weights from their authors' site
    #[arg(long, requires = "reject")]
    download: bool,
}

impl RejectionArgs {
    /// None without --reject.
    ///
    /// Errors: no weights; a probe of other features, or without one of the classes in `used`.
    fn open(&self, model: &Pretrained, used: &[u32]) -> Result<Option<Rejection>> {
        let Some((candidates, path)) = self.reject.zip(self.probe.as_deref()) else {
            return Ok(None);
        };
        let probe = Probe::read(path)?;
        let size = model.config.data.image_size as u32;
        if let Some(doubt) = probe.doubt_of_size((size, size)) {
            tracing::warn!("{doubt}");
        }
        let weights = self.weights.as_deref();
        let weights = weights::locate(Network::Inception, weights, self.download)?;
        let outputs = [InceptionOutput::Pool2048];
        let network = Inception::open(&weights, &outputs, probe.preprocess()?, &model.device)?;
        let (network, candidates) = (Box::new(network), candidates as usize);
        Rejection::new(network, probe, &model.classes, used, candidates).map(Some)
    }
}

impl Args {
    fn classes(&self, known: &Classes) -> Result<Vec<u32>> {
        match &self.class {
            Some(class) => known.resolve(class),
            // A model trained without labels has a single class.
            None if known.is_empty() => Ok(vec![0]),
            None => Err(usage(
                format!("--class is missing: the model has {} classes", known.len()),
                "--class takes a name, a number, a list of them, or all",
            )),
        }
    }
}

const WORK: Work = Work {
    unit: "batch",
    remedy: "nothing was written: start all ranks again",
};

pub fn run(args: &Args, context: &Context) -> Result<()> {
    context.share(args.part.is_some(), WORK, |context, world| {
        sample(args, context, world)
    })
}

fn sample(args: &Args, context: &Context, world: &World) -> Result<()> {
    let output = Output::from_path(&args.out, args.scale.scale)?;
    if args.show_steps && matches!(output, Output::Npz(_)) {
        return Err(usage(
            "--show-steps makes strips, which an .npz cannot hold",
            "name a .png or a folder with --out",
        ));
    }
    let model = Pretrained::open(args.model.as_deref(), &context.device()?)?;
    // User errors are reported before weights are uploaded to a GPU.
    let options = args.drawing.options(&model.config.sample)?;
    let plan = SampleSheet::new(args.classes(&model.classes)?, args.num, &output);
    let rejection = args.rejection.open(&model, &plan.classes)?;
    let batch = args
        .batch_size
        .map_or(model.config.sample.batch_size, |b| b as usize);
    let identity = || identity(args, &model, &plan, rejection.as_ref(), &options, batch);
    let parts = Parts::beside(&output);
    let joins = args.part.is_none() && world.is_first() && parts.exist();
    let joins = world.broadcast(vec![u8::from(joins)])? != [0];
    if world.size() > 1 {
        let identity = identity()?;
        let facts = identity.as_object().into_iter().flatten();
        let facts: Vec<_> = facts
            .map(|(key, value)| (format!("the {key}"), value.to_string()))
            .collect();
        world.same(&facts)?;
    }
    let drawer = Drawer {
        sampler: model.sampler()?,
        decoder: LatentDecoder::new(&model.tokenizer),
        options,
        plan: &plan,
        seed: args.seed,
        batch,
        show_steps: args.show_steps,
        rejection: rejection.as_ref(),
    };
    let begin = Instant::now();
    let side = model.config.data.image_size;
    let pictures = Pictures {
        count: plan.count,
        width: side,
        height: side,
        columns: if args.show_steps { 1 } else { plan.columns },
        beside: if args.show_steps {
            model.config.quantizer.steps
        } else {
            1
        },
    };
    if let Some(part) = args.part {
        let (path, count) = parts.write(part, pictures, &drawer, &identity()?)?;
        return super::print(&match args.json {
            true => {
                let part = part.to_string();
                let line = json!({"out": path, "model": model.path, "images": count, "part": part});
                format!("{line}\n")
            }
            false => format!("{}: {count} of {} images\n", path.display(), plan.count),
        });
    }
    if world.is_first() && !matches!(output, Output::Grid(..)) {
        say_indices(&plan.classes, &model.classes);
    }
    // The mean probability of what rejection keeps.
    let mut kept = 0.0;
    if joins {
        if world.is_first() {
            let joined = parts.open(&identity()?)?;
            output.write(pictures, |put| {
                joined.each(pictures, &drawer, |drawn| {
                    drawn.put(put, &mut kept, plan.count)
                })
            })?;
        }
    } else {
        draw(&drawer, &output, pictures, world, &mut kept)?;
    }
    if !world.is_first() {
        return Ok(());
    }
    let seconds = begin.elapsed().as_secs_f64();
    super::print(&if args.json {
        let mut line = json!({
            "out": args.out,
            "model": model.path,
            "images": plan.count,
            "classes": plan.classes,
            "names": names(&plan.classes, &model.classes),
            "seed": args.seed,
            "seconds": seconds,
        });
        if let Some(rejection) = &rejection {
            line["candidates"] = json!(rejection.candidates());
            line["probability"] = json!(kept);
        }
        format!("{line}\n")
    } else {
        format!("{}\n", args.out.display())
    })
}

/// Draws all pictures together with the other ranks, and writes them at rank 0.
fn draw(
    drawer: &Drawer,
    output: &Output,
    pictures: Pictures,
    world: &World,
    kept: &mut f64,
) -> Result<()> {
    let (count, batches) = (pictures.count, drawer.batches());
    if world.is_first() && batches < world.size() {
        tracing::warn!(
            "{batches} batches for {} processes: the others draw nothing; choose a smaller --batch-size",
            world.size()
        );
    }
    let interrupt = Interrupt::listen()?;
    let mut progress = (world.is_first()).then(|| Progress::new("sample", count as u64, 0));
    let mut done = 0;
    let mut all = |put: &mut Put| {
        let stopped = world.parcels(
            0..batches,
            || interrupt.requested(),
            |batch| drawer.batch(batch),
            |_, drawn: Drawn| {
                done += drawn.pictures.len();
                drawn.put(put, kept, count)?;
                if let Some(progress) = &mut progress {
                    progress.set(done as u64, "");
                }
                Ok(())
            },
        )?;
        match stopped {
            Some(next) if next < batches => {
                // Nobody ends before rank 0 has tidied up: a launcher may end all with the first.
                let error = stopped_after(done, count, output);
                match world.is_first() {
                    true => Err(error),
                    false => {
                        world.part()?;
                        Err(said(&error))
                    }
                }
            }
            _ => Ok(()),
        }
    };
    match world.is_first() {
        false => all(&mut |_| Ok(())),
        true => {
            let written = output.write_all(pictures, all);
            if written.as_ref().is_err_and(is_interrupted) {
                world.part()?;
            }
            written
        }
    }
}

fn stopped_after(done: usize, count: usize, output: &Output) -> Error {
    let out = output.path().display();
    interrupt::stopped(
        format!("after {done} of {count} images"),
        format!("nothing was written to {out}; the same command starts from scratch"),
    )
}

/// Everything that decides the pictures and which of them are drawn together.
fn identity(
    args: &Args,
    model: &Pretrained,
    plan: &SampleSheet,
    rejection: Option<&Rejection>,
    options: &SampleOptions,
    batch: usize,
) -> Result<Value> {
    let hashes = [model.hash()?, model.config_hash()?];
    let mut identity = sampled::stream(model, &hashes, &plan.classes, args.seed, options);
    identity["images"] = json!(plan.count);
    identity["batch-size"] = json!(batch);
    identity["show-steps"] = json!(args.show_steps);
    // A sheet with a row a class has another order than files.
    let order: Vec<u8> = plan.numbers.iter().flat_map(|n| n.to_le_bytes()).collect();
    identity["order"] = json!(digest::of_bytes(&order));
    identity["rejection"] = json!(rejection.map(Rejection::identity));
    Ok(identity)
}

/// The classes' names in the data.
fn names<'a>(chosen: &[u32], known: &'a Classes) -> Vec<Option<&'a str>> {
    let name = |index: &u32| Some(known.get(*index)?.wnid.as_str());
    chosen.iter().map(name).collect()
}

/// Logs which class each label of the output is.
fn say_indices(chosen: &[u32], known: &Classes) {
    let mut distinct: Vec<u32> = chosen.to_vec();
    distinct.sort_unstable();
    distinct.dedup();
    let names = names(&distinct, known);
    let named = distinct.iter().zip(names).filter_map(|(index, name)| {
        let name = name.filter(|name| *name != index.to_string())?;
        Some(format!("{index} = {name}"))
    });
    let named: Vec<String> = named.collect();
    if let Some(first) = named
        .get(..8.min(named.len()))
        .filter(|first| !first.is_empty())
    {
        let more = if named.len() > 8 { ", ..." } else { "" };
        tracing::info!("labels are the model's indices: {}{more}", first.join(", "));
    }
}
