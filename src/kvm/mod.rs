//! The kernel interface: one VM, its vCPUs, their registers and the dirty log, over `/dev/kvm`.
//!
//! What a host can do is asked for once ([`Caps`]) and a missing part is worked around or refused
//! by name. Raw ioctls stand in `ioctl.rs`, and only where kvm-ioctls has none.

pub(crate) mod advice;
mod caps;
pub mod compat;
pub mod dirty;
mod error;
mod ioctl;
mod msrs;
mod rings;
pub mod state;
mod tsc;
mod vcpu;
mod vm;

pub use caps::Caps;
pub use dirty::DirtyLog;
pub use error::Error;
pub use tsc::TscRates;
pub use vcpu::{Exit, Shared, Vcpu, monotonic_ns, thread_id};
pub use vm::{Vm, check, redirections};
