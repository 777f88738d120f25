//! Any guest memory: each dump format holds it, and an independent reader finds it.
#![no_main]

#[path = "../../tests/common/dump_case.rs"]
mod dump_case;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| dump_case::Case::new(data).check());
