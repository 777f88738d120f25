//! A card's part of its section.

use super::super::NetState;
use super::{ANNOUNCE, LINK_UP, Net, Wanted, feature};
use crate::config::Config;
use crate::devices::Mac;

impl Net {
    pub(super) fn state(&self, features: u64) -> NetState {
        let filter = &self.filter;
        let macs = filter.unicast.iter().chain(&filter.multicast);
        NetState {
            mac: filter.mac,
            // QEMU looks at the ring of its own accord only if this says so.
            tx_waiting: u32::from(self.served.is_some() || self.loaded),
            mergeable_rx_bufs: (features & feature::MRG_RXBUF != 0).into(),
            status: self.status,
            promisc: filter.promiscuous.into(),
            allmulti: filter.all_multicast.into(),
            mac_table: macs.flatten().copied().collect(),
            vlans: *filter.vlans,
            has_vnet_hdr: self.has_vnet_hdr.into(),
            multi_overflow: filter.multicast_overflow.into(),
            uni_overflow: filter.unicast_overflow.into(),
            alluni: filter.all_unicast.into(),
            nomulti: filter.no_multicast.into(),
            nouni: filter.no_unicast.into(),
            nobcast: filter.no_broadcast.into(),
            has_ufo: 0,
            pairs: None,
            tx_waiting_more: Vec::new(),
            offloads: (features & feature::CTRL_GUEST_OFFLOADS != 0)
                .then(|| self.offloads.unwrap_or(features & super::control::GUEST_OFFLOADS)),
            rss: None,
        }
    }

    pub(super) fn set_state(&mut self, from: &NetState) {
        let filter = &mut self.filter;
        filter.mac = from.mac;
        filter.promiscuous = from.promisc != 0;
        filter.all_multicast = from.allmulti != 0;
        filter.all_unicast = from.alluni != 0;
        filter.no_multicast = from.nomulti != 0;
        filter.no_unicast = from.nouni != 0;
        filter.no_broadcast = from.nobcast != 0;
        filter.multicast_overflow = from.multi_overflow != 0;
        filter.unicast_overflow = from.uni_overflow != 0;
        let macs: Vec<Mac> =
            from.mac_table.chunks_exact(6).filter_map(|mac| mac.try_into().ok()).collect();
        // Those of groups stand behind the others.
        let groups = macs.iter().position(|mac| mac[0] & 1 != 0).unwrap_or(macs.len());
        filter.multicast = macs[groups..].to_vec();
        filter.unicast = macs[..groups].to_vec();
        *filter.vlans = from.vlans;
        self.status = from.status & (LINK_UP | ANNOUNCE);
        self.card.state().link_down = from.status & LINK_UP == 0;
        self.offloads = from.offloads;
        self.loaded = true;
        self.filter_changed();
    }
}

/// Whether a card of this kind, on its network, can have the state.
pub(crate) fn check(wanted: &Wanted, config: &Config, from: &NetState) -> Result<(), String> {
    let offloads = wanted.netdev(config).map(|netdev| netdev.offloads).unwrap_or_default();
    if from.has_vnet_hdr != 0 && !offloads.vnet_hdr {
        return Err("has_vnet_hdr: the source's network has headers of offloads (a tap device), this one has none; give \
                    -netdev tap with vnet_hdr=on"
            .into());
    }
    if from.has_ufo != 0 && !offloads.ufo {
        return Err("has_ufo: this host's tap device knows no fragments of UDP".into());
    }
    if let Some((largest, current)) = from.pairs
        && (largest, current) != (1, 1)
    {
        return Err(format!("max_queue_pairs: {largest}, here 1 (mq=off)"));
    }
    if from.rss.is_some() {
        return Err("rss: hashes of frames are not built".into());
    }
    Ok(())
}
