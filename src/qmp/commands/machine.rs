//! Commands that say what machine this is.

use serde_json::{Map, Value as Json, json};

use super::{Answer, Call, Command, Run};
use crate::arch::x86_64::topology::Position;
use crate::config::Cpu;
use crate::qmp::error::Error;
use crate::qmp::schema::{Shape, Type, optional};

pub static COMMANDS: &[Command] = &[
    Command::new("query-name", Run::Now(query_name)),
    Command::new("query-uuid", Run::Now(query_uuid)),
    Command::new("query-kvm", Run::Now(|_| Ok(json!({"enabled": true, "present": true})))),
    Command::new("query-target", Run::Now(|_| Ok(json!({"arch": "x86_64"})))),
    Command::new("query-machines", Run::Now(query_machines)).arguments(&MACHINES),
    Command::new("query-cpu-definitions", Run::Now(query_cpu_definitions)),
    Command::new("query-cpus-fast", Run::Now(query_cpus_fast)),
    Command::new("query-hotpluggable-cpus", Run::Now(query_hotpluggable_cpus)),
    Command::new("query-memory-size-summary", Run::Now(query_memory_size_summary)),
    Command::new("query-iothreads", Run::Now(|_| Ok(json!([])))),
    Command::new("query-chardev", Run::Now(query_chardev)),
];

static MACHINES: Shape = Shape::of(&[optional("compat-props", Type::Bool)]);

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
    let mut machine = json!({
        "name": "microvm",
        "cpu-max": Cpu::COUNT_MAX,
        "hotpluggable-cpus": false,
        "numa-mem-supported": false,
        "deprecated": false,
        "default-cpu-type": "host-x86_64-cpu",
        "default-ram-id": "microvm.ram",
        "acpi": false,
    });
    if call.args.bool_if_given("compat-props") == Some(true) {
        machine["compat-props"] = json!([]);
    }
    Ok(json!([machine]))
}

fn query_cpu_definitions(_call: Call<'_>) -> Answer {
    Ok(json!([{
        "name": "host",
        "typename": "host-x86_64-cpu",
        "static": false,
        "migration-safe": false,
        "unavailable-features": [],
        "deprecated": false,
    }]))
}

fn query_cpus_fast(call: Call<'_>) -> Answer {
    let vcpus = call.vmm.guest.vcpus();
    let entry = |(at, vcpu): (usize, &crate::machine::VcpuInfo)| {
        let Position { socket, core, thread } = vcpu.position;
        json!({
            "cpu-index": vcpu.index,
            "thread-id": vcpu.thread_id,
            "qom-path": format!("/machine/unattached/device[{at}]"),
            "props": {"socket-id": socket, "core-id": core, "thread-id": thread},
            "target": "x86_64",
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
    Ok((call.vmm.chardevs)().iter().map(entry).collect::<Vec<Json>>().into())
}
