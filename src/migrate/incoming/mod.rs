//! The target of a migration: one thread that reads the stream, and one more per further channel.
//!
//! The whole stream is decoded and checked before anything but RAM is changed; then the state is
//! applied once. The guest runs only when it is certain that the source will not run it: after GO
//! from a Godwit, after the source's kernel has acknowledged SHUT 0 to a QEMU.
//!
//! | file | what |
//! | --- | --- |
//! | `accept` | who connects: the source, its channels, strangers |
//! | `main_channel` | the items of [`crate::stream::Reader`], one after the other |
//! | `channels`, `packets` | the other channels, in frames or packets |
//! | `mapped` | pages at fixed places of a file |
//! | `increment` | pages of a file that builds upon another |
//! | `apply` | pages into guest memory, by whatever road they came |
//! | `return_path` | what the source is told |
//! | `arrival` | status and addresses, for `query-migrate` |

mod accept;
mod apply;
mod arrival;
mod channels;
mod error;
mod increment;
mod main_channel;
mod mapped;
mod packets;
mod return_path;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::guest::Migratable;
use super::parameters::Parameters;
use super::settings::Settings;
use super::status::{Event, Status};
use crate::io::connection::Medium;
use crate::io::{self, Program, ProgramFailed, Ring, SocketReader, Waker};
use crate::kvm::state::ForeignTsc;
use crate::machine::RunState;
use crate::memory::RamBlock;
use crate::sabotage::{self, Fault};
use crate::stream::godwit::{self, Answer, Features};
use crate::stream::return_path::Reply;
use accept::Connections;
use channels::Channels;
use increment::Increment;
use main_channel::MainChannel;
use mapped::MappedFile;
use return_path::ReturnPath;

pub(crate) use super::guest::MACHINE;
pub use accept::Origin;
pub use arrival::Arrival;
pub(crate) use error::Error;

/// How long to wait for a command to end whose stream has ended, to know how.
const COMMAND_ENDS: Duration = Duration::from_millis(500);

/// One incoming migration.
pub struct Incoming {
    pub guest: Arc<dyn Migratable>,
    pub settings: Arc<Settings>,
    pub arrival: Arc<Arrival>,
    pub events: Arc<dyn Fn(Event) + Send + Sync>,
    pub waker: Waker,
    /// Whether the guest starts once it is here; read at the end.
    pub autostart: Arc<dyn Fn() -> bool + Send + Sync>,
    /// The guest is this machine's: switches may learn where it is.
    pub arrived: Arc<dyn Fn(&Parameters) + Send + Sync>,
    pub uuid: Option<[u8; 16]>,
    /// Of the file that the guest comes from, if it was opened by a name.
    pub file_name: Option<PathBuf>,
}

impl Incoming {
    /// Receives a guest. The arrival tells the outcome, which is returned, too.
    pub fn run(&self, origin: Origin) -> Result<(), Error> {
        let result = self.receive(origin);
        let (status, error) = match &result {
            Ok(()) => (Status::Completed, None),
            Err(error) => (Status::Failed, Some(error.to_string())),
        };
        self.arrival.set(status, error);
        (self.events)(Event::Status(status));
        result
    }

    fn receive(&self, origin: Origin) -> Result<(), Error> {
        let mut ring = Ring::new(self.waker.clone())?;
        let mut connections = Connections::new(origin);
        let timeout = Duration::from_millis(self.settings.parameters().x_godwit_peer_timeout);
        let mut connection = self.map_until(|| connections.main(&mut ring, timeout))?;
        connection.set_user_timeout(timeout).map_err(io::Error::from)?;
        self.arrival.set(Status::Active, None);
        (self.events)(Event::Status(Status::Active));
        // What a file holds runs nowhere else; a source that hears a refusal goes on by itself.
        let foreign =
            if connection.medium == Medium::File { ForeignTsc::Accept } else { ForeignTsc::Refuse };
        let increment = Increment::of(&mut connection, self.file_name.as_deref(), &self.waker)?;
        let program = connection.program.clone();
        let reader = SocketReader::new(connection.fd.clone());
        let file = MappedFile::of(&connection);
        let return_path = ReturnPath::new(&connection);
        let channels = Channels::new(connections, self.waker.clone());
        let mut main =
            MainChannel::new(self, ring, self.guest.loader(), reader, return_path, channels, file);
        main.increment = increment;
        let mut result = self.load(&mut main, program.as_ref(), foreign);
        if let Err(error) = &mut result {
            let closed = matches!(error, Error::Io(io::Error::Closed));
            let why = program.filter(|_| closed).and_then(|p| p.why_closed(COMMAND_ENDS));
            if let Some(failed @ (ProgramFailed::Status(_) | ProgramFailed::Signal(_))) = why {
                *error = io::Error::from(failed).into();
            }
            if let Some(failure) = main.channels.failure() {
                *error = failure;
            }
            main.return_path.refuse(&mut main.ring, error);
        }
        result
    }

    /// Makes page tables for memory that is there already, while `wait` waits for a source: without
    /// them each page that comes costs twice as much.
    fn map_until<T>(&self, wait: impl FnOnce() -> T) -> T {
        let stop = AtomicBool::new(false);
        let block = self.guest.ram().main();
        if !block.has_to_map() {
            return wait();
        }
        std::thread::scope(|scope| {
            let mapper = std::thread::Builder::new().name("map".into());
            // Without the thread everything works, only slower.
            let _ = mapper.spawn_scoped(scope, || block.map_what_is_there(&stop));
            let result = wait();
            stop.store(true, Ordering::Relaxed);
            result
        })
    }

    fn load(
        &self,
        main: &mut MainChannel<'_>,
        program: Option<&Program>,
        foreign: ForeignTsc,
    ) -> Result<(), Error> {
        let uncovered = UncoveredUnlessItComes::new(self.guest.ram().main());
        main.read()?;
        if let Some(program) = program {
            // One that failed may have made up the end of what it gave.
            let time = Duration::from_millis(self.settings.parameters().x_godwit_peer_timeout);
            program.written_all(&mut main.ring, &mut main.socket, time)?;
            program.release();
        }
        sabotage::panic_on(Fault::PanicBeforeGo);
        let state = main.loader().apply(foreign)?;
        uncovered.it_came();
        let commits = main.return_path.features.contains(Features::COMMIT);
        if let Err(error) = self.wait_until_given(main, commits) {
            // It goes on at the source, which wants the images that this machine has claimed.
            self.guest.let_go();
            return Err(error);
        }
        self.start(state)?;
        if commits {
            sabotage::panic_on(Fault::PanicWhenArrived);
            // The guest runs: nothing that happens to the connection now can change that.
            let _ = main.return_path.say(&mut main.ring, &Reply::Shut(0));
        }
        Ok(())
    }

    /// The guest is loaded, and the source hears of it; returns when it is this machine's.
    fn wait_until_given(&self, main: &mut MainChannel<'_>, commits: bool) -> Result<(), Error> {
        if commits {
            main.return_path.say(&mut main.ring, &loaded())?;
            main.wait_for_go().map_err(|error| match error {
                Error::Io(io::Error::Closed | io::Error::System(_)) => Error::NeverGiven,
                other => other,
            })?;
            sabotage::panic_on(Fault::PanicAfterGo);
        } else if main.return_path.is_open {
            main.return_path.say(&mut main.ring, &Reply::Shut(0))?;
            main.return_path.until_acknowledged(&mut main.ring)?;
        }
        Ok(())
    }

    /// Lets the guest run, if it ran at the source and nobody wants it paused here.
    fn start(&self, state: Option<RunState>) -> Result<(), Error> {
        (self.arrived)(&self.settings.parameters());
        let ran = state.is_none_or(|state| state == RunState::Running);
        if ran && (self.autostart)() {
            self.guest.cont()?;
            return Ok(());
        }
        self.guest.set_state(match state {
            Some(state) if !ran && state != RunState::Prelaunch => state,
            _ => RunState::Paused,
        });
        Ok(())
    }
}

/// Takes the file that a load has laid over memory away again if the guest did not come: the next load
/// finds the memory as the first one did.
struct UncoveredUnlessItComes(Option<RamBlock>);

impl UncoveredUnlessItComes {
    /// A file that lies there already is a guest's.
    fn new(block: &RamBlock) -> Self {
        Self((!block.has_file_over()).then(|| block.clone()))
    }

    fn it_came(mut self) {
        self.0 = None;
    }
}

impl Drop for UncoveredUnlessItComes {
    fn drop(&mut self) {
        if let Some(block) = &self.0 {
            block.uncover();
        }
    }
}

fn loaded() -> Reply {
    Reply::Other { kind: godwit::NUMBER, data: Answer::Loaded.data() }
}
