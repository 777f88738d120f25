//! A row of the table of parameters.

use super::Parameters;
use super::kind::{Field, Kind, ParameterError, Slot};

/// One parameter.
pub(crate) struct Row {
    pub name: &'static str,
    pub kind: Kind,
    pub(super) limits: Limits,
    pub acts: Acts,
    /// What it does, in one sentence.
    pub does: &'static str,
    pub(super) slot: fn(&mut Parameters) -> Slot<'_>,
}

/// What a value must be, beside its type. The sentences are QEMU's.
pub(crate) enum Limits {
    None,
    Range {
        min: u64,
        max: u64,
        says: &'static str,
    },
    /// One of these.
    Choice(&'static [&'static str]),
    /// Something about the whole set.
    Rule {
        holds: fn(&Parameters) -> bool,
        says: &'static str,
    },
}

/// When a change acts. All may be changed at any time, as in QEMU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Acts {
    /// At once, on a migration that runs, too.
    Now,
    /// On the migrations that start from then on.
    Start,
    /// Never: it belongs to something that is not built in, and is kept for QEMU's clients.
    Never,
}

impl Acts {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Acts::Now => "now",
            Acts::Start => "start",
            Acts::Never => "-",
        }
    }
}

/// A row for a field of type `T`.
pub(super) const fn row<T: Field>(
    name: &'static str,
    limits: Limits,
    acts: Acts,
    does: &'static str,
    slot: fn(&mut Parameters) -> Slot<'_>,
) -> Row {
    let kind = match limits {
        Limits::Choice(choices) => Kind::Choice(choices),
        _ => T::KIND,
    };
    Row { name, kind, limits, acts, does, slot }
}

pub(super) fn find(name: &str) -> Option<&'static Row> {
    super::TABLE.iter().find(|row| row.name == name)
}

impl Row {
    pub(super) fn holds(&self, parameters: &Parameters) -> bool {
        match self.limits {
            Limits::None | Limits::Choice(_) => true,
            Limits::Range { min, max, .. } => {
                let value = (self.slot)(&mut parameters.clone()).number();
                value.is_none_or(|value| (min..=max).contains(&value))
            }
            Limits::Rule { holds, .. } => holds(parameters),
        }
    }

    pub(super) fn out_of_range(&self) -> ParameterError {
        let rule = match self.limits {
            Limits::Range { says, .. } | Limits::Rule { says, .. } => says,
            Limits::None | Limits::Choice(_) => "cannot have this value",
        };
        // QEMU's own way of writing names here.
        let name = match self.name.starts_with("x-") {
            true => self.name.to_owned(),
            false => self.name.replace('-', "_"),
        };
        ParameterError::Range { name, rule }
    }
}
