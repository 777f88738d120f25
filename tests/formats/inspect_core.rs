//! `godwit inspect --core` makes dumps out of recorded streams.

use crate::common::vectors::{self, Vector};
use godwit::dump::read::{Core, Kdump, cpus};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Runs `inspect` over all files of the vector.
fn inspect(vector: &Vector, folder: &Path, more: &[&str]) -> Output {
    let put = |name: &str, files: Vec<Vec<u8>>| -> Vec<PathBuf> {
        let write = |(at, bytes): (usize, Vec<u8>)| {
            let path = folder.join(format!("{name}{at}"));
            std::fs::write(&path, bytes).unwrap();
            path
        };
        files.into_iter().enumerate().map(write).collect()
    };
    let mut command = Command::new(env!("CARGO_BIN_EXE_godwit"));
    command.arg("inspect").args(put("main", vector.files("main"))).args(more);
    for path in put("channel", vector.files("multifd")) {
        command.arg("--channel").arg(path);
    }
    for path in put("resumed", vector.files("main-resumed")) {
        command.arg("--resume").arg(path);
    }
    command.output().unwrap()
}

#[test]
fn a_stream_becomes_a_core_with_its_memory_and_registers() {
    for vector in vectors::all() {
        let folder = tempfile::tempdir().unwrap();
        let (ram, out) = (folder.path().join("ram"), folder.path().join("core"));
        let made = inspect(
            &vector,
            folder.path(),
            &["--ram", ram.to_str().unwrap(), "--core", out.to_str().unwrap()],
        );
        assert!(
            made.status.success(),
            "{}: {}",
            vector.name,
            String::from_utf8_lossy(&made.stderr)
        );
        let (ram, file) = (std::fs::read(&ram).unwrap(), std::fs::read(&out).unwrap());
        let core = Core::parse(&file).unwrap();
        assert!(core.physical(0, ram.len() as u64) == Some(&ram[..]), "{}: memory", vector.name);
        let cpus = cpus(&file).unwrap();
        assert!(!cpus.is_empty() && cpus[0].rip != 0, "{}: registers", vector.name);
        assert!(
            cpus.iter().all(|cpu| cpu.cs.flags & 0x8000 != 0),
            "{}: code segments",
            vector.name
        );
        assert!(!folder.path().join("core.part").exists());
    }
}

#[test]
fn a_stream_becomes_a_kdump_without_keeping_its_image() {
    let vector =
        vectors::all().into_iter().find(|vector| vector.name.starts_with("kvm-2cpu")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("kdump");
    let made = inspect(
        &vector,
        folder.path(),
        &["--core", out.to_str().unwrap(), "--format", "kdump-raw-zstd"],
    );
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let file = std::fs::read(&out).unwrap();
    let kdump = Kdump::parse(&file).unwrap();
    assert_eq!((kdump.cpus, kdump.pages().len()), (2, (16 << 20) / 4096));
    for index in 0..kdump.pages().len() {
        kdump.page(index).unwrap();
    }
}

#[test]
fn images_and_cores_go_to_pipes_and_the_report_elsewhere() {
    let vector =
        vectors::all().into_iter().find(|vector| vector.name.starts_with("kvm-2cpu")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let ram = folder.path().join("ram");
    assert!(inspect(&vector, folder.path(), &["--ram", ram.to_str().unwrap()]).status.success());
    let ram = std::fs::read(&ram).unwrap();
    let image = inspect(&vector, folder.path(), &["--ram", "-"]);
    assert!(image.status.success() && image.stdout == ram);
    assert!(String::from_utf8_lossy(&image.stderr).contains("registers of a vCPU"));
    let core = inspect(&vector, folder.path(), &["--core", "/dev/stdout", "--json"]);
    assert!(core.status.success());
    let found = Core::parse(&core.stdout).unwrap();
    assert!(found.physical(0, ram.len() as u64) == Some(&ram[..]));
    assert!(core.stderr.starts_with(b"{"), "the report");
    let both = inspect(&vector, folder.path(), &["--core", "-", "--ram", "/dev/fd/1"]);
    assert!(String::from_utf8_lossy(&both.stderr).contains("are the same file"));
    assert!(both.stdout.is_empty());
}

#[test]
fn a_stream_cut_short_leaves_no_core() {
    let vector =
        vectors::all().into_iter().find(|vector| vector.name.starts_with("kvm-2cpu")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let (cut, out) = (folder.path().join("cut"), folder.path().join("core"));
    let mut stream = vector.files("main").remove(0);
    stream.truncate(stream.len() / 2);
    std::fs::write(&cut, &stream).unwrap();
    let made = Command::new(env!("CARGO_BIN_EXE_godwit"))
        .args(["inspect", cut.to_str().unwrap(), "--core", out.to_str().unwrap()])
        .output()
        .unwrap();
    assert!(!made.status.success());
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "only what was there");
}
