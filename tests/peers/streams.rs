//! QEMU's own analyser reads what `migrate` wrote to a file. `tools/install` fetches it.

use crate::common::vm::Launch;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::Command;

/// A stream of the built-in guest on two vCPUs, stopped in the middle of its work.
fn save(folder: &Path) -> PathBuf {
    let mut vm = Launch::new(folder, "vm").memory(32).processors(2).guest("ws=4 fill=text").start();
    vm.wait_for_sweeps(1);
    vm.ask("stop", json!({}));
    let stream = folder.join("stream");
    vm.ask("migrate", json!({"uri": format!("file:{}", stream.display())}));
    assert_eq!(vm.outcome()["status"], "completed");
    stream
}

#[test]
#[ignore = "needs QEMU's analyser"]
fn qemus_analyser_reads_our_file() {
    let analyser = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/peers/analyze-migration.py");
    assert!(analyser.exists(), "run tools/install first");
    let folder = tempfile::tempdir().unwrap();
    let stream = save(folder.path());
    let analyse = |dump: &str| -> Value {
        let run = Command::new("python3")
            .arg(&analyser)
            .args(["-d", dump, "-f"])
            .arg(&stream)
            .output()
            .unwrap();
        assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
        serde_json::from_slice(&run.stdout).expect("the analyser prints JSON")
    };
    // It names each section with the id of the stream.
    let state = analyse("state");
    let sections = state.as_object().unwrap();
    let section = |name: &str, nth: usize| {
        let all = sections.iter().filter(|(key, _)| key.split(" (").next() == Some(name));
        all.map(|(_, value)| value).nth(nth).unwrap_or_else(|| panic!("section {name} {nth}"))
    };
    assert_eq!(section("ram", 0)["section sizes"]["microvm.ram"], "0x0000000002000000");
    for cpu in 0..2 {
        assert_eq!(section("cpu", cpu)["env.mp_state"], "0x00000000", "vCPU {cpu} runs");
        assert_eq!(section("apic", cpu)["id"], format!("0x{cpu:02x}"));
    }
    for name in ["timer", "fw_cfg", "ioapic", "kvmclock", "i8259", "i8254", "serial", "globalstate"]
    {
        assert!(section(name, 0).is_object(), "{name}");
    }
    assert_eq!(analyse("desc")["page_size"], 4096);
}
