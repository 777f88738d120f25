//! `-M`, `-accel`, `-cpu`, `-smp`: what the machine is made of.

use super::error::{Error, Problem};
use super::keys::{Key, Keys, Parameter, split};
use super::value;
use crate::config::{Config, Device, Kvm, MachineOptions, Switches};
use crate::devices::Kind;
use crate::machine::PARTS;
use crate::suggest::nearest;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// What `-M` and `-accel` said so far; later ones win, as in QEMU.
#[derive(Default)]
pub(crate) struct MachineDraft {
    pub named: bool,
    pub options: MachineOptions,
    pub devices: Vec<Device>,
    pub kvm: Kvm,
    pub memory_backend: Option<String>,
    /// The one NUMA node, as `-numa` names its memory.
    pub node: bool,
    pub merge: Option<bool>,
    pub dump: Option<bool>,
}

const ONE_NODE: &str = "guests see one NUMA node; write one -numa node,memdev=ID";

/// What `-numa` said.
#[derive(Default)]
pub(crate) struct Numa {
    memory: Option<String>,
}

pub(crate) const NUMA: Keys<Numa> = Keys {
    owner: "-numa",
    implied: Some("type"),
    table: &[
        Key::only("type", &["node"], ONE_NODE),
        Key::set("memdev", "ID", |n, v| {
            n.memory = Some(value::id(v)?);
            Ok(())
        }),
        Key::only("nodeid", &["0"], ONE_NODE),
        // Processors that no node names are in the first one, too.
        Key::ignore("cpus"),
        Key::refuse("mem", "QEMU no longer has it for new machines; write memdev=ID"),
        Key::refuse("initiator", ONE_NODE),
    ],
};

/// One `-numa`: RAM of one node is RAM of the machine.
pub(crate) fn numa(option: &str, text: &str, machine: &mut MachineDraft) -> Result<(), Error> {
    let mut node = Numa::default();
    NUMA.read(option, text, &mut node)?;
    let id = node.memory.ok_or_else(|| Problem::MissingKey("memdev=").at(option))?;
    let place = format!("{option} {text}");
    if machine.node {
        return Err(Problem::Refused(ONE_NODE).at(place));
    }
    if machine.memory_backend.is_some() {
        return Err(Problem::Conflict("-M memory-backend=", "-numa memdev=").at(place));
    }
    (machine.node, machine.memory_backend) = (true, Some(id));
    Ok(())
}

const NO_DEVICE_TREE: &str = "device trees are not built: x86 kernels need none";
const USERSPACE_IRQCHIP: &str =
    "interrupt controllers are KVM's own here; only kernel-irqchip=on can be had";

const MACHINE: Keys<MachineDraft> = Keys {
    owner: "machine microvm",
    implied: Some("type"),
    table: &[
        Key::set("type", "microvm|none", |m, v| {
            m.named = true;
            m.options.none = match v {
                "microvm" => false,
                "none" => true,
                _ => return Err(Problem::Refused("Godwit has one machine: microvm")),
            };
            Ok(())
        }),
        Key::shown(
            "memory-backend",
            "ID",
            |m, v| {
                if m.node {
                    return Err(Problem::Refused(
                        "-numa memdev= says where RAM comes from already",
                    ));
                }
                m.memory_backend = Some(v.into());
                Ok(())
            },
            |m| m.memory_backend.as_ref().map_or("".into(), |id| format!("/objects/{id}").into()),
        ),
        Key::set("accel", "kvm", |_, v| accelerator(v)),
        Key::shown(
            "suppress-vmdesc",
            "on|off",
            |m, v| into(v, &mut m.options.suppress_vmdesc),
            |m| m.options.suppress_vmdesc.into(),
        ),
        Key::shown("mem-merge", "on|off", |m, v| into_some(v, &mut m.merge), |m| m.merge.into()),
        Key::shown(
            "dump-guest-core",
            "on|off",
            |m, v| into_some(v, &mut m.dump),
            |m| m.dump.into(),
        ),
        Key::only("kernel-irqchip", &["on"], USERSPACE_IRQCHIP),
        Key::only("x-option-roms", &["off", "on"], "expects on or off"),
        Key::only("aux-ram-share", &["off", "on"], "expects on or off"),
        Key::only("bus-lock-ratelimit", &["0"], "bus locks are not watched; write 0"),
        Key::shown(
            "x-oem-id",
            "NAME",
            |m, v| {
                m.options.oem.id = at_most(v, 6, "at most 6 bytes")?;
                Ok(())
            },
            |m| m.options.oem.id.as_str().into(),
        ),
        Key::shown(
            "x-oem-table-id",
            "NAME",
            |m, v| {
                m.options.oem.table_id = at_most(v, 8, "at most 8 bytes")?;
                Ok(())
            },
            |m| m.options.oem.table_id.as_str().into(),
        ),
        Key::refuse("boot", "there is no firmware: -kernel starts the guest directly"),
        Key::refuse("memory", "write -m SIZE"),
        Key::refuse("dtb", NO_DEVICE_TREE),
        Key::refuse("dumpdtb", NO_DEVICE_TREE),
        Key::refuse("dt-compatible", NO_DEVICE_TREE),
        Key::refuse("phandle-start", NO_DEVICE_TREE),
        Key::refuse("shim", "there is no firmware: -kernel starts the guest directly"),
        Key::refuse("sgx-epc", "SGX memory is not built"),
        Key::refuse("smp-cache", "caches are those of the host's processor"),
        Key::only("graphics", &["off"], "there is no display; write graphics=off"),
        Key::only("pcie", &["off", "auto"], "PCI Express is not built; write pcie=off"),
        Key::only("usb", &["off"], "USB is not built; write usb=off"),
        Key::only("hmat", &["off"], "memory attribute tables are not built; write hmat=off"),
        Key::only("smm", &["off", "auto"], "microvm has no system management mode; write smm=off"),
        Key::refuse("firmware", "there is no firmware: -kernel starts the guest directly"),
        Key::refuse("kernel", "write -kernel FILE"),
        Key::refuse("initrd", "write -initrd FILE"),
        Key::refuse("append", "write -append TEXT"),
        Key::refuse("memory-encryption", "encrypted guests are not built yet"),
        Key::refuse("confidential-guest-support", "encrypted guests are not built yet"),
        Key::refuse("smp", "write -smp N"),
    ],
};

pub(crate) const KVM: Keys<MachineDraft> = Keys {
    owner: "accelerator kvm",
    implied: Some("accel"),
    table: &[
        Key::set("accel", "kvm", |_, v| accelerator(v)),
        Key::set("dirty-ring-size", "N", |m, v| {
            m.kvm.dirty_ring_entries = match v {
                "0" => None,
                _ => Some(value::power_of_two(v, RING_ENTRIES_MIN, RING_ENTRIES_MAX)? as u32),
            };
            Ok(())
        }),
        Key::set("device", "/dev/kvm", |m, v| {
            m.kvm.device = PathBuf::from(v);
            Ok(())
        }),
        Key::only("kernel-irqchip", &["on"], USERSPACE_IRQCHIP),
        Key::only("eager-split-size", &["0"], "KVM's eager page splitting exists on ARM only"),
        Key::only("notify-vmexit", &["disable"], "not built; write notify-vmexit=disable"),
        Key::refuse("thread", "belongs to accelerator tcg, and Godwit runs on KVM only"),
        Key::refuse("tb-size", "belongs to accelerator tcg, and Godwit runs on KVM only"),
    ],
};

/// KVM keeps 64 entries free, and with Intel's page modification log 512 more; 65536 entries of 16
/// bytes for each vCPU is the kernel's limit.
const RING_ENTRIES_MIN: u64 = 1024;
const RING_ENTRIES_MAX: u64 = 65536;

/// The first of a list such as `kvm:tcg` counts.
fn accelerator(list: &str) -> Result<(), Problem> {
    match list.split(':').next() {
        Some("kvm") => Ok(()),
        _ => Err(Problem::Refused("Godwit runs on KVM only; write -accel kvm")),
    }
}

/// What can be written behind `-M`: the machine's own properties and those of its parts.
pub(crate) fn parameters() -> Vec<Parameter> {
    let parts = PARTS.iter().flat_map(|part| keys_of(part).parameters());
    MACHINE.parameters().into_iter().chain(parts).collect()
}

/// What `-M` can set, and to what it is set.
pub(crate) fn values(config: &Config) -> Vec<(&'static str, serde_json::Value)> {
    let draft = MachineDraft {
        options: config.machine.clone(),
        memory_backend: Some(config.memory.block.clone()),
        merge: Some(config.memory.merge),
        dump: Some(config.memory.dump),
        ..MachineDraft::default()
    };
    let parts = PARTS.iter().flat_map(|part| keys_of(part).values(&config.machine.switches));
    MACHINE.values(&draft).into_iter().chain(parts).collect()
}

/// Reads what was written behind `-M`.
pub(crate) fn read(option: &str, text: &str, draft: &mut MachineDraft) -> Result<(), Error> {
    for (key, value) in split(text, MACHINE.implied) {
        let bare = key.strip_prefix("no").filter(|_| value.is_none());
        let names = |known: &Key<Switches>| known.name == key || Some(known.name) == bare;
        match PARTS.iter().find(|part| part.machine.iter().any(names)) {
            Some(part) => {
                let switches = &mut draft.options.switches;
                keys_of(part).set(option, &key, value.as_deref(), switches)?;
            }
            None => MACHINE.set(option, &key, value.as_deref(), draft).map_err(or_a_parts)?,
        }
    }
    Ok(())
}

/// A property that there is not may be nearest to one of a part.
fn or_a_parts(mut error: Error) -> Error {
    if let Problem::UnknownKey { nearest: found, .. } = &mut error.problem {
        let parts = PARTS.iter().flat_map(|part| part.machine).map(|known| known.name);
        let names = MACHINE.table.iter().map(|known| known.name).chain(parts);
        let typed = error.at.rsplit_once(' ').map_or("", |(_, typed)| typed);
        *found = nearest(typed.split('=').next().unwrap_or(typed), names).map(String::from);
    }
    error
}

/// What can be written behind `-global`.
pub(crate) fn globals() -> Vec<String> {
    PARTS.iter().flat_map(|part| globals_of(part).rows()).collect()
}

/// Reads `-global DRIVER.PROPERTY=VALUE`, or `-global driver=DRIVER,property=PROPERTY,value=VALUE`.
pub(crate) fn global(option: &str, text: &str, draft: &mut MachineDraft) -> Result<(), Error> {
    let pairs = split(text, None);
    let named = |name: &str| {
        let (_, value) = pairs.iter().find(|(key, _)| key == name)?;
        value.clone()
    };
    let (key, value) = match (named("driver"), named("property"), named("value")) {
        (Some(driver), Some(property), Some(value)) => (format!("{driver}.{property}"), value),
        _ => match text.split_once('=') {
            Some((key, value)) => (key.to_owned(), value.to_owned()),
            None => return Err(Problem::MissingKey("=VALUE").at(format!("{option} {text}"))),
        },
    };
    let part = PARTS.iter().find(|part| part.globals.iter().any(|known| known.name == key));
    match part {
        Some(part) => {
            let switches = &mut draft.options.switches;
            globals_of(part).set(option, &key, Some(&value), switches)
        }
        None => {
            let known = PARTS.iter().flat_map(|part| part.globals).map(|known| known.name);
            let nearest = nearest(&key, known).map(String::from);
            let problem = Problem::UnknownKey { owner: GLOBAL, nearest };
            Err(problem.at(format!("{option} {key}={value}")))
        }
    }
}

const GLOBAL: &str = "-global";

fn globals_of(part: &Kind) -> Keys<Switches> {
    Keys { owner: GLOBAL, implied: None, table: part.globals }
}

fn keys_of(part: &Kind) -> Keys<Switches> {
    Keys { owner: MACHINE.owner, implied: None, table: part.machine }
}

pub(crate) fn into(text: &str, place: &mut bool) -> Result<(), Problem> {
    *place = value::switch(text)?;
    Ok(())
}

fn at_most(text: &str, bytes: usize, what: &'static str) -> Result<String, Problem> {
    if text.len() <= bytes { Ok(text.into()) } else { Err(Problem::Malformed(what)) }
}

fn into_some(text: &str, place: &mut Option<bool>) -> Result<(), Problem> {
    *place = Some(value::switch(text)?);
    Ok(())
}

impl MachineDraft {
    /// What the machine is, if what was asked for can be had.
    pub(crate) fn options(&self) -> Result<MachineOptions, Error> {
        match self.named {
            true => Ok(self.options.clone()),
            false => {
                Err(Problem::Refused("no machine is named; write -M microvm").at(String::new()))
            }
        }
    }
}

/// For `-M help`, in the form that clients of QEMU read.
pub(crate) fn machines() -> Vec<String> {
    let row = |name: &str, what: &str| format!("{name:<20} {what}");
    vec![
        "Supported machines are:".into(),
        row("microvm", "microvm (i386)"),
        row("none", "empty machine, for questions over QMP"),
        "-M microvm,help lists its properties".into(),
    ]
}

/// For `-accel help`.
pub(crate) fn accelerators() -> Vec<String> {
    vec!["Accelerators supported in QEMU binary:".into(), "kvm".into()]
}

/// For `-cpu help`.
pub(crate) fn cpu_models() -> Vec<String> {
    let mut rows = vec!["Available CPUs:".to_owned()];
    rows.extend(
        MODELS.map(|model| format!("  {model:<20}  this host's processor, as KVM offers it")),
    );
    rows.push(String::new());
    rows.push("Recognized CPUID flags:".into());
    rows.push(format!("  {}", FEATURES.map(|(name, _)| name).join(" ")));
    rows
}

/// The models of processors; both are what KVM can offer on this host.
pub(crate) const MODELS: [&str; 2] = ["host", "max"];

/// Features that can be asked for, and why one cannot be had.
const FEATURES: [(&str, Option<&str>); 7] = [
    ("x2apic", None),
    ("topoext", None),
    ("invtsc", None),
    ("arch-capabilities", None),
    ("svm", Some(NESTED)),
    ("vmx", Some(NESTED)),
    ("sgx", Some("SGX memory is not built; write -sgx")),
];
const NESTED: &str = "the state of a guest's own virtual machines cannot be moved yet, so that it has none; leave it out";

/// `-cpu MODEL,+FEATURE,-FEATURE,FEATURE=on|off`. There is one model; `max` is another name for it.
pub(crate) fn cpu(
    option: &str,
    text: &str,
    features: &mut BTreeMap<&'static str, bool>,
    migratable: &mut Option<bool>,
) -> Result<(), Error> {
    let (model, rest) = text.split_once(',').unwrap_or((text, ""));
    if !MODELS.contains(&model) {
        let reason =
            "CPU models are not built yet: guests see the host's processor; write -cpu host";
        return Err(Problem::Refused(reason).at(format!("{option} {model}")));
    }
    features.clear();
    *migratable = None;
    for given in rest.split(',').filter(|given| !given.is_empty()) {
        let place = || format!("{option} {given}");
        let (name, on) = match (given.strip_prefix('+'), given.strip_prefix('-')) {
            (Some(name), _) => (name, Ok(true)),
            (_, Some(name)) => (name, Ok(false)),
            _ => given
                .split_once('=')
                .map_or((given, Ok(true)), |(name, v)| (name, value::switch(v))),
        };
        let on = on.map_err(|problem| problem.at(place()))?;
        if name == "migratable" {
            *migratable = Some(on);
            continue;
        }
        match FEATURES.iter().find(|(known, _)| *known == name) {
            // These the guest never has.
            Some((_, Some(_))) if !on => {}
            Some((_, Some(why))) => return Err(Problem::Refused(why).at(place())),
            Some((known, None)) => drop(features.insert(known, on)),
            None => {
                let reason =
                    "this CPU feature cannot be chosen by itself; -cpu help lists those that can";
                return Err(Problem::Refused(reason).at(place()));
            }
        }
    }
    Ok(())
}
