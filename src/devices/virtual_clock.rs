//! QEMU's virtual clock: it stands still while the guest does. Every timer and every load time in a
//! stream counts on it.

use super::device::Device;
use super::error::Error;
use super::sections::{Loading, Sections};
use crate::kvm::monotonic_ns;
use crate::vmstate::{Layout, Visitor};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The clock.
#[derive(Default)]
pub(crate) struct VirtualClock(Mutex<Clock>);

#[derive(Default)]
struct Clock {
    /// ns when it last stood still, and since when, on the host's monotonic clock, it runs.
    stood_at: i64,
    running_since: Option<i64>,
}

impl VirtualClock {
    /// ns.
    pub(crate) fn now(&self) -> i64 {
        self.lock().now()
    }

    fn lock(&self) -> MutexGuard<'_, Clock> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Clock {
    fn now(&self) -> i64 {
        self.stood_at + self.running_since.map_or(0, |since| monotonic_ns() - since)
    }
}

impl Device for VirtualClock {
    /// It goes on, as QEMU's does.
    fn reset(&self) -> Result<(), Error> {
        Ok(())
    }

    fn quiesce(&self) -> Result<(), Error> {
        let mut clock = self.lock();
        clock.stood_at = clock.now();
        clock.running_since = None;
        Ok(())
    }

    fn resume(&self) -> Result<(), Error> {
        let mut clock = self.lock();
        clock.running_since = clock.running_since.or(Some(monotonic_ns()));
        Ok(())
    }

    fn save(&self, sections: &mut Sections) -> Result<(), Error> {
        let now = self.now();
        sections.push("timer", 0, TimerState { cpu_ticks_offset: now, cpu_clock_offset: now });
        Ok(())
    }

    fn load(&self, from: &mut Loading<'_>) -> Result<(), Error> {
        if let Some(timer) = from.sections.get::<TimerState>("timer", 0) {
            *self.lock() = Clock { stood_at: timer.cpu_clock_offset, running_since: None };
        }
        Ok(())
    }
}

/// `timer`: the clocks. `cpu_clock_offset` is the virtual clock at the stop, ns: the origin of
/// every timer and every load time in the other sections.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct TimerState {
    pub cpu_ticks_offset: i64,
    pub cpu_clock_offset: i64,
}

impl Layout for TimerState {
    const NAME: &'static str = "timer";
    const VERSION: u32 = 2;

    fn fields<V: Visitor>(&mut self, v: &mut V) -> Result<(), V::Stop> {
        v.value("cpu_ticks_offset", &mut self.cpu_ticks_offset)?;
        v.unused("unused", 8)?;
        v.value("cpu_clock_offset", &mut self.cpu_clock_offset)
    }
}
