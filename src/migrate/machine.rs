//! The real machine as a migration sees it.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::guest::{self, Migratable, State};
use super::guest_error::GuestError;
use crate::devices::processors::Processors;
use crate::devices::{BalloonControl, HostCpu, Sections};
use crate::kvm::{self, compat, state::ForeignTsc};
use crate::machine::load::Loader;
use crate::machine::save::write_sections;
use crate::machine::{LimitCost, Machine, RunState};
use crate::memory::{GuestRam, Hints, PageSet};
use crate::stream::godwit::{Rehearsal, Requirements};
use crate::stream::{self, SectionHeader, Step};

/// Section ids: section `ram` has a lower one.
const FIRST_DEVICE_ID: u32 = 3;

impl Migratable for Machine {
    fn ram(&self) -> &GuestRam {
        self.ram()
    }

    fn run_state(&self) -> RunState {
        self.run_state()
    }

    fn stop(&self, to: RunState) -> Result<bool, GuestError> {
        Ok(match to {
            RunState::FinishMigrate => self.stop_to_leave()?,
            to => self.stop(to)?,
        })
    }

    fn stop_time(&self) -> Duration {
        self.stop_time()
    }

    fn cont(&self) -> Result<(), GuestError> {
        Ok(self.hand_back()?)
    }

    fn let_go(&self) {
        self.let_go();
    }

    fn memory_lost(&self) {
        self.memory_was_lost();
    }

    fn set_state(&self, to: RunState) {
        self.set_state(to);
    }

    fn set_throttle(&self, percent: u8) {
        self.set_throttle(percent);
    }

    fn has_dirty_rings(&self) -> bool {
        self.vm().ring_entries().is_some()
    }

    fn limit_dirt(&self, mib: u64, period: Duration) -> Result<(), GuestError> {
        Ok(self.limit_dirt_to_leave(mib, period)?)
    }

    fn limit_cost(&self) -> Option<LimitCost> {
        self.limit_cost()
    }

    fn hints(&self) -> Option<&Hints> {
        self.balloon().map(BalloonControl::hints)
    }

    fn start_dirty_log(&self) -> Result<Box<dyn guest::DirtyLog>, GuestError> {
        let log = self.start_dirty_log()?;
        Ok(Box::new(KvmLog(Mutex::new(log))))
    }

    fn requirements(&self) -> Requirements {
        let leaf = |leaf: &kvm_bindings::kvm_cpuid_entry2| {
            [leaf.function, leaf.index, leaf.flags, leaf.eax, leaf.ebx, leaf.ecx, leaf.edx]
        };
        let cpuid = self.vm().cpuid().as_slice().iter().map(leaf).collect();
        Requirements { tsc_khz: self.vm().tsc_khz(), cpuid, msrs: self.vm().msr_list().to_vec() }
    }

    fn check_requirements(&self, requirements: &Requirements) -> Result<(), GuestError> {
        let ours = self.requirements();
        if let Some(lack) = compat::first_lack(&requirements.cpuid, &ours.cpuid) {
            return Err(GuestError::Processor(lack));
        }
        let rates = kvm::TscRates { guest_khz: requirements.tsc_khz, host_khz: ours.tsc_khz };
        if !compat::may_run_at(rates, self.vm().caps().tsc_control) {
            return Err(GuestError::TscRate(rates));
        }
        let unknown =
            requirements.msrs.iter().filter(|msr| !ours.msrs.contains(msr)).collect::<Vec<_>>();
        if let Some(first) = unknown.first() {
            let count = unknown.len();
            tracing::warn!(
                "{count} MSRs of the source's processors are not known here, the first is {first:#x}"
            );
        }
        Ok(())
    }

    fn save(&self, ran: bool) -> Result<Box<dyn State>, GuestError> {
        let goes_on = self.hold_to_leave()?;
        saved(self, ran && goes_on)
    }

    fn save_here(&self, ran: bool) -> Result<Box<dyn State>, GuestError> {
        let goes_on = self.hold_here();
        saved(self, ran && goes_on)
    }

    fn rehearse(&self) -> Result<Rehearsal, GuestError> {
        let processors = self.device::<Processors>().expect("every machine has processors");
        let states = processors.states()?;
        // Not the wall clock: on a host that has much to do now it would say little.
        let started = thread_time();
        let mut out = Vec::new();
        let sections = self.save(RunState::Paused)?;
        write_sections(&sections, FIRST_DEVICE_ID, &mut out);
        // What a stream has of them is less than they are; nearly all of a load's time is theirs.
        processors.write_back(&states)?;
        let took = thread_time().saturating_sub(started);
        let us = took.as_micros().try_into().unwrap_or(u32::MAX);
        Ok(Rehearsal { us, bytes: out.len().try_into().unwrap_or(u32::MAX) })
    }

    fn describes(&self) -> bool {
        !self.config().machine.suppress_vmdesc
    }

    fn loader(&self) -> Box<dyn guest::Loader + '_> {
        let host = HostCpu::from_cpuid(self.vm().cpuid().as_slice());
        Box::new(MachineLoader { machine: self, loader: Some(Loader::new(self.config(), host)) })
    }
}

fn saved(machine: &Machine, runs: bool) -> Result<Box<dyn State>, GuestError> {
    let sections = machine.save(if runs { RunState::Running } else { RunState::Paused })?;
    Ok(Box::new(Saved { sections, suppress_vmdesc: machine.config().machine.suppress_vmdesc }))
}

struct Saved {
    sections: Sections,
    suppress_vmdesc: bool,
}

impl State for Saved {
    fn write(&self, out: &mut Vec<u8>) -> Result<String, GuestError> {
        let description = write_sections(&self.sections, FIRST_DEVICE_ID, out);
        Ok(if self.suppress_vmdesc { String::new() } else { description })
    }
}

struct MachineLoader<'a> {
    machine: &'a Machine,
    /// `None` once it was applied.
    loader: Option<Loader>,
}

impl guest::Loader for MachineLoader<'_> {
    fn section(
        &mut self,
        header: &SectionHeader,
        input: &[u8],
        offset: u64,
    ) -> Result<Step<()>, stream::Error> {
        self.loader
            .as_mut()
            .expect("sections come before the state is applied")
            .section(header, input, offset)
    }

    fn validate(&mut self) -> Result<(), GuestError> {
        Ok(self.loader.as_ref().map_or(Ok(()), Loader::validate)?)
    }

    fn apply(&mut self, foreign: ForeignTsc) -> Result<Option<RunState>, GuestError> {
        let loader = self.loader.take().ok_or(GuestError::AppliedBefore)?;
        let run_state = loader.run_state();
        let report = self.machine.load(loader.sections(), foreign)?;
        if let Some(rates) = report.tsc {
            tracing::warn!("{rates}: kvmclock is right, what counts on the counter itself is not");
        }
        if let Some((vcpu, msr, value)) = report.refused_msrs.first() {
            let count = report.refused_msrs.len();
            tracing::warn!(
                "{count} MSRs could not be set, the first is {msr:#x} = {value:#x} of vCPU {vcpu}"
            );
        }
        // While the source can still go on with the guest, and hears why it cannot go on here.
        self.machine.claim()?;
        Ok(run_state)
    }
}

/// What this thread has had of a processor.
fn thread_time() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(now.tv_sec.try_into().unwrap_or(0), now.tv_nsec.try_into().unwrap_or(0))
}

struct KvmLog(Mutex<kvm::DirtyLog>);

impl guest::DirtyLog for KvmLog {
    fn harvest(&self, into: &mut PageSet) -> Result<(), GuestError> {
        Ok(self.0.lock().unwrap_or_else(PoisonError::into_inner).harvest(into)?)
    }

    fn clear(&self, set: &PageSet, pages: Range<u64>) -> Result<(), GuestError> {
        Ok(self.0.lock().unwrap_or_else(PoisonError::into_inner).clear(set, pages)?)
    }
}
