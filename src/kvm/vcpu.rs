//! One vCPU: running it, and getting it out of the guest again.
//!
//! Unsafe because it reads the `kvm_run` page that the kernel shares, and because a kick reaches
//! into it from another thread.
#![allow(unsafe_code)]

use super::error::Error;
use super::msrs;
use kvm_bindings::{
    KVM_EXIT_DIRTY_RING_FULL, KVM_EXIT_FAIL_ENTRY, KVM_EXIT_HLT, KVM_EXIT_INTERNAL_ERROR,
    KVM_EXIT_INTR, KVM_EXIT_IO, KVM_EXIT_IO_IN, KVM_EXIT_IRQ_WINDOW_OPEN, KVM_EXIT_MEMORY_FAULT,
    KVM_EXIT_MMIO, KVM_EXIT_SHUTDOWN, KVM_EXIT_SYSTEM_EVENT, KVM_MP_STATE_RUNNABLE,
    KVM_SYSTEM_EVENT_CRASH, KVM_SYSTEM_EVENT_RESET, KVM_SYSTEM_EVENT_SHUTDOWN, kvm_lapic_state,
    kvm_mp_state, kvm_regs, kvm_run, kvm_sregs,
};
use kvm_ioctls::VcpuFd;
use std::sync::atomic::{AtomicU8, Ordering, fence};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Why a vCPU left the guest.
pub(crate) enum Exit<'a> {
    /// A signal, or `immediate_exit`.
    Interrupted,
    /// IN: `data` is to be filled, `size` bytes for each of `data.len() / size` reads.
    PortIn {
        port: u16,
        size: usize,
        data: &'a mut [u8],
    },
    /// OUT.
    PortOut {
        port: u16,
        size: usize,
        data: &'a [u8],
    },
    MmioRead {
        gpa: u64,
        data: &'a mut [u8],
    },
    MmioWrite {
        gpa: u64,
        data: &'a [u8],
    },
    /// The dirty ring must be drained before the vCPU can go on.
    RingFull,
    /// Triple fault.
    TripleFault,
    ShutdownRequest,
    ResetRequest,
    Crash,
    /// HLT, which KVM keeps to itself as long as it has the interrupt controller.
    Halt,
    /// The host has no page for guest memory, at this address if KVM says where.
    NoMemory {
        gpa: Option<u64>,
    },
    /// The vCPU cannot go on, for a reason in words.
    Broken(String),
}

/// A vCPU in the kernel. Whoever holds it exclusively may run it.
pub(crate) struct Vcpu {
    fd: VcpuFd,
}

/// Gets a vCPU out of `KVM_RUN`, from another thread, together with a signal to the thread that
/// runs it.
///
/// The kicker writes its request, sets the flag, sends the signal. The vCPU's thread clears the
/// flag, reads the request, enters KVM. Whatever the order, one of them sees the other: if the
/// request was read too early, the flag was set after it was cleared, and KVM returns at once.
///
/// Points into the vCPU's `kvm_run` page, so that it lives beside its [`Vcpu`] in [`Shared`], and
/// nowhere else.
struct Kick(*const AtomicU8);

// SAFETY: the byte is only accessed atomically by us, and read by the kernel.
unsafe impl Send for Kick {}
// SAFETY: as above.
unsafe impl Sync for Kick {}

impl Kick {
    fn set(&self) {
        fence(Ordering::SeqCst);
        // SAFETY: the page is mapped as long as the vCPU lives, in the same `Shared`.
        unsafe { (*self.0).store(1, Ordering::SeqCst) };
    }

    fn rearm(&self) {
        // SAFETY: as in `set`.
        unsafe { (*self.0).store(0, Ordering::SeqCst) };
        fence(Ordering::SeqCst);
    }
}

impl Vcpu {
    pub(super) fn new(fd: VcpuFd) -> Vcpu {
        Vcpu { fd }
    }

    pub(crate) fn fd(&self) -> &VcpuFd {
        &self.fd
    }

    fn kick(&mut self) -> Kick {
        let run: *mut kvm_run = self.fd.get_kvm_run();
        // SAFETY: only the address is taken; AtomicU8 has the layout of u8.
        Kick(unsafe { (&raw mut (*run).immediate_exit).cast() })
    }

    /// Lets KVM make what it makes at the first run: newer ones start a thread, which counts as one
    /// of this process. Without it every run fails with EAGAIN, as it may for a moment otherwise, and
    /// a guest would stand still and be called running.
    pub(crate) fn prepare(&mut self) -> Result<(), Error> {
        self.fd.set_kvm_immediate_exit(1);
        match self.fd.run().err().map(|e| e.errno()) {
            None | Some(libc::EINTR) => Ok(()),
            Some(errno) => {
                let source = std::io::Error::from_raw_os_error(errno);
                Err(Error::Call { call: "KVM_RUN", source })
            }
        }
    }

    /// Finishes the last exit, so that the registers can be read: an IN's value is in its register
    /// only after the next `KVM_RUN`. Exits that this brings up (the rest of a long access) go to
    /// `f`.
    pub(crate) fn complete(&mut self, mut f: impl FnMut(Exit<'_>) -> bool) {
        self.fd.set_kvm_immediate_exit(1);
        loop {
            match self.run() {
                Exit::Interrupted => break,
                exit => {
                    if !f(exit) {
                        break;
                    }
                }
            }
        }
    }

    /// Makes KVM look for pending interrupts when the guest runs next. Only after an access, so
    /// that it is known to run.
    ///
    /// KVM does not look by itself when a guest unmasks LINT0 while the PIC already asks: Linux
    /// without ACPI masks LINT0 for a moment after it started the PIT, and a tick that arrives just
    /// then would be the last one for ever. Setting the state that the vCPU has is the cheapest
    /// call that makes it look.
    pub(crate) fn look_for_interrupts(&self) {
        // KVM refuses only states that a vCPU cannot have.
        let _ = self.fd.set_mp_state(kvm_mp_state { mp_state: KVM_MP_STATE_RUNNABLE });
    }

    /// An NMI, delivered when the guest runs next.
    pub(crate) fn nmi(&self) -> Result<(), Error> {
        self.fd.nmi().map_err(Error::call("KVM_NMI"))
    }

    /// The NMI button is pressed: delivered if LINT1 takes NMIs.
    pub(crate) fn external_nmi(&self) -> Result<(), Error> {
        const LINT1: usize = 0x360;
        const MASKED: u32 = 1 << 16;
        const MODE_NMI: u32 = 4;
        let lapic = self.lapic()?;
        let lvt = u32::from_le_bytes(std::array::from_fn(|i| lapic.regs[LINT1 + i] as u8));
        if lvt & MASKED == 0 && lvt >> 8 & 7 == MODE_NMI { self.nmi() } else { Ok(()) }
    }

    /// The guest-physical address behind a virtual one, by the page tables that are loaded now.
    pub(crate) fn translate(&self, address: u64) -> Result<Option<u64>, Error> {
        let found = self.fd.translate_gva(address).map_err(Error::call("KVM_TRANSLATE"))?;
        Ok((found.valid != 0).then_some(found.physical_address))
    }

    pub(crate) fn lapic(&self) -> Result<kvm_lapic_state, Error> {
        self.fd.get_lapic().map_err(Error::call("KVM_GET_LAPIC"))
    }

    pub(crate) fn set_lapic(&self, lapic: &kvm_lapic_state) -> Result<(), Error> {
        self.fd.set_lapic(lapic).map_err(Error::call("KVM_SET_LAPIC"))
    }

    pub(crate) fn sregs(&self) -> Result<kvm_sregs, Error> {
        self.fd.get_sregs().map_err(Error::call("KVM_GET_SREGS"))
    }

    pub(crate) fn set_sregs(&self, sregs: &kvm_sregs) -> Result<(), Error> {
        self.fd.set_sregs(sregs).map_err(Error::call("KVM_SET_SREGS"))
    }

    pub(crate) fn set_regs(&self, regs: &kvm_regs) -> Result<(), Error> {
        self.fd.set_regs(regs).map_err(Error::call("KVM_SET_REGS"))
    }

    /// Writes MSRs; returns those that KVM refused.
    pub(crate) fn write_msrs(&self, values: &[(u32, u64)]) -> Result<Vec<(u32, u64)>, Error> {
        msrs::write(&self.fd, values)
    }

    /// The kvmclock page tells the guest that it stood still, so that its watchdogs keep quiet.
    /// Refused (and needless) while the guest does not use kvmclock.
    pub(crate) fn announce_pause(&self) {
        let _ = self.fd.kvmclock_ctrl();
    }

    /// Runs the guest until it needs something, or is kicked.
    pub(crate) fn run(&mut self) -> Exit<'_> {
        let failed = self.fd.run().err().map(|e| e.errno());
        let run = self.fd.get_kvm_run();
        if run.exit_reason == KVM_EXIT_DIRTY_RING_FULL && failed.is_none() {
            return Exit::RingFull;
        }
        match failed {
            Some(libc::EINTR | libc::EAGAIN) => return Exit::Interrupted,
            Some(libc::EFAULT | libc::EHWPOISON) => {
                if run.exit_reason != KVM_EXIT_MEMORY_FAULT {
                    return Exit::NoMemory { gpa: None };
                }
                // SAFETY: the exit reason says which member of the union is meant.
                let fault = unsafe { run.__bindgen_anon_1.memory_fault };
                return Exit::NoMemory { gpa: Some(fault.gpa) };
            }
            Some(errno) => {
                let e = std::io::Error::from_raw_os_error(errno);
                return Exit::Broken(format!("KVM_RUN: {e}"));
            }
            None => {}
        }
        read_exit(run)
    }
}

fn read_exit(run: &mut kvm_run) -> Exit<'_> {
    let base: *mut kvm_run = run;
    match run.exit_reason {
        KVM_EXIT_IO => {
            // SAFETY: the exit reason says which member of the union is meant.
            let io = unsafe { run.__bindgen_anon_1.io };
            let size = usize::from(io.size);
            let bytes = size * io.count as usize;
            // SAFETY: the kernel puts the data `data_offset` bytes behind the start of the run
            // structure, inside the mapping that the vCPU owns, and leaves it alone until the next
            // KVM_RUN, which needs `&mut Vcpu`.
            let data = unsafe {
                let start = base.cast::<u8>().add(io.data_offset as usize);
                std::slice::from_raw_parts_mut(start, bytes)
            };
            if u32::from(io.direction) == KVM_EXIT_IO_IN {
                Exit::PortIn { port: io.port, size, data }
            } else {
                Exit::PortOut { port: io.port, size, data }
            }
        }
        KVM_EXIT_MMIO => {
            // SAFETY: as above.
            let mmio = unsafe { &mut run.__bindgen_anon_1.mmio };
            let data = &mut mmio.data[..(mmio.len as usize).min(8)];
            if mmio.is_write != 0 {
                Exit::MmioWrite { gpa: mmio.phys_addr, data }
            } else {
                Exit::MmioRead { gpa: mmio.phys_addr, data }
            }
        }
        KVM_EXIT_INTR | KVM_EXIT_IRQ_WINDOW_OPEN => Exit::Interrupted,
        KVM_EXIT_HLT => Exit::Halt,
        KVM_EXIT_SHUTDOWN => Exit::TripleFault,
        KVM_EXIT_SYSTEM_EVENT => {
            // SAFETY: as above.
            match unsafe { run.__bindgen_anon_1.system_event.type_ } {
                KVM_SYSTEM_EVENT_SHUTDOWN => Exit::ShutdownRequest,
                KVM_SYSTEM_EVENT_RESET => Exit::ResetRequest,
                KVM_SYSTEM_EVENT_CRASH => Exit::Crash,
                other => Exit::Broken(format!("system event {other}, which nobody here knows")),
            }
        }
        KVM_EXIT_FAIL_ENTRY => {
            // SAFETY: as above.
            let fail = unsafe { run.__bindgen_anon_1.fail_entry };
            let reason = fail.hardware_entry_failure_reason;
            Exit::Broken(format!(
                "the processor refused to enter the guest (hardware reason {reason:#x})"
            ))
        }
        KVM_EXIT_INTERNAL_ERROR => {
            // SAFETY: as above.
            let suberror = unsafe { run.__bindgen_anon_1.internal.suberror };
            Exit::Broken(format!("KVM internal error {suberror} ({})", suberror_name(suberror)))
        }
        reason => Exit::Broken(format!("KVM exit {reason}, which nobody here knows")),
    }
}

/// `KVM_INTERNAL_ERROR_*` of linux/kvm.h.
fn suberror_name(suberror: u32) -> &'static str {
    match suberror {
        1 => "an instruction could not be emulated",
        2 => "simultaneous exceptions",
        3 => "an exit while an event was being delivered",
        4 => "unexpected exit reason",
        _ => "unknown",
    }
}

/// Kernel thread id of the caller.
pub(crate) fn thread_id() -> i32 {
    // SAFETY: gettid takes nothing and cannot fail.
    unsafe { libc::gettid() }
}

/// `CLOCK_MONOTONIC` in ns: the clock that KVM's PIT counts from.
pub(crate) fn monotonic_ns() -> i64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the kernel fills one timespec. This clock exists everywhere, so that the call cannot
    // fail.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut now) };
    now.tv_sec * 1_000_000_000 + now.tv_nsec
}

/// A vCPU that one thread runs and others stop.
pub(crate) struct Shared {
    vcpu: Mutex<Vcpu>,
    kick: Kick,
}

impl Shared {
    pub(crate) fn new(mut vcpu: Vcpu) -> Shared {
        let kick = vcpu.kick();
        Shared { vcpu: Mutex::new(vcpu), kick }
    }

    /// The vCPU's thread holds it while the guest runs; whoever gets it otherwise knows that the
    /// vCPU stands still.
    pub(crate) fn lock(&self) -> MutexGuard<'_, Vcpu> {
        self.vcpu.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next or current `KVM_RUN` returns. Write the request first, send the thread a signal
    /// afterwards.
    pub(crate) fn kick(&self) {
        self.kick.set();
    }

    /// `KVM_RUN` runs the guest again. Read requests only afterwards.
    pub(crate) fn rearm(&self) {
        self.kick.rearm();
    }
}
