//! The connection of a virtio port.

use std::fs::File;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use tokio::sync::Notify;

use super::output::{Log, Output};
use crate::devices::{Line, LineEnd};

/// What a port of the guest and its character device share. A guest loses nothing here: what finds
/// no room stays with it.
pub(crate) struct PortLine {
    output: Arc<Output>,
    log: Option<Mutex<Log>>,
    end: OnceLock<Arc<dyn LineEnd>>,
    pub(super) room: Notify,
}

impl PortLine {
    pub(super) fn new(output: Arc<Output>, log: Option<File>) -> Arc<PortLine> {
        let log = log.map(|file| Mutex::new(Log::new(file)));
        Arc::new(PortLine { output, log, end: OnceLock::new(), room: Notify::new() })
    }

    pub(super) fn receive(&self, bytes: &[u8]) -> usize {
        // Nobody to receive it: no machine uses the line.
        self.end.get().map_or(bytes.len(), |end| end.receive(bytes))
    }
}

impl Line for PortLine {
    fn send(&self, bytes: &[u8]) -> usize {
        let taken = self.output.offer(bytes);
        if let Some(log) = &self.log {
            log.lock().unwrap_or_else(PoisonError::into_inner).write(&bytes[..taken]);
        }
        taken
    }

    fn is_open(&self) -> bool {
        self.output.is_connected()
    }

    fn has_room(&self) {
        self.room.notify_one();
    }

    fn attach(&self, end: Arc<dyn LineEnd>) {
        let told = end.clone();
        self.output.on_change(Box::new(move || told.changed()));
        // There is one device for each line.
        let _ = self.end.set(end);
    }
}
