//! Migration addresses, and the URI forms of `migrate` and `-incoming`, parsed once. The rules are
//! QEMU 10's: a unix path is everything behind `unix:`, commas and all, and nothing is unescaped
//! anywhere. The error texts are QEMU's, too.

use std::fmt::{Display, Formatter};

/// Where a migration stream goes to or comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    Tcp(Tcp),
    Unix(UnixName),
    /// A descriptor named by `getfd`, or an inherited descriptor's number.
    Fd(String),
    /// A program and its arguments; the stream is its standard input (or output).
    Exec(Vec<String>),
    File {
        path: String,
        offset: u64,
    },
}

/// What a unix socket is called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UnixName {
    /// In the file system.
    Path(String),
    /// In the network namespace. `tight`: the name ends with its last byte; otherwise with as many
    /// zeros as the kernel has room for.
    Abstract { name: String, tight: bool },
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tcp {
    /// Empty means any address when listening.
    pub host: String,
    /// A number or a service name.
    pub port: String,
    /// Listening: the last port to try, where those before are in use.
    pub to: Option<u16>,
    pub family: Family,
    /// Listening: host and port are numbers, and no names are looked up.
    pub numeric: bool,
    /// Multipath TCP.
    pub mptcp: bool,
}

/// IP versions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Family {
    #[default]
    Any,
    V4,
    V6,
    /// Both switched off; told when the address is used.
    Neither,
}

impl Family {
    /// Naming one family leaves the other out.
    pub(crate) fn of(ipv4: Option<bool>, ipv6: Option<bool>) -> Family {
        match (ipv4, ipv6) {
            (Some(false), Some(false)) => Family::Neither,
            (Some(true), Some(true)) | (None, None) => Family::Any,
            (Some(false), _) | (_, Some(true)) => Family::V6,
            (Some(true), _) | (_, Some(false)) => Family::V4,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum AddressError {
    #[error("unknown migration protocol: {0}")]
    UnknownProtocol(String),
    #[error("error parsing address '{0}'")]
    Inet(String),
    #[error("error parsing IPv6 address '{0}'")]
    Inet6(String),
    #[error("error parsing to= argument")]
    PortTo,
    #[error("error parsing '{name}' flag '{text}'")]
    Flag { name: &'static str, text: String },
    #[error("tcp: addresses have no option '{0}'")]
    Option(String),
    #[error("invalid Unix socket address")]
    EmptyUnix,
    #[error("invalid file descriptor address")]
    EmptyFd,
    #[error("file URI has bad offset {text}: {why}")]
    FileOffset { text: String, why: &'static str },
    #[error("need either 'uri' or 'channels' argument")]
    Missing,
    #[error("Channel list has more than one {0} entry")]
    Several(&'static str),
    #[error("Channel list must have only one entry, for type 'main'")]
    OnlyMain,
    #[error("missing 'main' migration channel")]
    NoMain,
    #[error("exec needs at least one argument")]
    EmptyExec,
    #[error("migration over {0} is not built in")]
    NotBuilt(&'static str),
}

impl Address {
    /// A unix socket in the file system.
    pub fn unix(path: impl Into<String>) -> Self {
        Self::Unix(UnixName::Path(path.into()))
    }

    /// From `tcp:HOST:PORT`, `unix:PATH`, `fd:NAME`, `exec:COMMAND` or `file:PATH[,offset=N]`.
    pub(crate) fn from_uri(uri: &str) -> Result<Self, AddressError> {
        let unknown = || AddressError::UnknownProtocol(uri.to_owned());
        let (protocol, rest) = uri.split_once(':').ok_or_else(unknown)?;
        match protocol {
            "tcp" => Ok(Self::Tcp(Tcp::parse(rest)?)),
            "unix" if rest.is_empty() => Err(AddressError::EmptyUnix),
            "unix" => Ok(Self::unix(rest)),
            "fd" if rest.is_empty() => Err(AddressError::EmptyFd),
            "fd" => Ok(Self::Fd(rest.to_owned())),
            "exec" => Ok(Self::Exec(vec!["/bin/sh".into(), "-c".into(), rest.to_owned()])),
            "file" => file(rest),
            "vsock" => Err(AddressError::NotBuilt("vsock")),
            "rdma" => Err(AddressError::NotBuilt("rdma")),
            _ => Err(unknown()),
        }
    }

    /// Several connections can be made to it, as multifd needs.
    pub(crate) fn takes_several_connections(&self) -> bool {
        matches!(self, Self::Tcp(_) | Self::Unix(_))
    }
}

impl Display for Address {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp(tcp) => write!(f, "{tcp}"),
            Self::Unix(name) => write!(f, "{name}"),
            Self::Fd(name) => write!(f, "fd:{name}"),
            Self::Exec(words) => write!(f, "{}", words.join(" ")),
            Self::File { path, .. } => write!(f, "{path}"),
        }
    }
}

impl Display for UnixName {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        let (Self::Path(name) | Self::Abstract { name, .. }) = self;
        f.write_str(name)
    }
}

impl Display for Tcp {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

/// Longer host names are not taken.
const HOST_BYTES_MAX: usize = 64;

impl Tcp {
    /// As socket(2) takes it.
    pub(super) fn protocol(&self) -> i32 {
        if self.mptcp { libc::IPPROTO_MPTCP } else { 0 }
    }

    /// `HOST:PORT`, the host in brackets if it has colons, and options behind commas: `to=PORT`,
    /// `ipv4`, `ipv6`, `mptcp`, `keep-alive`, each of the last with `=on` or `=off`. QEMU ignores
    /// other options.
    fn parse(text: &str) -> Result<Self, AddressError> {
        let (address, options) = text.split_once(',').unwrap_or((text, ""));
        let (host, port) = match address.strip_prefix('[') {
            Some(rest) => rest.split_once("]:").filter(|(host, _)| !host.is_empty()),
            None => address.split_once(':'),
        }
        .filter(|(host, port)| host.len() <= HOST_BYTES_MAX && !port.is_empty())
        .ok_or_else(|| match text.starts_with('[') {
            true => AddressError::Inet6(text.to_owned()),
            false => AddressError::Inet(text.to_owned()),
        })?;
        let mut tcp = Self { host: host.to_owned(), port: port.to_owned(), ..Self::default() };
        let (mut ipv4, mut ipv6, mut mptcp) = (None, None, None);
        for option in options.split(',').filter(|option| !option.is_empty()) {
            // Of two, the first counts.
            if let Some(port) = option.strip_prefix("to=") {
                let port = port.parse().map_err(|_| AddressError::PortTo)?;
                tcp.to.get_or_insert(port);
            } else if let Some(on) = flag("ipv4", option)? {
                ipv4.get_or_insert(on);
            } else if let Some(on) = flag("ipv6", option)? {
                ipv6.get_or_insert(on);
            } else if let Some(on) = flag("mptcp", option)? {
                mptcp.get_or_insert(on);
            } else if flag("keep-alive", option)?.is_none() {
                // That flag is always on: a peer that is gone is noticed.
                return Err(AddressError::Option(option.to_owned()));
            }
        }
        tcp.family = Family::of(ipv4, ipv6);
        tcp.mptcp = mptcp == Some(true);
        Ok(tcp)
    }
}

/// The setting of flag `name`, if that is what the option is.
fn flag(name: &'static str, option: &str) -> Result<Option<bool>, AddressError> {
    match option.strip_prefix(name) {
        None => Ok(None),
        Some("" | "=on") => Ok(Some(true)),
        Some("=off") => Ok(Some(false)),
        Some(text) => Err(AddressError::Flag { name, text: text.to_owned() }),
    }
}

fn file(rest: &str) -> Result<Address, AddressError> {
    let Some((path, text)) = rest.split_once(",offset=") else {
        return Ok(Address::File { path: rest.to_owned(), offset: 0 });
    };
    let offset = size(text).map_err(|why| AddressError::FileOffset { text: text.into(), why })?;
    Ok(Address::File { path: path.to_owned(), offset })
}

const INVALID: &str = "Invalid argument";
const OUT_OF_RANGE: &str = "Numerical result out of range";

/// A size as QEMU reads one: hexadecimal with 0x, or decimal with an optional binary suffix and then
/// perhaps a fraction.
fn size(text: &str) -> Result<u64, &'static str> {
    let text = text.trim_start();
    if let Some(negative) = text.strip_prefix('-') {
        return size(negative).and(Err(OUT_OF_RANGE));
    }
    let text = text.strip_prefix('+').unwrap_or(text);
    if let Some(hex) = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        let digits = !hex.is_empty() && hex.bytes().all(|byte| byte.is_ascii_hexdigit());
        return match digits {
            true => u64::from_str_radix(hex, 16).map_err(|_| OUT_OF_RANGE),
            false => Err(INVALID),
        };
    }
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let shift = match suffix {
        "" | "b" | "B" => 0,
        "k" | "K" => 10,
        "m" | "M" => 20,
        "g" | "G" => 30,
        "t" | "T" => 40,
        "p" | "P" => 50,
        "e" | "E" => 60,
        _ => return Err(INVALID),
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let all_digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if whole.is_empty() || !all_digits(fraction) || (shift == 0 && number != whole) {
        return Err(INVALID);
    }
    let whole: u64 = whole.parse().map_err(|_| OUT_OF_RANGE)?;
    let part = format!("0.{fraction}0").parse::<f64>().map_err(|_| INVALID)?;
    let part = (part * (1u64 << shift) as f64) as u64;
    whole.checked_mul(1 << shift).and_then(|bytes| bytes.checked_add(part)).ok_or(OUT_OF_RANGE)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tcp(host: &str, port: &str, family: Family) -> Tcp {
        Tcp { host: host.into(), port: port.into(), family, ..Tcp::default() }
    }

    #[test]
    fn uris_are_read_as_qemu_reads_them() {
        let read = |uri: &str| Address::from_uri(uri).unwrap();
        let read_tcp = |uri: &str| match read(uri) {
            Address::Tcp(tcp) => tcp,
            other => panic!("{other}"),
        };
        assert_eq!(read_tcp("tcp:host:4444"), tcp("host", "4444", Family::Any));
        assert_eq!(read_tcp("tcp::4444,"), tcp("", "4444", Family::Any));
        assert_eq!(read_tcp("tcp:[::1]:4444,,"), tcp("::1", "4444", Family::Any));
        assert_eq!(read_tcp("tcp:h:1,keep-alive,ipv6"), tcp("h", "1", Family::V6));
        assert_eq!(read_tcp("tcp:h:1,ipv4=off"), tcp("h", "1", Family::V6));
        assert_eq!(read_tcp("tcp:h:1,ipv4,ipv6"), tcp("h", "1", Family::Any));
        assert_eq!(read_tcp("tcp:h:1,ipv4,ipv4=off"), tcp("h", "1", Family::V4));
        assert_eq!(read_tcp("tcp:h:1,ipv4=off,ipv6=off"), tcp("h", "1", Family::Neither));
        assert_eq!(read_tcp("tcp:h:1,to=5").to, Some(5));
        assert!(read_tcp("tcp:h:1,mptcp").mptcp && !read_tcp("tcp:h:1,mptcp=off").mptcp);
        for path in ["/tmp/a b", "/d/com,ma/s", "x,abstract", "%20#?", "ü\"'\u{1}", "@x", ",", " "]
        {
            assert_eq!(read(&format!("unix:{path}")), Address::unix(path));
            let file = Address::File { path: path.into(), offset: 0 };
            assert_eq!(read(&format!("file:{path}")), file);
        }
        assert_eq!(
            read("exec:cat > f,x"),
            Address::Exec(vec!["/bin/sh".into(), "-c".into(), "cat > f,x".into()])
        );
        assert_eq!(read("fd:77x,y"), Address::Fd("77x,y".into()));
    }

    #[test]
    fn offsets_are_sizes() {
        for (text, offset) in [
            ("0", 0),
            ("4K", 4096),
            ("0x200", 512),
            (" +1", 1),
            ("010", 10),
            ("1.5k", 1536),
            ("15E", 15 << 60),
        ] {
            let read = Address::from_uri(&format!("file:f,x=1,offset={text}")).unwrap();
            assert_eq!(read, Address::File { path: "f,x=1".into(), offset });
        }
    }

    #[test]
    fn refusals_have_qemus_texts() {
        let long = "h".repeat(65);
        for (uri, text) in [
            ("", "unknown migration protocol: "),
            ("unix", "unknown migration protocol: unix"),
            ("defer", "unknown migration protocol: defer"),
            ("FILE:/x", "unknown migration protocol: FILE:/x"),
            ("tcp:", "error parsing address ''"),
            ("tcp:localhost", "error parsing address 'localhost'"),
            ("tcp:localhost:", "error parsing address 'localhost:'"),
            (&format!("tcp:{long}:1"), &format!("error parsing address '{long}:1'")),
            ("tcp:[::1]", "error parsing IPv6 address '[::1]'"),
            ("tcp:[::1:1", "error parsing IPv6 address '[::1:1'"),
            ("tcp:[]:1", "error parsing IPv6 address '[]:1'"),
            ("tcp:h:1,to=", "error parsing to= argument"),
            ("tcp:h:1,to=5x", "error parsing to= argument"),
            ("tcp:h:1,to=65536", "error parsing to= argument"),
            ("tcp:h:1,ipv4=yes", "error parsing 'ipv4' flag '=yes'"),
            ("tcp:h:1,ipv6x", "error parsing 'ipv6' flag 'x'"),
            ("tcp:h:1,foo=bar", "tcp: addresses have no option 'foo=bar'"),
            ("unix:", "invalid Unix socket address"),
            ("fd:", "invalid file descriptor address"),
            ("file:f,offset=", "file URI has bad offset : Invalid argument"),
            ("file:f,offset=x", "file URI has bad offset x: Invalid argument"),
            ("file:f,offset=1K,offset=2", "file URI has bad offset 1K,offset=2: Invalid argument"),
            ("file:f,offset=1e3", "file URI has bad offset 1e3: Invalid argument"),
            ("file:f,offset=1.5", "file URI has bad offset 1.5: Invalid argument"),
            ("file:f,offset=0x1k", "file URI has bad offset 0x1k: Invalid argument"),
            ("file:f,offset=1KiB", "file URI has bad offset 1KiB: Invalid argument"),
            ("file:f,offset=-1", "file URI has bad offset -1: Numerical result out of range"),
            ("file:f,offset=16E", "file URI has bad offset 16E: Numerical result out of range"),
        ] {
            assert_eq!(Address::from_uri(uri).unwrap_err().to_string(), text);
        }
    }
}
