//! `-netdev`, and the arguments of `netdev_add`: what network cards are connected to.

use super::error::{Error, Problem};
use super::keys::{Key, Keys, Pair, split};
use super::{json, value};
use crate::config::{
    DgramAddress, HostForward, IpFamily, NetBackend, NetRole, Netdev, Offloads, SocketAddress, Tap,
    UserNet,
};
use std::net::Ipv4Addr;

/// The kinds that there are.
pub(crate) const KINDS: [&str; 5] = ["tap", "stream", "dgram", "socket", "user"];

/// Back-ends that QEMU has besides.
const OTHER_KINDS: &[(&str, &str)] = &[
    ("none", "not for -netdev; write -nic none"),
    ("nic", "a card is a -device; write -device virtio-net-device"),
    ("hubport", "hubs are not built; connect the cards by a bridge of the host and tap"),
    ("bridge", "the bridge helper is not built; write tap,ifname="),
    ("l2tpv3", "not built; write tap over the host's own tunnel"),
    ("vde", "not built; write stream or dgram"),
    ("netmap", "not built; write tap"),
    ("af-xdp", "not built; write tap"),
    ("vhost-user", "not built yet; write tap or stream"),
    ("vhost-vdpa", "not built"),
];

/// Keys of all kinds; which ones fit is checked at the end.
#[derive(Default)]
pub(crate) struct Draft {
    kind: Option<&'static str>,
    id: Option<String>,
    /// The keys that were given, but for those two.
    given: Vec<&'static str>,
    fd: Option<String>,
    ifname: Option<String>,
    sndbuf: Option<u64>,
    vnet_hdr: Option<bool>,
    server: bool,
    reconnect_ms: Option<u64>,
    addr: Address,
    local: Address,
    remote: Address,
    /// `listen=`, `connect=`, `mcast=`, `udp=`.
    old_way: Vec<(&'static str, String)>,
    old_local: Option<String>,
    user: UserNet,
}

/// `addr.…`, `local.…`, `remote.…`
#[derive(Default)]
struct Address {
    kind: Option<String>,
    path: Option<String>,
    abstract_name: bool,
    host: Option<String>,
    port: Option<u16>,
    port_to: Option<u16>,
    fd: Option<String>,
    v4: Option<bool>,
    v6: Option<bool>,
}

macro_rules! key {
    ($name:literal, $value:literal, |$d:ident, $v:ident| $does:expr) => {
        Key::set($name, $value, |$d: &mut Draft, $v: &str| {
            $d.given.push($name);
            $does;
            Ok(())
        })
    };
}

/// The keys of one end of datagrams.
macro_rules! dgram {
    ($type:literal $path:literal $host:literal $port:literal $fd:literal $abstract:literal $v4:literal $v6:literal,
     $place:ident) => {
        [
            key!($type, "unix|inet|fd", |d, v| d.$place.kind = Some(v.into())),
            key!($path, "PATH", |d, v| d.$place.path = Some(text(v, "a path")?)),
            key!($host, "HOST", |d, v| d.$place.host = Some(v.into())),
            key!($port, "PORT", |d, v| d.$place.port = Some(port(v)?)),
            key!($fd, "N", |d, v| d.$place.fd = Some(v.into())),
            Key::refuse($abstract, "abstract names are for stream; write a path"),
            Key::refuse($v4, FAMILY),
            Key::refuse($v6, FAMILY),
        ]
    };
}

const FAMILY: &str = "not built; write an address of the family";
const VHOST: &str = "frames are carried by this process; write vhost=off";
const SCRIPTS: &str = "scripts are not run; set the device up before, and write =no";
const QUEUES: &str = "several pairs of queues are not built yet; write queues=1";
const USER: &str = "passt, which makes this network, has nothing like it";

static ADDR: [Key<Draft>; 10] = [
    key!("addr.type", "unix|inet|fd", |d, v| d.addr.kind = Some(v.into())),
    key!("addr.path", "PATH", |d, v| d.addr.path = Some(text(v, "a path")?)),
    key!("addr.abstract", "on|off", |d, v| d.addr.abstract_name = value::switch(v)?),
    Key::only("addr.tight", &["on"], "not built; abstract names end where they end"),
    key!("addr.host", "HOST", |d, v| d.addr.host = Some(v.into())),
    key!("addr.port", "PORT", |d, v| d.addr.port = Some(port(v)?)),
    key!("addr.to", "PORT", |d, v| d.addr.port_to = Some(port(v)?)),
    key!("addr.str", "N", |d, v| d.addr.fd = Some(v.into())),
    key!("addr.ipv4", "on|off", |d, v| d.addr.v4 = Some(value::switch(v)?)),
    key!("addr.ipv6", "on|off", |d, v| d.addr.v6 = Some(value::switch(v)?)),
];
static LOCAL: [Key<Draft>; 8] = dgram!("local.type" "local.path" "local.host" "local.port" "local.str" "local.abstract"
    "local.ipv4" "local.ipv6", local);
static REMOTE: [Key<Draft>; 8] = dgram!("remote.type" "remote.path" "remote.host" "remote.port" "remote.str"
    "remote.abstract" "remote.ipv4" "remote.ipv6", remote);

const OWN: Keys<Draft> = Keys {
    owner: "a network back-end",
    implied: Some("type"),
    table: &[
        Key::set("type", "tap|stream|dgram|socket|user", |d, v| {
            d.kind = Some(kind(v)?);
            Ok(())
        }),
        Key::set("id", "ID", |d, v| {
            d.id = Some(value::id(v)?);
            Ok(())
        }),
        key!("ifname", "NAME", |d, v| d.ifname = Some(interface(v)?)),
        key!("fd", "N", |d, v| d.fd = Some(v.into())),
        key!("fds", "N", |d, v| d.fd = Some(single(v)?)),
        key!("sndbuf", "SIZE", |d, v| d.sndbuf = Some(value::size(v, 1)?)),
        key!("vnet_hdr", "on|off", |d, v| d.vnet_hdr = Some(value::switch(v)?)),
        Key::only("script", &["no"], SCRIPTS),
        Key::only("downscript", &["no"], SCRIPTS),
        Key::only("vhost", &["off"], VHOST),
        Key::only("vhostforce", &["off"], VHOST),
        Key::refuse("vhostfd", VHOST),
        Key::refuse("vhostfds", VHOST),
        Key::only("queues", &["1"], QUEUES),
        Key::refuse("br", "the bridge helper is not built; write ifname="),
        Key::refuse("helper", "the bridge helper is not built; write ifname= or fd="),
        Key::only("poll-us", &["0"], VHOST),
        key!("server", "on|off", |d, v| d.server = value::switch(v)?),
        key!("reconnect-ms", "N", |d, v| d.reconnect_ms =
            Some(value::number(v, 0, u32::MAX.into())?)),
        key!("reconnect", "N", |d, v| d.reconnect_ms =
            Some(1000 * value::number(v, 0, 4_000_000)?)),
        key!("listen", "[HOST]:PORT", |d, v| d.old_way.push(("listen", v.into()))),
        key!("connect", "HOST:PORT", |d, v| d.old_way.push(("connect", v.into()))),
        key!("mcast", "GROUP:PORT", |d, v| d.old_way.push(("mcast", v.into()))),
        key!("udp", "HOST:PORT", |d, v| d.old_way.push(("udp", v.into()))),
        key!("localaddr", "HOST[:PORT]", |d, v| d.old_local = Some(v.into())),
        key!("hostfwd", "tcp|udp:[HOST]:PORT-[GUEST]:PORT", |d, v| d
            .user
            .forwards
            .push(forward(v)?)),
        key!("net", "ADDRESS/BITS", |d, v| net(v, &mut d.user)?),
        key!("host", "ADDRESS", |d, v| d.user.gateway = Some(ip(v)?)),
        key!("dns", "ADDRESS", |d, v| d.user.dns = Some(ip(v)?)),
        key!("dhcpstart", "ADDRESS", |d, v| d.user.address = Some(ip(v)?)),
        key!("ipv4", "on|off", |d, v| if !value::switch(v)? {
            d.user.only = Some(IpFamily::V6)
        }),
        key!("ipv6", "on|off", |d, v| if !value::switch(v)? {
            d.user.only = Some(IpFamily::V4)
        }),
        Key::only("restrict", &["off"], USER),
        Key::refuse("guestfwd", USER),
        Key::refuse("tftp", USER),
        Key::refuse("bootfile", USER),
        Key::refuse("smb", USER),
        Key::refuse("smbserver", USER),
        Key::refuse("hostname", USER),
        Key::refuse("domainname", USER),
        Key::refuse("dnssearch", USER),
        Key::refuse("ipv6-net", USER),
        Key::refuse("ipv6-prefix", USER),
        Key::refuse("ipv6-prefixlen", USER),
        Key::refuse("ipv6-host", USER),
        Key::refuse("ipv6-dns", USER),
    ],
};

/// What can be written.
pub(crate) fn parameters() -> Vec<super::Parameter> {
    let mut all = OWN.parameters();
    for table in [&ADDR[..], &LOCAL, &REMOTE] {
        all.extend(Keys { owner: "an address", implied: None, table }.parameters());
    }
    all
}

fn kind(name: &str) -> Result<&'static str, Problem> {
    if let Some(kind) = KINDS.iter().find(|known| **known == name) {
        return Ok(kind);
    }
    match OTHER_KINDS.iter().find(|(known, _)| *known == name) {
        Some((_, reason)) => Err(Problem::Refused(reason)),
        None => Err(value::unknown(name, &KINDS)),
    }
}

/// Reads one `-netdev`, in key or in JSON form.
pub(crate) fn read(option: &str, text: &str) -> Result<Netdev, Error> {
    let pairs = match text.trim_start().starts_with('{') {
        true => {
            json::json_pairs(text, json::Lists::Allowed).map_err(|problem| problem.at(option))?
        }
        false => split(text, Some("type")),
    };
    of_pairs(option, &pairs)
}

/// Reads keys that were given by whatever way.
pub(crate) fn of_pairs(option: &str, pairs: &[Pair]) -> Result<Netdev, Error> {
    let mut draft = Draft::default();
    for (key, value) in pairs {
        let address = |table| Keys { owner: "an address", implied: None, table };
        let keys = match key.split_once('.').map(|(prefix, _)| prefix) {
            Some("addr") => address(&ADDR[..]),
            Some("local") => address(&LOCAL),
            Some("remote") => address(&REMOTE),
            _ => OWN,
        };
        keys.set(option, key, value.as_deref(), &mut draft)?;
    }
    draft.netdev().map_err(|problem| problem.at(option))
}

fn text(text: &str, what: &'static str) -> Result<String, Problem> {
    if text.is_empty() { Err(Problem::Malformed(what)) } else { Ok(text.into()) }
}

fn port(text: &str) -> Result<u16, Problem> {
    Ok(value::number(text, 0, 65535)? as u16)
}

/// IFNAMSIZ, less the zero at its end.
const INTERFACE_BYTES_MAX: usize = 15;

fn interface(name: &str) -> Result<String, Problem> {
    match (1..=INTERFACE_BYTES_MAX).contains(&name.len()) && !name.contains(['/', '\0']) {
        true => Ok(name.into()),
        false => Err(Problem::Malformed("the name of an interface, 15 bytes at most")),
    }
}

fn single(text: &str) -> Result<String, Problem> {
    if text.contains(':') { Err(Problem::Refused(QUEUES)) } else { Ok(text.into()) }
}

fn number(text: &str) -> Result<i32, Problem> {
    Ok(value::number(text, 0, i32::MAX as u64)? as i32)
}

fn ip(text: &str) -> Result<Ipv4Addr, Problem> {
    text.parse().map_err(|_| Problem::Malformed("an IPv4 address"))
}

/// `10.0.2.0/24`, `10.0.2.0/255.255.255.0` and `10.0.2.0`.
fn net(text: &str, user: &mut UserNet) -> Result<(), Problem> {
    let (address, mask) = text.split_once('/').unwrap_or((text, "24"));
    let bits = match mask.parse::<Ipv4Addr>() {
        Ok(mask) if u32::from(mask).leading_ones() + u32::from(mask).trailing_zeros() >= 32 => {
            u32::from(mask).leading_ones()
        }
        _ => value::number(mask, 1, 30)? as u32,
    };
    let net = u32::from(ip(address)?);
    user.prefix = Some(bits as u8);
    // QEMU's places in the network, unless others are given.
    user.address = user.address.or(Some(Ipv4Addr::from(net | 15)));
    user.gateway = user.gateway.or(Some(Ipv4Addr::from(net | 2)));
    user.dns = user.dns.or(Some(Ipv4Addr::from(net | 3)));
    Ok(())
}

/// `[tcp|udp]:[HOST]:PORT-[GUEST]:PORT`. There is but one guest, so that its address says nothing.
fn forward(text: &str) -> Result<HostForward, Problem> {
    const SHAPE: Problem = Problem::Malformed("tcp|udp:[HOST]:PORT-[GUEST]:PORT");
    let (protocol, rest) = text.split_once(':').ok_or(SHAPE)?;
    let udp = match protocol {
        "tcp" | "" => false,
        "udp" => true,
        _ => return Err(SHAPE),
    };
    let (host, guest) = rest.split_once('-').ok_or(SHAPE)?;
    let (host, host_port) = host.rsplit_once(':').ok_or(SHAPE)?;
    let (guest, guest_port) = guest.rsplit_once(':').ok_or(SHAPE)?;
    if !guest.is_empty() {
        ip(guest)?;
    }
    let wanted = |text: &str| value::number(text, 1, 65535).map(|port| port as u16);
    Ok(HostForward {
        udp,
        host: if host.is_empty() { None } else { Some(ip(host)?) },
        host_port: wanted(host_port)?,
        guest_port: wanted(guest_port)?,
    })
}

impl Draft {
    fn netdev(self) -> Result<Netdev, Problem> {
        let kind = self.kind.ok_or(Problem::MissingKey("the back-end"))?;
        let id = self.id.clone().ok_or(Problem::MissingKey("id="))?;
        self.check_keys(kind)?;
        let vnet_hdr = kind == "tap" && self.vnet_hdr.unwrap_or(true);
        let backend = match kind {
            "tap" => NetBackend::Tap(self.tap()?),
            "stream" => self.stream()?,
            "dgram" => self.dgram()?,
            "socket" => self.socket()?,
            _ => NetBackend::User(self.user),
        };
        let offloads = Offloads { vnet_hdr, ufo: vnet_hdr, uso: vnet_hdr };
        Ok(Netdev { id, backend, offloads })
    }

    /// Refuses keys that another kind has.
    fn check_keys(&self, kind: &'static str) -> Result<(), Problem> {
        let fits = |key: &str| match key {
            "ifname" | "fds" | "sndbuf" | "vnet_hdr" => kind == "tap",
            "fd" => ["tap", "socket"].contains(&kind),
            "server" | "reconnect" | "reconnect-ms" => kind == "stream",
            "listen" | "connect" | "mcast" | "udp" | "localaddr" => kind == "socket",
            key if key.starts_with("addr.") => kind == "stream",
            key if key.contains('.') => kind == "dgram",
            _ => kind == "user",
        };
        match self.given.iter().find(|key| !fits(key)) {
            Some(key) => Err(Problem::Conflict(key, kind)),
            None => Ok(()),
        }
    }

    fn tap(self) -> Result<Tap, Problem> {
        if self.fd.is_some() && (self.ifname.is_some() || self.vnet_hdr.is_some()) {
            return Err(Problem::Malformed("fd= without ifname= and vnet_hdr="));
        }
        let fd = self.fd.as_deref().map(number).transpose()?;
        Ok(Tap { ifname: self.ifname, fd, sndbuf: self.sndbuf.unwrap_or(0) })
    }

    fn stream(self) -> Result<NetBackend, Problem> {
        let role = match (self.server, self.reconnect_ms) {
            (true, Some(1..)) => return Err(Problem::Conflict("reconnect-ms=", "server=on")),
            (true, _) => NetRole::Server,
            (false, again) => NetRole::Client { reconnect_ms: again.unwrap_or(0) },
        };
        Ok(NetBackend::Stream { address: self.addr.stream()?, role })
    }

    fn dgram(self) -> Result<NetBackend, Problem> {
        let (local, remote) = (self.local.dgram()?, self.remote.dgram()?);
        let joins = matches!(&remote, Some(DgramAddress::Udp { host, .. }) if is_group(host));
        match (&local, &remote) {
            (None, _) if !joins => Err(Problem::MissingKey("local.type=")),
            (Some(DgramAddress::Unix(_)), Some(DgramAddress::Udp { .. } | DgramAddress::Fd(_)))
            | (Some(DgramAddress::Udp { .. }), Some(DgramAddress::Unix(_) | DgramAddress::Fd(_))) => {
                Err(Problem::Malformed("local. and remote. of the same type"))
            }
            (Some(DgramAddress::Fd(_)), Some(_)) if !joins => {
                Err(Problem::Conflict("remote.type=", "local.type=fd"))
            }
            (Some(DgramAddress::Udp { .. }), None) => Err(Problem::MissingKey("remote.type=")),
            _ => Ok(NetBackend::Dgram { local, remote }),
        }
    }

    /// The older spelling of the two before.
    fn socket(self) -> Result<NetBackend, Problem> {
        const ONE: Problem = Problem::Malformed("one of fd=, listen=, connect=, mcast= and udp=");
        if let Some(fd) = &self.fd {
            if !self.old_way.is_empty() {
                return Err(ONE);
            }
            return Ok(NetBackend::Socket(number(fd)?));
        }
        let [(way, address)] = &self.old_way[..] else { return Err(ONE) };
        let local = self.old_local.as_deref();
        if local.is_some() && !["mcast", "udp"].contains(way) {
            return Err(Problem::Conflict("localaddr=", way));
        }
        let (host, port) = host_and_port(address)?;
        let tcp = |host| SocketAddress::Tcp {
            host,
            port,
            port_to: None,
            family: IpFamily::Any,
            nodelay: true,
        };
        Ok(match *way {
            "listen" => NetBackend::Stream { address: tcp(host), role: NetRole::Server },
            "connect" => {
                let role = NetRole::Client { reconnect_ms: 0 };
                NetBackend::Stream { address: tcp(host), role }
            }
            "udp" => {
                let local = local.ok_or(Problem::MissingKey("localaddr="))?;
                let (local, local_port) = host_and_port(local)?;
                NetBackend::Dgram {
                    local: Some(DgramAddress::Udp { host: local, port: local_port }),
                    remote: Some(DgramAddress::Udp { host, port }),
                }
            }
            _ if !is_group(&host) => return Err(Problem::Malformed("the address of a group")),
            _ => NetBackend::Dgram {
                local: local.map(|host| DgramAddress::Udp { host: host.into(), port: 0 }),
                remote: Some(DgramAddress::Udp { host, port }),
            },
        })
    }
}

fn is_group(host: &str) -> bool {
    host.parse::<Ipv4Addr>().is_ok_and(|address| address.is_multicast())
}

fn host_and_port(text: &str) -> Result<(String, u16), Problem> {
    let (host, number) = text.rsplit_once(':').ok_or(Problem::Malformed("HOST:PORT"))?;
    Ok((host.trim_matches(['[', ']']).into(), port(number)?))
}

impl Address {
    fn stream(self) -> Result<SocketAddress, Problem> {
        match self.kind.as_deref() {
            Some("unix") => {
                let path = self.path.ok_or(Problem::MissingKey("addr.path="))?;
                Ok(match self.abstract_name {
                    true => SocketAddress::Abstract { name: path },
                    false => SocketAddress::Unix { path: path.into() },
                })
            }
            Some("inet") => Ok(SocketAddress::Tcp {
                host: self.host.ok_or(Problem::MissingKey("addr.host="))?,
                port: self.port.ok_or(Problem::MissingKey("addr.port="))?,
                port_to: self.port_to,
                family: super::chardev::family(self.v4, self.v6)?,
                nodelay: true,
            }),
            Some("fd") => {
                let fd = self.fd.ok_or(Problem::MissingKey("addr.str="))?;
                Ok(SocketAddress::Fd(number(&fd)?))
            }
            Some("vsock") => Err(Problem::Refused("vsock is not built yet; write unix or inet")),
            Some(other) => Err(value::unknown(other, &["unix", "inet", "fd"])),
            None => Err(Problem::MissingKey("addr.type=")),
        }
    }

    fn dgram(self) -> Result<Option<DgramAddress>, Problem> {
        Ok(Some(match self.kind.as_deref() {
            None => return Ok(None),
            Some("unix") => {
                DgramAddress::Unix(self.path.ok_or(Problem::MissingKey("path"))?.into())
            }
            Some("inet") => DgramAddress::Udp {
                host: self.host.ok_or(Problem::MissingKey("host"))?,
                port: self.port.ok_or(Problem::MissingKey("port"))?,
            },
            Some("fd") => DgramAddress::Fd(number(&self.fd.ok_or(Problem::MissingKey("str"))?)?),
            Some(other) => return Err(value::unknown(other, &["unix", "inet", "fd"])),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn backend(text: &str) -> NetBackend {
        read("-netdev", text).unwrap_or_else(|error| panic!("{text}: {error}")).backend
    }

    fn refusal(text: &str) -> String {
        read("-netdev", text).unwrap_err().to_string()
    }

    #[test]
    fn kinds_and_their_addresses_are_read() {
        let tap = Tap { ifname: Some("tap0".into()), ..Tap::default() };
        assert_eq!(
            backend("tap,id=n,ifname=tap0,script=no,downscript=no,vhost=off"),
            NetBackend::Tap(tap)
        );
        assert_eq!(
            backend("tap,id=n,fd=5"),
            NetBackend::Tap(Tap { fd: Some(5), ..Tap::default() })
        );
        assert_eq!(backend("socket,id=n,fd=5"), NetBackend::Socket(5));
        let path = SocketAddress::Unix { path: "/s".into() };
        assert_eq!(
            backend("stream,id=n,server=on,addr.type=unix,addr.path=/s"),
            NetBackend::Stream { address: path.clone(), role: NetRole::Server }
        );
        let json = r#"{"type": "stream", "id": "n", "reconnect-ms": 50, "addr": {"type": "unix", "path": "/s"}}"#;
        let role = NetRole::Client { reconnect_ms: 50 };
        assert_eq!(backend(json), NetBackend::Stream { address: path, role });
        let udp = |host: &str, port| Some(DgramAddress::Udp { host: host.into(), port });
        assert_eq!(
            backend("socket,id=n,udp=h:2,localaddr=:3"),
            NetBackend::Dgram { local: udp("", 3), remote: udp("h", 2) }
        );
        assert_eq!(
            backend("dgram,id=n,remote.type=inet,remote.host=230.0.0.1,remote.port=9"),
            NetBackend::Dgram { local: None, remote: udp("230.0.0.1", 9) }
        );
        let NetBackend::User(user) = backend("user,id=n,hostfwd=tcp::2222-:22,net=10.1.0.0/24")
        else {
            panic!()
        };
        assert_eq!((user.forwards[0].host_port, user.forwards[0].guest_port), (2222, 22));
        assert_eq!(user.address.unwrap().to_string(), "10.1.0.15");
    }

    #[test]
    fn what_does_not_fit_is_named() {
        for (text, words) in [
            ("tap", "id="),
            ("tap,id=n,server=on", "server"),
            ("tap,id=n,vhost=on", "vhost=off"),
            ("tap,id=n,fds=3:4", "queues=1"),
            ("tap,id=n,ifname=0123456789abcdef", "15 bytes"),
            ("tap,id=n,script=/etc/qemu-ifup", "scripts are not run"),
            ("stream,id=n", "addr.type="),
            ("stream,id=n,addr.type=unix", "addr.path="),
            ("stream,id=n,addr.type=vsock", "vsock"),
            ("stream,id=n,server=on,reconnect-ms=1,addr.type=fd,addr.str=3", "reconnect-ms"),
            ("dgram,id=n", "local.type="),
            ("socket,id=n", "one of"),
            ("socket,id=n,listen=:1,connect=:2", "one of"),
            ("user,id=n,hostfwd=tcp:22", "hostfwd"),
            ("user,id=n,smb=/", "passt"),
            ("hubport,id=n", "hubs"),
            ("wire,id=n", "wire"),
        ] {
            let told = refusal(text);
            assert!(told.contains(words), "{text}: {told}");
        }
    }
}
