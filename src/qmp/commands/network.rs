//! Commands about networks and network cards, and their events.

use rustix::fd::AsRawFd;
use serde_json::{Map, Value as Json, json};
use std::os::fd::OwnedFd;

use super::channels::SOCKET_ADDRESS;
use super::command::{Answer, Call, Command, Run};
use super::migration_shapes::ANNOUNCE;
use crate::args;
use crate::devices::{Filter, Mac, show_mac};
use crate::net::{Error as NetError, Event, Peer, Rounds};
use crate::qmp::args::Args;
use crate::qmp::error::Error;
use crate::qmp::schema::{Member, Shape, Type, Union, optional, required};
use crate::vmm::Events;

pub(crate) static COMMANDS: &[Command] = &[
    Command::new("netdev_add", Run::Waiting(netdev_add))
        .arguments(&NETDEV)
        .does("Makes a network that a card could be connected to."),
    Command::new("netdev_del", Run::Waiting(netdev_del))
        .arguments(&ID)
        .does("Takes a network away; a card on it has no link then."),
    Command::new("set_link", Run::Now(set_link))
        .arguments(&LINK)
        .does("Plugs the cable of a card, or of a network, in or out."),
    Command::new("query-rx-filter", Run::Now(query_rx_filter))
        .arguments(&NAME)
        .returns(Type::List(&Type::Object(&FILTER)))
        .does("Lists what network cards listen to."),
    Command::new("announce-self", Run::Now(announce))
        .arguments(&ANNOUNCE)
        .does("Tells switches where the guest's network cards are."),
];

const ITS_ID: Member = required("id", Type::Text).means("its id");
static ID: Shape = Shape::of(&[ITS_ID]);
static NETDEV: Shape = Shape::tagged(
    &[ITS_ID, required("type", Type::Enum(NETDEVS)).means("what it is made of")],
    Union {
        tag: "type",
        branches: &[
            ("user", &USER),
            ("tap", &TAP),
            ("socket", &SOCKET),
            ("stream", &STREAM),
            ("dgram", &DGRAM),
            ("hubport", &HUBPORT),
            ("vhost-user", &VHOST_USER),
        ],
    },
);
/// QEMU's.
static NETDEVS: &[&str] = &[
    "none",
    "nic",
    "user",
    "tap",
    "l2tpv3",
    "socket",
    "stream",
    "dgram",
    "vde",
    "bridge",
    "hubport",
    "netmap",
    "vhost-user",
    "vhost-vdpa",
];
static TEXT: Shape = Shape::of(&[required("str", Type::Text).means("one of them")]);
static USER: Shape = Shape::of(&[
    optional("hostname", Type::Text).means("refused: passt has nothing like it"),
    optional("restrict", Type::Bool).means("refused when on: passt has nothing like it"),
    optional("ipv4", Type::Bool).means("whether there is IPv4"),
    optional("ipv6", Type::Bool).means("whether there is IPv6"),
    optional("net", Type::Text).means("the guest's network"),
    optional("host", Type::Text).means("the gateway that it sees"),
    optional("tftp", Type::Text).means("refused: passt has nothing like it"),
    optional("bootfile", Type::Text).means("refused: passt has nothing like it"),
    optional("dhcpstart", Type::Text).means("the guest's address"),
    optional("dns", Type::Text).means("the name server that it sees"),
    optional("dnssearch", Type::List(&Type::Object(&TEXT)))
        .means("refused: passt has nothing like it"),
    optional("domainname", Type::Text).means("refused: passt has nothing like it"),
    optional("ipv6-prefix", Type::Text).means("refused: passt has nothing like it"),
    optional("ipv6-prefixlen", Type::Int).means("refused: passt has nothing like it"),
    optional("ipv6-host", Type::Text).means("refused: passt has nothing like it"),
    optional("ipv6-dns", Type::Text).means("refused: passt has nothing like it"),
    optional("smb", Type::Text).means("refused: passt has nothing like it"),
    optional("smbserver", Type::Text).means("refused: passt has nothing like it"),
    optional("hostfwd", Type::List(&Type::Object(&TEXT)))
        .means("ports of the host's for the guest"),
    optional("guestfwd", Type::List(&Type::Object(&TEXT)))
        .means("refused: passt has nothing like it"),
    optional("tftp-server-name", Type::Text).means("refused: passt has nothing like it"),
]);
static TAP: Shape = Shape::of(&[
    optional("ifname", Type::Text).means("the interface"),
    optional("fd", Type::Text).means("or a descriptor, by name or number"),
    optional("fds", Type::Text).means("the same, for one pair of queues"),
    optional("script", Type::Text).means("no"),
    optional("downscript", Type::Text).means("no"),
    optional("br", Type::Text).means("refused: there is no bridge helper"),
    optional("helper", Type::Text).means("refused: there is no bridge helper"),
    optional("sndbuf", Type::U64).means("bytes that may wait to be sent"),
    optional("vnet_hdr", Type::Bool).means("leave checksums and segmentation to the host"),
    optional("vhost", Type::Bool).means("refused when on: frames are carried by this process"),
    optional("vhostfd", Type::Text).means("refused: frames are carried by this process"),
    optional("vhostfds", Type::Text).means("refused: frames are carried by this process"),
    optional("vhostforce", Type::Bool).means("refused when on"),
    optional("queues", Type::U32).means("1"),
    optional("poll-us", Type::U32).means("0"),
]);
static SOCKET: Shape = Shape::of(&[
    optional("fd", Type::Text).means("or a descriptor, by name or number"),
    optional("listen", Type::Text).means("wait for a connection at [HOST]:PORT"),
    optional("connect", Type::Text).means("connect to HOST:PORT"),
    optional("mcast", Type::Text).means("join GROUP:PORT"),
    optional("localaddr", Type::Text).means("this end of datagrams"),
    optional("udp", Type::Text).means("the other end of datagrams"),
]);
static STREAM: Shape = Shape::of(&[
    required("addr", Type::Object(&SOCKET_ADDRESS)).means("where"),
    optional("server", Type::Bool).means("listen there"),
    optional("reconnect", Type::Int).means("try again after so many seconds"),
    optional("reconnect-ms", Type::Int).means("or milliseconds"),
]);
static DGRAM: Shape = Shape::of(&[
    optional("local", Type::Object(&SOCKET_ADDRESS)).means("this end"),
    optional("remote", Type::Object(&SOCKET_ADDRESS)).means("the other"),
]);
static HUBPORT: Shape = Shape::of(&[
    required("hubid", Type::Int).means("refused: there are no hubs"),
    optional("netdev", Type::Text).means("refused: there are no hubs"),
]);
static VHOST_USER: Shape = Shape::of(&[
    required("chardev", Type::Text).means("refused: vhost-user is not built yet"),
    optional("vhostforce", Type::Bool).means("refused when on"),
    optional("queues", Type::Int).means("1"),
]);
static LINK: Shape = Shape::of(&[
    required("name", Type::Text).means("the card, or the network"),
    required("up", Type::Bool).means("whether its cable is plugged in"),
]);
static NAME: Shape = Shape::of(&[optional("name", Type::Text).means("only this one")]);
static FILTER: Shape = Shape::of(&[
    required("name", Type::Text),
    required("promiscuous", Type::Bool),
    required("multicast", TAKEN),
    required("unicast", TAKEN),
    required("vlan", TAKEN),
    required("broadcast-allowed", Type::Bool),
    required("multicast-overflow", Type::Bool),
    required("unicast-overflow", Type::Bool),
    required("main-mac", Type::Text),
    required("vlan-table", Type::List(&Type::Int)),
    required("unicast-table", Type::List(&Type::Text)),
    required("multicast-table", Type::List(&Type::Text)),
]);
const TAKEN: Type = Type::Enum(&["normal", "none", "all"]);
pub(crate) static CONNECTED: Shape = Shape::of(&[
    required("netdev-id", Type::Text),
    required("addr", Type::Object(&SOCKET_ADDRESS)),
]);
pub(crate) static DISCONNECTED: Shape = Shape::of(&[required("netdev-id", Type::Text)]);
pub(crate) static FILTER_CHANGED: Shape =
    Shape::of(&[optional("name", Type::Text), required("path", Type::Text)]);

/// Tells clients.
pub(crate) fn emit(events: &Events, event: Event) {
    match event {
        Event::Connected { id, peer } => {
            let addr = match peer {
                Peer::Unix(path) => json!({"type": "unix", "path": path}),
                Peer::Inet(at) => {
                    let (host, port) = (at.ip().to_string(), at.port().to_string());
                    let family = if at.is_ipv6() { "ipv6" } else { "ipv4" };
                    json!({"type": "inet", "host": host, "port": port, family: true})
                }
            };
            events.emit("NETDEV_STREAM_CONNECTED", json!({"netdev-id": id, "addr": addr}));
        }
        Event::Disconnected { id } => {
            events.emit("NETDEV_STREAM_DISCONNECTED", json!({"netdev-id": id}));
        }
        Event::FilterChanged { name, path } => {
            let mut data = Map::new();
            if let Some(name) = name {
                data.insert("name".into(), name.into());
            }
            data.insert("path".into(), path.into());
            events.emit("NIC_RX_FILTER_CHANGED", data.into());
        }
    }
}

fn no_device(name: &str) -> Error {
    Error::device_not_found(format_args!("Device '{name}' not found"))
}

fn netdev_add(call: Call<'_>) -> Answer {
    let id = call.args.text("id");
    args::value::id(id).map_err(|_| Error::generic("Parameter 'id' expects an identifier"))?;
    if call.vmm.nets.has(id) {
        return Err(Error::generic(NetError::Duplicate(id.into())));
    }
    let kind = call.args.text("type");
    check(kind, call.args)?;
    let mut held = Vec::new();
    let mut members = call.args.to_json();
    name_descriptors(call, kind, &mut members, &mut held)?;
    const AT: &str = "netdev_add";
    let read = || args::netdev(AT, &args::json_pairs(members).map_err(|e| e.at(AT))?);
    let netdev = read().map_err(Error::generic)?;
    call.vmm.nets.add(&netdev).map_err(Error::generic)?;
    Ok(json!({}))
}

/// What QEMU says of members that do not go together.
fn check(kind: &str, args: Args<'_>) -> Result<(), Error> {
    let has = |names: &[&str]| names.iter().filter(|name| args.has(name)).count();
    let refuse = |why: &str| Err(Error::generic(why));
    let others =
        ["ifname", "script", "downscript", "vnet_hdr", "helper", "queues", "fds", "vhostfds"];
    match kind {
        "tap" if args.has("fd") && has(&others) > 0 => refuse(
            "ifname=, script=, downscript=, vnet_hdr=, helper=, queues=, fds=, and vhostfds= are invalid with fd=",
        ),
        "socket" if has(&["fd", "listen", "connect", "mcast", "udp"]) != 1 => {
            refuse("exactly one of listen=, connect=, mcast= or udp= is required")
        }
        "dgram" if has(&["local", "remote"]) == 0 => refuse("dgram requires local= parameter"),
        _ => Ok(()),
    }
}

/// Names of descriptors that came over the monitor become numbers, for as long as they are `held`.
fn name_descriptors(
    call: Call<'_>,
    kind: &str,
    members: &mut Map<String, Json>,
    held: &mut Vec<OwnedFd>,
) -> Result<(), Error> {
    let mut number = |place: &mut Json| {
        if let Some(name) =
            place.as_str().filter(|name| !name.starts_with(|c: char| c.is_ascii_digit()))
        {
            let fd = call.monitor.fds.take(name)?;
            *place = fd.as_raw_fd().to_string().into();
            held.push(fd);
        }
        Ok::<_, Error>(())
    };
    match kind {
        "tap" | "socket" => {
            for name in ["fd", "fds"] {
                members.get_mut(name).map_or(Ok(()), &mut number)?;
            }
        }
        _ => {
            for name in ["addr", "local", "remote"] {
                let address = members.get_mut(name).filter(|address| address["type"] == "fd");
                address.and_then(|address| address.get_mut("str")).map_or(Ok(()), &mut number)?;
            }
        }
    }
    Ok(())
}

fn netdev_del(call: Call<'_>) -> Answer {
    let id = call.args.text("id");
    if call.vmm.nets.remove(id) { Ok(json!({})) } else { Err(no_device(id)) }
}

fn set_link(call: Call<'_>) -> Answer {
    let name = call.args.text("name");
    match call.vmm.nets.set_link(name, call.args.bool("up")) {
        true => Ok(json!({})),
        false => Err(no_device(name)),
    }
}

fn query_rx_filter(call: Call<'_>) -> Answer {
    let name = call.args.text_if_given("name");
    let filters = call.vmm.nets.filters(name);
    match name {
        Some(name) if filters.is_empty() && call.vmm.nets.has(name) => {
            Err(Error::generic(format_args!("net client({name}) isn't a NIC")))
        }
        Some(name) if filters.is_empty() => {
            Err(Error::generic(format_args!("invalid net client name: {name}")))
        }
        _ => Ok(filters.iter().map(|(name, filter)| filter_json(name, filter)).collect()),
    }
}

fn filter_json(name: &str, filter: &Filter) -> Json {
    let taken = |none: bool, all: bool| match (none, all) {
        (true, _) => "none",
        (_, true) => "all",
        _ => "normal",
    };
    let vlans: Vec<u16> = (0..4096).rev().filter(|vlan| filter.has_vlan(*vlan)).collect();
    let macs = |macs: &[Mac]| macs.iter().map(|mac| show_mac(*mac)).collect::<Vec<_>>();
    json!({
        "name": name,
        "promiscuous": filter.promiscuous,
        "multicast": taken(filter.no_multicast, filter.all_multicast),
        "unicast": taken(filter.no_unicast, filter.all_unicast),
        "vlan": taken(vlans.is_empty(), !filter.chooses_vlans),
        // The other way round in QEMU, and so in those who read it.
        "broadcast-allowed": filter.no_broadcast,
        "multicast-overflow": filter.multicast_overflow,
        "unicast-overflow": filter.unicast_overflow,
        "main-mac": show_mac(filter.mac),
        "vlan-table": vlans,
        "unicast-table": macs(&filter.unicast),
        "multicast-table": macs(&filter.multicast),
    })
}

/// As many as a migration may have.
const ROUNDS_MAX: u64 = 1000;

fn announce(call: Call<'_>) -> Answer {
    let number = |name| u64::try_from(call.args.int(name)).unwrap_or(u64::MAX);
    let rounds = Rounds {
        initial: number("initial"),
        step: number("step"),
        max: number("max"),
        count: number("rounds"),
    };
    if rounds.count > ROUNDS_MAX {
        return Err(Error::generic("Parameter 'rounds' expects a value between 0 and 1000"));
    }
    let only = call.args.has("interfaces").then(|| {
        let names = call.args.list("interfaces").iter();
        names.filter_map(|name| name.as_str().map(String::from)).collect()
    });
    let id = call.args.text_if_given("id").unwrap_or("");
    call.vmm.nets.announce(rounds, only, id).map_err(Error::generic)?;
    Ok(json!({}))
}
