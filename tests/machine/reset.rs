//! Resets on hosts, and with files, that have changed since the machine was made.
//!
//! Unsafe because the limits of a running process are lowered.
#![allow(unsafe_code)]

use crate::common::guest::{self, Guest, config, wait};
use crate::common::machines;
use crate::common::process::Godwit;
use godwit::config::Incoming;
use godwit::machine::{ContRefused, Event, RunState, StopCause};
use serde_json::json;
use std::fs;

/// From now on the process gets no further descriptor.
fn leave_nothing(process: u32) {
    let open = fs::read_dir(format!("/proc/{process}/fd")).unwrap();
    let numbers = open.map(|fd| fd.unwrap().file_name().to_str().unwrap().parse::<u64>().unwrap());
    let limit = numbers.max().unwrap() + 1;
    let limit = libc::rlimit { rlim_cur: limit, rlim_max: limit };
    // SAFETY: the kernel reads one struct, and writes nothing.
    let done = unsafe {
        libc::prlimit(process as i32, libc::RLIMIT_NOFILE, &raw const limit, std::ptr::null_mut())
    };
    assert_eq!(done, 0);
}

#[test]
fn without_descriptors_a_reset_works() {
    let godwit = Godwit::start(2, 32, "ws=2");
    let mut qmp = godwit.qmp();
    let lines = || godwit.serial().lines().count();
    wait(|| lines() > 2, || "the guest says nothing".into());
    leave_nothing(godwit.child.id());
    for _ in 0..3 {
        let before = lines();
        qmp.ask("system_reset", json!({}));
        qmp.event("RESET");
        assert_eq!(qmp.status(), "running");
        wait(|| lines() > before + 2, || "the guest does not start again".into());
    }
}

#[test]
fn a_kernel_that_was_removed_starts_again() {
    let dir = tempfile::tempdir().unwrap();
    let g = Guest::build(&config(&dir, &guest::counter(), 16, 1));
    g.machine.cont().unwrap();
    g.said.wait_for("k");
    fs::remove_file(dir.path().join("kernel")).unwrap();
    g.machine.reset().unwrap();
    g.said.wait_for("kk");
    assert_eq!(g.machine.run_state(), RunState::Running);
}

/// Jumps to f000:fff0 in real mode, and is reset.
fn jumps(g: &Guest) {
    let said = g.said.text() + "k";
    assert_eq!(g.serial().enqueue(b"x"), 1);
    g.said.wait_for(&said);
    assert_eq!(g.events().last(), Some(&Event::Reset(StopCause::GuestReset)));
    assert_eq!(g.machine.run_state(), RunState::Running);
}

#[test]
fn a_jump_to_the_bios_starts_the_machine_over() {
    let dir = tempfile::tempdir().unwrap();
    let g = Guest::build(&config(&dir, &guest::real_mode(), 16, 1));
    g.machine.cont().unwrap();
    g.said.wait_for("k");
    jumps(&g);
    jumps(&g);
}

#[test]
fn a_guest_whose_source_had_firmware_there_jumps_to_the_bios() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(&dir, &guest::real_mode(), 16, 1);
    let source = Guest::build(&config);
    source.machine.cont().unwrap();
    source.said.wait_for("k");
    source.machine.stop(RunState::Paused).unwrap();
    // QEMU's is no RAM, and what lies under it is zeros.
    source.machine.ram().write(0xf_fff0, &[0; 16]).unwrap();
    let stream = machines::save(&source.machine);

    config.incoming = Some(Incoming::Defer);
    let target = Guest::build(&config);
    machines::load(&target.machine, &stream).unwrap();
    let word = || target.word(0xf_fff0);
    assert_eq!(word(), 0, "a guest that does not run yet is as it was");
    target.machine.set_state(RunState::Paused);
    target.machine.cont().unwrap();
    assert_ne!(word(), 0);
    jumps(&target);
}

#[test]
fn a_reset_that_cannot_be_leaves_the_guest_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let g = Guest::build(&config(&dir, &guest::counter(), 16, 1));
    g.machine.cont().unwrap();
    g.said.wait_for("k");
    let kernel = dir.path().join("kernel");
    let whole = fs::read(&kernel).unwrap();
    for cut in [0, 50, whole.len() as u64 - 1] {
        fs::OpenOptions::new().write(true).open(&kernel).unwrap().set_len(cut).unwrap();
        let error = g.machine.reset().unwrap_err().to_string();
        assert!(error.contains("kernel"), "{error}");
        assert_eq!((g.machine.run_state(), g.events()), (RunState::Running, vec![Event::Resume]));
        let counted = g.word(0x20_0000);
        wait(|| g.word(0x20_0000) > counted, || "the guest does not count".into());
    }
    fs::write(&kernel, whole).unwrap();
    g.machine.reset().unwrap();
    g.said.wait_for("kk");
}

#[test]
fn a_guest_whose_own_reset_cannot_be_stands_still_and_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let g = Guest::build(&config(&dir, &guest::restarter(), 16, 1));
    let kernel = dir.path().join("kernel");
    let whole = fs::read(&kernel).unwrap();
    fs::write(&kernel, b"").unwrap();
    g.machine.cont().unwrap();
    wait(|| g.events().len() == 3, || format!("{:?}", g.events()));
    let events = g.events();
    assert!(
        matches!(&events[..], [Event::Resume, Event::InternalError { why, .. }, Event::Stop] if why.contains("kernel")),
        "{events:?}"
    );
    assert_eq!(g.machine.run_state(), RunState::InternalError);
    assert!(matches!(g.machine.cont(), Err(ContRefused::NeedsReset)));
    fs::write(&kernel, whole).unwrap();
    g.machine.reset().unwrap();
    assert_eq!(g.events().last(), Some(&Event::Reset(StopCause::HostQmpSystemReset)));
    g.machine.cont().unwrap();
    g.said.wait_for("rrrk");
}
