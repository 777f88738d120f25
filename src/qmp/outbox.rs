//! What waits to be written to one client.
//!
//! Any thread may put something in (vCPU threads announce events, helpers finish commands); one
//! task of the control plane takes it out. That an event was put in before the command that caused
//! it was answered is enough for the client to see them in this order.
//!
//! A client that does not read costs a bounded amount of memory: above
//! [`Outbox::REQUESTS_PAUSE_BYTES`] none of its requests is taken, so answers stop; events cannot
//! be held back, so above [`Outbox::OVERRUN_BYTES`] the connection is given up. It would otherwise
//! go on with a gap that the client cannot know of.

use std::sync::{Mutex, MutexGuard, OnceLock};

use serde::Serialize;
use serde_json::Value as Json;
use tokio::sync::Notify;

use super::{events, json};
use crate::vmm::Listener;

pub(crate) struct Outbox {
    pretty: bool,
    queue: Mutex<Queue>,
    /// Wakes the one who writes.
    filled: Notify,
    /// Wakes those who wait for room, or for the end.
    drained: Notify,
    /// Cuts the connection.
    hang_up: OnceLock<Box<dyn Fn() + Send + Sync>>,
}

#[derive(Default)]
struct Queue {
    bytes: Vec<u8>,
    /// Taken for writing and not yet written.
    in_flight: usize,
    /// The client finished its negotiation and gets events.
    negotiated: bool,
    /// Nothing is written any more: the client is gone, or was given up.
    closed: bool,
    /// Nothing is put in any more; what is there is still written.
    finished: bool,
}

impl Queue {
    fn waiting(&self) -> usize {
        self.bytes.len() + self.in_flight
    }
}

impl Outbox {
    pub(crate) const REQUESTS_PAUSE_BYTES: usize = 256 << 10;
    pub(crate) const OVERRUN_BYTES: usize = 16 << 20;

    pub(crate) fn new(pretty: bool) -> Outbox {
        Outbox {
            pretty,
            queue: Mutex::default(),
            filled: Notify::new(),
            drained: Notify::new(),
            hang_up: OnceLock::new(),
        }
    }

    /// Says how to cut the connection when the client is given up.
    pub(crate) fn on_overrun(&self, hang_up: impl Fn() + Send + Sync + 'static) {
        let _ = self.hang_up.set(Box::new(hang_up));
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// What a person reads.
    pub(crate) fn say(&self, text: &[u8]) {
        self.append(text);
    }

    /// An answer or a greeting.
    pub(crate) fn push(&self, message: &impl Serialize) {
        let bytes = self.format(message);
        self.append(&bytes);
    }

    fn format(&self, message: &impl Serialize) -> Vec<u8> {
        if self.pretty { json::pretty_lines(message) } else { json::line(message) }
    }

    fn append(&self, bytes: &[u8]) {
        let mut queue = self.queue();
        if queue.closed || queue.finished {
            return;
        }
        queue.bytes.extend_from_slice(bytes);
        if queue.waiting() > Self::OVERRUN_BYTES + bytes.len() {
            drop(queue);
            self.hang_up();
            return;
        }
        drop(queue);
        self.filled.notify_one();
    }

    #[cfg(test)]
    pub(super) fn take_now(&self) -> Vec<u8> {
        std::mem::take(&mut self.queue().bytes)
    }

    /// From here on events are delivered.
    pub(crate) fn negotiated(&self) {
        self.queue().negotiated = true;
    }

    /// The client is gone.
    pub(crate) fn close(&self) {
        let mut queue = self.queue();
        queue.closed = true;
        queue.bytes = Vec::new();
        drop(queue);
        self.filled.notify_one();
        self.drained.notify_waiters();
    }

    /// Gives the client up, whatever it has not read.
    pub(crate) fn hang_up(&self) {
        self.close();
        if let Some(hang_up) = self.hang_up.get() {
            hang_up();
        }
    }

    /// No more is coming; [`Outbox::take`] ends once all is written.
    pub(crate) fn finish(&self) {
        self.queue().finished = true;
        self.filled.notify_one();
    }

    /// Waits until there is something to write, and takes all of it. `None`: there will be no more.
    pub(crate) async fn take(&self) -> Option<Vec<u8>> {
        loop {
            {
                let mut queue = self.queue();
                if queue.closed {
                    return None;
                }
                if !queue.bytes.is_empty() {
                    let bytes = std::mem::take(&mut queue.bytes);
                    queue.in_flight = bytes.len();
                    return Some(bytes);
                }
                if queue.finished {
                    return None;
                }
            }
            self.filled.notified().await;
        }
    }

    /// `count` of the bytes taken were written.
    pub(crate) fn written(&self, count: usize) {
        let mut queue = self.queue();
        queue.in_flight -= count;
        let room = queue.waiting() <= Self::REQUESTS_PAUSE_BYTES;
        drop(queue);
        if room {
            self.drained.notify_waiters();
        }
    }

    /// Waits until all is written, or nothing can be.
    pub(crate) async fn flushed(&self) {
        self.drained_to(0).await;
    }

    /// Waits until another request may be taken. `false`: the connection was closed.
    pub(crate) async fn has_room(&self) -> bool {
        self.drained_to(Self::REQUESTS_PAUSE_BYTES).await
    }

    async fn drained_to(&self, bytes: usize) -> bool {
        loop {
            let drained = self.drained.notified();
            {
                let queue = self.queue();
                if queue.closed {
                    return false;
                }
                if queue.waiting() <= bytes {
                    return true;
                }
            }
            drained.await;
        }
    }
}

impl Listener for Outbox {
    /// Events come once the client has finished its negotiation.
    fn event(&self, event: &Json) {
        let listed = |kind: &events::Kind| event["event"] == kind.name;
        assert!(events::KINDS.iter().any(listed), "no client knows {event}");
        if self.queue().negotiated {
            self.push(event);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn events_wait_for_negotiation() {
        let outbox = Outbox::new(false);
        outbox.event(&json!({"event": "STOP"}));
        assert_eq!(outbox.queue().waiting(), 0);
        outbox.negotiated();
        outbox.event(&json!({"event": "STOP"}));
        assert_eq!(outbox.queue().bytes, b"{\"event\": \"STOP\"}\r\n");
    }

    #[test]
    fn client_that_does_not_read_is_given_up_with_bounded_memory() {
        let outbox = Outbox::new(false);
        outbox.negotiated();
        for _ in 0..1_000_000 {
            outbox.event(&json!({"event": "RESUME", "data": {}}));
        }
        assert!(outbox.queue().closed);
        assert!(outbox.queue().bytes.capacity() == 0);
    }
}
