//! Commands about how fast the guest dirties its memory: measuring it, and limiting it.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value as Json, json};

use super::command::{Answer, Call, Command, Run};
use crate::dirty_rate::{Meter, Mode, Status, Wanted};
use crate::migrate::capabilities::Capability;
use crate::qmp::error::Error;
use crate::qmp::schema::{Member, Shape, Type, optional, required};

pub(crate) static COMMANDS: &[Command] = &[
    Command::new("calc-dirty-rate", Run::Blocking(calculate))
        .arguments(&MEASURE)
        .does("Begins to measure how fast the guest dirties its memory; query-dirty-rate tells the result."),
    Command::new("query-dirty-rate", Run::Now(query_rate))
        .arguments(&QUERY)
        .returns(Type::Object(&RATE))
        .does("Tells how fast the guest dirtied its memory when it was last measured."),
    Command::new("set-vcpu-dirty-limit", Run::Blocking(set_limit))
        .arguments(&LIMIT)
        .does("Holds vCPUs back that dirty memory faster than they may; needs dirty-ring-size."),
    Command::new("cancel-vcpu-dirty-limit", Run::Blocking(cancel_limit))
        .arguments(&CANCEL)
        .does("Ends the limit of a vCPU, or of all."),
    Command::new("query-vcpu-dirty-limit", Run::Now(query_limits))
        .returns(Type::List(&Type::Object(&LIMITED)))
        .does("Lists the vCPUs that have a limit."),
];

const SECOND: &str = "second";
const UNITS: Type = Type::Enum(&[SECOND, "millisecond"]);

static MEASURE: Shape = Shape::of(&[
    required("calc-time", Type::Int).means("how long to measure: 50 ms to 60 s"),
    optional("calc-time-unit", UNITS).means("of calc-time (second)"),
    optional("sample-pages", Type::Int)
        .means("pages of each GiB to look at in mode page-sampling: 128 to 16384 (512)"),
    optional("mode", Type::Enum(Mode::NAMES)).means("what is counted (page-sampling)"),
]);
static QUERY: Shape =
    Shape::of(&[optional("calc-time-unit", UNITS).means("of calc-time in the answer (second)")]);
static RATE: Shape = Shape::of(&[
    optional("dirty-rate", Type::Int),
    required("status", Type::Enum(Status::NAMES)),
    required("start-time", Type::Int),
    required("calc-time", Type::Int),
    required("calc-time-unit", UNITS),
    required("sample-pages", Type::U64),
    required("mode", Type::Enum(Mode::NAMES)),
    optional("vcpu-dirty-rate", Type::List(&Type::Object(&VCPU_RATE))),
]);
static VCPU_RATE: Shape =
    Shape::of(&[required("id", Type::Int), required("dirty-rate", Type::Int)]);
const VCPU: Member = optional("cpu-index", Type::Int).means("the vCPU (all)");
static LIMIT: Shape = Shape::of(&[
    VCPU,
    required("dirty-rate", Type::U64).means("MiB per second that it may dirty; 0 ends the limit"),
]);
static CANCEL: Shape = Shape::of(&[VCPU]);
static LIMITED: Shape = Shape::of(&[
    required("cpu-index", Type::Int),
    required("limit-rate", Type::U64),
    required("current-rate", Type::U64),
]);

fn meter<'a>(call: Call<'a>) -> Result<&'a Arc<Meter>, Error> {
    call.vmm.meter.as_ref().ok_or_else(|| Error::generic("this machine cannot be measured"))
}

fn in_seconds(call: Call<'_>) -> bool {
    call.args.text_if_given("calc-time-unit").is_none_or(|unit| unit == SECOND)
}

fn calculate(call: Call<'_>) -> Answer {
    // What is out of range is refused, however far.
    let number = u64::try_from(call.args.int("calc-time")).unwrap_or(0);
    let time = match in_seconds(call) {
        true => Duration::from_secs(number),
        false => Duration::from_millis(number),
    };
    let mode = call.args.text_if_given("mode").and_then(Mode::from_name).unwrap_or_default();
    let pages = call.args.int_if_given("sample-pages");
    let sample_pages = pages.map(|pages| u64::try_from(pages).unwrap_or(0));
    meter(call)?.start(Wanted { mode, time, sample_pages }).map_err(Error::generic)?;
    Ok(json!({}))
}

fn query_rate(call: Call<'_>) -> Answer {
    let report = meter(call)?.report();
    let (seconds, ms) = (report.time.as_secs(), report.time.as_millis() as u64);
    let mut answer = json!({
        "status": report.status.name(),
        "start-time": report.start_time,
        "calc-time": if in_seconds(call) { seconds } else { ms },
        "calc-time-unit": call.args.text_if_given("calc-time-unit").unwrap_or(SECOND),
        "sample-pages": report.sample_pages,
        "mode": report.mode.name(),
    });
    if report.status == Status::Measured {
        answer["dirty-rate"] = report.rate.into();
        if report.mode == Mode::DirtyRing {
            let vcpu = |(id, rate): (usize, &u64)| json!({"id": id, "dirty-rate": rate});
            answer["vcpu-dirty-rate"] = report.vcpus.iter().enumerate().map(vcpu).collect();
        }
    }
    Ok(answer)
}

/// The vCPU that is meant.
fn vcpu(call: Call<'_>) -> Result<Option<u32>, Error> {
    let Some(index) = call.args.int_if_given("cpu-index") else { return Ok(None) };
    let known = u32::try_from(index).ok();
    let known = known.filter(|index| call.vmm.guest.vcpus().iter().any(|v| v.index == *index));
    known.map(Some).ok_or_else(|| Error::generic("incorrect cpu index specified"))
}

/// A migration that limits vCPUs has the word.
fn check_free(call: Call<'_>, what: &str) -> Result<(), Error> {
    let limits = |all: &Arc<crate::migrate::Handle>| {
        all.is_busy() && all.capabilities().has(Capability::DirtyLimit)
    };
    if call.vmm.migration.as_ref().is_some_and(limits) {
        return Err(Error::generic(format_args!(
            "can't {what} dirty page rate limit while migration is running"
        )));
    }
    Ok(())
}

fn set_limit(call: Call<'_>) -> Answer {
    let guest = &call.vmm.guest;
    if !guest.has_dirty_rings() {
        return Err(Error::generic(
            "dirty page limit feature requires KVM with accelerator property 'dirty-ring-size' set'",
        ));
    }
    let vcpu = vcpu(call)?;
    check_free(call, "set")?;
    guest.limit_dirt(vcpu, call.args.unsigned("dirty-rate")).map_err(Error::generic)?;
    Ok(json!({}))
}

fn cancel_limit(call: Call<'_>) -> Answer {
    // Nothing to end, as in QEMU, whatever is asked for.
    if call.vmm.guest.has_dirty_rings() {
        let vcpu = vcpu(call)?;
        check_free(call, "cancel")?;
        call.vmm.guest.limit_dirt(vcpu, 0).map_err(Error::generic)?;
    }
    Ok(json!({}))
}

fn query_limits(call: Call<'_>) -> Answer {
    let limits = call.vmm.guest.dirty_limits();
    let entry = |limit: &crate::machine::DirtyLimit| {
        json!({
            "cpu-index": limit.vcpu,
            "limit-rate": limit.limit,
            "current-rate": limit.current,
        })
    };
    Ok(limits.iter().map(entry).collect::<Vec<Json>>().into())
}
