//! Migration capabilities: QEMU's names and rules of combination.

/// Defines [`Capability`] from rows of name, whether turning it on does something here, and what.
macro_rules! capabilities {
    ($($capability:ident $name:literal $is:ident $does:literal;)+) => {
        /// All capabilities, in QEMU's order.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u8)]
        pub enum Capability {
            $(#[doc = $does] $capability,)+
        }

        use Capability::*;

        impl Capability {
            pub(crate) const ALL: &[Capability] = &[$($capability),+];

            /// The names of all, in the same order.
            pub(crate) const NAMES: &[&str] = &[$($name),+];

            /// What each does, in the same order.
            const DOES: &[&str] = &[$($does),+];

            fn is_built(self) -> bool {
                match self {
                    $($capability => capabilities!($is),)+
                }
            }
        }
    };
    (built) => { true };
    (refused) => { false };
}

capabilities! {
    Xbzrle "xbzrle" built "Send what changed in a page, not the page.";
    RdmaPinAll "rdma-pin-all" refused "RDMA is not built in.";
    AutoConverge "auto-converge" built "Slow a guest down that dirties memory faster than it can be sent.";
    ZeroBlocks "zero-blocks" built "For disks that are migrated, of which there are none.";
    Events "events" built "Announce states and rounds by events.";
    PostcopyRam "postcopy-ram" refused "Postcopy is not built in.";
    Colo "x-colo" refused "COLO is not built in.";
    ReleaseRam "release-ram" built "Free what was sent in postcopy, which is not built in.";
    ReturnPath "return-path" built "Let the target answer on streams that a descriptor opened, too.";
    PauseBeforeSwitchover "pause-before-switchover" built "Wait for migrate-continue once the guest stands still.";
    Multifd "multifd" built "Send pages over several connections.";
    DirtyBitmaps "dirty-bitmaps" refused "There are no disks whose bitmaps could be sent.";
    PostcopyBlocktime "postcopy-blocktime" refused "Postcopy is not built in.";
    LateBlockActivate "late-block-activate" built "Leave disks to the source until the guest runs, which is so anyway.";
    IgnoreShared "x-ignore-shared" refused "Leaving shared memory out is not built in.";
    ValidateUuid "validate-uuid" built "Send the guest's UUID, for the target to compare.";
    BackgroundSnapshot "background-snapshot" built "Write the guest as it is at one moment, while it runs on.";
    ZeroCopySend "zero-copy-send" refused "Sending without a copy is not built in.";
    PostcopyPreempt "postcopy-preempt" refused "Postcopy is not built in.";
    SwitchoverAck "switchover-ack" built "Wait for the target's consent before the guest is stopped.";
    DirtyLimit "dirty-limit" built "Slow down those vCPUs that dirty memory too fast; needs dirty-ring-size.";
    MappedRam "mapped-ram" built "Write a file in which each page has a fixed place.";
}

impl Capability {
    /// As QMP writes it.
    pub(crate) const fn name(self) -> &'static str {
        Self::NAMES[self as usize]
    }

    pub(crate) fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|capability| capability.name() == name)
    }
}

/// What each capability does, for people, a line each.
pub(crate) fn help() -> String {
    let line = |(name, does): (&&str, &&str)| format!("  {name:<28}{does}\n");
    Capability::NAMES.iter().zip(Capability::DOES).map(line).collect()
}

/// Why a set of capabilities was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CapabilityError {
    #[error("capability '{}' is not built in", .0.name())]
    NotBuilt(Capability),
    #[error("Capability 'switchover-ack' requires capability 'return-path'")]
    AckNeedsReturnPath,
    #[error("dirty-limit conflicts with auto-converge either of then available currently")]
    TwoThrottles,
    #[error("dirty-limit requires KVM with accelerator property 'dirty-ring-size' set")]
    NeedsRing,
    #[error("Multifd must be set before incoming starts")]
    MultifdTooLate,
    #[error("Mapped-ram migration is incompatible with xbzrle")]
    MappedDeltas,
    #[error("Background-snapshot is not compatible with {}", .0.name())]
    Background(Capability),
}

/// Which capabilities are on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Capabilities(u32);

impl Capabilities {
    pub(crate) fn has(self, capability: Capability) -> bool {
        self.0 & (1 << capability as u8) != 0
    }

    /// Every capability with its state.
    pub(crate) fn states(self) -> impl Iterator<Item = (Capability, bool)> {
        Capability::ALL.iter().map(move |&capability| (capability, self.has(capability)))
    }

    /// With `changes` made in order. The rules hold for the result, and all is refused or all is
    /// made. Unlike QEMU, multifd goes with xbzrle: between two Godwits deltas travel on several
    /// channels.
    pub fn with(self, changes: &[(Capability, bool)]) -> Result<Self, CapabilityError> {
        let mut result = self;
        for &(capability, on) in changes {
            let bit = 1 << capability as u8;
            result.0 = if on { result.0 | bit } else { result.0 & !bit };
        }
        if let Some((capability, _)) =
            result.states().find(|(capability, on)| *on && !capability.is_built())
        {
            return Err(CapabilityError::NotBuilt(capability));
        }
        if result.has(SwitchoverAck) && !result.has(ReturnPath) {
            return Err(CapabilityError::AckNeedsReturnPath);
        }
        if result.has(DirtyLimit) && result.has(AutoConverge) {
            return Err(CapabilityError::TwoThrottles);
        }
        if result.has(MappedRam) && result.has(Xbzrle) {
            return Err(CapabilityError::MappedDeltas);
        }
        match BESIDE_BACKGROUND.iter().find(|other| result.has(**other)) {
            Some(other) if result.has(BackgroundSnapshot) => {
                Err(CapabilityError::Background(*other))
            }
            _ => Ok(result),
        }
    }
}

/// What does not go with `background-snapshot`, in QEMU's order.
const BESIDE_BACKGROUND: [Capability; 14] = [
    PostcopyRam,
    DirtyBitmaps,
    PostcopyBlocktime,
    LateBlockActivate,
    ReturnPath,
    Multifd,
    PauseBeforeSwitchover,
    AutoConverge,
    ReleaseRam,
    RdmaPinAll,
    Xbzrle,
    Colo,
    ValidateUuid,
    ZeroCopySend,
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_qemus_and_lead_back() {
        assert_eq!(Capability::ALL.len(), 22);
        for (index, &capability) in Capability::ALL.iter().enumerate() {
            assert_eq!(Capability::from_name(capability.name()), Some(capability));
            assert_eq!(capability as usize, index);
        }
    }

    #[test]
    fn off_is_always_accepted_and_on_only_when_built() {
        for &capability in Capability::ALL {
            assert_eq!(
                Capabilities::default().with(&[(capability, false)]),
                Ok(Capabilities::default())
            );
        }
        let error = Capabilities::default().with(&[(PostcopyRam, true)]).unwrap_err();
        assert_eq!(error.to_string(), "capability 'postcopy-ram' is not built in");
    }

    #[test]
    fn rules_hold_for_the_result_and_later_duplicates_win() {
        let none = Capabilities::default();
        assert!(none.with(&[(SwitchoverAck, true)]).is_err());
        let both = none.with(&[(SwitchoverAck, true), (ReturnPath, true)]).unwrap();
        assert!(both.with(&[(ReturnPath, false)]).is_err());
        assert_eq!(none.with(&[(Xbzrle, true), (Xbzrle, false)]), Ok(none));
        assert!(none.with(&[(DirtyLimit, true), (AutoConverge, true)]).is_err());
        let mapped = none.with(&[(MappedRam, true), (Multifd, true)]).unwrap();
        let error = mapped.with(&[(Xbzrle, true)]).unwrap_err();
        assert_eq!(error.to_string(), "Mapped-ram migration is incompatible with xbzrle");
        let background = none.with(&[(BackgroundSnapshot, true), (MappedRam, true)]).unwrap();
        let error = background.with(&[(Multifd, true)]).unwrap_err();
        assert_eq!(error.to_string(), "Background-snapshot is not compatible with multifd");
        let xbzrle_multifd = none.with(&[(Xbzrle, true), (Multifd, true)]).unwrap();
        assert!(xbzrle_multifd.has(Xbzrle) && xbzrle_multifd.has(Multifd));
    }
}
