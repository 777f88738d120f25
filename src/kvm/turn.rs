//! Whose the dirty log is. A bitmap has one reader: a second one would clear bits that the first
//! still needs. A migration waits for it; whoever only measures lets go as soon as somebody waits.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// One turn at a time.
#[derive(Default)]
pub(super) struct Turn {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    taken: bool,
    waiting: u32,
}

impl Turn {
    /// Waits until it is free.
    pub(super) fn take(&self) {
        let mut state = self.lock();
        state.waiting += 1;
        self.changed.notify_all();
        while state.taken {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.waiting -= 1;
        state.taken = true;
    }

    /// False: it is somebody else's, or about to be.
    pub(super) fn try_take(&self) -> bool {
        let mut state = self.lock();
        let free = !state.taken && state.waiting == 0;
        state.taken |= free;
        free
    }

    pub(super) fn give(&self) {
        self.lock().taken = false;
        self.changed.notify_all();
    }

    /// For whoever has it: waits for `time`, or until somebody else wants it, which is true.
    pub(super) fn wanted_within(&self, time: Duration) -> bool {
        let waited = self.changed.wait_timeout_while(self.lock(), time, |s| s.waiting == 0);
        waited.unwrap_or_else(PoisonError::into_inner).0.waiting > 0
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn who_measures_lets_go_when_somebody_waits() {
        let turn = Arc::new(Turn::default());
        assert!(turn.try_take() && !turn.try_take());
        assert!(!turn.wanted_within(Duration::ZERO));
        let other = turn.clone();
        let waits = std::thread::spawn(move || other.take());
        assert!(turn.wanted_within(Duration::from_secs(60)));
        turn.give();
        waits.join().unwrap();
        assert!(!turn.try_take(), "the one who waited has it");
        turn.give();
        assert!(turn.try_take());
    }
}
