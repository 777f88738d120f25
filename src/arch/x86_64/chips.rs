//! Interrupt controllers and the interval timer.

use crate::vmstate::{ApicState, IoapicState, PicState, PitChannel, PitState};
use kvm_bindings::{
    kvm_ioapic_state, kvm_lapic_state, kvm_pic_state, kvm_pit_channel_state, kvm_pit_state2,
};

/// Registers of the local APIC by offset.
const ID: usize = 0x20;
const TPR: usize = 0x80;
const LDR: usize = 0xd0;
const DFR: usize = 0xe0;
const SVR: usize = 0xf0;
const ISR: usize = 0x100;
const TMR: usize = 0x180;
const IRR: usize = 0x200;
const ESR: usize = 0x280;
const ICR_LOW: usize = 0x300;
const ICR_HIGH: usize = 0x310;
const LVT: [usize; 6] = [0x320, 0x330, 0x340, 0x350, 0x360, 0x370];
const INITIAL_COUNT: usize = 0x380;
const CURRENT_COUNT: usize = 0x390;
const DIVIDE: usize = 0x3e0;

const LVT_MASKED: u32 = 1 << 16;

fn get(lapic: &kvm_lapic_state, at: usize) -> u32 {
    u32::from_le_bytes(std::array::from_fn(|i| lapic.regs[at + i] as u8))
}

fn put(lapic: &mut kvm_lapic_state, at: usize, value: u32) {
    for (i, byte) in value.to_le_bytes().into_iter().enumerate() {
        lapic.regs[at + i] = byte as _;
    }
}

/// The stream's local APIC. `now` is the virtual clock, ns.
pub fn apic(lapic: &kvm_lapic_state, base: u64, now: i64) -> ApicState {
    let group = |at: usize| std::array::from_fn(|i| get(lapic, at + 16 * i));
    // KVM gives an x2APIC's id in full only if asked to.
    let id = match get(lapic, ID) {
        id if id & 0x00ff_ffff == 0 => id >> 24,
        id => id,
    };
    let divide = get(lapic, DIVIDE);
    let mut apic = ApicState {
        base: base as u32,
        id: id as u8,
        arb_id: id as u8,
        tpr: get(lapic, TPR) as u8,
        spurious_vec: get(lapic, SVR),
        log_dest: (get(lapic, LDR) >> 24) as u8,
        dest_mode: (get(lapic, DFR) >> 28) as u8,
        isr: group(ISR),
        tmr: group(TMR),
        irr: group(IRR),
        lvt: LVT.map(|at| get(lapic, at)),
        esr: get(lapic, ESR),
        icr: [get(lapic, ICR_LOW), get(lapic, ICR_HIGH)],
        divide_conf: divide,
        count_shift: ((((divide & 3) | ((divide >> 1) & 4)) + 1) & 7) as i32,
        initial_count: get(lapic, INITIAL_COUNT),
        initial_count_load_time: now,
        next_time: 0,
        timer_expiry: -1,
        sipi: None,
    };
    // One count is one ns at the emulated bus frequency of 1 GHz; periodic or not, the next expiry
    // is a period away.
    if apic.lvt[0] & LVT_MASKED == 0 && apic.initial_count != 0 {
        apic.next_time = now + ((i64::from(apic.initial_count) + 1) << apic.count_shift);
        apic.timer_expiry = apic.next_time;
    }
    apic
}

/// Puts the stream's local APIC over `lapic`, which holds a fresh one: what the stream does not
/// carry stays.
pub fn from_apic(apic: &ApicState, lapic: &mut kvm_lapic_state) {
    put(lapic, ID, u32::from(apic.id) << 24);
    put(lapic, TPR, apic.tpr.into());
    put(lapic, LDR, u32::from(apic.log_dest) << 24);
    put(lapic, DFR, u32::from(apic.dest_mode) << 28 | 0x0fff_ffff);
    put(lapic, SVR, apic.spurious_vec);
    for i in 0..8 {
        put(lapic, ISR + 16 * i, apic.isr[i]);
        put(lapic, TMR + 16 * i, apic.tmr[i]);
        put(lapic, IRR + 16 * i, apic.irr[i]);
    }
    for (at, value) in LVT.into_iter().zip(apic.lvt) {
        put(lapic, at, value);
    }
    put(lapic, ESR, apic.esr);
    put(lapic, ICR_LOW, apic.icr[0]);
    put(lapic, ICR_HIGH, apic.icr[1]);
    put(lapic, DIVIDE, apic.divide_conf);
    put(lapic, INITIAL_COUNT, apic.initial_count);
    // Not in the stream. A one-shot timer fires at once, a periodic one starts a period: early,
    // never lost.
    put(lapic, CURRENT_COUNT, 0);
}

pub fn ioapic(from: &kvm_ioapic_state) -> IoapicState {
    IoapicState {
        id: from.id as u8,
        ioregsel: from.ioregsel as u8,
        irr: from.irr,
        redirections: std::array::from_fn(|i| redirection(from, i)),
    }
}

#[expect(unsafe_code, reason = "the binding is a union of a number and the bits in it")]
fn redirection(from: &kvm_ioapic_state, at: usize) -> u64 {
    // SAFETY: both fields of the union are eight bytes of plain integers, so that every value is a
    // number.
    unsafe { from.redirtbl[at].bits }
}

/// Puts the stream's I/O APIC over `ioapic`, which holds a fresh one.
pub fn from_ioapic(from: &IoapicState, ioapic: &mut kvm_ioapic_state) {
    ioapic.id = from.id.into();
    ioapic.ioregsel = from.ioregsel.into();
    ioapic.irr = from.irr;
    for (entry, bits) in ioapic.redirtbl.iter_mut().zip(from.redirections) {
        entry.bits = bits;
    }
}

pub fn pic(from: &kvm_pic_state) -> PicState {
    PicState {
        last_irr: from.last_irr,
        irr: from.irr,
        imr: from.imr,
        isr: from.isr,
        priority_add: from.priority_add,
        irq_base: from.irq_base,
        read_reg_select: from.read_reg_select,
        poll: from.poll,
        special_mask: from.special_mask,
        init_state: from.init_state,
        auto_eoi: from.auto_eoi,
        rotate_on_auto_eoi: from.rotate_on_auto_eoi,
        special_fully_nested_mode: from.special_fully_nested_mode,
        init4: from.init4,
        // KVM's is always one of two.
        single_mode: 0,
        elcr: from.elcr,
        ltim: None,
    }
}

/// Which lines of each controller can be level triggered.
const ELCR_MASKS: [u8; 2] = [0xf8, 0xde];

/// KVM's controller of that number: 0 master, 1 slave.
pub fn from_pic(from: &PicState, number: usize) -> kvm_pic_state {
    kvm_pic_state {
        last_irr: from.last_irr,
        irr: from.irr,
        imr: from.imr,
        isr: from.isr,
        priority_add: from.priority_add,
        irq_base: from.irq_base,
        read_reg_select: from.read_reg_select,
        poll: from.poll,
        special_mask: from.special_mask,
        init_state: from.init_state,
        auto_eoi: from.auto_eoi,
        rotate_on_auto_eoi: from.rotate_on_auto_eoi,
        special_fully_nested_mode: from.special_fully_nested_mode,
        init4: from.init4,
        elcr: from.elcr,
        elcr_mask: ELCR_MASKS[number],
    }
}

/// Bit 0 of KVM's flags: channel 0 gives no interrupts (HPET in legacy mode).
const PIT_NO_IRQ: u32 = 1;
const PIT_HZ: i128 = 1_193_182;
const NS_PER_S: i128 = 1_000_000_000;

/// The stream's PIT: KVM's load times are on the host's monotonic clock, the stream's on the
/// virtual one. `now` is the virtual clock, `ahead` what must be added to KVM's times.
pub fn pit(from: &kvm_pit_state2, now: i64, ahead: i64) -> PitState {
    let channels = [0, 1, 2].map(|at| {
        let channel = &from.channels[at];
        PitChannel {
            count: channel.count as i32,
            latched_count: channel.latched_count,
            count_latched: channel.count_latched,
            status_latched: channel.status_latched,
            status: channel.status,
            read_state: channel.read_state,
            write_state: channel.write_state,
            write_latch: channel.write_latch,
            rw_mode: channel.rw_mode,
            mode: channel.mode,
            bcd: channel.bcd,
            gate: channel.gate,
            count_load_time: channel.count_load_time.wrapping_add(ahead),
            next_transition_time: 0,
        }
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
pub fn from_pit(from: &PitState, ahead: i64) -> kvm_pit_state2 {
    let mut pit = kvm_pit_state2 { flags: from.irq_disabled & PIT_NO_IRQ, ..Default::default() };
    for (to, channel) in pit.channels.iter_mut().zip(&from.channels) {
        *to = kvm_pit_channel_state {
            count: channel.count as u32,
            latched_count: channel.latched_count,
            count_latched: channel.count_latched,
            status_latched: channel.status_latched,
            status: channel.status,
            read_state: channel.read_state,
            write_state: channel.write_state,
            write_latch: channel.write_latch,
            rw_mode: channel.rw_mode,
            mode: channel.mode,
            bcd: channel.bcd,
            gate: channel.gate,
            count_load_time: channel.count_load_time.wrapping_add(ahead),
        };
    }
    pit
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn local_apic_comes_back() {
        let mut lapic = kvm_lapic_state::default();
        put(&mut lapic, 0x30, 0x50014); // version: not carried, stays
        for (i, at) in
            [TPR, SVR, ESR, ICR_LOW, ICR_HIGH, INITIAL_COUNT, DIVIDE].into_iter().enumerate()
        {
            put(&mut lapic, at, 0x30 + i as u32);
        }
        put(&mut lapic, ID, 3 << 24);
        put(&mut lapic, LDR, 8 << 24);
        put(&mut lapic, DFR, !0);
        put(&mut lapic, LVT[0], 0x200ef);
        put(&mut lapic, IRR + 0x70, 5);
        let apic = apic(&lapic, 0x1_fee0_0900, 1000);
        assert_eq!((apic.base, apic.id, apic.dest_mode, apic.irr[7]), (0xfee0_0900, 3, 15, 5));
        let mut back = kvm_lapic_state::default();
        put(&mut back, 0x30, 0x50014);
        put(&mut back, CURRENT_COUNT, 77);
        from_apic(&apic, &mut back);
        assert_eq!(back.regs, lapic.regs);
    }

    #[test]
    fn divider_gives_qemus_shift() {
        let mut lapic = kvm_lapic_state::default();
        for (divide, shift) in [(0, 1), (1, 2), (2, 3), (3, 4), (8, 5), (9, 6), (10, 7), (11, 0)] {
            put(&mut lapic, DIVIDE, divide);
            assert_eq!(apic(&lapic, 0, 0).count_shift, shift);
        }
    }

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
