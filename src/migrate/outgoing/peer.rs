//! The other side: what it is, what it can do, and the streams to it.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use xbzrle::Cache;

use super::channel::Channel;
use super::differences::Increment;
use super::error::Error;
use super::framing::{Frames, Records, Zeros};
use super::packets::Packets;
use super::places::MappedFile;
use super::return_path::ReturnPathReader;
use super::round::Round;
use super::source::Source;
use crate::io::transport;
use crate::io::{Address, Connection, Program, ProgramFailed, Ring, Writer};
use crate::machine::RunState;
use crate::migrate::capabilities::Capability;
use crate::migrate::converge;
use crate::migrate::guest::MACHINE;
use crate::migrate::progress::{Counters, Progress};
use crate::stream::godwit::{self, Answer, Features, Frame, Rehearsal};
use crate::stream::multifd::Hello;
use crate::stream::return_path::Reply;
use crate::stream::{Command, Configuration, SectionHeader};

/// The RAM section as this source numbers it.
pub(super) fn ram_section() -> SectionHeader {
    SectionHeader { id: 2, name: "ram".into(), instance: 0, version: 4 }
}

/// What a Godwit offers.
struct Offer {
    features: Features,
    /// At most.
    channels: u8,
    ram_is_zero: bool,
    rehearsal: Rehearsal,
}

pub(super) struct Peer {
    /// The main channel; carries pages too when there are no others.
    pub main: Channel,
    /// The other channels, by number.
    pub channels: Vec<Channel>,
    /// The file in which they write pages at fixed places.
    pub mapped: Option<Arc<MappedFile>>,
    /// The file to which they write what differs from a snapshot.
    pub increment: Option<Increment>,
    pub return_path: Option<ReturnPathReader>,
    /// What was chosen of the offer; empty with a peer that is no Godwit.
    pub features: Features,
    pub target_is_zero: bool,
    /// What the state of such a guest takes at the target.
    pub rehearsal: Rehearsal,
    /// The shortest time from a PING to its PONG.
    round_trip: Option<Duration>,
    /// What the target lagged behind when it was last asked to catch up.
    lag: Option<Duration>,
    /// SWITCHOVER_ACK has come: the target agrees to the guest being stopped.
    agreed: bool,
    connections: Vec<Connection>,
    /// The size of all caches as it was set last.
    cache_wanted: u64,
    /// The command at the other end, until it has ended well.
    pub program: Option<Program>,
}

/// How long to wait for a command to end that has closed its input, to know how.
const COMMAND_ENDS: Duration = Duration::from_millis(500);
/// How long a round waits for SWITCHOVER_ACK before pages dirtied meanwhile are sent.
const AGREEMENT_POLL: Duration = Duration::from_millis(20);

/// The value of a PING that asks whether all pages so far were taken.
const CATCH_UP: u32 = 2;
/// A target that answers within this time had nothing left to do.
const NO_LAG: Duration = Duration::from_millis(1);

impl Peer {
    /// Opens the stream and finds out who is there. No RAM has moved when this returns, and the
    /// target has had the chance to refuse.
    pub(super) fn negotiate(
        source: &Source,
        ring: Ring,
        connection: Connection,
        address: Option<Address>,
        increment: Option<Increment>,
    ) -> Result<Self, Error> {
        let parameters = source.settings.parameters();
        connection
            .set_user_timeout(Duration::from_millis(parameters.x_godwit_peer_timeout))
            .map_err(crate::io::Error::from)?;
        let two_way = connection.is_two_way()
            && (address.is_some() || source.settings.has(Capability::ReturnPath));
        let writer = Writer::new(connection.fd.clone(), source.settings.limit.clone());
        let framing = Records::new(ram_section());
        let channel = Channel::new(0, false, ring, writer, framing, source.guest.ram());
        let return_path = two_way.then(|| ReturnPathReader::new(connection.fd.clone()));
        let program = connection.program.clone();
        let mut peer = Self {
            main: channel,
            channels: Vec::new(),
            mapped: None,
            increment,
            return_path,
            features: Features::empty(),
            target_is_zero: false,
            rehearsal: Rehearsal::default(),
            round_trip: None,
            lag: None,
            agreed: false,
            connections: vec![connection],
            cache_wanted: 0,
            program,
        };
        let result = peer.exchange(source, address.as_ref());
        match result.map_err(|error| peer.better_reason(error)) {
            Ok(()) => Ok(peer),
            Err(error) => {
                peer.close(false);
                Err(error)
            }
        }
    }

    fn exchange(&mut self, source: &Source, address: Option<&Address>) -> Result<(), Error> {
        let parameters = source.settings.parameters();
        let uuid = source.uuid.filter(|_| source.settings.has(Capability::ValidateUuid));
        let is_mapped = source.settings.has(Capability::MappedRam) && self.increment.is_none();
        let mut out = Vec::new();
        let capabilities: Vec<_> =
            is_mapped.then(|| Capability::MappedRam.name().into()).into_iter().collect();
        Configuration { machine: MACHINE.into(), uuid, capabilities, ..Configuration::default() }
            .write(&mut out);
        let ask = self.return_path.is_some() && parameters.x_godwit_stream == "auto";
        if self.return_path.is_some() {
            Command::OpenReturnPath.write(&mut out);
            Command::Ping(if ask { godwit::PING } else { 1 }).write(&mut out);
        }
        if source.settings.has(Capability::SwitchoverAck) && self.return_path.is_none() {
            return Err(Error::AckNeedsAnswers);
        }
        self.main.send_bytes(&source.progress.counters, true, &out)?;
        // The target may still be at its RAM's setup.
        let timeout = Duration::from_millis(parameters.x_godwit_peer_timeout);
        // A QEMU reads nothing before all channels are there, so they come before the answer does.
        if source.settings.has(Capability::Multifd) && !is_mapped {
            let address = address.ok_or(Error::ChannelsNeedAddress)?;
            self.open_channels(source, address, parameters.multifd_channels)?;
        }
        let offer = if ask { self.read_offer(timeout)? } else { None };
        if let Some(offer) = offer {
            if self.channels.len() > usize::from(offer.channels) {
                return Err(Error::TooManyChannels(offer.channels));
            }
            self.choose(source, offer.features)?;
            (self.target_is_zero, self.rehearsal) = (offer.ram_is_zero, offer.rehearsal);
        }
        if self.sends_packets() {
            self.use_packets(source)?;
        }
        if parameters.x_godwit_verify && !self.features.contains(Features::RAM_HASH) {
            return Err(Error::VerifyNeedsGodwit);
        }
        self.open_caches(source, parameters.xbzrle_cache_size)
    }

    /// A Godwit's offer comes before its PONG.
    fn read_offer(&mut self, timeout: Duration) -> Result<Option<Offer>, Error> {
        let mut offer = None;
        loop {
            match self.wait("greeting", timeout)? {
                Reply::Pong(godwit::PING) => return Ok(offer),
                Reply::Shut(_) => return Err(Error::TargetFailed),
                Reply::Other { kind: godwit::NUMBER, data } => {
                    if let Some(Answer::Offer { features, channels, ram_is_zero, rehearsal }) =
                        Answer::parse(&data)
                    {
                        offer = Some(Offer { features, channels, ram_is_zero, rehearsal });
                    }
                }
                _ => {}
            }
        }
    }

    /// Answers a Godwit's offer. Compressed pages travel in QEMU's packets between Godwits, too.
    fn choose(&mut self, source: &Source, offered: Features) -> Result<(), Error> {
        let channels = self.channels.len() as u8;
        let compressed = channels > 0 && source.settings.parameters().multifd_compression != "none";
        if compressed && source.settings.has(Capability::Xbzrle) {
            return Err(Error::DeltasAreNotCompressed);
        }
        self.features = offered & Features::all();
        self.features.set(Features::CHANNELS, offered.contains(Features::CHANNELS) && !compressed);
        let framed = self.features.contains(Features::PAGE_RUNS | Features::ZERO_RANGES);
        if framed && (channels == 0 || self.features.contains(Features::CHANNELS)) {
            self.main.framing = Box::new(Frames::default());
        }
        let mut out = Vec::new();
        Frame::Chosen {
            features: self.features,
            channels,
            requirements: source.guest.requirements(),
        }
        .write(&mut out);
        self.main.send_bytes(&source.progress.counters, true, &out)
    }

    fn open_channels(
        &mut self,
        source: &Source,
        address: &Address,
        channels: u8,
    ) -> Result<(), Error> {
        let timeout = Duration::from_millis(source.settings.parameters().x_godwit_peer_timeout);
        for number in 0..channels {
            let mut ring = Ring::new(source.waker.clone())?;
            ring.set_operation_timeout(Some(timeout));
            let connection = transport::connect(&mut ring, address)?;
            ring.set_operation_timeout(None);
            connection.set_user_timeout(timeout).map_err(crate::io::Error::from)?;
            let writer = Writer::new(connection.fd.clone(), source.settings.limit.clone());
            let framing = Frames::default();
            let mut channel =
                Channel::new(number.into(), true, ring, writer, framing, source.guest.ram());
            let mut out = Vec::new();
            Hello { uuid: source.uuid.unwrap_or_default(), channel: number }.write(&mut out);
            channel.send_bytes(&source.progress.counters, true, &out)?;
            self.channels.push(channel);
            self.connections.push(connection);
        }
        Ok(())
    }

    /// The channels carry what a QEMU understands.
    fn use_packets(&mut self, source: &Source) -> Result<(), Error> {
        if source.settings.has(Capability::Xbzrle) {
            return Err(Error::DeltasNeedGodwit);
        }
        let numbers = Arc::new(AtomicU64::new(0));
        for channel in &mut self.channels {
            channel.framing = Box::new(Packets::new(numbers.clone(), source.settings.clone())?);
        }
        Ok(())
    }

    /// Whether the channels write at places of a file, and the main one writes around them.
    fn has_places(&self) -> bool {
        self.mapped.is_some() || self.increment.is_some()
    }

    /// Whether the channels carry QEMU's packets.
    pub(super) fn sends_packets(&self) -> bool {
        let further = !self.channels.is_empty() && !self.has_places();
        further && !self.features.contains(Features::CHANNELS)
    }

    /// Says on every channel that it has come to the end of round `number`. What the channels have
    /// left to the main one comes back.
    pub(super) fn end_channels(
        &mut self,
        counters: &Counters,
        guest_runs: bool,
        number: u32,
    ) -> Result<Vec<Zeros>, Error> {
        let mut zeros = Vec::new();
        for channel in &mut self.channels {
            let mut out = Vec::new();
            channel.framing.end_round(number, &mut out);
            channel.send_bytes(counters, guest_runs, &out)?;
            zeros.append(&mut channel.framing.take_zeros_for_main());
        }
        Ok(zeros)
    }

    /// Marks the end of a round on every channel and on the main one, so that the target can wait
    /// for all.
    pub(super) fn end_round(&mut self, round: &Round<'_>, number: u32) -> Result<(), Error> {
        if self.has_places() {
            // Nobody waits for it: whatever is behind it in time goes over what is there.
            return Ok(());
        }
        let zeros = self.end_channels(round.counters, round.guest_runs, number)?;
        if self.sends_packets() {
            return self.main.end_packets(round, &zeros);
        }
        if !self.channels.is_empty() {
            let mut out = Vec::new();
            self.main.framing.end_round(number, &mut out);
            self.main.send_bytes(round.counters, round.guest_runs, &out)?;
        }
        Ok(())
    }

    /// The cache is divided among the channels: each keeps the pages it sends.
    fn open_caches(&mut self, source: &Source, bytes: u64) -> Result<(), Error> {
        if !source.settings.has(Capability::Xbzrle) {
            return Ok(());
        }
        self.cache_wanted = bytes;
        let share = (bytes / self.page_channels().len() as u64).max(4096);
        for channel in self.page_channels() {
            channel.cache = Some(Cache::new(share)?);
        }
        Ok(())
    }

    /// Bytes of all caches; 0 without XBZRLE.
    pub(super) fn cache_bytes(&mut self) -> u64 {
        self.page_channels()
            .iter()
            .filter_map(|channel| channel.cache.as_ref())
            .map(|cache| cache.size_bytes())
            .sum()
    }

    /// Gives the caches a new size where the parameter changed. Where there is no memory for it,
    /// they stay as they are, the report says so, and the migration goes on.
    pub(super) fn resize_caches(&mut self, progress: &Progress, bytes: u64) {
        if std::mem::replace(&mut self.cache_wanted, bytes) == bytes {
            return;
        }
        progress.figures().cache_error = None;
        let share = (bytes / self.page_channels().len() as u64).max(4096);
        for cache in self.page_channels().iter_mut().filter_map(|channel| channel.cache.as_mut()) {
            if let Err(error) = cache.resize(share) {
                let kept = cache.size_bytes();
                let why = format!("the page cache keeps its size of {kept} bytes: {error}");
                tracing::warn!("{why}");
                progress.figures().cache_error = Some(why);
            }
        }
    }

    /// What the guest stands still for beside its pages: it is stopped, its state is read and sent,
    /// read and loaded there, and the guest started. That takes three times what one reading and
    /// loading took at the target, as measured with 1 to 16 vCPUs, and the way there and back: once
    /// for the state, and between two Godwits once for GO. `bandwidth`, in bytes per second, is the
    /// connection's, 0 where it is not known: a limit says nothing of it.
    pub(super) fn state_time(&self, bandwidth: f64) -> Duration {
        let Rehearsal { us, bytes } = self.rehearsal;
        let sent = converge::predicted_downtime(bytes.into(), bandwidth).unwrap_or_default();
        let trips = if self.features.contains(Features::COMMIT) { 2 } else { 1 };
        let way = self.round_trip.unwrap_or_default() * trips;
        Duration::from_micros(3 * u64::from(us)) + sent + way
    }

    /// Whether somebody at the other end could take the guest and run it.
    pub(super) fn is_two_way(&self) -> bool {
        self.connections.first().is_some_and(Connection::is_two_way)
    }

    /// What the main channel writes to.
    pub(super) fn file(&self) -> Arc<OwnedFd> {
        self.connections[0].fd.clone()
    }

    /// The channels that carry pages.
    pub(super) fn page_channels(&mut self) -> &mut [Channel] {
        if self.channels.is_empty() {
            std::slice::from_mut(&mut self.main)
        } else {
            &mut self.channels
        }
    }

    /// The next message of the return path.
    pub(super) fn wait(&mut self, what: &'static str, time: Duration) -> Result<Reply, Error> {
        let return_path = self.return_path.as_mut().expect("asked only of a peer that can answer");
        let reply = match return_path.wait(&mut self.main.ring, Some((Instant::now() + time, time)))
        {
            Err(Error::Io(crate::io::Error::TimedOut(_))) => {
                return Err(Error::Silent { what, time });
            }
            other => other?,
        };
        self.agreed |= reply == Reply::SwitchoverAck;
        Ok(reply)
    }

    /// How long the target may take none of what is sent.
    pub(super) fn set_operation_timeout(&mut self, time: Duration) {
        for channel in std::iter::once(&mut self.main).chain(&mut self.channels) {
            channel.ring.set_operation_timeout(Some(time));
        }
    }

    /// Takes what the target has said meanwhile. Errors if it has refused.
    pub(super) fn check(&mut self) -> Result<(), Error> {
        let Some(return_path) = &mut self.return_path else { return Ok(()) };
        while let Some(reply) = return_path.poll(&mut self.main.ring)? {
            match reply {
                Reply::Shut(_) => return Err(Error::TargetFailed),
                Reply::SwitchoverAck => self.agreed = true,
                _ => {}
            }
        }
        Ok(())
    }

    /// Whether the guest may be stopped now. With `switchover-ack` a running guest waits for the
    /// target's word, which is looked for here for a moment; rounds go on meanwhile.
    pub(super) fn agrees_to_switch_over(&mut self, source: &Source) -> Result<bool, Error> {
        let running = source.guest.run_state() == RunState::Running;
        if !source.settings.has(Capability::SwitchoverAck) || !running {
            return Ok(true);
        }
        self.check()?;
        if !self.agreed {
            self.main.ring.sleep_until(Instant::now() + AGREEMENT_POLL)?;
            self.check()?;
        }
        Ok(self.agreed)
    }

    /// Waits, with the guest running, until the target has taken all that was sent: what it has
    /// before it yet is no part of what is left here, and the guest would stand still for it. False:
    /// that took so long that pages dirtied meanwhile should go first, and the next time will be
    /// shorter. True at once where nobody answers.
    pub(super) fn catches_up(&mut self, source: &Source) -> Result<bool, Error> {
        if self.return_path.is_none() {
            return Ok(true);
        }
        let took = self.ping(source)?;
        let is_the_way = took <= self.round_trip.unwrap_or_default() + NO_LAG;
        // The target has nothing else to do now, so that this is the way there and back alone. With
        // the backlog in it, no forecast would ever let the guest be stopped.
        let trip = if is_the_way { took } else { self.ping(source)? };
        self.round_trip = Some(self.round_trip.map_or(trip, |least| least.min(trip)));
        let lag = took.saturating_sub(trip);
        let before = self.lag.replace(lag);
        Ok(lag <= NO_LAG || before.is_some_and(|before| lag > before * 3 / 4))
    }

    /// How long it takes until the target has taken all that was sent, and its word is here.
    fn ping(&mut self, source: &Source) -> Result<Duration, Error> {
        let mut out = Vec::new();
        Command::Ping(CATCH_UP).write(&mut out);
        let started = Instant::now();
        self.main.send_bytes(&source.progress.counters, true, &out)?;
        let timeout = Duration::from_millis(source.settings.parameters().x_godwit_peer_timeout);
        loop {
            match self.wait("the target's word that it has taken all pages so far", timeout)? {
                Reply::Pong(CATCH_UP) => return Ok(started.elapsed()),
                Reply::Shut(_) => return Err(Error::TargetFailed),
                _ => {}
            }
        }
    }

    /// A time-out by the name of what was waited for; the whole time, not what was left of it.
    pub(super) fn silent(&self, error: Error, what: &'static str, time: Duration) -> Error {
        match error {
            Error::Io(crate::io::Error::TimedOut(_)) if self.program.is_some() => {
                crate::io::Error::from(ProgramFailed::NotReading(time)).into()
            }
            Error::Silent { .. } | Error::Io(crate::io::Error::TimedOut(_)) => {
                Error::Silent { what, time }
            }
            other => other,
        }
    }

    /// Ends the stream. A file that waits for that gets its name. A command has done its part once it has read everything and ended
    /// well. It may go on reading for as long as it likes; when it does not read, or has read all,
    /// it has `time`.
    pub(super) fn end_stream(&mut self, time: Duration) -> Result<(), Error> {
        if let Some(increment) = self.increment.take() {
            return increment.finish(&self.main.writer);
        }
        let Some(program) = &self.program else { return Ok(()) };
        let ring = &mut self.main.ring;
        program.read_all(ring, &*self.connections[0].fd, time)?;
        // It sees the end of its input once nobody has the other end.
        self.main.writer.close(ring);
        self.connections.clear();
        program.wait(ring, time)?;
        program.release();
        self.program = None;
        Ok(())
    }

    /// A broken connection is the target's doing if it said why, and a broken pipe the command's.
    pub(super) fn better_reason(&mut self, error: Error) -> Error {
        let broken =
            matches!(error, Error::Io(crate::io::Error::System(_) | crate::io::Error::Closed));
        if broken
            && let Some(failed) = self.program.as_ref().and_then(|p| p.why_closed(COMMAND_ENDS))
        {
            return crate::io::Error::from(failed).into();
        }
        match &mut self.return_path {
            Some(return_path) if broken => {
                return_path.close_reason(&mut self.main.ring).unwrap_or(error)
            }
            _ => error,
        }
    }

    /// Lets go of the streams. A target whose stream ends before GO never runs.
    pub(super) fn close(&mut self, done: bool) {
        if let Some(return_path) = &mut self.return_path {
            return_path.abandon(&mut self.main.ring);
        }
        for channel in std::iter::once(&mut self.main).chain(&mut self.channels) {
            channel.writer.abandon(&mut channel.ring);
        }
        if !done {
            self.connections.iter().for_each(Connection::shut_down);
        }
        if let Some(program) = self.program.take() {
            program.end();
        }
    }
}
