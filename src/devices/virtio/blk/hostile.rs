//! Disks that anybody may drive by bytes alone, for the fuzz target `disk_queue`.

use super::options::Wanted;
use super::{Disk, Queue};
use crate::block::{Image, Overlay};
use crate::config::{self, ImageFormat, Memory, MemoryBackend, OnError};
use crate::devices::virtio::model::{Model, Next};
use crate::memory::GuestRam;
use rustix::fs::{MemfdFlags, memfd_create};
use std::fs::File;
use std::os::fd::AsRawFd;
use std::sync::Arc;

/// The guest's memory, all of which the bytes may fill; the rings of a queue lie at its beginning.
const RAM_BYTES: u64 = 256 << 10;
const DISK_BYTES: u64 = 1 << 20;
/// Entries of the queue, and where its parts are.
const SIZE: u16 = 16;
const AVAIL: u64 = 0x100;
const USED: u64 = 0x200;
/// More turns than the requests of a full queue take, however many pieces each is done in.
const TURNS: usize = 10_000;

/// A disk over a raw image, and one over a qcow2 image on it.
pub struct HostileDisks {
    ram: GuestRam,
    disks: [Disk; 2],
    _files: [File; 3],
}

fn memfd() -> std::io::Result<File> {
    // As one from outside: what this process opened for itself becomes no overlay.
    Ok(File::from(memfd_create(c"disk", MemfdFlags::empty())?))
}

impl HostileDisks {
    /// # Errors
    /// The host has no memory, files, threads or rings to give.
    pub fn new() -> Result<HostileDisks, String> {
        let memory = Memory {
            bytes: RAM_BYTES,
            block: "microvm.ram".into(),
            backend: MemoryBackend::Anonymous { share: false },
            prealloc: false,
            merge: false,
            dump: true,
        };
        let ram = GuestRam::new(&memory).map_err(|error| error.to_string())?;
        let files = [memfd(), memfd(), memfd()];
        let [raw, base, top] = files.map(|file| file.map_err(|error| error.to_string()));
        let files = [raw?, base?, top?];
        let path = |file: &File| format!("/proc/self/fd/{}", file.as_raw_fd()).into();
        let disk = |file: &File, over: Option<&File>| {
            file.set_len(DISK_BYTES).map_err(|error| error.to_string())?;
            let config = config::Image {
                name: "d".into(),
                path: path(file),
                format: ImageFormat::Raw,
                discard: true,
                ..config::Image::default()
            };
            let image = Image::open(0, &config).map_err(|error| error.to_string())?;
            image.claim("d", true, false).map_err(|error| error.to_string())?;
            image.take(false).map_err(|error| error.to_string())?;
            if let Some(over) = over {
                let overlay = Overlay { path: path(over), node: None, exists: false };
                image.lay_over(&overlay, &[]).map_err(|error| error.to_string())?;
            }
            // What failed is not kept for later.
            let report = Some(OnError::Report);
            let wanted =
                Wanted { on_write_error: report, on_read_error: report, ..Wanted::default() };
            Disk::new(&wanted, Arc::new(image), "/disk".into(), Arc::new(|_| {}))
        };
        let disks = [disk(&files[0], None)?, disk(&files[1], Some(&files[2]))?];
        Ok(HostileDisks { ram, disks, _files: files })
    }

    /// Serves the queue that `bytes` make: the first says which disk and which features, the others
    /// are the guest's memory from its beginning on. Everything under way has ended afterwards.
    ///
    /// # Panics
    /// Requests do not end, which is a defect.
    pub fn serve(&mut self, bytes: &[u8]) {
        let Some((how, memory)) = bytes.split_first() else { return };
        let memory = &memory[..memory.len().min(RAM_BYTES as usize)];
        let _ = self.ram.write(0, &vec![0; RAM_BYTES as usize]);
        let _ = self.ram.write(0, memory);
        let disk = &mut self.disks[usize::from(how & 1)];
        let mut queue = Queue::new(SIZE);
        (queue.desc, queue.avail, queue.used) = (0, AVAIL, USED);
        if queue.start(&self.ram, how & 2 != 0).is_err() {
            return;
        }
        let mut queues = [queue];
        let features = u64::from(how >> 2) << 6;
        for turn in 0.. {
            assert!(turn < TURNS, "requests do not end");
            match disk.serve(&self.ram, &mut queues, features) {
                Err(_) => {
                    disk.broken();
                    break;
                }
                Ok(Next::Wait) if disk.under_way.is_empty() => break,
                Ok(Next::Wait) => disk.wait(),
                Ok(_) => {}
            }
        }
        disk.reset();
        assert!(disk.under_way.is_empty());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A write of 512 bytes to sector `sector`, as a guest that means well asks for it.
    fn good(how: u8, sector: u8) -> Vec<u8> {
        let mut memory = vec![0; 0x1000];
        for (index, (gpa, bytes, flags)) in
            [(0x300u64, 16u32, 1u16), (0x400, 512, 1), (0x380, 1, 2)].into_iter().enumerate()
        {
            let entry = &mut memory[16 * index..][..16];
            entry[..8].copy_from_slice(&gpa.to_le_bytes());
            entry[8..12].copy_from_slice(&bytes.to_le_bytes());
            entry[12..14].copy_from_slice(&flags.to_le_bytes());
            entry[14..].copy_from_slice(&(index as u16 + 1).to_le_bytes());
        }
        memory[AVAIL as usize + 2] = 1;
        (memory[0x300], memory[0x308], memory[0x380]) = (1, sector, 0xff);
        memory[0x400..0x600].fill(7);
        memory.insert(0, how);
        memory
    }

    #[test]
    fn what_is_meant_well_is_done_and_the_rest_ends() {
        let mut disks = HostileDisks::new().unwrap();
        for how in [0, 1, 2, 3] {
            disks.serve(&good(how, how));
            let mut status = [0xff];
            disks.ram.read(0x380, &mut status).unwrap();
            assert_eq!(status, [0], "{how}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]
        #[test]
        fn rings_that_lie_end(
            how in any::<u8>(),
            changes in prop::collection::vec((0usize..0x400, any::<u8>()), 0..24),
        ) {
            let mut disks = HostileDisks::new().unwrap();
            let mut bytes = good(how, 1);
            for (at, byte) in changes {
                bytes[1 + at] = byte;
            }
            disks.serve(&bytes);
        }
    }
}
