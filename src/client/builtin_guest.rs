//! `godwit builtin-guest`: the guest inside the binary as a file.

use super::error::Error;
use super::interrupt;
use crate::output::Destination;
use std::path::Path;

/// Of a new file, less the umask.
const MODE: u32 = 0o666;

pub fn run(file: &Path) -> Result<(), Error> {
    interrupt::end_cleanly()?;
    let mut output = Destination::look(file)?.open(MODE, &|| true)?;
    output.write_all(&crate::builtin::elf())?;
    output.finish()?;
    Ok(())
}
