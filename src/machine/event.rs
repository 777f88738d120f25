//! What a machine tells the outside.

use crate::devices::DiskEvent;

/// Why a machine was reset or shut down, with QEMU's names (`ShutdownCause`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopCause {
    HostError,
    HostQmpQuit,
    HostQmpSystemReset,
    HostSignal,
    HostUi,
    GuestShutdown,
    GuestReset,
    GuestPanic,
    SubsystemReset,
    SnapshotLoad,
}

impl StopCause {
    /// As QMP writes them; `none` is QEMU's, and never sent.
    pub(crate) const NAMES: &[&str] = &[
        "none",
        StopCause::HostError.name(),
        StopCause::HostQmpQuit.name(),
        StopCause::HostQmpSystemReset.name(),
        StopCause::HostSignal.name(),
        StopCause::HostUi.name(),
        StopCause::GuestShutdown.name(),
        StopCause::GuestReset.name(),
        StopCause::GuestPanic.name(),
        StopCause::SubsystemReset.name(),
        StopCause::SnapshotLoad.name(),
    ];

    /// As QMP writes it.
    pub const fn name(self) -> &'static str {
        match self {
            StopCause::HostError => "host-error",
            StopCause::HostQmpQuit => "host-qmp-quit",
            StopCause::HostQmpSystemReset => "host-qmp-system-reset",
            StopCause::HostSignal => "host-signal",
            StopCause::HostUi => "host-ui",
            StopCause::GuestShutdown => "guest-shutdown",
            StopCause::GuestReset => "guest-reset",
            StopCause::GuestPanic => "guest-panic",
            StopCause::SubsystemReset => "subsystem-reset",
            StopCause::SnapshotLoad => "snapshot-load",
        }
    }

    /// True if the guest asked for it.
    pub fn by_guest(self) -> bool {
        matches!(self, StopCause::GuestShutdown | StopCause::GuestReset | StopCause::GuestPanic)
    }
}

/// What the VMM does after a guest's panic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Panic {
    Pause,
    Poweroff,
    Run,
}

impl Panic {
    /// As QMP writes them.
    pub(crate) const NAMES: &[&str] =
        &[Panic::Pause.name(), Panic::Poweroff.name(), Panic::Run.name()];

    /// As QMP writes it.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Panic::Pause => "pause",
            Panic::Poweroff => "poweroff",
            Panic::Run => "run",
        }
    }
}

/// An event, named as in QMP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    Stop,
    Resume,
    Reset(StopCause),
    /// The guest is over. With [`crate::config::ShutdownAction::Poweroff`] the process should end;
    /// the machine stands still either way.
    Shutdown(StopCause),
    Powerdown,
    /// The guest has ended the process, with this status.
    Exit(i32),
    GuestPanicked {
        action: Panic,
    },
    /// The host cannot supply a page of guest memory that `vcpu` wants; the run state is
    /// `internal-error`. `why` says which memory and what to do.
    MemoryFailure {
        vcpu: u32,
        why: String,
    },
    /// The guest has given memory to its balloon, or taken some back, and has so many bytes now.
    BalloonChange {
        actual: u64,
    },
    /// A program of the guest opened the port of this id, or closed it.
    PortChange {
        id: String,
        open: bool,
    },
    /// The host could not do what a disk wanted.
    Disk(DiskEvent),
    /// A vCPU cannot go on; the run state is `internal-error`. Not a QMP event: a sentence for
    /// stderr.
    InternalError {
        vcpu: u32,
        why: String,
    },
}
