//! The end of the process, asked for once.

use std::sync::{Mutex, OnceLock};

use serde_json::json;
use tokio::sync::Notify;

use super::events::Events;
use crate::machine::StopCause;

/// The end of the process.
#[derive(Default)]
pub struct Exit {
    status: OnceLock<i32>,
    wake: Notify,
    announcing: Mutex<()>,
}

impl Exit {
    /// Announces SHUTDOWN and asks the control plane to end the process with `status`. The first to
    /// ask wins, later ones are not heard.
    pub(crate) fn shutdown(&self, events: &Events, cause: StopCause, status: i32) {
        let _alone = self.announcing.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if self.is_requested() {
            return;
        }
        events.emit("SHUTDOWN", json!({"guest": cause.by_guest(), "reason": cause.name()}));
        let _ = self.status.set(status);
        self.wake.notify_one();
    }

    /// From here on no request is taken any more.
    pub fn is_requested(&self) -> bool {
        self.status.get().is_some()
    }

    /// Waits until the end is asked for. For one task only.
    pub async fn requested(&self) -> i32 {
        loop {
            if let Some(&status) = self.status.get() {
                return status;
            }
            self.wake.notified().await;
        }
    }
}
