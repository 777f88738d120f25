//! The built-in guest moves between Godwit and QEMU, in both directions.

use crate::common::vm::{Launch, Vm};
use serde_json::{Value, json};
use std::path::Path;

const GUEST: &str = "ws=8 pattern=hot";

/// Capabilities and parameters of both sides.
fn ways() -> Vec<(&'static [&'static str], Value)> {
    let packets = |compression| json!({"multifd-channels": 3, "multifd-compression": compression});
    vec![
        (&[], json!({})),
        (&["xbzrle"], json!({"max-bandwidth": 40 << 20, "xbzrle-cache-size": 16 << 20})),
        (&["multifd"], packets("none")),
        (&["multifd"], packets("zlib")),
        (&["multifd"], packets("zstd")),
        (&["multifd"], json!({"multifd-channels": 2, "zero-page-detection": "legacy"})),
        (&["return-path", "switchover-ack"], json!({})),
    ]
}

/// Pages that show QEMU's firmware in place of RAM, to its guest and to its monitor.
pub(super) const FIRMWARE: std::ops::Range<usize> = 0xf0..0x100;

/// All RAM as the monitor saves it.
pub(super) fn ram(dir: &Path, vm: &mut Vm) -> Vec<u8> {
    let file = dir.join(format!("{}.ram", vm.name));
    vm.ask("pmemsave", json!({"val": 0, "size": 64 << 20, "filename": file}));
    std::fs::read(file).unwrap()
}

/// The stopped guest is the same on both sides, and goes on at the target.
pub(super) fn assert_goes_on(dir: &Path, mut source: Vm, mut target: Vm, what: &str) {
    let (theirs, ours) = (ram(dir, &mut source), ram(dir, &mut target));
    let differs = |page: &usize| theirs[page * 4096..][..4096] != ours[page * 4096..][..4096];
    let pages: Vec<_> =
        (0..theirs.len() / 4096).filter(|page| !FIRMWARE.contains(page)).filter(differs).collect();
    assert!(pages.is_empty(), "{what}: RAM differs in pages {pages:x?}");
    let last = source.sweeps().last().copied().unwrap_or(0);
    target.ask("cont", json!({}));
    target.wait_for_sweeps(2);
    assert!(target.sweeps().iter().all(|sweep| *sweep >= last), "{what}");
}

/// Moves the guest to a target that holds it at first, compares their RAM, and lets it go on.
/// `under_way` is what is set at the source while it migrates, some time between each.
fn moves(
    source_is_qemu: bool,
    guest: &str,
    capabilities: &[&str],
    parameters: &Value,
    under_way: &[Value],
) {
    let dir = tempfile::tempdir().unwrap();
    let launch = |name: &str, qemu: bool| {
        let launch = Launch::new(dir.path(), name).guest(guest);
        if qemu { launch.qemu() } else { launch }
    };
    let mut source = launch("source", source_is_qemu).start();
    source.wait_for_sweeps(1);
    let mut target = launch("target", !source_is_qemu).words(&["-S"]).incoming("defer").start();
    for vm in [&mut source, &mut target] {
        vm.set(capabilities, parameters);
    }
    let uri = format!("unix:{}", dir.path().join("migration").display());
    target.ask("migrate-incoming", json!({"uri": uri}));
    source.ask("migrate", json!({"uri": uri}));
    let transferred = |report: &Value| report["ram"]["transferred"].as_u64().unwrap_or(0);
    let mut sent = 0;
    for change in under_way {
        let report = source.wait_for("half a MiB more", |report| {
            transferred(report) > sent + (512 << 10) || report["status"] == "completed"
        });
        sent = transferred(&report);
        assert_eq!(report["status"], "active", "before {change}: {report} {}", target.stderr());
        source.ask("migrate-set-parameters", change.clone());
    }
    let report = source.outcome();
    let what = format!(
        "{capabilities:?} {parameters} {}",
        if source_is_qemu { "from QEMU" } else { "to QEMU" }
    );
    assert_eq!(report["status"], "completed", "{what}: {report} {}", target.stderr());
    target.wait_for_state(|state| state != "inmigrate");
    assert_goes_on(dir.path(), source, target, &what);
}

#[test]
#[ignore = "needs QEMU"]
fn the_guest_moves_to_qemu_every_way() {
    ways()
        .iter()
        .for_each(|(capabilities, parameters)| moves(false, GUEST, capabilities, parameters, &[]));
}

#[test]
#[ignore = "needs QEMU"]
fn the_guest_comes_from_qemu_every_way() {
    ways()
        .iter()
        .for_each(|(capabilities, parameters)| moves(true, GUEST, capabilities, parameters, &[]));
}

#[test]
#[ignore = "needs QEMU"]
fn qemu_reads_on_when_the_level_of_compression_is_changed_under_way() {
    for compression in ["zlib", "zstd"] {
        let level = format!("multifd-{compression}-level");
        let parameters = json!({
            "multifd-channels": 2, "multifd-compression": compression, "max-bandwidth": 2 << 20, level.as_str(): 1
        });
        let levels = [9, 1, 0, 7].map(|value| json!({level.as_str(): value}));
        let under_way = [&levels[..], &[json!({"max-bandwidth": 0})]].concat();
        moves(false, "ws=8 fill=random rate=4000", &["multifd"], &parameters, &under_way);
    }
}

/// A guest that takes some seconds to move at `SLOW` bytes a second, at the point where a first
/// part has gone.
fn half_way(dir: &Path, source_is_qemu: bool) -> (Vm, Vm) {
    let launch = |name: &str, qemu: bool| {
        let launch = Launch::new(dir, name).guest("ws=8 fill=random rate=4000");
        if qemu { launch.qemu() } else { launch }
    };
    let mut source = launch("source", source_is_qemu).start();
    source.wait_for_sweeps(1);
    let mut target = launch("target", !source_is_qemu).incoming("defer").start();
    let uri = format!("unix:{}", dir.join("migration").display());
    target.ask("migrate-incoming", json!({"uri": uri}));
    source.ask("migrate-set-parameters", json!({"max-bandwidth": 2 << 20}));
    source.ask("migrate", json!({"uri": uri}));
    source.wait_for("its first bytes", |report| {
        report["ram"]["transferred"].as_u64() > Some(1 << 20)
    });
    (source, target)
}

#[test]
#[ignore = "needs QEMU"]
fn a_qemu_killed_half_way_leaves_the_guest_here_and_it_can_leave_again() {
    let dir = tempfile::tempdir().unwrap();
    let (mut source, mut target) = half_way(dir.path(), false);
    target.kill();
    let report = source.outcome();
    assert_eq!(report["status"], "failed", "{report}");
    assert!(report["error-desc"].as_str().is_some_and(|why| !why.is_empty()), "{report}");
    source.assert_alive();
    let uri = format!("unix:{}", dir.path().join("again").display());
    let mut target = Launch::new(dir.path(), "second")
        .guest("ws=8 fill=random rate=4000")
        .qemu()
        .incoming(&uri)
        .start();
    source.ask("migrate-set-parameters", json!({"max-bandwidth": 0}));
    source.ask("migrate", json!({"uri": uri}));
    assert_eq!(source.outcome()["status"], "completed");
    target.assert_alive();
}

#[test]
#[ignore = "needs QEMU"]
fn a_qemu_killed_half_way_leaves_no_guest_here() {
    let dir = tempfile::tempdir().unwrap();
    let (mut source, mut target) = half_way(dir.path(), true);
    source.kill();
    assert_eq!(target.exit_code(), Some(1), "{}", target.stderr());
    let words = target.stderr();
    assert!(
        words.contains("closed the connection") || words.contains("Connection reset"),
        "{words}"
    );
}

#[test]
#[ignore = "needs QEMU"]
fn a_cancel_at_either_side_of_a_qemu_leaves_the_guest_at_the_source() {
    for source_is_qemu in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let (mut source, mut target) = half_way(dir.path(), source_is_qemu);
        source.ask("migrate_cancel", json!({}));
        let report = source.outcome();
        assert_eq!(report["status"], "cancelled", "{source_is_qemu}: {report}");
        source.assert_alive();
        assert_eq!(target.exit_code(), Some(1), "{source_is_qemu}: {}", target.stderr());
    }
}
