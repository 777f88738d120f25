//! Migration addresses as QMP objects: member `channels` of `migrate` and `migrate-incoming`, and
//! the JSON form of `-incoming`.

use crate::io::address::{Family, Tcp, UnixName};
use crate::io::{Address, AddressError};
use crate::qmp::args::Args;
use crate::qmp::error::Error;
use crate::qmp::json::{Reader, Value};
use crate::qmp::schema::{self, Shape, Type, Union, optional, required};

/// One of the list.
pub(crate) static CHANNEL: Shape = Shape::of(&[
    required("channel-type", Type::Enum(&["main", "cpr"])),
    required("addr", Type::Object(&ADDRESS)),
]);
static ADDRESS: Shape = Shape::tagged(
    &[required("transport", Type::Enum(&["socket", "exec", "rdma", "file"]))],
    Union {
        tag: "transport",
        branches: &[("socket", &SOCKET_ADDRESS), ("exec", &EXEC), ("rdma", &INET), ("file", &FILE)],
    },
);
static EXEC: Shape = Shape::of(&[required("args", Type::List(&Type::Text))]);
static FILE: Shape = Shape::of(&[required("filename", Type::Text), required("offset", Type::U64)]);
/// Where a socket is, or listens.
pub(crate) static SOCKET_ADDRESS: Shape = Shape::tagged(
    &[required("type", Type::Enum(&["inet", "unix", "vsock", "fd"]))],
    Union {
        tag: "type",
        branches: &[("inet", &INET), ("unix", &UNIX), ("vsock", &VSOCK), ("fd", &FD)],
    },
);
pub(super) static INET: Shape = Shape::of(&[
    required("host", Type::Text),
    required("port", Type::Text),
    optional("numeric", Type::Bool),
    optional("to", Type::U16),
    optional("ipv4", Type::Bool),
    optional("ipv6", Type::Bool),
    // Always on: a peer that is gone is noticed.
    optional("keep-alive", Type::Bool),
    optional("mptcp", Type::Bool),
]);
pub(super) static UNIX: Shape = Shape::of(&[
    required("path", Type::Text),
    optional("abstract", Type::Bool),
    optional("tight", Type::Bool),
]);
pub(super) static VSOCK: Shape =
    Shape::of(&[required("cid", Type::Text), required("port", Type::Text)]);
pub(super) static FD: Shape = Shape::of(&[required("str", Type::Text)]);

/// Which way the guest goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    Out,
    In,
}

/// From `uri` and `channels`, of which exactly one must be there; an empty list counts as absent.
pub(crate) fn address(args: Args<'_>, way: Way) -> Result<Address, AddressError> {
    let channels: Vec<Args<'_>> = args.objects("channels").collect();
    match (args.text_if_given("uri"), channels.is_empty()) {
        (Some(uri), true) => Address::from_uri(uri),
        (None, false) => main_channel(&channels, way),
        _ => Err(AddressError::Missing),
    }
}

/// The one of type `main`. A `cpr` channel is for a mode that does not exist here, and in others
/// QEMU looks at it no more than this does.
fn main_channel(channels: &[Args<'_>], way: Way) -> Result<Address, AddressError> {
    if way == Way::In && channels.len() > 1 {
        return Err(AddressError::OnlyMain);
    }
    let of = |kind| channels.iter().filter(move |channel| channel.text("channel-type") == kind);
    for kind in ["main", "cpr"] {
        if of(kind).count() > 1 {
            return Err(AddressError::Several(kind));
        }
    }
    let main = of("main").next().ok_or(AddressError::NoMain)?;
    read(main.object("addr"))
}

fn read(address: Args<'_>) -> Result<Address, AddressError> {
    match address.text("transport") {
        "socket" => read_socket(address),
        "exec" => {
            let words = address.list("args").iter().filter_map(Value::as_str).map(str::to_owned);
            let words: Vec<String> = words.collect();
            if words.is_empty() { Err(AddressError::EmptyExec) } else { Ok(Address::Exec(words)) }
        }
        "file" => Ok(Address::File {
            path: address.text("filename").to_owned(),
            offset: address.unsigned("offset"),
        }),
        _rdma => Err(AddressError::NotBuilt("rdma")),
    }
}

fn read_socket(address: Args<'_>) -> Result<Address, AddressError> {
    let text = |name| address.text(name).to_owned();
    let bool = |name| address.bool_if_given(name);
    match address.text("type") {
        "inet" => Ok(Address::Tcp(Tcp {
            host: text("host"),
            port: text("port"),
            to: address.unsigned_if_given("to").map(|port| port as u16),
            family: Family::of(bool("ipv4"), bool("ipv6")),
            numeric: bool("numeric") == Some(true),
            mptcp: bool("mptcp") == Some(true),
        })),
        "unix" if bool("abstract") == Some(true) => {
            let tight = bool("tight").unwrap_or(true);
            Ok(Address::Unix(UnixName::Abstract { name: text("path"), tight }))
        }
        "unix" => Ok(Address::unix(text("path"))),
        "fd" => Ok(Address::Fd(text("str"))),
        _vsock => Err(AddressError::NotBuilt("vsock")),
    }
}

/// From the command line: a URI, or one channel as a JSON object.
pub(crate) fn incoming(text: &str) -> Result<Address, Error> {
    if !text.starts_with('{') {
        return Address::from_uri(text).map_err(Error::generic);
    }
    let channel = match Reader::new().next(&mut text.as_bytes()) {
        Some(Ok(Value::Object(channel))) => channel,
        Some(Err(error)) => return Err(error.into()),
        _ => return Err(Error::generic("JSON parse error, premature EOI")),
    };
    schema::check(&channel, &CHANNEL, "")?;
    main_channel(&[Args::new(&channel)], Way::In).map_err(Error::generic)
}

#[cfg(test)]
mod tests {
    use super::*;

    static ARGUMENTS: Shape = Shape::of(&[
        optional("uri", Type::Text),
        optional("channels", Type::List(&Type::Object(&CHANNEL))),
    ]);

    fn read(arguments: &str, way: Way) -> Result<Address, String> {
        let Some(Ok(Value::Object(members))) = Reader::new().next(&mut arguments.as_bytes()) else {
            panic!("{arguments}")
        };
        schema::check(&members, &ARGUMENTS, "").map_err(|error| error.desc)?;
        address(Args::new(&members), way).map_err(|error| error.to_string())
    }

    /// With the address of one main channel.
    fn main_of(address: &str) -> Result<Address, String> {
        read(&format!("{{'channels':[{{'channel-type':'main','addr':{address}}}]}}"), Way::Out)
    }

    #[test]
    fn addresses_are_read() {
        let socket = |text: &str| main_of(&format!("{{'transport':'socket',{text}}}")).unwrap();
        assert_eq!(socket("'type':'unix','path':'/p,q','tight':true"), Address::unix("/p,q"));
        let name = |tight| Address::Unix(UnixName::Abstract { name: "/p".into(), tight });
        assert_eq!(socket("'type':'unix','path':'/p','abstract':true"), name(true));
        assert_eq!(socket("'type':'unix','path':'/p','abstract':true,'tight':false"), name(false));
        assert_eq!(socket("'type':'fd','str':'x'"), Address::Fd("x".into()));
        let inet = |text: &str| match socket(&format!("'type':'inet','host':'h','port':'1'{text}"))
        {
            Address::Tcp(tcp) => tcp,
            other => panic!("{other}"),
        };
        assert_eq!(inet("").family, Family::Any);
        assert_eq!(inet(",'ipv4':true").family, Family::V4);
        assert_eq!(inet(",'ipv6':false").family, Family::V4);
        assert_eq!(inet(",'ipv4':false,'ipv6':true,'keep-alive':true").family, Family::V6);
        assert_eq!(inet(",'ipv4':false,'ipv6':false").family, Family::Neither);
        let all = inet(",'numeric':true,'mptcp':true,'to':65535");
        assert!(all.numeric && all.mptcp && all.to == Some(65535));
        let file = main_of("{'transport':'file','filename':'f','offset':-1}").unwrap();
        assert_eq!(file, Address::File { path: "f".into(), offset: u64::MAX });
    }

    #[test]
    fn faults_in_addresses_are_named_as_qemu_names_them() {
        let inet = "'transport':'socket','type':'inet','host':'h','port':'1'";
        let unix = "'transport':'socket','type':'unix','path':'/p'";
        for (address, text) in [
            ("'x'", "Invalid parameter type for 'channels[0].addr', expected: object"),
            ("{}", "Parameter 'channels[0].addr.transport' is missing"),
            ("{'transport':'x'}", "Parameter 'transport' does not accept value 'x'"),
            ("{'transport':'socket'}", "Parameter 'channels[0].addr.type' is missing"),
            ("{'transport':'socket','type':'x'}", "Parameter 'type' does not accept value 'x'"),
            (
                &format!("{{{unix},'abstract':'yes'}}"),
                "Invalid parameter type for 'channels[0].addr.abstract', expected: boolean",
            ),
            (&format!("{{{unix},'host':'h'}}"), "Parameter 'channels[0].addr.host' is unexpected"),
            (
                &format!("{{{inet},'ipv4':'yes'}}"),
                "Invalid parameter type for 'channels[0].addr.ipv4', expected: boolean",
            ),
            (&format!("{{{inet},'to':65536}}"), "Parameter 'to' expects uint16_t"),
            (&format!("{{{inet},'to':'5'}}"), "Parameter 'channels[0].addr.to' expects uint64"),
            (&format!("{{{inet},'path':'x'}}"), "Parameter 'channels[0].addr.path' is unexpected"),
            (
                "{'transport':'exec','args':[1]}",
                "Invalid parameter type for 'channels[0].addr.args[0]', expected: string",
            ),
            ("{'transport':'exec','args':[]}", "exec needs at least one argument"),
            (
                "{'transport':'file','filename':'f'}",
                "Parameter 'channels[0].addr.offset' is missing",
            ),
            ("{'transport':'rdma'}", "Parameter 'channels[0].addr.host' is missing"),
            ("{'transport':'rdma','host':'h','port':'1'}", "migration over rdma is not built in"),
            (
                "{'transport':'socket','type':'vsock','cid':'3','port':'1'}",
                "migration over vsock is not built in",
            ),
        ] {
            assert_eq!(main_of(address).unwrap_err(), text, "{address}");
        }
    }

    #[test]
    fn there_is_one_main_channel() {
        let main = "{'channel-type':'main','addr':{'transport':'socket','type':'fd','str':'x'}}";
        let cpr = main.replace("main", "cpr");
        for (arguments, out, incoming) in [
            ("{}".to_owned(), "need either 'uri' or 'channels' argument", None),
            (
                format!("{{'uri':'fd:x','channels':[{main}]}}"),
                "need either 'uri' or 'channels' argument",
                None,
            ),
            (
                format!("{{'channels':[{main},{main}]}}"),
                "Channel list has more than one main entry",
                Some("Channel list must have only one entry, for type 'main'"),
            ),
            (format!("{{'channels':[{cpr}]}}"), "missing 'main' migration channel", None),
        ] {
            assert_eq!(read(&arguments, Way::Out).unwrap_err(), out);
            assert_eq!(read(&arguments, Way::In).unwrap_err(), incoming.unwrap_or(out));
        }
        for arguments in
            ["{'uri':'fd:x','channels':[]}".to_owned(), format!("{{'channels':[{cpr},{main}]}}")]
        {
            assert_eq!(read(&arguments, Way::Out).unwrap(), Address::Fd("x".into()));
        }
    }

    #[test]
    fn the_command_line_takes_a_channel_too() {
        let channel = |addr: &str| incoming(&format!("{{'channel-type':'main','addr':{addr}}}"));
        let unix = channel("{'transport':'socket','type':'unix','path':'p'}").unwrap();
        assert_eq!(unix, Address::unix("p"));
        assert_eq!(incoming("unix:p,q").unwrap(), Address::unix("p,q"));
        assert_eq!(channel("{}").unwrap_err().desc, "Parameter 'addr.transport' is missing");
        assert!(incoming("{").is_err() && incoming("{'a':}").is_err());
    }
}
