//! What people type is answered by QEMU and by Godwit in the same words.

use serde_json::json;

use crate::common::vm::{Launch, Vm};

/// Lines to which both say the same, in this order: some change what those behind them show.
const LINES: &[&str] = &[
    "frobnicate",
    "info frobnicate",
    "help stop",
    "help info status",
    "help frobnicate",
    "info status",
    "stop now",
    "stop",
    "info status",
    "c",
    "info name",
    "info uuid",
    "info kvm",
    "info block-jobs",
    "info block",
    "info network",
    "info mice",
    "info iothreads",
    "info memory_size_summary",
    "info dump",
    "info dirty_rate",
    "info vcpu_dirty_limit",
    "info balloon",
    "info migrate_capabilities",
    "migrate",
    "migrate -x tcp:h:1",
    "migrate nothing",
    "migrate_set_parameter",
    "migrate_set_parameter nothing 1",
    "migrate_set_parameter max-bandwidth 10",
    "migrate_set_parameter max-bandwidth -1",
    "migrate_set_parameter max-bandwidth much",
    "migrate_set_parameter block-bitmap-mapping x",
    "migrate_set_parameter downtime-limit 1000000000",
    "migrate_set_capability xbzrle",
    "migrate_set_capability nothing on",
    "migrate_set_capability xbzrle maybe",
    "balloon",
    "balloon x",
    "balloon 10",
    "device_add nothing",
    "device_del nothing",
    "netdev_del nothing",
    "object_add rng-builtin,id=a",
    "object_del a",
    "object_del a",
    "chardev-add null,id=z",
    "chardev-change z null,id=y",
    "chardev-remove z",
    "chardev-remove z",
    "set_link x on",
    "set_link x",
    "memsave 0 10",
    "pmemsave 0 1k x",
    "dump-guest-memory",
    "dump-guest-memory -z -l x",
    "closefd x",
    "getfd x",
    "system_wakeup",
    "announce_self",
];

fn says(vm: &mut Vm, line: &str) -> String {
    let said = vm.ask("human-monitor-command", json!({"command-line": line}));
    said.as_str().unwrap().to_owned()
}

#[test]
#[ignore = "needs QEMU"]
fn a_line_is_answered_as_by_qemu() {
    let mut qemu = Launch::alone().qemu().start();
    let mut godwit = Launch::alone().start();
    let mut differ = Vec::new();
    for line in LINES {
        let (theirs, ours) = (says(&mut qemu, line), says(&mut godwit, line));
        if theirs != ours {
            differ.push(format!("{line}\n  QEMU:   {theirs:?}\n  Godwit: {ours:?}"));
        }
    }
    assert!(differ.is_empty(), "{}", differ.join("\n"));
}
