//! What needs less of a GPU's memory, by command: the remedy where it is full.

use super::Command;

/// Of the commands that take images or samples in batches.
const BATCHES: &str = "a smaller --batch-size needs less";

impl Command {
    pub(super) fn needs_less_memory(&self) -> &'static str {
        match self {
            Command::TrainVae(_) => crate::train::gpu_memory::TOKENIZER,
            Command::TrainGen(_) => crate::train::gpu_memory::GENERATOR,
            Command::Sample(_)
            | Command::Serve(_)
            | Command::Reconstruct(_)
            | Command::Encode(_)
            | Command::Decode(_)
            | Command::EvalFid(_)
            | Command::EvalVae(_)
            | Command::FitProbe(_) => BATCHES,
            _ => "smaller sizes or a smaller batch need less, and --device cpu none",
        }
    }
}
