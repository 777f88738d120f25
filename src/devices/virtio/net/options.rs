//! `-device virtio-net-device`: what the command line says of a card, and what it offers.

use super::super::{NO_IOMMU, NO_PACKED, RingFeatures};
use crate::args::{Key, Keys, OptionError, Problem, value};
use crate::config::{Config, Device, Netdev};
use crate::devices::{Card, Mac};
use crate::suggest::nearest;

pub(crate) const DRIVER: &str = "virtio-net-device";

/// Features of the device's own, by their bits (virtio 1.2, 5.1.3).
pub(super) mod feature {
    pub(in super::super) const CSUM: u64 = 1 << 0;
    pub(in super::super) const GUEST_CSUM: u64 = 1 << 1;
    pub(in super::super) const CTRL_GUEST_OFFLOADS: u64 = 1 << 2;
    pub(in super::super) const MTU: u64 = 1 << 3;
    pub(in super::super) const MAC: u64 = 1 << 5;
    pub(in super::super) const GSO: u64 = 1 << 6;
    pub(in super::super) const GUEST_TSO4: u64 = 1 << 7;
    pub(in super::super) const GUEST_TSO6: u64 = 1 << 8;
    pub(in super::super) const GUEST_ECN: u64 = 1 << 9;
    pub(in super::super) const GUEST_UFO: u64 = 1 << 10;
    pub(in super::super) const HOST_TSO4: u64 = 1 << 11;
    pub(in super::super) const HOST_TSO6: u64 = 1 << 12;
    pub(in super::super) const HOST_ECN: u64 = 1 << 13;
    pub(in super::super) const HOST_UFO: u64 = 1 << 14;
    pub(in super::super) const MRG_RXBUF: u64 = 1 << 15;
    pub(in super::super) const STATUS: u64 = 1 << 16;
    pub(in super::super) const CTRL_VQ: u64 = 1 << 17;
    pub(in super::super) const CTRL_RX: u64 = 1 << 18;
    pub(in super::super) const CTRL_VLAN: u64 = 1 << 19;
    pub(in super::super) const CTRL_RX_EXTRA: u64 = 1 << 20;
    pub(in super::super) const GUEST_ANNOUNCE: u64 = 1 << 21;
    pub(in super::super) const CTRL_MAC_ADDR: u64 = 1 << 23;
    pub(in super::super) const GUEST_USO4: u64 = 1 << 54;
    pub(in super::super) const GUEST_USO6: u64 = 1 << 55;
    pub(in super::super) const HOST_USO: u64 = 1 << 56;
}
use feature::*;

/// Only where frames have a header.
const WITH_HEADER: u64 = CSUM
    | GUEST_CSUM
    | GUEST_TSO4
    | GUEST_TSO6
    | GUEST_ECN
    | HOST_TSO4
    | HOST_TSO6
    | HOST_ECN
    | OF_UFO
    | OF_USO;
const OF_UFO: u64 = GUEST_UFO | HOST_UFO;
const OF_USO: u64 = GUEST_USO4 | GUEST_USO6 | HOST_USO;
const DEFAULT: u64 = WITH_HEADER
    | GSO
    | CTRL_GUEST_OFFLOADS
    | MRG_RXBUF
    | STATUS
    | CTRL_VQ
    | CTRL_RX
    | CTRL_VLAN
    | CTRL_RX_EXTRA
    | GUEST_ANNOUNCE
    | CTRL_MAC_ADDR;

/// A card.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Wanted {
    netdev: Option<String>,
    mac: Option<Mac>,
    features: u64,
    mtu: u16,
    pub(super) rx_size: u16,
    pub(super) tx_size: u16,
    pub(crate) ring: RingFeatures,
}

impl Default for Wanted {
    fn default() -> Wanted {
        Wanted {
            netdev: None,
            mac: None,
            features: DEFAULT,
            mtu: 0,
            rx_size: 256,
            tx_size: 256,
            ring: RingFeatures::default(),
        }
    }
}

macro_rules! switch {
    ($name:literal, $feature:expr) => {
        Key::set($name, "on|off", |w: &mut Wanted, v: &str| {
            match value::switch(v)? {
                true => w.features |= $feature,
                false => w.features &= !$feature,
            }
            Ok(())
        })
    };
}

const NO_HASH: &str = "hashes of frames are not built; write off";
const NO_MQ: &str = "several pairs of queues are not built yet; write mq=off";
const NO_FAILOVER: &str = "there is no device that could stand in; write failover=off";

pub(crate) const KEYS: Keys<Wanted> = Keys {
    owner: DRIVER,
    implied: None,
    table: &[
        Key::set("netdev", "ID", |w, v| {
            w.netdev = Some(value::id(v)?);
            Ok(())
        }),
        Key::set("mac", "MAC", |w, v| {
            w.mac = Some(mac(v)?);
            Ok(())
        }),
        Key::set("host_mtu", "N", |w, v| {
            w.mtu = value::number(v, 0, u16::MAX.into())? as u16;
            Ok(())
        }),
        Key::set("rx_queue_size", "256", |w, v| {
            w.rx_size = value::power_of_two(v, 256, 1024)? as u16;
            Ok(())
        }),
        Key::set("tx_queue_size", "256", |w, v| {
            w.tx_size = value::power_of_two(v, 256, 1024)? as u16;
            Ok(())
        }),
        switch!("csum", CSUM),
        switch!("guest_csum", GUEST_CSUM),
        switch!("gso", GSO),
        switch!("guest_tso4", GUEST_TSO4),
        switch!("guest_tso6", GUEST_TSO6),
        switch!("guest_ecn", GUEST_ECN),
        switch!("guest_ufo", GUEST_UFO),
        switch!("guest_uso4", GUEST_USO4),
        switch!("guest_uso6", GUEST_USO6),
        switch!("guest_announce", GUEST_ANNOUNCE),
        switch!("host_tso4", HOST_TSO4),
        switch!("host_tso6", HOST_TSO6),
        switch!("host_ecn", HOST_ECN),
        switch!("host_ufo", HOST_UFO),
        switch!("host_uso", HOST_USO),
        switch!("mrg_rxbuf", MRG_RXBUF),
        switch!("status", STATUS),
        switch!("ctrl_vq", CTRL_VQ),
        switch!("ctrl_rx", CTRL_RX),
        switch!("ctrl_vlan", CTRL_VLAN),
        switch!("ctrl_rx_extra", CTRL_RX_EXTRA),
        switch!("ctrl_mac_addr", CTRL_MAC_ADDR),
        switch!("ctrl_guest_offloads", CTRL_GUEST_OFFLOADS),
        Key::only("mq", &["off"], NO_MQ),
        Key::only("rss", &["off"], NO_HASH),
        Key::only("hash", &["off"], NO_HASH),
        Key::only("guest_rsc_ext", &["off"], NO_HASH),
        Key::only("failover", &["off"], NO_FAILOVER),
        Key::set("indirect_desc", "on|off", |w, v| w.ring.indirect_desc(v)),
        Key::set("event_idx", "on|off", |w, v| w.ring.event_idx(v)),
        Key::only("packed", &["off"], NO_PACKED),
        Key::only("iommu_platform", &["off"], NO_IOMMU),
    ],
};

/// Six bytes in hexadecimal, with colons or dashes between.
fn mac(text: &str) -> Result<Mac, Problem> {
    const SHAPE: Problem = Problem::Malformed("a MAC address: 52:54:00:12:34:56");
    let mut mac = Mac::default();
    let mut bytes = text.split([':', '-']);
    for place in &mut mac {
        let byte =
            bytes.next().filter(|byte| byte.len() <= 2 && !byte.starts_with('+')).ok_or(SHAPE)?;
        *place = u8::from_str_radix(byte, 16).map_err(|_| SHAPE)?;
    }
    if bytes.next().is_some() { Err(SHAPE) } else { Ok(mac) }
}

/// The first card's without `mac=`; the next have the next.
const FIRST_MAC: Mac = [0x52, 0x54, 0, 0x12, 0x34, 0x56];

impl Wanted {
    pub(super) fn netdev<'a>(&self, config: &'a Config) -> Option<&'a Netdev> {
        config.netdevs.iter().find(|netdev| Some(&netdev.id) == self.netdev.as_ref())
    }

    /// What a card offers, with what is behind it.
    pub(crate) fn offers(&self, config: &Config) -> u64 {
        let offloads = self.netdev(config).map(|netdev| netdev.offloads).unwrap_or_default();
        let mut features = self.features | MAC;
        if self.mtu != 0 {
            features |= MTU;
        }
        if !offloads.vnet_hdr {
            features &= !WITH_HEADER;
        }
        if !offloads.ufo {
            features &= !OF_UFO;
        }
        if !offloads.uso {
            features &= !OF_USO;
        }
        features
    }

    /// What the configuration space has behind MAC and status, as far as that is offered.
    pub(super) fn mtu(&self) -> Option<u16> {
        (self.mtu != 0).then_some(self.mtu)
    }

    pub(super) fn has_status(&self) -> bool {
        self.features & STATUS != 0
    }
}

/// All cards in the order of the command line.
fn cards(config: &Config) -> impl Iterator<Item = (&Device, &Wanted)> {
    let devices = config.devices.iter();
    devices.filter_map(|device| Some((device, device.properties.downcast_ref::<Wanted>()?)))
}

/// A card as commands see it. One without an id is called by its number.
pub(super) fn card(config: &Config, device: &Device) -> Card {
    let at = cards(config).position(|(other, _)| std::ptr::eq(other, device)).unwrap_or(0);
    let wanted = device.properties.downcast_ref::<Wanted>();
    let mac = wanted.and_then(|wanted| wanted.mac).unwrap_or_else(|| {
        let mut mac = FIRST_MAC;
        mac[5] = mac[5].wrapping_add(at as u8);
        mac
    });
    match &device.id {
        Some(id) => Card::new(id.clone(), true, format!("/machine/peripheral/{id}"), mac),
        None => {
            let all = config.devices.iter();
            let before = all.take_while(|other| !std::ptr::eq(*other, device));
            let place = before.filter(|other| other.id.is_none()).count();
            let path = format!("/machine/peripheral-anon/device[{place}]");
            let unnamed = cards(config).take(at).filter(|(other, _)| other.id.is_none()).count();
            Card::new(format!("{DRIVER}.{unnamed}"), false, path, mac)
        }
    }
}

/// Refuses cards on networks that are not there, or that another card has.
pub(crate) fn complete(config: &mut Config) -> Result<(), OptionError> {
    let mut taken = Vec::new();
    let mut alone = Vec::new();
    for (device, wanted) in cards(config) {
        let Some(id) = &wanted.netdev else {
            alone.push(card(config, device).name);
            continue;
        };
        let at = || format!("-device {DRIVER},netdev={id}");
        if wanted.netdev(config).is_none() {
            let ids = config.netdevs.iter().map(|netdev| netdev.id.as_str());
            let nearest = nearest(id, ids).map(String::from);
            return Err(Problem::UnknownId { kind: "network (-netdev)", nearest }.at(at()));
        }
        if taken.contains(&id) {
            return Err(Problem::InUse { by: "another card".into() }.at(at()));
        }
        taken.push(id);
    }
    let notices = alone.into_iter().map(|name| format!("nic {name} has no peer"));
    config.notices.extend(notices.collect::<Vec<_>>());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_cards_are_six_bytes() {
        assert_eq!(mac("52:54:0:ab:CD-ef"), Ok([0x52, 0x54, 0, 0xab, 0xcd, 0xef]));
        for text in
            ["", "52:54:00:12:34", "52:54:00:12:34:56:78", "52:54:00:12:34:+5", "1234:0:0:0:0:0"]
        {
            assert!(mac(text).is_err(), "{text}");
        }
    }
}
