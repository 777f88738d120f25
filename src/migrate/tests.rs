//! Whole migrations in one process, over real sockets, of a guest that is a thread writing memory.

use std::io::Write;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::json;

use super::capabilities::Capability;
use super::fake_guest::{FREE, FakeGuest, FakeState, RAM_BYTES};
use super::guest::{Migratable, State};
use super::incoming::{Arrival, Incoming, Origin};
use super::outgoing::{Destination, Source};
use super::progress::{Counters, Progress};
use super::settings::Settings;
use super::status::{Event, Status};
use crate::io::{Address, Connection, Listener, Waker};
use crate::machine::RunState;
use crate::memory::PAGE_BYTES;
use crate::stream;

struct Run {
    source: Arc<FakeGuest>,
    target: Arc<FakeGuest>,
    progress: Arc<Progress>,
    events: Vec<Event>,
    received: Result<(), super::incoming::Error>,
}

/// One migration with these capabilities and parameters; the target stays paused, so that memory
/// can be compared.
fn migrate(capabilities: &[Capability], parameters: serde_json::Value) -> Run {
    migrate_to(FakeGuest::new(RunState::InMigrate), capabilities, parameters, |_| {})
}

fn migrate_to(
    target: Arc<FakeGuest>,
    capabilities: &[Capability],
    parameters: serde_json::Value,
    meanwhile: impl FnOnce(&Underway),
) -> Run {
    migrate_with(target, (capabilities, &parameters), (capabilities, &parameters), meanwhile)
}

/// A migration that runs.
struct Underway {
    events: Arc<Mutex<Vec<Event>>>,
    progress: Arc<Progress>,
    waker: Waker,
}

impl Underway {
    fn cancel(&self) {
        if self.progress.life.cancel() {
            self.waker.cancel();
        }
    }

    /// Waits until the source has told so much, and what it has sent.
    fn wait(&self, what: &str, enough: impl Fn(&[Event], u64) -> bool) {
        let end = Instant::now() + Duration::from_secs(60);
        loop {
            let sent = Counters::get(&self.progress.counters.transferred);
            let events = self.events.lock().unwrap().clone();
            if enough(&events, sent) {
                return;
            }
            assert!(Instant::now() < end, "no {what}: {events:?}, {sent} bytes");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// What is set at one side.
type Side<'a> = (&'a [Capability], &'a serde_json::Value);

fn migrate_with(
    target: Arc<FakeGuest>,
    source_has: Side<'_>,
    target_has: Side<'_>,
    meanwhile: impl FnOnce(&Underway),
) -> Run {
    migrate_from(FakeGuest::busy(), target, source_has, target_has, meanwhile)
}

fn migrate_from(
    source: Arc<FakeGuest>,
    target: Arc<FakeGuest>,
    source_has: Side<'_>,
    target_has: Side<'_>,
    meanwhile: impl FnOnce(&Underway),
) -> Run {
    let dir = tempfile::tempdir().unwrap();
    let address = Address::unix(dir.path().join("s").to_str().unwrap());
    let settings = |(capabilities, parameters): Side<'_>| {
        let settings = Settings::default();
        let on: Vec<_> = capabilities.iter().map(|capability| (*capability, true)).collect();
        settings.set_capabilities(settings.capabilities().with(&on).unwrap());
        settings
            .set_parameters(settings.parameters().with(parameters.as_object().unwrap()).unwrap());
        Arc::new(settings)
    };
    let listener = Listener::bind(&address).unwrap();
    let incoming = Incoming {
        guest: target.clone(),
        settings: settings(target_has),
        arrival: Arc::new(Arrival::default()),
        events: Arc::new(|_| {}),
        waker: Waker::new(),
        autostart: Arc::new(|| false),
        arrived: Arc::new(|_| {}),
        uuid: None,
        file_name: None,
    };
    let receiver = std::thread::spawn(move || incoming.run(Origin::Listener(listener)));
    let events = Arc::new(Mutex::new(Vec::new()));
    let seen = events.clone();
    let listener = Arc::new(move |event| seen.lock().unwrap().push(event));
    let progress = Arc::new(Progress::new(listener));
    assert!(progress.life.enter(Status::Setup));
    let outgoing = Source {
        guest: source.clone(),
        settings: settings(source_has),
        progress: progress.clone(),
        waker: Waker::new(),
        go_on: Arc::default(),
        uuid: None,
    };
    let underway = Underway {
        events: events.clone(),
        progress: progress.clone(),
        waker: outgoing.waker.clone(),
    };
    let sender = std::thread::spawn(move || outgoing.run(Destination::Address(address)));
    meanwhile(&underway);
    sender.join().unwrap();
    let received = receiver.join().unwrap();
    let events = events.lock().unwrap().clone();
    Run { source, target, progress, events, received }
}

impl Run {
    fn assert_moved(&self) {
        self.assert_moved_but(|_| false);
    }

    /// Some pages may be zeros at the target instead.
    fn assert_moved_but(&self, free: impl Fn(u64) -> bool) {
        let figures = self.progress.figures().clone();
        assert_eq!(
            self.progress.status(),
            Status::Completed,
            "{:?} {:?}",
            figures.error,
            self.received
        );
        self.received.as_ref().unwrap();
        assert_eq!(self.source.run_state(), RunState::PostMigrate);
        assert_eq!(self.target.run_state(), RunState::Paused);
        assert_eq!(self.source.count(), self.target.count());
        let (mut a, mut b) = (vec![0; 4096], vec![0; 4096]);
        for page in 0..RAM_BYTES / PAGE_BYTES {
            self.source.ram.read(page * PAGE_BYTES, &mut a).unwrap();
            self.target.ram.read(page * PAGE_BYTES, &mut b).unwrap();
            let given_up = free(page) && b == [0; 4096];
            assert!(given_up || a == b, "page {page} differs");
        }
    }
}

#[test]
fn godwits_move_a_busy_guest_with_runs_and_ranges() {
    let run = migrate(&[], json!({"max-bandwidth": 0, "x-godwit-verify": true}));
    let pages = run.target.ram.main().data_pages().unwrap().count();
    assert!(pages < 4000, "holes stay holes: {pages}");
    run.assert_moved();
    assert_eq!(run.events[0], Event::Status(Status::Setup));
    assert_eq!(run.events[1], Event::Pass(1));
    assert_eq!(run.events[2], Event::Status(Status::Active));
    assert_eq!(run.events.last(), Some(&Event::Status(Status::Completed)));
}

#[test]
fn qemus_framing_moves_the_same_guest() {
    migrate(&[], json!({"max-bandwidth": 0, "x-godwit-stream": "qemu"})).assert_moved();
}

#[test]
fn deltas_move_the_same_guest_in_both_framings() {
    for framing in ["auto", "qemu"] {
        let parameters = json!({
            "max-bandwidth": 100 << 20, "downtime-limit": 20, "xbzrle-cache-size": 1 << 20, "x-godwit-stream": framing,
        });
        // A guest that gets no time dirties nothing that would be there to be sent as changes.
        let sends_deltas = |_| {
            let run = migrate(&[Capability::Xbzrle], parameters.clone());
            run.assert_moved();
            let stats = run.progress.figures().xbzrle.unwrap();
            stats.pages > 0
        };
        assert!((0..10).any(sends_deltas), "{framing}");
    }
}

#[test]
fn several_channels_move_the_same_guest_with_and_without_deltas() {
    for capabilities in [&[Capability::Multifd][..], &[Capability::Multifd, Capability::Xbzrle]] {
        let parameters =
            json!({"max-bandwidth": 200 << 20, "multifd-channels": 3, "x-godwit-verify": true});
        let run = migrate(capabilities, parameters);
        run.assert_moved();
        assert!(run.progress.report()["ram"]["multifd-bytes"].as_u64().unwrap() > 1 << 20);
    }
}

#[test]
fn memory_that_the_target_had_and_mapped_is_overwritten() {
    for parameters in
        [json!({"max-bandwidth": 0, "x-godwit-verify": true}), json!({"x-godwit-stream": "qemu"})]
    {
        let target = FakeGuest::new(RunState::InMigrate);
        target.ram.write(0, &vec![0xa5; RAM_BYTES as usize]).unwrap();
        target.ram.main().map_what_is_there(&AtomicBool::new(false));
        assert!(target.ram.main().is_mapped(&(0..RAM_BYTES)));
        migrate_to(target, &[], parameters, |_| {}).assert_moved();
    }
}

#[test]
fn packets_move_the_same_guest_to_either_peer() {
    for (stream, compression, zeros) in [
        ("qemu", "none", "multifd"),
        ("qemu", "zlib", "legacy"),
        ("qemu", "zstd", "none"),
        ("auto", "zstd", "multifd"),
        ("auto", "zlib", "legacy"),
    ] {
        let parameters = json!({
            "max-bandwidth": 400 << 20, "multifd-channels": 3, "x-godwit-stream": stream,
            "multifd-compression": compression, "zero-page-detection": zeros, "downtime-limit": 10,
        });
        let run = migrate(&[Capability::Multifd], parameters);
        let pages = run.target.ram.main().data_pages().unwrap().count();
        run.assert_moved();
        assert!(pages < 4000, "{stream} {compression} {zeros}: holes stay holes: {pages}");
    }
}

#[test]
fn pages_that_the_guest_names_free_do_not_travel_unless_it_takes_them_back() {
    let (deltas, channels) = ([Capability::Xbzrle], [Capability::Multifd]);
    let both = [Capability::Multifd, Capability::Xbzrle];
    for (capabilities, stream, verify) in [
        (&[][..], "auto", true),
        (&[], "qemu", false),
        (&deltas, "auto", true),
        (&deltas, "qemu", false),
        (&both, "auto", true),
        (&channels, "qemu", false),
    ] {
        for twice in [false, true] {
            let parameters = json!({
                "max-bandwidth": 150 << 20, "downtime-limit": 10, "x-godwit-stream": stream,
                "x-godwit-verify": verify, "multifd-channels": 2, "xbzrle-cache-size": 4 << 20,
            });
            let (source, target) = (FakeGuest::busy(), FakeGuest::new(RunState::InMigrate));
            source.names_free_pages(twice);
            if verify && !twice {
                // Not in place of what the guest had there, either.
                target.ram.write(0, &vec![0xa5; RAM_BYTES as usize]).unwrap();
            }
            let both = (capabilities, &parameters);
            let run = migrate_from(source, target, both, both, |_| {});
            run.assert_moved_but(|page| FREE.contains(&page) && page % 7 != 0);
            let report = run.progress.report();
            let hinted = report["x-godwit"]["hinted"].as_u64().unwrap_or(0);
            let free = FREE.filter(|page| page % 7 != 0).count() as u64;
            assert!(hinted >= free, "{capabilities:?} {stream} {twice}: {report:?}");
            assert!(run.source.has_all());
        }
    }
}

#[test]
fn a_guest_that_stays_has_its_free_pages_again() {
    let (source, target) = (FakeGuest::busy(), FakeGuest::new(RunState::InMigrate));
    source.names_free_pages(false);
    let slow = (&[][..], &json!({"max-bandwidth": 1 << 20}));
    let run = migrate_from(source, target, slow, slow, |underway| {
        underway.wait("first bytes", |events, sent| {
            sent > 0 && events.contains(&Event::Status(Status::Active))
        });
        underway.cancel();
    });
    assert_eq!(run.progress.status(), Status::Cancelled);
    assert!(run.source.has_all());
}

#[test]
fn deltas_over_several_channels_are_refused_where_the_peer_would_not_understand_them() {
    for (parameters, reason) in [
        (
            json!({"x-godwit-stream": "qemu"}),
            "capability 'xbzrle' together with 'multifd' needs a Godwit",
        ),
        (
            json!({"multifd-compression": "zlib"}),
            "capability 'xbzrle' together with 'multifd' does not go with",
        ),
    ] {
        let run = migrate(&[Capability::Multifd, Capability::Xbzrle], parameters);
        let error = run.progress.figures().error.clone().unwrap();
        assert!(error.starts_with(reason), "{error}");
        assert_eq!(run.source.run_state(), RunState::Running);
        run.received.unwrap_err();
    }
}

#[test]
fn a_target_set_to_other_channels_than_its_source_refuses() {
    let with = |channels: u8| json!({"multifd-channels": channels, "x-godwit-stream": "qemu", "max-bandwidth": 0});
    for (capabilities, channels, reason) in [
        (&[][..], 2, "capability multifd is off here"),
        (&[Capability::Multifd][..], 2, "more than the 2 channels"),
    ] {
        let target = FakeGuest::new(RunState::InMigrate);
        let source = (&[Capability::Multifd][..], &with(3));
        let run = migrate_with(target, source, (capabilities, &with(channels)), |_| {});
        let error = run.received.unwrap_err().to_string();
        assert!(error.contains(reason) && error.contains("multifd-channels"), "{error}");
        assert_eq!(run.progress.status(), Status::Failed);
        assert_eq!(run.source.run_state(), RunState::Running);
        assert_eq!(run.target.run_state(), RunState::InMigrate);
    }
}

#[test]
fn a_running_guest_waits_for_the_targets_word() {
    let capabilities = [Capability::ReturnPath, Capability::SwitchoverAck];
    for stream in ["auto", "qemu"] {
        migrate(&capabilities, json!({"max-bandwidth": 0, "x-godwit-stream": stream}))
            .assert_moved();
    }
    // A target without the capability says nothing, so the guest is never stopped.
    let (source, target) = ((&capabilities[..], &json!({})), (&[][..], &json!({})));
    let run = migrate_with(FakeGuest::new(RunState::InMigrate), source, target, |underway| {
        underway.wait("fifth pass", |events, _| events.contains(&Event::Pass(5)));
        underway.cancel();
    });
    assert_eq!(run.progress.status(), Status::Cancelled);
    assert_eq!(run.source.run_state(), RunState::Running);
}

#[test]
fn cancel_leaves_the_guest_running_at_the_source() {
    let target = FakeGuest::new(RunState::InMigrate);
    let run = migrate_to(target, &[], json!({"max-bandwidth": 1 << 20}), |underway| {
        underway.wait("first bytes", |events, sent| {
            sent > 0 && events.contains(&Event::Status(Status::Active))
        });
        underway.cancel();
    });
    assert_eq!(run.progress.status(), Status::Cancelled);
    assert_eq!(run.source.run_state(), RunState::Running);
    assert!(run.received.is_err());
    assert_eq!(run.target.run_state(), RunState::InMigrate);
}

#[test]
fn refusal_reaches_the_source_in_words() {
    let mut target = FakeGuest::new(RunState::InMigrate);
    Arc::get_mut(&mut target).unwrap().refuses = Some("no such CPU here");
    let run = migrate_to(target, &[], json!({}), |_| {});
    let error = run.progress.figures().error.clone().unwrap();
    assert_eq!(error, "the target refused: no such CPU here");
    assert_eq!(run.source.run_state(), RunState::Running);
}

#[test]
fn a_stream_without_the_guests_ram_is_refused() {
    let mut bytes = Vec::new();
    let machine = super::guest::MACHINE.into();
    stream::Configuration { machine, ..stream::Configuration::default() }.write(&mut bytes);
    FakeState(5, false).write(&mut bytes).unwrap();
    stream::end_of_states(&mut bytes);
    let (mut ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    ours.write_all(&bytes).unwrap();
    drop(ours);
    let guest = FakeGuest::new(RunState::InMigrate);
    let target = Incoming {
        guest: guest.clone(),
        settings: Arc::default(),
        arrival: Arc::new(Arrival::default()),
        events: Arc::new(|_| {}),
        waker: Waker::new(),
        autostart: Arc::new(|| true),
        arrived: Arc::new(|_| {}),
        uuid: None,
        file_name: None,
    };
    let error =
        target.run(Origin::Open(Connection::from_fd(theirs.into()))).unwrap_err().to_string();
    assert!(error.starts_with("\"microvm.ram\", this guest's RAM, is not among"), "{error}");
    assert_eq!(guest.run_state(), RunState::InMigrate);
}
