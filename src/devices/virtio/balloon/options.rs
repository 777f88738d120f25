//! `-device virtio-balloon-device`: what the command line says of it, and what it offers.

use super::super::{NO_IOMMU, NO_PACKED, RingFeatures};
use crate::args::{Key, Keys, OptionError, Problem, value};
use crate::config::Config;
use crate::suggest::nearest;

pub(crate) const DRIVER: &str = "virtio-balloon-device";

/// Features of the device's own, by their bits (virtio 1.2, 5.5.3).
pub(super) mod feature {
    pub(in super::super) const STATS: u64 = 1 << 1;
    pub(in super::super) const DEFLATE_ON_OOM: u64 = 1 << 2;
    pub(in super::super) const HINTS: u64 = 1 << 3;
    pub(in super::super) const PAGE_POISON: u64 = 1 << 4;
    pub(in super::super) const REPORTING: u64 = 1 << 5;
}
use feature::*;

/// A balloon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Wanted {
    features: u64,
    pub(crate) ring: RingFeatures,
    /// The thread that it names; hints are heard by its own.
    io_thread: Option<String>,
}

impl Default for Wanted {
    fn default() -> Wanted {
        Wanted { features: STATS | PAGE_POISON, ring: RingFeatures::default(), io_thread: None }
    }
}

impl Wanted {
    pub(crate) fn features(&self) -> u64 {
        self.features
    }

    pub(super) fn has(&self, feature: u64) -> bool {
        self.features & feature != 0
    }
}

macro_rules! switch {
    ($name:literal, $feature:expr) => {
        Key::shown(
            $name,
            "on|off",
            |wanted: &mut Wanted, text: &str| {
                match value::switch(text)? {
                    true => wanted.features |= $feature,
                    false => wanted.features &= !$feature,
                }
                Ok(())
            },
            |wanted| wanted.has($feature).into(),
        )
    };
}

pub(crate) const KEYS: Keys<Wanted> = Keys {
    owner: DRIVER,
    implied: None,
    table: &[
        switch!("deflate-on-oom", DEFLATE_ON_OOM),
        switch!("free-page-reporting", REPORTING),
        switch!("page-poison", PAGE_POISON),
        switch!("free-page-hint", HINTS),
        Key::only("x-qemu-4-0-config-size", &["off"], "machines as old as that are not built"),
        Key::set("iothread", "ID", |wanted, text| {
            wanted.io_thread = Some(text.into());
            Ok(())
        }),
        Key::set("indirect_desc", "on|off", |w, text| w.ring.indirect_desc(text)),
        Key::set("event_idx", "on|off", |w, text| w.ring.event_idx(text)),
        Key::only("packed", &["off"], NO_PACKED),
        Key::only("iommu_platform", &["off"], NO_IOMMU),
    ],
};

/// Finds the thread that it names, which hints need, as in QEMU.
pub(crate) fn complete(config: &mut Config) -> Result<(), OptionError> {
    for device in &config.devices {
        let Some(wanted) = device.properties.downcast_ref::<Wanted>() else { continue };
        let Some(id) = &wanted.io_thread else {
            if wanted.has(HINTS) {
                let why = "'free-page-hint' requires 'iothread' to be set (-object iothread,id=ID)";
                return Err(Problem::Refused(why).at(format!("-device {DRIVER}")));
            }
            continue;
        };
        let Some(thread) = config.io_threads.iter_mut().find(|thread| thread.id == *id) else {
            let nearest = nearest(id, config.io_threads.iter().map(|thread| thread.id.as_str()));
            let (kind, nearest) = ("I/O thread (-object iothread)", nearest.map(String::from));
            let place = format!("-device {DRIVER},iothread={id}");
            return Err(Problem::UnknownId { kind, nearest }.at(place));
        };
        thread.in_use = true;
    }
    Ok(())
}
