//! `exec:` in both directions: the command's end is part of the migration's, and nothing of it is
//! left behind.

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::common::vm::{Launch, PATIENCE, Vm};

const GUEST: &str = "ws=4";

fn source(dir: &Path) -> Vm {
    let mut vm = Launch::new(dir, "source").guest(GUEST).start();
    vm.wait_for_sweeps(1);
    vm.ask("migrate-set-parameters", json!({"max-bandwidth": 0, "downtime-limit": 10_000}));
    vm
}

/// Processes whose group is `group`, but for those that only wait to be reaped.
fn group_lives(group: &str) -> bool {
    let of_group = |entry: std::fs::DirEntry| {
        let stat = std::fs::read_to_string(entry.path().join("stat")).ok()?;
        let words: Vec<_> = stat.rsplit(')').next()?.split_whitespace().collect();
        Some(words[0] != "Z" && words[2] == group)
    };
    std::fs::read_dir("/proc").unwrap().flatten().any(|entry| of_group(entry) == Some(true))
}

/// For a command: writes the number of its group to the file that follows.
const GROUP: &str = "cut -d' ' -f5 /proc/$$/stat >";

/// The group of the command that wrote its number to `file`; it is gone soon.
fn group_is_gone(file: &Path) {
    let group = std::fs::read_to_string(file).unwrap().trim().to_owned();
    let end = Instant::now() + PATIENCE;
    while group_lives(&group) {
        assert!(Instant::now() < end, "group {group} lives");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn wait_for_file(file: &Path) {
    let end = Instant::now() + PATIENCE;
    while !std::fs::read(file).is_ok_and(|bytes| bytes.ends_with(b"\n")) {
        assert!(Instant::now() < end, "{} does not come", file.display());
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_command_that_fails_fails_the_migration_and_the_guest_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let mut source = source(dir.path());
    let file = dir.path().join("f").display().to_string();
    source.ask("migrate-set-parameters", json!({"x-godwit-commit-timeout": 1500}));
    for (command, reason) in [
        ("gzip -c >/dev/full".to_owned(), "exit status 1"),
        (format!("cat >{file}; exit 3"), "exit status 3"),
        (format!("cat >{file}; kill -9 $$"), "signal 9"),
        ("exit 0".into(), "before it had read all"),
        ("exit 7".into(), "exit status 7"),
        ("cat >/dev/null; exec sleep 987".into(), "has not ended 1500 ms after"),
    ] {
        source.ask("migrate", json!({"uri": format!("exec:{command}")}));
        let report = source.outcome();
        let error = report["error-desc"].as_str().unwrap_or_default();
        assert!(report["status"] == "failed" && error.contains(reason), "{command}: {report}");
        source.assert_alive();
    }
}

#[test]
fn a_command_that_does_not_read_holds_no_guest_that_stands_still() {
    let dir = tempfile::tempdir().unwrap();
    let mut source = source(dir.path());
    source.set(&["pause-before-switchover"], &json!({"x-godwit-commit-timeout": 1000}));
    // It reads while the guest runs, and no more once it stands still.
    let (pid, stop) = (dir.path().join("pid"), dir.path().join("stop"));
    let script = format!(
        "{GROUP}{}; cat >/dev/null & while [ ! -e {} ]; do sleep 0.02; done; kill -STOP $!; wait",
        pid.display(),
        stop.display()
    );
    source.ask(
        "migrate",
        json!({"uri": format!("exec:exec 3<&0; {}", script.replace("cat >", "cat <&3 >"))}),
    );
    source.wait_for("pre-switchover", |report| report["status"] == "pre-switchover");
    std::fs::write(&stop, "").unwrap();
    std::thread::sleep(Duration::from_millis(300));
    source.ask("migrate-continue", json!({"state": "pre-switchover"}));
    let report = source.outcome();
    let error = report["error-desc"].as_str().unwrap_or_default();
    assert!(report["status"] == "failed" && error.contains("has read nothing for"), "{report}");
    source.assert_alive();
    group_is_gone(&pid);
}

#[test]
fn completed_means_that_the_command_has_ended() {
    let dir = tempfile::tempdir().unwrap();
    let mut source = source(dir.path());
    let (file, done) = (dir.path().join("f"), dir.path().join("done"));
    let command = format!("cat >{}; sleep 0.7; echo >{}", file.display(), done.display());
    source.ask("migrate", json!({"uri": format!("exec:{command}")}));
    let report = source.outcome();
    assert!(report["status"] == "completed" && done.exists(), "{report}");
    let target = Launch::new(dir.path(), "target")
        .guest(GUEST)
        .incoming(&format!("exec:cat {}", file.display()))
        .start();
    target.wait_for_sweeps(2);
}

#[test]
fn nothing_of_a_command_is_left_after_a_cancel_and_after_quit() {
    let dir = tempfile::tempdir().unwrap();
    let pid = dir.path().join("pid");
    let command = format!("exec:{GROUP}{}; sleep 987 & sleep 987", pid.display());
    for quit in [false, true] {
        let mut source = source(dir.path());
        let _ = std::fs::remove_file(&pid);
        source.ask("migrate", json!({"uri": command}));
        wait_for_file(&pid);
        if quit {
            source.ask("quit", json!({}));
            assert_eq!(source.exit_code(), Some(0));
        } else {
            source.ask("migrate_cancel", json!({}));
            assert_eq!(source.outcome()["status"], "cancelled");
            source.assert_alive();
        }
        group_is_gone(&pid);
    }
    std::fs::remove_file(&pid).unwrap();
    let mut target = Launch::new(dir.path(), "target").guest(GUEST).incoming(&command).start();
    wait_for_file(&pid);
    target.ask("quit", json!({}));
    target.exit_code();
    group_is_gone(&pid);
}

#[test]
fn nothing_of_a_command_is_left_after_a_kill() {
    let dir = tempfile::tempdir().unwrap();
    let pid = dir.path().join("pid");
    // One that reads, one that does not, and those that they have started.
    for rest in ["cat >/dev/null", "sleep 987 & sleep 987", "trap '' TERM; exec sleep 987"] {
        let command = format!("exec:{GROUP}{}; {rest}", pid.display());
        let mut source = source(dir.path());
        source.ask("migrate-set-parameters", json!({"max-bandwidth": 4096}));
        source.ask("migrate", json!({"uri": command}));
        wait_for_file(&pid);
        source.kill();
        group_is_gone(&pid);
        std::fs::remove_file(&pid).unwrap();
        let mut target = Launch::new(dir.path(), "target").guest(GUEST).incoming(&command).start();
        wait_for_file(&pid);
        target.kill();
        group_is_gone(&pid);
        std::fs::remove_file(&pid).unwrap();
    }
    // What a command that ended well has left running is its own matter.
    let file = dir.path().join("f");
    let mut source = source(dir.path());
    let command = format!("exec:{GROUP}{}; cat >{}; sleep 987 &", pid.display(), file.display());
    source.ask("migrate", json!({"uri": command}));
    assert_eq!(source.outcome()["status"], "completed");
    source.kill();
    let group = std::fs::read_to_string(&pid).unwrap().trim().to_owned();
    assert!(group_lives(&group));
    let group = rustix::process::Pid::from_raw(group.parse().unwrap()).unwrap();
    rustix::process::kill_process_group(group, rustix::process::Signal::KILL).unwrap();
}

#[test]
fn a_guest_whose_command_failed_does_not_run() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("f").display().to_string();
    let mut source = source(dir.path());
    source.ask("migrate", json!({"uri": format!("file:{file}")}));
    assert_eq!(source.outcome()["status"], "completed");
    for (command, reason) in [
        (format!("cat {file}; exit 3"), "exit status 3"),
        (format!("head -c 100000 {file}; exit 5"), "exit status 5"),
        (format!("cat {file}; kill -9 $$"), "signal 9"),
    ] {
        let mut target = Launch::new(dir.path(), "target").guest(GUEST).incoming("defer").start();
        let uri = format!("exec:{command}");
        target.ask("migrate-incoming", json!({"uri": uri, "exit-on-error": false}));
        let report = target.outcome();
        let error = report["error-desc"].as_str().unwrap_or_default();
        assert!(report["status"] == "failed" && error.contains(reason), "{command}: {report}");
        assert_eq!(target.status(), "inmigrate", "{command}");
    }
}
