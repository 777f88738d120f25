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
    /// Answer a roll call.
    pub(crate) const ANSWER: u32 = 16;
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
    /// It was called at a roll call and has not answered yet.
    called: bool,
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

    /// How long it takes until each vCPU that runs has left the guest for a moment, at most `most`.
    /// That is what closing the gate takes, tried without closing it.
    pub(crate) fn roll_call(&self, kick: impl Fn(usize), most: Duration) -> Duration {
        let started = Instant::now();
        let mut state = self.lock();
        for (index, requests) in self.requests.iter().enumerate() {
            if !state.places[index].parked {
                state.places[index].called = true;
                requests.add(request::ANSWER);
                kick(index);
            }
        }
        // Sleepers under throttle are outside of the guest.
        self.changed.notify_all();
        loop {
            let left = most.saturating_sub(started.elapsed());
            let all_are_here = state.places.iter().all(|p| p.parked || !p.called);
            if all_are_here || left.is_zero() {
                break;
            }
            let waited = self.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        state.places.iter_mut().for_each(|place| place.called = false);
        started.elapsed().min(most)
    }

    /// vCPU `index` has left the guest for a roll call.
    pub(crate) fn answer(&self, index: usize) {
        self.lock().places[index].called = false;
        self.changed.notify_all();
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
            if std::mem::take(&mut state.places[index].called) {
                self.changed.notify_all();
            }
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn a_roll_call_waits_for_those_that_run_and_for_no_longer_than_it_is_told() {
        const LONG: Duration = Duration::from_secs(20);
        const SHORT: Duration = Duration::from_millis(5);
        let gate = Arc::new(Gate::new(2));
        let parked = |index| {
            let gate = gate.clone();
            std::thread::spawn(move || gate.pass(index) == Pass::Quit)
        };
        // Nobody is at the gate yet, and nobody answers.
        assert_eq!(gate.roll_call(|_| {}, SHORT), SHORT);
        let threads = [parked(0), parked(1)];
        gate.close(|_| {});
        // All stand still already: nobody is called.
        assert!(gate.roll_call(|_| panic!("a parked vCPU was kicked"), LONG) < LONG);
        gate.open();
        let answers = |index: usize| {
            let gate = gate.clone();
            move || {
                while gate.requests[index].take() & request::ANSWER == 0 {
                    std::thread::yield_now();
                }
                gate.answer(index);
            }
        };
        let running = threads.map(|thread| thread.join().unwrap());
        assert_eq!(running, [false, false]);
        // The first call is over, and is not what is answered.
        for requests in &gate.requests {
            let _ = requests.take();
        }
        let threads = [std::thread::spawn(answers(0)), std::thread::spawn(answers(1))];
        assert!(gate.roll_call(|_| {}, LONG) < LONG);
        for thread in threads {
            thread.join().unwrap();
        }
        // Who sleeps under throttle is outside of the guest already, and sleeps on.
        let naps = [0, 1].map(|index| {
            let gate = gate.clone();
            std::thread::spawn(move || gate.nap(index, 3 * LONG, || true))
        });
        assert!(gate.roll_call(|_| {}, LONG) < LONG);
        assert!(naps.iter().all(|nap| !nap.is_finished()));
        gate.quit();
        for nap in naps {
            nap.join().unwrap();
        }
    }
}
