//! Ioctls and mappings that kvm-ioctls does not have.
//!
//! Unsafe because each hands the kernel a pointer, or maps memory that the kernel shares.
#![allow(unsafe_code)]

use kvm_bindings::{
    KVM_DIRTY_GFN_F_MASK, KVM_DIRTY_LOG_PAGE_OFFSET, KVMIO, kvm_clear_dirty_log,
    kvm_clear_dirty_log__bindgen_ty_1, kvm_dirty_gfn, kvm_dirty_log, kvm_dirty_log__bindgen_ty_1,
};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};
use vmm_sys_util::ioctl::{ioctl, ioctl_with_mut_ref, ioctl_with_ref};
use vmm_sys_util::{ioctl_io_nr, ioctl_ior_nr, ioctl_iow_nr, ioctl_iowr_nr};

ioctl_iow_nr!(KVM_GET_DIRTY_LOG, KVMIO, 0x42, kvm_dirty_log);
ioctl_iow_nr!(KVM_X86_SETUP_MCE, KVMIO, 0x9c, u64);
ioctl_ior_nr!(KVM_X86_GET_MCE_CAP_SUPPORTED, KVMIO, 0x9d, u64);
ioctl_iowr_nr!(KVM_CLEAR_DIRTY_LOG, KVMIO, 0xc0, kvm_clear_dirty_log);
ioctl_io_nr!(KVM_RESET_DIRTY_RINGS, KVMIO, 0xc7);
ioctl_io_nr!(KVM_GET_STATS_FD, KVMIO, 0xce);

/// Reads the dirty bits of a slot of `pages` pages into `words`. With manual protection they stay
/// set in KVM.
///
/// # Panics
/// If `words` is shorter than one bit for each page.
pub(crate) fn get_dirty_log(
    vm: &impl AsRawFd,
    slot: u32,
    pages: u64,
    words: &mut [u64],
) -> io::Result<()> {
    assert!(words.len() as u64 * 64 >= pages, "the kernel writes one bit for each page");
    let log = kvm_dirty_log {
        slot,
        padding1: 0,
        __bindgen_anon_1: kvm_dirty_log__bindgen_ty_1 { dirty_bitmap: words.as_mut_ptr().cast() },
    };
    // SAFETY: `words` has room for the slot's bits, rounded up to words (checked above; `pages` is
    // the slot's size).
    check(unsafe { ioctl_with_ref(vm, KVM_GET_DIRTY_LOG(), &log) })
}

/// Clears the dirty bits that are set in `words`, pages `first` to `first + pages` of a slot, and
/// write-protects them. `first` is a multiple of 64, and so is `pages` unless the range ends where
/// the slot does (else `EINVAL`).
///
/// # Panics
/// If `words` is shorter than one bit for each page.
pub(crate) fn clear_dirty_log(
    vm: &impl AsRawFd,
    slot: u32,
    first: u64,
    pages: u32,
    words: &[u64],
) -> io::Result<()> {
    assert!(words.len() * 64 >= pages as usize, "the kernel reads one bit for each page");
    let log = kvm_clear_dirty_log {
        slot,
        num_pages: pages,
        first_page: first,
        __bindgen_anon_1: kvm_clear_dirty_log__bindgen_ty_1 {
            dirty_bitmap: words.as_ptr().cast_mut().cast(),
        },
    };
    // SAFETY: the kernel only reads the bitmap, and no further than `pages` bits rounded up to
    // words.
    check(unsafe { ioctl_with_ref(vm, KVM_CLEAR_DIRTY_LOG(), &log) })
}

/// Makes KVM protect again what was taken from the rings; returns how many entries that were.
pub(crate) fn reset_dirty_rings(vm: &impl AsRawFd) -> io::Result<u32> {
    loop {
        // SAFETY: takes no argument.
        let count = unsafe { ioctl(vm, KVM_RESET_DIRTY_RINGS()) };
        if count >= 0 {
            return Ok(count as u32);
        }
        // Since Linux 6.17 a signal, such as a kick of the vCPU that calls, ends the reset half
        // way.
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// A file with the statistics of a VM or a vCPU. A vCPU that runs is waited for.
pub(crate) fn stats_fd(of: &impl AsRawFd) -> io::Result<OwnedFd> {
    // SAFETY: takes no argument.
    let fd = unsafe { ioctl(of, KVM_GET_STATS_FD()) };
    check(fd)?;
    // SAFETY: the descriptor was just made and belongs to nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Machine check capabilities of the host's KVM.
pub(crate) fn mce_cap_supported(kvm: &impl AsRawFd) -> io::Result<u64> {
    let mut cap = 0u64;
    // SAFETY: the kernel writes one u64.
    check(unsafe { ioctl_with_mut_ref(kvm, KVM_X86_GET_MCE_CAP_SUPPORTED(), &mut cap) })?;
    Ok(cap)
}

/// Sets a vCPU's machine check capabilities.
pub(crate) fn setup_mce(vcpu: &impl AsRawFd, cap: u64) -> io::Result<()> {
    // SAFETY: the kernel reads one u64.
    check(unsafe { ioctl_with_ref(vcpu, KVM_X86_SETUP_MCE(), &cap) })
}

fn check(rc: i32) -> io::Result<()> {
    if rc < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// The dirty ring of one vCPU, shared with the kernel.
///
/// The kernel fills entries in order and sets DIRTY; we take them in the same order and set RESET.
/// The flags word is the hand-over in both directions: acquire when we see DIRTY, release when we
/// set RESET.
pub(crate) struct Ring {
    entries: NonNull<kvm_dirty_gfn>,
    count: u32,
    next: u32,
}

// SAFETY: the mapping belongs to this value alone; entries are handed over through atomic flags.
unsafe impl Send for Ring {}

/// `KVM_DIRTY_GFN_F_DIRTY` and `KVM_DIRTY_GFN_F_RESET` (linux/kvm.h; bindgen skips shifted
/// constants).
const GFN_DIRTY: u32 = 1;
const GFN_RESET: u32 = 2;

impl Ring {
    /// Maps the ring of a vCPU that was made after rings of `count` entries were enabled.
    pub(crate) fn map(vcpu: RawFd, count: u32) -> io::Result<Ring> {
        let bytes = count as usize * size_of::<kvm_dirty_gfn>();
        let offset = i64::from(KVM_DIRTY_LOG_PAGE_OFFSET) * 4096;
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a fresh shared mapping of the ring's pages; the kernel checks the length.
        let at = unsafe {
            libc::mmap(std::ptr::null_mut(), bytes, prot, libc::MAP_SHARED, vcpu, offset)
        };
        if at == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let entries =
            NonNull::new(at.cast()).ok_or_else(|| io::Error::other("ring mapped at zero"))?;
        Ok(Ring { entries, count, next: 0 })
    }

    /// Takes the entries the kernel has filled, as (slot, page of the slot). They are in use until
    /// [`reset_dirty_rings`]. False: every single one was filled, although the kernel keeps some
    /// free, so that others are likely to be lost.
    pub(crate) fn drain(&mut self, mut f: impl FnMut(u32, u64)) -> bool {
        // A ring's worth at most: the kernel cannot refill entries that were not reset.
        for _ in 0..self.count {
            if !self.is_dirty(self.next) {
                return true;
            }
            // SAFETY: `next` is below `count`, so the entry lies in the mapping. Its flags word is
            // only accessed atomically; slot and offset are stable from DIRTY (acquired above) to
            // RESET (released here).
            unsafe {
                let entry = self.entries.as_ptr().add(self.next as usize);
                f((*entry).slot, (*entry).offset);
                AtomicU32::from_ptr(&raw mut (*entry).flags).store(GFN_RESET, Ordering::Release);
            }
            self.next = (self.next + 1) % self.count;
        }
        false
    }

    /// Whether an entry is filled behind one that is not. The kernel fills them in order, so that
    /// it has gone round, over entries that were not reset, and what comes next is not what was
    /// written next. Looks at every entry.
    pub(crate) fn is_out_of_step(&self) -> bool {
        (1..self.count).any(|ahead| self.is_dirty((self.next + ahead) % self.count))
            && !self.is_dirty(self.next)
    }

    /// # Panics
    /// If there is no such entry.
    fn is_dirty(&self, index: u32) -> bool {
        assert!(index < self.count);
        // SAFETY: the entry lies in the mapping (checked). Its flags word is only accessed
        // atomically.
        let flags = unsafe {
            let entry = self.entries.as_ptr().add(index as usize);
            AtomicU32::from_ptr(&raw mut (*entry).flags)
        };
        flags.load(Ordering::Acquire) & KVM_DIRTY_GFN_F_MASK == GFN_DIRTY
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        let bytes = self.count as usize * size_of::<kvm_dirty_gfn>();
        // SAFETY: the mapping is ours and whole.
        unsafe { libc::munmap(self.entries.as_ptr().cast(), bytes) };
    }
}
