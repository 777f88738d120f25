//! What requests of a disk pass, so that somebody can change what is below while none is under way.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

#[derive(Default)]
pub(crate) struct Gate {
    state: Mutex<State>,
    emptied: Condvar,
}

#[derive(Default)]
struct State {
    inside: usize,
    closed: bool,
}

/// A request is under way while it has this.
pub(crate) struct Pass(Arc<Gate>);

/// Nobody passes while this is there.
pub(crate) struct Closed<'a> {
    gate: &'a Gate,
    opened: &'a dyn Fn(),
}

impl Gate {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `None`: it is closed; the disk is woken when it is open again.
    pub(crate) fn enter(self: &Arc<Gate>) -> Option<Pass> {
        let mut state = self.lock();
        if state.closed {
            return None;
        }
        state.inside += 1;
        Some(Pass(self.clone()))
    }

    /// Closes it, and waits until nobody is inside. `None`: that took too long, or somebody else has
    /// closed it. `opened` wakes the disk, whose requests may have found it closed, however that ends.
    pub(crate) fn close<'a>(
        &'a self,
        within: Duration,
        opened: &'a dyn Fn(),
    ) -> Option<Closed<'a>> {
        let end = Instant::now() + within;
        let mut state = self.lock();
        if state.closed {
            return None;
        }
        state.closed = true;
        let closed = Closed { gate: self, opened };
        while state.inside > 0 {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                drop(state);
                return None;
            }
            state =
                self.emptied.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        drop(state);
        Some(closed)
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        self.0.lock().inside -= 1;
        self.0.emptied.notify_all();
    }
}

impl Drop for Closed<'_> {
    fn drop(&mut self) {
        self.gate.lock().closed = false;
        (self.opened)();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn nobody_is_inside_while_it_is_closed() {
        let gate = Arc::new(Gate::default());
        let pass = gate.enter().unwrap();
        let woken = AtomicUsize::new(0);
        let wake = || {
            assert!(gate.enter().is_some());
            woken.fetch_add(1, Ordering::Relaxed);
        };
        assert!(gate.close(Duration::from_millis(1), &wake).is_none());
        assert_eq!(woken.load(Ordering::Relaxed), 1);
        let leaves = std::thread::spawn(move || drop(pass));
        let closed = gate.close(Duration::from_secs(60), &wake).unwrap();
        leaves.join().unwrap();
        assert!(gate.enter().is_none() && gate.close(Duration::ZERO, &wake).is_none());
        assert_eq!(woken.load(Ordering::Relaxed), 1);
        drop(closed);
        assert_eq!(woken.load(Ordering::Relaxed), 2);
        assert!(gate.enter().is_some());
    }
}
