//! `godwit snapshot`: files of snapshots, looked into and put together. No machine is asked.

use std::path::PathBuf;

use clap::Subcommand;

use super::error::Error;
use super::figures::bytes;
use super::interrupt;
use super::table::Table;
use super::terminal::{say, show};
use crate::devices::Date;
use crate::snapshot::{self, Chain, Description};

#[derive(Subcommand, Debug)]
pub enum Snapshot {
    /// Show each file by itself, whether its base is there or not
    List {
        #[arg(required = true, value_name = "FILE")]
        files: Vec<PathBuf>,
    },
    /// Show all that a snapshot builds upon, the mapped-ram file first
    Show {
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
    /// Compare every checksum of snapshots and of all that they build upon
    Verify {
        #[arg(required = true, value_name = "FILE")]
        files: Vec<PathBuf>,
    },
    /// Write an increment and all that it builds upon as one mapped-ram file, which QEMU reads, too
    Merge {
        /// The increment
        #[arg(value_name = "FILE")]
        file: PathBuf,
        /// The new file
        #[arg(value_name = "OUT")]
        out: PathBuf,
    },
}

pub fn run(snapshot: &Snapshot) -> Result<(), Error> {
    interrupt::end_cleanly()?;
    match snapshot {
        Snapshot::List { files } => {
            let found = files.iter().map(|file| Description::of(file));
            Ok(show(table(&found.collect::<Result<Vec<_>, _>>()?))?)
        }
        Snapshot::Show { file } => Ok(show(table(&Chain::open(file)?.describe()?))?),
        Snapshot::Verify { files } => verify(files),
        Snapshot::Merge { file, out } => {
            let size = Chain::open(file)?.merge(out, &|| true)?;
            Ok(show(format_args!("{}: {}, with holes\n", out.display(), bytes(size)))?)
        }
    }
}

/// All of them, whatever the first one comes to.
fn verify(files: &[PathBuf]) -> Result<(), Error> {
    let mut failed: Option<snapshot::Error> = None;
    for file in files {
        match Chain::open(file).and_then(|chain| chain.verify_all(&|| true).map(|()| chain)) {
            Ok(chain) => show(sound(&chain.describe()?))?,
            Err(error) => {
                if let Some(before) = failed.replace(error) {
                    say(format_args!("godwit: {before}"));
                }
            }
        }
    }
    failed.map_or(Ok(()), |error| Err(error.into()))
}

fn sound(chain: &[Description]) -> String {
    let top = chain.last().map(|file| file.name.display().to_string()).unwrap_or_default();
    match chain.len() {
        ..2 => format!("{top}: a mapped-ram file, which has no checksums; it is complete\n"),
        files => {
            let total = chain.iter().map(|file| file.bytes).sum();
            format!("{top}: sound, with all {files} files ({})\n", bytes(total))
        }
    }
}

fn table(files: &[Description]) -> Table {
    let mut table =
        Table::new(["file", "saved (UTC)", "size", "RAM", "whole", "deltas", "zeros", "base"]);
    for file in files {
        let changes = file.changes.as_ref();
        let count = |count: fn(&snapshot::Changes) -> u64| {
            changes.map_or("all".into(), |changes| count(changes).to_string())
        };
        table.row([
            file.name.display().to_string(),
            Date::of(file.saved.cast_signed()).to_string(),
            bytes(file.bytes),
            bytes(file.ram),
            count(|changes| changes.whole),
            changes.map_or("-".into(), |changes| changes.deltas.to_string()),
            changes.map_or("-".into(), |changes| changes.zeros.to_string()),
            changes.map_or("-".into(), |changes| changes.base.display().to_string()),
        ]);
    }
    table
}
