//! `godwit inspect` reads every recorded stream, and the memory it takes out of it is what the
//! destination had.

use crate::common::vectors::{self, Vector};
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn godwit() -> Command {
    Command::new(env!("CARGO_BIN_EXE_godwit"))
}

fn put(folder: &Path, name: &str, files: Vec<Vec<u8>>) -> Vec<PathBuf> {
    let write = |(at, bytes): (usize, Vec<u8>)| {
        let path = folder.join(format!("{name}{at}"));
        std::fs::write(&path, bytes).unwrap();
        path
    };
    files.into_iter().enumerate().map(write).collect()
}

/// Runs `inspect` over all files of the vector.
fn inspect(vector: &Vector, folder: &Path, more: &[&str]) -> Output {
    let mut command = godwit();
    command.arg("inspect").args(put(folder, "main", vector.files("main"))).args(more);
    for path in put(folder, "channel", vector.files("multifd")) {
        command.arg("--channel").arg(path);
    }
    for path in put(folder, "resumed", vector.files("main-resumed")) {
        command.arg("--resume").arg(path);
    }
    command.output().unwrap()
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn memory_of_every_stream_is_what_the_destination_had() {
    for vector in vectors::all() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("ram");
        let blocks: BTreeSet<String> =
            vector.regions().into_iter().map(|region| region.0).collect();
        for block in &blocks {
            let ram = ["--json", "--block", block, "--ram", out.to_str().unwrap()];
            let output = inspect(&vector, folder.path(), &ram);
            assert!(
                output.status.success(),
                "{}: {}",
                vector.name,
                String::from_utf8_lossy(&output.stderr)
            );
            let report: Value = serde_json::from_slice(&output.stdout).unwrap();
            assert_eq!(report["image"]["block"], block.as_str());
            let image = std::fs::read(&out).unwrap();
            for (_, offset, size, hash) in
                vector.regions().into_iter().filter(|region| region.0 == *block)
            {
                let region = &image[offset as usize..(offset + size) as usize];
                assert_eq!(sha256(region), hash, "{}: {block} from {offset:#x}", vector.name);
            }
        }
    }
}

#[test]
fn structure_of_every_stream_is_shown() {
    for vector in vectors::all() {
        let folder = tempfile::tempdir().unwrap();
        let output = inspect(&vector, folder.path(), &[]);
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(
            output.status.success(),
            "{}: {}",
            vector.name,
            String::from_utf8_lossy(&output.stderr)
        );
        for part in [
            "machine       microvm",
            "microvm.ram",
            "registers of a vCPU",
            "run state of the source",
        ] {
            assert!(text.contains(part), "{}: no \"{part}\" in\n{text}", vector.name);
        }
        assert!(!text.contains("not a section of a microvm"), "{}:\n{text}", vector.name);
        let fields = inspect(&vector, folder.path(), &["--fields"]);
        assert!(
            String::from_utf8(fields.stdout).unwrap().contains("env.segs[1].limit"),
            "{}",
            vector.name
        );
    }
}

#[test]
fn return_paths_are_listed() {
    for vector in vectors::all() {
        let folder = tempfile::tempdir().unwrap();
        for path in put(folder.path(), "reply", vector.replies()) {
            let output = godwit().arg("inspect").arg(&path).output().unwrap();
            let text = String::from_utf8(output.stdout).unwrap();
            assert!(
                text.contains("PONG") || text.contains("RECV_BITMAP"),
                "{}: {text}",
                vector.name
            );
        }
    }
}

#[test]
fn passes_and_parts_are_counted() {
    let vector = Vector::named("kvm-virtio-xbzrle-16m");
    let folder = tempfile::tempdir().unwrap();
    let report: Value =
        serde_json::from_slice(&inspect(&vector, folder.path(), &["--json"]).stdout).unwrap();
    let stats = &vector.meta["final_stats"]["ram"];
    assert_eq!(report["total"]["zero"], stats["duplicate"]);
    assert_eq!(report["total"]["pages"], stats["normal"]);
    let passes = report["passes"].as_array().unwrap();
    assert_eq!(passes[0]["deltas"], 0);
    assert!(passes.iter().skip(1).any(|pass| pass["deltas"].as_u64() > Some(0)));
    let deltas: u64 = passes.iter().map(|pass| pass["deltas"].as_u64().unwrap()).sum();
    assert_eq!(report["total"]["deltas"], deltas);
}

#[test]
fn a_cut_or_damaged_stream_is_shown_up_to_there() {
    let vector = Vector::named("kvm-acpi-off-16m");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("stream");
    let run = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        let output = godwit().arg("inspect").arg(&path).output().unwrap();
        let (out, err) =
            (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        (output.status.success(), out.into_owned(), err.into_owned())
    };
    let bytes = vector.main();
    let (ok, out, err) = run(&bytes[..0x5fa00]);
    assert!(
        !ok && out.contains("kvm-tpr-opt") && err.contains("section apic, field end of file"),
        "{err}"
    );
    let mut damaged = bytes.clone();
    damaged[0x5f1d0 + 5 + 4 + 7] = 99;
    // The description tells where the section ends, so that reading goes on.
    let (ok, out, _) = run(&damaged);
    assert!(
        ok && out
            .contains("section cpu, field version, offset 0x5f1e1: version 99 is newer than 12"),
        "{out}"
    );
    damaged.clone_from(&bytes);
    damaged[0x5f1d0 + 17 + 1842] = 0; // its footer
    let (ok, out, err) = run(&damaged);
    assert!(
        !ok && out.contains("cpu_common") && err.contains("section cpu, field footer"),
        "{out}{err}"
    );
    let (ok, _, err) = run(b"not a stream at all");
    assert!(!ok && err.contains("stream header, field magic, offset 0x0"), "{err}");
}

#[test]
fn a_block_that_is_not_there_is_named_with_those_that_are() {
    let vector = Vector::named("kvm-acpi-off-16m");
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("ram");
    let output =
        inspect(&vector, folder.path(), &["--block", "vga.vram", "--ram", out.to_str().unwrap()]);
    let err = String::from_utf8_lossy(&output.stderr);
    assert!(err.contains("no block \"vga.vram\" in the stream, but microvm.ram, pc.bios"), "{err}");
}
