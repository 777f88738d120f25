//! Registers, alarms and the line, and a clock that travels.

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
    assert_eq!(get(&mut chip, 12) & (C_IRQ | B_UPDATE), C_IRQ | B_UPDATE, "what was before counts");
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
        let (rtc, _, taken) = loaded(RtcState { base_rtc, last_update: u64::MAX, ..far.clone() });
        taken.unwrap();
        rtc.inner.lock().look();
        get(&mut rtc.inner.lock(), 9);
        saved(&rtc);
    }
}
