//! The sections of a migration stream: decoded and checked as they come, applied once.

use super::RunState;
use super::board::PARTS;
use super::global_state::GlobalState;
use super::save::MACHINE;
use crate::config::Config;
use crate::devices::{HostCpu, Missing, SectionKind, Sections};
use crate::stream::{
    Configuration, Error, Extent, Layouts, ListedBlock, PAYLOAD_BYTES_MAX, Problem, SectionHeader,
    Step,
};
use crate::vmstate::{Section, Stop};

/// Takes the parts of a stream as they come and refuses what does not fit this machine. Nothing is
/// changed before [`super::Machine::load`].
#[derive(Debug)]
pub struct Loader {
    config: Config,
    host: HostCpu,
    sections: Sections,
}

impl Loader {
    pub fn new(config: &Config, host: HostCpu) -> Self {
        Self { config: config.clone(), host, sections: Sections::default() }
    }

    /// Checks what opens the stream. `offset` is where the configuration begins.
    pub fn configuration(&self, found: &Configuration, offset: u64) -> Result<(), Error> {
        if found.machine != MACHINE {
            let why =
                format!("the stream is of a machine \"{}\", this is a {MACHINE}", found.machine);
            return Err(Error::new("configuration", "machine name", offset, Problem::Says(why)));
        }
        Ok(())
    }

    /// Whether the stream's block is the guest's RAM (true) or memory that belongs to no device
    /// here (false). `offset` is where the entry ends.
    pub fn block(&self, block: &ListedBlock, offset: u64) -> Result<bool, Error> {
        if block.name != self.config.memory.block {
            return Ok(false);
        }
        if block.bytes != self.config.memory.bytes {
            let (theirs, ours) = (block.bytes, self.config.memory.bytes);
            let why = format!(
                "{theirs} bytes ({} MiB) of RAM, this machine has {ours} (-m {})",
                theirs >> 20,
                ours >> 20
            );
            return Err(Error::new(
                "section ram",
                format!("size of {}", block.name),
                offset,
                Problem::Says(why),
            ));
        }
        Ok(true)
    }

    /// Checks that the list brought the guest's RAM; `offset` is where the list ends.
    pub fn blocks_complete(&self, blocks: &[ListedBlock], offset: u64) -> Result<(), Error> {
        if blocks.iter().any(|block| block.name == self.config.memory.block) {
            return Ok(());
        }
        let names: Vec<&str> = blocks.iter().map(|block| block.name.as_str()).collect();
        let why = format!(
            "no block \"{}\", which is this machine's RAM, but {}",
            self.config.memory.block,
            names.join(", ")
        );
        Err(Error::new("section ram", "block list", offset, Problem::Says(why)))
    }

    /// Decodes the payload at the front of `input`, which stands at `offset` of the stream and goes
    /// on behind it (with the footer). `Item((), n)`: n bytes were taken. `Need`: so many bytes of
    /// input are needed.
    ///
    /// # Errors
    /// A section of a device that this machine does not have, or twice, or of an unknown version or
    /// form.
    pub fn section(
        &mut self,
        header: &SectionHeader,
        input: &[u8],
        offset: u64,
    ) -> Result<Step<()>, Error> {
        let refuse = |field: &str, why: String| {
            Error::new(format!("section {header}"), field, offset, Problem::Says(why))
        };
        let Some((kind, mut state)) = section_kind(&header.name) else {
            return Err(refuse("name", "no device of a microvm has this name".into()));
        };
        if let Some((field, why)) = (kind.lacks)(&self.config, header.instance) {
            return Err(refuse(field, why));
        }
        let used = match state.read(header, input, offset, false) {
            Ok(used) => used,
            Err(Stop::Short(needed)) if needed <= PAYLOAD_BYTES_MAX => {
                return Ok(Step::Need(needed));
            }
            Err(Stop::Short(needed)) => {
                return Err(refuse("payload", format!("more than {needed} bytes")));
            }
            Err(Stop::Refused(error)) => return Err(*error),
        };
        (kind.check)(&*state, &self.host).map_err(|(field, why)| refuse(field, why))?;
        if self.sections.contains(&header.name, header.instance) {
            return Err(refuse("name", "this section came before".into()));
        }
        self.sections.insert(&header.name, header.instance, state);
        Ok(Step::Item((), used))
    }

    /// Checks that everything is there without which the guest cannot go on. A device that is not
    /// mentioned keeps the state it has after power-on, as in QEMU.
    pub fn validate(&self) -> Result<(), Error> {
        for kind in PARTS {
            if let Some(Missing { name, instance, why }) =
                (kind.missing)(&self.config, &self.sections)
            {
                let header = SectionHeader { id: 0, name, instance, version: 0 };
                let section = format!("section {header}");
                return Err(Error::new(section, "whole section", 0, Problem::Says(why)));
            }
        }
        Ok(())
    }

    /// What the source did when it stopped; `None` if the stream does not tell.
    pub fn run_state(&self) -> Option<RunState> {
        self.sections.get("globalstate", 0).and_then(GlobalState::run_state)
    }

    /// All that came.
    pub fn sections(&self) -> &Sections {
        &self.sections
    }
}

/// The kind of the section with this name, and an empty one.
pub fn section_kind(name: &str) -> Option<(&'static SectionKind, Box<dyn Section>)> {
    let mut kinds = PARTS.iter().flat_map(|part| part.sections);
    kinds.find_map(|kind| (kind.named)(name).map(|empty| (kind, empty)))
}

/// Reads the payload of the section `header`, of whichever device: see [`Section::read`].
pub fn read_section(
    header: &SectionHeader,
    input: &[u8],
    offset: u64,
    whole: bool,
) -> Result<(Box<dyn Section>, usize), Stop> {
    let Some((_, mut state)) = section_kind(&header.name) else {
        let problem = Problem::Unknown { name: header.name.clone() };
        return Err(Stop::refused(header, "name", offset, problem));
    };
    let used = state.read(header, input, offset, whole)?;
    Ok((state, used))
}

/// The layouts of every section of every device, for [`crate::stream::Reader`].
#[derive(Debug, Clone, Copy, Default)]
pub struct Known;

impl Layouts for Known {
    fn extent(
        &mut self,
        section: &SectionHeader,
        input: &[u8],
        offset: u64,
    ) -> Result<Extent, Error> {
        match read_section(section, input, offset, false) {
            Ok((_, bytes)) => Ok(Extent::Bytes(bytes)),
            Err(Stop::Short(needed)) => Ok(Extent::Need(needed)),
            Err(Stop::Refused(error)) => Err(*error),
        }
    }
}
