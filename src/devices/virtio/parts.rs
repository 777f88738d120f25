//! The parts of the virtio devices' own.

use crate::stream::Problem;
use crate::vmstate::{Layout, Visitor};

/// Network cards with more than one pair of queues have more than these (receive, transmit,
/// control).
const SINGLE_PAIR_QUEUES: usize = 3;
const MAC_TABLE_MAX: u64 = 64;
const PORTS_MAX: u64 = 511;

/// The device's own state, by kind.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) enum VirtioDevice {
    Block(BlockState),
    Net(Box<NetState>),
    Console(ConsoleState),
    #[default]
    Rng,
    Balloon(BalloonState),
    /// None that a stream has: it is another process's.
    Fs,
}

/// The device's part with what its layout depends on.
pub(super) struct VirtioDevicePart<'a> {
    pub device: &'a mut VirtioDevice,
    pub queues: usize,
    pub offloads: bool,
}

impl VirtioDevicePart<'_> {
    pub(super) fn visit<V: Visitor>(self, v: &mut V) -> Result<(), V::Stop> {
        match self.device {
            VirtioDevice::Block(state) => state.visit(v, self.queues > 1),
            VirtioDevice::Net(state) => {
                state.pairs = if self.queues > SINGLE_PAIR_QUEUES {
                    Some(state.pairs.unwrap_or_default())
                } else {
                    None
                };
                state.offloads =
                    if self.offloads { Some(state.offloads.unwrap_or_default()) } else { None };
                v.structure("virtio-net", &mut **state)
            }
            VirtioDevice::Console(state) => v.structure("virtio-console", state),
            VirtioDevice::Rng | VirtioDevice::Fs => Ok(()),
            VirtioDevice::Balloon(state) => v.structure("virtio-balloon", state),
        }
    }
}

/// A request that stopped on an error: 49,168 bytes of QEMU's own, little-endian, kept as they are.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Element {
    pub queue: u32,
    pub bytes: Vec<u8>,
}

impl Element {
    pub(crate) const BYTES: usize = 49_168;
}

/// A disk: requests in flight, normally none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct BlockState {
    pub requests: Vec<Element>,
}

impl BlockState {
    fn visit<V: Visitor>(&mut self, v: &mut V, many_queues: bool) -> Result<(), V::Stop> {
        let mut index = 0;
        loop {
            let mut more = u8::from(index < self.requests.len());
            v.value("request", &mut more)?;
            match more {
                0 => return Ok(()),
                1 => {}
                found => v.refuse("request", Problem::Invalid { found: found.into() })?,
            }
            v.check("request", index as u64, 1023)?;
            if index == self.requests.len() {
                self.requests.push(Element::default());
            }
            let request = &mut self.requests[index];
            if many_queues {
                v.value("request queue", &mut request.queue)?;
            }
            v.bytes("request element", Element::BYTES, &mut request.bytes)?;
            index += 1;
        }
    }
}

/// A network card.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NetState {
    pub mac: [u8; 6],
    pub tx_waiting: u32,
    pub mergeable_rx_bufs: u32,
    pub status: u16,
    pub promisc: u8,
    pub allmulti: u8,
    /// Six bytes each.
    pub mac_table: Vec<u8>,
    /// One bit per VLAN, in little-endian words.
    pub vlans: [u8; 512],
    pub has_vnet_hdr: u32,
    pub multi_overflow: u8,
    pub uni_overflow: u8,
    pub alluni: u8,
    pub nomulti: u8,
    pub nouni: u8,
    pub nobcast: u8,
    pub has_ufo: u8,
    /// (largest, current) number of queue pairs, where there can be more than one.
    pub pairs: Option<(u16, u16)>,
    /// Of the current pairs behind the first.
    pub tx_waiting_more: Vec<TxWaiting>,
    /// Only with VIRTIO_NET_F_CTRL_GUEST_OFFLOADS.
    pub offloads: Option<u64>,
    pub rss: Option<NetRss>,
}

impl Default for NetState {
    fn default() -> Self {
        Self {
            mac: [0; 6],
            tx_waiting: 0,
            mergeable_rx_bufs: 0,
            status: 0,
            promisc: 0,
            allmulti: 0,
            mac_table: Vec::new(),
            vlans: [0; 512],
            has_vnet_hdr: 0,
            multi_overflow: 0,
            uni_overflow: 0,
            alluni: 0,
            nomulti: 0,
            nouni: 0,
            nobcast: 0,
            has_ufo: 0,
            pairs: None,
            tx_waiting_more: Vec::new(),
            offloads: None,
            rss: None,
        }
    }
}

impl Layout for NetState {
    const NAME: &'static str = "virtio-net-device";
    const VERSION: u32 = 11;

    fn fields<V: Visitor>(&mut self, v: &mut V) -> Result<(), V::Stop> {
        v.array("mac", &mut self.mac)?;
        v.value("tx_waiting", &mut self.tx_waiting)?;
        v.value("mergeable_rx_bufs", &mut self.mergeable_rx_bufs)?;
        v.value("status", &mut self.status)?;
        v.value("promisc", &mut self.promisc)?;
        v.value("allmulti", &mut self.allmulti)?;
        let mut macs = self.mac_table.len() as u32 / 6;
        v.value("mac_table.in_use", &mut macs)?;
        v.check("mac_table.in_use", macs.into(), MAC_TABLE_MAX)?;
        v.bytes("mac_table.macs", 6 * macs as usize, &mut self.mac_table)?;
        v.buffer("vlans", &mut self.vlans)?;
        v.value("has_vnet_hdr", &mut self.has_vnet_hdr)?;
        v.value("mac_table.multi_overflow", &mut self.multi_overflow)?;
        v.value("mac_table.uni_overflow", &mut self.uni_overflow)?;
        v.value("alluni", &mut self.alluni)?;
        v.value("nomulti", &mut self.nomulti)?;
        v.value("nouni", &mut self.nouni)?;
        v.value("nobcast", &mut self.nobcast)?;
        v.value("has_ufo", &mut self.has_ufo)?;
        if let Some((largest, current)) = &mut self.pairs {
            v.value("max_queue_pairs", largest)?;
            v.check("max_queue_pairs", (*largest).into(), 512)?;
            v.value("curr_queue_pairs", current)?;
            v.check("curr_queue_pairs", (*current).into(), 512)?;
            v.list("vqs", usize::from(current.saturating_sub(1)), &mut self.tx_waiting_more)?;
        }
        if let Some(offloads) = &mut self.offloads {
            v.value("curr_guest_offloads", offloads)?;
        }
        Ok(())
    }

    fn subsections<V: Visitor>(&mut self, v: &mut V) -> Result<(), V::Stop> {
        v.subsection(&mut self.rss)
    }
}

/// A transmit queue that waits to be looked at.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct TxWaiting(pub u32);

impl Layout for TxWaiting {
    const NAME: &'static str = "virtio-net-queue-tx_waiting";
    const VERSION: u32 = 0;

    fn fields<V: Visitor>(&mut self, v: &mut V) -> Result<(), V::Stop> {
        v.value("tx_waiting", &mut self.0)
    }
}

/// Receive-side scaling.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NetRss {
    pub enabled: bool,
    pub redirect: bool,
    pub populate_hash: bool,
    pub hash_types: u32,
    pub default_queue: u16,
    pub key: [u8; 40],
    /// Big-endian, two bytes each.
    pub indirections: Vec<u8>,
}

impl Default for NetRss {
    fn default() -> Self {
        Self {
            enabled: false,
            redirect: false,
            populate_hash: false,
            hash_types: 0,
            default_queue: 0,
            key: [0; 40],
            indirections: Vec::new(),
        }
    }
}

impl Layout for NetRss {
    const NAME: &'static str = "virtio-net-device/rss";
    const VERSION: u32 = 1;

    fn fields<V: Visitor>(&mut self, v: &mut V) -> Result<(), V::Stop> {
        v.value("rss_data.enabled", &mut self.enabled)?;
        v.value("rss_data.redirect", &mut self.redirect)?;
        v.value("rss_data.populate_hash", &mut self.populate_hash)?;
        v.value("rss_data.hash_types", &mut self.hash_types)?;
        let mut count = self.indirections.len() as u16 / 2;
        v.value("rss_data.indirections_len", &mut count)?;
        v.value("rss_data.default_queue", &mut self.default_queue)?;
        v.array("rss_data.key", &mut self.key)?;
        v.bytes("rss_data.indirections_table", 2 * usize::from(count), &mut self.indirections)
    }
}

/// A console: virtio-serial with its ports.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct ConsoleState {
    pub cols: u16,
    pub rows: u16,
    pub max_ports: u32,
    /// Which ports exist, a bit each, in words.
    pub ports_map: Vec<PortsMapWord>,
    pub ports: Vec<ConsolePort>,
}

impl Layout for ConsoleState {
    const NAME: &'static str = "virtio-console-device";
    const VERSION: u32 = 3;

    fn fields<V: Visitor>(&mut self, v: &mut V) -> Result<(), V::Stop> {
        v.value("cols", &mut self.cols)?;
        v.value("rows", &mut self.rows)?;
        v.value("max_nr_ports", &mut self.max_ports)?;
        v.check("max_nr_ports", self.max_ports.into(), PORTS_MAX)?;
        v.list("ports_map", self.max_ports.div_ceil(32) as usize, &mut self.ports_map)?;
        let mut ports = self.ports.len() as u32;
        v.value("nr_active_ports", &mut ports)?;
        v.check("nr_active_ports", ports.into(), PORTS_MAX)?;
        v.list("port", ports as usize, &mut self.ports)
    }
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct PortsMapWord(pub u32);

impl Layout for PortsMapWord {
    const NAME: &'static str = "ports_map";
    const VERSION: u32 = 0;

    fn fields<V: Visitor>(&mut self, v: &mut V) -> Result<(), V::Stop> {
        v.value("word", &mut self.0)
    }
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct ConsolePort {
    pub id: u32,
    pub guest_connected: u8,
    pub host_connected: u8,
    /// A buffer taken from the guest and not used up: how far, and the element.
    pub popped: Option<(u32, u64, Vec<u8>)>,
}

impl Layout for ConsolePort {
    const NAME: &'static str = "port";
    const VERSION: u32 = 0;

    fn fields<V: Visitor>(&mut self, v: &mut V) -> Result<(), V::Stop> {
        v.value("id", &mut self.id)?;
        v.value("guest_connected", &mut self.guest_connected)?;
        v.value("host_connected", &mut self.host_connected)?;
        let mut popped = u32::from(self.popped.is_some());
        v.value("elem_popped", &mut popped)?;
        v.check("elem_popped", popped.into(), 1)?;
        if popped == 0 {
            return Ok(());
        }
        let (index, offset, element) = self.popped.get_or_insert_default();
        v.value("iov_idx", index)?;
        v.value("iov_offset", offset)?;
        v.bytes("elem", Element::BYTES, element)
    }
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct BalloonState {
    pub num_pages: u32,
    pub actual: u32,
    pub free_page_report: Option<BalloonReport>,
    pub page_poison: Option<u32>,
}

impl Layout for BalloonState {
    const NAME: &'static str = "virtio-balloon-device";
    const VERSION: u32 = 1;

    fn fields<V: Visitor>(&mut self, v: &mut V) -> Result<(), V::Stop> {
        v.value("num_pages", &mut self.num_pages)?;
        v.value("actual", &mut self.actual)
    }

    fn subsections<V: Visitor>(&mut self, v: &mut V) -> Result<(), V::Stop> {
        v.subsection(&mut self.free_page_report)?;
        v.subsection_of("virtio-balloon-device/page-poison", "poison_val", &mut self.page_poison)
    }
}

/// Reporting of free pages.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct BalloonReport {
    pub command_id: u32,
    pub status: u32,
}

impl Layout for BalloonReport {
    const NAME: &'static str = "virtio-balloon-device/free-page-report";
    const VERSION: u32 = 1;

    fn fields<V: Visitor>(&mut self, v: &mut V) -> Result<(), V::Stop> {
        v.value("free_page_hint_cmd_id", &mut self.command_id)?;
        v.value("free_page_hint_status", &mut self.status)
    }
}
