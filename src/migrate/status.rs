//! The status of a migration: QEMU's names, which follows which, and the one lock under which an
//! outgoing migration moves.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// QEMU's names of migration states.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Status {
    #[default]
    None,
    Setup,
    Active,
    PreSwitchover,
    Device,
    Cancelling,
    Cancelled,
    Completed,
    Failed,
}

impl Status {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Setup => "setup",
            Self::Active => "active",
            Self::PreSwitchover => "pre-switchover",
            Self::Device => "device",
            Self::Cancelling => "cancelling",
            Self::Cancelled => "cancelled",
            Self::Completed => "completed",
            Self::Failed => "failed",
        }
    }

    /// A migration is under way.
    pub(crate) fn is_running(self) -> bool {
        matches!(
            self,
            Self::Setup | Self::Active | Self::PreSwitchover | Self::Device | Self::Cancelling
        )
    }

    /// Whether an outgoing migration may go from here to `next`.
    ///
    /// What is being cancelled can still fail (nobody knows who has the guest) or complete (the
    /// target had it already), but never go on.
    pub(crate) fn may_become(self, next: Self) -> bool {
        use Status::*;
        match self {
            None => next == Setup,
            Setup => matches!(next, Active | Cancelling | Failed),
            // Completed: a snapshot in the background, which hands nothing over.
            Active => matches!(next, PreSwitchover | Device | Completed | Cancelling | Failed),
            PreSwitchover => matches!(next, Device | Cancelling | Failed),
            Device => matches!(next, Completed | Cancelling | Failed),
            Cancelling => matches!(next, Cancelled | Completed | Failed),
            Cancelled | Completed | Failed => false,
        }
    }
}

/// What QMP hears of a migration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    Status(Status),
    /// A harvest of the dirty log, counted from 1.
    Pass(u64),
}

/// Hears events. Called while the status is locked, so that they come in the order of the moves:
/// it must not ask for the status.
pub(crate) type Listener = Arc<dyn Fn(Event) + Send + Sync>;

/// The life of one outgoing migration. Its status moves as [`Status::may_become`] has it, whoever
/// asks and whenever, and a cancel counts until the guest is given away, not a moment longer.
pub(crate) struct Lifecycle {
    state: Mutex<State>,
    listener: Listener,
}

#[derive(Default)]
struct State {
    status: Status,
    /// Whoever has the guest now, it may not run here by itself.
    given_away: bool,
    /// Nothing can be cancelled any more.
    committed: bool,
}

impl Lifecycle {
    pub(crate) fn new(listener: Listener) -> Self {
        Self { state: Mutex::default(), listener }
    }

    pub(crate) fn status(&self) -> Status {
        self.lock().status
    }

    /// Goes to `next` and tells it. False, and nothing happens, where that may not follow.
    pub(crate) fn enter(&self, next: Status) -> bool {
        self.go(&mut self.lock(), next)
    }

    /// Begins to cancel. False: nothing is under way, it is being cancelled already, or the guest
    /// is given away.
    pub(crate) fn cancel(&self) -> bool {
        let mut state = self.lock();
        !state.committed && self.go(&mut state, Status::Cancelling)
    }

    /// The point of no return, after which a cancel has no effect. False: it was cancelled before.
    pub(crate) fn commit(&self) -> bool {
        let mut state = self.lock();
        state.committed = state.status != Status::Cancelling;
        state.given_away = state.committed;
        state.committed
    }

    /// From here on the guest may run elsewhere, but a cancel still ends the wait for the word that
    /// it does.
    pub(crate) fn give_away(&self) {
        self.lock().given_away = true;
    }

    pub(crate) fn is_given_away(&self) -> bool {
        self.lock().given_away
    }

    pub(crate) fn tell_pass(&self, pass: u64) {
        (self.listener)(Event::Pass(pass));
    }

    fn go(&self, state: &mut State, next: Status) -> bool {
        let may = state.status.may_become(next);
        if may {
            state.status = next;
            (self.listener)(Event::Status(next));
        }
        may
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for Lifecycle {
    fn default() -> Self {
        Self::new(Arc::new(|_| {}))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A sender and two who cancel, in thousands of orders.
    #[test]
    fn it_always_ends_and_is_told_in_the_order_of_the_table() {
        for seed in 0..4000_u64 {
            let told = Arc::new(Mutex::new(Vec::new()));
            let heard = told.clone();
            let life = Lifecycle::new(Arc::new(move |event| {
                if let Event::Status(status) = event {
                    heard.lock().unwrap().push(status);
                }
            }));
            let wait = |mut turns: u64| {
                turns = turns.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 54;
                (0..turns).for_each(|_| std::hint::spin_loop());
            };
            assert!(life.enter(Status::Setup));
            std::thread::scope(|scope| {
                for number in 1..3 {
                    let life = &life;
                    scope.spawn(move || {
                        wait(seed * 3 + number);
                        life.cancel();
                    });
                }
                wait(seed);
                let sends = [Status::Active, Status::PreSwitchover, Status::Device]
                    .into_iter()
                    .all(|status| life.enter(status));
                let last =
                    if sends && life.commit() { Status::Completed } else { Status::Cancelled };
                assert!(life.enter(last), "seed {seed}: {:?}", life.status());
            });
            let told = told.lock().unwrap();
            assert!(!life.cancel() && !told.last().unwrap().is_running(), "seed {seed}: {told:?}");
            let moves = told.windows(2).all(|pair| pair[0].may_become(pair[1]));
            assert!(moves && told.last() == Some(&life.status()), "seed {seed}: {told:?}");
        }
    }

    #[test]
    fn a_cancel_after_the_commit_has_no_effect_and_one_before_it_prevents_it() {
        let life = Lifecycle::default();
        assert!(!life.cancel(), "nothing is under way");
        for status in [Status::Setup, Status::Active, Status::Device] {
            assert!(life.enter(status));
        }
        assert!(life.commit() && !life.cancel() && life.enter(Status::Completed));
        let life = Lifecycle::default();
        assert!(life.enter(Status::Setup) && life.cancel() && !life.cancel() && !life.commit());
        assert!(!life.enter(Status::Active) && !life.is_given_away());
        assert!(life.enter(Status::Cancelled) && !life.enter(Status::Failed));
    }
}
