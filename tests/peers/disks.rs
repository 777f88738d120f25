//! Disks beside QEMU and its tools: what one writes the other reads.

use crate::common::small::Small;
use crate::common::vm::{Launch, Vm};
use crate::common::{guest, virtio_guest};
use serde_json::{Value, json};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

fn tool(program: &str, folder: &Path, words: &[&str]) -> String {
    let done = Command::new(program).args(words).current_dir(folder).output().unwrap();
    let (out, err) = (String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
    assert!(done.status.success(), "{program} {words:?}: {out} {err}");
    out.into_owned()
}

fn img(folder: &Path, words: &[&str]) -> String {
    tool("qemu-img", folder, words)
}

fn launch(folder: &Path, name: &str, image: &str) -> Launch {
    launch_with(folder, name, image, "")
}

fn launch_with(folder: &Path, name: &str, image: &str, more: &str) -> Launch {
    let kernel = folder.join(format!("{name}.kernel"));
    std::fs::write(&kernel, guest::elf(&virtio_guest::disk())).unwrap();
    let drive = format!("if=none,id=d,format=qcow2,file={}{more}", folder.join(image).display());
    Launch::new(folder, name).no_guest().words(&[
        "-kernel",
        kernel.to_str().unwrap(),
        "-drive",
        &drive,
        "-device",
        "virtio-blk-device,drive=d,id=vd",
        "-global",
        "virtio-mmio.force-legacy=off",
    ])
}

fn start(launch: Launch, is_qemu: bool) -> Vm {
    if is_qemu { launch.qemu().start() } else { launch.start() }
}

/// Whether the image was not closed, or is open for writing.
fn is_dirty(folder: &Path, image: &str) -> bool {
    let said = img(folder, &["info", "-U", "--output=json", image]);
    let said: Value = serde_json::from_str(&said).unwrap();
    said["dirty-flag"].as_bool().unwrap()
}

/// Ends the machine, and looks whether all that its guest wrote is in the image.
fn end_and_check(mut vm: Vm, folder: &Path, image: &str) {
    vm.ask("stop", json!({}));
    let dump = vm.path("turns");
    vm.ask("pmemsave", json!({"val": 0x21_0000, "size": 4, "filename": dump}));
    let turns = u32::from_le_bytes(std::fs::read(&dump).unwrap().try_into().unwrap());
    vm.ask("quit", json!({}));
    assert_eq!(vm.exit_code(), Some(0));
    img(folder, &["check", "-q", image]);
    assert!(!is_dirty(folder, image));
    img(folder, &["convert", "-O", "raw", image, "flat"]);
    let flat = std::fs::File::open(folder.join("flat")).unwrap();
    // The last may be on its way.
    for turn in turns.saturating_sub(255).max(1)..turns {
        let mut word = [0; 4];
        flat.read_exact_at(&mut word, u64::from(turn & 255) * 4096 + 4092).unwrap();
        assert_eq!(u32::from_le_bytes(word), turn, "{turn} of {turns}");
    }
}

/// Images as qemu-img makes them: (what it makes at the bottom, more words for the top).
const MADE: [(&[&str], &[&str]); 5] = [
    (&["-f", "raw"], &[]),
    (&["-f", "qcow2", "-o", "cluster_size=512"], &["-o", "cluster_size=2M"]),
    (&["-f", "qcow2", "-o", "compat=0.10"], &["-o", "compat=1.1"]),
    (&["-f", "qcow2", "-o", "refcount_bits=1"], &["-o", "refcount_bits=64,cluster_size=4k"]),
    (&["-f", "qcow2", "-o", "lazy_refcounts=on"], &["-o", "lazy_refcounts=on"]),
];

#[test]
#[ignore = "needs QEMU"]
fn what_qemu_img_made_a_guest_reads_and_what_the_guest_wrote_it_finds_whole() {
    for (bottom, top) in MADE {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        let format = bottom[1];
        img(folder, &[&["create", "-q"], bottom, &["base", "1M"]].concat());
        let write = "write -P 9 0 1M";
        tool("qemu-io", folder, &["-f", format, "-c", write, "base"]);
        // Compressed, above the rest: the guest writes over it.
        if format == "qcow2" {
            tool("qemu-img", folder, &["convert", "-c", "-O", "qcow2", "base", "small"]);
            std::fs::rename(folder.join("small"), folder.join("base")).unwrap();
        }
        let on = ["-b", "base", "-F", format];
        img(folder, &[&["create", "-q", "-f", "qcow2"], &on[..], top, &["top"]].concat());
        if top.is_empty() {
            // Of an inner snapshot's clusters the guest writes copies.
            tool("qemu-io", folder, &["-f", "qcow2", "-c", "write -P 5 0 300k", "top"]);
            img(folder, &["snapshot", "-c", "kept", "top"]);
        }
        let vm = launch(folder, "vm", "top").start();
        vm.wait_for_points(2);
        let mut vm = vm;
        let over = json!({"device": "d", "snapshot-file": folder.join("over")});
        vm.ask("blockdev-snapshot-sync", over);
        img(folder, &["check", "-q", "-U", "top"]);
        assert!(!is_dirty(folder, "top") && is_dirty(folder, "over"));
        let before = std::fs::read(folder.join("top")).unwrap();
        vm.wait_for_points(2);
        end_and_check(vm, folder, "over");
        assert!(std::fs::read(folder.join("top")).unwrap() == before);
        if top.is_empty() {
            img(folder, &["snapshot", "-a", "kept", "top"]);
            img(folder, &["check", "-q", "top"]);
            let same = ["-c", "read -P 5 0 300k", "-c", "read -P 9 300k 724k"];
            let said = tool("qemu-io", folder, &[&["-f", "qcow2"], &same[..], &["top"]].concat());
            assert!(!said.contains("failed"), "{said}");
        }
    }
}

#[test]
#[ignore = "needs QEMU"]
fn an_image_whose_machine_was_killed_is_repaired_before_it_is_used() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    img(folder, &["create", "-q", "-f", "qcow2", "top", "1M"]);
    for cache in ["", ",cache=unsafe", ",cache.direct=on"] {
        let mut vm = launch_with(folder, "vm", "top", cache).start();
        vm.wait_for_points(1);
        assert!(is_dirty(folder, "top"));
        vm.kill();
        let mut again = launch_with(folder, "again", "top", cache).spawn();
        assert_eq!(again.exit_code(), Some(1));
        assert!(again.stderr().contains("qemu-img check -r all"), "{}", again.stderr());
        img(folder, &["check", "-q", "-r", "all", "top"]);
        assert!(!is_dirty(folder, "top"));
        let vm = launch_with(folder, "repaired", "top", cache).start();
        vm.wait_for_points(2);
        end_and_check(vm, folder, "top");
    }
}

/// What was written before room ran out, and after there was some again, is in the image, and nothing
/// in it is wrong.
#[test]
#[ignore = "needs QEMU"]
fn an_image_on_a_full_host_is_whole() {
    let folder = tempfile::tempdir().unwrap();
    let small = Small::mount(folder.path(), 4 << 20);
    for pages in [0, 3, 16, 17, 18, 33] {
        img(&small.0, &["create", "-q", "-f", "qcow2", "top", "1M"]);
        let mut vm = launch(&small.0, "vm", "top").words(&["-S"]).start();
        small.fill();
        let ballast = std::fs::File::options().write(true).open(small.0.join("ballast")).unwrap();
        let bytes = ballast.metadata().unwrap().len();
        ballast.set_len(bytes - pages * 4096).unwrap();
        vm.ask("cont", json!({}));
        vm.wait_for_status("io-error");
        drop(ballast);
        std::fs::remove_file(small.0.join("ballast")).unwrap();
        vm.ask("cont", json!({}));
        vm.wait_for_points(3);
        end_and_check(vm, &small.0, "top");
        for name in ["top", "flat"] {
            std::fs::remove_file(small.0.join(name)).unwrap();
        }
    }
}

#[test]
#[ignore = "needs QEMU"]
fn a_guest_over_a_chain_moves_between_godwit_and_qemu() {
    for is_qemu in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        img(folder, &["create", "-q", "-f", "raw", "base", "1M"]);
        img(folder, &["create", "-q", "-f", "qcow2", "-b", "base", "-F", "raw", "top"]);
        let mut source = start(launch(folder, "source", "top"), is_qemu);
        for turn in 0..2 {
            source.wait_for_points(1);
            let uri = format!("unix:{}", folder.join(format!("stream{turn}")).display());
            let target =
                launch(folder, &format!("target{turn}"), "top").words(&["-incoming", &uri]);
            let mut target = start(target, is_qemu == (turn == 1));
            source.ask("migrate", json!({"uri": uri}));
            assert_eq!(source.outcome()["status"], "completed", "{turn}: {}", target.stderr());
            target.wait_for_state(|state| state == "running");
            target.wait_for_points(1);
            source = target;
        }
        end_and_check(source, folder, "top");
    }
}

/// Takes out what differs between two machines, or two moments.
fn shape(answer: &mut Value) {
    match answer {
        Value::Array(items) => items.iter_mut().for_each(shape),
        Value::Object(members) => {
            // How long a new file is, is its maker's affair.
            if members.get("format") == Some(&json!("file")) {
                members["virtual-size"] = json!(0);
            }
            for (name, member) in members.iter_mut() {
                let text = member.as_str();
                match name.as_str() {
                    "node-name" if text.is_some_and(|name| name.starts_with("#block")) => {
                        *member = json!("made");
                    }
                    "actual-size" => *member = json!(0),
                    name if name.ends_with("_ns") || name.contains("operations") => {
                        *member = json!(0);
                    }
                    "rd_bytes" | "wr_bytes" | "wr_highest_offset" | "rd_merged" | "wr_merged" => {
                        *member = json!(0);
                    }
                    _ => shape(member),
                }
            }
        }
        _ => {}
    }
}

#[test]
#[ignore = "needs QEMU"]
fn what_disks_are_made_of_is_told_as_qemu_tells_it() {
    let mut answers = Vec::new();
    for is_qemu in [true, false] {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        img(folder, &["create", "-q", "-f", "raw", "base", "1M"]);
        let old = ["-o", "compat=0.10", "-b", "base", "-F", "raw"];
        img(folder, &[&["create", "-q", "-f", "qcow2"], &old[..], &["middle"]].concat());
        img(folder, &["create", "-q", "-f", "qcow2", "-b", "middle", "-F", "qcow2", "top"]);
        let mut vm = start(launch(folder, "vm", "top").words(&["-S"]), is_qemu);
        let mut all = Vec::new();
        let snapshot = json!({"device": "d", "snapshot-file": folder.join("over")});
        for (command, arguments) in [
            ("query-block", json!({})),
            ("blockdev-snapshot-sync", snapshot),
            ("query-block", json!({})),
            ("query-named-block-nodes", json!({})),
            ("query-named-block-nodes", json!({"flat": true})),
            ("query-blockstats", json!({})),
            ("query-blockstats", json!({"query-nodes": true})),
        ] {
            let mut answer = vm.ask(command, arguments);
            shape(&mut answer);
            let text = answer.to_string().replace(folder.to_str().unwrap(), "@DIR@");
            all.push((command, serde_json::from_str::<Value>(&text).unwrap()));
        }
        answers.push(all);
    }
    let ours = answers.pop().unwrap();
    for ((command, qemu), (_, ours)) in answers.pop().unwrap().into_iter().zip(ours) {
        assert_eq!(qemu, ours, "{command}");
    }
}
