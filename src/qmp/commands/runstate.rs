//! Commands that stop the guest, start it, or press its buttons.

use serde_json::json;

use super::{Answer, Call, Command, Run};
use crate::config::{PanicAction, RebootAction, ShutdownAction};
use crate::machine::Moment;
use crate::qmp::schema::{Shape, Type, optional};

pub static COMMANDS: &[Command] = &[
    Command::new("query-status", Run::Now(query_status)),
    Command::new("stop", Run::Blocking(stop)),
    Command::new("cont", Run::Blocking(cont)),
    Command::new("system_reset", Run::Blocking(system_reset)),
    Command::new("system_powerdown", Run::Now(system_powerdown)),
    Command::new("inject-nmi", Run::Blocking(inject_nmi)),
    Command::new("set-action", Run::Now(set_action)).arguments(&ACTIONS),
];

static ACTIONS: Shape = Shape::of(&[
    optional("reboot", Type::Enum(&["reset", "shutdown"])),
    optional("shutdown", Type::Enum(&["poweroff", "pause"])),
    optional("panic", Type::Enum(&["pause", "shutdown", "exit-failure", "none"])),
    // This board has no watchdog; the setting is taken and means nothing.
    optional(
        "watchdog",
        Type::Enum(&["reset", "shutdown", "poweroff", "pause", "debug", "none", "inject-nmi"]),
    ),
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
