//! What libFuzzer calls.

use std::alloc::System;
use std::sync::LazyLock;

use cap::Cap;

/// What a target may allocate for one input, whatever the input claims: beyond it an allocation fails, and with it the run.
const ALLOWED: usize = 16 << 20;
/// The variable that names the target.
const TARGET: &str = "ENJAMBRE_FUZZ_TARGET";

#[global_allocator]
static MEMORY: Cap<System> = Cap::new(System, usize::MAX);

static CHOSEN: LazyLock<fn(&[u8])> = LazyLock::new(|| {
    let all =
        [enjambre_core::fuzz::TARGETS, enjambre_transport::fuzz::TARGETS, enjambre::fuzz::TARGETS].concat();
    let wanted = std::env::var(TARGET).unwrap_or_default();
    all.iter().find(|(name, _)| *name == wanted).map(|(_, target)| *target).unwrap_or_else(|| {
        let names: Vec<_> = all.iter().map(|(name, _)| *name).collect();
        panic!("{TARGET}={wanted} is none of {}", names.join(" "))
    })
});

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let target = *CHOSEN;
    let _ = MEMORY.set_limit(MEMORY.allocated() + ALLOWED);
    target(data);
    let _ = MEMORY.set_limit(usize::MAX);
});
