//! What a migration needs of a machine. The real one is [`crate::machine::Machine`]; tests put
//! memory with a thread that dirties it in its place.

use std::ops::Range;
use std::time::Duration;

use super::guest_error::GuestError;
use crate::kvm::state::ForeignTsc;
use crate::machine::{LimitCost, RunState};
use crate::memory::{GuestRam, Hints, PageSet};
use crate::stream::godwit::{Rehearsal, Requirements};
use crate::stream::{self, SectionHeader};

/// Name of the machine type in the stream.
pub(crate) const MACHINE: &str = "microvm";

pub trait Migratable: Send + Sync {
    fn ram(&self) -> &GuestRam;
    fn run_state(&self) -> RunState;
    /// Stops every vCPU; true if the guest ran.
    fn stop(&self, to: RunState) -> Result<bool, GuestError>;
    /// How long that takes, tried without stopping them.
    fn stop_time(&self) -> Duration;
    fn cont(&self) -> Result<(), GuestError>;
    /// The guest that was loaded goes on elsewhere: gives back what only one machine can have.
    fn let_go(&self);
    /// Memory was lost where nobody may have noticed: stops the guest if it runs.
    fn memory_lost(&self) {}
    /// Changes the state of a guest that stands still.
    fn set_state(&self, to: RunState);
    /// Per cent of its time that each vCPU sleeps.
    fn set_throttle(&self, percent: u8);
    /// Whether vCPUs can be limited by what they dirty.
    fn has_dirty_rings(&self) -> bool {
        false
    }
    /// Limits what each vCPU may dirty, in MiB per second, with rates taken over `period`; 0 ends
    /// it.
    fn limit_dirt(&self, _mib: u64, _period: Duration) -> Result<(), GuestError> {
        Ok(())
    }
    /// What that costs, while there is a limit.
    fn limit_cost(&self) -> Option<LimitCost> {
        None
    }
    /// Free pages that the guest names while its memory is sent, if it has a device for it.
    fn hints(&self) -> Option<&Hints> {
        None
    }
    /// Starts logging which pages are written. The log ends when it is dropped.
    fn start_dirty_log(&self) -> Result<Box<dyn DirtyLog>, GuestError>;
    /// What this guest needs of a host.
    fn requirements(&self) -> Requirements;
    /// Refuses by name what this host cannot give.
    fn check_requirements(&self, requirements: &Requirements) -> Result<(), GuestError>;
    /// Reads all vCPU, interrupt, clock and device state of a guest that stands still. Reading can
    /// write guest memory, so that the dirty log is harvested afterwards.
    fn save(&self, ran: bool) -> Result<Box<dyn State>, GuestError>;
    /// The same of a guest that goes on here all the same, as it is.
    fn save_here(&self, ran: bool) -> Result<Box<dyn State>, GuestError>;
    /// Reads, lays out and loads the state of a machine that has run nothing yet, to know what that
    /// takes. Nothing is changed by it.
    fn rehearse(&self) -> Result<Rehearsal, GuestError>;
    /// Whether a description of the sections ends its streams, in both directions.
    fn describes(&self) -> bool;
    /// Something that takes the device sections of a stream.
    fn loader(&self) -> Box<dyn Loader + '_>;
}

/// State that was read and is not laid out yet.
pub trait State: Send {
    /// Appends all device sections, and what the description says about them.
    fn write(&self, out: &mut Vec<u8>) -> Result<String, GuestError>;
}

/// Device sections, decoded as they come and applied once.
pub trait Loader {
    /// Reads the payload of one section, which starts at `offset` of the stream. `Need` asks for
    /// more input.
    fn section(
        &mut self,
        header: &SectionHeader,
        input: &[u8],
        offset: u64,
    ) -> Result<stream::Step<()>, stream::Error>;
    /// Checks that everything is there and fits, without changing the machine.
    fn validate(&mut self) -> Result<(), GuestError>;
    /// Applies everything, and claims what only one machine can have. The source's run state comes
    /// back, if the stream told it.
    fn apply(&mut self, foreign: ForeignTsc) -> Result<Option<RunState>, GuestError>;
}

/// Which pages of the guest's RAM were written, by vCPUs or by this process.
pub trait DirtyLog: Send + Sync {
    /// Adds the pages found dirty to `into`. They stay dirty in the log until they are cleared.
    fn harvest(&self, into: &mut PageSet) -> Result<(), GuestError>;
    /// Makes later writes to the members of `set` in `pages` visible again. Comes before they are
    /// read. `pages` starts and ends on multiples of 64, but for the end of RAM. Pages outside
    /// `set` stay as they are.
    fn clear(&self, set: &PageSet, pages: Range<u64>) -> Result<(), GuestError>;
}
