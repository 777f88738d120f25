//! Records which pages of a running process are dirtied, round by round as a migration would
//! harvest them, with their contents, so that a page cache can be sized for a real load. See
//! [`bench::trace`] for the file.

mod dirty;
mod maps;
mod target;

use std::error::Error;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bench::trace::{Change, Recorder, Trace};
use clap::{Args, Parser, Subcommand};

use dirty::DirtyLog;
use target::Target;

/// Records the dirty pages of a process with their contents, or shows a recording.
#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Records a running process, or a command that is started for it (needs ptrace rights over it;
    /// x86-64)
    Record(Record),
    /// Shows what a recording holds
    Show { file: PathBuf },
}

#[derive(Args)]
struct Record {
    /// The file to write
    #[arg(short, long)]
    output: PathBuf,
    /// Milliseconds from one round to the next
    #[arg(short, long, default_value_t = 100)]
    interval: u64,
    /// Rounds at most; the recording ends with the process in any case
    #[arg(short, long, default_value_t = 100)]
    rounds: usize,
    /// Stop when the pages seen exceed this many MiB
    #[arg(long, default_value_t = 2048)]
    max_mib: usize,
    /// The title in the file; the command otherwise
    #[arg(long)]
    title: Option<String>,
    /// The running process
    #[arg(long, conflicts_with = "command", required_unless_present = "command")]
    pid: Option<i32>,
    /// The command to start; the process it starts as is recorded, not its children
    #[arg(trailing_var_arg = true)]
    command: Vec<String>,
}

fn main() -> Result<(), Box<dyn Error>> {
    match Cli::parse().verb {
        Verb::Record(options) => record(&options),
        Verb::Show { file } => show(&file),
    }
}

fn record(options: &Record) -> Result<(), Box<dyn Error>> {
    let mut target = match options.pid {
        Some(pid) => Target::attach(pid)?,
        None => Target::start(&options.command)?,
    };
    let mut log = DirtyLog::start(&mut target)?;
    target.resume()?;

    let mut recorder = Recorder::default();
    let began = Instant::now();
    for round in 1..=options.rounds {
        let due = Duration::from_millis(options.interval * round as u64);
        std::thread::sleep(due.saturating_sub(began.elapsed()));
        if target.has_ended() {
            break;
        }
        recorder.begin_round();
        if let Err(error) = log.harvest(|page, bytes| recorder.add(page, bytes)) {
            eprintln!("pagetrace: the process is gone ({error})");
            break;
        }
        if recorder.bytes() >> 20 > options.max_mib {
            eprintln!("pagetrace: more than {} MiB seen, stopping", options.max_mib);
            break;
        }
    }
    let title = options.title.clone().unwrap_or_else(|| match options.pid {
        Some(pid) => format!("process {pid}"),
        None => options.command.join(" "),
    });
    eprintln!(
        "pagetrace: {} dirty pages in {:.1} s",
        recorder.pages(),
        began.elapsed().as_secs_f64()
    );
    recorder.finish(format!("{title}, every {} ms", options.interval)).write(&options.output)?;
    show(&options.output)
}

fn show(file: &Path) -> Result<(), Box<dyn Error>> {
    let trace = Trace::read(file)?;
    println!("{}", trace.title);
    println!(
        "{:>5} {:>8} {:>6} {:>6} {:>6} {:>6} {:>6} {:>11}",
        "round", "pages", "zero", "same", "delta", "whole", "once", "delta bytes"
    );
    for (round, pages) in trace.rounds.iter().enumerate() {
        let count =
            |kind: fn(&Change) -> bool| pages.iter().filter(|(_, change)| kind(change)).count();
        let delta_bytes: usize = pages
            .iter()
            .map(|(_, change)| if let Change::Delta(delta) = change { delta.len() } else { 0 })
            .sum();
        println!(
            "{round:>5} {:>8} {:>6} {:>6} {:>6} {:>6} {:>6} {delta_bytes:>11}",
            pages.len(),
            count(|change| matches!(change, Change::Zero)),
            count(|change| matches!(change, Change::Same)),
            count(|change| matches!(change, Change::Delta(_))),
            count(|change| matches!(change, Change::Whole(_))),
            count(|change| matches!(change, Change::Once)),
        );
    }
    Ok(())
}
