//! What several test binaries share.

#![allow(dead_code, reason = "each test binary uses its part")]

pub(crate) mod acpi_guest;
pub(crate) mod cli;
pub(crate) mod dump_case;
pub(crate) mod filter;
pub(crate) mod guest;
pub(crate) mod machines;
pub(crate) mod process;
pub(crate) mod qcow2;
pub(crate) mod qmp;
pub(crate) mod small;
pub(crate) mod vectors;
pub(crate) mod virtio_guest;
pub(crate) mod vm;

/// Longer than anything takes on a busy machine.
pub(crate) const PATIENCE: std::time::Duration = std::time::Duration::from_secs(90);

/// Whether a thread is blocked in this system call, one that the kernel would not end by itself.
/// A processor of a guest is blocked in its `ioctl` where it has halted, and in a `futex` where it
/// waits for its machine.
pub(crate) fn is_blocked_in(process: u32, thread: i32, call: libc::c_long) -> bool {
    let path = format!("/proc/{process}/task/{thread}/syscall");
    // A thread that runs is "running".
    let words = std::fs::read_to_string(path).unwrap();
    words.split(' ').next().and_then(|number| number.parse().ok()) == Some(call)
}
