//! The decoder of RAM records, as a target runs it: records of QEMU's format, in batches, in place.
//!
//! `cargo bench -p bench --bench stream_decode`. MiB/s are of the stream's bytes (a whole page's are
//! borrowed, not read), records/s beside them. Nothing but `RamParser::batch` and `RamWriter` is
//! used, so that the file can be laid into an older tree.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use godwit::stream::{RamParser, RamWriter, Record};

const BLOCK: &str = "microvm.ram";
const PAGES: u64 = 16384;
/// Records parsed at once by a target.
const BATCH_RECORDS: usize = 4096;

/// The block list, and behind it a round of every page as `write` puts it.
fn stream(write: impl Fn(&mut RamWriter, &mut Vec<u8>, u64)) -> (Vec<u8>, Vec<u8>) {
    let (mut list, mut round) = (Vec::new(), Vec::new());
    RamWriter::block_list(&mut list, [(BLOCK, PAGES * 4096)]);
    let mut writer = RamWriter::default();
    for page in 0..PAGES {
        write(&mut writer, &mut round, page);
    }
    RamWriter::end(&mut round);
    (list, round)
}

/// Parses all of `bytes`; how many records it was.
fn parse(parser: &mut RamParser, mut bytes: &[u8]) -> usize {
    let mut batch: Vec<Record<'_>> = Vec::with_capacity(BATCH_RECORDS);
    let mut records = 0;
    while !bytes.is_empty() {
        batch.clear();
        let used = parser.batch(bytes, BATCH_RECORDS, &mut batch).expect("sound records");
        assert!(used > 0, "whole records");
        records += std::hint::black_box(&batch).len();
        bytes = &bytes[used..];
    }
    records
}

fn decode(criterion: &mut Criterion) {
    let page = |writer: &mut RamWriter, out: &mut Vec<u8>, page: u64| {
        writer.page(out, 0, BLOCK, page * 4096, &[page as u8; 4096]);
    };
    let zero = |writer: &mut RamWriter, out: &mut Vec<u8>, page: u64| {
        writer.zero(out, 0, BLOCK, page * 4096);
    };
    // 16 changed words: what a working set of counters leaves.
    let delta = |writer: &mut RamWriter, out: &mut Vec<u8>, page: u64| {
        writer.delta(out, 0, BLOCK, page * 4096, &[7; 166]);
    };
    let mixed = |writer: &mut RamWriter, out: &mut Vec<u8>, number: u64| match number % 4 {
        0 => page(writer, out, number),
        1 => delta(writer, out, number),
        _ => zero(writer, out, number),
    };
    let kinds = [
        ("whole", stream(page)),
        ("zero", stream(zero)),
        ("delta", stream(delta)),
        ("mixed", stream(mixed)),
    ];
    let mut group = criterion.benchmark_group("stream_decode");
    for (name, (list, round)) in &kinds {
        let mut parser = RamParser::default();
        parse(&mut parser, list);
        for throughput in [Throughput::Bytes(round.len() as u64), Throughput::Elements(PAGES)] {
            let unit = if matches!(throughput, Throughput::Bytes(_)) { "bytes" } else { "records" };
            group.throughput(throughput);
            group.bench_function(BenchmarkId::new(*name, unit), |bencher| {
                bencher.iter(|| parse(&mut parser, round));
            });
        }
    }
    group.finish();
}

criterion_group!(benches, decode);
criterion_main!(benches);
