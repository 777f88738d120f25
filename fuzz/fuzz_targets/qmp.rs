//! Any bytes: the session ends each message in an answer or a command, whatever the pieces it came
//! in; what it read can be written and read again.
//!
//! The first byte of the input: bit 0 puts the negotiation in front, the others are the length of
//! the pieces.
#![no_main]

use godwit::qmp::json::{self, Reader};
use godwit::qmp::{Item, Session};
use libfuzzer_sys::fuzz_target;

/// All that came of `pieces`, as text.
fn answers<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> Vec<String> {
    let mut session = Session::new(true);
    let mut all = Vec::new();
    for mut piece in pieces {
        while let Some(item) = session.next(&mut piece) {
            let (what, line) = match item {
                Item::Answer(message) => ("answer", json::line(&message)),
                Item::Negotiated(message) => ("negotiated", json::line(&message)),
                Item::Run(job) => (job.command.name, json::line(&job.id)),
            };
            assert!(line.is_ascii() && line.ends_with(b"\r\n"));
            all.push(format!("{what} {}", String::from_utf8(line).unwrap()));
        }
        assert!(piece.is_empty());
    }
    all
}

fuzz_target!(|bytes: &[u8]| {
    let Some((choice, bytes)) = bytes.split_first() else { return };
    let start: &[u8] = match choice & 1 {
        0 => b"",
        _ => b"{'execute':'qmp_capabilities','arguments':{'enable':['oob']}}",
    };
    let input = [start, bytes].concat();
    let whole = answers(std::iter::once(&input[..]));
    assert_eq!(whole, answers(input.chunks(usize::from(choice >> 1).max(1))));

    let (mut reader, mut input) = (Reader::new(), bytes);
    while let Some(message) = reader.next(&mut input) {
        let Ok(value) = message else { continue };
        let line = json::line(&value);
        assert_eq!(Reader::new().next(&mut &line[..]), Some(Ok(value)));
    }
});
