//! A guest that is a thread writing memory, for tests of whole migrations in one process.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use super::guest::{DirtyLog, Loader, Migratable, State};
use super::guest_error::GuestError;
use crate::config::{Memory, MemoryBackend};
use crate::kvm::state::ForeignTsc;
use crate::machine::RunState;
use crate::memory::{GuestRam, Hints, PAGE_BYTES, PageSet};
use crate::stream::godwit::{Rehearsal, Requirements};
use crate::stream::{self, SectionHeader, SectionKind, Step};

pub(super) const RAM_BYTES: u64 = 24 << 20;
/// Pages that a guest names free when it is asked, and of which it takes every seventh back.
pub(super) const FREE: Range<u64> = 3000..6000;

pub(super) struct FakeGuest {
    pub(super) ram: GuestRam,
    hints: Arc<Hints>,
    state: Mutex<RunState>,
    dirtier: Mutex<Option<JoinHandle<()>>>,
    run: Arc<AtomicBool>,
    /// Writes made; the guest's only register.
    count: Arc<AtomicU64>,
    pub(super) refuses: Option<&'static str>,
    /// Writes nothing.
    idle: bool,
    /// Where it panics.
    panics: Option<Panics>,
}

/// What of a guest panics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Panics {
    StartLog,
    /// The harvest of that number.
    Harvest(u32),
    Clear,
    Save,
    Write,
}

fn ram(bytes: u64) -> GuestRam {
    ram_of(bytes, MemoryBackend::Memfd { share: true, seal: false, huge_pages: None })
}

fn ram_of(bytes: u64, backend: MemoryBackend) -> GuestRam {
    let block = "microvm.ram".into();
    GuestRam::new(&Memory { bytes, block, backend, prealloc: false, merge: false, dump: true })
        .unwrap()
}

impl FakeGuest {
    pub(super) fn new(state: RunState) -> Arc<Self> {
        Arc::new(Self::with(ram(RAM_BYTES), state))
    }

    /// With memory of another kind.
    pub(super) fn over(backend: MemoryBackend, state: RunState) -> Arc<Self> {
        Arc::new(Self::with(ram_of(RAM_BYTES, backend), state))
    }

    fn with(ram: GuestRam, state: RunState) -> Self {
        Self {
            hints: Arc::new(Hints::new(ram.main().pages())),
            ram,
            state: Mutex::new(state),
            dirtier: Mutex::new(None),
            run: Arc::default(),
            count: Arc::default(),
            refuses: None,
            idle: false,
            panics: None,
        }
    }

    /// A guest of 1 MiB that runs, writes nothing, and panics there.
    pub(super) fn idle(panics: Option<Panics>) -> Arc<Self> {
        let mut guest = Self::with(ram(1 << 20), RunState::Running);
        (guest.idle, guest.panics) = (true, panics);
        guest.ram.write(0, &[7; 300_000]).unwrap();
        Arc::new(guest)
    }

    fn may_panic(&self, at: Panics) {
        assert!(self.panics != Some(at), "on purpose, at {at:?}");
    }

    /// A guest with something in its memory, running.
    pub(super) fn busy() -> Arc<Self> {
        let guest = Self::new(RunState::Prelaunch);
        for page in 0..1500u64 {
            guest.ram.write(page * PAGE_BYTES, &(page * 77).to_le_bytes().repeat(512)).unwrap();
        }
        guest.ram.write(2000 * PAGE_BYTES, &[0; 4096]).unwrap();
        guest.cont().unwrap();
        guest
    }

    /// Has something in its free pages, and names them when it is asked. With `twice` it takes all of
    /// them back the first time, and others with them, so that there is a long second round.
    pub(super) fn names_free_pages(&self, twice: bool) {
        for page in FREE {
            self.ram.write(page * PAGE_BYTES, &(page * 79).to_le_bytes().repeat(512)).unwrap();
        }
        let (hints, ram) = (Arc::downgrade(&self.hints), self.ram.clone());
        let asked = AtomicU32::new(0);
        self.hints.on_change(Box::new(move || {
            let Some(hints) = hints.upgrade().filter(|hints| hints.command() > 1) else { return };
            let times = u64::from(asked.fetch_add(1, Ordering::SeqCst));
            hints.hear(hints.command());
            hints.name(FREE.start * PAGE_BYTES..FREE.end * PAGE_BYTES);
            let all = twice && times == 0;
            let more = if all { 0..1500 } else { 0..0 };
            for page in FREE.filter(|page| all || page % 7 == 0).chain(more) {
                ram.write(page * PAGE_BYTES, &(page ^ times << 32).to_le_bytes()).unwrap();
            }
            hints.hear(0);
        }));
        self.hints.set_able(true);
    }

    /// Whether it may use all of its pages again.
    pub(super) fn has_all(&self) -> bool {
        self.hints.command() <= 1
    }

    pub(super) fn count(&self) -> u64 {
        self.count.load(Ordering::SeqCst)
    }
}

impl Drop for FakeGuest {
    fn drop(&mut self) {
        let _ = self.stop(RunState::Shutdown);
    }
}

impl Migratable for FakeGuest {
    fn ram(&self) -> &GuestRam {
        &self.ram
    }

    fn run_state(&self) -> RunState {
        *self.state.lock().unwrap()
    }

    fn let_go(&self) {}

    fn hints(&self) -> Option<&Hints> {
        Some(&self.hints)
    }

    fn stop_time(&self) -> Duration {
        Duration::ZERO
    }

    fn stop(&self, to: RunState) -> Result<bool, GuestError> {
        if self.idle {
            return Ok(std::mem::replace(&mut *self.state.lock().unwrap(), to) == RunState::Running);
        }
        self.run.store(false, Ordering::SeqCst);
        let ran =
            self.dirtier.lock().unwrap().take().map(|thread| thread.join().unwrap()).is_some();
        *self.state.lock().unwrap() = to;
        Ok(ran)
    }

    fn cont(&self) -> Result<(), GuestError> {
        if self.idle {
            *self.state.lock().unwrap() = RunState::Running;
            return Ok(());
        }
        self.run.store(true, Ordering::SeqCst);
        let (ram, run, count) = (self.ram.clone(), self.run.clone(), self.count.clone());
        let thread = std::thread::spawn(move || {
            while run.load(Ordering::SeqCst) {
                let n = count.fetch_add(1, Ordering::SeqCst);
                // A hot page in two, and now and then one that was zero, or becomes zero.
                let page = if n % 2 == 0 { n % 64 } else { n.wrapping_mul(0x9e37_79b9) % 3000 };
                let bytes = if n % 97 == 0 { vec![0; 4096] } else { n.to_le_bytes().to_vec() };
                ram.write(page * PAGE_BYTES, &bytes).unwrap();
                if n % 64 == 0 {
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
        });
        *self.dirtier.lock().unwrap() = Some(thread);
        *self.state.lock().unwrap() = RunState::Running;
        Ok(())
    }

    fn set_state(&self, to: RunState) {
        *self.state.lock().unwrap() = to;
    }

    fn set_throttle(&self, _percent: u8) {}

    fn start_dirty_log(&self) -> Result<Box<dyn DirtyLog>, GuestError> {
        self.may_panic(Panics::StartLog);
        let pages = self.ram.main().pages();
        Ok(Box::new(FakeLog {
            ram: self.ram.clone(),
            harvests: AtomicU32::new(0),
            pages,
            panics: self.panics,
        }))
    }

    fn requirements(&self) -> Requirements {
        Requirements { tsc_khz: 1, ..Requirements::default() }
    }

    fn check_requirements(&self, _facts: &Requirements) -> Result<(), GuestError> {
        self.refuses.map_or(Ok(()), |why| Err(GuestError::Fake(why)))
    }

    fn save(&self, _ran: bool) -> Result<Box<dyn State>, GuestError> {
        self.may_panic(Panics::Save);
        Ok(Box::new(FakeState(self.count(), self.panics == Some(Panics::Write))))
    }

    fn save_here(&self, ran: bool) -> Result<Box<dyn State>, GuestError> {
        self.save(ran)
    }

    fn rehearse(&self) -> Result<Rehearsal, GuestError> {
        Ok(Rehearsal { us: 500, bytes: 40 })
    }

    fn describes(&self) -> bool {
        true
    }

    fn loader(&self) -> Box<dyn Loader + '_> {
        Box::new(FakeLoader { guest: self, count: None })
    }
}

struct FakeLog {
    ram: GuestRam,
    harvests: AtomicU32,
    pages: u64,
    panics: Option<Panics>,
}

impl DirtyLog for FakeLog {
    fn harvest(&self, into: &mut PageSet) -> Result<(), GuestError> {
        let number = self.harvests.fetch_add(1, Ordering::SeqCst);
        assert!(self.panics != Some(Panics::Harvest(number)), "on purpose, at harvest {number}");
        if number == 0 {
            into.insert_range(0..self.pages);
        }
        self.ram.take_vmm_dirty(into);
        Ok(())
    }

    fn clear(&self, _set: &PageSet, pages: Range<u64>) -> Result<(), GuestError> {
        assert!(self.panics != Some(Panics::Clear), "on purpose, at a clear");
        let ends_well = pages.end.is_multiple_of(64) || pages.end == self.pages;
        assert!(pages.start.is_multiple_of(64) && ends_well);
        Ok(())
    }
}

/// The counter, and whether writing it panics.
pub(super) struct FakeState(pub u64, pub bool);

fn header() -> SectionHeader {
    SectionHeader { id: 9, name: "counter".into(), instance: 0, version: 1 }
}

impl State for FakeState {
    fn write(&self, out: &mut Vec<u8>) -> Result<String, GuestError> {
        assert!(!self.1, "on purpose, at writing the state");
        header().write(SectionKind::Full, out);
        out.extend_from_slice(&self.0.to_be_bytes());
        header().write_footer(out);
        Ok("{}".into())
    }
}

struct FakeLoader<'a> {
    guest: &'a FakeGuest,
    count: Option<u64>,
}

impl Loader for FakeLoader<'_> {
    fn section(
        &mut self,
        header: &SectionHeader,
        input: &[u8],
        _: u64,
    ) -> Result<Step<()>, stream::Error> {
        assert_eq!(header.name, "counter");
        let Some(bytes) = input.first_chunk::<8>() else { return Ok(Step::Need(8)) };
        self.count = Some(u64::from_be_bytes(*bytes));
        Ok(Step::Item((), 8))
    }

    fn validate(&mut self) -> Result<(), GuestError> {
        self.count.map(drop).ok_or(GuestError::Fake("no counter came"))
    }

    fn apply(&mut self, _: ForeignTsc) -> Result<Option<RunState>, GuestError> {
        self.guest.count.store(self.count.unwrap(), Ordering::SeqCst);
        Ok(Some(RunState::Running))
    }
}
