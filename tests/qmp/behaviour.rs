//! Several clients, fast ones and dead ones, against the fake machine.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::common::qmp::Client;
use crate::fake;

fn serve(monitors: usize) -> (tempfile::TempDir, Vec<PathBuf>) {
    let dir = tempfile::tempdir().unwrap();
    fake::start(dir.path(), monitors);
    let paths = (0..monitors).map(|n| dir.path().join(format!("vm{n}"))).collect();
    (dir, paths)
}

/// Requests sent in one piece, each with its number as id.
pub(crate) fn pipelined_requests_are_answered_in_order(path: &Path, oob: bool) {
    let mut client = Client::connect(path);
    client.receive();
    let enable: &[&str] = if oob { &["oob"] } else { &[] };
    client.ask("qmp_capabilities", json!({"enable": enable}));
    let requests: String =
        (0..10_000).map(|id| format!("{{'execute':'query-status','id':{id}}}")).collect();
    let socket = client.socket().try_clone_to_owned().unwrap();
    let sender = std::thread::spawn(move || {
        use std::io::Write;
        File::from(socket).write_all(requests.as_bytes()).unwrap();
    });
    for id in 0..10_000 {
        assert_eq!(client.receive()["id"], json!(id));
    }
    sender.join().unwrap();
}

#[test]
fn ten_thousand_pipelined_requests_are_answered_in_order() {
    let (_dir, paths) = serve(1);
    pipelined_requests_are_answered_in_order(&paths[0], false);
    pipelined_requests_are_answered_in_order(&paths[0], true);
}

#[test]
fn every_monitor_gets_events_and_the_asker_gets_them_first() {
    let (_dir, paths) = serve(2);
    let mut asker = Client::negotiated(&paths[0]);
    let mut other = Client::negotiated(&paths[1]);
    let (answer, events) = asker.ask_with("cont", json!({}), &[]);
    assert_eq!(answer, json!({}));
    assert_eq!(events.len(), 1);
    assert_eq!(events[0]["event"], json!("RESUME"));
    other.event("RESUME");
}

#[test]
fn events_start_with_the_negotiation() {
    let (_dir, paths) = serve(2);
    let mut early = Client::connect(&paths[0]);
    early.receive();
    let mut asker = Client::negotiated(&paths[1]);
    asker.ask("cont", json!({}));
    assert_eq!(early.ask_with("qmp_capabilities", json!({}), &[]), (json!({}), vec![]));
    asker.ask("stop", json!({}));
    early.event("STOP");
}

#[test]
fn second_client_waits_until_the_first_leaves() {
    let (_dir, paths) = serve(1);
    let first = Client::negotiated(&paths[0]);
    let mut second = Client::connect(&paths[0]);
    assert!(!second.hears_within(Duration::from_millis(100)));
    drop(first);
    assert!(second.receive().get("QMP").is_some());
}

#[test]
fn client_that_does_not_read_stops_nobody_else() {
    let (_dir, paths) = serve(2);
    let dead = Client::negotiated(&paths[0]);
    rustix::io::ioctl_fionbio(dead.socket(), true).unwrap();
    let request = b"{\"execute\":\"query-commands\"}".repeat(1000);
    // Until its socket takes no more: the server has stopped taking its requests.
    let (mut sent, mut idle_since) = (0, Instant::now());
    while idle_since.elapsed() < Duration::from_millis(200) {
        match rustix::net::send(
            dead.socket(),
            &request[sent % 27..],
            rustix::net::SendFlags::NOSIGNAL,
        ) {
            Ok(count) => {
                sent += count;
                idle_since = Instant::now();
            }
            Err(_) => std::thread::sleep(Duration::from_millis(1)),
        }
        assert!(sent < 100 << 20, "the server takes requests for ever");
    }
    let mut alive = Client::negotiated(&paths[1]);
    for _ in 0..100 {
        assert_eq!(alive.ask("query-status", json!({}))["status"], json!("prelaunch"));
    }
    // The dead client leaves, the next one is served.
    drop(dead);
    Client::negotiated(&paths[0]);
}

#[test]
fn client_that_sleeps_through_events_is_disconnected() {
    let (_dir, paths) = serve(2);
    let mut asleep = Client::negotiated(&paths[0]);
    let mut busy = Client::negotiated(&paths[1]);
    let many = b"{\"execute\":\"system_powerdown\"}".repeat(1000);
    // Each event takes more than 64 bytes, and 16 MiB is the limit.
    for _ in 0..(17 << 20) / 64 / 1000 {
        busy.send(&many, &[]);
        for _ in 0..2000 {
            busy.receive_text().unwrap();
        }
        if is_closed(&asleep) {
            break;
        }
    }
    while asleep.receive_text().is_some() {}
    assert_eq!(busy.ask("query-status", json!({}))["status"], json!("prelaunch"));
}

/// True if the other side closed the connection, whatever is left to be read.
fn is_closed(client: &Client) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let socket = client.socket();
    let mut fds = [PollFd::from_borrowed_fd(socket, PollFlags::HUP)];
    poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).unwrap();
    fds[0].revents().contains(PollFlags::HUP)
}

#[test]
fn quit_is_answered_and_nothing_behind_it() {
    let (_dir, paths) = serve(2);
    let mut client = Client::negotiated(&paths[0]);
    let mut other = Client::negotiated(&paths[1]);
    client.send(b"{\"execute\":\"quit\",\"id\":1}{\"execute\":\"query-status\",\"id\":2}", &[]);
    let event = client.receive();
    assert_eq!(event["data"], json!({"guest": false, "reason": "host-qmp-quit"}));
    assert_eq!(client.receive(), json!({"return": {}, "id": 1}));
    assert_eq!(client.receive_text(), None);
    other.event("SHUTDOWN");
    assert_eq!(other.receive_text(), None);
}

#[test]
fn descriptors_belong_to_one_monitor() {
    let (_dir, paths) = serve(2);
    let file = File::open("/dev/null").unwrap();
    let mut first = Client::negotiated(&paths[0]);
    let mut second = Client::negotiated(&paths[1]);
    let name = json!({"fdname": "disk"});
    assert_eq!(first.ask_with("getfd", name.clone(), &[file.as_fd()]).0, json!({}));
    assert_eq!(
        second.refused("closefd", name.clone())["desc"],
        json!("File descriptor named 'disk' not found")
    );
    assert_eq!(first.ask("closefd", name), json!({}));
}

#[test]
fn pipelined_requests_keep_their_own_descriptors() {
    let (_dir, paths) = serve(1);
    let file = File::open("/dev/null").unwrap();
    let mut client = Client::negotiated(&paths[0]);
    for name in ["a", "b", "c"] {
        let request =
            format!("{{'execute':'getfd','arguments':{{'fdname':'{name}'}},'id':'{name}'}}");
        client.send(request.as_bytes(), &[file.as_fd()]);
    }
    for name in ["a", "b", "c"] {
        assert_eq!(client.receive(), json!({"return": {}, "id": name}));
    }
}

#[test]
fn memory_is_saved_in_the_length_asked_for() {
    let (dir, paths) = serve(1);
    let mut client = Client::negotiated(&paths[0]);
    let file = dir.path().join("memory");
    for (size, command) in [(0, "pmemsave"), (5000, "memsave"), (3 << 20, "pmemsave")] {
        let answer = client.ask(command, json!({"val": 4095, "size": size, "filename": file}));
        assert_eq!(answer, json!({}));
        assert_eq!(std::fs::metadata(&file).unwrap().len(), size);
    }
    // The last bytes of all, and no address wraps around to the first.
    for (val, size, want) in [
        (json!(u64::MAX - 15), json!(16), None),
        (json!(-16), json!(16), None),
        (json!(-1), json!(2), Some("Invalid addr 0xffffffffffffffff/size 2 specified")),
        (json!(u64::MAX), json!(2), Some("Invalid addr 0xffffffffffffffff/size 2 specified")),
        (json!(0), json!(-1), Some("Parameter 'size' expects a value from 0 to 2^63 - 1")),
        (json!(0), json!(1u64 << 63), Some("Parameter 'size' expects a value from 0 to 2^63 - 1")),
        (json!(1.5), json!(1), Some("Parameter 'val' expects uint64")),
    ] {
        for command in ["pmemsave", "memsave"] {
            let _ = std::fs::remove_file(&file);
            let answer =
                client.try_ask(command, json!({"val": val, "size": size, "filename": file}));
            assert_eq!(answer.err().as_deref(), want, "{command} {val} {size}");
            assert_eq!(file.exists(), want.is_none(), "nothing is made for what is refused");
        }
    }
    let refused =
        client.refused("pmemsave", json!({"val": 0, "size": 1, "filename": "/nowhere/x"}));
    assert_eq!(refused["desc"], json!("Could not open '/nowhere/x': No such file or directory"));
}
