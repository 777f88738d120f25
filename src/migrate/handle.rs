//! Migrations of one machine as the control plane sees them: start, cancel, look.

use std::convert::Infallible;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak, mpsc};

use serde_json::{Map, Value};

use super::capabilities::{Capabilities, Capability, CapabilityError};
use super::guest::Migratable;
use super::incoming::{self, Arrival, Incoming, Origin};
use super::outgoing::{Destination, Source, blocks_of};
use super::parameters::{ParameterError, Parameters};
use super::progress::Progress;
use super::settings::Settings;
use super::status::{Event, Listener as Events, Status};
use crate::config::Restore;
use crate::io::aside::aside;
use crate::io::socket_file::SocketFile;
use crate::io::transport::{self, Direction, FD_SET, Opened};
use crate::io::{self, Address, Descriptors, Listener, OpenError, Program, Ring, Waker};
use crate::machine::RunState;
use crate::snapshot::{self, Save};

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
    #[error("Migration requires seekable transport (e.g. file)")]
    NeedsFile,
    #[error(
        "capability 'mapped-ram' needs a regular file that is not opened for appending, and '{0}' is none"
    )]
    NeedsPlaces(String),
    #[error(
        "capability 'background-snapshot' writes to a file or a command, not to a socket: the guest stays here, and a \
         target would run it a second time"
    )]
    BackgroundNeedsFile,
    #[error("Cannot use compression with mapped-ram")]
    MappedCompression,
    #[error(
        "parameter 'x-godwit-base' is set, so that a file is written, of what differs from {base}: migrate to file:PATH, \
         or set it to the empty string"
    )]
    IncrementNeedsFile { base: String },
    #[error("parameter 'x-godwit-base' does not go with capability '{0}'")]
    IncrementAlone(&'static str),
    #[error(transparent)]
    Snapshot(#[from] snapshot::Error),
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
    #[error(
        "Parameter 'xbzrle_cache_size' is {bytes}, which is more than the {memory} bytes of memory that this host has"
    )]
    CacheTooLarge { bytes: u64, memory: u64 },
    #[error("Parameter 'xbzrle_cache_size': {0}")]
    Cache(xbzrle::CacheError),
    #[error("no thread for the migration: {0}")]
    Thread(std::io::Error),
}

/// A migration that has not begun to connect.
#[must_use = "the migration begins when it is dropped"]
pub struct Held(#[allow(dead_code, reason = "its end is what tells")] mpsc::Sender<Infallible>);

/// A migration that waits before the guest is handed over.
#[must_use = "the migration goes on when it is dropped"]
pub(crate) struct GoOn {
    go_on: Arc<AtomicBool>,
    waker: Waker,
}

impl Drop for GoOn {
    fn drop(&mut self) {
        self.go_on.store(true, Ordering::SeqCst);
        self.waker.wake();
    }
}

/// What an incoming migration's failure means for the process.
pub(crate) type OnFailure = Arc<dyn Fn(&str) + Send + Sync>;

pub struct Handle {
    guest: Arc<dyn Migratable>,
    settings: Arc<Settings>,
    events: Events,
    autostart: Arc<dyn Fn() -> bool + Send + Sync>,
    arrived: Arc<dyn Fn(&Parameters) + Send + Sync>,
    /// Called when an incoming migration failed and `exit-on-error` is on.
    on_failure: OnFailure,
    on_success: Arc<dyn Fn() + Send + Sync>,
    /// Started with `-incoming`.
    is_incoming: bool,
    uuid: Option<[u8; 16]>,
    outgoing: Mutex<Outgoing>,
    arrival: Arc<Arrival>,
    /// The name of the socket that a guest is waited for at.
    socket_file: Mutex<Weak<SocketFile>>,
    /// The command that an incoming migration is read from.
    feeder: Mutex<Option<Program>>,
}

/// The latest outgoing migration.
#[derive(Clone, Default)]
struct Outgoing {
    progress: Arc<Progress>,
    waker: Waker,
    go_on: Arc<AtomicBool>,
    /// The command that it is written to.
    program: Option<Program>,
}

/// What a handle is made of.
pub struct Parts {
    pub guest: Arc<dyn Migratable>,
    /// Called with events, of which the control plane shows those that capability `events` asks
    /// for.
    pub events: Events,
    pub autostart: Arc<dyn Fn() -> bool + Send + Sync>,
    pub on_failure: OnFailure,
    /// Called when an incoming guest is loaded, and runs if it is to.
    pub on_success: Arc<dyn Fn() + Send + Sync>,
    /// Called when a guest has arrived and is this machine's.
    pub arrived: Arc<dyn Fn(&Parameters) + Send + Sync>,
    pub is_incoming: bool,
    pub uuid: Option<[u8; 16]>,
}

impl Handle {
    pub fn new(parts: Parts) -> Arc<Self> {
        let Parts { guest, events, autostart, on_failure, on_success, arrived, is_incoming, uuid } =
            parts;
        let settings = Arc::new(Settings::default());
        // QEMU shows events only where the capability is on.
        let shown = settings.clone();
        let events: Events = Arc::new(move |event| {
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
            on_success,
            arrived,
            is_incoming,
            uuid,
            outgoing: Mutex::default(),
            arrival: Arc::default(),
            socket_file: Mutex::default(),
            feeder: Mutex::default(),
        })
    }

    /// Starts to send the guest to `address`. `fds` finds descriptors by name, `blocker` says
    /// whether something forbids it now. What fails at once is told; the rest is in the report, and
    /// begins when what this returns is dropped.
    pub fn start(
        &self,
        address: Address,
        fds: &mut dyn Descriptors,
        blocker: &dyn Fn() -> Option<&'static str>,
    ) -> Result<Held, Refused> {
        let outgoing = self.begin(&address, blocker)?;
        let base = self.parameters().x_godwit_base;
        if !base.is_empty() {
            let destination = self.open_increment(&outgoing, &address, base);
            let destination = destination.map_err(|error| outgoing.failed_at_once(error))?;
            return self.spawn(outgoing, destination);
        }
        // Without the lock: it may take long, and a cancel ends it.
        let opened = Ring::new(outgoing.waker.clone()).map_err(OpenError::from);
        let opened =
            opened.and_then(|mut ring| transport::open(&mut ring, &address, Direction::Out, fds));
        let mapped = self.settings.has(Capability::MappedRam);
        let destination = match opened {
            Ok(Opened::Connection(connection)) if !mapped || connection.takes_places() => {
                Destination::Open(connection)
            }
            Ok(Opened::Connection(_) | Opened::Fifo(_)) if mapped => {
                return Err(outgoing.failed_at_once(Refused::NeedsPlaces(address.to_string())));
            }
            Ok(Opened::Connection(connection)) => Destination::Open(connection),
            Ok(Opened::Fifo(path)) => Destination::Fifo(path),
            Ok(Opened::Socket) => Destination::Address(address),
            Err(error) => return Err(outgoing.failed_at_once(error.into())),
        };
        if let Destination::Open(connection) = &destination {
            self.outgoing().program = connection.program.clone();
        }
        self.spawn(outgoing, destination)
    }

    /// Opens what the increment builds upon, and the file, beside the control plane: their names may
    /// be anywhere.
    fn open_increment(
        &self,
        outgoing: &Outgoing,
        address: &Address,
        base: String,
    ) -> Result<Destination, Refused> {
        let Address::File { path, .. } = address else {
            return Err(Refused::IncrementNeedsFile { base });
        };
        let path = path.clone();
        let blocks = blocks_of(self.guest.ram());
        let mut ring = Ring::new(outgoing.waker.clone()).map_err(OpenError::from)?;
        let begin = move || Save::begin(path.as_ref(), base.as_ref(), &blocks);
        let save = aside(&mut ring, "open", begin).map_err(OpenError::from)??;
        Ok(Destination::Increment(Box::new(save)))
    }

    fn spawn(&self, outgoing: Outgoing, destination: Destination) -> Result<Held, Refused> {
        let source = Source {
            guest: self.guest.clone(),
            settings: self.settings.clone(),
            progress: outgoing.progress.clone(),
            waker: outgoing.waker.clone(),
            go_on: outgoing.go_on.clone(),
            uuid: self.uuid,
        };
        let thread = std::thread::Builder::new().name("migration".into());
        let (held, until_dropped) = mpsc::channel();
        let work = move || {
            let _ = until_dropped.recv();
            source.run(destination);
        };
        match thread.spawn(work) {
            Ok(_) => Ok(Held(held)),
            Err(error) => {
                self.outgoing().program = None;
                Err(outgoing.failed_at_once(Refused::Thread(error)))
            }
        }
    }

    /// Enters `setup` if nothing speaks against it.
    fn begin(
        &self,
        address: &Address,
        blocker: &dyn Fn() -> Option<&'static str>,
    ) -> Result<Outgoing, Refused> {
        let mut outgoing = self.outgoing();
        self.check_start(&outgoing, address)?;
        if let Some(reason) = blocker() {
            return Err(Refused::Blocked(reason));
        }
        let progress = Arc::new(Progress::new(self.events.clone()));
        *outgoing = Outgoing { progress, ..Outgoing::default() };
        outgoing.progress.life.enter(Status::Setup);
        Ok(outgoing.clone())
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
        self.check_increment(address)?;
        self.check_address(address)?;
        let background = self.settings.has(Capability::BackgroundSnapshot);
        if background && matches!(address, Address::Tcp(_) | Address::Unix(_)) {
            return Err(Refused::BackgroundNeedsFile);
        }
        let mapped = self.settings.has(Capability::MappedRam);
        if self.settings.has(Capability::Multifd) && !mapped && !address.takes_several_connections()
        {
            return Err(Refused::NeedsSeveralConnections);
        }
        Ok(self.parameters().check_built()?)
    }

    /// What differs from a base is a file of its own, which one channel writes.
    fn check_increment(&self, address: &Address) -> Result<(), Refused> {
        let base = self.parameters().x_godwit_base;
        match address {
            _ if base.is_empty() => return Ok(()),
            Address::File { path, .. } if path.starts_with(FD_SET) => {
                return Err(snapshot::Error::NotAlone("/dev/fdset").into());
            }
            Address::File { offset: 1.., .. } => {
                return Err(snapshot::Error::NotAlone("offset=").into());
            }
            Address::File { .. } => {}
            _ => return Err(Refused::IncrementNeedsFile { base }),
        }
        match [Capability::Multifd, Capability::Xbzrle]
            .into_iter()
            .find(|capability| self.settings.has(*capability))
        {
            Some(capability) => Err(Refused::IncrementAlone(capability.name())),
            None => Ok(()),
        }
    }

    /// Places in a file want a file, and pages as they are.
    fn check_address(&self, address: &Address) -> Result<(), Refused> {
        if !self.settings.has(Capability::MappedRam) {
            return Ok(());
        }
        if !matches!(address, Address::File { .. }) {
            return Err(Refused::NeedsFile);
        }
        match self.parameters().multifd_compression {
            "none" => Ok(()),
            _ => Err(Refused::MappedCompression),
        }
    }

    /// Ends an outgoing migration; the guest stays. Nothing to cancel is no error.
    pub fn cancel(&self) {
        let outgoing = self.outgoing();
        if outgoing.progress.life.cancel() {
            outgoing.waker.cancel();
        }
    }

    /// The process ends, while its threads may still be at work: what they have outside of it goes,
    /// the commands behind `exec:` streams and the name of a socket that a guest is waited for at.
    pub(crate) fn end(&self) {
        self.socket_file().upgrade().iter().for_each(|file| file.remove());
        let programs = [self.outgoing().program.take(), self.feeder().take()];
        programs.iter().flatten().for_each(Program::end);
    }

    /// `migrate-continue`. It goes on when what this returns is dropped.
    pub(crate) fn go_on(&self, from: &str) -> Result<GoOn, Refused> {
        let outgoing = self.outgoing();
        let status = outgoing.progress.status();
        if status.name() != from {
            return Err(Refused::WrongState(status.name()));
        }
        if status != Status::PreSwitchover {
            return Err(Refused::NoContinue);
        }
        Ok(GoOn { go_on: outgoing.go_on.clone(), waker: outgoing.waker.clone() })
    }

    /// Whether a guest may be waited for: one is awaited, and has not come.
    pub(crate) fn expects_guest(&self) -> Result<(), Refused> {
        if !self.is_incoming {
            return Err(Refused::NotIncoming);
        }
        match self.guest.run_state() {
            RunState::InMigrate => Ok(()),
            _ => Err(Refused::IncomingStarted),
        }
    }

    /// Starts to wait for a guest at `address`.
    pub(crate) fn incoming(
        &self,
        address: &Address,
        exit_on_error: bool,
        fds: &mut dyn Descriptors,
    ) -> Result<(), Refused> {
        self.expects_guest()?;
        self.check_address(address)?;
        self.parameters().check_built()?;
        if !self.arrival.begin() {
            return Err(Refused::IncomingStarted);
        }
        let begun = self.receive(address, exit_on_error, fds);
        begun.inspect_err(|_| {
            self.arrival.set(Status::None, None);
            self.arrival.reopen();
        })
    }

    fn receive(
        &self,
        address: &Address,
        exit_on_error: bool,
        fds: &mut dyn Descriptors,
    ) -> Result<(), Refused> {
        let origin = self.open_origin(address, fds)?;
        let program = match &origin {
            Origin::Open(connection) => connection.program.clone(),
            Origin::Listener(_) => None,
        };
        *self.feeder() = program.clone();
        let target = Incoming {
            guest: self.guest.clone(),
            settings: self.settings.clone(),
            arrival: self.arrival.clone(),
            events: self.events.clone(),
            waker: Waker::new(),
            autostart: self.autostart.clone(),
            arrived: self.arrived.clone(),
            uuid: self.uuid,
            file_name: match address {
                Address::File { path, .. } if !path.starts_with(FD_SET) => Some(path.into()),
                _ => None,
            },
        };
        let (on_failure, on_success) = (self.on_failure.clone(), self.on_success.clone());
        let from = match address {
            Address::File { path, .. } => format!(" from {path}"),
            _ => String::new(),
        };
        let (may_run, spawned) = mpsc::sync_channel::<()>(1);
        let run = move || {
            if spawned.recv().is_err() {
                return;
            }
            let result = arrive(&target, origin);
            if let Some(program) = program {
                program.end();
            }
            let Err(error) = result else { return on_success() };
            say!("godwit: incoming migration{from}: {error}");
            if exit_on_error {
                on_failure(&error);
            } else {
                target.arrival.reopen();
            }
        };
        let thread = std::thread::Builder::new().name("incoming".into());
        thread.spawn(run).map_err(Refused::Thread)?;
        self.arrival.set(Status::Setup, None);
        (self.events)(Event::Status(Status::Setup));
        let _ = may_run.send(());
        Ok(())
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

    fn socket_file(&self) -> MutexGuard<'_, Weak<SocketFile>> {
        self.socket_file.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The answer of `query-migrate`: both directions in one object, as in QEMU.
    pub fn report(&self) -> Map<String, Value> {
        let mut out = self.arrival.report();
        out.extend(self.outgoing().progress.report());
        out
    }

    /// An outgoing migration is under way.
    pub(crate) fn is_busy(&self) -> bool {
        self.outgoing().progress.status().is_running()
    }

    pub(crate) fn capabilities(&self) -> Capabilities {
        self.settings.capabilities()
    }

    pub(crate) fn set_capabilities(&self, changes: &[(Capability, bool)]) -> Result<(), Refused> {
        if self.is_busy() {
            return Err(Refused::InProgress);
        }
        let result = self.settings.capabilities().with(changes)?;
        if result.has(Capability::DirtyLimit) && !self.guest.has_dirty_rings() {
            return Err(CapabilityError::NeedsRing.into());
        }
        let multifd_changes =
            result.has(Capability::Multifd) != self.settings.has(Capability::Multifd);
        if multifd_changes && self.arrival.status().is_running() {
            return Err(CapabilityError::MultifdTooLate.into());
        }
        self.settings.set_capabilities(result);
        Ok(())
    }

    pub(crate) fn parameters(&self) -> Parameters {
        self.settings.parameters()
    }

    pub(crate) fn set_parameters(&self, changes: &Map<String, Value>) -> Result<(), Refused> {
        // Locked, so that of two changes at a time none is lost.
        let outgoing = self.outgoing();
        let before = self.settings.parameters();
        let result = before.with(changes)?;
        if result.xbzrle_cache_size != before.xbzrle_cache_size {
            check_cache(result.xbzrle_cache_size)?;
        }
        self.settings.set_parameters(result);
        // A migration that waits for its limit looks again.
        outgoing.waker.wake();
        Ok(())
    }

    /// As parameter `x-godwit-restore` does.
    pub(crate) fn set_restore(&self, restore: Restore) {
        let mut parameters = self.settings.parameters();
        parameters.x_godwit_restore = match restore {
            Restore::Eager => "eager",
            Restore::Mapped => "mapped",
        };
        self.settings.set_parameters(parameters);
    }

    fn outgoing(&self) -> MutexGuard<'_, Outgoing> {
        self.outgoing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn feeder(&self) -> MutexGuard<'_, Option<Program>> {
        self.feeder.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Outgoing {
    fn failed_at_once(&self, refused: Refused) -> Refused {
        if matches!(refused, Refused::Open(OpenError::Io(io::Error::Cancelled))) {
            self.progress.life.enter(Status::Cancelled);
        } else {
            self.progress.figures().error = Some(refused.to_string());
            self.progress.life.enter(Status::Failed);
        }
        refused
    }
}

/// Receives a guest; a panic is a failure like others, unless the guest is here already: then it is
/// this machine's, whatever is left undone. The reason of a failure comes back.
fn arrive(incoming: &Incoming, origin: Origin) -> Result<(), String> {
    let result = catch_unwind(AssertUnwindSafe(|| incoming.run(origin)));
    result.map(|result| result.map_err(|error| error.to_string())).unwrap_or_else(|_| {
        let reason = incoming::Error::Panicked.to_string();
        let is_here = incoming.guest.run_state() != RunState::InMigrate;
        let (status, error) = match is_here {
            true => (Status::Completed, None),
            false => (Status::Failed, Some(reason.clone())),
        };
        incoming.arrival.set(status, error);
        (incoming.events)(Event::Status(status));
        if is_here {
            say!("godwit: incoming migration: {reason}; the guest was here, and stays");
            return Ok(());
        }
        Err(reason)
    })
}

/// Refuses a page cache that this host has no memory for, so that no migration finds out in its
/// middle. Nothing of it is touched.
fn check_cache(bytes: u64) -> Result<(), Refused> {
    let host = rustix::system::sysinfo();
    let unit = u64::from(host.mem_unit);
    let memory = (host.totalram as u64).saturating_add(host.totalswap as u64).saturating_mul(unit);
    if bytes > memory {
        return Err(Refused::CacheTooLarge { bytes, memory });
    }
    xbzrle::Cache::new(bytes).map(drop).map_err(Refused::Cache)
}
