//! Commands that stop the guest, start it, or press its buttons.

use serde_json::json;

use super::{Answer, Call, Command, Run};
use crate::dump::Busy;
use crate::machine::RunState;
use crate::qmp::error::Error;

pub static COMMANDS: &[Command] = &[
    Command::new("query-status", Run::Now(query_status)),
    Command::new("stop", Run::Blocking(stop)),
    Command::new("cont", Run::Blocking(cont)),
    Command::new("system_reset", Run::Blocking(system_reset)),
    Command::new("system_powerdown", Run::Now(system_powerdown)),
    Command::new("inject-nmi", Run::Blocking(inject_nmi)),
];

fn query_status(call: Call<'_>) -> Answer {
    let state = call.vmm.guest.run_state();
    Ok(json!({"status": state.name(), "running": state.is_running()}))
}

/// While the guest is still arriving, `stop` and `cont` say what happens once it is there.
fn stop(call: Call<'_>) -> Answer {
    refuse_during_dump(call)?;
    match call.vmm.guest.run_state() {
        RunState::InMigrate => call.vmm.set_autostart(false),
        state if state.is_running() => call.vmm.guest.stop()?,
        _ => {}
    }
    Ok(json!({}))
}

fn cont(call: Call<'_>) -> Answer {
    refuse_during_dump(call)?;
    match call.vmm.guest.run_state() {
        RunState::InMigrate => call.vmm.set_autostart(true),
        _ => call.vmm.guest.cont()?,
    }
    Ok(json!({}))
}

/// A dump stops the guest and lets it go on by itself.
fn refuse_during_dump(call: Call<'_>) -> Result<(), Error> {
    match &call.vmm.dumps {
        Some(dumps) if dumps.is_busy() => Err(Error::generic(Busy)),
        _ => Ok(()),
    }
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
