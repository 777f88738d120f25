//! The invariant of live pages: whatever is written to the page meanwhile, the cached page is what
//! the receiver holds.
#![allow(unsafe_code)] // live memory is reached through pointers

use std::sync::atomic::{AtomicBool, AtomicU8, Ordering::Relaxed};
use std::time::{Duration, Instant};

use xbzrle::{Outcome, PAGE_SIZE, Path};

/// A page of guest memory. Its address is that of a page, so every path reads it by vectors.
#[repr(align(4096))]
struct Guest([AtomicU8; PAGE_SIZE]);

impl Guest {
    fn new() -> Self {
        Self([const { AtomicU8::new(0) }; PAGE_SIZE])
    }

    fn live(&self) -> *const u8 {
        self.0.as_ptr().cast()
    }
}

/// Writes to the page until `stop`: now a few bytes, now many, now a word over and over.
fn write_on(guest: &Guest, stop: &AtomicBool, seed: u32) {
    let mut x = seed;
    let mut random = || {
        x ^= x << 13;
        x ^= x >> 17;
        x ^= x << 5;
        x as usize
    };
    while !stop.load(Relaxed) {
        let (first, count, value) = (random() % PAGE_SIZE, random() % 300, random() as u8);
        let step = 1 + random() % 4;
        for byte in guest.0[first..PAGE_SIZE.min(first + count)].iter().step_by(step) {
            byte.store(value, Relaxed);
        }
    }
}

#[test]
fn the_cached_page_is_what_the_receiver_holds_while_the_page_is_written() {
    for path in Path::available() {
        let (guest, stop) = (Guest::new(), AtomicBool::new(false));
        let mut cached = [0; PAGE_SIZE];
        let mut received = [0; PAGE_SIZE];
        let mut seen = [0_u32; 3];
        std::thread::scope(|scope| {
            scope.spawn(|| write_on(&guest, &stop, 0x9e37_79b9));
            let end = Instant::now() + Duration::from_millis(400);
            while Instant::now() < end {
                let mut out = [0; PAGE_SIZE];
                // SAFETY: the page lives as long as this scope, and is written by atomic stores
                // only.
                match unsafe { path.encode_live(&mut cached, guest.live(), &mut out) } {
                    Outcome::Unchanged => seen[0] += 1,
                    Outcome::Delta(len) => {
                        seen[1] += 1;
                        path.decode(&out[..len], &mut received).unwrap();
                    }
                    Outcome::TooLong => {
                        seen[2] += 1;
                        received = cached;
                    }
                }
                if received != cached {
                    stop.store(true, Relaxed);
                    panic!("{path}: the receiver holds another page");
                }
            }
            stop.store(true, Relaxed);
        });
        assert!(seen[1] > 0, "{path}: no page came as a delta ({seen:?})");
        // SAFETY: the writer has ended.
        unsafe { path.encode_live(&mut cached, guest.live(), &mut [0; PAGE_SIZE]) };
        assert!(
            cached.iter().zip(&guest.0).all(|(a, b)| *a == b.load(Relaxed)),
            "{path}: a write was missed"
        );
    }
}

#[test]
fn an_unchanged_page_is_not_stored_to() {
    for path in Path::available() {
        let guest = Guest::new();
        // A page that cannot be written.
        let map = memmap2::MmapOptions::new()
            .len(PAGE_SIZE)
            .map_anon()
            .unwrap()
            .make_read_only()
            .unwrap();
        let cached = map.as_ptr().cast_mut().cast::<[u8; PAGE_SIZE]>();
        // SAFETY: nothing else has a reference to the page; that it is not written is what is
        // tested.
        let outcome = unsafe { path.encode_live(&mut *cached, guest.live(), &mut [0; PAGE_SIZE]) };
        assert_eq!(outcome, Outcome::Unchanged, "{path}");
    }
}

#[test]
fn a_page_at_any_address_is_encoded() {
    let memory: [u8; PAGE_SIZE + 64] = std::array::from_fn(|i| (i * i) as u8);
    for path in Path::available() {
        for skip in [1, 4, 8, 16, 32, 63] {
            let mut cached = [0; PAGE_SIZE];
            let page: &[u8; PAGE_SIZE] = memory[skip..].first_chunk().unwrap();
            // SAFETY: a page that nobody writes.
            unsafe { path.encode_live(&mut cached, page.as_ptr(), &mut [0; PAGE_SIZE]) };
            assert!(cached == *page, "{path} {skip}");
            let mut copy = [0; PAGE_SIZE];
            // SAFETY: a page that nobody writes.
            unsafe { path.copy_live(&mut copy, page.as_ptr()) };
            assert!(copy == *page, "{path} {skip}");
        }
    }
}
