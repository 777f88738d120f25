//! Address decoding: which device answers at a port or at a guest physical address.

use super::device::DeviceRequest;
use std::ops::Range;
use std::sync::Arc;

/// What answers in a window of a bus. vCPUs call at the same time; a device has its own lock.
pub(crate) trait Window: Send + Sync {
    /// Fills `data` from `offset` bytes into the window.
    fn read(&self, offset: u64, data: &mut [u8]);

    /// Takes `data` at `offset`; says what the machine is asked for by it, if anything.
    fn write(&self, offset: u64, data: &[u8]) -> Option<DeviceRequest>;

    /// Takes a burst: `data` in pieces of `size` bytes, one after the other at the same `offset`
    /// (REP OUTS), as far as nothing is asked of the machine.
    fn write_burst(&self, offset: u64, size: usize, data: &[u8]) -> Option<DeviceRequest> {
        data.chunks_exact(size).find_map(|piece| self.write(offset, piece))
    }
}

/// Windows that do not overlap, in ascending order. Where nobody answers, reads float to all ones
/// and writes are lost.
#[derive(Default)]
pub(crate) struct Bus {
    windows: Vec<(Range<u64>, Arc<dyn Window>)>,
}

impl Bus {
    /// Puts `device` at `start`; false if somebody is there already, or the window goes past the end.
    pub(crate) fn insert(&mut self, start: u64, bytes: u64, device: Arc<dyn Window>) -> bool {
        let Some(end) = start.checked_add(bytes) else { return false };
        let at = self.windows.partition_point(|(w, _)| w.start < start);
        let free =
            |w: Option<&(Range<u64>, _)>| w.is_none_or(|(w, _)| w.end <= start || w.start >= end);
        let before = at.checked_sub(1).and_then(|at| self.windows.get(at));
        let fits = free(self.windows.get(at)) && free(before);
        if fits {
            self.windows.insert(at, (start..end, device));
        }
        fits
    }

    /// Fills `data`, in pieces of `size` bytes (REP INS reads the same address again and again).
    pub(crate) fn read(&self, address: u64, size: usize, data: &mut [u8]) {
        match self.find(address) {
            Some((offset, device)) => {
                for piece in data.chunks_mut(size.max(1)) {
                    device.read(offset, piece);
                }
            }
            None => data.fill(0xff),
        }
    }

    /// Hands `data` to whoever answers, in pieces of `size` bytes.
    pub(crate) fn write(&self, address: u64, size: usize, data: &[u8]) -> Option<DeviceRequest> {
        let (offset, device) = self.find(address)?;
        device.write_burst(offset, size.max(1), data)
    }

    fn find(&self, address: u64) -> Option<(u64, &dyn Window)> {
        let at = self.windows.partition_point(|(w, _)| w.end <= address);
        let (window, device) = self.windows.get(at)?;
        window.contains(&address).then(|| (address - window.start, &**device))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    #[derive(Default)]
    struct Recorder(Mutex<Vec<(u64, Vec<u8>)>>);

    impl Window for Recorder {
        fn read(&self, offset: u64, data: &mut [u8]) {
            data.fill(offset as u8);
        }
        fn write(&self, offset: u64, data: &[u8]) -> Option<DeviceRequest> {
            self.0.lock().unwrap().push((offset, data.to_vec()));
            None
        }
    }

    #[test]
    fn accesses_reach_the_window_they_fall_into() {
        let (a, b) = (Arc::new(Recorder::default()), Arc::new(Recorder::default()));
        let mut bus = Bus::default();
        bus.insert(0x510, 12, b.clone());
        bus.insert(0x3f8, 8, a.clone());
        bus.write(0x3f8, 1, b"xy");
        bus.write(0x51b, 1, b"z");
        bus.write(0x51c, 1, b"lost");
        assert_eq!(*a.0.lock().unwrap(), [(0, b"x".to_vec()), (0, b"y".to_vec())]);
        assert_eq!(*b.0.lock().unwrap(), [(11, b"z".to_vec())]);
        let mut data = [0; 4];
        bus.read(0x3fb, 2, &mut data);
        assert_eq!(data, [3; 4]);
        bus.read(0x64, 1, &mut data);
        assert_eq!(data, [0xff; 4]);
    }

    #[test]
    fn two_devices_cannot_share_an_address() {
        let mut bus = Bus::default();
        let mut insert = |start, bytes| bus.insert(start, bytes, Arc::new(Recorder::default()));
        assert!(insert(0x3f8, 8) && !insert(0x3ff, 1) && !insert(0x3f0, 9) && !insert(0, 0x1000));
        assert!(insert(0x3f0, 8) && insert(0x400, 1) && !insert(u64::MAX, 2));
    }
}
