//! Commands about the machine's objects: the tree (`qom-…`), its types, and what comes and goes.
//!
//! Nothing comes or goes on this board, as on QEMU's microvm: what is asked for is refused with
//! QEMU's words. Few properties can be changed once the machine stands.

use serde_json::{Value as Json, json};

use super::command::{Answer, Call, Command, Run};
use crate::args::{self, Pair, Parameter, ParameterType};
use crate::machine::objects::{Buses, CPU, parameter_type, property_type};
use crate::machine::{Object, ObjectType, object_types};
use crate::qmp::args::Args;
use crate::qmp::error::Error;
use crate::qmp::json::Value;
use crate::qmp::schema::{Member, Shape, Type, optional, required};

pub(crate) static COMMANDS: &[Command] = &[
    Command::new("qom-list", Run::Now(list))
        .arguments(&PATH)
        .returns(Type::List(&Type::Object(&PROPERTY)))
        .does("Lists the properties of an object, and the objects in it."),
    Command::new("qom-get", Run::Now(get))
        .arguments(&GET)
        .returns(Type::Any)
        .does("Tells the value of an object's property."),
    Command::new("qom-set", Run::Now(set))
        .arguments(&SET)
        .does("Changes the value of an object's property, where a device lets it."),
    Command::new("qom-list-types", Run::Now(list_types))
        .arguments(&TYPES)
        .returns(Type::List(&Type::Object(&TYPE)))
        .does("Lists the types that objects can have."),
    Command::new("qom-list-properties", Run::Now(type_properties))
        .arguments(&TYPE_NAME)
        .returns(Type::List(&Type::Object(&PROPERTY)))
        .does("Lists the properties that objects of a type have."),
    Command::new("device-list-properties", Run::Now(device_properties))
        .arguments(&TYPE_NAME)
        .returns(Type::List(&Type::Object(&PROPERTY)))
        .does("Lists what -device takes for a driver."),
    Command::new("device_add", Run::Now(device_add))
        .arguments(&DEVICE)
        .does("Is an error: devices do not come and go on this board."),
    Command::new("device_del", Run::Now(device_del))
        .arguments(&DEVICE_ID)
        .does("Is an error: devices do not come and go on this board."),
    Command::new("object-add", Run::Waiting(object_add)).arguments(&OBJECT).does(
        "Adds memory, a source of entropy, an I/O thread or a secret; further members are those of -object.",
    ),
    Command::new("object-del", Run::Waiting(object_del))
        .arguments(&ID)
        .does("Takes away what object-add added; what the machine was built with is in use."),
    Command::new("query-iothreads", Run::Now(query_iothreads))
        .returns(Type::List(&Type::Object(&IO_THREAD)))
        .does("Lists the threads made by object-add."),
    Command::new("query-memdev", Run::Now(query_memdev))
        .returns(Type::List(&Type::Object(&MEMORY)))
        .does("Lists where guest RAM comes from."),
];

const ANY_PATH: Member = required("path", Type::Text)
    .means("the object: from / on, or as much of the end as is found only once");
static PATH: Shape = Shape::of(&[ANY_PATH]);
static GET: Shape =
    Shape::of(&[ANY_PATH, required("property", Type::Text).means("the property's name")]);
static SET: Shape = Shape::of(&[
    ANY_PATH,
    required("property", Type::Text).means("the property's name"),
    required("value", Type::Any).means("its new value"),
]);
static PROPERTY: Shape = Shape::of(&[
    required("name", Type::Text),
    required("type", Type::Text),
    optional("description", Type::Text),
    optional("default-value", Type::Any),
]);
static TYPES: Shape = Shape::of(&[
    optional("implements", Type::Text).means("only what comes of this type"),
    optional("abstract", Type::Bool).means("types without objects of their own, too (false)"),
]);
static TYPE: Shape = Shape::of(&[
    required("name", Type::Text),
    optional("abstract", Type::Bool),
    optional("parent", Type::Text),
]);
static TYPE_NAME: Shape =
    Shape::of(&[required("typename", Type::Text).means("one of qom-list-types")]);
static DEVICE: Shape = Shape::open(&[
    required("driver", Type::Text).means("as -device has it"),
    optional("bus", Type::Text).means("where to plug it"),
    optional("id", Type::Text).means("what to call it"),
]);
static DEVICE_ID: Shape = Shape::of(&[required("id", Type::Text).means("its id, or path")]);
static ID: Shape = Shape::of(&[required("id", Type::Text).means("its id")]);
static OBJECT: Shape = Shape::open(&[
    required("qom-type", Type::Text).means("as -object has it"),
    required("id", Type::Text).means("what to call it"),
]);
static IO_THREAD: Shape = Shape::of(&[
    required("id", Type::Text),
    required("thread-id", Type::Int),
    required("poll-max-ns", Type::Int),
    required("poll-grow", Type::Int),
    required("poll-shrink", Type::Int),
    required("aio-max-batch", Type::Int),
]);
static MEMORY: Shape = Shape::of(&[
    optional("id", Type::Text),
    required("size", Type::U64),
    required("merge", Type::Bool),
    required("dump", Type::Bool),
    required("prealloc", Type::Bool),
    required("share", Type::Bool),
    optional("reserve", Type::Bool),
    required("host-nodes", Type::List(&Type::U16)),
    required("policy", Type::Enum(&["default", "preferred", "bind", "interleave"])),
]);

fn not_found(name: &str) -> Error {
    Error::device_not_found(format_args!("Device '{name}' not found"))
}

fn list(call: Call<'_>) -> Answer {
    let (root, path) = (call.vmm.tree(), call.args.text("path"));
    let (_, object) = root.find(path).ok_or_else(|| not_found(path))?;
    let mut entries = vec![json!({"name": "type", "type": "string"})];
    let property =
        |(name, value): &(&str, Json)| json!({"name": name, "type": property_type(value)});
    entries.extend(object.properties.iter().map(property));
    entries.extend(
        object.children.iter().map(
            |(name, child)| json!({"name": name, "type": format!("child<{}>", child.type_name)}),
        ),
    );
    Ok(entries.into())
}

fn get(call: Call<'_>) -> Answer {
    let (root, path) = (call.vmm.tree(), call.args.text("path"));
    let name = call.args.text("property");
    let (path, object) = root.find(path).ok_or_else(|| not_found(path))?;
    if object.child(name).is_some() {
        return Ok(format!("{}/{name}", path.trim_end_matches('/')).into());
    }
    object.property(name).ok_or_else(|| no_property(object.type_name, name))
}

fn no_property(of: &str, name: &str) -> Error {
    Error::generic(format_args!("Property '{of}.{name}' not found"))
}

fn set(call: Call<'_>) -> Answer {
    let (root, path) = (call.vmm.tree(), call.args.text("path"));
    let name = call.args.text("property");
    let (_, object) = root.find(path).ok_or_else(|| not_found(path))?;
    let of = object.type_name;
    let value = call.args.get("value").and_then(|value| serde_json::to_value(value).ok());
    if let Some(done) = call.vmm.guest.set_property(of, name, &value.unwrap_or_default()) {
        return done.map(|()| json!({})).map_err(Error::generic);
    }
    if object.property(name).is_none() && object.child(name).is_none() {
        return Err(no_property(of, name));
    }
    Err(Error::generic(match &object.id {
        _ if !object.is_device || name == "type" => {
            format!("Property '{of}.{name}' is not writable")
        }
        Some(id) => format!(
            "Attempt to set property '{name}' on device '{id}' (type '{of}') after it was realized"
        ),
        None => format!(
            "Attempt to set property '{name}' on anonymous device (type '{of}') after it was realized"
        ),
    }))
}

fn list_types(call: Call<'_>) -> Answer {
    let types = object_types();
    let all = call.args.bool_if_given("abstract").unwrap_or(false);
    let wanted = call.args.text_if_given("implements");
    let entry = |of: &ObjectType| {
        let mut entry = json!({"name": of.name});
        if of.is_abstract {
            entry["abstract"] = true.into();
        }
        if !of.parent.is_empty() {
            entry["parent"] = of.parent.into();
        }
        entry
    };
    let shown = types
        .iter()
        .filter(|of| all || !of.is_abstract)
        .filter(|of| wanted.is_none_or(|wanted| of.implements(&types, wanted)));
    Ok(shown.map(entry).collect::<Vec<Json>>().into())
}

fn properties(of: &ObjectType) -> Vec<Json> {
    let entry = |parameter: &args::Parameter| {
        json!({
            "name": parameter.name,
            "type": parameter_type(parameter),
            "description": parameter.value,
        })
    };
    of.properties.iter().map(entry).collect()
}

fn type_properties(call: Call<'_>) -> Answer {
    let name = call.args.text("typename");
    let types = object_types();
    let of = types
        .iter()
        .find(|of| of.name == name)
        .ok_or_else(|| Error::device_not_found(format_args!("Class '{name}' not found")))?;
    let mut shown = vec![json!({"name": "type", "type": "string"})];
    shown.extend(properties(of));
    Ok(shown.into())
}

fn device_properties(call: Call<'_>) -> Answer {
    let name = call.args.text("typename");
    let types = object_types();
    let of = types.iter().find(|of| of.name == name).ok_or_else(|| not_found(name))?;
    if of.is_abstract || !of.is_device(&types) {
        let text = "Parameter 'typename' expects a non-abstract device type";
        return Err(Error::generic(text));
    }
    Ok(properties(of).into())
}

fn device_add(call: Call<'_>) -> Answer {
    let driver = call.args.text("driver");
    let types = object_types();
    let known = types.iter().find(|of| of.name == driver && of.is_device(&types));
    // One that is refused where there is none yet cannot be had at all.
    if let Some(why) = args::device(driver).and_then(|device| (device.refuses)(&[])) {
        return Err(Error::generic(format_args!("{driver}: {why}")));
    }
    let refused = match (args::device(driver), known) {
        (None, None) => format!("'{driver}' is not a valid device model name"),
        (None, Some(of)) if of.is_abstract => {
            "Parameter 'driver' expects a non-abstract device type".to_owned()
        }
        (None, Some(of)) if of.name == CPU => {
            "machine does not support hot-plugging CPUs".to_owned()
        }
        (None, Some(_)) => "Parameter 'driver' expects a pluggable device type".to_owned(),
        (Some(device), _) => match (call.args.text_if_given("bus"), device.bus) {
            (Some(bus), own) if !is_bus(bus, own) => format!("Bus '{bus}' not found"),
            (Some(bus), _) => no_hotplug(bus),
            (None, "") => format!("Device '{driver}' does not support hotplugging"),
            (None, _) => no_hotplug(&Buses::of(&call.vmm.tree()).take(driver)),
        },
    };
    Err(Error::generic(refused))
}

fn no_hotplug(bus: &str) -> String {
    format!("Bus '{bus}' does not support hotplugging")
}

fn is_bus(name: &str, kind: &str) -> bool {
    !kind.is_empty()
        && (name == kind || name.strip_prefix(kind).is_some_and(|n| n.starts_with('.')))
}

fn device_del(call: Call<'_>) -> Answer {
    let (root, id) = (call.vmm.tree(), call.args.text("id"));
    let path =
        if id.starts_with('/') { id.to_owned() } else { format!("/machine/peripheral/{id}") };
    let (_, object) = root.find(&path).ok_or_else(|| not_found(id))?;
    Err(Error::generic(stays(object, id)))
}

/// Why it cannot go.
fn stays(object: &Object, id: &str) -> String {
    match object.bus.as_str() {
        _ if !object.is_device => format!("{id} is not a device"),
        "" => format!("Device '{}' does not support hotplugging", object.type_name),
        bus => no_hotplug(bus),
    }
}

fn object_add(call: Call<'_>) -> Answer {
    let (of, id) = (call.args.text("qom-type"), call.args.text("id"));
    let types = args::object_types();
    let known = types.iter().find(|(name, _)| *name == of).ok_or_else(|| {
        Error::generic(format_args!("Parameter 'qom-type' does not accept value '{of}'"))
    })?;
    args::value::id(id).map_err(|_| Error::generic("Parameter 'id' expects an identifier"))?;
    let Some(keys) = args::object_keys(of) else {
        let why = known.1.unwrap_or("it is not built yet");
        return Err(Error::generic(format_args!("object-add of {of}: {why}")));
    };
    let pairs = pairs(call.args, of, &keys)?;
    if call.vmm.tree().child("objects").is_some_and(|objects| objects.child(id).is_some()) {
        return Err(Error::generic(format_args!(
            "attempt to add duplicate property '{id}' to object (type 'container')"
        )));
    }
    let described = args::describe_object(of, id, &pairs).map_err(Error::generic)?;
    call.vmm.objects.add(id, described).map_err(Error::generic)?;
    Ok(json!({}))
}

/// The members that the type has keys for, as the command line would have them.
fn pairs(args: Args<'_>, of: &str, keys: &[Parameter]) -> Result<Vec<Pair>, Error> {
    let mut pairs = Vec::new();
    for (name, value) in args.members().filter(|(name, _)| !["qom-type", "id"].contains(name)) {
        let Some(key) = keys.iter().find(|key| key.name == name && name != "id") else {
            return Err(Error::generic(format_args!("Parameter '{name}' is unexpected")));
        };
        let (expected, text) = match (key.of(), value) {
            (ParameterType::Boolean, Value::Bool(on)) => {
                ("", if *on { "on" } else { "off" }.into())
            }
            (ParameterType::Boolean, _) => ("boolean", String::new()),
            (ParameterType::Size | ParameterType::Number, value) => match value.as_u64() {
                Some(0) if name == "size" => {
                    return Err(Error::generic(format_args!(
                        "property 'size' of {of} doesn't take value '0'"
                    )));
                }
                Some(number) => ("", number.to_string()),
                None => ("integer", String::new()),
            },
            (ParameterType::String, Value::Text(text)) => match key.value.contains('|') {
                true if !key.value.split('|').any(|one| one == text) => {
                    return Err(Error::generic(format_args!(
                        "Parameter '{name}' does not accept value '{text}'"
                    )));
                }
                _ => ("", text.clone()),
            },
            (ParameterType::String, _) => ("string", String::new()),
        };
        if !expected.is_empty() {
            return Err(Error::generic(format_args!(
                "Invalid parameter type for '{name}', expected: {expected}"
            )));
        }
        pairs.push((name.to_owned(), Some(text)));
    }
    if keys.iter().any(|key| key.name == "size") && !args.has("size") {
        return Err(Error::generic("Parameter 'size' is missing"));
    }
    Ok(pairs)
}

fn object_del(call: Call<'_>) -> Answer {
    let id = call.args.text("id");
    if call.vmm.objects.remove(id) {
        return Ok(json!({}));
    }
    let there = call.vmm.tree().child("objects").is_some_and(|objects| objects.child(id).is_some());
    Err(Error::generic(match there {
        true => format!("object '{id}' is in use, can not be deleted"),
        false => format!("object '{id}' not found"),
    }))
}

fn query_iothreads(call: Call<'_>) -> Answer {
    let all = call.vmm.objects.io_threads();
    let entry = |thread: &crate::vmm::IoThreadInfo| {
        json!({
            "id": thread.id,
            "thread-id": thread.thread_id,
            "poll-max-ns": thread.options.poll_max_ns,
            "poll-grow": thread.options.poll_grow,
            "poll-shrink": thread.options.poll_shrink,
            "aio-max-batch": thread.options.aio_max_batch,
        })
    };
    Ok(all.iter().map(entry).collect::<Vec<Json>>().into())
}

fn query_memdev(call: Call<'_>) -> Answer {
    let root = call.vmm.tree();
    let all = root.child("objects").into_iter().flat_map(|objects| &objects.children);
    let all = all.filter(|(_, object)| object.property("size").is_some());
    let entry = |(id, object): &(String, Object)| {
        let mut entry = json!({
            "id": id,
            // Memory is the host's to find when it is touched.
            "reserve": true,
            "host-nodes": [],
            "policy": "default",
        });
        for name in ["size", "merge", "dump", "prealloc", "share"] {
            entry[name] = object.property(name).unwrap_or_default();
        }
        entry
    };
    Ok(all.map(entry).collect::<Vec<Json>>().into())
}
