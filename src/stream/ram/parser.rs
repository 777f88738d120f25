//! Reading records.

use super::record::{
    FLAG_CONTINUE, FLAG_EOS, FLAG_MEM_SIZE, FLAG_MULTIFD_FLUSH, FLAG_PAGE, FLAG_XBZRLE, FLAG_ZERO,
    FLAGS, ListedBlock, PageAt, RamRules, Record,
};
use crate::stream::cursor::{Cursor, Step};
use crate::stream::error::{Error, Problem};
use crate::stream::limits::{BLOCKS_MAX, PAGE_BYTES};
use crate::stream::mapped::MappedHeader;

const FLAG_PAGE_AGAIN: u64 = FLAG_PAGE | FLAG_CONTINUE;
const FLAG_ZERO_AGAIN: u64 = FLAG_ZERO | FLAG_CONTINUE;

/// Reads records off the front of a buffer. Remembers the block list and the block named last.
#[derive(Debug, Clone, Default)]
pub struct RamParser {
    rules: RamRules,
    blocks: Vec<ListedBlock>,
    last: Option<u32>,
    /// Bytes of blocks still to be listed; 0 outside the list.
    list_bytes_left: u64,
    skip: Option<u64>,
    offset: u64,
}

impl RamParser {
    pub(crate) fn new(rules: RamRules) -> Self {
        Self { rules, ..Self::default() }
    }

    /// A parser for a stream that goes on with blocks listed earlier (a resumed postcopy).
    pub(crate) fn with_blocks(rules: RamRules, blocks: Vec<ListedBlock>) -> Self {
        Self { rules, blocks, ..Self::default() }
    }

    /// The blocks listed so far.
    pub(crate) fn blocks(&self) -> &[ListedBlock] {
        &self.blocks
    }

    /// Bytes consumed, for the offsets in messages.
    pub(crate) fn offset(&self) -> u64 {
        self.offset
    }

    /// Says that bytes were consumed elsewhere (between sections), or skipped over.
    pub(crate) fn set_offset(&mut self, offset: u64) {
        self.offset = offset;
    }

    /// Forgets the block named last: the next page record must name its own.
    pub(crate) fn forget_last_block(&mut self) {
        self.last = None;
    }

    /// Reads one record. `Need` says how many bytes of input the next record takes at least, never
    /// more than 4,360; nothing is consumed then.
    #[inline]
    pub(crate) fn next<'a>(&mut self, input: &'a [u8]) -> Result<Step<Record<'a>>, Error> {
        if let Some((word, rest)) = input.split_first_chunk::<8>() {
            let word = u64::from_be_bytes(*word);
            // The two commonest records, first: a page or a zero page of the same block.
            if let (Some(block), true) =
                (self.last, self.list_bytes_left == 0 && self.skip.is_none())
            {
                let at = PageAt { block, offset: word & !FLAGS };
                match (word & FLAGS, rest.first_chunk::<PAGE_BYTES>()) {
                    (FLAG_PAGE_AGAIN, Some(bytes)) if self.holds(at) && !self.rules.mapped => {
                        self.offset += (8 + PAGE_BYTES) as u64;
                        return Ok(Step::Item(Record::Page { at, bytes }, 8 + PAGE_BYTES));
                    }
                    (FLAG_ZERO_AGAIN, _)
                        if rest.first() == Some(&0) && self.holds(at) && !self.rules.mapped =>
                    {
                        self.offset += 9;
                        return Ok(Step::Item(Record::Zero { at }, 9));
                    }
                    _ => {}
                }
            }
        }
        self.next_of_any_kind(input)
    }

    /// Appends records to `out` until the input or `limit` is used up, or one comes that ends or
    /// interrupts the page records (anything but a page, zero page or delta), which is appended
    /// last. Returns the bytes consumed.
    pub fn batch<'a>(
        &mut self,
        input: &'a [u8],
        limit: usize,
        out: &mut Vec<Record<'a>>,
    ) -> Result<usize, Error> {
        let mut used = 0;
        for _ in 0..limit {
            let Step::Item(record, bytes) = self.next(&input[used..])? else { break };
            used += bytes;
            out.push(record);
            if !matches!(record, Record::Page { .. } | Record::Zero { .. } | Record::Delta { .. }) {
                break;
            }
        }
        Ok(used)
    }

    #[inline]
    fn holds(&self, at: PageAt) -> bool {
        // Block sizes are whole pages, so an aligned offset below the size leaves room for a page.
        self.blocks.get(at.block as usize).is_some_and(|block| at.offset < block.bytes)
    }

    #[inline(never)]
    fn next_of_any_kind<'a>(&mut self, input: &'a [u8]) -> Result<Step<Record<'a>>, Error> {
        let mut cursor = Cursor::new(input);
        let record = if let Some(to) = self.skip.take() {
            return Ok(Step::Item(Record::Skip { to }, 0));
        } else if self.list_bytes_left > 0 {
            self.list_entry(&mut cursor)?
        } else {
            self.record(&mut cursor)?
        };
        Ok(match record {
            Some(record) => {
                self.offset += cursor.at() as u64;
                Step::Item(record, cursor.at())
            }
            None => Step::Need(cursor.needed()),
        })
    }

    fn record<'a>(&mut self, cursor: &mut Cursor<'a>) -> Result<Option<Record<'a>>, Error> {
        let Some(word) = cursor.u64() else { return Ok(None) };
        let (upper, flags) = (word & !FLAGS, word & FLAGS);
        match flags & !FLAG_CONTINUE {
            FLAG_ZERO | FLAG_PAGE | FLAG_XBZRLE => return self.page_record(cursor, upper, flags),
            _ if flags & FLAG_CONTINUE != 0 => {}
            FLAG_MEM_SIZE => return self.list_start(upper).map(Some),
            FLAG_EOS | FLAG_MULTIFD_FLUSH if upper != 0 => {
                return Err(self.refuse("record word", 0, Problem::Invalid { found: word }));
            }
            FLAG_EOS => return Ok(Some(Record::End)),
            FLAG_MULTIFD_FLUSH if !self.rules.mapped => return Ok(Some(Record::Flush)),
            _ => {}
        }
        Err(self.refuse("record flags", 0, Problem::Invalid { found: flags }))
    }

    fn page_record<'a>(
        &mut self,
        cursor: &mut Cursor<'a>,
        offset: u64,
        flags: u64,
    ) -> Result<Option<Record<'a>>, Error> {
        if self.rules.mapped {
            let problem = Problem::Says("a mapped-ram stream carries no page records".into());
            return Err(self.refuse("record flags", 0, problem));
        }
        let block = if flags & FLAG_CONTINUE != 0 {
            let none = || Problem::Says("continues a block, but none was named before".into());
            self.last.ok_or_else(|| self.refuse("record flags", 0, none()))?
        } else {
            let Some(name) = cursor.pstr() else { return Ok(None) };
            self.find(name).ok_or_else(|| self.refuse("block name", 8, unknown(name)))?
        };
        let at = PageAt { block, offset };
        if !self.holds(at) {
            let limit = self.blocks[block as usize].bytes - PAGE_BYTES as u64;
            return Err(self.refuse("page offset", 0, Problem::TooLarge { found: offset, limit }));
        }
        let Some(record) = self.page_data(cursor, at, flags & !FLAG_CONTINUE)? else {
            return Ok(None);
        };
        self.last = Some(block);
        Ok(Some(record))
    }

    fn page_data<'a>(
        &self,
        cursor: &mut Cursor<'a>,
        at: PageAt,
        kind: u64,
    ) -> Result<Option<Record<'a>>, Error> {
        let start = cursor.at() as u64;
        Ok(match kind {
            FLAG_PAGE => cursor.take(PAGE_BYTES).map(|bytes| Record::Page {
                at,
                bytes: bytes.try_into().expect("took a page's bytes"),
            }),
            FLAG_ZERO => match cursor.u8() {
                None => None,
                Some(0) => Some(Record::Zero { at }),
                Some(fill) => {
                    let problem = Problem::Unexpected { found: fill.into(), expected: 0 };
                    return Err(self.refuse("fill byte", start, problem));
                }
            },
            _ => {
                let (Some(encoding), Some(length)) = (cursor.u8(), cursor.u16()) else {
                    return Ok(None);
                };
                if encoding != 1 {
                    let found = encoding.into();
                    return Err(self.refuse(
                        "delta encoding",
                        start,
                        Problem::Unexpected { found, expected: 1 },
                    ));
                }
                if usize::from(length) > PAGE_BYTES {
                    let problem =
                        Problem::TooLarge { found: length.into(), limit: PAGE_BYTES as u64 };
                    return Err(self.refuse("delta length", start + 1, problem));
                }
                cursor.take(length.into()).map(|delta| Record::Delta { at, delta })
            }
        })
    }

    fn list_start(&mut self, bytes: u64) -> Result<Record<'static>, Error> {
        if bytes == 0 {
            return Err(self.refuse("total size", 0, Problem::Invalid { found: 0 }));
        }
        if !self.blocks.is_empty() {
            return Err(self.refuse("block list", 0, Problem::Says("a second list".into())));
        }
        self.last = None;
        self.list_bytes_left = bytes;
        Ok(Record::Blocks { bytes })
    }

    fn list_entry<'a>(&mut self, cursor: &mut Cursor<'a>) -> Result<Option<Record<'a>>, Error> {
        let Some(name_bytes) = cursor.pstr() else { return Ok(None) };
        let bytes_at = cursor.at() as u64;
        let Some(bytes) = cursor.u64() else { return Ok(None) };
        let Some(name) = std::str::from_utf8(name_bytes).ok().filter(|name| !name.is_empty())
        else {
            return Err(self.refuse("block name", 0, Problem::Says("empty or not text".into())));
        };
        if bytes == 0 || bytes & FLAGS != 0 {
            return Err(self.refuse("block size", bytes_at, Problem::Invalid { found: bytes }));
        }
        if bytes > self.list_bytes_left {
            let problem = Problem::TooLarge { found: bytes, limit: self.list_bytes_left };
            return Err(self.refuse("block size", bytes_at, problem));
        }
        if self.find(name_bytes).is_some() {
            return Err(self.refuse("block name", 0, Problem::Repeated { name: name.to_owned() }));
        }
        if self.blocks.len() == BLOCKS_MAX {
            let problem = Problem::Says(format!("more than {BLOCKS_MAX} blocks"));
            return Err(self.refuse("block list", 0, problem));
        }
        let Some((page_bytes, guest_address, mapped)) = self.entry_extras(cursor, name, bytes)?
        else {
            return Ok(None);
        };
        self.list_bytes_left -= bytes;
        let block = self.blocks.len() as u32;
        self.skip = mapped.map(|header: MappedHeader| header.end(bytes));
        self.blocks.push(ListedBlock {
            name: name.to_owned(),
            bytes,
            page_bytes,
            guest_address,
            mapped,
        });
        Ok(Some(Record::Block { block }))
    }

    /// The optional parts of a list entry: page size, guest address, mapped-ram header.
    #[expect(
        clippy::type_complexity,
        reason = "three optional fields, taken apart by the one caller"
    )]
    fn entry_extras(
        &self,
        cursor: &mut Cursor<'_>,
        name: &str,
        bytes: u64,
    ) -> Result<Option<(Option<u64>, Option<u64>, Option<MappedHeader>)>, Error> {
        let mut extras = (None, None, None);
        if self.rules.huge_blocks.iter().any(|huge| huge == name) {
            let Some(page_bytes) = cursor.u64() else { return Ok(None) };
            extras.0 = Some(page_bytes);
        }
        if self.rules.ignore_shared {
            let Some(address) = cursor.u64() else { return Ok(None) };
            extras.1 = Some(address);
        }
        if self.rules.mapped {
            let at = self.offset + cursor.at() as u64;
            let Some(header) = cursor.take(MappedHeader::BYTES) else { return Ok(None) };
            extras.2 = Some(MappedHeader::parse(header, at, bytes)?);
        }
        Ok(Some(extras))
    }

    fn find(&self, name: &[u8]) -> Option<u32> {
        self.blocks.iter().position(|block| block.name.as_bytes() == name).map(|at| at as u32)
    }

    #[cold]
    fn refuse(&self, field: &'static str, ahead: u64, problem: Problem) -> Error {
        Error::new("section ram", field, self.offset + ahead, problem)
    }
}

fn unknown(name: &[u8]) -> Problem {
    Problem::Unknown { name: String::from_utf8_lossy(name).into_owned() }
}
