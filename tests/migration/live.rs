//! The built-in guest moves between real processes, and goes on counting without finding a page
//! corrupt.

use std::io::Write;
use std::path::Path;
use std::time::Duration;

use crate::common::vm::{Launch, Vm};
use serde_json::{Value, json};

const GUEST: &str = "ws=8 pattern=hot";

fn source(dir: &Path) -> Vm {
    let vm = Launch::new(dir, "source").guest(GUEST).start();
    vm.wait_for_sweeps(1);
    vm
}

fn target(dir: &Path, name: &str) -> Vm {
    Launch::new(dir, name).guest(GUEST).incoming("defer").start()
}

/// Moves the guest and checks that it goes on at the target, and no longer at the source.
fn move_guest(
    source: &mut Vm,
    target: &mut Vm,
    uri: &str,
    capabilities: &[&str],
    parameters: Value,
) -> Value {
    source.set(capabilities, &parameters);
    target.set(capabilities, &parameters);
    target.ask("migrate-incoming", json!({"uri": uri}));
    source.ask("migrate", json!({"uri": uri}));
    let report = source.outcome();
    assert_eq!(report["status"], "completed", "{report} {}", target.stderr());
    assert_eq!(source.status(), "postmigrate");
    let last = source.sweeps().last().copied().unwrap_or(0);
    target.wait_for_sweeps(3);
    let sweeps = target.sweeps();
    assert!(sweeps.iter().all(|sweep| *sweep >= last), "went back from {last}: {sweeps:?}");
    assert!(sweeps.is_sorted());
    assert_eq!(target.status(), "running");
    report
}

fn unix(dir: &Path) -> String {
    format!("unix:{}", dir.join("migration").display())
}

#[test]
fn the_guest_moves_there_and_back_again() {
    let dir = tempfile::tempdir().unwrap();
    let mut vm = source(dir.path());
    for hop in 0..4 {
        let mut next = target(dir.path(), &format!("hop{hop}"));
        move_guest(
            &mut vm,
            &mut next,
            &unix(dir.path()),
            &[],
            json!({"max-bandwidth": 0, "x-godwit-verify": true}),
        );
        vm = next;
    }
}

#[test]
fn every_framing_moves_the_guest() {
    for (capabilities, parameters) in [
        (&[][..], json!({"x-godwit-stream": "qemu"})),
        (&["xbzrle"], json!({"x-godwit-stream": "qemu", "max-bandwidth": 50 << 20})),
        (
            &["xbzrle"],
            json!({"max-bandwidth": 50 << 20, "xbzrle-cache-size": 1 << 20, "x-godwit-verify": true}),
        ),
        (&["multifd"], json!({"multifd-channels": 4, "x-godwit-verify": true})),
        (
            &["multifd", "xbzrle"],
            json!({"multifd-channels": 2, "max-bandwidth": 50 << 20, "x-godwit-verify": true}),
        ),
        // As on a large host, and with no lock that many would wait for in vain.
        (
            &["multifd", "xbzrle"],
            json!({"multifd-channels": 16, "x-godwit-encoder-threads": 8, "max-bandwidth": 50 << 20,
                "x-godwit-verify": true}),
        ),
        (
            &["multifd"],
            json!({"multifd-channels": 16, "x-godwit-encoder-threads": 8, "max-bandwidth": 0,
                "x-godwit-stream": "qemu"}),
        ),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let (mut source, mut target) = (source(dir.path()), target(dir.path(), "target"));
        move_guest(&mut source, &mut target, &unix(dir.path()), capabilities, parameters);
    }
}

#[test]
fn the_guest_moves_over_tcp_of_both_families() {
    for host in ["127.0.0.1", "[::1]"] {
        let dir = tempfile::tempdir().unwrap();
        let (mut source, mut target) = (source(dir.path()), target(dir.path(), "target"));
        target.ask("migrate-incoming", json!({"uri": format!("tcp:{host}:0")}));
        let port = target.ask("query-migrate", json!({}))["socket-address"][0]["port"]
            .as_str()
            .unwrap()
            .to_owned();
        source.ask("migrate", json!({"uri": format!("tcp:{host}:{port}")}));
        assert_eq!(source.outcome()["status"], "completed");
        target.wait_for_sweeps(2);
    }
}

#[test]
fn a_connection_that_is_reset_does_not_end_the_wait_for_the_source() {
    let dir = tempfile::tempdir().unwrap();
    let (mut source, mut target) = (source(dir.path()), target(dir.path(), "target"));
    target.ask("migrate-incoming", json!({"uri": "tcp:127.0.0.1:0"}));
    let port = target.port();
    for words in [&b""[..], b"GET"] {
        let mut probe = std::net::TcpStream::connect(format!("127.0.0.1:{port}")).unwrap();
        probe.write_all(words).unwrap();
        rustix::net::sockopt::set_socket_linger(&probe, Some(Duration::ZERO)).unwrap();
    }
    source.ask("migrate", json!({"uri": format!("tcp:127.0.0.1:{port}")}));
    let report = source.outcome();
    assert_eq!(report["status"], "completed", "{report} {}", target.stderr());
    target.wait_for_sweeps(2);
}

/// Whoever connects and says nothing, or nonsense, before the source comes and between its channels,
/// holds nobody up.
#[test]
fn strangers_do_not_hold_up_the_source_nor_its_channels() {
    enum Stranger {
        #[allow(dead_code)]
        Tcp(std::net::TcpStream),
        #[allow(dead_code)]
        Unix(std::os::unix::net::UnixStream),
    }
    for (tcp, framing) in [(true, "auto"), (false, "qemu")] {
        let dir = tempfile::tempdir().unwrap();
        let (mut source, mut target) = (source(dir.path()), target(dir.path(), "target"));
        let parameters = json!({"multifd-channels": 3, "x-godwit-stream": framing});
        source.set(&["multifd"], &parameters);
        target.set(&["multifd"], &parameters);
        let path = dir.path().join("migration");
        let uri = if tcp { "tcp:127.0.0.1:0".into() } else { unix(dir.path()) };
        target.ask("migrate-incoming", json!({"uri": uri}));
        let uri = if tcp { format!("tcp:127.0.0.1:{}", target.port()) } else { uri };
        let says = |words: &[u8]| {
            if tcp {
                let mut socket = std::net::TcpStream::connect(&uri[4..]).unwrap();
                socket.write_all(words).unwrap();
                Stranger::Tcp(socket)
            } else {
                let mut socket = std::os::unix::net::UnixStream::connect(&path).unwrap();
                socket.write_all(words).unwrap();
                Stranger::Unix(socket)
            }
        };
        let mut strangers: Vec<_> = (0..40).map(|_| says(b"")).collect();
        strangers.push(says(b"GET / HTTP/1.0\r\n\r\n"));
        strangers.push(says(&[0x16, 3, 1, 2, 0, 1]));
        // The beginning of a channel's hello, and of a source.
        strangers.push(says(&[0x11, 0x22, 0x33, 0x44, 0, 0]));
        strangers.push(says(b"QE"));
        source.ask("migrate", json!({"uri": uri}));
        let report = source.outcome();
        assert_eq!(report["status"], "completed", "{report} {}", target.stderr());
        target.wait_for_sweeps(2);
        let words = target.stderr();
        assert!(words.contains("began with 0x47455420, which is no migration stream"), "{words}");
        drop(strangers);
    }
}

/// A source of another version is a source, and what is wrong with it is said.
#[test]
fn a_source_that_cannot_be_read_is_no_stranger() {
    let dir = tempfile::tempdir().unwrap();
    let mut target = target(dir.path(), "target");
    let arguments = json!({"uri": unix(dir.path()), "exit-on-error": false});
    target.ask("migrate-incoming", arguments);
    let mut source = std::os::unix::net::UnixStream::connect(dir.path().join("migration")).unwrap();
    source.write_all(b"QEVM\0\0\0\x02").unwrap();
    let report = target.outcome();
    assert_eq!(report["status"], "failed");
    let error = report["error-desc"].as_str().unwrap();
    assert!(error.contains("field version, offset 0x4: found 0x2, expected 0x3"), "{error}");
}

#[test]
fn no_limit_holds_a_guest_that_stands_still() {
    let dir = tempfile::tempdir().unwrap();
    let (mut source, mut target) = (source(dir.path()), target(dir.path(), "target"));
    source
        .set(&["pause-before-switchover"], &json!({"max-bandwidth": 0, "downtime-limit": 10_000}));
    target.ask("migrate-incoming", json!({"uri": unix(dir.path())}));
    source.ask("migrate", json!({"uri": unix(dir.path())}));
    source.wait_for("pre-switchover", |report| report["status"] == "pre-switchover");
    // At a byte a second what is left would take hours.
    source.ask("migrate-set-parameters", json!({"max-bandwidth": 1}));
    source.ask("migrate-continue", json!({"state": "pre-switchover"}));
    let report = source.outcome();
    assert_eq!(report["status"], "completed", "{report} {}", target.stderr());
    target.wait_for_sweeps(2);
}

#[test]
fn a_running_guest_cannot_wait_for_the_word_of_a_file() {
    let dir = tempfile::tempdir().unwrap();
    let mut source = source(dir.path());
    source.set(&["return-path", "switchover-ack"], &json!({}));
    source.ask("migrate", json!({"uri": format!("file:{}", dir.path().join("state").display())}));
    let report = source.outcome();
    assert!(
        report["error-desc"].as_str().is_some_and(|text| text.contains("switchover-ack")),
        "{report}"
    );
    assert_eq!(source.status(), "running");
}

#[test]
fn a_guest_in_a_file_goes_on_later() {
    for program in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("state").display().to_string();
        let (out, back) = match program {
            false => (format!("file:{file},offset=4096"), format!("file:{file},offset=4096")),
            true => (format!("exec:cat > {file}"), format!("exec:cat {file}")),
        };
        let mut source = source(dir.path());
        source.ask("migrate", json!({"uri": out}));
        let report = source.outcome();
        assert_eq!(report["status"], "completed", "{report}");
        let last = source.sweeps().last().copied().unwrap_or(0);
        std::thread::sleep(Duration::from_millis(200));
        let target = Launch::new(dir.path(), "target").guest(GUEST).incoming(&back).start();
        target.wait_for_sweeps(2);
        assert!(target.sweeps()[0] >= last);
    }
}

#[test]
fn cancel_and_a_killed_target_leave_the_guest_at_the_source_and_a_second_attempt_succeeds() {
    let dir = tempfile::tempdir().unwrap();
    let uri = unix(dir.path());
    let mut source = source(dir.path());
    for kill in [false, true] {
        let mut target = target(dir.path(), &format!("target{kill}"));
        target.ask("migrate-incoming", json!({"uri": uri}));
        source.ask("migrate-set-parameters", json!({"max-bandwidth": 1 << 20}));
        source.ask("migrate", json!({"uri": uri}));
        source.wait_for("its first bytes", |report| {
            report["status"] == "active" && report["ram"]["transferred"].as_u64() > Some(100_000)
        });
        match kill {
            true => target.kill(),
            false => drop(source.ask("migrate_cancel", json!({}))),
        }
        let report = source.outcome();
        assert_eq!(report["status"], if kill { "failed" } else { "cancelled" });
        assert_eq!(report.get("error-desc").is_some(), kill, "{report}");
        assert_eq!(source.status(), "running");
        let before = source.sweeps().len();
        source.wait_for_sweeps(before + 2);
    }
    let mut target = target(dir.path(), "third");
    move_guest(&mut source, &mut target, &uri, &[], json!({"max-bandwidth": 0}));
}

#[test]
fn what_does_not_fit_is_refused_before_ram_moves_and_said_on_both_sides() {
    let dir = tempfile::tempdir().unwrap();
    let uri = unix(dir.path());
    let mut source = source(dir.path());
    let mut target =
        Launch::new(dir.path(), "target").memory(128).guest(GUEST).incoming(&uri).start();
    source.ask("migrate", json!({"uri": uri}));
    let report = source.outcome();
    assert_eq!(report["status"], "failed");
    let error = report["error-desc"].as_str().unwrap();
    assert!(error.contains("the target refused") && error.contains("microvm.ram"), "{error}");
    assert_eq!(source.status(), "running");
    assert_eq!(target.exit_code(), Some(1));
    assert!(target.stderr().contains("microvm.ram"), "{}", target.stderr());
}

/// With gaps in the APIC ids, by which a stream tells interrupt controllers apart.
#[test]
fn sockets_and_cores_move_with_the_guest() {
    let dir = tempfile::tempdir().unwrap();
    let machine =
        |name: &str, smp: &str| Launch::new(dir.path(), name).guest(GUEST).words(&["-smp", smp]);
    let mut source = machine("source", "6,sockets=2,cores=3").start();
    source.wait_for_sweeps(1);
    let cpus = source.ask("query-cpus-fast", json!({}));
    let last = json!({"socket-id": 1, "core-id": 2, "thread-id": 0});
    assert_eq!(cpus[5]["props"], last, "{cpus}");

    let mut other = machine("other", "6").incoming(&unix(dir.path())).start();
    source.ask("migrate", json!({"uri": unix(dir.path())}));
    assert_eq!(source.outcome()["status"], "failed");
    assert_eq!(other.exit_code(), Some(1));
    let why = "none of 6 vCPUs (-smp 6,sockets=1,cores=6,threads=1) has this APIC id";
    assert!(other.stderr().contains(why), "{}", other.stderr());
    source.assert_alive();

    let mut target = machine("target", "6,cores=3,sockets=2").incoming("defer").start();
    move_guest(&mut source, &mut target, &unix(dir.path()), &[], json!({"max-bandwidth": 0}));
}

#[test]
fn a_stream_ends_without_its_description_if_that_is_wanted() {
    let dir = tempfile::tempdir().unwrap();
    let machine = |name: &str| Launch::new(dir.path(), name).guest(GUEST);
    for (name, switch, described) in [("with", "off", true), ("without", "on", false)] {
        let words = ["-M", &format!("suppress-vmdesc={switch}")];
        let mut source = machine(&format!("{name}.source")).words(&words).start();
        source.wait_for_sweeps(1);
        let mut target = machine(&format!("{name}.target")).words(&words).incoming("defer").start();
        move_guest(&mut source, &mut target, &unix(dir.path()), &[], json!({"max-bandwidth": 0}));
        let file = dir.path().join(format!("{name}.stream"));
        target.ask("migrate", json!({"uri": format!("file:{}", file.display())}));
        assert_eq!(target.outcome()["status"], "completed");
        let stream = std::fs::read(&file).unwrap();
        let text = b"\"vmsd_name\"";
        assert_eq!(stream.windows(text.len()).any(|w| w == text), described, "{name}");
        let mut copy = machine(&format!("{name}.copy")).words(&words).incoming("defer").start();
        copy.ask("migrate-incoming", json!({"uri": format!("file:{}", file.display())}));
        copy.assert_alive();
    }
}
