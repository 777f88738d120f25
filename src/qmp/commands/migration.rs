//! Commands that move the guest to another process, and those that wait for one.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use serde_json::{Map, Value as Json, json};

use super::channels::{self, Way};
use super::command::{Answer, Call, Command, Run};
use super::migration_shapes as shapes;
use crate::arch::x86_64::cpuid::INVARIANT_TSC;
use crate::io::connection::inherited;
use crate::io::transport::SetFd;
use crate::io::{Descriptors, OpenError};
use crate::migrate::capabilities::Capability;
use crate::migrate::parameters::TABLE;
use crate::migrate::{Handle, Refused};
use crate::qmp::args::Args;
use crate::qmp::error::Error;
use crate::qmp::schema::Type;
use crate::vmm::Vmm;

pub(crate) static COMMANDS: &[Command] = &[
    Command::new("migrate", Run::Waiting(migrate))
        .arguments(&shapes::MIGRATE)
        .does("Begins to move the guest to another process; query-migrate tells how it goes."),
    Command::new("migrate_cancel", Run::Now(cancel))
        .does("Ends a migration; the guest stays here."),
    Command::new("migrate-continue", Run::Now(go_on))
        .arguments(&shapes::CONTINUE)
        .does("Lets a migration go on that waits before the guest is handed over."),
    Command::new("migrate-incoming", Run::Waiting(incoming))
        .arguments(&shapes::INCOMING)
        .does("Begins to listen for a guest, on a machine started with -incoming defer."),
    Command::new("query-migrate", Run::Now(query))
        .returns(Type::Object(&shapes::REPORT))
        .does("Tells how the migration goes, or went."),
    Command::new("migrate-set-capabilities", Run::Now(set_capabilities))
        .arguments(&shapes::CAPABILITIES)
        .does("Switches abilities of migrations on and off."),
    Command::new("query-migrate-capabilities", Run::Now(query_capabilities))
        .returns(Type::List(&Type::Object(&shapes::CAPABILITY)))
        .does("Lists the abilities of migrations and which are on."),
    Command::new("migrate-set-parameters", Run::Now(set_parameters))
        .arguments(&shapes::PARAMETERS)
        .does("Sets limits and choices of migrations, also of one that runs."),
    Command::new("query-migrate-parameters", Run::Now(query_parameters))
        .returns(Type::Object(&shapes::CURRENT))
        .does("Tells the limits and choices of migrations."),
    Command::new("migrate-set-cache-size", Run::Now(set_cache_size))
        .arguments(&shapes::CACHE_SIZE)
        .does("Sets the size of the xbzrle cache, as QEMU before 6.0 did."),
    Command::new("query-migrate-cache-size", Run::Now(query_cache_size))
        .returns(Type::U64)
        .does("Tells the size of the xbzrle cache in bytes."),
    Command::new("migrate-start-postcopy", Run::Now(no_postcopy))
        .does("Is an error: postcopy is not built in."),
    Command::new("migrate-pause", Run::Now(no_pause))
        .oob()
        .does("Is an error: only a postcopy migration can pause."),
    Command::new("migrate-recover", Run::Now(no_recover))
        .arguments(&shapes::URI)
        .oob()
        .does("Is an error: only a postcopy migration can be recovered."),
    Command::new("query-yank", Run::Now(query_yank))
        .returns(Type::List(&Type::Object(&shapes::INSTANCE)))
        .oob()
        .does("Lists what yank can free: sockets of character devices, and the migration, while there is one."),
    Command::new("yank", Run::Now(yank))
        .arguments(&shapes::YANK)
        .oob()
        .does("Cuts connections that hang; of the migration it is what migrate_cancel does."),
];

fn handle<'a>(call: Call<'a>) -> Result<&'a Arc<Handle>, Error> {
    call.vmm.migration.as_ref().ok_or_else(|| Error::generic("this machine cannot be migrated"))
}

fn refused(error: Refused) -> Error {
    Error::generic(error)
}

fn migrate(call: Call<'_>) -> Answer {
    let handle = handle(call)?;
    let address = channels::address(call.args, Way::Out).map_err(Error::generic)?;
    if call.args.bool_if_given("resume") == Some(true) {
        return Err(refused(Refused::NothingToResume));
    }
    let held = handle
        .start(address, &mut ClientFds { call, inherits: false }, &|| blocker(call))
        .map_err(refused)?;
    call.held.keep(held);
    Ok(json!({}))
}

/// What forbids a migration now.
fn blocker(call: Call<'_>) -> Option<&'static str> {
    if call.vmm.dumps.as_ref().is_some_and(|dumps| dumps.is_busy()) {
        return Some("Live migration disabled: dump-guest-memory in progress");
    }
    if let Some(why) = call.vmm.guest.keeps_guest() {
        return Some(why);
    }
    // The guest counts on a TSC that never changes its rate. A file or QEMU takes it to any.
    let invariant = call.vmm.guest.cpu_features().contains(&(INVARIANT_TSC, true));
    invariant.then_some("State blocked by non-migratable CPU device (invtsc flag)")
}

/// Descriptors that the client sent, and for `migrate-incoming` those that the process was started
/// with.
struct ClientFds<'a> {
    call: Call<'a>,
    inherits: bool,
}

impl Descriptors for ClientFds<'_> {
    fn take(&mut self, name: &str) -> Option<OwnedFd> {
        let sent = self.call.monitor.fds.take(name).ok();
        sent.or_else(|| if self.inherits { inherited(name) } else { None })
    }

    fn member(&mut self, path: &str, flags: i32) -> Result<SetFd, OpenError> {
        self.call.vmm.fd_sets.open(path, flags)
    }
}

/// Descriptors that the process was started with, for `-incoming`.
pub(crate) struct InheritedFds(pub Arc<Vmm>);

impl Descriptors for InheritedFds {
    fn take(&mut self, name: &str) -> Option<OwnedFd> {
        inherited(name)
    }

    fn member(&mut self, path: &str, flags: i32) -> Result<SetFd, OpenError> {
        self.0.fd_sets.open(path, flags)
    }
}

fn cancel(call: Call<'_>) -> Answer {
    handle(call)?.cancel();
    Ok(json!({}))
}

fn go_on(call: Call<'_>) -> Answer {
    call.held.keep(handle(call)?.go_on(call.args.text("state")).map_err(refused)?);
    Ok(json!({}))
}

fn incoming(call: Call<'_>) -> Answer {
    let handle = handle(call)?;
    // Whether a guest is awaited at all comes before where from, as in QEMU.
    handle.expects_guest().map_err(refused)?;
    let address = channels::address(call.args, Way::In).map_err(Error::generic)?;
    let exit_on_error = call.args.bool_if_given("exit-on-error").unwrap_or(true);
    let mut fds = ClientFds { call, inherits: true };
    handle.incoming(&address, exit_on_error, &mut fds).map_err(refused)?;
    Ok(json!({}))
}

fn query(call: Call<'_>) -> Answer {
    let mut report = handle(call)?.report();
    if let Some(reason) = blocker(call) {
        report.insert("blocked-reasons".into(), json!([reason]));
    }
    Ok(Json::Object(report))
}

fn set_capabilities(call: Call<'_>) -> Answer {
    let mut changes = Vec::new();
    for entry in call.args.objects("capabilities") {
        // The schema was checked: the name is one of the list.
        if let Some(capability) = Capability::from_name(entry.text("capability")) {
            changes.push((capability, entry.bool("state")));
        }
    }
    handle(call)?.set_capabilities(&changes).map_err(refused)?;
    Ok(json!({}))
}

fn query_capabilities(call: Call<'_>) -> Answer {
    let states = handle(call)?.capabilities().states();
    Ok(states
        .map(|(capability, state)| json!({"capability": capability.name(), "state": state}))
        .collect())
}

fn set_parameters(call: Call<'_>) -> Answer {
    let mut changes = Map::new();
    for row in TABLE {
        if let Some(value) = call.args.get(row.name) {
            changes
                .insert(row.name.to_owned(), serde_json::to_value(value).map_err(Error::generic)?);
        }
    }
    handle(call)?.set_parameters(&changes).map_err(refused)?;
    Ok(json!({}))
}

fn query_parameters(call: Call<'_>) -> Answer {
    Ok(handle(call)?.parameters().to_json())
}

/// Rounds down to a power of two, as the command always did; the parameter of today refuses other
/// values.
fn set_cache_size(call: Call<'_>) -> Answer {
    let value = call.args.int("value");
    let Some(size) =
        u64::try_from(value).ok().filter(|size| *size >= 4096).map(|size| 1u64 << size.ilog2())
    else {
        return Err(Error::generic("Parameter 'value' expects a size of at least one page (4096)"));
    };
    let changes = Map::from_iter([("xbzrle-cache-size".to_owned(), json!(size))]);
    handle(call)?.set_parameters(&changes).map_err(refused)?;
    Ok(json!({}))
}

fn query_cache_size(call: Call<'_>) -> Answer {
    Ok(json!(handle(call)?.parameters().xbzrle_cache_size))
}

fn no_postcopy(_call: Call<'_>) -> Answer {
    Err(Error::generic("Enable postcopy with migrate_set_capability before the start of migration"))
}

fn no_pause(_call: Call<'_>) -> Answer {
    Err(Error::generic(
        "migrate-pause is currently only supported during postcopy-active or postcopy-recover state",
    ))
}

fn no_recover(_call: Call<'_>) -> Answer {
    Err(Error::generic("Migrate recover can only be run when postcopy is paused."))
}

fn query_yank(call: Call<'_>) -> Answer {
    let mut all: Vec<Json> = call
        .vmm
        .chardevs
        .sockets()
        .into_iter()
        .map(|id| json!({"type": "chardev", "id": id}))
        .collect();
    if call.vmm.migration.as_ref().is_some_and(|migration| migration.is_busy()) {
        all.push(json!({"type": "migration"}));
    }
    Ok(all.into())
}

/// All of them, or none if one is not there.
fn yank(call: Call<'_>) -> Answer {
    let busy = call.vmm.migration.as_ref().filter(|migration| migration.is_busy());
    let sockets = call.vmm.chardevs.sockets();
    let is_there = |instance: Args<'_>| match instance.text("type") {
        "migration" => busy.is_some(),
        "chardev" => sockets.iter().any(|id| id == instance.text("id")),
        _ => false,
    };
    if !call.args.objects("instances").all(is_there) {
        return Err(Error::device_not_found("Instance not found"));
    }
    for instance in call.args.objects("instances") {
        match (instance.text("type"), busy) {
            ("migration", Some(migration)) => migration.cancel(),
            ("migration", None) => {}
            _ => call.vmm.chardevs.cut(instance.text("id")),
        }
    }
    Ok(json!({}))
}
