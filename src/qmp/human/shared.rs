//! The way to a monitor on a console that others share: keys as far as there is room, and who has
//! them. What has happened is kept, not how often, so that it is bounded.

use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

/// Keys that wait while a command runs.
const WAITING_MAX: usize = 4096;

/// What comes to the monitor.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Input {
    /// Somebody is at the other end.
    Opened,
    /// Keys come here, or go elsewhere.
    Focus(bool),
    Bytes(Vec<u8>),
}

#[derive(Default)]
pub(crate) struct Inputs {
    state: Mutex<State>,
    filled: Notify,
    /// Somebody came or left.
    came_or_left: Notify,
    /// Called, with no lock held, when there is room for keys again.
    room: OnceLock<Box<dyn Fn() + Send + Sync>>,
}

#[derive(Default)]
struct State {
    bytes: Vec<u8>,
    open: bool,
    opened: bool,
    focused: bool,
    focus_changed: bool,
}

impl Inputs {
    pub(crate) fn on_room(&self, room: Box<dyn Fn() + Send + Sync>) {
        let _ = self.room.set(room);
    }

    /// Takes as many keys as there is room for.
    pub(crate) fn push(&self, bytes: &[u8]) -> usize {
        let mut state = self.state();
        let taken = bytes.len().min(WAITING_MAX - state.bytes.len());
        state.bytes.extend(&bytes[..taken]);
        drop(state);
        self.filled.notify_one();
        taken
    }

    /// Says where keys go now, and whether somebody has been greeted here.
    pub(crate) fn focus(&self, on: bool) -> bool {
        let mut state = self.state();
        (state.focused, state.focus_changed) = (on, true);
        let greeted = state.open && !state.opened;
        drop(state);
        self.filled.notify_one();
        greeted
    }

    /// Says whether somebody is at the other end.
    pub(crate) fn open(&self, open: bool) {
        let mut state = self.state();
        let came = open && !state.open;
        state.open = open;
        state.opened |= came;
        drop(state);
        self.came_or_left.notify_waiters();
        if came {
            self.filled.notify_one();
        }
    }

    /// Waits until who typed what was taken last has been gone for so long, whoever came since.
    pub(crate) async fn left_for(&self, time: Duration) {
        let is_gone = || {
            let state = self.state();
            !state.open || state.opened
        };
        loop {
            let changed = self.came_or_left.notified();
            if !is_gone() {
                changed.await;
                continue;
            }
            tokio::time::sleep(time).await;
            if is_gone() {
                return;
            }
        }
    }

    pub(crate) async fn next(&self) -> Input {
        loop {
            if let Some(input) = self.take() {
                return input;
            }
            self.filled.notified().await;
        }
    }

    fn take(&self) -> Option<Input> {
        let mut state = self.state();
        if std::mem::take(&mut state.focus_changed) {
            return Some(Input::Focus(state.focused));
        }
        if std::mem::take(&mut state.opened) {
            return Some(Input::Opened);
        }
        let bytes = std::mem::take(&mut state.bytes);
        drop(state);
        if bytes.is_empty() {
            return None;
        }
        if let Some(room) = self.room.get() {
            room();
        }
        Some(Input::Bytes(bytes))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_is_bounded_and_nothing_that_matters_is_lost() {
        let inputs = Inputs::default();
        inputs.open(true);
        assert!(!inputs.focus(true), "nobody was greeted yet");
        assert_eq!(inputs.push(&[b'x'; 5000]), WAITING_MAX);
        assert_eq!(inputs.push(b"x"), 0);
        for _ in 0..1000 {
            inputs.focus(false);
            inputs.focus(true);
            inputs.open(false);
            inputs.open(true);
        }
        assert_eq!(inputs.take(), Some(Input::Focus(true)));
        assert_eq!(inputs.take(), Some(Input::Opened));
        assert_eq!(inputs.take(), Some(Input::Bytes(vec![b'x'; WAITING_MAX])));
        assert_eq!(inputs.take(), None);
        assert!(inputs.focus(false));
    }
}
