//! Files with pages at fixed places (capability `mapped-ram`), written here and read by QEMU, and the
//! other way round.

use serde_json::json;

use super::migration::assert_goes_on;
use crate::common::cli::godwit;
use crate::common::vm::Launch;

const GUEST: &str = "ws=4 pattern=hot fill=random";

/// Saves the guest in a file and loads it from there, compares the RAM, and lets it go on.
fn moves(source_is_qemu: bool, capabilities: &[&str], offset: u64, restore: Option<&str>) {
    let dir = tempfile::tempdir().unwrap();
    let launch = |name: &str, qemu: bool| {
        let launch = Launch::new(dir.path(), name).guest(GUEST);
        if qemu { launch.qemu() } else { launch }
    };
    let what = format!("{capabilities:?}, {source_is_qemu}, {offset}");
    let mut source = launch("source", source_is_qemu).start();
    source.wait_for_sweeps(1);
    // Slow enough that later versions of pages go over earlier ones.
    let parameters =
        json!({"max-bandwidth": 30 << 20, "downtime-limit": 1000, "multifd-channels": 3});
    source.set(capabilities, &parameters);
    let uri = json!({"uri": format!("file:{},offset={offset}", dir.path().join("f").display())});
    source.ask("migrate", uri.clone());
    let report = source.outcome();
    assert_eq!(report["status"], "completed", "{what}: {report}");
    let mut target = launch("target", !source_is_qemu).words(&["-S"]).incoming("defer").start();
    target.set(capabilities, &parameters);
    if let Some(restore) = restore {
        target.ask("migrate-set-parameters", json!({"x-godwit-restore": restore}));
    }
    target.ask("migrate-incoming", uri);
    target.wait_for_state(|state| state != "inmigrate");
    assert_goes_on(dir.path(), source, target, &what);
}

#[test]
#[ignore = "needs QEMU"]
fn qemu_goes_on_with_a_snapshot_of_ours() {
    moves(false, &["mapped-ram"], 0, None);
    moves(false, &["mapped-ram"], 0x12345, None);
    moves(false, &["mapped-ram", "multifd"], 0, None);
}

#[test]
#[ignore = "needs QEMU"]
fn qemu_goes_on_with_what_was_written_in_the_background() {
    let dir = tempfile::tempdir().unwrap();
    let mut source = Launch::new(dir.path(), "source").guest(GUEST).start();
    source.wait_for_sweeps(1);
    for capabilities in [&["background-snapshot", "mapped-ram"][..], &["background-snapshot"]] {
        source.set(capabilities, &json!({}));
        let uri = json!({"uri": format!("file:{}", dir.path().join("f").display())});
        source.ask("migrate", uri.clone());
        let report = source.outcome();
        assert_eq!(report["status"], "completed", "{capabilities:?}: {report}");
        let launch = Launch::new(dir.path(), "target").guest(GUEST).qemu().incoming("defer");
        let mut target = launch.start();
        target.set(&capabilities[1..], &json!({}));
        target.ask("migrate-incoming", uri);
        target.assert_alive();
        source.assert_alive();
    }
}

#[test]
#[ignore = "needs QEMU"]
fn qemu_goes_on_with_a_chain_that_was_merged_and_ours_with_one_on_a_base_of_qemus() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let uri = |name: &str| json!({"uri": format!("file:{}", at(name).display())});
    let launch = |name: &str| Launch::new(dir.path(), name).guest(GUEST);
    let mut qemu = launch("qemu").qemu().start();
    qemu.wait_for_sweeps(1);
    qemu.set(&["mapped-ram"], &json!({"max-bandwidth": 0}));
    qemu.ask("migrate", uri("base"));
    assert_eq!(qemu.outcome()["status"], "completed");
    let mut source = launch("source").incoming(uri("base")["uri"].as_str().unwrap()).start();
    source.wait_for_sweeps(2);
    source.set(&["mapped-ram"], &json!({"max-bandwidth": 0, "x-godwit-base": at("base")}));
    source.ask("migrate", uri("increment"));
    let report = source.outcome();
    assert_eq!(report["status"], "completed", "{report}");
    let words = [at("increment"), at("merged")];
    let words = words.each_ref().map(|path| path.to_str().unwrap());
    let done = godwit(&[&["snapshot", "merge"], &words[..]].concat());
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let mut target = launch("target").qemu().words(&["-S"]).incoming("defer").start();
    target.set(&["mapped-ram"], &json!({}));
    target.ask("migrate-incoming", uri("merged"));
    target.wait_for_state(|state| state != "inmigrate");
    assert_goes_on(dir.path(), source, target, "merged");
}

#[test]
#[ignore = "needs QEMU"]
fn a_snapshot_of_qemus_goes_on_here() {
    moves(true, &["mapped-ram"], 0, None);
    moves(true, &["mapped-ram", "multifd"], 0x12345, None);
    moves(true, &["mapped-ram", "multifd"], 0x12345, Some("mapped"));
}
