//! Any words: a command line is read into a machine or refused with a sentence for each fault.
#![no_main]

use godwit::args::{self, Request};
use libfuzzer_sys::fuzz_target;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

fuzz_target!(|bytes: &[u8]| {
    // Words are apart by newlines, so that values may have spaces, and may be anything but UTF-8.
    let words = bytes.split(|byte| *byte == b'\n').map(|word| OsString::from_vec(word.to_vec()));
    match args::parse(words) {
        Ok(Request::Run(config)) => {
            assert!(config.memory.bytes > 0 && config.memory.bytes.is_multiple_of(4096));
            assert!(config.boot.is_some() || config.incoming.is_some());
            let known = |id: &String| config.chardevs.iter().any(|chardev| chardev.id == *id);
            assert!(
                config.serial.iter().all(known)
                    && config.monitors.iter().all(|m| known(&m.chardev))
            );
        }
        Ok(_) => {}
        Err(errors) => {
            assert!(!errors.0.is_empty());
            assert!(errors.0.iter().all(|error| !error.to_string().is_empty()));
        }
    }
});
