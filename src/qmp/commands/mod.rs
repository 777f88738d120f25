//! The commands, by subject, in one table.
//!
//! # Adding commands
//!
//! A subject is a file here with a table of [`Command`]s, named in `SUBJECTS`; `descriptors` is a
//! small one. A command is a function of a [`Call`] that answers. The schema was checked before: an
//! argument that must be there is there, and of its type. Work that goes on after the answer owns
//! what it needs (`call.vmm` is an `Arc`); an event sent before the function returns is seen before
//! its answer.
//!
//! Arguments that libvirt or the specification send and that have no effect here are in the schema
//! all the same. New events go into `events::KINDS`. What a command needs of the VMM is a field of
//! [`Vmm`](crate::vmm::Vmm).

mod absent;
pub(crate) mod balloon;
mod block;
mod block_shapes;
pub(crate) mod channels;
mod chardevs;
mod command;
mod descriptors;
mod dirty;
pub(crate) mod dump;
mod file;
mod human;
mod input;
mod machine;
mod memory;
pub(crate) mod migration;
pub(crate) mod migration_shapes;
pub(crate) mod network;
pub(crate) mod objects;
mod protocol;
mod runstate;
mod stats;

pub(crate) use chardevs::{add_described as add_chardev, change_described as change_chardev};
pub(crate) use command::{Answer, Held, NOTHING, Run};
pub use command::{Call, Command};

/// Every table.
static SUBJECTS: &[&[Command]] = &[
    protocol::COMMANDS,
    human::COMMANDS,
    runstate::COMMANDS,
    machine::COMMANDS,
    objects::COMMANDS,
    absent::COMMANDS,
    input::COMMANDS,
    balloon::COMMANDS,
    chardevs::COMMANDS,
    block::COMMANDS,
    network::COMMANDS,
    memory::COMMANDS,
    dirty::COMMANDS,
    stats::COMMANDS,
    descriptors::COMMANDS,
    dump::COMMANDS,
    migration::COMMANDS,
];

/// The one command that exists before the negotiation, and not after it.
pub(crate) const NEGOTIATION: &str = "qmp_capabilities";

/// Every command.
pub fn all() -> impl Iterator<Item = &'static Command> {
    SUBJECTS.iter().copied().flatten()
}

pub fn find(name: &str) -> Option<&'static Command> {
    all().find(|command| command.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn names_are_distinct() {
        let mut names = HashSet::new();
        assert!(all().all(|command| names.insert(command.name)));
    }

    #[test]
    fn out_of_band_commands_do_not_block() {
        assert!(
            all().filter(|command| command.oob).all(|command| matches!(command.run, Run::Now(_)))
        );
    }
}
