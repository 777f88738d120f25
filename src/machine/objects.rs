//! The machine as a tree of objects, named and typed as QEMU shows its own (`qom-list`).
//!
//! ```text
//! /machine                     what -M says
//!     /unattached/device[N]    processors, then the board's own parts
//!     /peripheral/ID           -device with an id
//!     /peripheral-anon/device[N]   and without
//! /objects/ID                  where RAM comes from
//! /chardevs/ID
//! ```
//!
//! It is made of the configuration and of the board's list each time somebody asks: there is no
//! second list of what the machine has.

use serde_json::{Value as Json, json};

use super::{Machine, PARTS};
use crate::arch::x86_64::{cpuid, features};
use crate::args::{self, Parameter, ParameterType};
use crate::config::{ChardevBackend, EntropySource, Memory, MemoryBackend};

/// One object: its type, what can be read of it, and what is in it.
#[derive(Clone, Debug)]
pub struct Object {
    pub type_name: &'static str,
    /// The name that `-device` gave; anonymous without.
    pub id: Option<String>,
    /// What it is plugged into; empty for nothing.
    pub bus: String,
    /// It was plugged, or soldered, in; what it is does not change any more.
    pub is_device: bool,
    pub properties: Vec<(&'static str, Json)>,
    pub children: Vec<(String, Object)>,
}

/// What a value is called in QEMU.
pub(crate) fn property_type(value: &Json) -> &'static str {
    match value {
        Json::Bool(_) => "bool",
        Json::Number(_) => "int",
        Json::Object(_) => "struct",
        _ => "string",
    }
}

impl Object {
    pub(crate) fn of(type_name: &'static str) -> Object {
        Object {
            type_name,
            id: None,
            bus: String::new(),
            is_device: false,
            properties: Vec::new(),
            children: Vec::new(),
        }
    }

    fn device(type_name: &'static str, id: Option<String>) -> Object {
        let own = [("realized", true), ("hotplugged", false), ("hotpluggable", false)];
        let properties = own.map(|(name, value)| (name, Json::Bool(value))).to_vec();
        Object { id, is_device: true, properties, ..Object::of(type_name) }
    }

    /// A tree with nothing in it.
    pub(crate) fn root() -> Object {
        let mut root = Object::of(CONTAINER);
        for name in ["backend", "objects", "chardevs"] {
            root.add(name, Object::of(CONTAINER));
        }
        root
    }

    fn add(&mut self, name: impl Into<String>, child: Object) {
        self.children.push((name.into(), child));
    }

    /// Adds it as `device[N]`.
    fn add_numbered(&mut self, child: Object) {
        self.add(format!("device[{}]", self.children.len()), child);
    }

    pub(crate) fn child(&self, name: &str) -> Option<&Object> {
        self.children.iter().find(|(known, _)| known == name).map(|(_, child)| child)
    }

    /// A property by its name; children are no properties here.
    pub(crate) fn property(&self, name: &str) -> Option<Json> {
        if name == "type" {
            return Some(self.type_name.into());
        }
        self.properties.iter().find(|(known, _)| *known == name).map(|(_, value)| value.clone())
    }

    /// The object at `path`, which begins at the root with `/`, or anywhere without; and where that
    /// is. `None` also if there are several.
    pub(crate) fn find(&self, path: &str) -> Option<(String, &Object)> {
        let names: Vec<&str> = path.split('/').filter(|name| !name.is_empty()).collect();
        if path.starts_with('/') {
            let found = names.iter().try_fold(self, |object, name| object.child(name))?;
            return Some((format!("/{}", names.join("/")), found));
        }
        let mut found = Vec::new();
        self.search("", &names, &mut found);
        match (found.len(), names.is_empty()) {
            (1, false) => found.pop(),
            _ => None,
        }
    }

    fn search<'a>(&'a self, at: &str, names: &[&str], found: &mut Vec<(String, &'a Object)>) {
        if let Some(object) = names.iter().try_fold(self, |object, name| object.child(name)) {
            found.push((format!("{at}/{}", names.join("/")), object));
        }
        for (name, child) in &self.children {
            child.search(&format!("{at}/{name}"), names, found);
        }
    }
}

const CONTAINER: &str = "container";
const MACHINE: &str = "microvm-machine";
/// The only model of processors there is.
pub(crate) const CPU: &str = "host-x86_64-cpu";

impl Machine {
    /// The tree as it is now.
    pub(crate) fn objects(&self) -> Object {
        let config = self.config();
        let mut root = Object::root();
        let mut machine = Object::of(MACHINE);
        // `type` is there anyway, and is another thing.
        machine.properties = args::machine_values(config);
        let mut unattached = Object::of(CONTAINER);
        let features = self.cpu_features().into_iter();
        let features: Vec<_> = features.map(|(name, has)| (name, Json::Bool(has))).collect();
        for vcpu in self.vcpus() {
            let mut cpu = Object::device(CPU, None);
            let apic_id = config.cpu.topology.apic_id(vcpu.index);
            let (socket, core, thread) =
                (vcpu.position.socket, vcpu.position.core, vcpu.position.thread);
            cpu.properties.extend([
                ("apic-id", json!(apic_id)),
                ("socket-id", json!(socket)),
                ("core-id", json!(core)),
                ("thread-id", json!(thread)),
            ]);
            cpu.properties.extend(features.iter().cloned());
            unattached.add_numbered(cpu);
        }
        let mut shown = Vec::new();
        for (kind, device) in self.cpus.board.parts() {
            match (&kind.device, kind.type_name) {
                (Some(_), _) => shown.push((kind.type_name(), device.properties())),
                (None, "") => {}
                (None, name) => {
                    let mut object = Object::device(name, None);
                    object.properties.extend(device.properties());
                    unattached.add_numbered(object);
                }
            }
        }
        let (mut peripheral, mut anonymous) = (Object::of(CONTAINER), Object::of(CONTAINER));
        let mut buses = Buses::default();
        for device in &config.devices {
            let mut object = Object::device(device.driver, device.id.clone());
            object.bus = buses.take(device.driver);
            // Devices of one kind are built in the order of the command line.
            if let Some(at) = shown.iter().position(|(driver, _)| *driver == device.driver) {
                object.properties.extend(shown.remove(at).1);
            }
            match &device.id {
                Some(id) => peripheral.add(id, object),
                None => anonymous.add_numbered(object),
            }
        }
        machine.add("unattached", unattached);
        machine.add("peripheral", peripheral);
        machine.add("peripheral-anon", anonymous);
        // QEMU shows it behind the first.
        root.children.insert(1, ("machine".into(), machine));
        for (name, container) in &mut root.children {
            match name.as_str() {
                "objects" => {
                    container.add(&config.memory.block, Object::of_memory(&config.memory));
                    for entropy in &config.entropy {
                        container.add(&entropy.id, Object::of(entropy.source.type_name()));
                    }
                }
                "chardevs" => {
                    for chardev in &config.chardevs {
                        container.add(&chardev.id, Object::of(chardev.backend.type_name()));
                    }
                }
                _ => {}
            }
        }
        root
    }

    /// Changes a property of the first device of a type. `None`: no property of this name can be.
    pub(crate) fn set_property(
        &self,
        of: &str,
        name: &str,
        value: &Json,
    ) -> Option<Result<(), String>> {
        let mut parts = self.cpus.board.parts().filter(|(kind, _)| kind.type_name() == of);
        parts.find_map(|(_, device)| device.set_property(name, value))
    }

    /// What the processors can do, and what they cannot.
    pub(crate) fn cpu_features(&self) -> Vec<(&'static str, bool)> {
        let cpuid = cpuid::for_vcpu(self.vm().cpuid(), &self.config().cpu, 0, self.vm().caps());
        features::features(cpuid.as_slice())
    }
}

/// Where virtio devices go: each transport is a bus of its own, taken from the last on.
const TRANSPORT: &str = "virtio-mmio-bus";
const TRANSPORT_LAST: usize = 7;

/// Places that are taken.
#[derive(Default)]
pub(crate) struct Buses {
    transports: usize,
}

impl Buses {
    /// Those that the devices in `root` have.
    pub(crate) fn of(root: &Object) -> Buses {
        let machine = root.child("machine");
        let all = ["peripheral", "peripheral-anon"].into_iter();
        let all = all.filter_map(|name| machine?.child(name)).flat_map(|of| &of.children);
        Buses { transports: all.filter(|(_, device)| device.bus.starts_with(TRANSPORT)).count() }
    }

    /// Where a device of this driver goes, in QEMU's words; empty for nowhere.
    pub(crate) fn take(&mut self, driver: &str) -> String {
        match args::device(driver).map_or("", |device| device.bus) {
            TRANSPORT => {
                self.transports += 1;
                format!("{TRANSPORT}.{}", (TRANSPORT_LAST + 1).saturating_sub(self.transports))
            }
            bus => bus.to_owned(),
        }
    }
}

impl Object {
    /// Memory that a guest has, or could have.
    pub(crate) fn of_memory(memory: &Memory) -> Object {
        let mut object = Object::of(memory.backend.type_name());
        object.properties = vec![
            ("size", json!(memory.bytes)),
            ("share", json!(memory.backend.is_shared())),
            ("prealloc", json!(memory.prealloc)),
            ("merge", json!(memory.merge)),
            ("dump", json!(memory.dump)),
        ];
        object
    }
}

/// A type that objects have.
#[derive(Clone, Debug)]
pub(crate) struct ObjectType {
    pub name: &'static str,
    /// Empty for none.
    pub parent: &'static str,
    /// There are only objects of types that come of it.
    pub is_abstract: bool,
    pub properties: Vec<Parameter>,
}

const OBJECT: &str = "object";
const DEVICE: &str = "device";
const VIRTIO: &str = "virtio-device";
const X86_MACHINE: &str = "x86-machine";

impl ObjectType {
    fn of(name: &'static str, parent: &'static str, properties: Vec<Parameter>) -> ObjectType {
        ObjectType { name, parent, is_abstract: false, properties }
    }

    /// Whether it is `other`, or comes of it.
    pub(crate) fn implements(&self, types: &[ObjectType], other: &str) -> bool {
        let parent = || types.iter().find(|of| of.name == self.parent);
        self.name == other || parent().is_some_and(|parent| parent.implements(types, other))
    }

    /// Objects of this type stand on the board.
    pub(crate) fn is_device(&self, types: &[ObjectType]) -> bool {
        self.implements(types, DEVICE)
    }
}

/// What QEMU calls the type of such a value.
pub(crate) fn parameter_type(parameter: &Parameter) -> &'static str {
    match parameter.of() {
        ParameterType::Boolean => "bool",
        ParameterType::Number | ParameterType::Size => "int",
        ParameterType::String => "string",
    }
}

/// Every type of which this program can have objects, and what these come of.
pub(crate) fn object_types() -> Vec<ObjectType> {
    let roots = [
        (OBJECT, ""),
        ("machine", OBJECT),
        (X86_MACHINE, "machine"),
        (DEVICE, OBJECT),
        (VIRTIO, DEVICE),
        ("cpu", DEVICE),
        ("x86_64-cpu", "cpu"),
        ("memory-backend", OBJECT),
        ("rng-backend", OBJECT),
        ("secret_common", OBJECT),
        ("chardev", OBJECT),
    ];
    let mut types: Vec<ObjectType> = roots
        .into_iter()
        .map(|(name, parent)| ObjectType {
            is_abstract: true,
            ..ObjectType::of(name, parent, Vec::new())
        })
        .collect();
    types.push(ObjectType::of(CONTAINER, OBJECT, Vec::new()));
    types.push(ObjectType::of(MACHINE, X86_MACHINE, args::machine_parameters()));
    types.push(ObjectType::of("none-machine", "machine", Vec::new()));
    for name in [CPU, "max-x86_64-cpu"] {
        types.push(ObjectType::of(name, "x86_64-cpu", Vec::new()));
    }
    for part in PARTS {
        let name = part.type_name();
        let properties = match &part.device {
            Some(device) if (device.refuses)(&[]).is_some() => continue,
            Some(device) => (device.properties)(),
            None => Vec::new(),
        };
        let is_virtio = part.device.as_ref().is_some_and(|device| device.bus == TRANSPORT);
        if !name.is_empty() {
            types.push(ObjectType::of(name, if is_virtio { VIRTIO } else { DEVICE }, properties));
        }
    }
    for name in MemoryBackend::TYPES {
        types.push(ObjectType::of(name, "memory-backend", args::memory_backend_parameters()));
    }
    for name in EntropySource::TYPES {
        types.push(ObjectType::of(name, "rng-backend", args::entropy_parameters()));
    }
    let io_thread = crate::config::IoThreadOptions::TYPE;
    let keys = args::object_keys(io_thread).unwrap_or_default();
    types.push(ObjectType::of(io_thread, OBJECT, keys));
    let secret = args::SecretOptions::TYPE;
    let keys = args::object_keys(secret).unwrap_or_default();
    types.push(ObjectType::of(secret, "secret_common", keys));
    for name in ChardevBackend::TYPES {
        types.push(ObjectType::of(name, "chardev", Vec::new()));
    }
    types
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn types_come_of_types() {
        let types = object_types();
        let names: HashSet<_> = types.iter().map(|of| of.name).collect();
        assert_eq!(names.len(), types.len());
        for of in &types {
            assert!(of.name == OBJECT || names.contains(of.parent), "{of:?}");
            assert!(of.implements(&types, OBJECT), "{of:?}");
        }
        let device = |name: &str| types.iter().find(|of| of.name == name).unwrap();
        assert!(device("isa-debug-exit").is_device(&types) && device(CPU).is_device(&types));
        assert!(!device("memory-backend-file").is_device(&types));
    }

    #[test]
    fn paths_lead_from_the_root_or_from_where_there_is_but_one() {
        let mut root = Object::root();
        let mut machine = Object::of(MACHINE);
        machine.add("peripheral", Object::of(CONTAINER));
        root.add("machine", machine);
        let path = |path: &str| root.find(path).map(|(path, _)| path);
        assert_eq!(path("/").as_deref(), Some("/"));
        assert_eq!(path("//machine/").as_deref(), Some("/machine"));
        assert_eq!(path("peripheral").as_deref(), Some("/machine/peripheral"));
        assert_eq!(path("machine/peripheral").as_deref(), Some("/machine/peripheral"));
        assert_eq!(path("/peripheral"), None);
        assert_eq!(path(""), None);
    }
}
