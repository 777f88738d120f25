//! Address decoding: which device answers at a port or at a guest physical address.

use std::ops::Range;
use std::sync::Arc;

/// What answers in a window of a bus. vCPUs call at the same time; a device has its own lock.
pub trait Device: Send + Sync {
    /// Fills `data` from `offset` bytes into the window.
    fn read(&self, offset: u64, data: &mut [u8]);

    /// Takes `data` at `offset`.
    fn write(&self, offset: u64, data: &[u8]);

    /// Takes a burst: `data` in pieces of `size` bytes, one after the other at the same `offset`
    /// (REP OUTS).
    fn write_burst(&self, offset: u64, size: usize, data: &[u8]) {
        for piece in data.chunks_exact(size) {
            self.write(offset, piece);
        }
    }
}

/// Windows that do not overlap, in ascending order. Where nobody answers, reads float to all ones
/// and writes are lost.
#[derive(Default)]
pub struct Bus {
    windows: Vec<(Range<u64>, Arc<dyn Device>)>,
}

impl Bus {
    /// Puts `device` at `start`.
    ///
    /// # Panics
    /// If the window overlaps another one: the machine's map is wrong.
    pub fn insert(&mut self, start: u64, bytes: u64, device: Arc<dyn Device>) {
        let window = start..start + bytes;
        let at = self.windows.partition_point(|(w, _)| w.start < start);
        let free = |w: Option<&(Range<u64>, _)>| {
            w.is_none_or(|(w, _)| w.end <= start || w.start >= window.end)
        };
        assert!(
            free(self.windows.get(at)) && (at == 0 || free(self.windows.get(at - 1))),
            "{window:#x?} is taken"
        );
        self.windows.insert(at, (window, device));
    }

    /// Fills `data`, in pieces of `size` bytes (REP INS reads the same address again and again).
    pub fn read(&self, address: u64, size: usize, data: &mut [u8]) {
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
    pub fn write(&self, address: u64, size: usize, data: &[u8]) {
        if let Some((offset, device)) = self.find(address) {
            device.write_burst(offset, size.max(1), data);
        }
    }

    fn find(&self, address: u64) -> Option<(u64, &dyn Device)> {
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

    impl Device for Recorder {
        fn read(&self, offset: u64, data: &mut [u8]) {
            data.fill(offset as u8);
        }
        fn write(&self, offset: u64, data: &[u8]) {
            self.0.lock().unwrap().push((offset, data.to_vec()));
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
    #[should_panic(expected = "is taken")]
    fn two_devices_cannot_share_an_address() {
        let mut bus = Bus::default();
        bus.insert(0x3f8, 8, Arc::new(Recorder::default()));
        bus.insert(0x3ff, 1, Arc::new(Recorder::default()));
    }
}
