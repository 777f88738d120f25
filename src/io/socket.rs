//! What is asked of a socket, and whether something is one.
//!
//! Unsafe for options that std does not offer.
#![allow(unsafe_code)]

use std::os::fd::{AsFd, AsRawFd};

use rustix::fs::{FileType, fstat};

/// Whether it is a socket; nothing that cannot be asked is.
pub(super) fn is_socket(fd: impl AsFd) -> bool {
    fstat(fd).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode).is_socket())
}

/// Sets an option of the type `T`, as the kernel has it.
pub(super) fn set_option<T>(
    fd: &impl AsRawFd,
    level: i32,
    option: i32,
    value: &T,
) -> std::io::Result<()> {
    // SAFETY: the value is borrowed for the call and its size is given.
    let result = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            level,
            option,
            (&raw const *value).cast(),
            size_of::<T>() as u32,
        )
    };
    if result < 0 { Err(std::io::Error::last_os_error()) } else { Ok(()) }
}
