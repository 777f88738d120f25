//! Commands that take descriptors (`SCM_RIGHTS`) and give them names.

use serde_json::json;

use super::command::{Answer, Call, Command, Run};
use crate::qmp::error::Error;
use crate::qmp::schema::{Shape, Type, optional, required};

pub(crate) static COMMANDS: &[Command] = &[
    Command::new("getfd", Run::Now(getfd))
        .arguments(&NAME)
        .does("Gives the descriptor sent beside this request a name on this monitor."),
    Command::new("closefd", Run::Now(closefd))
        .arguments(&NAME)
        .does("Closes a descriptor of this monitor."),
    Command::new("add-fd", Run::Now(add_fd))
        .arguments(&ADD)
        .returns(Type::Object(&ADDED))
        .does("Puts the descriptor sent beside this request into a set, for /dev/fdset/ID."),
    Command::new("remove-fd", Run::Now(remove_fd))
        .arguments(&REMOVE)
        .does("Takes descriptors out of a set; they live on where they are used."),
    Command::new("query-fdsets", Run::Now(|call| Ok(call.vmm.fd_sets.list())))
        .returns(Type::List(&Type::Object(&SET)))
        .does("Lists the sets of descriptors."),
];

static NAME: Shape =
    Shape::of(&[required("fdname", Type::Text).means("its name, which fd:NAME stands for")]);
static ADD: Shape = Shape::of(&[
    optional("fdset-id", Type::Int).means("the set; without it a new one is made"),
    optional("opaque", Type::Text).means("any text, shown by query-fdsets"),
]);
static ADDED: Shape = Shape::of(&[required("fdset-id", Type::Int), required("fd", Type::Int)]);
static REMOVE: Shape = Shape::of(&[
    required("fdset-id", Type::Int).means("the set"),
    optional("fd", Type::Int).means("one of its descriptors; without it all are meant"),
]);
static SET: Shape = Shape::of(&[
    required("fdset-id", Type::Int),
    required("fds", Type::List(&Type::Object(&MEMBER))),
]);
static MEMBER: Shape = Shape::of(&[required("fd", Type::Int), optional("opaque", Type::Text)]);

fn getfd(call: Call<'_>) -> Answer {
    let name = call.args.text("fdname");
    let fd = call.monitor.fds.claim()?;
    if name.starts_with(|c: char| c.is_ascii_digit()) {
        return Err(Error::generic("Parameter 'fdname' expects a name not starting with a digit"));
    }
    call.monitor.fds.name(name, fd);
    Ok(json!({}))
}

fn closefd(call: Call<'_>) -> Answer {
    call.monitor.fds.close(call.args.text("fdname"))?;
    Ok(json!({}))
}

fn add_fd(call: Call<'_>) -> Answer {
    let fd = call.monitor.fds.claim()?;
    let (id, number) = call.vmm.fd_sets.add(
        call.args.int_if_given("fdset-id"),
        fd,
        call.args.text_if_given("opaque"),
    )?;
    Ok(json!({"fdset-id": id, "fd": number}))
}

fn remove_fd(call: Call<'_>) -> Answer {
    call.vmm.fd_sets.remove(call.args.int("fdset-id"), call.args.int_if_given("fd"))?;
    Ok(json!({}))
}
