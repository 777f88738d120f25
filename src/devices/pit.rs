//! The i8254 interval timer in the kernel.

use super::device::Device;
use super::error::Error;
use super::kind::{Kind, SectionKind, lacks, only_one};
use super::sections::{Loading, Sections};
use super::slots::{Built, Slots};
use super::virtual_clock::VirtualClock;
use crate::args::{Key, value};
use crate::config::Config;
use crate::kvm::{Vm, monotonic_ns};
use crate::vmstate::{Layout, Visitor};
use kvm_bindings::{kvm_pit_channel_state, kvm_pit_state2};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub(crate) const KIND: Kind = Kind {
    type_name: "isa-pit",
    sections: &[SectionKind::of::<PitState>("programmable interval timer", |config, instance| {
        match wanted(config) {
            true => only_one(config, instance),
            false => Some(lacks("pit=on is missing in -M")),
        }
    })],
    machine: &[Key::shown(
        "pit",
        "on|off",
        |switches, text| {
            switches.set("pit", value::switch_or_auto(text)?.unwrap_or(true));
            Ok(())
        },
        |switches| switches.said("pit").into(),
    )],
    build,
    ..Kind::NONE
};

/// Whether the machine has one; KVM makes it with its other chips.
pub(crate) fn wanted(config: &Config) -> bool {
    config.machine.switches.get("pit", true)
}

fn build(slots: &mut Slots<'_>) -> Result<Built, Error> {
    if !wanted(slots.config) {
        return Ok(Vec::new());
    }
    let (vm, clock) = (slots.vm.clone(), slots.clock.clone());
    let power_on = vm.read_pit()?;
    Ok(vec![Arc::new(Pit { vm, clock, power_on, stopped: Mutex::new(None) })])
}

struct Pit {
    vm: Arc<Vm>,
    clock: Arc<VirtualClock>,
    power_on: kvm_pit_state2,
    /// As it was when the guest stopped; KVM's goes on counting. `None`: the guest never stopped.
    stopped: Mutex<Option<Stopped>>,
}

#[derive(Clone, Copy)]
struct Stopped {
    state: kvm_pit_state2,
    /// What the virtual clock was ahead of the host's monotonic clock then, ns.
    ahead: i64,
}

impl Pit {
    fn stopped(&self) -> MutexGuard<'_, Option<Stopped>> {
        self.stopped.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read(&self) -> Result<Stopped, Error> {
        let ahead = self.clock.now().wrapping_sub(monotonic_ns());
        Ok(Stopped { state: self.vm.read_pit()?, ahead })
    }
}

impl Device for Pit {
    fn reset(&self) -> Result<(), Error> {
        *self.stopped() = None;
        Ok(self.vm.write_pit(&self.power_on)?)
    }

    fn quiesce(&self) -> Result<(), Error> {
        *self.stopped() = Some(self.read()?);
        Ok(())
    }

    /// Which also forgets ticks that piled up while the guest stood still.
    fn resume(&self) -> Result<(), Error> {
        match self.stopped().take() {
            Some(stopped) => Ok(self.vm.write_pit(&stopped.state)?),
            None => Ok(()),
        }
    }

    fn save(&self, sections: &mut Sections) -> Result<(), Error> {
        let stopped = *self.stopped();
        let Stopped { state, ahead } = stopped.map_or_else(|| self.read(), Ok)?;
        sections.push("i8254", 0, pit(&state, self.clock.now(), ahead));
        Ok(())
    }

    fn load(&self, from: &mut Loading<'_>) -> Result<(), Error> {
        let ahead = self.clock.now().wrapping_sub(monotonic_ns());
        let brought = from.sections.get("i8254", 0);
        let state = brought.map_or(self.power_on, |state| from_pit(state, ahead.wrapping_neg()));
        self.vm.write_pit(&state)?;
        *self.stopped() = Some(Stopped { state, ahead });
        Ok(())
    }
}

/// `i8254`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PitState {
    pub irq_disabled: u32,
    pub channels: [PitChannel; 3],
    /// Channel 0's, once more.
    pub next_transition_time: i64,
}

impl Layout for PitState {
    const NAME: &'static str = "i8254";
    const VERSION: u32 = 3;

    fn fields<V: Visitor>(&mut self, v: &mut V) -> Result<(), V::Stop> {
        v.value("channels[0].irq_disabled", &mut self.irq_disabled)?;
        v.structures("channels", &mut self.channels)?;
        v.value("channels[0].next_transition_time", &mut self.next_transition_time)
    }
}

/// One counter. Times are ns of the virtual clock.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PitChannel {
    pub count: i32,
    pub latched_count: u16,
    pub count_latched: u8,
    pub status_latched: u8,
    pub status: u8,
    pub read_state: u8,
    pub write_state: u8,
    pub write_latch: u8,
    pub rw_mode: u8,
    pub mode: u8,
    pub bcd: u8,
    pub gate: u8,
    pub count_load_time: i64,
    pub next_transition_time: i64,
}

impl Layout for PitChannel {
    const NAME: &'static str = "pit channel";
    const VERSION: u32 = 2;

    fn fields<V: Visitor>(&mut self, v: &mut V) -> Result<(), V::Stop> {
        v.value("count", &mut self.count)?;
        v.value("latched_count", &mut self.latched_count)?;
        v.value("count_latched", &mut self.count_latched)?;
        v.value("status_latched", &mut self.status_latched)?;
        v.value("status", &mut self.status)?;
        v.value("read_state", &mut self.read_state)?;
        v.value("write_state", &mut self.write_state)?;
        v.value("write_latch", &mut self.write_latch)?;
        v.value("rw_mode", &mut self.rw_mode)?;
        v.value("mode", &mut self.mode)?;
        v.value("bcd", &mut self.bcd)?;
        v.value("gate", &mut self.gate)?;
        v.value("count_load_time", &mut self.count_load_time)?;
        v.value("next_transition_time", &mut self.next_transition_time)
    }
}

/// Bit 0 of KVM's flags: channel 0 gives no interrupts (HPET in legacy mode).
const PIT_NO_IRQ: u32 = 1;
const PIT_HZ: i128 = 1_193_182;
const NS_PER_S: i128 = 1_000_000_000;

/// A counter of KVM's or the stream's: the fields that both have, of the other one, its load time
/// moved to the other clock, and the rest.
macro_rules! converted {
    ($from:ident + $ahead:ident to $to:ident, $($more:tt)*) => {
        $to {
            latched_count: $from.latched_count,
            count_latched: $from.count_latched,
            status_latched: $from.status_latched,
            status: $from.status,
            read_state: $from.read_state,
            write_state: $from.write_state,
            write_latch: $from.write_latch,
            rw_mode: $from.rw_mode,
            mode: $from.mode,
            bcd: $from.bcd,
            gate: $from.gate,
            count_load_time: $from.count_load_time.wrapping_add($ahead),
            $($more)*
        }
    };
}

/// The stream's PIT: KVM's load times are on the host's monotonic clock, the stream's on the
/// virtual one. `now` is the virtual clock, `ahead` what must be added to KVM's times.
fn pit(from: &kvm_pit_state2, now: i64, ahead: i64) -> PitState {
    let channels = [0, 1, 2].map(|at| {
        let channel = &from.channels[at];
        converted!(
            channel + ahead to PitChannel,
            count: channel.count as i32, next_transition_time: 0
        )
    });
    let mut pit =
        PitState { irq_disabled: from.flags & PIT_NO_IRQ, channels, next_transition_time: 0 };
    pit.channels[0].next_transition_time = next_transition(&pit.channels[0], now);
    pit.next_transition_time = pit.channels[0].next_transition_time;
    pit
}

/// When the channel's output changes next; -1: never.
fn next_transition(channel: &PitChannel, now: i64) -> i64 {
    let count = i128::from(channel.count.max(1));
    let ticks = (i128::from(now) - i128::from(channel.count_load_time)).max(0) * PIT_HZ / NS_PER_S;
    let period_start = ticks / count * count;
    let half = (count + 1) / 2;
    let next = match channel.mode {
        2 if ticks == period_start && ticks != 0 => period_start + count,
        2 => period_start + count + 1,
        3 if ticks - period_start < half => period_start + half,
        3 => period_start + count,
        4 | 5 if ticks == count => count + 1,
        _ if ticks < count => count,
        _ => return -1,
    };
    let at = i128::from(channel.count_load_time) + next * NS_PER_S / PIT_HZ;
    i64::try_from(at).unwrap_or(i64::MAX).max(now.saturating_add(1))
}

/// KVM's PIT. `ahead` is what must be added to the stream's times: monotonic minus virtual clock,
/// ns.
fn from_pit(from: &PitState, ahead: i64) -> kvm_pit_state2 {
    let mut pit = kvm_pit_state2 { flags: from.irq_disabled & PIT_NO_IRQ, ..Default::default() };
    for (to, channel) in pit.channels.iter_mut().zip(&from.channels) {
        *to = converted!(channel + ahead to kvm_pit_channel_state, count: channel.count as u32);
    }
    pit
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pit_times_move_between_clocks() {
        // As recorded: mode 3, 65536, loaded at 0 of the virtual clock.
        let mut kvm = kvm_pit_state2::default();
        kvm.channels[0] = kvm_pit_channel_state {
            count: 0x10000,
            mode: 3,
            gate: 1,
            count_load_time: 5_000,
            ..Default::default()
        };
        let pit = pit(&kvm, 0x1898_5e1d, -5_000);
        assert_eq!((pit.channels[0].count_load_time, pit.next_transition_time), (0, 0x1a30_c2c9));
        assert_eq!(from_pit(&pit, 5_000), kvm);
    }

    #[test]
    fn every_mode_has_its_next_transition() {
        let next = |mode, now| {
            next_transition(&PitChannel { mode, count: 1000, ..Default::default() }, now)
        };
        assert_eq!([0, 2, 3, 4].map(|mode| next(mode, 0)), [838_095, 838_933, 419_047, 838_095]);
        assert_eq!((next(0, 900_000), next(4, 900_000)), (-1, -1));
    }
}
