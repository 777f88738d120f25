//! The guest as a dump sees it.

use super::cpu::Cpu;
use super::view::GuestView;
use super::vmcoreinfo::VmCoreInfo;

/// What is dumped: memory, registers in CPU order, and where the guest put its note, if it said so.
pub struct GuestState<'a> {
    pub view: &'a dyn GuestView,
    pub cpus: &'a [Cpu],
    pub vmcoreinfo: Option<VmCoreInfo>,
}
