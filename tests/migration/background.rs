//! Snapshots in the background (capability `background-snapshot`): the guest runs on, and what is in
//! the file is the guest of one moment.

use std::path::Path;

use serde_json::{Value, json};

use crate::common::cli::godwit;
use crate::common::vm::{Launch, Vm};

const GUEST: &str = "ws=16";
const MEMFD: [&str; 4] =
    ["-object", "memory-backend-memfd,id=ram,size=64M,share=on", "-M", "memory-backend=ram"];

fn source(dir: &Path, words: &[&str], capabilities: &[&str]) -> Vm {
    let mut vm = Launch::new(dir, "source").guest(GUEST).words(words).start();
    vm.wait_for_sweeps(1);
    let all = [&["background-snapshot", "events"], capabilities].concat();
    vm.set(&all, &json!({}));
    vm
}

fn goes_on(dir: &Path, name: &str, words: &[&str], uri: &str, at_least: u64) {
    let target = Launch::new(dir, name).guest(GUEST).words(words).incoming(uri).start();
    target.wait_for_sweeps(3);
    assert!(target.sweeps().iter().all(|sweep| *sweep >= at_least), "{:?}", target.sweeps());
}

/// Of a snapshot.
fn told(event: &Value) -> Option<String> {
    match event["event"].as_str()? {
        name @ ("STOP" | "RESUME") => Some(name.into()),
        "MIGRATION" => Some(event["data"]["status"].as_str()?.into()),
        _ => None,
    }
}

#[test]
fn a_running_guest_is_written_as_it_was_and_runs_on() {
    for (capabilities, words) in
        [(&["mapped-ram"][..], &[][..]), (&[], &[]), (&["mapped-ram"], &MEMFD), (&[], &MEMFD)]
    {
        let dir = tempfile::tempdir().unwrap();
        let mut source = source(dir.path(), words, capabilities);
        let last = source.sweeps().last().copied().unwrap();
        let uri = format!("file:{}", dir.path().join("state").display());
        source.ask("migrate", json!({"uri": uri}));
        let report = source.outcome();
        assert_eq!(report["status"], "completed", "{report}");
        assert!(report["downtime"].as_u64().unwrap() < report["total-time"].as_u64().unwrap());
        assert_eq!(report["ram"]["remaining"], 0, "{report}");
        source.assert_alive();
        goes_on(dir.path(), "target", words, &uri, last);
        // The same again, in one go with what is in the file then.
        source.ask("migrate", json!({"uri": uri}));
        assert_eq!(source.outcome()["status"], "completed");
        source.assert_alive();
        let events: Vec<_> = source.session().events.iter().filter_map(told).take(5).collect();
        assert_eq!(events, ["setup", "active", "STOP", "RESUME", "completed"]);
        goes_on(dir.path(), "again", words, &uri, last);
    }
}

/// Its memory is a file: on tmpfs that can be write-protected, elsewhere that is said.
#[test]
fn a_guest_that_was_mapped_is_written_too_or_that_is_refused_by_name() {
    for (place, must) in [("/dev/shm", true), (env!("CARGO_TARGET_TMPDIR"), false)] {
        let dir = tempfile::tempdir_in(place).unwrap();
        let state = |name: &str| format!("file:{}", dir.path().join(name).display());
        let mut first = source(dir.path(), &[], &["mapped-ram"]);
        first.ask("migrate", json!({"uri": state("first")}));
        assert_eq!(first.outcome()["status"], "completed");
        let mapped = format!("{},x-godwit-restore=mapped", state("first"));
        let mut clone = Launch::new(dir.path(), "clone").guest(GUEST).incoming(&mapped).start();
        clone.wait_for_sweeps(2);
        clone.set(&["background-snapshot", "mapped-ram"], &json!({}));
        clone.ask("migrate", json!({"uri": state("second")}));
        let report = clone.outcome();
        if must || report["status"] == "completed" {
            assert_eq!(report["status"], "completed", "{report}");
            goes_on(dir.path(), "second", &[], &state("second"), 1);
        } else {
            let error = report["error-desc"].as_str().unwrap_or_default();
            assert!(error.contains("of this backend cannot be write-protected"), "{report}");
        }
        clone.assert_alive();
    }
}

#[test]
fn the_verb_writes_one_and_the_next_migration_is_an_ordinary_one() {
    let dir = tempfile::tempdir().unwrap();
    let mut source = Launch::new(dir.path(), "source").guest(GUEST).start();
    source.wait_for_sweeps(1);
    source.hang_up();
    let qmp = format!("unix:{}", source.monitor().display());
    let uri = format!("file:{}", dir.path().join("state").display());
    let made = godwit(&["migrate", "--qmp", &qmp, "--mapped-ram", "--background", &uri]);
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    source.connect();
    source.assert_alive();
    goes_on(dir.path(), "target", &[], &uri, 1);
    source.hang_up();
    let made = godwit(&["migrate", "--qmp", &qmp, &uri]);
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    source.connect();
    assert_eq!(source.status(), "postmigrate");
}

#[test]
fn the_verb_says_which_disks_are_not_in_it() {
    let dir = tempfile::tempdir().unwrap();
    let disk = dir.path().join("disk");
    std::fs::write(&disk, [0; 1 << 20]).unwrap();
    for (readonly, warned) in [("off", true), ("on", false)] {
        let drive = format!("file={},format=raw,if=none,id=d7,readonly={readonly}", disk.display());
        let words = ["-drive", &drive, "-device", "virtio-blk-device,drive=d7"];
        let mut source = Launch::new(dir.path(), readonly).guest(GUEST).words(&words).start();
        source.wait_for_sweeps(1);
        source.hang_up();
        let qmp = format!("unix:{}", source.monitor().display());
        let uri = format!("file:{}", dir.path().join("state").display());
        let made = godwit(&["migrate", "--qmp", &qmp, "--background", &uri]);
        let said = String::from_utf8_lossy(&made.stderr);
        assert!(made.status.success(), "{said}");
        let says =
            said.contains("the disks are not in the snapshot") && said.contains("to them: d7.");
        assert_eq!(says, warned, "{said}");
    }
}

/// Whoever reads slowly gets the same: pages are kept that the guest writes before they are read.
#[test]
fn what_the_guest_writes_meanwhile_is_not_in_it() {
    let dir = tempfile::tempdir().unwrap();
    let mut source = source(dir.path(), &[], &[]);
    let state = dir.path().join("state");
    let (sweeps, go) = (source.sweeps().len(), dir.path().join("go"));
    rustix::fs::mkfifoat(rustix::fs::CWD, &go, 0o600.into()).unwrap();
    let command = format!("read x <{}; cat >{}", go.display(), state.display());
    source.ask("migrate", json!({"uri": format!("exec:{command}")}));
    source.wait_for("the pages", |report| report["ram"]["transferred"].as_u64() > Some(0));
    // All of its working set is written anew.
    source.wait_for_sweeps(sweeps + 2);
    let later = source.sweeps().last().copied().unwrap();
    std::fs::write(&go, "\n").unwrap();
    let report = source.outcome();
    assert_eq!(report["status"], "completed", "{report}");
    source.assert_alive();
    let uri = format!("file:{}", state.display());
    let target = Launch::new(dir.path(), "target").guest(GUEST).incoming(&uri).start();
    target.wait_for_sweeps(3);
    let first = target.sweeps()[0];
    assert!(first <= later, "sweep {first} is not the moment's: {later} came after it");
}

#[test]
fn a_command_takes_it_and_a_guest_that_stands_still_stays_so() {
    let dir = tempfile::tempdir().unwrap();
    let mut source = source(dir.path(), &[], &[]);
    source.ask("stop", json!({}));
    let ram = source.path("ram");
    let pmemsave = json!({"val": 0, "size": 64 << 20, "filename": ram});
    source.ask("pmemsave", pmemsave);
    let before = std::fs::read(&ram).unwrap();
    let state = dir.path().join("state");
    source.ask("migrate", json!({"uri": format!("exec:cat >{}", state.display())}));
    assert_eq!(source.outcome()["status"], "completed");
    assert_eq!(source.status(), "paused");
    let uri = format!("exec:cat {}", state.display());
    let mut target = Launch::new(dir.path(), "target").guest(GUEST).incoming(&uri).start();
    target.wait_for_status("paused");
    let ram = target.path("ram");
    target.ask("pmemsave", json!({"val": 0, "size": 64 << 20, "filename": ram}));
    assert!(std::fs::read(&ram).unwrap() == before, "memory differs");
    for vm in [&mut source, &mut target] {
        vm.ask("cont", json!({}));
        vm.assert_alive();
    }
}

#[test]
fn one_that_fails_or_is_cancelled_leaves_the_guest_running() {
    let dir = tempfile::tempdir().unwrap();
    let mut source = source(dir.path(), &[], &[]);
    source.ask("migrate", json!({"uri": "exec:sleep 1; exit 3"}));
    let report = source.outcome();
    assert_eq!(report["status"], "failed", "{report}");
    source.assert_alive();
    // A command that does not read keeps the guest waiting, once its writes find no room; not a
    // cancel.
    source.ask("migrate", json!({"uri": "exec:sleep 1000"}));
    source.wait_for("the pages", |report| report["ram"]["transferred"].as_u64() > Some(0));
    source.ask("migrate_cancel", json!({}));
    let report = source.outcome();
    assert_eq!(report["status"], "cancelled", "{report}");
    source.assert_alive();
    // Nor is a command waited for that takes nothing for long.
    source.ask("migrate-set-parameters", json!({"x-godwit-peer-timeout": 1000}));
    source.ask("migrate", json!({"uri": "exec:sleep 1000"}));
    let report = source.outcome();
    let error = report["error-desc"].as_str().unwrap_or_default();
    assert!(error.contains("has read nothing for 1000 ms"), "{report}");
    source.assert_alive();
    source.ask("migrate", json!({"uri": "file:/dev/full"}));
    let report = source.outcome();
    assert_eq!(report["status"], "failed", "{report}");
    source.assert_alive();
}

#[test]
fn what_does_not_go_with_it_is_refused_by_qemus_words() {
    let dir = tempfile::tempdir().unwrap();
    let mut vm = source(dir.path(), &[], &[]);
    for other in ["xbzrle", "multifd", "return-path", "auto-converge", "validate-uuid"] {
        let on = json!({"capabilities": [{"capability": other, "state": true}]});
        let error = vm.try_ask("migrate-set-capabilities", on).unwrap_err();
        assert_eq!(error, format!("Background-snapshot is not compatible with {other}"));
    }
    for uri in ["tcp:127.0.0.1:1", "unix:/x"] {
        let error = vm.try_ask("migrate", json!({"uri": uri})).unwrap_err();
        assert!(error.contains("'background-snapshot' writes to a file"), "{error}");
    }
    vm.assert_alive();
}

/// Returns once a vCPU sleeps because its page is kept for a snapshot, and there is no room.
fn wait_for_full_pool(vm: &Vm) {
    let tasks = std::path::PathBuf::from(format!("/proc/{}/task", vm.pid()));
    let end = std::time::Instant::now() + crate::common::PATIENCE;
    let sleeps = || {
        std::fs::read_dir(&tasks).unwrap().flatten().any(|task| {
            let read = |name: &str| std::fs::read_to_string(task.path().join(name));
            read("comm").is_ok_and(|name| name.starts_with("CPU"))
                && read("wchan").is_ok_and(|place| place.contains("userfault"))
        })
    };
    // A page that finds room is copied in no time.
    let mut in_a_row = 0;
    while in_a_row < 10 {
        in_a_row = if sleeps() { in_a_row + 1 } else { 0 };
        assert!(std::time::Instant::now() < end, "the guest's writes find room: {}", vm.stderr());
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}

#[test]
fn a_snapshot_that_nobody_reads_gives_way_to_a_stop_and_a_reset() {
    let dir = tempfile::tempdir().unwrap();
    let mut source = Launch::new(dir.path(), "source").guest("ws=48").start();
    source.wait_for_sweeps(1);
    source.set(&["background-snapshot", "events"], &json!({"x-godwit-peer-timeout": 3_600_000}));
    for (command, then) in [("stop", "paused"), ("system_reset", "running")] {
        source.ask("migrate", json!({"uri": "exec:sleep 1000"}));
        wait_for_full_pool(&source);
        source.ask(command, json!({}));
        let report = source.outcome();
        assert_eq!(report["status"], "failed", "{report}");
        let error = report["error-desc"].as_str().unwrap_or_default();
        assert!(error.contains("was given up"), "{report}");
        assert_eq!(source.status(), then);
        source.ask("cont", json!({}));
        source.assert_alive();
    }
}

#[test]
fn a_fifo_that_is_full_from_the_beginning_is_not_waited_for_for_ever() {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let dir = tempfile::tempdir().unwrap();
    let mut source = source(dir.path(), &[], &[]);
    let fifo = dir.path().join("fifo");
    rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, 0o600.into()).unwrap();
    let mut options = std::fs::File::options();
    let mut reader =
        options.read(true).write(true).custom_flags(libc::O_NONBLOCK).open(&fifo).unwrap();
    while reader.write(&[0; 4096]).is_ok() {}
    source.ask("migrate-set-parameters", json!({"x-godwit-peer-timeout": 500}));
    source.ask("migrate", json!({"uri": format!("file:{}", fifo.display())}));
    let report = source.outcome();
    assert_eq!(report["status"], "failed", "{report}");
    let error = report["error-desc"].as_str().unwrap_or_default();
    assert!(error.contains("500 ms"), "{report}");
    source.assert_alive();
}
