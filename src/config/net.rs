//! Networks that cards are connected to.

use super::{IpFamily, SocketAddress};
use std::net::Ipv4Addr;
use std::path::PathBuf;

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
    /// An inherited descriptor: of its kind depends which of the two before it is.
    Socket(i32),
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
            NetBackend::Socket(_) => "socket",
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
