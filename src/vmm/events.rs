//! Events, from whoever has one to every client that finished its negotiation.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::{Map, Value as Json, json};
use tokio::sync::Notify;

/// Who wants to hear of events: a client of QMP.
pub(crate) trait Listener: Send + Sync {
    /// Takes an event, unless it is too early for it. Never waits.
    fn event(&self, event: &Json);
}

/// At most one a second, of VSERPORT_CHANGE for each port; the last of a burst is kept and sent late.
const RATE_LIMITED: [&str; 3] = ["BALLOON_CHANGE", "BLOCK_IO_ERROR", "VSERPORT_CHANGE"];
const RATE_INTERVAL: Duration = Duration::from_secs(1);

/// The clients, and what is owed to them.
#[derive(Default)]
pub struct Events {
    clients: Mutex<Vec<Weak<dyn Listener>>>,
    limited: Mutex<HashMap<(&'static str, String), Limited>>,
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
    /// thread. The name must be in QMP's table of events.
    pub fn emit(&self, name: &'static str, data: Json) {
        let event = event(name, data, SystemTime::now());
        if !RATE_LIMITED.contains(&name) || self.is_due(name, &event) {
            self.deliver(&event);
        }
    }

    /// Every event goes to `client` from now on, as long as it exists.
    pub(crate) fn subscribe<L: Listener + 'static>(&self, client: &Arc<L>) {
        let mut clients = lock(&self.clients);
        clients.retain(|client| client.strong_count() > 0);
        let client = Arc::downgrade(client);
        clients.push(client);
    }

    fn deliver(&self, event: &Json) {
        for client in lock(&self.clients).iter().filter_map(Weak::upgrade) {
            client.event(event);
        }
    }

    /// Whether a rate-limited event may go out now; if not, it takes the place of what was held
    /// back.
    fn is_due(&self, name: &'static str, event: &Json) -> bool {
        let now = Instant::now();
        let of = event["data"]["id"].as_str().unwrap_or_default().to_owned();
        let mut limited = lock(&self.limited);
        let state = limited.entry((name, of)).or_insert(Limited { next: now, held: None });
        if state.next <= now && state.held.is_none() {
            state.next = now + RATE_INTERVAL;
            return true;
        }
        state.held = Some(event.clone());
        self.held_back.notify_one();
        false
    }

    /// Sends what was held back when its time has come; runs for ever.
    pub(crate) async fn send_late(&self) {
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
    use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};

    /// Hears everything, and tells it by a channel.
    struct Heard(UnboundedSender<Json>);

    impl Listener for Heard {
        fn event(&self, event: &Json) {
            self.0.send(event.clone()).unwrap();
        }
    }

    #[test]
    fn burst_is_cut_to_its_first_and_last() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let events = Arc::new(Events::new());
        let (heard, mut told) = unbounded_channel();
        let client = Arc::new(Heard(heard));
        events.subscribe(&client);
        for actual in 0..5 {
            events.emit("BALLOON_CHANGE", json!({"actual": actual}));
        }
        assert_eq!(told.try_recv().unwrap()["data"]["actual"], 0);
        assert!(told.try_recv().is_err());
        runtime.block_on(async {
            tokio::select! {
                () = events.send_late() => unreachable!(),
                last = told.recv() => assert_eq!(last.unwrap()["data"]["actual"], 4),
            }
        });
        assert!(told.try_recv().is_err());
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
