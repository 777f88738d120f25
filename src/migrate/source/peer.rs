//! The other side: what it is, what it can do, and the streams to it.

use std::time::Duration;

use xbzrle::Cache;

use super::answers::Answers;
use super::lane::{Framing, Lane};
use super::{Error, Source};
use crate::encode::{RecordLayout, sources};
use crate::io::transport;
use crate::io::{Address, Connection, Ring, SocketWriter};
use crate::migrate::capabilities::Capability;
use crate::stream::godwit::{self, Answer, Features, Frame};
use crate::stream::multifd::Hello;
use crate::stream::return_path::Reply;
use crate::stream::{Command, Configuration, SectionHeader};

/// Name of the machine type in the stream.
pub const MACHINE: &str = "microvm";

/// The RAM section as this source numbers it.
pub fn ram_section() -> SectionHeader {
    SectionHeader { id: 2, name: "ram".into(), instance: 0, version: 4 }
}

pub struct Peer {
    /// The main channel; carries pages too when there are no others.
    pub main: Lane,
    /// The other channels, by number.
    pub channels: Vec<Lane>,
    pub answers: Option<Answers>,
    /// What was chosen of the offer; empty with a peer that is no Godwit.
    pub features: Features,
    pub target_is_zero: bool,
    connections: Vec<Connection>,
}

/// How long the first answer may take: the target may still be at its RAM's setup.
const GREETING: Duration = Duration::from_secs(60);

impl Peer {
    /// Opens the stream and finds out who is there. No RAM has moved when this returns, and the target has had the
    /// chance to refuse.
    pub fn greet(
        source: &Source,
        ring: Ring,
        connection: Connection,
        address: Option<Address>,
    ) -> Result<Self, Error> {
        let parameters = source.settings.parameters();
        connection
            .set_user_timeout(Duration::from_millis(parameters.x_godwit_peer_timeout))
            .map_err(crate::io::Error::from)?;
        let two_way =
            connection.is_two_way() && (address.is_some() || source.settings.has(Capability::ReturnPath));
        let writer = SocketWriter::new(connection.fd.clone(), source.settings.limit.clone());
        let ram = source.guest.ram();
        let lane = Lane::new(
            0,
            false,
            ring,
            writer,
            Framing::Records(ram_section()),
            sources(ram),
            RecordLayout::new(ram.blocks()),
            None,
        );
        let answers = two_way.then(|| Answers::new(connection.fd.clone()));
        let mut peer = Self {
            main: lane,
            channels: Vec::new(),
            answers,
            features: Features::empty(),
            target_is_zero: false,
            connections: vec![connection],
        };
        let result = peer.introduce(source, address.as_ref());
        match result.map_err(|error| peer.better_reason(error)) {
            Ok(()) => Ok(peer),
            Err(error) => {
                peer.close(false);
                Err(error)
            }
        }
    }

    fn introduce(&mut self, source: &Source, address: Option<&Address>) -> Result<(), Error> {
        let parameters = source.settings.parameters();
        let uuid = source.uuid.filter(|_| source.settings.has(Capability::ValidateUuid));
        let mut out = Vec::new();
        Configuration { machine: MACHINE.into(), uuid, ..Configuration::default() }.write(&mut out);
        let ask = self.answers.is_some() && parameters.x_godwit_stream == "auto";
        if self.answers.is_some() {
            Command::OpenReturnPath.write(&mut out);
            Command::Ping(if ask { godwit::PING } else { 1 }).write(&mut out);
        }
        self.main.send_bytes(&source.progress.counters, true, &out)?;
        let offer = if ask { self.read_offer()? } else { None };
        let channels = if source.settings.has(Capability::Multifd) { parameters.multifd_channels } else { 0 };
        if let Some((features, limit, is_zero)) = offer {
            self.choose(source, features, channels.min(limit))?;
            self.target_is_zero = is_zero;
        }
        if channels > 0 {
            self.open_channels(source, address.ok_or(Error::ChannelsNeedAddress)?, channels)?;
        }
        if parameters.x_godwit_verify && !self.features.contains(Features::RAM_HASH) {
            return Err(Error::VerifyNeedsGodwit);
        }
        self.open_caches(source, parameters.xbzrle_cache_size)
    }

    /// A Godwit's offer comes before its PONG.
    fn read_offer(&mut self) -> Result<Option<(Features, u8, bool)>, Error> {
        let mut offer = None;
        loop {
            match self.wait("greeting", GREETING)? {
                Reply::Pong(godwit::PING) => return Ok(offer),
                Reply::Shut(_) => return Err(Error::TargetFailed),
                Reply::Other { kind: godwit::NUMBER, data } => {
                    if let Some(Answer::Offer { features, channels, ram_is_zero }) = Answer::parse(&data) {
                        offer = Some((features, channels, ram_is_zero));
                    }
                }
                _ => {}
            }
        }
    }

    fn choose(&mut self, source: &Source, offered: Features, channels: u8) -> Result<(), Error> {
        self.features = offered & Features::all();
        if self.features.contains(Features::PAGE_RUNS | Features::ZERO_RANGES) {
            self.main.framing = Framing::Frames;
        }
        let mut out = Vec::new();
        Frame::Chosen { features: self.features, channels, facts: source.guest.facts() }.write(&mut out);
        self.main.send_bytes(&source.progress.counters, true, &out)
    }

    fn open_channels(&mut self, source: &Source, address: &Address, channels: u8) -> Result<(), Error> {
        if !self.features.contains(Features::CHANNELS) {
            return Err(Error::Refused("it is no Godwit, and QEMU's multifd is not built in".into()));
        }
        let timeout = Duration::from_millis(source.settings.parameters().x_godwit_peer_timeout);
        for channel in 0..channels {
            let mut ring = Ring::new(source.waker.clone())?;
            let connection = transport::connect(&mut ring, address)?;
            connection.set_user_timeout(timeout).map_err(crate::io::Error::from)?;
            let writer = SocketWriter::new(connection.fd.clone(), source.settings.limit.clone());
            let ram = source.guest.ram();
            let layout = RecordLayout::new(ram.blocks());
            let mut lane =
                Lane::new(channel.into(), true, ring, writer, Framing::Frames, sources(ram), layout, None);
            let mut out = Vec::new();
            Hello { uuid: source.uuid.unwrap_or_default(), channel }.write(&mut out);
            lane.send_bytes(&source.progress.counters, true, &out)?;
            self.channels.push(lane);
            self.connections.push(connection);
        }
        Ok(())
    }

    /// The cache is divided among the lanes: each keeps the pages it sends.
    fn open_caches(&mut self, source: &Source, bytes: u64) -> Result<(), Error> {
        if !source.settings.has(Capability::Xbzrle) {
            return Ok(());
        }
        let share = (bytes / self.lanes().len() as u64).max(4096);
        for lane in self.lanes() {
            lane.cache = Some(Cache::new(share)?);
        }
        Ok(())
    }

    /// Gives the caches a new size where the parameter changed.
    pub fn resize_caches(&mut self, bytes: u64) -> Result<(), Error> {
        let share = (bytes / self.lanes().len() as u64).max(4096);
        for cache in self.lanes().iter_mut().filter_map(|lane| lane.cache.as_mut()) {
            if cache.size_bytes() != share {
                cache.resize(share)?;
            }
        }
        Ok(())
    }

    /// The lanes that carry pages.
    pub fn lanes(&mut self) -> &mut [Lane] {
        if self.channels.is_empty() { std::slice::from_mut(&mut self.main) } else { &mut self.channels }
    }

    /// The next message of the return path.
    pub fn wait(&mut self, what: &'static str, time: Duration) -> Result<Reply, Error> {
        let answers = self.answers.as_mut().expect("asked only of a peer that can answer");
        match answers.wait(&mut self.main.ring, Some((std::time::Instant::now() + time, time))) {
            Err(Error::Io(crate::io::Error::TimedOut(_))) => Err(Error::Silent { what, time }),
            other => other,
        }
    }

    /// Errors if the target has refused meanwhile.
    pub fn check(&mut self) -> Result<(), Error> {
        let Some(answers) = &mut self.answers else { return Ok(()) };
        match answers.poll(&mut self.main.ring)? {
            Some(Reply::Shut(_)) => Err(Error::TargetFailed),
            _ => Ok(()),
        }
    }

    /// A broken connection is the target's doing if it said why.
    pub fn better_reason(&mut self, error: Error) -> Error {
        let broken = matches!(error, Error::Io(crate::io::Error::System(_) | crate::io::Error::Closed));
        match &mut self.answers {
            Some(answers) if broken => answers.last_words(&mut self.main.ring).unwrap_or(error),
            _ => error,
        }
    }

    /// Lets go of the streams. A target whose stream ends before GO never runs.
    pub fn close(&mut self, done: bool) {
        if let Some(answers) = &mut self.answers {
            answers.abandon(&mut self.main.ring);
        }
        for lane in std::iter::once(&mut self.main).chain(&mut self.channels) {
            lane.writer.abandon(&mut lane.ring);
        }
        if !done {
            self.connections.iter().for_each(Connection::shut_down);
        }
    }
}
