//! `-object iothread`: a thread that disks may name.

/// A thread with a name of its own. A disk does its requests on its own thread whatever it names;
/// what is named is there, counted and shown as in QEMU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IoThread {
    pub id: String,
    pub options: IoThreadOptions,
    /// A device names it.
    pub in_use: bool,
}

/// How an I/O thread looks for work before it sleeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IoThreadOptions {
    pub poll_max_ns: u64,
    pub poll_grow: u64,
    pub poll_shrink: u64,
    pub aio_max_batch: u64,
}

impl IoThreadOptions {
    pub const TYPE: &str = "iothread";
}

impl Default for IoThreadOptions {
    fn default() -> IoThreadOptions {
        IoThreadOptions { poll_max_ns: 32768, poll_grow: 0, poll_shrink: 0, aio_max_batch: 0 }
    }
}
