//! The machine, as far as QMP's own commands need one.

use crate::config::Actions;
use crate::machine::{Machine, Moment, RunState, VcpuInfo};
use crate::qmp::Error;

/// The machine, as far as QMP's own commands need one; tests put a fake in its place.
pub trait Controllable: Send + Sync {
    fn run_state(&self) -> RunState;
    /// What the machine is in the middle of.
    fn moment(&self) -> Moment {
        Moment::of(self.run_state())
    }
    /// Waits until every vCPU stands still.
    fn stop(&self) -> Result<(), Error>;
    fn cont(&self) -> Result<(), Error>;
    fn reset(&self) -> Result<(), Error>;
    fn inject_nmi(&self) -> Result<(), Error>;
    fn powerdown(&self);
    fn vcpus(&self) -> Vec<VcpuInfo>;
    fn ram_bytes(&self) -> u64;
    /// Copies guest-physical memory; holes, and what is not RAM, read as zeros.
    fn read_physical(&self, address: u64, bytes: &mut [u8]) -> Result<(), Error>;
    /// The guest-physical addresses behind virtual ones, as vCPU `index` translates them now.
    fn translate(&self, index: u32, addresses: &[u64]) -> Result<Vec<Option<u64>>, Error>;
    fn actions(&self) -> Actions;
    fn set_actions(&self, actions: Actions);
}

impl Controllable for Machine {
    fn run_state(&self) -> RunState {
        self.run_state()
    }

    fn moment(&self) -> Moment {
        self.moment()
    }

    fn stop(&self) -> Result<(), Error> {
        self.request_stop().map_err(Error::generic)
    }

    fn cont(&self) -> Result<(), Error> {
        self.cont().map(drop).map_err(Error::generic)
    }

    fn reset(&self) -> Result<(), Error> {
        self.reset().map_err(Error::generic)
    }

    fn inject_nmi(&self) -> Result<(), Error> {
        self.inject_nmi().map_err(Error::generic)
    }

    fn powerdown(&self) {
        self.powerdown();
    }

    fn vcpus(&self) -> Vec<VcpuInfo> {
        self.vcpus().to_vec()
    }

    fn ram_bytes(&self) -> u64 {
        self.config().memory.bytes
    }

    fn read_physical(&self, address: u64, bytes: &mut [u8]) -> Result<(), Error> {
        crate::pages::read(self.ram(), address, bytes).map_err(Error::generic)
    }

    fn translate(&self, index: u32, addresses: &[u64]) -> Result<Vec<Option<u64>>, Error> {
        self.translate(index, addresses).map_err(Error::generic)
    }

    fn actions(&self) -> Actions {
        self.actions()
    }

    fn set_actions(&self, actions: Actions) {
        self.set_actions(actions);
    }
}
