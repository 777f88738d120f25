//! How fast a guest dirties its memory, measured over a given time on a thread of its own.
//!
//! | mode | what is counted | cost to the guest |
//! | --- | --- | --- |
//! | page sampling | pages of a random sample that differ afterwards | none |
//! | dirty bitmap | pages in KVM's log: each page once | a fault for each page written meanwhile |
//! | dirty ring | entries of each vCPU's ring | the same |
//!
//! Logging ends with the measurement. The bitmap has one reader: a measurement with it is not begun
//! while a migration reads it, and ends early when a migration begins; it then tells the time that
//! it had. The other two go beside everything.

mod sample;

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::Builder;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::kvm::{self, DirtyLog, RingCounts};
use crate::machine::Machine;
use crate::memory::{self, PAGE_BYTES, PageSet};
use sample::Sample;

/// How long a measurement may take.
const TIME: std::ops::RangeInclusive<Duration> =
    Duration::from_millis(50)..=Duration::from_secs(60);
/// How many pages of each GiB may be looked at.
const SAMPLE_PAGES: std::ops::RangeInclusive<u64> = 128..=16384;
const DEFAULT_SAMPLE_PAGES: u64 = 512;

/// Pages whose bits are cleared by one call: bounds how long KVM holds its lock.
const CLEAR_PAGES: u64 = (1 << 30) / PAGE_BYTES;
const MIB: f64 = (1 << 20) as f64;

/// What is counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    #[default]
    PageSampling,
    DirtyRing,
    DirtyBitmap,
}

impl Mode {
    /// As QMP writes them, in the same order.
    pub const NAMES: &[&str] = &["page-sampling", "dirty-ring", "dirty-bitmap"];

    pub fn name(self) -> &'static str {
        Self::NAMES[self as usize]
    }

    pub fn from_name(name: &str) -> Option<Mode> {
        let all = [Mode::PageSampling, Mode::DirtyRing, Mode::DirtyBitmap];
        all.into_iter().find(|mode| mode.name() == name)
    }
}

/// What to measure.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    pub mode: Mode,
    pub time: Duration,
    /// Pages of each GiB, of [`Mode::PageSampling`] alone.
    pub sample_pages: Option<u64>,
}

/// Why nothing is measured. The texts are QEMU's where it has one.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    #[error("the dirty rate is already being measured.")]
    Busy,
    #[error("Calculation time is out of range [50ms, 60000ms].")]
    Time,
    #[error("sample-pages is used only in page-sampling mode")]
    NothingToSample,
    #[error("sample-pages is out of range[128, 16384].")]
    SamplePages,
    #[error("mode {0} is not enabled, use other method instead.")]
    Mode(&'static str),
    #[error("a migration reads the dirty log; measure in mode page-sampling meanwhile")]
    LogTaken,
    #[error(transparent)]
    Kvm(#[from] kvm::Error),
    #[error(transparent)]
    Memory(#[from] memory::Error),
    #[error("no thread to measure on: {0}")]
    Thread(io::Error),
}

/// How far a measurement is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Status {
    #[default]
    Unstarted,
    Measuring,
    Measured,
}

impl Status {
    pub const NAMES: &[&str] = &["unstarted", "measuring", "measured"];

    pub fn name(self) -> &'static str {
        Self::NAMES[self as usize]
    }
}

/// The latest measurement, or none yet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    pub status: Status,
    pub mode: Mode,
    /// Of each GiB; 0 in other modes.
    pub sample_pages: u64,
    /// Seconds since 1970.
    pub start_time: u64,
    /// What it takes, or took.
    pub time: Duration,
    /// MiB per second, once it was measured.
    pub rate: u64,
    /// The same of each vCPU, in mode dirty ring.
    pub vcpus: Vec<u64>,
}

/// Measures one machine, once at a time.
pub struct Meter {
    machine: Arc<Machine>,
    report: Mutex<Report>,
}

impl Meter {
    pub fn new(machine: Arc<Machine>) -> Arc<Meter> {
        Arc::new(Meter { machine, report: Mutex::default() })
    }

    pub fn report(&self) -> Report {
        self.lock().clone()
    }

    /// Begins to measure. What is refused leaves the result of the last measurement.
    pub fn start(self: &Arc<Meter>, wanted: Wanted) -> Result<(), Refused> {
        let sample_pages = self.check(wanted)?;
        let before = {
            let mut report = self.lock();
            if report.status == Status::Measuring {
                return Err(Refused::Busy);
            }
            let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            let begun = Report {
                status: Status::Measuring,
                mode: wanted.mode,
                sample_pages,
                start_time: since.as_secs(),
                time: wanted.time,
                ..Report::default()
            };
            std::mem::replace(&mut *report, begun)
        };
        self.begin(wanted, sample_pages).inspect_err(|_| *self.lock() = before)
    }

    /// Returns how many pages of each GiB to look at.
    fn check(&self, wanted: Wanted) -> Result<u64, Refused> {
        if !TIME.contains(&wanted.time) {
            return Err(Refused::Time);
        }
        let sampling = wanted.mode == Mode::PageSampling;
        match wanted.sample_pages {
            Some(_) if !sampling => return Err(Refused::NothingToSample),
            Some(pages) if !SAMPLE_PAGES.contains(&pages) => return Err(Refused::SamplePages),
            _ => {}
        }
        let ring = self.machine.vm().ring_entries().is_some();
        if !sampling && (wanted.mode == Mode::DirtyRing) != ring {
            return Err(Refused::Mode(wanted.mode.name()));
        }
        Ok(if sampling { wanted.sample_pages.unwrap_or(DEFAULT_SAMPLE_PAGES) } else { 0 })
    }

    fn begin(self: &Arc<Meter>, wanted: Wanted, sample_pages: u64) -> Result<(), Refused> {
        let vm = self.machine.vm().clone();
        let counting = match wanted.mode {
            Mode::PageSampling => Counting::Sample(sample_pages),
            Mode::DirtyRing => {
                let counts = RingCounts::start(vm)?;
                let before = counts.dirtied()?;
                Counting::Ring(counts, before)
            }
            Mode::DirtyBitmap => {
                let mut log = DirtyLog::try_start(vm)?.ok_or(Refused::LogTaken)?;
                let pages = self.machine.ram().main().pages();
                let mut all = PageSet::new(pages);
                log.harvest(&mut all)?;
                let mut start = 0;
                while start < pages {
                    let end = (start + CLEAR_PAGES).min(pages);
                    log.clear(&all, start..end)?;
                    start = end;
                }
                Counting::Bitmap(log)
            }
        };
        let meter = self.clone();
        let started = Instant::now();
        let work = move || meter.measure(counting, started, wanted.time);
        Builder::new().name("dirty-rate".into()).spawn(work).map_err(Refused::Thread)?;
        Ok(())
    }

    fn measure(&self, counting: Counting, started: Instant, time: Duration) {
        let result = counting.finish(&self.machine, started, time);
        let mut report = self.lock();
        match result {
            Ok(Counted { mib, took, vcpus }) => {
                let rate = |mib: f64| (mib / took.as_secs_f64()).round() as u64;
                report.status = Status::Measured;
                report.time = took;
                report.vcpus = vcpus.into_iter().map(rate).collect();
                report.rate = match &report.vcpus[..] {
                    [] => rate(mib),
                    vcpus => vcpus.iter().sum(),
                };
            }
            Err(error) => {
                tracing::warn!("the dirty rate was not measured: {error}");
                *report = Report::default();
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Report> {
        self.report.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A measurement that has begun.
enum Counting {
    /// Pages of each GiB.
    Sample(u64),
    Ring(RingCounts, Vec<u64>),
    Bitmap(DirtyLog),
}

/// What was dirtied, in MiB, and in what time.
struct Counted {
    mib: f64,
    took: Duration,
    vcpus: Vec<f64>,
}

impl Counting {
    fn finish(
        self,
        machine: &Machine,
        started: Instant,
        time: Duration,
    ) -> Result<Counted, Refused> {
        let wait = || std::thread::sleep(time.saturating_sub(started.elapsed()));
        let mib = |pages: u64| (pages * PAGE_BYTES) as f64 / MIB;
        match self {
            Counting::Sample(per_gib) => {
                // Both looks go the same way, so that each page has the time between their beginnings.
                let sample = Sample::take(machine.ram(), per_gib)?;
                wait();
                let took = started.elapsed();
                let changed = sample.changed(machine.ram())?;
                Ok(Counted {
                    mib: changed * machine.ram().bytes() as f64 / MIB,
                    took,
                    vcpus: vec![],
                })
            }
            Counting::Ring(counts, before) => {
                wait();
                let took = started.elapsed();
                let dirtied = counts.dirtied()?;
                let vcpus = dirtied.iter().zip(before).map(|(now, before)| mib(now - before));
                Ok(Counted { mib: 0.0, took, vcpus: vcpus.collect() })
            }
            Counting::Bitmap(mut log) => {
                log.wanted_within(time.saturating_sub(started.elapsed()));
                let took = started.elapsed();
                let mut dirtied = PageSet::new(machine.ram().main().pages());
                log.harvest(&mut dirtied)?;
                log.stop()?;
                Ok(Counted { mib: mib(dirtied.count()), took, vcpus: vec![] })
            }
        }
    }
}
