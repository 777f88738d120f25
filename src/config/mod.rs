//! What a virtual machine is made of, as asked for on the command line.
//!
//! [`crate::args`] is the only maker of a [`Config`]: names are resolved, sizes agree and nothing
//! in it is left to be refused later for its form. Whether files exist and whether this host can do
//! it is found out by whoever builds.

mod actions;
mod block;
mod chardev;
mod cpu;
mod firmware;
mod io_thread;
mod memory;
mod net;
mod process;

use std::any::Any;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

pub use actions::{Actions, PanicAction, RebootAction, ShutdownAction};
pub use block::{
    Backing, Cache, DetectZeroes, DrivePolicies, FileKind, Image, ImageFormat, Limit, OnError,
    Throttle,
};
pub use chardev::{Chardev, ChardevBackend, IpFamily, LogFile, Socket, SocketAddress, SocketRole};
pub use cpu::{Cpu, Topology};
pub use firmware::{FirmwareContent, FirmwareFile, Oem, SystemInformation};
pub use io_thread::{IoThread, IoThreadOptions};
pub use memory::{HugePages, Memory, MemoryBackend};
pub use net::{DgramAddress, HostForward, NetBackend, NetRole, Netdev, Offloads, Tap, UserNet};
pub use process::{Process, Sandbox, SetDescriptor, User};

/// One virtual machine, complete.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    pub machine: MachineOptions,
    /// In the order of the command line.
    pub devices: Vec<Device>,
    /// Sources that a `virtio-rng-device` may name.
    pub entropy: Vec<Entropy>,
    /// Threads that disks may name.
    pub io_threads: Vec<IoThread>,
    /// What disks may be made of, in the order of the command line.
    pub images: Vec<Image>,
    /// Ids of the character devices that virtio ports have.
    pub lines: Vec<String>,
    /// What network cards may be connected to.
    pub netdevs: Vec<Netdev>,
    pub kvm: Kvm,
    pub cpu: Cpu,
    pub memory: Memory,
    /// What the guest starts from. `None` where it arrives (`incoming`), and for `-M none`.
    pub boot: Option<Boot>,
    /// Every character device, by `id`: those of `-chardev` and those that `-serial` and `-qmp`
    /// make (`serial0`, `compat_monitor0`, as in QEMU).
    pub chardevs: Vec<Chardev>,
    /// Those of `-chardev` at whose other end a device of this machine is served.
    pub back_ends: Vec<Chardev>,
    /// Id of the character device behind the serial port at 0x3f8. `None`: the machine has no
    /// serial port.
    pub serial: Option<String>,
    pub monitors: Vec<Monitor>,
    /// The key that is for a shared character device itself, as a byte.
    pub escape: u8,
    /// Wait for a migration instead of booting.
    pub incoming: Option<Incoming>,
    /// Said with where it comes from.
    pub restore: Option<Restore>,
    /// Say when the guest has come, and how long after this.
    pub restored_since: Option<Instant>,
    /// `-S`: do not start the vCPUs; `cont` does.
    pub start_paused: bool,
    pub actions: Actions,
    pub identity: Identity,
    /// Written and locked before the machine is built, removed at the end.
    pub pidfile: Option<PathBuf>,
    /// `-daemonize`: go to the background once the machine is built.
    pub daemonize: bool,
    /// End when the process that started this one ends.
    pub exit_with_parent: bool,
    pub process: Process,
    /// What the guest finds in fw_cfg beside what the machine itself puts there.
    pub firmware_files: Vec<FirmwareFile>,
    /// What the guest's DMI tables say; without it there are none.
    pub smbios: Option<SystemInformation>,
    /// What to say about the line at the start: parts that it could do without.
    pub notices: Vec<String>,
}

/// What `-M` says of the machine `microvm`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MachineOptions {
    /// Which parts it has, as far as that was said; the parts themselves know what they are without.
    pub switches: Switches,
    /// Leave the JSON description out of migration streams.
    pub suppress_vmdesc: bool,
    pub oem: Oem,
    /// `-M none`: there is nothing to run, only somebody to ask over QMP.
    pub none: bool,
}

/// Parts that were switched on or off, by the name of the property.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Switches(BTreeMap<&'static str, bool>);

impl Switches {
    pub fn set(&mut self, name: &'static str, on: bool) {
        self.0.insert(name, on);
    }

    /// `None` takes back what was said.
    pub fn say(&mut self, name: &'static str, on: Option<bool>) {
        match on {
            Some(on) => self.set(name, on),
            None => drop(self.0.remove(name)),
        }
    }

    /// What was said, as QEMU shows it: `on`, `off`, or `auto` for nothing.
    pub(crate) fn said(&self, name: &str) -> &'static str {
        match self.0.get(name) {
            Some(true) => "on",
            Some(false) => "off",
            None => "auto",
        }
    }

    /// `default` if nothing was said.
    pub(crate) fn get(&self, name: &str, default: bool) -> bool {
        self.0.get(name).copied().unwrap_or(default)
    }
}

/// A device added by `-device`.
#[derive(Clone, Debug)]
pub struct Device {
    pub driver: &'static str,
    pub id: Option<String>,
    /// What it was given beside that, in the driver's own type.
    pub properties: Arc<dyn Properties>,
}

impl PartialEq for Device {
    fn eq(&self, other: &Device) -> bool {
        self.driver == other.driver
            && self.id == other.id
            && self.properties.equals(&*other.properties)
    }
}

impl Eq for Device {}

/// A device's properties, checked for their form.
pub trait Properties: Any + std::fmt::Debug + Send + Sync {
    fn equals(&self, other: &dyn Properties) -> bool;
}

impl dyn Properties {
    /// The driver's own type.
    pub(crate) fn downcast_ref<T: Properties>(&self) -> Option<&T> {
        (self as &dyn Any).downcast_ref()
    }
}

impl<T: Any + std::fmt::Debug + PartialEq + Send + Sync> Properties for T {
    fn equals(&self, other: &dyn Properties) -> bool {
        (other as &dyn Any).downcast_ref::<T>() == Some(self)
    }
}

/// `-object rng-…`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entropy {
    pub id: String,
    pub source: EntropySource,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EntropySource {
    /// The host's kernel (`getrandom`).
    Builtin,
    File(PathBuf),
}

impl EntropySource {
    /// QEMU's names of the kinds there are.
    pub(crate) const TYPES: [&str; 2] = ["rng-builtin", "rng-random"];

    /// The one that this is.
    pub(crate) fn type_name(&self) -> &'static str {
        match self {
            EntropySource::Builtin => Self::TYPES[0],
            EntropySource::File(_) => Self::TYPES[1],
        }
    }
}

impl Config {
    /// Whether `-device DRIVER` was given.
    pub(crate) fn has_device(&self, driver: &str) -> bool {
        self.devices.iter().any(|device| device.driver == driver)
    }
}

/// How the kernel's virtualization is used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kvm {
    /// The device node, `/dev/kvm`.
    pub device: PathBuf,
    /// Entries of each vCPU's dirty ring, a power of two; `None` logs dirty pages in bitmaps.
    pub dirty_ring_entries: Option<u32>,
}

impl Default for Kvm {
    fn default() -> Self {
        Kvm { device: PathBuf::from("/dev/kvm"), dirty_ring_entries: None }
    }
}

/// What a guest starts from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Boot {
    pub kernel: Kernel,
    pub initrd: Option<PathBuf>,
    /// The kernel's command line.
    pub cmdline: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kernel {
    /// The guest inside this binary, see [`crate::builtin`].
    Builtin,
    /// ELF with a PVH note, `vmlinux` or bzImage.
    File(PathBuf),
}

/// A monitor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Monitor {
    /// Id of a character device, which no one else uses unless it is shared.
    pub chardev: String,
    pub language: Language,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Language {
    /// For programs; `pretty`: answers indented over several lines.
    Qmp { pretty: bool },
    /// For people.
    Human,
}

/// Where the guest comes from when it does not boot here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Incoming {
    /// Wait for `migrate-incoming`.
    Defer,
    /// `tcp:…`, `unix:…`, `fd:…`, `exec:…` or `file:…`; the scheme is known to be one of these.
    Uri(String),
}

/// How the memory of a guest that is kept in a file comes, where its pages have places there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Restore {
    /// It is read before the guest runs.
    Eager,
    /// The file is mapped, and read as the guest runs.
    Mapped,
}

/// Who the machine is to people and tools.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    pub name: Option<String>,
    /// All zeros when unset. The guest finds it in SMBIOS and fw_cfg.
    pub uuid: [u8; 16],
}
