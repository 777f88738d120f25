//! The real process dumps the built-in guest, on demand of `godwit dump` and of QMP.

use std::fs::File;
use std::process::Command;

use crate::common::process::Godwit;
use godwit::dump::Format;
use godwit::dump::read::{Core, Kdump, cpus, flat_to_raw};
use serde_json::{Value, json};

#[test]
fn the_stopped_guest_is_in_every_dump() {
    let guest = Godwit::start(2, 32, "ws=2");
    let mut qmp = guest.qmp();
    qmp.ask("stop", json!({}));
    let image = guest.path("image");
    qmp.ask("pmemsave", json!({"val": 0, "size": 32 << 20, "filename": image}));
    drop(qmp);
    let image = std::fs::read(&image).unwrap();
    for format in Format::ALL {
        let file = guest.path(format.name());
        let made = guest.dump(&file, &["--format", format.name(), "--json"]);
        assert!(made.status.success(), "{format}: {}", String::from_utf8_lossy(&made.stderr));
        let said: Value = serde_json::from_slice(&made.stdout).unwrap();
        assert_eq!(said["memory"], 32 << 20);
        let bytes = std::fs::read(&file).unwrap();
        match format {
            Format::Elf => {
                let core = Core::parse(&bytes).unwrap();
                assert!(core.physical(0, image.len() as u64) == Some(&image[..]), "memory");
                let cpus = cpus(&bytes).unwrap();
                assert_eq!(cpus.len(), 2);
                assert!(cpus.iter().all(|cpu| cpu.cs.flags & 0x8000 != 0));
                assert!(cpus[0].cr0 & 1 != 0, "the first has left real mode");
            }
            Format::Kdump { raw, .. } => {
                let raw = if raw { bytes } else { flat_to_raw(&bytes).unwrap() };
                let kdump = Kdump::parse(&raw).unwrap();
                assert_eq!(kdump.pages().len(), image.len() / 4096);
                for (index, page) in image.chunks_exact(4096).enumerate() {
                    assert!(kdump.page(index).unwrap() == page, "{format}: page {index}");
                }
            }
        }
    }
    assert_eq!(guest.qmp().status(), "paused", "a stopped guest stays stopped");
}

#[test]
fn a_running_guest_runs_on_and_its_virtual_memory_can_be_read() {
    let guest = Godwit::start(1, 32, "ws=2");
    drop(guest.qmp());
    let file = guest.path("core");
    let made = guest.dump(&file, &["--paging"]);
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let bytes = std::fs::read(&file).unwrap();
    let core = Core::parse(&bytes).unwrap();
    let cpus = cpus(&bytes).unwrap();
    let shown = core
        .loads
        .iter()
        .any(|load| load.va <= cpus[0].rip && cpus[0].rip - load.va < load.file_bytes);
    assert!(shown, "code at {:#x} is in a segment", cpus[0].rip);
    let part = guest.dump(&guest.path("part"), &["--begin", "0x100800", "--length", "4096"]);
    assert!(part.status.success());
    let bytes = std::fs::read(guest.path("part")).unwrap();
    let core = Core::parse(&bytes).unwrap();
    assert_eq!((core.loads[0].pa, core.loads[0].memory_bytes), (0x10_0800, 4096));
    guest.qmp().wait_until_running();
}

#[test]
fn a_failed_dump_leaves_nothing_and_the_guest_running() {
    let guest = Godwit::start(1, 32, "ws=2");
    let mut qmp = guest.qmp();
    let no_folder = qmp
        .refused("dump-guest-memory", json!({"paging": false, "protocol": "file:/nonexistent/x"}));
    assert_eq!(no_folder["desc"], "Could not create '/nonexistent/x': No such file or directory");
    assert_eq!(qmp.ask("query-dump", json!({}))["status"], "none");
    let full =
        qmp.refused("dump-guest-memory", json!({"paging": false, "protocol": "file:/dev/full"}));
    assert_eq!(full["desc"], "dump: failed to write elf header: No space left on device");
    for name in ["STOP", "DUMP_COMPLETED", "RESUME"] {
        let event = qmp.event(name);
        if name == "DUMP_COMPLETED" {
            assert_eq!(event["data"]["result"]["status"], "failed");
        }
    }
    qmp.wait_until_running();
    // No address wraps around: what lies below zero is nowhere.
    let part = guest.path("part");
    for (begin, length, want) in [
        (-1, 2, "Parameter 'begin' expects a non-negative value"),
        (i64::MIN, i64::MAX, "Parameter 'begin' expects a non-negative value"),
    ] {
        let set = json!({"paging": false, "protocol": format!("file:{}", part.display()),
            "begin": begin, "length": length});
        assert_eq!(qmp.try_ask("dump-guest-memory", set).unwrap_err(), want);
        assert!(!part.exists(), "nothing is made for what is refused");
    }
    // As an unsigned number, which it is, -1 is to the end.
    let to_end = json!({"paging": false, "protocol": format!("file:{}", part.display()),
        "begin": 24 << 20, "length": -1});
    qmp.ask("dump-guest-memory", to_end);
    let bytes = std::fs::read(&part).unwrap();
    let core = Core::parse(&bytes).unwrap();
    assert_eq!((core.loads[0].pa, core.loads[0].memory_bytes), (24 << 20, 8 << 20));
    drop(qmp);
    let before = std::fs::read_dir(guest.folder()).unwrap().count();
    let outside = guest.dump(&guest.path("core"), &["--begin", "0x10000000000", "--length", "1"]);
    assert!(!outside.status.success());
    assert!(String::from_utf8_lossy(&outside.stderr).contains("no guest memory to dump"));
    assert_eq!(std::fs::read_dir(guest.folder()).unwrap().count(), before);
}

#[test]
fn a_detached_dump_can_be_watched_and_cancelled() {
    let guest = Godwit::start(1, 32, "ws=2");
    let mut qmp = guest.qmp();
    // A fifo that is not read: the dump waits in it.
    let fifo = guest.path("fifo");
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let path = fifo.clone();
    let reader = std::thread::spawn(move || File::open(path).unwrap());
    let protocol = format!("file:{}", fifo.display());
    qmp.ask("dump-guest-memory", json!({"paging": false, "protocol": protocol, "detach": true}));
    let mut reader = reader.join().unwrap();
    qmp.event("STOP");
    let now = qmp.ask("query-dump", json!({}));
    assert_eq!((&now["status"], &now["total"]), (&json!("active"), &json!(32 << 20)));
    assert_eq!(qmp.status(), "save-vm");
    for command in ["cont", "stop", "inject-nmi"] {
        let refused = qmp.refused(command, json!({}));
        assert_eq!(refused["desc"], "There is a dump in process, please wait.");
    }
    let second =
        qmp.refused("dump-guest-memory", json!({"paging": false, "protocol": "file:/dev/null"}));
    assert_eq!(second["desc"], "There is a dump in process, please wait.");
    // Put off.
    qmp.ask("system_reset", json!({}));
    assert_eq!(qmp.status(), "save-vm");
    qmp.ask("x-dump-cancel", json!({}));
    std::io::copy(&mut reader, &mut std::io::sink()).unwrap();
    let end = qmp.event("DUMP_COMPLETED");
    assert_eq!(end["data"]["error"], "dump: cancelled");
    qmp.event("RESET");
    qmp.event("RESUME");
    qmp.wait_until_running();
}
