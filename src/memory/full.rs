//! What happens when the host has no page for guest memory: the file system or the huge pages
//! behind it are full, its file was cut short, or the page broke. Whoever in this process touches
//! such a page gets SIGBUS. (A vCPU gets an exit instead, see `machine::board`.)
//!
//! Readers do not come here: they ask where the holes are and leave them alone, and asking fails
//! where a file lost its end. What is left is a write of this process to a hole (a device's DMA, a
//! kernel being loaded, a page of a guest that arrives), and memory that goes away between the
//! question and the read. Then the signal's handler puts a page of zeros of this process's own in
//! the missing one's place, so that the access ends and nobody dies of it, and counts one more loss
//! of the block. Who read or wrote looks at the count afterwards ([`Watched::count`]) and fails if it
//! has moved; vCPUs look at it when they leave the guest, and the machine stops, because what was
//! lost may have been data. That costs nothing where pages are read, by any thread and in any code,
//! and needs no jump out of the code that was interrupted.
//!
//! Unsafe because a signal handler may only make plain system calls, and maps memory.
#![allow(unsafe_code)]

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use vmm_sys_util::signal::register_signal_handler;

const WORDS: &[u8] =
    b"godwit: memory of this process is gone (SIGBUS): a file that it has mapped was cut short, or the \
host's memory is full or broken\n";

/// Mappings that are watched at once: a machine has two.
const PLACES: usize = 64;

static TABLE: [Place; PLACES] = [const { Place::free() }; PLACES];

/// A mapping of guest memory, as the handler finds it. Its owner sets it up before the memory is
/// used, and takes it away after.
struct Place {
    taken: AtomicBool,
    /// Address of the first byte; 0: there is no mapping.
    start: AtomicUsize,
    bytes: AtomicUsize,
    page_bytes: AtomicUsize,
    losses: AtomicU64,
    /// Where in the block the last page was lost.
    offset: AtomicU64,
}

impl Place {
    const fn free() -> Place {
        Place {
            taken: AtomicBool::new(false),
            start: AtomicUsize::new(0),
            bytes: AtomicUsize::new(0),
            page_bytes: AtomicUsize::new(0),
            losses: AtomicU64::new(0),
            offset: AtomicU64::new(0),
        }
    }
}

/// A mapping whose losses are survived and counted, until this is dropped.
#[derive(Debug)]
pub(crate) struct Watched(Option<usize>);

impl Watched {
    /// Watches the mapping at `range` (addresses), of pages of `page_bytes`. Where too many are
    /// watched already, SIGBUS there ends the process as anywhere else.
    pub(crate) fn new(range: Range<usize>, page_bytes: usize) -> Watched {
        let free = |place: &&Place| !place.taken.swap(true, Ordering::AcqRel);
        let index = TABLE.iter().position(|place| free(&place));
        if let Some(place) = index.map(|index| &TABLE[index]) {
            place.bytes.store(range.end - range.start, Ordering::Relaxed);
            place.page_bytes.store(page_bytes, Ordering::Relaxed);
            place.losses.store(0, Ordering::Relaxed);
            place.start.store(range.start, Ordering::Release);
        }
        Watched(index)
    }

    pub(crate) fn nothing() -> Watched {
        Watched(None)
    }

    /// Pages lost so far.
    pub(crate) fn count(&self) -> u64 {
        self.0.map_or(0, |index| TABLE[index].losses.load(Ordering::Acquire))
    }

    /// What lies there is not what it was: a loss that no access has met.
    pub(crate) fn lose(&self) {
        if let Some(index) = self.0 {
            TABLE[index].losses.fetch_add(1, Ordering::Release);
        }
    }

    /// Where in the mapping the last one was.
    pub(crate) fn offset(&self) -> u64 {
        self.0.map_or(0, |index| TABLE[index].offset.load(Ordering::Relaxed))
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        if let Some(place) = self.0.map(|index| &TABLE[index]) {
            place.start.store(0, Ordering::Release);
            place.taken.store(false, Ordering::Release);
        }
    }
}

/// From now on SIGBUS in guest memory is survived and counted. Elsewhere it ends the process with a
/// reason on stderr and exit status 1.
pub(crate) fn survive_missing_pages() -> std::io::Result<()> {
    register_signal_handler(libc::SIGBUS, on_bus_error).map_err(Into::into)
}

extern "C" fn on_bus_error(_: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the kernel hands the handler a valid siginfo; for SIGBUS it holds an address.
    let address = unsafe { (*info).si_addr() } as usize;
    if !TABLE.iter().any(|place| replace(place, address)) {
        // SAFETY: write and _exit are async-signal-safe, and the bytes are static.
        unsafe {
            libc::write(libc::STDERR_FILENO, WORDS.as_ptr().cast(), WORDS.len());
            libc::_exit(1);
        }
    }
}

/// Puts a page of zeros at `address`, if it lies in `place`.
fn replace(place: &Place, address: usize) -> bool {
    let start = place.start.load(Ordering::Acquire);
    let inside = start != 0 && address.wrapping_sub(start) < place.bytes.load(Ordering::Relaxed);
    if !inside {
        return false;
    }
    let page_bytes = place.page_bytes.load(Ordering::Relaxed);
    let page = address - address % page_bytes;
    let prot = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
    // SAFETY: the page lies in a mapping of guest memory, which is there as long as the thread that
    // was interrupted uses it, and whose bytes may change at any time; mmap is a plain system call,
    // and the code that was interrupted gets its errno back.
    let mapped = unsafe {
        let errno = *libc::__errno_location();
        let mapped = libc::mmap(page as *mut libc::c_void, page_bytes, prot, flags, -1, 0);
        *libc::__errno_location() = errno;
        mapped
    };
    if mapped == libc::MAP_FAILED {
        return false;
    }
    place.offset.store((page - start) as u64, Ordering::Relaxed);
    place.losses.fetch_add(1, Ordering::Release);
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Memory, MemoryBackend};
    use crate::memory::{Error, GuestRam};

    #[test]
    fn an_access_to_memory_that_went_away_is_an_error_and_not_the_end() {
        survive_missing_pages().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ram");
        let backend = MemoryBackend::File {
            path: path.clone(),
            share: true,
            offset: 0,
            readonly: false,
            discard_at_exit: false,
        };
        let block = "ram".into();
        let memory =
            Memory { bytes: 4 << 20, block, backend, prealloc: false, merge: false, dump: true };
        let ram = GuestRam::new(&memory).unwrap();
        ram.write(3 << 20, &[5; 8192]).unwrap();
        std::fs::File::options().write(true).open(&path).unwrap().set_len(1 << 20).unwrap();
        let gone = |result: Result<(), Error>| {
            let error = result.unwrap_err();
            assert!(matches!(error, Error::CutShort { left: 0x10_0000, .. }), "{error}");
        };
        let mut bytes = [1; 8192];
        gone(ram.main().first_data(2 << 20..4 << 20).map(drop));
        gone(crate::pages::read(&ram, 3 << 20, &mut bytes));
        assert_eq!(ram.main().losses(), 0, "who asks first touches nothing");
        gone(ram.read(3 << 20, &mut bytes));
        assert_eq!((ram.main().losses(), bytes), (2, [0; 8192]));
        gone(ram.write(2 << 20, &[7]));
        // The page is this process's own now, and no hole.
        ram.read(2 << 20, &mut bytes[..1]).unwrap();
        assert_eq!(bytes[0], 7);
    }
}
