//! The other channels of an incoming migration: each is read by a thread of its own, which stops at
//! the end of a round until all channels and the main channel have come there.

use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::Duration;

use super::accept::Connections;
use super::apply::{Blocks, apply_records};
use super::packets::Packets;
use super::{Error, Incoming};
use crate::io::{self, Ring, SocketReader, Waker};
use crate::stream::godwit::Frame;
use crate::stream::multifd::{HELLO_BYTES, Hello};
use crate::stream::ram::ListedBlock;
use crate::stream::{Item, Reader, Step};

/// Channels of one migration at most, said in the offer.
pub(crate) const CHANNELS_MAX: u8 = 64;

/// Bytes of a channel's own buffer: runs bypass it.
const BUFFER_BYTES: usize = 256 << 10;

/// What comes on the channels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Carries {
    /// Godwit's frames.
    Frames,
    /// QEMU's packets.
    Packets,
}

pub(crate) struct Channels {
    connections: Connections,
    threads: Vec<JoinHandle<()>>,
    barrier: Arc<RoundBarrier>,
    waker: Waker,
    /// No channel was left in the queue when the first round ended.
    all_are_read: bool,
}

/// Where the threads wait for each other.
#[derive(Default)]
struct RoundBarrier {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    channels: usize,
    /// Channels that have come to the end of the round.
    arrived: usize,
    /// Rounds that all have ended.
    rounds: u64,
    blocks: Option<(Blocks, Vec<ListedBlock>)>,
    failure: Option<Error>,
    /// Channels that ended; none of them has come to the end of the present round.
    gone: usize,
    over: bool,
}

impl Channels {
    pub(crate) fn new(connections: Connections, waker: Waker) -> Self {
        Self {
            connections,
            threads: Vec::new(),
            barrier: Arc::default(),
            waker,
            all_are_read: false,
        }
    }

    /// Accepts `count` channels and starts reading them.
    pub(crate) fn open(
        &mut self,
        incoming: &Incoming,
        ring: &mut Ring,
        count: u8,
        carries: Carries,
    ) -> Result<(), Error> {
        if count > CHANNELS_MAX {
            return Err(Error::TooManyChannels { found: count, most: CHANNELS_MAX });
        }
        // A source that is gone connects no channels, and nothing else would tell.
        let timeout = Duration::from_millis(incoming.settings.parameters().x_godwit_peer_timeout);
        ring.set_operation_timeout(Some(timeout));
        let mut readers: Vec<Option<SocketReader>> = (0..count).map(|_| None).collect();
        while readers.iter().any(Option::is_none) {
            let have = readers.iter().flatten().count();
            let few = || Error::FewChannels { have, wanted: count.into() };
            let connection = self.connections.channel(ring, timeout)?.ok_or_else(few)?;
            connection.set_user_timeout(timeout).map_err(io::Error::from)?;
            let mut reader = SocketReader::with_buffer(connection.fd.clone(), BUFFER_BYTES);
            let hello: [u8; HELLO_BYTES] =
                reader.need(ring, HELLO_BYTES)?.try_into().expect("asked for as many");
            let hello = Hello::parse(&hello)?;
            reader.consume(HELLO_BYTES);
            if incoming.uuid.is_some_and(|ours| hello.uuid != [0; 16] && hello.uuid != ours) {
                return Err(Error::Uuid);
            }
            match readers.get_mut(usize::from(hello.channel)) {
                Some(place @ None) => *place = Some(reader),
                _ => return Err(Error::Channel(hello.channel)),
            }
        }
        ring.set_operation_timeout(None);
        self.barrier.lock().channels = usize::from(count);
        for (number, reader) in readers.into_iter().flatten().enumerate() {
            let (barrier, waker) = (self.barrier.clone(), self.waker.clone());
            let thread = std::thread::Builder::new().name(format!("channel {number}"));
            let run = move || {
                let _told = TellPanic(&barrier, &waker);
                if let Err(error) = Channel::run(&barrier, reader, waker.clone(), carries) {
                    barrier.fail(error, &waker);
                }
            };
            self.threads.push(thread.spawn(run).map_err(io::Error::from)?);
        }
        Ok(())
    }

    /// The blocks are listed: a source with more channels has opened them.
    pub(crate) fn turn_others_away(&mut self) {
        if self.barrier.lock().channels == 0 {
            self.connections.turn_away();
        }
    }

    /// Tells the threads which blocks the stream's numbers mean.
    pub(crate) fn set_blocks(&self, blocks: &Blocks, listed: &[ListedBlock]) {
        let mut state = self.barrier.lock();
        if state.blocks.is_none() {
            state.blocks = Some((blocks.clone(), listed.to_vec()));
            self.barrier.changed.notify_all();
        }
    }

    /// Waits until every channel has come to the end of the round.
    pub(crate) fn wait_for_round(&mut self, ring: &mut Ring) -> Result<(), Error> {
        let channels = self.barrier.lock().channels;
        if channels == 0 {
            return Err(Error::MultifdOff);
        }
        if !std::mem::replace(&mut self.all_are_read, true)
            && self.connections.has_unread_channel(ring)?
        {
            return Err(Error::MoreChannels(channels));
        }
        let mut state = self.barrier.lock();
        while state.arrived < state.channels {
            if let Some(failure) = state.failure.take() {
                return Err(failure);
            }
            if state.gone > 0 {
                return Err(Error::ChannelGone);
            }
            state = self.barrier.wait(state);
        }
        state.arrived = 0;
        state.rounds += 1;
        self.barrier.changed.notify_all();
        Ok(())
    }

    /// Why a channel failed, if one did; then the main channel's own error is a consequence.
    pub(crate) fn failure(&self) -> Option<Error> {
        self.barrier.lock().failure.take()
    }

    /// All RAM is there.
    pub(crate) fn finish(&mut self) -> Result<(), Error> {
        self.barrier.lock().failure.take().map_or(Ok(()), Err)
    }
}

impl Drop for Channels {
    fn drop(&mut self) {
        self.barrier.lock().over = true;
        self.barrier.changed.notify_all();
        // Threads still reading have nothing more to read; the migration is over either way.
        self.waker.cancel();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// Makes a channel that panics fail, so that nobody waits for it.
struct TellPanic<'a>(&'a RoundBarrier, &'a Waker);

impl Drop for TellPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.fail(Error::Panicked, self.1);
        }
    }
}

impl RoundBarrier {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed.wait(state).unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn fail(&self, error: Error, waker: &Waker) {
        let mut state = self.lock();
        let closed = matches!(error, Error::Io(io::Error::Closed | io::Error::Cancelled));
        // A source that is done closes its channels: whether this one came too early shows when it
        // is waited for.
        if closed {
            state.gone += 1;
        } else if !state.over {
            state.failure.get_or_insert(error);
            waker.cancel();
        }
        self.changed.notify_all();
    }

    /// The end of a round on one channel. False: the migration is over.
    fn arrive(&self) -> bool {
        let mut state = self.lock();
        state.arrived += 1;
        let round = state.rounds;
        self.changed.notify_all();
        while state.rounds == round && !state.over {
            state = self.wait(state);
        }
        !state.over
    }

    /// The blocks, once the main channel has read their list.
    fn blocks(&self) -> Option<(Blocks, Vec<ListedBlock>)> {
        let mut state = self.lock();
        loop {
            if state.over {
                return None;
            }
            if let Some(blocks) = &state.blocks {
                return Some(blocks.clone());
            }
            state = self.wait(state);
        }
    }
}

struct Channel;

impl Channel {
    fn run(
        barrier: &RoundBarrier,
        mut reader: SocketReader,
        waker: Waker,
        carries: Carries,
    ) -> Result<(), Error> {
        let mut ring = Ring::new(waker)?;
        let Some((blocks, listed)) = barrier.blocks() else { return Ok(()) };
        match carries {
            Carries::Frames => Self::frames(barrier, &mut ring, &mut reader, blocks, listed),
            Carries::Packets => Self::packets(barrier, &mut ring, &mut reader, blocks, &listed),
        }
    }

    fn packets(
        barrier: &RoundBarrier,
        ring: &mut Ring,
        reader: &mut SocketReader,
        blocks: Blocks,
        listed: &[ListedBlock],
    ) -> Result<(), Error> {
        let names: Vec<String> = listed.iter().map(|block| block.name.clone()).collect();
        let mut packets = Packets::default();
        loop {
            if packets.read(ring, reader, &blocks, &names)? && !barrier.arrive() {
                return Ok(());
            }
        }
    }

    fn frames(
        barrier: &RoundBarrier,
        ring: &mut Ring,
        reader: &mut SocketReader,
        blocks: Blocks,
        listed: Vec<ListedBlock>,
    ) -> Result<(), Error> {
        let mut frames = Reader::of_channel(listed);
        loop {
            if frames.in_ram() {
                apply_records(&mut frames, ring, reader, |records| blocks.apply(records))?;
                continue;
            }
            let (item, used) = match frames.next(reader.bytes())? {
                Step::Need(needed) => {
                    reader.need(ring, needed)?;
                    continue;
                }
                Step::Item(item, used) => (item, used),
            };
            let Item::Frame(frame) = item else {
                return Err(Error::Command("something that is no frame on a channel"));
            };
            reader.consume(used);
            match frame {
                Frame::Run { block, offset, bytes } => {
                    frames.take_run();
                    blocks.receive(ring, reader, block, offset, bytes)?;
                }
                Frame::Zero { block, offset, bytes } => blocks.zero(block, offset, bytes)?,
                Frame::Sync { .. } if !barrier.arrive() => return Ok(()),
                // Records are read where the loop begins; the reader has refused the others.
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::Connection;
    use crate::migrate::incoming::accept::Origin;
    use std::os::unix::net::UnixStream;

    #[test]
    fn a_channel_that_ends_in_a_round_does_not_make_the_round_whole() {
        for another_arrived in [false, true] {
            let (socket, _other) = UnixStream::pair().unwrap();
            let origin = Origin::Open(Connection::from_fd(socket.into()));
            let mut channels = Channels::new(Connections::new(origin), Waker::new());
            channels.barrier.lock().channels = 2;
            if another_arrived {
                let barrier = channels.barrier.clone();
                channels.threads.push(std::thread::spawn(move || assert!(!barrier.arrive())));
                while channels.barrier.lock().arrived == 0 {
                    std::thread::yield_now();
                }
            }
            channels.barrier.fail(Error::Io(io::Error::Closed), &channels.waker);
            let mut ring = Ring::new(Waker::new()).unwrap();
            assert!(matches!(channels.wait_for_round(&mut ring), Err(Error::ChannelGone)));
        }
    }
}
