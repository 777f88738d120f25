//! One virtqueue: its registers, its split ring in guest memory, and the chains of buffers in it.
//!
//! The ring is the guest's and is believed in nothing: every index, address and length is checked
//! before it is used, and a chain has no more than [`CHAIN_MAX`] buffers. What does not hold is a
//! [`Fault`], after which the device does nothing until the guest resets it.

use super::section::{VirtioMmioQueue, VirtioQueue, VirtioRing};
use crate::memory::{self, GuestRam};
use std::sync::atomic::{Ordering, fence};
use virtio_bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use virtio_queue::{Queue as Ring, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

/// The longest queue that a transport takes, as in QEMU.
pub(super) const SIZE_MAX: u16 = 1024;
/// Buffers of one chain, its indirect ones included.
pub(super) const CHAIN_MAX: usize = SIZE_MAX as usize;

/// What a driver did that no driver may do.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Fault {
    #[error("{0} is no queue size: a power of two up to {SIZE_MAX} is")]
    Size(u32),
    #[error("the ring is not aligned, or not in memory (descriptors at {0:#x})")]
    Place(u64),
    #[error("{0}")]
    Ring(virtio_queue::Error),
    #[error("a chain of descriptors (head {0}) has no end, or leads out of its table")]
    Chain(u16),
    #[error("a chain (head {0}) has more than {CHAIN_MAX} descriptors")]
    Long(u16),
    #[error("a chain (head {0}) has a buffer to be read behind one to be written")]
    Order(u16),
    #[error("a buffer of {bytes} bytes at {gpa:#x} is not memory")]
    Buffer { gpa: u64, bytes: u32 },
    #[error(transparent)]
    Memory(#[from] memory::Error),
    /// Of a kind of device.
    #[error("{0}")]
    Request(&'static str),
    /// Not the driver's doing: who had the rings is away.
    #[error("{0}")]
    BackEnd(String),
}

impl From<virtio_queue::Error> for Fault {
    fn from(error: virtio_queue::Error) -> Fault {
        Fault::Ring(error)
    }
}

/// A buffer of the guest's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Buffer {
    pub gpa: u64,
    /// Not zero.
    pub bytes: u32,
}

/// Buffers that the guest gave together. All of them are memory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Chain {
    pub head: u16,
    /// For the device to read.
    pub readable: Vec<Buffer>,
    /// For the device to write.
    pub writable: Vec<Buffer>,
}

impl Chain {
    pub(crate) fn writable_bytes(&self) -> u64 {
        self.writable.iter().map(|buffer| u64::from(buffer.bytes)).sum()
    }

    pub(crate) fn readable_bytes(&self) -> u64 {
        self.readable.iter().map(|buffer| u64::from(buffer.bytes)).sum()
    }

    /// Reads into `into` from byte `at` on; returns how much there was.
    pub(crate) fn read(
        &self,
        ram: &GuestRam,
        at: usize,
        into: &mut [u8],
    ) -> Result<usize, memory::Error> {
        let (mut skip, mut filled) = (at, 0);
        for buffer in &self.readable {
            let bytes = buffer.bytes as usize;
            if skip >= bytes {
                skip -= bytes;
                continue;
            }
            let count = (bytes - skip).min(into.len() - filled);
            if count == 0 {
                break;
            }
            ram.read(buffer.gpa + skip as u64, &mut into[filled..][..count])?;
            (skip, filled) = (0, filled + count);
        }
        Ok(filled)
    }

    /// In which buffer to be read byte `at` lies, and where in it.
    pub(crate) fn position(&self, at: usize) -> (u32, u64) {
        let mut rest = at as u64;
        for (index, buffer) in self.readable.iter().enumerate() {
            if rest < u64::from(buffer.bytes) {
                return (index as u32, rest);
            }
            rest -= u64::from(buffer.bytes);
        }
        (self.readable.len() as u32, 0)
    }

    /// Writes as much of `data` as there is room for, from the beginning; returns how much that was.
    pub(crate) fn write(&self, ram: &GuestRam, data: &[u8]) -> Result<u32, memory::Error> {
        let mut rest = data;
        for buffer in &self.writable {
            let (part, behind) = rest.split_at(rest.len().min(buffer.bytes as usize));
            if part.is_empty() {
                break;
            }
            ram.write(buffer.gpa, part)?;
            rest = behind;
        }
        Ok((data.len() - rest.len()) as u32)
    }
}

/// A queue.
#[derive(Debug)]
pub(crate) struct Queue {
    /// What the device proposes; 0: there is no such queue.
    pub size_default: u16,
    /// As the driver wrote it.
    pub size: u32,
    pub align: u32,
    /// Guest-physical addresses. `desc` is zero where the driver has set up no ring.
    pub desc: u64,
    pub avail: u64,
    pub used: u64,
    /// QueueReady of a modern transport, and the queue's registers when that was written.
    pub mmio: VirtioMmioQueue,
    /// Positions, once the ring was looked at.
    ring: Option<Ring>,
    /// Where the device has read up to, of a ring that nobody has looked at since it was loaded.
    last_avail: u16,
    /// It came with such a ring.
    loaded: bool,
    event_idx: bool,
    /// Something was given back, and the guest's wishes were not looked at yet.
    has_news: bool,
    /// How far the used ring was when they were; unknown at first.
    asked_at: Option<u16>,
}

/// The alignment that legacy drivers assume without saying so.
const ALIGN_DEFAULT: u32 = 4096;

impl Queue {
    pub(crate) fn new(size_default: u16) -> Queue {
        Queue {
            size_default,
            size: size_default.into(),
            align: ALIGN_DEFAULT,
            desc: 0,
            avail: 0,
            used: 0,
            mmio: VirtioMmioQueue::default(),
            ring: None,
            last_avail: 0,
            loaded: false,
            event_idx: false,
            has_news: false,
            asked_at: None,
        }
    }

    /// As after power-on, but for the addresses that a modern driver wrote and did not use yet.
    pub(crate) fn reset(&mut self) {
        let mmio = VirtioMmioQueue { enabled: false, ..self.mmio };
        *self = Queue { mmio, ..Queue::new(self.size_default) };
    }

    /// Puts avail and used ring where a legacy driver expects them: behind the descriptors.
    pub(crate) fn place_legacy(&mut self, desc: u64) {
        let size = u64::from(self.size);
        let align = u64::from(self.align.max(1));
        self.desc = desc;
        self.avail = desc.wrapping_add(16 * size);
        self.used =
            self.avail.wrapping_add(4 + 2 * size).checked_next_multiple_of(align).unwrap_or(0);
        self.begin();
    }

    /// Takes over what a modern driver wrote (QueueReady).
    pub(crate) fn place_modern(&mut self) {
        let word = |[low, high]: [u32; 2]| u64::from(high) << 32 | u64::from(low);
        // A size that no queue has is not taken, as by a legacy transport: no section could have it.
        if (1..=SIZE_MAX).contains(&self.mmio.size) {
            self.size = self.mmio.size.into();
        }
        self.desc = word(self.mmio.desc);
        self.avail = word(self.mmio.avail);
        self.used = word(self.mmio.used);
        self.mmio.enabled = true;
        self.begin();
    }

    fn begin(&mut self) {
        (self.ring, self.last_avail, self.loaded) = (None, 0, false);
    }

    /// Whether the driver has given it a ring.
    pub(crate) fn is_set_up(&self) -> bool {
        self.desc != 0
    }

    /// Whether its ring was looked at.
    pub(crate) fn is_in_use(&self) -> bool {
        self.ring.is_some()
    }

    /// Looks at the ring for the first time: it must be where memory is.
    pub(crate) fn start(&mut self, ram: &GuestRam, event_idx: bool) -> Result<(), Fault> {
        let size = u16::try_from(self.size).ok().filter(|size| *size <= SIZE_MAX);
        let size = size.filter(|size| size.is_power_of_two()).ok_or(Fault::Size(self.size))?;
        let mut ring = Ring::new(SIZE_MAX)?;
        ring.try_set_size(size)?;
        ring.try_set_desc_table_address(GuestAddress(self.desc))?;
        ring.try_set_avail_ring_address(GuestAddress(self.avail))?;
        ring.try_set_used_ring_address(GuestAddress(self.used))?;
        ring.set_event_idx(event_idx);
        ring.set_ready(true);
        if !ring.is_valid(ram.mem()) {
            return Err(Fault::Place(self.desc));
        }
        ring.set_next_avail(self.last_avail);
        // A fresh ring begins at zero, whatever stands there.
        if self.loaded {
            ring.set_next_used(ring.used_idx(ram.mem(), Ordering::Acquire)?.0);
        }
        self.event_idx = event_idx;
        self.asked_at = (!self.loaded).then(|| ring.next_used());
        self.ring = Some(ring);
        Ok(())
    }

    /// The next chain that the guest has made available. `None`: there is none, and the guest will
    /// say so when there is.
    pub(crate) fn pop(&mut self, ram: &GuestRam) -> Result<Option<Chain>, Fault> {
        let used = self.used_bytes();
        let Some(ring) = &mut self.ring else { return Ok(None) };
        loop {
            let mut chains = ring.iter(ram.mem())?;
            if let Some(descriptors) = chains.next() {
                return read_chain(ram, descriptors).map(Some);
            }
            let flags: u16 = ram
                .mem()
                .load(GuestAddress(self.used), Ordering::Relaxed)
                .map_err(virtio_queue::Error::GuestMemory)?;
            // Without event indices the guest always says so, unless another VMM asked it not to.
            if !self.event_idx && flags == 0 {
                return Ok(None);
            }
            let _leave = ram.ask_to_write(self.used, used);
            if !ring.enable_notification(ram.mem())? {
                return Ok(None);
            }
        }
    }

    /// Takes back the last [`Queue::pop`].
    pub(crate) fn unpop(&mut self) {
        if let Some(ring) = &mut self.ring {
            ring.go_to_previous_position();
        }
    }

    /// How many chains were taken and not given back.
    pub(crate) fn under_way(&self) -> u16 {
        self.ring.as_ref().map_or(0, |ring| ring.next_avail().wrapping_sub(ring.next_used()))
    }

    /// Gives a chain back to the guest, of which the first `written` bytes to be written were.
    pub(crate) fn push(&mut self, ram: &GuestRam, head: u16, written: u32) -> Result<(), Fault> {
        let used = self.used_bytes();
        let Some(ring) = &mut self.ring else { return Ok(()) };
        let _leave = ram.ask_to_write(self.used, used);
        ring.add_used(ram.mem(), head, written)?;
        self.has_news = true;
        Ok(())
    }

    /// Gives several chains back at once, each with the bytes that were written: the guest sees all of
    /// them or none.
    pub(crate) fn push_all(&mut self, ram: &GuestRam, done: &[(u16, u32)]) -> Result<(), Fault> {
        let Some(((head, written), before)) = done.split_last() else { return Ok(()) };
        if let Some(ring) = self.ring.as_mut().filter(|_| !before.is_empty()) {
            let first = ring.next_used();
            for (index, (head, written)) in (0u16..).zip(before) {
                let slot = u32::from(first.wrapping_add(index)) % self.size;
                let entry = [u32::from(*head).to_le_bytes(), written.to_le_bytes()].concat();
                ram.write(self.used + 4 + 8 * u64::from(slot), &entry)?;
            }
            ring.set_next_used(first.wrapping_add(before.len() as u16));
        }
        self.push(ram, *head, *written)
    }

    /// Whether something was given back since [`Queue::wants_interrupt`] was last asked.
    pub(crate) fn has_news(&self) -> bool {
        self.has_news
    }

    /// Whether the guest wants an interrupt for what was given back since it was last asked.
    /// `on_empty`: it also wants one when nothing is left to be done.
    pub(crate) fn wants_interrupt(
        &mut self,
        ram: &GuestRam,
        on_empty: bool,
    ) -> Result<bool, Fault> {
        self.has_news = false;
        let Some(ring) = &mut self.ring else { return Ok(false) };
        // What was given back must be seen before the guest's wishes are read.
        fence(Ordering::SeqCst);
        let used = ring.next_used();
        let asked_at = self.asked_at.replace(used);
        if on_empty && ring.avail_idx(ram.mem(), Ordering::Relaxed)?.0 == ring.next_avail() {
            return Ok(true);
        }
        if self.event_idx {
            // Behind the avail ring's entries: which one it wants to hear of.
            let at = GuestAddress(self.avail + 4 + 2 * u64::from(self.size));
            let event: u16 =
                ram.mem().load(at, Ordering::Relaxed).map_err(virtio_queue::Error::GuestMemory)?;
            let since = used.wrapping_sub(u16::from_le(event)).wrapping_sub(1);
            return Ok(asked_at.is_none_or(|asked| since < used.wrapping_sub(asked)));
        }
        let flags: u16 = ram
            .mem()
            .load(GuestAddress(self.avail), Ordering::Relaxed)
            .map_err(virtio_queue::Error::GuestMemory)?;
        Ok(u32::from(u16::from_le(flags)) & VRING_AVAIL_F_NO_INTERRUPT == 0)
    }

    /// Where the device has read up to.
    pub(crate) fn position(&self) -> u16 {
        self.ring.as_ref().map_or(self.last_avail, QueueT::next_avail)
    }

    /// Somebody else has read up to there, and given all of it back.
    pub(crate) fn go_on_at(&mut self, position: u16) {
        self.last_avail = position;
        if let Some(ring) = &mut self.ring {
            ring.set_next_avail(position);
            ring.set_next_used(position);
        }
    }

    fn used_bytes(&self) -> u64 {
        6 + 8 * u64::from(self.size)
    }

    /// The queue as a section has it.
    pub(crate) fn save(&self) -> VirtioQueue {
        VirtioQueue {
            size: self.size,
            align: self.align,
            desc: self.desc,
            last_avail_idx: self.position(),
        }
    }

    pub(crate) fn save_ring(&self) -> VirtioRing {
        VirtioRing { avail: self.avail, used: self.used }
    }

    /// Takes what a section brings. A legacy ring lies where its descriptors say.
    pub(crate) fn load(&mut self, from: &VirtioQueue, ring: Option<VirtioRing>) {
        self.size = from.size;
        self.align = from.align;
        match ring {
            Some(VirtioRing { avail, used }) => {
                (self.desc, self.avail, self.used) = (from.desc, avail, used)
            }
            None if from.desc != 0 => self.place_legacy(from.desc),
            None => {}
        }
        (self.ring, self.last_avail, self.loaded) = (None, from.last_avail_idx, true);
    }

    /// Of a ring that was loaded: what was taken and not given back, and what is still to be taken,
    /// are no more than fit into it.
    pub(crate) fn check_positions(&self, ram: &GuestRam) -> Result<(), String> {
        let Some(ring) = &self.ring else { return Ok(()) };
        let found = |index: Result<std::num::Wrapping<u16>, _>| index.map_or(0, |index| index.0);
        let available = found(ring.avail_idx(ram.mem(), Ordering::Acquire));
        let (taken, used) = (ring.next_avail(), ring.next_used());
        let (waiting, open) = (available.wrapping_sub(taken), taken.wrapping_sub(used));
        if u32::from(waiting) > self.size || u32::from(open) > self.size {
            return Err(format!(
                "the guest has made {available} chains available (modulo 65536), {taken} were taken and {used} given \
                 back, which cannot be in a ring of {}",
                self.size
            ));
        }
        Ok(())
    }
}

/// Goes through the descriptors of a chain. The iterator is silent about what is wrong: a chain that
/// stops behind a descriptor with a successor was cut off.
fn read_chain(
    ram: &GuestRam,
    descriptors: virtio_queue::DescriptorChain<&memory::Mem>,
) -> Result<Chain, Fault> {
    let head = descriptors.head_index();
    let mut chain = Chain { head, ..Chain::default() };
    let mut ended = false;
    for descriptor in descriptors {
        if chain.readable.len() + chain.writable.len() == CHAIN_MAX {
            return Err(Fault::Long(head));
        }
        let buffer = Buffer { gpa: descriptor.addr().0, bytes: descriptor.len() };
        if buffer.bytes == 0 || !ram.mem().check_range(descriptor.addr(), buffer.bytes as usize) {
            return Err(Fault::Buffer { gpa: buffer.gpa, bytes: buffer.bytes });
        }
        match descriptor.is_write_only() {
            true => chain.writable.push(buffer),
            false if chain.writable.is_empty() => chain.readable.push(buffer),
            false => return Err(Fault::Order(head)),
        }
        ended = !descriptor.has_next();
    }
    if ended { Ok(chain) } else { Err(Fault::Chain(head)) }
}
