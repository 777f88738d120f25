//! Events, from whoever has one to every client that finished its negotiation.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, Weak};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::{Map, Value as Json, json};
use tokio::sync::Notify;

use super::commands::NOTHING;
use super::commands::dump::RESULT as DUMP_RESULT;
use super::commands::migration_shapes::STATES;
use super::outbox::Outbox;
use super::schema::{Shape, Type, optional, required};
use crate::machine::{Panic, StopCause};

/// An event that Godwit can send.
pub struct Kind {
    pub name: &'static str,
    /// At most one a second; the last of a burst is kept and sent late.
    pub rate_limited: bool,
    pub data: &'static Shape,
}

/// Every event. An event must be listed here to be sent, because clients with typed events (`qapi`
/// for Rust) fail on names outside QEMU's schema: add none that QEMU does not have, and none
/// without all of its members.
pub static KINDS: &[Kind] = &[
    Kind { name: "BALLOON_CHANGE", rate_limited: true, data: &BALLOON },
    kind("DUMP_COMPLETED", &DUMPED),
    kind("GUEST_PANICKED", &PANICKED),
    kind("MEMORY_FAILURE", &MEMORY_FAILURE),
    kind("MIGRATION", &MIGRATION),
    kind("MIGRATION_PASS", &PASS),
    kind("POWERDOWN", &NOTHING),
    kind("RESET", &ENDED),
    kind("RESUME", &NOTHING),
    kind("SHUTDOWN", &ENDED),
    kind("STOP", &NOTHING),
];

const fn kind(name: &'static str, data: &'static Shape) -> Kind {
    Kind { name, rate_limited: false, data }
}

static BALLOON: Shape = Shape::of(&[required("actual", Type::U64)]);
static ENDED: Shape =
    Shape::of(&[required("guest", Type::Bool), required("reason", Type::Enum(StopCause::NAMES))]);
static PANICKED: Shape = Shape::of(&[required("action", Type::Enum(Panic::NAMES))]);
static MIGRATION: Shape = Shape::of(&[required("status", Type::Enum(STATES))]);
static PASS: Shape = Shape::of(&[required("pass", Type::Int)]);
static DUMPED: Shape =
    Shape::of(&[required("result", Type::Object(&DUMP_RESULT)), optional("error", Type::Text)]);
static MEMORY_FAILURE: Shape = Shape::of(&[
    required("recipient", Type::Enum(&["hypervisor", "guest"])),
    required("action", Type::Enum(&["ignore", "inject", "fatal", "reset"])),
    required("flags", Type::Object(&MEMORY_FLAGS)),
    // Godwit's own: which memory, and what to do.
    optional("x-godwit-reason", Type::Text),
]);
static MEMORY_FLAGS: Shape =
    Shape::of(&[required("action-required", Type::Bool), required("recursive", Type::Bool)]);

const RATE_INTERVAL: Duration = Duration::from_secs(1);

/// The clients, and what is owed to them.
#[derive(Default)]
pub struct Events {
    clients: Mutex<Vec<Weak<Outbox>>>,
    limited: Mutex<HashMap<&'static str, Limited>>,
    /// Wakes [`Events::send_late`].
    held_back: Notify,
}

struct Limited {
    /// Not before this.
    next: Instant,
    held: Option<Json>,
}

impl Events {
    pub fn new() -> Events {
        Events::default()
    }

    /// Sends `name` with `data` (`Json::Null` for none) to every client, at once and from any
    /// thread.
    pub fn emit(&self, name: &str, data: Json) {
        let kind =
            KINDS.iter().find(|kind| kind.name == name).expect("every event is in the table");
        let event = event(kind.name, data, SystemTime::now());
        if !kind.rate_limited || self.is_due(kind.name, &event) {
            self.deliver(&event);
        }
    }

    pub fn subscribe(&self, client: Weak<Outbox>) {
        let mut clients = lock(&self.clients);
        clients.retain(|client| client.strong_count() > 0);
        clients.push(client);
    }

    fn deliver(&self, event: &Json) {
        for client in lock(&self.clients).iter().filter_map(Weak::upgrade) {
            client.push_event(event);
        }
    }

    /// Whether a rate-limited event may go out now; if not, it takes the place of what was held
    /// back.
    fn is_due(&self, name: &'static str, event: &Json) -> bool {
        let now = Instant::now();
        let mut limited = lock(&self.limited);
        let state = limited.entry(name).or_insert(Limited { next: now, held: None });
        if state.next <= now && state.held.is_none() {
            state.next = now + RATE_INTERVAL;
            return true;
        }
        state.held = Some(event.clone());
        self.held_back.notify_one();
        false
    }

    /// Sends what was held back when its time has come; runs for ever.
    pub async fn send_late(&self) {
        loop {
            let next =
                lock(&self.limited).values().filter(|s| s.held.is_some()).map(|s| s.next).min();
            let Some(next) = next else {
                self.held_back.notified().await;
                continue;
            };
            tokio::time::sleep_until(next.into()).await;
            let now = Instant::now();
            let mut due = Vec::new();
            for state in lock(&self.limited).values_mut().filter(|s| s.next <= now) {
                if let Some(event) = state.held.take() {
                    state.next = now + RATE_INTERVAL;
                    due.push(event);
                }
            }
            due.iter().for_each(|event| self.deliver(event));
        }
    }
}

fn event(name: &str, data: Json, when: SystemTime) -> Json {
    let mut event = Map::new();
    let timestamp = match when.duration_since(UNIX_EPOCH) {
        Ok(since) => json!({"seconds": since.as_secs(), "microseconds": since.subsec_micros()}),
        Err(_) => json!({"seconds": -1, "microseconds": -1}),
    };
    event.insert("timestamp".to_owned(), timestamp);
    event.insert("event".to_owned(), name.into());
    if !data.is_null() {
        event.insert("data".to_owned(), data);
    }
    Json::Object(event)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    async fn received(outbox: &Outbox) -> String {
        String::from_utf8(outbox.take().await.unwrap()).unwrap()
    }

    #[test]
    fn burst_is_cut_to_its_first_and_last() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let events = Arc::new(Events::new());
        let outbox = Arc::new(Outbox::new(false));
        outbox.negotiated();
        events.subscribe(Arc::downgrade(&outbox));
        for actual in 0..5 {
            events.emit("BALLOON_CHANGE", json!({"actual": actual}));
        }
        runtime.block_on(async {
            let first = received(&outbox).await;
            assert!(first.contains("\"actual\": 0") && !first.contains("\"actual\": 1"), "{first}");
            let late = events.send_late();
            let rest = received(&outbox);
            tokio::select! {
                () = late => unreachable!(),
                rest = rest => assert!(rest.contains("\"actual\": 4") && !rest.contains("\"actual\": 3"), "{rest}"),
            }
        });
    }

    #[test]
    fn event_without_data_has_no_such_member() {
        let when = UNIX_EPOCH + Duration::from_micros(1_000_002);
        assert_eq!(
            event("STOP", Json::Null, when),
            json!({"timestamp": {"seconds": 1, "microseconds": 2}, "event": "STOP"})
        );
    }
}
