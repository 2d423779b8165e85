//! A target of `rdpm::hostile` under LLVM's fuzzer, by the name in RDPM_FUZZ.

#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use rdpm::hostile::{TARGETS, Target};

static TARGET: LazyLock<Target> = LazyLock::new(|| {
    let asked = std::env::var("RDPM_FUZZ").unwrap_or_default();
    let found = TARGETS.into_iter().find(|(name, _)| *name == asked);
    found.unwrap_or_else(|| panic!("RDPM_FUZZ is `{asked}`, which is no target"))
});

fuzz_target!(|bytes: &[u8]| {
    let (_, read) = *TARGET;
    read(bytes);
});
