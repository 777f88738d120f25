//! `godwit inspect`: the structure and the memory of a migration stream.
//!
//! Reads what QEMU or Godwit wrote: main channels with their multifd channels, connections that
//! resume an interrupted postcopy, mapped-ram files, and return paths. Files are read once from
//! front to back, whatever they declare.

mod channels;
mod core;
mod image;
mod layouts;
mod outputs;
mod report;
mod source;
mod text;
mod walk;

pub use layouts::AnyLayout;
pub use report::Report;

use crate::dump::Format;
use crate::stream;
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};

/// What to read and what to make of it.
#[derive(clap::Args, Debug, Clone, Default)]
pub struct Options {
    /// The stream: a file that `migrate` wrote, or a recorded main channel (or return path)
    pub main: PathBuf,
    /// A recorded multifd channel; once for each
    #[arg(long = "channel", value_name = "FILE")]
    pub channels: Vec<PathBuf>,
    /// The connection that resumed an interrupted postcopy; in order, if there were several
    #[arg(long, value_name = "FILE")]
    pub resume: Vec<PathBuf>,
    /// Write the image of a memory block to this file, by offset in the block; - is standard output
    #[arg(long, value_name = "OUT")]
    pub ram: Option<PathBuf>,
    /// The block for --ram
    #[arg(long, value_name = "NAME", default_value = "microvm.ram")]
    pub block: String,
    /// Write a dump of the guest as it would have arrived to this file: memory, and the registers
    /// of every vCPU
    #[arg(long, value_name = "OUT")]
    pub core: Option<PathBuf>,
    /// The dump's format for --core: elf, kdump-zlib, kdump-raw-zlib, ... (see `godwit dump`)
    #[arg(long, value_name = "FORMAT", default_value = "elf", requires = "core")]
    pub format: Format,
    /// --core as ELF: one segment for each virtual mapping
    #[arg(long, requires = "core")]
    pub paging: bool,
    /// Show every field of every device
    #[arg(long)]
    pub fields: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Why a file could not be read to its end.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    #[error("{file}: {1}", file = .0.display())]
    Read(PathBuf, #[source] io::Error),
    #[error("{file}: {1}", file = .0.display())]
    Stream(PathBuf, #[source] stream::Error),
    #[error("memory image: {0}")]
    Image(#[source] io::Error),
    #[error("no block \"{wanted}\" in the stream, but {found}")]
    NoBlock { wanted: String, found: String },
    #[error("--core knows where the memory of a microvm lies, and this is the stream of {0}")]
    Machine(String),
    #[error("--core needs the image of {}; leave out --block", core::BLOCK)]
    OtherBlock,
    #[error(
        "--core needs the registers of the vCPUs, and the stream holds none that could be read"
    )]
    NoRegisters,
    #[error(transparent)]
    Output(#[from] crate::output::Error),
    #[error(transparent)]
    Dump(crate::dump::Error),
}

impl Failure {
    /// With the file's name, where it is not there yet.
    fn of(self, path: &Path) -> Self {
        match self {
            Self::Stream(known, error) if known.as_os_str().is_empty() => {
                Self::Stream(path.to_owned(), error)
            }
            other => other,
        }
    }
}

fn read_failure(path: &Path) -> impl Fn(io::Error) -> Failure + '_ {
    move |error| Failure::Read(path.to_owned(), error)
}

/// Reads everything; what was found before a failure is in the report, and the failure's text in
/// its `error`.
pub fn inspect(options: &Options) -> (Report, Result<(), Failure>) {
    let mut report = Report::default();
    let result = read(options, &mut report);
    report.error = result.as_ref().err().map(ToString::to_string);
    (report, result)
}

fn read(options: &Options, report: &mut Report) -> Result<(), Failure> {
    let outputs = outputs::Outputs::begin(options)?;
    let mut arrived = core::Arrived::default();
    walk::walk(options, outputs.image()?, report, &mut arrived)?;
    if options.ram.is_some() && report.image.is_none() {
        let names: Vec<&str> = report.blocks.iter().map(|block| block.name.as_str()).collect();
        let found = if names.is_empty() { "none at all".into() } else { names.join(", ") };
        return Err(Failure::NoBlock { wanted: options.block.clone(), found });
    }
    outputs.write(options, report, arrived)
}

/// The command: prints what was found, even before a failure.
pub fn run(options: &Options) -> Result<(), Box<dyn std::error::Error>> {
    let (report, result) = inspect(options);
    // What was asked for goes where the report would.
    let to: Box<dyn Write> = match outputs::take_stdout(options) {
        true => Box::new(io::stderr().lock()),
        false => Box::new(io::stdout().lock()),
    };
    let mut out = io::BufWriter::new(to);
    let printed = if options.json {
        serde_json::to_writer_pretty(&mut out, &report)
            .map_err(io::Error::from)
            .and_then(|()| writeln!(out))
    } else {
        let color = io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        text::print(&report, text::Style { color }, &mut out)
    };
    match printed.and_then(|()| out.flush()) {
        // Whoever reads may have seen enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
        other => other?,
    }
    Ok(result?)
}
