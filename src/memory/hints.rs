//! Free pages that the guest names while its memory is sent, so that nobody sends them
//! (virtio-balloon's free page hints).
//!
//! ```text
//!        ask            the guest's command       stop              done
//! idle ──────► requested ─────────────► started ───────► stopped ─────────► done
//!  before a round                pages are named         after it       no further round
//! ```
//!
//! A page may be left out of a round if the guest has named it since it was asked before this round, and
//! has not written it since: what such a page holds the guest does not want to know (virtio 1.2, 5.5.6.5).
//! That it was not written is the dirty log's word, and needs an order:
//!
//! 1. the round's pages are taken from the log, and their bits cleared;
//! 2. the guest is asked, with a number that was not used before;
//! 3. it names pages, behind that number; what still comes of an earlier number counts nothing;
//! 4. a page named is passed over **without touching its bit**.
//!
//! Whatever the guest writes after 2 sets the bit again, which the next harvest brings: a page that it
//! named and then took back travels in the next round, also where it took it back before the name was
//! read here, as Linux does when it is short of memory. A page that was written between 2 and its name is
//! sent, too; nearly always it holds the zeros of a guest that clears what it allocates. What was written
//! before 2 and not sent yet is what the guest has given up.

use super::pages::{PAGE_BYTES, PageSet};
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

/// Numbers of commands begin behind this one; those below mean something else, as in QEMU.
const COMMAND_MIN: u32 = 1 << 31;
/// What the guest reads in place of a number: nothing more is wanted, and: all is its own again.
const STOP: u32 = 0;
const DONE: u32 = 1;

/// Where it stands; the numbers are those of QEMU's streams.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum HintPhase {
    /// Nothing is wanted. The guest keeps what it has named.
    #[default]
    Stopped,
    /// The guest was asked.
    Requested,
    /// It answers.
    Started,
    /// The guest may have all again.
    Done,
}

impl HintPhase {
    pub(crate) fn number(self) -> u32 {
        self as u32
    }

    pub(crate) fn from_number(number: u32) -> Option<HintPhase> {
        use HintPhase::{Done, Requested, Started, Stopped};
        [Stopped, Requested, Started, Done].into_iter().find(|phase| *phase as u32 == number)
    }
}

/// The main block's free pages, between the device that hears of them and the round that passes over
/// them. Its lock is a leaf.
pub struct Hints {
    pages: u64,
    state: Mutex<State>,
    /// Told that the guest has something to read.
    wake: OnceLock<Wake>,
}

type Wake = Box<dyn Fn() + Send + Sync>;

struct State {
    phase: HintPhase,
    command: u32,
    /// The driver is there and can be asked.
    able: bool,
    /// It was asked, and may keep pages until it hears that all is done.
    owes: bool,
    is_news: bool,
    named: PageSet,
}

impl State {
    fn enter(&mut self, phase: HintPhase) {
        (self.phase, self.is_news) = (phase, true);
        self.named = PageSet::default();
    }
}

impl Hints {
    /// For a block of so many pages.
    pub(crate) fn new(pages: u64) -> Hints {
        let state = State {
            phase: HintPhase::Stopped,
            command: COMMAND_MIN,
            able: false,
            owes: false,
            is_news: false,
            named: PageSet::default(),
        };
        Hints { pages, state: Mutex::new(state), wake: OnceLock::new() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self) {
        if let Some(wake) = self.wake.get() {
            wake();
        }
    }

    // What a migration does.

    /// Whether [`Hints::ask`] would ask.
    pub(crate) fn can_ask(&self) -> bool {
        self.lock().able
    }

    /// Asks the guest. The pages of the round were harvested and their bits cleared. False: there is
    /// nobody to ask. Nobody waits for an answer.
    pub(crate) fn ask(&self) -> bool {
        {
            let mut state = self.lock();
            if !state.able {
                return false;
            }
            state.command = state.command.checked_add(1).unwrap_or(COMMAND_MIN).max(COMMAND_MIN);
            state.enter(HintPhase::Requested);
            state.owes = true;
            state.named = PageSet::new(self.pages);
        }
        self.wake();
        true
    }

    /// Pages that were named since the guest was asked, 64 a word, from word `first` on.
    pub(crate) fn named<const N: usize>(&self, first: usize) -> [u64; N] {
        let state = self.lock();
        std::array::from_fn(|word| state.named.words().get(first + word).copied().unwrap_or(0))
    }

    /// The round has ended: what comes of it counts nothing any more.
    pub(crate) fn stop(&self) {
        {
            let mut state = self.lock();
            if !matches!(state.phase, HintPhase::Requested | HintPhase::Started) {
                // It had ended its answer, whose pages count until now.
                state.named = PageSet::default();
                return;
            }
            state.enter(HintPhase::Stopped);
        }
        self.wake();
    }

    /// There is no further round, here or ever: the guest may use all that it has named.
    pub(crate) fn done(&self) {
        {
            let mut state = self.lock();
            if !std::mem::take(&mut state.owes) {
                return;
            }
            state.enter(HintPhase::Done);
        }
        self.wake();
    }

    // What the device does.

    /// Who is told that the guest has something to read; the first call counts.
    pub(crate) fn on_change(&self, wake: Wake) {
        let _ = self.wake.set(wake);
    }

    /// Whether there is something to read that the guest was not told of.
    pub(crate) fn take_news(&self) -> bool {
        std::mem::take(&mut self.lock().is_news)
    }

    /// Whether the driver is there and can be asked.
    pub(crate) fn set_able(&self, able: bool) {
        self.lock().able = able;
    }

    /// The driver starts anew, and keeps nothing.
    pub(crate) fn reset(&self) {
        let mut state = self.lock();
        state.enter(HintPhase::Stopped);
        (state.able, state.owes, state.is_news) = (false, false, false);
    }

    /// The guest begins to answer this command, or ends its answer.
    pub(crate) fn hear(&self, command: u32) {
        let mut state = self.lock();
        match state.phase {
            HintPhase::Requested if command == state.command => state.phase = HintPhase::Started,
            // Not its pages: what it has named is free.
            HintPhase::Started => state.phase = HintPhase::Stopped,
            _ => {}
        }
    }

    /// The guest names bytes of the block.
    pub(crate) fn name(&self, bytes: Range<u64>) {
        let mut state = self.lock();
        if state.phase == HintPhase::Started {
            let pages = bytes.start.div_ceil(PAGE_BYTES)..bytes.end / PAGE_BYTES;
            state.named.insert_range(pages);
        }
    }

    /// What the guest reads.
    pub(crate) fn command(&self) -> u32 {
        let state = self.lock();
        match state.phase {
            HintPhase::Stopped => STOP,
            HintPhase::Requested | HintPhase::Started => state.command,
            HintPhase::Done => DONE,
        }
    }

    /// The last command's number, and where it stands.
    pub(crate) fn save(&self) -> (u32, HintPhase) {
        let state = self.lock();
        (state.command, state.phase)
    }

    /// Nobody here waits for what a driver that came with a stream names; its numbers go on.
    pub(crate) fn load(&self, command: u32, phase: HintPhase) {
        let mut state = self.lock();
        (state.command, state.phase, state.named) = (command, phase, PageSet::default());
        state.owes = phase != HintPhase::Done && command > COMMAND_MIN;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    fn hints() -> Hints {
        let hints = Hints::new(128);
        hints.set_able(true);
        hints
    }

    #[test]
    fn only_what_answers_the_last_command_counts() {
        let hints = hints();
        assert!(hints.ask());
        let first = hints.command();
        assert_eq!(first, COMMAND_MIN + 1);
        hints.name(0..8192);
        hints.hear(first + 1);
        hints.name(0..8192);
        assert_eq!(hints.named(0), [0, 0], "it was not answered yet");
        hints.hear(first);
        hints.name(1..3 * 4096 + 1);
        hints.name(127 * 4096..1 << 40);
        assert_eq!(hints.named(0), [0b110, 1 << 63, 0]);
        hints.hear(first);
        hints.name(5 * 4096..6 * 4096);
        assert_eq!(hints.named(0), [0b110, 1 << 63], "it had ended");
        hints.stop();
        assert_eq!((hints.command(), hints.named(0)), (STOP, [0]));
        assert!(hints.ask());
        // Still of the last round.
        hints.hear(first);
        hints.name(0..4096);
        assert_eq!((hints.command(), hints.named(0)), (first + 1, [0]));
        hints.done();
        assert_eq!(hints.save(), (first + 1, HintPhase::Done));
        assert_eq!(hints.command(), DONE);
    }

    #[test]
    fn who_cannot_be_asked_or_was_not_hears_nothing() {
        let hints = Hints::new(8);
        let told = Arc::new(AtomicU32::new(0));
        let counts = told.clone();
        hints.on_change(Box::new(move || {
            counts.fetch_add(1, Ordering::SeqCst);
        }));
        assert!(!hints.ask() && !hints.can_ask());
        hints.stop();
        hints.done();
        assert!(!hints.take_news() && told.load(Ordering::SeqCst) == 0);
        hints.set_able(true);
        assert!(hints.ask() && hints.take_news());
        // It forgets what it was asked.
        hints.reset();
        hints.done();
        assert_eq!((hints.command(), hints.take_news()), (STOP, false));
        assert_eq!(told.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn numbers_go_on_where_they_were_and_begin_anew_at_the_end() {
        let hints = hints();
        for (came, next) in
            [(u32::MAX, COMMAND_MIN), (0, COMMAND_MIN), (COMMAND_MIN + 7, COMMAND_MIN + 8)]
        {
            hints.load(came, HintPhase::Done);
            assert_eq!((hints.command(), hints.take_news()), (DONE, false));
            assert!(hints.ask());
            assert_eq!(hints.command(), next);
            hints.done();
            hints.take_news();
        }
        assert_eq!(HintPhase::from_number(3), Some(HintPhase::Done));
        assert_eq!(HintPhase::from_number(4), None);
    }
}
