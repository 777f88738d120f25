//! The batch encoder against a receiver that applies every record.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::*;
use crate::PAGE_SIZE;
use crate::cache::Page;

/// Records in the shape of the peer's stream: a word of page offset and flags, a block name unless
/// it continues.
struct Stream {
    /// Pages below belong to block "a", the others to "b".
    boundary: u64,
}

const ZERO: u64 = 2;
const WHOLE: u64 = 8;
const CONTINUE: u64 = 0x20;
const DELTA: u64 = 0x40;

impl Stream {
    fn block(&self, page: u64) -> u8 {
        if page < self.boundary { b'a' } else { b'b' }
    }
}

impl RecordFormat for Stream {
    fn header(&self, record: &Record, after: Option<u64>, out: &mut Vec<u8>) {
        let kind = match record.body {
            Body::Zero => ZERO,
            Body::Delta(_) => DELTA,
            Body::Whole => WHOLE,
        };
        let block = self.block(record.page);
        let continues = after.is_some_and(|page| self.block(page) == block);
        out.extend((record.page << 12 | kind | if continues { CONTINUE } else { 0 }).to_be_bytes());
        if !continues {
            out.extend([1, block]);
        }
        match record.body {
            Body::Zero => out.push(0),
            Body::Delta(len) => out.extend([1, (len >> 8) as u8, len as u8]),
            Body::Whole => {}
        }
    }
}

const STREAM: Stream = Stream { boundary: 700 };

/// The other side: pages by number.
#[derive(Default)]
struct Receiver {
    pages: HashMap<u64, Page>,
}

impl Receiver {
    /// Applies an output's records; returns the page numbers in the order they came.
    fn receive(&mut self, output: &Output) -> Vec<u64> {
        let mut bytes = Vec::new();
        output.append_to(&mut bytes);
        assert_eq!(bytes.len(), output.len());
        let (mut rest, mut came, mut block) = (&bytes[..], Vec::new(), None);
        let mut take = |len: usize| {
            let (taken, left) = rest.split_at(len);
            rest = left;
            taken
        };
        let mut left = bytes.len();
        while left > 0 {
            let word = u64::from_be_bytes(take(8).try_into().unwrap());
            let (number, flags) = (word >> 12, word & 0xfff);
            left -= 8;
            if flags & CONTINUE == 0 {
                block = Some(take(2)[1]);
                left -= 2;
            }
            assert_eq!(block, Some(STREAM.block(number)), "page {number}");
            let page = self.pages.entry(number).or_insert([0; PAGE_SIZE]);
            left -= match flags & !CONTINUE {
                ZERO => {
                    assert_eq!(take(1), [0]);
                    page.fill(0);
                    1
                }
                WHOLE => {
                    page.copy_from_slice(take(PAGE_SIZE));
                    PAGE_SIZE
                }
                DELTA => {
                    let head = take(3);
                    let len = usize::from(head[1]) << 8 | usize::from(head[2]);
                    crate::decode(take(len), page).unwrap();
                    3 + len
                }
                other => panic!("flags {other:#x}"),
            };
            came.push(number);
        }
        came
    }
}

/// Guest memory that any thread may write, a word at a time.
struct Memory(Vec<AtomicU64>);

const WORDS: usize = PAGE_SIZE / 8;

impl Memory {
    fn new(pages: usize) -> Memory {
        Memory((0..pages * WORDS).map(|_| AtomicU64::new(0)).collect())
    }

    fn live(&self, page: u64) -> LivePage<'_> {
        let at = self.0[page as usize * WORDS..].as_ptr().cast();
        // SAFETY: the page lies in the vector, which lives as long as the result and is written
        // atomically only.
        unsafe { LivePage::new(page, at) }
    }

    fn batch(&self, pages: impl IntoIterator<Item = u64>) -> Vec<LivePage<'_>> {
        pages.into_iter().map(|page| self.live(page)).collect()
    }

    fn set(&self, page: u64, word: usize, value: u64) {
        self.0[page as usize * WORDS + word].store(value, Ordering::Relaxed);
    }

    fn page(&self, page: u64) -> Page {
        let mut bytes = [0; PAGE_SIZE];
        for (word, to) in bytes.as_chunks_mut::<8>().0.iter_mut().enumerate() {
            *to = self.0[page as usize * WORDS + word].load(Ordering::Relaxed).to_ne_bytes();
        }
        bytes
    }
}

fn random(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

/// Changes a page as round `round` of a guest would: nothing, a word, everything, or back to zeros.
fn change(memory: &Memory, page: u64, state: &mut u64) {
    match random(state) % 8 {
        0 => {}
        1 => (0..WORDS).for_each(|word| memory.set(page, word, 0)),
        2 => (0..WORDS)
            .for_each(|word| memory.set(page, word, random(state) | 0x0101_0101_0101_0101)),
        _ => memory.set(page, random(state) as usize % WORDS, random(state)),
    }
}

fn pool(threads: usize) -> impl Fn(&mut (dyn FnMut() + Send)) {
    #[cfg(feature = "rayon")]
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
    move |work| {
        #[cfg(feature = "rayon")]
        pool.install(work);
        #[cfg(not(feature = "rayon"))]
        {
            let _ = threads;
            work();
        }
    }
}

/// A run of rounds over changing memory, and everything that could be seen of it.
fn history(cache_bytes: u64, threads: usize) -> (Vec<u8>, Vec<Kind>, crate::cache::Stats) {
    let memory = Memory::new(6000);
    let mut cache = Cache::new(cache_bytes).unwrap();
    let (mut output, mut receiver) = (Output::new(), Receiver::default());
    let (mut bytes, mut kinds) = (Vec::new(), Vec::new());
    let mut state = 0x1234_5678_9abc_def1;
    let rounds =
        [Pass::Bulk, Pass::Fill, Pass::Delta, Pass::Delta, Pass::Bulk, Pass::Delta, Pass::Last];
    let install = pool(threads);
    for (n, round) in rounds.into_iter().enumerate() {
        // A dense part and a sparse part, not all of it in every round.
        let mut pages: Vec<u64> =
            (0..6000).filter(|page| page % 7 != n as u64 || *page < 1000).collect();
        if n == 3 {
            pages.reverse(); // order is the caller's
        }
        pages.iter().for_each(|&page| change(&memory, page, &mut state));
        let batch = memory.batch(pages.iter().copied());
        install(&mut || encode(round, Some(&mut cache), &batch, &STREAM, &mut output));
        output.append_to(&mut bytes);
        kinds.extend_from_slice(output.kinds());

        assert_eq!(output.kinds().len(), pages.len());
        assert_eq!(output.tally().pages(), pages.len() as u64);
        let came = receiver.receive(&output);
        let sent: Vec<u64> = pages
            .iter()
            .zip(output.kinds())
            .filter(|(_, kind)| **kind != Kind::Same)
            .map(|(page, _)| *page)
            .collect();
        assert_eq!(came, sent, "records are in the order of the batch");
        for &page in &pages {
            assert_eq!(
                receiver.pages.get(&page).unwrap_or(&[0; PAGE_SIZE]),
                &memory.page(page),
                "page {page}"
            );
        }
        for page in 0..6000 {
            if let Some(entry) = cache.peek(page) {
                assert_eq!(entry, &receiver.pages[&page], "page {page} in the cache");
            }
        }
    }
    cache.end_period();
    (bytes, kinds, cache.stats())
}

#[test]
fn output_cache_and_statistics_do_not_depend_on_the_number_of_threads() {
    for cache_bytes in [16 << 20, 64 << 20] {
        let one = history(cache_bytes, 1);
        for threads in [2, 8] {
            assert!(
                history(cache_bytes, threads) == one,
                "{threads} threads, cache of {cache_bytes} bytes"
            );
        }
    }
}

#[test]
fn a_batch_equals_its_pages_one_by_one() {
    let run = |at_once: bool| {
        let memory = Memory::new(3000);
        let mut cache = Cache::new(8 << 20).unwrap();
        let (mut output, mut kinds, mut lens) = (Output::new(), Vec::new(), 0);
        let mut state = 77;
        for _ in 0..3 {
            (0..3000).for_each(|page| change(&memory, page, &mut state));
            let batch = memory.batch(0..3000);
            for part in batch.chunks(if at_once { 3000 } else { 1 }) {
                encode(Pass::Delta, Some(&mut cache), part, &Numbers, &mut output);
                kinds.extend_from_slice(output.kinds());
                lens += output.len();
            }
        }
        (kinds, lens, cache.stats())
    };
    assert!(run(true) == run(false));
}

/// A layout whose length does not depend on what came before.
struct Numbers;

impl RecordFormat for Numbers {
    fn header(&self, record: &Record, _after: Option<u64>, out: &mut Vec<u8>) {
        out.extend(record.page.to_be_bytes());
    }
}

fn kinds_of(cache: Option<&mut Cache>, pass: Pass, memory: &Memory, pages: &[u64]) -> Vec<Kind> {
    let mut output = Output::new();
    encode(pass, cache, &memory.batch(pages.iter().copied()), &STREAM, &mut output);
    output.kinds().to_vec()
}

#[test]
fn each_way_to_travel_has_its_kind_and_is_counted_as_the_peer_does() {
    let memory = Memory::new(8);
    let mut cache = Cache::new(1 << 20).unwrap();
    (1..6).for_each(|page| (0..WORDS).for_each(|word| memory.set(page, word, !0)));
    let first = kinds_of(Some(&mut cache), Pass::Delta, &memory, &[0, 1, 2, 3, 4]);
    assert_eq!(first, [Kind::Zero, Kind::Whole, Kind::Whole, Kind::Whole, Kind::Whole]);
    cache.end_period();
    let stats = cache.stats();
    assert_eq!((stats.pages, stats.cache_miss, stats.overflow, stats.bytes), (0, 4, 0, 0));
    assert_eq!((stats.cache_miss_rate, stats.encoding_rate), (0.8, 0.0));

    memory.set(2, 0, 1);
    (0..WORDS).for_each(|word| memory.set(3, word, 0x0102_0304_0506_0708));
    (0..WORDS).for_each(|word| memory.set(4, word, 0));
    let second = kinds_of(Some(&mut cache), Pass::Delta, &memory, &[1, 2, 3, 4]);
    assert_eq!(second, [Kind::Same, Kind::Delta, Kind::Overflow, Kind::Zero]);
    cache.end_period();
    let stats = cache.stats();
    // The delta is a gap and a run of 8 bytes; its record is the batch's first, so the block name
    // counts.
    let delta_record = (2 + 8) + 3 + 2;
    assert_eq!(
        (stats.pages, stats.cache_miss, stats.overflow, stats.bytes),
        (3, 4, 1, 4096 + delta_record)
    );
    assert_eq!(stats.cache_miss_rate, 0.0);
    assert_eq!(stats.encoding_rate, 3.0 * 4096.0 / (4096.0 + delta_record as f64));
}

#[test]
fn a_zero_page_that_the_receiver_has_is_not_sent_again() {
    let memory = Memory::new(2);
    let mut cache = Cache::new(1 << 20).unwrap();
    assert_eq!(kinds_of(Some(&mut cache), Pass::Fill, &memory, &[0]), [Kind::Zero]);
    assert_eq!(cache.peek(0), Some(&[0; PAGE_SIZE]));
    assert_eq!(kinds_of(Some(&mut cache), Pass::Delta, &memory, &[0]), [Kind::Same]);
}

#[test]
fn the_bulk_round_inserts_nothing_and_drops_what_it_sends() {
    let memory = Memory::new(600);
    (0..600).for_each(|page| memory.set(page, 3, page + 1));
    let mut cache = Cache::new(1 << 20).unwrap();
    cache.insert(5).fill(9);
    cache.insert(599).fill(9);
    let kinds = kinds_of(Some(&mut cache), Pass::Bulk, &memory, &(0..599).collect::<Vec<_>>());
    assert!(kinds.iter().all(|&kind| kind == Kind::Whole));
    assert!(!cache.contains(5) && cache.contains(599) && cache.len() == 1);
    assert_eq!(cache.stats().cache_miss, 0);
}

#[test]
fn the_last_round_inserts_nothing_but_keeps_entries_true() {
    let memory = Memory::new(3);
    let mut cache = Cache::new(1 << 20).unwrap();
    memory.set(0, 0, 1);
    kinds_of(Some(&mut cache), Pass::Fill, &memory, &[0]);
    memory.set(0, 1, 2);
    memory.set(1, 1, 2);
    let kinds = kinds_of(Some(&mut cache), Pass::Last, &memory, &[0, 1, 2]);
    assert_eq!(kinds, [Kind::Delta, Kind::Whole, Kind::Zero]);
    assert_eq!((cache.len(), cache.peek(0)), (1, Some(&memory.page(0))));
    assert_eq!(cache.stats().cache_miss, 1);
}

#[test]
fn records_not_handed_over_leave_no_entry() {
    let memory = Memory::new(400);
    let mut cache = Cache::new(4 << 20).unwrap();
    (0..400).for_each(|page| memory.set(page, 9, 9));
    kinds_of(Some(&mut cache), Pass::Fill, &memory, &(0..400).collect::<Vec<_>>());
    (0..400).for_each(|page| memory.set(page, 9, 10));
    let batch = memory.batch(0..400);
    encode(Pass::Delta, Some(&mut cache), &batch, &STREAM, &mut Output::new());
    cache.forget(batch[100..].iter().map(|page| page.number()));
    assert!((0..100).all(|page| cache.contains(page)) && cache.len() == 100);
}

#[test]
fn without_a_cache_pages_travel_whole_and_in_order() {
    let memory = Memory::new(2000);
    (0..2000).filter(|page| page % 3 > 0).for_each(|page| memory.set(page, 511, page));
    let mut receiver = Receiver::default();
    let mut output = Output::new();
    for pages in [0..2000, 40..41, 7..7] {
        encode(Pass::Delta, None, &memory.batch(pages.clone()), &STREAM, &mut output);
        assert_eq!(receiver.receive(&output), pages.clone().collect::<Vec<_>>());
        assert!(pages.clone().all(|page| receiver.pages[&page] == memory.page(page)));
        assert_eq!(output.is_empty(), pages.is_empty());
    }
}

/// The invariant of the whole crate, through the parallel door: while a guest writes, the receiver
/// has after every batch exactly what the cache holds, and after a last pass over quiet memory
/// exactly what memory holds.
#[test]
fn receiver_equals_cache_while_pages_are_written_and_memory_at_the_end() {
    const PAGES: u64 = 3000;
    let memory = Memory::new(PAGES as usize);
    let stop = AtomicBool::new(false);
    let mut cache = Cache::new(16 << 20).unwrap();
    let mut receiver = Receiver::default();
    let mut output = Output::new();
    let install = pool(2);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut state = 99;
            while !stop.load(Ordering::Relaxed) {
                let page = random(&mut state) % PAGES;
                change(&memory, page, &mut state);
            }
        });
        for round in 0..12 {
            let round = if round == 0 { Pass::Bulk } else { Pass::Delta };
            install(&mut || {
                encode(round, Some(&mut cache), &memory.batch(0..PAGES), &STREAM, &mut output)
            });
            receiver.receive(&output);
            for page in 0..PAGES {
                if let Some(entry) = cache.peek(page) {
                    assert!(
                        entry == receiver.pages.get(&page).unwrap_or(&[0; PAGE_SIZE]),
                        "page {page}"
                    );
                }
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    encode(Pass::Last, Some(&mut cache), &memory.batch(0..PAGES), &STREAM, &mut output);
    receiver.receive(&output);
    for page in 0..PAGES {
        assert!(
            receiver.pages.get(&page).unwrap_or(&[0; PAGE_SIZE]) == &memory.page(page),
            "page {page}"
        );
    }
    assert!(output.tally().delta + output.tally().same > 0);
}
