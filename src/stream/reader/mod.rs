//! Reading the main channel: bytes in, items out.
//!
//! The one reader of the stream: a machine that takes a guest, `inspect`, tests and fuzzing differ
//! only in the [`Layouts`] they bring and in what they do with the items.
//!
//! | file | what |
//! | --- | --- |
//! | `item` | what is read, and what a caller must know of devices |
//! | `sections` | header, section heads, device payloads, footers |
//! | `commands` | commands, packages, Godwit's frames |
//! | `tail` | what stands behind the states |

mod commands;
mod item;
mod sections;
mod tail;
#[cfg(test)]
mod tests;

pub use item::Item;
pub(crate) use item::NoDevices;
pub(crate) use item::{Extent, Layouts};

use super::SectionHeader;
use super::cursor::Step;
use super::error::{Error, Problem};
use super::ram::{ListedBlock, PageAt, RamParser, RamRules, Record};
use std::collections::HashMap;
use std::sync::Arc;

#[derive(Debug, Clone, PartialEq)]
enum State {
    Header,
    Between,
    Ram {
        id: u32,
    },
    /// In a frame of records, up to this offset.
    Records {
        end: u64,
    },
    /// In the bytes of a run: where the next go, and how many are left.
    Run {
        at: PageAt,
        left: u64,
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
    /// Behind the description, where only GO may follow.
    Finished,
}

/// Reads one channel. See [`Reader::next`].
#[derive(Debug, Clone)]
pub struct Reader<L> {
    layouts: L,
    state: State,
    ram: RamParser,
    rules: RamRules,
    iterated: HashMap<u32, Arc<SectionHeader>>,
    /// Where the package in hand ends.
    package_end: Option<u64>,
    /// A channel beside the main one, which carries frames and nothing else.
    only_frames: bool,
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
            only_frames: false,
            name: "stream header".into(),
        }
    }

    /// A reader of the second connection of a postcopy that was interrupted: no header, no block
    /// list, section ids as before.
    pub(crate) fn resumed(self) -> Self {
        let mut ram = RamParser::with_blocks(self.rules.clone(), self.ram.blocks().to_vec());
        ram.set_offset(0);
        Self { state: State::Between, ram, package_end: None, ..self }
    }

    /// The stream's first byte stands at `offset` of a file: so the places in it are counted.
    pub(crate) fn starting_at(mut self, offset: u64) -> Self {
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

    /// What was given to [`Reader::new`].
    pub(crate) fn layouts(&mut self) -> &mut L {
        &mut self.layouts
    }

    /// True among RAM records, where [`Reader::ram_batch`] may be used.
    pub(crate) fn in_ram(&self) -> bool {
        match self.state {
            State::Ram { .. } => true,
            State::Records { end } => self.offset() < end,
            _ => false,
        }
    }

    /// True where the stream may end.
    pub(crate) fn may_end(&self) -> bool {
        matches!(self.state, State::Tail | State::Finished)
    }

    /// What is being read, for a message about a stream that ends too early.
    pub(crate) fn place(&self) -> &str {
        &self.name
    }

    /// Reads the item at the front of `input`. `Need` gives the bytes of input that it takes at
    /// least.
    ///
    /// # Errors
    /// Anything the format does not allow, with its place; the reader is of no use afterwards.
    pub fn next<'a>(&mut self, input: &'a [u8]) -> Result<Step<Item<'a>>, Error> {
        let left = self.left();
        let input = &input[..input.len().min(left)];
        let step = match &self.state {
            State::Ram { .. } => self.ram_record(input),
            State::Records { end } if self.offset() < *end => self.ram_record(input),
            State::Run { at, left } => {
                let (at, left) = (*at, *left);
                self.run(at, left, input)
            }
            State::Header => self.header(input),
            State::Between | State::Records { .. } => self.between(input),
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
            State::Finished => self.behind_the_end(input),
        }?;
        match step {
            Step::Need(needed) if needed > left => Err(self.cut_short()),
            step => Ok(step),
        }
    }

    /// Reads as many records as `input` and `limit` allow; only among RAM records (see
    /// [`Reader::in_ram`]). Stops behind whatever is not a page. Returns the bytes consumed; 0 with
    /// no records: more input is needed.
    pub fn ram_batch<'a>(
        &mut self,
        input: &'a [u8],
        limit: usize,
        out: &mut Vec<Record<'a>>,
    ) -> Result<usize, Error> {
        if !self.in_ram() {
            return Ok(0);
        }
        let left = self.left();
        let used = self.ram.batch(&input[..input.len().min(left)], limit, out)?;
        match out.last() {
            Some(record) => self.after_record(*record)?,
            None if input.len() >= left => return Err(self.cut_short()),
            None => {}
        }
        Ok(used)
    }

    /// Bytes of the package or frame in hand that have not been read.
    fn left(&self) -> usize {
        let end = match self.state {
            State::Records { end } if self.offset() < end => Some(end),
            _ => self.package_end,
        };
        let left = end.map_or(u64::MAX, |end| end.saturating_sub(self.offset()));
        usize::try_from(left).unwrap_or(usize::MAX)
    }

    #[cold]
    fn cut_short(&self) -> Error {
        let (field, what) = match self.state {
            State::Records { .. } => ("frame length", "the frame ends inside this"),
            _ => ("package length", "the package ends inside this"),
        };
        self.refuse(field, 0, Problem::Says(what.into()))
    }

    fn ram_record<'a>(&mut self, input: &'a [u8]) -> Result<Step<Item<'a>>, Error> {
        Ok(match self.ram.next(input)? {
            Step::Need(needed) => Step::Need(needed),
            Step::Item(record, used) => {
                self.after_record(record)?;
                Step::Item(Item::Ram(record), used)
            }
        })
    }

    fn after_record(&mut self, record: Record<'_>) -> Result<(), Error> {
        match (&self.state, record) {
            (State::Records { .. }, record) if !record.is_page() => {
                let problem = Problem::Says("a frame carries records of pages only".into());
                return Err(self.refuse("record flags", 0, problem));
            }
            (State::Ram { id }, Record::End) => self.state = State::Footer { id: *id },
            (_, Record::Skip { to }) => self.ram.set_offset(to),
            _ => {}
        }
        Ok(())
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

impl Reader<NoDevices> {
    /// A reader of a channel beside the main one, behind its hello. `blocks` are those that the main
    /// channel listed.
    pub(crate) fn of_channel(blocks: Vec<ListedBlock>) -> Self {
        let ram = RamParser::with_blocks(RamRules::default(), blocks);
        Self {
            ram,
            state: State::Between,
            only_frames: true,
            name: "channel".into(),
            ..Self::new(NoDevices, Vec::new())
        }
    }
}
