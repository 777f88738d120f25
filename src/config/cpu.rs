//! The processors.

use std::collections::BTreeMap;

/// The processors. The model is always the host's, as KVM can offer it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cpu {
    /// 1 to [`Cpu::COUNT_MAX`].
    pub count: u8,
    /// What the guest is told, of which the first `count` are there.
    pub topology: Topology,
    /// What was chosen otherwise than the host's processor and KVM have it, by QEMU's names.
    pub features: BTreeMap<&'static str, bool>,
    /// Hide the invariant TSC, unless it was chosen: on a host with another frequency it would be
    /// wrong. A guest that sees it does not migrate.
    pub migratable: bool,
}

/// How processors stand together. No number is zero, and APIC ids stay below [`Cpu::COUNT_MAX`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Topology {
    pub sockets: u8,
    /// In a socket.
    pub cores: u8,
    /// In a core.
    pub threads: u8,
}

impl Cpu {
    /// APIC ids 0 to 253: an MP table has eight bits for one, 255 is the broadcast, 254 goes to the
    /// IOAPIC.
    pub(crate) const COUNT_MAX: u8 = 254;

    /// `count` cores of one socket.
    pub fn cores(count: u8) -> Cpu {
        let topology = Topology { sockets: 1, cores: count, threads: 1 };
        Cpu::of(count, topology)
    }

    /// The host's processor as it is.
    pub(crate) fn of(count: u8, topology: Topology) -> Cpu {
        Cpu { count, topology, features: BTreeMap::new(), migratable: true }
    }
}
