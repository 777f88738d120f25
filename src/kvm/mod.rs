//! The kernel interface: one VM, its vCPUs, their registers and the dirty log, over `/dev/kvm`.
//!
//! What a host can do is asked for once ([`Caps`]) and a missing part is worked around or refused by name. Raw ioctls
//! stand in `ioctl.rs`, and only where kvm-ioctls has none.

pub mod state;
