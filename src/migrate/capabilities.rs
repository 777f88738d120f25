//! Migration capabilities: QEMU's names and rules of combination.

/// All capabilities, in QEMU's order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Capability {
    Xbzrle,
    RdmaPinAll,
    AutoConverge,
    ZeroBlocks,
    Events,
    PostcopyRam,
    Colo,
    ReleaseRam,
    ReturnPath,
    PauseBeforeSwitchover,
    Multifd,
    DirtyBitmaps,
    PostcopyBlocktime,
    LateBlockActivate,
    IgnoreShared,
    ValidateUuid,
    BackgroundSnapshot,
    ZeroCopySend,
    PostcopyPreempt,
    SwitchoverAck,
    DirtyLimit,
    MappedRam,
}

use Capability::*;

impl Capability {
    pub const ALL: [Capability; 22] = [
        Xbzrle,
        RdmaPinAll,
        AutoConverge,
        ZeroBlocks,
        Events,
        PostcopyRam,
        Colo,
        ReleaseRam,
        ReturnPath,
        PauseBeforeSwitchover,
        Multifd,
        DirtyBitmaps,
        PostcopyBlocktime,
        LateBlockActivate,
        IgnoreShared,
        ValidateUuid,
        BackgroundSnapshot,
        ZeroCopySend,
        PostcopyPreempt,
        SwitchoverAck,
        DirtyLimit,
        MappedRam,
    ];

    /// The names of all, in the same order.
    pub const NAMES: &[&str] = &{
        let mut names = [""; Self::ALL.len()];
        let mut i = 0;
        while i < names.len() {
            names[i] = Self::ALL[i].name();
            i += 1;
        }
        names
    };

    /// As QMP writes it.
    pub const fn name(self) -> &'static str {
        match self {
            Xbzrle => "xbzrle",
            RdmaPinAll => "rdma-pin-all",
            AutoConverge => "auto-converge",
            ZeroBlocks => "zero-blocks",
            Events => "events",
            PostcopyRam => "postcopy-ram",
            Colo => "x-colo",
            ReleaseRam => "release-ram",
            ReturnPath => "return-path",
            PauseBeforeSwitchover => "pause-before-switchover",
            Multifd => "multifd",
            DirtyBitmaps => "dirty-bitmaps",
            PostcopyBlocktime => "postcopy-blocktime",
            LateBlockActivate => "late-block-activate",
            IgnoreShared => "x-ignore-shared",
            ValidateUuid => "validate-uuid",
            BackgroundSnapshot => "background-snapshot",
            ZeroCopySend => "zero-copy-send",
            PostcopyPreempt => "postcopy-preempt",
            SwitchoverAck => "switchover-ack",
            DirtyLimit => "dirty-limit",
            MappedRam => "mapped-ram",
        }
    }

    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|capability| capability.name() == name)
    }

    /// Whether turning it on does something here. `late-block-activate`, `zero-blocks` and
    /// `release-ram` are accepted: they promise nothing that is not kept anyway.
    fn is_built(self) -> bool {
        matches!(
            self,
            Xbzrle
                | AutoConverge
                | ZeroBlocks
                | Events
                | ReleaseRam
                | ReturnPath
                | PauseBeforeSwitchover
                | Multifd
                | LateBlockActivate
                | ValidateUuid
                | SwitchoverAck
        )
    }
}

/// Why a set of capabilities was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CapabilityError {
    #[error("capability '{}' is not built in", .0.name())]
    NotBuilt(Capability),
    #[error("Capability 'switchover-ack' requires capability 'return-path'")]
    AckNeedsReturnPath,
    #[error("Multifd must be set before incoming starts")]
    MultifdTooLate,
}

/// Which capabilities are on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Capabilities(u32);

impl Capabilities {
    pub fn has(self, capability: Capability) -> bool {
        self.0 & (1 << capability as u8) != 0
    }

    /// Every capability with its state.
    pub fn states(self) -> impl Iterator<Item = (Capability, bool)> {
        Capability::ALL.into_iter().map(move |capability| (capability, self.has(capability)))
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
        Ok(result)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_qemus_and_lead_back() {
        assert_eq!(Capability::ALL.len(), 22);
        for (index, capability) in Capability::ALL.into_iter().enumerate() {
            assert_eq!(Capability::from_name(capability.name()), Some(capability));
            assert_eq!(capability as usize, index);
        }
    }

    #[test]
    fn off_is_always_accepted_and_on_only_when_built() {
        for capability in Capability::ALL {
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
        let xbzrle_multifd = none.with(&[(Xbzrle, true), (Multifd, true)]).unwrap();
        assert!(xbzrle_multifd.has(Xbzrle) && xbzrle_multifd.has(Multifd));
    }
}
