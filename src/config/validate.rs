//! The rules for a valid configuration: ranges, and sizes that must fit each other.

use std::fmt::Display;

use super::{
    ComputeType, Config, GeneratorConfig, HeadInit, Perceptual, Rope, TrainConfig, is_guidance,
    is_temperature,
};
use crate::error::{Result, usage};

pub(super) fn validate(config: &Config) -> Result<()> {
    tokenizer(config)?;
    quantizer(config)?;
    loss(config)?;
    generator(&config.generator, config.tokenizer.embed_dim)?;
    let codes = config.quantizer.codebook_size;
    require(
        config.generator.perturb == 0.0 || codes > 8,
        "generator.perturb",
        config.generator.perturb,
        &format!("0 with {codes} codes: a code gives way to one of its 8 nearest"),
    )?;
    train("train_vae", &config.train_vae)?;
    train("train_gen", &config.train_gen)?;
    recomputation(config)?;
    sample(config)
}

/// Errors: the rule does not hold: `key` is `found` and must be `allowed`.
fn require(holds: bool, key: &str, found: impl Display, allowed: &str) -> Result<()> {
    if holds {
        return Ok(());
    }
    Err(usage(
        format!("`{key}` is {found}"),
        format!("it must be {allowed}"),
    ))
}

fn from_one(key: &str, value: usize, most: usize) -> Result<()> {
    require(
        (1..=most).contains(&value),
        key,
        value,
        &format!("between 1 and {most}"),
    )
}

fn at_least_zero(key: &str, value: f64) -> Result<()> {
    require(
        value.is_finite() && value >= 0.0,
        key,
        value,
        "a finite number of at least 0",
    )
}

fn positive(key: &str, value: f64) -> Result<()> {
    require(
        value.is_finite() && value > 0.0,
        key,
        value,
        "a finite number above 0",
    )
}

fn below_one(key: &str, value: f64) -> Result<()> {
    require(
        (0.0..1.0).contains(&value),
        key,
        value,
        "at least 0 and below 1",
    )
}

/// Divisibility of sizes, and the normalization groups.
fn tokenizer(config: &Config) -> Result<()> {
    let t = &config.tokenizer;
    from_one("tokenizer.ch", t.ch, 4096)?;
    require(
        (1..=8).contains(&t.ch_mult.len()) && t.ch_mult.iter().all(|m| (1..=64).contains(m)),
        "tokenizer.ch_mult",
        format!("{:?}", t.ch_mult),
        "a list of 1 to 8 numbers between 1 and 64, one per resolution",
    )?;
    from_one("tokenizer.num_res_blocks", t.num_res_blocks, 64)?;
    from_one("tokenizer.embed_dim", t.embed_dim, 1024)?;
    from_one("tokenizer.norm_groups", t.norm_groups, 4096)?;
    from_one("tokenizer.patch", t.patch, 64)?;
    for m in std::iter::once(&1).chain(&t.ch_mult) {
        let width = t.ch * m;
        require(
            width.is_multiple_of(t.norm_groups),
            "tokenizer.norm_groups",
            t.norm_groups,
            &format!("a divisor of every level's width, and {width} = tokenizer.ch · {m} is one"),
        )?;
    }
    from_one("data.image_size", config.data.image_size, 8192)?;
    let f = config.downsampling();
    require(
        config.data.image_size.is_multiple_of(f),
        "data.image_size",
        config.data.image_size,
        &format!(
            "a multiple of {f} = tokenizer.patch · 2^(levels − 1), with {} levels in tokenizer.ch_mult",
            t.ch_mult.len()
        ),
    )
}

fn quantizer(config: &Config) -> Result<()> {
    let q = &config.quantizer;
    require(
        (2..=1 << 24).contains(&q.codebook_size),
        "quantizer.codebook_size",
        q.codebook_size,
        "from 2 to 2^24",
    )?;
    from_one("quantizer.steps", q.steps, 1000)?;
    at_least_zero("quantizer.commitment", q.commitment)?;
    require(
        q.restart_every >= 1,
        "quantizer.restart_every",
        q.restart_every,
        "1 or more",
    )?;
    positive("quantizer.init_std", q.init_std)?;
    let phi = config.schedule.phi;
    require(
        phi > 0.0 && phi <= 1.0,
        "schedule.phi",
        phi,
        "above 0 and at most 1",
    )?;
    let (from, to) = config.schedule.logit;
    require(
        from.is_finite() && to.is_finite() && from <= to && from >= -50.0 && to <= 50.0,
        "schedule.logit",
        format!("[{from}, {to}]"),
        "two numbers between -50 and 50, the smaller first",
    )
}

fn loss(config: &Config) -> Result<()> {
    let (l, size) = (&config.loss, config.data.image_size);
    at_least_zero("loss.quant_weight", l.quant_weight)?;
    at_least_zero("loss.perceptual_weight", l.perceptual_weight)?;
    at_least_zero("loss.disc_weight", l.disc_weight)?;
    positive("loss.disc_lr", l.disc_lr)?;
    positive("loss.adaptive_weight_max", l.adaptive_weight_max)?;
    from_one("loss.disc_layers", l.disc_layers, 8)?;
    require(
        l.perceptual == Perceptual::None || size >= 16,
        "data.image_size",
        size,
        "16 or more for VGG's four poolings (or loss.perceptual = \"none\")",
    )?;
    // Every strided layer halves the map; the last two convolutions shrink it by one pixel each.
    require(
        l.disc_weight == 0.0 || size >> l.disc_layers >= 3,
        "loss.disc_layers",
        l.disc_layers,
        &format!(
            "small enough that an image of {size} pixels, halved that often, still has 3 pixels"
        ),
    )
}

fn generator(g: &GeneratorConfig, embed_dim: usize) -> Result<()> {
    from_one("generator.depth", g.depth, 256)?;
    let (width, heads, mix) = (g.width(), g.heads(), g.mix_dim(embed_dim));
    from_one("generator.width", width, 1 << 16)?;
    from_one("generator.heads", heads, width)?;
    require(
        width.is_multiple_of(heads),
        "generator.heads",
        heads,
        &format!("a divisor of the width, {width}"),
    )?;
    let (head, turns) = (width / heads, if g.rope == Rope::TwoD { 4 } else { 2 });
    require(
        head.is_multiple_of(turns),
        "generator.width",
        width,
        &format!(
            "heads ({heads}) times a multiple of {turns}, the size that this rope rotates at once"
        ),
    )?;
    from_one("generator.mix_dim", mix, 1 << 16)?;
    if let Some(rank) = g.adaln_rank {
        require(
            rank > 0 && rank.is_multiple_of(8) && rank <= width,
            "generator.adaln_rank",
            rank,
            &format!("a multiple of 8, as the GPU's products need, and at most the width, {width}"),
        )?;
    }
    require(
        g.head_init == HeadInit::Zero || mix >= 2 * embed_dim,
        "generator.mix_dim",
        mix,
        &format!(
            "2 · tokenizer.embed_dim = {} or more for head_init = \"codebook\", which reconstructs the noise",
            2 * embed_dim
        ),
    )?;
    positive("generator.head_scale", g.head_scale)?;
    at_least_zero("generator.pos_embed", g.pos_embed)?;
    require(
        g.rope_base.is_finite() && g.rope_base > 1.0,
        "generator.rope_base",
        g.rope_base,
        "above 1",
    )?;
    at_least_zero("generator.label_std", g.label_std)?;
    at_least_zero("generator.time_std", g.time_std)?;
    below_one("generator.label_dropout", g.label_dropout)?;
    below_one("generator.dropout", g.dropout)?;
    below_one("generator.perturb", g.perturb)?;
    g.classes
        .map_or(Ok(()), |n| from_one("generator.classes", n, 1 << 20))
}

/// The generator recomputes blocks, on a GPU; the tokenizer levels.
fn recomputation(config: &Config) -> Result<()> {
    let train = &config.train_gen;
    let (most, allowed) = match train.compute_type {
        ComputeType::F32 => (0, "0, or compute_type \"bf16\"".to_string()),
        ComputeType::Bf16 => (
            config.generator.depth,
            format!("at most the depth, {}", config.generator.depth),
        ),
    };
    let blocks = train.recompute_blocks;
    require(
        blocks <= most,
        "train_gen.recompute_blocks",
        blocks,
        &allowed,
    )?;
    let blocks = config.train_vae.recompute_blocks;
    require(
        blocks == 0,
        "train_vae.recompute_blocks",
        blocks,
        "0: the tokenizer has recompute_levels",
    )?;
    let levels = config.tokenizer.ch_mult.len();
    require(
        config.train_vae.recompute_levels <= levels,
        "train_vae.recompute_levels",
        config.train_vae.recompute_levels,
        &format!("at most the number of levels, {levels}"),
    )?;
    require(
        config.train_gen.recompute_levels == 0,
        "train_gen.recompute_levels",
        config.train_gen.recompute_levels,
        "0: the generator has recompute_blocks",
    )
}

fn train(section: &str, t: &TrainConfig) -> Result<()> {
    let key = |name: &str| format!("{section}.{name}");
    from_one(&key("batch_size"), t.batch_size, 1 << 20)?;
    require(
        t.accumulate >= 1 && t.batch_size.is_multiple_of(t.accumulate),
        &key("accumulate"),
        t.accumulate,
        &format!("a divisor of the batch size, {}", t.batch_size),
    )?;
    positive(&key("lr"), t.lr)?;
    require(
        t.lr_decay > 0.0 && t.lr_decay <= 1.0,
        &key("lr_decay"),
        t.lr_decay,
        "above 0 and at most 1",
    )?;
    below_one(&key("lr_min"), t.lr_min)?;
    below_one(&key("betas"), t.betas.0)?;
    below_one(&key("betas"), t.betas.1)?;
    at_least_zero(&key("weight_decay"), t.weight_decay)?;
    at_least_zero(&key("clip"), t.clip)?;
    below_one(&key("ema_decay"), t.ema_decay)?;
    require(
        t.steps.is_some() || t.epochs.is_some(),
        &key("steps"),
        "not set",
        "set, or epochs instead",
    )?;
    t.steps
        .map_or(Ok(()), |n| require(n >= 1, &key("steps"), n, "1 or more"))?;
    t.epochs.map_or(Ok(()), |n| positive(&key("epochs"), n))?;
    require(
        t.log_every >= 1,
        &key("log_every"),
        t.log_every,
        "1 or more",
    )?;
    require(
        t.checkpoint_every >= 1,
        &key("checkpoint_every"),
        t.checkpoint_every,
        "1 or more",
    )?;
    at_least_zero(&key("checkpoint_minutes"), t.checkpoint_minutes)?;
    from_one(&key("keep_checkpoints"), t.keep_checkpoints, 1 << 20)?;
    require(
        t.max_bad_steps >= 1,
        &key("max_bad_steps"),
        t.max_bad_steps,
        "1 or more",
    )
}

fn sample(config: &Config) -> Result<()> {
    let s = &config.sample;
    require(is_guidance(s.cfg), "sample.cfg", s.cfg, "0 (off) to 1e6")?;
    require(
        is_temperature(s.temperature),
        "sample.temperature",
        s.temperature,
        "a finite number above 0",
    )?;
    require(
        s.gumbel || s.temperature == 1.0,
        "sample.temperature",
        s.temperature,
        "1 if sample.gumbel is false: an argmax has no temperature",
    )?;
    from_one("sample.batch_size", s.batch_size, 1 << 16)
}
