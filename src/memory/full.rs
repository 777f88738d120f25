//! What happens when the host has no page for guest memory: a full tmpfs or hugetlbfs ends in
//! SIGBUS at the first touch, which would kill the process without a word.
//!
//! Unsafe because a signal handler may only make plain system calls.
#![allow(unsafe_code)]

use vmm_sys_util::signal::register_signal_handler;

const WORDS: &[u8] =
    b"godwit: no memory for the guest (SIGBUS): the file system, huge pages or memory limit behind it \
are full\n";

/// From now on SIGBUS ends the process with a reason on stderr and exit status 1.
pub fn say_when_full() -> std::io::Result<()> {
    register_signal_handler(libc::SIGBUS, on_bus_error).map_err(Into::into)
}

extern "C" fn on_bus_error(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: write and _exit are async-signal-safe, and the bytes are static.
    unsafe {
        libc::write(libc::STDERR_FILENO, WORDS.as_ptr().cast(), WORDS.len());
        libc::_exit(1);
    }
}
