//! Snapshots that hold what differs from another one (`x-godwit-base`), saved and restored by processes.

use std::path::{Path, PathBuf};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

use crate::common::cli::{godwit, text};
use crate::common::small::Small;
use crate::common::vm::{Launch, Vm};

const GUEST: &str = "ws=4 pattern=hot";

fn uri(path: &Path) -> serde_json::Value {
    json!({"uri": format!("file:{}", path.display())})
}

/// A running guest, and its base.
fn source(dir: &Path) -> (Vm, PathBuf) {
    let mut vm = Launch::new(dir, "source").guest(GUEST).start();
    vm.wait_for_sweeps(1);
    vm.set(&["mapped-ram", "background-snapshot"], &json!({"max-bandwidth": 0}));
    let base = dir.join("base");
    vm.ask("migrate", uri(&base));
    assert_eq!(vm.outcome()["status"], "completed");
    (vm, base)
}

fn build_on(vm: &mut Vm, base: &Path) {
    vm.ask("migrate-set-parameters", json!({"x-godwit-base": base}));
}

fn bytes(path: &Path) -> u64 {
    path.metadata().unwrap().len()
}

/// Temporary files beside the snapshots.
fn parts(dir: &Path) -> Vec<String> {
    let names = std::fs::read_dir(dir).unwrap();
    let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.ends_with(".part")).collect()
}

#[test]
fn a_guest_goes_on_from_a_chain_of_increments() {
    let dir = tempfile::tempdir().unwrap();
    let (mut source, base) = source(dir.path());
    let (first, second) = (dir.path().join("first"), dir.path().join("second"));
    build_on(&mut source, &base);
    source.ask("migrate", uri(&first));
    let report = source.outcome();
    assert_eq!(report["status"], "completed", "{report}");
    source.assert_alive();
    // Now with the guest's end here, over rounds.
    source.set(&[], &json!({}));
    let off = json!({"capabilities": [{"capability": "background-snapshot", "state": false}]});
    source.ask("migrate-set-capabilities", off);
    build_on(&mut source, &first);
    source.ask("migrate", uri(&second));
    let report = source.outcome();
    assert_eq!(report["status"], "completed", "{report}");
    assert_eq!(source.status(), "postmigrate");
    let last = source.sweeps().last().copied().unwrap();
    for file in [&first, &second] {
        assert!(bytes(file) < bytes(&base) / 4, "{} of {}", bytes(file), bytes(&base));
    }
    let file = format!("file:{}", second.display());
    for name in ["one", "two"] {
        let target = Launch::new(dir.path(), name).guest(GUEST).incoming(&file).start();
        target.wait_for_sweeps(2);
        assert!(target.sweeps().iter().all(|sweep| *sweep >= last));
    }
    std::fs::remove_file(&base).unwrap();
    let mut target = Launch::new(dir.path(), "none").guest(GUEST).incoming(&file).spawn();
    assert_eq!(target.exit_code(), Some(1), "{}", target.stderr());
    let said = target.stderr();
    assert!(said.contains("first needs its base") && said.contains("base: No such"), "{said}");
}

#[test]
fn what_is_no_base_or_no_file_is_refused_by_name_and_the_guest_stays() {
    let dir = tempfile::tempdir().unwrap();
    let (mut vm, base) = source(dir.path());
    let refused = |vm: &mut Vm, to: &str| vm.try_ask("migrate", json!({"uri": to})).unwrap_err();
    let new = format!("file:{}", dir.path().join("new").display());
    build_on(&mut vm, &base);
    for (to, says) in [
        ("exec:cat >/dev/null", "migrate to file:PATH"),
        (&format!("{new},offset=4096"), "offset= is not built in"),
        ("file:/dev/fdset/1", "/dev/fdset is not built in"),
        (&format!("file:{}", base.display()), "base"),
        ("file:/no/such/folder/f", "/no/such/folder"),
        (&format!("file:{}", dir.path().display()), dir.path().to_str().unwrap()),
    ] {
        let said = refused(&mut vm, to);
        assert!(said.contains(says), "{to}: {said}");
    }
    for (file, says) in [("none", "No such file"), ("source.qmp", "source.qmp")] {
        build_on(&mut vm, &dir.path().join(file));
        let said = refused(&mut vm, &new);
        assert!(said.contains(says), "{file}: {said}");
    }
    build_on(&mut vm, &base);
    let off = json!({"capabilities": [{"capability": "background-snapshot", "state": false},
        {"capability": "multifd", "state": true}]});
    vm.ask("migrate-set-capabilities", off);
    assert!(refused(&mut vm, &new).contains("does not go with capability 'multifd'"));
    // A guest of another size.
    let mut other = Launch::new(dir.path(), "other").memory(32).guest(GUEST).start();
    build_on(&mut other, &base);
    let said = refused(&mut other, &new);
    assert!(said.contains("base is a snapshot of another guest"), "{said}");
    assert!(!dir.path().join("new").exists());
    assert_eq!(parts(dir.path()), [""; 0]);
    vm.assert_alive();
}

#[test]
fn a_full_disk_or_a_kill_leaves_the_old_snapshot_and_no_new_one() {
    let dir = tempfile::tempdir().unwrap();
    let (mut vm, base) = source(dir.path());
    build_on(&mut vm, &base);
    let small = Small::mount(dir.path(), 2 << 20);
    let file = small.0.join("increment");
    vm.ask("migrate", uri(&file));
    assert_eq!(vm.outcome()["status"], "completed");
    let old = std::fs::read(&file).unwrap();
    small.fill();
    vm.wait_for_sweeps(1);
    vm.ask("migrate", uri(&file));
    let report = vm.outcome();
    let error = report["error-desc"].as_str().unwrap_or_default();
    assert!(error.contains("No space left"), "{report}");
    assert_eq!(std::fs::read(&file).unwrap(), old);
    assert_eq!(parts(&small.0), [""; 0]);
    vm.assert_alive();
    // Killed while it writes: what is there stays, whole.
    let file = dir.path().join("increment");
    std::fs::write(&file, &old).unwrap();
    let off = json!({"capabilities": [{"capability": "background-snapshot", "state": false}]});
    vm.ask("migrate-set-capabilities", off);
    vm.ask("migrate-set-parameters", json!({"max-bandwidth": 20_000, "downtime-limit": 1}));
    vm.ask("migrate", uri(&file));
    vm.wait_for("its pages", |report| report["status"] == "active");
    kill_process(Pid::from_raw(vm.pid() as i32).unwrap(), Signal::KILL).unwrap();
    vm.exit_code();
    assert_eq!(std::fs::read(&file).unwrap(), old);
}

#[test]
fn the_verb_lists_verifies_and_merges() {
    let dir = tempfile::tempdir().unwrap();
    let (mut source, base) = source(dir.path());
    let at = |name: &str| dir.path().join(name);
    for (name, base) in [("first", &base), ("second", &at("first"))] {
        source.wait_for_sweeps(1);
        build_on(&mut source, base);
        source.ask("migrate", uri(&at(name)));
        assert_eq!(source.outcome()["status"], "completed");
    }
    let second = at("second");
    let snapshot = |words: &[&Path]| {
        let words: Vec<&str> = words.iter().map(|word| word.to_str().unwrap()).collect();
        let done = godwit(&[&["snapshot"], &words[..]].concat());
        (done.status.success(), text(&done.stdout), text(&done.stderr))
    };
    let (done, shown, _) = snapshot(&["show".as_ref(), &second]);
    assert!(done && shown.lines().count() == 5, "{shown}");
    let (done, listed, _) = snapshot(&["list".as_ref(), &second, &base]);
    assert!(done && listed.lines().count() == 4 && listed.contains("first"), "{listed}");
    let (done, said, _) = snapshot(&["verify".as_ref(), &second]);
    assert!(done && said.contains("sound, with all 3 files"), "{said}");
    for (out, says) in [("second", "second"), ("base", "base"), ("no/such", "no")] {
        let (done, _, said) = snapshot(&["merge".as_ref(), &second, &at(out)]);
        assert!(!done && said.contains(says), "{said}");
    }
    let (done, _, said) = snapshot(&["merge".as_ref(), &base, &at("merged")]);
    assert!(!done && said.contains("a mapped-ram file already"), "{said}");
    let (done, _, said) = snapshot(&["merge".as_ref(), &second, &at("merged")]);
    assert!(done, "{said}");
    // It is a base as any, and nothing differs from what it was made of.
    let merged = format!("file:{},x-godwit-restore=mapped", at("merged").display());
    let again = Launch::new(dir.path(), "merged").guest(GUEST).incoming(&merged).start();
    again.wait_for_sweeps(2);
    let whole = Launch::new(dir.path(), "chain").guest(GUEST).words(&["-S"]);
    let mut whole = whole.incoming(&format!("file:{}", second.display())).start();
    whole.wait_for_state(|state| state != "inmigrate");
    whole.set(&["background-snapshot"], &json!({"x-godwit-base": at("merged")}));
    whole.ask("migrate", uri(&at("third")));
    assert_eq!(whole.outcome()["status"], "completed");
    let (_, listed, _) = snapshot(&["list".as_ref(), &at("third")]);
    let row: Vec<&str> = listed.lines().last().unwrap().split_whitespace().collect();
    assert_eq!(row[row.len() - 4..], ["0", "0", "0", "merged"], "{listed}");
    // A bit in the middle of the first increment.
    let mut bytes = std::fs::read(at("first")).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 4;
    std::fs::write(at("first"), &bytes).unwrap();
    for words in [&["verify".as_ref(), &*second][..], &["merge".as_ref(), &second, &at("new")]] {
        let (done, _, said) = snapshot(words);
        assert!(!done && said.contains("first is broken: a checksum is wrong"), "{said}");
    }
    assert!(!at("new").exists() && parts(dir.path()).is_empty());
}
