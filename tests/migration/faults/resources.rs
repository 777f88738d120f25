//! Memory and disks that are full.

use serde_json::{Value, json};

use super::{GUEST, uri};
use crate::common::small::Small;
use crate::common::vm::{Launch, Vm};

/// Less than the guest has.
const TOO_SMALL: u64 = 3 << 20;

#[test]
fn a_target_whose_memory_is_full_says_so_and_the_guest_stays() {
    for (framing, full_in_mid_round) in
        [("auto", false), ("qemu", false), ("auto", true), ("qemu", true)]
    {
        let dir = tempfile::tempdir().unwrap();
        let small = Small::mount(dir.path(), if full_in_mid_round { 64 << 20 } else { TOO_SMALL });
        // The block has the same name on all sides.
        let launch = |name: &str, backend: &str| {
            let backend = format!("memory-backend-{backend},id=ram,size=64M,share=on");
            let words = ["-object", &backend, "-M", "microvm,acpi=off,memory-backend=ram"];
            Launch::new(dir.path(), name).guest(GUEST).words(&words)
        };
        let full = format!("file,mem-path={}", small.0.join("ram").display());
        let mut target = launch("target", &full).incoming(&uri(dir.path())).start();
        let mut source = launch("source", "memfd").start();
        source.wait_for_sweeps(1);
        let bandwidth = if full_in_mid_round { 4 << 20 } else { 0 };
        source.ask(
            "migrate-set-parameters",
            json!({"x-godwit-stream": framing, "max-bandwidth": bandwidth}),
        );
        source.ask("migrate", json!({"uri": uri(dir.path())}));
        if full_in_mid_round {
            source.wait_for("query-migrate", |report| {
                report["ram"]["transferred"].as_u64() > Some(1 << 20)
            });
            small.fill();
        }
        let what = format!("{framing}, in mid round: {full_in_mid_round}");
        let report = source.outcome();
        assert_eq!(report["status"], "failed", "{what}: {report}");
        source.assert_alive();
        assert_eq!(target.exit_code(), Some(1), "{what}: {}", target.stderr());
        assert!(target.stderr().contains("no memory for the guest"), "{what}: {}", target.stderr());
        drop(target);
        drop(small);
        let mut target = launch("second", "memfd").incoming(&uri(dir.path())).start();
        source.ask("migrate-set-parameters", json!({"max-bandwidth": 0}));
        source.ask("migrate", json!({"uri": uri(dir.path())}));
        assert_eq!(source.outcome()["status"], "completed", "{what}");
        target.assert_alive();
    }
}

/// At the beginning, in mid round, and for the last bytes of the device state.
#[test]
fn a_full_disk_ends_a_migration_to_a_file_and_the_guest_stays() {
    let dir = tempfile::tempdir().unwrap();
    let mut source = Launch::new(dir.path(), "source").guest(GUEST).start();
    source.wait_for_sweeps(1);
    source.ask("migrate-set-parameters", json!({"max-bandwidth": 0}));
    let roomy = dir.path().join("state");
    let whole = |source: &mut Vm| {
        source.ask("migrate", json!({"uri": format!("file:{}", roomy.display())}));
        assert_eq!(source.outcome()["status"], "completed");
        std::fs::metadata(&roomy).unwrap().len()
    };
    for (space, full_in_mid_round) in
        [(Some(TOO_SMALL), false), (Some(64 << 20), true), (None, false)]
    {
        // The last bytes: the guest has touched what it touches long ago, so that the next stream
        // is as long as the one before.
        let running = space.is_some();
        let space = space.unwrap_or_else(|| {
            source.ask("stop", json!({}));
            let bytes = whole(&mut source);
            source.ask("cont", json!({}));
            source.ask("stop", json!({}));
            (bytes - 4096) / 4096 * 4096
        });
        let what = format!("{space} bytes, in mid round: {full_in_mid_round}");
        let small = Small::mount(dir.path(), space);
        let bandwidth = if full_in_mid_round { 4 << 20 } else { 0 };
        source.ask("migrate-set-parameters", json!({"max-bandwidth": bandwidth}));
        source.ask("migrate", json!({"uri": format!("file:{}", small.0.join("state").display())}));
        if full_in_mid_round {
            source.wait_for("query-migrate", |report| {
                report["ram"]["transferred"].as_u64() > Some(1 << 20)
            });
            small.fill();
        }
        let report = source.outcome();
        assert_eq!(report["status"], "failed", "{what}");
        assert!(
            report["error-desc"].as_str().unwrap().contains("No space left"),
            "{what}: {report}"
        );
        if running {
            source.assert_alive();
        } else {
            assert_ne!(source.status(), "running", "{what}");
        }
        drop(small);
        std::fs::remove_dir(dir.path().join("small")).unwrap();
    }
    source.ask("migrate-set-parameters", json!({"max-bandwidth": 0}));
    source.ask("cont", json!({}));
    source.assert_alive();
    whole(&mut source);
    let mut target = Launch::new(dir.path(), "target")
        .guest(GUEST)
        .incoming(&format!("file:{}", roomy.display()))
        .start();
    target.outcome();
    target.ask("cont", json!({}));
    target.assert_alive();
}

/// Address space that a process may still take decides how many threads it can make.
fn leave_room(vm: &Vm, bytes: Option<u64>) {
    use rustix::process::{Pid, Resource, Rlimit, prlimit};
    let status = std::fs::read_to_string(format!("/proc/{}/status", vm.pid())).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmSize:")).unwrap();
    let now = line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10;
    let limit = Rlimit { current: bytes.map(|bytes| now + bytes), maximum: None };
    prlimit(Pid::from_raw(vm.pid() as i32), Resource::As, limit).unwrap();
}

#[test]
fn threads_that_cannot_be_made_fail_the_migration_and_the_guest_stays() {
    let dir = tempfile::tempdir().unwrap();
    let mut source = Launch::new(dir.path(), "source").guest(GUEST).start();
    source.wait_for_sweeps(1);
    source.ask("migrate-set-parameters", json!({"max-bandwidth": 0, "downtime-limit": 10_000}));
    let uri = format!("file:{}", dir.path().join("state").display());
    let mut refused = 0;
    // A thread takes 2 MiB and a guard page.
    for room in [1 << 20, 3 << 20, 5 << 20, 7 << 20, 10 << 20, 64 << 20] {
        // The monitor's own thread for commands that take their time is there from now on.
        let _ = source.try_ask("migrate", json!({"uri": "file:/no/such/folder/f"}));
        leave_room(&source, Some(room));
        match source.try_ask("migrate", json!({"uri": uri})) {
            Ok(_) => {
                let report = source.outcome();
                let error = report["error-desc"].as_str().unwrap_or_default();
                refused += u32::from(error.contains("thread"));
                assert!(report["status"] == "completed" || !error.is_empty(), "{report}");
            }
            Err(error) => {
                assert!(error.contains("thread"), "{error}");
                assert_eq!(source.ask("query-migrate", json!({}))["status"], "failed");
                refused += 1;
            }
        }
        leave_room(&source, None);
        if source.status() == "postmigrate" {
            source.ask("cont", json!({}));
        }
        source.assert_alive();
    }
    assert!(refused > 0, "no thread was missing");
}

/// What fitted when it was asked for, and fits no more when the round is over.
#[test]
fn a_page_cache_that_cannot_grow_in_mid_migration_stays_and_the_report_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let mut target =
        Launch::new(dir.path(), "target").guest(GUEST).incoming(&uri(dir.path())).start();
    let mut source = Launch::new(dir.path(), "source").guest(GUEST).start();
    source.wait_for_sweeps(1);
    let (small, large, other) = (4 << 20, 256 << 20, 8 << 20);
    let slow = json!({"max-bandwidth": 256 << 10, "downtime-limit": 1, "xbzrle-cache-size": small});
    source.set(&["xbzrle"], &slow);
    source.ask("migrate", json!({"uri": uri(dir.path())}));
    // The first round lasts until it is told otherwise.
    source.wait_for("pages", |report| report["ram"]["transferred"].as_u64() > Some(64 << 10));
    source.ask("migrate-set-parameters", json!({"xbzrle-cache-size": large}));
    leave_room(&source, Some(32 << 20));
    source.ask("migrate-set-parameters", json!({"max-bandwidth": 64 << 20}));
    let error = |report: &Value| report["x-godwit"].get("xbzrle-cache-error").cloned();
    let report = source.wait_for("the size kept", |report| error(report).is_some());
    let why = error(&report).unwrap();
    assert!(why.as_str().unwrap().contains(&format!("keeps its size of {small} bytes")), "{why}");
    assert_eq!(report["xbzrle-cache"]["cache-size"], small, "{report}");
    assert_eq!(report["status"], "active");
    // One that is too large already when it is asked for is refused, and the parameter stays.
    let refused = source.try_ask("migrate-set-parameters", json!({"xbzrle-cache-size": 2 * large}));
    assert!(refused.unwrap_err().contains("xbzrle_cache_size"));
    assert_eq!(source.ask("query-migrate-parameters", json!({}))["xbzrle-cache-size"], large);
    leave_room(&source, None);
    source.ask("migrate-set-parameters", json!({"xbzrle-cache-size": other}));
    source.wait_for("the new size", |report| {
        report["xbzrle-cache"]["cache-size"] == other && error(report).is_none()
    });
    source.ask("migrate-set-parameters", json!({"max-bandwidth": 0, "downtime-limit": 10_000}));
    assert_eq!(source.outcome()["status"], "completed");
    target.assert_alive();
}
