//! What may not return for a long time, on a thread of its own: the owner of a ring waits for it in
//! the ring, where a cancel ends the wait. The thread is joined by nobody.

use std::sync::mpsc::{self, TryRecvError};

use super::error::{Error, Result};
use super::ring::Ring;

/// Runs `work` on a thread called `name` and waits for what it gives out. When the wait is cancelled
/// the result is dropped on that thread, whenever it comes.
pub(crate) fn aside<T: Send + 'static>(
    ring: &mut Ring,
    name: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T> {
    let (sender, receiver) = mpsc::channel();
    let waker = ring.waker().clone();
    let work = move || {
        // A receiver that is gone was cancelled.
        let _ = sender.send(work());
        waker.wake();
    };
    std::thread::Builder::new().name(name.to_owned()).spawn(work)?;
    loop {
        match receiver.try_recv() {
            Ok(result) => return Ok(result),
            Err(TryRecvError::Empty) => ring.sleep(None)?,
            Err(TryRecvError::Disconnected) => {
                return Err(Error::System(std::io::Error::other("its thread panicked")));
            }
        }
    }
}
