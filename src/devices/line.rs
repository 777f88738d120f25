//! What lies between a device of the guest and a character device: bytes in both directions, and
//! whether somebody is at the other end.

use std::collections::BTreeMap;
use std::sync::Arc;

/// A character device as a device of the guest sees it. Nothing here waits.
pub trait Line: Send + Sync {
    /// Takes as much as there is room for; returns how much that was.
    fn send(&self, bytes: &[u8]) -> usize;

    /// Whether somebody is at the other end.
    fn is_open(&self) -> bool;

    /// The guest has room for input again.
    fn has_room(&self);

    /// Who takes what comes in, and hears of changes. Once.
    fn attach(&self, end: Arc<dyn LineEnd>);
}

/// A device's end of a [`Line`].
pub trait LineEnd: Send + Sync {
    /// Takes input as far as the guest has room for it; returns how much that was.
    fn receive(&self, bytes: &[u8]) -> usize;

    /// The line was opened or closed, or has room again.
    fn changed(&self);
}

/// By the id of the character device.
pub(crate) type Lines = BTreeMap<String, Arc<dyn Line>>;
