//! What lies between a network card of the guest and what is behind it: frames in both directions.

use crate::config::Offloads;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

/// Bytes in front of each frame: what is left to be done of checksums and segmentation
/// (`virtio_net_hdr` without the number of buffers), little-endian. Zeros: nothing.
pub(crate) const HEADER_BYTES: usize = 10;
/// The longest frame with its header, as in QEMU: 64 KiB of payload, and some.
pub(crate) const FRAME_BYTES_MAX: usize = (64 << 10) + 4096;

/// A network as a card sees it. Nothing here waits.
pub trait Network: Send + Sync {
    /// Sends a frame; false if that must wait until [`Network::wait`]'s descriptor can be written.
    /// One that cannot leave at all is lost, as on a wire.
    fn send(&self, header: &[u8; HEADER_BYTES], frame: &[u8]) -> bool;

    /// The next frame, with its header in front: its length, if there is one.
    fn receive(&self, into: &mut [u8]) -> Option<usize>;

    /// What tells that there is something to be received, or room to send. `None`: the card will be
    /// woken.
    fn wait(&self) -> Option<Arc<OwnedFd>>;

    /// What was not taken when it was sent waits still.
    fn has_unsent(&self) -> bool;

    /// What the guest can do by itself with a frame (the bits of `TUNSETOFFLOAD`).
    fn set_offloads(&self, flags: u32);

    /// Somebody plugged it out (`netdev_del`).
    fn is_gone(&self) -> bool;
}

/// The networks of a machine.
pub trait Networks: Send + Sync {
    /// By its id, with what it does.
    fn network(&self, id: &str) -> Option<(Arc<dyn Network>, Offloads)>;

    /// A card was built, connected to the network of this id if any.
    fn plug(&self, card: Arc<Card>, network: Option<&str>);
}

/// For a machine without any.
pub struct NoNetworks;

impl Networks for NoNetworks {
    fn network(&self, _: &str) -> Option<(Arc<dyn Network>, Offloads)> {
        None
    }

    fn plug(&self, _: Arc<Card>, _: Option<&str>) {}
}

pub(crate) type Mac = [u8; 6];

/// A card as commands see it, whatever the guest does meanwhile.
pub struct Card {
    pub name: String,
    /// It was given that name.
    pub is_named: bool,
    /// Its place in the tree of objects.
    pub path: String,
    state: Mutex<CardState>,
    /// A change of the filter is told once, until somebody looks at it.
    told: AtomicBool,
    wake: OnceLock<Arc<dyn Fn() + Send + Sync>>,
    changed: OnceLock<Box<dyn Fn() + Send + Sync>>,
}

#[derive(Clone, Debug)]
pub struct CardState {
    /// Whether its cable is plugged in.
    pub link_down: bool,
    /// It shall tell the guest to announce itself.
    pub announce: bool,
    pub filter: Filter,
}

/// Which frames a card takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter {
    pub mac: Mac,
    pub promiscuous: bool,
    pub all_multicast: bool,
    pub all_unicast: bool,
    pub no_multicast: bool,
    pub no_unicast: bool,
    pub no_broadcast: bool,
    /// There were more addresses than places: all are taken.
    pub multicast_overflow: bool,
    pub unicast_overflow: bool,
    pub unicast: Vec<Mac>,
    pub multicast: Vec<Mac>,
    /// A bit for each VLAN that is taken, the lowest first.
    pub vlans: Box<[u8; VLAN_BYTES]>,
    /// The guest chooses VLANs.
    pub chooses_vlans: bool,
}

/// A bit for each VLAN.
const VLAN_BYTES: usize = 512;

impl Filter {
    /// As after a reset.
    pub fn new(mac: Mac) -> Filter {
        Filter {
            mac,
            promiscuous: true,
            all_multicast: false,
            all_unicast: false,
            no_multicast: false,
            no_unicast: false,
            no_broadcast: false,
            multicast_overflow: false,
            unicast_overflow: false,
            unicast: Vec::new(),
            multicast: Vec::new(),
            vlans: Box::new([0xff; VLAN_BYTES]),
            chooses_vlans: false,
        }
    }

    pub fn has_vlan(&self, vlan: u16) -> bool {
        self.vlans.get(usize::from(vlan / 8)).is_some_and(|byte| byte & 1 << (vlan % 8) != 0)
    }

    /// False: there is no such VLAN.
    pub fn set_vlan(&mut self, vlan: u16, on: bool) -> bool {
        let Some(byte) = self.vlans.get_mut(usize::from(vlan / 8)) else { return false };
        match on {
            true => *byte |= 1 << (vlan % 8),
            false => *byte &= !(1 << (vlan % 8)),
        }
        true
    }

    /// Whether a frame, whole or its beginning, is for the guest.
    pub fn takes(&self, frame: &[u8]) -> bool {
        let Some((to, rest)) = frame.split_first_chunk::<6>() else { return false };
        let Some(kind) = rest.get(6..8) else { return false };
        if self.promiscuous {
            return true;
        }
        if kind == VLAN_TAG
            && let Some(tag) = rest.get(8..10)
            && !self.has_vlan(u16::from_be_bytes([tag[0], tag[1]]) & 0xfff)
        {
            return false;
        }
        match to {
            [0xff, 0xff, 0xff, 0xff, 0xff, 0xff] => !self.no_broadcast,
            _ if to[0] & 1 != 0 => {
                !self.no_multicast
                    && (self.all_multicast
                        || self.multicast_overflow
                        || self.multicast.contains(to))
            }
            _ => {
                !self.no_unicast
                    && (self.all_unicast
                        || self.unicast_overflow
                        || *to == self.mac
                        || self.unicast.contains(to))
            }
        }
    }
}

const VLAN_TAG: [u8; 2] = [0x81, 0x00];

/// `52:54:00:12:34:56`
pub(crate) fn show_mac(mac: Mac) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

impl Card {
    pub fn new(name: String, is_named: bool, path: String, mac: Mac) -> Card {
        Card {
            name,
            is_named,
            path,
            state: Mutex::new(CardState {
                link_down: false,
                announce: false,
                filter: Filter::new(mac),
            }),
            told: AtomicBool::new(false),
            wake: OnceLock::new(),
            changed: OnceLock::new(),
        }
    }

    /// Who is woken when something was changed here. Once.
    pub fn connect(&self, wake: Arc<dyn Fn() + Send + Sync>) {
        let _ = self.wake.set(wake);
    }

    /// Who is told that the guest changed the filter. Once.
    pub fn on_filter_changed(&self, tell: Box<dyn Fn() + Send + Sync>) {
        let _ = self.changed.set(tell);
    }

    pub fn state(&self) -> MutexGuard<'_, CardState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn wake(&self) {
        if let Some(wake) = self.wake.get() {
            wake();
        }
    }

    /// The guest changed it.
    pub fn set_filter(&self, filter: Filter) {
        let changed = std::mem::replace(&mut self.state().filter, filter.clone()) != filter;
        if changed
            && !self.told.swap(true, Ordering::SeqCst)
            && let Some(tell) = self.changed.get()
        {
            tell();
        }
    }

    /// The next change is told again.
    pub fn look_at_filter(&self) -> Filter {
        self.told.store(false, Ordering::SeqCst);
        self.state().filter.clone()
    }

    pub fn set_link(&self, up: bool) {
        self.state().link_down = !up;
        self.wake();
    }

    /// The guest shall tell where it is, if it can.
    pub fn announce(&self) {
        self.state().announce = true;
        self.wake();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OURS: Mac = [0x52, 0x54, 0, 0, 0, 1];
    const OTHER: Mac = [0x52, 0x54, 0, 0, 0, 2];
    const GROUP: Mac = [1, 0, 0x5e, 0, 0, 1];
    const ALL: Mac = [0xff; 6];

    fn frame(to: Mac) -> Vec<u8> {
        [&to[..], &OTHER, &[8, 0], &[0; 46]].concat()
    }

    fn tagged(to: Mac, vlan: u16) -> Vec<u8> {
        [&to[..], &OTHER, &VLAN_TAG, &vlan.to_be_bytes(), &[8, 0], &[0; 42]].concat()
    }

    #[test]
    fn frames_are_taken_as_the_guest_wants_them() {
        let mut filter = Filter::new(OURS);
        assert!(filter.takes(&frame(OTHER)) && !filter.takes(b"short"));
        filter.promiscuous = false;
        let takes = |filter: &Filter| [OURS, OTHER, GROUP, ALL].map(|to| filter.takes(&frame(to)));
        assert_eq!(takes(&filter), [true, false, false, true]);
        filter.multicast.push(GROUP);
        filter.unicast.push(OTHER);
        assert_eq!(takes(&filter), [true, true, true, true]);
        (filter.no_broadcast, filter.no_multicast, filter.no_unicast) = (true, true, true);
        assert_eq!(takes(&filter), [false; 4]);
        let filter = Filter {
            promiscuous: false,
            unicast_overflow: true,
            multicast_overflow: true,
            ..Filter::new(OURS)
        };
        assert_eq!(takes(&filter), [true; 4]);
    }

    #[test]
    fn vlans_are_chosen() {
        let mut filter = Filter { promiscuous: false, ..Filter::new(OURS) };
        assert!(filter.takes(&tagged(OURS, 5)));
        assert!(filter.set_vlan(5, false) && filter.set_vlan(4095, true));
        assert!(!filter.set_vlan(4096, true));
        // The priority beside the number says nothing.
        assert!(!filter.takes(&tagged(OURS, 5 | 0xe000)) && filter.takes(&tagged(OURS, 6)));
    }

    #[test]
    fn a_change_is_told_once_until_somebody_looks() {
        use std::sync::atomic::AtomicUsize;
        let card = Card::new("c".into(), true, String::new(), OURS);
        let told = Arc::new(AtomicUsize::new(0));
        let count = told.clone();
        card.on_filter_changed(Box::new(move || {
            count.fetch_add(1, Ordering::SeqCst);
        }));
        let changed = |all_multicast| Filter { all_multicast, ..Filter::new(OURS) };
        for (all, times) in [(false, 0), (true, 1), (false, 1)] {
            card.set_filter(changed(all));
            assert_eq!(told.load(Ordering::SeqCst), times);
        }
        card.look_at_filter();
        card.set_filter(changed(true));
        assert_eq!(told.load(Ordering::SeqCst), 2);
    }
}
