//! The main channel, read to its end: the items of the one reader of the stream.

use std::sync::Arc;

use super::apply::{BATCH_RECORDS, Blocks, Threads};
use super::channels::{Carries, Channels};
use super::increment::Increment;
use super::mapped::{MappedFile, Restore};
use super::return_path::ReturnPath;
use super::{Error, Incoming, MACHINE};
use crate::io::{Ring, SocketReader};
use crate::memory::PageSet;
use crate::migrate::capabilities::Capability;
use crate::migrate::guest::Loader;
use crate::migrate::settings::Settings;
use crate::pages::hash_ram;
use crate::stream::godwit::{Features, Frame};
use crate::stream::{
    self, Command, Configuration, Extent, Item, Layouts, Reader, Record, SectionHeader,
    SectionKind, Step,
};

pub(crate) struct MainChannel<'a> {
    pub incoming: &'a Incoming,
    pub ring: Ring,
    pub return_path: ReturnPath,
    pub channels: Channels,
    pub socket: SocketReader,
    reader: Reader<Devices<'a>>,
    /// The section in hand is the one that lists the blocks.
    in_list: bool,
    blocks: Blocks,
    threads: Threads,
    /// What the stream is read from, if that can be read at places.
    file: Option<MappedFile>,
    /// What holds the pages of a stream that has none.
    pub increment: Option<Increment>,
    /// Pages have places in it, and do not travel.
    is_mapped: bool,
    hash: Option<u64>,
    /// Of the guest's RAM, before anything came.
    losses: u64,
}

/// The machine's own loader knows where a payload ends: it decodes it to find out.
struct Devices<'a>(Box<dyn Loader + 'a>);

impl Layouts for Devices<'_> {
    fn extent(
        &mut self,
        section: &SectionHeader,
        input: &[u8],
        offset: u64,
    ) -> Result<Extent, stream::Error> {
        Ok(match self.0.section(section, input, offset)? {
            Step::Item((), bytes) => Extent::Bytes(bytes),
            Step::Need(needed) => Extent::Need(needed),
        })
    }
}

impl<'a> MainChannel<'a> {
    pub(crate) fn new(
        incoming: &'a Incoming,
        ring: Ring,
        loader: Box<dyn Loader + 'a>,
        socket: SocketReader,
        return_path: ReturnPath,
        channels: Channels,
        file: Option<MappedFile>,
    ) -> Self {
        let start = socket.place().unwrap_or(0);
        Self {
            incoming,
            ring,
            return_path,
            channels,
            socket,
            reader: Reader::new(Devices(loader), Vec::new()).starting_at(start),
            in_list: false,
            blocks: Blocks::default(),
            threads: Threads::default(),
            file,
            increment: None,
            is_mapped: false,
            hash: None,
            losses: incoming.guest.ram().main().losses(),
        }
    }

    /// What the devices said.
    pub(crate) fn loader(&mut self) -> &mut dyn Loader {
        &mut *self.reader.layouts().0
    }

    /// Reads everything up to the end of the states, and the description behind it.
    pub(crate) fn read(&mut self) -> Result<(), Error> {
        while self.step()? {}
        self.channels.finish()?;
        if self.incoming.guest.describes() {
            self.description()?;
        }
        // A stream without section ram has no list that could have been looked at.
        self.check_blocks()?;
        self.loader().validate()?;
        if let Some(increment) = &self.increment {
            increment.check_unchanged()?;
        }
        let ram = self.incoming.guest.ram().main();
        ram.check_still_whole(self.losses)?;
        ram.forgive(self.losses);
        match self.hash {
            Some(hash) if hash_ram(self.incoming.guest.ram(), &PageSet::default())? != hash => {
                Err(Error::RamDiffers)
            }
            _ => Ok(()),
        }
    }

    /// Reads on by one item, or by many records. False behind the end of the states.
    fn step(&mut self) -> Result<bool, Error> {
        if self.reader.in_ram() {
            self.records()?;
            return Ok(true);
        }
        let (item, used) = match self.reader.next(self.socket.bytes())? {
            Step::Item(item, used) => (item, used),
            Step::Need(needed) => {
                self.socket.need(&mut self.ring, needed)?;
                return Ok(true);
            }
        };
        match item {
            Item::Configuration(found) => {
                self.socket.consume(used);
                self.configuration(&found)?;
            }
            Item::Section { kind, .. } => {
                self.socket.consume(used);
                self.in_list = kind == SectionKind::Start;
                if self.in_list {
                    self.open_packet_channels()?;
                }
            }
            Item::SectionEnd => {
                self.socket.consume(used);
                if std::mem::take(&mut self.in_list) {
                    self.blocks_are_listed()?;
                }
            }
            Item::Command(command) => {
                self.socket.consume(used);
                self.command(&command)?;
            }
            Item::Frame(frame) => {
                self.socket.consume(used);
                self.frame(frame)?;
            }
            Item::EndOfStates => {
                self.socket.consume(used);
                return Ok(false);
            }
            // The loader has what it wants of a device. The rest is read elsewhere.
            Item::Device { .. }
            | Item::PackageEnd
            | Item::Ram(_)
            | Item::Run { .. }
            | Item::Description { .. } => self.socket.consume(used),
        }
        Ok(true)
    }

    fn configuration(&mut self, found: &Configuration) -> Result<(), Error> {
        if found.machine != MACHINE {
            return Err(Error::Machine(found.machine.clone()));
        }
        self.is_mapped = found.capabilities.iter().any(|name| name == "mapped-ram");
        if found.capabilities.iter().any(|name| name == "x-ignore-shared") {
            return Err(Error::IgnoresShared);
        }
        if self.is_mapped && self.file.is_none() {
            return Err(Error::MappedNeedsFile);
        }
        if !self.is_mapped && self.incoming.settings.parameters().x_godwit_restore == "mapped" {
            return Err(Error::NothingToMap);
        }
        match (found.uuid, self.incoming.uuid) {
            (Some(theirs), Some(ours)) if theirs != ours => Err(Error::Uuid),
            _ => Ok(()),
        }
    }

    /// A QEMU source with multifd does not say so: both sides are set to it, with the same number
    /// of channels.
    fn open_packet_channels(&mut self) -> Result<(), Error> {
        let multifd = self.incoming.settings.has(Capability::Multifd);
        if self.return_path.is_godwit || self.is_mapped || !multifd {
            return Ok(());
        }
        let count = self.incoming.settings.parameters().multifd_channels;
        self.channels.open(self.incoming, &mut self.ring, count, Carries::Packets)
    }

    fn blocks_are_listed(&mut self) -> Result<(), Error> {
        self.check_blocks()?;
        self.channels.set_blocks(&self.blocks, self.reader.blocks());
        self.channels.turn_others_away();
        Ok(())
    }

    fn check_blocks(&self) -> Result<(), Error> {
        let wanted = self.incoming.guest.ram().main().name();
        let listed = self.reader.blocks();
        if listed.iter().any(|block| block.name == wanted) {
            return Ok(());
        }
        let names: Vec<&str> = listed.iter().map(|block| block.name.as_str()).collect();
        Err(Error::NoRam(wanted.into(), names.join(", ")))
    }

    /// Records, of section `ram` or in a frame, as far as they have come.
    fn records(&mut self) -> Result<(), Error> {
        let (mut flush, mut listed, mut skip) = (false, None, None);
        let (blocks, threads, guest) = (&mut self.blocks, &self.threads, &self.incoming.guest);
        let mut batch = Vec::with_capacity(BATCH_RECORDS);
        let used = self.reader.ram_batch(self.socket.bytes(), BATCH_RECORDS, &mut batch)?;
        for records in batch.chunk_by(|a, b| a.is_page() && b.is_page()) {
            match &records[0] {
                record if record.is_page() => blocks.apply_by(threads, records)?,
                Record::Flush => flush = true,
                Record::Block { block } => {
                    blocks.add(guest.ram(), &self.reader.blocks()[*block as usize])?;
                    listed = Some(*block);
                }
                Record::Skip { to } => skip = Some(*to),
                _ => {}
            }
        }
        let idle = batch.is_empty();
        drop(batch);
        self.socket.consume(used);
        if let Some(block) = listed {
            self.pages_in_file(block)?;
        }
        if let Some(to) = skip {
            self.socket.go_on_at(to);
        }
        if flush {
            self.channels.set_blocks(&self.blocks, self.reader.blocks());
            self.channels.wait_for_round(&mut self.ring)?;
        }
        if idle {
            self.socket.fill(&mut self.ring)?;
        }
        Ok(())
    }

    /// Reads the pages of a block that has its place in the file.
    fn pages_in_file(&mut self, block: u32) -> Result<(), Error> {
        let listed = &self.reader.blocks()[block as usize];
        if let Some(increment) = &self.increment {
            return increment.restore(&self.blocks, block as u8, listed);
        }
        let (Some(header), Some(file)) = (&listed.mapped, &self.file) else { return Ok(()) };
        // Firmware, and tables that the guest asks for, are small.
        let is_ram = listed.name == self.incoming.guest.ram().main().name();
        let how = match self.incoming.settings.parameters().x_godwit_restore {
            "mapped" if is_ram => Restore::Mapped(Box::new(self.memory_lost())),
            _ => Restore::Eager(reading_threads(&self.incoming.settings)),
        };
        file.restore(&mut self.ring, &self.blocks, block as u8, listed, header, how)
    }

    /// Stops the guest, if it is still there, whose memory's file was written to.
    fn memory_lost(&self) -> impl FnOnce() + Send + use<> {
        let guest = Arc::downgrade(&self.incoming.guest);
        move || {
            if let Some(guest) = guest.upgrade() {
                guest.ram().main().file_has_changed();
                guest.memory_lost();
            }
        }
    }

    fn command(&mut self, command: &Command) -> Result<(), Error> {
        match command {
            Command::OpenReturnPath => self.return_path.open(&mut self.ring, self.incoming),
            Command::Ping(value) => self.return_path.pong(&mut self.ring, self.incoming, *value),
            Command::SwitchoverStart | Command::PostcopyAdvise(None) => Ok(()),
            other => Err(Error::Command(other.name())),
        }
    }

    fn frame(&mut self, frame: Frame) -> Result<(), Error> {
        match frame {
            Frame::Chosen { features, channels, requirements } => {
                self.return_path.chosen(features)?;
                self.incoming.guest.check_requirements(&requirements)?;
                let carries = match features.contains(Features::CHANNELS) {
                    true => Carries::Frames,
                    false => Carries::Packets,
                };
                self.channels.open(self.incoming, &mut self.ring, channels, carries)
            }
            Frame::Run { block, offset, bytes } => {
                self.reader.take_run();
                self.blocks.receive(&mut self.ring, &mut self.socket, block, offset, bytes)
            }
            Frame::Zero { block, offset, bytes } => self.blocks.zero(block, offset, bytes),
            Frame::Sync { .. } => self.channels.wait_for_round(&mut self.ring),
            Frame::Hash(hash) => {
                self.hash = Some(hash);
                Ok(())
            }
            // The records are read next. The reader lets GO stand nowhere but at the end.
            Frame::Records { .. } | Frame::Go => Ok(()),
        }
    }

    /// Behind the states comes a description, which is for people; a stream that ends without it is
    /// complete as well.
    fn description(&mut self) -> Result<(), Error> {
        loop {
            match self.behind_the_states() {
                Ok(Behind::Description { left: 0 }) => return Ok(()),
                Ok(Behind::Description { .. }) => {}
                Ok(Behind::Go) => return Err(Error::Command("GO before the guest was loaded")),
                Err(Error::Io(error)) if error.is_disconnect() => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }

    /// Waits for GO. A connection that ends first means that the guest stays where it was.
    pub(crate) fn wait_for_go(&mut self) -> Result<(), Error> {
        while self.behind_the_states()? != Behind::Go {}
        Ok(())
    }

    fn behind_the_states(&mut self) -> Result<Behind, Error> {
        loop {
            let (behind, used) = match self.reader.next(self.socket.bytes())? {
                Step::Item(Item::Description { left, .. }, used) => {
                    (Behind::Description { left }, used)
                }
                Step::Item(_go, used) => (Behind::Go, used),
                Step::Need(needed) => {
                    self.socket.need(&mut self.ring, needed)?;
                    continue;
                }
            };
            self.socket.consume(used);
            return Ok(behind);
        }
    }
}

/// As many as multifd has channels, where that is set, and else by the host's processors: past four
/// memory is no faster.
fn reading_threads(settings: &Settings) -> u8 {
    match settings.has(Capability::Multifd) {
        true => settings.parameters().multifd_channels,
        false => std::thread::available_parallelism().map_or(1, |count| count.get().min(4) as u8),
    }
}

/// What stands behind the states.
#[derive(PartialEq, Eq)]
enum Behind {
    Description { left: u32 },
    Go,
}
