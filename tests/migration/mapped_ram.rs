//! Snapshots in files in which each page has a fixed place (capability `mapped-ram`).

use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;

use rustix::process::{Pid, Resource, Rlimit, prlimit};
use serde_json::{Value, json};

use crate::common::small::Small;
use crate::common::vm::{Launch, Vm};

const GUEST: &str = "ws=4 pattern=hot";
const MEMFD: [&str; 4] =
    ["-object", "memory-backend-memfd,id=ram,size=64M,share=on", "-M", "memory-backend=ram"];

fn source(dir: &Path, words: &[&str]) -> Vm {
    let mut vm = Launch::new(dir, "source").guest(GUEST).words(words).start();
    vm.wait_for_sweeps(1);
    vm.set(&["mapped-ram"], &json!({"max-bandwidth": 0}));
    vm
}

fn fails(vm: &mut Vm, uri: &str) -> String {
    vm.ask("migrate", json!({"uri": uri}));
    let report = vm.outcome();
    assert_eq!(report["status"], "failed", "{report}");
    vm.assert_alive();
    report["error-desc"].as_str().unwrap().to_owned()
}

#[test]
fn the_guest_goes_on_from_a_file_with_places() {
    for (capabilities, words, offset, bandwidth) in [
        (&["mapped-ram"][..], &MEMFD[..], 0x1234, 20 << 20),
        (&["mapped-ram", "multifd"], &[], 0, 0),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let mut source = source(dir.path(), words);
        let parameters = json!({"max-bandwidth": bandwidth, "downtime-limit": 1000});
        source.set(capabilities, &parameters);
        let uri = format!("file:{},offset={offset}", dir.path().join("state").display());
        source.ask("migrate", json!({"uri": uri}));
        let report = source.outcome();
        assert_eq!(report["status"], "completed", "{report}");
        let last = source.sweeps().last().copied().unwrap();
        // As often as anybody wants, and with no capability set: the file says what it is.
        for name in ["first", "second"] {
            let launch = Launch::new(dir.path(), name).guest(GUEST).words(words);
            let target = launch.incoming(&uri).start();
            target.wait_for_sweeps(2);
            assert!(target.sweeps().iter().all(|sweep| *sweep >= last), "{capabilities:?}");
        }
    }
}

#[test]
fn what_has_no_places_is_refused_by_name_and_the_guest_stays() {
    let dir = tempfile::tempdir().unwrap();
    let mut vm = source(dir.path(), &[]);
    let pipe = dir.path().join("pipe");
    rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, 0o600.into()).unwrap();
    for uri in ["tcp:127.0.0.1:1", "unix:/x", "exec:cat >/dev/null", "fd:x"] {
        let error = vm.try_ask("migrate", json!({"uri": uri})).unwrap_err();
        assert_eq!(error, "Migration requires seekable transport (e.g. file)", "{uri}");
    }
    let needs = |vm: &mut Vm, path: &str| {
        let error = vm.try_ask("migrate", json!({"uri": format!("file:{path}")})).unwrap_err();
        assert!(error.contains("needs a regular file") && error.contains(path), "{error}");
    };
    needs(&mut vm, pipe.to_str().unwrap());
    // Opened by somebody else, who wants all at the end.
    let log = dir.path().join("log");
    std::fs::write(&log, "said before").unwrap();
    let file = File::options().append(true).open(&log).unwrap();
    vm.session().ask_with("add-fd", json!({"fdset-id": 1}), &[file.as_fd()]);
    needs(&mut vm, "/dev/fdset/1");
    vm.ask("migrate-set-parameters", json!({"multifd-compression": "zlib"}));
    let error = vm.try_ask("migrate", json!({"uri": "file:/x"})).unwrap_err();
    assert_eq!(error, "Cannot use compression with mapped-ram");
    vm.assert_alive();
}

#[test]
fn a_set_of_descriptors_gives_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let mut source = source(dir.path(), &[]);
    let path = dir.path().join("state");
    let file = File::create(&path).unwrap();
    source.session().ask_with("add-fd", json!({"fdset-id": 3}), &[file.as_fd()]);
    source.ask("migrate", json!({"uri": "file:/dev/fdset/3,offset=4096"}));
    assert_eq!(source.outcome()["status"], "completed");
    let mut target = Launch::new(dir.path(), "target").guest(GUEST).incoming("defer").start();
    let file = File::open(&path).unwrap();
    target.session().ask_with("add-fd", json!({"fdset-id": 3}), &[file.as_fd()]);
    target.ask("migrate-incoming", json!({"uri": "file:/dev/fdset/3,offset=4096"}));
    target.wait_for_sweeps(2);
}

/// What was written of a snapshot that failed is refused, and by a word on what is missing.
fn is_no_snapshot(dir: &Path, file: &Path, name: &str) {
    let uri = format!("file:{}", file.display());
    let mut target = Launch::new(dir, name).guest(GUEST).incoming(&uri).spawn();
    assert_eq!(target.exit_code(), Some(1), "{}", target.stderr());
    let words = target.stderr();
    assert!(words.contains("the file ends at") || words.contains("closed"), "{words}");
}

#[test]
fn a_full_disk_or_a_limit_ends_the_snapshot_and_the_guest_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let mut vm = source(dir.path(), &[]);
    let whole = dir.path().join("whole");
    for (name, space, in_mid_round) in [("small", 3 << 20, false), ("filled", 64 << 20, true)] {
        let small = Small::mount(dir.path(), space);
        let file = small.0.join("state");
        let uri = format!("file:{}", file.display());
        if in_mid_round {
            vm.ask("migrate-set-parameters", json!({"max-bandwidth": 4 << 20}));
            vm.ask("migrate", json!({"uri": uri}));
            vm.wait_for("a MiB", |report| report["ram"]["transferred"].as_u64() > Some(1 << 20));
            small.fill();
            let report = vm.outcome();
            let error = report["error-desc"].as_str().unwrap_or_default();
            assert!(error.contains("No space left"), "{report}");
            vm.assert_alive();
            vm.ask("migrate-set-parameters", json!({"max-bandwidth": 0}));
        } else {
            let error = fails(&mut vm, &uri);
            assert!(error.contains("No space left"), "{error}");
        }
        is_no_snapshot(dir.path(), &file, name);
        drop(small);
        std::fs::remove_dir(dir.path().join("small")).unwrap();
    }
    // In the pages, and behind them.
    let pid = Pid::from_raw(vm.pid() as i32);
    for (name, limit) in [("limit", 20 << 20), ("behind", (65 << 20) + 8)] {
        let maximum = Some(limit);
        prlimit(pid, Resource::Fsize, Rlimit { current: maximum, maximum: None }).unwrap();
        let error = fails(&mut vm, &format!("file:{}", whole.display()));
        assert!(error.contains("File too large"), "{error}");
        is_no_snapshot(dir.path(), &whole, name);
    }
    prlimit(pid, Resource::Fsize, Rlimit { current: None, maximum: None }).unwrap();
    let uri = json!({"uri": format!("file:{}", whole.display())});
    vm.ask("migrate", uri.clone());
    assert_eq!(vm.outcome()["status"], "completed");
    // The file that was there before goes away with the next one.
    vm.ask("cont", json!({}));
    vm.assert_alive();
    vm.ask("migrate", uri);
    assert_eq!(vm.outcome()["status"], "completed");
    let uri = format!("file:{}", whole.display());
    Launch::new(dir.path(), "target").guest(GUEST).incoming(&uri).start().wait_for_sweeps(2);
}

#[test]
fn a_target_that_is_to_read_a_file_takes_no_socket() {
    let mut target = Launch::alone().guest(GUEST).incoming("defer").start();
    target.set(&["mapped-ram"], &Value::Object(Default::default()));
    let error = target.try_ask("migrate-incoming", json!({"uri": "unix:/x"})).unwrap_err();
    assert_eq!(error, "Migration requires seekable transport (e.g. file)");
}
