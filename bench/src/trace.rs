//! Recorded page traces: which pages a real process dirtied in each round, and what they became.
//!
//! A trace file is one zstd frame. Inside, numbers are LEB128 (7 bits a byte, low bits first):
//!
//! ```text
//! trace  = "page trace 1\n", what was recorded (one line of text), { round }, 0
//! round  = number of pages + 1, { page }                pages ascending
//! page   = page number minus that of the page before (of the round; the first: minus 0), kind (one byte), content
//! kind     0  zeros             no content
//!          1  as it was         no content: written, with the bytes it had
//!          2  whole             4096 bytes
//!          3  changed           length of the delta, an XBZRLE delta from the version before
//!          4  seen only once    no content: it never occurs again, so nothing can be learned from its bytes
//! ```
//!
//! Contents are deltas against the page's last version, in the codec under test: what cannot be
//! told by a delta of a page's size is whole. The first version of a page that never occurs again
//! is left out, which is most of a trace.

use std::collections::HashMap;
use std::fmt;
use std::io::{self, Read, Write};
use std::path::Path;

use xbzrle::cache::Page;
use xbzrle::{Outcome, PAGE_SIZE};

const MAGIC: &[u8] = b"page trace 1\n";

/// The dirty pages of one round, ascending.
pub type Round = Vec<(u64, Change)>;

/// What became of a page.
#[derive(Clone, PartialEq, Eq)]
pub enum Change {
    /// It is zeros now.
    Zero,
    /// It is as it was.
    Same,
    /// It is this now.
    Whole(Box<Page>),
    /// It is changed by this delta.
    Delta(Box<[u8]>),
    /// It is something unknown, and never occurs again.
    Once,
}

/// A whole trace in memory.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Trace {
    /// What was recorded: the command, or a name.
    pub title: String,
    /// The rounds in order of time.
    pub rounds: Vec<Round>,
}

impl fmt::Debug for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Change::Zero => f.write_str("Zero"),
            Change::Same => f.write_str("Same"),
            Change::Whole(_) => f.write_str("Whole"),
            Change::Delta(delta) => write!(f, "Delta({} bytes)", delta.len()),
            Change::Once => f.write_str("Once"),
        }
    }
}

impl Trace {
    /// Reads a trace file.
    ///
    /// # Errors
    /// Those of reading, and `InvalidData` for what is no trace.
    pub fn read(path: &Path) -> io::Result<Trace> {
        let mut bytes = Vec::new();
        zstd::Decoder::new(std::fs::File::open(path)?)?.read_to_end(&mut bytes)?;
        Trace::parse(&bytes)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "not a page trace"))
    }

    /// Writes a trace file.
    ///
    /// # Errors
    /// Those of writing.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        let mut encoder = zstd::Encoder::new(std::fs::File::create(path)?, 19)?;
        encoder.long_distance_matching(true)?;
        encoder.write_all(&self.to_bytes())?;
        encoder.finish()?.sync_all()
    }

    /// Forgets the content of pages that occur in one round only.
    pub fn drop_single_pages(&mut self) {
        let mut times: HashMap<u64, u32> = HashMap::new();
        self.rounds.iter().flatten().for_each(|(page, _)| *times.entry(*page).or_default() += 1);
        for (page, change) in self.rounds.iter_mut().flatten() {
            if times[page] == 1 && *change != Change::Zero {
                *change = Change::Once;
            }
        }
    }

    /// The traces kept beside the benchmarks, by file name without its ending.
    ///
    /// # Errors
    /// As [`Trace::read`].
    pub fn kept() -> io::Result<Vec<(String, Trace)>> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("traces");
        ["sqlite", "gcc"]
            .into_iter()
            .map(|name| Ok((name.to_string(), Trace::read(&folder.join(format!("{name}.trace")))?)))
            .collect()
    }

    /// The page numbers of each round.
    pub fn numbers(&self) -> Vec<Vec<u64>> {
        self.rounds.iter().map(|round| round.iter().map(|(page, _)| *page).collect()).collect()
    }

    fn to_bytes(&self) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        out.extend(self.title.replace('\n', " ").as_bytes());
        out.push(b'\n');
        for round in &self.rounds {
            put_number(&mut out, round.len() as u64 + 1);
            let mut before = 0;
            for (page, change) in round {
                put_number(&mut out, page - before);
                before = *page;
                change.put(&mut out);
            }
        }
        out.push(0);
        out
    }

    fn parse(bytes: &[u8]) -> Option<Trace> {
        let bytes = bytes.strip_prefix(MAGIC)?;
        let end = bytes.iter().position(|&byte| byte == b'\n')?;
        let title = String::from_utf8(bytes[..end].to_vec()).ok()?;
        let mut rest = &bytes[end + 1..];
        let mut rounds = Vec::new();
        while let Some(pages) = take_number(&mut rest)?.checked_sub(1) {
            let mut number = 0_u64;
            let mut round = Vec::new();
            for _ in 0..pages {
                number = number.checked_add(take_number(&mut rest)?)?;
                round.push((number, Change::take(&mut rest)?));
            }
            rounds.push(round);
        }
        rest.is_empty().then_some(Trace { title, rounds })
    }
}

impl Change {
    fn put(&self, out: &mut Vec<u8>) {
        match self {
            Change::Zero => out.push(0),
            Change::Same => out.push(1),
            Change::Whole(page) => {
                out.push(2);
                out.extend_from_slice(&page[..]);
            }
            Change::Delta(delta) => {
                out.push(3);
                put_number(out, delta.len() as u64);
                out.extend_from_slice(delta);
            }
            Change::Once => out.push(4),
        }
    }

    fn take(rest: &mut &[u8]) -> Option<Change> {
        let kind = rest.split_off_first()?;
        Some(match kind {
            0 => Change::Zero,
            1 => Change::Same,
            2 => Change::Whole(Box::new(rest.split_off(..PAGE_SIZE)?.try_into().ok()?)),
            3 => {
                let len = usize::try_from(take_number(rest)?).ok()?;
                Change::Delta(rest.split_off(..len)?.into())
            }
            4 => Change::Once,
            _ => return None,
        })
    }
}

fn put_number(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

fn take_number(rest: &mut &[u8]) -> Option<u64> {
    let mut number = 0;
    for shift in (0..63).step_by(7) {
        let byte = *rest.split_off_first()?;
        number |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

/// Makes a trace of pages as they are seen.
#[derive(Debug, Default)]
pub struct Recorder {
    versions: HashMap<u64, Box<Page>>,
    rounds: Vec<Round>,
}

impl Recorder {
    /// Begins a round.
    pub fn begin_round(&mut self) {
        self.rounds.push(Round::new());
    }

    /// Adds a dirty page to the round.
    ///
    /// # Panics
    /// If no round was begun, or the page is not above the one before it in the round.
    pub fn add(&mut self, page: u64, now: &Page) {
        let known = self.versions.contains_key(&page);
        let before = self.versions.entry(page).or_insert_with(|| Box::new([0; PAGE_SIZE]));
        let mut delta = [0; PAGE_SIZE];
        let change = if xbzrle::is_zero(now) {
            Change::Zero
        } else if !known {
            Change::Whole(Box::new(*now))
        } else {
            match xbzrle::encode(before, now, &mut delta) {
                Outcome::Unchanged => Change::Same,
                Outcome::Delta(len) => Change::Delta(delta[..len].into()),
                Outcome::TooLong => Change::Whole(Box::new(*now)),
            }
        };
        **before = *now;
        let round = self.rounds.last_mut().expect("a round was begun");
        assert!(
            round.last().is_none_or(|(before, _)| *before < page),
            "page {page:#x} out of order"
        );
        round.push((page, change));
    }

    /// Pages recorded so far, counted once per round.
    pub fn pages(&self) -> usize {
        self.rounds.iter().map(Vec::len).sum()
    }

    /// Bytes of contents held.
    pub fn bytes(&self) -> usize {
        self.versions.len() * PAGE_SIZE
    }

    /// The trace.
    pub fn finish(self, title: String) -> Trace {
        let mut trace = Trace { title, rounds: self.rounds };
        trace.drop_single_pages();
        trace
    }
}

/// Plays a trace: holds what the pages are now.
#[derive(Debug, Default)]
pub struct Replay {
    pages: HashMap<u64, Box<Page>>,
}

impl Replay {
    /// Applies one change.
    ///
    /// # Panics
    /// If a delta does not belong to the trace.
    pub fn apply(&mut self, page: u64, change: &Change) {
        let now = self.pages.entry(page).or_insert_with(|| Box::new([0; PAGE_SIZE]));
        match change {
            Change::Same => {}
            Change::Zero => now.fill(0),
            Change::Whole(bytes) => **now = **bytes,
            Change::Delta(delta) => {
                xbzrle::decode(delta, now).expect("a delta from the version before")
            }
            Change::Once => now.fill(0xa5),
        }
    }

    /// What a page is now.
    pub fn page(&self, page: u64) -> Option<&Page> {
        self.pages.get(&page).map(|page| &**page)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recording_plays_back_what_was_seen() {
        let mut recorder = Recorder::default();
        let mut seen = Vec::new();
        for round in 0..6_u64 {
            recorder.begin_round();
            let pages = (0..40).filter(|page| page % (round + 1) == 0).map(|page| {
                let mut bytes = [(page % 3) as u8; PAGE_SIZE];
                bytes[(page * 50) as usize] = round as u8;
                if page == 12 {
                    bytes
                        .iter_mut()
                        .enumerate()
                        .for_each(|(i, byte)| *byte = (i as u8).wrapping_mul(round as u8));
                }
                (page + (page << 30), bytes)
            });
            let pages: Vec<(u64, Page)> = pages.collect();
            pages.iter().for_each(|(page, bytes)| recorder.add(*page, bytes));
            seen.push(pages);
        }
        let trace = recorder.finish("a test".into());
        let again = Trace::parse(&trace.to_bytes()).unwrap();
        assert_eq!(again, trace);

        let mut replay = Replay::default();
        for (round, seen) in again.rounds.iter().zip(&seen) {
            for ((page, change), (expected, bytes)) in round.iter().zip(seen) {
                replay.apply(*page, change);
                assert_eq!(page, expected);
                assert!(
                    *change == Change::Once || replay.page(*page) == Some(bytes),
                    "page {page}, {change:?}"
                );
            }
        }
    }

    #[test]
    fn damaged_traces_are_refused() {
        let mut recorder = Recorder::default();
        for byte in 1..4 {
            recorder.begin_round();
            recorder.add(7, &[byte; PAGE_SIZE]);
        }
        let bytes = recorder.finish(String::new()).to_bytes();
        assert!(Trace::parse(&bytes).is_some());
        assert!((0..bytes.len()).all(|len| Trace::parse(&bytes[..len]).is_none()));
    }
}
