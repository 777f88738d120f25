//! The codec against memory's limits and against the peer, for each pattern of change:
//!
//! ```text
//! cargo run --release -p bench --bin codec-table [--json] [--passes 9] [--pattern 64-bytes]
//! ```
//!
//! 64 MiB of pages (more than the last-level cache of most machines), one after the other, one
//! thread. Encode is `encode_live` with the next page announced: it compares a live page with the
//! cached one, writes the delta, and brings the cached page up to date. The live side is two sets
//! of pages in turn, before and after the change, so that each pass finds the same kind of change.
//! Decode applies the deltas of a path to 64 MiB of pages in place, in turn as well. GiB/s count
//! the bytes of the pages, not of the deltas. All figures are medians of the CPU time of the thread
//! (nothing here waits), so that being preempted does not count; passes of the paths and of the
//! limits take turns, so that what else happens on the machine hits all of them. The row `peer` is
//! a model of QEMU's method (`bench::peer`), the row `peer512` one of its method on a CPU with
//! AVX-512.
//!
//! Two threads are compared with one at encoding 64-bytes, and at copying the same pages: this is
//! what memory leaves for a second thread.

#![allow(unsafe_code)] // live memory is reached through pointers

use std::hint::black_box;
use std::time::{Duration, Instant};

use bench::clock::CpuTime;
use bench::patterns::Pattern;
use bench::peer;
#[cfg(target_arch = "x86_64")]
use bench::peer512::Peer512;
use bench::region::{Page, Region};
use clap::Parser;
use serde_json::{Value, json};
use xbzrle::{Ahead, Choice, Fetch, Outcome, PAGE_SIZE, PATH_VARIABLE, Path, Reason};

#[derive(Parser)]
struct Args {
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    /// Passes over the pages for each figure
    #[arg(long, default_value_t = 9)]
    passes: usize,
    /// KiB of pages; less than the caches hold shows what the CPU does, without memory
    #[arg(long, default_value_t = 64 << 10)]
    kib: usize,
    /// Only this pattern
    #[arg(long)]
    pattern: Option<String>,
}

/// Who encodes and decodes.
#[derive(Clone, Copy)]
enum Coder {
    Peer,
    #[cfg(target_arch = "x86_64")]
    Peer512(Peer512),
    Ours(Path),
}

impl Coder {
    fn name(self) -> &'static str {
        match self {
            Coder::Peer => "peer",
            #[cfg(target_arch = "x86_64")]
            Coder::Peer512(_) => "peer512",
            Coder::Ours(path) => path.name(),
        }
    }

    /// Encodes all pages of `live` against `cached`, and hands each outcome and the output to
    /// `record`.
    fn encode(self, cached: &mut [Page], live: &[Page], mut record: impl FnMut(Outcome, &[u8])) {
        match self {
            Coder::Peer => {
                let (mut scratch, mut out) = ([0; PAGE_SIZE], [0; PAGE_SIZE]);
                for (cached, live) in cached.iter_mut().zip(live) {
                    let outcome = peer::encode(cached, live, &mut scratch, &mut out);
                    record(outcome, &out);
                }
            }
            #[cfg(target_arch = "x86_64")]
            Coder::Peer512(peer) => {
                let (mut scratch, mut out) = ([0; PAGE_SIZE], [0; PAGE_SIZE]);
                for (cached, live) in cached.iter_mut().zip(live) {
                    let outcome = peer.encode(cached, live, &mut scratch, &mut out);
                    record(outcome, &out);
                }
            }
            Coder::Ours(path) => {
                let mut out = [0; PAGE_SIZE + 64];
                for (cached, live) in cached.iter_mut().zip(live) {
                    let next = 1; // the pages lie one after the other
                    let ahead = Ahead {
                        cached: cached.as_ptr().wrapping_add(next * PAGE_SIZE),
                        live: live.as_ptr().wrapping_add(next * PAGE_SIZE),
                    };
                    // SAFETY: `live` is a page that nobody writes.
                    let outcome =
                        unsafe { path.encode_live_ahead(cached, live.as_ptr(), &mut out, ahead) };
                    record(outcome, &out);
                }
            }
        }
    }

    fn decode(self, deltas: &Deltas, pages: &mut [Page]) {
        for (page, delta) in pages.iter_mut().zip(deltas.iter()) {
            match self {
                Coder::Peer => peer::decode(delta, page),
                #[cfg(target_arch = "x86_64")]
                Coder::Peer512(_) => peer::decode(delta, page),
                Coder::Ours(path) => path.decode(delta, page),
            }
            .expect("what was encoded can be decoded");
        }
    }
}

/// The deltas of all pages, one after the other.
#[derive(Default)]
struct Deltas {
    bytes: Vec<u8>,
    ends: Vec<usize>,
    overflows: usize,
}

impl Deltas {
    fn push(&mut self, outcome: Outcome, out: &[u8]) {
        match outcome {
            Outcome::Unchanged => {}
            Outcome::Delta(len) => self.bytes.extend_from_slice(&out[..len]),
            Outcome::TooLong => self.overflows += 1,
        }
        self.ends.push(self.bytes.len());
    }

    fn iter(&self) -> impl Iterator<Item = &[u8]> {
        let mut start = 0;
        self.ends.iter().map(move |&end| &self.bytes[std::mem::replace(&mut start, end)..end])
    }

    /// Bytes sent for a page: of its delta, or the page.
    fn bytes_per_page(&self) -> f64 {
        (self.bytes.len() + self.overflows * PAGE_SIZE) as f64 / self.ends.len() as f64
    }
}

struct Row {
    pattern: Pattern,
    coder: Coder,
    encode: f64,
    /// Absent where no page has a delta.
    decode: Option<f64>,
    bytes_per_page: f64,
    overflows: usize,
}

/// The memory of one run.
struct Bench {
    passes: usize,
    live: [Region; 2],
    cached: Region,
    memcmp: Vec<Duration>,
    memcpy: Vec<Duration>,
}

impl Bench {
    fn new(pages: usize, passes: usize) -> std::io::Result<Self> {
        let live = [Region::new(pages)?, Region::new(pages)?];
        Ok(Self { passes, live, cached: Region::new(pages)?, memcmp: vec![], memcpy: vec![] })
    }

    fn rows(&mut self, pattern: Pattern, coders: &[Coder]) -> Vec<Row> {
        let [before, after] = &mut self.live;
        pattern.fill(before.pages_mut(), after.pages_mut());
        let mut encode = vec![vec![]; coders.len()];
        for _ in 0..self.passes {
            for (coder, times) in coders.iter().zip(&mut encode) {
                times.push(self.time_encode(*coder));
            }
            self.time_limits();
        }
        let mut decode = vec![vec![]; coders.len()];
        let deltas: Vec<_> = coders.iter().map(|coder| self.deltas(*coder)).collect();
        if deltas.iter().any(|[there, _]| !there.bytes.is_empty()) {
            for _ in 0..self.passes {
                for ((coder, deltas), times) in coders.iter().zip(&deltas).zip(&mut decode) {
                    times.push(self.time_decode(*coder, deltas));
                }
            }
        }
        let pages = self.cached.pages().len();
        let row = |(i, &coder): (usize, &Coder)| Row {
            pattern,
            coder,
            encode: rate(pages, &mut encode[i]),
            decode: (!decode[i].is_empty()).then(|| rate(pages, &mut decode[i])),
            bytes_per_page: deltas[i][0].bytes_per_page(),
            overflows: deltas[i][0].overflows,
        };
        coders.iter().enumerate().map(row).collect()
    }

    /// The mean of a pass that finds the pages changed and one that finds them changed back.
    fn time_encode(&mut self, coder: Coder) -> Duration {
        self.cached.pages_mut().copy_from_slice(self.live[0].pages());
        let start = CpuTime::now();
        for live in [&self.live[1], &self.live[0]] {
            coder.encode(self.cached.pages_mut(), live.pages(), |outcome, out| {
                black_box((outcome, out));
            });
        }
        start.elapsed() / 2
    }

    /// From before the change to after it, and back.
    fn deltas(&mut self, coder: Coder) -> [Deltas; 2] {
        self.cached.pages_mut().copy_from_slice(self.live[0].pages());
        [1, 0].map(|to| {
            let mut deltas = Deltas::default();
            coder.encode(self.cached.pages_mut(), self.live[to].pages(), |outcome, out| {
                deltas.push(outcome, out)
            });
            assert!(self.cached.pages() == self.live[to].pages(), "the cache is up to date");
            deltas
        })
    }

    fn time_decode(&mut self, coder: Coder, [there, back]: &[Deltas; 2]) -> Duration {
        self.cached.pages_mut().copy_from_slice(self.live[0].pages());
        let start = CpuTime::now();
        coder.decode(there, self.cached.pages_mut());
        coder.decode(back, self.cached.pages_mut());
        let time = start.elapsed() / 2;
        assert!(self.cached.pages() == self.live[0].pages(), "there and back again");
        time
    }

    /// What memory allows: comparing all pages with equal ones, and copying them, a page at a time.
    fn time_limits(&mut self) {
        self.cached.pages_mut().copy_from_slice(self.live[0].pages());
        let start = CpuTime::now();
        let equal = self
            .cached
            .pages()
            .iter()
            .zip(self.live[0].pages())
            .all(|(a, b)| black_box(a) == black_box(b));
        self.memcmp.push(start.elapsed());
        assert!(equal);
        let start = CpuTime::now();
        for (to, from) in self.cached.pages_mut().iter_mut().zip(self.live[1].pages()) {
            black_box(to).copy_from_slice(black_box(from));
        }
        self.memcpy.push(start.elapsed());
    }

    /// How many times faster two threads encode than one, and how many times faster they copy, by
    /// the wall clock: it takes two idle processors.
    fn two_threads(&mut self, pattern: Pattern, path: Path) -> [f64; 2] {
        let [before, after] = &mut self.live;
        pattern.fill(before.pages_mut(), after.pages_mut());
        let encode = |cached: &mut [Page], live: &[Page]| {
            Coder::Ours(path).encode(cached, live, |outcome, out| {
                black_box((outcome, out));
            });
        };
        let copy = |cached: &mut [Page], live: &[Page]| {
            for (to, from) in cached.iter_mut().zip(live) {
                black_box(to).copy_from_slice(black_box(from));
            }
        };
        [self.one_over_two(encode), self.one_over_two(copy)]
    }

    /// The time that one thread takes for `work` on all pages, over the time that two take for half
    /// of them each.
    fn one_over_two(&mut self, work: impl Fn(&mut [Page], &[Page]) + Sync) -> f64 {
        let half = self.cached.pages().len() / 2;
        let mut ratios: Vec<f64> = (0..self.passes)
            .map(|_| {
                self.cached.pages_mut().copy_from_slice(self.live[0].pages());
                let start = Instant::now();
                for live in [&self.live[1], &self.live[0]] {
                    work(self.cached.pages_mut(), live.pages());
                }
                let one = start.elapsed();
                self.cached.pages_mut().copy_from_slice(self.live[0].pages());
                let start = Instant::now();
                let (low, high) = self.cached.pages_mut().split_at_mut(half);
                let (live, work) = (&self.live, &work);
                std::thread::scope(|scope| {
                    for (cached, from) in [(low, 0), (high, half)] {
                        scope.spawn(move || {
                            for live in [&live[1], &live[0]] {
                                work(cached, &live.pages()[from..]);
                            }
                        });
                    }
                });
                one.as_secs_f64() / start.elapsed().as_secs_f64()
            })
            .collect();
        ratios.sort_by(f64::total_cmp);
        ratios[ratios.len() / 2]
    }
}

/// GiB/s of a pass over all pages, from the median time.
fn rate(pages: usize, times: &mut [Duration]) -> f64 {
    times.sort();
    (pages * PAGE_SIZE) as f64 / (1 << 30) as f64 / times[times.len() / 2].as_secs_f64()
}

fn main() -> std::io::Result<()> {
    let args = Args::parse();
    let _ = Path::best(); // the choice is made before anything is measured
    let mut bench = Bench::new((args.kib << 10) / PAGE_SIZE, args.passes.max(1))?;
    let mut coders = vec![Coder::Peer];
    #[cfg(target_arch = "x86_64")]
    coders.extend(Peer512::detect().map(Coder::Peer512));
    coders.extend(Path::available().map(Coder::Ours));
    let mut rows = vec![];
    for pattern in Pattern::ALL {
        if args.pattern.as_deref().is_none_or(|only| only == pattern.name()) {
            rows.extend(bench.rows(pattern, &coders));
        }
    }
    let two_threads = bench.two_threads(Pattern::SixtyFourBytes, Path::best());
    let pages = bench.cached.pages().len();
    let (memcmp, memcpy) = (rate(pages, &mut bench.memcmp), rate(pages, &mut bench.memcpy));
    if args.json {
        println!("{}", to_json(&rows, memcmp, memcpy, two_threads));
    } else {
        print_table(&rows, memcmp, memcpy, two_threads);
    }
    Ok(())
}

fn to_json(rows: &[Row], memcmp: f64, memcpy: f64, two_threads: [f64; 2]) -> Value {
    let rows: Vec<_> = rows
        .iter()
        .map(|row| {
            json!({
                "pattern": row.pattern.name(),
                "path": row.coder.name(),
                "encode_gib_s": row.encode,
                "decode_gib_s": row.decode,
                "bytes_per_page": row.bytes_per_page,
                "overflows": row.overflows,
            })
        })
        .collect();
    json!({
        "rows": rows,
        "memcmp_gib_s": memcmp,
        "memcpy_gib_s": memcpy,
        "best_path": Path::best().name(),
        "choice": chosen(),
        "two_threads_over_one_64_bytes": two_threads[0],
        "two_threads_over_one_memcpy": two_threads[1],
    })
}

/// What encodes by default in a process on this machine, and why.
fn chosen() -> String {
    let Choice { path, fetch, reason } = Choice::of_this_process();
    let fetch = match fetch {
        Fetch::IntoCaches => "fetching ahead into all caches",
        Fetch::PastCaches => "fetching ahead past the larger caches",
    };
    let reason = match reason {
        Reason::Named => format!("named by {PATH_VARIABLE}"),
        Reason::Only => "nothing to choose from".into(),
        Reason::Measured(time) => format!("fastest in {} µs of trials", time.as_micros()),
    };
    format!("chosen: {path}, {fetch} ({reason})")
}

fn print_table(rows: &[Row], memcmp: f64, memcpy: f64, two_threads: [f64; 2]) {
    println!("one thread, GiB/s of pages; memcmp {memcmp:.2}, memcpy {memcpy:.2}\n");
    println!(
        "{:<17} {:<7} {:>7} {:>9} {:>7} {:>7} {:>7} {:>11} {:>9}",
        "pattern",
        "path",
        "encode",
        "÷ memcmp",
        "÷ peer",
        "decode",
        "÷ peer",
        "bytes/page",
        "overflows"
    );
    let mut peer: Option<&Row> = None;
    for row in rows {
        if matches!(row.coder, Coder::Peer) {
            peer = Some(row);
        }
        let (peer_encode, peer_decode) =
            peer.map_or((f64::NAN, None), |peer| (peer.encode, peer.decode));
        let decode = row.decode.map_or("-".into(), |rate| format!("{rate:.2}"));
        let over_peer = row
            .decode
            .zip(peer_decode)
            .map_or("-".into(), |(ours, peer)| format!("{:.2}", ours / peer));
        println!(
            "{:<17} {:<7} {:>7.2} {:>9.2} {:>7.2} {:>7} {:>7} {:>11.1} {:>9}",
            row.pattern.name(),
            row.coder.name(),
            row.encode,
            row.encode / memcmp,
            row.encode / peer_encode,
            decode,
            over_peer,
            row.bytes_per_page,
            row.overflows
        );
    }
    println!("\n{}", chosen());
    let [encode, copy] = two_threads;
    println!("\ntwo threads on 64-bytes: {encode:.2} times one; at memcpy: {copy:.2}");
}
