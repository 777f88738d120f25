//! What is known of a device before there is one.

use super::error::Error;
use super::host_cpu::HostCpu;
use super::sections::Sections;
use super::slots::{Built, Slots};
use crate::args::{Key, OptionError, Pair, Parameter};
use crate::config::{self, Config, Properties, Switches};
use crate::vmstate::{Layout, Section};
use std::any::Any;
use std::fmt::Debug;
use std::sync::Arc;

/// A kind of device, whether it can be built here or only read in streams.
pub(crate) struct Kind {
    /// QEMU's name of the type, for one that is no device of `-device`; empty where it has none.
    pub type_name: &'static str,
    /// Every section that it can have in a stream.
    pub sections: &'static [SectionKind],
    /// Looks at all sections of a stream together for what must, or must not, be there.
    pub missing: fn(&Config, &Sections) -> Option<Missing>,
    /// What `-M` takes for it.
    pub machine: &'static [Key<Switches>],
    /// What `-global` takes for it, as `DRIVER.PROPERTY`.
    pub globals: &'static [Key<Switches>],
    /// What `-device` takes for it.
    pub device: Option<Pluggable>,
    /// Looks at the whole command line once it is read: refuses what does not go together, and adds
    /// what only the whole tells.
    pub complete: fn(&mut Config) -> Result<(), OptionError>,
    /// Puts what the configuration asks for on the board: none, one or several.
    pub build: fn(&mut Slots<'_>) -> Result<Built, Error>,
}

impl Kind {
    /// Has nothing and builds nothing.
    pub(crate) const NONE: Kind = Kind {
        type_name: "",
        sections: &[],
        missing: |_, _| None,
        machine: &[],
        globals: &[],
        device: None,
        complete: |_| Ok(()),
        build: |_| Ok(Vec::new()),
    };
}

impl Kind {
    /// QEMU's name of the type.
    pub(crate) fn type_name(&self) -> &'static str {
        self.device.as_ref().map_or(self.type_name, |device| device.driver)
    }
}

/// A section that a stream lacks, or that has no place beside the others.
pub(crate) struct Missing {
    pub name: String,
    pub instance: u32,
    pub why: String,
}

/// A field of a section and why its value has no place here.
pub(crate) type Misfit = (&'static str, String);

/// A section as streams bring it.
pub struct SectionKind {
    /// What it is, in a few words.
    pub what: &'static str,
    /// An empty one, if it has this name.
    pub named: fn(&str) -> Option<Box<dyn Section>>,
    /// Why a machine of this configuration has no section of this instance.
    pub lacks: fn(&Config, u32) -> Option<Misfit>,
    /// Refuses what this host or this program cannot give. Nothing is changed before all of a
    /// stream has been looked at.
    pub check: fn(&dyn Section, &HostCpu) -> Result<(), Misfit>,
}

impl SectionKind {
    /// The section of the struct `T`, named as its layout is.
    pub(crate) const fn of<T: Layout + Any + Debug + PartialEq + Send + Sync>(
        what: &'static str,
        lacks: fn(&Config, u32) -> Option<Misfit>,
    ) -> SectionKind {
        let named = |name: &str| -> Option<Box<dyn Section>> {
            (name == T::NAME).then(|| Box::new(T::default()) as Box<dyn Section>)
        };
        SectionKind { what, named, lacks, check: |_, _| Ok(()) }
    }

    pub(crate) const fn checked(
        mut self,
        check: fn(&dyn Section, &HostCpu) -> Result<(), Misfit>,
    ) -> SectionKind {
        self.check = check;
        self
    }
}

/// For [`SectionKind::lacks`]: the machine has one device of the kind.
pub(crate) fn only_one(_: &Config, instance: u32) -> Option<Misfit> {
    (instance != 0).then(|| lacks("there is one of its kind only"))
}

/// For [`SectionKind::lacks`]: the machine has no such device, for this reason.
pub(crate) fn lacks(why: &str) -> Misfit {
    ("name", format!("this machine has no such device: {why}"))
}

/// Properties as a driver's own table reads them.
pub(crate) type Filled = Result<Arc<dyn Properties>, OptionError>;

/// A device that `-device` adds.
pub(crate) struct Pluggable {
    /// QEMU's name of the driver.
    pub driver: &'static str,
    /// For `-device help`.
    pub help: &'static str,
    /// Reads the properties given behind the driver's name, all but `id`.
    pub read: fn(&str, &[Pair]) -> Filled,
    /// What it is plugged into, as QEMU calls it; empty for nothing.
    pub bus: &'static str,
    /// The properties that can be given.
    pub properties: fn() -> Vec<Parameter>,
    /// Why there can be no further one beside these, or none at all.
    pub refuses: fn(&[config::Device]) -> Option<&'static str>,
}
