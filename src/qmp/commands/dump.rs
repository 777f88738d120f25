//! Commands that dump the guest.

use std::sync::{Arc, mpsc};

use serde_json::{Value as Json, json};

use super::command::{Answer, Call, Command, Run};
use super::file::{self, Named};
use crate::dump::{Claim, Codec, Done, Filter, Format, Options, Output, QueryResult};
use crate::machine::moment::{self, Moment, Request, Ruling};
use crate::qmp::error::Error;
use crate::qmp::schema::{Shape, Type, optional, required};

pub(crate) static COMMANDS: &[Command] = &[
    Command::new("dump-guest-memory", Run::Waiting(dump_guest_memory)).arguments(&DUMP).does(
        "Writes the guest's memory and registers to a file; the guest stands still meanwhile.",
    ),
    Command::new("query-dump", Run::Now(query_dump))
        .returns(Type::Object(&RESULT))
        .does("Tells how far the last dump is, in bytes."),
    Command::new("x-dump-cancel", Run::Now(cancel)).does("Ends a dump that runs."),
    Command::new("query-dump-guest-memory-capability", Run::Now(query_capability))
        .returns(Type::Object(&CAPABILITY))
        .does("Lists the formats that dumps can have."),
];

static DUMP: Shape = Shape::of(&[
    required("paging", Type::Bool)
        .means("address memory as the guest's page tables do; format elf only"),
    required("protocol", Type::Text).means("file:PATH or fd:NAME"),
    optional("detach", Type::Bool).means("answer at once; DUMP_COMPLETED tells the end"),
    optional("begin", Type::Int).means("the first physical address; with length"),
    optional("length", Type::Int).means("bytes of physical memory; with begin"),
    optional("format", Type::Enum(FORMATS)).means("the file's format (elf)"),
    // Godwit's own: the image of one moment, written while the guest runs on.
    optional("x-live", Type::Bool)
        .means("let the guest run on; the file holds the moment of the start"),
]);
pub(crate) static RESULT: Shape = Shape::of(&[
    required("status", Type::Enum(&["none", "active", "completed", "failed"])),
    required("completed", Type::U64),
    required("total", Type::U64),
    optional("x-downtime-us", Type::U64),
]);
static CAPABILITY: Shape = Shape::of(&[required("formats", Type::List(&Type::Enum(KNOWN)))]);

/// QEMU's whole enumeration.
static KNOWN: &[&str] = &[
    "elf",
    "kdump-zlib",
    "kdump-lzo",
    "kdump-snappy",
    "kdump-raw-zlib",
    "kdump-raw-lzo",
    "kdump-raw-snappy",
    "win-dmp",
];

/// QEMU's formats, Windows' left out, and `zstd`.
static FORMATS: &[&str] = &[
    "elf",
    "kdump-zlib",
    "kdump-lzo",
    "kdump-snappy",
    "kdump-zstd",
    "kdump-raw-zlib",
    "kdump-raw-lzo",
    "kdump-raw-snappy",
    "kdump-raw-zstd",
];

fn dump_guest_memory(call: Call<'_>) -> Answer {
    let dumps =
        call.vmm.dumps.as_ref().ok_or_else(|| Error::generic("this guest cannot be dumped"))?;
    let claim = dumps.claim().map_err(Error::generic)?;
    let options = options(call)?;
    let (output, in_use) = open(call, &claim)?;
    if matches!(options.format, Format::Kdump { raw: true, .. }) && !output.seekable() {
        return Err(Error::generic(crate::dump::Error::NotSeekable));
    }
    // The claim is held: a migration that begins from here on is refused.
    if call.vmm.migration.as_ref().is_some_and(|migration| migration.is_busy())
        && let Ruling::Refused(why) = moment::rule(Request::Dump, Moment::Leaving)
    {
        return Err(Error::generic(why));
    }
    let detach = call.args.bool_if_given("detach").unwrap_or(false);
    let events = call.vmm.events.clone();
    let (held, answered) = mpsc::channel::<()>();
    if detach {
        call.held.keep(held);
    } else {
        drop(held);
    }
    let done: Done = Box::new(move |last, failure| {
        let _ = answered.recv();
        let mut data = json!({"result": to_json(last)});
        if let Some(failure) = failure {
            data["error"] = failure.to_string().into();
        }
        events.emit("DUMP_COMPLETED", data);
        drop(in_use);
    });
    claim.run(output, options, detach, done).map_err(Error::generic)?;
    Ok(json!({}))
}

fn options(call: Call<'_>) -> Result<Options, Error> {
    let format = call.args.text_if_given("format").map_or(Ok(Format::Elf), str::parse);
    let format = format.map_err(Error::generic)?;
    let paging = call.args.bool("paging");
    let (begin, length) = (call.args.int_if_given("begin"), call.args.int_if_given("length"));
    if format != Format::Elf && (paging || begin.is_some() || length.is_some()) {
        return Err(Error::generic("kdump-compressed format doesn't support paging or filter"));
    }
    let missing = |name| Err(Error::generic(format_args!("Parameter '{name}' is missing")));
    let filter = match (begin, length) {
        (Some(begin), Some(length)) => Some(filter(begin, length)?),
        (None, None) => None,
        (Some(_), None) => return missing("length"),
        (None, Some(_)) => return missing("begin"),
    };
    let live = call.args.bool_if_given("x-live").unwrap_or(false);
    if let Some(why) = call.vmm.guest.keeps_guest().filter(|_| live) {
        return Err(Error::generic(format_args!(
            "x-live: memory that the back end of a device writes cannot be kept ({why}); leave it out"
        )));
    }
    Ok(Options { paging, filter, live, ..Options::new(format) })
}

/// Nothing lies below address 0. (QEMU wraps around and makes a dump without memory.) A length is an
/// unsigned number that clients write as a signed one: -1 is to the end.
fn filter(begin: i64, length: i64) -> Result<Filter, Error> {
    let begin = u64::try_from(begin)
        .map_err(|_| Error::generic("Parameter 'begin' expects a non-negative value"))?;
    Ok(Filter { begin, length: length as u64 })
}

/// The file, made readable by its owner alone, or the descriptor that a client sent.
fn open(call: Call<'_>, claim: &Claim) -> Result<(Output, Option<Arc<()>>), Error> {
    let protocol = call.args.text("protocol");
    let Named { file, in_use } = if let Some(name) = protocol.strip_prefix("fd:") {
        file::given(call.monitor.fds.take(name)?, name, None)?
    } else if let Some(path) = protocol.strip_prefix("file:") {
        match file::create(call, path, "create", 0o400, &|| claim.is_cancelled()) {
            Err(_) if claim.is_cancelled() => {
                return Err(Error::generic(crate::dump::Error::Cancelled));
            }
            created => created?,
        }
    } else {
        return Err(Error::generic("parameter 'protocol' must start with 'file:' or 'fd:'"));
    };
    Ok((Output::new(file).map_err(Error::generic)?, in_use))
}

fn query_dump(call: Call<'_>) -> Answer {
    Ok(to_json(call.vmm.dumps.as_ref().map(|dumps| dumps.query()).unwrap_or_default()))
}

/// A live dump also tells for how many microseconds the guest stood still.
fn to_json(result: QueryResult) -> Json {
    let QueryResult { status, completed, total, downtime } = result;
    let mut result = json!({"status": status.name(), "completed": completed, "total": total});
    if let Some(downtime) = downtime {
        result["x-downtime-us"] = (downtime.as_micros() as u64).into();
    }
    result
}

/// Godwit's own: ends a dump that runs detached. It fails with `dump: cancelled`, and the guest
/// goes on.
fn cancel(call: Call<'_>) -> Answer {
    if let Some(dumps) = &call.vmm.dumps {
        dumps.cancel();
    }
    Ok(json!({}))
}

/// Formats that QEMU's schema knows: clients with typed answers fail on others. `kdump-zstd` can be
/// asked for all the same.
fn query_capability(_call: Call<'_>) -> Answer {
    let known = Format::ALL
        .iter()
        .filter(|format| !matches!(format, Format::Kdump { codec: Codec::Zstd, .. }));
    Ok(json!({"formats": known.map(|format| format.name()).collect::<Vec<_>>()}))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_schema_names_every_format() {
        assert!(Format::ALL.iter().map(|format| format.name()).eq(FORMATS.iter().copied()));
    }
}
