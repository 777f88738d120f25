//! Reading the main channel: bytes in, items out.

use super::configuration::configuration;
use super::ram::{ListedBlock, RamParser, RamRules, Record};
use super::{
    Command, Configuration, Cursor, DESCRIPTION_BYTES_MAX, Error, MAGIC, PACKAGE_BYTES_MAX,
    PAYLOAD_BYTES_MAX, Problem, SECTIONS_MAX, SectionHeader, SectionKind, Step, VERSION,
};
use std::collections::HashMap;
use std::sync::Arc;

/// Where a device's payload ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    /// After this many bytes.
    Bytes(usize),
    /// Cannot be told from fewer bytes than these.
    Need(usize),
}

/// Knows the layouts of device sections: their payloads have no length of their own.
pub trait Layouts {
    /// The extent of the payload at the front of `input`, which goes on behind it; `offset` is its
    /// place in the stream.
    fn extent(&self, section: &SectionHeader, input: &[u8], offset: u64) -> Result<Extent, Error>;
}

/// One thing read from the main channel.
#[derive(Debug, Clone, PartialEq)]
pub enum Item<'a> {
    Configuration(Configuration),
    /// A section begins.
    Section {
        kind: SectionKind,
        header: Arc<SectionHeader>,
    },
    /// A record of section `ram`. Behind [`Record::Skip`] the input goes on at that offset of the
    /// file.
    Ram(Record<'a>),
    /// The whole payload of a device.
    Device {
        header: Arc<SectionHeader>,
        payload: &'a [u8],
    },
    /// The footer was right.
    SectionEnd,
    /// A command. Behind [`Command::Packaged`] come the items of the package, then
    /// [`Item::PackageEnd`].
    Command(Command),
    PackageEnd,
    /// All sections were read. A description may follow; a stream that ends here is whole.
    EndOfStates,
    /// A piece of the description; `left` bytes of it follow.
    Description {
        text: &'a [u8],
        left: u32,
    },
}

#[derive(Debug, Clone, PartialEq)]
enum State {
    Header,
    Between,
    Ram {
        id: u32,
    },
    Device(Arc<SectionHeader>),
    Footer {
        id: u32,
    },
    /// Behind the end of states.
    Tail,
    Description {
        left: u32,
    },
    Finished,
}

/// Reads one main channel. See [`Reader::next`].
#[derive(Debug, Clone)]
pub struct Reader<L> {
    layouts: L,
    state: State,
    ram: RamParser,
    rules: RamRules,
    iterated: HashMap<u32, Arc<SectionHeader>>,
    /// Where the package in hand ends.
    package_end: Option<u64>,
    name: String,
}

impl<L: Layouts> Reader<L> {
    /// A reader of a stream from its first byte. `huge_blocks`: see [`RamRules::huge_blocks`].
    pub fn new(layouts: L, huge_blocks: Vec<String>) -> Self {
        let rules = RamRules { huge_blocks, ..RamRules::default() };
        Self {
            layouts,
            state: State::Header,
            ram: RamParser::default(),
            rules,
            iterated: HashMap::new(),
            package_end: None,
            name: "stream header".into(),
        }
    }

    /// A reader of the second connection of a postcopy that was interrupted: no header, no block
    /// list, section ids as before.
    pub fn resumed(self) -> Self {
        let mut ram = RamParser::with_blocks(self.rules.clone(), self.ram.blocks().to_vec());
        ram.set_offset(0);
        Self { state: State::Between, ram, package_end: None, ..self }
    }

    /// The stream begins at this offset of its file; offsets in messages and in mapped-ram headers
    /// count from the file's start.
    pub fn at_file_offset(mut self, offset: u64) -> Self {
        self.ram.set_offset(offset);
        self
    }

    /// Offset of the next byte to be given to [`Reader::next`].
    pub fn offset(&self) -> u64 {
        self.ram.offset()
    }

    /// Blocks as far as the stream has listed them; [`Record`]s number them.
    pub fn blocks(&self) -> &[ListedBlock] {
        self.ram.blocks()
    }

    /// True inside the payload of section `ram`, where [`Reader::ram_batch`] may be used.
    pub fn in_ram(&self) -> bool {
        matches!(self.state, State::Ram { .. })
    }

    /// True where the stream may end.
    pub fn may_end(&self) -> bool {
        matches!(self.state, State::Tail | State::Finished)
    }

    /// What is being read, for a message about a stream that ends too early.
    pub fn place(&self) -> &str {
        &self.name
    }

    /// Reads the item at the front of `input`. `Need` gives the bytes of input that it takes at
    /// least.
    ///
    /// # Errors
    /// Anything the format does not allow, with its place; the reader is of no use afterwards.
    pub fn next<'a>(&mut self, input: &'a [u8]) -> Result<Step<Item<'a>>, Error> {
        let available = input.len();
        let input = self.inside_package(input);
        let step = match &self.state {
            State::Ram { .. } => self.ram_record(input),
            State::Header => self.header(input),
            State::Between => self.between(input),
            State::Device(header) => {
                let header = header.clone();
                self.device(&header, input)
            }
            State::Footer { id } => {
                let id = *id;
                self.footer(id, input)
            }
            State::Tail => self.tail(input),
            State::Description { left } => {
                let left = *left;
                self.description(left, input)
            }
            State::Finished => match input.first() {
                None => Ok(Step::Need(1)),
                Some(byte) => Err(self.refuse(
                    "end",
                    0,
                    Problem::Says(format!("byte {byte:#x} behind the end")),
                )),
            },
        }?;
        if let Step::Need(needed) = step
            && (needed <= available || input.len() < available)
        {
            return Err(self.refuse(
                "package length",
                0,
                Problem::Says("the package ends inside this".into()),
            ));
        }
        Ok(step)
    }

    /// Reads as many records as `input` and `limit` allow; only inside section `ram` (see
    /// [`Reader::in_ram`]). Stops behind whatever is not a page. Returns the bytes consumed; 0 with
    /// no records: more input is needed.
    pub fn ram_batch<'a>(
        &mut self,
        input: &'a [u8],
        limit: usize,
        out: &mut Vec<Record<'a>>,
    ) -> Result<usize, Error> {
        let State::Ram { id } = self.state else { return Ok(0) };
        let used = self.ram.batch(self.inside_package(input), limit, out)?;
        if let Some(record) = out.last() {
            self.after_record(*record, id);
        }
        Ok(used)
    }

    fn inside_package<'a>(&self, input: &'a [u8]) -> &'a [u8] {
        match self.package_end {
            None => input,
            Some(end) => {
                let left = end.saturating_sub(self.offset());
                &input[..input.len().min(usize::try_from(left).unwrap_or(usize::MAX))]
            }
        }
    }

    fn ram_record<'a>(&mut self, input: &'a [u8]) -> Result<Step<Item<'a>>, Error> {
        let State::Ram { id } = self.state else { return Ok(Step::Need(1)) };
        Ok(match self.ram.next(input)? {
            Step::Need(needed) => Step::Need(needed),
            Step::Item(record, used) => {
                self.after_record(record, id);
                Step::Item(Item::Ram(record), used)
            }
        })
    }

    fn after_record(&mut self, record: Record<'_>, id: u32) {
        match record {
            Record::End => self.state = State::Footer { id },
            Record::Skip { to } => self.ram.set_offset(to),
            _ => {}
        }
    }

    fn header<'a>(&mut self, input: &'a [u8]) -> Result<Step<Item<'a>>, Error> {
        let mut cursor = Cursor::new(input);
        for (field, expected) in [("magic", MAGIC), ("version", VERSION)] {
            let at = cursor.at() as u64;
            let Some(found) = cursor.u32() else { return Ok(Step::Need(cursor.needed())) };
            if found != expected {
                let problem =
                    Problem::Unexpected { found: found.into(), expected: expected.into() };
                return Err(self.refuse(field, at, problem));
            }
        }
        let found = match configuration(&mut cursor) {
            Ok(Some(found)) => found,
            Ok(None) => return Ok(Step::Need(cursor.needed())),
            Err((field, at, problem)) => {
                return Err(Error::new("configuration", field, self.offset() + at as u64, problem));
            }
        };
        self.rules.ignore_shared = found.capabilities.iter().any(|name| name == "x-ignore-shared");
        self.rules.mapped = found.capabilities.iter().any(|name| name == "mapped-ram");
        let offset = self.offset();
        self.ram = RamParser::new(self.rules.clone());
        self.ram.set_offset(offset);
        self.state = State::Between;
        Ok(self.item(Item::Configuration(found), cursor.at()))
    }

    fn between<'a>(&mut self, input: &'a [u8]) -> Result<Step<Item<'a>>, Error> {
        if self.package_end == Some(self.offset()) {
            self.package_end = None;
            return Ok(Step::Item(Item::PackageEnd, 0));
        }
        self.name.clear();
        self.name.push_str("section list");
        let mut cursor = Cursor::new(input);
        let Some(kind) = cursor.u8() else { return Ok(Step::Need(1)) };
        match kind {
            0x00 if self.package_end.is_none() => {
                self.state = State::Tail;
                Ok(self.item(Item::EndOfStates, 1))
            }
            0x01 => self.section_start(SectionKind::Start, cursor),
            0x02 => self.section_again(SectionKind::Part, cursor),
            0x03 => self.section_again(SectionKind::End, cursor),
            0x04 => self.section_start(SectionKind::Full, cursor),
            0x08 => self.command(cursor),
            _ => Err(self.refuse("section type", 0, Problem::Invalid { found: kind.into() })),
        }
    }

    fn section_start<'a>(
        &mut self,
        kind: SectionKind,
        mut cursor: Cursor<'a>,
    ) -> Result<Step<Item<'a>>, Error> {
        let (Some(id), Some(name), Some(instance), Some(version)) =
            (cursor.u32(), cursor.pstr(), cursor.u32(), cursor.u32())
        else {
            return Ok(Step::Need(cursor.needed()));
        };
        let Ok(name) = std::str::from_utf8(name) else {
            return Err(self.refuse("section name", 5, Problem::Says("not text".into())));
        };
        let header = Arc::new(SectionHeader { id, name: name.to_owned(), instance, version });
        self.name = format!("section {header}");
        if kind == SectionKind::Full && name != "ram" {
            self.state = State::Device(header.clone());
            return Ok(self.item(Item::Section { kind, header }, cursor.at()));
        }
        if kind == SectionKind::Full || name != "ram" {
            let problem = Problem::Says(format!("{} is not how this section travels", kind.name()));
            return Err(self.refuse("section type", 0, problem));
        }
        if instance != 0 {
            let problem = Problem::Unexpected { found: instance.into(), expected: 0 };
            return Err(self.refuse("instance", 6 + name.len() as u64, problem));
        }
        if version != RAM_VERSION {
            let problem = if version > RAM_VERSION {
                Problem::Newer { found: version, known: RAM_VERSION }
            } else {
                Problem::Older { found: version, oldest: RAM_VERSION }
            };
            return Err(self.refuse("version", 10 + name.len() as u64, problem));
        }
        if self.iterated.len() == SECTIONS_MAX {
            return Err(self.refuse(
                "section id",
                1,
                Problem::Says(format!("more than {SECTIONS_MAX} sections")),
            ));
        }
        if self.iterated.insert(id, header.clone()).is_some() {
            return Err(self.refuse("section id", 1, Problem::Repeated { name: id.to_string() }));
        }
        self.state = State::Ram { id };
        Ok(self.item(Item::Section { kind, header }, cursor.at()))
    }

    fn section_again<'a>(
        &mut self,
        kind: SectionKind,
        mut cursor: Cursor<'a>,
    ) -> Result<Step<Item<'a>>, Error> {
        let Some(id) = cursor.u32() else { return Ok(Step::Need(cursor.needed())) };
        let Some(header) = self.iterated.get(&id).cloned() else {
            return Err(self.refuse("section id", 1, Problem::Unknown { name: id.to_string() }));
        };
        self.name = format!("section {header}");
        self.state = State::Ram { id };
        Ok(self.item(Item::Section { kind, header }, cursor.at()))
    }

    fn device<'a>(
        &mut self,
        header: &Arc<SectionHeader>,
        input: &'a [u8],
    ) -> Result<Step<Item<'a>>, Error> {
        let bytes = match self.layouts.extent(header, input, self.offset())? {
            Extent::Bytes(bytes) => bytes,
            Extent::Need(needed) if needed <= PAYLOAD_BYTES_MAX => return Ok(Step::Need(needed)),
            Extent::Need(needed) => {
                let problem =
                    Problem::TooLarge { found: needed as u64, limit: PAYLOAD_BYTES_MAX as u64 };
                return Err(self.refuse("payload", 0, problem));
            }
        };
        let Some(payload) = input.get(..bytes) else { return Ok(Step::Need(bytes)) };
        self.state = State::Footer { id: header.id };
        Ok(self.item(Item::Device { header: header.clone(), payload }, bytes))
    }

    fn footer<'a>(&mut self, id: u32, input: &'a [u8]) -> Result<Step<Item<'a>>, Error> {
        let mut cursor = Cursor::new(input);
        let (Some(marker), Some(found)) = (cursor.u8(), cursor.u32()) else {
            return Ok(Step::Need(5));
        };
        if marker != 0x7e {
            let problem = Problem::Unexpected { found: marker.into(), expected: 0x7e };
            return Err(self.refuse("footer", 0, problem));
        }
        if found != id {
            let problem = Problem::Unexpected { found: found.into(), expected: id.into() };
            return Err(self.refuse("footer id", 1, problem));
        }
        self.state = State::Between;
        Ok(self.item(Item::SectionEnd, 5))
    }

    fn command<'a>(&mut self, mut cursor: Cursor<'a>) -> Result<Step<Item<'a>>, Error> {
        let (Some(number), Some(length)) = (cursor.u16(), cursor.u16()) else {
            return Ok(Step::Need(5));
        };
        let at = cursor.at();
        let Some(data) = cursor.take(length.into()) else { return Ok(Step::Need(cursor.needed())) };
        let command = Command::parse(number, data, self.offset() + at as u64)?;
        if let Command::Packaged(bytes) = command {
            if self.package_end.is_some() {
                return Err(self.refuse(
                    "command",
                    0,
                    Problem::Says("a package inside a package".into()),
                ));
            }
            if bytes > PACKAGE_BYTES_MAX {
                let limit = PACKAGE_BYTES_MAX.into();
                return Err(self.refuse(
                    "package length",
                    5,
                    Problem::TooLarge { found: bytes.into(), limit },
                ));
            }
            self.package_end = Some(self.offset() + cursor.at() as u64 + u64::from(bytes));
        }
        Ok(self.item(Item::Command(command), cursor.at()))
    }

    fn tail<'a>(&mut self, input: &'a [u8]) -> Result<Step<Item<'a>>, Error> {
        self.name.clear();
        self.name.push_str("description");
        let mut cursor = Cursor::new(input);
        let Some(marker) = cursor.u8() else { return Ok(Step::Need(1)) };
        if marker != 0x06 {
            let problem = Problem::Unexpected { found: marker.into(), expected: 6 };
            return Err(self.refuse("marker", 0, problem));
        }
        let Some(length) = cursor.u32() else { return Ok(Step::Need(5)) };
        if length > DESCRIPTION_BYTES_MAX {
            let limit = DESCRIPTION_BYTES_MAX.into();
            return Err(self.refuse(
                "length",
                1,
                Problem::TooLarge { found: length.into(), limit },
            ));
        }
        self.state =
            if length == 0 { State::Finished } else { State::Description { left: length } };
        Ok(self.item(Item::Description { text: &[], left: length }, 5))
    }

    fn description<'a>(&mut self, left: u32, input: &'a [u8]) -> Result<Step<Item<'a>>, Error> {
        if input.is_empty() {
            return Ok(Step::Need(1));
        }
        let text = &input[..input.len().min(left as usize)];
        let left = left - text.len() as u32;
        self.state = if left == 0 { State::Finished } else { State::Description { left } };
        Ok(self.item(Item::Description { text, left }, text.len()))
    }

    fn item<'a>(&mut self, item: Item<'a>, used: usize) -> Step<Item<'a>> {
        self.ram.set_offset(self.offset() + used as u64);
        Step::Item(item, used)
    }

    #[cold]
    fn refuse(&self, field: &str, ahead: u64, problem: Problem) -> Error {
        Error::new(&*self.name, field, self.offset() + ahead, problem)
    }
}

/// The only version of section `ram`.
pub const RAM_VERSION: u32 = 4;

#[cfg(test)]
mod tests {
    use super::super::{RamWriter, description, end_of_states, package};
    use super::*;

    /// Devices of four bytes.
    struct Four;

    impl Layouts for Four {
        fn extent(
            &self,
            section: &SectionHeader,
            input: &[u8],
            offset: u64,
        ) -> Result<Extent, Error> {
            match section.name.as_str() {
                "dev" if input.len() >= 4 => Ok(Extent::Bytes(4)),
                "dev" => Ok(Extent::Need(4)),
                name => {
                    Err(Error::new("x", "name", offset, Problem::Unknown { name: name.into() }))
                }
            }
        }
    }

    fn device(out: &mut Vec<u8>) {
        let dev = SectionHeader { id: 9, name: "dev".into(), instance: 0, version: 1 };
        dev.write(SectionKind::Full, out);
        out.extend_from_slice(&[1, 2, 3, 4]);
        dev.write_footer(out);
    }

    fn sample() -> Vec<u8> {
        let mut out = Vec::new();
        Configuration { machine: "microvm".into(), uuid: Some([1; 16]), ..Default::default() }
            .write(&mut out);
        Command::Ping(1).write(&mut out);
        let ram = SectionHeader { id: 2, name: "ram".into(), instance: 0, version: 4 };
        ram.write(SectionKind::Start, &mut out);
        RamWriter::block_list(&mut out, [("microvm.ram", 1 << 20)]);
        RamWriter::end(&mut out);
        ram.write_footer(&mut out);
        ram.write(SectionKind::Part, &mut out);
        RamWriter::default().zero(&mut out, 0, "microvm.ram", 0x3000);
        RamWriter::end(&mut out);
        ram.write_footer(&mut out);
        device(&mut out);
        let mut nested = Vec::new();
        device(&mut nested);
        Command::PostcopyRun.write(&mut nested);
        package(&mut out, &nested);
        end_of_states(&mut out);
        description(&mut out, "{}");
        out
    }

    fn read(bytes: &[u8], window: usize) -> Result<Vec<String>, Error> {
        let mut reader = Reader::new(Four, Vec::new());
        let (mut at, mut have, mut found) = (0, 0, Vec::new());
        loop {
            match reader.next(&bytes[at..at + have])? {
                Step::Need(needed) => {
                    assert!(needed > have, "asks for what it has");
                    if at + have == bytes.len() {
                        let problem = Problem::Ends;
                        if reader.may_end() {
                            return Ok(found);
                        }
                        return Err(Error::new(reader.place(), "end", reader.offset(), problem));
                    }
                    have = (have + window).min(bytes.len() - at);
                }
                Step::Item(item, used) => {
                    at += used;
                    have -= used;
                    assert_eq!(reader.offset(), at as u64);
                    if !matches!(item, Item::Description { .. }) {
                        found.push(format!("{item:?}"));
                    }
                }
            }
        }
    }

    #[test]
    fn stream_is_read_in_any_portions() {
        let bytes = sample();
        let whole = read(&bytes, bytes.len()).unwrap();
        assert_eq!(whole.len(), 21);
        assert_eq!(whole[19..], ["PackageEnd", "EndOfStates"]);
        for window in [1, 3, 64] {
            assert_eq!(read(&bytes, window).unwrap(), whole);
        }
    }

    #[test]
    fn every_cut_is_noticed() {
        let bytes = sample();
        let end = bytes.len() - 5 - 2; // behind the end of states
        for cut in 0..bytes.len() {
            let result = read(&bytes[..cut], 64);
            assert_eq!(
                result.is_ok(),
                cut == end || (cut > end && cut < end + 5),
                "cut at {cut}: {result:?}"
            );
        }
    }

    #[test]
    fn every_flipped_byte_ends_in_items_or_an_error() {
        let bytes = sample();
        for at in 0..bytes.len() {
            for value in [0x00, 0x05, 0x7e, 0xff] {
                let mut damaged = bytes.clone();
                damaged[at] = value;
                let _ = read(&damaged, 64);
            }
        }
    }

    #[test]
    fn messages_name_section_field_and_offset() {
        let bytes = sample();
        let edit = |at: usize, value: u8| {
            let mut damaged = bytes.clone();
            damaged[at] = value;
            read(&damaged, 64).unwrap_err().to_string()
        };
        assert_eq!(edit(7, 4), "stream header, field version, offset 0x4: found 0x4, expected 0x3");
        let footer = bytes.windows(4).rposition(|w| w == [1, 2, 3, 4]).unwrap() + 4;
        assert_eq!(
            edit(footer, 0),
            format!("section dev, field footer, offset {footer:#x}: found 0x0, expected 0x7e")
        );
        let package = bytes.windows(5).position(|w| w == [8, 0, 7, 0, 4]).unwrap();
        assert!(edit(package + 8, 3).contains("the package ends inside this"));
    }
}
