//! What needs less of a GPU's memory in training: the remedy where it is full.

pub const TOKENIZER: &str = "a higher train_vae.recompute_levels (the same results but for rounding) or, in a new \
     run, train_vae.accumulate (smaller micro-batches) needs less; --dry-run estimates how much";

pub const GENERATOR: &str = "with bf16, a higher train_gen.recompute_blocks (at most the depth; the same results) \
     or, in a new run, train_gen.accumulate (smaller micro-batches) needs less; --dry-run estimates how much";

/// After a failure of a GPU.
pub const AGAIN: &str =
    "go on with --resume, or start it by `rdpm launch --restarts 3`, which does that";

/// Of the stage of this name.
pub fn remedy(stage: &str) -> &'static str {
    match stage {
        "train-gen" => GENERATOR,
        _ => TOKENIZER,
    }
}
