//! The command line of `godwit inspect`.

use crate::dump::Format;
use std::path::PathBuf;

/// The RAM of the machine that we know.
pub(super) const BLOCK: &str = "microvm.ram";

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
    #[arg(long, value_name = "NAME", default_value = BLOCK)]
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
