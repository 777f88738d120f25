//! Where the image of a memory block and the dump go.

use super::core::{self, Arrived};
use super::error::Failure;
use super::options::{BLOCK, Options};
use super::report::Report;
use crate::output::{Destination, Input, OutputFile};
use std::fs::File;

/// Readable by its owner alone: it is all that a guest knows.
const MODE: u32 = 0o600;

/// What `options` ask for, looked at and compared with what is read; and the image while it grows.
pub(crate) struct Outputs {
    ram: Option<Destination>,
    core: Option<Destination>,
    /// The image's own file, where it may become the one asked for.
    image: Option<OutputFile>,
    /// Another, where the image is wanted for a dump, or has to be written in one go.
    scratch: Option<File>,
}

impl Outputs {
    pub(crate) fn begin(options: &Options) -> Result<Outputs, Failure> {
        let look = |name: &Option<_>| name.as_deref().map(Destination::look).transpose();
        let (ram, core) = (look(&options.ram)?, look(&options.core)?);
        let files = [&options.main].into_iter().chain(&options.channels).chain(&options.resume);
        let inputs: Vec<Input> = files.filter_map(|path| Input::at(path)).collect();
        for output in ram.iter().chain(&core) {
            output.is_none_of(&inputs)?;
        }
        if let (Some(ram), Some(core)) = (&ram, &core) {
            ram.is_not(core)?;
            if options.block != BLOCK {
                return Err(Failure::OtherBlock);
            }
        }
        let image = ram.as_ref().map(|ram| ram.open_temporary(MODE)).transpose()?.flatten();
        let scratch = match (&image, ram.as_ref().or(core.as_ref())) {
            (None, Some(output)) => Some(output.scratch().map_err(Failure::Image)?),
            _ => None,
        };
        Ok(Outputs { ram, core, image, scratch })
    }

    /// The file in which the image is put together.
    pub(crate) fn image(&self) -> Result<Option<File>, Failure> {
        let file = self.image.as_ref().map(OutputFile::file).or(self.scratch.as_ref());
        file.map(File::try_clone).transpose().map_err(Failure::Image)
    }

    /// All has been read.
    pub(crate) fn write(
        self,
        options: &Options,
        report: &Report,
        arrived: Arrived,
    ) -> Result<(), Failure> {
        match (self.image, self.ram, self.scratch) {
            (Some(image), _, _) => drop(image.finish()?),
            (None, Some(ram), Some(mut image)) => {
                let mut file = ram.open(MODE, &|| true)?;
                file.copy(&mut image)?;
                file.finish()?;
            }
            _ => {}
        }
        let Some(core) = self.core else { return Ok(()) };
        let dump = core::prepare(arrived, report.machine.as_deref())?;
        let file = core.open(MODE, &|| true)?;
        dump.write(file.file(), options.format, options.paging)?;
        file.finish()?;
        Ok(())
    }
}

/// Does one of them take standard output?
pub(crate) fn take_stdout(options: &Options) -> bool {
    let is_stdout = |name: &std::path::PathBuf| {
        Destination::look(name).is_ok_and(|destination| destination.is_stdout())
    };
    options.ram.iter().chain(&options.core).any(is_stdout)
}
