//! Any bytes: the readers of dumps end in a value or an error.
#![no_main]

use godwit::dump::read::{Core, Kdump, cpus, flat_to_raw};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Ok(core) = Core::parse(data) {
        for load in &core.loads {
            let _ = core.bytes(load);
        }
    }
    let _ = cpus(data);
    // What a flattened stream describes may be far larger than the stream.
    let raw = flat_to_raw(data).ok().filter(|raw| raw.len() < 1 << 24);
    for file in raw.as_deref().into_iter().chain([data]) {
        if let Ok(kdump) = Kdump::parse(file) {
            for index in 0..kdump.pages().len().min(64) {
                let _ = kdump.page(index);
            }
        }
    }
});
