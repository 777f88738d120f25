//! Commands about the balloon: how much memory the guest has, and shall have.

use serde_json::json;

use super::command::{Answer, Call, Command, Run};
use crate::devices::BalloonControl;
use crate::qmp::error::Error;
use crate::qmp::schema::{Shape, Type, required};

pub(crate) static COMMANDS: &[Command] = &[
    Command::new("query-balloon", Run::Now(query))
        .returns(Type::Object(&SIZE))
        .does("Tells how much memory the guest has, less what is in its balloon."),
    Command::new("balloon", Run::Now(set))
        .arguments(&TARGET)
        .does("Asks the guest to give memory back, or lets it take it; event BALLOON_CHANGE tells what it does."),
];

pub(crate) static SIZE: Shape = Shape::of(&[required("actual", Type::Int)]);
static TARGET: Shape =
    Shape::of(&[required("value", Type::Int).means("bytes that the guest shall keep")]);

fn balloon(call: Call<'_>) -> Result<&BalloonControl, Error> {
    let none = || Error::device_not_active("No balloon device has been activated");
    call.vmm.guest.balloon().ok_or_else(none)
}

fn query(call: Call<'_>) -> Answer {
    Ok(json!({"actual": balloon(call)?.actual_bytes()}))
}

fn set(call: Call<'_>) -> Answer {
    let balloon = balloon(call)?;
    match u64::try_from(call.args.int("value")) {
        Ok(bytes) if bytes > 0 => balloon.set_target(bytes),
        _ => return Err(Error::generic("Parameter 'value' expects a size")),
    }
    Ok(json!({}))
}
