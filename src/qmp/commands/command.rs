//! A command: its name, its schema, and what runs it.

use std::cell::RefCell;
use std::sync::Arc;

use serde_json::Value as Json;

use crate::machine::Request;
use crate::qmp::args::Args;
use crate::qmp::error::Error;
use crate::qmp::fds::Monitor;
use crate::qmp::json::Value;
use crate::qmp::schema::{Shape, Type};
use crate::vmm::Vmm;

pub(crate) type Answer = Result<Json, Error>;

/// What a command is called with.
#[derive(Clone, Copy)]
pub struct Call<'a> {
    pub vmm: &'a Arc<Vmm>,
    /// The monitor that asks; named descriptors belong to it.
    pub monitor: &'a Monitor,
    pub args: Args<'a>,
    pub(crate) held: &'a Held,
}

/// What a command holds back until its answer is on its way, so that the events of what it began
/// come behind: each thing here goes on when it is dropped.
#[derive(Default)]
pub(crate) struct Held(RefCell<Vec<Box<dyn Send>>>);

impl Held {
    pub(crate) fn keep(&self, until_answered: impl Send + 'static) {
        self.0.borrow_mut().push(Box::new(until_answered));
    }
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

    pub(crate) const fn oob(self) -> Command {
        Command { oob: true, ..self }
    }

    /// Runs the command here and now, if the moment allows it; `arguments` have passed its schema.
    pub fn call(&self, vmm: &Arc<Vmm>, monitor: &Monitor, arguments: &[(String, Value)]) -> Answer {
        self.call_holding(&Held::default(), vmm, monitor, arguments)
    }

    /// The same for one who drops `held` once the answer is on its way.
    pub(crate) fn call_holding(
        &self,
        held: &Held,
        vmm: &Arc<Vmm>,
        monitor: &Monitor,
        arguments: &[(String, Value)],
    ) -> Answer {
        if let Some(request) = Request::of_command(self.name) {
            vmm.admit(request)?;
        }
        let (Run::Now(run) | Run::Blocking(run) | Run::Waiting(run)) = self.run;
        run(Call { vmm, monitor, args: Args::new(arguments), held })
    }
}
