//! Commands that say what machine this is.

use serde_json::{Map, Value as Json, json};

use super::command::{Answer, Call, Command, Run};
use crate::arch::x86_64::topology::Position;
use crate::args::CPU_MODELS;
use crate::config::{ChardevBackend, Cpu};
use crate::qmp::error::Error;
use crate::qmp::json::Value;
use crate::qmp::schema::{Shape, Type, optional, required};

pub(crate) static COMMANDS: &[Command] = &[
    Command::new("query-name", Run::Now(query_name))
        .returns(Type::Object(&NAME))
        .does("Tells the name that -name gave."),
    Command::new("query-uuid", Run::Now(query_uuid))
        .returns(Type::Object(&UUID))
        .does("Tells the machine's UUID, zeros without -uuid."),
    Command::new("query-kvm", Run::Now(|_| Ok(json!({"enabled": true, "present": true}))))
        .returns(Type::Object(&KVM))
        .does("Tells that the guest runs on KVM."),
    Command::new("query-target", Run::Now(|_| Ok(json!({"arch": ARCH}))))
        .returns(Type::Object(&TARGET))
        .does("Tells what kind of processor the guest has."),
    Command::new("query-machines", Run::Now(query_machines))
        .arguments(&MACHINES)
        .returns(Type::List(&Type::Object(&MACHINE)))
        .does("Lists the kinds of machine there are."),
    Command::new("query-cpu-definitions", Run::Now(query_cpu_definitions))
        .returns(Type::List(&Type::Object(&CPU_DEFINITION)))
        .does("Lists the models of processors there are."),
    Command::new("query-cpu-model-expansion", Run::Now(query_cpu_model_expansion))
        .arguments(&EXPANSION)
        .returns(Type::Object(&EXPANDED))
        .does("Tells what a model of processor can do on this host, bit by bit."),
    Command::new("query-cpus-fast", Run::Now(query_cpus_fast))
        .returns(Type::List(&Type::Object(&CPU)))
        .does("Lists the guest's processors and the threads that run them."),
    Command::new("query-hotpluggable-cpus", Run::Now(query_hotpluggable_cpus))
        .returns(Type::List(&Type::Object(&HOTPLUGGABLE_CPU)))
        .does("Is an error: processors do not come and go on this board."),
    Command::new("query-memory-size-summary", Run::Now(query_memory_size_summary))
        .returns(Type::Object(&MEMORY))
        .does("Tells the size of guest RAM in bytes."),
    Command::new("query-chardev", Run::Now(query_chardev))
        .returns(Type::List(&Type::Object(&CHARDEV)))
        .does("Lists the character devices and what is behind them."),
    Command::new("query-chardev-backends", Run::Now(query_chardev_backends))
        .returns(Type::List(&Type::Object(&BACKEND)))
        .does("Lists what character devices can be made of."),
];

const ARCH: &str = "x86_64";

static NAME: Shape = Shape::of(&[optional("name", Type::Text)]);
static UUID: Shape = Shape::of(&[required("UUID", Type::Text)]);
static KVM: Shape = Shape::of(&[required("enabled", Type::Bool), required("present", Type::Bool)]);
static TARGET: Shape = Shape::of(&[required("arch", Type::Enum(&[ARCH]))]);
static MACHINES: Shape = Shape::of(&[optional("compat-props", Type::Bool)
    .means("list properties that differ from release to release, too")]);
static MACHINE: Shape = Shape::of(&[
    required("name", Type::Text),
    required("cpu-max", Type::Int),
    required("hotpluggable-cpus", Type::Bool),
    required("numa-mem-supported", Type::Bool),
    required("deprecated", Type::Bool),
    optional("default-cpu-type", Type::Text),
    optional("default-ram-id", Type::Text),
    required("acpi", Type::Bool),
    optional("compat-props", Type::List(&Type::Object(&COMPAT_PROPERTY))),
]);
static COMPAT_PROPERTY: Shape = Shape::of(&[
    required("qom-type", Type::Text),
    required("property", Type::Text),
    required("value", Type::Text),
]);
static CPU_DEFINITION: Shape = Shape::of(&[
    required("name", Type::Text),
    optional("migration-safe", Type::Bool),
    required("static", Type::Bool),
    optional("unavailable-features", Type::List(&Type::Text)),
    required("typename", Type::Text),
    required("deprecated", Type::Bool),
]);
static EXPANSION: Shape = Shape::of(&[
    required("type", Type::Enum(&["static", "full"]))
        .means("by features alone, or under the model's own name"),
    required("model", Type::Object(&MODEL)).means("the model, by name"),
]);
static EXPANDED: Shape = Shape::of(&[required("model", Type::Object(&MODEL))]);
static MODEL: Shape = Shape::of(&[required("name", Type::Text), optional("props", Type::Any)]);
static BACKEND: Shape = Shape::of(&[required("name", Type::Text)]);
static CPU: Shape = Shape::of(&[
    required("cpu-index", Type::Int),
    required("qom-path", Type::Text),
    required("thread-id", Type::Int),
    optional("props", Type::Object(&POSITION)),
    required("target", Type::Enum(&[ARCH])),
]);
static POSITION: Shape = Shape::of(&[
    optional("socket-id", Type::Int),
    optional("core-id", Type::Int),
    optional("thread-id", Type::Int),
]);
static HOTPLUGGABLE_CPU: Shape = Shape::of(&[
    required("type", Type::Text),
    required("vcpus-count", Type::Int),
    required("props", Type::Object(&POSITION)),
    optional("qom-path", Type::Text),
]);
static MEMORY: Shape =
    Shape::of(&[required("base-memory", Type::U64), optional("plugged-memory", Type::U64)]);
static CHARDEV: Shape = Shape::of(&[
    required("label", Type::Text),
    required("filename", Type::Text),
    required("frontend-open", Type::Bool),
]);

fn query_name(call: Call<'_>) -> Answer {
    let name = call.vmm.identity.name.iter().map(|name| ("name".to_owned(), name.as_str().into()));
    Ok(Json::Object(name.collect::<Map<_, _>>()))
}

fn query_uuid(call: Call<'_>) -> Answer {
    let hex: String = call.vmm.identity.uuid.iter().map(|byte| format!("{byte:02x}")).collect();
    let parts = [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]];
    Ok(json!({"UUID": parts.join("-")}))
}

fn query_machines(call: Call<'_>) -> Answer {
    let mut microvm = json!({
        "name": "microvm",
        "cpu-max": Cpu::COUNT_MAX,
        "hotpluggable-cpus": false,
        "numa-mem-supported": false,
        "deprecated": false,
        "default-cpu-type": "host-x86_64-cpu",
        "default-ram-id": "microvm.ram",
        "acpi": true,
    });
    let mut none = json!({
        "name": "none",
        "cpu-max": 1,
        "hotpluggable-cpus": false,
        "numa-mem-supported": false,
        "deprecated": false,
        "default-ram-id": "ram",
        "acpi": false,
    });
    if call.args.bool_if_given("compat-props") == Some(true) {
        for machine in [&mut microvm, &mut none] {
            machine["compat-props"] = json!([]);
        }
    }
    Ok(json!([microvm, none]))
}

fn query_cpu_definitions(_call: Call<'_>) -> Answer {
    let entry = |name: &str| {
        json!({
            "name": name,
            "typename": format!("{name}-x86_64-cpu"),
            "static": false,
            "migration-safe": false,
            "unavailable-features": [],
            "deprecated": false,
        })
    };
    Ok(CPU_MODELS.map(entry).to_vec().into())
}

/// The model without features, of which static expansion makes all others.
const BASE_MODEL: &str = "base";
/// Taken as on the command line: there is nothing that could not move.
const MIGRATABLE: &str = "migratable";

/// All that processors of this model have here, and have not: what a fleet compares.
fn query_cpu_model_expansion(call: Call<'_>) -> Answer {
    let model = call.args.object("model");
    let name = model.text("name");
    if name != BASE_MODEL && !CPU_MODELS.contains(&name) {
        return Err(Error::generic(format_args!("CPU model '{name}' not found")));
    }
    let features = call.vmm.guest.cpu_features().into_iter();
    let mut props: Map<String, Json> = features
        .map(|(feature, has)| (feature.into(), (has && name != BASE_MODEL).into()))
        .collect();
    let given = match model.get("props") {
        None => &[][..],
        Some(Value::Object(given)) => given,
        Some(_) => {
            let text = "Invalid parameter type for 'model.props', expected: object";
            return Err(Error::generic(text));
        }
    };
    for (feature, on) in given {
        let Value::Bool(on) = on else {
            return Err(Error::generic(format_args!(
                "Invalid parameter type for '{feature}', expected: boolean"
            )));
        };
        match props.get_mut(feature) {
            Some(place) => *place = (*on).into(),
            None if feature == MIGRATABLE => {}
            None => {
                return Err(Error::generic(format_args!(
                    "Property '{name}-x86_64-cpu.{feature}' not found"
                )));
            }
        }
    }
    let name = if call.args.text("type") == "static" { BASE_MODEL } else { name };
    Ok(json!({"model": {"name": name, "props": props}}))
}

fn query_chardev_backends(_call: Call<'_>) -> Answer {
    let name = |name: &str| json!({"name": name.trim_start_matches("chardev-")});
    Ok(ChardevBackend::TYPES.map(name).to_vec().into())
}

/// Where vCPU number `at` is in the tree of objects.
pub(super) fn vcpu_path(at: usize) -> String {
    format!("/machine/unattached/device[{at}]")
}

fn query_cpus_fast(call: Call<'_>) -> Answer {
    let vcpus = call.vmm.guest.vcpus();
    let entry = |(at, vcpu): (usize, &crate::machine::VcpuInfo)| {
        let Position { socket, core, thread } = vcpu.position;
        json!({
            "cpu-index": vcpu.index,
            "thread-id": vcpu.thread_id,
            "qom-path": vcpu_path(at),
            "props": {"socket-id": socket, "core-id": core, "thread-id": thread},
            "target": ARCH,
        })
    };
    Ok(vcpus.iter().enumerate().map(entry).collect::<Vec<Json>>().into())
}

fn query_hotpluggable_cpus(_call: Call<'_>) -> Answer {
    Err(Error::generic("machine does not support hot-plugging CPUs"))
}

fn query_memory_size_summary(call: Call<'_>) -> Answer {
    Ok(json!({"base-memory": call.vmm.guest.ram_bytes(), "plugged-memory": 0}))
}

fn query_chardev(call: Call<'_>) -> Answer {
    let entry = |device: &crate::vmm::ChardevInfo| {
        json!({
            "label": device.label,
            "filename": device.filename,
            "frontend-open": device.frontend_open,
        })
    };
    Ok(call.vmm.chardevs.list().iter().map(entry).collect::<Vec<Json>>().into())
}
