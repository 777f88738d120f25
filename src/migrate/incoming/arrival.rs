//! An incoming migration as others see it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard};

use serde_json::{Map, Value, json};

use crate::io::address::UnixName;
use crate::io::listener::BoundAddress;
use crate::migrate::status::Status;

/// Its status, error and addresses.
#[derive(Default)]
pub struct Arrival {
    state: Mutex<ArrivalState>,
    started: AtomicBool,
}

#[derive(Default)]
struct ArrivalState {
    status: Status,
    error: Option<String>,
    addresses: Vec<BoundAddress>,
}

impl Arrival {
    pub(crate) fn status(&self) -> Status {
        self.lock().status
    }

    /// Takes the one turn there is; false if it was taken.
    pub(crate) fn begin(&self) -> bool {
        !self.started.swap(true, Ordering::SeqCst)
    }

    /// Another attempt may be made.
    pub(crate) fn reopen(&self) {
        self.started.store(false, Ordering::SeqCst);
    }

    pub(crate) fn set(&self, status: Status, error: Option<String>) {
        let mut state = self.lock();
        state.status = status;
        state.error = error;
    }

    pub(crate) fn listening(&self, addresses: &[BoundAddress]) {
        self.lock().addresses = addresses.to_vec();
    }

    /// Members of `query-migrate`.
    pub(crate) fn report(&self) -> Map<String, Value> {
        let state = self.lock();
        let mut out = Map::new();
        if state.status == Status::None {
            return out;
        }
        out.insert("status".into(), json!(state.status.name()));
        if let Some(error) = &state.error {
            out.insert("error-desc".into(), json!(error));
        }
        if !state.addresses.is_empty() && state.status.is_running() {
            out.insert("socket-address".into(), state.addresses.iter().map(address_json).collect());
        }
        out
    }

    fn lock(&self) -> MutexGuard<'_, ArrivalState> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

fn address_json(address: &BoundAddress) -> Value {
    match address {
        BoundAddress::Inet { host, port, ipv6 } => {
            let family = if *ipv6 { "ipv6" } else { "ipv4" };
            json!({"type": "inet", "host": host, "port": port.to_string(), family: true})
        }
        BoundAddress::Unix(UnixName::Path(path)) => json!({"type": "unix", "path": path}),
        BoundAddress::Unix(UnixName::Abstract { name, tight }) => {
            json!({"type": "unix", "path": name, "abstract": true, "tight": tight})
        }
    }
}
