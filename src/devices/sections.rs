//! A machine's state between KVM, the devices and a stream: its sections, in QEMU's order.

use crate::kvm::TscRates;
use crate::kvm::state::ForeignTsc;
use crate::stream::SectionHeader;
use crate::vmstate::Section;

/// The sections of a machine that stands still, or of a stream.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Sections(Vec<(SectionHeader, Box<dyn Section>)>);

impl Sections {
    pub(crate) fn push(&mut self, name: &str, instance: u32, state: impl Section) {
        self.insert(name, instance, Box::new(state));
    }

    pub(crate) fn insert(&mut self, name: &str, instance: u32, state: Box<dyn Section>) {
        let version = state.version();
        self.0.push((SectionHeader { id: 0, name: name.to_owned(), instance, version }, state));
    }

    pub fn iter(&self) -> impl Iterator<Item = &(SectionHeader, Box<dyn Section>)> {
        self.0.iter()
    }

    pub(crate) fn contains(&self, name: &str, instance: u32) -> bool {
        self.find(name, instance).is_some()
    }

    /// The section of this name and instance.
    pub(crate) fn get<T: Section>(&self, name: &str, instance: u32) -> Option<&T> {
        self.find(name, instance).and_then(<dyn Section>::downcast_ref)
    }

    fn find(&self, name: &str, instance: u32) -> Option<&dyn Section> {
        let found = self.0.iter().find(|(h, _)| h.instance == instance && h.name == name);
        found.map(|(_, state)| &**state)
    }
}

/// A load under way.
pub struct Loading<'a> {
    pub sections: &'a Sections,
    pub foreign: ForeignTsc,
    pub report: LoadReport,
}

/// What a load could not restore; for people, not fatal.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LoadReport {
    /// (vCPU, MSR, value) that KVM refused.
    pub refused_msrs: Vec<(u32, u32, u64)>,
    /// The guest goes on with a time stamp counter of another rate ([`ForeignTsc::Accept`]).
    pub tsc: Option<TscRates>,
}
