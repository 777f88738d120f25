//! Any memory of a guest: what a disk finds in it for a queue is served, or the device is broken.
#![no_main]

use godwit::devices::HostileDisks;
use libfuzzer_sys::fuzz_target;
use std::cell::RefCell;

thread_local! {
    // Rings, threads and files cost more than a queue does: they are made once.
    static DISKS: RefCell<HostileDisks> = RefCell::new(HostileDisks::new().unwrap());
}

fuzz_target!(|bytes: &[u8]| DISKS.with_borrow_mut(|disks| disks.serve(bytes)));
