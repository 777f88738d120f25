//! Threads that need no memory of their own for signals.
//!
//! The standard library gives each new thread a second stack, on which it could tell of an overflow
//! of the first. Where that stack cannot be had (`RLIMIT_AS`, `vm.max_map_count`), the thread panics
//! before any code of ours runs in it, and takes the process and its guest along; a thread that
//! cannot be made is an error that `spawn` returns. The library leaves it be if somebody handles
//! SIGSEGV and SIGBUS already when it starts; what is lost is its message, as a stack that overflows
//! is a plain SIGSEGV then.

#![allow(unsafe_code)]

use libc::{SIG_DFL, SIGBUS, SIGSEGV, c_int, signal};

/// Called by the loader, before `main` and the standard library's own beginning.
#[used]
#[unsafe(link_section = ".init_array")]
static BEFORE_MAIN: extern "C" fn() = handle_faults;

extern "C" fn handle_faults() {
    let handler = end_as_ever as extern "C" fn(c_int);
    for number in [SIGSEGV, SIGBUS] {
        // SAFETY: the handler takes the signal's number and calls what is async-signal-safe only.
        unsafe { signal(number, handler as usize) };
    }
}

/// The fault comes again, and ends the process as it would have without a handler.
extern "C" fn end_as_ever(number: c_int) {
    // SAFETY: async-signal-safe.
    unsafe { signal(number, SIG_DFL) };
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_new_thread_has_no_stack_for_signals() {
        let flags = std::thread::spawn(|| {
            // SAFETY: plain numbers and a null pointer, for which zeros are valid.
            let mut stack: libc::stack_t = unsafe { std::mem::zeroed() };
            // SAFETY: asks only; the kernel fills in `stack`.
            assert_eq!(unsafe { libc::sigaltstack(std::ptr::null(), &mut stack) }, 0);
            stack.ss_flags
        });
        assert_eq!(flags.join().unwrap(), libc::SS_DISABLE);
    }
}
