//! What the kernel counts of the guest: `query-stats` and what its numbers mean.

use serde_json::{Map, Value as Json, json};

use super::command::{Answer, Call, Command, Run};
use crate::kvm::{Statistic, StatisticKind, Unit};
use crate::qmp::args::Args;
use crate::qmp::error::Error;
use crate::qmp::json::Value;
use crate::qmp::schema::{Shape, Type, Union, optional, required};

pub(crate) static COMMANDS: &[Command] = &[
    Command::new("query-stats", Run::Waiting(query))
        .arguments(&FILTER)
        .returns(Type::List(&Type::Object(&RESULT)))
        .does("Tells what KVM counted of the machine or of its vCPUs."),
    Command::new("query-stats-schemas", Run::Waiting(schemas))
        .arguments(&PROVIDER_FILTER)
        .returns(Type::List(&Type::Object(&STATS_SCHEMA)))
        .does("Tells what each number of query-stats means."),
];

const KVM: &str = "kvm";
const PROVIDERS: Type = Type::Enum(&[KVM, "cryptodev"]);
const VM: &str = "vm";
const VCPU: &str = "vcpu";
const TARGETS: Type = Type::Enum(&[VM, VCPU, "cryptodev"]);

static FILTER: Shape = Shape::tagged(
    &[
        required("target", TARGETS).means("of what"),
        optional("providers", Type::List(&Type::Object(&REQUEST)))
            .means("whose numbers, and which of them (all)"),
    ],
    Union { tag: "target", branches: &[(VCPU, &VCPU_FILTER)] },
);
static VCPU_FILTER: Shape =
    Shape::of(&[optional("vcpus", Type::List(&Type::Text)).means("paths of vCPUs (all)")]);
static REQUEST: Shape = Shape::of(&[
    required("provider", PROVIDERS).means("who counts"),
    optional("names", Type::List(&Type::Text)).means("what is counted (all)"),
]);
static RESULT: Shape = Shape::of(&[
    required("provider", PROVIDERS),
    optional("qom-path", Type::Text),
    required("stats", Type::List(&Type::Object(&NUMBER))),
]);
static NUMBER: Shape = Shape::of(&[required("name", Type::Text), required("value", VALUE)]);
const VALUE: Type = Type::OneOf(&[Type::U64, Type::Bool, Type::List(&Type::U64)]);
static PROVIDER_FILTER: Shape =
    Shape::of(&[optional("provider", PROVIDERS).means("only of this one")]);
static STATS_SCHEMA: Shape = Shape::of(&[
    required("provider", PROVIDERS),
    required("target", TARGETS),
    required("stats", Type::List(&Type::Object(&MEANING))),
]);
static MEANING: Shape = Shape::of(&[
    required("name", Type::Text),
    required(
        "type",
        Type::Enum(&["cumulative", "instant", "peak", "linear-histogram", "log2-histogram"]),
    ),
    optional("unit", Type::Enum(&["bytes", "seconds", "cycles", "boolean"])),
    optional("base", Type::Int),
    required("exponent", Type::Int),
    optional("bucket-size", Type::U32),
]);

/// Which numbers are asked for.
enum Names<'a> {
    All,
    Of(&'a [Value]),
}

impl Names<'_> {
    fn has(&self, name: &str) -> bool {
        match self {
            Names::All => true,
            Names::Of(names) => names.iter().any(|asked| asked.as_str() == Some(name)),
        }
    }
}

/// `None`: nothing of KVM's is asked for.
fn wanted<'a>(filter: Args<'a>) -> Option<Names<'a>> {
    if !filter.has("providers") {
        return Some(Names::All);
    }
    let kvm = filter.objects("providers").find(|request| request.text("provider") == KVM)?;
    Some(if kvm.has("names") { Names::Of(kvm.list("names")) } else { Names::All })
}

fn query(call: Call<'_>) -> Answer {
    let Some(names) = wanted(call.args) else { return Ok(json!([])) };
    let mut results = Vec::new();
    let mut add = |path: Option<String>, all: Vec<Statistic>| {
        let numbers = all.iter().filter(|one| names.has(&one.name));
        let numbers = numbers.map(|one| json!({"name": one.name, "value": value(one)}));
        let numbers: Vec<Json> = numbers.collect();
        // A host that counts nothing, or nothing of that name.
        if !numbers.is_empty() {
            let mut result = json!({"provider": KVM, "stats": numbers});
            if let Some(path) = path {
                result["qom-path"] = path.into();
            }
            results.push(result);
        }
    };
    let guest = &call.vmm.guest;
    match call.args.text("target") {
        VM => add(None, guest.statistics(None).map_err(Error::generic)?),
        VCPU => {
            let given = call.args.has("vcpus").then(|| call.args.list("vcpus"));
            for (at, vcpu) in guest.vcpus().iter().enumerate() {
                let path = super::machine::vcpu_path(at);
                let is_path = |asked: &Value| asked.as_str() == Some(path.as_str());
                if given.is_none_or(|given| given.iter().any(is_path)) {
                    add(Some(path), guest.statistics(Some(vcpu.index)).map_err(Error::generic)?);
                }
            }
        }
        // There are no crypto devices.
        _ => {}
    }
    Ok(results.into())
}

fn value(one: &Statistic) -> Json {
    match &one.values[..] {
        [value] if one.unit == Some(Unit::Boolean) => (*value != 0).into(),
        [value] => (*value).into(),
        values => values.into(),
    }
}

fn schemas(call: Call<'_>) -> Answer {
    if call.args.text_if_given("provider").is_some_and(|provider| provider != KVM) {
        return Ok(json!([]));
    }
    let guest = &call.vmm.guest;
    let mut all = Vec::new();
    for (target, vcpu) in [(VCPU, Some(0)), (VM, None)] {
        let meanings: Vec<Json> =
            guest.statistics(vcpu).map_err(Error::generic)?.iter().map(meaning).collect();
        if !meanings.is_empty() {
            all.push(json!({"provider": KVM, "target": target, "stats": meanings}));
        }
    }
    Ok(all.into())
}

fn meaning(one: &Statistic) -> Json {
    let kind = match one.kind {
        StatisticKind::Cumulative => "cumulative",
        StatisticKind::Instant => "instant",
        StatisticKind::Peak => "peak",
        StatisticKind::LinearHistogram(_) => "linear-histogram",
        StatisticKind::Log2Histogram => "log2-histogram",
    };
    let mut meaning = Map::new();
    meaning.insert("name".into(), one.name.as_str().into());
    meaning.insert("type".into(), kind.into());
    if let Some(unit) = one.unit {
        let unit = match unit {
            Unit::Bytes => "bytes",
            Unit::Seconds => "seconds",
            Unit::Cycles => "cycles",
            Unit::Boolean => "boolean",
        };
        meaning.insert("unit".into(), unit.into());
    }
    if one.exponent != 0 {
        meaning.insert("base".into(), one.base.into());
    }
    meaning.insert("exponent".into(), one.exponent.into());
    if let StatisticKind::LinearHistogram(bytes) = one.kind {
        meaning.insert("bucket-size".into(), bytes.into());
    }
    Json::Object(meaning)
}
