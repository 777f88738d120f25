//! A guest that drives a disk natively: what it writes is in the file, whatever the host and other
//! machines do meanwhile.

use crate::common::small::Small;
use crate::common::vm::{Launch, Vm};
use crate::common::{guest, virtio_guest};
use rustix::fs::{FlockOperation, fcntl_lock};
use serde_json::json;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

const MODERN: [&str; 2] = ["-global", "virtio-mmio.force-legacy=off"];
/// What the guest uses of it.
const DISK_BYTES: u64 = 1 << 20;

fn image(path: &Path) -> File {
    let file =
        File::options().read(true).write(true).create(true).truncate(false).open(path).unwrap();
    file.set_len(DISK_BYTES).unwrap();
    file
}

fn launch(folder: &Path, name: &str, drive: &str, device: &str, modern: bool) -> Launch {
    let kernel = folder.join(format!("{name}.kernel"));
    std::fs::write(&kernel, guest::elf(&virtio_guest::disk())).unwrap();
    let drive = format!("if=none,id=d,format=raw,{drive}");
    let device = format!("virtio-blk-device,drive=d,id=vd{device}");
    let words = ["-kernel", kernel.to_str().unwrap(), "-drive", &drive, "-device", &device];
    let launch = Launch::new(folder, name).no_guest().words(&words);
    if modern { launch.words(&MODERN) } else { launch }
}

/// What the guest has written so far is in the image.
fn check(vm: &mut Vm, image: &File) {
    vm.ask("stop", json!({}));
    let dump = vm.path("turns");
    vm.ask("pmemsave", json!({"val": 0x21_0000, "size": 4, "filename": dump}));
    let turns = u32::from_le_bytes(std::fs::read(dump).unwrap().try_into().unwrap());
    // The last may be on its way.
    let mut found = 0;
    for turn in turns.saturating_sub(255).max(1)..turns {
        let mut word = [0; 4];
        image.read_exact_at(&mut word, u64::from(turn & 255) * 4096 + 4092).unwrap();
        assert_eq!(u32::from_le_bytes(word), turn, "{turn} of {turns}");
        found += 1;
    }
    assert!(found > 0);
    vm.ask("cont", json!({}));
}

#[test]
fn what_a_guest_writes_is_in_the_file_through_both_kinds_of_transport() {
    for (modern, drive, device) in [
        (false, "", ""),
        (true, ",cache=writethrough,aio=threads", ",num-queues=2,queue-size=128"),
        (true, ",cache=none,detect-zeroes=unmap,discard=unmap", ",serial=s"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("image");
        let image = image(&path);
        let drive = format!("file={}{drive}", path.display());
        let mut vm = launch(folder.path(), "vm", &drive, device, modern).start();
        vm.wait_for_points(3);
        check(&mut vm, &image);
        vm.ask("system_reset", json!({}));
        vm.wait_for_points(2);
        check(&mut vm, &image);
    }
}

/// Moves the guest, in the middle of its requests, and back.
fn moves(source_is_qemu: bool, target_is_qemu: bool, modern: bool) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image");
    let image = image(&path);
    let drive = format!("file={}", path.display());
    let start = |name: &str, qemu: bool, more: &[&str]| {
        let launch = launch(folder.path(), name, &drive, "", modern).words(more);
        if qemu { launch.qemu().start() } else { launch.start() }
    };
    let mut source = start("source", source_is_qemu, &[]);
    let mut leaves_qemu = source_is_qemu;
    for (turn, is_qemu) in [target_is_qemu, source_is_qemu, target_is_qemu].into_iter().enumerate()
    {
        source.wait_for_points(1);
        let uri = format!("unix:{}", folder.path().join(format!("stream{turn}")).display());
        let mut target = start(&format!("target{turn}"), is_qemu, &["-incoming", &uri]);
        source.ask("migrate", json!({"uri": uri}));
        let report = source.outcome();
        assert_eq!(report["status"], "completed", "{turn}: {report} {}", target.stderr());
        target.wait_for_state(|state| state == "running");
        target.wait_for_points(2);
        check(&mut target, &image);
        if !leaves_qemu {
            let size = json!({"device": "d", "size": 2 * DISK_BYTES});
            let refused = source.try_ask("block_resize", size).unwrap_err();
            assert!(refused.contains("is not this machine's now"), "{refused}");
        }
        (source, leaves_qemu) = (target, is_qemu);
    }
}

#[test]
fn a_guest_is_moved_in_the_middle_of_its_requests_over_one_image() {
    moves(false, false, false);
    moves(false, false, true);
}

#[test]
#[ignore = "needs QEMU"]
fn a_guest_with_a_disk_moves_between_godwit_and_qemu() {
    for modern in [false, true] {
        moves(false, true, modern);
        moves(true, false, modern);
    }
}

#[test]
fn a_full_host_stops_the_guest_until_there_is_room() {
    let folder = tempfile::tempdir().unwrap();
    let small = Small::mount(folder.path(), 4 << 20);
    let path = small.0.join("image");
    let image = image(&path);
    let drive = format!("file={}", path.display());
    let mut vm = launch(folder.path(), "vm", &drive, "", true).start();
    small.fill();
    vm.wait_for_status("io-error");
    let event = vm.session().event("BLOCK_IO_ERROR");
    assert_eq!(event["data"]["device"], "d");
    assert_eq!(event["data"]["operation"], "write");
    assert_eq!(event["data"]["action"], "stop");
    assert_eq!(event["data"]["nospace"], true);
    // It travels with what it still has to do.
    let uri = format!("unix:{}", folder.path().join("stream").display());
    let mut target = launch(folder.path(), "target", &drive, "", true).incoming(&uri).start();
    vm.ask("migrate", json!({"uri": uri}));
    assert_eq!(vm.outcome()["status"], "completed", "{}", target.stderr());
    target.wait_for_state(|state| state != "inmigrate");
    std::fs::remove_file(small.0.join("ballast")).unwrap();
    target.ask("cont", json!({}));
    target.wait_for_points(3);
    check(&mut target, &image);
}

#[test]
fn an_error_is_told_to_the_guest_where_it_shall_be() {
    let folder = tempfile::tempdir().unwrap();
    let small = Small::mount(folder.path(), 4 << 20);
    let path = small.0.join("image");
    image(&path);
    let drive = format!("file={}", path.display());
    let vm = launch(folder.path(), "vm", &drive, ",werror=report", false).start();
    small.fill();
    // Then it reads back what it has not written.
    vm.wait_for_serial(|said| said.contains("e!"));
}

#[test]
fn a_guest_whose_writes_are_not_on_the_disk_stays() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image");
    image(&path);
    let drive = format!("file={}", path.display());
    let source = launch(folder.path(), "source", &drive, "", true);
    // Flushes of the guest's are the ring's; that of a stop is this one.
    let mut source = source.forbid(libc::SYS_fdatasync, libc::EIO).start();
    source.wait_for_points(1);
    let end = Instant::now() + Duration::from_secs(60);
    loop {
        source.ask("stop", json!({}));
        if source.stderr().contains("what was written is not on the disk: Input/output error") {
            break;
        }
        // All of it was flushed just then.
        assert!(Instant::now() < end, "{}", source.stderr());
        source.ask("cont", json!({}));
    }
    source.ask("cont", json!({}));
    // No flush works any more, and it is told.
    source.wait_for_serial(|said| said.contains('e'));
    let uri = format!("unix:{}", folder.path().join("stream").display());
    let target = launch(folder.path(), "target", &drive, "", true);
    let mut target = target.incoming(&uri).start();
    source.ask("migrate", json!({"uri": uri}));
    let outcome = source.outcome();
    assert_eq!(outcome["status"], "failed", "{outcome}");
    let why = outcome["error-desc"].as_str().unwrap();
    assert!(why.contains("disk image d") && why.contains("not on the disk"), "{why}");
    assert_eq!(target.exit_code(), Some(1));
    let told = source.serial().matches('e').count();
    source.wait_for_serial(|said| said.matches('e').count() > told);
}

fn refused(folder: &Path, drive: &str) -> String {
    let mut vm = launch(folder, "refused", drive, "", false).spawn();
    assert_eq!(vm.exit_code(), Some(1));
    vm.stderr()
}

#[test]
fn an_image_that_cannot_be_had_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image");
    image(&path);
    let drive = format!("file={}", path.display());
    let vm = launch(folder.path(), "vm", &drive, "", false).start();
    vm.wait_for_points(1);
    for (drive, says) in [
        (drive.clone(), "Failed to get \"write\" lock"),
        (format!("{drive},readonly=on"), "Failed to get shared \"write\" lock"),
        (
            "file=/nowhere/image".into(),
            "Could not open '/nowhere/image': No such file or directory",
        ),
        ("file=/dev".into(), "'file' driver requires '/dev' to be a regular file"),
        ("file=/dev/null".into(), "neither a regular file nor a block device"),
    ] {
        let said = refused(folder.path(), &drive);
        assert!(said.contains(says), "{drive}: {said}");
    }
    vm.wait_for_points(1);
}

#[test]
fn a_failed_migration_gives_the_image_back() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image");
    let image = image(&path);
    let drive = format!("file={}", path.display());
    let mut source = launch(folder.path(), "source", &drive, "", true).start();
    source.wait_for_points(1);
    // No disk there, and one of another shape.
    for (words, says) in [
        (vec!["-M", "pit=on"], "-device virtio-blk-device is missing"),
        (
            vec![
                "-drive",
                "file=@DIR@/other,if=none,id=d,format=raw",
                "-device",
                "virtio-blk-device,drive=d",
            ],
            "force-legacy",
        ),
    ] {
        File::create(folder.path().join("other")).unwrap();
        let uri = format!("unix:{}", folder.path().join("stream").display());
        let target = Launch::new(folder.path(), "target").no_guest().words(&words);
        let mut target = target.incoming(&uri).start();
        source.ask("migrate", json!({"uri": uri}));
        assert_eq!(source.outcome()["status"], "failed");
        assert_eq!(target.exit_code(), Some(1));
        assert!(target.stderr().contains(says), "{}", target.stderr());
        source.wait_for_points(1);
    }
    let said = refused(folder.path(), &drive);
    assert!(said.contains("Failed to get \"write\" lock"), "{said}");
    check(&mut source, &image);
}

#[test]
fn a_target_that_cannot_have_the_image_gives_the_guest_back() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image");
    let image = image(&path);
    let drive = format!("file={}", path.display());
    let mut source = launch(folder.path(), "source", &drive, "", true).start();
    source.wait_for_points(1);
    let uri = format!("unix:{}", folder.path().join("stream").display());
    let target = launch(folder.path(), "target", &drive, "", true);
    let mut target = target.incoming(&uri).start();
    // Somebody who bears no writer: a lock of this process's on all bytes.
    fcntl_lock(&image, FlockOperation::NonBlockingLockShared).unwrap();
    source.ask("migrate", json!({"uri": uri}));
    assert_eq!(target.exit_code(), Some(1));
    fcntl_lock(&image, FlockOperation::Unlock).unwrap();
    let said = target.stderr();
    assert!(said.contains("is another process using the image"), "{said}");
    let outcome = source.outcome();
    assert_eq!(outcome["status"], "failed");
    assert!(outcome["error-desc"].as_str().unwrap().contains("lock"), "{outcome}");
    source.wait_for_points(1);
    check(&mut source, &image);
}

#[test]
fn what_a_disk_is_made_of_and_what_it_did_can_be_asked() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image");
    let image = image(&path);
    let name = path.to_str().unwrap();
    let drive = format!("file={name}");
    let mut vm = launch(folder.path(), "vm", &drive, "", true).start();
    vm.wait_for_points(1);
    let disks = vm.ask("query-block", json!({}));
    let disk = &disks[0];
    assert_eq!(disk["device"], "d");
    assert_eq!(disk["qdev"], "vd");
    assert_eq!(disk["io-status"], "ok");
    let inserted = &disk["inserted"];
    for (member, value) in [
        ("file", json!(name)),
        ("drv", json!("raw")),
        ("ro", json!(false)),
        ("backing_file_depth", json!(0)),
        ("encrypted", json!(false)),
        ("bps", json!(0)),
        ("active", json!(true)),
    ] {
        assert_eq!(inserted[member], value, "{member}");
    }
    assert_eq!(inserted["image"]["virtual-size"], DISK_BYTES);
    let nodes = vm.ask("query-named-block-nodes", json!({}));
    assert_eq!(nodes[0]["drv"], "raw");
    assert_eq!(nodes[1]["drv"], "file");
    let counts = vm.ask("query-blockstats", json!({}))[0]["stats"].clone();
    let count = |member: &str| counts[member].as_u64().unwrap();
    assert!(count("wr_operations") >= 8 && count("rd_operations") >= 7);
    assert_eq!(count("wr_bytes"), 4096 * count("wr_operations"));
    assert!(count("flush_operations") >= 1 && count("wr_total_time_ns") > 0);

    vm.ask("block_resize", json!({"device": "d", "size": 2 * DISK_BYTES}));
    assert_eq!(image.metadata().unwrap().len(), 2 * DISK_BYTES);
    let disks = vm.ask("query-block", json!({}));
    assert_eq!(disks[0]["inserted"]["image"]["virtual-size"], 2 * DISK_BYTES);
    let refused = vm.try_ask("block_resize", json!({"device": "e", "size": 512})).unwrap_err();
    assert_eq!(refused, "Cannot find device='e' nor node-name=''");
    // What is not there any more is an error.
    vm.ask("stop", json!({}));
    vm.ask("block_resize", json!({"device": "d", "size": 0}));
    vm.ask("cont", json!({}));
    vm.wait_for_serial(|said| said.contains("e!"));
}

#[test]
fn limits_slow_a_disk_down_until_they_are_lifted() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image");
    image(&path);
    // One turn of the guest is two requests.
    let drive = format!("file={},iops=4,iops_max=40", path.display());
    let begun = Instant::now();
    let mut vm = launch(folder.path(), "vm", &drive, "", true).start();
    let operations = |vm: &mut Vm| {
        let stats = &vm.ask("query-blockstats", json!({}))[0]["stats"];
        stats["wr_operations"].as_u64().unwrap() + stats["rd_operations"].as_u64().unwrap()
    };
    let end = Instant::now() + Duration::from_secs(60);
    while operations(&mut vm) < 40 {
        assert!(Instant::now() < end);
    }
    // What the bucket holds, and what has leaked out of it: a bound whatever the host is busy with.
    std::thread::sleep(Duration::from_secs(1));
    let done = operations(&mut vm);
    let allowed = 42 + (4.0 * begun.elapsed().as_secs_f64()) as u64;
    assert!(done <= allowed, "{done} of {allowed}");
    let shown = vm.ask("query-block", json!({}))[0]["inserted"].clone();
    assert_eq!((&shown["iops"], &shown["iops_max"]), (&json!(4), &json!(40)));
    let none = json!({"id": "vd", "bps": 0, "bps_rd": 0, "bps_wr": 0, "iops": 0, "iops_rd": 0, "iops_wr": 0});
    vm.ask("block_set_io_throttle", none);
    vm.wait_for_points(5);
    let both = json!({"device": "d", "bps": 1, "bps_rd": 1, "bps_wr": 0, "iops": 0, "iops_rd": 0, "iops_wr": 0});
    let refused = vm.try_ask("block_set_io_throttle", both).unwrap_err();
    assert!(refused.contains("cannot be used at the same time"), "{refused}");
}

#[test]
fn images_come_and_go_in_qemus_words() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image");
    image(&path);
    let other = folder.path().join("other");
    image(&other);
    let (name, absent) = (other.to_str().unwrap(), folder.path().join("absent"));
    let drive = format!("file={}", path.display());
    let mut vm = launch(folder.path(), "vm", &drive, "", true).start();
    let mut ask = |command: &str, arguments| vm.try_ask(command, arguments).map(|_| ());
    let refused = |text: &str| Err(text.to_owned());
    let file = |node: &str, more: serde_json::Value| {
        let mut all = json!({"driver": "file", "node-name": node, "filename": name});
        all.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        all
    };
    assert_eq!(ask("blockdev-add", file("b0", json!({}))), Ok(()));
    let raw = json!({"driver": "raw", "node-name": "r0", "file": "b0"});
    assert_eq!(ask("blockdev-add", raw.clone()), Ok(()));
    assert_eq!(ask("blockdev-add", raw), refused("Duplicate nodes with node-name='r0'"));
    let text = format!("Could not open '{}': No such file or directory", absent.display());
    assert_eq!(ask("blockdev-add", file("x0", json!({"filename": absent}))), Err(text));
    for (arguments, text) in [
        (json!({"driver": "file", "node-name": "x0"}), "Parameter 'filename' is missing"),
        (
            json!({"driver": "nope", "node-name": "x0"}),
            "Parameter 'driver' does not accept value 'nope'",
        ),
        (file("bad name", json!({})), "Invalid node-name: 'bad name'"),
        (file("x0", json!({"x": 1})), "Parameter 'x' is unexpected"),
        (
            json!({"driver": "file", "filename": name}),
            "'node-name' must be specified for the root node",
        ),
    ] {
        assert_eq!(ask("blockdev-add", arguments), refused(text));
    }
    let node = |node: &str| json!({"node-name": node});
    assert_eq!(ask("blockdev-del", node("b0")), refused("Block device b0 is in use"));
    assert_eq!(ask("block_resize", json!({"node-name": "r0", "size": 4096})), Ok(()));
    // Somebody else's, as far as locks tell.
    assert_eq!(ask("blockdev-add", file("used", json!({"filename": path}))), Ok(()));
    let refusal = ask("block_resize", json!({"node-name": "used", "size": 4096})).unwrap_err();
    assert!(refusal.starts_with("Failed to get \"write\" lock"), "{refusal}");
    assert_eq!(ask("blockdev-del", node("used")), Ok(()));
    assert_eq!(ask("blockdev-del", node("r0")), Ok(()));
    assert_eq!(ask("blockdev-del", node("b0")), Ok(()));
    assert_eq!(ask("blockdev-del", node("b0")), refused("Failed to find node with node-name='b0'"));
    vm.wait_for_points(1);
}

#[test]
fn a_disk_names_an_io_thread_which_stays_as_long() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image");
    image(&path);
    let drive = format!("file={}", path.display());
    let threads = ["-object", "iothread,id=io0,poll-max-ns=0", "-object", "iothread,id=io1"];
    let disk = |device| launch(folder.path(), "vm", &drive, device, true).words(&threads);
    let mut vm = disk(",iothread=io0").start();
    vm.wait_for_points(1);
    let told = vm.ask("query-iothreads", json!({}));
    let told: Vec<_> =
        told.as_array().unwrap().iter().map(|t| (&t["id"], &t["poll-max-ns"])).collect();
    assert_eq!(told, [(&json!("io0"), &json!(0)), (&json!("io1"), &json!(32768))]);
    let refused = vm.try_ask("object-del", json!({"id": "io0"})).unwrap_err();
    assert!(refused.contains("object 'io0' is in use, can not be deleted"), "{refused}");
    vm.ask("object-del", json!({"id": "io1"}));
    let mut unknown = disk(",iothread=io9").spawn();
    assert_eq!(unknown.exit_code(), Some(1));
    assert!(unknown.stderr().contains("iothread=io9"), "{}", unknown.stderr());
}
