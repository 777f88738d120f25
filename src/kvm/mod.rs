//! The kernel interface: one VM, its vCPUs, their registers and the dirty log, over `/dev/kvm`.
//!
//! What a host can do is asked for once ([`Caps`]) and a missing part is worked around or refused by name. Raw ioctls
//! stand in `ioctl.rs`, and only where kvm-ioctls has none.

mod caps;
mod cpuid;
pub mod dirty;
mod ioctl;
mod msrs;
pub mod state;
mod vcpu;
mod vm;

pub use caps::Caps;
pub use dirty::DirtyLog;
pub use vcpu::{Exit, Shared, Vcpu, monotonic_ns, thread_id};
pub use vm::Vm;

use std::io;
use std::path::PathBuf;

/// Why the kernel did not do what a machine needs.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot open {}: {source}; {}", path.display(), open_advice(source))]
    Open { path: PathBuf, source: io::Error },
    #[error("{} is not KVM, or a KVM of another API than 12", .0.display())]
    NotKvm(PathBuf),
    #[error("this host's KVM lacks {0}")]
    Missing(&'static str),
    #[error("KVM offers {max} vCPUs at most, {wanted} were asked for")]
    TooManyCpus { wanted: u32, max: u32 },
    #[error("{call}: {source}{}", call_advice(source))]
    Call { call: &'static str, source: io::Error },
    #[error("a dirty ring of {wanted} entries: KVM takes powers of two up to {max}")]
    RingSize { wanted: u32, max: u32 },
    #[error(
        "the guest's time stamp counter runs at {wanted} kHz, this host's at {host} kHz, and KVM cannot scale it"
    )]
    TscRate { wanted: u32, host: u32 },
    #[error("an XSAVE area of {found} bytes, this host wants {wanted}")]
    Xsave { found: usize, wanted: usize },
}

impl Error {
    /// Names the failing call of a kvm-ioctls method: `.map_err(Error::call("KVM_CREATE_VM"))`.
    fn call(call: &'static str) -> impl Fn(kvm_ioctls::Error) -> Error {
        move |e| Error::Call { call, source: io::Error::from_raw_os_error(e.errno()) }
    }

    /// The same for raw ioctls.
    fn raw(call: &'static str) -> impl Fn(io::Error) -> Error {
        move |source| Error::Call { call, source }
    }
}

fn open_advice(e: &io::Error) -> &'static str {
    match e.raw_os_error() {
        Some(libc::ENOENT) => {
            "load the module (modprobe kvm_intel or kvm_amd), switch virtualization on in the firmware, or in a \
             container pass the device in (--device /dev/kvm)"
        }
        Some(libc::EACCES | libc::EPERM) => {
            "become a member of the device's group (usermod -aG kvm $USER, then log in again), or run as root"
        }
        Some(libc::ENODEV | libc::ENXIO) => {
            "the module is not loaded: modprobe kvm_intel or kvm_amd; is virtualization switched on in the firmware?"
        }
        Some(libc::EBUSY) => "another hypervisor holds the processor's virtualization",
        _ => "guests need KVM",
    }
}

fn call_advice(e: &io::Error) -> &'static str {
    match e.raw_os_error() {
        Some(libc::ENOMEM) => "; the host is short of memory",
        Some(libc::EMFILE | libc::ENFILE) => "; too many open files, raise ulimit -n",
        Some(libc::EBUSY) => "; another hypervisor holds the processor's virtualization",
        _ => "",
    }
}
