//! Any bytes as a file with pages at fixed places, read or mapped, end in an error or a loaded guest.
//!
//! The first byte of the input: bit 0 maps the file, bit 1 switches capability `multifd` on; where
//! bit 4 is set the stream begins at 0x1000 in the file. Two bytes are a length
//! (little-endian): so many bytes stand at the beginning, and the rest as many MiB further on as bits
//! 2 and 3 say, or right behind. Between them is a hole, which is where most pages are.

#![no_main]

use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use godwit::io::Connection;
use godwit::migrate::capabilities::Capability;
use godwit::migrate::incoming::Origin;
use godwit::migrate::settings::Settings;
use godwit_fuzz::guestless;
use libfuzzer_sys::fuzz_target;
use serde_json::json;

/// Where a stream begins that does not begin at 0.
const START: u64 = 0x1000;

fn settings(mapped: bool, multifd: bool) -> Arc<Settings> {
    let settings = Settings::default();
    let how = if mapped { "mapped" } else { "eager" };
    let parameters = json!({"x-godwit-restore": how, "multifd-channels": 3});
    settings.set_parameters(settings.parameters().with(parameters.as_object().unwrap()).unwrap());
    settings
        .set_capabilities(settings.capabilities().with(&[(Capability::Multifd, multifd)]).unwrap());
    Arc::new(settings)
}

/// A file that has `head` at `start`, and `tail` at `start + place`.
fn file(start: u64, head: &[u8], place: u64, tail: &[u8]) -> File {
    let mut file = tempfile::tempfile_in("/dev/shm").unwrap();
    file.write_all_at(head, start).unwrap();
    file.write_all_at(tail, start + place).unwrap();
    file.seek(SeekFrom::Start(start)).unwrap();
    file
}

fuzz_target!(|input: &[u8]| {
    let Some(([choice, length @ ..], rest)) = input.split_first_chunk::<3>() else { return };
    let Some((head, tail)) = rest.split_at_checked(u16::from_le_bytes(*length).into()) else {
        return;
    };
    let bit = |number: u8| choice >> number & 1 == 1;
    let place = match choice >> 2 & 3 {
        0 => head.len() as u64,
        mib => u64::from(mib) << 20,
    };
    let file = file(if bit(4) { START } else { 0 }, head, place, tail);
    let origin = Origin::Open(Connection::from_fd(file.into()));
    guestless::receives(origin, settings(bit(0), bit(1)));
});
