//! The kernel interface: one VM, its vCPUs, their registers and the dirty log, over `/dev/kvm`.
//!
//! What a host can do is asked for once ([`Caps`]) and a missing part is worked around or refused
//! by name. Raw ioctls stand in `ioctl.rs`, and only where kvm-ioctls has none.

pub(crate) mod advice;
mod caps;
pub(crate) mod compat;
pub(crate) mod dirty;
mod error;
mod ioctl;
mod msrs;
mod rings;
pub mod state;
mod stats;
mod tsc;
mod turn;
mod vcpu;
mod vm;

pub(crate) use caps::Caps;
pub(crate) use dirty::{DirtyLog, RingCounts};
pub use error::Error;
pub(crate) use stats::{Statistic, StatisticKind, Unit};
pub(crate) use tsc::TscRates;
pub(crate) use vcpu::{Exit, Shared, Vcpu, monotonic_ns, thread_id};
pub(crate) use vm::{Vm, check, redirections};
