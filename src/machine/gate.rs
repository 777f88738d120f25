//! The barrier at which vCPU threads stand while the guest does not run.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// What a vCPU thread is asked to do when it leaves the guest: bits of [`Requests`].
pub(crate) mod request {
    /// Stand still at the gate.
    pub(crate) const PARK: u32 = 1;
    /// Deliver an NMI.
    pub(crate) const NMI: u32 = 2;
    /// Sleep for the time that auto-converge wants.
    pub(crate) const THROTTLE: u32 = 4;
    /// Stand still for what was dirtied above the limit.
    pub(crate) const PAY: u32 = 8;
}

/// Requests to one vCPU. They are written before the vCPU is kicked.
#[derive(Default)]
pub(crate) struct Requests(AtomicU32);

impl Requests {
    pub(crate) fn add(&self, bits: u32) {
        self.0.fetch_or(bits, Ordering::SeqCst);
    }

    /// Takes all but PARK, which stays until the gate opens; returns what there was.
    pub(crate) fn take(&self) -> u32 {
        self.0.fetch_and(request::PARK, Ordering::SeqCst)
    }

    pub(crate) fn any(&self) -> bool {
        self.0.load(Ordering::SeqCst) != 0
    }

    fn clear_park(&self) {
        self.0.fetch_and(!request::PARK, Ordering::SeqCst);
    }
}

/// One gate for all vCPUs of a machine. Closed at first.
pub(crate) struct Gate {
    state: Mutex<State>,
    changed: Condvar,
    pub requests: Vec<Requests>,
}

struct State {
    open: bool,
    quit: bool,
    places: Vec<Place>,
}

#[derive(Clone, Copy, Default)]
struct Place {
    /// The vCPU's thread stands at the gate and has let go of the vCPU.
    parked: bool,
    /// It stays there even though the gate is open: the guest asked for something that must happen
    /// first.
    held: bool,
}

/// What a thread learns at the gate.
#[derive(PartialEq, Eq)]
pub(crate) enum Pass {
    Run,
    Quit,
}

impl Gate {
    pub(crate) fn new(count: usize) -> Gate {
        let places = vec![Place::default(); count];
        let requests = (0..count).map(|_| Requests::default()).collect();
        let state = State { open: false, quit: false, places };
        Gate { state: Mutex::new(state), changed: Condvar::new(), requests }
    }

    /// The thread of vCPU `index`, which has let go of its vCPU, waits until it may run.
    pub(crate) fn pass(&self, index: usize) -> Pass {
        let mut state = self.lock();
        state.places[index].parked = true;
        self.changed.notify_all();
        loop {
            if state.quit {
                return Pass::Quit;
            }
            if state.open && !state.places[index].held {
                state.places[index].parked = false;
                return Pass::Run;
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Closes the gate; `kick` is called for each vCPU, with its PARK request in place. Returns
    /// when all stand still.
    pub(crate) fn close(&self, kick: impl Fn(usize)) {
        let mut state = self.lock();
        state.open = false;
        for (index, requests) in self.requests.iter().enumerate() {
            requests.add(request::PARK);
            if !state.places[index].parked {
                kick(index);
            }
        }
        // Sleepers under throttle wait on the same condition.
        self.changed.notify_all();
        while !state.places.iter().all(|p| p.parked) {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Opens the gate for all, those held included.
    pub(crate) fn open(&self) {
        let mut state = self.lock();
        for (place, requests) in state.places.iter_mut().zip(&self.requests) {
            place.held = false;
            requests.clear_park();
        }
        state.open = true;
        self.changed.notify_all();
    }

    /// Keeps vCPU `index` from passing until the gate is opened anew.
    pub(crate) fn hold(&self, index: usize) {
        self.lock().places[index].held = true;
    }

    /// Lets all threads end; they must be parked or kicked.
    pub(crate) fn quit(&self) {
        self.lock().quit = true;
        self.changed.notify_all();
    }

    /// Sleeps for `time`, or until the gate closes, or until [`Gate::wake`] finds that it need not.
    pub(crate) fn nap(&self, index: usize, time: Duration, must: impl Fn() -> bool) {
        let end = Instant::now() + time;
        let mut state = self.lock();
        while state.open && !state.quit && must() {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() || state.places[index].held {
                return;
            }
            let waited = self.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Makes all who sleep look whether they still must.
    pub(crate) fn wake(&self) {
        let _state = self.lock();
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
