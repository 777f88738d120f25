//! Rates of time stamp counters.

use std::fmt;

/// A guest's time stamp counter, and one it would have to go on with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TscRates {
    pub guest_khz: u32,
    pub host_khz: u32,
}

impl TscRates {
    /// Within what KVM takes for the same rate: 250 ppm, its module's `tsc_tolerance_ppm`.
    pub(crate) fn are_close(&self) -> bool {
        u64::from(self.host_khz.abs_diff(self.guest_khz))
            <= u64::from(self.host_khz) * 250 / 1_000_000
    }
}

impl fmt::Display for TscRates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let TscRates { guest_khz, host_khz } = self;
        write!(
            f,
            "the guest's time stamp counter runs at {guest_khz} kHz, this host's at {host_khz} kHz, and KVM cannot \
             scale it"
        )
    }
}
