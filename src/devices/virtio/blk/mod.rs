//! `-device virtio-blk-device`: a disk over an image.
//!
//! ```text
//! worker ─ serve ─► pop ─► request::read ─► flight::begin ─► block::Lanes ─► kernel
//!                                                                │
//!          guest ◄─ push ◄─ status, pages marked ◄─ flight::arrive
//! ```
//!
//! The worker's thread is the disk's own, and so is the ring: nothing waits for the host while it
//! has the transport's lock, but for a reset or a stop, which wait for what is under way.

mod features;
mod flight;
mod hostile;
mod options;
mod request;
mod space;

pub use hostile::HostileDisks;
pub(super) use options::{DRIVER, KEYS, Wanted, complete};

use super::model::{Model, Next, Wait, Wake};
use super::queue::{Chain, Fault, Queue};
use super::{BlockState, Element, VirtioDevice, VirtioKind, element};
use crate::block::ring::{Arrival, FLIGHTS_MAX};
use crate::block::{self, Image, Lanes, Pass};
use crate::config::{self, OnError};
use crate::devices::{DiskEvents, Error, Slots};
use crate::memory::GuestRam;
use request::{Action, Asked, Request, Status};
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Instant;
use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;

/// Legacy drivers are offered this beside, and not offered that, as by QEMU.
pub(super) const LEGACY: (u64, u64) =
    (features::SCSI, 1 << virtio_bindings::virtio_config::VIRTIO_F_ANY_LAYOUT);

/// Chains of one turn, and arrivals.
const CHAINS: usize = 64;

/// The device.
pub(super) struct Disk {
    wanted: Wanted,
    image: Arc<Image>,
    policy: Policy,
    /// What offsets and lengths in the file are multiples of.
    alignment: u32,
    tell: DiskEvents,
    /// Its place in the tree of objects, for [`DiskEvents`].
    path: String,
    lanes: Lanes,
    under_way: HashMap<u64, Request>,
    next_number: u64,
    /// Heard of while another queue was waited for: to be looked at first.
    kept: VecDeque<Arrival>,
    /// The queue that is looked at first.
    first: usize,
    /// Failed, and to be done again when the guest goes on.
    stopped: Vec<(u16, Chain)>,
    /// The guest goes on.
    again: bool,
    write_cache: bool,
    /// Sectors that the driver was told of.
    sectors: u64,
    resized: bool,
    /// The image's limits let nothing begin before.
    later: Option<Instant>,
}

/// What becomes of requests that the host cannot do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Policy {
    write: OnError,
    read: OnError,
}

/// Opens the disk that `device` describes.
pub(super) fn open(
    device: &config::Device,
    wanted: &Wanted,
    slots: &Slots<'_>,
) -> Result<Disk, Error> {
    let name = wanted.drive.as_deref().unwrap_or_default();
    let peripherals = slots.config.devices.iter();
    let place =
        peripherals.filter(|other| other.id.is_none()).position(|o| std::ptr::eq(o, device));
    let path = match (&device.id, place) {
        (Some(id), _) => format!("/machine/peripheral/{id}"),
        (None, place) => format!("/machine/peripheral-anon/device[{}]", place.unwrap_or(0)),
    };
    let user = device.id.clone().unwrap_or_else(|| path.clone());
    let image = slots.images.claim(name, &user, true, wanted.share)?;
    Disk::new(wanted, image, path, slots.disk_events.clone())
        .map_err(|why| Error::Image { name: name.into(), why })
}

impl Disk {
    fn new(
        wanted: &Wanted,
        image: Arc<Image>,
        path: String,
        tell: DiskEvents,
    ) -> Result<Disk, String> {
        let alignment = image.alignment();
        if alignment > wanted.logical_block() {
            let path = image.top().path();
            return Err(block::Error::Alignment { path, needed: alignment }.to_string());
        }
        let drive = image.config.drive.unwrap_or_default();
        let policy = Policy {
            write: wanted.on_write_error.or(drive.write).unwrap_or(OnError::NoSpace),
            read: wanted.on_read_error.or(drive.read).unwrap_or(OnError::Report),
        };
        let stops = |on: OnError| matches!(on, OnError::Stop | OnError::NoSpace);
        image.set_has_status(stops(policy.write) || stops(policy.read));
        image.on_event(tell.clone());
        let mut disk = Disk {
            wanted: wanted.clone(),
            policy,
            alignment,
            tell,
            path,
            lanes: Lanes::new().map_err(|error| format!("there is no ring for it: {error}"))?,
            under_way: HashMap::new(),
            next_number: 0,
            kept: VecDeque::new(),
            first: 0,
            stopped: Vec::new(),
            again: false,
            write_cache: true,
            sectors: image.sectors(),
            resized: false,
            later: None,
            image,
        };
        disk.write_cache = disk.original_write_cache();
        Ok(disk)
    }

    fn original_write_cache(&self) -> bool {
        self.wanted.write_cache.unwrap_or(self.image.config.cache.writeback)
    }

    /// Takes requests from the queues. True: there may be more.
    fn take(&mut self, ram: &GuestRam, queues: &mut [Queue]) -> Result<bool, Fault> {
        let mut left = CHAINS;
        // Each comes first once: one that is never empty starves no other.
        let first = self.first % queues.len().max(1);
        self.first = first + 1;
        for number in (first..queues.len()).chain(0..first) {
            let queue = &mut queues[number];
            while self.under_way.len() < FLIGHTS_MAX {
                if left == 0 {
                    return Ok(true);
                }
                let Some(chain) = queue.pop(ram)? else { break };
                left -= 1;
                let (chain, asked) = self.read(ram, number as u16, chain)?;
                // Closed: who opens it wakes this.
                let Some(pass) = self.image.gate.enter() else {
                    queue.unpop();
                    break;
                };
                if let Some(later) = self.not_before(&asked) {
                    queue.unpop();
                    self.later = Some(self.later.map_or(later, |other| other.min(later)));
                    break;
                }
                self.begin(ram, queue, chain, asked, pass)?;
            }
        }
        Ok(false)
    }

    fn read(&self, ram: &GuestRam, queue: u16, chain: Chain) -> Result<(Chain, Asked), Fault> {
        request::read(ram, queue, chain, &self.wanted, self.sectors * request::SECTOR)
    }

    /// When the image's limits allow a request, if that is not now.
    fn not_before(&self, asked: &Asked) -> Option<Instant> {
        let Asked::Work(request) = asked else { return None };
        match request.action {
            Action::Read => self.image.begin(false, request.bytes),
            Action::Write | Action::Zeroes { .. } => self.image.begin(true, request.bytes),
            Action::Flush | Action::Discard => None,
        }
    }

    fn begin(
        &mut self,
        ram: &GuestRam,
        queue: &mut Queue,
        chain: Chain,
        asked: Asked,
        pass: Pass,
    ) -> Result<(), Fault> {
        match asked {
            Asked::Work(request) => {
                self.start(ram, queue, Request { chain, _pass: Some(pass), ..request })
            }
            Asked::Answered(status) => answer(ram, queue, &chain, status),
            Asked::Invalid(operation) => {
                self.image.stats.invalid(operation);
                answer(ram, queue, &chain, Status::Error)
            }
        }
    }

    /// What failed is tried again.
    fn try_again(&mut self, ram: &GuestRam, queues: &mut [Queue]) -> Result<(), Fault> {
        for (number, chain) in std::mem::take(&mut self.stopped) {
            let Some(pass) = self.image.gate.enter() else {
                self.stopped.push((number, chain));
                self.again = true;
                continue;
            };
            let (chain, asked) = self.read(ram, number, chain)?;
            self.begin(ram, &mut queues[usize::from(number)], chain, asked, pass)?;
            // The list may be longer than the ring.
            while self.under_way.len() >= FLIGHTS_MAX {
                self.wait();
                self.arrivals(ram, queues, usize::MAX)?;
            }
        }
        Ok(())
    }

    /// Waits until there is something for [`Disk::next_arrival`].
    fn wait(&mut self) {
        if self.kept.is_empty() {
            self.lanes.wait();
        }
    }

    fn next_arrival(&mut self) -> Option<Arrival> {
        self.kept.pop_front().or_else(|| self.lanes.take())
    }

    /// Waits for all that is under way, or only what is of one queue, and forgets whose it was.
    fn drain(&mut self, queue: Option<u16>) {
        let is_meant = |request: &Request| queue.is_none_or(|queue| request.queue == queue);
        let mut others = VecDeque::new();
        while self.under_way.values().any(is_meant) {
            self.wait();
            while let Some(arrival) = self.next_arrival() {
                match self.under_way.get(&arrival.number) {
                    Some(request) if is_meant(request) => {
                        flight::note(&self.image, request, &arrival);
                        self.under_way.remove(&arrival.number);
                    }
                    _ => others.push_back(arrival),
                }
            }
        }
        others.append(&mut self.kept);
        self.kept = others;
    }

    fn look_at_size(&mut self) {
        let sectors = self.image.sectors();
        if std::mem::replace(&mut self.sectors, sectors) != sectors {
            self.resized = true;
        }
    }
}

/// Gives a chain back, done.
fn answer(ram: &GuestRam, queue: &mut Queue, chain: &Chain, status: Status) -> Result<(), Fault> {
    if let Some(at) = request::status_at(chain) {
        ram.write(at, &[status as u8])?;
    }
    // As QEMU: all that could have been written.
    let written = u32::try_from(chain.writable_bytes()).unwrap_or(u32::MAX);
    queue.push(ram, chain.head, written)
}

impl Model for Disk {
    fn kind(&self) -> VirtioKind {
        VirtioKind::Block
    }

    fn id(&self) -> u32 {
        VIRTIO_ID_BLOCK
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![self.wanted.queue_size; self.wanted.queues.into()]
    }

    fn config(&self) -> Vec<u8> {
        let sectors = self.image.sectors();
        space::bytes(&self.wanted, space::Now { sectors, write_cache: self.write_cache })
    }

    fn write_config(&mut self, offset: u64, data: &[u8], features: u64) {
        let at = space::WRITE_CACHE_AT.checked_sub(offset).and_then(|at| data.get(at as usize));
        if let (Some(on), true) = (at, features & features::CONFIG_WCE != 0) {
            self.write_cache = *on != 0;
        }
    }

    fn connect(&mut self, wake: Wake) {
        self.image.on_change(Box::new(move || wake()));
    }

    fn reset(&mut self) {
        self.drain(None);
        self.stopped.clear();
        self.again = false;
        self.write_cache = self.original_write_cache();
    }

    fn queue_reset(&mut self, queue: usize) {
        if let Ok(queue) = u16::try_from(queue) {
            self.drain(Some(queue));
        }
        self.stopped.retain(|(of, _)| usize::from(*of) != queue);
    }

    fn broken(&mut self) {
        self.drain(None);
        self.stopped.clear();
    }

    fn serve(
        &mut self,
        ram: &GuestRam,
        queues: &mut [Queue],
        features: u64,
    ) -> Result<Next, Fault> {
        // Who cannot tell, and never flushes, takes what is done for safe.
        if features & features::CONFIG_WCE == 0 {
            self.write_cache = features & features::FLUSH != 0;
        }
        self.look_at_size();
        if std::mem::take(&mut self.again) {
            self.try_again(ram, queues)?;
        }
        self.later = None;
        let more = self.take(ram, queues)?;
        self.lanes.submit();
        let was_full = self.under_way.len() >= FLIGHTS_MAX;
        self.arrivals(ram, queues, CHAINS)?;
        // Nothing rings for what was left in the queues for want of room, nor for arrivals that the
        // ring has handed over already.
        let has_room = was_full && self.under_way.len() < FLIGHTS_MAX;
        let more = more || has_room || !self.kept.is_empty() || self.lanes.has_arrived();
        Ok(if more { Next::More } else { Next::Wait })
    }

    fn quiesce(&mut self, ram: &GuestRam, queues: &mut [Queue]) -> Result<(), Fault> {
        while !self.under_way.is_empty() {
            self.wait();
            self.arrivals(ram, queues, usize::MAX)?;
        }
        self.again = true;
        // Whoever reads the image now, here or where the guest goes, reads all of it. A host that
        // cannot has lost nothing that the guest was told is safe.
        if let Err(error) = self.image.flush() {
            say!(
                "godwit: disk image {}: what was written is not on the disk: {error}",
                self.image.config.name
            );
        }
        Ok(())
    }

    fn take_config_change(&mut self) -> bool {
        std::mem::take(&mut self.resized)
    }

    fn waits_for(&self) -> Wait {
        let under_way = !self.under_way.is_empty();
        let readable = under_way.then(|| self.lanes.event().clone());
        Wait { readable, until: self.later, ..Wait::default() }
    }

    fn save(&self, _: u64) -> VirtioDevice {
        let element = |(queue, chain): &(u16, Chain)| Element {
            queue: (*queue).into(),
            bytes: element::encode(chain),
        };
        VirtioDevice::Block(BlockState { requests: self.stopped.iter().map(element).collect() })
    }

    fn load(&mut self, from: &VirtioDevice, ram: &GuestRam) -> Result<(), String> {
        let VirtioDevice::Block(from) = from else { return Ok(()) };
        let queues = self.wanted.queues;
        let request = |element: &Element| {
            let queue = u16::try_from(element.queue).ok().filter(|queue| *queue < queues);
            let queue =
                queue.ok_or(format!("a request of queue {}, of {queues}", element.queue))?;
            Ok((queue, element::decode(&element.bytes, ram)?))
        };
        self.stopped = from.requests.iter().map(request).collect::<Result<_, String>>()?;
        self.again = true;
        Ok(())
    }

    fn load_config(&mut self, config: &[u8], features: u64) {
        self.write_config(0, config, features);
    }
}

#[cfg(test)]
mod tests;
