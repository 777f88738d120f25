//! Dumps of a machine that lives: one at a time, with the guest stopped around it.
//!
//! ```text
//!           claim            pause             write               done, resume
//! idle ───────────► claimed ───────► stopped ────────► written ─────────────────► idle
//!   ▲                  │                │                 │
//!   └──── dropped ─────┘                └──── failed: done (if writing began), resume
//! ```
//!
//! A live dump lets the guest go on before it writes:
//!
//! ```text
//!           claim         protect, pause          resume            write                done
//! idle ───────────► claimed ───────► image fixed ───────► guest runs ────► RAM unprotected ────► idle
//! ```
//!
//! A claim is taken before anything is opened, so that of two commands one is refused; it ends when
//! it is dropped. The guest runs again after every outcome if it ran before.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use super::cpu::Cpu;
use super::error::Error;
use super::guest::GuestState;
use super::options::Options;
use super::output::Output;
use super::progress::Progress;
use super::ram::RamView;
use super::ranges::{self, Filter, Range};
use super::vmcoreinfo::VmCoreInfo;
use super::write;
use crate::machine;
use crate::memory::{self, GuestRam, Snapshot, Unavailable};
use crate::sabotage::{self, Fault};

/// A machine, as far as a dump needs one.
pub trait Dumpable: Send + Sync {
    /// Is the guest running now?
    fn runs(&self) -> bool;
    /// Stops every vCPU for a dump (run state `save-vm`); false if the guest stood still already.
    /// Nobody resets it or writes its memory from then on.
    fn pause(&self) -> Result<bool, machine::Error>;
    /// Ends what [`Dumpable::pause`] began, which returned `ran`: a guest that ran goes on.
    fn resume(&self, ran: bool);
    fn ram(&self) -> GuestRam;
    /// The registers of all vCPUs, which stand still.
    fn cpus(&self) -> Result<Vec<Cpu>, machine::Error>;
    /// Where the guest said its note is.
    fn vmcoreinfo(&self) -> Option<VmCoreInfo>;
}

/// What the last dump came to, or the one in progress.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Status {
    #[default]
    None,
    Active,
    Completed,
    Failed,
}

impl Status {
    /// QMP's name.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Status::None => "none",
            Status::Active => "active",
            Status::Completed => "completed",
            Status::Failed => "failed",
        }
    }
}

/// Status, and bytes of guest memory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct QueryResult {
    pub status: Status,
    pub completed: u64,
    pub total: u64,
    /// Of a live dump: how long the guest stood still.
    pub downtime: Option<Duration>,
}

/// Another dump is in progress.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("There is a dump in process, please wait.")]
pub struct Busy;

/// Why a dump that was claimed was not made.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    #[error(transparent)]
    Dump(#[from] Error),
    #[error("parameter 'length' expects a non-zero size")]
    LengthZero,
    #[error("dump: {0}")]
    Machine(#[from] machine::Error),
    #[error("dump: {0}")]
    Memory(#[from] memory::Error),
    #[error("dump: cannot dump the guest while it runs: {0}")]
    Live(#[from] Unavailable),
    #[error("dump: cannot start its thread: {0}")]
    Thread(std::io::Error),
    #[error("dump: a thread of it has panicked, which is a defect of Godwit")]
    Panicked,
}

/// Called once after a dump that began writing, before the guest goes on.
pub(crate) type Done = Box<dyn FnOnce(QueryResult, Option<&Failure>) + Send>;

/// The dumps of one machine.
pub struct Dumps {
    target: Arc<dyn Dumpable>,
    state: Mutex<State>,
    released: Condvar,
}

#[derive(Default)]
struct State {
    claimed: bool,
    /// The dump in progress is not wanted any more.
    cancelled: bool,
    /// No dump is wanted any more.
    ending: bool,
    /// All is written and announced or about to be; the guest goes on in a moment.
    finishing: bool,
    /// The guest runs although a dump is written.
    live: Option<Duration>,
    last: QueryResult,
    /// of the dump that is being written
    progress: Option<Arc<Progress>>,
}

/// The right to make the next dump.
pub struct Claim {
    dumps: Arc<Dumps>,
}

impl Drop for Claim {
    fn drop(&mut self) {
        let mut state = self.dumps.state();
        state.claimed = false;
        state.cancelled = false;
        state.finishing = false;
        state.live = None;
        if state.progress.take().is_some() {
            // The thread could not be started.
            state.last = QueryResult { status: Status::Failed, ..QueryResult::default() };
        }
        self.dumps.released.notify_all();
    }
}

impl Dumps {
    pub fn new(target: Arc<dyn Dumpable>) -> Arc<Dumps> {
        Arc::new(Dumps { target, state: Mutex::default(), released: Condvar::new() })
    }

    /// Is a dump in progress, or about to be?
    pub(crate) fn is_busy(&self) -> bool {
        let state = self.state();
        state.claimed && !state.finishing
    }

    /// Is a dump in progress that keeps the guest from running?
    pub(crate) fn holds_guest(&self) -> bool {
        let state = self.state();
        state.claimed && !state.finishing && state.live.is_none()
    }

    pub(crate) fn query(&self) -> QueryResult {
        let state = self.state();
        match &state.progress {
            Some(progress) => QueryResult {
                status: Status::Active,
                completed: progress.completed(),
                total: progress.total(),
                downtime: state.live,
            },
            None => state.last,
        }
    }

    /// Waits for a dump whose end is known to the client already, and refuses beside any other.
    pub fn claim(self: &Arc<Self>) -> Result<Claim, Busy> {
        let mut state = self.state();
        while state.finishing {
            state = self.released.wait(state).unwrap_or_else(|poisoned| poisoned.into_inner());
        }
        if std::mem::replace(&mut state.claimed, true) {
            return Err(Busy);
        }
        drop(state);
        Ok(Claim { dumps: self.clone() })
    }

    /// Asks the dump in progress to end.
    pub(crate) fn cancel(&self) {
        let mut state = self.state();
        state.cancelled = state.claimed;
        if let Some(progress) = &state.progress {
            progress.cancel();
        }
    }

    /// What a dump of the guest's memory holds.
    fn memory_bytes(&self, filter: Option<Filter>) -> u64 {
        let ram = self.target.ram();
        let regions = ram.blocks().iter().flat_map(|block| block.regions());
        let ranges: Vec<_> =
            regions.map(|region| Range { start: region.gpa, len: region.bytes }).collect();
        ranges::cut(&ranges, filter).iter().map(|range| range.len).sum()
    }

    /// Ends the dump in progress and waits for its end: with the process, or it would keep vCPUs in
    /// page faults.
    pub(crate) fn end(&self) {
        self.cancel();
        let mut state = self.state();
        state.ending = true;
        while state.claimed {
            state = self.released.wait(state).unwrap_or_else(|poisoned| poisoned.into_inner());
        }
    }

    fn begin(&self, progress: &Arc<Progress>) {
        let mut state = self.state();
        if state.ending || state.cancelled {
            progress.cancel();
        }
        state.progress = Some(progress.clone());
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl Claim {
    /// Its dump was cancelled before it began, or will be at once.
    pub(crate) fn is_cancelled(&self) -> bool {
        let state = self.dumps.state();
        state.cancelled || state.ending
    }

    /// Stops the guest, writes the dump and lets the guest go on; a live dump lets it go on first.
    /// With `detach` it returns as soon as the guest stands still (live: runs again) and the
    /// arguments have been found good; the rest happens on a thread of its own.
    pub fn run(
        self,
        output: Output,
        options: Options,
        detach: bool,
        done: Done,
    ) -> Result<(), Failure> {
        let dump =
            if options.live { self.fix_image(options.filter)? } else { self.stop(options.filter)? };
        let progress = Arc::new(Progress::default());
        progress.begin(dump.claim.dumps.memory_bytes(options.filter));
        dump.claim.dumps.begin(&progress);
        if !detach {
            return dump.write(output, &options, &progress, done);
        }
        let job = move || drop(dump.write(output, &options, &progress, done));
        std::thread::Builder::new()
            .name("dump".into())
            .spawn(job)
            .map(drop)
            .map_err(Failure::Thread)
    }

    /// The guest stands still until the dump is written.
    fn stop(self, filter: Option<Filter>) -> Result<Dump, Failure> {
        let stopped = Stopped::new(&self)?;
        self.check(filter)?;
        Ok(Dump { source: Source::Stopped(stopped), claim: self })
    }

    /// The guest stands still for a moment. One that stood still before needs no image.
    fn fix_image(self, filter: Option<Filter>) -> Result<Dump, Failure> {
        self.check(filter)?;
        let target = &self.dumps.target;
        if !target.runs() {
            return self.stop(filter);
        }
        let fixed = self.refused_if_failed(|| {
            let image = Snapshot::prepare(&target.ram())?;
            let began = Instant::now();
            let stopped = Stopped::new(&self)?;
            let cpus = target.cpus()?;
            let vmcoreinfo = target.vmcoreinfo();
            image.fix()?;
            drop(stopped);
            Ok((Source::Live { image, cpus, vmcoreinfo }, began.elapsed()))
        });
        let (source, downtime) = fixed?;
        self.dumps.state().live = Some(downtime);
        Ok(Dump { source, claim: self })
    }

    /// What can be said before anything is written. Such a failure counts as a dump, without bytes.
    fn check(&self, filter: Option<Filter>) -> Result<(), Failure> {
        self.refused_if_failed(|| {
            if filter.is_some_and(|filter| filter.length == 0) {
                Err(Failure::LengthZero)
            } else if self.dumps.memory_bytes(filter) == 0 {
                Err(Failure::Dump(Error::NoMemory))
            } else {
                Ok(())
            }
        })
    }

    fn refused_if_failed<T>(
        &self,
        step: impl FnOnce() -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        step().inspect_err(|_| {
            self.dumps.state().last =
                QueryResult { status: Status::Failed, ..QueryResult::default() };
        })
    }
}

/// A guest that stands still for a dump. When this is dropped, one that ran goes on.
struct Stopped {
    target: Arc<dyn Dumpable>,
    ran: bool,
}

impl Stopped {
    fn new(claim: &Claim) -> Result<Stopped, machine::Error> {
        let target = claim.dumps.target.clone();
        let ran = target.pause()?;
        Ok(Stopped { target, ran })
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        self.target.resume(self.ran);
    }
}

/// A dump that can be written. Its parts end in this order: the next dump must find the guest as
/// this one found it.
struct Dump {
    source: Source,
    claim: Claim,
}

enum Source {
    /// The guest stands still while it is there.
    Stopped(Stopped),
    Live {
        image: Snapshot,
        cpus: Vec<Cpu>,
        vmcoreinfo: Option<VmCoreInfo>,
    },
}

impl Dump {
    fn write(
        self,
        output: Output,
        options: &Options,
        progress: &Progress,
        done: Done,
    ) -> Result<(), Failure> {
        let Dump { source, claim } = self;
        let target = &claim.dumps.target;
        // What ends with this: the guest's stop, which lasts until all is told, or the image, which
        // goes first.
        let (result, _stopped) = match source {
            Source::Live { image, cpus, vmcoreinfo } => {
                let view = RamView::frozen(&target.ram(), image).map_err(Failure::Memory);
                (
                    view.and_then(|view| make(&view, &cpus, vmcoreinfo, options, output, progress)),
                    None,
                )
            }
            Source::Stopped(stopped) => {
                let cpus = target.cpus().map_err(Failure::Machine);
                let view = RamView::stopped(&target.ram()).map_err(Failure::Memory);
                let made = cpus.and_then(|cpus| {
                    make(&view?, &cpus, target.vmcoreinfo(), options, output, progress)
                });
                (made, Some(stopped))
            }
        };
        let status = if result.is_ok() { Status::Completed } else { Status::Failed };
        let mut state = claim.dumps.state();
        let last = QueryResult {
            status,
            completed: progress.completed(),
            total: progress.total(),
            downtime: state.live,
        };
        state.last = last;
        state.progress = None;
        state.finishing = true;
        drop(state);
        done(last, result.as_ref().err());
        result
    }
}

fn make(
    view: &RamView,
    cpus: &[Cpu],
    vmcoreinfo: Option<VmCoreInfo>,
    options: &Options,
    output: Output,
    progress: &Progress,
) -> Result<(), Failure> {
    let guest = GuestState { view, cpus, vmcoreinfo };
    // A panic is an end like others: it is told, and the guest goes on.
    let written = catch_unwind(AssertUnwindSafe(|| {
        sabotage::panic_on(Fault::PanicInDump);
        write::write(&guest, options, output, progress)
    }));
    let report = written.map_err(|_| Failure::Panicked)??;
    if let Some(why) = report.note_refused {
        tracing::warn!("dump without the guest's note: {why}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Memory, MemoryBackend};
    use crate::dump::format::Format;
    use std::fs::File;
    use std::io::Read;
    use std::os::fd::OwnedFd;
    use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
    use std::sync::mpsc;

    struct Fake {
        ram: GuestRam,
        running: AtomicBool,
    }

    impl Dumpable for Fake {
        fn runs(&self) -> bool {
            self.running.load(SeqCst)
        }

        fn pause(&self) -> Result<bool, machine::Error> {
            Ok(self.running.swap(false, SeqCst))
        }

        fn resume(&self, ran: bool) {
            self.running.fetch_or(ran, SeqCst);
        }

        fn ram(&self) -> GuestRam {
            self.ram.clone()
        }

        fn cpus(&self) -> Result<Vec<Cpu>, machine::Error> {
            assert!(!self.running.load(SeqCst), "registers of a running CPU");
            Ok(vec![Cpu::default()])
        }

        fn vmcoreinfo(&self) -> Option<VmCoreInfo> {
            None
        }
    }

    const BYTES: u64 = 1 << 20;

    fn fake(running: bool) -> (Arc<Fake>, Arc<Dumps>) {
        let backend = MemoryBackend::Anonymous { share: false };
        let config = Memory {
            bytes: BYTES,
            block: "ram".into(),
            backend,
            prealloc: false,
            merge: false,
            dump: true,
        };
        let ram = GuestRam::new(&config).unwrap();
        let fake = Arc::new(Fake { ram, running: AtomicBool::new(running) });
        (fake.clone(), Dumps::new(fake))
    }

    fn nobody() -> Done {
        Box::new(|_, _| {})
    }

    fn elf() -> Options {
        Options::new(Format::Elf)
    }

    fn output(file: impl Into<OwnedFd>) -> Output {
        Output::new(File::from(file.into())).unwrap()
    }

    #[test]
    fn a_running_guest_runs_again_and_a_stopped_one_does_not() {
        for running in [true, false] {
            let (guest, dumps) = fake(running);
            assert_eq!(dumps.query(), QueryResult::default());
            let (send, receive) = mpsc::channel();
            let seen = guest.clone();
            let done: Done = Box::new(move |last, failure| {
                assert!(failure.is_none());
                send.send((last, seen.running.load(SeqCst))).unwrap();
            });
            let file = tempfile::tempfile().unwrap();
            dumps.claim().unwrap().run(output(file), elf(), false, done).unwrap();
            let complete = QueryResult {
                status: Status::Completed,
                completed: BYTES,
                total: BYTES,
                downtime: None,
            };
            assert_eq!(
                receive.recv().unwrap(),
                (complete, false),
                "the event comes before the guest goes on"
            );
            assert_eq!(dumps.query(), complete);
            assert_eq!(guest.running.load(SeqCst), running);
            assert!(!dumps.is_busy());
        }
    }

    #[test]
    fn a_detached_dump_is_alone_and_shows_its_progress() {
        let (guest, dumps) = fake(true);
        let (mut reader, writer) = std::io::pipe().unwrap();
        let (send, receive) = mpsc::channel();
        let done: Done = Box::new(move |last, _| send.send(last).unwrap());
        dumps.claim().unwrap().run(output(writer), elf(), true, done).unwrap();
        assert!(dumps.is_busy() && dumps.claim().is_err());
        let active = dumps.query();
        assert_eq!((active.status, active.total), (Status::Active, BYTES));
        assert!(!guest.running.load(SeqCst));
        let mut all = Vec::new();
        reader.read_to_end(&mut all).unwrap();
        assert_eq!(receive.recv().unwrap().status, Status::Completed);
        assert!(all.len() as u64 > BYTES);
        drop(dumps.claim().expect("it has ended"));
        assert!(guest.running.load(SeqCst), "a claim waits until the guest goes on");
    }

    #[test]
    fn every_failure_lets_the_guest_go_on() {
        let (guest, dumps) = fake(true);
        let filter = |begin, length| Options { filter: Some(Filter { begin, length }), ..elf() };
        let refused = |options| {
            let file = tempfile::tempfile().unwrap();
            let done: Done = Box::new(|_, _| panic!("nothing was written"));
            let error = dumps.claim().unwrap().run(output(file), options, false, done).unwrap_err();
            assert_eq!(
                dumps.query(),
                QueryResult { status: Status::Failed, ..QueryResult::default() }
            );
            assert!(guest.running.load(SeqCst) && !dumps.is_busy());
            error.to_string()
        };
        assert_eq!(refused(filter(0, 0)), "parameter 'length' expects a non-zero size");
        assert_eq!(refused(filter(1 << 40, 1)), "dump: no guest memory to dump");

        let (send, receive) = mpsc::channel();
        let done: Done =
            Box::new(move |last, failure| send.send((last, failure.unwrap().to_string())).unwrap());
        let full = File::options().write(true).open("/dev/full").unwrap();
        dumps.claim().unwrap().run(output(full), elf(), false, done).unwrap_err();
        let (last, why) = receive.recv().unwrap();
        assert_eq!((last.status, last.total), (Status::Failed, BYTES));
        assert_eq!(why, "dump: failed to write elf header: No space left on device");
        assert!(guest.running.load(SeqCst) && !dumps.is_busy());
    }

    #[test]
    fn a_claim_that_comes_to_nothing_is_given_back() {
        let (_guest, dumps) = fake(true);
        let claim = dumps.claim().unwrap();
        assert_eq!(dumps.claim().err(), Some(Busy));
        drop(claim);
        assert!(dumps.claim().is_ok());
        dumps
            .claim()
            .unwrap()
            .run(output(tempfile::tempfile().unwrap()), elf(), false, nobody())
            .unwrap();
    }
}
