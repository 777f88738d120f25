//! A guest whose disk has tables and stands on others.

use crate::common::small::Small;
use crate::common::vm::Launch;
use crate::common::{guest, qcow2, virtio_guest};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// What the guest uses of it.
const DISK_BYTES: u64 = 1 << 20;

/// A raw image, one that stands on it, and the one of the guest over both.
fn chain(folder: &Path) {
    let base = File::create(folder.join("base")).unwrap();
    base.set_len(DISK_BYTES / 2).unwrap();
    qcow2::make(&folder.join("middle"), DISK_BYTES, Some(("base", "raw")));
    qcow2::make(&folder.join("top"), DISK_BYTES, Some(("middle", "qcow2")));
}

fn launch(folder: &Path, name: &str, words: &[&str]) -> Launch {
    let kernel = folder.join(format!("{name}.kernel"));
    std::fs::write(&kernel, guest::elf(&virtio_guest::disk())).unwrap();
    let device = "virtio-blk-device,drive=d,id=vd";
    let modern = "virtio-mmio.force-legacy=off";
    let given = ["-kernel", kernel.to_str().unwrap(), "-device", device, "-global", modern];
    Launch::new(folder, name).no_guest().words(&given).words(words)
}

fn drive(folder: &Path, name: &str, more: &str) -> String {
    format!("if=none,id=d,format=qcow2,file={}{more}", folder.join(name).display())
}

/// Whether the image was not closed, or is open for writing, as its header says.
fn is_dirty(path: &Path) -> bool {
    let mut features = [0; 8];
    File::open(path).unwrap().read_exact_at(&mut features, 72).unwrap();
    u64::from_be_bytes(features) & 1 != 0
}

#[test]
fn a_guest_over_a_chain_is_moved_back_and_forth_and_writes_the_top_alone() {
    let folder = tempfile::tempdir().unwrap();
    chain(folder.path());
    let middle = std::fs::read(folder.path().join("middle")).unwrap();
    let drive = drive(folder.path(), "top", ",discard=unmap,detect-zeroes=unmap");
    let start = |name: &str, more: &[&str]| {
        launch(folder.path(), name, &["-drive", &drive]).words(more).start()
    };
    let mut source = start("source", &[]);
    source.wait_for_points(2);
    source.ask("system_reset", json!({}));
    for turn in 0..3 {
        source.wait_for_points(1);
        let uri = format!("unix:{}", folder.path().join(format!("stream{turn}")).display());
        let mut target = start(&format!("target{turn}"), &["-incoming", &uri]);
        source.ask("migrate", json!({"uri": uri}));
        assert_eq!(source.outcome()["status"], "completed", "{turn}: {}", target.stderr());
        target.wait_for_state(|state| state == "running");
        assert!(is_dirty(&folder.path().join("top")));
        if turn == 0 {
            // It is the target's now, and stays so.
            source.ask("quit", json!({}));
            assert_eq!(source.exit_code(), Some(0));
            assert!(is_dirty(&folder.path().join("top")));
        }
        target.wait_for_points(1);
        source = target;
    }
    // Longer, as the guest is told: in the header, too.
    source.ask("block_resize", json!({"device": "d", "size": 2 * DISK_BYTES}));
    let top = File::open(folder.path().join("top")).unwrap();
    let mut bytes = [0; 8];
    top.read_exact_at(&mut bytes, 24).unwrap();
    assert_eq!(u64::from_be_bytes(bytes), 2 * DISK_BYTES);
    source.wait_for_points(1);
    assert_eq!(std::fs::read(folder.path().join("middle")).unwrap(), middle);
    let base = std::fs::read(folder.path().join("base")).unwrap();
    assert!(base.iter().all(|byte| *byte == 0));
}

#[test]
fn an_image_says_whether_it_was_closed() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    chain(folder.path());
    let drive = drive(folder.path(), "top", "");
    let start = |name: &str| launch(folder.path(), name, &["-drive", &drive]).start();
    let refused = |says: &str| {
        let mut other = launch(folder.path(), "other", &["-drive", &drive]).spawn();
        assert_eq!(other.exit_code(), Some(1));
        assert!(other.stderr().contains(says), "{}", other.stderr());
    };
    for end in ["quit", "signal"] {
        let mut vm = start(end);
        vm.wait_for_points(1);
        assert!(is_dirty(&path("top")) && !is_dirty(&path("middle")));
        // Who looks meanwhile is told that it is in use, not that it is broken.
        refused("\"write\" lock");
        match end {
            "quit" => drop(vm.ask("quit", json!({}))),
            _ => {
                let pid = Pid::from_raw(vm.pid() as i32).unwrap();
                kill_process(pid, Signal::TERM).unwrap();
            }
        }
        assert_eq!(vm.exit_code(), Some(0), "{}", vm.stderr());
        assert!(!is_dirty(&path("top")), "{end}");
    }
    // A machine that cannot be built closes it, too.
    let below = format!("if=none,id=e,format=qcow2,file={}", path("middle").display());
    let words = ["-drive", &drive, "-drive", &below, "-device", "virtio-blk-device,drive=e"];
    let mut vm = launch(folder.path(), "unbuilt", &words).spawn();
    assert_eq!(vm.exit_code(), Some(1));
    assert!(vm.stderr().contains("lock"), "{}", vm.stderr());
    assert!(!is_dirty(&path("top")), "{}", vm.stderr());
    let mut vm = start("killed");
    vm.wait_for_points(1);
    vm.kill();
    refused("the image was not closed (its dirty bit is set)");
    assert!(is_dirty(&path("top")));
}

#[test]
fn a_failed_migration_leaves_the_chain_at_the_source() {
    let folder = tempfile::tempdir().unwrap();
    chain(folder.path());
    let drive = drive(folder.path(), "top", "");
    let mut source = launch(folder.path(), "source", &["-drive", &drive]).start();
    source.wait_for_points(1);
    let uri = format!("unix:{}", folder.path().join("stream").display());
    let target = Launch::new(folder.path(), "target").no_guest().words(&["-M", "pit=on"]);
    let mut target = target.incoming(&uri).start();
    source.ask("migrate", json!({"uri": uri}));
    assert_eq!(source.outcome()["status"], "failed");
    assert_eq!(target.exit_code(), Some(1));
    source.wait_for_points(2);
    // It is still in use, and so is what it stands on.
    let other = format!("if=none,id=d,format=raw,file={}", folder.path().join("middle").display());
    for (drive, says) in [(&drive, "\"write\" lock"), (&other, "\"write\" lock")] {
        let mut other = launch(folder.path(), "other", &["-drive", drive]).spawn();
        assert_eq!(other.exit_code(), Some(1));
        assert!(other.stderr().contains(says), "{}", other.stderr());
    }
}

#[test]
fn a_full_host_stops_a_guest_with_tables_until_there_is_room() {
    let folder = tempfile::tempdir().unwrap();
    let small = Small::mount(folder.path(), 4 << 20);
    qcow2::make(&small.0.join("top"), DISK_BYTES, None);
    let drive = drive(&small.0, "top", "");
    let mut vm = launch(folder.path(), "vm", &["-drive", &drive]).start();
    small.fill();
    vm.wait_for_status("io-error");
    std::fs::remove_file(small.0.join("ballast")).unwrap();
    vm.ask("cont", json!({}));
    vm.wait_for_points(3);
}

#[test]
fn a_guest_whose_tables_cannot_be_written_does_not_leave() {
    let folder = tempfile::tempdir().unwrap();
    let small = Small::mount(folder.path(), 4 << 20);
    // The refcounts of the next clusters are where the file has a hole, its first table is not.
    let top = qcow2::make(&small.0.join("top"), DISK_BYTES, None);
    top.write_all_at(&[0, 1].repeat(2048), 2 * 65536).unwrap();
    top.write_all_at(&[0; 4096], 3 * 65536).unwrap();
    top.set_len(2048 * 65536).unwrap();
    let drive = drive(&small.0, "top", "");
    let mut vm = launch(folder.path(), "vm", &["-drive", &drive, "-S"]).start();
    small.fill();
    // Room for a table and a little more.
    let ballast = File::options().write(true).open(small.0.join("ballast")).unwrap();
    ballast.set_len(ballast.metadata().unwrap().len() - 18 * 4096).unwrap();
    vm.ask("cont", json!({}));
    vm.wait_for_status("io-error");
    let uri = format!("unix:{}", folder.path().join("stream").display());
    let target = launch(folder.path(), "target", &["-drive", &drive]).incoming(&uri).start();
    vm.ask("migrate", json!({"uri": uri}));
    let outcome = vm.outcome();
    assert_eq!(outcome["status"], "failed", "{outcome}");
    assert!(outcome["error-desc"].as_str().unwrap().contains("No space left"), "{outcome}");
    drop(target);
    std::fs::remove_file(small.0.join("ballast")).unwrap();
    drop(ballast);
    vm.ask("cont", json!({}));
    vm.wait_for_points(3);
    vm.ask("quit", json!({}));
    assert_eq!(vm.exit_code(), Some(0));
    assert!(!is_dirty(&small.0.join("top")), "{}", vm.stderr());
}

#[test]
fn no_console_writes_over_what_a_disk_stands_on() {
    let folder = tempfile::tempdir().unwrap();
    chain(folder.path());
    let drive = drive(folder.path(), "top", "");
    let console = format!("file:{}", folder.path().join("base").display());
    let words = ["-drive", &drive, "-chardev", "null,id=n", "-qmp", &console];
    let mut vm = launch(folder.path(), "refused", &words).spawn();
    assert_eq!(vm.exit_code(), Some(1));
    assert!(vm.stderr().contains("which the machine reads"), "{}", vm.stderr());
    assert_eq!(std::fs::metadata(folder.path().join("base")).unwrap().len(), DISK_BYTES / 2);
}

#[test]
fn what_an_image_cannot_be_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let make = |name: &str, below: Option<(&str, &str)>| {
        qcow2::make(&folder.path().join(name), DISK_BYTES, below)
    };
    make("gone", Some(("nowhere", "raw")));
    make("loop", Some(("loop2", "qcow2")));
    make("loop2", Some(("loop", "qcow2")));
    make("far", Some(("nbd://host/x", "raw")));
    make("odd", Some(("loop", "vmdk")));
    make("data", None).write_all_at(&4u64.to_be_bytes(), 72).unwrap();
    make("dirty", None).write_all_at(&1u64.to_be_bytes(), 72).unwrap();
    make("short", None).set_len(60).unwrap();
    make("old", None).write_all_at(&2u32.to_be_bytes(), 4).unwrap();
    let all_free = make("tables", None);
    all_free.write_all_at(&0x2_0000u64.to_be_bytes(), 0x1_0008).unwrap();
    std::fs::write(folder.path().join("raw"), [0; 512]).unwrap();
    for (name, says) in [
        ("gone", "Could not open backing file: Could not open '"),
        ("loop", "twice"),
        ("far", "protocol"),
        ("odd", "format is not built"),
        ("data", "external data files"),
        ("dirty", "dirty bit"),
        ("old", "version 2"),
        ("short", "qcow2 header too short"),
        ("tables", "names a block twice"),
        ("raw", "Image is not in qcow2 format"),
    ] {
        let drive = drive(folder.path(), name, "");
        let mut vm = launch(folder.path(), "refused", &["-drive", &drive]).spawn();
        assert_eq!(vm.exit_code(), Some(1), "{name}");
        assert!(vm.stderr().contains(says), "{name}: {}", vm.stderr());
    }
}

#[test]
fn an_image_is_put_over_that_of_a_running_guest() {
    for format in ["raw", "qcow2"] {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        match format {
            "raw" => File::create(path("first")).unwrap().set_len(DISK_BYTES).unwrap(),
            _ => drop(qcow2::make(&path("first"), DISK_BYTES, None)),
        }
        let drive = format!("if=none,id=d,format={format},file={}", path("first").display());
        let mut vm = launch(folder.path(), "vm", &["-drive", &drive]).start();
        vm.wait_for_points(2);
        let file = |name: &str| path(name).to_str().unwrap().to_owned();
        let second =
            json!({"device": "d", "snapshot-file": file("second"), "snapshot-node-name": "s2"});
        vm.ask("blockdev-snapshot-sync", second);
        let first = std::fs::read(path("first")).unwrap();
        assert!(is_dirty(&path("second")) && !(format == "qcow2" && is_dirty(&path("first"))));
        vm.wait_for_points(2);
        // Once more over that, while the guest stands still; and the guest is told of its writes.
        vm.ask("stop", json!({}));
        vm.ask(
            "blockdev-snapshot-sync",
            json!({"node-name": "s2", "snapshot-file": file("third")}),
        );
        let nodes = vm.ask("query-named-block-nodes", json!({"flat": true}));
        let third = nodes
            .as_array()
            .unwrap()
            .iter()
            .find(|node| node["file"] == file("third").as_str() && node["drv"] == "file");
        let node = third.unwrap()["node-name"].clone();
        vm.ask(
            "block-set-write-threshold",
            json!({"node-name": node, "write-threshold": 0x4_0001}),
        );
        vm.ask("cont", json!({}));
        vm.wait_for_points(2);
        let told = &vm.session().event("BLOCK_WRITE_THRESHOLD")["data"];
        assert_eq!((&told["node-name"], &told["write-threshold"]), (&node, &json!(0x4_0001)));
        assert!(told["amount-exceeded"].as_u64().unwrap() > 0);
        assert!(std::fs::read(path("first")).unwrap() == first);
        let disk = vm.ask("query-block", json!({}));
        assert_eq!(disk[0]["inserted"]["backing_file_depth"], 2);
        assert_eq!(disk[0]["inserted"]["backing_file"], file("second"));
        // It moves as any other; the other side is told what it stands on by the header.
        let uri = format!("unix:{}", folder.path().join("stream").display());
        let drive = format!("if=none,id=d,format=qcow2,file={}", path("third").display());
        let target = launch(folder.path(), "target", &["-drive", &drive]).incoming(&uri);
        let mut target = target.start();
        vm.ask("migrate", json!({"uri": uri}));
        assert_eq!(vm.outcome()["status"], "completed", "{}", target.stderr());
        target.wait_for_state(|state| state == "running");
        target.wait_for_points(1);
    }
}

#[test]
fn what_cannot_be_put_over_an_image_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    chain(folder.path());
    let drive = drive(folder.path(), "top", "");
    let mut vm = launch(folder.path(), "vm", &["-drive", &drive]).start();
    let file = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    std::fs::write(file("text"), "text").unwrap();
    let middle = std::fs::read(file("middle")).unwrap();
    let new = file("new");
    for (arguments, says) in [
        (json!({"device": "x", "snapshot-file": new}), "Cannot find device='x' nor node-name=''"),
        (json!({"snapshot-file": new}), "Cannot find device='' nor node-name=''"),
        (
            json!({"device": "d", "snapshot-file": "/nowhere/new"}),
            "Could not create '/nowhere/new': No such file or directory",
        ),
        (
            json!({"device": "d", "snapshot-file": new, "format": "raw"}),
            "Backing file not supported for file format 'raw'",
        ),
        (
            json!({"device": "d", "snapshot-file": new, "format": "foo"}),
            "Unknown file format 'foo'",
        ),
        (json!({"device": "d", "snapshot-file": new, "mode": "existing"}), "Could not open"),
        (
            json!({"device": "d", "snapshot-file": file("text"), "mode": "existing"}),
            "not in qcow2 format",
        ),
        (
            json!({"device": "d", "snapshot-file": new, "snapshot-node-name": "1"}),
            "Invalid node-name: '1'",
        ),
        (json!({"device": "d", "snapshot-file": file("middle")}), "': this machine uses it"),
        (json!({"device": "d", "snapshot-file": file("top")}), "same filename as the backing file"),
        (json!({"device": "d", "snapshot-file": "/dev/null"}), "to be a regular file"),
    ] {
        let refused = vm.try_ask("blockdev-snapshot-sync", arguments.clone()).unwrap_err();
        assert!(refused.contains(says), "{arguments}: {refused}");
        assert!(!folder.path().join("new").exists(), "{arguments}");
    }
    vm.wait_for_points(2);
    assert!(std::fs::read(file("middle")).unwrap() == middle);
    let unknown = json!({"node-name": "nope", "write-threshold": 1});
    let refused = vm.try_ask("block-set-write-threshold", unknown).unwrap_err();
    assert!(refused.contains("Device 'nope' not found"), "{refused}");
}

#[test]
fn no_overlay_takes_a_file_that_the_machine_has_open() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    chain(folder.path());
    File::create(file("memory")).unwrap().set_len(64 << 20).unwrap();
    std::fs::write(file("plain"), [0xaa; 4096]).unwrap();
    qcow2::make(Path::new(&file("other")), DISK_BYTES, None);
    std::os::unix::fs::symlink("plain", file("alias")).unwrap();
    let drive = drive(folder.path(), "top", "");
    let memory = format!("memory-backend-file,id=m,size=64M,share=on,mem-path={}", file("memory"));
    let console = format!("file,id=c,path={}", file("console"));
    let words = [
        "-drive",
        &drive,
        "-object",
        &memory,
        "-machine",
        "memory-backend=m",
        "-chardev",
        &console,
    ];
    let mut vm = launch(folder.path(), "vm", &words).start();
    // No disk has these two, so that no lock keeps anybody off.
    for (driver, name) in [("raw", "plain"), ("qcow2", "other")] {
        let below = json!({"driver": "file", "filename": file(name)});
        vm.ask("blockdev-add", json!({"driver": driver, "node-name": name, "file": below}));
    }
    let bytes = |name: &str| std::fs::metadata(file(name)).unwrap().len();
    let other = bytes("other");
    for name in ["memory", "plain", "alias", "console", "other"] {
        for mode in ["absolute-paths", "existing"] {
            let over = json!({"device": "d", "snapshot-file": file(name), "mode": mode});
            let refused = vm.try_ask("blockdev-snapshot-sync", over).unwrap_err();
            let is_no_image = mode == "existing" && name != "other";
            let says = if is_no_image { "not in qcow2 format" } else { "': this machine uses it" };
            assert!(refused.contains(says), "{name} {mode}: {refused}");
        }
    }
    assert_eq!((bytes("memory"), bytes("other")), (64 << 20, other));
    assert!(std::fs::read(file("plain")).unwrap() == [0xaa; 4096]);
    vm.wait_for_points(1);
}

#[test]
fn nodes_stand_on_others_by_name_and_no_name_is_there_twice() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    for name in ["base", "top"] {
        qcow2::make(Path::new(&file(name)), DISK_BYTES, None);
    }
    let mut vm = Launch::new(folder.path(), "vm").start();
    let mut ask = |command: &str, arguments| vm.try_ask(command, arguments);
    let node = |name: &str, file_name: &str, of: &str| {
        let below = json!({"driver": "file", "filename": file(of), "node-name": file_name});
        json!({"driver": "qcow2", "node-name": name, "file": below})
    };
    let twice = |name: &str| Err(format!("Duplicate nodes with node-name='{name}'"));
    assert_eq!(ask("blockdev-add", node("base", "f", "base")), Ok(json!({})));
    assert_eq!(ask("blockdev-add", node("top", "f", "top")), twice("f"));
    assert_eq!(ask("blockdev-add", node("top", "base", "top")), twice("base"));
    assert_eq!(ask("blockdev-add", node("t", "t", "top")), twice("t"));
    let mut over = node("top", "g", "top");
    over["backing"] = node("base", "h", "base");
    assert_eq!(ask("blockdev-add", over.clone()), twice("base"));
    over["backing"] = json!("nobody");
    let unknown = "Could not open backing file: Cannot find device='nobody' nor node-name='nobody'";
    assert_eq!(ask("blockdev-add", over.clone()), Err(unknown.into()));
    over["backing"] = json!("base");
    assert_eq!(ask("blockdev-add", over), Ok(json!({})));
    let nodes = ask("query-named-block-nodes", json!({})).unwrap();
    let names: Vec<_> = nodes.as_array().unwrap().iter().map(|one| &one["node-name"]).collect();
    assert_eq!(names.len(), 4, "{names:?}");
    let top = nodes.as_array().unwrap().iter().find(|one| one["node-name"] == "top").unwrap();
    assert_eq!(top["backing_file_depth"], 1);
    let named = |name: &str| json!({"node-name": name});
    let in_use = Err("Block device base is in use".to_owned());
    assert_eq!(ask("blockdev-del", named("base")), in_use);
    assert_eq!(ask("blockdev-del", named("top")), Ok(json!({})));
    assert_eq!(ask("blockdev-del", named("base")), Ok(json!({})));
}

#[test]
fn no_console_that_comes_later_writes_over_an_image() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    chain(folder.path());
    let drive = drive(folder.path(), "top", "");
    let words = ["-drive", &drive, "-chardev", "null,id=idle"];
    let mut vm = launch(folder.path(), "vm", &words).start();
    qcow2::make(Path::new(&file("added")), DISK_BYTES, Some(("below", "raw")));
    std::fs::write(file("below"), [0xaa; 4096]).unwrap();
    let below = json!({"driver": "file", "filename": file("added")});
    vm.ask("blockdev-add", json!({"driver": "qcow2", "node-name": "added", "file": below}));
    vm.ask("blockdev-snapshot-sync", json!({"device": "d", "snapshot-file": file("over")}));
    // Whatever their names are now.
    std::fs::rename(file("middle"), file("moved")).unwrap();
    vm.wait_for_points(1);
    for name in ["over", "top", "moved", "base", "added", "below"] {
        let bytes = || std::fs::metadata(file(name)).unwrap().len();
        let before = bytes();
        let backend = json!({"type": "file", "data": {"out": file(name)}});
        let log = json!({"type": "null", "data": {"logfile": file(name)}});
        for (command, id, backend) in [
            ("chardev-add", "new", &backend),
            ("chardev-add", "new", &log),
            ("chardev-change", "idle", &backend),
        ] {
            let refused = vm.try_ask(command, json!({"id": id, "backend": backend})).unwrap_err();
            assert!(refused.contains("would overwrite"), "{command} {name}: {refused}");
        }
        assert!(before > 0 && bytes() >= before, "{name}");
    }
    vm.wait_for_points(1);
}

#[test]
fn a_guest_goes_on_after_overlays_that_failed() {
    let folder = tempfile::tempdir().unwrap();
    chain(folder.path());
    let held = folder.path().join("held");
    qcow2::make(&held, DISK_BYTES, None);
    // Its reader bears nobody who writes it.
    let read_only = drive(folder.path(), "held", ",readonly=on");
    let _reader = launch(folder.path(), "reader", &["-drive", &read_only, "-S"]).start();
    let drive = drive(folder.path(), "top", "");
    let mut vm = launch(folder.path(), "vm", &["-drive", &drive]).start();
    vm.wait_for_points(1);
    for _ in 0..50 {
        let over = json!({"device": "d", "snapshot-file": held, "mode": "existing"});
        let refused = vm.try_ask("blockdev-snapshot-sync", over).unwrap_err();
        assert!(refused.contains("Failed to get \"write\" lock"), "{refused}");
    }
    vm.wait_for_points(2);
}
