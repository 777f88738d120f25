//! What the source of a migration did when it stopped: the machine's own word, behind its devices.

use super::RunState;
use crate::devices::{Kind, SectionKind, only_one};
use crate::vmstate::{Layout, Visitor};

pub(crate) const KIND: Kind = Kind {
    sections: &[SectionKind::of::<GlobalState>("run state of the source", only_one).checked(
        |state, _| match state.downcast_ref::<GlobalState>().and_then(GlobalState::run_state) {
            Some(_) => Ok(()),
            None => Err(("runstate", "not the name of a run state".into())),
        },
    )],
    ..Kind::NONE
};

/// `globalstate`: what the source did when it stopped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct GlobalState {
    /// Length of the name with its NUL.
    pub size: u32,
    /// Run state name, NUL padded.
    pub run_state: [u8; 32],
    pub has_was_suspended: u8,
    pub was_suspended: u8,
    pub padding: [u8; 66],
}

impl Default for GlobalState {
    fn default() -> Self {
        Self {
            size: 0,
            run_state: [0; 32],
            has_was_suspended: 0,
            was_suspended: 0,
            padding: [0; 66],
        }
    }
}

impl GlobalState {
    pub(crate) fn new(state: RunState) -> Self {
        let name = state.name();
        let mut state =
            Self { size: name.len() as u32 + 1, has_was_suspended: 1, ..Self::default() };
        state.run_state[..name.len()].copy_from_slice(name.as_bytes());
        state
    }

    /// The run state, or `None` if there is none of this name.
    pub(crate) fn run_state(&self) -> Option<RunState> {
        let name = self.run_state.split(|byte| *byte == 0).next()?;
        std::str::from_utf8(name).ok().and_then(RunState::from_name)
    }
}

impl Layout for GlobalState {
    const NAME: &'static str = "globalstate";
    const VERSION: u32 = 1;

    fn fields<V: Visitor>(&mut self, v: &mut V) -> Result<(), V::Stop> {
        v.value("size", &mut self.size)?;
        v.buffer("runstate", &mut self.run_state)?;
        v.value("has_vm_was_suspended", &mut self.has_was_suspended)?;
        v.value("vm_was_suspended", &mut self.was_suspended)?;
        v.buffer("unused", &mut self.padding)
    }
}
