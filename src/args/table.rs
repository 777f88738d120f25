//! Every option of `godwit run`: what it takes, what help says about it, what it does.

use super::draft::{self, Draft};
use super::error::Error;
use super::keys::{self, Parameter};
use super::{block, chardev, device, firmware, machine, memory, netdev, object, process, smp};

pub(crate) struct Opt {
    /// The first name is the one that help shows.
    pub names: &'static [&'static str],
    /// What the value is called in help; `None` takes no value.
    pub value: Option<&'static str>,
    pub section: Section,
    pub help: &'static str,
    pub does: Does,
    /// What can be written as the value, for `-OPTION help`.
    pub keys: Option<Listed>,
    /// What `-OPTION help` shows instead of the keys, which are behind `-OPTION NAME,help` then.
    pub names_help: Option<fn() -> Vec<String>>,
}

#[derive(Clone, Copy)]
pub(crate) enum Listed {
    Words(fn() -> Vec<String>),
    /// Keys and their values. The name is that of QEMU's group of options.
    Keys(&'static str, fn() -> Vec<Parameter>),
}

impl Listed {
    /// A line for each.
    pub(crate) fn rows(self) -> Vec<String> {
        match self {
            Listed::Words(words) => words(),
            Listed::Keys(_, parameters) => keys::rows(&parameters()),
        }
    }
}

pub(crate) enum Does {
    /// The option as typed, and its value (empty for one that takes none).
    Set(fn(&mut Draft, &str, &str) -> Result<(), Error>),
    /// Accepted: it has no meaning here.
    Ignore,
    /// Accepted with these values, refused with any other for the reason in `help`.
    Only(&'static [&'static str]),
    /// Refused for the reason in `help`.
    Refuse,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Section {
    Machine,
    Boot,
    Consoles,
    Running,
    Accepted,
    NotBuilt,
}

impl Section {
    pub(crate) const ALL: [(Section, &'static str); 6] = [
        (Section::Machine, "Machine"),
        (Section::Boot, "Boot and migration"),
        (Section::Consoles, "Consoles and monitors"),
        (Section::Running, "Running"),
        (Section::Accepted, "Accepted, without meaning here"),
        (Section::NotBuilt, "Refused"),
    ];
}

const fn set(
    section: Section,
    names: &'static [&'static str],
    value: &'static str,
    help: &'static str,
    act: fn(&mut Draft, &str, &str) -> Result<(), Error>,
) -> Opt {
    Opt {
        names,
        value: Some(value),
        section,
        help,
        does: Does::Set(act),
        keys: None,
        names_help: None,
    }
}

const fn flag(
    section: Section,
    names: &'static [&'static str],
    help: &'static str,
    act: fn(&mut Draft, &str, &str) -> Result<(), Error>,
) -> Opt {
    Opt { names, value: None, section, help, does: Does::Set(act), keys: None, names_help: None }
}

const fn ignore(names: &'static [&'static str], value: Option<&'static str>) -> Opt {
    Opt {
        names,
        value,
        section: Section::Accepted,
        help: "",
        does: Does::Ignore,
        keys: None,
        names_help: None,
    }
}

/// Accepted with `values` alone.
const fn only(
    names: &'static [&'static str],
    values: &'static [&'static str],
    otherwise: &'static str,
) -> Opt {
    let value = Some(values[0]);
    Opt {
        names,
        value,
        section: Section::Accepted,
        help: otherwise,
        does: Does::Only(values),
        keys: None,
        names_help: None,
    }
}

const fn refuse(
    names: &'static [&'static str],
    value: Option<&'static str>,
    reason: &'static str,
) -> Opt {
    Opt {
        names,
        value,
        section: Section::NotBuilt,
        help: reason,
        does: Does::Refuse,
        keys: None,
        names_help: None,
    }
}

impl Opt {
    const fn words(mut self, words: fn() -> Vec<String>) -> Opt {
        self.keys = Some(Listed::Words(words));
        self
    }

    const fn listing(mut self, names: fn() -> Vec<String>) -> Opt {
        self.names_help = Some(names);
        self
    }

    const fn group(mut self, name: &'static str, parameters: fn() -> Vec<Parameter>) -> Opt {
        self.keys = Some(Listed::Keys(name, parameters));
        self
    }
}

const NO_IDE: &str = "the machine has no IDE; write -drive file=FILE,if=none,id=ID -device virtio-blk-device,drive=ID";
const NETWORK: &str =
    "short forms of networks are not built; write -netdev and -device virtio-net-device,netdev=";
const DISPLAY: &str = "there is no display; the guest's console is -serial";
const FIRMWARE: &str = "there is no firmware: -kernel starts the guest directly";
const NO_REMOVED: &str = "QEMU itself no longer has it";

#[rustfmt::skip]
pub(crate) const OPTIONS: &[Opt] = {
    use Section::*;
    &[
        set(Machine, &["M", "machine"], "microvm[,…]", "the machine; -M help lists its properties",
            |d, o, v| machine::read(o, v, &mut d.machine)).group("machine", machine::parameters).listing(machine::machines),
        set(Machine, &["accel"], "kvm[,dirty-ring-size=N]", "use KVM, logging dirty pages in bitmaps, or in rings of N entries",
            |d, o, v| machine::KVM.read(o, v, &mut d.machine)).group("accel", || machine::KVM.parameters()).listing(machine::accelerators),
        set(Machine, &["cpu"], "host[,+FEATURE,-FEATURE]", "the processor's model: always this host's (max means the same), but for a few features",
            |d, o, v| machine::cpu(o, v, &mut d.features, &mut d.migratable)).words(machine::cpu_models),
        set(Machine, &["smp"], "N[,sockets=N,cores=N,threads=N]", "number of processors, 1 to 254 (default 1), and how the guest sees them",
            |d, o, v| smp::SMP.read(o, v, &mut d.smp)).group("smp-opts", || smp::SMP.parameters()),
        set(Machine, &["m"], "SIZE", "guest RAM, in MiB unless K, M, G or T follows (default 128M)",
            |d, o, v| memory::MEMORY.read(o, v, &mut d.memory)).group("memory", || memory::MEMORY.parameters()),
        set(Machine, &["object"], "TYPE,id=ID,…", "memory-backend-{memfd,file,ram}: where RAM comes from; rng-{builtin,random}: entropy; -object help",
            object::add).group("object", object::parameters),
        set(Machine, &["numa"], "node,memdev=ID", "RAM is the memory backend ID, as with -M memory-backend=ID; there is one node",
            |d, o, v| machine::numa(o, v, &mut d.machine)).group("numa", || machine::NUMA.parameters()),
        set(Machine, &["mem-path"], "FILE", "RAM in this file or directory, private to this process",
            |d, _, v| { d.memory.path = Some(v.into()); Ok(()) }),
        flag(Machine, &["mem-prealloc"], "touch all RAM before the guest starts",
            |d, _, _| { d.memory.prealloc = true; Ok(()) }),
        set(Machine, &["device"], "DRIVER[,…]", "add a device; -device help lists them, -device DRIVER,help their properties",
            |d, o, v| device::add(o, v, &mut d.machine.devices)).words(device::drivers),
        set(Machine, &["drive"], "file=FILE,if=none,id=ID[,…]", "an image for a disk; -drive help lists its keys",
            |d, o, v| d.blocks.drive(o, v)).group("drive", block::drive_parameters),
        set(Machine, &["blockdev"], "driver=DRIVER,node-name=NAME,…", "the same by nodes, in key or JSON form: raw, file, host_device",
            |d, o, v| d.blocks.blockdev(o, v)).group("blockdev", block::node_parameters),
        set(Machine, &["netdev"], "TYPE,id=ID,…", "what a network card is connected to: tap, stream, dgram, socket, user; -netdev help lists keys",
            |d, o, v| d.netdev(o, v)).group("netdev", netdev::parameters),
        set(Machine, &["global"], "DRIVER.PROPERTY=VALUE", "set a property of all devices of a kind; -global help lists them",
            |d, o, v| machine::global(o, v, &mut d.machine)).words(machine::globals),
        set(Machine, &["name"], "NAME[,process=NAME]", "what QMP calls the machine, and ps its process",
            |d, o, v| d.name(o, v)).group("name", || draft::NAME.parameters()),
        set(Machine, &["fw_cfg"], "NAME,file=FILE|string=TEXT", "a file for the guest to read through fw_cfg",
            |d, o, v| firmware::file(o, v, &mut d.firmware_files)).group("fw_cfg", || firmware::FILE.parameters()),
        set(Machine, &["smbios"], "type=1[,…]", "who the machine is to a guest that reads its DMI tables",
            |d, o, v| firmware::smbios(o, v, &mut d.smbios)).group("smbios", || firmware::SMBIOS.parameters()),
        set(Machine, &["uuid"], "UUID", "its UUID, for QMP and for the guest, in SMBIOS and fw_cfg",
            |d, o, v| d.uuid(o, v)),

        set(Boot, &["kernel"], "FILE|builtin", "PVH ELF, vmlinux or bzImage, or the guest inside this binary",
            |d, _, v| { d.kernel = Some(v.into()); Ok(()) }),
        set(Boot, &["initrd"], "FILE", "initial RAM disk",
            |d, _, v| { d.initrd = Some(v.into()); Ok(()) }),
        set(Boot, &["append"], "TEXT", "the kernel's command line",
            |d, _, v| { d.append = Some(v.into()); Ok(()) }),
        set(Boot, &["incoming"], "URI|defer", "wait for a guest from tcp:HOST:PORT, unix:PATH, fd:N, exec:COMMAND or file:PATH",
            |d, o, v| d.incoming(o, v)),
        flag(Boot, &["S"], "do not start the processors; QMP's cont does",
            |d, _, _| { d.start_paused = true; Ok(()) }),

        set(Consoles, &["serial"], "DEVICE", "the serial port: stdio, mon:stdio (shared with a monitor), file:PATH, unix:PATH[,server=on,wait=off], tcp:HOST:PORT, pty, null, none, chardev:ID",
            |d, o, v| d.serial(o, v)),
        set(Consoles, &["chardev"], "BACKEND,id=ID[,…]", "a character device; -chardev help lists back-ends and keys",
            |d, o, v| d.chardev(o, v)).group("chardev", || chardev::CHARDEV.parameters()),
        set(Consoles, &["qmp"], "DEVICE", "a QMP monitor, on a device as for -serial",
            |d, o, v| d.qmp(o, v, false)),
        set(Consoles, &["qmp-pretty"], "DEVICE", "the same, with indented answers",
            |d, o, v| d.qmp(o, v, true)),
        set(Consoles, &["monitor"], "DEVICE", "a monitor for people, on a device as for -serial; none",
            |d, o, v| d.monitor(o, v)),
        set(Consoles, &["mon"], "ID[,mode=readline|control]", "a monitor on the character device ID, for people or (control) QMP",
            |d, o, v| d.mon(o, v)).group("mon", || draft::MON.parameters()),

        set(Consoles, &["echr"], "N", "the key in front of commands to a shared device (mux=on, mon:), as a byte (1: Ctrl-A); then h lists them",
            |d, o, v| d.escape(o, v)),
        flag(Consoles, &["nographic"], "without -serial or -monitor: this terminal is both, as with -serial mon:stdio",
            |d, _, _| { d.nographic = true; Ok(()) }),

        set(Running, &["pidfile"], "FILE", "write the process id here, and keep it locked: one machine for one file",
            |d, _, v| { d.pidfile = Some(v.into()); Ok(()) }),
        flag(Running, &["daemonize"], "go to the background once the machine is built",
            |d, _, _| { d.daemonize = true; Ok(()) }),
        flag(Running, &["no-reboot"], "end when the guest reboots",
            |d, _, _| { d.actions.reboot = crate::config::RebootAction::Shutdown; Ok(()) }),
        flag(Running, &["no-shutdown"], "stay, paused, when the guest shuts down",
            |d, _, _| { d.actions.shutdown = crate::config::ShutdownAction::Pause; Ok(()) }),
        set(Running, &["run-with"], "KEY=VALUE[,…]", "exit-with-parent=on: end with the process that started this one; user=, chroot=: whose, and where, it is from when the machine is built",
            |d, o, v| process::RUN_WITH.read(o, v, &mut d.run_with)).group("run-with", || process::RUN_WITH.parameters()),
        set(Running, &["sandbox"], "on[,spawn=deny,…]", "have the kernel refuse this process what a machine never does, and what is denied",
            |d, o, v| process::SANDBOX.read(o, v, &mut d.sandbox)).group("sandbox", || process::SANDBOX.parameters()),
        set(Running, &["add-fd"], "fd=N,set=N[,opaque=TEXT]", "put a descriptor that this process was started with into the set /dev/fdset/N",
            |d, o, v| { d.descriptors.push(process::add_fd(o, v)?); Ok(()) }).group("add-fd", || process::ADD_FD.parameters()),
        set(Running, &["action"], "EVENT=ACTION", "reboot=reset|shutdown, shutdown=poweroff|pause, panic=pause|shutdown|exit-failure|none",
            |d, o, v| d.action(o, v)).group("action", || draft::ACTION.parameters()),
        flag(Running, &["h", "help"], "this page", |d, _, _| { d.help = true; Ok(()) }),
        flag(Running, &["version"], "name and version", |d, _, _| { d.version = true; Ok(()) }),

        ignore(&["nodefaults"], None),
        ignore(&["no-user-config"], None),
        ignore(&["enable-kvm"], None),
        ignore(&["only-migratable"], None),
        ignore(&["msg"], Some("…")),
        ignore(&["L"], Some("DIR")),
        ignore(&["k"], Some("LAYOUT")),
        ignore(&["boot"], Some("…")),
        only(&["display"], &["none"], DISPLAY),
        only(&["vga"], &["none"], DISPLAY),
        only(&["parallel"], &["none", "null"], "there is no parallel port; write -parallel none"),
        only(&["nic"], &["none"], NETWORK),
        only(&["net"], &["none"], NETWORK),
        only(&["rtc"], &["base=utc", "base=utc,clock=host", "base=utc,driftfix=none", "clock=host"], "the clock runs in UTC by the host's clock; write -rtc base=utc"),
        only(&["overcommit"], &["mem-lock=off", "cpu-pm=off", "mem-lock=off,cpu-pm=off"], "locked memory and idle states are not built yet; write mem-lock=off"),

        refuse(&["hda", "hdb", "hdc", "hdd"], Some("FILE"), NO_IDE),
        refuse(&["cdrom"], Some("FILE"), NO_IDE),
        refuse(&["snapshot"], None, "throw-away overlays are not built yet; copy the image"),
        refuse(&["set"], Some("…"), "it sets properties of devices, which are not built yet"),
        refuse(&["fsdev", "virtfs"], Some("…"), "shared directories are not built yet"),
        refuse(&["tpmdev"], Some("…"), "TPMs are not built"),
        refuse(&["acpitable"], Some("…"), "own ACPI tables are not built"),
        refuse(&["bios"], Some("FILE"), FIRMWARE),
        refuse(&["pflash"], Some("FILE"), FIRMWARE),
        refuse(&["dtb"], Some("FILE"), "device trees are not built: x86 kernels need none"),
        refuse(&["vnc", "spice"], Some("…"), DISPLAY),
        refuse(&["audio", "audiodev"], Some("…"), "sound is not built"),
        refuse(&["usb"], None, "USB is not built"),
        refuse(&["usbdevice"], Some("…"), "USB is not built"),
        refuse(&["g"], Some("…"), DISPLAY),
        refuse(&["full-screen"], None, DISPLAY),
        refuse(&["gdb"], Some("DEVICE"), "the debugger stub is not built yet"),
        refuse(&["s"], None, "the debugger stub is not built yet"),
        refuse(&["loadvm"], Some("TAG"), "snapshots inside disks are not built; write -incoming file:PATH"),
        refuse(&["readconfig"], Some("FILE"), "configuration files are not built; write the options out"),
        refuse(&["preconfig"], None, "not built; the command line is complete"),
        refuse(&["icount"], Some("…"), "instruction counting belongs to accelerator tcg, and Godwit runs on KVM only"),
        refuse(&["singlestep", "one-insn-per-tb"], None, "belongs to accelerator tcg, and Godwit runs on KVM only"),
        refuse(&["seed"], Some("N"), "belongs to accelerator tcg, and Godwit runs on KVM only"),
        refuse(&["d", "D", "trace", "plugin", "dfilter"], Some("…"), "QEMU's own logs; write GODWIT_LOG=debug in front of the command"),
        refuse(&["runas", "chroot"], Some("…"), "QEMU itself no longer has it; write -run-with user= or chroot="),
        refuse(&["compat"], Some("…"), "not built yet"),
        refuse(&["watchdog-action"], Some("…"), "there is no watchdog yet"),
        refuse(&["option-rom"], Some("FILE"), FIRMWARE),
        refuse(&["semihosting"], None, "belongs to other processors"),
        refuse(&["no-acpi", "no-hpet", "no-kvm"], None, NO_REMOVED),
        refuse(&["win2k-hack", "no-fd-bootchk"], None, FIRMWARE),
    ]
};

/// The option with this name.
pub(crate) fn find(name: &str) -> Option<&'static Opt> {
    OPTIONS.iter().find(|opt| opt.names.contains(&name))
}

/// Every name that can be typed and does something.
pub(crate) fn names() -> impl Iterator<Item = &'static str> {
    OPTIONS.iter().flat_map(|opt| opt.names).copied()
}
