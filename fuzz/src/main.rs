//! libFuzzer around one target, which the variable `CISTERN_FUZZ_TARGET` names.
//!
//! One program for all targets is compiled and linked once. Memory that an input makes a parser ask
//! for is counted, because libFuzzer itself sees only what stays until its next look.
#![no_main]

mod memory;

use cistern_fuzz::Target;
use libfuzzer_sys::fuzz_target;
use std::sync::LazyLock;

/// Most bytes that reading one input (of at most 16 KiB) may hold at once.
const BOUND: usize = 32 << 20;

static TARGET: LazyLock<Target> = LazyLock::new(|| {
    let name = std::env::var("CISTERN_FUZZ_TARGET").unwrap_or_default();
    cistern_fuzz::find(&name).expect("CISTERN_FUZZ_TARGET names a target")
});

fuzz_target!(|data: &[u8]| {
    let peak = memory::peak_during(|| TARGET(data));
    assert!(peak <= BOUND, "{} bytes of input made the program hold {peak} bytes", data.len());
});
