//! What network cards are connected to: tap devices, connections, datagrams, and passt.
//!
//! | file | what |
//! |---|---|
//! | `open` | opens what a network is made of |
//! | `netdev` | one network as its card sees it, whatever it is made of |
//! | `tap`, `tun` | a tap device, and the kernel's interface to it |
//! | `stream`, `watch`, `bell` | frames on a connection; the thread that makes connections, and sees them end; what wakes it |
//! | `dgram` | a frame in each datagram |
//! | `descriptor` | sockets that came open |
//! | `user` | a network made by passt |
//! | `announce` | telling switches where a card is now |
//!
//! A card's own thread sends and receives, without waiting, under the network's lock. Opening takes
//! as long as names do.

mod announce;
mod bell;
mod descriptor;
mod dgram;
mod netdev;
mod open;
mod stream;
mod tap;
mod tun;
mod user;
mod watch;

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::config::{self, Offloads};
use crate::devices::{Card, Filter, Network, Networks};

pub use announce::Rounds;
use netdev::Netdev;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("network {id}: {what}: {source}")]
    Open { id: String, what: String, source: io::Error },
    #[error(
        "network {id}: passt is not installed, which makes networks for users; install it (Debian: apt install passt)"
    )]
    NoPasst { id: String },
    #[error("Duplicate ID '{0}'")]
    Duplicate(String),
}

/// Something that people and programs want to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    Connected {
        id: String,
        peer: Peer,
    },
    Disconnected {
        id: String,
    },
    /// Of the card of this name, if it was given one, at this place in the tree of objects.
    FilterChanged {
        name: Option<String>,
        path: String,
    },
}

/// Who is at the other end of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Peer {
    /// A name in the file system; empty for one without.
    Unix(String),
    Inet(SocketAddr),
}

type Tell = Arc<dyn Fn(Event) + Send + Sync>;

/// All networks of a machine, and the cards on them.
pub struct Nets {
    inner: Mutex<Inner>,
    tell: Tell,
}

#[derive(Default)]
struct Inner {
    netdevs: Vec<Arc<Netdev>>,
    /// Each with the id of its network.
    cards: Vec<(Arc<Card>, Option<String>)>,
    /// Announcements under way; the last that began under its name goes on.
    rounds: BTreeMap<String, u64>,
}

impl Nets {
    pub fn new(tell: impl Fn(Event) + Send + Sync + 'static) -> Nets {
        Nets { inner: Mutex::default(), tell: Arc::new(tell) }
    }

    /// Opens one; says what it really does. Takes as long as names and hosts do.
    pub fn add(&self, netdev: &config::Netdev) -> Result<Offloads, Error> {
        let id = &netdev.id;
        if self.find(id).is_some() {
            return Err(Error::Duplicate(id.clone()));
        }
        let opened = open::open(netdev, self.tell.clone())?;
        let offloads = opened.offloads();
        let mut inner = self.inner();
        // Another one may have been quicker.
        if inner.netdevs.iter().any(|other| other.id() == id) {
            return Err(Error::Duplicate(id.clone()));
        }
        inner.netdevs.push(opened);
        Ok(offloads)
    }

    /// Takes one away, whoever uses it: its card's cable is out then. False: there is none.
    pub fn remove(&self, id: &str) -> bool {
        let mut inner = self.inner();
        let Some(at) = inner.netdevs.iter().position(|netdev| netdev.id() == id) else {
            return false;
        };
        let netdev = inner.netdevs.remove(at);
        let cut: Vec<_> = inner.cards_on(id).collect();
        // Another one that gets this id is not theirs.
        for (_, on) in &mut inner.cards {
            on.take_if(|on| on == id);
        }
        drop(inner);
        netdev.close();
        cut.iter().for_each(|card| card.set_link(false));
        true
    }

    /// Plugs a cable in or out, at a card or at a network. False: there is none of this name.
    pub fn set_link(&self, name: &str, up: bool) -> bool {
        let inner = self.inner();
        let netdev = inner.netdevs.iter().find(|netdev| netdev.id() == name).cloned();
        let cards: Vec<_> = match &netdev {
            Some(_) => inner.cards_on(name).collect(),
            None => inner.cards_named(name).collect(),
        };
        drop(inner);
        if let Some(netdev) = &netdev {
            netdev.set_link(up);
        }
        cards.iter().for_each(|card| card.set_link(up));
        netdev.is_some() || !cards.is_empty()
    }

    /// What each card listens to, or the one of this name.
    pub fn filters(&self, name: Option<&str>) -> Vec<(String, Filter)> {
        let inner = self.inner();
        let cards = inner.cards.iter().map(|(card, _)| card);
        let cards = cards.filter(|card| name.is_none_or(|name| card.name == name));
        cards.map(|card| (card.name.clone(), card.look_at_filter())).collect()
    }

    /// Whether a network has this id.
    pub fn has(&self, name: &str) -> bool {
        self.find(name).is_some()
    }

    /// What there is, for people, as QEMU's `info network` has it.
    pub fn describe(&self) -> String {
        use std::fmt::Write;
        let inner = self.inner();
        let mut text = String::new();
        let mut shown = Vec::new();
        for (card, on) in &inner.cards {
            let mac = crate::devices::show_mac(card.state().filter.mac);
            let _ = writeln!(
                text,
                "{}: index=0,type=nic,model=virtio-net-device,macaddr={mac}\r",
                card.name
            );
            let on = on.as_ref().and_then(|on| inner.netdevs.iter().find(|n| n.id() == on));
            if let Some(netdev) = on {
                shown.push(netdev.id());
                let _ = writeln!(text, " \\ {}\r", netdev.describe());
            }
        }
        for netdev in inner.netdevs.iter().filter(|netdev| !shown.contains(&netdev.id())) {
            let _ = writeln!(text, "{}\r", netdev.describe());
        }
        text
    }

    fn find(&self, id: &str) -> Option<Arc<Netdev>> {
        self.inner().netdevs.iter().find(|netdev| netdev.id() == id).cloned()
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn cards_on<'a>(&'a self, id: &'a str) -> impl Iterator<Item = Arc<Card>> + 'a {
        let on = self.cards.iter().filter(move |(_, on)| on.as_deref() == Some(id));
        on.map(|(card, _)| card.clone())
    }

    fn cards_named<'a>(&'a self, name: &'a str) -> impl Iterator<Item = Arc<Card>> + 'a {
        let named = self.cards.iter().filter(move |(card, _)| card.name == name);
        named.map(|(card, _)| card.clone())
    }
}

impl Networks for Nets {
    fn network(&self, id: &str) -> Option<(Arc<dyn Network>, Offloads)> {
        let netdev = self.find(id)?;
        let offloads = netdev.offloads();
        Some((netdev, offloads))
    }

    fn plug(&self, card: Arc<Card>, network: Option<&str>) {
        let tell = self.tell.clone();
        let (name, path) = (card.is_named.then(|| card.name.clone()), card.path.clone());
        card.on_filter_changed(Box::new(move || {
            tell(Event::FilterChanged { name: name.clone(), path: path.clone() });
        }));
        if let Some(netdev) = network.and_then(|id| self.find(id)) {
            netdev.plug(&card);
        }
        self.inner().cards.push((card, network.map(String::from)));
    }
}
