//! Frames on a connection, each behind its length (four bytes, big-endian), as QEMU and passt speak.

use std::io::IoSlice;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::io::Errno;
use rustix::net::{
    RecvFlags, SendAncillaryBuffer, SendFlags, Shutdown, recv, send, sendmsg, shutdown,
};

use crate::devices::{FRAME_BYTES_MAX, HEADER_BYTES};

const LENGTH_BYTES: usize = 4;
/// Read at once: the longest frame fits.
const PIECE_BYTES: usize = 128 << 10;
/// Kept of what a peer said before it went; nobody else can be made to keep more.
const LAST_WORDS: usize = 1 << 20;

/// A connection, or none at the moment. What comes and goes in between is lost.
#[derive(Default)]
pub(super) struct Stream {
    socket: Option<Arc<OwnedFd>>,
    /// Read and not taken yet, from `taken` on.
    incoming: Vec<u8>,
    taken: usize,
    /// The rest of a frame of which the first part has left.
    outgoing: Vec<u8>,
    /// Nothing more comes.
    ended: bool,
    /// Its network's.
    id: String,
    /// A peer's lie about a length was told. Whoever may call can do it again and again.
    told: bool,
}

impl Stream {
    pub(super) fn new(id: &str) -> Stream {
        Stream { id: id.to_owned(), ..Stream::default() }
    }

    pub(super) fn connect(&mut self, socket: Arc<OwnedFd>) {
        let (id, told) = (std::mem::take(&mut self.id), self.told);
        *self = Stream { socket: Some(socket), id, told, ..Stream::default() };
    }

    /// The peer has gone: what it said last is still to be taken.
    pub(super) fn disconnect(&mut self) {
        while !self.ended && self.incoming.len() < LAST_WORDS && self.fill() {}
        (self.socket, self.ended) = (None, true);
        self.outgoing.clear();
    }

    /// What comes while there is no card: one piece of it. A card that comes later begins with a
    /// whole frame.
    pub(super) fn discard(&mut self) {
        self.fill();
        while let Some(frame) = self.whole() {
            self.taken = frame.end;
        }
    }

    pub(super) fn wait(&self) -> Option<Arc<OwnedFd>> {
        self.socket.as_ref().filter(|_| !self.ended).cloned()
    }

    pub(super) fn has_unsent(&self) -> bool {
        !self.outgoing.is_empty()
    }

    /// Reads some; false if there is nothing now.
    fn fill(&mut self) -> bool {
        let Some(socket) = self.socket.as_ref().filter(|_| !self.ended) else { return false };
        self.incoming.drain(..std::mem::take(&mut self.taken));
        let had = self.incoming.len();
        self.incoming.resize(had + PIECE_BYTES, 0);
        let read = loop {
            match recv(socket, &mut self.incoming[had..], RecvFlags::DONTWAIT) {
                Err(Errno::INTR) => {}
                Ok((count, _)) => break Ok(count),
                Err(errno) => break Err(errno),
            }
        };
        self.incoming.truncate(had + read.unwrap_or(0));
        // An end, or an error, is seen by whoever watches the connection, too.
        self.ended |= !matches!(read, Ok(1..) | Err(Errno::AGAIN));
        matches!(read, Ok(1..))
    }

    /// Where the next frame lies, if all of it was read.
    fn whole(&mut self) -> Option<Range<usize>> {
        let length = *self.incoming[self.taken..].first_chunk::<LENGTH_BYTES>()?;
        let length = u32::from_be_bytes(length) as usize;
        if length > FRAME_BYTES_MAX - HEADER_BYTES {
            if !std::mem::replace(&mut self.told, true) {
                say!(
                    "godwit: warning: network {}: its peer says that a frame of {length} bytes comes; it is cut off",
                    self.id
                );
            }
            self.hang_up();
            return None;
        }
        let start = self.taken + LENGTH_BYTES;
        Some(start..start + length).filter(|frame| frame.end <= self.incoming.len())
    }

    /// A frame may be empty: whoever takes it counts it, as one that a peer can send without end.
    pub(super) fn receive(&mut self, into: &mut [u8]) -> Option<usize> {
        loop {
            if let Some(frame) = self.whole() {
                let bytes = HEADER_BYTES + frame.len();
                self.taken = frame.end;
                into[..HEADER_BYTES].fill(0);
                into[HEADER_BYTES..bytes].copy_from_slice(&self.incoming[frame]);
                return Some(bytes);
            }
            if !self.fill() {
                return None;
            }
        }
    }

    pub(super) fn send(&mut self, frame: &[u8]) -> bool {
        if !self.flush() {
            return false;
        }
        let Some(socket) = &self.socket else { return true };
        let length = (frame.len() as u32).to_be_bytes();
        let parts = [IoSlice::new(&length), IoSlice::new(frame)];
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        match sendmsg(socket, &parts, &mut SendAncillaryBuffer::default(), flags) {
            Ok(count) => {
                self.outgoing.extend(length.iter().chain(frame).skip(count));
                true
            }
            Err(Errno::AGAIN | Errno::INTR) => false,
            Err(_) => {
                self.hang_up();
                true
            }
        }
    }

    /// Sends what waits; false if some still does.
    pub(super) fn flush(&mut self) -> bool {
        let Some(socket) = &self.socket else { return true };
        while !self.outgoing.is_empty() {
            match send(socket, &self.outgoing, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
                Ok(count) => drop(self.outgoing.drain(..count)),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return false,
                Err(_) => {
                    self.hang_up();
                    return true;
                }
            }
        }
        true
    }

    /// Whoever watches the connection sees its end, and so does the peer.
    pub(super) fn hang_up(&mut self) {
        if let Some(socket) = &self.socket {
            let _ = shutdown(socket, Shutdown::Both);
        }
        (self.incoming, self.taken, self.ended) = (Vec::new(), 0, true);
        self.outgoing.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    fn pair() -> (Stream, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut stream = Stream::default();
        stream.connect(Arc::new(ours.into()));
        (stream, theirs)
    }

    fn take(stream: &mut Stream) -> Option<Vec<u8>> {
        let mut buffer = vec![0xff; FRAME_BYTES_MAX];
        let count = stream.receive(&mut buffer)?;
        assert_eq!(buffer[..HEADER_BYTES], [0; HEADER_BYTES]);
        Some(buffer[HEADER_BYTES..count].to_vec())
    }

    fn framed(frame: &[u8]) -> Vec<u8> {
        [&(frame.len() as u32).to_be_bytes(), frame].concat()
    }

    #[test]
    fn frames_are_put_together_from_any_pieces() {
        let (mut stream, mut peer) = pair();
        let long = vec![7; FRAME_BYTES_MAX - HEADER_BYTES];
        for byte in framed(b"in pieces") {
            assert_eq!(take(&mut stream), None);
            peer.write_all(&[byte]).unwrap();
        }
        assert_eq!(take(&mut stream).unwrap(), b"in pieces");
        peer.write_all(&[framed(b"a"), framed(b""), framed(b"b")].concat()).unwrap();
        for frame in [&b"a"[..], b"", b"b"] {
            assert_eq!(take(&mut stream).unwrap(), frame);
        }
        peer.write_all(&framed(&long)).unwrap();
        assert_eq!(take(&mut stream).unwrap(), long);
        assert_eq!(take(&mut stream), None);
    }

    #[test]
    fn empty_frames_are_a_turn_each() {
        let (mut stream, mut peer) = pair();
        let zeros = [0; 64 << 10];
        for _ in 0..16 {
            peer.write_all(&zeros).unwrap();
            for _ in 0..zeros.len() / LENGTH_BYTES {
                assert_eq!(take(&mut stream).unwrap(), b"");
            }
            assert_eq!(take(&mut stream), None);
        }
    }

    #[test]
    fn what_nobody_takes_is_dropped_piece_by_piece_and_frame_by_frame() {
        let (mut stream, mut peer) = pair();
        peer.write_all(&framed(&[7; 60_000]).repeat(3)).unwrap();
        stream.discard();
        assert!(!stream.incoming.is_empty() && stream.incoming.len() <= PIECE_BYTES);
        stream.discard();
        peer.write_all(&framed(b"for a card")).unwrap();
        assert_eq!(take(&mut stream).unwrap(), b"for a card");
    }

    #[test]
    fn a_frame_too_long_ends_the_connection_and_takes_no_memory() {
        for length in [FRAME_BYTES_MAX as u32, u32::MAX] {
            for has_card in [true, false] {
                let (mut stream, mut peer) = pair();
                peer.write_all(&[&framed(b"before")[..], &length.to_be_bytes()].concat()).unwrap();
                match has_card {
                    true => assert_eq!(take(&mut stream).unwrap(), b"before"),
                    false => stream.discard(),
                }
                assert_eq!(take(&mut stream), None);
                assert!(stream.wait().is_none() && stream.incoming.capacity() == 0);
                assert_eq!(peer.read(&mut [0; 8]).unwrap(), 0);
                assert!(stream.send(b"lost"));
            }
        }
    }

    #[test]
    fn half_a_frame_is_none_and_the_next_peer_begins_with_a_whole_one() {
        let (mut stream, mut peer) = pair();
        let half = &framed(&[7; 60_000])[..40_000];
        for piece in half.chunks(1000) {
            peer.write_all(piece).unwrap();
            assert_eq!(take(&mut stream), None);
        }
        assert_eq!(stream.incoming.len(), half.len());
        drop(peer);
        stream.disconnect();
        assert_eq!(take(&mut stream), None);
        let (ours, mut next) = UnixStream::pair().unwrap();
        stream.connect(Arc::new(ours.into()));
        next.write_all(&framed(b"whole")).unwrap();
        assert_eq!(take(&mut stream).unwrap(), b"whole");
    }

    #[test]
    fn a_peer_that_reads_nothing_makes_the_card_wait_and_gets_whole_frames() {
        let (mut stream, mut peer) = pair();
        let frame = vec![9; 60_000];
        let mut sent = 0;
        while stream.send(&frame) {
            sent += 1;
            assert!(sent < 1000);
        }
        peer.set_nonblocking(true).unwrap();
        let (mut got, mut buffer) = (Vec::<u8>::new(), vec![0; 1 << 20]);
        while got.len() < sent * (frame.len() + 4) {
            if let Ok(count) = peer.read(&mut buffer) {
                got.extend(&buffer[..count]);
            }
            stream.flush();
        }
        assert!(!stream.has_unsent());
        assert_eq!(got, framed(&frame).repeat(sent));
    }

    #[test]
    fn last_words_are_heard_and_then_nothing_is_waited_for() {
        let (mut stream, mut peer) = pair();
        peer.write_all(&framed(b"goodbye")).unwrap();
        drop(peer);
        stream.disconnect();
        assert_eq!(take(&mut stream).unwrap(), b"goodbye");
        assert_eq!(take(&mut stream), None);
        assert!(stream.wait().is_none() && stream.send(b"nobody"));
    }
}
