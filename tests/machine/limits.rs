//! Limits of the host that a running machine comes up against: a command may fail, by name, but
//! none ends the guest.

use crate::common::vm::{Launch, Vm};
use serde_json::json;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::process::Command;

/// Sets the soft limit of a running process.
fn limit(vm: &Vm, name: &str, soft: &str) {
    let pid = vm.pid().to_string();
    let done = Command::new("prlimit").args(["--pid", &pid, &format!("--{name}={soft}:")]).status();
    assert!(done.unwrap().success(), "prlimit {name}");
}

/// What the process has now.
fn in_use(vm: &Vm, name: &str) -> u64 {
    let process = format!("/proc/{}", vm.pid());
    let status = std::fs::read_to_string(format!("{process}/status")).unwrap();
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.trim_end_matches(" kB").trim().parse::<u64>().unwrap() << 10
    };
    match name {
        "as" => field("VmSize:"),
        "data" => field("VmData:"),
        "nofile" => std::fs::read_dir(format!("{process}/fd")).unwrap().count() as u64,
        "fsize" => 1 << 20,
        _ => 0,
    }
}

#[test]
fn no_command_ends_a_guest_under_any_limit() {
    let limits = [
        ("fsize", 0),
        ("nofile", 0),
        ("nofile", 1),
        ("nofile", 3),
        ("memlock", 0),
        ("as", 0),
        ("as", 4 << 20),
        ("as", 24 << 20),
        ("data", 0),
        ("data", 8 << 20),
    ];
    for (name, more) in limits {
        let dir = tempfile::tempdir().unwrap();
        let mut vm = Launch::new(dir.path(), "vm").guest("ws=8 rate=4000").start();
        vm.wait_for_sweeps(1);
        let path = |name: &str| dir.path().join(name).display().to_string();
        let dump = |format: &str, live: bool| {
            let protocol = format!("file:{}", path("dump"));
            json!({"paging": false, "protocol": protocol, "format": format, "x-live": live})
        };
        let commands = [
            ("pmemsave", json!({"val": 0, "size": 64 << 20, "filename": path("saved")})),
            ("memsave", json!({"val": 0, "size": 4 << 20, "filename": path("saved")})),
            ("dump-guest-memory", dump("elf", false)),
            ("dump-guest-memory", dump("kdump-zlib", false)),
            ("dump-guest-memory", dump("kdump-raw-zstd", false)),
            ("dump-guest-memory", dump("elf", true)),
            ("migrate", json!({"uri": format!("file:{}", path("state"))})),
            ("migrate", json!({"uri": format!("exec:cat >{}", path("piped"))})),
            ("migrate", json!({"uri": format!("unix:{}", path("nobody"))})),
            ("system_reset", json!({})),
        ];
        let soft = (in_use(&vm, name) + more).to_string();
        let unlimited = match name {
            "nofile" => "1024",
            "memlock" => "65536",
            _ => "unlimited",
        };
        limit(&vm, name, &soft);
        for (command, arguments) in commands {
            let done = vm.try_ask(command, arguments.clone());
            if command == "migrate" && done.is_ok() && vm.outcome()["status"] == "completed" {
                // A thread for this command is not always to be had.
                limit(&vm, name, unlimited);
                vm.ask("cont", json!({}));
                limit(&vm, name, &soft);
            }
            let status = vm.status();
            assert!(status == "running", "{name}={soft} {command} {arguments}: {status} {done:?}");
        }
        limit(&vm, name, unlimited);
        vm.assert_alive();
        vm.ask("pmemsave", json!({"val": 0, "size": 4 << 20, "filename": path("saved")}));
    }
}

/// Stderr on a full disk, or whose reader is gone: what cannot be told ends nothing.
#[test]
fn a_machine_that_cannot_complain_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let mut target = Launch::new(dir.path(), "target").incoming("unix:@DIR@/in").start();
    let mut source = Launch::new(dir.path(), "source").start();
    source.wait_for_sweeps(1);
    for vm in [&source, &target] {
        limit(vm, "fsize", "0");
    }
    let before = (source.stderr(), target.stderr());
    // Each of these is told on stderr.
    for nonsense in ["no stream", "GET / HTTP/1.0"] {
        let mut stranger = UnixStream::connect(dir.path().join("in")).unwrap();
        stranger.write_all(nonsense.as_bytes()).unwrap();
    }
    let file = format!("file:{}", dir.path().join("state").display());
    for _ in 0..2 {
        source.ask("migrate", json!({"uri": file}));
        let report = source.outcome();
        assert_eq!(report["status"], "failed", "{report}");
    }
    assert_eq!((source.stderr(), target.stderr()), before, "it could be told");
    let uri = format!("unix:{}", dir.path().join("in").display());
    source.ask("migrate", json!({"uri": uri}));
    assert_eq!(source.outcome()["status"], "completed");
    target.wait_for_status("running");
    // A line that nobody reads.
    for words in
        [&["run", "--help"][..], &["run", "-version"], &["run", "-M", "nonsense"], &["demo", "--x"]]
    {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let said = Command::new(env!("CARGO_BIN_EXE_godwit"))
            .args(words)
            .stdout(writer.try_clone().unwrap())
            .stderr(writer)
            .status()
            .unwrap();
        assert!(matches!(said.code(), Some(0..=2)), "{words:?}: {said}");
    }
}
