//! What a virtual machine is made of, as asked for on the command line.
//!
//! [`crate::args`] is the only maker of a [`Config`]: names are resolved, sizes agree and nothing
//! in it is left to be refused later for its form. Whether files exist and whether this host can do
//! it is found out by whoever builds.

use std::any::Any;
use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Arc;

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

/// An image that a disk can have: a `-drive`, or a `-blockdev` with what it stands on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Image {
    /// What `drive=` names: the id of a `-drive`, the node's name of a `-blockdev`.
    pub name: String,
    /// It came by `-drive`, which has policies of its own.
    pub drive: Option<DrivePolicies>,
    pub format: ImageFormat,
    /// Names of the node of the format, and of the one below, as far as they were given.
    pub node: Option<String>,
    pub file_node: Option<String>,
    pub path: PathBuf,
    /// `None`: as it is found.
    pub kind: Option<FileKind>,
    pub read_only: bool,
    /// An image that cannot be written is opened for reading.
    pub auto_read_only: bool,
    pub cache: Cache,
    /// Keep others from an image that is in use, by locks on its permission bytes.
    pub locking: bool,
    /// What the guest discards is given back to the host.
    pub discard: bool,
    pub detect_zeroes: DetectZeroes,
    pub throttle: Throttle,
}

/// What a disk may do in a second, and for a while.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Throttle {
    pub bps: Limit,
    pub bps_rd: Limit,
    pub bps_wr: Limit,
    pub iops: Limit,
    pub iops_rd: Limit,
    pub iops_wr: Limit,
    /// A request of more bytes counts as several; 0: none does.
    pub iops_size: u64,
}

/// Units per second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    /// 0: there is no limit.
    pub rate: u64,
    /// The rate of a burst; 0: there are none.
    pub max: u64,
    /// How long a burst may last.
    pub seconds: u32,
}

impl Default for Limit {
    fn default() -> Limit {
        Limit { rate: 0, max: 0, seconds: 1 }
    }
}

impl Throttle {
    /// QEMU's names of the limits, in the order of [`Throttle::all`].
    pub const NAMES: [&str; 6] = ["bps", "bps_rd", "bps_wr", "iops", "iops_rd", "iops_wr"];

    pub fn all(&self) -> [&Limit; 6] {
        [&self.bps, &self.bps_rd, &self.bps_wr, &self.iops, &self.iops_rd, &self.iops_wr]
    }

    pub fn all_mut(&mut self) -> [&mut Limit; 6] {
        [
            &mut self.bps,
            &mut self.bps_rd,
            &mut self.bps_wr,
            &mut self.iops,
            &mut self.iops_rd,
            &mut self.iops_wr,
        ]
    }

    /// Why these limits do not go together, in QEMU's words.
    pub fn check(&self) -> Result<(), &'static str> {
        const VALUE_MAX: u64 = 1_000_000_000_000_000;
        let all = self.all();
        for [total, read, write] in [[0, 1, 2], [3, 4, 5]] {
            let both = |of: fn(&Limit) -> u64| {
                of(all[total]) > 0 && (of(all[read]) > 0 || of(all[write]) > 0)
            };
            if both(|limit| limit.rate) || both(|limit| limit.max) {
                return Err(
                    "bps/iops/max total values and read/write values cannot be used at the same time",
                );
            }
        }
        if self.iops_size > 0 && all[3..].iter().all(|limit| limit.rate == 0) {
            return Err("iops size requires an iops value to be set");
        }
        for limit in all {
            if limit.rate > VALUE_MAX || limit.max > VALUE_MAX {
                return Err("bps/iops/max values must be within [0, 1000000000000000]");
            }
            if limit.seconds == 0 {
                return Err("the burst length cannot be 0");
            }
            if limit.seconds > 1 && limit.max == 0 {
                return Err("burst length set without burst rate");
            }
            if limit.max > 0 && limit.rate == 0 {
                return Err("bps_max/iops_max require corresponding bps/iops values");
            }
            if limit.max > 0 && limit.max < limit.rate {
                return Err("bps_max/iops_max cannot be lower than bps/iops");
            }
        }
        Ok(())
    }
}

/// How the bytes of a disk lie in its image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ImageFormat {
    /// As they are, by a node of its own.
    #[default]
    Raw,
    /// The same, because nothing else was found there: see `block::probe`.
    Probed,
    /// As they are, without such a node.
    Bare,
}

/// QEMU's two drivers of files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileKind {
    Regular,
    HostDevice,
}

/// `cache=`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cache {
    /// What was written is safe once the guest has flushed; else each write is flushed.
    pub writeback: bool,
    /// `O_DIRECT`.
    pub direct: bool,
    /// Flushes do nothing.
    pub no_flush: bool,
}

impl Default for Cache {
    fn default() -> Cache {
        Cache { writeback: true, direct: false, no_flush: false }
    }
}

/// What becomes of a write of zeros.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DetectZeroes {
    #[default]
    Off,
    /// The file system is told that there are zeros.
    On,
    /// It may give the place back.
    Unmap,
}

/// `werror=` and `rerror=` of `-drive`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DrivePolicies {
    pub write: Option<OnError>,
    pub read: Option<OnError>,
}

/// What becomes of a request that the host could not do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnError {
    /// The guest is told.
    Report,
    /// It is told that all is well.
    Ignore,
    /// The guest is stopped, and the request done again when it goes on.
    Stop,
    /// So where there is no space; other errors are reported.
    NoSpace,
}

impl Config {
    /// Whether `-device DRIVER` was given.
    pub(crate) fn has_device(&self, driver: &str) -> bool {
        self.devices.iter().any(|device| device.driver == driver)
    }
}

/// `-netdev`, or what `netdev_add` made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Netdev {
    pub id: String,
    pub backend: NetBackend,
    /// Of a tap device: what is wanted until it is open, and then what is so.
    pub offloads: Offloads,
}

/// What a back-end does, or leaves, of checksums and segmentation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offloads {
    /// Frames have a header that says what is left to be done.
    pub vnet_hdr: bool,
    /// Fragments of UDP.
    pub ufo: bool,
    /// Segments of UDP.
    pub uso: bool,
}

/// What is behind a network card.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NetBackend {
    Tap(Tap),
    /// Frames on a connection, each behind its length (four bytes, big-endian).
    Stream {
        address: SocketAddress,
        role: NetRole,
    },
    /// A frame in each datagram.
    Dgram {
        local: Option<DgramAddress>,
        remote: Option<DgramAddress>,
    },
    /// A network of this process's user, made by the program passt.
    User(UserNet),
}

impl NetBackend {
    /// As `info network` calls it.
    pub fn type_name(&self) -> &'static str {
        match self {
            NetBackend::Tap(_) => "tap",
            NetBackend::Stream { .. } => "stream",
            NetBackend::Dgram { .. } => "dgram",
            NetBackend::User(_) => "user",
        }
    }
}

/// A tap or macvtap device of this host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tap {
    /// Opened by name, or made; the kernel chooses one without.
    pub ifname: Option<String>,
    /// Or an inherited descriptor.
    pub fd: Option<i32>,
    /// Bytes that may wait to be sent; 0 is no limit.
    pub sndbuf: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NetRole {
    /// Listens, and serves one client at a time.
    Server,
    /// Connects. After a loss it tries again after `reconnect_ms`, never if that is zero.
    Client { reconnect_ms: u64 },
}

/// An end of datagrams.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DgramAddress {
    Unix(PathBuf),
    /// An address of a group joins it.
    Udp {
        host: String,
        port: u16,
    },
    /// An inherited descriptor.
    Fd(i32),
}

/// What the guest sees of its network, and which ports of the host lead to it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UserNet {
    pub address: Option<Ipv4Addr>,
    pub prefix: Option<u8>,
    pub gateway: Option<Ipv4Addr>,
    pub dns: Option<Ipv4Addr>,
    /// `None` has both.
    pub only: Option<IpFamily>,
    pub forwards: Vec<HostForward>,
}

/// `hostfwd=`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostForward {
    pub udp: bool,
    pub host: Option<Ipv4Addr>,
    pub host_port: u16,
    pub guest_port: u16,
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

/// Guest RAM: one block, whatever lies behind it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Memory {
    /// A multiple of 8 KiB, at least one.
    pub bytes: u64,
    /// The block's name in migration streams: `microvm.ram`, or the id of the backend that was
    /// named with `memory-backend=`.
    pub block: String,
    pub backend: MemoryBackend,
    /// Touch every page before the guest starts.
    pub prealloc: bool,
    /// Let KSM merge equal pages (`MADV_MERGEABLE`).
    pub merge: bool,
    /// Include guest RAM in core dumps of the VMM itself.
    pub dump: bool,
}

/// Where guest RAM comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MemoryBackend {
    /// `memory-backend-ram`, and the default without any `-object`: anonymous memory; shared, it is
    /// a memfd like the next.
    Anonymous { share: bool },
    /// `memory-backend-memfd`.
    Memfd { share: bool, seal: bool, huge_pages: Option<HugePages> },
    /// `memory-backend-file`: a file, a file on hugetlbfs, or a fresh unnamed file if `path` is a
    /// directory.
    File { path: PathBuf, share: bool, offset: u64, readonly: bool, discard_at_exit: bool },
}

impl MemoryBackend {
    /// QEMU's names of the kinds there are.
    pub(crate) const TYPES: [&str; 3] =
        ["memory-backend-ram", "memory-backend-file", "memory-backend-memfd"];

    /// The one that this is.
    pub(crate) fn type_name(&self) -> &'static str {
        match self {
            MemoryBackend::Anonymous { .. } => Self::TYPES[0],
            MemoryBackend::File { .. } => Self::TYPES[1],
            MemoryBackend::Memfd { .. } => Self::TYPES[2],
        }
    }

    /// Whether other processes can have it, too.
    pub(crate) fn is_shared(&self) -> bool {
        match self {
            MemoryBackend::Anonymous { share }
            | MemoryBackend::File { share, .. }
            | MemoryBackend::Memfd { share, .. } => *share,
        }
    }
}

/// The hugetlb page size of a memfd.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HugePages {
    /// The host's default size.
    Default,
    /// A power of two.
    Bytes(u64),
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

/// A character device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chardev {
    pub id: String,
    pub backend: ChardevBackend,
    /// Everything the guest or a monitor writes goes here too.
    pub log: Option<LogFile>,
}

impl Chardev {
    /// Only one machine at a time can have what is behind it, and opening it finds that out.
    pub(crate) fn is_exclusive(&self) -> bool {
        matches!(&self.backend, ChardevBackend::Socket(_) | ChardevBackend::Pty { path: Some(_) })
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogFile {
    pub path: PathBuf,
    pub append: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ChardevBackend {
    Null,
    /// `signal`: Ctrl-C ends the VMM instead of reaching the guest.
    Stdio {
        signal: bool,
    },
    File {
        path: PathBuf,
        append: bool,
        /// Where input is read from; none without it.
        input: Option<PathBuf>,
    },
    /// A fresh pseudo-terminal; `path` is a link to make to it.
    Pty {
        path: Option<PathBuf>,
    },
    Socket(Socket),
}

impl ChardevBackend {
    /// QEMU's names of the kinds there are.
    pub(crate) const TYPES: [&str; 5] =
        ["chardev-null", "chardev-stdio", "chardev-file", "chardev-pty", "chardev-socket"];

    /// The one that this is.
    pub(crate) fn type_name(&self) -> &'static str {
        match self {
            ChardevBackend::Null => Self::TYPES[0],
            ChardevBackend::Stdio { .. } => Self::TYPES[1],
            ChardevBackend::File { .. } => Self::TYPES[2],
            ChardevBackend::Pty { .. } => Self::TYPES[3],
            ChardevBackend::Socket(_) => Self::TYPES[4],
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Socket {
    pub address: SocketAddress,
    pub role: SocketRole,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SocketRole {
    /// Listens and serves one client at a time. `wait`: the machine is not built before the first
    /// client is there.
    Server { wait: bool },
    /// Connects. After a loss it tries again after `reconnect_ms`, never if that is zero.
    Client { reconnect_ms: u64 },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SocketAddress {
    Unix {
        path: PathBuf,
    },
    /// A name in Linux' abstract namespace, without the leading zero byte.
    Abstract {
        name: String,
    },
    Tcp {
        /// Empty listens on every address.
        host: String,
        port: u16,
        /// Of a server: the last port to try, if `port` is taken.
        port_to: Option<u16>,
        family: IpFamily,
        nodelay: bool,
    },
    /// An inherited descriptor.
    Fd(i32),
}

/// Which addresses of a host name may be used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum IpFamily {
    #[default]
    Any,
    V4,
    V6,
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
