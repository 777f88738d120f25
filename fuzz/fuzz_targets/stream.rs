//! Any bytes to the stream reader end in items or an error, the same in whatever portions they
//! come.

#![no_main]

use godwit::machine::load::Known;
use godwit::stream::{Item, PAYLOAD_BYTES_MAX, Reader, Record, Step};
use libfuzzer_sys::fuzz_target;

/// Reads `bytes` in portions of `window`; returns a digest of the items and how it ended.
fn read(bytes: &[u8], window: usize) -> (Vec<String>, Option<String>) {
    let mut reader = Reader::new(Known, vec!["huge".into()]);
    let (mut at, mut have, mut found) = (0, 0, Vec::new());
    loop {
        match reader.next(&bytes[at..at + have]) {
            Err(error) => return (found, Some(error.to_string())),
            Ok(Step::Need(needed)) => {
                assert!(needed > have && needed <= PAYLOAD_BYTES_MAX + 8);
                if at + have == bytes.len() {
                    return (found, None);
                }
                have = (have + window).min(bytes.len() - at);
            }
            Ok(Step::Item(item, used)) => {
                assert!(used <= have);
                (at, have) = (at + used, have - used);
                match item {
                    // These come in pieces as the input does.
                    Item::Description { .. } | Item::Run { .. } => {}
                    Item::Ram(Record::Skip { to }) => {
                        assert!(to > at as u64);
                        let Ok(to) = usize::try_from(to) else { return (found, None) };
                        if to > bytes.len() {
                            return (found, None);
                        }
                        (at, have) = (to, 0);
                    }
                    item => found.push(format!("{item:?}")),
                }
                assert_eq!(reader.offset(), at as u64);
            }
        }
    }
}

fuzz_target!(|bytes: &[u8]| {
    let whole = read(bytes, bytes.len().max(1));
    assert_eq!(read(bytes, 97), whole);
});
