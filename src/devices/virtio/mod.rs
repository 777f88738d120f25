//! virtio over virtio-mmio. The devices are not built yet: here is what streams have of them, and
//! the transports without a device that a guest finds.

mod mmio;
mod parts;
mod section;

pub use parts::*;
pub use section::*;

use super::{Built, Error, Kind, Pluggable, SectionKind, Slots, lacks};
use mmio::{EmptyTransports, WINDOW_BYTES};
use std::sync::Arc;

/// The first transport of the variant without ACPI; transport i interrupts at GSI 5 + i.
const TRANSPORTS: u64 = 0xfeb0_0000;
const TRANSPORT_COUNT: u64 = 8;

const NOT_BUILT: &str = "virtio devices are not built yet";

pub const TRANSPORT: Kind = Kind { build, ..Kind::NONE };
pub const BLOCK: Kind = kind!(VirtioKind::Block, "virtio-blk-device");
pub const NET: Kind = kind!(VirtioKind::Net, "virtio-net-device");
pub const CONSOLE: Kind = kind!(VirtioKind::Console, "virtio-serial-device");
pub const RNG: Kind = kind!(VirtioKind::Rng, "virtio-rng-device");
pub const BALLOON: Kind = kind!(VirtioKind::Balloon, "virtio-balloon-device");

macro_rules! kind {
    ($kind:expr, $driver:literal) => {
        Kind {
            sections: &[SectionKind {
                what: $kind.what(),
                named: |name| match VirtioState::named(name) {
                    Some(state) if state.kind == $kind => Some(Box::new(state)),
                    _ => None,
                },
                lacks: |_, _| Some(lacks($kind.what())),
                check: |_, _| Ok(()),
            }],
            device: Some(Pluggable::not_built($driver, |_| Some(NOT_BUILT))),
            ..Kind::NONE
        }
    };
}
use kind;

fn build(slots: &mut Slots<'_>) -> Result<Built, Error> {
    slots.memory_window(TRANSPORTS, TRANSPORT_COUNT * WINDOW_BYTES, Arc::new(EmptyTransports))?;
    Ok(Vec::new())
}
