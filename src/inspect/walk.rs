//! Reading the files and filling the report.

use super::channels::Channel;
use super::core::Arrived;
use super::error::{Failure, read_failure};
use super::image::Image;
use super::layouts::AnyLayout;
use super::options::{BLOCK, Options};
use super::report::{
    Block, Connection, Description, Entry, Field, ImageReport, PASSES_MAX, RamCounts, Report, What,
};
use super::source::Source;
use crate::arch::x86_64::cpu::CpuState;
use crate::devices::vmcoreinfo::VmCoreInfoState;
use crate::dump::VmCoreInfo;
use crate::machine::load::{read_section, section_kind};
use crate::stream::godwit::{self, Frame};
use crate::stream::mapped::MappedHeader;
use crate::stream::return_path::{BITMAP_END, Reply};
use crate::stream::{
    Command, DESCRIPTION_BYTES_MAX, Error, Item, ListedBlock, PAGE_BYTES, PageAt, Problem, Reader,
    Record, SectionHeader, SectionKind, Step,
};
use crate::vmstate::{Row, Stop};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Reads everything that `options` name; memory goes to `image`. What was found before a failure is
/// in `report`.
pub(crate) fn walk(
    options: &Options,
    image: Option<File>,
    report: &mut Report,
    arrived: &mut Arrived,
) -> Result<(), Failure> {
    let mut source = Source::open(&options.main).map_err(read_failure(&options.main))?;
    source.fill(4).map_err(read_failure(&options.main))?;
    if is_return_path(source.input()) {
        return return_path(&options.main, source, report);
    }
    report.kind = "migration";
    let wanted = if options.ram.is_some() { &options.block } else { BLOCK };
    let layouts = AnyLayout::of(source.file()).unwrap_or_default();
    let channels =
        options.channels.iter().map(|path| Channel::open(path)).collect::<Result<Vec<_>, _>>()?;
    let mut walker = Walker {
        options,
        report,
        arrived,
        image: image.map(|file| (Image::new(file), u32::MAX)),
        wanted,
        channels,
        part: RamCounts::default(),
        last: None,
        section: None,
        packaged: false,
        postcopy: false,
        description: Vec::new(),
    };
    let mut reader = Reader::new(layouts, Vec::new());
    let mut result =
        walker.connection(&options.main, source, &mut reader, !options.resume.is_empty());
    for path in &options.resume {
        result?;
        reader = reader.resumed();
        walker.last = None;
        let source = Source::open(path).map_err(read_failure(path))?;
        result = walker.connection(path, source, &mut reader, true);
    }
    let drained = if result.is_ok() { walker.drain_channels(&reader) } else { Ok(()) };
    walker.finish(&reader);
    result.and(drained)
}

struct Walker<'a> {
    options: &'a Options,
    report: &'a mut Report,
    arrived: &'a mut Arrived,
    /// The image and the number of its block; `u32::MAX` until the block is listed.
    image: Option<(Image, u32)>,
    /// That block's name.
    wanted: &'a str,
    channels: Vec<Channel>,
    /// Of the section in hand.
    part: RamCounts,
    last: Option<PageAt>,
    section: Option<(SectionKind, std::sync::Arc<SectionHeader>, u64)>,
    packaged: bool,
    postcopy: bool,
    description: Vec<u8>,
}

impl Walker<'_> {
    /// Reads one connection's file to its end. `may_break`: it may have been cut off by an
    /// interruption.
    fn connection(
        &mut self,
        path: &Path,
        mut source: Source,
        reader: &mut Reader<AnyLayout>,
        may_break: bool,
    ) -> Result<(), Failure> {
        let bytes = source.file().metadata().map_or(0, |metadata| metadata.len());
        let file = path.display().to_string();
        self.report.connections.push(Connection { file, bytes, ..Connection::default() });
        let refused = |error| Failure::Stream(path.to_owned(), error);
        loop {
            let at = reader.offset();
            match reader.next(source.input()).map_err(refused)? {
                Step::Item(item, used) => {
                    let skip =
                        if let Item::Ram(Record::Skip { to }) = item { Some(to) } else { None };
                    self.item(item, at, reader, source.file())
                        .map_err(|failure| failure.of(path))?;
                    source.consume(used);
                    if let Some(to) = skip {
                        source.seek(to).map_err(read_failure(path))?;
                    }
                }
                Step::Need(needed) => {
                    if source.fill(needed).map_err(read_failure(path))? {
                        continue;
                    }
                    if reader.may_end() && source.input().is_empty() || may_break && self.postcopy {
                        return Ok(());
                    }
                    let end = reader.offset() + source.input().len() as u64;
                    return Err(refused(Error::new(
                        reader.place(),
                        "end of file",
                        end,
                        Problem::Ends,
                    )));
                }
            }
        }
    }

    fn entry(&mut self, offset: u64, what: What) {
        let packaged = self.packaged;
        if let Some(connection) = self.report.connections.last_mut() {
            connection.push(Entry { offset, packaged, what });
        }
    }

    fn item(
        &mut self,
        item: Item<'_>,
        at: u64,
        reader: &Reader<AnyLayout>,
        file: &File,
    ) -> Result<(), Failure> {
        match item {
            Item::Configuration(found) => {
                self.report.machine = Some(found.machine);
                self.report.capabilities = found.capabilities;
                self.report.uuid =
                    found.uuid.map(|uuid| uuid.iter().map(|byte| format!("{byte:02x}")).collect());
            }
            Item::Section { kind, header } => {
                self.part = RamCounts::default();
                self.section = Some((kind, header, at));
            }
            Item::Ram(record) => self.record(record, reader, file)?,
            Item::Device { header, payload } => self.device(&header, payload),
            Item::SectionEnd => self.section_end(at),
            Item::Command(command) => self.command(&command, at),
            Item::Frame(frame) => self.frame(frame, at)?,
            Item::Run { at, bytes } => self.run(at, bytes)?,
            Item::PackageEnd => {
                self.packaged = false;
                self.entry(at, What::PackageEnd);
            }
            Item::EndOfStates => self.entry(at, What::EndOfStates),
            Item::Description { text, left } => self.description(text, left),
        }
        Ok(())
    }

    fn record(
        &mut self,
        record: Record<'_>,
        reader: &Reader<AnyLayout>,
        file: &File,
    ) -> Result<(), Failure> {
        match record {
            Record::Blocks { .. } => self.report.blocks.clear(),
            Record::Block { block } => self.block(block, reader, file)?,
            Record::Zero { at } => {
                self.count(at, |counts| counts.zero += 1);
                self.on_image(at, |image| image.zero(at.offset))?;
            }
            Record::Page { at, bytes } => {
                self.count(at, |counts| counts.pages += 1);
                self.on_image(at, |image| image.write(at.offset, bytes))?;
            }
            Record::Delta { at, delta } => {
                self.count(at, |counts| {
                    counts.deltas += 1;
                    counts.delta_bytes += delta.len() as u64;
                });
                self.on_image(at, |image| image.apply(at.offset, delta))?;
            }
            Record::Flush => {
                self.part.flushes += 1;
                self.report.total.flushes += 1;
                for channel in &mut self.channels {
                    channel.read_round(reader.blocks(), &mut self.image)?;
                }
            }
            Record::Skip { .. } | Record::End => {}
        }
        Ok(())
    }

    /// Counts a page record in its section, its pass and the whole.
    fn count(&mut self, at: PageAt, add: impl Fn(&mut RamCounts)) {
        let passes = &mut self.report.passes;
        let back = self.last.is_none_or(|last| at <= last) && !self.postcopy;
        if passes.is_empty() || back && passes.len() < PASSES_MAX {
            passes.push(RamCounts::default());
        }
        self.last = Some(at);
        for counts in [&mut self.part, &mut self.report.total]
            .into_iter()
            .chain(self.report.passes.last_mut())
        {
            add(counts);
        }
    }

    fn on_image(
        &mut self,
        at: PageAt,
        then: impl FnOnce(&mut Image) -> std::io::Result<()>,
    ) -> Result<(), Failure> {
        match &mut self.image {
            Some((image, block)) if *block == at.block => then(image).map_err(Failure::Image),
            _ => Ok(()),
        }
    }

    fn block(
        &mut self,
        number: u32,
        reader: &Reader<AnyLayout>,
        file: &File,
    ) -> Result<(), Failure> {
        let block = &reader.blocks()[number as usize];
        if let Some((image, wanted)) = self.image.as_mut().filter(|_| block.name == self.wanted) {
            image.resize(block.bytes).map_err(Failure::Image)?;
            *wanted = number;
        }
        let mut mapped_pages = None;
        if let Some(header) = block.mapped {
            let pages = self.mapped_pages(number, block, &header, file)?;
            self.report.total.pages += pages;
            mapped_pages = Some(pages);
        }
        self.report.blocks.push(Block {
            name: block.name.clone(),
            bytes: block.bytes,
            mapped_pages_offset: block.mapped.map(|header| header.pages_offset),
            mapped_pages,
        });
        Ok(())
    }

    /// Counts the pages whose bit is set, and copies them if they belong to the image.
    fn mapped_pages(
        &mut self,
        number: u32,
        block: &ListedBlock,
        header: &MappedHeader,
        file: &File,
    ) -> Result<u64, Failure> {
        let refused = |error| Failure::Stream(Default::default(), error);
        let read = |bytes: &mut [u8], at| {
            let ends = |_| Error::new("section ram", "mapped-ram pages", at, Problem::Ends);
            file.read_exact_at(bytes, at).map_err(|error| refused(ends(error)))
        };
        let mut pages = 0;
        let (total, mut words) = (block.bytes / PAGE_BYTES as u64, [0; 4096]);
        for first in (0..total).step_by(words.len() * 8) {
            let bytes = MappedHeader::bitmap_bytes(
                (total - first).min(8 * words.len() as u64) * PAGE_BYTES as u64,
            );
            let words = &mut words[..bytes as usize];
            read(words, header.bitmap_offset + first / 8)?;
            for (index, word) in (first / 64..).zip(words.as_chunks::<8>().0) {
                let word = header.word(index, *word, &block.name, total).map_err(refused)?;
                pages += u64::from(word.count_ones());
                for page in (0..64).filter(|bit| word >> bit & 1 != 0).map(|bit| 64 * index + bit) {
                    if let Some((image, _)) =
                        self.image.as_mut().filter(|(_, wanted)| *wanted == number)
                    {
                        let mut bytes = [0; PAGE_BYTES];
                        read(&mut bytes, header.pages_offset + page * PAGE_BYTES as u64)?;
                        image.write(page * PAGE_BYTES as u64, &bytes).map_err(Failure::Image)?;
                    }
                }
            }
        }
        Ok(pages)
    }

    fn device(&mut self, header: &SectionHeader, payload: &[u8]) {
        let Some((kind, _, at)) = self.section.take() else { return };
        let payload_at = at + 14 + header.name.len() as u64;
        let (found, note) = match read_section(header, payload, payload_at, true) {
            Ok((section, _)) => (Some(section), None),
            Err(_) if section_kind(&header.name).is_none() => {
                (None, Some("not a section of a microvm".into()))
            }
            Err(Stop::Refused(error)) => (None, Some(error.to_string())),
            Err(Stop::Short(_)) => (None, Some("cut short".into())),
        };
        if let Some(section) = &found {
            if let Some(cpu) = section.downcast_ref::<CpuState>() {
                self.arrived.cpu(header.instance, cpu.into());
            }
            if let Some(said) = section.downcast_ref::<VmCoreInfoState>() {
                self.arrived.vmcoreinfo = VmCoreInfo::said(said);
            }
        }
        let rows = found.as_ref().map_or_else(Vec::new, |section| section.rows());
        let subsections =
            rows.iter().filter(|row| row.is_subsection()).map(|row| row.name.clone()).collect();
        let fields = if self.options.fields {
            let field = |row: Row| Field {
                offset: row.offset,
                bytes: row.bytes,
                depth: row.depth,
                name: row.name,
                value: row.value,
            };
            rows.into_iter().map(field).collect()
        } else {
            Vec::new()
        };
        let what = What::Section {
            kind: kind.name(),
            name: header.name.clone(),
            instance: header.instance,
            version: header.version,
            bytes: payload.len() as u64,
            known: found.is_some(),
            device: section_kind(&header.name)
                .filter(|_| found.is_some())
                .map_or("", |(kind, _)| kind.what),
            note,
            subsections,
            fields,
            ram: None,
        };
        self.entry(at, what);
    }

    /// Behind a section of `ram`; devices have taken theirs already. `at` is where the footer
    /// stands.
    fn section_end(&mut self, at: u64) {
        let Some((kind, header, start)) = self.section.take() else { return };
        let named = matches!(kind, SectionKind::Start | SectionKind::Full);
        let head = if named { 14 + header.name.len() as u64 } else { 5 };
        let what = What::Section {
            kind: kind.name(),
            name: header.name.clone(),
            instance: header.instance,
            version: header.version,
            bytes: at - start - head,
            known: true,
            device: "guest memory",
            note: None,
            subsections: Vec::new(),
            fields: Vec::new(),
            ram: Some(self.part),
        };
        self.entry(start, what);
    }

    fn command(&mut self, command: &Command, at: u64) {
        let detail = match command {
            Command::Ping(value) => format!("{value:#x}"),
            Command::PostcopyAdvise(Some((blocks, target))) => {
                format!("page sizes {blocks:#x}, target page {target}")
            }
            Command::PostcopyDiscard { block, ranges } => {
                let bytes: u128 = ranges.iter().map(|(_, length)| u128::from(*length)).sum();
                format!("{block}: {} ranges, {bytes} bytes", ranges.len())
            }
            Command::Packaged(bytes) => format!("{bytes} bytes"),
            Command::ReceivedBitmap(block) => block.clone(),
            Command::Private { data, .. } => format!("{} bytes", data.len()),
            _ => String::new(),
        };
        self.entry(at, What::Command { name: command.name(), number: command.number(), detail });
        match command {
            Command::Packaged(_) => self.packaged = true,
            Command::PostcopyListen => self.postcopy = true,
            _ => {}
        }
    }

    /// One of Godwit's own commands.
    fn frame(&mut self, frame: Frame, at: u64) -> Result<(), Failure> {
        let detail = match frame {
            Frame::Zero { block, offset, bytes } => {
                let at = PageAt { block: block.into(), offset };
                self.count(at, |counts| counts.zero += bytes / PAGE_BYTES as u64);
                return self.on_image(at, |image| image.zero_range(offset, bytes));
            }
            // Their pages are counted as they come.
            Frame::Run { .. } | Frame::Records { .. } => return Ok(()),
            Frame::Chosen { features, channels, .. } => {
                format!("chosen: {features:?}, {channels} channels")
            }
            Frame::Sync { round } => format!("end of round {round}"),
            Frame::Hash(hash) => format!("hash of RAM {hash:#x}"),
            Frame::Go => "go".into(),
        };
        self.entry(at, What::Command { name: "GODWIT", number: godwit::NUMBER, detail });
        Ok(())
    }

    /// A piece of a run of pages, which need not begin or end with one.
    fn run(&mut self, at: PageAt, bytes: &[u8]) -> Result<(), Failure> {
        let pages_before = |offset: u64| offset / PAGE_BYTES as u64;
        let whole = pages_before(at.offset + bytes.len() as u64) - pages_before(at.offset);
        self.count(at, |counts| counts.pages += whole);
        self.on_image(at, |image| image.write_piece(at.offset, bytes))
    }

    fn description(&mut self, text: &[u8], left: u32) {
        if self.description.len() + text.len() <= DESCRIPTION_BYTES_MAX as usize {
            self.description.extend_from_slice(text);
        }
        if left > 0 {
            return;
        }
        let json = serde_json::from_slice::<serde_json::Value>(&self.description).ok();
        let devices = json.and_then(|json| json["devices"].as_array().map(Vec::len));
        self.report.description =
            Some(Description { bytes: self.description.len() as u64, devices });
    }

    fn drain_channels(&mut self, reader: &Reader<AnyLayout>) -> Result<(), Failure> {
        for channel in &mut self.channels {
            while channel.read_round(reader.blocks(), &mut self.image)? {}
        }
        Ok(())
    }

    fn finish(self, reader: &Reader<AnyLayout>) {
        for (channel, path) in self.channels.into_iter().zip(&self.options.channels) {
            let mut channel = channel.report;
            channel.file = path.display().to_string();
            self.report.total.pages += channel.pages;
            self.report.total.zero += channel.zero;
            self.report.channels.push(channel);
        }
        if let Some((image, number)) = self.image
            && let Some(block) = reader.blocks().get(number as usize)
        {
            if let Some(path) = &self.options.ram {
                let file = path.display().to_string();
                let (block, bytes) = (block.name.clone(), image.bytes());
                self.report.image = Some(ImageReport { file, block, bytes });
            }
            self.arrived.memory = Some(image.into_file());
        }
    }
}

/// Two words that begin a return path: a known type and a length that suits it.
fn is_return_path(input: &[u8]) -> bool {
    match input {
        [0, kind @ 1..=7, 0, length, ..] => match kind {
            1 | 2 | 6 => *length == 4,
            3 => *length > 13,
            4 => *length == 12,
            5 => *length > 1,
            _ => *length == 0,
        },
        _ => false,
    }
}

/// Lists the messages of a return path.
fn return_path(path: &Path, mut source: Source, report: &mut Report) -> Result<(), Failure> {
    report.kind = "return-path";
    let bytes = source.file().metadata().map_or(0, |metadata| metadata.len());
    report.connections.push(Connection {
        file: path.display().to_string(),
        bytes,
        ..Connection::default()
    });
    let mut at = 0;
    let refused = |error| Failure::Stream(path.to_owned(), error);
    let ends = |at| refused(Error::new("return path", "end of file", at, Problem::Ends));
    loop {
        let (reply, used) = match Reply::parse(source.input(), at).map_err(refused)? {
            Step::Item(reply, used) => (reply, used),
            Step::Need(needed) if source.fill(needed).map_err(read_failure(path))? => continue,
            Step::Need(_) if source.input().is_empty() => return Ok(()),
            // A message may be cut off by an interruption.
            Step::Need(_) => return Err(ends(at)),
        };
        source.consume(used);
        let mut length = used as u64;
        let detail = match &reply {
            Reply::Shut(value) | Reply::Pong(value) | Reply::ResumeAck(value) => {
                format!("{value:#x}")
            }
            Reply::PagesWanted { block, start, length } => {
                format!("{} {start:#x} +{length:#x}", block.as_deref().unwrap_or("same block"))
            }
            Reply::ReceivedBitmap { block, bytes } => {
                let (received, behind) = bitmap(&mut source, *bytes).map_err(read_failure(path))?;
                if behind != BITMAP_END {
                    let problem = Problem::Unexpected { found: behind, expected: BITMAP_END };
                    return Err(refused(Error::new(
                        "return path",
                        "end of bitmap",
                        at + length + bytes,
                        problem,
                    )));
                }
                length += bytes + 8;
                format!("{block}: {received} pages received, of {} bits", bytes * 8)
            }
            Reply::SwitchoverAck => String::new(),
            Reply::Other { kind, data } => format!("type {kind:#x}, {} bytes", data.len()),
        };
        let what = What::Reply { name: reply.name(), detail };
        if let Some(connection) = report.connections.last_mut() {
            connection.push(Entry { offset: at, packaged: false, what });
        }
        at += length;
    }
}

/// Counts the bits of a bitmap that follows, and reads the word behind it.
fn bitmap(source: &mut Source, bytes: u64) -> std::io::Result<(u64, u64)> {
    let (mut received, mut left) = (0, bytes);
    while left > 0 {
        let piece = left.min(1 << 16) as usize;
        if !source.fill(piece)? {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        received +=
            source.input()[..piece].iter().map(|byte| u64::from(byte.count_ones())).sum::<u64>();
        source.consume(piece);
        left -= piece as u64;
    }
    if !source.fill(8)? {
        return Err(std::io::ErrorKind::UnexpectedEof.into());
    }
    let word = u64::from_be_bytes(*source.input().first_chunk().expect("filled"));
    source.consume(8);
    Ok((received, word))
}
