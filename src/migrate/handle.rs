//! Migrations of one machine as the control plane sees them: start, cancel, look.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Weak};

use serde_json::{Map, Value};

use super::capabilities::{Capabilities, Capability, CapabilityError};
use super::guest::Guest;
use super::incoming::{Arrival, Origin, Target};
use super::outgoing::{Destination, Event, Source};
use super::parameters::{ParameterError, Parameters};
use super::progress::{Progress, Status};
use super::settings::Settings;
use crate::io::socket_file::SocketFile;
use crate::io::transport::{self, Direction, Opened};
use crate::io::{self, Address, Descriptors, Listener, OpenError, Ring, Waker};
use crate::machine::RunState;

/// Why a command about migrations was refused. The texts are QEMU's.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    #[error("There's a migration process in progress")]
    InProgress,
    #[error("Guest is waiting for an incoming migration")]
    InMigrate,
    #[error("Can't migrate the vm that was paused due to previous migration")]
    PostMigrate,
    #[error("Cannot resume if there is no paused migration")]
    NothingToResume,
    #[error("Migration requires multi-channel URIs (e.g. tcp)")]
    NeedsSeveralConnections,
    #[error("'-incoming' was not specified on the command line")]
    NotIncoming,
    #[error("The incoming migration has already been started")]
    IncomingStarted,
    #[error("Migration not in expected state: {0}")]
    WrongState(&'static str),
    #[error("{0}")]
    Blocked(&'static str),
    #[error("migrate-continue goes on from pre-switchover only")]
    NoContinue,
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error(transparent)]
    Capability(#[from] CapabilityError),
    #[error(transparent)]
    Parameter(#[from] ParameterError),
    #[error("no thread for the migration: {0}")]
    Thread(std::io::Error),
}

/// What an incoming migration's failure means for the process.
pub type OnFailure = Arc<dyn Fn(&str) + Send + Sync>;

pub struct Handle {
    guest: Arc<dyn Guest>,
    settings: Arc<Settings>,
    events: Arc<dyn Fn(Event) + Send + Sync>,
    autostart: Arc<dyn Fn() -> bool + Send + Sync>,
    /// Called when an incoming migration failed and `exit-on-error` is on.
    on_failure: OnFailure,
    /// Started with `-incoming`.
    is_incoming: bool,
    uuid: Option<[u8; 16]>,
    outgoing: Mutex<Outgoing>,
    arrival: Arc<Arrival>,
    /// The name of the socket that a guest is waited for at.
    socket_file: Mutex<Weak<SocketFile>>,
}

#[derive(Default)]
struct Outgoing {
    progress: Arc<Progress>,
    waker: Waker,
    go_on: Arc<AtomicBool>,
}

/// What a handle is made of.
pub struct Parts {
    pub guest: Arc<dyn Guest>,
    /// Called with events, of which the control plane shows those that capability `events` asks
    /// for.
    pub events: Arc<dyn Fn(Event) + Send + Sync>,
    pub autostart: Arc<dyn Fn() -> bool + Send + Sync>,
    pub on_failure: OnFailure,
    pub is_incoming: bool,
    pub uuid: Option<[u8; 16]>,
}

impl Handle {
    pub fn new(parts: Parts) -> Arc<Self> {
        let Parts { guest, events, autostart, on_failure, is_incoming, uuid } = parts;
        let settings = Arc::new(Settings::default());
        // QEMU shows events only where the capability is on.
        let shown = settings.clone();
        let events: Arc<dyn Fn(Event) + Send + Sync> = Arc::new(move |event| {
            if shown.has(Capability::Events) {
                events(event);
            }
        });
        Arc::new(Self {
            guest,
            settings,
            events,
            autostart,
            on_failure,
            is_incoming,
            uuid,
            outgoing: Mutex::default(),
            arrival: Arc::default(),
            socket_file: Mutex::default(),
        })
    }

    /// Starts to send the guest to `address`. `fds` finds descriptors by name, `blocker` says
    /// whether something forbids it now. What fails at once is told; the rest is in the report.
    pub fn start(
        &self,
        address: Address,
        fds: &mut dyn Descriptors,
        blocker: &dyn Fn() -> Option<&'static str>,
    ) -> Result<(), Refused> {
        let (progress, waker, go_on) = {
            let mut outgoing = self.outgoing();
            self.check_start(&outgoing, &address)?;
            if let Some(reason) = blocker() {
                return Err(Refused::Blocked(reason));
            }
            *outgoing = Outgoing::default();
            self.enter(&outgoing.progress, Status::Setup);
            (outgoing.progress.clone(), outgoing.waker.clone(), outgoing.go_on.clone())
        };
        // Without the lock: it may take long, and a cancel ends it.
        let opened = Ring::new(waker.clone()).map_err(OpenError::from);
        let opened =
            opened.and_then(|mut ring| transport::open(&mut ring, &address, Direction::Out, fds));
        let destination = match opened {
            Ok(Opened::Connection(connection)) => Destination::Open(connection),
            Ok(Opened::Fifo(path)) => Destination::Fifo(path),
            Ok(Opened::Socket) => Destination::Address(address),
            Err(error) => return Err(self.failed_at_once(&progress, error)),
        };
        let source = Source {
            guest: self.guest.clone(),
            settings: self.settings.clone(),
            progress: progress.clone(),
            events: self.events.clone(),
            waker,
            go_on,
            uuid: self.uuid,
        };
        let thread = std::thread::Builder::new().name("migration".into());
        match thread.spawn(move || source.run(destination)) {
            Ok(_) => Ok(()),
            Err(error) => {
                self.enter(&progress, Status::Failed);
                Err(Refused::Thread(error))
            }
        }
    }

    fn check_start(&self, outgoing: &Outgoing, address: &Address) -> Result<(), Refused> {
        if outgoing.progress.status().is_running() {
            return Err(Refused::InProgress);
        }
        match self.guest.run_state() {
            RunState::InMigrate => return Err(Refused::InMigrate),
            RunState::PostMigrate => return Err(Refused::PostMigrate),
            _ => {}
        }
        if self.settings.has(Capability::Multifd) && !address.takes_several_connections() {
            return Err(Refused::NeedsSeveralConnections);
        }
        Ok(())
    }

    fn failed_at_once(&self, progress: &Progress, error: OpenError) -> Refused {
        if matches!(error, OpenError::Io(io::Error::Cancelled)) {
            self.enter(progress, Status::Cancelled);
        } else {
            progress.figures().error = Some(error.to_string());
            self.enter(progress, Status::Failed);
        }
        error.into()
    }

    /// Ends an outgoing migration; the guest stays. Nothing to cancel is no error.
    pub fn cancel(&self) {
        let outgoing = self.outgoing();
        if outgoing.progress.status().is_running()
            && outgoing.progress.status() != Status::Cancelling
        {
            self.enter(&outgoing.progress, Status::Cancelling);
            outgoing.waker.cancel();
        }
    }

    /// `migrate-continue`.
    pub fn go_on(&self, from: &str) -> Result<(), Refused> {
        let outgoing = self.outgoing();
        let status = outgoing.progress.status();
        if status.name() != from {
            return Err(Refused::WrongState(status.name()));
        }
        if status != Status::PreSwitchover {
            return Err(Refused::NoContinue);
        }
        outgoing.go_on.store(true, Ordering::SeqCst);
        outgoing.waker.wake();
        Ok(())
    }

    /// Starts to wait for a guest at `address`.
    pub fn incoming(
        &self,
        address: &Address,
        exit_on_error: bool,
        fds: &mut dyn Descriptors,
    ) -> Result<(), Refused> {
        if !self.is_incoming {
            return Err(Refused::NotIncoming);
        }
        if self.guest.run_state() != RunState::InMigrate || !self.arrival.begin() {
            return Err(Refused::IncomingStarted);
        }
        let origin = self.open_origin(address, fds).inspect_err(|_| {
            self.arrival.set(Status::None, None);
            self.arrival.reopen();
        })?;
        self.arrival.set(Status::Setup, None);
        (self.events)(Event::Status(Status::Setup));
        let target = Target {
            guest: self.guest.clone(),
            settings: self.settings.clone(),
            arrival: self.arrival.clone(),
            events: self.events.clone(),
            waker: Waker::new(),
            autostart: self.autostart.clone(),
            uuid: self.uuid,
        };
        let on_failure = self.on_failure.clone();
        let run = move || {
            if let Err(error) = target.run(origin) {
                eprintln!("godwit: incoming migration: {error}");
                if exit_on_error {
                    on_failure(&error.to_string());
                } else {
                    target.arrival.reopen();
                }
            }
        };
        let thread = std::thread::Builder::new().name("incoming".into());
        thread.spawn(run).map(drop).map_err(Refused::Thread)
    }

    fn open_origin(&self, address: &Address, fds: &mut dyn Descriptors) -> Result<Origin, Refused> {
        let mut ring = Ring::new(Waker::new()).map_err(OpenError::from)?;
        if let Opened::Connection(connection) =
            transport::open(&mut ring, address, Direction::In, fds)?
        {
            return Ok(Origin::Open(connection));
        }
        let listener = Listener::bind(address)?;
        self.arrival.listening(listener.addresses());
        *self.socket_file() = listener.file();
        Ok(Origin::Listener(listener))
    }

    /// The process ends, while its threads may still wait for a guest: what has a name outside goes.
    pub fn end(&self) {
        self.socket_file().upgrade().iter().for_each(|file| file.remove());
    }

    fn socket_file(&self) -> MutexGuard<'_, Weak<SocketFile>> {
        self.socket_file.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// The answer of `query-migrate`: both directions in one object, as in QEMU.
    pub fn report(&self) -> Map<String, Value> {
        let mut out = self.arrival.report();
        out.extend(self.outgoing().progress.report());
        out
    }

    /// An outgoing migration is under way.
    pub fn is_busy(&self) -> bool {
        self.outgoing().progress.status().is_running()
    }

    pub fn capabilities(&self) -> Capabilities {
        self.settings.capabilities()
    }

    pub fn set_capabilities(&self, changes: &[(Capability, bool)]) -> Result<(), Refused> {
        if self.is_busy() {
            return Err(Refused::InProgress);
        }
        let result = self.settings.capabilities().with(changes)?;
        let multifd_changes =
            result.has(Capability::Multifd) != self.settings.has(Capability::Multifd);
        if multifd_changes && self.arrival.status().is_running() {
            return Err(CapabilityError::MultifdTooLate.into());
        }
        self.settings.set_capabilities(result);
        Ok(())
    }

    pub fn parameters(&self) -> Parameters {
        self.settings.parameters()
    }

    pub fn set_parameters(&self, changes: &Map<String, Value>) -> Result<(), Refused> {
        let result = self.settings.parameters().with(changes)?;
        self.settings.set_parameters(result);
        // A migration that waits for its limit looks again.
        self.outgoing().waker.wake();
        Ok(())
    }

    fn outgoing(&self) -> MutexGuard<'_, Outgoing> {
        self.outgoing.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn enter(&self, progress: &Progress, status: Status) {
        progress.figures().status = status;
        (self.events)(Event::Status(status));
    }
}
