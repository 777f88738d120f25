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

use super::acpi::Place;
use super::bus::Window;
use super::{
    Built, Device, DeviceRequest, Error, IrqLine, Kind, Loading, Missing, SectionKind, Sections,
    Slots, lacks, only_one,
};
use crate::arch::x86_64::acpi::{self, Irq};
use crate::args::switch_or_auto;
use crate::config::Config;
use acpi_tables::aml;
use date::Date;
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
mod tests {
    use super::*;
    use crate::devices::LoadReport;
    use crate::kvm::state::ForeignTsc;
    use std::sync::atomic::AtomicBool;
    use std::sync::atomic::Ordering::Relaxed;

    #[derive(Clone, Default)]
    struct Line(Arc<AtomicBool>);

    impl IrqLine for Line {
        fn set(&self, high: bool) {
            self.0.store(high, Relaxed);
        }
    }

    impl Line {
        fn is_high(&self) -> bool {
            self.0.load(Relaxed)
        }
    }

    fn wired() -> (Chip, Line) {
        let line = Line::default();
        (Chip::new(Box::new(line.clone()), 16 << 20), line)
    }

    fn chip() -> Chip {
        wired().0
    }

    fn set(chip: &mut Chip, bytes: &[(u8, u8)]) {
        for (index, value) in bytes {
            chip.index = *index;
            chip.write(*value);
        }
    }

    fn get(chip: &mut Chip, index: u8) -> u8 {
        chip.index = index;
        chip.read()
    }

    #[test]
    fn time_that_was_set_is_shown_in_every_mode() {
        let mut chip = chip();
        let date = [(0, 0x56), (2, 0x34), (4, 0x23), (7, 0x31), (8, 0x12), (9, 0x99), (0x32, 0x19)];
        set(&mut chip, &[(11, 0x82)]);
        set(&mut chip, &date);
        set(&mut chip, &[(11, 0x82)]);
        assert_eq!(get(&mut chip, 0), 0x56, "it stands while it is set");
        set(&mut chip, &[(11, 0x02)]);
        for (index, value) in &date[1..] {
            assert_eq!(get(&mut chip, *index), *value, "{index}");
        }
        assert_eq!(get(&mut chip, 6), 6, "a Friday");
        set(&mut chip, &[(11, 0x04)]);
        assert_eq!((get(&mut chip, 4), get(&mut chip, 7)), (0x80 | 11, 31));
    }

    #[test]
    fn memory_is_told_and_status_reads_once() {
        let mut chip = chip();
        let word = |chip: &mut Chip, at| u16::from_le_bytes([get(chip, at), get(chip, at + 1)]);
        assert_eq!((word(&mut chip, 0x15), word(&mut chip, 0x17)), (640, 15 << 10));
        chip.looked -= 2 * SECOND;
        set(&mut chip, &[(11, 0x12)]);
        assert_eq!(
            get(&mut chip, 12) & (C_IRQ | B_UPDATE),
            C_IRQ | B_UPDATE,
            "what was before counts"
        );
        assert_eq!(get(&mut chip, 12) & C_IRQ, 0);
        chip.looked -= 2 * SECOND;
        assert_eq!(get(&mut chip, 12) & (C_IRQ | B_UPDATE), C_IRQ | B_UPDATE);
        assert_eq!(get(&mut chip, 13), D_VALID);
    }

    #[test]
    fn an_alarm_is_due_once_a_day_or_as_often_as_it_says() {
        let mut chip = chip();
        set(&mut chip, &[(1, 0x00), (3, 0x30), (5, 0x12)]);
        let noon = |minutes: i128| (12 * 60 + minutes) * 60 * SECOND;
        assert!(chip.alarms(noon(29), noon(30)) && !chip.alarms(noon(30), noon(31)));
        set(&mut chip, &[(3, 0xff), (5, 0xc0)]);
        assert!(chip.alarms(noon(30), noon(31)));
        assert!(!chip.alarms(noon(30), noon(30) + 59 * SECOND));
        // With 12 hours; then never.
        set(&mut chip, &[(11, 0), (1, 0xff), (3, 0x05), (5, 0x81)]);
        assert_eq!(chip.next_alarm(12 * 3600), Some(13 * 3600 + 300));
        assert_eq!(chip.next_alarm(13 * 3600 + 360), Some(DAY + 13 * 3600 + 300));
        set(&mut chip, &[(3, 0x65)]);
        assert_eq!(chip.next_alarm(0), None);
    }

    #[test]
    fn the_line_is_high_for_what_may_interrupt_and_for_nothing_else() {
        let (mut chip, line) = wired();
        chip.looked -= 2 * SECOND;
        chip.look();
        assert!(!line.is_high() && chip.cmos[C] & (C_IRQ | B_UPDATE) == B_UPDATE);
        set(&mut chip, &[(11, 0x12)]);
        assert!(line.is_high() && chip.cmos[C] & C_IRQ != 0);
        set(&mut chip, &[(11, 0x02)]);
        assert!(!line.is_high() && chip.cmos[C] & C_IRQ == 0, "no cause is allowed");
        set(&mut chip, &[(11, 0x92)]);
        assert!(!line.is_high() && chip.cmos[B] == 0x82, "a clock that is set has no updates");
    }

    fn saved(rtc: &Rtc) -> RtcState {
        let mut sections = Sections::default();
        rtc.save(&mut sections).unwrap();
        sections.get::<RtcState>(NAME, 0).unwrap().clone()
    }

    /// A clock, its line, and whether it took `state`.
    fn loaded(state: RtcState) -> (Rtc, Line, Result<(), Error>) {
        let mut sections = Sections::default();
        sections.push(NAME, 0, state);
        let (chip, line) = wired();
        let rtc = Rtc::start(chip).unwrap();
        let report = LoadReport::default();
        let mut from = Loading { sections: &sections, foreign: ForeignTsc::Refuse, report };
        let taken = rtc.load(&mut from);
        (rtc, line, taken)
    }

    /// An alarm at half past noon, and the clock stands at noon.
    fn alarmed() -> RtcState {
        let mut chip = chip();
        set(&mut chip, &[(11, 0x82), (0, 0x00), (2, 0x00), (4, 0x12), (7, 0x09), (8, 0x06)]);
        set(&mut chip, &[(9, 0x27), (0x32, 0x20), (1, 0x00), (3, 0x30), (5, 0x12), (11, 0x22)]);
        saved(&Rtc::start(chip).unwrap())
    }

    #[test]
    fn an_alarm_that_is_due_on_the_way_comes() {
        let state = alarmed();
        let second = SECOND as i64;
        let until = state.next_alarm_time as i64 - state.update_timer;
        assert!((0..1800 * second).contains(&until) && until % second == 0, "{state:?}");
        let began = state.update_timer - state.last_update as i64;
        assert!([0, second].contains(&began), "the timer runs when a second begins");
        for (on_the_way, due) in [(0, false), (1800, true)] {
            let mut state = state.clone();
            state.update_timer -= on_the_way * second;
            state.last_update -= (on_the_way * second) as u64;
            let (rtc, line, taken) = loaded(state);
            taken.unwrap();
            rtc.inner.lock().look();
            assert_eq!(line.is_high(), due, "after {on_the_way} s");
        }
        let (rtc, line, taken) = loaded(RtcState { update_timer: -1, ..state });
        taken.unwrap();
        rtc.inner.lock().look();
        assert!(!line.is_high(), "a timer that does not run waits for nothing");
    }

    #[test]
    fn a_clock_that_is_held_or_has_no_alarm_says_so() {
        let mut chip = chip();
        set(&mut chip, &[(10, 0x76), (3, 0x65)]);
        let state = saved(&Rtc::start(chip).unwrap());
        assert_eq!((state.update_timer, state.next_alarm_time), (-1, i64::MAX as u64));
    }

    #[test]
    fn what_a_stream_says_of_time_is_checked() {
        let mut state = alarmed();
        state.cmos[A] |= A_UPDATING;
        let (rtc, _, taken) = loaded(state.clone());
        taken.unwrap();
        assert_eq!(rtc.inner.lock().cmos[A] & A_UPDATING, 0);
        for base_rtc in [SECONDS_MAX + 1, i64::MAX as u64, i64::MIN as u64] {
            let (_, _, taken) = loaded(RtcState { base_rtc, ..state.clone() });
            let said = taken.unwrap_err().to_string();
            assert!(said.starts_with("section mc146818rtc, field base_rtc: "), "{said}");
        }
        let far = RtcState { offset: i64::MIN, update_timer: i64::MAX, ..state };
        for base_rtc in [SECONDS_MAX, SECONDS_MAX.wrapping_neg()] {
            let (rtc, _, taken) =
                loaded(RtcState { base_rtc, last_update: u64::MAX, ..far.clone() });
            taken.unwrap();
            rtc.inner.lock().look();
            get(&mut rtc.inner.lock(), 9);
            saved(&rtc);
        }
    }
}
