//! Commands that stop the guest, start it, or press its buttons.

use serde_json::json;

use super::command::{Answer, Call, Command, Run};
use crate::config::{PanicAction, RebootAction, ShutdownAction};
use crate::machine::{Moment, RunState};
use crate::qmp::schema::{Shape, Type, optional, required};

pub(crate) static COMMANDS: &[Command] = &[
    Command::new("query-status", Run::Now(query_status))
        .returns(Type::Object(&STATUS))
        .does("Tells whether the guest runs, and if not, why."),
    Command::new("stop", Run::Blocking(stop)).does("Stops the guest's processors."),
    Command::new("cont", Run::Blocking(cont))
        .does("Lets a stopped guest go on, or starts one that was never started."),
    Command::new("system_reset", Run::Blocking(system_reset)).does("Starts the guest over."),
    Command::new("system_powerdown", Run::Now(system_powerdown))
        .does("Presses the power button, which this board lacks: only the event is seen."),
    Command::new("inject-nmi", Run::Blocking(inject_nmi))
        .does("Sends an NMI to every processor that takes one."),
    Command::new("set-action", Run::Now(set_action))
        .arguments(&ACTIONS)
        .does("Chooses what happens when the guest resets, shuts down or panics."),
];

static STATUS: Shape =
    Shape::of(&[required("status", Type::Enum(&RunState::NAMES)), required("running", Type::Bool)]);
static ACTIONS: Shape = Shape::of(&[
    optional("reboot", Type::Enum(&["reset", "shutdown"])).means("when the guest resets"),
    optional("shutdown", Type::Enum(&["poweroff", "pause"])).means("when the guest shuts down"),
    optional("panic", Type::Enum(&["pause", "shutdown", "exit-failure", "none"]))
        .means("when the guest panics"),
    optional(
        "watchdog",
        Type::Enum(&["reset", "shutdown", "poweroff", "pause", "debug", "none", "inject-nmi"]),
    )
    .means("taken, and without effect: this board has no watchdog"),
]);

fn query_status(call: Call<'_>) -> Answer {
    let state = call.vmm.guest.run_state();
    Ok(json!({"status": state.name(), "running": state.is_running()}))
}

/// While the guest is still arriving, `stop` and `cont` say what happens once it is there.
fn stop(call: Call<'_>) -> Answer {
    match call.vmm.guest.moment() {
        Moment::Arriving => call.vmm.set_autostart(false),
        Moment::Ordinary if !call.vmm.guest.run_state().is_running() => {}
        _ => call.vmm.guest.stop()?,
    }
    Ok(json!({}))
}

fn cont(call: Call<'_>) -> Answer {
    match call.vmm.guest.moment() {
        Moment::Arriving => call.vmm.set_autostart(true),
        _ => call.vmm.guest.cont()?,
    }
    Ok(json!({}))
}

fn system_reset(call: Call<'_>) -> Answer {
    call.vmm.guest.reset()?;
    Ok(json!({}))
}

fn system_powerdown(call: Call<'_>) -> Answer {
    call.vmm.guest.powerdown();
    Ok(json!({}))
}

fn inject_nmi(call: Call<'_>) -> Answer {
    call.vmm.guest.inject_nmi()?;
    Ok(json!({}))
}

fn set_action(call: Call<'_>) -> Answer {
    let mut actions = call.vmm.guest.actions();
    match call.args.text_if_given("reboot") {
        Some("reset") => actions.reboot = RebootAction::Reset,
        Some(_shutdown) => actions.reboot = RebootAction::Shutdown,
        None => {}
    }
    match call.args.text_if_given("shutdown") {
        Some("pause") => actions.shutdown = ShutdownAction::Pause,
        Some(_poweroff) => actions.shutdown = ShutdownAction::Poweroff,
        None => {}
    }
    match call.args.text_if_given("panic") {
        Some("pause") => actions.panic = PanicAction::Pause,
        Some("shutdown") => actions.panic = PanicAction::Shutdown,
        Some("exit-failure") => actions.panic = PanicAction::ExitFailure,
        Some(_none) => actions.panic = PanicAction::None,
        None => {}
    }
    call.vmm.guest.set_actions(actions);
    Ok(json!({}))
}
