//! Faults of the source, in builds with feature `sabotage` only; see [`crate::sabotage`].

use std::ops::Range;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::error::Error;
use super::peer::Peer;
use super::source::Source;
use crate::memory::{GuestRam, PAGE_BYTES, PageSet};
use crate::migrate::guest::DirtyLog;
use crate::migrate::guest_error::GuestError;
use crate::pages::CHUNK_PAGES;
use crate::sabotage::{Fault, on};
use crate::stream::godwit::Frame;

/// One bit in so many is dropped.
const DROP_ONE_IN: u64 = 1000;

/// A dirty log with the fault that was chosen.
pub(super) struct FaultyLog {
    log: Box<dyn DirtyLog>,
    ram: GuestRam,
    state: Mutex<State>,
}

struct State {
    harvests: u64,
    bits: u64,
    /// To be cleared with the next harvest, when the pages have long been read.
    late: PageSet,
}

impl FaultyLog {
    pub(super) fn around(log: Box<dyn DirtyLog>, ram: &GuestRam) -> Box<dyn DirtyLog> {
        let late = PageSet::new(ram.main().pages());
        let state = Mutex::new(State { harvests: 0, bits: 0, late });
        Box::new(Self { log, ram: ram.clone(), state })
    }

    fn drop_bits(&self, state: &mut State, into: &mut PageSet) -> Result<(), GuestError> {
        let mut found = PageSet::new(into.bound());
        self.log.harvest(&mut found)?;
        let mut dropped = PageSet::new(into.bound());
        // The first harvest says that every page is dirty, which the first round knows by itself.
        if state.harvests > 1 {
            for page in found.iter() {
                state.bits += 1;
                if state.bits.is_multiple_of(DROP_ONE_IN) {
                    dropped.insert(page);
                }
            }
            found.subtract(&dropped);
            self.log.clear(&dropped, 0..into.bound())?;
        }
        into.union_with(&found);
        Ok(())
    }
}

impl DirtyLog for FaultyLog {
    fn harvest(&self, into: &mut PageSet) -> Result<(), GuestError> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.harvests += 1;
        if on(Fault::WriteAsVmm) || on(Fault::SkipVmmWrites) {
            // The last page: outside the working set, so that only the RAM hash can see it.
            let offset = self.ram.main().bytes() - PAGE_BYTES;
            let gpa = self.ram.main().gpa(offset).expect("an offset in the block");
            self.ram.write(gpa, &state.harvests.to_le_bytes()).expect("an address in RAM");
        }
        if on(Fault::SkipVmmWrites) {
            self.ram.take_vmm_dirty(&mut PageSet::new(into.bound()));
        }
        if on(Fault::DropDirtyBits) {
            return self.drop_bits(&mut state, into);
        }
        self.log.clear(&state.late, 0..into.bound())?;
        state.late.clear();
        self.log.harvest(into)
    }

    fn clear(&self, set: &PageSet, pages: Range<u64>) -> Result<(), GuestError> {
        if !on(Fault::ReadBeforeClear) {
            return self.log.clear(set, pages);
        }
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        set.iter().filter(|page| pages.contains(page)).for_each(|page| {
            state.late.insert(page);
        });
        Ok(())
    }
}

/// RAM as it was in the beginning, to be sent again when newer versions have been.
pub(super) struct Swap {
    old: Vec<u8>,
}

/// Old versions sent in a round.
const SENT_PAGES: usize = 64;
/// How much later the old version leaves: the channels are read side by side.
const LATER: Duration = Duration::from_millis(30);

impl Swap {
    pub(super) fn new(ram: &GuestRam) -> Result<Self, Error> {
        let mut old =
            vec![0; if on(Fault::SwapVersions) { ram.main().bytes() as usize } else { 0 }];
        read(ram, 0, &mut old)?;
        Ok(Self { old })
    }

    /// Behind the pages of a round: old versions of some of them, each on another channel than its
    /// own.
    pub(super) fn round(
        &mut self,
        source: &Source,
        peer: &mut Peer,
        pages: &PageSet,
    ) -> Result<(), Error> {
        if self.old.is_empty() || peer.channels.len() < 2 {
            return Ok(());
        }
        std::thread::sleep(LATER);
        let (channels, ram) = (peer.channels.len() as u64, source.guest.ram());
        let mut sent = 0;
        for page in pages.iter() {
            let old = &self.old[(page * PAGE_BYTES) as usize..][..PAGE_BYTES as usize];
            let mut new = [0; PAGE_BYTES as usize];
            read(ram, page * PAGE_BYTES, &mut new)?;
            if *old == new {
                continue;
            }
            let other = ((page / CHUNK_PAGES + 1) % channels) as usize;
            let mut out = Vec::new();
            Frame::Run { block: 0, offset: page * PAGE_BYTES, bytes: PAGE_BYTES }.write(&mut out);
            out.extend_from_slice(old);
            peer.channels[other].send_bytes(&source.progress.counters, true, &out)?;
            sent += 1;
            if sent == SENT_PAGES {
                break;
            }
        }
        Ok(())
    }
}

/// Bytes of the main block, which is small in tests: one region.
fn read(ram: &GuestRam, offset: u64, to: &mut [u8]) -> Result<(), Error> {
    let gpa = ram.main().gpa(offset).expect("an offset in the block");
    Ok(ram.read(gpa, to)?)
}
