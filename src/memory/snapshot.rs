//! Guest RAM as it was at one moment, while the guest goes on writing.
//!
//! ```text
//!            prepare                        fix                          read, release …            drop
//! guest runs ───────► protected, page by ──────► all protected: the image ─────────────► unprotected ─────► over
//!            (runs on) page opened as hit  (stands) is what is in memory   (runs on)
//! ```
//!
//! RAM is write-protected by userfaultfd. Whoever hits a page sleeps until its old bytes are copied
//! into a pool; then the page is open. The reader takes a page's bytes from memory while it is
//! protected, from the pool if it was hit; what it has read it releases, and writes to it cost
//! nothing more.
//!
//! Protecting takes 20 ms per GiB of touched memory, so it is done while the guest runs. What the
//! guest writes in that time is opened again and noted, and only that is protected anew while the
//! guest stands still.
//!
//! **Reading a page that somebody is about to write.** The fault thread copies the page, marks it
//! kept, and opens it, in this order. The reader reads the page first and looks at the mark
//! afterwards: if there is none, the page was not open while it was read; if there is one, the copy
//! is right and what was read is thrown away.
//!
//! **The pool is bounded** ([`POOL_BYTES`]). When it is full, who hits one more page waits until
//! the reader has released a kept one; the fault thread itself never waits, and what is released
//! meanwhile is opened at once. The reader asks [`Snapshot::urgent`] what to read next, so that it
//! empties the pool instead of visiting pages in order. A page of zeros needs no place in the pool.
//! Whoever stops or resets the guest does not wait for a reader: the image is given up instead, see
//! [`GuestRam::not_kept_waiting`].
//!
//! **Who may wait for whom.** A thread that sleeps in a fault, or in [`BeforeWrite::before_write`],
//! may hold any lock of the machine. So the fault thread takes one lock only, [`Shared::state`],
//! which nobody holds while writing guest memory; and the reader's threads do not write guest
//! memory and take no lock of the machine while the snapshot lives.

use std::collections::HashMap;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::sync::atomic::{Ordering, fence};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::JoinHandle;

use memmap2::MmapMut;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::error::Error;
use super::pages::{PAGE_BYTES, PageSet};
use super::ram::GuestRam;
use super::uffd::{Uffd, Unavailable};
use super::watch::BeforeWrite;

const PAGE: usize = PAGE_BYTES as usize;
/// Memory for pages that are written before they were read.
pub const POOL_BYTES: usize = 32 << 20;
const SLOTS: usize = POOL_BYTES / PAGE;
/// Pages that [`Snapshot::urgent`] gives at once: a word of a [`PageSet`].
const UNIT_PAGES: u64 = 64;
/// Protected in pieces, so that a fault waits for one piece at most.
const PIECE_BYTES: u64 = 16 << 20;
/// Runs of opened pages this close are protected anew in one call: a call costs as much as so many
/// pages.
const GAP_PAGES: u64 = 64;

/// The image of a guest's main block. Ends all protection when it is dropped.
pub struct Snapshot {
    shared: Arc<Shared>,
    faults: Option<JoinHandle<()>>,
}

struct Shared {
    /// Before `ram`, so that it ends while the memory is mapped.
    uffd: Uffd,
    ram: GuestRam,
    /// Makes the fault thread look again: there is room, or all is over.
    wake: EventFd,
    state: Mutex<State>,
    /// There is room in the pool.
    room: Condvar,
    /// Of the block, before anything was read of it.
    losses: u64,
    on_loss: OnceLock<Box<dyn Fn() + Send + Sync>>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// The guest runs and the image is not fixed: pages are opened and noted.
    Preparing,
    Fixed,
    Over,
}

struct State {
    phase: Phase,
    /// Opened while preparing.
    opened: PageSet,
    /// Fixed and written since: the old bytes are in the pool, or were zeros.
    kept: PageSet,
    /// Read, and open.
    released: PageSet,
    pool: Pool,
    /// Hit while the pool was full.
    waiting: Vec<u64>,
    /// Writes of this process that wait for room.
    writers: usize,
    /// A page was opened that could not be kept.
    lost: Option<Lost>,
}

#[derive(Clone, Copy)]
enum Lost {
    Broken,
    GaveWay,
}

impl Lost {
    fn error(self) -> Error {
        match self {
            Lost::Broken => Error::SnapshotLost,
            Lost::GaveWay => Error::SnapshotGaveWay,
        }
    }
}

/// Old bytes of pages.
struct Pool {
    memory: MmapMut,
    /// Page to slot; a kept page that is not here was zeros.
    slots: HashMap<u64, u32>,
    free: Vec<u32>,
    /// How many slots the pages of each unit have.
    units: Vec<u8>,
}

enum Kept {
    Yes,
    NoRoom,
}

impl Snapshot {
    /// Protects the main block of `ram` while the guest runs. The image is fixed by
    /// [`Snapshot::fix`].
    pub fn prepare(ram: &GuestRam) -> Result<Snapshot, Unavailable> {
        let block = ram.main();
        if block.page_bytes() != PAGE_BYTES {
            return Err(Unavailable::HugePages);
        }
        let losses = block.losses();
        let uffd = ram.watch_main()?;
        let pages = block.pages();
        let pool = Pool::new(pages).map_err(Unavailable::Protect)?;
        let state = State {
            phase: Phase::Preparing,
            opened: PageSet::new(pages),
            kept: PageSet::new(pages),
            released: PageSet::new(pages),
            pool,
            waiting: Vec::new(),
            writers: 0,
            lost: None,
        };
        let shared = Arc::new(Shared {
            uffd,
            ram: ram.clone(),
            wake: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(Unavailable::Protect)?,
            state: Mutex::new(state),
            room: Condvar::new(),
            losses,
            on_loss: OnceLock::new(),
        });
        let faults = {
            let shared = shared.clone();
            std::thread::Builder::new()
                .name("snapshot-faults".into())
                .spawn(move || shared.answer_faults())
        };
        let snapshot = Snapshot { faults: Some(faults.map_err(Unavailable::Thread)?), shared };
        snapshot.shared.ram.set_watch(Some(snapshot.shared.clone()));
        let bytes = snapshot.shared.ram.main().bytes();
        for start in (0..bytes).step_by(PIECE_BYTES as usize) {
            let piece = start..bytes.min(start + PIECE_BYTES);
            snapshot.shared.uffd.protect(piece, true).map_err(Unavailable::Protect)?;
        }
        Ok(snapshot)
    }

    /// Fixes the image. The guest stands still, and no DMA into its memory is on its way.
    pub fn fix(&self) -> Result<(), Unavailable> {
        let shared = &self.shared;
        // Whoever is writing in this process is let finish: the watch changes hands between writes
        // only.
        shared.ram.set_watch(Some(shared.clone()));
        let mut state = shared.state();
        let opened = std::mem::take(&mut state.opened);
        for pages in near(opened.ranges()) {
            let bytes = pages.start * PAGE_BYTES..pages.end * PAGE_BYTES;
            shared.uffd.protect(bytes, true).map_err(Unavailable::Protect)?;
        }
        state.phase = Phase::Fixed;
        Ok(())
    }

    /// The pages of the image that are not known to be zeros: what is no hole now, and what was kept,
    /// for a page that was discarded since the moment is a hole. Nothing was released.
    pub(crate) fn data_pages(&self) -> Result<PageSet, Error> {
        let mut data = self.shared.ram.main().data_pages()?;
        // Afterwards: who discards a page keeps it first, so that one that was found to be a hole is
        // among these.
        data.union_with(&self.shared.state().kept);
        Ok(data)
    }

    /// `told` is called when the image is given up because somebody cannot wait any longer: nothing
    /// that is read afterwards is any good. Only the first call counts.
    pub(crate) fn on_loss(&self, told: impl Fn() + Send + Sync + 'static) {
        let _ = self.shared.on_loss.set(Box::new(told));
    }

    /// Fills `out` from `offset` of the block with the image's bytes. Nothing of the range was
    /// released.
    pub fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), Error> {
        self.shared.ram.read_main(offset, out)?;
        // Pairs with the fault thread's lock and ioctl: a write that was seen came after the mark.
        fence(Ordering::SeqCst);
        let state = self.shared.state();
        if let Some(lost) = state.lost {
            return Err(lost.error());
        }
        let mut at = 0;
        while at < out.len() {
            let (page, within) = ((offset + at as u64) / PAGE_BYTES, (offset as usize + at) % PAGE);
            let part = (PAGE - within).min(out.len() - at);
            if state.kept.contains(page) {
                state.pool.get(page, within, &mut out[at..at + part]);
            }
            at += part;
        }
        Ok(())
    }

    /// Fails if what was read so far need not be the guest's memory of the moment: pages of it were lost
    /// meanwhile, or somebody wrote to the file that lies over it. Asked once all is read.
    pub(crate) fn check(&self) -> Result<(), Error> {
        if let Some(lost) = self.shared.state().lost {
            return Err(lost.error());
        }
        self.shared.ram.main().check_still_whole(self.shared.losses)
    }

    /// Gives up the image of all pages that `bytes` touches: they were read, or are not wanted.
    pub fn release(&self, bytes: Range<u64>) {
        let shared = &self.shared;
        let pages =
            bytes.start / PAGE_BYTES..bytes.end.div_ceil(PAGE_BYTES).min(shared.ram.main().pages());
        if pages.is_empty() {
            return;
        }
        let mut state = shared.state();
        state.released.insert_range(pages.clone());
        let mut at = pages.start;
        while let Some(page) = state.kept.next(at).filter(|page| *page < pages.end) {
            state.pool.remove(page);
            at = page + 1;
        }
        state.kept.remove_range(pages.clone());
        let somebody_waits = !state.waiting.is_empty();
        drop(state);
        shared.open(pages);
        shared.room.notify_all();
        if somebody_waits {
            shared.look_again();
        }
    }

    /// What should be read next because the pool fills up: bytes of the block, whole pages. `None`:
    /// anything.
    pub fn urgent(&self) -> Option<Range<u64>> {
        let state = self.shared.state();
        if state.waiting.is_empty() && state.pool.free.len() >= SLOTS / 2 {
            return None;
        }
        let counts = state.pool.units.iter().zip(0u64..);
        let (_, unit) = counts.max_by_key(|(count, _)| **count).filter(|(count, _)| **count > 0)?;
        let end = ((unit + 1) * UNIT_PAGES).min(self.shared.ram.main().pages());
        Some(unit * UNIT_PAGES * PAGE_BYTES..end * PAGE_BYTES)
    }
}

impl Drop for Snapshot {
    fn drop(&mut self) {
        let shared = &self.shared;
        shared.state().phase = Phase::Over;
        // Whoever waits for room goes on, and the fault thread opens every page; only then can the
        // watch be taken away.
        shared.room.notify_all();
        shared.look_again();
        shared.ram.set_watch(None);
        if let Some(faults) = self.faults.take() {
            // It panics on nothing; if it did, the protection ends below all the same.
            let _ = faults.join();
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The fault thread.
    fn answer_faults(&self) {
        let mut hit = Vec::new();
        loop {
            if let Err(error) = self.uffd.wait(self.wake.as_raw_fd(), &mut hit) {
                // Nobody may sleep for ever: without answers there is no image, but a guest.
                tracing::error!("write faults of a snapshot cannot be read: {error}");
                let mut state = self.state();
                (state.lost, state.phase) = (Some(Lost::Broken), Phase::Over);
                drop(state);
                self.room.notify_all();
                self.open(0..self.ram.main().pages());
                return;
            }
            let _ = self.wake.read();
            let mut state = self.state();
            if state.phase == Phase::Over {
                drop(state);
                self.open(0..self.ram.main().pages());
                return;
            }
            let again = std::mem::take(&mut state.waiting);
            drop(state);
            for page in again.into_iter().chain(hit.drain(..).map(|offset| offset / PAGE_BYTES)) {
                let mut state = self.state();
                if state.may_open(page, &self.ram) {
                    self.open_asked(page, state);
                } else {
                    state.waiting.push(page);
                }
            }
        }
    }

    fn look_again(&self) {
        // A full counter has woken it already.
        let _ = self.wake.write(1);
    }

    /// Opens a page of which [`State::may_open`] was true.
    fn open_asked(&self, page: u64, state: MutexGuard<'_, State>) {
        // Under the lock: `fix` must not protect the page between the note and this.
        let fix_waits = (state.phase == Phase::Preparing).then_some(state);
        self.open(page..page + 1);
        drop(fix_waits);
    }

    fn open(&self, pages: Range<u64>) {
        let bytes = pages.start * PAGE_BYTES..pages.end * PAGE_BYTES;
        if let Err(error) = self.uffd.protect(bytes, false) {
            tracing::error!("a page of guest RAM stays write-protected: {error}");
        }
    }
}

impl BeforeWrite for Shared {
    fn before_write(&self, range: Range<u64>) {
        for page in range.start / PAGE_BYTES..range.end.div_ceil(PAGE_BYTES) {
            let mut state = self.state();
            while !state.may_open(page, &self.ram) {
                state.writers += 1;
                state = self.room.wait(state).unwrap_or_else(PoisonError::into_inner);
                state.writers -= 1;
            }
            self.open_asked(page, state);
        }
    }

    fn keeps_waiting(&self) -> bool {
        self.state().phase == Phase::Fixed
    }

    fn give_way(&self) {
        let mut state = self.state();
        let somebody_waits = state.writers > 0 || !state.waiting.is_empty();
        if state.phase != Phase::Fixed || !somebody_waits {
            return;
        }
        (state.lost, state.phase) = (Some(Lost::GaveWay), Phase::Over);
        drop(state);
        self.room.notify_all();
        // The fault thread opens every page.
        self.look_again();
        if let Some(told) = self.on_loss.get() {
            told();
        }
    }
}

impl State {
    /// Keeps the page's old bytes if they are wanted. False: there is no room for them now.
    fn may_open(&mut self, page: u64, ram: &GuestRam) -> bool {
        match self.phase {
            Phase::Preparing => {
                self.opened.insert(page);
                true
            }
            Phase::Over => true,
            Phase::Fixed => {
                let nothing_to_keep = self.released.contains(page) || self.kept.contains(page);
                if nothing_to_keep {
                    return true;
                }
                match self.pool.keep(page, ram) {
                    Ok(Kept::Yes) => {
                        self.kept.insert(page);
                        true
                    }
                    Ok(Kept::NoRoom) => false,
                    Err(error) => {
                        tracing::error!("page {page} of guest RAM cannot be read: {error}");
                        self.lost = Some(Lost::Broken);
                        true
                    }
                }
            }
        }
    }
}

impl Pool {
    fn new(pages: u64) -> std::io::Result<Pool> {
        Ok(Pool {
            memory: MmapMut::map_anon(POOL_BYTES)?,
            slots: HashMap::with_capacity(SLOTS),
            // The lowest first: memory that was never needed is never touched.
            free: (0..SLOTS as u32).rev().collect(),
            units: vec![0; pages.div_ceil(UNIT_PAGES) as usize],
        })
    }

    /// Copies the page's bytes.
    fn keep(&mut self, page: u64, ram: &GuestRam) -> Result<Kept, Error> {
        let Some(&slot) = self.free.last() else { return Ok(Kept::NoRoom) };
        let bytes = &mut self.memory[slot as usize * PAGE..][..PAGE];
        ram.read_main(page * PAGE_BYTES, bytes)?;
        if !xbzrle::is_zero(bytes) {
            self.free.pop();
            self.slots.insert(page, slot);
            self.units[(page / UNIT_PAGES) as usize] += 1;
        }
        Ok(Kept::Yes)
    }

    fn get(&self, page: u64, within: usize, out: &mut [u8]) {
        match self.slots.get(&page) {
            Some(&slot) => {
                let at = slot as usize * PAGE + within;
                out.copy_from_slice(&self.memory[at..at + out.len()]);
            }
            None => out.fill(0),
        }
    }

    fn remove(&mut self, page: u64) {
        if let Some(slot) = self.slots.remove(&page) {
            self.free.push(slot);
            self.units[(page / UNIT_PAGES) as usize] -= 1;
        }
    }
}

/// Joins ranges with small gaps between them.
fn near(ranges: impl Iterator<Item = Range<u64>>) -> Vec<Range<u64>> {
    let mut joined: Vec<Range<u64>> = Vec::new();
    for range in ranges {
        match joined.last_mut() {
            Some(last) if range.start - last.end <= GAP_PAGES => last.end = range.end,
            _ => joined.push(range),
        }
    }
    joined
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Memory, MemoryBackend};
    use crate::memory::with_backend;
    use std::fs::File;
    use std::os::unix::fs::FileExt;
    use std::sync::atomic::AtomicBool;

    /// Bit 57 of the page map (Documentation/admin-guide/mm/pagemap.rst).
    fn is_protected(ram: &GuestRam, page: u64) -> bool {
        let mut entry = [0; 8];
        let at = (ram.main().host() as u64 / PAGE_BYTES + page) * 8;
        File::open("/proc/self/pagemap").unwrap().read_exact_at(&mut entry, at).unwrap();
        entry[7] & 2 != 0
    }

    #[test]
    fn what_is_discarded_after_the_moment_is_in_the_image_with_userfaultfd() {
        let memfd = MemoryBackend::Memfd { share: true, seal: false, huge_pages: None };
        for backend in [memfd, MemoryBackend::Anonymous { share: false }] {
            let ram = with_backend(8 << 20, backend.clone()).unwrap();
            ram.main().small_pages();
            ram.write(5 * PAGE_BYTES, &[7; 3 * PAGE]).unwrap();
            let snapshot = Snapshot::prepare(&ram).unwrap();
            // Before the moment: zeros are what the guest had then.
            ram.discard(7 * PAGE_BYTES..8 * PAGE_BYTES).unwrap();
            snapshot.fix().unwrap();
            ram.discard(5 * PAGE_BYTES..6 * PAGE_BYTES).unwrap();
            assert!(ram.main().is_hole(5).unwrap(), "{backend:?}");
            let data = snapshot.data_pages().unwrap();
            assert!(data.contains(5) && data.contains(6), "{backend:?}");
            let mut bytes = [1; 3 * PAGE];
            snapshot.read(5 * PAGE_BYTES, &mut bytes).unwrap();
            let image = [[7; PAGE], [7; PAGE], [0; PAGE]].concat();
            assert!(bytes[..] == image[..], "{backend:?}");
        }
    }

    #[test]
    fn a_writer_while_the_image_is_fixed_opens_no_page_that_is_not_kept_with_userfaultfd() {
        const ROUNDS: usize = 300;
        let backend = MemoryBackend::Memfd { share: true, seal: false, huge_pages: None };
        let bytes = 8 * PAGE_BYTES;
        let config = Memory {
            bytes,
            block: "ram".into(),
            backend,
            prealloc: true,
            merge: false,
            dump: true,
        };
        let ram = GuestRam::new(&config).unwrap();
        for round in 0..ROUNDS {
            let snapshot = Snapshot::prepare(&ram).unwrap();
            let (began, over) = (AtomicBool::new(false), AtomicBool::new(false));
            std::thread::scope(|threads| {
                threads.spawn(|| {
                    while !over.load(Ordering::Relaxed) {
                        snapshot.shared.before_write(0..bytes);
                        began.store(true, Ordering::Relaxed);
                    }
                });
                while !began.load(Ordering::Relaxed) {
                    std::thread::yield_now();
                }
                snapshot.fix().unwrap();
                over.store(true, Ordering::Relaxed);
            });
            let state = snapshot.shared.state();
            let lost: Vec<_> = (0..8)
                .filter(|page| !state.kept.contains(*page) && !is_protected(&ram, *page))
                .collect();
            assert!(lost.is_empty(), "round {round}: pages {lost:?}");
        }
    }
}
