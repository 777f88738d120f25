//! `-netdev user`: a network of this process's user, made by passt, which connects it to the host's
//! sockets.

use std::io::{self, BufRead, BufReader, Read};
use std::os::fd::OwnedFd;
use std::process::{Child, ChildStderr, Command, Stdio};
use std::thread::Builder;

use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

use super::Error;
use crate::config::{IpFamily, UserNet};

const PROGRAM: &str = "passt";
/// Of what it complains of; a guest may give it cause without end.
const LINES_MAX: usize = 100;
const LINE_BYTES_MAX: u64 = 4096;

/// The program. It ends with its connection.
pub(super) struct Passt(Child);

impl Passt {
    pub(super) fn start(id: &str, user: &UserNet) -> Result<(Passt, OwnedFd), Error> {
        let failed = |source: io::Error| match source.kind() {
            io::ErrorKind::NotFound => Error::NoPasst { id: id.into() },
            _ => Error::Open { id: id.into(), what: PROGRAM.into(), source },
        };
        let (ours, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
                .map_err(|errno| failed(errno.into()))?;
        let mut command = Command::new(PROGRAM);
        // It is the child's standard input, so that nobody else's child can get it. Our stderr is not
        // the child's: who started a daemon waits until nobody has it any more.
        command.stdin(Stdio::from(theirs)).stdout(Stdio::null()).stderr(Stdio::piped());
        command.args(["--foreground", "--quiet", "--fd", "0"]).args(arguments(user));
        let mut passt = Passt(command.spawn().map_err(failed)?);
        if let Some(words) = passt.0.stderr.take() {
            let of = id.to_owned();
            let relay = Builder::new().name("passt-stderr".into());
            relay.spawn(move || tell(&of, words)).map_err(failed)?;
        }
        Ok((passt, ours))
    }
}

impl Drop for Passt {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Says what passt complains of, until it ends.
fn tell(id: &str, words: ChildStderr) {
    let mut words = BufReader::new(words);
    for count in 0.. {
        let mut line = Vec::new();
        match words.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', &mut line) {
            Ok(1..) if count < LINES_MAX => {
                let line = String::from_utf8_lossy(&line);
                say!("godwit: network {id}: {PROGRAM}: {}", line.trim_end());
            }
            Ok(1..) if count == LINES_MAX => {
                say!("godwit: network {id}: {PROGRAM}: what else it says is not shown");
            }
            Ok(1..) => {}
            Ok(0) | Err(_) => return,
        }
    }
}

/// What passt is told.
fn arguments(user: &UserNet) -> Vec<String> {
    let mut words = Vec::new();
    let mut add = |key: &str, value: Option<String>| {
        if let Some(value) = value {
            words.extend([key.to_owned(), value]);
        }
    };
    add("--address", user.address.map(|address| address.to_string()));
    add("--netmask", user.prefix.map(|bits| bits.to_string()));
    add("--gateway", user.gateway.map(|address| address.to_string()));
    add("--dns-forward", user.dns.map(|address| address.to_string()));
    for forward in &user.forwards {
        let host = forward.host.map(|host| format!("{host}/")).unwrap_or_default();
        let ports = format!("{host}{}:{}", forward.host_port, forward.guest_port);
        add(if forward.udp { "--udp-ports" } else { "--tcp-ports" }, Some(ports));
    }
    match user.only {
        Some(IpFamily::V4) => words.push("--ipv4-only".into()),
        Some(IpFamily::V6) => words.push("--ipv6-only".into()),
        _ => {}
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::HostForward;

    #[test]
    fn passt_is_told_what_qemu_was_asked_for() {
        let user = UserNet {
            address: Some([10, 0, 2, 15].into()),
            prefix: Some(24),
            gateway: Some([10, 0, 2, 2].into()),
            dns: Some([10, 0, 2, 3].into()),
            only: Some(IpFamily::V4),
            forwards: vec![
                HostForward { udp: false, host: None, host_port: 2222, guest_port: 22 },
                HostForward {
                    udp: true,
                    host: Some([127, 0, 0, 1].into()),
                    host_port: 53,
                    guest_port: 5353,
                },
            ],
        };
        assert_eq!(
            arguments(&user).join(" "),
            "--address 10.0.2.15 --netmask 24 --gateway 10.0.2.2 --dns-forward 10.0.2.3 --tcp-ports 2222:22 --udp-ports \
             127.0.0.1/53:5353 --ipv4-only"
        );
    }
}
