//! QEMU's own analyser reads what `migrate` wrote to a file. Runs with `GODWIT_PEERS=1`;
//! `tools/install` fetches it.

use serde_json::Value;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

struct Godwit(Child);

impl Drop for Godwit {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn godwit(words: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_godwit")).args(words).stdin(Stdio::null()).output().unwrap()
}

fn wait(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < Duration::from_secs(60), "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A stream of the built-in guest on two vCPUs, stopped in the middle of its work.
fn save(folder: &Path) -> std::path::PathBuf {
    let path = |name: &str| folder.join(name).display().to_string();
    let (monitor, serial, stream) = (path("qmp"), path("serial"), path("stream"));
    let _vmm = Godwit(
        Command::new(env!("CARGO_BIN_EXE_godwit"))
            .args([
                "run",
                "-M",
                "microvm,acpi=off",
                "-m",
                "32",
                "-smp",
                "2",
                "-nodefaults",
                "-display",
                "none",
            ])
            .args([
                "-kernel",
                "builtin",
                "-append",
                "ws=4 fill=text",
                "-serial",
                &format!("file:{serial}"),
            ])
            .args(["-qmp", &format!("unix:{monitor},server=on,wait=off")])
            .spawn()
            .unwrap(),
    );
    let monitor = format!("unix:{monitor}");
    let ask = |words: &[&str]| {
        let done = godwit(&[&["qmp", "--qmp", &monitor], words].concat());
        String::from_utf8_lossy(&done.stdout).into_owned()
    };
    wait("the guest's sweeps", || {
        std::fs::read_to_string(&serial).is_ok_and(|text| text.lines().count() > 3)
    });
    ask(&["stop"]);
    ask(&["migrate", &format!("uri=file:{stream}")]);
    wait("the stream", || ask(&["query-migrate"]).contains("\"completed\""));
    stream.into()
}

#[test]
fn qemus_analyser_reads_our_file() {
    if std::env::var_os("GODWIT_PEERS").is_none() {
        eprintln!("skipped: set GODWIT_PEERS=1 to run QEMU's analyser");
        return;
    }
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
