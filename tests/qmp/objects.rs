//! The tree of objects of a real machine, what its processors can do, and what is asked of a machine
//! before it is used.

use std::path::PathBuf;

use serde_json::{Value, json};

use crate::common::qmp::Client;
use crate::process::{monitor, with_monitors};

/// Every object below `path`, by its path, and its type.
fn walk(client: &mut Client, path: &str, found: &mut Vec<(String, String)>) {
    let entries = client.ask("qom-list", json!({"path": path}));
    for entry in entries.as_array().unwrap() {
        let (name, of) = (entry["name"].as_str().unwrap(), entry["type"].as_str().unwrap());
        let value = client.ask("qom-get", json!({"path": path, "property": name}));
        if let Some(of) = of.strip_prefix("child<").and_then(|of| of.strip_suffix('>')) {
            let child = format!("{}/{name}", path.trim_end_matches('/'));
            assert_eq!(value, json!(child));
            found.push((child.clone(), of.to_owned()));
            walk(client, &child, found);
        }
    }
}

#[test]
fn the_tree_has_what_the_command_line_asked_for() {
    let arguments = "-S -smp 2 -device isa-debug-exit,id=de,iobase=0x600 -device isa-debug-exit -device vmcoreinfo,id=vmc -device virtio-rng-device,id=rng0 \
                     -M microvm,acpi=off,memory-backend=m0,pit=off -m 64M -object memory-backend-memfd,id=m0,size=64M";
    let godwit = with_monitors(1, &arguments.split_whitespace().collect::<Vec<_>>());
    let mut client = monitor(&godwit, 0);
    let mut found = Vec::new();
    walk(&mut client, "/", &mut found);
    let of = |path: &str| {
        let found = found.iter().find(|(known, _)| known == path);
        found.unwrap_or_else(|| panic!("{path}: {found:?}")).1.as_str()
    };
    assert_eq!(of("/machine"), "microvm-machine");
    assert_eq!(of("/machine/peripheral/de"), "isa-debug-exit");
    assert_eq!(of("/machine/peripheral/vmc"), "vmcoreinfo");
    assert_eq!(of("/machine/peripheral/rng0"), "virtio-rng-device");
    let bus = |number| format!("Bus 'virtio-mmio-bus.{number}' does not support hotplugging");
    let refused = client.refused("device_add", json!({"driver": "virtio-rng-device"}));
    assert_eq!(refused["desc"], bus(6));
    assert_eq!(client.refused("device_del", json!({"id": "rng0"}))["desc"], bus(7));
    assert_eq!(of("/machine/peripheral-anon/device[0]"), "isa-debug-exit");
    assert_eq!(of("/objects/m0"), "memory-backend-memfd");
    assert_eq!(of("/chardevs/compat_monitor0"), "chardev-socket");
    assert!(!found.iter().any(|(_, of)| of == "isa-pit"), "{found:?}");
    assert!(found.iter().any(|(_, of)| of == "isa-i8259"), "{found:?}");
    for cpu in client.ask("query-cpus-fast", json!({})).as_array().unwrap() {
        let path = cpu["qom-path"].as_str().unwrap();
        assert_eq!(of(path), "host-x86_64-cpu");
        let apic = client.ask("qom-get", json!({"path": path, "property": "apic-id"}));
        assert_eq!(apic, cpu["cpu-index"]);
    }
    let mut get = |path: &str, property: &str| {
        client.ask("qom-get", json!({"path": path, "property": property}))
    };
    assert_eq!(get("/machine/peripheral/de", "iobase"), json!(0x600));
    assert_eq!(get("/machine/peripheral-anon/device[0]", "iobase"), json!(0x501));
    assert_eq!(get("/machine", "pit"), json!("off"));
    assert_eq!(get("machine", "pic"), json!("auto"));
    assert_eq!(get("/machine", "memory-backend"), json!("/objects/m0"));
    assert_eq!(get("/objects/m0", "size"), json!(64 << 20));
    let memory = client.ask("query-memdev", json!({}));
    assert_eq!((&memory[0]["id"], &memory[0]["share"]), (&json!("m0"), &json!(true)));
    let types = client.ask("qom-list-types", json!({"abstract": true}));
    let listed = |of: &str| types.as_array().unwrap().iter().any(|known| known["name"] == of);
    for (_, of) in &found {
        assert!(listed(of), "{of}");
    }
}

/// The words are QEMU's.
#[test]
fn nothing_comes_or_goes() {
    let godwit = with_monitors(
        1,
        &["-S", "-device", "isa-debug-exit,id=de", "-device", "vmcoreinfo,id=vmc"],
    );
    let mut client = monitor(&godwit, 0);
    for (command, arguments, class, desc) in [
        (
            "device_add",
            json!({"driver": "isa-debug-exit", "foo": 1}),
            "GenericError",
            "Bus 'isa.0' does not support hotplugging",
        ),
        (
            "device_add",
            json!({"driver": "isa-debug-exit", "bus": "nobus"}),
            "GenericError",
            "Bus 'nobus' not found",
        ),
        (
            "device_add",
            json!({"driver": "vmcoreinfo"}),
            "GenericError",
            "Device 'vmcoreinfo' does not support hotplugging",
        ),
        (
            "device_add",
            json!({"driver": "no-such"}),
            "GenericError",
            "'no-such' is not a valid device model name",
        ),
        (
            "device_add",
            json!({"driver": "device"}),
            "GenericError",
            "Parameter 'driver' expects a non-abstract device type",
        ),
        (
            "device_add",
            json!({"driver": "fw_cfg_io"}),
            "GenericError",
            "Parameter 'driver' expects a pluggable device type",
        ),
        (
            "device_add",
            json!({"driver": "memory-backend-ram"}),
            "GenericError",
            "'memory-backend-ram' is not a valid device model name",
        ),
        ("device_add", json!({}), "GenericError", "Parameter 'driver' is missing"),
        ("device_del", json!({"id": "nope"}), "DeviceNotFound", "Device 'nope' not found"),
        (
            "device_del",
            json!({"id": "de"}),
            "GenericError",
            "Bus 'isa.0' does not support hotplugging",
        ),
        (
            "device_del",
            json!({"id": "vmc"}),
            "GenericError",
            "Device 'vmcoreinfo' does not support hotplugging",
        ),
        ("device_del", json!({"id": "/machine"}), "GenericError", "/machine is not a device"),
        (
            "object-add",
            json!({"qom-type": "nope", "id": "x"}),
            "GenericError",
            "Parameter 'qom-type' does not accept value 'nope'",
        ),
        (
            "object-add",
            json!({"qom-type": "secret", "id": "1x"}),
            "GenericError",
            "Parameter 'id' expects an identifier",
        ),
        (
            "object-del",
            json!({"id": "microvm.ram"}),
            "GenericError",
            "object 'microvm.ram' is in use, can not be deleted",
        ),
        ("object-del", json!({"id": "nope"}), "GenericError", "object 'nope' not found"),
        (
            "qom-set",
            json!({"path": "/machine", "property": "type", "value": 1}),
            "GenericError",
            "Property 'microvm-machine.type' is not writable",
        ),
        (
            "qom-set",
            json!({"path": "/machine/peripheral/de", "property": "iobase", "value": 1}),
            "GenericError",
            "Attempt to set property 'iobase' on device 'de' (type 'isa-debug-exit') after it was realized",
        ),
        (
            "qom-get",
            json!({"path": "/machine", "property": "none"}),
            "GenericError",
            "Property 'microvm-machine.none' not found",
        ),
        ("qom-list", json!({"path": "/nowhere"}), "DeviceNotFound", "Device '/nowhere' not found"),
        (
            "qom-list-properties",
            json!({"typename": "no-such"}),
            "DeviceNotFound",
            "Class 'no-such' not found",
        ),
        (
            "device-list-properties",
            json!({"typename": "machine"}),
            "GenericError",
            "Parameter 'typename' expects a non-abstract device type",
        ),
        (
            "device-list-properties",
            json!({"typename": ""}),
            "DeviceNotFound",
            "Device '' not found",
        ),
        ("query-balloon", json!({}), "DeviceNotActive", "No balloon device has been activated"),
        (
            "yank",
            json!({"instances": [{"type": "migration"}]}),
            "DeviceNotFound",
            "Instance not found",
        ),
        (
            "query-cpu-model-expansion",
            json!({"type": "full", "model": {"name": "no-such"}}),
            "GenericError",
            "CPU model 'no-such' not found",
        ),
    ] {
        let refused = client.refused(command, arguments.clone());
        assert_eq!(refused, json!({"class": class, "desc": desc}), "{command} {arguments}");
    }
}

#[test]
fn processors_say_what_they_can() {
    let godwit = with_monitors(1, &["-S"]);
    let mut client = monitor(&godwit, 0);
    let mut expand = |kind: &str, model: Value| {
        client.ask("query-cpu-model-expansion", json!({"type": kind, "model": model}))["model"]
            .clone()
    };
    let host = expand("static", json!({"name": "host"}));
    assert_eq!(host["name"], "base");
    assert_eq!((&host["props"]["lm"], &host["props"]["svm"]), (&json!(true), &json!(false)));
    // What was told is taken, and means the same.
    assert_eq!(expand("full", host.clone()), host);
    let base = expand("full", json!({"name": "base", "props": {"lm": true}}));
    assert_eq!((&base["props"]["lm"], &base["props"]["sse2"]), (&json!(true), &json!(false)));
}

/// Errors only where QEMU had them, or of things that are not here.
#[test]
fn libvirts_questions_are_answered() {
    let path = "tests/vectors/qmp/libvirt_probe.requests.jsonl";
    let text =
        std::fs::read_to_string(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap();
    let godwit = with_monitors(1, &["-S"]);
    let mut client = monitor(&godwit, 0);
    let commands = client.ask("query-commands", json!({}));
    for line in text.lines().skip(1) {
        let step: Value = serde_json::from_str(line).unwrap();
        let name = step["send"]["execute"].as_str().unwrap();
        let known = commands.as_array().unwrap().iter().any(|command| command["name"] == name);
        if !known || name == "qmp_capabilities" || name == "quit" {
            continue; // It asks for what query-commands lists only.
        }
        let arguments = step["send"].get("arguments").cloned().unwrap_or(json!({}));
        if let Err(error) = client.try_ask(name, arguments.clone()) {
            let expected = step["error"].as_str();
            let absent = name.ends_with("list-properties") && error.contains("not found");
            let unknown = name == "query-cpu-model-expansion" && error.contains("-x86_64-cpu.");
            assert!(expected.is_some() || absent || unknown, "{line}: {error}");
        }
    }
}
