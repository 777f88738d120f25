//! The payload of section `ram`: records of pages.
//!
//! Every record begins with a be64: page-aligned bits are an offset in a block (or a size), the low
//! twelve are flags.
//!
//! ```text
//! 0x002 ZERO      [pstr block] u8 00
//! 0x004 MEM_SIZE  upper bits: bytes of all blocks; then per block: pstr name, be64 bytes, …
//! 0x008 PAGE      [pstr block] 4096 bytes
//! 0x010 EOS       ends the payload
//! 0x020 CONTINUE  modifier: no block name, the block of the record before (also across sections)
//! 0x040 XBZRLE    [pstr block] u8 01, be16 length, length bytes, applied to the page the target has
//! 0x200 FLUSH     wait for the multifd channels
//! ```
//!
//! [`RamParser`] reads them in place, without copying: a record borrows its bytes from the receive
//! buffer, so that a batch can be handed to several threads that apply it.

use super::mapped::MappedHeader;
use super::{BLOCKS_MAX, Cursor, Error, PAGE_BYTES, Problem, Step, put_pstr};

pub const FLAG_ZERO: u64 = 0x002;
pub const FLAG_MEM_SIZE: u64 = 0x004;
pub const FLAG_PAGE: u64 = 0x008;
pub const FLAG_EOS: u64 = 0x010;
pub const FLAG_CONTINUE: u64 = 0x020;
pub const FLAG_XBZRLE: u64 = 0x040;
pub const FLAG_MULTIFD_FLUSH: u64 = 0x200;
const FLAGS: u64 = PAGE_BYTES as u64 - 1;

/// Which page: `block` counts in the order of [`RamParser::blocks`], `offset` is in bytes and page
/// aligned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PageAt {
    pub block: u32,
    pub offset: u64,
}

/// One record. Page records are checked to lie inside their block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Record<'a> {
    /// The block list begins; the sizes that follow add up to this.
    Blocks {
        bytes: u64,
    },
    /// One block of the list, to be found in [`RamParser::blocks`].
    Block {
        block: u32,
    },
    /// mapped-ram only: the pages are elsewhere in the file; the stream goes on at this offset.
    Skip {
        to: u64,
    },
    Zero {
        at: PageAt,
    },
    Page {
        at: PageAt,
        bytes: &'a [u8; PAGE_BYTES],
    },
    /// An XBZRLE delta against what the target has.
    Delta {
        at: PageAt,
        delta: &'a [u8],
    },
    /// All multifd channels have sent a SYNC packet.
    Flush,
    /// End of this section's payload.
    End,
}

impl Record<'_> {
    /// Whether the record says what one page holds.
    pub fn is_page(&self) -> bool {
        matches!(self, Self::Zero { .. } | Self::Page { .. } | Self::Delta { .. })
    }
}

/// A block as the stream lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedBlock {
    pub name: String,
    pub bytes: u64,
    /// Only from a source with postcopy and huge pages.
    pub page_bytes: Option<u64>,
    /// Only with x-ignore-shared.
    pub guest_address: Option<u64>,
    /// Only with mapped-ram.
    pub mapped: Option<MappedHeader>,
}

/// What the capabilities of the connection add to the block list.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RamRules {
    /// `x-ignore-shared`: each block tells its guest-physical address.
    pub ignore_shared: bool,
    /// `mapped-ram`: each block has a header, and no page travels as a record.
    pub mapped: bool,
    /// Blocks whose entry carries a page size (postcopy, huge pages). The stream does not say
    /// which: the target knows.
    pub huge_blocks: Vec<String>,
}

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
    pub fn new(rules: RamRules) -> Self {
        Self { rules, ..Self::default() }
    }

    /// A parser for a stream that goes on with blocks listed earlier (a resumed postcopy).
    pub fn with_blocks(rules: RamRules, blocks: Vec<ListedBlock>) -> Self {
        Self { rules, blocks, ..Self::default() }
    }

    /// The blocks listed so far.
    pub fn blocks(&self) -> &[ListedBlock] {
        &self.blocks
    }

    /// Bytes consumed, for the offsets in messages.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Says that bytes were consumed elsewhere (between sections), or skipped over.
    pub fn set_offset(&mut self, offset: u64) {
        self.offset = offset;
    }

    /// Forgets the block named last: the next page record must name its own.
    pub fn forget_last_block(&mut self) {
        self.last = None;
    }

    /// Reads one record. `Need` says how many bytes of input the next record takes at least, never
    /// more than 4,360; nothing is consumed then.
    #[inline]
    pub fn next<'a>(&mut self, input: &'a [u8]) -> Result<Step<Record<'a>>, Error> {
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
        self.blocks.clear();
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
        self.skip = mapped.map(|header: MappedHeader| header.pages_offset + bytes);
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

const FLAG_PAGE_AGAIN: u64 = FLAG_PAGE | FLAG_CONTINUE;
const FLAG_ZERO_AGAIN: u64 = FLAG_ZERO | FLAG_CONTINUE;

fn unknown(name: &[u8]) -> Problem {
    Problem::Unknown { name: String::from_utf8_lossy(name).into_owned() }
}

/// Appends the records of one channel; remembers the block named last, so that it is named only
/// when it changes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RamWriter {
    last: Option<u32>,
}

impl RamWriter {
    /// The block list that opens the section. `blocks` are (name, size in bytes).
    pub fn block_list<'a>(
        out: &mut Vec<u8>,
        blocks: impl IntoIterator<Item = (&'a str, u64)> + Clone,
    ) {
        let bytes: u64 = blocks.clone().into_iter().map(|(_, bytes)| bytes).sum();
        out.extend_from_slice(&(bytes | FLAG_MEM_SIZE).to_be_bytes());
        for (name, bytes) in blocks {
            put_pstr(out, name);
            out.extend_from_slice(&bytes.to_be_bytes());
        }
    }

    /// The word and, where the block changes, the block's name: what stands before the data of a
    /// page record. `kind` is [`FLAG_ZERO`], [`FLAG_PAGE`] or [`FLAG_XBZRLE`].
    pub fn page_header(
        &mut self,
        out: &mut Vec<u8>,
        kind: u64,
        block: u32,
        name: &str,
        offset: u64,
    ) {
        debug_assert!(offset & FLAGS == 0, "records are of whole pages");
        if self.last == Some(block) {
            out.extend_from_slice(&(offset | kind | FLAG_CONTINUE).to_be_bytes());
        } else {
            out.extend_from_slice(&(offset | kind).to_be_bytes());
            put_pstr(out, name);
            self.last = Some(block);
        }
    }

    pub fn zero(&mut self, out: &mut Vec<u8>, block: u32, name: &str, offset: u64) {
        self.page_header(out, FLAG_ZERO, block, name, offset);
        out.push(0);
    }

    pub fn page(
        &mut self,
        out: &mut Vec<u8>,
        block: u32,
        name: &str,
        offset: u64,
        bytes: &[u8; PAGE_BYTES],
    ) {
        self.page_header(out, FLAG_PAGE, block, name, offset);
        out.extend_from_slice(bytes);
    }

    /// # Panics
    /// When the delta is longer than a page.
    pub fn delta(&mut self, out: &mut Vec<u8>, block: u32, name: &str, offset: u64, delta: &[u8]) {
        assert!(delta.len() <= PAGE_BYTES, "a delta is no longer than a page");
        self.page_header(out, FLAG_XBZRLE, block, name, offset);
        out.push(1);
        out.extend_from_slice(&(delta.len() as u16).to_be_bytes());
        out.extend_from_slice(delta);
    }

    /// Ends the section's payload.
    pub fn end(out: &mut Vec<u8>) {
        out.extend_from_slice(&FLAG_EOS.to_be_bytes());
    }

    pub fn flush(out: &mut Vec<u8>) {
        out.extend_from_slice(&FLAG_MULTIFD_FLUSH.to_be_bytes());
    }

    /// The next record names its block again.
    pub fn forget_last_block(&mut self) {
        self.last = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Vec<u8> {
        let mut out = Vec::new();
        RamWriter::block_list(&mut out, [("microvm.ram", 1 << 24), ("pc.bios", 1 << 16)]);
        let mut ram = RamWriter::default();
        ram.page(&mut out, 0, "microvm.ram", 0x1000, &[7; PAGE_BYTES]);
        ram.zero(&mut out, 0, "microvm.ram", 0x2000);
        ram.delta(&mut out, 0, "microvm.ram", 0x1000, &[0, 1, 9]);
        ram.zero(&mut out, 1, "pc.bios", 0xf000);
        RamWriter::flush(&mut out);
        RamWriter::end(&mut out);
        out
    }

    fn read_all(parser: &mut RamParser, bytes: &[u8], window: usize) -> Result<Vec<String>, Error> {
        let (mut at, mut have, mut found) = (0, 0, Vec::new());
        loop {
            match parser.next(&bytes[at..at + have])? {
                Step::Need(more) => {
                    assert!(more > have && more <= 4360);
                    if at + have == bytes.len() {
                        return Ok(found);
                    }
                    have = (have + window).min(bytes.len() - at);
                }
                Step::Item(record, used) => {
                    at += used;
                    have -= used;
                    found.push(match record {
                        Record::Page { at, bytes } => format!("page {at:?} {}", bytes[0]),
                        other => format!("{other:?}"),
                    });
                }
            }
        }
    }

    #[test]
    fn block_list_has_the_recorded_bytes() {
        let mut out = Vec::new();
        RamWriter::block_list(&mut out, [("microvm.ram", 0x100_0000), ("pc.bios", 0x1_0000)]);
        RamWriter::end(&mut out);
        let hex: String = out.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(
            hex,
            "00000000010100040b6d6963726f766d2e72616d00000000010000000770632e62696f730000000000010000\
             0000000000000010"
        );
    }

    #[test]
    fn records_are_read_back_in_any_portions() {
        let bytes = sample();
        let whole = read_all(&mut RamParser::default(), &bytes, bytes.len()).unwrap();
        assert_eq!(whole.len(), 9);
        assert!(whole.last().unwrap().contains("End"));
        for window in [1, 2, 7, 100, 4096] {
            assert_eq!(read_all(&mut RamParser::default(), &bytes, window).unwrap(), whole);
        }
    }

    #[test]
    fn batch_stops_behind_what_is_not_a_page() {
        let bytes = sample();
        let mut parser = RamParser::default();
        let mut at = 0;
        let mut lengths = Vec::new();
        loop {
            let mut records = Vec::new();
            let used = parser.batch(&bytes[at..], 100, &mut records).unwrap();
            if used == 0 {
                break;
            }
            at += used;
            lengths.push(records.len());
        }
        assert_eq!((at, lengths), (bytes.len(), vec![1, 1, 1, 5, 1]));
    }

    fn refused(edit: impl Fn(&mut Vec<u8>)) -> String {
        let mut bytes = sample();
        edit(&mut bytes);
        read_all(&mut RamParser::default(), &bytes, 64).unwrap_err().to_string()
    }

    #[test]
    fn damage_is_refused_with_its_place() {
        let page = 44; // the first page record follows the block list
        assert_eq!(
            refused(|b| b[page + 7] = 0x80),
            "section ram, field record flags, offset 0x2c: value 0x80 is not allowed"
        );
        assert!(
            refused(|b| b[page + 4] = 1)
                .contains("page offset, offset 0x2c: value 0x1001000 is above")
        );
        assert!(
            refused(|b| b[page + 9] = b'x').contains("block name, offset 0x34: \"xicrovm.ram\"")
        );
        assert!(refused(|b| b[page + 7] = 0x28).contains("none was named before"));
        let zero = page + 20 + PAGE_BYTES;
        assert!(refused(|b| b[zero + 8] = 1).contains("fill byte"));
        assert!(refused(|b| b[zero + 9 + 8] = 2).contains("delta encoding"));
        assert!(refused(|b| b[zero + 9 + 9] = 0x20).contains("delta length"));
    }

    #[test]
    fn absurd_block_lists_are_refused() {
        let list = |blocks: &[(&str, u64)]| {
            let mut out = Vec::new();
            let bytes: u64 = blocks.iter().map(|block| block.1).fold(0, u64::wrapping_add);
            out.extend_from_slice(&(bytes | FLAG_MEM_SIZE).to_be_bytes());
            for (name, bytes) in blocks {
                put_pstr(&mut out, name);
                out.extend_from_slice(&bytes.to_be_bytes());
            }
            read_all(&mut RamParser::default(), &out, 64)
        };
        assert!(list(&[("a", 0)]).is_err());
        assert!(
            list(&[("a", 4096), ("a", 4096)]).unwrap_err().to_string().contains("appears twice")
        );
        assert!(list(&[("a", 4096), ("b", 12)]).is_err());
        let names: Vec<String> = (0..300).map(|n| n.to_string()).collect();
        let many: Vec<(&str, u64)> = names.iter().map(|name| (name.as_str(), 4096)).collect();
        assert!(list(&many).unwrap_err().to_string().contains("more than 256 blocks"));
        // 16 EiB less a page is a size like any other here: nothing is allocated for it.
        assert!(list(&[("a", !0xfff)]).is_ok());
    }
}
