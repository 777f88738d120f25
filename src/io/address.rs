//! Migration addresses: the URI forms of `migrate` and `-incoming`, and the `channels` form of QMP,
//! parsed once. The error texts are QEMU's.

use serde_json::Value;

/// Where a migration stream goes to or comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    Tcp(Tcp),
    Unix(String),
    /// A descriptor named by `getfd`, or an inherited descriptor's number.
    Fd(String),
    /// A program and its arguments; the stream is its standard input (or output).
    Exec(Vec<String>),
    File {
        path: String,
        offset: u64,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tcp {
    /// Empty means any address when listening, this host when connecting.
    pub host: String,
    /// A number or a service name.
    pub port: String,
    pub ipv4: bool,
    pub ipv6: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    #[error("unknown migration protocol: {0}")]
    UnknownProtocol(String),
    #[error("error parsing address '{0}'")]
    Inet(String),
    #[error("invalid Unix socket address")]
    EmptyUnix,
    #[error("invalid file descriptor address")]
    EmptyFd,
    #[error("file URI has bad offset {0}: Invalid argument")]
    FileOffset(String),
    #[error("need either 'uri' or 'channels' argument")]
    Missing,
    #[error("Channel list has more than one main entry")]
    SeveralMain,
    #[error("missing 'main' migration channel")]
    NoMain,
    #[error("exec needs at least one argument")]
    EmptyExec,
    #[error("migration over {0} is not built in")]
    NotBuilt(&'static str),
    #[error("Parameter '{0}' is missing")]
    ParameterMissing(String),
    #[error("Parameter '{name}' does not accept value '{value}'")]
    ParameterValue { name: &'static str, value: String },
    #[error("Invalid parameter type for '{path}', expected: {expected}")]
    ParameterType { path: String, expected: &'static str },
    #[error("Parameter '{0}' is unexpected")]
    ParameterUnexpected(String),
}

impl Address {
    /// From `tcp:HOST:PORT`, `unix:PATH`, `fd:NAME`, `exec:COMMAND` or `file:PATH[,offset=N]`.
    pub fn from_uri(uri: &str) -> Result<Self, AddressError> {
        let unknown = || AddressError::UnknownProtocol(uri.to_owned());
        let (protocol, rest) = uri.split_once(':').ok_or_else(unknown)?;
        match protocol {
            "tcp" => Ok(Self::Tcp(Tcp::parse(rest)?)),
            "unix" if rest.is_empty() => Err(AddressError::EmptyUnix),
            "unix" => {
                Ok(Self::Unix(rest.split_once(',').map_or(rest, |(path, _)| path).to_owned()))
            }
            "fd" if rest.is_empty() => Err(AddressError::EmptyFd),
            "fd" => Ok(Self::Fd(rest.to_owned())),
            "exec" => Ok(Self::Exec(vec!["/bin/sh".into(), "-c".into(), rest.to_owned()])),
            "file" => file(rest),
            "vsock" => Err(AddressError::NotBuilt("vsock")),
            "rdma" => Err(AddressError::NotBuilt("rdma")),
            _ => Err(unknown()),
        }
    }

    /// From the arguments `uri` and `channels` of `migrate` and `migrate-incoming`: exactly one of
    /// them.
    pub fn from_arguments(
        uri: Option<&str>,
        channels: Option<&Value>,
    ) -> Result<Self, AddressError> {
        let channels = channels.filter(|list| list.as_array().is_none_or(|list| !list.is_empty()));
        match (uri, channels) {
            (Some(uri), None) => Self::from_uri(uri),
            (None, Some(channels)) => Self::from_channels(channels),
            _ => Err(AddressError::Missing),
        }
    }

    /// From QMP's list of channels, which must hold one `main`.
    pub fn from_channels(channels: &Value) -> Result<Self, AddressError> {
        let list = channels.as_array().ok_or_else(|| wrong("channels", "array"))?;
        let mut main = None;
        for (index, channel) in list.iter().enumerate() {
            let at = format!("channels[{index}]");
            let channel = Members { value: channel, at: &at };
            match channel.string("channel-type")? {
                "main" => {}
                "cpr" => return Err(AddressError::NotBuilt("a cpr channel")),
                other => return Err(value("channel-type", other)),
            }
            let at = format!("{at}.addr");
            let parsed = Self::from_json(&Members { value: channel.member("addr")?, at: &at })?;
            if main.replace(parsed).is_some() {
                return Err(AddressError::SeveralMain);
            }
        }
        main.ok_or(AddressError::NoMain)
    }

    fn from_json(address: &Members<'_>) -> Result<Self, AddressError> {
        match address.string("transport")? {
            "socket" => Self::from_socket_json(address),
            "exec" => {
                let args = address.member("args")?;
                let args = args.as_array().ok_or_else(|| wrong(address.path("args"), "array"))?;
                let words: Option<Vec<_>> =
                    args.iter().map(|arg| arg.as_str().map(str::to_owned)).collect();
                let words = words.ok_or_else(|| wrong(address.path("args"), "string"))?;
                if words.is_empty() { Err(AddressError::EmptyExec) } else { Ok(Self::Exec(words)) }
            }
            "file" => {
                let path = address.string("filename")?.to_owned();
                let offset = address.member("offset")?;
                let offset =
                    offset.as_u64().ok_or_else(|| wrong(address.path("offset"), "integer"))?;
                Ok(Self::File { path, offset })
            }
            "rdma" => Err(AddressError::NotBuilt("rdma")),
            other => Err(value("transport", other)),
        }
    }

    fn from_socket_json(address: &Members<'_>) -> Result<Self, AddressError> {
        match address.string("type")? {
            "inet" => Ok(Self::Tcp(Tcp {
                host: address.string("host")?.to_owned(),
                port: address.string("port")?.to_owned(),
                ipv4: address.value.get("ipv4").and_then(Value::as_bool).unwrap_or(true),
                ipv6: address.value.get("ipv6").and_then(Value::as_bool).unwrap_or(true),
            })),
            "unix" => Ok(Self::Unix(address.string("path")?.to_owned())),
            "fd" => Ok(Self::Fd(address.string("str")?.to_owned())),
            "vsock" => Err(AddressError::NotBuilt("vsock")),
            other => Err(value("type", other)),
        }
    }

    /// Several connections can be made to it, as multifd needs.
    pub fn takes_several_connections(&self) -> bool {
        matches!(self, Self::Tcp(_) | Self::Unix(_))
    }
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp(tcp) => write!(f, "{tcp}"),
            Self::Unix(path) => write!(f, "{path}"),
            Self::Fd(name) => write!(f, "fd:{name}"),
            Self::Exec(words) => write!(f, "{}", words.join(" ")),
            Self::File { path, .. } => write!(f, "{path}"),
        }
    }
}

impl std::fmt::Display for Tcp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

impl Tcp {
    /// `HOST:PORT[,ipv4[=on|off]][,ipv6[=on|off]]`, the host in brackets if it has colons.
    fn parse(text: &str) -> Result<Self, AddressError> {
        let bad = || AddressError::Inet(text.to_owned());
        let (address, options) = text.split_once(',').unwrap_or((text, ""));
        let (host, port) = match address.strip_prefix('[') {
            Some(rest) => rest.split_once("]:").ok_or_else(bad)?,
            None => address.split_once(':').ok_or_else(bad)?,
        };
        if port.is_empty() || port.contains(':') {
            return Err(bad());
        }
        let (mut only4, mut only6) = (None, None);
        for option in options.split(',').filter(|option| !option.is_empty()) {
            let (name, setting) = option.split_once('=').unwrap_or((option, "on"));
            let on = match setting {
                "on" | "yes" | "true" | "y" => true,
                "off" | "no" | "false" | "n" => false,
                _ => return Err(bad()),
            };
            match name {
                "ipv4" => only4 = Some(on),
                "ipv6" => only6 = Some(on),
                _ => return Err(bad()),
            }
        }
        // Naming one family leaves the other out, as in QEMU.
        let ipv4 = only4.unwrap_or(only6 != Some(true));
        let ipv6 = only6.unwrap_or(only4 != Some(true));
        Ok(Self { host: host.to_owned(), port: port.to_owned(), ipv4, ipv6 })
    }
}

fn file(rest: &str) -> Result<Address, AddressError> {
    let Some((path, offset)) = rest.split_once(",offset=") else {
        return Ok(Address::File { path: rest.to_owned(), offset: 0 });
    };
    let offset = size(offset).ok_or_else(|| AddressError::FileOffset(offset.to_owned()))?;
    Ok(Address::File { path: path.to_owned(), offset })
}

/// A size as QEMU reads one: decimal or 0x, with an optional binary suffix.
fn size(text: &str) -> Option<u64> {
    if let Some(hex) = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        return u64::from_str_radix(hex, 16).ok();
    }
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match &text[digits.len()..] {
        "" | "b" | "B" => 0,
        "k" | "K" => 10,
        "m" | "M" => 20,
        "g" | "G" => 30,
        "t" | "T" => 40,
        "p" | "P" => 50,
        "e" | "E" => 60,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}

/// Members of one JSON object, with its path for messages.
struct Members<'a> {
    value: &'a Value,
    at: &'a str,
}

impl<'a> Members<'a> {
    fn path(&self, name: &str) -> String {
        format!("{}.{name}", self.at)
    }

    fn member(&self, name: &str) -> Result<&'a Value, AddressError> {
        let object = self.value.as_object().ok_or_else(|| wrong(self.at, "object"))?;
        object.get(name).ok_or_else(|| AddressError::ParameterMissing(self.path(name)))
    }

    fn string(&self, name: &str) -> Result<&'a str, AddressError> {
        self.member(name)?.as_str().ok_or_else(|| wrong(self.path(name), "string"))
    }
}

fn wrong(path: impl Into<String>, expected: &'static str) -> AddressError {
    AddressError::ParameterType { path: path.into(), expected }
}

fn value(name: &'static str, value: &str) -> AddressError {
    AddressError::ParameterValue { name, value: value.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn refused(uri: &str) -> String {
        Address::from_uri(uri).unwrap_err().to_string()
    }

    fn tcp(host: &str, port: &str, ipv4: bool, ipv6: bool) -> Address {
        Address::Tcp(Tcp { host: host.into(), port: port.into(), ipv4, ipv6 })
    }

    #[test]
    fn uris_are_read_as_qemu_reads_them() {
        let read = |uri| Address::from_uri(uri).unwrap();
        assert_eq!(read("tcp:host:4444"), tcp("host", "4444", true, true));
        assert_eq!(read("tcp::4444"), tcp("", "4444", true, true));
        assert_eq!(read("tcp:[::1]:4444"), tcp("::1", "4444", true, true));
        assert_eq!(read("tcp:localhost:4444,ipv6"), tcp("localhost", "4444", false, true));
        assert_eq!(read("unix:/tmp/a b"), Address::Unix("/tmp/a b".into()));
        assert_eq!(
            read("exec:cat > f"),
            Address::Exec(vec!["/bin/sh".into(), "-c".into(), "cat > f".into()])
        );
        assert_eq!(read("file:f,offset=4K"), Address::File { path: "f".into(), offset: 4096 });
        assert_eq!(read("file:f,offset=0x200"), Address::File { path: "f".into(), offset: 512 });
        assert_eq!(read("fd:77x"), Address::Fd("77x".into()));
    }

    #[test]
    fn refusals_have_qemus_texts() {
        for (uri, text) in [
            ("", "unknown migration protocol: "),
            ("defer", "unknown migration protocol: defer"),
            ("FILE:/x", "unknown migration protocol: FILE:/x"),
            ("tcp:", "error parsing address ''"),
            ("tcp:localhost", "error parsing address 'localhost'"),
            ("unix:", "invalid Unix socket address"),
            ("fd:", "invalid file descriptor address"),
            ("file:f,offset=x", "file URI has bad offset x: Invalid argument"),
        ] {
            assert_eq!(refused(uri), text);
        }
    }

    #[test]
    fn channels_are_read_and_refused_as_qemu_does() {
        let unix = json!([{"channel-type": "main", "addr": {"transport": "socket", "type": "unix", "path": "/p"}}]);
        assert_eq!(Address::from_channels(&unix).unwrap(), Address::Unix("/p".into()));
        let exec =
            json!({"channel-type": "main", "addr": {"transport": "exec", "args": ["/bin/true"]}});
        for (channels, text) in [
            (json!([exec, exec]), "Channel list has more than one main entry"),
            (json!([{"addr": {}}]), "Parameter 'channels[0].channel-type' is missing"),
            (
                json!([{"channel-type": "other"}]),
                "Parameter 'channel-type' does not accept value 'other'",
            ),
            (
                json!([{"channel-type": "main", "addr": {"transport": "nope"}}]),
                "Parameter 'transport' does not accept value 'nope'",
            ),
            (
                json!([{"channel-type": "main", "addr": {"transport": "file", "filename": "f"}}]),
                "Parameter 'channels[0].addr.offset' is missing",
            ),
            (
                json!([{"channel-type": "main", "addr": {"transport": "exec", "args": []}}]),
                "exec needs at least one argument",
            ),
            (
                json!([{"channel-type": "cpr", "addr": {}}]),
                "migration over a cpr channel is not built in",
            ),
        ] {
            assert_eq!(Address::from_channels(&channels).unwrap_err().to_string(), text);
        }
        assert_eq!(
            Address::from_arguments(None, Some(&json!([]))).unwrap_err(),
            AddressError::Missing
        );
        assert_eq!(
            Address::from_arguments(Some("unix:x"), Some(&json!([]))).unwrap(),
            Address::Unix("x".into())
        );
    }
}
