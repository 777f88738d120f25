//! The MC146818 real-time clock of `rtc=on`: date and time, and 128 bytes that keep.
//!
//! | port | |
//! |---|---|
//! | 0x70 | write: which byte the next is about |
//! | 0x71 | that byte: date and time in 0 to 9, registers A to D in 10 to 13, then memory |
//!
//! Time is UTC, by the host's clock and what the guest has set it to. Interrupt 8 (periodic, alarm,
//! once a second) comes from a thread that sleeps until one is due.

mod date;
mod section;

pub(crate) use section::RtcState;

use super::bus::Window;
use super::slots::Place;
use super::{
    Built, Device, DeviceRequest, Error, IrqLine, Kind, Loading, Missing, SectionKind, Sections,
    Slots, lacks, only_one,
};
use crate::arch::x86_64::acpi::{self, Irq};
use crate::args::switch_or_auto;
use crate::config::Config;
use acpi_tables::aml;
pub(crate) use date::Date;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, SystemTime};

pub(crate) const KIND: Kind = Kind {
    type_name: "mc146818rtc",
    sections: &[SectionKind::of::<RtcState>("real-time clock and CMOS", |config, instance| {
        match wanted(config) {
            true => only_one(config, instance),
            false => Some(lacks("the MC146818 clock of rtc=on")),
        }
    })],
    missing: |config, sections| {
        let lost = wanted(config) && !sections.contains("mc146818rtc", 0);
        let why =
            "missing; the stream is of a machine without this clock, write rtc=off".to_owned();
        lost.then(|| Missing { name: "mc146818rtc".into(), instance: 0, why })
    },
    machine: &[switch_or_auto!(SWITCH)],
    build,
    ..Kind::NONE
};

const SWITCH: &str = "rtc";
const PORT: u64 = 0x70;
const PORTS: u64 = 2;
const IRQ: u32 = 8;

/// Bytes of the clock.
const SECONDS_ALARM: usize = 1;
const MINUTES_ALARM: usize = 3;
const HOURS_ALARM: usize = 5;
const A: usize = 10;
const B: usize = 11;
const C: usize = 12;
const D: usize = 13;
const CENTURY: usize = 0x32;
/// An alarm byte from here on means any.
const ANY: u8 = 0xc0;

const A_UPDATING: u8 = 0x80;
/// Both bits: the clock is held.
const A_HELD: u8 = 0x60;
const A_RATE: u8 = 0x0f;
const B_SET: u8 = 0x80;
const B_PERIODIC: u8 = 0x40;
const B_ALARM: u8 = 0x20;
const B_UPDATE: u8 = 0x10;
const C_IRQ: u8 = 0x80;
/// The bits of C that say why, and those of B that let them interrupt.
const CAUSES: u8 = B_PERIODIC | B_ALARM | B_UPDATE;
/// There is power.
const D_VALID: u8 = 0x80;
const POWER_ON_A: u8 = 0x26;
const POWER_ON_B: u8 = date::HOURS_24;

const SECOND: i128 = 1_000_000_000;
/// Before a second ends, the clock says for so long that it is about to change.
const UPDATING_NS: i128 = 244_000;
const TICKS_PER_SECOND: i128 = 32768;
/// Seconds.
const DAY: i128 = 86_400;
/// Since 1970. No registers, sense or nonsense, say a year so far away (it is the 36,812th).
const SECONDS_MAX: u64 = 1 << 40;
const NAME: &str = "mc146818rtc";

/// Whether the machine has one. `auto`, QEMU's own default, means off under KVM.
fn wanted(config: &Config) -> bool {
    config.machine.switches.get(SWITCH, false)
}

fn build(slots: &mut Slots<'_>) -> Result<Built, Error> {
    if !wanted(slots.config) {
        return Ok(Vec::new());
    }
    let chip = Chip::new(slots.irq(IRQ), slots.vm.ram().bytes());
    let device = Arc::new(Rtc::start(chip)?);
    slots.port_window(PORT, PORTS, Arc::new(Ports(device.inner.clone())))?;
    slots.describe(Place::Clock, describe());
    Ok(vec![device])
}

fn describe() -> Vec<u8> {
    let ports = aml::IO::new(PORT as u16, PORT as u16, 1, 8);
    let kind = aml::EISAName::new("PNP0B00");
    acpi::device("RTC_", &kind, vec![], vec![&ports, &Irq(IRQ as u8)], vec![])
}

/// ns since 1970 by the host's clock.
fn host_ns() -> i128 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    since.as_nanos() as i128
}

/// The device.
pub(crate) struct Rtc {
    inner: Arc<Inner>,
    thread: Option<JoinHandle<()>>,
}

struct Inner {
    chip: Mutex<Chip>,
    changed: Condvar,
}

/// What vCPUs and the thread share.
struct Chip {
    cmos: [u8; 128],
    index: u8,
    /// What the guest's clock is ahead of the host's, ns.
    ahead: i128,
    /// Guest time, in ns, up to which causes have been looked for.
    looked: i128,
    irq: Box<dyn IrqLine>,
    running: bool,
    ended: bool,
}

impl Chip {
    fn new(irq: Box<dyn IrqLine>, ram_bytes: u64) -> Chip {
        let mut cmos = [0; 128];
        // Memory in KiB: below 640, above 1 MiB twice, then above 16 MiB and 4 GiB in 64 KiB.
        let kib = |bytes: u64| bytes >> 10;
        let low = ram_bytes.min(3 << 30);
        let put = |cmos: &mut [u8; 128], at: usize, value: u64| {
            let value = value.min(0xffff) as u16;
            cmos[at..at + 2].copy_from_slice(&value.to_le_bytes());
        };
        put(&mut cmos, 0x15, kib(ram_bytes).min(640));
        put(&mut cmos, 0x17, kib(low).saturating_sub(1024));
        put(&mut cmos, 0x30, kib(low).saturating_sub(1024));
        put(&mut cmos, 0x34, low.saturating_sub(16 << 20) >> 16);
        let high = (ram_bytes - low) >> 16;
        cmos[0x5b..0x5e].copy_from_slice(&high.to_le_bytes()[..3]);
        cmos[A] = POWER_ON_A;
        cmos[B] = POWER_ON_B;
        cmos[D] = D_VALID;
        Chip { cmos, index: 0, ahead: 0, looked: host_ns(), irq, running: false, ended: false }
    }

    /// Guest time, ns since 1970.
    fn now(&self) -> i128 {
        host_ns() + self.ahead
    }

    /// Puts guest time into the registers, unless the guest is setting them.
    fn show(&mut self, now: i128) {
        if self.cmos[B] & B_SET == 0 {
            let (date, mode) = (Date::of(now.div_euclid(SECOND) as i64), self.cmos[B]);
            date.write(mode, &mut self.cmos);
        }
    }

    /// Takes guest time from the registers; nonsense changes nothing.
    fn set_time(&mut self) {
        let Some(seconds) = Date::read(self.cmos[B], &self.cmos).seconds() else { return };
        self.ahead = i128::from(seconds) * SECOND - host_ns();
        self.looked = self.now();
    }

    /// ns between two periodic interrupts; none where there are none.
    fn period(&self) -> Option<i128> {
        let rate = match self.cmos[A] & A_RATE {
            0 => return None,
            // The two slowest are the same as two faster ones.
            rate @ (1 | 2) => rate + 7,
            rate => rate,
        };
        Some((SECOND << (rate - 1)) / TICKS_PER_SECOND)
    }

    /// The first second of the alarm from `second` on; it comes within a day, or never.
    fn next_alarm(&self, mut second: i128) -> Option<i128> {
        let end = second + DAY;
        let mut shown = self.cmos;
        while second < end {
            Date::of(second as i64).write(self.cmos[B], &mut shown);
            let differs = |at: usize, shown: u8| self.cmos[at] < ANY && self.cmos[at] != shown;
            let step = match () {
                () if differs(HOURS_ALARM, shown[4]) => 3600,
                () if differs(MINUTES_ALARM, shown[2]) => 60,
                () if differs(SECONDS_ALARM, shown[0]) => 1,
                () => return Some(second),
            };
            second += step - second.rem_euclid(step);
        }
        None
    }

    /// Whether a second of the alarm is among those that began between two times.
    fn alarms(&self, from: i128, to: i128) -> bool {
        let next = self.next_alarm(from.div_euclid(SECOND) + 1);
        next.is_some_and(|second| second <= to.div_euclid(SECOND))
    }

    /// Finds out what has happened since it was last asked, and raises the line if it should be.
    fn look(&mut self) {
        let (from, to) = (self.looked, self.now());
        self.looked = to;
        if self.cmos[B] & B_SET == 0 && from.div_euclid(SECOND) != to.div_euclid(SECOND) {
            self.cmos[C] |= B_UPDATE;
            if self.alarms(from, to) {
                self.cmos[C] |= B_ALARM;
            }
        }
        if self.period().is_some_and(|period| from.div_euclid(period) != to.div_euclid(period)) {
            self.cmos[C] |= B_PERIODIC;
        }
        self.settle();
    }

    /// The line is high as long as a cause is there that may interrupt.
    fn settle(&mut self) {
        let high = self.cmos[C] & self.cmos[B] & CAUSES != 0;
        if high != (self.cmos[C] & C_IRQ != 0) {
            self.cmos[C] ^= C_IRQ;
            self.irq.set(high);
        }
    }

    /// How long nothing can be due; `None`: as long as nobody changes anything.
    fn rest(&self) -> Option<Duration> {
        let now = self.now();
        let until = |step: i128| step - now.rem_euclid(step);
        let second = (self.cmos[B] & (B_UPDATE | B_ALARM) != 0 && self.cmos[B] & B_SET == 0)
            .then(|| until(SECOND));
        let period = self.period().filter(|_| self.cmos[B] & B_PERIODIC != 0).map(until);
        let next = second.into_iter().chain(period).min()?;
        self.running.then(|| Duration::from_nanos(next as u64))
    }

    fn read(&mut self) -> u8 {
        let index = usize::from(self.index);
        let now = self.now();
        self.look();
        match index {
            0..10 | CENTURY => {
                self.show(now);
                self.cmos[index]
            }
            A => {
                let soon = now.rem_euclid(SECOND) >= SECOND - UPDATING_NS;
                let updates = soon && self.cmos[B] & B_SET == 0;
                self.cmos[A] | if updates { A_UPDATING } else { 0 }
            }
            C => {
                self.irq.set(false);
                std::mem::take(&mut self.cmos[C])
            }
            _ => self.cmos[index],
        }
    }

    fn write(&mut self, value: u8) {
        let index = usize::from(self.index);
        match index {
            SECONDS_ALARM | MINUTES_ALARM | HOURS_ALARM => self.cmos[index] = value,
            0..10 | CENTURY => {
                self.show(self.now());
                self.cmos[index] = value;
                if self.cmos[B] & B_SET == 0 {
                    self.set_time();
                }
            }
            A => {
                self.look();
                self.cmos[A] = value & !A_UPDATING;
            }
            B => {
                self.look();
                self.show(self.now());
                let before = self.cmos[B];
                self.cmos[B] = match value & B_SET {
                    0 => value,
                    _ => value & !B_UPDATE,
                };
                // The registers are read in the mode in which they were written.
                if before & B_SET != 0 && value & B_SET == 0 {
                    self.set_time();
                }
                // A cause that is there already interrupts as soon as it may.
                self.settle();
            }
            C | D => {}
            _ => self.cmos[index] = value,
        }
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, Chip> {
        self.chip.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The life of the thread.
    fn run(&self) {
        let mut chip = self.lock();
        while !chip.ended {
            if chip.running {
                chip.look();
            }
            let wait = match chip.rest() {
                Some(rest) => self.changed.wait_timeout(chip, rest).map(|(chip, _)| chip).ok(),
                None => self.changed.wait(chip).ok(),
            };
            match wait {
                Some(woken) => chip = woken,
                None => return,
            }
        }
    }
}

impl Rtc {
    fn start(chip: Chip) -> Result<Rtc, Error> {
        let inner = Arc::new(Inner { chip: Mutex::new(chip), changed: Condvar::new() });
        let ours = inner.clone();
        let thread = Builder::new().name("rtc".into()).spawn(move || ours.run());
        let failed =
            |source| Error::Host { what: "a thread for the real-time clock".into(), source };
        Ok(Rtc { inner, thread: Some(thread.map_err(failed)?) })
    }

    fn change(&self, change: impl FnOnce(&mut Chip)) {
        change(&mut self.inner.lock());
        self.inner.changed.notify_all();
    }
}

impl Drop for Rtc {
    fn drop(&mut self) {
        self.change(|chip| chip.ended = true);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Device for Rtc {
    /// The clock goes on; what it would interrupt for is forgotten.
    fn reset(&self) -> Result<(), Error> {
        self.change(|chip| {
            chip.cmos[B] &= !(CAUSES | 8);
            chip.cmos[C] = 0;
            chip.irq.set(false);
        });
        Ok(())
    }

    /// What is due is raised while the interrupt controllers still take it.
    fn quiesce(&self) -> Result<(), Error> {
        self.change(|chip| {
            if chip.running {
                chip.look();
            }
            chip.running = false;
        });
        Ok(())
    }

    fn resume(&self) -> Result<(), Error> {
        self.change(|chip| chip.running = true);
        Ok(())
    }

    fn save(&self, sections: &mut Sections) -> Result<(), Error> {
        let mut chip = self.inner.lock();
        let host = host_ns();
        let now = host + chip.ahead;
        chip.show(now);
        let periodic = chip.period().filter(|_| chip.cmos[B] & B_PERIODIC != 0);
        let next = |step: i128| (host + step - now.rem_euclid(step)) as i64;
        let ticks = |period: i128| (period * TICKS_PER_SECOND / SECOND) as u32;
        // When the next second and the next alarm that nobody has looked for yet begin; by the time
        // the guest is there, they may have. QEMU asks for both only when that timer runs.
        let at_host = |second: i128| (second * SECOND - chip.ahead) as i64;
        let second = chip.looked.div_euclid(SECOND) + 1;
        let held = chip.cmos[A] & A_HELD == A_HELD;
        sections.push(
            NAME,
            0,
            RtcState {
                cmos: chip.cmos,
                cmos_index: chip.index,
                periodic_timer: periodic.map_or(-1, next),
                next_periodic_time: periodic.map_or(0, next),
                period: periodic.map_or(0, ticks),
                base_rtc: now.div_euclid(SECOND) as u64,
                last_update: (host - now.rem_euclid(SECOND)) as u64,
                update_timer: if held { -1 } else { at_host(second) },
                next_alarm_time: chip.next_alarm(second).map_or(i64::MAX, at_host) as u64,
                ..RtcState::default()
            },
        );
        Ok(())
    }

    fn load(&self, from: &mut Loading<'_>) -> Result<(), Error> {
        let Some(brought) = from.sections.get::<RtcState>(NAME, 0) else {
            return self.reset();
        };
        // Before 1970 it is negative.
        let base = brought.base_rtc as i64;
        if base.unsigned_abs() > SECONDS_MAX {
            let why = format!("{base} seconds since 1970 are no date of this clock");
            return Err(Error::Misfit { section: NAME.into(), field: "base_rtc", why });
        }
        self.change(|chip| {
            chip.cmos = brought.cmos;
            chip.cmos[A] &= !A_UPDATING;
            chip.index = brought.cmos_index & 0x7f;
            let base = i128::from(base) * SECOND;
            chip.ahead = base - i128::from(brought.last_update) + i128::from(brought.offset);
            // The source has looked up to the second before its timer; what began since is due.
            chip.looked = match i128::from(brought.update_timer) {
                ..0 => chip.now(),
                next => chip.now().min(next - SECOND + chip.ahead),
            };
            // Whatever it was: KVM's chips are loaded separately.
            chip.irq.set(chip.cmos[C] & C_IRQ != 0);
        });
        Ok(())
    }
}

struct Ports(Arc<Inner>);

impl Window for Ports {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        if let (1, Some(byte)) = (offset, data.first_mut()) {
            *byte = self.0.lock().read();
        }
    }

    fn write(&self, offset: u64, data: &[u8]) -> Option<DeviceRequest> {
        let value = *data.first()?;
        let mut chip = self.0.lock();
        match offset {
            0 => chip.index = value & 0x7f,
            _ => chip.write(value),
        }
        self.0.changed.notify_all();
        None
    }
}

#[cfg(test)]
mod tests;
