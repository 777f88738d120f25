//! Cancels, panics and changes at any moment of a migration, through the control plane's door: it
//! always ends, and the guest runs on or is where it was sent to.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::capabilities::Capability;
use super::fake_guest::{FakeGuest, Panics};
use super::guest::Migratable;
use super::handle::{Handle, Parts, Refused};
use super::status::{Event, Status};
use crate::io::transport::NoDescriptors;
use crate::io::{self, Address, OpenError};
use crate::machine::RunState;

/// Longer than anything takes on a busy machine.
const LONG: Duration = Duration::from_secs(60);

struct Scene {
    dir: tempfile::TempDir,
    guest: Arc<FakeGuest>,
    handle: Arc<Handle>,
    told: Arc<Mutex<Vec<Status>>>,
}

impl Scene {
    fn new(panics: Option<Panics>, capabilities: &[Capability]) -> Self {
        let (guest, told) = (FakeGuest::idle(panics), Arc::new(Mutex::new(Vec::new())));
        let heard = told.clone();
        let handle = Handle::new(Parts {
            guest: guest.clone(),
            events: Arc::new(move |event| {
                if let Event::Status(status) = event {
                    heard.lock().unwrap().push(status);
                }
            }),
            autostart: Arc::new(|| true),
            arrived: Arc::new(|_| {}),
            on_failure: Arc::new(|_| {}),
            on_success: Arc::new(|| {}),
            is_incoming: false,
            uuid: None,
        });
        let on = capabilities.iter().chain([&Capability::Events]).map(|c| (*c, true));
        handle.set_capabilities(&on.collect::<Vec<_>>()).unwrap();
        Self { dir: tempfile::tempdir().unwrap(), guest, handle, told }
    }

    fn start(&self) {
        let path = self.dir.path().join("f").to_str().unwrap().to_owned();
        let address = Address::File { path, offset: 0 };
        match self.handle.start(address, &mut NoDescriptors, &|| None) {
            Ok(_) | Err(Refused::Open(OpenError::Io(io::Error::Cancelled))) => {}
            Err(error) => panic!("{error}"),
        }
    }

    /// Waits for the end, which must fit what was told and what the guest does.
    fn end(&self) -> Value {
        let end = Instant::now() + LONG;
        while self.handle.is_busy() {
            assert!(Instant::now() < end, "{:?} {:?}", self.told, self.handle.report());
            std::thread::yield_now();
        }
        let report = Value::Object(self.handle.report());
        let told = std::mem::take(&mut *self.told.lock().unwrap());
        let moves = told.windows(2).all(|pair| pair[0].may_become(pair[1]));
        assert!(moves && told[0] == Status::Setup, "{told:?}");
        assert_eq!(report["status"], told.last().unwrap().name());
        let gone = report["status"] == "completed";
        let wanted = if gone { RunState::PostMigrate } else { RunState::Running };
        assert_eq!(self.guest.run_state(), wanted, "{report}");
        report
    }
}

/// A seeded generator (xorshift).
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound.max(1)
    }
}

#[test]
fn a_cancel_at_any_moment_ends_the_migration() {
    let mut random = Random(0x5eed);
    for capabilities in [&[][..], &[Capability::PauseBeforeSwitchover]] {
        let scene = Scene::new(None, capabilities);
        let go_on =
            || while scene.handle.is_busy() && scene.handle.go_on("pre-switchover").is_err() {};
        let started = Instant::now();
        scene.start();
        go_on();
        scene.end();
        let usual = started.elapsed().as_nanos() as u64;
        let (mut cancelled, mut completed) = (0, 0);
        for attempt in 0..700 {
            scene.guest.set_state(RunState::Running);
            let waits: Vec<_> = (0..3).map(|_| random.below(usual * 5 / 4)).collect();
            scene.start();
            let started = Instant::now();
            std::thread::scope(|scope| {
                for wait in &waits[1..] {
                    let handle = &scene.handle;
                    scope.spawn(move || {
                        while (started.elapsed().as_nanos() as u64) < *wait {
                            std::hint::spin_loop();
                        }
                        handle.cancel();
                    });
                }
                go_on();
            });
            let report = scene.end();
            cancelled += u32::from(report["status"] == "cancelled");
            completed += u32::from(report["status"] == "completed");
            assert_ne!(report["status"], "failed", "attempt {attempt}: {report}");
        }
        assert!(cancelled > 20, "{cancelled} cancelled, {completed} completed");
    }
}

#[test]
fn a_panic_anywhere_is_a_failure_that_says_so_and_the_guest_goes_on() {
    let all = [
        Panics::StartLog,
        Panics::Harvest(0),
        Panics::Harvest(1),
        Panics::Harvest(2),
        Panics::Clear,
        Panics::Save,
        Panics::Write,
    ];
    for at in all {
        let scene = Scene::new(Some(at), &[]);
        scene.start();
        let report = scene.end();
        assert_eq!(report["status"], "failed", "{at:?}: {report}");
        let error = report["error-desc"].as_str().unwrap();
        assert!(error.contains("has panicked") && error.contains("on purpose"), "{at:?}: {error}");
    }
}

#[test]
fn a_cache_without_memory_is_refused_when_it_is_set_and_the_old_one_stays() {
    let scene = Scene::new(None, &[Capability::Xbzrle]);
    let set = |bytes: u64| {
        let changes = json!({"xbzrle-cache-size": bytes});
        scene.handle.set_parameters(changes.as_object().unwrap()).map_err(|e| e.to_string())
    };
    for bits in [62, 63, 50] {
        let error = set(1 << bits).unwrap_err();
        assert!(error.starts_with("Parameter 'xbzrle_cache_size'"), "{error}");
    }
    assert_eq!(scene.handle.parameters().xbzrle_cache_size, 64 << 20);
    set(8 << 20).unwrap();
    scene.start();
    let report = scene.end();
    assert_eq!(report["xbzrle-cache"]["cache-size"], 8 << 20, "{report}");
}

#[test]
fn what_cannot_be_opened_leaves_no_migration_under_way() {
    let scene = Scene::new(None, &[]);
    let nowhere = Address::File { path: "/no/such/folder/f".into(), offset: 0 };
    let error =
        scene.handle.start(nowhere, &mut NoDescriptors, &|| None).err().unwrap().to_string();
    let report = scene.end();
    assert_eq!(report, json!({"status": "failed", "error-desc": error}));
    scene.start();
    assert_eq!(scene.end()["status"], "completed");
}
