//! `-device virtio-net-device`: a network card. Queue 0 is for frames that come, 1 for those that
//! go, 2 for control (virtio 1.2, 5.1).
//!
//! | file | what |
//! |---|---|
//! | `options` | the command line, features |
//! | `receive`, `send` | one frame into the guest, one out of it |
//! | `control` | what the guest says about what it wants to hear |
//! | `state` | the section |
//!
//! Frames come and go on the transport's thread: what arrives stays with the network as long as the
//! guest has no place for it, but for one frame that was taken and did not fit.

mod control;
mod options;
mod receive;
mod send;
mod state;

pub(super) use options::{DRIVER, KEYS, Wanted, complete};
pub(super) use state::check;

use super::model::{Model, Next, Wait};
use super::queue::{Fault, Queue};
use super::{VirtioDevice, VirtioKind, Wake};
use crate::config::{Config, Device};
use crate::devices::{Card, FRAME_BYTES_MAX, Filter, HEADER_BYTES, Mac, Network, Networks};
use crate::memory::GuestRam;
use options::feature;
use rustix::event::PollFlags;
use std::sync::Arc;
use virtio_bindings::virtio_ids::VIRTIO_ID_NET;

const RECEIVE: usize = 0;
const SEND: usize = 1;
const CONTROL: usize = 2;
const CONTROL_QUEUE: u16 = 64;

/// Of the status in the configuration space.
const LINK_UP: u16 = 1;
const ANNOUNCE: u16 = 2;
const MAC_BYTES: u64 = 6;

/// Frames of one turn, in each direction.
const TURN: usize = 64;

/// The device.
pub(super) struct Net {
    card: Arc<Card>,
    network: Option<Arc<dyn Network>>,
    has_vnet_hdr: bool,
    /// From the command line.
    own_mac: Mac,
    queue_sizes: [u16; 3],
    has_status: bool,
    mtu: Option<u16>,

    filter: Filter,
    status: u16,
    config_changed: bool,
    /// What the guest wants the network to leave to it; set with CTRL_GUEST_OFFLOADS, or agreed upon.
    offloads: Option<u64>,
    /// What the network was told.
    told_offloads: Option<u64>,
    /// The filter came with a stream: it is the driver's.
    loaded: bool,
    /// The driver was ready and its features are these.
    served: Option<u64>,
    /// A frame that came, with its header, and how long it is; 0: none waits.
    frame: Vec<u8>,
    held: usize,
    outgoing: Vec<u8>,
    wait: Wait,
}

impl Net {
    pub(super) fn new(
        wanted: &Wanted,
        device: &Device,
        config: &Config,
        networks: &dyn Networks,
    ) -> Net {
        let card = Arc::new(options::card(config, device));
        let own_mac = card.state().filter.mac;
        let id = wanted.netdev(config).map(|netdev| netdev.id.as_str());
        let network = id.and_then(|id| networks.network(id));
        networks.plug(card.clone(), id);
        let has_vnet_hdr = network.as_ref().is_some_and(|(_, offloads)| offloads.vnet_hdr);
        Net {
            card,
            network: network.map(|(network, _)| network),
            has_vnet_hdr,
            own_mac,
            queue_sizes: [wanted.rx_size, wanted.tx_size, CONTROL_QUEUE],
            has_status: wanted.has_status(),
            mtu: wanted.mtu(),
            filter: Filter::new(own_mac),
            status: LINK_UP,
            config_changed: false,
            offloads: None,
            told_offloads: None,
            loaded: false,
            served: None,
            frame: Vec::new(),
            held: 0,
            outgoing: Vec::new(),
            wait: Wait::default(),
        }
    }

    /// Takes over what commands have changed, and tells the network what the guest can do.
    fn look_around(&mut self, features: u64) {
        if self.served.replace(features).is_none() {
            self.filter.chooses_vlans = features & feature::CTRL_VLAN != 0;
            if self.filter.chooses_vlans && !self.loaded {
                self.filter.vlans.fill(0);
            }
            self.filter_changed();
        }
        let (link_down, announce) = {
            let mut state = self.card.state();
            (state.link_down, std::mem::take(&mut state.announce))
        };
        let mut status = self.status;
        if link_down {
            status &= !LINK_UP
        } else {
            status |= LINK_UP
        }
        let can_announce = feature::GUEST_ANNOUNCE | feature::CTRL_VQ;
        let announce = announce && features & can_announce == can_announce;
        if announce {
            status |= ANNOUNCE;
        }
        self.config_changed |= announce || status != self.status;
        self.status = status;
        if self.network.as_ref().is_some_and(|network| network.is_gone()) {
            self.network = None;
        }
        self.tell_offloads(features);
    }

    /// Tells the network what the guest can do, if it does not know.
    fn tell_offloads(&mut self, features: u64) {
        let offloads = self.offloads.unwrap_or(features) & control::GUEST_OFFLOADS;
        if self.told_offloads != Some(offloads)
            && let Some(network) = &self.network
        {
            network.set_offloads(control::tap_flags(offloads));
            self.told_offloads = Some(offloads);
        }
    }

    fn filter_changed(&mut self) {
        self.card.set_filter(self.filter.clone());
    }

    fn is_link_up(&self) -> bool {
        self.status & LINK_UP != 0
    }
}

/// Bytes of the header in front of each frame in the guest's buffers: with, or without, the number of
/// buffers.
fn header_bytes(features: u64) -> usize {
    const WITH_COUNT: u64 = feature::MRG_RXBUF | super::mmio::VERSION_1;
    HEADER_BYTES + if features & WITH_COUNT != 0 { 2 } else { 0 }
}

impl Model for Net {
    fn kind(&self) -> VirtioKind {
        VirtioKind::Net
    }

    fn id(&self) -> u32 {
        VIRTIO_ID_NET
    }

    fn queue_sizes(&self) -> Vec<u16> {
        self.queue_sizes.to_vec()
    }

    /// MAC, status, the number of pairs of queues, MTU: as far as there is something of it.
    fn config(&self) -> Vec<u8> {
        let mut config = self.filter.mac.to_vec();
        if self.has_status || self.mtu.is_some() {
            config.extend(self.status.to_le_bytes());
        }
        if let Some(mtu) = self.mtu {
            config.extend(1u16.to_le_bytes());
            config.extend(mtu.to_le_bytes());
        }
        config
    }

    /// An old driver sets the address here.
    fn write_config(&mut self, offset: u64, data: &[u8], features: u64) {
        if features & (feature::CTRL_MAC_ADDR | super::mmio::VERSION_1) != 0 || offset >= MAC_BYTES
        {
            return;
        }
        for (to, from) in self.filter.mac[offset as usize..].iter_mut().zip(data) {
            *to = *from;
        }
        self.filter_changed();
    }

    fn take_config_change(&mut self) -> bool {
        std::mem::take(&mut self.config_changed)
    }

    fn connect(&mut self, wake: Wake) {
        self.card.connect(wake);
    }

    fn reset(&mut self) {
        self.filter = Filter::new(self.own_mac);
        self.status &= !ANNOUNCE;
        (self.offloads, self.served, self.held, self.loaded) = (None, None, 0, false);
        self.wait = Wait::default();
        self.filter_changed();
    }

    fn serve(
        &mut self,
        ram: &GuestRam,
        queues: &mut [Queue],
        features: u64,
    ) -> Result<Next, Fault> {
        self.look_around(features);
        self.frame.resize(FRAME_BYTES_MAX, 0);
        let controlled = self.control(ram, &mut queues[CONTROL], features)?;
        let sent = self.send(ram, &mut queues[SEND], features)?;
        let received = self.receive(ram, &mut queues[RECEIVE], features)?;
        let unsent = self.network.as_ref().is_some_and(|network| network.has_unsent());
        let (mut wanted, mut full) = (PollFlags::empty(), true);
        if self.held == 0 {
            wanted |= PollFlags::IN;
            full = false;
        }
        if unsent || sent == send::Sent::Blocked {
            wanted |= PollFlags::OUT;
        }
        let fd = self.network.as_ref().and_then(|network| network.wait());
        self.wait.ready = fd.filter(|_| !wanted.is_empty()).map(|fd| (fd, wanted));
        let more = controlled || sent == send::Sent::More || received && !full;
        Ok(if more { Next::More } else { Next::Wait })
    }

    /// A descriptor of a network that is taken away meanwhile goes with it.
    fn quiesce(&mut self, _ram: &GuestRam, _queues: &mut [Queue]) -> Result<(), Fault> {
        self.wait = Wait::default();
        Ok(())
    }

    fn broken(&mut self) {
        self.wait = Wait::default();
    }

    fn waits_for(&self) -> Wait {
        self.wait.clone()
    }

    fn save(&self, features: u64) -> VirtioDevice {
        VirtioDevice::Net(Box::new(self.state(features)))
    }

    fn load(&mut self, from: &VirtioDevice, _ram: &GuestRam) -> Result<(), String> {
        let VirtioDevice::Net(from) = from else { return Ok(()) };
        self.reset();
        self.set_state(from);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
