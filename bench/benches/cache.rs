//! The page cache and the batch encoder: pages per second.
//!
//! `cargo bench -p bench --bench cache`. `lookup/…` is the cache alone, all rounds of a trace;
//! `encode/…` is the whole way from dirty pages to records: 64 MiB of pages with 64 random bytes
//! changed in each, all in the cache.

use std::time::{Duration, Instant};

use bench::drive::{Guest, Stream};
use bench::policy::{Ours, Peer, Policy, play};
use bench::random::Random;
use bench::synthetic;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use xbzrle::Cache;
use xbzrle::parallel::{self, LivePage, Output, Pass};

/// 64 MiB: twice the last-level cache of the machine this was written on.
const PAGES: usize = 16384;

/// Makes a cache of so many pages.
type MakePolicy = fn(usize) -> Box<dyn Policy>;

fn lookup(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("lookup");
    for (name, rounds) in synthetic::all() {
        let visits: usize = rounds.iter().map(Vec::len).sum();
        group.throughput(Throughput::Elements(visits as u64));
        for mib in [1, 64, 512] {
            let policies: [(&str, MakePolicy); 2] = [
                ("ours", |pages| Box::new(Ours::new(pages))),
                ("peer", |pages| Box::new(Peer::new(pages))),
            ];
            for (policy, new) in policies {
                let id = BenchmarkId::new(format!("{name}/{policy}"), format!("{mib}MiB"));
                group.bench_function(id, |bencher| {
                    bencher.iter(|| play(&mut *new(mib << 8), &rounds))
                });
            }
        }
    }
    group.finish();
}

fn encode(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("encode");
    group.throughput(Throughput::Bytes((PAGES * xbzrle::PAGE_SIZE) as u64));
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    for threads in [1, 2, 4].into_iter().filter(|&threads| threads <= cores) {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads");
        let (mut guest, mut random) = (Guest::new(), Random::new(11));
        let mut cache = Cache::new((PAGES * xbzrle::PAGE_SIZE) as u64).expect("64 MiB");
        let mut output = Output::new();
        group.bench_function(
            BenchmarkId::new("64-bytes", format!("{threads}-threads")),
            |bencher| {
                bencher.iter_custom(|times| {
                    let mut spent = Duration::ZERO;
                    for _ in 0..times {
                        guest.scatter(PAGES, 64, &mut random);
                        let pages: Vec<LivePage<'_>> =
                            (0..PAGES as u64).map(|page| guest.live(page)).collect();
                        let started = Instant::now();
                        for batch in pages.chunks(4096) {
                            let cache = Some(&mut cache);
                            pool.install(|| {
                                parallel::encode(Pass::Delta, cache, batch, &Stream, &mut output)
                            });
                        }
                        spent += started.elapsed();
                    }
                    spent
                });
            },
        );
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_secs(1))
        .measurement_time(Duration::from_secs(3));
    targets = lookup, encode
}
criterion_main!(benches);
