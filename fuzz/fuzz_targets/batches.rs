//! Any batches: a receiver that applies the records has after each one what memory held, and what
//! the cache holds.
//!
//! Each batch is four bytes: round, where it begins, how many pages, and how they change.
#![no_main]

use std::collections::HashMap;

use godwit_fuzz::Page;
use libfuzzer_sys::fuzz_target;
use xbzrle::parallel::{self, Body, Kind, LivePage, Output, Pass, Record, RecordFormat};
use xbzrle::{Cache, PAGE_SIZE};

const PAGES: usize = 600;

struct Plain;

impl RecordFormat for Plain {
    fn header(&self, record: &Record, after: Option<u64>, out: &mut Vec<u8>) {
        out.extend(record.page.to_be_bytes());
        out.extend(after.unwrap_or(u64::MAX).to_be_bytes());
        out.extend(match record.body {
            Body::Zero => [0, 0, 0],
            Body::Delta(len) => [1, (len >> 8) as u8, len as u8],
            Body::Whole => [2, 0, 0],
        });
    }
}

fuzz_target!(|data: &[u8]| {
    let mut memory = vec![[0_u8; PAGE_SIZE]; PAGES];
    let mut receiver: HashMap<u64, Page> = HashMap::new();
    let mut cache = Cache::new(1 << 20).unwrap();
    let mut output = Output::new();
    for step in data.as_chunks::<4>().0.iter().take(16) {
        let round = [Pass::Bulk, Pass::Fill, Pass::Delta, Pass::Last][usize::from(step[0] % 4)];
        let first = usize::from(step[1]) * 2;
        let numbers: Vec<usize> =
            (first..PAGES).step_by(1 + usize::from(step[0] >> 6)).take(step[2].into()).collect();
        for (n, &page) in numbers.iter().enumerate() {
            change(&mut memory[page], step[3], n);
        }
        // SAFETY: `memory` outlives the batch, and nothing writes it until the records are made.
        let batch: Vec<LivePage<'_>> = numbers
            .iter()
            .map(|&page| unsafe { LivePage::new(page as u64, memory[page].as_ptr()) })
            .collect();
        parallel::encode(round, Some(&mut cache), &batch, &Plain, &mut output);

        let sent = receive(&output, &mut receiver);
        let travelled = numbers.iter().zip(output.kinds()).filter(|(_, kind)| **kind != Kind::Same);
        assert!(travelled.map(|(&page, _)| page as u64).eq(sent));
        for &page in &numbers {
            assert_eq!(receiver.get(&(page as u64)).unwrap_or(&[0; PAGE_SIZE]), &memory[page]);
        }
        if step[0] & 0x20 != 0 {
            cache.resize(4096 << (step[3] % 10)).unwrap();
        }
        for page in 0..PAGES as u64 {
            if let Some(entry) = cache.peek(page) {
                assert_eq!(Some(entry), receiver.get(&page));
            }
        }
    }
});

/// Nothing, zeros, everything, or some bytes.
fn change(page: &mut Page, how: u8, n: usize) {
    match (usize::from(how) + n) % 7 {
        0 => {}
        1 => page.fill(0),
        2 => page.iter_mut().enumerate().for_each(|(i, byte)| *byte ^= (i as u8) | 1),
        _ => (0..usize::from(how)).for_each(|i| page[(i * 37 + n * 11) % PAGE_SIZE] ^= how | 1),
    }
}

fn receive(output: &Output, pages: &mut HashMap<u64, Page>) -> Vec<u64> {
    let mut bytes = Vec::new();
    output.append_to(&mut bytes);
    let (mut rest, mut came, mut before) = (&bytes[..], Vec::new(), u64::MAX);
    while let Some(head) = rest.split_off(..19) {
        let number = u64::from_be_bytes(head[..8].try_into().unwrap());
        assert_eq!(u64::from_be_bytes(head[8..16].try_into().unwrap()), before);
        let page = pages.entry(number).or_insert([0; PAGE_SIZE]);
        match head[16] {
            0 => page.fill(0),
            1 => {
                let len = usize::from(head[17]) << 8 | usize::from(head[18]);
                xbzrle::decode(rest.split_off(..len).unwrap(), page).unwrap();
            }
            _ => page.copy_from_slice(rest.split_off(..PAGE_SIZE).unwrap()),
        }
        came.push(number);
        before = number;
    }
    assert!(rest.is_empty());
    came
}
