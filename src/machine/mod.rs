//! The machine: QEMU's `microvm` (acpi=off) on KVM.

pub mod convert;
mod error;
mod event;
pub mod load;
mod run_state;
pub mod save;
mod saved;

pub use error::{ContRefused, Error};
pub use event::{Event, Panic, StopCause};
pub use run_state::RunState;
pub use saved::{LoadReport, SavedState};

use crate::config::Config;
use crate::memory::GuestRam;
use std::io::Write;
use std::sync::Arc;

/// What a machine is connected to when it is built.
pub struct Outside {
    /// Where the serial port's output goes. `None` with no serial port, or to lose it. `write` is called on vCPU
    /// threads with one byte at a time, or a few; it should not block for long.
    pub serial: Option<Box<dyn Write + Send>>,
    /// Called for each event, on whichever thread caused it, with no lock held.
    pub events: Box<dyn Fn(Event) + Send + Sync>,
}

/// A vCPU as others see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VcpuInfo {
    pub index: u32,
    /// Kernel thread id (`gettid`).
    pub thread_id: i32,
}

/// One virtual machine. All methods may be called from any thread; those that stop vCPUs wait until all stand still.
pub struct Machine {}

impl Machine {
    /// Makes the VM, its RAM, devices and vCPU threads (standing still), and loads the kernel unless the guest comes by
    /// migration. The run state is then `prelaunch`, or `inmigrate` with `-incoming`; [`Machine::cont`] starts the guest.
    pub fn build(_config: &Config, _outside: Outside) -> Result<Arc<Machine>, Error> {
        unimplemented!()
    }

    pub fn config(&self) -> &Config {
        unimplemented!()
    }

    pub fn run_state(&self) -> RunState {
        unimplemented!()
    }

    /// Stops all vCPUs and goes to state `to`; emits STOP if the guest ran. False: it stood still already, and only the
    /// state changed.
    pub fn stop(&self, _to: RunState) -> Result<bool, Error> {
        unimplemented!()
    }

    /// Lets the guest run; emits RESUME. False: it ran already.
    pub fn cont(&self) -> Result<bool, ContRefused> {
        unimplemented!()
    }

    /// Changes the state of a machine that stands still (`inmigrate` → `paused` …).
    pub fn set_state(&self, _to: RunState) {
        unimplemented!()
    }

    /// `system_reset`: the kernel is loaded again, vCPUs and devices start over. Emits RESET.
    pub fn reset(&self) -> Result<(), Error> {
        unimplemented!()
    }

    /// An NMI to every vCPU, as its LINT1 allows.
    pub fn inject_nmi(&self) -> Result<(), Error> {
        unimplemented!()
    }

    /// `system_powerdown`: there is no button on this board, so that only the event is seen.
    pub fn powerdown(&self) {
        unimplemented!()
    }

    /// Ends the vCPU threads; the machine is dead afterwards. Emits nothing.
    pub fn quit(&self) {
        unimplemented!()
    }

    pub fn vcpus(&self) -> &[VcpuInfo] {
        unimplemented!()
    }

    pub fn ram(&self) -> &GuestRam {
        unimplemented!()
    }

    /// Input for the guest's serial port; returns how many bytes it had room for (at most 16).
    pub fn serial_input(&self, _bytes: &[u8]) -> usize {
        unimplemented!()
    }

    /// Called (on a vCPU thread) whenever the port has room for input again.
    pub fn on_serial_room(&self, _wake: Box<dyn Fn() + Send + Sync>) {
        unimplemented!()
    }

    /// Per cent of time that each vCPU sleeps, 0 to 99; for auto-converge.
    pub fn set_throttle(&self, _percent: u8) {
        unimplemented!()
    }

    /// QEMU's virtual clock, ns: stands still while the guest does.
    pub fn virtual_clock_ns(&self) -> i64 {
        unimplemented!()
    }

    /// Reads all KVM and device state. The guest must stand still. Reading can write guest memory: harvest the dirty
    /// logs afterwards.
    pub fn save_raw(&self) -> Result<SavedState, Error> {
        unimplemented!()
    }

    /// Writes all KVM and device state, in KVM's order. The guest must stand still and all RAM be there.
    pub fn load_raw(&self, _state: &SavedState) -> Result<LoadReport, Error> {
        unimplemented!()
    }
}

/// `CLOCK_MONOTONIC`, the clock that KVM's PIT counts from, in ns.
pub fn monotonic_ns() -> i64 {
    unimplemented!()
}
