//! `godwit inspect`: the structure and the memory of a migration stream.
//!
//! Reads what QEMU or Godwit wrote: main channels with their multifd channels, connections that
//! resume an interrupted postcopy, mapped-ram files, and return paths. Files are read once from
//! front to back, whatever they declare.

mod channels;
mod core;
mod error;
mod image;
mod layouts;
mod options;
mod outputs;
mod report;
mod source;
mod text;
mod walk;

pub(crate) use error::Failure;
pub use options::Options;
pub(crate) use report::Report;

use std::io::{self, IsTerminal, Write};

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
    // The image of the guest's memory is mapped.
    crate::memory::survive_missing_pages()?;
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
