//! Any bytes on any connections to a target end in an error or a loaded guest, soon and in bounded
//! memory.
//!
//! The first byte of the input: bit 0 switches capability `multifd` on, bits 1 and 2 are the number
//! of channels. For each channel there are two bytes, a length (little-endian), and then so many
//! bytes; what is left is the main channel.
//!
//! All that a source says is there before the target looks, so that nobody has to be waited for; one
//! thread takes the answers of all executions. A main channel alone comes on a pair of sockets,
//! several connections come through a listening socket.

#![no_main]

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, OnceLock};

use godwit::io::{Address, Connection, Listener};
use godwit::migrate::capabilities::Capability;
use godwit::migrate::incoming::Origin;
use godwit::migrate::settings::Settings;
use godwit_fuzz::guestless;
use libfuzzer_sys::fuzz_target;
use serde_json::json;

/// A silent peer is given up after so many milliseconds: what it says is there already.
const PEER_TIMEOUT: u64 = 1;
/// So much goes into a socket without anybody who reads.
const SOCKET_BYTES: usize = 64 << 10;

/// The main channel's bytes and the channels'.
fn split(bytes: &[u8]) -> Option<(bool, Vec<&[u8]>)> {
    let (choice, mut rest) = bytes.split_first()?;
    let mut channels = Vec::new();
    for _ in 0..choice >> 1 & 3 {
        let (length, after) = rest.split_first_chunk::<2>()?;
        let (channel, after) = after.split_at_checked(usize::from(u16::from_le_bytes(*length)))?;
        channels.push(channel);
        rest = after;
    }
    channels.insert(0, rest);
    Some((choice & 1 == 1, channels))
}

/// Says all that there is to say on a connection. The answers are taken, which a target waits for.
fn say(mut connection: UnixStream, bytes: &[u8]) {
    static ANSWERS: OnceLock<Sender<UnixStream>> = OnceLock::new();
    let answers = ANSWERS.get_or_init(|| {
        let (sender, connections) = channel::<UnixStream>();
        std::thread::spawn(move || {
            for mut connection in connections {
                let _ = connection.read_to_end(&mut Vec::new());
            }
        });
        sender
    });
    connection.set_nonblocking(true).unwrap();
    connection.write_all(bytes).unwrap();
    connection.shutdown(std::net::Shutdown::Write).unwrap();
    connection.set_nonblocking(false).unwrap();
    answers.send(connection).unwrap();
}

/// The source; gives out where the target finds it.
fn source(multifd: bool, channels: &[&[u8]]) -> Origin {
    static FOLDER: OnceLock<tempfile::TempDir> = OnceLock::new();
    if let ([main], false) = (channels, multifd) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        say(ours, main);
        return Origin::Open(Connection::from_fd(theirs.into()));
    }
    let folder = FOLDER.get_or_init(|| tempfile::tempdir_in("/dev/shm").unwrap());
    let path = folder.path().join("s").to_str().unwrap().to_owned();
    let listener = Listener::bind(&Address::unix(path.clone())).unwrap();
    // Behind the others a source of another version, for a target that still waits for one.
    for bytes in channels.iter().copied().chain([b"QEVM\0\0\0\0".as_slice()]) {
        say(UnixStream::connect(&path).unwrap(), bytes);
    }
    Origin::Listener(listener)
}

/// What is set at the target, for this number of channels.
fn settings(multifd: bool, channels: usize) -> Arc<Settings> {
    let settings = Settings::default();
    let parameters =
        json!({"x-godwit-peer-timeout": PEER_TIMEOUT, "multifd-channels": channels.max(2) - 1});
    settings.set_parameters(settings.parameters().with(parameters.as_object().unwrap()).unwrap());
    settings
        .set_capabilities(settings.capabilities().with(&[(Capability::Multifd, multifd)]).unwrap());
    Arc::new(settings)
}

fuzz_target!(|bytes: &[u8]| {
    let Some((multifd, channels)) = split(bytes) else { return };
    if channels.iter().any(|bytes| bytes.len() > SOCKET_BYTES) {
        return;
    }
    guestless::receives(source(multifd, &channels), settings(multifd, channels.len()));
});
