//! The built-in guest moves between real processes, and goes on counting without finding a page corrupt.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// Longer than anything takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(90);

/// A `godwit run`, ended with the test.
struct Vm {
    child: Child,
    dir: PathBuf,
    name: String,
    qmp: BufReader<UnixStream>,
}

impl Drop for Vm {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Vm {
    fn start(dir: &Path, name: &str, extra: &[&str]) -> Vm {
        let path = |what: &str| dir.join(format!("{name}.{what}")).to_str().unwrap().to_owned();
        let (serial, monitor) = (format!("file:{}", path("serial")), path("qmp"));
        let _ = std::fs::remove_file(&monitor);
        let child = Command::new(env!("CARGO_BIN_EXE_godwit"))
            .args(["run", "-M", "microvm,acpi=off", "-m", "64", "-nodefaults", "-display", "none"])
            .args(["-kernel", "builtin", "-append", "ws=8 pattern=hot", "-serial", &serial])
            .args(["-qmp", &format!("unix:{monitor},server=on,wait=off")])
            .args(extra)
            .stdin(Stdio::null())
            .stderr(std::fs::File::create(path("err")).unwrap())
            .spawn()
            .unwrap();
        let end = Instant::now() + PATIENCE;
        let socket = loop {
            match UnixStream::connect(&monitor) {
                Ok(socket) => break socket,
                Err(error) => assert!(Instant::now() < end, "{monitor}: {error}"),
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut vm = Vm { child, dir: dir.to_owned(), name: name.to_owned(), qmp: BufReader::new(socket) };
        vm.line();
        vm.ask("qmp_capabilities", json!({}));
        vm
    }

    fn source(dir: &Path) -> Vm {
        let vm = Vm::start(dir, "source", &[]);
        vm.wait_for_sweeps(1);
        vm
    }

    fn target(dir: &Path, name: &str) -> Vm {
        Vm::start(dir, name, &["-incoming", "defer"])
    }

    fn line(&mut self) -> Value {
        let mut line = String::new();
        assert!(
            self.qmp.read_line(&mut line).unwrap() > 0,
            "{} closed its monitor: {}",
            self.name,
            self.stderr()
        );
        serde_json::from_str(&line).unwrap()
    }

    /// The answer or the error's text.
    fn try_ask(&mut self, command: &str, arguments: Value) -> Result<Value, String> {
        let request = json!({"execute": command, "arguments": arguments}).to_string();
        self.qmp.get_mut().write_all(request.as_bytes()).unwrap();
        loop {
            let mut message = self.line();
            if let Some(value) = message.get_mut("return") {
                return Ok(value.take());
            }
            if let Some(error) = message.get("error") {
                return Err(error["desc"].as_str().unwrap().to_owned());
            }
        }
    }

    fn ask(&mut self, command: &str, arguments: Value) -> Value {
        self.try_ask(command, arguments).unwrap_or_else(|error| panic!("{} {command}: {error}", self.name))
    }

    fn set(&mut self, capabilities: &[&str], parameters: &Value) {
        let list: Vec<_> =
            capabilities.iter().map(|name| json!({"capability": name, "state": true})).collect();
        self.ask("migrate-set-capabilities", json!({"capabilities": list}));
        self.ask("migrate-set-parameters", parameters.clone());
    }

    fn serial(&self) -> String {
        let bytes = std::fs::read(self.dir.join(format!("{}.serial", self.name))).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    fn stderr(&self) -> String {
        std::fs::read_to_string(self.dir.join(format!("{}.err", self.name))).unwrap_or_default()
    }

    fn sweeps(&self) -> Vec<u64> {
        let serial = self.serial();
        assert!(!serial.contains("CORRUPT"), "{}: {serial}", self.name);
        let number = |line: &str| line.strip_prefix("sweep ")?.split(' ').next()?.parse().ok();
        serial.lines().filter_map(number).collect()
    }

    /// Waits for so many sweeps on this process's own serial port.
    fn wait_for_sweeps(&self, count: usize) {
        let end = Instant::now() + PATIENCE;
        while self.sweeps().len() < count {
            assert!(Instant::now() < end, "{} stands still: {}", self.name, self.stderr());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn status(&mut self) -> String {
        self.ask("query-status", json!({}))["status"].as_str().unwrap().to_owned()
    }

    /// Waits for the end of an outgoing migration.
    fn outcome(&mut self) -> Value {
        let end = Instant::now() + PATIENCE;
        loop {
            let report = self.ask("query-migrate", json!({}));
            if matches!(report["status"].as_str(), Some("completed" | "failed" | "cancelled")) {
                return report;
            }
            assert!(Instant::now() < end, "{report}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
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
    let mut vm = Vm::source(dir.path());
    for hop in 0..4 {
        let mut next = Vm::target(dir.path(), &format!("hop{hop}"));
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
    ] {
        let dir = tempfile::tempdir().unwrap();
        let (mut source, mut target) = (Vm::source(dir.path()), Vm::target(dir.path(), "target"));
        move_guest(&mut source, &mut target, &unix(dir.path()), capabilities, parameters);
    }
}

#[test]
fn the_guest_moves_over_tcp_of_both_families() {
    for host in ["127.0.0.1", "[::1]"] {
        let dir = tempfile::tempdir().unwrap();
        let (mut source, mut target) = (Vm::source(dir.path()), Vm::target(dir.path(), "target"));
        target.ask("migrate-incoming", json!({"uri": format!("tcp:{host}:0")}));
        let port =
            target.ask("query-migrate", json!({}))["socket-address"][0]["port"].as_str().unwrap().to_owned();
        source.ask("migrate", json!({"uri": format!("tcp:{host}:{port}")}));
        assert_eq!(source.outcome()["status"], "completed");
        target.wait_for_sweeps(2);
    }
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
        let mut source = Vm::source(dir.path());
        source.ask("migrate", json!({"uri": out}));
        let report = source.outcome();
        assert_eq!(report["status"], "completed", "{report}");
        let last = source.sweeps().last().copied().unwrap_or(0);
        std::thread::sleep(Duration::from_millis(200));
        let target = Vm::start(dir.path(), "target", &["-incoming", &back]);
        target.wait_for_sweeps(2);
        assert!(target.sweeps()[0] >= last);
    }
}

#[test]
fn cancel_and_a_killed_target_leave_the_guest_at_the_source_and_a_second_attempt_succeeds() {
    let dir = tempfile::tempdir().unwrap();
    let uri = unix(dir.path());
    let mut source = Vm::source(dir.path());
    for kill in [false, true] {
        let mut target = Vm::target(dir.path(), &format!("target{kill}"));
        target.ask("migrate-incoming", json!({"uri": uri}));
        source.ask("migrate-set-parameters", json!({"max-bandwidth": 1 << 20}));
        source.ask("migrate", json!({"uri": uri}));
        std::thread::sleep(Duration::from_millis(300));
        assert_eq!(source.ask("query-migrate", json!({}))["status"], "active");
        match kill {
            true => target.child.kill().unwrap(),
            false => drop(source.ask("migrate_cancel", json!({}))),
        }
        let report = source.outcome();
        assert_eq!(report["status"], if kill { "failed" } else { "cancelled" });
        assert_eq!(report.get("error-desc").is_some(), kill, "{report}");
        assert_eq!(source.status(), "running");
        let before = source.sweeps().len();
        source.wait_for_sweeps(before + 2);
    }
    let mut target = Vm::target(dir.path(), "third");
    move_guest(&mut source, &mut target, &uri, &[], json!({"max-bandwidth": 0}));
}

#[test]
fn what_does_not_fit_is_refused_before_ram_moves_and_said_on_both_sides() {
    let dir = tempfile::tempdir().unwrap();
    let uri = unix(dir.path());
    let mut source = Vm::source(dir.path());
    let mut target = Vm::start(dir.path(), "target", &["-m", "128", "-incoming", &uri]);
    source.ask("migrate", json!({"uri": uri}));
    let report = source.outcome();
    assert_eq!(report["status"], "failed");
    let error = report["error-desc"].as_str().unwrap();
    assert!(error.contains("the target refused") && error.contains("microvm.ram"), "{error}");
    assert_eq!(source.status(), "running");
    assert_eq!(target.child.wait().unwrap().code(), Some(1));
    assert!(target.stderr().contains("microvm.ram"), "{}", target.stderr());
}
