//! The state of a machine that stands still, out to a stream and back.

use super::global_state::GlobalState;
use super::{Error, Machine, RunState};
use crate::devices::{LoadReport, Sections};
use crate::kvm::state::ForeignTsc;
use crate::stream::SectionKind;
use crate::vmstate::Description;

/// The machine type that every stream names.
pub(crate) const MACHINE: &str = "microvm";

impl Machine {
    /// Reads the state of all devices, of a guest that stands still. `run_state` is what it did
    /// before it was stopped for this: the target goes on with it. Reading may write guest memory:
    /// harvest the dirty logs afterwards.
    pub fn save(&self, run_state: RunState) -> Result<Sections, Error> {
        let control = self.control();
        if control.state.is_running() {
            return Err(Error::Running);
        }
        let mut sections = self.cpus.board.save()?;
        sections.push("globalstate", 0, GlobalState::new(run_state));
        Ok(sections)
    }

    /// Gives all devices their state. The guest must stand still and all RAM be there. Guest time
    /// goes on from the state's clock at the next [`Machine::cont`].
    pub fn load(&self, sections: &Sections, foreign: ForeignTsc) -> Result<LoadReport, Error> {
        let control = self.control();
        if control.state.is_running() {
            return Err(Error::Running);
        }
        Ok(self.cpus.board.load(sections, foreign)?)
    }
}

/// Appends every section with its header and footer; ids count from `first_id`. Returns the
/// description.
pub fn write_sections(sections: &Sections, first_id: u32, out: &mut Vec<u8>) -> String {
    let mut description = Description::new(MACHINE);
    for (id, (header, state)) in (first_id..).zip(sections.iter()) {
        let header = crate::stream::SectionHeader { id, ..header.clone() };
        header.write(SectionKind::Full, out);
        state.write(out);
        header.write_footer(out);
        description.device(&header.name, header.instance, &**state);
    }
    description.finish()
}
