//! The commands, by subject, in one table.
//!
//! # Adding commands
//!
//! A subject is a file here with a `pub static COMMANDS: &[Command]`, named in `SUBJECTS`:
//!
//! ```
//! use godwit::qmp::Error;
//! use godwit::qmp::commands::{Answer, Call, Command, Run};
//! use godwit::qmp::schema::{Shape, Type, optional, required};
//! use serde_json::json;
//!
//! pub static COMMANDS: &[Command] = &[
//!     Command::new("query-example", Run::Now(query_example)),
//!     Command::new("example-start", Run::Now(start)).arguments(&START),
//!     Command::new("example-store", Run::Waiting(store)).arguments(&START),
//! ];
//!
//! static START: Shape = Shape::of(&[required("uri", Type::Text), optional("detach", Type::Bool)]);
//!
//! fn query_example(call: Call<'_>) -> Answer {
//!     Ok(json!({"status": call.vmm.guest.run_state().name()}))
//! }
//!
//! fn start(call: Call<'_>) -> Answer {
//!     // The schema was checked: `uri` is there and is a string.
//!     let uri = call.args.text("uri");
//!     // A descriptor sent with getfd, taken away from its monitor: `File descriptor named 'x' has not been found`.
//!     let fd = uri.strip_prefix("fd:").map(|name| call.monitor.fds.take(name)).transpose()?;
//!     // Work that goes on after the answer owns what it needs (`call.vmm` is an `Arc`), and announces itself. An event
//!     // sent before this function returns is seen before its answer.
//!     let vmm = call.vmm.clone();
//!     let work = move || {
//!         drop(fd);
//!         vmm.events.emit("MIGRATION", json!({"status": "completed"}));
//!     };
//!     // A host may be out of threads.
//!     std::thread::Builder::new().spawn(work).map_err(Error::generic)?;
//!     Ok(json!({}))
//! }
//!
//! fn store(_call: Call<'_>) -> Answer {
//!     // On a helper thread: may take as long as it must. Only its own client waits.
//!     Ok(json!({}))
//! }
//! ```
//!
//! Arguments that libvirt or the specification send and that have no effect here are in the schema
//! all the same. New events go into `events::KINDS`. What a command needs of the VMM is a field of
//! [`Vmm`].

mod absent;
pub(crate) mod channels;
mod descriptors;
mod dirty;
pub(crate) mod dump;
mod file;
mod human;
mod machine;
mod memory;
pub(crate) mod migration;
pub(crate) mod migration_shapes;
pub(crate) mod objects;
mod protocol;
mod runstate;
mod stats;

use std::sync::Arc;

use serde_json::Value as Json;

use super::args::Args;
use super::error::Error;
use super::fds::Monitor;
use super::json::Value;
use super::schema::{Shape, Type};
use crate::machine::Request;
use crate::vmm::Vmm;

/// Every table.
static SUBJECTS: &[&[Command]] = &[
    protocol::COMMANDS,
    human::COMMANDS,
    runstate::COMMANDS,
    machine::COMMANDS,
    objects::COMMANDS,
    absent::COMMANDS,
    memory::COMMANDS,
    dirty::COMMANDS,
    stats::COMMANDS,
    descriptors::COMMANDS,
    dump::COMMANDS,
    migration::COMMANDS,
];

/// The one command that exists before the negotiation, and not after it.
pub(crate) const NEGOTIATION: &str = "qmp_capabilities";

pub(crate) type Answer = Result<Json, Error>;

/// What a command is called with.
#[derive(Clone, Copy)]
pub struct Call<'a> {
    pub vmm: &'a Arc<Vmm>,
    /// The monitor that asks; named descriptors belong to it.
    pub monitor: &'a Monitor,
    pub args: Args<'a>,
}

pub struct Command {
    pub name: &'static str,
    /// What it does, in one sentence.
    pub does: &'static str,
    pub arguments: &'static Shape,
    pub returns: Type,
    /// May be sent with `exec-oob`; then it must be [`Run::Now`].
    pub oob: bool,
    pub run: Run,
}

#[derive(Clone, Copy)]
pub enum Run {
    /// On the control plane's thread. Must not block: no file names, no waiting for vCPUs.
    Now(fn(Call<'_>) -> Answer),
    /// On a helper thread, for what changes the machine: one at a time over all monitors. May wait
    /// for vCPUs, which takes milliseconds, and for nothing else.
    Blocking(fn(Call<'_>) -> Answer),
    /// On a helper thread, for what opens names or waits for others: may take as long as it must,
    /// beside all other commands. It checks for itself what may run beside it.
    Waiting(fn(Call<'_>) -> Answer),
}

/// No members.
pub(crate) static NOTHING: Shape = Shape::of(&[]);

impl Command {
    /// A command without arguments that answers with an empty object.
    pub(crate) const fn new(name: &'static str, run: Run) -> Command {
        Command {
            name,
            does: "",
            arguments: &NOTHING,
            returns: Type::Object(&NOTHING),
            oob: false,
            run,
        }
    }

    /// Says what it does, for `godwit qmp --help`.
    pub(crate) const fn does(self, does: &'static str) -> Command {
        Command { does, ..self }
    }

    pub(crate) const fn returns(self, returns: Type) -> Command {
        Command { returns, ..self }
    }

    pub(crate) const fn arguments(self, arguments: &'static Shape) -> Command {
        Command { arguments, ..self }
    }

    pub(crate) const fn at(self, run: Run) -> Command {
        Command { run, ..self }
    }

    pub(crate) const fn oob(self) -> Command {
        Command { oob: true, ..self }
    }

    /// Runs the command here and now, if the moment allows it; `arguments` have passed its schema.
    pub fn call(&self, vmm: &Arc<Vmm>, monitor: &Monitor, arguments: &[(String, Value)]) -> Answer {
        if let Some(request) = Request::of_command(self.name) {
            vmm.admit(request)?;
        }
        let (Run::Now(run) | Run::Blocking(run) | Run::Waiting(run)) = self.run;
        run(Call { vmm, monitor, args: Args::new(arguments) })
    }
}

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
