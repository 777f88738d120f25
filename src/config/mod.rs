//! What a virtual machine is made of, as asked for on the command line.
//!
//! [`crate::args`] is the only maker of a [`Config`]: names are resolved, sizes agree and nothing
//! in it is left to be refused later for its form. Whether files exist and whether this host can do
//! it is found out by whoever builds.

mod block;
mod chardev;
mod memory;
mod net;

use std::any::Any;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

pub use block::{
    Cache, DetectZeroes, DrivePolicies, FileKind, Image, ImageFormat, Limit, OnError, Throttle,
};
pub use chardev::{Chardev, ChardevBackend, IpFamily, LogFile, Socket, SocketAddress, SocketRole};
pub use memory::{HugePages, Memory, MemoryBackend};
pub use net::{DgramAddress, HostForward, NetBackend, NetRole, Netdev, Offloads, Tap, UserNet};

/// One virtual machine, complete.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    pub machine: MachineOptions,
    /// In the order of the command line.
    pub devices: Vec<Device>,
    /// Sources that a `virtio-rng-device` may name.
    pub entropy: Vec<Entropy>,
    /// What disks may be made of, in the order of the command line.
    pub images: Vec<Image>,
    /// Ids of the character devices that virtio ports have.
    pub lines: Vec<String>,
    /// What network cards may be connected to.
    pub netdevs: Vec<Netdev>,
    pub kvm: Kvm,
    pub cpu: Cpu,
    pub memory: Memory,
    /// What the guest starts from. `None` is only found together with `incoming`.
    pub boot: Option<Boot>,
    /// Every character device, by `id`: those of `-chardev` and those that `-serial` and `-qmp`
    /// make (`serial0`, `compat_monitor0`, as in QEMU).
    pub chardevs: Vec<Chardev>,
    /// Id of the character device behind the serial port at 0x3f8. `None`: the machine has no
    /// serial port.
    pub serial: Option<String>,
    pub monitors: Vec<Monitor>,
    /// Wait for a migration instead of booting.
    pub incoming: Option<Incoming>,
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

/// Who is named in ACPI tables as their maker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Oem {
    /// At most 6 bytes.
    pub id: String,
    /// At most 8 bytes.
    pub table_id: String,
}

impl Default for Oem {
    /// As in QEMU.
    fn default() -> Oem {
        Oem { id: "BOCHS ".into(), table_id: "BXPC    ".into() }
    }
}

impl Oem {
    /// Whose program made the tables; as in QEMU.
    pub(crate) const CREATOR: &[u8; 4] = b"BXPC";

    pub(crate) fn id(&self) -> [u8; 6] {
        padded(&self.id)
    }

    pub(crate) fn table_id(&self) -> [u8; 8] {
        padded(&self.table_id)
    }
}

/// With zeros behind it.
fn padded<const N: usize>(text: &str) -> [u8; N] {
    let mut bytes = text.bytes();
    std::array::from_fn(|_| bytes.next().unwrap_or(0))
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

/// The processors. The model is always the host's, as KVM can offer it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cpu {
    /// 1 to [`Cpu::COUNT_MAX`].
    pub count: u8,
    /// What the guest is told, of which the first `count` are there.
    pub topology: Topology,
    /// What was chosen otherwise than the host's processor and KVM have it, by QEMU's names.
    pub features: BTreeMap<&'static str, bool>,
}

/// A file in fw_cfg.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FirmwareFile {
    /// At most 55 bytes.
    pub name: String,
    pub content: FirmwareContent,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FirmwareContent {
    Text(String),
    File(PathBuf),
}

/// SMBIOS type 1; what is empty is not told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SystemInformation {
    pub manufacturer: String,
    pub product: String,
    pub version: String,
    pub serial: String,
    pub sku: String,
    pub family: String,
    /// Else the machine's.
    pub system_uuid: Option<[u8; 16]>,
}

/// How processors stand together. No number is zero, and APIC ids stay below [`Cpu::COUNT_MAX`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Topology {
    pub sockets: u8,
    /// In a socket.
    pub cores: u8,
    /// In a core.
    pub threads: u8,
}

impl Cpu {
    /// APIC ids 0 to 253: an MP table has eight bits for one, 255 is the broadcast, 254 goes to the
    /// IOAPIC.
    pub(crate) const COUNT_MAX: u8 = 254;

    /// `count` cores of one socket.
    pub fn cores(count: u8) -> Cpu {
        let topology = Topology { sockets: 1, cores: count, threads: 1 };
        Cpu { count, topology, features: BTreeMap::new() }
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

/// A QMP monitor (there is no human monitor).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Monitor {
    /// Id of a character device that no one else uses.
    pub chardev: String,
    /// Answers indented over several lines.
    pub pretty: bool,
}

/// Where the guest comes from when it does not boot here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Incoming {
    /// Wait for `migrate-incoming`.
    Defer,
    /// `tcp:…`, `unix:…`, `fd:…`, `exec:…` or `file:…`; the scheme is known to be one of these.
    Uri(String),
}

/// What happens when the guest or a person ends something (`-action`, `-no-reboot`, `-no-shutdown`,
/// `set-action`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Actions {
    pub reboot: RebootAction,
    pub shutdown: ShutdownAction,
    pub panic: PanicAction,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RebootAction {
    #[default]
    Reset,
    Shutdown,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ShutdownAction {
    #[default]
    Poweroff,
    Pause,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PanicAction {
    #[default]
    Shutdown,
    Pause,
    ExitFailure,
    None,
}

/// Who the machine is to people and tools; the guest does not see it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    pub name: Option<String>,
    /// All zeros when unset.
    pub uuid: [u8; 16],
}
