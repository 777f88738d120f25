//! The friendly verbs and the command line's refusals, as a person at a shell meets them.

use crate::common::cli::{godwit, text};
use crate::common::qmp::Client;
use crate::common::small::Small;
use crate::common::vm::{Launch, PATIENCE, Vm};
use serde_json::json;
use std::ffi::{OsStr, OsString};
use std::io::{BufRead, BufReader};
use std::os::unix::ffi::OsStrExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// A machine, and where its monitor is.
fn start() -> (Vm, String) {
    let mut vm = Launch::alone().guest("ws=1 rate=100").words(&["-name", "bird"]).start();
    vm.hang_up();
    let monitor = format!("unix:{}", vm.monitor().display());
    (vm, monitor)
}

#[test]
fn a_machine_is_seen_and_told_what_to_do_from_a_shell() {
    let (mut machine, qmp) = start();
    let glance = text(&godwit(&["status", "--qmp", &qmp]).stdout);
    for line in ["machine     bird", "state       running", "processors  1", "memory      64 MiB"] {
        assert!(glance.lines().any(|l| l == line), "{line} in {glance}");
    }
    let said = |words: &[&str]| {
        let mut all = vec!["qmp", "--qmp", &qmp];
        all.extend(words);
        godwit(&all)
    };
    assert!(said(&["stop"]).status.success());
    let status = text(&said(&["query-status"]).stdout);
    assert_eq!(serde_json::from_str::<serde_json::Value>(&status).unwrap()["status"], "paused");
    let refused = said(&["no-such-thing"]);
    assert!(!refused.status.success());
    assert_eq!(
        text(&refused.stderr),
        "godwit: no-such-thing: The command no-such-thing has not been found\n"
    );
    assert!(said(&["{\"execute\": \"quit\"}"]).status.success());
    assert_eq!(machine.exit_code(), Some(0));
    let gone = godwit(&["status", "--qmp", &qmp]);
    assert!(text(&gone.stderr).starts_with(&format!("godwit: nothing answers at {qmp}: ")));
}

#[test]
fn who_waits_for_events_waits_for_a_busy_monitor() {
    let other = ["-qmp", "unix:@DIR@/other,server=on,wait=off"];
    let mut vm = Launch::alone().guest("ws=1").words(&other).start();
    let qmp = format!("unix:{}", vm.monitor().display());
    let mut events = Command::new(env!("CARGO_BIN_EXE_godwit"))
        .args(["qmp", "--qmp", &qmp, "--events"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = String::new();
    BufReader::new(events.stderr.take().unwrap()).read_line(&mut said).unwrap();
    assert!(said.contains("busy with another client") && said.contains("waiting"), "{said}");
    vm.hang_up();
    let (told, heard) = std::sync::mpsc::channel();
    let printed = BufReader::new(events.stdout.take().unwrap());
    std::thread::spawn(move || {
        for line in printed.lines().map_while(Result::ok) {
            let _ = told.send(line);
        }
    });
    let mut client = Client::negotiated(&vm.path("other"));
    let end = Instant::now() + PATIENCE;
    let line = loop {
        client.ask("stop", json!({}));
        client.ask("cont", json!({}));
        match heard.recv_timeout(Duration::from_millis(20)) {
            Ok(line) => break line,
            Err(_) => assert!(Instant::now() < end, "no event comes"),
        }
    };
    assert!(line.contains("STOP") || line.contains("RESUME"), "{line}");
    client.ask("quit", json!({}));
    assert!(events.wait().unwrap().success());
}

/// The target listens since a first try that the source refused.
#[test]
fn a_second_try_to_migrate_finds_the_target_waiting() {
    let (_source, qmp) = start();
    let mut target = Launch::alone().words(&["-incoming", "defer"]).no_guest().start();
    let place = format!("unix:{}", target.path("migration").display());
    target.ask("migrate-incoming", json!({"uri": place}));
    target.hang_up();
    let target_qmp = format!("unix:{}", target.monitor().display());
    let migrate = |uri: &str| {
        godwit(&["migrate", "--qmp", &qmp, "--target-qmp", &target_qmp, "--xbzrle", uri])
    };
    let elsewhere = migrate("tcp:127.0.0.1:4444");
    let want = format!(
        "godwit: the target waits already, at {place}: migrate to there, or start it again\n"
    );
    assert_eq!(text(&elsewhere.stderr), want);
    let made = migrate(&place);
    assert!(made.status.success(), "{}", text(&made.stderr));
    target.connect();
    target.assert_alive();
}

#[test]
fn a_machine_is_kept_in_a_file_and_goes_on_from_there() {
    let (machine, qmp) = start();
    let place = format!("file:{}", machine.path("snapshot").display());
    let made = godwit(&["migrate", "--qmp", &qmp, "--mapped-ram", "--multifd", "2", &place]);
    assert!(made.status.success(), "{}", text(&made.stderr));
    let shown = text(&godwit(&["inspect", machine.path("snapshot").to_str().unwrap()]).stdout);
    assert!(shown.contains("mapped-ram"), "{shown}");
    let target = Launch::alone().guest("ws=1 rate=100").incoming(&place).start();
    target.wait_for_sweeps(1);
}

#[test]
fn a_guest_is_saved_and_restored_by_a_word_each() {
    let mut machine = Launch::alone().guest("ws=1 rate=20000").start();
    machine.hang_up();
    let qmp = format!("unix:{}", machine.monitor().display());
    let file = machine.path("snapshot");
    let name = file.to_str().unwrap();
    let save = |words: &[&str]| godwit(&[&["save", "--qmp", &qmp], words].concat());
    let says = |words: &[&str], what: &str| {
        let made = save(words);
        assert!(made.status.success(), "{words:?}: {}", text(&made.stderr));
        let said = text(&made.stdout);
        assert!(said.starts_with(&format!("{name}: 64 MiB of memory")), "{said}");
        assert!(said.contains(what), "{said}");
    };
    machine.connect();
    let settings = json!({"max-bandwidth": 77777, "downtime-limit": 123, "x-godwit-base": "/none",
        "tls-creds": "none"});
    machine.set(&["xbzrle", "return-path"], &settings);
    let set = |machine: &mut Vm| {
        let all = machine.ask("query-migrate-parameters", json!({}));
        let list = machine.ask("query-migrate-capabilities", json!({}));
        let on: Vec<_> = list.as_array().unwrap().iter().filter(|c| c["state"] == true).collect();
        json!([
            all["max-bandwidth"],
            all["downtime-limit"],
            all["multifd-channels"],
            all["x-godwit-base"],
            all["tls-creds"],
            on
        ])
    };
    let before = set(&mut machine);
    machine.hang_up();
    for words in [&[name][..], &[name, "--background"], &[name, "--channels", "3"]] {
        says(words, "goes on");
        machine.connect();
        assert_eq!(set(&mut machine), before, "what was set before is set again");
        assert_eq!(machine.ask("query-fdsets", json!({})), json!([]));
        machine.assert_alive();
        machine.hang_up();
    }
    let whole = std::fs::read(&file).unwrap();
    // What cannot be is refused, and no half is left.
    let small = Small::mount(machine.folder(), 1 << 20);
    let full = small.0.join("snapshot");
    std::fs::write(&full, "the one before").unwrap();
    let refused = save(&[full.to_str().unwrap()]);
    let said = text(&refused.stderr);
    assert!(said.contains("No space left") && said.contains("stays as it was"), "{said}");
    assert_eq!(std::fs::read(&full).unwrap(), b"the one before");
    assert_eq!(std::fs::read_dir(&small.0).unwrap().count(), 1);
    drop(small);
    let serial = machine.path("vm.serial");
    for (to, what) in [("/dev/null", "name another file"), (serial.to_str().unwrap(), "overwrite")]
    {
        let refused = save(&[to]);
        assert!(!refused.status.success());
        assert!(text(&refused.stderr).contains(what), "{}", text(&refused.stderr));
    }
    assert!(whole == std::fs::read(&file).unwrap());
    machine.connect();
    machine.assert_alive();
    machine.hang_up();
    says(&[name, "--quit"], "the machine has ended");
    assert_eq!(machine.exit_code(), Some(0));

    let restore = |words: &[&str]| {
        let out = machine.path("out");
        let mut guest = Command::new(env!("CARGO_BIN_EXE_godwit"))
            .args(["restore", name])
            .args(words)
            .args(["--", "-M", "microvm,acpi=off", "-m", "64", "-display", "none", "-nodefaults"])
            .args(["-serial", &format!("file:{}", out.display())])
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(guest.stderr.take().unwrap()).read_line(&mut line).unwrap();
        let end = Instant::now() + PATIENCE;
        while std::fs::read_to_string(&out).unwrap_or_default().matches("sweep").count() < 2 {
            assert!(Instant::now() < end && guest.try_wait().unwrap().is_none(), "{line}");
            std::thread::sleep(Duration::from_millis(5));
        }
        guest.kill().unwrap();
        guest.wait().unwrap();
        assert!(line.starts_with("godwit: the guest runs, "), "{line}");
    };
    restore(&[]);
    restore(&["--mapped"]);
    let none = machine.path("none");
    std::fs::write(&none, "nothing of the kind").unwrap();
    for (words, what) in [
        (&[none.to_str().unwrap()][..], "is no snapshot"),
        (&["/no/such"], "/no/such cannot be opened"),
        (&[name, "--", "-incoming", "defer"], "leave out -incoming"),
        (&[name, "--", "-M", "microvm", "-m", "32"], "67108864 bytes at the source"),
    ] {
        let refused = godwit(&[&["restore"], words].concat());
        let said = text(&refused.stderr);
        assert!(!refused.status.success() && said.contains(what), "{said}");
    }
}

/// Names have any bytes but two. What QMP's JSON cannot carry is refused by name.
#[test]
fn names_that_are_no_text_are_taken_byte_for_byte_or_refused() {
    let (machine, _) = start();
    let odd = |name: &[u8]| machine.path("x").with_file_name(OsStr::from_bytes(name));
    // A socket answers under the name that it has now.
    let monitor = odd(b"q,\xff\xfe");
    std::fs::rename(machine.monitor(), &monitor).unwrap();
    let written = odd(b"q,,\xff\xfe").into_os_string();
    let mut address = OsString::from("unix:");
    address.push(&written);
    let run = |words: &[&OsStr]| {
        Command::new(env!("CARGO_BIN_EXE_godwit"))
            .args(words)
            .current_dir(machine.folder())
            .stdin(Stdio::null())
            .output()
            .unwrap()
    };
    let word = |text: &'static str| OsStr::new(text);
    for address in [&address, &written] {
        let glance = run(&[word("status"), word("--qmp"), address]);
        assert!(text(&glance.stdout).contains("bird"), "{}", text(&glance.stderr));
    }
    let core = OsStr::from_bytes(b"core\xff");
    let made = run(&[word("dump"), word("--qmp"), &address, core, word("--json")]);
    assert!(made.status.success(), "{}", text(&made.stderr));
    assert!(odd(b"core\xff").exists());
    let said: serde_json::Value = serde_json::from_slice(&made.stdout).unwrap();
    assert!(said["memory"].is_u64() && said.get("file").is_none(), "{said}");

    let stream = odd(b"stream\xff");
    let uri = format!("file:{}", machine.path("stream").display());
    let made = run(&[word("migrate"), word("--qmp"), &address, OsStr::new(&uri)]);
    assert!(made.status.success(), "{}", text(&made.stderr));
    std::fs::rename(machine.path("stream"), &stream).unwrap();
    for (option, out) in [("--ram", &b"ram\xff"[..]), ("--core", b"out\xff")] {
        let made =
            run(&[word("inspect"), stream.as_os_str(), word(option), OsStr::from_bytes(out)]);
        assert!(made.status.success(), "{}", text(&made.stderr));
        assert!(odd(out).exists(), "{option}");
    }
    let names = || {
        let entries = std::fs::read_dir(machine.folder()).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    };
    let before = names();
    let bad = OsStr::from_bytes(b"file:bad\xff");
    for words in [
        &[word("migrate"), word("--qmp"), &address, bad][..],
        &[word("qmp"), word("--qmp"), &address, word("pmemsave"), bad],
        &[word("status"), word("--qmp"), OsStr::from_bytes(b"tcp:bad\xff:1")],
        &[
            word("migrate"),
            word("--qmp"),
            &address,
            word("tcp:h:1"),
            word("--target-qmp"),
            OsStr::from_bytes(b"tcp:bad\xff:1"),
        ],
        &[word("inspect"), stream.as_os_str(), word("--ram"), word("o"), word("--block"), bad],
        &[word("demo"), word("--vmm"), bad],
        &[word("run"), word("-kernel"), bad],
        &[word("run"), word("-incoming"), bad],
    ] {
        let made = run(words);
        assert!(!made.status.success(), "{words:?}");
        let said = String::from_utf8_lossy(&made.stderr);
        assert!(said.contains("UTF-8") && said.contains("bad"), "{words:?}: {said}");
    }
    assert_eq!(names(), before);
    let folder = odd(b"t\xff");
    std::fs::create_dir(&folder).unwrap();
    let demo = Command::new(env!("CARGO_BIN_EXE_godwit"))
        .arg("demo")
        .env("TMPDIR", &folder)
        .output()
        .unwrap();
    assert!(!demo.status.success());
    let said = String::from_utf8_lossy(&demo.stderr);
    assert!(said.contains("TMPDIR"), "{said}");
}

#[test]
fn every_fault_of_a_command_line_is_a_line_on_stderr() {
    let refused = godwit(&["run", "-M", "microvm", "-netdev", "user", "-kernal", "K"]);
    assert_eq!(refused.status.code(), Some(1));
    assert_eq!(
        text(&refused.stderr),
        "godwit: -netdev: id= is missing\ngodwit: -kernal: no such option, did you mean -kernel?\n"
    );
}

#[test]
fn the_built_in_guest_can_be_written_out() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("guest.elf");
    assert!(godwit(&["builtin-guest", file.to_str().unwrap()]).status.success());
    assert_eq!(std::fs::read(file).unwrap(), godwit::builtin::elf());
}

#[test]
fn help_and_version_are_there() {
    assert!(text(&godwit(&["--help"]).stdout).contains("godwit demo"));
    assert!(text(&godwit(&["run", "--help"]).stdout).contains("-kernel FILE|builtin"));
    assert!(text(&godwit(&["run", "-M", "microvm,help"]).stdout).contains("acpi=on|off|auto"));
    let version = format!("godwit {}\n", env!("CARGO_PKG_VERSION"));
    assert_eq!(text(&godwit(&["--version"]).stdout), version);
    let as_qemu = text(&godwit(&["run", "-version"]).stdout);
    assert!(as_qemu.starts_with("QEMU emulator version 10.0.2 (Godwit "), "{as_qemu}");
}
