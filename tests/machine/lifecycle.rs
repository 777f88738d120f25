//! The machine on real KVM, with guests of a few instructions.

use crate::common::guest::{self, Guest, config, wait};
use crate::common::is_blocked_in;
use godwit::dump::Dumpable;
use godwit::kvm::{self, state::ForeignTsc};
use godwit::machine::{ContRefused, Event, RunState, StopCause};
use godwit::memory::PageSet;
use std::time::Duration;

fn dir() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

#[test]
fn a_guest_boots_says_a_word_and_sleeps() {
    let dir = dir();
    let g = Guest::build(&config(&dir, &guest::hello(), 16, 1));
    assert_eq!(g.machine.run_state(), RunState::Prelaunch);
    assert!(g.machine.cont().unwrap());
    g.said.wait_for("k");
    assert_eq!(g.machine.run_state(), RunState::Running);
    assert_eq!(g.machine.vcpus().len(), 1);
    assert!(
        std::path::Path::new(&format!("/proc/self/task/{}", g.machine.vcpus()[0].thread_id))
            .exists()
    );
    g.machine.quit();
    assert!(matches!(g.machine.cont(), Err(ContRefused::Gone)));
    assert_eq!(g.events(), [Event::Resume]);
}

/// A migration asks for the state, somebody stops the guest, and the migration stops it once more.
#[test]
fn a_guest_that_is_stopped_while_a_migration_stops_it_is_paused_when_it_does_not_leave() {
    let dir = dir();
    let g = Guest::build(&config(&dir, &guest::counter(), 16, 1));
    g.machine.cont().unwrap();
    g.said.wait_for("k");
    let before = g.machine.run_state();
    g.machine.request_stop().unwrap();
    assert!(!g.machine.stop_to_leave().unwrap());
    assert_eq!(g.machine.run_state(), RunState::FinishMigrate);
    g.machine.set_state(before);
    assert_eq!(g.machine.run_state(), RunState::Paused);
    assert!(g.machine.cont().unwrap());
}

#[test]
fn a_stopped_guest_does_nothing_and_goes_on_where_it_was() {
    let dir = dir();
    let g = Guest::build(&config(&dir, &guest::counter(), 16, 1));
    g.machine.cont().unwrap();
    g.said.wait_for("k");
    for _ in 0..50 {
        let before = g.word(0x20_0000);
        wait(|| g.word(0x20_0000) > before, || "the guest does not count".into());
        assert!(g.machine.stop(RunState::Paused).unwrap());
        assert!(!g.machine.stop(RunState::Paused).unwrap());
        let counted = g.word(0x20_0000);
        let ns = g.machine.virtual_clock_ns();
        std::thread::sleep(Duration::from_millis(2));
        assert_eq!(g.word(0x20_0000), counted);
        assert_eq!(g.machine.virtual_clock_ns(), ns);
        let rcx = g.vcpus()[0].regs.rcx as u32;
        assert!(rcx == counted || rcx == counted + 1, "{rcx} {counted}");
        assert!(g.machine.cont().unwrap());
    }
    assert_eq!(g.said.text(), "k");
}

#[test]
fn state_saved_and_loaded_fifty_times_is_equal_and_the_guest_goes_on() {
    let dir = dir();
    let config = config(&dir, &guest::counter(), 16, 2);
    let first = Guest::build(&config);
    first.machine.cont().unwrap();
    first.said.wait_for("k");
    let mut guest = first;
    for _ in 0..50 {
        let before = guest.word(0x20_0000);
        wait(|| guest.word(0x20_0000) > before + 100, || "the guest does not count".into());
        guest.machine.stop(RunState::Paused).unwrap();
        let saved = guest.machine.save(RunState::Running).unwrap();
        let before = guest.vcpus();
        let mut ram = vec![0; 16 << 20];
        guest.machine.ram().read(0, &mut ram).unwrap();
        let arriving = godwit::config::Config {
            boot: None,
            incoming: Some(godwit::config::Incoming::Defer),
            ..config.clone()
        };
        let next = Guest::build(&arriving);
        assert!(matches!(next.machine.cont(), Err(ContRefused::Arriving)));
        next.machine.ram().write(0, &ram).unwrap();
        let report = next.machine.load(&saved, ForeignTsc::Refuse).unwrap();
        assert_eq!(report.refused_msrs, []);
        for (a, b) in before.iter().zip(&next.vcpus()) {
            assert_eq!(a.regs, b.regs);
            assert_eq!(a.sregs, b.sregs);
            assert_eq!(a.xsave, b.xsave);
            assert_eq!(a.xcrs, b.xcrs);
            assert_eq!(a.events, b.events);
            assert_eq!(a.mp_state, b.mp_state);
            assert_eq!(a.debugregs, b.debugregs);
            assert_eq!(a.lapic.regs, b.lapic.regs);
            let timeless = |s: &godwit::kvm::state::VcpuState| {
                s.msrs.iter().copied().filter(|(i, _)| *i != 0x10).collect::<Vec<_>>()
            };
            assert_eq!(timeless(a), timeless(b));
        }
        let again = next.machine.save(RunState::Running).unwrap();
        for (a, b) in saved.iter().zip(again.iter()) {
            // The registers were compared; a timer's next expiry is told from now.
            let moves = ["cpu", "i8254"].contains(&a.0.name.as_str());
            assert!(a == b || moves && a.0 == b.0, "{a:?} {b:?}");
        }
        next.machine.set_state(RunState::Paused);
        next.machine.cont().unwrap();
        guest = next;
        assert_eq!(guest.said.text(), "");
    }
}

#[test]
fn the_serial_port_takes_input() {
    let dir = dir();
    let g = Guest::build(&config(&dir, &guest::echo(), 16, 1));
    let room = std::sync::Arc::new(std::sync::Condvar::new());
    let wake = room.clone();
    g.serial().on_room(Box::new(move || wake.notify_all()));
    g.machine.cont().unwrap();
    g.said.wait_for("k");
    let text = b"the quick brown bar-tailed godwit jumps over the lazy ocean";
    let mut sent = 0;
    let lock = std::sync::Mutex::new(());
    while sent < text.len() {
        sent += g.serial().enqueue(&text[sent..]);
        let _ = room.wait_timeout(lock.lock().unwrap(), Duration::from_millis(10)).unwrap();
    }
    g.said.wait_for("over the lazy ocean");
}

#[test]
fn a_triple_fault_resets_and_ram_stays() {
    let dir = dir();
    let g = Guest::build(&config(&dir, &guest::restarter(), 16, 1));
    g.machine.cont().unwrap();
    g.said.wait_for("k");
    assert_eq!(g.said.text(), "rrrk");
    assert_eq!(g.word(0x30_0000), 4);
    let reset = Event::Reset(StopCause::GuestReset);
    assert_eq!(g.events(), [Event::Resume, reset.clone(), reset.clone(), reset]);
    g.machine.reset().unwrap();
    g.said.wait_for("rrrkk");
    assert_eq!(g.events()[4], Event::Reset(StopCause::HostQmpSystemReset));
}

#[test]
fn a_reset_is_put_off_by_a_dump_and_the_guest_goes_on_after_it() {
    let dir = dir();
    let g = Guest::build(&config(&dir, &guest::hello(), 16, 1));
    g.machine.cont().unwrap();
    g.said.wait_for("k");
    let dumped = g.machine.pause().unwrap();
    assert!(dumped && g.machine.run_state() == RunState::SaveVm);
    // Where the kernel is loaded to.
    let loaded = g.word(0x10_0000);
    g.machine.ram().write(0x10_0000, &[0; 4]).unwrap();
    for _ in 0..3 {
        g.machine.reset().unwrap();
    }
    assert_eq!((g.word(0x10_0000), g.machine.run_state()), (0, RunState::SaveVm));
    assert_eq!(g.events(), [Event::Resume, Event::Stop]);
    g.machine.resume(dumped);
    g.said.wait_for("kk");
    assert_eq!(g.word(0x10_0000), loaded);
    let reset = Event::Reset(StopCause::HostQmpSystemReset);
    assert_eq!(g.events(), [Event::Resume, Event::Stop, reset, Event::Resume]);
}

#[test]
fn what_a_guest_wants_waits_for_a_dump() {
    use godwit::config::RebootAction;
    for reboot in [RebootAction::Reset, RebootAction::Shutdown] {
        let dir = dir();
        let mut config = config(&dir, &guest::restarter(), 16, 1);
        config.actions.reboot = reboot;
        let g = Guest::build(&config);
        // The guest faults after the dump's stop, as if its wish had come too late for that.
        assert!(!g.machine.pause().unwrap());
        g.machine.hand_back().unwrap();
        g.said.wait_for("r");
        let vcpu = g.machine.vcpus()[0].thread_id;
        wait(
            || is_blocked_in(std::process::id(), vcpu, libc::SYS_futex),
            || "the guest runs on".into(),
        );
        assert_eq!((g.word(0x30_0000), g.events()), (1, vec![Event::Resume]));
        g.machine.resume(false);
        if reboot == RebootAction::Reset {
            g.said.wait_for("rrrk");
        } else {
            wait(|| g.machine.run_state() == RunState::Shutdown, || "no shutdown".into());
        }
    }
}

#[test]
fn without_reboot_a_triple_fault_is_the_end() {
    let dir = dir();
    let mut config = config(&dir, &guest::restarter(), 16, 1);
    config.actions.reboot = godwit::config::RebootAction::Shutdown;
    let g = Guest::build(&config);
    g.machine.cont().unwrap();
    wait(|| g.machine.run_state() == RunState::Shutdown, || "no shutdown".into());
    wait(|| g.events().len() == 3, || "events are missing".into());
    assert_eq!(g.events(), [Event::Resume, Event::Shutdown(StopCause::GuestReset), Event::Stop]);
    assert!(matches!(g.machine.cont(), Err(ContRefused::NeedsReset)));
    g.machine.set_actions(Default::default());
    g.machine.reset().unwrap();
    assert_eq!(g.machine.run_state(), RunState::Prelaunch);
    assert!(g.machine.cont().unwrap());
}

#[test]
fn a_throttled_guest_counts_slower_and_still_stops_at_once() {
    let dir = dir();
    let g = Guest::build(&config(&dir, &guest::counter(), 16, 1));
    g.machine.cont().unwrap();
    g.said.wait_for("k");
    let count = |ms| {
        let before = g.word(0x20_0000);
        std::thread::sleep(Duration::from_millis(ms));
        g.word(0x20_0000) - before
    };
    // What else runs on the host may slow one count down, so that the two take turns.
    let slower = || {
        g.machine.set_throttle(0);
        let free = count(100);
        g.machine.set_throttle(90);
        count(100) < free / 2
    };
    wait(slower, || "the throttle slows nothing down".into());
    g.machine.set_throttle(99);
    let at_once = || {
        let start = std::time::Instant::now();
        g.machine.stop(RunState::Paused).unwrap();
        let took = start.elapsed();
        g.machine.cont().unwrap();
        took < Duration::from_millis(100)
    };
    wait(at_once, || "a throttled guest does not stop at once".into());
    g.machine.set_throttle(0);
}

/// KVM logs, which costs the guest time, for as long as somebody measures or limits, and no longer.
#[test]
fn the_log_ends_with_who_asked_for_it() {
    use godwit::dirty_rate::{Meter, Mode, Status, Wanted};
    for ring in [None, Some(4096)] {
        let dir = dir();
        let mut config = config(&dir, &guest::counter(), 16, 1);
        config.kvm.dirty_ring_entries = ring;
        let g = Guest::build(&config);
        let vm = g.machine.vm();
        let meter = Meter::new(g.machine.clone());
        let mode = if ring.is_some() { Mode::DirtyRing } else { Mode::DirtyBitmap };
        let time = Duration::from_millis(200);
        meter.start(Wanted { mode, time, sample_pages: None }).unwrap();
        assert!(vm.is_logging());
        let limited = g.machine.limit_dirt(None, 5);
        assert_eq!(limited.is_ok(), ring.is_some());
        wait(|| meter.report().status == Status::Measured, || format!("{:?}", meter.report()));
        if ring.is_some() {
            assert!(vm.is_logging(), "the limit goes on");
            assert_eq!(g.machine.dirty_limits().len(), 1);
            g.machine.limit_dirt(Some(0), 0).unwrap();
        }
        assert!(!vm.is_logging());
        let sampled =
            Wanted { mode: Mode::PageSampling, ..Wanted { mode, time, sample_pages: None } };
        meter.start(sampled).unwrap();
        assert!(!vm.is_logging());
    }
}

/// Runs a guest that writes 1024 pages in turn, and copies what the dirty log brings as a migration
/// does. Returns the pages of the copy that are not what the guest has in the end.
fn missed_pages(ring: Option<u32>) -> Result<Vec<usize>, kvm::Error> {
    let dir = dir();
    let mut config = config(&dir, &guest::writer(), 16, 1);
    config.kvm.dirty_ring_entries = ring;
    let g = Guest::build(&config);
    g.machine.cont().unwrap();
    g.said.wait_for(".");
    let ram = g.machine.ram();
    let pages = ram.main().pages();
    let mut log = g.machine.start_dirty_log().unwrap();
    let mut copy = vec![0u8; 16 << 20];
    for round in 1..=6 {
        if round == 6 {
            g.machine.stop(RunState::FinishMigrate).unwrap();
            ram.write(0x1234, b"by the VMM").unwrap();
        }
        let mut dirty = PageSet::new(pages);
        log.harvest(&mut dirty)?;
        if round == 1 {
            assert_eq!(dirty.count(), pages, "the first round is everything");
        }
        for chunk in (0..pages).step_by(256) {
            let end = (chunk + 256).min(pages);
            log.clear(&dirty, chunk..end).unwrap();
            for page in (chunk..end).filter(|&p| dirty.contains(p)) {
                let at = (page * 4096) as usize;
                ram.read(page * 4096, &mut copy[at..at + 4096]).unwrap();
            }
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let mut now = vec![0u8; 16 << 20];
    ram.read(0, &mut now).unwrap();
    let mut owed = PageSet::new(pages);
    owed.insert(7);
    log.give_back(&owed);
    let mut dirty = PageSet::new(pages);
    log.harvest(&mut dirty)?;
    assert!(dirty.contains(7));
    log.stop().unwrap();
    Ok((0..pages as usize)
        .filter(|p| now[p * 4096..][..4096] != copy[p * 4096..][..4096])
        .collect())
}

#[test]
fn the_dirty_log_misses_no_page() {
    for ring in [None, Some(65536)] {
        let missed = missed_pages(ring).unwrap();
        assert!(missed.is_empty(), "ring {ring:?}: {missed:?}");
    }
}

/// As many pages as the ring has entries are written in one turn. A KVM that looks at the ring too
/// late writes over its own entries; what it lost must not be taken for clean.
#[test]
fn a_dirty_ring_that_overflows_says_so() {
    match missed_pages(Some(1024)) {
        Ok(missed) => assert!(missed.is_empty(), "{missed:?}"),
        Err(kvm::Error::RingOverflow) => {}
        Err(other) => panic!("{other}"),
    }
}

#[test]
fn two_vcpus_stand_still_together() {
    let dir = dir();
    let g = Guest::build(&config(&dir, &guest::counter(), 16, 2));
    g.machine.cont().unwrap();
    g.said.wait_for("k");
    for _ in 0..20 {
        g.machine.inject_nmi().unwrap();
        g.machine.stop(RunState::Paused).unwrap();
        // The second vCPU waits for its INIT.
        assert_eq!(g.vcpus()[1].mp_state.mp_state, 1);
        g.machine.cont().unwrap();
    }
    assert_eq!(g.machine.vcpus().len(), 2);
}

#[test]
fn a_missing_device_says_what_to_do() {
    let dir = dir();
    let mut config = config(&dir, &guest::hello(), 16, 1);
    config.kvm.device = "/dev/kvm-that-is-not-there".into();
    let outside = godwit::machine::Outside {
        serial: None,
        lines: Default::default(),
        networks: std::sync::Arc::new(godwit::devices::NoNetworks),
        events: Box::new(|_| {}),
    };
    let Err(e) = godwit::machine::Machine::build(&config, outside) else { panic!("built") };
    assert!(e.to_string().contains("modprobe"), "{e}");
}
