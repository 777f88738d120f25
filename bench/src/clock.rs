//! The CPU time of a thread.
#![allow(unsafe_code)] // one system call

use std::time::Duration;

/// A moment in the CPU time of this thread, which stands still while the thread does not run.
#[derive(Clone, Copy)]
pub struct CpuTime(Duration);

impl CpuTime {
    pub fn now() -> Self {
        let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: `time` is writable; this clock exists since Linux 2.6.12, so the call cannot
        // fail.
        unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
        Self(Duration::new(time.tv_sec as u64, time.tv_nsec as u32))
    }

    /// CPU time used by this thread since then.
    pub fn elapsed(self) -> Duration {
        Self::now().0.saturating_sub(self.0)
    }
}
