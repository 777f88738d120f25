//! vhost-user, the front end: another process has a device's queues.
//!
//! It maps the guest's memory, is told where the rings lie, hears of what the guest put there by one
//! event descriptor for each ring and says by another that it gave something back.
//!
//! A message is a header of three le32 (number, flags, bytes of what follows), and what follows; with it
//! go descriptors. Some are answered, and with REPLY_ACK those that change something are, too. The other
//! side is waited for [`ANSWERS`] and no longer, whatever it is asked meanwhile: who asks has a device's lock.
//!
//! The crate `vhost` has this front end as well, but waits for a silent process for ever.

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, recv, sendmsg};
use rustix::time::Timespec;
use std::fs::File;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long the other side may take for all answers of one turn, or not read.
pub(super) const ANSWERS: Duration = Duration::from_secs(if cfg!(test) { 1 } else { 3 });
const HEADER_BYTES: usize = 12;
/// Version 1; a reply; a reply is wanted.
const VERSION: u32 = 1;
const IS_REPLY: u32 = 1 << 2;
const NEEDS_REPLY: u32 = 1 << 3;

/// The feature that says that there are protocol features.
const PROTOCOL_FEATURES: u64 = 1 << 30;
/// Of these: every message is answered.
const REPLY_ACK: u64 = 1 << 3;

/// Numbers of messages.
mod message {
    pub(super) const GET_FEATURES: u32 = 1;
    pub(super) const SET_FEATURES: u32 = 2;
    pub(super) const SET_OWNER: u32 = 3;
    pub(super) const SET_MEM_TABLE: u32 = 5;
    pub(super) const SET_VRING_NUM: u32 = 8;
    pub(super) const SET_VRING_ADDR: u32 = 9;
    pub(super) const SET_VRING_BASE: u32 = 10;
    pub(super) const GET_VRING_BASE: u32 = 11;
    pub(super) const SET_VRING_KICK: u32 = 12;
    pub(super) const SET_VRING_CALL: u32 = 13;
    pub(super) const GET_PROTOCOL_FEATURES: u32 = 15;
    pub(super) const SET_PROTOCOL_FEATURES: u32 = 16;
    pub(super) const SET_VRING_ENABLE: u32 = 18;
}

/// Why the other side has the queues no more.
#[derive(Debug, thiserror::Error)]
pub(super) enum Lost {
    #[error("its back end has closed the socket")]
    Closed,
    #[error("its back end has been silent for {} s", ANSWERS.as_secs())]
    Silent,
    #[error("its back end answers what it was not asked")]
    Confused,
    #[error("its back end refuses message {0} of vhost-user")]
    Refuses(u32),
    #[error("its back end: {0}")]
    Io(#[from] io::Error),
}

impl From<Errno> for Lost {
    fn from(error: Errno) -> Lost {
        match error {
            Errno::PIPE | Errno::CONNRESET => Lost::Closed,
            error => Lost::Io(error.into()),
        }
    }
}

/// A part of guest memory, as both sides see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct MemoryPart {
    pub gpa: u64,
    pub bytes: u64,
    /// Where this process has it, which is what rings are told by.
    pub host: u64,
    /// In its file.
    pub offset: u64,
}

/// A ring that is handed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RingAt {
    pub index: u32,
    pub size: u32,
    /// Addresses of this process.
    pub desc: u64,
    pub avail: u64,
    pub used: u64,
    /// Where to read on.
    pub position: u16,
}

/// The connection to a back end.
pub(super) struct FrontEnd {
    socket: Arc<OwnedFd>,
    /// What it can do.
    pub features: u64,
    acknowledges: bool,
    /// It gave something back, in any ring.
    pub call: Arc<File>,
    kicks: Vec<OwnedFd>,
}

impl FrontEnd {
    /// Asks a back end what it can do, until `end`. `rings` is how many it will get.
    ///
    /// # Errors
    /// It is none, or does not answer.
    pub(super) fn new(socket: OwnedFd, rings: usize, end: Instant) -> Result<FrontEnd, Lost> {
        let event = || eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        let mut peer = FrontEnd {
            socket: Arc::new(socket),
            features: 0,
            acknowledges: false,
            call: Arc::new(event()?.into()),
            kicks: (0..rings).map(|_| event()).collect::<Result<_, _>>()?,
        };
        peer.features = peer.get(message::GET_FEATURES, end)?;
        peer.send(message::SET_OWNER, &[], end)?;
        if peer.features & PROTOCOL_FEATURES != 0 {
            let wanted = peer.get(message::GET_PROTOCOL_FEATURES, end)? & REPLY_ACK;
            peer.send(message::SET_PROTOCOL_FEATURES, &wanted.to_le_bytes(), end)?;
            peer.acknowledges = wanted != 0;
        }
        Ok(peer)
    }

    /// What becomes readable when the back end closes it; it says nothing by itself.
    pub(super) fn socket(&self) -> Arc<OwnedFd> {
        self.socket.clone()
    }

    /// Whether the back end has closed the socket, or said something that nobody asked for.
    pub(super) fn has_ended(&self) -> bool {
        let mut byte = [0];
        !matches!(
            recv(&*self.socket, &mut byte, RecvFlags::DONTWAIT | RecvFlags::PEEK),
            Err(Errno::AGAIN | Errno::INTR)
        )
    }

    /// Tells what was agreed upon with the driver, and where memory is.
    pub(super) fn begin(
        &self,
        features: u64,
        memory: &[MemoryPart],
        file: BorrowedFd<'_>,
        end: Instant,
    ) -> Result<(), Lost> {
        let features = features & self.features | self.features & PROTOCOL_FEATURES;
        self.ask(message::SET_FEATURES, &features.to_le_bytes(), &[], end)?;
        let mut table = u64::try_from(memory.len()).unwrap_or(u64::MAX).to_le_bytes().to_vec();
        for MemoryPart { gpa, bytes, host, offset } in memory {
            table
                .extend([gpa, bytes, host, offset].into_iter().flat_map(|word| word.to_le_bytes()));
        }
        self.ask(message::SET_MEM_TABLE, &table, &vec![file; memory.len()], end)
    }

    /// Hands a ring over.
    pub(super) fn start(&self, ring: &RingAt, end: Instant) -> Result<(), Lost> {
        let state = |value: u32| [ring.index.to_le_bytes(), value.to_le_bytes()].concat();
        self.ask(message::SET_VRING_NUM, &state(ring.size), &[], end)?;
        self.ask(message::SET_VRING_BASE, &state(ring.position.into()), &[], end)?;
        let mut address = state(0);
        let places = [ring.desc, ring.used, ring.avail, 0];
        address.extend(places.into_iter().flat_map(u64::to_le_bytes));
        self.ask(message::SET_VRING_ADDR, &address, &[], end)?;
        let index = u64::from(ring.index).to_le_bytes();
        let kick = &self.kicks[ring.index as usize];
        self.ask(message::SET_VRING_CALL, &index, &[self.call.as_fd()], end)?;
        self.ask(message::SET_VRING_KICK, &index, &[kick.as_fd()], end)?;
        if self.features & PROTOCOL_FEATURES != 0 {
            self.ask(message::SET_VRING_ENABLE, &state(1), &[], end)?;
        }
        Ok(())
    }

    /// Takes a ring back. Returns where the back end had read to.
    pub(super) fn stop(&self, index: u32, end: Instant) -> Result<u16, Lost> {
        let state = [index.to_le_bytes(), [0; 4]].concat();
        self.send(message::GET_VRING_BASE, &state, end)?;
        let answer = self.answer::<8>(message::GET_VRING_BASE, end)?;
        let word = |at: usize| u32::from_le_bytes(std::array::from_fn(|i| answer[at + i]));
        let position = u16::try_from(word(4)).ok().filter(|_| word(0) == index);
        position.ok_or(Lost::Confused)
    }

    /// The guest put something into a ring, whichever.
    pub(super) fn kick(&self) {
        for kick in &self.kicks {
            // Fails only where it has been rung 2^64 - 2 times and not been heard.
            let _ = rustix::io::write(kick, &1u64.to_ne_bytes());
        }
    }

    /// Whether the back end gave something back since this was last asked.
    pub(super) fn take_call(&self) -> bool {
        rustix::io::read(&*self.call, &mut [0u8; 8]).is_ok()
    }

    fn get(&self, number: u32, end: Instant) -> Result<u64, Lost> {
        self.send(number, &[], end)?;
        Ok(u64::from_le_bytes(self.answer::<8>(number, end)?))
    }

    /// Sends something that has no answer of its own, and waits until it was done, if that is told.
    fn ask(
        &self,
        number: u32,
        body: &[u8],
        fds: &[BorrowedFd<'_>],
        end: Instant,
    ) -> Result<(), Lost> {
        let flags = VERSION | if self.acknowledges { NEEDS_REPLY } else { 0 };
        self.send_as(flags, number, body, fds, end)?;
        if self.acknowledges && u64::from_le_bytes(self.answer::<8>(number, end)?) != 0 {
            return Err(Lost::Refuses(number));
        }
        Ok(())
    }

    fn send(&self, number: u32, body: &[u8], end: Instant) -> Result<(), Lost> {
        self.send_as(VERSION, number, body, &[], end)
    }

    fn send_as(
        &self,
        flags: u32,
        number: u32,
        body: &[u8],
        fds: &[BorrowedFd<'_>],
        end: Instant,
    ) -> Result<(), Lost> {
        let mut bytes = [number, flags, body.len() as u32].map(u32::to_le_bytes).concat();
        bytes.extend_from_slice(body);
        let (mut rest, mut fds) = (&bytes[..], fds);
        while !rest.is_empty() {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            if !fds.is_empty() {
                control.push(SendAncillaryMessage::ScmRights(fds));
            }
            let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
            match sendmsg(&*self.socket, &[IoSlice::new(rest)], &mut control, flags) {
                Ok(sent) => (rest, fds) = (&rest[sent..], &[]),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => self.wait(PollFlags::OUT, end)?,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// The answer to message `number`, which has `N` bytes.
    fn answer<const N: usize>(&self, number: u32, end: Instant) -> Result<[u8; N], Lost> {
        let header = self.read::<HEADER_BYTES>(end)?;
        let word = |at: usize| u32::from_le_bytes(std::array::from_fn(|i| header[4 * at + i]));
        if word(0) != number || word(1) & IS_REPLY == 0 || word(2) as usize != N {
            return Err(Lost::Confused);
        }
        self.read::<N>(end)
    }

    fn read<const N: usize>(&self, end: Instant) -> Result<[u8; N], Lost> {
        let (mut bytes, mut filled) = ([0; N], 0);
        while filled < N {
            match recv(&*self.socket, &mut bytes[filled..], RecvFlags::DONTWAIT) {
                Ok((0, _)) => return Err(Lost::Closed),
                Ok((more, _)) => filled += more,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => self.wait(PollFlags::IN, end)?,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(bytes)
    }

    fn wait(&self, what: PollFlags, end: Instant) -> Result<(), Lost> {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Lost::Silent);
        }
        let time = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
        match poll(&mut [PollFd::new(&*self.socket, what)], Some(&time)) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// Descriptors of one message: those of memory's parts, of which there are two at most.
const FDS_MAX: usize = 8;
