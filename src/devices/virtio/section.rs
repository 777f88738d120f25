//! virtio over virtio-mmio: the part that all devices share, around the device's own.
//!
//! The section's name is `virtio-mmio@<transport address, 16 hex digits>/<device>`. The description
//! shows the whole payload as one field of type `virtio`.

use super::parts::{BalloonState, BlockState, ConsoleState, VirtioDevice, VirtioDevicePart};
use crate::stream::Problem;
use crate::vmstate::{Layout, Visitor};

/// The kinds of device a microvm has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum VirtioKind {
    Block,
    Net,
    Console,
    #[default]
    Rng,
    Balloon,
    Fs,
}

impl VirtioKind {
    /// Those that a stream can have.
    pub(crate) const ALL: [Self; 5] =
        [Self::Block, Self::Net, Self::Console, Self::Rng, Self::Balloon];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Block => "virtio-blk",
            Self::Net => "virtio-net",
            Self::Console => "virtio-console",
            Self::Rng => "virtio-rng",
            Self::Balloon => "virtio-balloon",
            Self::Fs => "vhost-user-fs",
        }
    }

    /// Name of the section of such a device on the transport at this address.
    pub(crate) fn section_at(self, transport: u64) -> String {
        format!("virtio-mmio@{transport:016x}/{}", self.name())
    }

    pub(crate) const fn what(self) -> &'static str {
        match self {
            Self::Block => "virtio disk",
            Self::Net => "virtio network card",
            Self::Console => "virtio console",
            Self::Rng => "virtio entropy source",
            Self::Balloon => "virtio balloon",
            Self::Fs => "vhost-user file system",
        }
    }

    /// Version of the section.
    pub(crate) fn version(self) -> u32 {
        match self {
            Self::Block => 2,
            Self::Net => 11,
            Self::Console => 3,
            Self::Rng | Self::Balloon | Self::Fs => 1,
        }
    }
}

/// Entries of the arrays that list every queue a device might have.
const QUEUES_MAX: usize = 1024;
/// No device's configuration space is larger.
const CONFIG_BYTES_MAX: u64 = 4096;
/// VIRTIO_NET_F_CTRL_GUEST_OFFLOADS, the feature that adds a field to the network card's part.
const NET_CTRL_GUEST_OFFLOADS: u32 = 1 << 2;

/// A whole section.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct VirtioState {
    pub kind: VirtioKind,
    payload: VirtioPayload,
}

impl std::ops::Deref for VirtioState {
    type Target = VirtioPayload;

    fn deref(&self) -> &VirtioPayload {
        &self.payload
    }
}

impl std::ops::DerefMut for VirtioState {
    fn deref_mut(&mut self) -> &mut VirtioPayload {
        &mut self.payload
    }
}

impl VirtioState {
    pub(crate) fn new(kind: VirtioKind) -> Self {
        let device = match kind {
            VirtioKind::Block => VirtioDevice::Block(BlockState::default()),
            VirtioKind::Net => VirtioDevice::Net(Box::default()),
            VirtioKind::Console => VirtioDevice::Console(ConsoleState::default()),
            VirtioKind::Rng => VirtioDevice::Rng,
            VirtioKind::Balloon => VirtioDevice::Balloon(BalloonState::default()),
            VirtioKind::Fs => VirtioDevice::Fs,
        };
        Self { kind, payload: VirtioPayload { device, ..VirtioPayload::default() } }
    }

    /// The empty state for a section name.
    pub(crate) fn named(idstr: &str) -> Option<Self> {
        let (address, device) = idstr.strip_prefix("virtio-mmio@")?.split_once('/')?;
        let hex = address.len() == 16 && address.bytes().all(|byte| byte.is_ascii_hexdigit());
        let kind =
            VirtioKind::ALL.into_iter().find(|kind| kind.name() == device).filter(|_| hex)?;
        Some(Self::new(kind))
    }
}

impl Layout for VirtioState {
    // The kind's name stands in the description instead.
    const NAME: &'static str = "virtio-device";
    const VERSION: u32 = 0;

    fn section_name(&self) -> &'static str {
        self.kind.name()
    }

    fn section_version(&self) -> u32 {
        self.kind.version()
    }

    fn fields<V: Visitor>(&mut self, v: &mut V) -> Result<(), V::Stop> {
        v.opaque("virtio", "virtio", &mut self.payload)
    }
}

/// What stands in the section.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct VirtioPayload {
    pub host_features_sel: u32,
    pub guest_features_sel: u32,
    pub guest_page_shift: u32,
    pub status: u8,
    pub isr: u8,
    pub queue_sel: u16,
    pub guest_features_low: u32,
    /// What the device last showed of its configuration; a cache, often zeros.
    pub config: Vec<u8>,
    /// The leading queues whose size is not zero.
    pub queues: Vec<VirtioQueue>,
    pub device: VirtioDevice,
    pub device_endian: Option<u8>,
    pub guest_features: Option<u64>,
    pub virtqueues: Option<VirtioRings>,
    pub ring_sizes: Option<VirtioRingSizes>,
    pub broken: Option<u8>,
    pub extra: Option<VirtioExtra>,
    pub started: Option<u8>,
    pub packed: Option<VirtioPackedRings>,
    pub disabled: Option<u8>,
}

impl Layout for VirtioPayload {
    const NAME: &'static str = "virtio";
    const VERSION: u32 = 1;

    fn fields<V: Visitor>(&mut self, v: &mut V) -> Result<(), V::Stop> {
        v.value("host_features_sel", &mut self.host_features_sel)?;
        v.value("guest_features_sel", &mut self.guest_features_sel)?;
        v.value("guest_page_shift", &mut self.guest_page_shift)?;
        v.value("status", &mut self.status)?;
        v.value("isr", &mut self.isr)?;
        v.value("queue_sel", &mut self.queue_sel)?;
        v.value("guest_features", &mut self.guest_features_low)?;
        let mut config_bytes = self.config.len() as u32;
        v.value("config_len", &mut config_bytes)?;
        v.check("config_len", config_bytes.into(), CONFIG_BYTES_MAX)?;
        v.bytes("config", config_bytes as usize, &mut self.config)?;
        let mut queues = self.queues.len() as u32;
        v.value("num_queues", &mut queues)?;
        v.check("num_queues", queues.into(), QUEUES_MAX as u64)?;
        v.list("queue", queues as usize, &mut self.queues)?;
        let offloads = self.guest_features_low & NET_CTRL_GUEST_OFFLOADS != 0;
        VirtioDevicePart { device: &mut self.device, queues: queues as usize, offloads }.visit(v)
    }

    fn subsections<V: Visitor>(&mut self, v: &mut V) -> Result<(), V::Stop> {
        v.subsection_of("virtio/device_endian", "device_endian", &mut self.device_endian)?;
        v.subsection_of("virtio/64bit_features", "guest_features", &mut self.guest_features)?;
        v.subsection(&mut self.virtqueues)?;
        v.subsection(&mut self.ring_sizes)?;
        v.subsection_of("virtio/broken", "broken", &mut self.broken)?;
        v.subsection(&mut self.extra)?;
        v.subsection_of("virtio/started", "started", &mut self.started)?;
        v.subsection(&mut self.packed)?;
        v.subsection_of("virtio/disabled", "disabled", &mut self.disabled)
    }
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct VirtioQueue {
    pub size: u32,
    pub align: u32,
    pub desc: u64,
    pub last_avail_idx: u16,
}

impl Layout for VirtioQueue {
    const NAME: &'static str = "queue";
    const VERSION: u32 = 1;

    fn fields<V: Visitor>(&mut self, v: &mut V) -> Result<(), V::Stop> {
        v.value("num", &mut self.size)?;
        if self.size == 0 || self.size > 32768 {
            v.refuse("num", Problem::Invalid { found: self.size.into() })?;
        }
        v.value("align", &mut self.align)?;
        v.value("desc", &mut self.desc)?;
        v.value("last_avail_idx", &mut self.last_avail_idx)
    }
}

/// A subsection that is an array with an entry for each of 1024 queues, zeros behind those that
/// exist. Kept without the zeros at its end.
macro_rules! queue_arrays {
    ($($(#[$doc:meta])* $name:ident[$entry:ident] = $section:literal;)*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, Default, PartialEq, Eq)]
        pub(crate) struct $name(pub Vec<$entry>);

        impl Layout for $name {
            const NAME: &'static str = $section;
            const VERSION: u32 = 1;

            fn fields<V: Visitor>(&mut self, v: &mut V) -> Result<(), V::Stop> {
                queue_array(v, &mut self.0)
            }
        }
    )*};
}

fn queue_array<T: Layout + PartialEq, V: Visitor>(
    v: &mut V,
    entries: &mut Vec<T>,
) -> Result<(), V::Stop> {
    entries.resize(QUEUES_MAX, T::default());
    v.list("queue", QUEUES_MAX, entries)?;
    let used = entries.iter().rposition(|entry| *entry != T::default()).map_or(0, |last| last + 1);
    entries.truncate(used);
    entries.shrink_to_fit();
    Ok(())
}

queue_arrays! {
    /// Where the rings are, with a modern transport.
    VirtioRings[VirtioRing] = "virtio/virtqueues";
    /// The sizes the device proposes.
    VirtioRingSizes[VirtioRingSize] = "virtio/ringsize";
    /// Positions in packed rings.
    VirtioPackedRings[VirtioPackedRing] = "virtio/packed_virtqueues";
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct VirtioRing {
    pub avail: u64,
    pub used: u64,
}

impl Layout for VirtioRing {
    const NAME: &'static str = "virtqueue_state";
    const VERSION: u32 = 1;

    fn fields<V: Visitor>(&mut self, v: &mut V) -> Result<(), V::Stop> {
        v.value("vring.avail", &mut self.avail)?;
        v.value("vring.used", &mut self.used)
    }
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct VirtioRingSize(pub u32);

impl Layout for VirtioRingSize {
    const NAME: &'static str = "ringsize_state";
    const VERSION: u32 = 1;

    fn fields<V: Visitor>(&mut self, v: &mut V) -> Result<(), V::Stop> {
        v.value("vring.num_default", &mut self.0)
    }
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct VirtioPackedRing {
    pub last_avail_idx: u16,
    pub last_avail_wrap: bool,
    pub used_idx: u16,
    pub used_wrap: bool,
    pub inuse: u32,
}

impl Layout for VirtioPackedRing {
    const NAME: &'static str = "packed_virtqueue_state";
    const VERSION: u32 = 1;

    fn fields<V: Visitor>(&mut self, v: &mut V) -> Result<(), V::Stop> {
        v.value("last_avail_idx", &mut self.last_avail_idx)?;
        v.value("last_avail_wrap_counter", &mut self.last_avail_wrap)?;
        v.value("used_idx", &mut self.used_idx)?;
        v.value("used_wrap_counter", &mut self.used_wrap)?;
        v.value("inuse", &mut self.inuse)
    }
}

/// What the transport adds: one subsection in a subsection.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct VirtioExtra {
    pub mmio: VirtioMmioHolder,
}

impl Layout for VirtioExtra {
    const NAME: &'static str = "virtio/extra_state";
    const VERSION: u32 = 1;

    fn fields<V: Visitor>(&mut self, v: &mut V) -> Result<(), V::Stop> {
        v.structure("extra_state", &mut self.mmio)
    }
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct VirtioMmioHolder {
    pub state: Option<VirtioMmioState>,
}

impl Layout for VirtioMmioHolder {
    const NAME: &'static str = "virtio_mmio";
    const VERSION: u32 = 1;

    fn fields<V: Visitor>(&mut self, _v: &mut V) -> Result<(), V::Stop> {
        Ok(())
    }

    fn subsections<V: Visitor>(&mut self, v: &mut V) -> Result<(), V::Stop> {
        v.subsection(&mut self.state)
    }
}

/// Registers of a modern transport.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct VirtioMmioState {
    pub guest_features: [u32; 2],
    pub queues: Vec<VirtioMmioQueue>,
}

impl Layout for VirtioMmioState {
    const NAME: &'static str = "virtio_mmio/state";
    const VERSION: u32 = 1;

    fn fields<V: Visitor>(&mut self, v: &mut V) -> Result<(), V::Stop> {
        v.array("guest_features", &mut self.guest_features)?;
        queue_array(v, &mut self.queues)
    }
}

/// Addresses are two words, low first.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct VirtioMmioQueue {
    pub size: u16,
    pub enabled: bool,
    pub desc: [u32; 2],
    pub avail: [u32; 2],
    pub used: [u32; 2],
}

impl Layout for VirtioMmioQueue {
    const NAME: &'static str = "virtio_mmio/queue_state";
    const VERSION: u32 = 1;

    fn fields<V: Visitor>(&mut self, v: &mut V) -> Result<(), V::Stop> {
        v.value("num", &mut self.size)?;
        v.value("enabled", &mut self.enabled)?;
        v.array("desc", &mut self.desc)?;
        v.array("avail", &mut self.avail)?;
        v.array("used", &mut self.used)
    }
}
