//! Prints hit rate and speed of the page cache by its size, beside the peer's policy and full
//! least-recently-used.

use std::error::Error;
use std::path::PathBuf;

use bench::drive::{Guest, Run, play_recorded};
use bench::plot::{Panel, Plot};
use bench::policy::{Lru, Ours, Peer, Policy, play};
use bench::synthetic::{self, Rounds};
use bench::trace::Trace;
use clap::Parser;
use serde_json::{Value, json};
use xbzrle::Cache;

/// Hit rate and pages encoded per second for page caches of 1 to 512 MiB, over synthetic and
/// recorded page traces.
#[derive(Parser)]
struct Cli {
    /// Recorded traces to use instead of the built-in ones
    traces: Vec<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    /// Hit rates only: do not encode
    #[arg(long)]
    no_speed: bool,
    /// Also draw hit rate by cache size into this SVG file
    #[arg(long)]
    plot: Option<PathBuf>,
    /// Fail unless our hit rate is within 2 points of full LRU's everywhere, and above the peer's
    /// on the traces that have popular pages (zipf and recorded ones)
    #[arg(long)]
    check: bool,
    /// Threads
    #[arg(long, default_value_t = 1)]
    threads: usize,
}

/// Where the pages of a trace come from.
enum Load {
    Synthetic,
    Recorded(Trace),
}

struct Source {
    name: String,
    rounds: Rounds,
    load: Load,
}

struct Row {
    trace: usize,
    mib: u64,
    /// Percent: ours, full LRU, the peer.
    hits: [f64; 3],
    run: Option<Run>,
}

fn main() -> Result<(), Box<dyn Error>> {
    let cli = Cli::parse();
    let sources = sources(&cli)?;
    let pool = rayon::ThreadPoolBuilder::new().num_threads(cli.threads).build()?;
    let sizes: Vec<u64> = (0..10).map(|bits| 1 << bits).collect();
    let mut guest = (!cli.no_speed && cli.traces.is_empty()).then(Guest::new);
    let mut rows = Vec::new();
    for (trace, source) in sources.iter().enumerate() {
        if !cli.json {
            head(source);
        }
        for &mib in &sizes {
            let hits = hit_rates(mib, &source.rounds);
            let run = if cli.no_speed {
                None
            } else {
                Some(pool.install(|| speed(mib, source, guest.as_mut()))?)
            };
            let row = Row { trace, mib, hits, run };
            if !cli.json {
                print(&row);
            }
            rows.push(row);
        }
    }
    if cli.json {
        println!(
            "{}",
            json!({ "threads": cli.threads, "rows": rows.iter().map(|row| to_json(row, &sources)).collect::<Vec<_>>() })
        );
    }
    if let Some(path) = &cli.plot {
        std::fs::write(path, plot(&sources, &sizes, &rows).svg())?;
    }
    if cli.check { check(&rows, &sources) } else { Ok(()) }
}

fn sources(cli: &Cli) -> Result<Vec<Source>, Box<dyn Error>> {
    let recorded = |name: String, trace: Trace| Source {
        name,
        rounds: trace.numbers(),
        load: Load::Recorded(trace),
    };
    if !cli.traces.is_empty() {
        let open = |path: &PathBuf| Ok(recorded(path.display().to_string(), Trace::read(path)?));
        return cli.traces.iter().map(open).collect();
    }
    let mut all: Vec<Source> = synthetic::all()
        .into_iter()
        .map(|(name, rounds)| Source { name: name.into(), rounds, load: Load::Synthetic })
        .collect();
    all.extend(Trace::kept()?.into_iter().map(|(name, trace)| recorded(name, trace)));
    Ok(all)
}

fn hit_rates(mib: u64, rounds: &Rounds) -> [f64; 3] {
    let pages = (mib << 8) as usize;
    let policies: [Box<dyn Policy>; 3] =
        [Box::new(Ours::new(pages)), Box::new(Lru::new(pages)), Box::new(Peer::new(pages))];
    policies.map(|mut policy| {
        let (hits, visits) = play(&mut *policy, rounds);
        hits as f64 * 100.0 / visits as f64
    })
}

/// Synthetic visits change one aligned word; recorded ones what was recorded.
fn speed(mib: u64, source: &Source, guest: Option<&mut Guest>) -> Result<Run, xbzrle::CacheError> {
    let mut cache = Cache::new(mib << 20)?;
    Ok(match (&source.load, guest) {
        (Load::Recorded(trace), _) => play_recorded(trace, &mut cache),
        (Load::Synthetic, Some(guest)) => guest.play(&source.rounds, 1, &mut cache),
        (Load::Synthetic, None) => unreachable!("a guest is made when there are synthetic traces"),
    })
}

fn head(source: &Source) {
    let visits: usize = source.rounds.iter().map(Vec::len).sum();
    let a_round = visits as f64 / source.rounds.len() as f64 / 256.0;
    println!(
        "\n{}: {visits} dirty pages in {} rounds, {a_round:.1} MiB a round",
        source.name,
        source.rounds.len()
    );
    if let Load::Recorded(trace) = &source.load {
        println!("{}", trace.title);
    }
    println!(
        "{:>5}  {:>7} {:>8} {:>7}  {:>9}  {:>7} {:>7} {:>7} {:>7} {:>8}  {:>11}",
        "MiB",
        "ours %",
        "LRU %",
        "peer %",
        "kpages/s",
        "delta",
        "same",
        "zero",
        "whole",
        "overflow",
        "bytes/delta"
    );
}

fn print(row: &Row) {
    let [ours, lru, peer] = row.hits;
    print!("{:>5}  {ours:>7.2} {lru:>8.2} {peer:>7.2}", row.mib);
    if let Some(run) = &row.run {
        let tally = &run.tally;
        print!(
            "  {:>9.0}  {:>7} {:>7} {:>7} {:>7} {:>8}  {:>11.1}",
            run.pages_per_second() / 1000.0,
            tally.delta,
            tally.same,
            tally.zero,
            tally.whole,
            tally.overflow,
            run.bytes_per_delta()
        );
    }
    println!();
}

fn to_json(row: &Row, sources: &[Source]) -> Value {
    let [ours, lru, peer] = row.hits;
    let mut value = json!({
        "trace": sources[row.trace].name,
        "cache_mib": row.mib,
        "hit_rate": ours,
        "lru_hit_rate": lru,
        "peer_hit_rate": peer,
    });
    if let Some(run) = &row.run {
        value["pages_s"] = run.pages_per_second().into();
        value["delta_pages"] = run.tally.delta.into();
        value["same_pages"] = run.tally.same.into();
        value["zero_pages"] = run.tally.zero.into();
        value["whole_pages"] = run.tally.whole.into();
        value["overflow_pages"] = run.tally.overflow.into();
        value["bytes_per_delta"] = run.bytes_per_delta().into();
    }
    value
}

fn plot(sources: &[Source], sizes: &[u64], rows: &[Row]) -> Plot {
    let panel = |(trace, source): (usize, &Source)| {
        let line = |line: usize| {
            rows.iter().filter(|row| row.trace == trace).map(|row| row.hits[line]).collect()
        };
        let recorded = if matches!(source.load, Load::Recorded(_)) { " (recorded)" } else { "" };
        Panel { title: format!("{}{recorded}", source.name), lines: (0..3).map(line).collect() }
    };
    Plot {
        title: "Dirty pages found in the page cache, by cache size".into(),
        sizes: sizes.to_vec(),
        lines: vec![
            ("xbzrle (8-way)", "#0b6e4f"),
            ("full LRU", "#c05621"),
            ("peer (direct-mapped, two rounds)", "#4a5fc1"),
        ],
        panels: sources.iter().enumerate().map(panel).collect(),
    }
}

fn check(rows: &[Row], sources: &[Source]) -> Result<(), Box<dyn Error>> {
    let mut failed = 0;
    for row in rows {
        let source = &sources[row.trace];
        let [ours, lru, peer] = row.hits;
        let skewed = source.name == "zipf" || matches!(source.load, Load::Recorded(_));
        // Where everything fits there is nothing to be better at.
        let above_peer = ours > peer || ours >= lru;
        if ours < lru - 2.0 || skewed && !above_peer {
            eprintln!(
                "{}, {} MiB: ours {ours:.2} %, LRU {lru:.2} %, peer {peer:.2} %",
                source.name, row.mib
            );
            failed += 1;
        }
    }
    if failed == 0 {
        Ok(())
    } else {
        Err(format!("{failed} of {} hit rates are too low", rows.len()).into())
    }
}
