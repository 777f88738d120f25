//! The main channel, read to its end: sections, commands, frames.

use std::collections::HashMap;

use super::apply::{Blocks, Threads};
use super::channels::{Carries, Channels};
use super::{Error, Greeting, Target};
use crate::io::{Ring, SocketReader};
use crate::migrate::capabilities::Capability;
use crate::migrate::guest::Loader;
use crate::pages::hash_ram;
use crate::stream::godwit::{self, Features, Frame};
use crate::stream::ram::{RamParser, RamRules};
use crate::stream::{self, Command, Record, SECTIONS_MAX, SectionHeader, SectionKind, Step};

/// Records parsed at once: as many as one receive brings.
const BATCH_RECORDS: usize = 4096;

pub struct MainChannel<'a> {
    pub target: &'a Target,
    pub ring: Ring,
    pub reader: SocketReader,
    pub greeting: Greeting,
    pub channels: Channels,
    blocks: Blocks,
    threads: Threads,
    parser: RamParser,
    sections: HashMap<u32, SectionHeader>,
    /// Bytes consumed, for messages.
    offset: u64,
    hash: Option<u64>,
}

impl<'a> MainChannel<'a> {
    pub fn new(
        target: &'a Target,
        ring: Ring,
        reader: SocketReader,
        greeting: Greeting,
        channels: Channels,
    ) -> Self {
        Self {
            target,
            ring,
            reader,
            greeting,
            channels,
            blocks: Blocks::default(),
            threads: Threads::default(),
            parser: RamParser::new(RamRules::default()),
            sections: HashMap::new(),
            offset: 0,
            hash: None,
        }
    }

    /// Reads everything up to the end of the states, and the description behind it.
    pub fn read(&mut self, loader: &mut dyn Loader) -> Result<(), Error> {
        self.header()?;
        loop {
            match self.need(1)?[0] {
                0x00 => break,
                0x01 => self.opening(SectionKind::Start, loader)?,
                0x04 => self.opening(SectionKind::Full, loader)?,
                0x02 | 0x03 => self.part()?,
                0x08 => self.command()?,
                other => {
                    return Err(self.says("section type", format!("{other:#04x} is not known")));
                }
            }
        }
        self.consume(1);
        self.channels.finish()?;
        if self.target.guest.describes() {
            self.description()?;
        }
        let wanted = self.target.guest.ram().main().name();
        if self.parser.blocks().iter().all(|block| block.name != wanted) {
            return Err(
                self.says("block list", format!("\"{wanted}\", this guest's RAM, is not in it"))
            );
        }
        loader.validate()?;
        match self.hash {
            Some(hash) if hash_ram(self.target.guest.ram())? != hash => Err(Error::RamDiffers),
            _ => Ok(()),
        }
    }

    /// Waits for GO. A connection that ends first means that the guest stays where it was.
    pub fn wait_for_go(&mut self) -> Result<(), Error> {
        loop {
            match self.read_command()? {
                Command::Private { number: godwit::NUMBER, data } => {
                    if Frame::parse(&data, self.offset)? == Frame::Go {
                        return Ok(());
                    }
                }
                other => {
                    return Err(self.says("command", format!("{} where GO was due", other.name())));
                }
            }
        }
    }

    fn header(&mut self) -> Result<(), Error> {
        let head = self.need(9)?;
        let word = |at: usize| u32::from_be_bytes(head[at..at + 4].try_into().expect("four bytes"));
        let (magic, version, marker) = (word(0), word(4), head[8]);
        if magic != stream::MAGIC {
            return Err(self.says("magic", format!("{magic:#x} is no migration stream")));
        }
        if version != stream::VERSION {
            return Err(self.says("version", format!("{version} is not {}", stream::VERSION)));
        }
        if marker != 0x07 {
            return Err(self.says("configuration", "is missing".into()));
        }
        self.consume(9);
        let length = u32::from_be_bytes(self.need(4)?.try_into().expect("four bytes")) as usize;
        if length > 255 {
            return Err(self.says("machine type", format!("its name has {length} bytes")));
        }
        self.consume(4);
        let name = String::from_utf8_lossy(self.need(length)?).into_owned();
        if name != super::MACHINE {
            return Err(Error::Machine(name));
        }
        self.consume(length);
        while self.need(1)?[0] == 0x05 {
            self.configuration_subsection()?;
        }
        Ok(())
    }

    fn configuration_subsection(&mut self) -> Result<(), Error> {
        let length = usize::from(self.need(2)?[1]);
        let name = String::from_utf8_lossy(&self.need(2 + length)?[2..]).into_owned();
        self.need(2 + length + 4)?;
        self.consume(2 + length + 4);
        match name.as_str() {
            "configuration/uuid" => {
                let uuid: [u8; 16] = self.need(16)?.try_into().expect("sixteen bytes");
                self.consume(16);
                if self.target.uuid.is_some_and(|ours| ours != uuid) {
                    return Err(Error::Uuid);
                }
                Ok(())
            }
            "configuration/capabilities" => Err(Error::SourceCapabilities),
            _ => Err(self.says("configuration subsection", format!("{name:?} is not known"))),
        }
    }

    fn opening(&mut self, kind: SectionKind, loader: &mut dyn Loader) -> Result<(), Error> {
        let length = usize::from(self.need(6)?[5]);
        let head = self.need(6 + length + 8)?;
        let word = |at: usize| u32::from_be_bytes(head[at..at + 4].try_into().expect("four bytes"));
        let header = SectionHeader {
            id: word(1),
            name: String::from_utf8_lossy(&head[6..6 + length]).into_owned(),
            instance: word(6 + length),
            version: word(10 + length),
        };
        self.consume(14 + length);
        if self.sections.len() == SECTIONS_MAX {
            return Err(self.says("sections", format!("more than {SECTIONS_MAX}")));
        }
        self.sections.insert(header.id, header.clone());
        match kind {
            SectionKind::Start if header.name == "ram" => {
                if !self.blocks.is_empty() {
                    return Err(self.says("section ram", "starts a second time".into()));
                }
                if header.version != 4 {
                    return Err(
                        self.says("section ram", format!("version {} is not 4", header.version))
                    );
                }
                self.open_packet_channels()?;
                self.records()?;
            }
            SectionKind::Start => {
                return Err(self.says(
                    "section",
                    format!("{header} is sent in parts, which only ram is here"),
                ));
            }
            _ => self.device(&header, loader)?,
        }
        self.footer(header.id)
    }

    /// A QEMU source with multifd does not say so: both sides are set to it, with the same number
    /// of channels.
    fn open_packet_channels(&mut self) -> Result<(), Error> {
        if self.greeting.is_godwit || !self.target.settings.has(Capability::Multifd) {
            return Ok(());
        }
        let count = self.target.settings.parameters().multifd_channels;
        self.channels.open(self.target, &mut self.ring, count, Carries::Packets)
    }

    fn part(&mut self) -> Result<(), Error> {
        let id = u32::from_be_bytes(self.need(5)?[1..5].try_into().expect("four bytes"));
        match self.sections.get(&id) {
            Some(header) if header.name == "ram" => {}
            _ => return Err(self.says("section id", format!("{id} has no part"))),
        }
        self.consume(5);
        self.records()?;
        self.footer(id)
    }

    fn footer(&mut self, id: u32) -> Result<(), Error> {
        let foot = self.need(5)?;
        let found = u32::from_be_bytes(foot[1..5].try_into().expect("four bytes"));
        if foot[0] != 0x7e || found != id {
            return Err(self.says("section footer", format!("of section {id} is missing")));
        }
        self.consume(5);
        Ok(())
    }

    fn device(&mut self, header: &SectionHeader, loader: &mut dyn Loader) -> Result<(), Error> {
        let mut want = 1;
        loop {
            let offset = self.offset;
            self.reader.need(&mut self.ring, want)?;
            match loader.section(header, self.reader.bytes(), offset)? {
                Step::Item((), bytes) => {
                    self.consume(bytes);
                    return Ok(());
                }
                Step::Need(more) if more > stream::PAYLOAD_BYTES_MAX => {
                    return Err(
                        self.says("section", format!("{header} is longer than any device's"))
                    );
                }
                Step::Need(more) => want = more.max(self.reader.bytes().len() + 1),
            }
        }
    }

    /// Records of section `ram`, to the one that ends the payload.
    fn records(&mut self) -> Result<(), Error> {
        self.parser.set_offset(self.offset);
        loop {
            let mut batch = Vec::with_capacity(BATCH_RECORDS);
            let used = self.parser.batch(self.reader.bytes(), BATCH_RECORDS, &mut batch)?;
            let mut ended = false;
            let mut flush = false;
            for records in batch.chunk_by(|a, b| a.is_page() && b.is_page()) {
                match &records[0] {
                    Record::Blocks { .. } if !self.blocks.is_empty() => {
                        return Err(Error::Command("a second list of RAM blocks"));
                    }
                    record if record.is_page() => self.blocks.apply_by(&self.threads, records)?,
                    Record::End => ended = true,
                    Record::Flush => flush = true,
                    Record::Block { block } => {
                        let listed = &self.parser.blocks()[*block as usize];
                        self.blocks.add(self.target.guest.ram(), listed)?;
                    }
                    Record::Skip { .. } => return Err(Error::SourceCapabilities),
                    _ => {}
                }
            }
            let idle = batch.is_empty();
            drop(batch);
            self.reader.consume(used);
            self.offset += used as u64;
            if flush {
                self.channels.set_blocks(&self.blocks, self.parser.blocks());
                self.channels.wait_for_round(&mut self.ring)?;
            }
            if ended {
                self.channels.set_blocks(&self.blocks, self.parser.blocks());
                return Ok(());
            }
            if idle {
                self.reader.fill(&mut self.ring)?;
            }
        }
    }

    fn read_command(&mut self) -> Result<Command, Error> {
        let head = self.need(5)?;
        if head[0] != 0x08 {
            return Err(self.says(
                "command",
                format!("{:#04x} where a command was due", self.reader.bytes()[0]),
            ));
        }
        let (number, length) =
            (u16::from_be_bytes([head[1], head[2]]), u16::from_be_bytes([head[3], head[4]]));
        let offset = self.offset + 5;
        let whole = self.need(5 + usize::from(length))?;
        let command = Command::parse(number, &whole[5..], offset)?;
        self.consume(5 + usize::from(length));
        Ok(command)
    }

    fn command(&mut self) -> Result<(), Error> {
        match self.read_command()? {
            Command::OpenReturnPath => self.greeting.open(&mut self.ring, self.target),
            Command::Ping(value) => self.greeting.pong(&mut self.ring, self.target, value),
            Command::SwitchoverStart => Ok(()),
            Command::Private { number: godwit::NUMBER, data } => {
                let frame = Frame::parse(&data, self.offset)?;
                self.frame(frame)
            }
            Command::PostcopyAdvise(None) => Ok(()),
            other => Err(Error::Command(other.name())),
        }
    }

    fn frame(&mut self, frame: Frame) -> Result<(), Error> {
        match frame {
            Frame::Chosen { features, channels, facts } => {
                self.greeting.chosen(features)?;
                self.target.guest.check_facts(&facts)?;
                let carries = match features.contains(Features::CHANNELS) {
                    true => Carries::Frames,
                    false => Carries::Packets,
                };
                self.channels.open(self.target, &mut self.ring, channels, carries)
            }
            Frame::Run { block, offset, bytes } => {
                self.blocks.receive(&mut self.ring, &mut self.reader, block, offset, bytes)?;
                // Not before: a length that is inside the block adds up to no more than what can
                // travel.
                self.offset += bytes;
                Ok(())
            }
            Frame::Zero { block, offset, bytes } => self.blocks.zero(block, offset, bytes),
            Frame::Records { bytes } => {
                self.offset += u64::from(bytes);
                let apply = |records: &[Record<'_>]| self.blocks.apply_by(&self.threads, records);
                records_frame(&mut self.ring, &mut self.reader, &mut self.parser, apply, bytes)
            }
            Frame::Sync { .. } => self.channels.wait_for_round(&mut self.ring),
            Frame::Hash(hash) => {
                self.hash = Some(hash);
                Ok(())
            }
            Frame::Go => Err(self.says("frame", "GO before the end of the states".into())),
        }
    }

    /// Behind the states comes a description, which is for people; a stream that ends without it is
    /// complete as well.
    fn description(&mut self) -> Result<(), Error> {
        match self.reader.need(&mut self.ring, 1) {
            Ok(byte) if byte[0] == 0x06 => {}
            _ => return Ok(()),
        }
        let length = u32::from_be_bytes(self.need(5)?[1..5].try_into().expect("four bytes"));
        if length > stream::DESCRIPTION_BYTES_MAX {
            return Err(self.says("description", format!("{length} bytes long")));
        }
        self.consume(5);
        let mut left = length as usize;
        while left > 0 {
            let have = self.reader.bytes().len().min(left);
            self.consume(have);
            left -= have;
            if left > 0 {
                self.reader.fill(&mut self.ring)?;
            }
        }
        Ok(())
    }

    fn need(&mut self, bytes: usize) -> Result<&[u8], Error> {
        Ok(self.reader.need(&mut self.ring, bytes)?)
    }

    fn consume(&mut self, bytes: usize) {
        // What follows a name may not have arrived with it.
        self.reader.consume(bytes);
        self.offset += bytes as u64;
    }

    fn says(&self, field: &'static str, text: String) -> Error {
        Error::Says { field, offset: self.offset, text }
    }
}

/// Takes `bytes` bytes of records that stand in a frame.
pub fn records_frame(
    ring: &mut Ring,
    reader: &mut SocketReader,
    parser: &mut RamParser,
    apply: impl Fn(&[Record<'_>]) -> Result<(), Error>,
    bytes: u32,
) -> Result<(), Error> {
    parser.forget_last_block();
    let mut left = bytes as usize;
    while left > 0 {
        let have = reader.bytes().len().min(left);
        let mut batch = Vec::with_capacity(BATCH_RECORDS);
        let used = parser.batch(&reader.bytes()[..have], BATCH_RECORDS, &mut batch)?;
        apply(&batch)?;
        drop(batch);
        reader.consume(used);
        left -= used;
        if left > 0 && used == 0 {
            if have == left {
                return Err(Error::Command("a record that goes past its frame"));
            }
            reader.fill(ring)?;
        }
    }
    Ok(())
}
