//! The target of a migration: one thread that reads the stream, and one more per further channel.
//!
//! The whole stream is decoded and checked before anything but RAM is changed; then the state is
//! applied once. The guest runs only when it is certain that the source will not run it: after GO
//! from a Godwit, after the source's kernel has acknowledged SHUT 0 to a QEMU.

mod apply;
mod channels;
mod main_channel;
mod packets;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};

use super::capabilities::Capability;
use super::guest::{Guest, GuestError};
use super::settings::Settings;
use super::status::{Event, Status};
use crate::io::address::UnixName;
use crate::io::transport::{BoundAddress, Medium};
use crate::io::{
    self, Connection, Limit, Listener, Program, Ring, SocketReader, SocketWriter, Waker, program,
};
use crate::kvm::state::ForeignTsc;
use crate::machine::RunState;
use crate::memory;
use crate::stream;
use crate::stream::godwit::{self, Answer, Features};
use crate::stream::return_path::Reply;
use channels::{CHANNELS_MAX, Channels};
use main_channel::MainChannel;

pub use super::guest::MACHINE;
#[cfg(test)]
pub use packets::Unpacker;

/// Why an incoming migration failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the connection to the source: {0}")]
    Io(#[from] io::Error),
    #[error("the stream cannot be read: {0}")]
    Stream(#[from] stream::Error),
    #[error("the stream cannot be read: {field}, offset {offset:#x}: {text}")]
    Says { field: &'static str, offset: u64, text: String },
    #[error(transparent)]
    Guest(#[from] GuestError),
    #[error(transparent)]
    Memory(#[from] memory::Error),
    #[error("the source's machine type is \"{0}\", this is \"microvm\"")]
    Machine(String),
    #[error("the source's UUID is not this machine's")]
    Uuid,
    #[error("the source has mapped-ram or x-ignore-shared on, which are not built in")]
    SourceCapabilities,
    #[error("RAM block \"{name}\" has {there} bytes at the source and {here} here")]
    BlockSize { name: String, here: u64, there: u64 },
    #[error("a range outside its block: block {block}, offset {offset:#x}, {bytes:#x} bytes")]
    Range { block: u8, offset: u64, bytes: u64 },
    #[error("a delta for the page at {offset:#x} is broken: {source}")]
    Delta { offset: u64, source: xbzrle::DecodeError },
    #[error("a multifd packet cannot be unpacked: {0}")]
    Packet(String),
    #[error("the stream has {0}, which has no place here")]
    Command(&'static str),
    #[error("the source chose features that were not offered")]
    NotOffered,
    #[error("{0} channels are more than {CHANNELS_MAX}; set multifd-channels lower on both sides")]
    TooManyChannels(u8),
    #[error("a channel says it is number {0}, which is none or was there already")]
    Channel(u8),
    #[error("a channel ended in the middle of a round")]
    ChannelGone,
    #[error(
        "the source sends RAM over several channels, but capability multifd is off here; set it, and multifd-channels, as \
         at the source"
    )]
    MultifdOff,
    #[error(
        "the source has more than the {0} channels that are set here; set multifd-channels to the same on both sides"
    )]
    MoreChannels(usize),
    #[error(
        "only {have} of {wanted} channels came; set multifd-channels to the same on both sides"
    )]
    FewChannels { have: usize, wanted: usize },
    #[error("RAM here differs from the source's (x-godwit-verify)")]
    RamDiffers,
    #[error("the source was gone before it gave the guest away: it stays there")]
    NeverGiven,
    #[error("the source may not have heard that the guest was loaded: it stays paused here")]
    NobodyKnows,
}

/// Where the stream comes from.
pub enum Origin {
    Listener(Listener),
    Open(Connection),
}

/// One incoming migration.
pub struct Target {
    pub guest: Arc<dyn Guest>,
    pub settings: Arc<Settings>,
    pub arrival: Arc<Arrival>,
    pub events: Arc<dyn Fn(Event) + Send + Sync>,
    pub waker: Waker,
    /// Whether the guest starts once it is here; read at the end.
    pub autostart: Arc<dyn Fn() -> bool + Send + Sync>,
    pub uuid: Option<[u8; 16]>,
}

/// An incoming migration as others see it.
#[derive(Default)]
pub struct Arrival {
    state: Mutex<ArrivalState>,
    started: AtomicBool,
}

#[derive(Default)]
struct ArrivalState {
    status: Status,
    error: Option<String>,
    addresses: Vec<BoundAddress>,
}

impl Arrival {
    pub fn status(&self) -> Status {
        self.lock().status
    }

    /// Takes the one turn there is; false if it was taken.
    pub fn begin(&self) -> bool {
        !self.started.swap(true, Ordering::SeqCst)
    }

    /// Another attempt may be made.
    pub fn reopen(&self) {
        self.started.store(false, Ordering::SeqCst);
    }

    pub fn set(&self, status: Status, error: Option<String>) {
        let mut state = self.lock();
        state.status = status;
        state.error = error;
    }

    pub fn listening(&self, addresses: &[BoundAddress]) {
        self.lock().addresses = addresses.to_vec();
    }

    /// Members of `query-migrate`.
    pub fn report(&self) -> Map<String, Value> {
        let state = self.lock();
        let mut out = Map::new();
        if state.status == Status::None {
            return out;
        }
        out.insert("status".into(), json!(state.status.name()));
        if let Some(error) = &state.error {
            out.insert("error-desc".into(), json!(error));
        }
        if !state.addresses.is_empty() && state.status.is_running() {
            out.insert("socket-address".into(), state.addresses.iter().map(address_json).collect());
        }
        out
    }

    fn lock(&self) -> MutexGuard<'_, ArrivalState> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

fn address_json(address: &BoundAddress) -> Value {
    match address {
        BoundAddress::Inet { host, port, ipv6 } => {
            let family = if *ipv6 { "ipv6" } else { "ipv4" };
            json!({"type": "inet", "host": host, "port": port.to_string(), family: true})
        }
        BoundAddress::Unix(UnixName::Path(path)) => json!({"type": "unix", "path": path}),
        BoundAddress::Unix(UnixName::Abstract { name, tight }) => {
            json!({"type": "unix", "path": name, "abstract": true, "tight": tight})
        }
    }
}

impl Target {
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
        let mut connections = Connections { origin, early: Vec::new() };
        let timeout = Duration::from_millis(self.settings.parameters().x_godwit_peer_timeout);
        let connection = self.map_until(|| connections.main(&mut ring, timeout))?;
        connection.set_user_timeout(timeout).map_err(io::Error::from)?;
        self.arrival.set(Status::Active, None);
        (self.events)(Event::Status(Status::Active));
        // What a file holds runs nowhere else; a source that hears a refusal goes on by itself.
        let foreign =
            if connection.medium == Medium::File { ForeignTsc::Accept } else { ForeignTsc::Refuse };
        let program = connection.program.clone();
        let reader = SocketReader::new(connection.fd.clone());
        let greeting = Greeting::new(&connection);
        let channels = Channels::new(connections, self.waker.clone());
        let mut main = MainChannel::new(self, ring, reader, greeting, channels);
        let mut result = self.load(&mut main, program.as_ref(), foreign);
        if let Err(error) = &mut result {
            let closed = matches!(error, Error::Io(io::Error::Closed));
            let why = program.filter(|_| closed).and_then(|p| p.why_closed(COMMAND_ENDS));
            if let Some(failed @ (program::Failed::Status(_) | program::Failed::Signal(_))) = why {
                *error = io::Error::from(failed).into();
            }
            if let Some(failure) = main.channels.failure() {
                *error = failure;
            }
            main.greeting.refuse(&mut main.ring, error);
        }
        result
    }

    /// Makes page tables for memory that is there already, while `wait` waits for a source: without
    /// them each page that comes costs twice as much.
    fn map_until<T>(&self, wait: impl FnOnce() -> T) -> T {
        let stop = AtomicBool::new(false);
        let block = self.guest.ram().main();
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
        let mut loader = self.guest.loader();
        main.read(loader.as_mut())?;
        if let Some(program) = program {
            // One that failed may have made up the end of what it gave.
            let time = Duration::from_millis(self.settings.parameters().x_godwit_peer_timeout);
            program.written_all(&mut main.ring, &mut main.reader, time)?;
            program.release();
        }
        let state = loader.apply(foreign)?;
        if main.greeting.features.contains(Features::COMMIT) {
            main.greeting.say(&mut main.ring, &loaded())?;
            main.wait_for_go().map_err(|error| match error {
                Error::Io(io::Error::Closed | io::Error::System(_)) => Error::NeverGiven,
                other => other,
            })?;
            self.start(state)?;
            // The guest runs: nothing that happens to the connection now can change that.
            let _ = main.greeting.say(&mut main.ring, &Reply::Shut(0));
        } else if main.greeting.is_open {
            main.greeting.say(&mut main.ring, &Reply::Shut(0))?;
            main.greeting.until_acknowledged(&mut main.ring)?;
            self.start(state)?;
        } else {
            self.start(state)?;
        }
        Ok(())
    }

    /// Lets the guest run, if it ran at the source and nobody wants it paused here.
    fn start(&self, state: Option<RunState>) -> Result<(), Error> {
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

fn loaded() -> Reply {
    Reply::Other { kind: godwit::NUMBER, data: Answer::Loaded.data() }
}

/// Channels that may be there before the main one: as many as a number in a hello can name.
const EARLY_MAX: usize = 256;

/// How long to wait for a command to end whose stream has ended, to know how.
const COMMAND_ENDS: Duration = Duration::from_millis(500);

/// How long the first bytes of a connection that stands in the queue may take.
const HELLO: Duration = Duration::from_secs(1);

/// Connections of one migration, told apart by their first bytes.
pub struct Connections {
    origin: Origin,
    /// Channels that came before the main one.
    early: Vec<Connection>,
}

impl Connections {
    /// The main channel: the first connection that says something else than a channel does, within
    /// `timeout`.
    fn main(&mut self, ring: &mut Ring, timeout: Duration) -> Result<Connection, Error> {
        loop {
            let connection = match &mut self.origin {
                Origin::Open(connection) => {
                    connection.await_writer(ring)?;
                    return Ok(connection.share());
                }
                Origin::Listener(listener) => match listener.accept(ring) {
                    Err(error) if error.is_disconnect() => continue,
                    accepted => accepted?,
                },
            };
            ring.set_patience(Some(timeout));
            let first = connection.peek(ring);
            ring.set_patience(None);
            match first {
                Ok(stream::multifd::MAGIC) if self.early.len() < EARLY_MAX => {
                    self.early.push(connection)
                }
                Ok(stream::multifd::MAGIC) => {}
                // Anything else is read as a main channel, whose header says what is wrong with it.
                Ok(_) => return Ok(connection),
                // Whoever that was, the source may still come.
                Err(error) if error.is_disconnect() || matches!(error, io::Error::TimedOut(_)) => {
                    eprintln!(
                        "godwit: incoming migration: a connection ended before it began; still listening"
                    );
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Whether a channel is there that nobody reads, so that its pages would be lost.
    pub fn has_unread_channel(&mut self, ring: &mut Ring) -> Result<bool, Error> {
        let Origin::Listener(listener) = &mut self.origin else { return Ok(false) };
        let mut found = !self.early.is_empty();
        // As many as the queue holds: whoever connects again and again does not hold the migration.
        for _ in 0..EARLY_MAX {
            if found {
                break;
            }
            ring.set_patience(Some(Duration::ZERO));
            let accepted = listener.accept(ring);
            ring.set_patience(Some(HELLO));
            // Whoever says nothing is no channel: they say hello before anything else is sent.
            found = match accepted.map(|connection| connection.peek(ring)) {
                Ok(first) => matches!(first, Ok(stream::multifd::MAGIC)),
                Err(io::Error::TimedOut(_)) => break,
                Err(error) if error.is_disconnect() => false,
                Err(error) => return Err(error.into()),
            };
        }
        ring.set_patience(None);
        Ok(found)
    }

    /// The next channel.
    pub fn next(&mut self, ring: &mut Ring) -> Result<Connection, Error> {
        if let Some(connection) = self.early.pop() {
            return Ok(connection);
        }
        match &mut self.origin {
            Origin::Open(_) => Err(Error::Command("several channels over one connection")),
            Origin::Listener(listener) => Ok(listener.accept(ring)?),
        }
    }
}

/// The return path, and what was agreed over it.
pub struct Greeting {
    writer: SocketWriter,
    two_way: bool,
    pub is_open: bool,
    pub is_godwit: bool,
    has_chosen: bool,
    pub features: Features,
}

/// How long SHUT 0 may stay unacknowledged before it counts as lost.
const ACKNOWLEDGED: Duration = Duration::from_secs(10);

impl Greeting {
    fn new(connection: &Connection) -> Self {
        let writer = SocketWriter::new(connection.fd.clone(), Arc::new(Limit::new(0)));
        let two_way = connection.is_two_way();
        let features = Features::empty();
        Self { writer, two_way, is_open: false, is_godwit: false, has_chosen: false, features }
    }

    fn open(&mut self, ring: &mut Ring, target: &Target) -> Result<(), Error> {
        if !self.two_way {
            return Err(Error::Command("a return path over a one-way connection"));
        }
        self.is_open = true;
        // No device here has to prepare for the switch-over, so nothing is waited for.
        match target.settings.has(Capability::SwitchoverAck) {
            true => self.say(ring, &Reply::SwitchoverAck),
            false => Ok(()),
        }
    }

    fn pong(&mut self, ring: &mut Ring, target: &Target, value: u32) -> Result<(), Error> {
        if !self.is_open {
            return Err(Error::Command("PING without a return path"));
        }
        if value == godwit::PING && target.settings.parameters().x_godwit_stream == "auto" {
            self.is_godwit = true;
            let main = target.guest.ram().main();
            let ram_is_zero = main.first_data(0..main.bytes())?.is_none();
            // The source plans with it how long the guest will stand still.
            let rehearsal = target.guest.rehearse().unwrap_or_default();
            let (features, channels) = (Features::all(), CHANNELS_MAX);
            let offer = Answer::Offer { features, channels, ram_is_zero, rehearsal };
            self.say(ring, &Reply::Other { kind: godwit::NUMBER, data: offer.data() })?;
        }
        self.say(ring, &Reply::Pong(value))
    }

    fn chosen(&mut self, features: Features) -> Result<(), Error> {
        if !self.is_godwit || !Features::all().contains(features) {
            return Err(Error::NotOffered);
        }
        if std::mem::replace(&mut self.has_chosen, true) {
            return Err(Error::Command("a second choice of features"));
        }
        self.features = features;
        Ok(())
    }

    fn say(&mut self, ring: &mut Ring, reply: &Reply) -> Result<(), Error> {
        let mut out = Vec::new();
        reply.write(&mut out);
        Ok(self.writer.write_all(ring, &out)?)
    }

    /// Tells the source why; it may be gone.
    fn refuse(&mut self, ring: &mut Ring, error: &Error) {
        if self.is_godwit {
            let data = Answer::Refused(error.to_string()).data();
            let _ = self.say(ring, &Reply::Other { kind: godwit::NUMBER, data });
        }
        if self.is_open {
            let _ = self.say(ring, &Reply::Shut(1));
        }
    }

    /// Waits until the source's kernel has SHUT 0: from then on the source, if it lives, will not
    /// run the guest.
    fn until_acknowledged(&mut self, ring: &mut Ring) -> Result<(), Error> {
        let end = Instant::now() + ACKNOWLEDGED;
        while self.writer.unacknowledged() > 0 {
            if Instant::now() >= end {
                return Err(Error::NobodyKnows);
            }
            ring.sleep_until(Instant::now() + Duration::from_millis(1))?;
        }
        Ok(())
    }
}
