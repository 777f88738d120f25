//! What becomes of a machine whose guest ends.

/// What happens when the guest or a person ends something (`-action`, `-no-reboot`, `-no-shutdown`,
/// `set-action`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Actions {
    pub reboot: RebootAction,
    pub shutdown: ShutdownAction,
    pub panic: PanicAction,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RebootAction {
    #[default]
    Reset,
    Shutdown,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ShutdownAction {
    #[default]
    Poweroff,
    Pause,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PanicAction {
    #[default]
    Shutdown,
    Pause,
    ExitFailure,
    None,
}
