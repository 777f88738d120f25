//! The real process, with KVM and the built-in guest.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

use crate::behaviour::pipelined_requests_are_answered_in_order;
use crate::common::PATIENCE;
use crate::common::guest;
use crate::common::qmp::Client;
use crate::common::vm::{Launch, Vm};
use crate::replay::{Beside, Peer, replay, replay_with};

/// `@DIR@` in `arguments` is the machine's own folder.
fn start(arguments: &[&str]) -> Vm {
    Launch::alone().bare().words(arguments).guest("").spawn()
}

/// With as many monitors as asked for, on `vm0`, `vm1` …
pub(crate) fn with_monitors(count: usize, arguments: &[&str]) -> Vm {
    let monitor = |n| format!("unix:@DIR@/vm{n},server=on,wait=off");
    let monitors: Vec<String> = (0..count).map(monitor).collect();
    let options = monitors.iter().flat_map(|monitor| ["-qmp", monitor.as_str()]);
    let all: Vec<&str> = options.chain(arguments.iter().copied()).collect();
    start(&all)
}

pub(crate) fn monitor(vm: &Vm, number: usize) -> Client {
    Client::negotiated(&vm.path(&format!("vm{number}")))
}

pub(crate) fn signal(vm: &Vm, signal: Signal) {
    kill_process(Pid::from_child(&vm.child), signal).unwrap();
}

fn against_process(topic: &str, until: Option<&str>) {
    let mut godwit = with_monitors(1, &["-S", "-no-shutdown"]);
    replay(topic, godwit.folder(), Peer::Process, until);
    signal(&godwit, Signal::TERM);
    assert_eq!(godwit.exit_code(), Some(0));
}

#[test]
fn recorded_conversations_are_the_same_with_the_real_process() {
    for topic in [
        "negotiation",
        "reconnect",
        "envelope",
        "ids",
        "json_syntax",
        "limits",
        "arguments",
        "fd_disconnect",
        "removed",
        "migrate_params",
    ] {
        against_process(topic, None);
    }
    against_process("oob", Some("the oob answer overtakes"));
    against_process("fds", Some("removed while a node uses it"));
}

#[test]
fn run_state_follows_the_recording() {
    let mut godwit = with_monitors(1, &["-S", "-no-shutdown"]);
    replay("runstate", godwit.folder(), Peer::Process, None);
    assert_eq!(godwit.exit_code(), Some(0));
}

#[test]
fn a_signal_is_told_as_in_the_recording() {
    let mut godwit = with_monitors(1, &["-S"]);
    let mut beside = |what: Beside<'_>| {
        if what == Beside::Signal {
            signal(&godwit, Signal::TERM);
        }
    };
    replay_with("shutdown_signal", godwit.folder(), Peer::Process, None, &mut beside);
    assert_eq!(godwit.exit_code(), Some(0));
}

#[test]
fn a_bare_machine_is_asked_everything() {
    let mut godwit = with_monitors(1, &["-append", "ws=1"]);
    replay("bare_microvm", godwit.folder(), Peer::Process, None);
    assert_eq!(godwit.exit_code(), Some(0));
}

#[test]
fn qmp_shell_gets_the_recorded_answers() {
    let mut godwit = with_monitors(1, &["-S"]);
    replay("qmp_shell", godwit.folder(), Peer::Process, None);
    assert_eq!(godwit.exit_code(), Some(0));
}

#[test]
fn signals_end_it_cleanly() {
    for kind in [Signal::TERM, Signal::INT, Signal::HUP] {
        let mut godwit = with_monitors(1, &["-pidfile", "@DIR@/pid"]);
        let mut client = monitor(&godwit, 0);
        assert_eq!(client.ask("query-status", json!({}))["running"], json!(true));
        let pid = std::fs::read_to_string(godwit.path("pid")).unwrap();
        assert_eq!(pid, format!("{}\n", godwit.pid()));
        signal(&godwit, kind);
        assert_eq!(
            client.event("SHUTDOWN")["data"],
            json!({"guest": false, "reason": "host-signal"})
        );
        assert_eq!(client.receive_text(), None);
        assert_eq!(godwit.exit_code(), Some(0));
        assert!(!godwit.path("pid").exists() && !godwit.path("vm0").exists());
    }
}

#[test]
fn quit_ends_it_with_status_zero() {
    let mut godwit = with_monitors(2, &[]);
    let mut other = monitor(&godwit, 1);
    assert_eq!(monitor(&godwit, 0).ask("quit", json!({})), json!({}));
    other.event("SHUTDOWN");
    assert_eq!(other.receive_text(), None);
    assert_eq!(godwit.exit_code(), Some(0));
}

#[test]
fn client_that_does_not_read_does_not_hold_up_the_end() {
    let mut godwit = with_monitors(2, &[]);
    let mut dead = monitor(&godwit, 0);
    for _ in 0..100 {
        let request = b"{\"execute\":\"query-commands\"}".repeat(10);
        rustix::io::ioctl_fionbio(dead.socket(), true).unwrap();
        if rustix::net::send(dead.socket(), &request, rustix::net::SendFlags::NOSIGNAL).is_err() {
            break;
        }
    }
    let start = Instant::now();
    monitor(&godwit, 1).ask("quit", json!({}));
    assert_eq!(godwit.exit_code(), Some(0));
    assert!(start.elapsed() < Duration::from_secs(20));
    rustix::io::ioctl_fionbio(dead.socket(), false).unwrap();
    while dead.receive_text().is_some() {}
}

#[test]
fn ten_thousand_pipelined_requests() {
    let godwit = with_monitors(1, &["-append", "rate=1"]);
    pipelined_requests_are_answered_in_order(&godwit.path("vm0"), false);
    pipelined_requests_are_answered_in_order(&godwit.path("vm0"), true);
}

#[test]
fn guest_stands_still_and_goes_on() {
    let godwit = with_monitors(2, &["-append", "ws=1"]);
    let (mut client, mut other) = (monitor(&godwit, 0), monitor(&godwit, 1));
    for _ in 0..10 {
        let (_, events) = client.ask_with("stop", json!({}), &[]);
        assert_eq!(events[0]["event"], json!("STOP"));
        assert_eq!(
            client.ask("query-status", json!({})),
            json!({"status": "paused", "running": false})
        );
        let (_, events) = client.ask_with("cont", json!({}), &[]);
        assert_eq!(events[0]["event"], json!("RESUME"));
        other.event("STOP");
        other.event("RESUME");
    }
}

#[test]
fn memory_is_saved_as_the_guest_has_it() {
    let godwit = with_monitors(1, &["-S"]);
    let mut client = monitor(&godwit, 0);
    let (physical, linear) = (godwit.path("physical"), godwit.path("virtual"));
    let bytes = 64 << 20;
    assert_eq!(
        client.ask("pmemsave", json!({"val": 0, "size": bytes, "filename": physical})),
        json!({})
    );
    // The guest starts without paging.
    let part = json!({"val": 0x7ff, "size": 1 << 20, "filename": linear, "cpu-index": 0});
    assert_eq!(client.ask("memsave", part), json!({}));
    let (physical, linear) = (std::fs::read(physical).unwrap(), std::fs::read(linear).unwrap());
    assert_eq!(physical.len(), bytes);
    assert!(physical.iter().any(|byte| *byte != 0));
    assert!(linear[..] == physical[0x7ff..0x7ff + (1 << 20)]);
}

#[test]
fn descriptors_are_closed_with_their_names() {
    let godwit = with_monitors(1, &["-S"]);
    let path = godwit.path("file");
    let file = File::create(&path).unwrap();
    let held = || open_in(godwit.pid(), &path);
    let mut client = monitor(&godwit, 0);
    for name in ["a", "b", "a"] {
        assert_eq!(client.ask_with("getfd", json!({"fdname": name}), &[file.as_fd()]).0, json!({}));
    }
    client.ask_with("add-fd", json!({"fdset-id": 3}), &[file.as_fd(), file.as_fd()]);
    assert_eq!(held(), 3);
    client.ask_with("query-status", json!({}), &[file.as_fd()]);
    assert_eq!(held(), 4);
    drop(client);
    let mut client = monitor(&godwit, 0);
    assert_eq!(held(), 3, "what nobody claimed goes with the client");
    client.ask("closefd", json!({"fdname": "a"}));
    client.ask("closefd", json!({"fdname": "b"}));
    client.ask("remove-fd", json!({"fdset-id": 3}));
    assert_eq!(held(), 0);
}

fn open_in(pid: u32, path: &Path) -> usize {
    let fds = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    fds.filter(|fd| std::fs::read_link(fd.as_ref().unwrap().path()).is_ok_and(|link| link == path))
        .count()
}

#[test]
fn monitor_on_stdio_and_on_tcp() {
    let mut godwit = start(&["-S", "-qmp", "stdio"]);
    let (mut stdin, mut stdout) = (godwit.stdin(), BufReader::new(godwit.stdout()));
    let mut line = String::new();
    stdout.read_line(&mut line).unwrap();
    assert!(line.starts_with("{\"QMP\": "), "{line}");
    stdin.write_all(b"{\"execute\":\"qmp_capabilities\"}{\"execute\":\"quit\"}").unwrap();
    let mut rest = String::new();
    stdout.read_to_string(&mut rest).unwrap();
    assert!(rest.starts_with("{\"return\": {}}\r\n") && rest.contains("SHUTDOWN"), "{rest}");
    assert_eq!(godwit.exit_code(), Some(0));

    let godwit = with_monitors(1, &["-S", "-qmp", "tcp:127.0.0.1:0,server=on,wait=off"]);
    let chardevs = monitor(&godwit, 0).ask("query-chardev", json!({}));
    let names: Vec<&str> = chardevs
        .as_array()
        .unwrap()
        .iter()
        .map(|device| device["filename"].as_str().unwrap())
        .collect();
    let address = names.iter().find_map(|name| name.strip_prefix("disconnected:tcp:")).unwrap();
    let mut socket =
        BufReader::new(TcpStream::connect(address.split(',').next().unwrap()).unwrap());
    let mut line = String::new();
    socket.read_line(&mut line).unwrap();
    assert!(line.starts_with("{\"QMP\": "), "{line}");
}

#[test]
fn serial_output_reaches_stdio_files_and_sockets() {
    let mut godwit = with_monitors(1, &["-append", "ws=1", "-serial", "stdio"]);
    let mut line = String::new();
    BufReader::new(godwit.stdout()).read_line(&mut line).unwrap();
    assert!(!line.trim().is_empty());

    let godwit = with_monitors(
        1,
        &["-S", "-append", "ws=1", "-serial", "unix:@DIR@/serial,server=on,wait=off"],
    );
    let mut client = monitor(&godwit, 0);
    for _ in 0..2 {
        let serial = UnixStream::connect(godwit.path("serial")).unwrap();
        client.ask("cont", json!({}));
        let mut line = String::new();
        BufReader::new(serial).read_line(&mut line).unwrap();
        assert!(!line.trim().is_empty());
    }

    let godwit = with_monitors(1, &["-append", "ws=1", "-serial", "file:@DIR@/serial"]);
    let path = godwit.path("serial");
    let end = Instant::now() + Duration::from_secs(60);
    while std::fs::read(&path).map_or(0, |text| text.len()) < 10 {
        assert!(Instant::now() < end, "nothing was written");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn serial_input_keeps_its_connection() {
    let serial = "unix:@DIR@/serial,server=on,wait=off";
    let godwit = with_monitors(1, &["-S", "-append", "ws=1", "-serial", serial]);
    let mut client = monitor(&godwit, 0);
    let mut socket = UnixStream::connect(godwit.path("serial")).unwrap();
    // The port takes 16 bytes; the rest waits for a guest that reads.
    for key in 0..20u8 {
        socket.write_all(&[b'a' + key]).unwrap();
        std::thread::sleep(Duration::from_millis(5));
    }
    client.ask("cont", json!({}));
    let mut line = String::new();
    BufReader::new(socket).read_line(&mut line).unwrap();
    assert!(!line.trim().is_empty());
}

#[test]
fn serial_reader_that_does_not_read_does_not_stop_the_guest() {
    let launch = Launch::alone().bare().no_guest();
    std::fs::write(launch.path("kernel"), guest::elf(&guest::chatter())).unwrap();
    let words = [
        "-S",
        "-kernel",
        "@DIR@/kernel",
        "-serial",
        "unix:@DIR@/serial,server=on,wait=off",
        "-qmp",
        "unix:@DIR@/vm0,server=on,wait=off",
    ];
    let godwit = launch.words(&words).spawn();
    let mut client = monitor(&godwit, 0);
    let reader = UnixStream::connect(godwit.path("serial")).unwrap();
    client.ask("cont", json!({}));
    // Until the socket takes no more: some hundred bytes that came one by one.
    let unread = || rustix::io::ioctl_fionread(&reader).unwrap();
    let (mut before, end) = (0, Instant::now() + PATIENCE);
    while unread() < 100 || unread() > before {
        assert!(Instant::now() < end, "{} bytes and more", unread());
        before = unread();
        std::thread::sleep(Duration::from_millis(200));
    }
    for _ in 0..3 {
        client.ask("stop", json!({}));
        client.ask("cont", json!({}));
    }
}

#[test]
fn terminal_is_named_by_query_chardev() {
    let godwit = with_monitors(1, &["-append", "ws=1", "-serial", "pty"]);
    let chardevs = monitor(&godwit, 0).ask("query-chardev", json!({}));
    let serial = chardevs
        .as_array()
        .unwrap()
        .iter()
        .find(|device| device["label"] == json!("serial0"))
        .unwrap();
    let terminal = serial["filename"].as_str().unwrap().strip_prefix("pty:").unwrap();
    let mut line = String::new();
    BufReader::new(File::open(terminal).unwrap()).read_line(&mut line).unwrap();
    assert!(!line.trim().is_empty());
}

#[test]
fn server_that_waits_starts_the_guest_with_its_client() {
    let godwit = start(&["-S", "-qmp", "unix:@DIR@/vm0,server=on,wait=on"]);
    assert_eq!(monitor(&godwit, 0).ask("query-status", json!({}))["status"], json!("prelaunch"));
}

#[test]
fn guest_in_the_background_is_ready_when_the_command_returns() {
    let mut godwit = with_monitors(1, &["-S", "-daemonize", "-pidfile", "@DIR@/pid"]);
    assert_eq!(godwit.exit_code(), Some(0));
    let pid: u32 = std::fs::read_to_string(godwit.path("pid")).unwrap().trim().parse().unwrap();
    assert_ne!(pid, godwit.pid());
    let mut client = monitor(&godwit, 0);
    client.ask("quit", json!({}));
    while client.receive_text().is_some() {}
}
