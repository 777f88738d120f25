//! The machine, as far as QMP's own commands need one.

use crate::block::Images;
use crate::config::Actions;
use crate::devices::BalloonControl;
use crate::kvm::Statistic;
use crate::machine::{ContRefused, DirtyLimit, Error, Machine, Moment, Object, RunState, VcpuInfo};
use crate::memory;

/// The machine, as far as QMP's own commands need one; tests put a fake in its place.
pub trait Controllable: Send + Sync {
    fn run_state(&self) -> RunState;
    /// What the machine is in the middle of.
    fn moment(&self) -> Moment {
        Moment::of(self.run_state())
    }
    /// Waits until every vCPU stands still.
    fn stop(&self) -> Result<(), Error>;
    fn cont(&self) -> Result<(), ContRefused>;
    fn reset(&self) -> Result<(), Error>;
    fn inject_nmi(&self) -> Result<(), Error>;
    fn powerdown(&self);
    fn vcpus(&self) -> Vec<VcpuInfo>;
    /// The machine and all in it as a tree.
    fn objects(&self) -> Object {
        Object::root()
    }
    /// What its processors can do, and what they cannot.
    fn cpu_features(&self) -> Vec<(&'static str, bool)> {
        Vec::new()
    }
    /// What its disks are made of.
    fn images(&self) -> Option<&Images> {
        None
    }
    /// Why it can be neither migrated nor dumped while it runs.
    fn keeps_guest(&self) -> Option<&'static str> {
        None
    }
    /// The balloon, if it has one.
    fn balloon(&self) -> Option<&BalloonControl> {
        None
    }
    /// Changes a property of the first device of a type. `None`: no property of this name can be.
    fn set_property(
        &self,
        _of: &str,
        _name: &str,
        _value: &serde_json::Value,
    ) -> Option<Result<(), String>> {
        None
    }
    /// Whether vCPUs have rings that count the pages they dirty.
    fn has_dirty_rings(&self) -> bool {
        false
    }
    /// Limits what a vCPU, or each, may dirty, in MiB per second; 0 ends it.
    fn limit_dirt(&self, _vcpu: Option<u32>, _mib: u64) -> Result<(), Error> {
        Ok(())
    }
    /// The vCPUs that have a limit.
    fn dirty_limits(&self) -> Vec<DirtyLimit> {
        Vec::new()
    }
    /// What the kernel counted, of the whole machine or of one vCPU.
    fn statistics(&self, _vcpu: Option<u32>) -> Result<Vec<Statistic>, Error> {
        Ok(Vec::new())
    }
    fn ram_bytes(&self) -> u64;
    /// Copies guest-physical memory; holes, and what is not RAM, read as zeros.
    fn read_physical(&self, address: u64, bytes: &mut [u8]) -> Result<(), memory::Error>;
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
        self.request_stop()
    }

    fn cont(&self) -> Result<(), ContRefused> {
        self.cont().map(drop)
    }

    fn reset(&self) -> Result<(), Error> {
        self.reset()
    }

    fn inject_nmi(&self) -> Result<(), Error> {
        self.inject_nmi()
    }

    fn powerdown(&self) {
        self.powerdown();
    }

    fn vcpus(&self) -> Vec<VcpuInfo> {
        self.vcpus().to_vec()
    }

    fn objects(&self) -> Object {
        self.objects()
    }

    fn cpu_features(&self) -> Vec<(&'static str, bool)> {
        self.cpu_features()
    }

    fn images(&self) -> Option<&Images> {
        self.device()
    }

    fn keeps_guest(&self) -> Option<&'static str> {
        self.keeps_guest()
    }

    fn balloon(&self) -> Option<&BalloonControl> {
        self.balloon()
    }

    fn set_property(
        &self,
        of: &str,
        name: &str,
        value: &serde_json::Value,
    ) -> Option<Result<(), String>> {
        self.set_property(of, name, value)
    }

    fn has_dirty_rings(&self) -> bool {
        self.vm().ring_entries().is_some()
    }

    fn limit_dirt(&self, vcpu: Option<u32>, mib: u64) -> Result<(), Error> {
        self.limit_dirt(vcpu, mib)
    }

    fn dirty_limits(&self) -> Vec<DirtyLimit> {
        self.dirty_limits()
    }

    fn statistics(&self, vcpu: Option<u32>) -> Result<Vec<Statistic>, Error> {
        Ok(match vcpu {
            None => self.vm().statistics()?,
            Some(index) => self.vm().vcpu_statistics(index as usize)?,
        })
    }

    fn ram_bytes(&self) -> u64 {
        self.config().memory.bytes
    }

    fn read_physical(&self, address: u64, bytes: &mut [u8]) -> Result<(), memory::Error> {
        crate::pages::read(self.ram(), address, bytes)
    }

    fn translate(&self, index: u32, addresses: &[u64]) -> Result<Vec<Option<u64>>, Error> {
        self.translate(index, addresses)
    }

    fn actions(&self) -> Actions {
        self.actions()
    }

    fn set_actions(&self, actions: Actions) {
        self.set_actions(actions);
    }
}
