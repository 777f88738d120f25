//! A target of migrations without a guest: RAM, and the loader of the real one.

use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use godwit::args::{self, Request};
use godwit::config::Config;
use godwit::devices::HostCpu;
use godwit::io::Waker;
use godwit::kvm::state::ForeignTsc;
use godwit::machine::{RunState, load};
use godwit::memory::GuestRam;
use godwit::migrate::guest::{DirtyLog, Loader, Migratable, State};
use godwit::migrate::guest_error::GuestError;
use godwit::migrate::incoming::{Arrival, Incoming, Origin};
use godwit::migrate::settings::Settings;
use godwit::stream::godwit::{Rehearsal, Requirements};
use godwit::stream::{Error, SectionHeader, Step};

/// Longer than anything may take that is no fault.
const SOON: Duration = Duration::from_secs(5);

/// Receives a guest of 2 MiB, or fails, soon.
///
/// # Panics
/// When a guest that did not arrive runs, and when it took long.
pub fn receives(origin: Origin, settings: Arc<Settings>) {
    let ram = GuestRam::new(&config().memory).unwrap();
    let guest = Arc::new(Guestless { ram, state: Mutex::new(RunState::InMigrate) });
    let target = Incoming {
        guest: guest.clone(),
        settings,
        arrival: Arc::new(Arrival::default()),
        events: Arc::new(|_| {}),
        arrived: Arc::new(|_| {}),
        waker: Waker::new(),
        autostart: Arc::new(|| true),
        uuid: None,
        file_name: None,
    };
    let started = Instant::now();
    let result = target.run(origin);
    if result.is_err() {
        assert_eq!(guest.run_state(), RunState::InMigrate, "{result:?}");
    }
    assert!(started.elapsed() < SOON, "{:?}", started.elapsed());
}

fn config() -> &'static Config {
    static CONFIG: OnceLock<Config> = OnceLock::new();
    CONFIG.get_or_init(|| {
        let words = "-M microvm,acpi=off -m 2 -smp 1 -nodefaults -display none -serial null -incoming defer";
        match args::parse(words.split(' ').map(Into::into)) {
            Ok(Request::Run(config)) => *config,
            _ => panic!("a sound command line"),
        }
    })
}

/// A machine without KVM: RAM, and the loader of the real one.
struct Guestless {
    ram: GuestRam,
    state: Mutex<RunState>,
}

impl Migratable for Guestless {
    fn ram(&self) -> &GuestRam {
        &self.ram
    }

    fn run_state(&self) -> RunState {
        *self.state.lock().unwrap()
    }

    fn stop(&self, _: RunState) -> Result<bool, GuestError> {
        unreachable!("a target stops no guest")
    }

    fn stop_time(&self) -> Duration {
        unreachable!("a target stops no guest")
    }

    fn let_go(&self) {}

    fn cont(&self) -> Result<(), GuestError> {
        *self.state.lock().unwrap() = RunState::Running;
        Ok(())
    }

    fn set_state(&self, to: RunState) {
        *self.state.lock().unwrap() = to;
    }

    fn set_throttle(&self, _: u8) {}

    fn start_dirty_log(&self) -> Result<Box<dyn DirtyLog>, GuestError> {
        unreachable!("a target logs nothing")
    }

    fn requirements(&self) -> Requirements {
        Requirements::default()
    }

    fn check_requirements(&self, _: &Requirements) -> Result<(), GuestError> {
        Ok(())
    }

    fn save(&self, _: bool) -> Result<Box<dyn State>, GuestError> {
        unreachable!("a target saves nothing")
    }

    fn save_here(&self, _: bool) -> Result<Box<dyn State>, GuestError> {
        unreachable!("a target saves nothing")
    }

    fn rehearse(&self) -> Result<Rehearsal, GuestError> {
        Ok(Rehearsal::default())
    }

    fn describes(&self) -> bool {
        true
    }

    fn loader(&self) -> Box<dyn Loader + '_> {
        Box::new(Sections(Some(load::Loader::new(config(), HostCpu::default()))))
    }
}

struct Sections(Option<load::Loader>);

impl Loader for Sections {
    fn section(
        &mut self,
        header: &SectionHeader,
        input: &[u8],
        offset: u64,
    ) -> Result<Step<()>, Error> {
        self.0.as_mut().expect("not applied yet").section(header, input, offset)
    }

    fn validate(&mut self) -> Result<(), GuestError> {
        self.0.as_ref().expect("not applied yet").validate().map_err(GuestError::from)
    }

    fn apply(&mut self, _: ForeignTsc) -> Result<Option<RunState>, GuestError> {
        let loader = self.0.take().expect("applied once");
        Ok(loader.run_state())
    }
}
