//! Reading makes no memory: what a guest never touched stays a hole for everybody who reads its RAM
//! or writes it, on every backing.

use crate::common::vm::{Launch, Vm};
use serde_json::json;
use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

const RAM_MIB: u32 = 256;
/// What a command needs for itself: buffers, threads, page tables.
const WORK_BYTES: u64 = 48 << 20;
/// KVM looks each page of virtual memory up by itself, which takes its time; nothing else is needed.
const MEMSAVE_BYTES: u64 = 16 << 20;

/// A guest that touches 2 MiB of its RAM, which is `backing`'s.
fn launch(dir: &Path, name: &str, backing: &str) -> Launch {
    let backing = backing.replace("NAME", name).replace("DIR", &dir.display().to_string());
    let object = format!("memory-backend-{backing},id=microvm.ram,size={RAM_MIB}M");
    let words = ["-object", &object, "-M", "microvm,acpi=off,memory-backend=microvm.ram"];
    Launch::new(dir, name).memory(RAM_MIB).guest("ws=2 rate=4000").words(&words)
}

/// Bytes of memory that a machine has, whether mapped or only in a file of its RAM.
fn memory(vm: &Vm) -> u64 {
    let process = format!("/proc/{}", vm.pid());
    let status = std::fs::read_to_string(format!("{process}/status")).unwrap();
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.trim_end_matches(" kB").trim().parse::<u64>().unwrap() << 10
    };
    let mut files = BTreeMap::new();
    for entry in std::fs::read_dir(format!("{process}/fd")).unwrap().flatten() {
        if let (Ok(meta), Ok(name)) = (entry.path().metadata(), entry.path().read_link()) {
            let name = name.to_string_lossy().into_owned();
            if name.starts_with("/memfd:") || name.ends_with(".ram") {
                files.insert(meta.ino(), meta.blocks() * 512);
            }
        }
    }
    let in_files = files.values().sum::<u64>();
    // Pages of a file that are mapped are counted as the process's, too: the larger one holds.
    field("RssAnon:") + (field("RssShmem:") + field("RssFile:")).max(in_files)
}

fn backings(disk: &Path, tmpfs: &Path) -> Vec<String> {
    let mut all: Vec<String> =
        ["ram", "ram,share=on", "memfd,share=on", "memfd,share=off"].map(String::from).into();
    for dir in [disk, tmpfs] {
        for share in ["on", "off"] {
            all.push(format!("file,share={share},mem-path={}/NAME.ram", dir.display()));
        }
    }
    let free = std::fs::read_to_string("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages");
    let free = free.ok().and_then(|free| free.trim().parse::<u32>().ok()).unwrap_or(0);
    if free >= RAM_MIB {
        all.push("memfd,share=on,hugetlb=on".into());
    }
    all
}

#[test]
fn what_was_never_touched_stays_a_hole_for_every_reader_and_writer() {
    let shm = tempfile::tempdir_in("/dev/shm").unwrap();
    let disk = tempfile::tempdir().unwrap();
    let mut table = Vec::new();
    for backing in backings(disk.path(), shm.path()) {
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        let path = |name: &str| dir.path().join(name).display().to_string();
        let mut vm = launch(dir.path(), "source", &backing).start();
        vm.wait_for_sweeps(1);
        let mut grows = |what: &str, vm: &Vm, before: u64, at_most: u64| {
            let after = memory(vm);
            table.push(format!("{backing:60} {what:16} {:>4} {:>4}", before >> 20, after >> 20));
            let grown = after.saturating_sub(before);
            assert!(grown < at_most, "{grown} more\n{}", table.join("\n"));
        };
        let whole = json!(u64::from(RAM_MIB) << 20);
        let dump = |format: &str, live: bool| {
            let protocol = format!("file:{}", path("dump"));
            json!({"paging": false, "protocol": protocol, "format": format, "x-live": live})
        };
        let saved = path("saved");
        let commands = [
            ("pmemsave", "pmemsave", json!({"val": 0, "size": whole, "filename": saved})),
            ("memsave", "memsave", json!({"val": 0, "size": MEMSAVE_BYTES, "filename": saved})),
            ("dump", "dump-guest-memory", dump("elf", false)),
            ("kdump", "dump-guest-memory", dump("kdump-zlib", false)),
            ("raw kdump", "dump-guest-memory", dump("kdump-raw-snappy", false)),
            ("live dump", "dump-guest-memory", dump("elf", true)),
        ];
        for (what, command, arguments) in commands {
            let before = memory(&vm);
            match vm.try_ask(command, arguments) {
                // Not every backing can be write-protected.
                Err(error) if what == "live dump" => {
                    assert!(error.contains("write-protected"), "{backing}: {error}");
                    continue;
                }
                done => drop(done.unwrap()),
            }
            let at_most = if what == "memsave" { MEMSAVE_BYTES / 2 } else { WORK_BYTES };
            grows(what, &vm, before, at_most);
        }
        let before = memory(&vm);
        vm.set(&["xbzrle"], &json!({"max-bandwidth": 0, "xbzrle-cache-size": 4 << 20}));
        vm.ask("migrate", json!({"uri": format!("file:{}", path("stream"))}));
        assert_eq!(vm.outcome()["status"], "completed");
        grows("migrate to file", &vm, before, WORK_BYTES);
        vm.ask("cont", json!({}));
        for (framing, verify) in [("auto", true), ("qemu", false)] {
            let uri = format!("unix:{}", path("socket"));
            let mut target =
                launch(dir.path(), &format!("target-{framing}"), &backing).incoming(&uri).start();
            let (before, target_before) = (memory(&vm), memory(&target));
            vm.set(
                &[],
                &json!({
                    "max-bandwidth": 0, "x-godwit-stream": framing, "x-godwit-verify": verify
                }),
            );
            vm.ask("migrate", json!({"uri": uri}));
            assert_eq!(vm.outcome()["status"], "completed");
            target.assert_alive();
            let hash = if verify { " and hash" } else { "" };
            grows(&format!("migrate{hash}"), &vm, before, WORK_BYTES);
            // What the guest has is there now, in a private file's cache a second time.
            let arrived = target_before + (16 << 20);
            grows(&format!("incoming{hash}"), &target, arrived, WORK_BYTES);
            vm = target;
        }
        // The dump made of a stream, in less memory than the guest has. (What is mapped of a file is
        // none.)
        for (what, to) in [("--core", "core"), ("--ram", "image")] {
            let made = Command::new("prlimit")
                .args([&format!("--data={}", u64::from(RAM_MIB - 32) << 20)])
                .args([env!("CARGO_BIN_EXE_godwit"), "inspect", &path("stream"), what, &path(to)])
                // Each arena of glibc's takes 64 MiB of the limit, used or not.
                .env("MALLOC_ARENA_MAX", "1")
                .output()
                .unwrap();
            assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
            let blocks = std::fs::metadata(path(to)).unwrap().blocks() * 512;
            table.push(format!("{backing:60} inspect {what:8} {:>9}", blocks >> 20));
            assert!(
                blocks < WORK_BYTES,
                "holes of the stream are in the file\n{}",
                table.join("\n")
            );
        }
    }
    println!("{}", table.join("\n"));
}
