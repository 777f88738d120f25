//! The codec by pattern of change and path: `cargo bench -p bench --bench codec`.
//!
//! 16 MiB of pages a pass, the seeds of `bench::patterns`. `memcmp` and `memcpy` are in the same
//! run. `codec-table` is the table over more memory.
#![allow(unsafe_code)] // live memory is reached through pointers

use std::hint::black_box;

use bench::patterns::Pattern;
use bench::region::Region;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use xbzrle::{Outcome, PAGE_SIZE, Path};

const PAGES: usize = (16 << 20) / PAGE_SIZE;

fn limits(c: &mut Criterion) {
    let mut regions = [0; 2].map(|_| Region::new(PAGES).expect("memory for the pages"));
    let mut group = c.benchmark_group("limit");
    group.throughput(Throughput::Bytes((PAGES * PAGE_SIZE) as u64)).sample_size(10);
    group.bench_function("memcmp/equal/16MiB", |b| {
        b.iter(|| {
            regions[0]
                .pages()
                .iter()
                .zip(regions[1].pages())
                .all(|(a, b)| black_box(a) == black_box(b))
        });
    });
    let [from, to] = &mut regions;
    group.bench_function("memcpy/page/16MiB", |b| {
        b.iter(|| {
            to.pages_mut()
                .iter_mut()
                .zip(from.pages())
                .for_each(|(to, from)| *black_box(to) = *black_box(from))
        });
    });
}

fn codec(c: &mut Criterion) {
    let mut live = [0; 2].map(|_| Region::new(PAGES).expect("memory for the pages"));
    let mut cached = Region::new(PAGES).expect("memory for the pages");
    for pattern in Pattern::ALL {
        let [before, after] = &mut live;
        pattern.fill(before.pages_mut(), after.pages_mut());
        let mut group = c.benchmark_group(format!("encode/{}", pattern.name()));
        group.throughput(Throughput::Bytes((PAGES * PAGE_SIZE) as u64)).sample_size(10);
        for path in Path::available() {
            cached.pages_mut().copy_from_slice(live[0].pages());
            let mut turn = 0;
            group.bench_function(BenchmarkId::new(path.name(), "16MiB"), |b| {
                b.iter(|| {
                    turn ^= 1;
                    let mut out = [0; PAGE_SIZE];
                    for (cached, live) in cached.pages_mut().iter_mut().zip(live[turn].pages()) {
                        // SAFETY: a page that nobody writes.
                        black_box(unsafe { path.encode_live(cached, live.as_ptr(), &mut out) });
                    }
                });
            });
        }
        drop(group);
        let deltas: Vec<Vec<u8>> = std::iter::zip(live[0].pages(), live[1].pages())
            .map(|(old, new)| {
                let mut out = [0; PAGE_SIZE];
                match xbzrle::encode(old, new, &mut out) {
                    Outcome::Delta(len) => out[..len].to_vec(),
                    Outcome::Unchanged | Outcome::TooLong => vec![],
                }
            })
            .collect();
        if deltas.iter().all(Vec::is_empty) {
            continue;
        }
        let mut group = c.benchmark_group(format!("decode/{}", pattern.name()));
        group.throughput(Throughput::Bytes((PAGES * PAGE_SIZE) as u64)).sample_size(10);
        for path in Path::available() {
            group.bench_function(BenchmarkId::new(path.name(), "16MiB"), |b| {
                b.iter(|| {
                    for (page, delta) in cached.pages_mut().iter_mut().zip(&deltas) {
                        path.decode(delta, page).expect("what was encoded can be decoded");
                    }
                });
            });
        }
    }
}

criterion_group!(benches, limits, codec);
criterion_main!(benches);
