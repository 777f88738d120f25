//! `-device virtio-rng-device`: entropy for the guest, from the kernel (`-object rng-builtin`, and
//! without any) or from a file (`-object rng-random`), at a limited rate if wanted.

use super::model::{Model, Next, Wait};
use super::queue::{Fault, Queue};
use super::{RingFeatures, VirtioDevice, VirtioKind};
use crate::args::{Key, Keys, OptionError, Problem, value};
use crate::config::{Config, Entropy, EntropySource};
use crate::devices::Error;
use crate::memory::GuestRam;
use crate::suggest::nearest;
use rustix::event::{PollFd, PollFlags};
use rustix::rand::{GetRandomFlags, getrandom};
use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use virtio_bindings::virtio_ids::VIRTIO_ID_RNG;

pub(super) const DRIVER: &str = "virtio-rng-device";

/// The last two are asked of no device yet.
pub(super) const KEYS: Keys<Wanted> = Keys {
    owner: DRIVER,
    implied: None,
    table: &[
        Key::set("rng", "ID", |wanted, text| {
            wanted.source = Some(value::id(text)?);
            Ok(())
        }),
        Key::set("max-bytes", "N", |wanted, text| {
            wanted.limit.bytes = value::number(text, 0, UNLIMITED)?;
            Ok(())
        }),
        Key::set("period", "65536", |wanted, text| {
            wanted.limit.period_ms = value::number(text, 1, u32::MAX.into())? as u32;
            Ok(())
        }),
        Key::set("indirect_desc", "on|off", |w, text| w.ring.indirect_desc(text)),
        Key::set("event_idx", "on|off", |w, text| w.ring.event_idx(text)),
        Key::only("packed", &["off"], super::NO_PACKED),
        Key::only("iommu_platform", &["off"], super::NO_IOMMU),
    ],
};

/// QEMU's number for "as many as there are".
const UNLIMITED: u64 = i64::MAX as u64;

/// What `-device` asked for.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Wanted {
    /// Id of the `-object`; `None` takes the kernel's.
    source: Option<String>,
    limit: Limit,
    ring: RingFeatures,
}

impl Wanted {
    pub(super) fn ring(&self) -> RingFeatures {
        self.ring
    }
}

/// So many bytes in each period.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Limit {
    bytes: u64,
    period_ms: u32,
}

impl Default for Limit {
    fn default() -> Limit {
        Limit { bytes: UNLIMITED, period_ms: 65536 }
    }
}

/// Finds the source that each device names.
pub(super) fn complete(config: &mut Config) -> Result<(), OptionError> {
    for device in &config.devices {
        let Some(wanted) = device.properties.downcast_ref::<Wanted>() else { continue };
        let Some(id) = &wanted.source else { continue };
        if !config.entropy.iter().any(|entropy| entropy.id == *id) {
            let ids = config.entropy.iter().map(|entropy| entropy.id.as_str());
            let nearest = nearest(id, ids).map(String::from);
            let problem = Problem::UnknownId {
                kind: "source of entropy (-object rng-builtin, rng-random)",
                nearest,
            };
            return Err(problem.at(format!("-device {DRIVER},rng={id}")));
        }
    }
    Ok(())
}

/// Opens the device's source.
pub(super) fn open(wanted: &Wanted, sources: &[Entropy]) -> Result<Rng, Error> {
    let named = sources.iter().find(|entropy| Some(&entropy.id) == wanted.source.as_ref());
    let source = match named.map(|entropy| &entropy.source) {
        None | Some(EntropySource::Builtin) => Source::Kernel,
        Some(EntropySource::File(path)) => {
            let failed = |source| Error::Host {
                what: format!("cannot read entropy from {}", path.display()),
                source,
            };
            Source::File(Arc::new(open_file(path).map_err(failed)?))
        }
    };
    Ok(Rng {
        source,
        limit: wanted.limit,
        left: wanted.limit.bytes,
        period_end: None,
        wait: Wait::default(),
    })
}

/// A file that has nothing to give now says so instead of letting its reader wait.
fn open_file(path: &Path) -> io::Result<File> {
    let flags = rustix::fs::OFlags::NONBLOCK.bits() as i32;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    match file.metadata()?.file_type() {
        of if of.is_dir() => Err(io::ErrorKind::IsADirectory.into()),
        // A disk lets its reader wait all the same.
        of if of.is_file() => piped(file),
        _ => Ok(file),
    }
}

/// What is in `file`, and what comes to it, through a pipe, which a thread fills that may wait.
fn piped(mut file: File) -> io::Result<File> {
    let (reader, mut writer) = io::pipe()?;
    rustix::io::ioctl_fionbio(&reader, true)?;
    let copy = move || {
        while io::copy(&mut file, &mut writer).is_ok() && !is_closed(&writer, END_OF_FILE_PAUSE) {}
    };
    std::thread::Builder::new().name("entropy".into()).spawn(copy)?;
    Ok(std::os::fd::OwnedFd::from(reader).into())
}

/// Waits so long for the other end to be closed; the pipe tells it as an error.
fn is_closed(writer: &io::PipeWriter, time: Duration) -> bool {
    let mut poll = [PollFd::new(writer, PollFlags::empty())];
    let time = rustix::time::Timespec::try_from(time).ok();
    rustix::event::poll(&mut poll, time.as_ref()).is_ok_and(|closed| closed > 0)
}

enum Source {
    Kernel,
    File(Arc<File>),
}

/// The device.
pub(super) struct Rng {
    source: Source,
    limit: Limit,
    /// Bytes that may still be given in this period.
    left: u64,
    /// `None`: nothing was given since the last one ended.
    period_end: Option<Instant>,
    wait: Wait,
}

/// Given for one chain at most; a guest that wants more asks again.
const BYTES_MAX: usize = 64 << 10;
/// Chains in one turn.
const CHAINS: usize = 8;
/// A file at whose end more may come.
const END_OF_FILE_PAUSE: Duration = Duration::from_secs(1);

impl Rng {
    /// Fills the next chain. False: there is none, or nothing to give; what is waited for is then in
    /// `self.wait`.
    fn fill(&mut self, ram: &GuestRam, queue: &mut Queue) -> Result<bool, Fault> {
        let Some(chain) = queue.pop(ram)? else { return Ok(false) };
        let room = chain.writable_bytes().min(BYTES_MAX as u64);
        let mut bytes = vec![0; room.min(self.allowance()) as usize];
        let given = match (room, bytes.len()) {
            (0, _) => 0,
            (_, 0) => {
                self.wait.until = self.period_end;
                queue.unpop();
                return Ok(false);
            }
            _ => match self.read(&mut bytes) {
                0 => {
                    queue.unpop();
                    return Ok(false);
                }
                given => given,
            },
        };
        let written = chain.write(ram, &bytes[..given])?;
        queue.push(ram, chain.head, written)?;
        self.left -= u64::from(written);
        Ok(true)
    }

    /// How many bytes may be given now.
    fn allowance(&mut self) -> u64 {
        let now = Instant::now();
        if self.period_end.is_none_or(|end| end <= now) {
            self.left = self.limit.bytes;
            self.period_end = Some(now + Duration::from_millis(self.limit.period_ms.into()));
        }
        self.left
    }

    /// Reads some; 0 if there is nothing now.
    fn read(&mut self, bytes: &mut [u8]) -> usize {
        let read = match &self.source {
            Source::Kernel => {
                getrandom(&mut *bytes, GetRandomFlags::NONBLOCK).map_err(io::Error::from)
            }
            Source::File(file) => (&**file).read(bytes),
        };
        match (read, &self.source) {
            (Ok(count), _) if count > 0 => count,
            (Err(error), Source::File(file)) if error.kind() == io::ErrorKind::WouldBlock => {
                self.wait.readable = Some(file.clone());
                0
            }
            _ => {
                self.wait.until = Some(Instant::now() + END_OF_FILE_PAUSE);
                0
            }
        }
    }
}

impl Model for Rng {
    fn kind(&self) -> VirtioKind {
        VirtioKind::Rng
    }

    fn id(&self) -> u32 {
        VIRTIO_ID_RNG
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![8]
    }

    fn reset(&mut self) {
        self.wait = Wait::default();
    }

    fn serve(&mut self, ram: &GuestRam, queues: &mut [Queue], _: u64) -> Result<Next, Fault> {
        self.wait = Wait::default();
        for _ in 0..CHAINS {
            if !self.fill(ram, &mut queues[0])? {
                return Ok(Next::Wait);
            }
        }
        Ok(Next::More)
    }

    fn waits_for(&self) -> Wait {
        self.wait.clone()
    }

    /// How much was given in this period is not carried, in QEMU either.
    fn save(&self, _: u64) -> VirtioDevice {
        VirtioDevice::Rng
    }

    fn load(&mut self, _from: &VirtioDevice, _ram: &GuestRam) -> Result<(), String> {
        self.wait = Wait::default();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::poll;
    use std::io::Write;

    #[test]
    fn what_a_regular_file_has_comes_through_a_pipe_that_holds_nobody() {
        let mut growing = tempfile::NamedTempFile::new().unwrap();
        let mut file = open_file(growing.path()).unwrap();
        let nothing = file.read(&mut [0; 8]).unwrap_err();
        assert_eq!(nothing.kind(), io::ErrorKind::WouldBlock);
        growing.write_all(b"entropy").unwrap();
        assert_eq!(poll(&mut [PollFd::new(&file, PollFlags::IN)], None).unwrap(), 1);
        let mut bytes = [0; 8];
        assert_eq!(file.read(&mut bytes).unwrap(), 7);
        assert_eq!(&bytes[..7], b"entropy");
    }

    #[test]
    fn the_thread_behind_the_pipe_ends_with_the_device() {
        let (reader, writer) = io::pipe().unwrap();
        assert!(!is_closed(&writer, Duration::ZERO));
        drop(reader);
        assert!(is_closed(&writer, Duration::from_secs(60)));
    }
}
