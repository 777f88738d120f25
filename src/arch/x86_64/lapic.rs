//! The local APIC, a part of each processor.

use crate::vmstate::{Layout, Visitor};
use kvm_bindings::kvm_lapic_state;

/// `apic`: a local APIC. Not carried: current count, LVT CMCI, the upper half of its base address.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct ApicState {
    pub base: u32,
    pub id: u8,
    pub arb_id: u8,
    pub tpr: u8,
    pub spurious_vec: u32,
    pub log_dest: u8,
    pub dest_mode: u8,
    pub isr: [u32; 8],
    pub tmr: [u32; 8],
    pub irr: [u32; 8],
    /// Timer, thermal, performance, LINT0, LINT1, error.
    pub lvt: [u32; 6],
    pub esr: u32,
    pub icr: [u32; 2],
    pub divide_conf: u32,
    /// log2 of the divider, from `divide_conf`.
    pub count_shift: i32,
    pub initial_count: u32,
    /// Virtual clock when the count was loaded, ns.
    pub initial_count_load_time: i64,
    pub next_time: i64,
    /// -1: none.
    pub timer_expiry: i64,
    pub sipi: Option<ApicSipi>,
}

impl Layout for ApicState {
    const NAME: &'static str = "apic";
    const VERSION: u32 = 3;

    fn fields<V: Visitor>(&mut self, v: &mut V) -> Result<(), V::Stop> {
        v.value("apicbase", &mut self.base)?;
        v.value("id", &mut self.id)?;
        v.value("arb_id", &mut self.arb_id)?;
        v.value("tpr", &mut self.tpr)?;
        v.value("spurious_vec", &mut self.spurious_vec)?;
        v.value("log_dest", &mut self.log_dest)?;
        v.value("dest_mode", &mut self.dest_mode)?;
        v.array("isr", &mut self.isr)?;
        v.array("tmr", &mut self.tmr)?;
        v.array("irr", &mut self.irr)?;
        v.array("lvt", &mut self.lvt)?;
        v.value("esr", &mut self.esr)?;
        v.array("icr", &mut self.icr)?;
        v.value("divide_conf", &mut self.divide_conf)?;
        v.value("count_shift", &mut self.count_shift)?;
        v.value("initial_count", &mut self.initial_count)?;
        v.value("initial_count_load_time", &mut self.initial_count_load_time)?;
        v.value("next_time", &mut self.next_time)?;
        v.value("timer_expiry", &mut self.timer_expiry)
    }

    fn subsections<V: Visitor>(&mut self, v: &mut V) -> Result<(), V::Stop> {
        v.subsection(&mut self.sipi)
    }
}

/// A vCPU that waits for its start-up interrupt; not used with KVM's own APIC.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct ApicSipi {
    pub vector: i32,
    pub waiting: i32,
}

impl Layout for ApicSipi {
    const NAME: &'static str = "apic_sipi";
    const VERSION: u32 = 1;

    fn fields<V: Visitor>(&mut self, v: &mut V) -> Result<(), V::Stop> {
        v.value("sipi_vector", &mut self.vector)?;
        v.value("wait_for_sipi", &mut self.waiting)
    }
}

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
pub(crate) fn apic(lapic: &kvm_lapic_state, base: u64, now: i64) -> ApicState {
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
pub(crate) fn from_apic(apic: &ApicState, lapic: &mut kvm_lapic_state) {
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
}
