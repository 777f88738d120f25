//! `-device isa-debug-exit`: a guest ends the process by writing to a port. Kernels' own tests use
//! it to say how they went.
//!
//! Byte `b` ends the process with status `2b + 1`, of which the system keeps eight bits: never 0,
//! so that no guest looks like a machine that was shut down. Reads bring zeros. It has no state, and
//! none in QEMU's streams.

use super::bus::Window;
use super::device::{Device, DeviceRequest};
use super::error::Error;
use super::kind::{Kind, Pluggable};
use super::sections::{Loading, Sections};
use super::slots::{Built, Slots};
use crate::args::{Key, Keys, value};
use serde_json::Value as Json;
use std::sync::Arc;

pub(crate) const KIND: Kind = Kind {
    device: Some(Pluggable {
        driver: DRIVER,
        help: "lets the guest end the process, with a status of its choice",
        bus: "isa.0",
        read: |option, pairs| Ok(Arc::new(KEYS.fill(option, pairs)?)),
        properties: || KEYS.parameters(),
        refuses: |_| None,
    }),
    build,
    ..Kind::NONE
};

const DRIVER: &str = "isa-debug-exit";

const KEYS: Keys<Ports> = Keys {
    owner: DRIVER,
    implied: None,
    table: &[
        Key::shown(
            "iobase",
            "0x501",
            |ports, text| {
                ports.first = value::number(text, 0, 0xffff)?;
                Ok(())
            },
            |ports| ports.first.into(),
        ),
        Key::shown(
            "iosize",
            "2",
            |ports, text| {
                ports.count = value::number(text, 1, 0x1_0000)?;
                Ok(())
            },
            |ports| ports.count.into(),
        ),
    ],
};

/// Where it answers.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Ports {
    first: u64,
    count: u64,
}

impl Default for Ports {
    /// As in QEMU.
    fn default() -> Ports {
        Ports { first: 0x501, count: 2 }
    }
}

fn build(slots: &mut Slots<'_>) -> Result<Built, Error> {
    let mut built: Built = Vec::new();
    for ports in slots.wanted::<Ports>(DRIVER) {
        let device = Arc::new(DebugExit(*ports));
        slots.port_window(ports.first, ports.count, device.clone())?;
        built.push(device);
    }
    Ok(built)
}

/// The device.
pub(crate) struct DebugExit(Ports);

impl Device for DebugExit {
    fn reset(&self) -> Result<(), Error> {
        Ok(())
    }

    fn properties(&self) -> Vec<(&'static str, Json)> {
        KEYS.values(&self.0)
    }

    fn save(&self, _sections: &mut Sections) -> Result<(), Error> {
        Ok(())
    }

    fn load(&self, _from: &mut Loading<'_>) -> Result<(), Error> {
        Ok(())
    }
}

impl Window for DebugExit {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&self, _offset: u64, data: &[u8]) -> Option<DeviceRequest> {
        let byte = *data.first()?;
        Some(DeviceRequest::Exit(i32::from(byte << 1 | 1)))
    }
}
