//! Reading and writing all state of a machine that stands still.

use super::build::PowerOn;
use super::{Error, LoadReport, Machine, SavedState, StoppedTime, monotonic_ns};
use crate::kvm::state::{ForeignTsc, VcpuState};

/// vCPUs whose time stamp counters are this close were never set apart by the guest; they differ
/// because they are read one after the other.
const TSC_READING_MS: u64 = 1000;
const MSR_TSC: u32 = 0x10;

impl Machine {
    /// The state that this machine had before its guest came: what a stream does not bring stays.
    pub fn fresh(&self) -> SavedState {
        let PowerOn { vcpus, vm } = &self.power_on;
        let board = &self.cpus.board;
        SavedState {
            vcpus: vcpus.clone(),
            vm: vm.clone(),
            serial: board.serial.as_ref().map(|s| s.state()),
            fw_cfg: board.fw_cfg.state(),
            vmcoreinfo: board.vmcoreinfo.as_ref().map(|device| device.state()),
            virtual_ns: 0,
            monotonic_ns: monotonic_ns(),
        }
    }

    /// Reads all KVM and device state. The guest must stand still. Reading can write guest memory:
    /// harvest the dirty logs afterwards.
    pub fn save_raw(&self) -> Result<SavedState, Error> {
        let control = self.control();
        if control.state.is_running() {
            return Err(Error::Running);
        }
        let vcpus: Result<Vec<_>, _> =
            self.cpus.vcpus.iter().map(|vcpu| vcpu.lock().read_state(self.vm())).collect();
        let mut vcpus = vcpus?;
        align_tscs(&mut vcpus);
        let mut vm = self.vm().read_state()?;
        if let Some(time) = control.stopped_time {
            vm.clock.clock = time.clock_ns;
            vm.pit = time.pit;
        }
        let board = &self.cpus.board;
        Ok(SavedState {
            vcpus,
            vm,
            serial: board.serial.as_ref().map(|s| s.state()),
            fw_cfg: board.fw_cfg.state(),
            vmcoreinfo: board.vmcoreinfo.as_ref().map(|device| device.state()),
            virtual_ns: control.virtual_ns,
            monotonic_ns: monotonic_ns(),
        })
    }

    /// Writes all KVM and device state, in KVM's order. The guest must stand still and all RAM be
    /// there. Guest time goes on from the state's clock at the next [`Machine::cont`].
    pub fn load_raw(&self, state: &SavedState, foreign: ForeignTsc) -> Result<LoadReport, Error> {
        let mut control = self.control();
        if control.state.is_running() {
            return Err(Error::Running);
        }
        if state.vcpus.len() != self.cpus.vcpus.len() {
            return Err(Error::CpuCount {
                found: state.vcpus.len(),
                wanted: self.cpus.vcpus.len(),
            });
        }
        let mut report = LoadReport::default();
        for (index, (vcpu, state)) in self.cpus.vcpus.iter().zip(&state.vcpus).enumerate() {
            let unwritten = vcpu.lock().write_state(self.vm(), state, foreign)?;
            report
                .refused_msrs
                .extend(unwritten.msrs.into_iter().map(|(msr, v)| (index as u32, msr, v)));
            report.tsc = report.tsc.or(unwritten.tsc);
        }
        self.vm().write_state(&state.vm)?;
        // KVM writes the pvclock page with the clock it has now, so that it must be right at once,
        // not only at `cont`.
        self.vm().set_clock(state.vm.clock.clock)?;
        let board = &self.cpus.board;
        if let (Some(serial), Some(state)) = (&board.serial, &state.serial) {
            serial.set_state(state);
        }
        board.fw_cfg.set_state(state.fw_cfg);
        if let (Some(device), Some(state)) = (&board.vmcoreinfo, state.vmcoreinfo) {
            device.set_state(state);
        }
        control.virtual_ns = state.virtual_ns;
        control.stopped_time =
            Some(StoppedTime { clock_ns: state.vm.clock.clock, pit: state.vm.pit });
        Ok(report)
    }
}

/// One reading serves all vCPUs whose counters run together.
fn align_tscs(vcpus: &mut [VcpuState]) {
    let Some((first, rest)) = vcpus.split_first_mut() else { return };
    let (Some(tsc), Some(khz)) = (first.msr(MSR_TSC), first.tsc_khz) else { return };
    for vcpu in rest {
        let close = |t: u64| t.abs_diff(tsc) < u64::from(khz) * TSC_READING_MS;
        if vcpu.msr(MSR_TSC).is_some_and(close) {
            vcpu.set_msr(MSR_TSC, tsc);
        }
    }
}
