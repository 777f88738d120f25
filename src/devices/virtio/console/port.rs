//! One port of a virtio-serial controller: two queues on one side, a line on the other.

use super::super::queue::{Chain, Fault, Queue};
use super::super::{ConsolePort, Wake, element};
use super::options::Placed;
use crate::devices::{Line, LineEnd};
use crate::memory::GuestRam;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

/// Bytes that leave, or come, in one piece.
const PIECE_BYTES: usize = 4096;
/// Bytes, and chains, of one turn.
const TURN_BYTES: usize = 64 << 10;
const TURN_CHAINS: usize = 64;

/// A port.
pub(super) struct Port {
    pub id: Option<String>,
    pub number: u32,
    pub is_console: bool,
    pub name: Option<String>,
    line: Option<Arc<dyn Line>>,
    end: Arc<End>,
    pub guest_connected: bool,
    pub host_connected: bool,
    /// From the guest, of which the first part has left.
    leaving: Option<(Chain, usize)>,
    /// Buffers of the guest's that the next input goes to.
    held: Option<Chain>,
}

/// Where the line puts what comes in.
struct End {
    inbox: Mutex<Inbox>,
    wake: OnceLock<Wake>,
}

#[derive(Default)]
struct Inbox {
    bytes: VecDeque<u8>,
    /// How many the guest has buffers for: no more are taken, so that none are here when the guest
    /// goes elsewhere.
    room: usize,
    /// The line had more.
    starved: bool,
}

impl LineEnd for End {
    fn receive(&self, bytes: &[u8]) -> usize {
        let mut inbox = self.inbox();
        let taken = bytes.len().min(inbox.room.saturating_sub(inbox.bytes.len()));
        inbox.bytes.extend(&bytes[..taken]);
        inbox.starved |= taken < bytes.len();
        drop(inbox);
        if taken > 0 {
            self.changed();
        }
        taken
    }

    fn changed(&self) {
        if let Some(wake) = self.wake.get() {
            wake();
        }
    }
}

impl End {
    fn inbox(&self) -> MutexGuard<'_, Inbox> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Port {
    pub(super) fn new(placed: Placed, line: Option<Arc<dyn Line>>) -> Port {
        let end = Arc::new(End { inbox: Mutex::default(), wake: OnceLock::new() });
        if let Some(line) = &line {
            line.attach(end.clone());
        }
        let Placed { id, number, is_console, name, .. } = placed;
        let mut port = Port {
            id,
            number,
            is_console,
            name,
            line,
            end,
            guest_connected: false,
            host_connected: false,
            leaving: None,
            held: None,
        };
        port.host_connected = port.is_open();
        port
    }

    pub(super) fn connect(&mut self, wake: Wake) {
        // Once.
        let _ = self.end.wake.set(wake);
    }

    /// Its queue for input; that for output is the next.
    pub(super) fn queue(&self) -> usize {
        if self.number == 0 { 0 } else { 2 * self.number as usize + 2 }
    }

    /// A console's line is always open: the guest does not wait for somebody who listens.
    pub(super) fn is_open(&self) -> bool {
        self.line.as_ref().is_some_and(|line| self.is_console || line.is_open())
    }

    pub(super) fn reset(&mut self) {
        self.guest_connected = false;
        self.host_connected = self.is_open();
        (self.leaving, self.held) = (None, None);
        // The line may have had something while there was no room; it asks again.
        *self.end.inbox() = Inbox { starved: true, ..Inbox::default() };
    }

    pub(super) fn queue_reset(&mut self, queue: usize) {
        let input = self.queue();
        if queue == input {
            self.held = None;
            self.end.inbox().room = 0;
        } else if queue == input + 1 {
            self.leaving = None;
        }
    }

    /// Says one byte without a queue, as far as there is room.
    pub(super) fn say(&self, byte: u8) {
        if let Some(line) = &self.line {
            line.send(&[byte]);
        }
    }

    /// Carries what the guest says. True: there is more.
    pub(super) fn output(&mut self, ram: &GuestRam, queue: &mut Queue) -> Result<bool, Fault> {
        let mut bytes = 0;
        for _ in 0..TURN_CHAINS {
            let Some((chain, mut at)) = (match self.leaving.take() {
                Some(leaving) => Some(leaving),
                None => queue.pop(ram)?.map(|chain| (chain, 0)),
            }) else {
                return Ok(false);
            };
            let line = self.line.as_ref().filter(|_| self.host_connected);
            while let Some(line) = line {
                let mut piece = [0; PIECE_BYTES];
                let count = chain.read(ram, at, &mut piece)?;
                if count == 0 {
                    break;
                }
                let taken = line.send(&piece[..count]);
                at += taken;
                bytes += taken;
                if taken < count || bytes >= TURN_BYTES {
                    self.leaving = Some((chain, at));
                    return Ok(taken == count);
                }
            }
            queue.push(ram, chain.head, 0)?;
        }
        Ok(true)
    }

    /// Gives the guest what came in, and the line the room that there is. `hears`: the guest wants
    /// input.
    pub(super) fn input(
        &mut self,
        ram: &GuestRam,
        queue: &mut Queue,
        hears: bool,
    ) -> Result<(), Fault> {
        let wanted = loop {
            if self.held.is_none() {
                self.held = queue.pop(ram)?;
            }
            let room = self.held.as_ref().map(Chain::writable_bytes);
            // Guest memory is not written under this lock: the control plane takes it.
            let mut inbox = self.end.inbox();
            let count = match room {
                Some(0) => 0,
                Some(room) if !inbox.bytes.is_empty() => inbox.bytes.len().min(room as usize),
                _ => {
                    let room = room.filter(|_| hears).unwrap_or(0);
                    inbox.room = (room as usize).min(PIECE_BYTES);
                    break inbox.room > 0 && std::mem::take(&mut inbox.starved);
                }
            };
            inbox.room = 0;
            let bytes: Vec<u8> = inbox.bytes.drain(..count).collect();
            drop(inbox);
            if let Some(chain) = self.held.take() {
                let written = chain.write(ram, &bytes)?;
                queue.push(ram, chain.head, written)?;
            }
        };
        if let Some(line) = self.line.as_ref().filter(|_| wanted) {
            line.has_room();
        }
        Ok(())
    }

    /// Takes no input any more, and gives back what it has of the guest's.
    pub(super) fn quiesce(&mut self, ram: &GuestRam, queue: &mut Queue) -> Result<(), Fault> {
        self.input(ram, queue, false)?;
        if self.held.take().is_some() {
            queue.unpop();
        }
        Ok(())
    }

    pub(super) fn save(&self) -> ConsolePort {
        let popped = self.leaving.as_ref().map(|(chain, at)| {
            let (index, offset) = chain.position(*at);
            (index, offset, element::encode(chain))
        });
        let (guest_connected, host_connected) =
            (self.guest_connected.into(), self.host_connected.into());
        ConsolePort { id: self.number, guest_connected, host_connected, popped }
    }

    pub(super) fn load(&mut self, from: &ConsolePort, ram: &GuestRam) -> Result<(), String> {
        self.reset();
        self.guest_connected = from.guest_connected != 0;
        self.host_connected = from.host_connected != 0;
        if let Some((index, offset, bytes)) = &from.popped {
            let chain = element::decode(bytes, ram)?;
            let before = chain.readable.iter().take(*index as usize);
            let before: u64 = before.map(|buffer| u64::from(buffer.bytes)).sum();
            let at = before.saturating_add(*offset).min(chain.readable_bytes());
            self.leaving = Some((chain, at as usize));
        }
        Ok(())
    }
}
