//! What makes a device of a transport: the part that differs from kind to kind.

use super::parts::VirtioDevice;
use super::queue::{Fault, Queue};
use super::section::VirtioKind;
use crate::memory::GuestRam;
use rustix::event::PollFlags;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Instant;

/// A kind of device. Its transport calls it under a lock, which a vCPU may wait for: nothing here
/// blocks, and one call does a bounded amount of work.
pub(crate) trait Model: Send {
    fn kind(&self) -> VirtioKind;

    /// The device's number in the virtio specification.
    fn id(&self) -> u32;

    /// The size that each queue has after a reset.
    fn queue_sizes(&self) -> Vec<u16>;

    /// Its configuration space.
    fn config(&self) -> Vec<u8> {
        Vec::new()
    }

    /// The guest writes to its configuration space. `features` are those agreed upon so far.
    fn write_config(&mut self, _offset: u64, _data: &[u8], _features: u64) {}

    /// How others wake the transport when something happened outside of the guest.
    fn connect(&mut self, _wake: Wake) {}

    /// The driver starts anew.
    fn reset(&mut self);

    /// The driver takes one queue back: what came from it is forgotten.
    fn queue_reset(&mut self, _queue: usize) {}

    /// The driver did what no driver may do: nothing is served until it resets the device. What is
    /// under way ends before this returns.
    fn broken(&mut self) {}

    /// Whether the configuration space has changed since this was last asked, by itself.
    fn take_config_change(&mut self) -> bool {
        false
    }

    /// Whether the guest is to be interrupted for what somebody else gave back, since this was last
    /// asked.
    fn take_interrupt(&mut self) -> bool {
        false
    }

    /// Why a guest with it can be neither migrated nor dumped while it runs.
    fn keeps_guest(&self) -> Option<&'static str> {
        None
    }

    /// Does what there is to be done: the driver is ready, and has put something into a queue, or
    /// what [`Model::waits_for`] named has come. May leave something undone if it is called again.
    /// `features` are those agreed upon.
    fn serve(&mut self, ram: &GuestRam, queues: &mut [Queue], features: u64)
    -> Result<Next, Fault>;

    /// The machine stands still from here on: finishes what is under way, and keeps nothing that
    /// [`Model::save`] does not carry. [`Model::serve`] begins again. The driver need not be ready.
    fn quiesce(&mut self, _ram: &GuestRam, _queues: &mut [Queue]) -> Result<(), Fault> {
        Ok(())
    }

    /// Beside the driver: what it cannot go on without.
    fn waits_for(&self) -> Wait {
        Wait::default()
    }

    /// Its part of a section. `features` are those agreed upon so far.
    fn save(&self, features: u64) -> VirtioDevice;

    fn load(&mut self, from: &VirtioDevice, ram: &GuestRam) -> Result<(), String>;

    /// Takes over what the guest has set in its configuration space, of the one that came with the
    /// section. `features` are those agreed upon.
    fn load_config(&mut self, _config: &[u8], _features: u64) {}
}

/// Wakes a device's worker, from any thread.
pub(super) type Wake = Arc<dyn Fn() + Send + Sync>;

/// What follows a [`Model::serve`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// Nothing, until something happens.
    Wait,
    /// There is more to do; others may have the lock first.
    More,
}

/// Something outside of the guest that is waited for.
#[derive(Clone, Debug, Default)]
pub(crate) struct Wait {
    /// Something to be read here.
    pub readable: Option<Arc<File>>,
    /// Or this, and what of it.
    pub ready: Option<(Arc<OwnedFd>, PollFlags)>,
    pub until: Option<Instant>,
}
