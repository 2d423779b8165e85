//! The paper: schedule, tokenizer, losses, generator; reads like its sections.

pub mod schedule;
