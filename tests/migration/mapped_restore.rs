//! Guests whose memory is a snapshot, mapped (`x-godwit-restore=mapped`): any number of one file, each
//! as good as one that read it, and stopped by name where the file goes away under them.

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::common::vm::{Launch, Vm};

const GUEST: &str = "ws=8";
const MAPPED: &str = "x-godwit-restore=mapped";

/// A guest in a file, and the guest's memory as it was then.
fn snapshot(dir: &Path, guest: &str, capabilities: &[&str]) -> (PathBuf, Vec<u8>) {
    let mut source = Launch::new(dir, "source").guest(guest).start();
    source.wait_for_sweeps(1);
    source.set(capabilities, &json!({"max-bandwidth": 0}));
    let file = dir.join("state");
    source.ask("migrate", json!({"uri": format!("file:{}", file.display())}));
    let report = source.outcome();
    assert_eq!(report["status"], "completed", "{report}");
    let ram = memory(&mut source);
    (file, ram)
}

fn memory(vm: &mut Vm) -> Vec<u8> {
    let path = vm.path("ram");
    vm.ask("pmemsave", json!({"val": 0, "size": 64 << 20, "filename": path}));
    std::fs::read(path).unwrap()
}

fn uri(file: &Path) -> String {
    format!("file:{},{MAPPED}", file.display())
}

/// Not the time at which it was read.
fn print(file: &Path) -> (Vec<u8>, i64, i64) {
    let metadata = std::fs::metadata(file).unwrap();
    (std::fs::read(file).unwrap(), metadata.mtime(), metadata.mtime_nsec())
}

#[test]
fn many_guests_go_on_from_one_file_and_none_of_them_writes_it() {
    let dir = tempfile::tempdir().unwrap();
    let (file, ram) = snapshot(dir.path(), GUEST, &["mapped-ram"]);
    let before = print(&file);
    let mut clones: Vec<Vm> = (0..3)
        .map(|n| {
            let launch = Launch::new(dir.path(), &format!("clone{n}")).guest(GUEST);
            launch.incoming(&uri(&file)).words(&["-S"]).start()
        })
        .collect();
    for clone in &mut clones {
        clone.wait_for_status("paused");
        assert!(memory(clone) == ram, "memory differs");
        clone.ask("cont", json!({}));
    }
    clones.iter_mut().for_each(Vm::assert_alive);
    assert!(print(&file) == before, "the file was written");
    // A name that goes away is no change of the file.
    std::fs::remove_file(&file).unwrap();
    clones.iter_mut().for_each(Vm::assert_alive);
}

#[test]
fn such_a_guest_is_saved_dumped_and_moved_as_any() {
    let dir = tempfile::tempdir().unwrap();
    let (file, _) = snapshot(dir.path(), GUEST, &["mapped-ram", "multifd"]);
    let mut guest = Launch::new(dir.path(), "guest").guest(GUEST).incoming(&uri(&file)).start();
    guest.wait_for_sweeps(2);
    guest.ask("stop", json!({}));
    let ram = memory(&mut guest);
    let dump = dir.path().join("core");
    let protocol = format!("file:{}", dump.display());
    guest.ask("dump-guest-memory", json!({"paging": false, "protocol": protocol}));
    let core = std::fs::read(&dump).unwrap();
    assert!(core.ends_with(&ram), "the dump has other memory");
    guest.ask("cont", json!({}));
    // Its own memory is no place for its snapshot.
    guest.set(&["mapped-ram"], &json!({"max-bandwidth": 0}));
    let error =
        guest.try_ask("migrate", json!({"uri": format!("file:{}", file.display())})).unwrap_err();
    assert!(error.contains("this machine uses it"), "{error}");
    guest.assert_alive();
    let second = dir.path().join("second");
    guest.ask("migrate", json!({"uri": format!("file:{}", second.display())}));
    assert_eq!(guest.outcome()["status"], "completed");
    let ram = memory(&mut guest);
    for (name, uri) in [("read", format!("file:{}", second.display())), ("mapped", uri(&second))] {
        let launch = Launch::new(dir.path(), name).guest(GUEST).incoming(&uri).words(&["-S"]);
        let mut target = launch.start();
        target.wait_for_status("paused");
        assert!(memory(&mut target) == ram, "{name}: memory differs");
        target.ask("cont", json!({}));
        target.assert_alive();
    }
    // Live, with what was dirtied meanwhile, and a hash of all of it.
    let mut source = Launch::new(dir.path(), "leaves").guest(GUEST).incoming(&uri(&second)).start();
    source.wait_for_sweeps(1);
    let mut target =
        Launch::new(dir.path(), "arrives").guest(GUEST).incoming("tcp:127.0.0.1:0").start();
    source.set(&["xbzrle"], &json!({"x-godwit-verify": true, "max-bandwidth": 40 << 20}));
    source.ask("migrate-set-capabilities", off("mapped-ram"));
    source.ask("migrate", json!({"uri": format!("tcp:127.0.0.1:{}", target.port())}));
    let report = source.outcome();
    assert_eq!(report["status"], "completed", "{report}");
    target.assert_alive();
}

fn off(capability: &str) -> Value {
    json!({"capabilities": [{"capability": capability, "state": false}]})
}

/// The guest stands, and an event and stderr say which file it was.
fn assert_stopped_by_name(vm: &mut Vm, file: &Path, reasons: &[&str]) {
    vm.wait_for_status("internal-error");
    let name = file.to_str().unwrap();
    let said = vm.stderr();
    assert!(said.contains(name) && reasons.iter().any(|why| said.contains(why)), "{said}");
    let event = vm.session().event("MEMORY_FAILURE");
    let data = &event["data"];
    assert!(data["x-godwit-reason"].as_str().unwrap().contains(name), "{data}");
    assert!(!vm.serial().contains("CORRUPT"), "the guest saw it: {}", vm.serial());
    assert!(vm.try_ask("cont", json!({})).is_err(), "a reset is needed");
}

#[test]
fn a_file_that_is_cut_short_or_written_to_stops_the_guest_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let (original, _) = snapshot(dir.path(), "ws=24", &["mapped-ram"]);
    let file = dir.path().join("copy");
    for (state, change) in
        [("running", "cut"), ("paused", "cut"), ("running", "written"), ("paused", "written")]
    {
        std::fs::copy(&original, &file).unwrap();
        let name = format!("{state}-{change}");
        let launch = Launch::new(dir.path(), &name).guest("ws=24").incoming(&uri(&file));
        let mut vm = launch.words(if state == "paused" { &["-S"] } else { &[] }).start();
        vm.wait_for_status(state);
        let opened = File::options().write(true).open(&file).unwrap();
        match change {
            "cut" => opened.set_len(8 << 20).unwrap(),
            _ => opened.write_all_at(&[0x55; 4096], (1 << 20) + (40 << 20)).unwrap(),
        }
        assert_stopped_by_name(&mut vm, &file, &["cut short", "was written to"]);
        // What is lost is no snapshot.
        let again = dir.path().join("again").display().to_string();
        vm.ask("migrate", json!({"uri": format!("file:{again}")}));
        let report = vm.outcome();
        assert_eq!(report["status"], "failed", "{report}");
        let arguments = json!({"paging": false, "protocol": format!("file:{again}")});
        assert!(vm.try_ask("dump-guest-memory", arguments).is_err(), "{name}");
        vm.ask("quit", json!({}));
        assert_eq!(vm.exit_code(), Some(0), "{}", vm.stderr());
    }
}

#[test]
fn what_cannot_be_mapped_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let (file, _) = snapshot(dir.path(), GUEST, &["mapped-ram"]);
    let refused = |name: &str, uri: &str, words: &[&str]| {
        let launch = Launch::new(dir.path(), name).guest(GUEST).words(words).incoming(uri);
        let mut vm = launch.spawn();
        assert_eq!(vm.exit_code(), Some(1), "{name}: {}", vm.stderr());
        vm.stderr()
    };
    let backend = |kind: &str| format!("{kind},id=microvm.ram,size=64M");
    for (name, kind, says) in [
        ("shared", "memory-backend-memfd", "it is shared, or a file's"),
        ("prealloc", "memory-backend-ram,prealloc=on", "it is preallocated"),
    ] {
        let words = ["-object", &backend(kind), "-M", "memory-backend=microvm.ram"];
        let said = refused(name, &uri(&file), &words);
        assert!(said.contains(says) && said.contains("x-godwit-restore=eager"), "{said}");
    }
    let said = refused("lazy", &format!("file:{},x-godwit-restore=lazy", file.display()), &[]);
    assert!(said.contains("lazy") && said.contains("is not built"), "{said}");
    std::fs::remove_file(&file).unwrap();
    let plain = tempfile::tempdir().unwrap();
    let (file, _) = snapshot(plain.path(), GUEST, &[]);
    let said = refused("plain", &uri(&file), &[]);
    assert!(said.contains("capability mapped-ram"), "{said}");
}

#[test]
fn the_parameter_does_what_the_command_line_does() {
    let dir = tempfile::tempdir().unwrap();
    let (file, ram) = snapshot(dir.path(), GUEST, &["mapped-ram"]);
    let launch = Launch::new(dir.path(), "target").guest(GUEST).incoming("defer").words(&["-S"]);
    let mut target = launch.start();
    let error = target.try_ask("migrate-set-parameters", json!({"x-godwit-restore": "lazy"}));
    assert!(error.as_ref().is_err_and(|error| error.contains("lazy")), "{error:?}");
    target.ask("migrate-set-parameters", json!({"x-godwit-restore": "mapped"}));
    target.ask("migrate-incoming", json!({"uri": format!("file:{}", file.display())}));
    target.wait_for_status("paused");
    let maps = std::fs::read_to_string(format!("/proc/{}/maps", target.pid())).unwrap();
    assert!(maps.contains(file.to_str().unwrap()), "{maps}");
    assert!(memory(&mut target) == ram, "memory differs");
    target.ask("cont", json!({}));
    target.assert_alive();
}

#[test]
fn what_another_writes_into_the_file_is_in_no_snapshot_that_is_under_way() {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let (original, _) = snapshot(dir.path(), GUEST, &["mapped-ram"]);
    let file = dir.path().join("copy");
    for capability in ["background-snapshot", "mapped-ram-off"] {
        std::fs::copy(&original, &file).unwrap();
        let launch = Launch::new(dir.path(), capability).guest(GUEST).incoming(&uri(&file));
        let mut vm = launch.words(&["-S"]).start();
        vm.wait_for_status("paused");
        vm.set(&[capability], &json!({}));
        let go = dir.path().join(format!("{capability}.go"));
        rustix::fs::mkfifoat(rustix::fs::CWD, &go, 0o600.into()).unwrap();
        let command = format!("read x <{}; cat >/dev/null", go.display());
        vm.ask("migrate", json!({"uri": format!("exec:{command}")}));
        vm.wait_for("the pages", |report| report["ram"]["transferred"].as_u64() > Some(0));
        let opened = File::options().write(true).open(&file).unwrap();
        opened.write_all_at(&vec![0x55; 60 << 20], 1 << 20).unwrap();
        std::fs::write(&go, "\n").unwrap();
        let report = vm.outcome();
        assert_eq!(report["status"], "failed", "{capability}: {report}");
        let error = report["error-desc"].as_str().unwrap();
        assert!(error.contains("was written to"), "{report}");
    }
}

#[test]
fn after_a_load_that_failed_another_file_is_mapped_or_read() {
    let dir = tempfile::tempdir().unwrap();
    let (file, ram) = snapshot(dir.path(), GUEST, &["mapped-ram"]);
    let cut = dir.path().join("cut");
    for restore in ["mapped", "eager"] {
        std::fs::copy(&file, &cut).unwrap();
        let opened = File::options().write(true).open(&cut).unwrap();
        opened.set_len(opened.metadata().unwrap().len() - 21_000).unwrap();
        let launch = Launch::new(dir.path(), restore).guest(GUEST).incoming("defer").words(&["-S"]);
        let mut target = launch.start();
        target.ask("migrate-set-parameters", json!({"x-godwit-restore": "mapped"}));
        let from = |file: &Path, exit: bool| json!({"uri": format!("file:{}", file.display()), "exit-on-error": exit});
        target.ask("migrate-incoming", from(&cut, false));
        target.wait_for("the failure", |report| report["status"] == "failed");
        let maps = std::fs::read_to_string(format!("/proc/{}/maps", target.pid())).unwrap();
        assert!(!maps.contains(cut.to_str().unwrap()), "{maps}");
        target.ask("migrate-set-parameters", json!({"x-godwit-restore": restore}));
        target.ask("migrate-incoming", from(&file, true));
        target.wait_for_status("paused");
        // It has nothing to do with this guest any more.
        opened.write_all_at(&[0x55; 4096], 30 << 20).unwrap();
        assert!(memory(&mut target) == ram, "{restore}: memory differs");
        target.ask("cont", json!({}));
        target.assert_alive();
    }
}

/// Nobody watches its file any more: a change was seen.
fn wait_for_end_of_watch(vm: &Vm) {
    let tasks = PathBuf::from(format!("/proc/{}/task", vm.pid()));
    let end = std::time::Instant::now() + crate::common::PATIENCE;
    let is_watched = || {
        let tasks = std::fs::read_dir(&tasks).unwrap().flatten();
        let mut names = tasks.filter_map(|task| std::fs::read(task.path().join("comm")).ok());
        names.any(|name| name.starts_with(b"snapshot-watch"))
    };
    while is_watched() {
        assert!(std::time::Instant::now() < end, "nobody noticed");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}

#[test]
fn a_source_whose_guest_has_left_has_no_use_for_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let (file, _) = snapshot(dir.path(), GUEST, &["mapped-ram"]);
    let mut source = Launch::new(dir.path(), "old").guest(GUEST).incoming(&uri(&file)).start();
    source.wait_for_sweeps(1);
    let state = dir.path().join("left");
    source.ask("migrate", json!({"uri": format!("file:{}", state.display())}));
    assert_eq!(source.outcome()["status"], "completed");
    source.wait_for_status("postmigrate");
    let opened = File::options().write(true).open(&file).unwrap();
    opened.write_all_at(&[0x55; 4096], 30 << 20).unwrap();
    wait_for_end_of_watch(&source);
    // What the watch asked for is carried out on another thread: it has had its turn by the time that
    // all this was asked.
    for _ in 0..20 {
        assert_eq!(source.status(), "postmigrate");
    }
    assert!(!source.stderr().contains("was written to"), "{}", source.stderr());
    // Whoever starts it here all the same is told.
    source.ask("cont", json!({}));
    assert_stopped_by_name(&mut source, &file, &["was written to"]);
}
