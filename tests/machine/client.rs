//! The friendly verbs and the command line's refusals, as a person at a shell meets them.

use crate::common::cli::{godwit, text};
use crate::common::vm::{Launch, Vm};
use serde_json::json;

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
fn every_fault_of_a_command_line_is_a_line_on_stderr() {
    let refused = godwit(&["run", "-M", "microvm", "-drive", "file=x", "-kernal", "K"]);
    assert_eq!(refused.status.code(), Some(1));
    assert_eq!(
        text(&refused.stderr),
        "godwit: -drive: block devices are not built yet\ngodwit: -kernal: no such option, did you mean -kernel?\n"
    );
    let acpi = godwit(&["run", "-M", "microvm", "-kernel", "K"]);
    assert!(text(&acpi.stderr).contains("write -M microvm,acpi=off"));
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
    assert!(text(&godwit(&["run", "-M", "help"]).stdout).contains("acpi=off"));
    let version = format!("godwit {}\n", env!("CARGO_PKG_VERSION"));
    assert_eq!(text(&godwit(&["--version"]).stdout), version);
    assert_eq!(text(&godwit(&["run", "-version"]).stdout), version);
}
