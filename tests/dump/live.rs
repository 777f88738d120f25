//! Dumps of a guest that runs on: the image is RAM as it was when the guest was stopped for a
//! moment, whatever the guest and this process write afterwards; and nothing holds the guest once
//! the dump has ended, however it ended.

use crate::common::PATIENCE;
use crate::common::machines;
use crate::common::process::Godwit;
use crate::common::qmp::Client;
use godwit::dump::read::{Core, Kdump, flat_to_raw};
use godwit::memory::{GuestRam, POOL_BYTES, Snapshot};
use serde_json::json;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

const SET: usize = godwit::builtin::SET_ADDRESS as usize;
const PAGE: usize = 4096;

fn all(ram: &GuestRam) -> Vec<u8> {
    let mut bytes = vec![0; ram.bytes() as usize];
    ram.read(0, &mut bytes).unwrap();
    bytes
}

/// Everything that the image has, read in chunks as a dump would, the urgent ones first.
fn image(snapshot: &Snapshot, bytes: usize) -> Vec<u8> {
    const CHUNK: usize = 1 << 20;
    let mut image = vec![0; bytes];
    let mut left: Vec<bool> = vec![true; bytes / PAGE];
    let mut read = |from: usize, to: usize| {
        for page in (from / PAGE..to / PAGE).filter(|page| std::mem::take(&mut left[*page])) {
            let at = page * PAGE;
            snapshot.read(at as u64, &mut image[at..at + PAGE]).unwrap();
            snapshot.release(at as u64..(at + PAGE) as u64);
        }
    };
    for start in (0..bytes).step_by(CHUNK) {
        while let Some(urgent) = snapshot.urgent() {
            read(urgent.start as usize, urgent.end as usize);
        }
        read(start, (start + CHUNK).min(bytes));
    }
    image
}

fn differing(image: &[u8], reference: &[u8]) -> Vec<usize> {
    let pages = image.chunks(PAGE).zip(reference.chunks(PAGE)).enumerate();
    pages.filter(|(_, (image, reference))| image != reference).map(|(page, _)| page).collect()
}

/// How many pages of RAM are write-protected: bit 57 of the page map
/// (Documentation/admin-guide/mm/pagemap.rst).
fn protected(ram: &GuestRam) -> usize {
    let mut entries = vec![0; ram.bytes() as usize / PAGE * 8];
    let map = File::open("/proc/self/pagemap").unwrap();
    map.read_exact_at(&mut entries, ram.main().host() as u64 / PAGE as u64 * 8).unwrap();
    entries.chunks(8).filter(|entry| entry[7] & 2 != 0).count()
}

#[test]
fn the_image_is_ram_at_the_moment_it_was_fixed() {
    // The last working set is larger than the pool: vCPUs wait for the reader.
    let large = POOL_BYTES / (1 << 20) + 12;
    for (cpus, set, dirt) in
        [(1, 16, "bytes=8"), (2, 4, "bytes=512 pattern=random"), (2, large, "bytes=64")]
    {
        let words = format!(
            "-accel kvm -M microvm,acpi=off -m 64 -smp {cpus} -nodefaults -display none -serial file:/dev/null \
             -kernel builtin -append ws={set}~{}",
            dirt.replace(' ', "~")
        );
        let (machine, output) = machines::build(&words);
        machine.cont().unwrap();
        let sweeps = || output.text().lines().filter(|line| line.contains("sweep")).count();
        let wait_for_sweeps = |count: usize| {
            let end = Instant::now() + Duration::from_secs(60);
            while sweeps() < count {
                assert!(Instant::now() < end, "{} sweeps: {}", sweeps(), output.text());
                std::thread::sleep(Duration::from_millis(5));
            }
        };
        wait_for_sweeps(1);
        let ram = machine.ram().clone();
        let snapshot = Snapshot::prepare(&ram).unwrap();
        machine.stop(godwit::machine::RunState::Paused).unwrap();
        let reference = all(&ram);
        snapshot.fix().unwrap();
        machine.cont().unwrap();
        if set < large {
            wait_for_sweeps(sweeps() + 3);
        } else {
            let end = Instant::now() + Duration::from_secs(60);
            while snapshot.urgent().is_none() && Instant::now() < end {
                std::thread::sleep(Duration::from_millis(5));
            }
            while all(&ram) == reference {
                assert!(Instant::now() < end, "the guest writes nothing");
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        assert!(protected(&ram) > 0);
        let image = image(&snapshot, reference.len());
        let wrong = differing(&image, &reference);
        assert!(wrong.is_empty(), "{cpus} vCPUs, {set} MiB: pages {wrong:x?}");
        drop(snapshot);
        wait_for_sweeps(sweeps() + 2);
        assert!(!output.text().contains("CORRUPT"), "{}", output.text());
        machine.quit();
    }
}

#[test]
fn what_this_process_writes_is_kept_first() {
    let words = "-accel kvm -M microvm,acpi=off -m 32 -nodefaults -display none -serial file:/dev/null -kernel builtin \
                 -append ws=2";
    let (machine, output) = machines::build(words);
    let ram = machine.ram().clone();
    machine.cont().unwrap();
    while !output.text().contains("sweep") {
        std::thread::sleep(Duration::from_millis(5));
    }
    ram.write(0x10_0000, &[0x5a; 8 * PAGE]).unwrap();
    let snapshot = Snapshot::prepare(&ram).unwrap();
    machine.stop(godwit::machine::RunState::Paused).unwrap();
    let reference = all(&ram);
    snapshot.fix().unwrap();
    // The kernel is loaded again over what was there; a write over three pages; and one into a
    // hole.
    machine.reset().unwrap();
    ram.write(0x50_0ff0, &[1; PAGE + 32]).unwrap();
    ram.write(0x1c0_0000, b"hole").unwrap();
    assert!(all(&ram) != reference);
    let image = image(&snapshot, reference.len());
    let wrong = differing(&image, &reference);
    assert!(wrong.is_empty(), "pages {wrong:x?}");
    drop(snapshot);
    assert_eq!(protected(&ram), 0);
    // One that was not read to its end.
    let snapshot = Snapshot::prepare(&ram).unwrap();
    snapshot.fix().unwrap();
    assert!(protected(&ram) > 0);
    drop(snapshot);
    assert_eq!(protected(&ram), 0);
    ram.write(0x50_0000, &[2; 3 * PAGE]).unwrap();
}

/// The versions of the working set's pages, which the guest writes in order, one sweep after the
/// other: those before the place where it was are one ahead of the others. A page of another moment
/// stands out.
fn one_moment(ram: &[u8], set_mib: usize) {
    let pages = ram[SET..SET + (set_mib << 20)].chunks(PAGE);
    let stamps: Vec<u64> =
        pages.map(|page| u64::from_le_bytes(page[..8].try_into().unwrap())).collect();
    for (number, stamp) in stamps.iter().enumerate() {
        assert_eq!(*stamp as u32 as usize, number + 0x4000_0000, "page {number}: {stamp:#x}");
    }
    let versions: Vec<u64> = stamps.iter().map(|stamp| stamp >> 32).collect();
    let ahead = versions.partition_point(|version| *version == versions[0]);
    let rest = &versions[ahead..];
    assert!(
        rest.iter().all(|version| *version == versions[0] - 1),
        "{:?} then {rest:?}",
        versions[0]
    );
}

fn serial(guest: &Godwit) -> String {
    std::fs::read_to_string(guest.path("vm.serial")).unwrap_or_default()
}

#[test]
fn a_live_dump_holds_one_moment_of_a_guest_that_runs_on() {
    let guest = Godwit::start(1, 64, "ws=24");
    drop(guest.qmp());
    while !serial(&guest).contains("sweep 2") {
        std::thread::sleep(Duration::from_millis(10));
    }
    for format in ["elf", "kdump-snappy", "kdump-raw-zstd", "elf", "kdump-raw-zlib", "elf"] {
        let file = guest.path("image");
        let made = guest.dump(&file, &["--live", "--json", "--format", format]);
        assert!(made.status.success(), "{format}: {}", String::from_utf8_lossy(&made.stderr));
        let said: serde_json::Value = serde_json::from_slice(&made.stdout).unwrap();
        assert!(said["downtime-us"].as_u64().unwrap() > 0);
        let bytes = std::fs::read(&file).unwrap();
        if format == "elf" {
            let core = Core::parse(&bytes).unwrap();
            one_moment(core.physical(0, 64 << 20).unwrap(), 24);
        } else {
            let raw = if format.contains("raw") { bytes } else { flat_to_raw(&bytes).unwrap() };
            let kdump = Kdump::parse(&raw).unwrap();
            let ram: Vec<u8> =
                (0..kdump.pages().len()).flat_map(|page| kdump.page(page).unwrap()).collect();
            one_moment(&ram, 24);
        }
        assert_eq!(guest.qmp().status(), "running");
    }
    let before = serial(&guest).lines().count();
    let end = Instant::now() + Duration::from_secs(30);
    while serial(&guest).lines().count() < before + 3 && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(10));
    }
    let text = serial(&guest);
    assert!(!text.contains("CORRUPT") && text.lines().count() >= before + 3, "{text}");
}

/// Starts a live dump into a fifo of which nobody reads, with a guest that hits more pages than the
/// pool holds.
fn stalled(guest: &Godwit, qmp: &mut Client) -> File {
    // Pages that are still zeros need no place in the pool.
    while !serial(guest).contains("sweep 2") {
        std::thread::sleep(Duration::from_millis(10));
    }
    let fifo = guest.path("fifo");
    assert!(std::process::Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let path = fifo.clone();
    let reader = std::thread::spawn(move || File::open(path).unwrap());
    let protocol = format!("file:{}", fifo.display());
    let arguments = json!({"paging": false, "protocol": protocol, "detach": true, "x-live": true});
    qmp.ask("dump-guest-memory", arguments);
    let reader = reader.join().unwrap();
    // Until the guest stands: its pages are beyond the pool, and what is read goes nowhere. Each
    // vCPU waits in the kernel for its page then; one look may find it where a page is being kept.
    let cpus = qmp.ask("query-cpus-fast", json!({}));
    let place = |cpu: &serde_json::Value| {
        let task = format!("/proc/{}/task/{}/wchan", guest.pid(), cpu["thread-id"]);
        std::fs::read_to_string(task).unwrap()
    };
    let (mut held, end) = (0, Instant::now() + PATIENCE);
    while held < 10 {
        assert!(Instant::now() < end, "the guest is not held");
        std::thread::sleep(Duration::from_millis(20));
        let all = cpus.as_array().unwrap().iter().all(|cpu| place(cpu) == "handle_userfault");
        held = if all { held + 1 } else { 0 };
    }
    reader
}

fn large_set() -> String {
    format!("ws={}", POOL_BYTES / (1 << 20) + 24)
}

#[test]
fn a_full_pool_holds_vcpus_until_the_reader_goes_on() {
    let guest = Godwit::start(1, 96, &large_set());
    let mut qmp = guest.qmp();
    let mut reader = stalled(&guest, &mut qmp);
    let now = qmp.ask("query-dump", json!({}));
    assert_eq!(now["status"], "active");
    assert_eq!(qmp.status(), "running");
    let mut core = Vec::new();
    reader.read_to_end(&mut core).unwrap();
    let end = qmp.event("DUMP_COMPLETED");
    assert_eq!(end["data"]["result"]["status"], "completed");
    let core = Core::parse(&core).unwrap();
    one_moment(core.physical(0, 96 << 20).unwrap(), POOL_BYTES / (1 << 20) + 24);
    // Now it can be stopped and goes on, and counts.
    qmp.ask("stop", json!({}));
    qmp.ask("cont", json!({}));
    let before = serial(&guest).len();
    let end = Instant::now() + Duration::from_secs(30);
    while serial(&guest).len() == before && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(serial(&guest).len() > before && !serial(&guest).contains("CORRUPT"));
}

#[test]
fn a_reset_beside_a_live_dump_is_not_in_it() {
    let guest = Godwit::start(1, 32, "ws=2");
    let mut qmp = guest.qmp();
    while !serial(&guest).contains("sweep") {
        std::thread::sleep(Duration::from_millis(10));
    }
    let fifo = guest.path("fifo");
    assert!(std::process::Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let path = fifo.clone();
    let reader = std::thread::spawn(move || File::open(path).unwrap());
    let protocol = format!("file:{}", fifo.display());
    let arguments = json!({"paging": false, "protocol": protocol, "detach": true, "x-live": true});
    qmp.ask("dump-guest-memory", arguments);
    let mut reader = reader.join().unwrap();
    qmp.ask("system_reset", json!({}));
    qmp.event("RESET");
    assert_eq!(qmp.ask("query-dump", json!({}))["status"], "active");
    let mut core = Vec::new();
    reader.read_to_end(&mut core).unwrap();
    assert_eq!(qmp.event("DUMP_COMPLETED")["data"]["result"]["status"], "completed");
    one_moment(Core::parse(&core).unwrap().physical(0, 32 << 20).unwrap(), 2);
    qmp.wait_until_running();
}

#[test]
fn a_cancel_and_a_reader_that_leaves_let_held_vcpus_go_on() {
    for cancel in [true, false] {
        let guest = Godwit::start(1, 96, &large_set());
        let mut qmp = guest.qmp();
        let reader = stalled(&guest, &mut qmp);
        let why = if cancel {
            qmp.ask("x-dump-cancel", json!({}));
            "dump: cancelled"
        } else {
            drop(reader);
            "dump: failed to write memory: Broken pipe"
        };
        let end = qmp.event("DUMP_COMPLETED");
        assert_eq!(end["data"]["error"], why);
        let before = serial(&guest).len();
        let end = Instant::now() + Duration::from_secs(30);
        while serial(&guest).len() == before && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(10));
        }
        assert!(serial(&guest).len() > before && !serial(&guest).contains("CORRUPT"));
        assert_eq!(qmp.status(), "running");
    }
}

#[test]
fn the_process_ends_although_vcpus_are_held() {
    let mut guest = Godwit::start(2, 96, &large_set());
    let mut qmp = guest.qmp();
    let _reader = stalled(&guest, &mut qmp);
    qmp.ask("quit", json!({}));
    let end = Instant::now() + Duration::from_secs(20);
    while guest.child.try_wait().unwrap().is_none() {
        assert!(Instant::now() < end, "the process does not end");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_live_dump_that_fails_says_why_and_leaves_nothing() {
    let guest = Godwit::start(1, 32, "ws=4");
    let mut qmp = guest.qmp();
    let ask = |qmp: &mut Client, protocol: &str| {
        let arguments = json!({"paging": false, "protocol": protocol, "x-live": true});
        qmp.try_ask("dump-guest-memory", arguments).unwrap_err()
    };
    assert_eq!(
        ask(&mut qmp, "file:/dev/full"),
        "dump: failed to write elf header: No space left on device"
    );
    assert_eq!(ask(&mut qmp, "file:/no/x"), "Could not create '/no/x': No such file or directory");
    assert_eq!(ask(&mut qmp, "fd:gone"), "File descriptor named 'gone' has not been found");
    let arguments = json!({"paging": false, "protocol": "file:/dev/null", "x-live": true, "begin": 1u64 << 40, "length": 1});
    let outside = qmp.try_ask("dump-guest-memory", arguments).unwrap_err();
    assert_eq!(outside, "dump: no guest memory to dump");
    assert_eq!(qmp.status(), "running");
    drop(qmp);
    let before = std::fs::read_dir(guest.folder()).unwrap().count();
    let missing = guest.dump(&guest.path("no/where"), &["--live"]);
    assert!(
        String::from_utf8_lossy(&missing.stderr).contains("No such file or directory"),
        "{missing:?}"
    );
    assert_eq!(std::fs::read_dir(guest.folder()).unwrap().count(), before);
    let whole =
        guest.dump(&guest.path("core"), &["--live", "--begin", "0x400800", "--length", "0x2000"]);
    assert!(whole.status.success(), "{}", String::from_utf8_lossy(&whole.stderr));
    let paging = guest.dump(&guest.path("paging"), &["--live", "--paging"]);
    assert!(paging.status.success(), "{}", String::from_utf8_lossy(&paging.stderr));
    assert!(!serial(&guest).contains("CORRUPT"));
}

/// In a mount namespace of its own, with a disk of 3 MiB and one that cannot be written.
#[test]
fn a_full_disk_and_a_read_only_one_leave_the_guest_running_and_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let script = r#"
        set -u; cd "$1"; mkdir small readonly
        mount -t tmpfs -o size=3m small small; mount -t tmpfs -o ro readonly readonly
        "$2" run -M microvm,acpi=off -nodefaults -display none -m 16 -kernel builtin -append 'ws=6 fill=random' \
            -serial file:serial -qmp unix:q,server=on,wait=off &
        until grep -q 'sweep 2' serial 2>/dev/null; do sleep 0.05; done
        for how in '' --live; do for disk in small readonly; do for format in elf kdump-snappy; do
            "$2" dump --qmp unix:q $disk/core --format $format $how 2>&1 && echo "$disk $format $how: a dump was made"
            ls -A $disk
        done; done; done
        "$2" qmp --qmp unix:q query-status; "$2" qmp --qmp unix:q quit > /dev/null; wait
    "#;
    let program = env!("CARGO_BIN_EXE_godwit");
    let run = std::process::Command::new("unshare")
        .args(["-m", "sh", "-c", script, "sh", folder.path().to_str().unwrap(), program])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&run.stdout);
    let lines: Vec<&str> = said.lines().filter(|line| line.starts_with("godwit: ")).collect();
    assert_eq!(lines.len(), 8, "{said}\n{}", String::from_utf8_lossy(&run.stderr));
    for (line, reason) in lines
        .iter()
        .zip(["No space left", "No space left", "Read-only", "Read-only"].iter().cycle())
    {
        assert!(line.contains(reason), "{said}");
    }
    assert!(
        said.contains("\"running\"") && !said.contains("core\n") && !said.contains(".part\n"),
        "{said}"
    );
}

#[test]
fn memory_that_cannot_be_protected_is_refused_by_name() {
    let words = "-accel kvm -M microvm,acpi=off,memory-backend=r -m 32 -nodefaults -display none -kernel builtin -S";
    let folder = tempfile::tempdir_in("/var/tmp").unwrap();
    let path = folder.path().join("ram");
    let object = format!(
        "{words} -object memory-backend-file,id=r,size=32M,share=on,mem-path={}",
        path.display()
    );
    let (machine, _) = machines::build(&object);
    let refused = Snapshot::prepare(machine.ram()).map(drop).unwrap_err().to_string();
    assert!(refused.contains("guest RAM of this backend cannot be write-protected"), "{refused}");
    let (machine, _) =
        machines::build(&format!("{words} -object memory-backend-ram,id=r,size=32M"));
    Snapshot::prepare(machine.ram()).unwrap().fix().unwrap();
}
