//! Guests on a network, natively: over connections, datagrams and a tap device; moved, beside QEMU.

use crate::common::vm::{Launch, Vm};
use crate::common::{guest, virtio_guest};
use serde_json::json;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(60);
const RARP: [u8; 2] = [0x80, 0x35];
/// What is said while a guest moves.
const MEANWHILE: &str = "meanwhile";

fn launch(folder: &Path, name: &str, modern: bool, netdev: &str) -> Launch {
    let kernel = folder.join("kernel");
    std::fs::write(&kernel, guest::elf(&virtio_guest::reflector())).unwrap();
    let launch = Launch::new(folder, name).no_guest().words(&["-kernel", kernel.to_str().unwrap()]);
    let launch = launch.words(&["-netdev", netdev, "-device", "virtio-net-device,netdev=n,id=nic"]);
    if modern { launch.words(&["-global", "virtio-mmio.force-legacy=off"]) } else { launch }
}

fn connect(path: &Path) -> UnixStream {
    let end = Instant::now() + LIMIT;
    loop {
        match UnixStream::connect(path) {
            Ok(stream) => return limited(stream),
            Err(error) => assert!(Instant::now() < end, "{error}"),
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn limited(stream: UnixStream) -> UnixStream {
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    stream
}

fn send(stream: &mut UnixStream, frame: &[u8]) {
    stream.write_all(&[&(frame.len() as u32).to_be_bytes(), frame].concat()).unwrap();
}

fn receive(stream: &mut UnixStream) -> Vec<u8> {
    let mut length = [0; 4];
    stream.read_exact(&mut length).unwrap();
    let mut frame = vec![0; u32::from_be_bytes(length) as usize];
    stream.read_exact(&mut frame).unwrap();
    frame
}

/// A frame, and what the guest makes of it.
fn frame(text: &str) -> (Vec<u8>, Vec<u8>) {
    let frame =
        [&[0xff; 6][..], &[2, 0, 0, 0, 0, 1], &[0x88, 0xb5], text.as_bytes(), b"."].concat();
    let mut back = frame.clone();
    *back.last_mut().unwrap() ^= 0x20;
    (frame, back)
}

/// Sends a frame and reads it back, whatever announcements come between; says how many.
fn converse(stream: &mut UnixStream, text: &str) -> usize {
    let (there, back) = frame(text);
    send(stream, &there);
    let mut announced = 0;
    loop {
        match receive(stream) {
            frame if frame[12..14] == RARP => announced += 1,
            // Taken by the guest before it moved, and answered where it is now.
            frame if frame == self::frame(MEANWHILE).1 => {}
            frame => {
                assert_eq!(String::from_utf8_lossy(&frame), String::from_utf8_lossy(&back));
                return announced;
            }
        }
    }
}

/// Speaks until the guest answers: QEMU loses what came before its guest's driver.
fn wait_for_guest(stream: &mut UnixStream) {
    let end = Instant::now() + LIMIT;
    let (there, back) = frame(MEANWHILE);
    stream.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    let mut first = [0; 4];
    loop {
        send(stream, &there);
        if stream.read_exact(&mut first).is_ok() {
            break;
        }
        assert!(Instant::now() < end, "no answer");
    }
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    let mut answer = vec![0; u32::from_be_bytes(first) as usize];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(answer, back);
}

fn server(folder: &Path, name: &str) -> String {
    let path = folder.join(format!("{name}.net"));
    format!("stream,id=n,server=on,addr.type=unix,addr.path={}", path.display())
}

fn start(folder: &Path, name: &str, modern: bool, qemu: bool, more: &[&str]) -> (Vm, UnixStream) {
    let launch = launch(folder, name, modern, &server(folder, name)).words(more);
    let vm = if qemu { launch.qemu().start() } else { launch.start() };
    let stream = connect(&folder.join(format!("{name}.net")));
    (vm, stream)
}

fn assert_runs(vm: &mut Vm) {
    assert_eq!(vm.ask("query-status", json!({}))["status"], "running");
}

#[test]
fn a_guest_answers_over_a_connection_and_peers_come_and_go() {
    for modern in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let (mut vm, mut stream) = start(folder.path(), "vm", modern, false, &[]);
        for turn in 0..20 {
            converse(&mut stream, &format!("turn {turn}"));
        }
        // More at once than the guest has buffers, some of them no frames.
        let (there, back) = frame(&"a long story ".repeat(100));
        for _ in 0..50 {
            send(&mut stream, &there);
            send(&mut stream, b"");
            send(&mut stream, b"short");
        }
        (0..50).for_each(|_| assert_eq!(receive(&mut stream), back));
        let connected = vm.session().event("NETDEV_STREAM_CONNECTED");
        assert_eq!(connected["data"]["netdev-id"], "n");
        drop(stream);
        let gone = vm.session().event("NETDEV_STREAM_DISCONNECTED");
        assert_eq!(gone["data"], json!({"netdev-id": "n"}));
        // One who says that 4 GiB follow is cut off; the next one is not.
        let path = folder.path().join("vm.net");
        for _ in 0..3 {
            let mut liar = connect(&path);
            liar.write_all(&[0xff; 4]).unwrap();
            assert_eq!(liar.read(&mut [0; 8]).unwrap_or(0), 0);
        }
        converse(&mut connect(&path), "again");
        assert_eq!(vm.stderr().matches("network n: its peer says that").count(), 1);
        assert_runs(&mut vm);
    }
}

/// Frames with their lengths and numbers, from the first on.
fn numbered(count: usize) -> Vec<u8> {
    let framed = |number| {
        let frame = frame(&format!("{number:01000}")).0;
        [&(frame.len() as u32).to_be_bytes()[..], &frame].concat()
    };
    (0..count).flat_map(framed).collect()
}

/// Sends as long as the other side takes something; says how many bytes it took.
fn flood(stream: &mut UnixStream, bytes: &[u8]) -> usize {
    let mut sent = 0;
    stream.set_write_timeout(Some(Duration::from_millis(300))).unwrap();
    while let Ok(count) = stream.write(&bytes[sent..]) {
        sent += count;
        assert!(sent < bytes.len(), "whatever is sent is taken");
    }
    stream.set_write_timeout(None).unwrap();
    sent
}

#[test]
fn a_peer_that_reads_nothing_stops_its_own_card_and_loses_no_frame() {
    const FRAMES: usize = 4000;
    let folder = tempfile::tempdir().unwrap();
    let (mut vm, mut stream) = start(folder.path(), "vm", true, false, &[]);
    converse(&mut stream, "before");
    let all = numbered(FRAMES);
    let sent = flood(&mut stream, &all);
    // The card waits in mid frame, perhaps; everything else goes on.
    assert_runs(&mut vm);
    vm.ask("stop", json!({}));
    vm.ask("cont", json!({}));
    let frames = sent.div_ceil(all.len() / FRAMES);
    let mut writer = stream.try_clone().unwrap();
    let rest = all[sent..frames * (all.len() / FRAMES)].to_vec();
    let writes = std::thread::spawn(move || writer.write_all(&rest).unwrap());
    for number in 0..frames {
        assert_eq!(receive(&mut stream), frame(&format!("{number:01000}")).1);
    }
    writes.join().unwrap();
    converse(&mut stream, "after");
    // And a card that waits lets go of its network.
    flood(&mut stream, &all);
    vm.ask("netdev_del", json!({"id": "n"}));
    // Frames that lie unread at this end make a reset of it.
    let end = stream.read_to_end(&mut Vec::new()).map_err(|error| error.kind());
    assert!(matches!(end, Ok(_) | Err(ErrorKind::ConnectionReset)), "{end:?}");
    assert_runs(&mut vm);
}

#[test]
fn a_peer_that_went_is_called_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("peer");
    let netdev = format!("stream,id=n,reconnect-ms=20,addr.type=unix,addr.path={}", path.display());
    let mut vm = launch(folder.path(), "vm", false, &netdev).start();
    for turn in 0..3 {
        let listener = UnixListener::bind(&path).unwrap();
        let mut stream = limited(listener.accept().unwrap().0);
        drop(listener);
        std::fs::remove_file(&path).unwrap();
        converse(&mut stream, &format!("turn {turn}"));
        drop(stream);
        vm.session().event("NETDEV_STREAM_DISCONNECTED");
    }
    assert_runs(&mut vm);
}

#[test]
fn a_guest_answers_over_datagrams() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let ours = UnixDatagram::bind(path("ours")).unwrap();
    ours.set_read_timeout(Some(LIMIT)).unwrap();
    let netdev = format!(
        "dgram,id=n,local.type=unix,local.path={},remote.type=unix,remote.path={}",
        path("theirs").display(),
        path("ours").display()
    );
    let _vm = launch(folder.path(), "vm", true, &netdev).start();
    for turn in 0..10 {
        let (there, back) = frame(&format!("turn {turn}"));
        ours.send_to(&there, path("theirs")).unwrap();
        let mut buffer = [0; 2000];
        let count = ours.recv(&mut buffer).unwrap();
        assert_eq!(buffer[..count], back);
    }
}

/// A network namespace of its own, with what a tap device needs.
struct Namespace(String);

impl Namespace {
    fn new() -> Namespace {
        let namespace = Namespace(format!("godwit-net-{}", std::process::id()));
        run(&["netns", "add", &namespace.0]);
        namespace
    }

    fn run(&self, words: &[&str]) -> String {
        run(&[&["netns", "exec", &self.0], words].concat())
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.0]).status();
    }
}

fn run(words: &[&str]) -> String {
    let output = Command::new("ip").args(words).output().expect("iproute2 is there");
    assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn a_guest_answers_over_a_tap_device_until_that_is_taken_away() {
    let folder = tempfile::tempdir().unwrap();
    let space = Namespace::new();
    let netdev = "tap,id=n,ifname=gtap0,script=no,downscript=no,vhost=off,vnet_hdr=on";
    let start = |name| {
        let mut vm = launch(folder.path(), name, true, netdev).namespace(&space.0).start();
        space.run(&["ip", "addr", "add", "10.9.8.1/24", "dev", "gtap0"]);
        space.run(&["ip", "link", "set", "gtap0", "up"]);
        // Somebody asks for an address, and hears his own question.
        space.run(&["bash", "-c", "exec 3<>/dev/udp/10.9.8.2/9 && echo x >&3"]);
        let heard = || space.run(&["cat", "/sys/class/net/gtap0/statistics/rx_packets"]);
        let end = Instant::now() + LIMIT;
        while heard().trim() == "0" {
            assert!(Instant::now() < end, "{}", vm.stderr());
            std::thread::sleep(Duration::from_millis(20));
        }
        assert_runs(&mut vm);
        vm
    };
    let mut vm = start("by-the-host");
    space.run(&["ip", "link", "del", "gtap0"]);
    vm.wait_for_stderr("tap gtap0");
    assert_runs(&mut vm);
    // It lasts as long as somebody has it open: the card of a guest that stands still has not.
    let mut vm = start("by-its-monitor");
    vm.ask("stop", json!({}));
    vm.ask("netdev_del", json!({"id": "n"}));
    let end = Instant::now() + LIMIT;
    while space.run(&["ip", "link"]).contains("gtap0") {
        assert!(Instant::now() < end, "the tap device is still there");
        std::thread::sleep(Duration::from_millis(5));
    }
    vm.ask("cont", json!({}));
    assert_runs(&mut vm);
}

/// Moves a guest that answers, there and back: what comes when it runs again is answered, and it is
/// announced. What is on its way meanwhile may be lost, as on any wire.
fn moves(source_is_qemu: bool, target_is_qemu: bool, modern: bool) {
    let folder = tempfile::tempdir().unwrap();
    let (mut source, mut stream) = start(folder.path(), "source", modern, source_is_qemu, &[]);
    wait_for_guest(&mut stream);
    converse(&mut stream, "before");
    for (turn, is_qemu) in [target_is_qemu, source_is_qemu].into_iter().enumerate() {
        let uri = format!("unix:{}", folder.path().join(format!("stream{turn}")).display());
        let name = format!("target{turn}");
        let (mut target, mut there) =
            start(folder.path(), &name, modern, is_qemu, &["-incoming", &uri]);
        source.ask("migrate", json!({"uri": uri}));
        // In mid traffic: what the source took is answered by it, or lost with it.
        let (asked, answer) = frame(MEANWHILE);
        stream.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
        let mut length = [0; 4];
        send(&mut stream, &asked);
        while stream.read_exact(&mut length).is_ok() {
            let mut frame = vec![0; u32::from_be_bytes(length) as usize];
            stream.read_exact(&mut frame).unwrap();
            if frame[12..14] != RARP {
                assert_eq!(frame, answer);
                send(&mut stream, &asked);
            }
        }
        let report = source.outcome();
        assert_eq!(report["status"], "completed", "{turn}: {report} {}", target.stderr());
        target.wait_for_state(|state| state == "running");
        let (mut announced, end) = (0, Instant::now() + LIMIT);
        for round in 0.. {
            announced += converse(&mut there, &format!("after {round}"));
            // Five rounds, of which the first may have found nobody at the other end yet.
            if announced >= 3 {
                break;
            }
            assert!(Instant::now() < end, "announced {announced} times");
            std::thread::sleep(Duration::from_millis(10));
        }
        (source, stream) = (target, there);
    }
}

#[test]
fn a_conversation_goes_on_at_another_host_and_the_network_is_told() {
    moves(false, false, false);
    moves(false, false, true);
}

#[test]
#[ignore = "needs QEMU"]
fn a_conversation_goes_on_between_godwit_and_qemu() {
    for modern in [false, true] {
        moves(false, true, modern);
        moves(true, false, modern);
    }
}

#[test]
fn networks_come_and_go_while_the_guest_runs() {
    let folder = tempfile::tempdir().unwrap();
    let (mut vm, mut stream) = start(folder.path(), "vm", true, false, &[]);
    converse(&mut stream, "before");
    assert_eq!(
        vm.ask("human-monitor-command", json!({"command-line": "info network"})),
        format!(
            "nic: index=0,type=nic,model=virtio-net-device,macaddr=52:54:00:12:34:56\r\n \\ n: index=0,type=stream,unix:{}\r\n",
            folder.path().join("vm.net").display()
        )
    );
    let filters = vm.ask("query-rx-filter", json!({"name": "nic"}));
    assert_eq!(filters[0]["main-mac"], "52:54:00:12:34:56");
    assert_eq!((&filters[0]["promiscuous"], &filters[0]["vlan"]), (&json!(true), &json!("all")));
    // A cable out and in again.
    vm.ask("set_link", json!({"name": "nic", "up": false}));
    vm.ask("set_link", json!({"name": "n", "up": true}));
    converse(&mut stream, "again");
    vm.ask("announce-self", json!({"initial": 1, "max": 1, "rounds": 3, "step": 1}));
    (0..3).for_each(|_| assert_eq!(receive(&mut stream)[12..14], RARP));
    // One beside it: made, connected to, and gone with its name.
    let path = folder.path().join("second");
    let addr = json!({"type": "unix", "path": path});
    vm.ask("netdev_add", json!({"type": "stream", "id": "m", "server": true, "addr": addr}));
    let mut second = connect(&path);
    second.write_all(&[0; 100_000]).unwrap();
    vm.ask("netdev_del", json!({"id": "m"}));
    assert!(!path.exists());
    assert!(matches!(second.read(&mut [0; 8]), Ok(0) | Err(_)));
    // What QEMU says of others.
    let tap = |more: serde_json::Value| {
        let mut all = json!({"type": "tap", "id": "t"});
        all.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        all
    };
    for (arguments, words) in [
        (json!({"type": "dgram", "id": "n"}), "Duplicate ID 'n'"),
        (json!({"type": "dgram", "id": "9bad"}), "Parameter 'id' expects an identifier"),
        (json!({"type": "dgram", "id": "d"}), "dgram requires local= parameter"),
        (json!({"type": "dgram", "id": "d", "bogus": 1}), "Parameter 'bogus' is unexpected"),
        (json!({"type": "x", "id": "d"}), "Parameter 'type' does not accept value 'x'"),
        (json!({"type": "stream", "id": "d"}), "Parameter 'addr' is missing"),
        (json!({"type": "hubport", "id": "h"}), "Parameter 'hubid' is missing"),
        (json!({"type": "hubport", "id": "h", "hubid": 0}), "hubs are not built"),
        (
            json!({"type": "socket", "id": "s"}),
            "exactly one of listen=, connect=, mcast= or udp= is required",
        ),
        (tap(json!({"fd": "nofd"})), "File descriptor named 'nofd' has not been found"),
        (
            tap(json!({"fd": "x", "fds": "a:b"})),
            "ifname=, script=, downscript=, vnet_hdr=, helper=, queues=, fds=, and vhostfds= are invalid with fd=",
        ),
        (tap(json!({"vhost": true, "ifname": "t"})), "write vhost=off"),
    ] {
        let told = vm.try_ask("netdev_add", arguments).unwrap_err();
        assert!(told.contains(words), "{told}");
    }
    // A descriptor that came over the monitor.
    let (ours, theirs) = UnixStream::pair().unwrap();
    vm.session().ask_with("getfd", json!({"fdname": "net"}), &[theirs.as_fd()]);
    drop(theirs);
    let addr = json!({"type": "fd", "str": "net"});
    vm.ask("netdev_add", json!({"type": "stream", "id": "f", "addr": addr}));
    drop(ours);
    let gone = vm.session().event("NETDEV_STREAM_DISCONNECTED");
    assert_eq!(gone["data"]["netdev-id"], "f");
    // One that is no connection, and a try that nobody answers, which is the only one.
    let (ours, theirs) = UnixDatagram::pair().unwrap();
    vm.session().ask_with("getfd", json!({"fdname": "net"}), &[ours.as_fd()]);
    let add = |id, addr| json!({"type": "stream", "id": id, "addr": addr});
    let told = vm.try_ask("netdev_add", add("d", json!({"type": "fd", "str": "net"}))).unwrap_err();
    assert!(told.contains("not of a connection"), "{told}");
    vm.session().ask_with("getfd", json!({"fdname": "net"}), &[ours.as_fd()]);
    vm.ask("netdev_add", json!({"type": "socket", "id": "s", "fd": "net"}));
    theirs.send(b"taken by nobody").unwrap();
    vm.ask("netdev_del", json!({"id": "s"}));
    assert_eq!(theirs.send(b"gone").unwrap_err().kind(), ErrorKind::BrokenPipe);
    let nowhere = folder.path().join("nowhere");
    vm.ask("netdev_add", add("c", json!({"type": "unix", "path": nowhere})));
    vm.wait_for_stderr("network c: unix:");
    // The card's own: it is cut off even while the guest stands still, which runs on afterwards.
    vm.ask("stop", json!({}));
    vm.ask("netdev_del", json!({"id": "n"}));
    assert!(matches!(stream.read(&mut [0; 8]), Ok(0) | Err(_)));
    assert!(vm.try_ask("netdev_del", json!({"id": "n"})).unwrap_err().contains("'n' not found"));
    vm.ask("cont", json!({}));
    // The next of its name is no cable of the card's.
    let addr = json!({"type": "unix", "path": folder.path().join("third")});
    vm.ask("netdev_add", json!({"type": "stream", "id": "n", "server": true, "addr": addr}));
    let shown = vm.ask("human-monitor-command", json!({"command-line": "info network"}));
    let shown = shown.as_str().unwrap();
    assert!(shown.contains("\nn: index=0") && !shown.contains(" \\ "), "{shown}");
    assert_runs(&mut vm);
}

#[test]
fn passt_is_heard_and_ends_with_its_network() {
    let folder = tempfile::tempdir().unwrap();
    // The first one stays as long as its connection, others fail.
    let [pid, failed, program] = ["pid", "failed", "passt"].map(|name| folder.path().join(name));
    let script = format!(
        "#!/bin/sh\n[ -e {0} ] && {{ echo $$ >{1}; echo no such luck >&2; exit 1; }}\necho $$ >{0}.new; mv {0}.new {0}; exec cat\n",
        pid.display(),
        failed.display()
    );
    std::fs::write(&program, script).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    let path = format!("{}:{}", folder.path().display(), std::env::var("PATH").unwrap());
    let launch = launch(folder.path(), "vm", true, "user,id=n").environment("PATH", &path);
    let mut vm = launch.start();
    let end = Instant::now() + LIMIT;
    while !pid.exists() {
        assert!(Instant::now() < end, "{}", vm.stderr());
        std::thread::sleep(Duration::from_millis(5));
    }
    vm.ask("netdev_add", json!({"type": "user", "id": "m"}));
    vm.wait_for_stderr("network m: passt: no such luck");
    vm.wait_for_stderr("network m: passt has ended");
    let process = |pid| Path::new("/proc").join(std::fs::read_to_string(pid).unwrap().trim());
    let (process, failed) = (process(&pid), process(&failed));
    assert!(process.exists() && !failed.exists(), "a process that nobody waits for");
    vm.ask("stop", json!({}));
    vm.ask("netdev_del", json!({"id": "n"}));
    assert!(!process.exists());
    assert!(!vm.stderr().contains("network n:"), "{}", vm.stderr());
}
