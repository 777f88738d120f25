//! `-device virtio-blk-device`: what the command line says.

use super::super::{NO_IOMMU, NO_PACKED, RingFeatures};
use super::features;
use crate::args::{Key, Keys, OptionError, Problem, block::on_error, value};
use crate::config::{Config, Image, OnError};
use crate::suggest::nearest;

pub(crate) const DRIVER: &str = "virtio-blk-device";

/// Of a block, as the guest sees it.
const BLOCK_BYTES_MAX: u64 = 2 << 20;
/// The most sectors that 32 bits count in bytes, whole pages.
const SECTORS_MAX: u64 = 4_194_303;

/// What `-device` asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub drive: Option<String>,
    pub serial: String,
    pub queues: u16,
    pub queue_size: u16,
    pub logical_block: u32,
    pub physical_block: u32,
    pub min_io: u32,
    pub opt_io: u32,
    pub discard_granularity: Option<u32>,
    pub report_granularity: bool,
    /// `None`: as the image's `cache=` says.
    pub write_cache: Option<bool>,
    pub config_wce: bool,
    pub discard: bool,
    pub write_zeroes: bool,
    pub max_discard: u32,
    pub max_zeroes: u32,
    pub seg_max_adjust: bool,
    /// Cylinders, heads, sectors; zeros are guessed from the size.
    pub geometry: (u32, u32, u32),
    pub on_write_error: Option<OnError>,
    pub on_read_error: Option<OnError>,
    pub share: bool,
    /// The thread that it names; its requests are done on its own.
    pub io_thread: Option<String>,
    pub ring: RingFeatures,
}

impl Default for Wanted {
    fn default() -> Wanted {
        Wanted {
            drive: None,
            serial: String::new(),
            queues: 1,
            queue_size: 256,
            logical_block: 0,
            physical_block: 0,
            min_io: 0,
            opt_io: 0,
            discard_granularity: None,
            report_granularity: true,
            write_cache: None,
            config_wce: true,
            discard: true,
            write_zeroes: true,
            max_discard: SECTORS_MAX as u32,
            max_zeroes: SECTORS_MAX as u32,
            seg_max_adjust: true,
            geometry: (0, 0, 0),
            on_write_error: None,
            on_read_error: None,
            share: false,
            io_thread: None,
            ring: RingFeatures::default(),
        }
    }
}

fn into(text: &str, place: &mut bool) -> Result<(), Problem> {
    *place = value::switch(text)?;
    Ok(())
}

fn block_size(text: &str, place: &mut u32) -> Result<(), Problem> {
    let bytes = value::size(text, 1)?;
    if !bytes.is_power_of_two() || !(512..=BLOCK_BYTES_MAX).contains(&bytes) {
        return Err(Problem::NotAPowerOfTwo { min: 512, max: BLOCK_BYTES_MAX });
    }
    *place = bytes as u32;
    Ok(())
}

fn size(text: &str, place: &mut u32) -> Result<(), Problem> {
    let bytes = value::size(text, 1)?;
    let max = u64::from(u32::MAX);
    *place = u32::try_from(bytes).map_err(|_| Problem::OutOfRange { min: 0, max })?;
    Ok(())
}

fn number(text: &str, max: u64, place: &mut u32) -> Result<(), Problem> {
    *place = value::number(text, 0, max)? as u32;
    Ok(())
}

pub(crate) const KEYS: Keys<Wanted> = Keys {
    owner: DRIVER,
    implied: None,
    table: &[
        Key::set("drive", "ID", |w, v| {
            w.drive = Some(v.into());
            Ok(())
        }),
        Key::set("serial", "TEXT", |w, v| {
            w.serial = v.into();
            Ok(())
        }),
        Key::set("num-queues", "1", |w, v| {
            w.queues = value::number(v, 1, 1024)? as u16;
            Ok(())
        }),
        Key::set("queue-size", "256", |w, v| {
            w.queue_size = value::power_of_two(v, 4, 1024)? as u16;
            Ok(())
        }),
        Key::set("logical_block_size", "SIZE", |w, v| block_size(v, &mut w.logical_block)),
        Key::set("physical_block_size", "SIZE", |w, v| block_size(v, &mut w.physical_block)),
        Key::set("min_io_size", "SIZE", |w, v| size(v, &mut w.min_io)),
        Key::set("opt_io_size", "SIZE", |w, v| size(v, &mut w.opt_io)),
        Key::set("discard_granularity", "SIZE", |w, v| {
            size(v, w.discard_granularity.get_or_insert_default())
        }),
        Key::set("report-discard-granularity", "on|off", |w, v| into(v, &mut w.report_granularity)),
        Key::set("write-cache", "on|off|auto", |w, v| {
            w.write_cache = value::switch_or_auto(v)?;
            Ok(())
        }),
        Key::set("config-wce", "on|off", |w, v| into(v, &mut w.config_wce)),
        Key::set("discard", "on|off", |w, v| into(v, &mut w.discard)),
        Key::set("write-zeroes", "on|off", |w, v| into(v, &mut w.write_zeroes)),
        Key::set("max-discard-sectors", "4194303", |w, v| {
            number(v, SECTORS_MAX, &mut w.max_discard)
        }),
        Key::set("max-write-zeroes-sectors", "4194303", |w, v| {
            number(v, SECTORS_MAX, &mut w.max_zeroes)
        }),
        Key::set("seg-max-adjust", "on|off", |w, v| into(v, &mut w.seg_max_adjust)),
        Key::set("cyls", "N", |w, v| number(v, 65535, &mut w.geometry.0)),
        Key::set("heads", "N", |w, v| number(v, 255, &mut w.geometry.1)),
        Key::set("secs", "N", |w, v| number(v, 255, &mut w.geometry.2)),
        Key::set("werror", "report|ignore|stop|enospc|auto", |w, v| {
            w.on_write_error = on_error(v, false)?;
            Ok(())
        }),
        Key::set("rerror", "report|ignore|stop|auto", |w, v| {
            w.on_read_error = on_error(v, true)?;
            Ok(())
        }),
        Key::set("share-rw", "on|off", |w, v| into(v, &mut w.share)),
        Key::set("indirect_desc", "on|off", |w, v| w.ring.indirect_desc(v)),
        Key::set("event_idx", "on|off", |w, v| w.ring.event_idx(v)),
        Key::only("packed", &["off"], NO_PACKED),
        Key::only("iommu_platform", &["off"], NO_IOMMU),
        Key::only(
            "account-invalid",
            &["on", "auto"],
            "invalid requests are always counted; write on",
        ),
        Key::only(
            "account-failed",
            &["on", "auto"],
            "failed requests are always counted; write on",
        ),
        Key::ignore("bootindex"),
        Key::ignore("request-merging"),
        Key::set("iothread", "ID", |w, v| {
            w.io_thread = Some(v.into());
            Ok(())
        }),
        Key::refuse(
            "iothread-vq-mapping",
            "queues of one disk are not spread over threads; leave it out, or write iothread=",
        ),
    ],
};

impl Wanted {
    /// The image that it names.
    fn image<'a>(&self, config: &'a Config) -> Option<&'a Image> {
        let name = self.drive.as_deref()?;
        config.images.iter().find(|image| image.name == name || image.node.as_deref() == Some(name))
    }

    pub(crate) fn features(&self, config: &Config) -> u64 {
        let mut all = features::SEG_MAX
            | features::GEOMETRY
            | features::BLOCK_SIZE
            | features::FLUSH
            | features::TOPOLOGY;
        let writeback = self.image(config).is_none_or(|image| image.cache.writeback);
        if !self.config_wce && !self.write_cache.unwrap_or(writeback) {
            all &= !features::FLUSH;
        }
        let optional = [
            (self.config_wce, features::CONFIG_WCE),
            (self.discard, features::DISCARD),
            (self.write_zeroes, features::WRITE_ZEROES),
            (self.queues > 1, features::QUEUES),
            (self.image(config).is_some_and(|image| image.read_only), features::READ_ONLY),
        ];
        optional.iter().filter(|(has, _)| *has).fold(all, |all, (_, feature)| all | feature)
    }
}

/// Finds the image that each disk names.
pub(crate) fn complete(config: &mut Config) -> Result<(), OptionError> {
    let (mut used, mut threads) = (Vec::<&str>::new(), Vec::new());
    for device in &config.devices {
        let Some(wanted) = device.properties.downcast_ref::<Wanted>() else { continue };
        let place = |key: &str| format!("-device {DRIVER}{key}");
        let Some(name) = &wanted.drive else {
            return Err(Problem::Refused("drive property not set").at(place("")));
        };
        let place = place(&format!(",drive={name}"));
        let Some(image) = wanted.image(config) else {
            let names = config.images.iter().map(|image| image.name.as_str());
            let nearest = nearest(name, names).map(String::from);
            let kind = "image (-drive if=none, -blockdev)";
            return Err(Problem::UnknownId { kind, nearest }.at(place));
        };
        if used.contains(&image.name.as_str()) {
            return Err(Problem::InUse { by: "another device".into() }.at(place));
        }
        used.push(&image.name);
        let named = |id: &String| config.io_threads.iter().any(|thread| thread.id == *id);
        if let Some(id) = wanted.io_thread.as_ref().filter(|id| !named(id)) {
            let nearest = nearest(id, config.io_threads.iter().map(|thread| thread.id.as_str()));
            let (kind, nearest) = ("I/O thread (-object iothread)", nearest.map(String::from));
            let place = format!("-device {DRIVER},iothread={id}");
            return Err(Problem::UnknownId { kind, nearest }.at(place));
        }
        threads.extend(wanted.io_thread.clone());
        if wanted.logical_block() > wanted.physical_block() {
            let why = "logical_block_size > physical_block_size not supported";
            return Err(Problem::Refused(why).at(place));
        }
    }
    for thread in &mut config.io_threads {
        thread.in_use |= threads.contains(&thread.id);
    }
    Ok(())
}

impl Wanted {
    pub(crate) fn logical_block(&self) -> u32 {
        self.logical_block.max(512)
    }

    pub(crate) fn physical_block(&self) -> u32 {
        self.physical_block.max(512)
    }
}
