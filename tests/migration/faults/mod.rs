//! What goes wrong in the middle of a migration, at every point where it can: there is always
//! exactly one guest that runs or, where nobody can know, a paused source that says so; both sides
//! say why; a second attempt succeeds.

mod relay;
mod resources;

use std::path::{Path, PathBuf};

use self::relay::{Point, Relay};
use crate::common::vm::{Launch, Vm};
use serde_json::json;

const GUEST: &str = "ws=4 pattern=seq";
/// Enough bytes to hit the head of a frame, whatever stands between.
const SPOILT: usize = 3 << 20;

/// When it goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    Setup,
    FirstRound,
    MidRound,
    /// The guest has stopped, its last pages are on their way.
    SwitchOver,
    Device,
    Loaded,
    /// The source has said GO, which has not arrived.
    Go,
    /// GO has arrived, the answer has not.
    Shut,
}

/// The points up to which the source may take the guest back.
const BEFORE_GO: [At; 6] =
    [At::Setup, At::FirstRound, At::MidRound, At::SwitchOver, At::Device, At::Loaded];

/// A migration that stands still at its point.
struct Stage {
    dir: tempfile::TempDir,
    at: At,
    source: Vm,
    target: Vm,
    relay: Relay,
    /// The target goes back to waiting when it fails; otherwise it ends.
    waits_again: bool,
    attempts: u32,
}

impl Stage {
    fn at(at: At, waits_again: bool) -> Self {
        Self::with_timeout(at, waits_again, 60_000)
    }

    /// The source waits for so many milliseconds where the target is silent.
    fn with_timeout(at: At, waits_again: bool, timeout_ms: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let source = Launch::new(dir.path(), "source").guest(GUEST).start();
        let target = Launch::new(dir.path(), "target").guest(GUEST).incoming("defer").start();
        let relay = Relay::start(dir.path(), socket(dir.path()));
        let mut stage = Self { dir, at, source, target, relay, waits_again, attempts: 0 };
        stage.source.wait_for_sweeps(1);
        stage.begin(timeout_ms);
        stage
    }

    fn begin(&mut self, timeout_ms: u64) {
        let (source, target, relay) = (&mut self.source, &mut self.target, &self.relay);
        target.ask(
            "migrate-incoming",
            json!({"uri": uri(self.dir.path()), "exit-on-error": !self.waits_again}),
        );
        // So that the first rounds last, and never converge by themselves.
        let slow = json!({"max-bandwidth": 4 << 20, "downtime-limit": 0, "x-godwit-peer-timeout": timeout_ms});
        let quick = json!({"max-bandwidth": 0, "downtime-limit": 10_000, "x-godwit-commit-timeout": timeout_ms});
        let point = match self.at {
            At::Setup => Point::Setup,
            At::FirstRound => Point::Bytes(1 << 20),
            At::MidRound => Point::Bytes(6 << 20),
            At::SwitchOver => Point::Next,
            At::Device => Point::Device(100),
            At::Loaded => Point::Loaded,
            At::Go => Point::Go,
            At::Shut => Point::Shut,
        };
        let early = matches!(self.at, At::Setup | At::FirstRound | At::MidRound);
        if early {
            source.set(&[], &slow);
            relay.stop_at(point);
        } else {
            source.set(&["pause-before-switchover"], &quick);
        }
        source.ask("migrate", json!({"uri": relay.uri}));
        if !early {
            source.wait_for("pre-switchover", |report| report["status"] == "pre-switchover");
            relay.stop_at(point);
            source.ask("migrate-continue", json!({"state": "pre-switchover"}));
        }
        relay.wait();
    }

    /// The source has failed, says why with one of `reasons` in it, and has its guest.
    fn source_keeps_the_guest(&mut self, reasons: &[&str]) {
        let report = self.source.outcome();
        assert_eq!(report["status"], "failed", "{:?} {report}", self.at);
        let error = report["error-desc"].as_str().unwrap_or_default();
        assert!(reasons.iter().any(|reason| error.contains(reason)), "{:?}: {error}", self.at);
        self.source.assert_alive();
    }

    /// The target has failed, says why with one of `reasons` in it, and does not run the guest.
    fn target_gives_up(&mut self, reasons: &[&str]) {
        let says_why = |text: &str| reasons.iter().any(|reason| text.contains(reason));
        if self.waits_again {
            let report = self.target.outcome();
            let error = report["error-desc"].as_str().unwrap_or_default();
            assert!(report["status"] == "failed" && says_why(error), "{:?}: {report}", self.at);
            assert_eq!(self.target.status(), "inmigrate", "{:?}", self.at);
        } else {
            assert_eq!(self.target.exit_code(), Some(1), "{:?}", self.at);
        }
        let words = self.target.stderr();
        assert!(words.contains("incoming migration") && says_why(&words), "{:?}: {words}", self.at);
    }

    /// The connection is gone. A target that heard nothing before waits on; any other has failed.
    fn target_is_let_go(&mut self) {
        if self.at == At::Setup {
            assert_eq!(self.target.status(), "inmigrate");
            self.target.kill();
        } else {
            self.target_gives_up(&HUNG_UP);
        }
    }

    /// Nobody can know: the source is paused and says so.
    fn source_stays_paused(&mut self) {
        let report = self.source.outcome();
        assert_eq!(report["status"], "failed", "{:?}", self.at);
        let error = report["error-desc"].as_str().unwrap();
        assert!(error.contains("nobody can know"), "{:?}: {error}", self.at);
        assert_eq!(self.source.status(), "postmigrate");
    }

    /// The guest leaves once more, for the same target if that waits again.
    fn second_attempt_succeeds(&mut self) {
        self.attempts += 1;
        let name = format!("target{}", self.attempts);
        let mut fresh = None;
        if !self.waits_again {
            fresh =
                Some(Launch::new(self.dir.path(), &name).guest(GUEST).incoming("defer").start());
        }
        let target = fresh.as_mut().unwrap_or(&mut self.target);
        target.ask("migrate-incoming", json!({"uri": uri(self.dir.path())}));
        let parameters = json!({
            "max-bandwidth": 0, "downtime-limit": 300, "x-godwit-verify": true, "x-godwit-peer-timeout": 60_000,
            "x-godwit-commit-timeout": 0,
        });
        self.source.set(&[], &parameters);
        self.source.ask("migrate", json!({"uri": uri(self.dir.path())}));
        let report = self.source.outcome();
        assert_eq!(report["status"], "completed", "{:?} {report} {}", self.at, target.stderr());
        assert_eq!(self.source.status(), "postmigrate");
        let last = self.source.sweeps().last().copied().unwrap_or(0);
        target.assert_alive();
        assert!(target.sweeps()[0] >= last, "{:?}: went back", self.at);
    }
}

fn socket(dir: &Path) -> PathBuf {
    dir.join("target")
}

fn uri(dir: &Path) -> String {
    format!("unix:{}", socket(dir).display())
}

/// What a side says whose peer hung up.
const HUNG_UP: [&str; 4] =
    ["closed the connection", "Connection reset", "Broken pipe", "was gone before it gave"];

#[test]
fn a_killed_target_leaves_the_guest_at_the_source() {
    for at in BEFORE_GO {
        let mut stage = Stage::at(at, false);
        stage.target.kill();
        match at {
            // What it said does not arrive.
            At::Loaded => stage.relay.cut(),
            _ => stage.relay.go_on(),
        }
        stage.source_keeps_the_guest(&HUNG_UP);
        stage.second_attempt_succeeds();
    }
}

#[test]
fn a_target_killed_at_pre_switchover_gives_the_guest_back_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let mut source = Launch::new(dir.path(), "source").guest(GUEST).start();
    let mut target =
        Launch::new(dir.path(), "target").guest(GUEST).incoming(&uri(dir.path())).start();
    source.wait_for_sweeps(1);
    source
        .set(&["pause-before-switchover"], &json!({"max-bandwidth": 0, "downtime-limit": 10_000}));
    source.ask("migrate", json!({"uri": uri(dir.path())}));
    source.wait_for("pre-switchover", |report| report["status"] == "pre-switchover");
    target.kill();
    assert_eq!(source.outcome()["status"], "failed");
    source.assert_alive();
}

#[test]
fn a_target_killed_after_go_leaves_a_paused_source_that_a_person_may_continue() {
    for at in [At::Go, At::Shut] {
        let mut stage = Stage::at(at, false);
        stage.target.kill();
        stage.relay.cut();
        stage.source_stays_paused();
        // The person has seen that the target is dead.
        stage.source.ask("cont", json!({}));
        stage.source.assert_alive();
        stage.second_attempt_succeeds();
    }
}

#[test]
fn a_killed_source_leaves_no_guest_at_the_target() {
    let points = [At::FirstRound, At::MidRound, At::SwitchOver, At::Device, At::Loaded, At::Go];
    for (number, at) in points.into_iter().enumerate() {
        let mut stage = Stage::at(at, number % 2 == 0);
        stage.source.kill();
        stage.relay.cut();
        stage.target_gives_up(&HUNG_UP);
    }
}

#[test]
fn a_source_killed_before_its_first_byte_leaves_the_target_waiting() {
    let mut stage = Stage::at(At::Setup, false);
    stage.source.kill();
    stage.relay.cut();
    stage.target.wait_for_stderr("ended before it began");
    assert_eq!(stage.target.status(), "inmigrate");
}

#[test]
fn a_source_killed_after_go_has_given_the_guest_away() {
    let mut stage = Stage::at(At::Shut, false);
    stage.source.kill();
    stage.relay.cut();
    stage.target.assert_alive();
}

#[test]
fn a_cut_link_leaves_the_guest_at_the_source() {
    for at in BEFORE_GO {
        let mut stage = Stage::at(at, at != At::Setup);
        stage.relay.cut();
        stage.source_keeps_the_guest(&HUNG_UP);
        stage.target_is_let_go();
        stage.second_attempt_succeeds();
    }
}

#[test]
fn a_link_cut_after_go_leaves_one_guest_or_a_paused_source() {
    let mut stage = Stage::at(At::Go, true);
    stage.relay.cut();
    stage.source_stays_paused();
    stage.target_gives_up(&HUNG_UP);
    stage.source.ask("cont", json!({}));
    stage.second_attempt_succeeds();

    let mut stage = Stage::at(At::Shut, true);
    stage.relay.cut();
    stage.source_stays_paused();
    stage.target.assert_alive();
}

#[test]
fn a_silent_target_gives_the_guest_back_before_go_and_not_after() {
    let before_go = |at| {
        let mut stage = Stage::with_timeout(at, at != At::Setup, 2000);
        stage.source_keeps_the_guest(&["the target was silent for 2000 ms"]);
        stage.relay.cut();
        stage.target_is_let_go();
        stage.second_attempt_succeeds();
    };
    let after_go = |at| {
        let mut stage = Stage::with_timeout(at, true, 2000);
        stage.source_stays_paused();
        let report = stage.source.outcome();
        assert!(report["error-desc"].as_str().unwrap().contains("silent for 2000 ms"), "{report}");
        match at {
            At::Go => {
                stage.relay.cut();
                stage.target_gives_up(&HUNG_UP);
            }
            _ => stage.target.assert_alive(),
        }
    };
    // Each waits for most of its time: they do it side by side.
    std::thread::scope(|scope| {
        for at in [At::Setup, At::SwitchOver, At::Device, At::Loaded] {
            scope.spawn(move || before_go(at));
        }
        for at in [At::Go, At::Shut] {
            scope.spawn(move || after_go(at));
        }
    });
}

#[test]
fn a_stream_that_the_target_cannot_read_is_refused_by_name_on_both_sides() {
    for (at, bytes, waits_again) in [
        (At::Setup, 8, false),
        (At::FirstRound, SPOILT, true),
        (At::MidRound, SPOILT, false),
        (At::SwitchOver, SPOILT, true),
        (At::Device, 200, false),
        (At::Device, 200, true),
    ] {
        let mut stage = Stage::at(at, waits_again);
        stage.relay.spoil(bytes);
        let reasons = if at == At::Setup {
            &HUNG_UP[..]
        } else {
            &["the target refused", "could not load the guest"]
        };
        stage.source_keeps_the_guest(reasons);
        if at == At::Setup {
            // Nobody who begins like that is a source.
            let words = stage.target.stderr();
            assert!(words.contains("which is no migration stream"), "{words}");
            stage.target_is_let_go();
        } else {
            stage.target_gives_up(&[
                "cannot be read",
                "section",
                "frame",
                "outside its block",
                "delta",
            ]);
        }
        stage.second_attempt_succeeds();
    }
}

#[test]
fn cancel_gives_the_guest_back_before_go_and_comes_too_late_after() {
    for at in BEFORE_GO {
        let mut stage = Stage::at(at, at != At::Setup);
        stage.source.ask("migrate_cancel", json!({}));
        let report = stage.source.outcome();
        assert_eq!(report["status"], "cancelled", "{at:?} {report}");
        stage.source.assert_alive();
        stage.relay.cut();
        stage.target_is_let_go();
        stage.second_attempt_succeeds();
    }
    for at in [At::Go, At::Shut] {
        let mut stage = Stage::at(at, true);
        stage.source.ask("migrate_cancel", json!({}));
        stage.relay.go_on();
        assert_eq!(stage.source.outcome()["status"], "completed");
        assert_eq!(stage.source.status(), "postmigrate");
        stage.target.assert_alive();
    }
}

#[test]
fn a_migration_goes_on_when_its_client_is_gone() {
    for at in
        [At::Setup, At::FirstRound, At::MidRound, At::SwitchOver, At::Device, At::Loaded, At::Go]
    {
        let mut stage = Stage::at(at, false);
        stage.source.hang_up();
        stage.target.hang_up();
        stage.relay.go_on();
        stage.source.connect();
        stage.target.connect();
        stage
            .source
            .ask("migrate-set-parameters", json!({"max-bandwidth": 0, "downtime-limit": 10_000}));
        let report = stage.source.outcome();
        assert_eq!(report["status"], "completed", "{at:?} {report}");
        assert_eq!(stage.source.status(), "postmigrate");
        stage.target.assert_alive();
    }
}

#[test]
fn a_channel_that_ends_early_is_no_end_of_a_round() {
    // The main channel goes straight to the target, the others break at the relay: nothing may be
    // taken for complete.
    let dir = tempfile::tempdir().unwrap();
    let mut source = Launch::new(dir.path(), "source").guest(GUEST).start();
    let mut target = Launch::new(dir.path(), "target").guest(GUEST).incoming("defer").start();
    for vm in [&mut source, &mut target] {
        let parameters =
            json!({"max-bandwidth": 24 << 20, "downtime-limit": 0, "multifd-channels": 2});
        vm.set(&["multifd"], &parameters);
    }
    target.ask("migrate-incoming", json!({"uri": uri(dir.path())}));
    let relay = Relay::channels(dir.path(), socket(dir.path()), 1);
    source.wait_for_sweeps(1);
    relay.stop_at(Point::Bytes(2 << 20));
    source.ask("migrate", json!({"uri": relay.uri}));
    relay.wait();
    relay.cut();
    let report = source.outcome();
    assert_eq!(report["status"], "failed", "{report}");
    source.assert_alive();
    assert_eq!(target.exit_code(), Some(1));
    let words = target.stderr();
    assert!(words.contains("channel") || words.contains("closed the connection"), "{words}");
}
