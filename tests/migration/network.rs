//! Two hosts as network namespaces, with a switch between them whose links have a speed and can go
//! down. Needs root.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::common::vm::{Launch, Vm};
use serde_json::{Value, json};

const GUEST: &str = "ws=8 pattern=hot fill=random";
/// Speed of the links.
const MBIT: u64 = 400;

/// Source host, target host, and the switch.
struct Network {
    prefix: String,
}

impl Network {
    fn new() -> Self {
        static COUNT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let number = COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let network = Self { prefix: format!("gw{}-{number}", std::process::id()) };
        let switch = network.name("switch");
        ip(&format!("netns add {switch}"));
        ip(&format!("-n {switch} link add bridge type bridge"));
        ip(&format!("-n {switch} link set bridge up"));
        for (host, number) in [("a", 1), ("b", 2)] {
            let namespace = network.name(host);
            ip(&format!("netns add {namespace}"));
            ip(&format!(
                "-n {switch} link add port-{host} type veth peer name eth0 netns {namespace}"
            ));
            ip(&format!("-n {switch} link set port-{host} master bridge up"));
            ip(&format!("-n {namespace} link set lo up"));
            ip(&format!("-n {namespace} addr add 10.77.0.{number}/24 dev eth0"));
            ip(&format!("-n {namespace} addr add fd77::{number}/64 dev eth0 nodad"));
            ip(&format!("-n {namespace} link set eth0 up"));
            for (namespace, device) in
                [(&namespace, "eth0".into()), (&switch, format!("port-{host}"))]
            {
                let shape = format!(
                    "qdisc add dev {device} root tbf rate {MBIT}mbit burst 256kb latency 50ms"
                );
                done("tc", &format!("-n {namespace} {shape}"));
            }
        }
        network
    }

    fn name(&self, host: &str) -> String {
        format!("{}-{host}", self.prefix)
    }

    /// The target's cable, at the switch: neither host sees its own link go down.
    fn link(&self, state: &str) {
        ip(&format!("-n {} link set port-b {state}", self.name("switch")));
    }

    fn source(&self, dir: &Path) -> Vm {
        let vm = Launch::new(dir, "source").namespace(&self.name("a")).guest(GUEST).start();
        vm.wait_for_sweeps(1);
        vm
    }

    fn target(&self, dir: &Path, name: &str) -> Vm {
        Launch::new(dir, name).namespace(&self.name("b")).guest(GUEST).incoming("defer").start()
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for host in ["a", "b", "switch"] {
            let _ = Command::new("ip").args(["netns", "del", &self.name(host)]).status();
        }
    }
}

fn ip(words: &str) {
    done("ip", words);
}

fn done(program: &str, words: &str) {
    let output = Command::new(program).args(words.split(' ')).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {words}: {error}; is this root?");
}

fn listen(target: &mut Vm, host: &str) -> String {
    target.ask("migrate-incoming", json!({"uri": format!("tcp:{host}:0")}));
    format!("tcp:{host}:{}", target.port())
}

fn arrives(source: &mut Vm, target: &mut Vm) -> Value {
    let report = source.outcome();
    assert_eq!(report["status"], "completed", "{report} {}", target.stderr());
    assert_eq!(source.status(), "postmigrate");
    let last = source.sweeps().last().copied().unwrap_or(0);
    target.assert_alive();
    assert!(target.sweeps()[0] >= last);
    report
}

#[test]
fn the_guest_moves_between_hosts_over_a_shaped_link_of_both_families() {
    let network = Network::new();
    for (host, capabilities) in
        [("10.77.0.2", &["xbzrle"][..]), ("[fd77::2]", &["multifd"]), ("[fd77::2]", &[])]
    {
        let dir = tempfile::tempdir().unwrap();
        let (mut source, mut target) =
            (network.source(dir.path()), network.target(dir.path(), "target"));
        let parameters = json!({
            "max-bandwidth": 0, "downtime-limit": 1000, "x-godwit-verify": true, "multifd-channels": 2,
        });
        source.set(capabilities, &parameters);
        target.set(capabilities, &parameters);
        let uri = listen(&mut target, host);
        source.ask("migrate", json!({"uri": uri}));
        let report = arrives(&mut source, &mut target);
        let bytes = report["ram"]["transferred"].as_u64().unwrap();
        let seconds = report["total-time"].as_u64().unwrap() as f64 / 1000.0;
        assert!(bytes > 8 << 20, "{report}");
        // Every byte went over the link: a bucket of it and the sockets' buffers may be on top.
        let most = seconds * MBIT as f64 * 1e6 / 8.0 + (4 << 20) as f64;
        assert!((bytes as f64) < most, "{bytes} bytes in {seconds} s over {MBIT} Mbit/s");
    }
}

#[test]
fn a_link_down_for_30_s_is_survived_and_the_guest_never_stops() {
    let (network, dir) = (Network::new(), tempfile::tempdir().unwrap());
    let (mut source, mut target) =
        (network.source(dir.path()), network.target(dir.path(), "target"));
    source.set(&[], &json!({"max-bandwidth": 16 << 20, "downtime-limit": 0}));
    let uri = listen(&mut target, "10.77.0.2");
    source.ask("migrate", json!({"uri": uri}));
    source.wait_for("the second round", |report| {
        report["ram"]["dirty-sync-count"].as_u64() >= Some(2)
    });
    network.link("down");
    let end = Instant::now() + Duration::from_secs(30);
    while Instant::now() < end {
        source.assert_alive();
        let report = source.ask("query-migrate", json!({}));
        assert_eq!(report["status"], "active", "{report}");
        std::thread::sleep(Duration::from_millis(500));
    }
    network.link("up");
    source.ask("migrate-set-parameters", json!({"max-bandwidth": 0, "downtime-limit": 10_000}));
    arrives(&mut source, &mut target);
}

#[test]
fn a_link_down_for_ever_ends_the_migration_after_the_peer_timeout_and_the_guest_runs() {
    let (network, dir) = (Network::new(), tempfile::tempdir().unwrap());
    let mut source = network.source(dir.path());
    // Down in a round, and down before the first byte.
    for (name, in_round) in [("round", true), ("setup", false)] {
        let mut target = network.target(dir.path(), name);
        let parameters =
            json!({"max-bandwidth": 16 << 20, "downtime-limit": 0, "x-godwit-peer-timeout": 4000});
        source.set(&[], &parameters);
        target.set(&[], &parameters);
        let uri = listen(&mut target, "10.77.0.2");
        if !in_round {
            network.link("down");
        }
        source.ask("migrate", json!({"uri": uri}));
        if in_round {
            source.wait_for("the second round", |report| {
                report["ram"]["dirty-sync-count"].as_u64() >= Some(2)
            });
            network.link("down");
        }
        let down = Instant::now();
        let report = source.outcome();
        assert_eq!(report["status"], "failed");
        let error = report["error-desc"].as_str().unwrap();
        // The network may find out sooner than the time-out that nobody is there: nobody answers
        // its ARP requests.
        let says_why = |text: &str| {
            ["timed out", "No route to host", "connection was lost"]
                .iter()
                .any(|why| text.contains(why))
        };
        assert!(says_why(error), "{name}: {error}");
        assert!(down.elapsed() > Duration::from_secs(3), "{name}: after {:?}", down.elapsed());
        source.assert_alive();
        if in_round {
            assert_eq!(target.exit_code(), Some(1));
            assert!(says_why(&target.stderr()), "{}", target.stderr());
        } else {
            assert_eq!(target.status(), "inmigrate");
        }
        network.link("up");
    }
    let mut target = network.target(dir.path(), "second");
    source.set(
        &[],
        &json!({"max-bandwidth": 0, "downtime-limit": 1000, "x-godwit-peer-timeout": 60_000}),
    );
    let uri = listen(&mut target, "10.77.0.2");
    source.ask("migrate", json!({"uri": uri}));
    arrives(&mut source, &mut target);
}

#[test]
fn a_link_down_at_the_switch_over_gives_the_guest_back_after_the_commit_timeout() {
    let (network, dir) = (Network::new(), tempfile::tempdir().unwrap());
    let (mut source, mut target) =
        (network.source(dir.path()), network.target(dir.path(), "target"));
    let parameters = json!({
        "max-bandwidth": 0, "downtime-limit": 10_000, "x-godwit-peer-timeout": 6000, "x-godwit-commit-timeout": 2000,
    });
    source.set(&["pause-before-switchover"], &parameters);
    target.set(&[], &parameters);
    let uri = listen(&mut target, "[fd77::2]");
    source.ask("migrate", json!({"uri": uri}));
    source.wait_for("pre-switchover", |report| report["status"] == "pre-switchover");
    network.link("down");
    source.ask("migrate-continue", json!({"state": "pre-switchover"}));
    let report = source.outcome();
    assert_eq!(report["status"], "failed");
    let error = report["error-desc"].as_str().unwrap();
    assert!(error.contains("the target was silent for 2000 ms"), "{error}");
    source.assert_alive();
    assert_eq!(target.exit_code(), Some(1));
    network.link("up");
    let mut target = network.target(dir.path(), "second");
    source.set(&[], &json!({"max-bandwidth": 0, "downtime-limit": 1000}));
    let uri = listen(&mut target, "[fd77::2]");
    source.ask("migrate", json!({"uri": uri}));
    arrives(&mut source, &mut target);
}
