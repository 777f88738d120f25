//! A vCPU's registers.

use super::cpu::{CpuState, Segment};
use super::msrs;
use super::xsave::{self, XsaveLayout};
use crate::devices::Misfit;
use crate::kvm::state::VcpuState;
use kvm_bindings::{kvm_dtable, kvm_regs, kvm_segment};

/// Bits of a segment's flags: the second dword of a descriptor.
const TYPE_SHIFT: u32 = 8;
const S: u32 = 1 << 12;
const DPL_SHIFT: u32 = 13;
const DPL: u32 = 3 << DPL_SHIFT;
const P: u32 = 1 << 15;
const AVL: u32 = 1 << 20;
const L: u32 = 1 << 21;
const DB: u32 = 1 << 22;
const G: u32 = 1 << 23;

const CR0_PE: u64 = 1;
const CR4_OSFXSR: u64 = 1 << 9;
const EFER_LMA: u64 = 1 << 10;
const RFLAGS_VM: u64 = 1 << 17;

/// `hflags`: a vCPU in system management mode, or running a nested guest.
const HF_SMM: u32 = 1 << 19;
const HF_GUEST: u32 = 1 << 21;
/// `hflags2`: global interrupt flag, NMIs masked, SMM inside an NMI, virtual GIF. KVM's guests have
/// GIF set.
const HF2_GIF: u32 = 1 << 0;
const HF2_NMI: u32 = 1 << 2;
const HF2_SMM_INSIDE_NMI: u32 = 1 << 4;
const HF2_VGIF: u32 = 1 << 8;

const DB_VECTOR: u8 = 1;
const PF_VECTOR: u8 = 14;

/// ES CS SS DS FS GS, the stream's order.
const CS: usize = 1;
const SS: usize = 2;

fn segment(from: &kvm_segment) -> Segment {
    let bit = |value: u8, mask| if value != 0 { mask } else { 0 };
    Segment {
        selector: from.selector.into(),
        base: from.base,
        limit: from.limit,
        flags: u32::from(from.type_) << TYPE_SHIFT
            | u32::from(from.dpl) << DPL_SHIFT
            | if from.present != 0 && from.unusable == 0 { P } else { 0 }
            | bit(from.s, S)
            | bit(from.avl, AVL)
            | bit(from.l, L)
            | bit(from.db, DB)
            | bit(from.g, G),
    }
}

fn kvm_segment_of(from: &Segment) -> kvm_segment {
    let bit = |mask| u8::from(from.flags & mask != 0);
    kvm_segment {
        base: from.base,
        limit: from.limit,
        selector: from.selector as u16,
        type_: (from.flags >> TYPE_SHIFT & 15) as u8,
        present: bit(P),
        dpl: ((from.flags & DPL) >> DPL_SHIFT) as u8,
        db: bit(DB),
        s: bit(S),
        l: bit(L),
        g: bit(G),
        avl: bit(AVL),
        unusable: u8::from(from.flags & P == 0),
        padding: 0,
    }
}

/// In virtual-8086 mode the processor demands one kind of segment, whatever the flags were.
fn kvm_segment_of_vm86(from: &Segment) -> kvm_segment {
    kvm_segment {
        base: from.base,
        limit: from.limit,
        selector: from.selector as u16,
        type_: 3,
        present: 1,
        dpl: 3,
        s: 1,
        ..Default::default()
    }
}

fn table(from: &kvm_dtable) -> Segment {
    Segment { base: from.base, limit: from.limit.into(), ..Segment::default() }
}

fn kvm_table(from: &Segment) -> kvm_dtable {
    kvm_dtable { base: from.base, limit: from.limit as u16, padding: [0; 3] }
}

/// In real mode segments have privilege level 0; some kernels report otherwise.
fn clear_real_mode_dpl(cpu: &mut CpuState) {
    if cpu.cr0 & CR0_PE == 0 && cpu.segs[CS].flags & DPL != 0 {
        for segment in &mut cpu.segs {
            segment.flags &= !DPL;
        }
    }
}

/// QEMU's digest of mode bits, worked out as it does for KVM's guests.
fn hflags(cpu: &CpuState) -> u32 {
    const MP_EM_TS: u32 = 7 << 9;
    const TF_IOPL_VM: u64 = 1 << 8 | 3 << 12 | RFLAGS_VM;
    const CS32: u32 = 1 << 4;
    const SS32: u32 = 1 << 5;
    const ADDSEG: u32 = 1 << 6;
    const LMA: u32 = 1 << 14;
    const CS64: u32 = 1 << 15;
    const OSFXSR: u32 = 1 << 22;
    let mut hflags = (cpu.segs[SS].flags & DPL) >> DPL_SHIFT;
    hflags |= ((cpu.cr0 & CR0_PE) as u32) << 7;
    hflags |= (cpu.cr0 as u32) << 8 & MP_EM_TS;
    hflags |= (cpu.rflags & TF_IOPL_VM) as u32;
    if cpu.cr4 & CR4_OSFXSR != 0 {
        hflags |= OSFXSR;
    }
    if cpu.efer & EFER_LMA != 0 {
        hflags |= LMA;
        if cpu.segs[CS].flags & L != 0 {
            return hflags | CS32 | SS32 | CS64;
        }
    }
    hflags |= (cpu.segs[CS].flags & DB) >> 18 | (cpu.segs[SS].flags & DB) >> 17;
    let flat = [0, SS, 3].iter().all(|at| cpu.segs[*at].base == 0);
    if cpu.cr0 & CR0_PE == 0 || cpu.rflags & RFLAGS_VM != 0 || hflags & CS32 == 0 || !flat {
        hflags |= ADDSEG;
    }
    hflags
}

/// The stream's registers of a vCPU that stands still.
pub(crate) fn to_section(vcpu: &VcpuState, layout: &XsaveLayout) -> CpuState {
    let mut cpu = general(vcpu);
    clear_real_mode_dpl(&mut cpu);
    cpu.hflags = hflags(&cpu);
    cpu.hflags2 = HF2_GIF | HF2_VGIF;
    xsave::to_cpu(&vcpu.xsave, layout, &mut cpu);
    msrs::to_cpu(vcpu, &mut cpu);
    events_to_section(vcpu, &mut cpu);
    cpu.more.tsc_khz = vcpu.tsc_khz.map(i64::from);
    cpu
}

/// General, segment, control and debug registers.
pub(crate) fn general(vcpu: &VcpuState) -> CpuState {
    let (regs, sregs) = (&vcpu.regs, &vcpu.sregs);
    let mut cpu = CpuState {
        regs: [
            regs.rax, regs.rcx, regs.rdx, regs.rbx, regs.rsp, regs.rbp, regs.rsi, regs.rdi,
            regs.r8, regs.r9, regs.r10, regs.r11, regs.r12, regs.r13, regs.r14, regs.r15,
        ],
        rip: regs.rip,
        rflags: regs.rflags,
        segs: [&sregs.es, &sregs.cs, &sregs.ss, &sregs.ds, &sregs.fs, &sregs.gs].map(segment),
        ldt: segment(&sregs.ldt),
        tr: segment(&sregs.tr),
        gdt: table(&sregs.gdt),
        idt: table(&sregs.idt),
        cr0: sregs.cr0,
        cr2: sregs.cr2,
        cr3: sregs.cr3,
        cr4: sregs.cr4,
        efer: sregs.efer,
        mp_state: vcpu.mp_state.mp_state,
        xcr0: xcr0(vcpu),
        ..CpuState::default()
    };
    cpu.dr[..4].copy_from_slice(&vcpu.debugregs.db);
    (cpu.dr[6], cpu.dr[7]) = (vcpu.debugregs.dr6, vcpu.debugregs.dr7);
    cpu
}

fn xcr0(vcpu: &VcpuState) -> u64 {
    let count = (vcpu.xcrs.nr_xcrs as usize).min(vcpu.xcrs.xcrs.len());
    vcpu.xcrs.xcrs[..count].iter().find(|xcr| xcr.xcr == 0).map_or(0, |xcr| xcr.value)
}

fn events_to_section(vcpu: &VcpuState, cpu: &mut CpuState) {
    let events = &vcpu.events;
    let exception = events.exception;
    if exception.injected != 0 || exception.pending != 0 {
        cpu.exception_nr = exception.nr.into();
        cpu.has_error_code = exception.has_error_code;
        // A pending exception travels as an injected one, so what it is about must be in its
        // register already.
        if exception.pending != 0 && events.exception_has_payload != 0 {
            match exception.nr {
                DB_VECTOR => cpu.dr[6] = events.exception_payload,
                PF_VECTOR => cpu.cr2 = events.exception_payload,
                _ => {}
            }
        }
    }
    if events.interrupt.injected != 0 {
        cpu.interrupt_injected = events.interrupt.nr.into();
    }
    cpu.soft_interrupt = events.interrupt.soft;
    cpu.nmi_injected = events.nmi.injected;
    cpu.nmi_pending = events.nmi.pending;
    cpu.sipi_vector = events.sipi_vector;
    if events.nmi.masked != 0 {
        cpu.hflags2 |= HF2_NMI;
    }
    if events.smi.smm != 0 {
        cpu.hflags |= HF_SMM;
    }
    if events.smi.smm_inside_nmi != 0 {
        cpu.hflags2 |= HF2_SMM_INSIDE_NMI;
    }
    cpu.more.triple_fault = (events.triple_fault.pending != 0).then_some(1);
}

/// Refuses state that this machine has no place for.
pub(crate) fn check(cpu: &CpuState) -> Result<(), Misfit> {
    let more = &cpu.more;
    let nested =
        more.nested_state.as_ref().is_some_and(|n| n.state.vmx.is_some() || n.state.svm.is_some());
    let refused = [
        (nested, "cpu/nested_state", "the guest runs guests of its own, which cannot be moved yet"),
        (
            cpu.hflags & HF_GUEST != 0,
            "env.hflags",
            "the vCPU is inside a nested guest, which cannot be moved yet",
        ),
        (
            more.svm_npt.is_some(),
            "cpu/svn_npt",
            "state of an emulated nested guest has no place under KVM",
        ),
        (
            more.svm_guest.is_some(),
            "cpu/svm_guest",
            "state of an emulated nested guest has no place under KVM",
        ),
        (more.xen_vcpu.is_some(), "cpu/xen_vcpu", "Xen is not emulated here"),
    ];
    match refused.into_iter().find(|(found, ..)| *found) {
        Some((_, field, why)) => Err((field, why.to_owned())),
        None => Ok(()),
    }
}

/// Puts the stream's registers into `vcpu`, which holds what a fresh vCPU of this host has. `tpr`
/// is the local APIC's task priority and `apic_base` its address.
pub(crate) fn from_section(
    cpu: &CpuState,
    (apic_base, tpr): (u32, u8),
    layout: &XsaveLayout,
    physical_bits: u32,
    vcpu: &mut VcpuState,
) -> Result<(), Misfit> {
    check(cpu)?;
    let mut cpu = cpu.clone();
    clear_real_mode_dpl(&mut cpu);
    vcpu.regs = kvm_regs_of(&cpu);
    special_registers(&cpu, vcpu);
    // The stream has the lower half only.
    vcpu.sregs.apic_base = vcpu.sregs.apic_base & !0xffff_ffff | u64::from(apic_base);
    vcpu.sregs.cr8 = (tpr >> 4).into();
    vcpu.debugregs.db.copy_from_slice(&cpu.dr[..4]);
    (vcpu.debugregs.dr6, vcpu.debugregs.dr7) = (cpu.dr[6], cpu.dr[7]);
    vcpu.mp_state.mp_state = cpu.mp_state;
    if cpu.xcr0 != 0 {
        vcpu.xcrs.nr_xcrs = 1;
        vcpu.xcrs.xcrs[0].xcr = 0;
        vcpu.xcrs.xcrs[0].value = cpu.xcr0;
    }
    if cpu.more.amx.is_some() && vcpu.xsave.len() < AMX_AREA_BYTES {
        vcpu.xsave.resize(AMX_AREA_BYTES, 0);
    }
    xsave::from_cpu(&cpu, layout, &mut vcpu.xsave).map_err(|set| {
        ("env.xstate_bv", format!("the guest uses {set}, which this host does not offer"))
    })?;
    msrs::from_cpu(&cpu, physical_bits, vcpu);
    events_from_section(&cpu, vcpu);
    vcpu.tsc_khz = cpu.more.tsc_khz.and_then(|khz| u32::try_from(khz).ok()).filter(|khz| *khz != 0);
    Ok(())
}

/// The XSAVE area of processors with AMX.
const AMX_AREA_BYTES: usize = 11_008;

fn kvm_regs_of(cpu: &CpuState) -> kvm_regs {
    let [rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15] = cpu.regs;
    kvm_regs {
        rax,
        rbx,
        rcx,
        rdx,
        rsi,
        rdi,
        rsp,
        rbp,
        r8,
        r9,
        r10,
        r11,
        r12,
        r13,
        r14,
        r15,
        rip: cpu.rip,
        rflags: cpu.rflags,
    }
}

fn special_registers(cpu: &CpuState, vcpu: &mut VcpuState) {
    let convert = if cpu.rflags & RFLAGS_VM != 0 { kvm_segment_of_vm86 } else { kvm_segment_of };
    let sregs = &mut vcpu.sregs;
    [sregs.es, sregs.cs, sregs.ss, sregs.ds, sregs.fs, sregs.gs] =
        [0, 1, 2, 3, 4, 5].map(|at| convert(&cpu.segs[at]));
    (sregs.ldt, sregs.tr) = (kvm_segment_of(&cpu.ldt), kvm_segment_of(&cpu.tr));
    (sregs.gdt, sregs.idt) = (kvm_table(&cpu.gdt), kvm_table(&cpu.idt));
    (sregs.cr0, sregs.cr2, sregs.cr3, sregs.cr4) = (cpu.cr0, cpu.cr2, cpu.cr3, cpu.cr4);
    sregs.efer = cpu.efer;
    // What is being injected comes with the events.
    sregs.interrupt_bitmap = [0; 4];
}

fn events_from_section(cpu: &CpuState, vcpu: &mut VcpuState) {
    let info = cpu.more.exception_info.unwrap_or_default();
    let events = &mut vcpu.events;
    let exception = u8::try_from(cpu.exception_nr).ok();
    events.exception.nr = exception.unwrap_or(0);
    events.exception.pending = info.pending;
    events.exception.injected = u8::from(exception.is_some() && info.pending == 0);
    events.exception.has_error_code = cpu.has_error_code;
    // The code itself is not in the stream.
    events.exception.error_code = 0;
    events.exception_has_payload = info.has_payload;
    events.exception_payload = info.payload;
    let interrupt = u8::try_from(cpu.interrupt_injected).ok();
    events.interrupt.injected = interrupt.is_some().into();
    events.interrupt.nr = interrupt.unwrap_or(0);
    events.interrupt.soft = cpu.soft_interrupt;
    events.interrupt.shadow = 0;
    events.nmi.injected = cpu.nmi_injected;
    events.nmi.pending = cpu.nmi_pending;
    events.nmi.masked = u8::from(cpu.hflags2 & HF2_NMI != 0);
    events.sipi_vector = cpu.sipi_vector;
    events.smi.smm = u8::from(cpu.hflags & HF_SMM != 0);
    events.smi.smm_inside_nmi = u8::from(cpu.hflags2 & HF2_SMM_INSIDE_NMI != 0);
    events.smi.pending = 0;
    events.smi.latched_init = 0;
    events.triple_fault.pending = cpu.more.triple_fault.unwrap_or(0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_come_back_and_unusable_means_not_present() {
        let code = kvm_segment {
            selector: 8,
            limit: !0,
            type_: 11,
            present: 1,
            s: 1,
            db: 1,
            g: 1,
            ..Default::default()
        };
        assert_eq!(segment(&code).flags, 0x00c0_9b00);
        assert_eq!(kvm_segment_of(&segment(&code)), code);
        let unusable = kvm_segment { unusable: 1, present: 1, type_: 1, ..Default::default() };
        assert_eq!(segment(&unusable).flags, 0x100);
        assert_eq!(kvm_segment_of(&segment(&unusable)).unusable, 1);
        let long =
            kvm_segment { l: 1, present: 1, s: 1, type_: 11, dpl: 3, avl: 1, ..Default::default() };
        assert_eq!(kvm_segment_of(&segment(&long)), long);
    }

    #[test]
    fn digest_of_mode_bits_is_qemus() {
        // As recorded: protected mode, flat 32-bit segments.
        let mut cpu = CpuState { cr0: 0x11, rflags: 2, ..CpuState::default() };
        cpu.segs = [Segment { flags: 0x00c0_9300, ..Default::default() }; 6];
        cpu.segs[CS].flags = 0x00c0_9b00;
        assert_eq!(hflags(&cpu), 0xb0);
        // A vCPU that was never started, in real mode.
        let mut reset = CpuState { cr0: 0x6000_0010, rflags: 2, ..CpuState::default() };
        reset.segs = [Segment { flags: 0x9300, ..Default::default() }; 6];
        assert_eq!(hflags(&reset), 0x40);
        let long = CpuState { cr0: 0x8005_0033, efer: EFER_LMA, cr4: CR4_OSFXSR, ..cpu.clone() };
        let mut long = CpuState { rflags: 0x246, ..long };
        long.segs[CS].flags = 0x00a0_9b00;
        assert_eq!(hflags(&long), 0x0040_c2b0);
    }

    #[test]
    fn nested_guests_are_refused_by_name() {
        let mut cpu = CpuState::default();
        assert_eq!(check(&cpu), Ok(()));
        cpu.more.xen_vcpu = Some(Default::default());
        assert_eq!(check(&cpu).unwrap_err().0, "cpu/xen_vcpu");
    }
}
