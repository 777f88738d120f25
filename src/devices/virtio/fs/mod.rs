//! `-device vhost-user-fs-device`: a file system of the host, which another process (`virtiofsd`) serves.
//!
//! The guest's queues are that process's ([`vhost_user`](super::vhost_user)); here are the tag, by which the
//! guest mounts it, and the bell and the interrupt. When the process goes away the device stands still, and
//! tries for a new one when the guest's driver starts anew.
//!
//! What the process has of the guest (open files, places in them) is not in the device's state, and what it
//! writes to memory is in no dirty log: such a guest is not migrated, nor dumped while it runs.
//!
//! | queue | what |
//! |---|---|
//! | 0 | requests that do not wait (FORGET) |
//! | 1 | all others |

mod options;
#[cfg(test)]
mod tests;

pub(crate) use options::DRIVER;
pub(super) use options::{KEYS, Wanted, complete};

use super::model::{Model, Next, Wait};
use super::parts::VirtioDevice;
use super::queue::{Fault, Queue};
use super::section::VirtioKind;
use super::vhost_user::{ANSWERS, FrontEnd, Lost, MemoryPart, RingAt};
use crate::config::{Config, Socket, SocketAddress, SocketRole};
use crate::devices::Error;
use crate::memory::GuestRam;
use options::TAG_BYTES;
use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect as connect_to, socket_with,
};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};
use virtio_bindings::virtio_ids::VIRTIO_ID_FS;

const QUEUES: usize = 2;
/// How long a process that starts beside this one may take until its socket is there.
const LATE: Duration = Duration::from_secs(60);

/// The device.
pub(super) struct FsModel {
    tag: String,
    queue_size: u16,
    /// What rings may be like, as far as the process must know it.
    offered: u64,
    address: SocketAddress,
    end: Option<FrontEnd>,
    /// Which rings are the process's, once it was told of memory.
    begun: bool,
    rings: [bool; QUEUES],
    interrupt: bool,
}

/// Connects to the process, and waits for it if `reconnect-ms=` says so.
pub(super) fn open(wanted: &Wanted, offered: u64, config: &Config) -> Result<FsModel, Error> {
    let id = wanted.chardev.as_deref().unwrap_or_default();
    let failed = |why: io::Error| Error::Host {
        what: format!("-device {DRIVER},chardev={id}: cannot connect to its back end"),
        source: why,
    };
    let chardev = config.back_ends.iter().find(|chardev| chardev.id == id);
    let Some(crate::config::ChardevBackend::Socket(Socket {
        address,
        role: SocketRole::Client { reconnect_ms },
    })) = chardev.map(|chardev| &chardev.backend)
    else {
        return Err(failed(io::ErrorKind::NotFound.into()));
    };
    let end = Instant::now() + LATE;
    let socket = loop {
        match connect(address) {
            Ok(socket) => break socket,
            Err(why) if *reconnect_ms == 0 || !is_late(&why) || Instant::now() >= end => {
                return Err(failed(why));
            }
            Err(_) => std::thread::sleep(Duration::from_millis(*reconnect_ms).min(LATE / 60)),
        }
    };
    let end =
        FrontEnd::new(socket, QUEUES, limit()).map_err(|lost| failed(io::Error::other(lost)))?;
    let lacks = offered & !end.features;
    if lacks != 0 {
        let why = format!(
            "it does not know features {lacks:#x} of rings (event_idx=off, indirect_desc=off)"
        );
        return Err(failed(io::Error::other(why)));
    }
    Ok(FsModel {
        tag: wanted.tag.clone().unwrap_or_default(),
        queue_size: wanted.queue_size,
        offered,
        address: address.clone(),
        end: Some(end),
        begun: false,
        rings: [false; QUEUES],
        interrupt: false,
    })
}

/// Of a turn: until then the back end has answered all.
fn limit() -> Instant {
    Instant::now() + ANSWERS
}

fn is_late(why: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionRefused, NotFound, WouldBlock};
    matches!(why.kind(), NotFound | ConnectionRefused | WouldBlock)
}

fn connect(address: &SocketAddress) -> io::Result<OwnedFd> {
    let to = match address {
        SocketAddress::Unix { path } => SocketAddrUnix::new(path.as_path())?,
        SocketAddress::Abstract { name } => SocketAddrUnix::new_abstract_name(name.as_bytes())?,
        SocketAddress::Fd(_) | SocketAddress::Tcp { .. } => {
            return Err(io::ErrorKind::Unsupported.into());
        }
    };
    // Who listens and does not accept is not waited for: a vCPU may wait for who connects again.
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    match connect_to(&socket, &to) {
        Ok(()) => Ok(socket),
        Err(Errno::AGAIN) => {
            let why = "it has no room for another connection (one that is busy accepts nobody)";
            Err(io::Error::new(io::ErrorKind::WouldBlock, why))
        }
        Err(why) => Err(why.into()),
    }
}

impl FsModel {
    /// The rings that the driver has set up and the process has not are handed over.
    fn start(&mut self, ram: &GuestRam, queues: &[Queue], features: u64) -> Result<(), Lost> {
        let limit = limit();
        if self.end.is_none() {
            // Another process than before: the guest has started anew.
            let end = FrontEnd::new(connect(&self.address)?, QUEUES, limit)?;
            if self.offered & !end.features != 0 {
                return Err(Lost::Confused);
            }
            self.end = Some(end);
        }
        let Some(end) = &self.end else { return Ok(()) };
        let main = ram.main();
        if !self.begun {
            let file = main.descriptor().ok_or(io::Error::from(io::ErrorKind::Unsupported))?;
            let part = |region: &crate::memory::Region| MemoryPart {
                gpa: region.gpa,
                bytes: region.bytes,
                host: main.host().addr() as u64 + region.offset,
                offset: main.file_offset() + region.offset,
            };
            let parts: Vec<_> = main.regions().iter().map(part).collect();
            end.begin(features, &parts, file.as_fd(), limit)?;
            self.begun = true;
        }
        for (index, (queue, started)) in (0..).zip(queues.iter().zip(&mut self.rings)) {
            if *started || !queue.is_in_use() {
                continue;
            }
            // Where the ring is was checked when it was taken into use.
            let host = |gpa| main.offset(gpa).map(|offset| main.host().addr() as u64 + offset);
            let places = (host(queue.desc), host(queue.avail), host(queue.used));
            let (Some(desc), Some(avail), Some(used)) = places else { return Err(Lost::Confused) };
            let position = queue.position();
            let ring = RingAt { index, size: queue.size, desc, avail, used, position };
            end.start(&ring, limit)?;
            *started = true;
        }
        Ok(())
    }

    /// Takes a ring back, if the process has it.
    fn stop(&mut self, index: usize, limit: Instant) -> Result<Option<u16>, Lost> {
        let Some(end) = self.end.as_ref().filter(|_| std::mem::take(&mut self.rings[index])) else {
            return Ok(None);
        };
        end.stop(index as u32, limit).map(Some)
    }

    /// Takes all rings back, of a guest that does not want to know what came of them. A process that
    /// does not answer is let go of: it must not write there any more.
    fn stop_all(&mut self) {
        let limit = limit();
        if (0..QUEUES).any(|index| self.stop(index, limit).is_err()) {
            self.let_go();
        }
        self.begun = false;
    }

    fn let_go(&mut self) {
        (self.end, self.begun, self.rings) = (None, false, [false; QUEUES]);
    }

    fn lost(&mut self, lost: Lost) -> Fault {
        self.let_go();
        Fault::BackEnd(lost.to_string())
    }
}

impl Model for FsModel {
    fn kind(&self) -> VirtioKind {
        VirtioKind::Fs
    }

    fn id(&self) -> u32 {
        VIRTIO_ID_FS
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![self.queue_size; QUEUES]
    }

    /// The tag, and how many queues of requests there are.
    fn config(&self) -> Vec<u8> {
        let mut config = self.tag.as_bytes().to_vec();
        config.resize(TAG_BYTES, 0);
        config.extend(1u32.to_le_bytes());
        config
    }

    fn reset(&mut self) {
        self.stop_all();
        self.interrupt = false;
    }

    fn queue_reset(&mut self, queue: usize) {
        if queue < QUEUES && self.stop(queue, limit()).is_err() {
            self.let_go();
        }
    }

    fn broken(&mut self) {
        self.stop_all();
    }

    fn take_interrupt(&mut self) -> bool {
        std::mem::take(&mut self.interrupt)
    }

    fn serve(
        &mut self,
        ram: &GuestRam,
        queues: &mut [Queue],
        features: u64,
    ) -> Result<Next, Fault> {
        if self.end.as_ref().is_some_and(FrontEnd::has_ended) {
            return Err(self.lost(Lost::Closed));
        }
        self.start(ram, queues, features).map_err(|lost| self.lost(lost))?;
        if let Some(end) = &self.end {
            self.interrupt |= end.take_call();
            end.kick();
        }
        Ok(Next::Wait)
    }

    /// The rings come back, with where they were read to.
    fn quiesce(&mut self, _: &GuestRam, queues: &mut [Queue]) -> Result<(), Fault> {
        let limit = limit();
        for (index, queue) in queues.iter_mut().enumerate() {
            if let Some(position) = self.stop(index, limit).map_err(|lost| self.lost(lost))? {
                queue.go_on_at(position);
            }
        }
        // What it gave back before.
        self.interrupt |= self.end.as_ref().is_some_and(FrontEnd::take_call);
        Ok(())
    }

    fn waits_for(&self) -> Wait {
        let Some(end) = &self.end else { return Wait::default() };
        Wait {
            readable: Some(end.call.clone()),
            ready: Some((end.socket(), PollFlags::IN)),
            until: None,
        }
    }

    fn keeps_guest(&self) -> Option<&'static str> {
        Some("Migration disabled: the back end of vhost-user-fs-device cannot be moved")
    }

    fn save(&self, _: u64) -> VirtioDevice {
        VirtioDevice::Fs
    }

    fn load(&mut self, _: &VirtioDevice, _: &GuestRam) -> Result<(), String> {
        Err("a file system of another process cannot arrive".into())
    }
}
