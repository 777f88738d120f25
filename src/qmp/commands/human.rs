//! `human-monitor-command`: a line of the human monitor. A command that does not exist is an answer,
//! not an error, as in QEMU.

use super::command::{Answer, Call, Command, Run};
use crate::qmp::error::Error;
use crate::qmp::human;
use crate::qmp::schema::{Shape, Type, optional, required};

pub(crate) static COMMANDS: &[Command] = &[
    // A command inside takes its turn, or waits, by itself.
    Command::new("human-monitor-command", Run::Waiting(human_monitor_command))
        .arguments(&LINE)
        .returns(Type::Text)
        .does("Runs a command of the human monitor and answers with what it says; try help."),
];

static LINE: Shape = Shape::of(&[
    required("command-line", Type::Text).means("the command with its words"),
    optional("cpu-index", Type::Int).means("the processor that it is about (0)"),
]);

fn human_monitor_command(call: Call<'_>) -> Answer {
    if let Some(index) = call.args.int_if_given("cpu-index")
        && !call.vmm.guest.vcpus().iter().any(|vcpu| i64::from(vcpu.index) == index)
    {
        return Err(Error::generic("Parameter 'cpu-index' expects a CPU number"));
    }
    Ok(human::answer(call.vmm, call.monitor, call.args.text("command-line"), None).into())
}
