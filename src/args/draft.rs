//! A command line half read, and how a [`Config`] comes out of it.

use super::block::Blocks;
use super::chardev::{self, Short};
use super::error::{Error, Errors, Problem};
use super::keys::{Key, Keys};
use super::machine::{MachineDraft, into};
use super::memory::MemoryDraft;
use super::process::{RunWith, SandboxDraft};
use super::smp::Smp;
use super::{netdev, value};
use crate::config::{
    Actions, Boot, Chardev, ChardevBackend, Config, Entropy, FirmwareFile, Identity, Incoming,
    IoThread, Kernel, Language, Monitor, Netdev, PanicAction, Process, RebootAction, Restore,
    SetDescriptor, ShutdownAction, SystemInformation,
};
use crate::devices::Kind;
use crate::machine::PARTS;
use crate::suggest::nearest;
use std::collections::BTreeMap;
use std::path::PathBuf;

#[derive(Default)]
pub(crate) struct Draft {
    pub machine: MachineDraft,
    pub smp: Smp,
    pub memory: MemoryDraft,
    /// Ids of every `-object`.
    pub objects: Vec<String>,
    pub entropy: Vec<Entropy>,
    pub io_threads: Vec<IoThread>,
    pub blocks: Blocks,
    pub netdevs: Vec<Netdev>,
    pub kernel: Option<PathBuf>,
    pub initrd: Option<PathBuf>,
    pub append: Option<String>,
    pub incoming: Option<Incoming>,
    pub restore: Option<Restore>,
    pub start_paused: bool,
    pub serials: Vec<(String, Short)>,
    pub chardevs: Vec<Chardev>,
    pub monitors: Vec<MonitorDraft>,
    /// Somebody said which monitors there are, or that there is none.
    pub monitors_given: bool,
    pub escape: Option<u8>,
    pub nographic: bool,
    pub actions: Actions,
    pub identity: Identity,
    /// Of the processor.
    pub features: BTreeMap<&'static str, bool>,
    pub migratable: Option<bool>,
    pub firmware_files: Vec<FirmwareFile>,
    pub smbios: Option<SystemInformation>,
    pub run_with: RunWith,
    pub sandbox: SandboxDraft,
    pub descriptors: Vec<SetDescriptor>,
    pub process_name: Option<String>,
    pub pidfile: Option<PathBuf>,
    pub daemonize: bool,
    pub nodefaults: bool,
    pub help: bool,
    pub version: bool,
}

pub(crate) struct MonitorDraft {
    /// The option as typed, for messages.
    place: String,
    chardev: Short,
    language: Language,
    /// Its device gets a number where it has no name.
    numbered: bool,
}

#[derive(Default)]
pub(crate) struct Mon {
    chardev: Option<String>,
    control: bool,
    pretty: bool,
}

pub(crate) const MON: Keys<Mon> = Keys {
    owner: "a monitor",
    implied: Some("chardev"),
    table: &[
        Key::set("chardev", "ID", |m, v| {
            m.chardev = Some(value::id(v)?);
            Ok(())
        }),
        Key::set("mode", "readline|control", |m, v| {
            m.control = match v {
                "control" => true,
                "readline" => false,
                _ => return Err(value::unknown(v, &["readline", "control"])),
            };
            Ok(())
        }),
        Key::set("pretty", "on|off", |m, v| into(v, &mut m.pretty)),
        // Nothing shows it, in QEMU either.
        Key::set("id", "ID", |_, v| value::id(v).map(drop)),
        Key::ignore("default"),
    ],
};

pub(crate) const NAME: Keys<Draft> = Keys {
    owner: "-name",
    implied: Some("guest"),
    table: &[
        Key::set("guest", "NAME", |d, v| {
            d.identity.name = Some(v.into());
            Ok(())
        }),
        Key::ignore("debug-threads"),
        Key::set("process", "NAME", |d, v| {
            d.process_name = Some(v.into());
            Ok(())
        }),
    ],
};

pub(crate) const ACTION: Keys<Actions> = Keys {
    owner: "-action",
    implied: None,
    table: &[
        Key::set("reboot", "reset|shutdown", |a, v| {
            a.reboot = match v {
                "reset" => RebootAction::Reset,
                "shutdown" => RebootAction::Shutdown,
                _ => return Err(value::unknown(v, &["reset", "shutdown"])),
            };
            Ok(())
        }),
        Key::set("shutdown", "poweroff|pause", |a, v| {
            a.shutdown = match v {
                "poweroff" => ShutdownAction::Poweroff,
                "pause" => ShutdownAction::Pause,
                _ => return Err(value::unknown(v, &["poweroff", "pause"])),
            };
            Ok(())
        }),
        Key::set("panic", "pause|shutdown|exit-failure|none", |a, v| {
            a.panic = match v {
                "pause" => PanicAction::Pause,
                "shutdown" => PanicAction::Shutdown,
                "exit-failure" => PanicAction::ExitFailure,
                "none" => PanicAction::None,
                _ => return Err(value::unknown(v, &["pause", "shutdown", "exit-failure", "none"])),
            };
            Ok(())
        }),
        Key::ignore("watchdog"),
    ],
};

/// Takes the way in which RAM is restored out of an address `file:` or `fd:`.
fn restore(text: &str) -> Result<(String, Option<Restore>), Problem> {
    const KEY: &str = ",x-godwit-restore=";
    let is_file = text.starts_with("file:") || text.starts_with("fd:");
    let Some((uri, rest)) = text.split_once(KEY).filter(|_| is_file) else {
        return Ok((text.to_owned(), None));
    };
    let (value, behind) = rest.find(',').map_or((rest, ""), |at| rest.split_at(at));
    if behind.contains(KEY) {
        return Err(Problem::Refused("x-godwit-restore is given twice"));
    }
    let restore = match value {
        "eager" => Restore::Eager,
        "mapped" => Restore::Mapped,
        "lazy" => {
            return Err(Problem::Refused(
                "x-godwit-restore=lazy (pages read as the guest asks for them) is not built; write mapped or eager",
            ));
        }
        _ => return Err(value::unknown(value, &["eager", "mapped"])),
    };
    Ok((format!("{uri}{behind}"), Some(restore)))
}

/// Of one device.
pub(crate) const TOO_MANY: &str = "four users share the device already";

const SCHEMES: [&str; 5] = ["tcp:", "unix:", "fd:", "exec:", "file:"];

impl Draft {
    pub(crate) fn name(&mut self, option: &str, text: &str) -> Result<(), Error> {
        NAME.read(option, text, self)
    }

    pub(crate) fn uuid(&mut self, option: &str, text: &str) -> Result<(), Error> {
        self.identity.uuid =
            value::uuid(text).map_err(|problem| problem.at(format!("{option} {text}")))?;
        Ok(())
    }

    pub(crate) fn action(&mut self, option: &str, text: &str) -> Result<(), Error> {
        ACTION.read(option, text, &mut self.actions)
    }

    pub(crate) fn incoming(&mut self, option: &str, text: &str) -> Result<(), Error> {
        let refuse = |reason| Err(Problem::Refused(reason).at(format!("{option} {text}")));
        let (uri, restore) =
            restore(text).map_err(|problem| problem.at(format!("{option} {text}")))?;
        self.restore = restore;
        let text = uri.as_str();
        self.incoming = Some(match text {
            "defer" => Incoming::Defer,
            _ if SCHEMES
                .iter()
                .any(|scheme| text.strip_prefix(scheme).is_some_and(|rest| !rest.is_empty())) =>
            {
                Incoming::Uri(text.into())
            }
            _ if text.starts_with("rdma:") => {
                return refuse("RDMA is not built; write tcp:HOST:PORT");
            }
            _ if text.starts_with("vsock:") => {
                return refuse("vsock is not built yet; write tcp: or unix:");
            }
            // A channel as JSON.
            _ if text.starts_with('{') => Incoming::Uri(text.into()),
            _ => {
                let mut forms = SCHEMES.to_vec();
                forms.push("defer");
                let given =
                    text.split_once(':').map_or(text.into(), |(scheme, _)| format!("{scheme}:"));
                return Err(value::unknown(&given, &forms).at(format!("{option} {text}")));
            }
        });
        Ok(())
    }

    pub(crate) fn serial(&mut self, option: &str, text: &str) -> Result<(), Error> {
        let short = chardev::short(option, text)?;
        self.serials.push((format!("{option} {text}"), short));
        Ok(())
    }

    pub(crate) fn chardev(&mut self, option: &str, text: &str) -> Result<(), Error> {
        let device = chardev::chardev(option, text)?;
        if self.chardevs.iter().any(|other| other.id == device.id) {
            let place = format!("{option} id={}", device.id);
            return Err(Problem::DuplicateId("a character device").at(place));
        }
        self.chardevs.push(device);
        Ok(())
    }

    pub(crate) fn netdev(&mut self, option: &str, text: &str) -> Result<(), Error> {
        let netdev = netdev::read(option, text)?;
        if self.netdevs.iter().any(|other| other.id == netdev.id) {
            let place = format!("{option} id={}", netdev.id);
            return Err(Problem::DuplicateId("a network back-end").at(place));
        }
        self.netdevs.push(netdev);
        Ok(())
    }

    pub(crate) fn qmp(&mut self, option: &str, text: &str, pretty: bool) -> Result<(), Error> {
        self.new_monitor(option, text, Language::Qmp { pretty })
    }

    pub(crate) fn monitor(&mut self, option: &str, text: &str) -> Result<(), Error> {
        self.new_monitor(option, text, Language::Human)
    }

    fn new_monitor(&mut self, option: &str, text: &str, language: Language) -> Result<(), Error> {
        let chardev = chardev::short(option, text)?;
        self.monitors_given = true;
        if chardev != Short::None {
            let place = format!("{option} {text}");
            self.monitors.push(MonitorDraft { place, chardev, language, numbered: true });
        }
        Ok(())
    }

    pub(crate) fn escape(&mut self, option: &str, text: &str) -> Result<(), Error> {
        let byte = value::number(text, 0, 255);
        self.escape = Some(byte.map_err(|problem| problem.at(format!("{option} {text}")))? as u8);
        Ok(())
    }

    pub(crate) fn mon(&mut self, option: &str, text: &str) -> Result<(), Error> {
        let mut mon = Mon::default();
        MON.read(option, text, &mut mon)?;
        let language = match mon.control {
            true => Language::Qmp { pretty: mon.pretty },
            false if mon.pretty => {
                let place = format!("{option} {text}");
                return Err(Problem::NeedsOther("pretty=", "mode=control").at(place));
            }
            false => Language::Human,
        };
        self.monitors_given = true;
        let id = mon.chardev.ok_or_else(|| Problem::MissingKey("chardev=").at(option))?;
        let place = format!("{option} chardev={id}");
        let chardev = Short::Named(id);
        self.monitors.push(MonitorDraft { place, chardev, language, numbered: false });
        Ok(())
    }

    /// What was said of the process.
    fn process(&mut self) -> Process {
        Process {
            name: self.process_name.take(),
            root: self.run_with.root.take().map(Into::into),
            user: self.run_with.user.take(),
            sandbox: self.sandbox.finish(),
            descriptors: std::mem::take(&mut self.descriptors),
        }
    }

    /// Whether the machine ends with its parent. That of a daemon is the command that was typed,
    /// which returns at once.
    fn exit_with_parent(&self) -> Result<bool, Error> {
        match (self.run_with.exit_with_parent, self.daemonize) {
            (true, true) => {
                Err(Problem::Conflict("-run-with exit-with-parent=on", "-daemonize").at(""))
            }
            (with_parent, _) => Ok(with_parent),
        }
    }

    /// The machine that was asked for, or everything that keeps it from being one.
    pub(crate) fn finish(mut self) -> Result<Config, Errors> {
        let mut errors = Vec::new();
        let mut keep = |error: Error| errors.push(error);
        let machine = self.machine.options().map_err(&mut keep).ok();
        let cpu = self.smp.cpu().map_err(&mut keep).ok();
        let memory = self.memory.memory(&self.machine).map_err(&mut keep).ok();
        let boot = self.boot().map_err(&mut keep).ok();
        let images = self.blocks.images().map_err(&mut keep).ok();
        let wiring = self.wire().map_err(&mut keep).ok();
        let process = self.process();
        let exit_with_parent = self.exit_with_parent().map_err(&mut keep).ok();
        match (machine, cpu, memory, boot, images, wiring, exit_with_parent) {
            (
                Some(machine),
                Some((mut cpu, cpu_notice)),
                Some((memory, memory_notice)),
                Some(boot),
                Some(images),
                Some((serial, monitors)),
                Some(exit_with_parent),
            ) => {
                cpu.features = self.features;
                cpu.migratable = self.migratable.unwrap_or(true);
                let isa_serial = machine.switches.get("isa-serial", true);
                let mut config = Config {
                    machine,
                    devices: self.machine.devices,
                    entropy: self.entropy,
                    io_threads: self.io_threads,
                    images,
                    lines: Vec::new(),
                    netdevs: self.netdevs,
                    kvm: self.machine.kvm,
                    cpu,
                    memory,
                    boot,
                    chardevs: self.chardevs,
                    back_ends: Vec::new(),
                    serial: serial.filter(|_| isa_serial),
                    monitors,
                    escape: self.escape.unwrap_or(1),
                    incoming: self.incoming,
                    restore: self.restore,
                    restored_since: None,
                    start_paused: self.start_paused,
                    actions: self.actions,
                    identity: self.identity,
                    exit_with_parent,
                    process,
                    firmware_files: self.firmware_files,
                    smbios: self.smbios,
                    pidfile: self.pidfile,
                    daemonize: self.daemonize,
                    notices: cpu_notice.into_iter().chain(memory_notice).collect(),
                };
                let complete = |part: &&Kind| (part.complete)(&mut config).err();
                match PARTS.iter().filter_map(complete).collect::<Vec<_>>() {
                    errors if errors.is_empty() => Ok(config),
                    errors => Err(Errors(errors)),
                }
            }
            _ => Err(Errors(errors)),
        }
    }

    fn boot(&mut self) -> Result<Option<Boot>, Error> {
        if self.machine.options.none {
            let given = [
                ("-kernel", self.kernel.is_some()),
                ("-initrd", self.initrd.is_some()),
                ("-append", self.append.is_some()),
                ("-incoming", self.incoming.is_some()),
            ];
            return match given.into_iter().find(|(_, given)| *given) {
                Some((option, _)) => Err(Problem::Conflict(option, "-M none").at("")),
                None => Ok(None),
            };
        }
        let Some(kernel) = self.kernel.take() else {
            return match (&self.initrd, &self.append, &self.incoming) {
                (Some(_), _, _) => Err(Problem::NeedsOther("it", "-kernel").at("-initrd")),
                (_, Some(_), _) => Err(Problem::NeedsOther("it", "-kernel").at("-append")),
                (None, None, Some(_)) => Ok(None),
                (None, None, None) => {
                    let reason =
                        "nothing to start; write -kernel FILE, -kernel builtin or -incoming URI";
                    Err(Problem::Refused(reason).at(""))
                }
            };
        };
        let cmdline = self.append.take().unwrap_or_default();
        let kernel = match kernel.to_str() {
            Some("builtin") if self.initrd.is_some() => {
                return Err(Problem::Conflict("-initrd", "-kernel builtin").at(""));
            }
            Some("builtin") => {
                cmdline
                    .parse::<crate::builtin::Parameters>()
                    .map_err(|error| Problem::from(error).at(format!("-append {cmdline}")))?;
                Kernel::Builtin
            }
            _ => Kernel::File(kernel),
        };
        Ok(Some(Boot { kernel, initrd: self.initrd.take(), cmdline }))
    }

    /// Gives each user of a character device its own.
    fn wire(&mut self) -> Result<(Option<String>, Vec<Monitor>), Error> {
        let mut used: Vec<(String, String)> = Vec::new();
        let (serial, shared) = self.wire_serial(&mut used)?;
        let mut monitors = Vec::new();
        if let Some(chardev) = shared {
            used.push((chardev.clone(), "the monitor".into()));
            monitors.push(Monitor { chardev, language: Language::Human });
        }
        let mut number = 0;
        for monitor in std::mem::take(&mut self.monitors) {
            let label = format!("compat_monitor{number}");
            number += u32::from(monitor.numbered);
            let chardev = self.wire_one(&monitor.place, monitor.chardev, label, &mut used)?;
            let device = self.chardevs.iter().find(|device| device.id == chardev);
            let reason = match (device, monitor.language) {
                (Some(Chardev { mux: true, .. }), Language::Qmp { .. }) => {
                    Some("programs do not share a device; give QMP its own")
                }
                (Some(Chardev { mux: false, log: Some(_), .. }), _) => {
                    Some("what monitors say is not logged; leave logfile= out")
                }
                _ => None,
            };
            if let Some(reason) = reason {
                return Err(Problem::Refused(reason).at(monitor.place));
            }
            monitors.push(Monitor { chardev, language: monitor.language });
        }
        let is_there = |id: &str| self.chardevs.iter().any(|other| other.id == id);
        let mut bases = self.chardevs.iter().filter(|device| device.mux).map(Chardev::base);
        if let Some(Chardev { id, .. }) = bases.find(|base| is_there(&base.id)) {
            let place = format!("-chardev id={id}");
            return Err(Problem::DuplicateId("a character device").at(place));
        }
        let stdio = |chardev: &&Chardev| matches!(chardev.backend, ChardevBackend::Stdio { .. });
        let mut on_stdio = self.chardevs.iter().filter(stdio);
        if let (true, Some(first)) = (self.daemonize, on_stdio.clone().next()) {
            let problem = Problem::Conflict("standard input and output", "-daemonize");
            return Err(problem.at(format!("chardev {}", first.id)));
        }
        match on_stdio.nth(1) {
            Some(second) => {
                let problem = Problem::Refused(
                    "standard input and output are already taken by another device",
                );
                Err(problem.at(format!("chardev {}", second.id)))
            }
            None => Ok((serial, monitors)),
        }
    }

    /// The machine has one serial port; further `-serial none` and `-serial null` are harmless.
    /// What comes second is the device that a monitor shares with it.
    fn wire_serial(
        &mut self,
        used: &mut Vec<(String, String)>,
    ) -> Result<(Option<String>, Option<String>), Error> {
        let mut serials = std::mem::take(&mut self.serials).into_iter();
        let on_terminal = self.nographic && !self.nodefaults && !self.monitors_given;
        let stdio = |signal| ChardevBackend::Stdio { signal };
        let first = match serials.next() {
            None if self.nodefaults => return Ok((None, None)),
            None if on_terminal => ("-nographic".into(), Short::Shared(stdio(false), None)),
            None if self.daemonize => ("-serial".into(), Short::New(ChardevBackend::Null, None)),
            None => ("-serial".into(), Short::New(stdio(true), None)),
            Some(given) => {
                self.default_monitor(&given.1, on_terminal);
                given
            }
        };
        for (place, short) in serials {
            if !matches!(short, Short::None | Short::New(ChardevBackend::Null, _)) {
                return Err(Problem::Refused("the machine has one serial port").at(place));
            }
        }
        match first {
            (_, Short::None) => Ok((None, None)),
            (place, short) => {
                let shares = matches!(short, Short::Shared(..));
                let id = self.wire_one(&place, short, "serial0".into(), used)?;
                Ok((Some(id.clone()), shares.then_some(id)))
            }
        }
    }

    /// With `-nographic` and a serial port elsewhere the terminal is a monitor's, unless another
    /// device has it.
    fn default_monitor(&mut self, serial: &Short, on_terminal: bool) {
        let is_stdio = |backend: &ChardevBackend| matches!(backend, ChardevBackend::Stdio { .. });
        let taken = match serial {
            Short::New(backend, _) | Short::Shared(backend, _) if is_stdio(backend) => true,
            Short::Shared(..) => true,
            _ => self.chardevs.iter().any(|device| is_stdio(&device.backend)),
        };
        if on_terminal && !taken {
            let chardev = Short::New(ChardevBackend::Stdio { signal: true }, None);
            let (place, language) = ("-nographic".into(), Language::Human);
            self.monitors.push(MonitorDraft { place, chardev, language, numbered: true });
        }
    }

    fn wire_one(
        &mut self,
        place: &str,
        short: Short,
        label: String,
        used: &mut Vec<(String, String)>,
    ) -> Result<String, Error> {
        let mux = matches!(short, Short::Shared(..));
        let id = match short {
            Short::New(backend, log) | Short::Shared(backend, log) => {
                if self.chardevs.iter().any(|other| other.id == label) {
                    return Err(
                        Problem::DuplicateId("a character device").at(format!("{place} ({label})"))
                    );
                }
                self.chardevs.push(Chardev { id: label.clone(), backend, mux, log });
                label
            }
            Short::Named(id) => {
                if !self.chardevs.iter().any(|other| other.id == id) {
                    let ids = self.chardevs.iter().map(|other| other.id.as_str());
                    let nearest = nearest(&id, ids).map(String::from);
                    return Err(Problem::UnknownId { kind: "character device", nearest }.at(place));
                }
                id
            }
            Short::None => return Err(Problem::Malformed("a character device").at(place)),
        };
        let is_shared = self.chardevs.iter().any(|device| device.id == id && device.mux);
        let users = used.iter().filter(|(other, _)| *other == id).count();
        if is_shared && users >= Chardev::USERS_MAX {
            return Err(Problem::Refused(TOO_MANY).at(place));
        }
        if let Some((_, by)) = used.iter().find(|(other, _)| *other == id && !is_shared) {
            return Err(Problem::InUse { by: by.clone() }.at(place));
        }
        used.push((id.clone(), place.into()));
        Ok(id)
    }
}
