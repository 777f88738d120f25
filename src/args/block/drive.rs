//! Drives, as `-drive` names them: the keys they have beside those of a node and of limits.

use std::path::PathBuf;

use super::limits::THROTTLING;
use super::node::{
    ByName, DEEP, Driver, NEEDS_DIRECT, NODE, Node, check_path, driver, switch_into,
};
use crate::args::error::Problem;
use crate::args::keys::{Key, Keys, Parameter};
use crate::args::value;
use crate::config::{Cache, DrivePolicies, Image, ImageFormat, OnError, Throttle};

const SHARED: &str = "limits of several disks together are not built yet";

/// `werror=` and, with `read`, `rerror=`; `auto` is `None`.
pub(crate) fn on_error(text: &str, read: bool) -> Result<Option<OnError>, Problem> {
    match text {
        "auto" => Ok(None),
        "report" => Ok(Some(OnError::Report)),
        "ignore" => Ok(Some(OnError::Ignore)),
        "stop" => Ok(Some(OnError::Stop)),
        "enospc" if read => Err(Problem::Refused("no read fails for want of space")),
        "enospc" => Ok(Some(OnError::NoSpace)),
        _ => Err(value::unknown(text, &["report", "ignore", "stop", "enospc", "auto"])),
    }
}

/// A drive as it is read.
#[derive(Default)]
pub(super) struct Drive {
    id: Option<String>,
    has_no_bus: bool,
    format: Option<Driver>,
    path: Option<PathBuf>,
    pub node: Node,
    policies: DrivePolicies,
    pub throttle: Throttle,
}

pub(super) const DRIVE: Keys<Drive> = Keys {
    owner: "a drive",
    implied: Some("file"),
    table: &[
        Key::set("file", "PATH", |d, v| {
            d.path = Some(v.into());
            Ok(())
        }),
        Key::set("format", "raw|qcow2", |d, v| match driver(v)? {
            Driver::File(_) => Err(Problem::Refused("that is no format; write raw or qcow2")),
            format => {
                d.format = Some(format);
                Ok(())
            }
        }),
        Key::set("if", "none", |d, v| match v {
            "none" => {
                d.has_no_bus = true;
                Ok(())
            }
            "virtio" | "ide" | "scsi" | "sd" | "mtd" | "floppy" | "pflash" | "xen" => {
                Err(Problem::Refused("write if=none, and -device virtio-blk-device,drive=ID"))
            }
            _ => Err(value::unknown(v, &["none"])),
        }),
        Key::set("id", "ID", |d, v| {
            d.id = Some(value::id(v)?);
            Ok(())
        }),
        Key::set("cache", "writeback|none|unsafe|directsync|writethrough", |d, v| {
            let (writeback, direct, no_flush) = match v {
                "writeback" => (true, false, false),
                "none" | "off" => (true, true, false),
                "unsafe" => (true, false, true),
                "directsync" => (false, true, false),
                "writethrough" => (false, false, false),
                _ => {
                    let known = ["writeback", "none", "unsafe", "directsync", "writethrough"];
                    return Err(value::unknown(v, &known));
                }
            };
            let cache = &mut d.node.cache;
            cache.writeback.get_or_insert(writeback);
            cache.direct.get_or_insert(direct);
            cache.no_flush.get_or_insert(no_flush);
            Ok(())
        }),
        Key::set("cache.writeback", "on|off", |d, v| switch_into(&mut d.node.cache.writeback, v)),
        Key::set("werror", "report|ignore|stop|enospc", |d, v| {
            d.policies.write = on_error(v, false)?;
            Ok(())
        }),
        Key::set("rerror", "report|ignore|stop", |d, v| {
            d.policies.read = on_error(v, true)?;
            Ok(())
        }),
        Key::only("media", &["disk"], "the machine has no drive for such media; write disk"),
        Key::only(
            "snapshot",
            &["off"],
            "throw-away overlays are not built yet; make one: qemu-img create -f qcow2 -b IMAGE -F FORMAT",
        ),
        Key::only("copy-on-read", &["off"], "reads that copy are not built; write off"),
        Key::refuse("index", "it belongs to a bus; write if=none"),
        Key::refuse("bus", "it belongs to a bus; write if=none"),
        Key::refuse("unit", "it belongs to a bus; write if=none"),
        Key::refuse("addr", "it belongs to a bus; write if=none"),
        Key::refuse("serial", "write it behind -device virtio-blk-device"),
        Key::refuse("throttling.group", SHARED),
        Key::refuse("group", SHARED),
    ],
};

/// Older spellings, and keys of the node that a drive has, too.
pub(super) fn of_drive(key: &str) -> Option<&'static str> {
    Some(match key {
        "readonly" | "read-only" => "read-only",
        "auto-read-only" => "auto-read-only",
        "cache.direct" => "cache.direct",
        "cache.no-flush" => "cache.no-flush",
        "discard" => "discard",
        "detect-zeroes" => "detect-zeroes",
        "aio" => "aio",
        "node-name" => "node-name",
        "backing" => "backing",
        _ => return None,
    })
}

/// Keys that a node has, too, which a drive takes only without `file.` in front.
pub(super) const NOT_BELOW: [&str; 7] = [
    "file",
    "read-only",
    "auto-read-only",
    "cache.direct",
    "cache.no-flush",
    "discard",
    "detect-zeroes",
];

/// The keys of `-drive`.
pub(crate) fn drive_parameters() -> Vec<Parameter> {
    let mut all = DRIVE.parameters();
    all.extend(NODE.parameters().into_iter().filter(|key| of_drive(key.name).is_some()));
    all.push(Parameter { name: "file.locking", value: "on|off|auto" });
    all.extend(THROTTLING.map(|name| Parameter { name, value: "N" }));
    all
}

impl Drive {
    pub(super) fn image<'a>(&'a self, of_name: &ByName<'a>) -> Result<Option<Image>, Problem> {
        if !self.has_no_bus {
            return Err(Problem::Refused(
                "write if=none, id=ID, and -device virtio-blk-device,drive=ID",
            ));
        }
        let name = self.id.clone().ok_or(Problem::MissingKey("id="))?;
        let file = self.node.file.as_deref();
        let path = match (&self.path, file.and_then(|file| file.filename.as_ref())) {
            (Some(path), None) | (None, Some(path)) => path,
            (Some(_), Some(_)) => return Err(Problem::Conflict("file=", "file.filename=")),
            (None, None) => return Err(Problem::MissingKey("file=")),
        };
        let path = path
            .to_str()
            .and_then(|path| path.strip_prefix("file:"))
            .map_or(path.clone(), PathBuf::from);
        check_path(&path)?;
        let kind = match file.and_then(|file| file.driver) {
            Some(Driver::File(kind)) => Some(kind),
            Some(_) => return Err(Problem::Refused("a format stands on file or host_device")),
            None => None,
        };
        self.throttle.check().map_err(Problem::Refused)?;
        let keys = self.node.cache;
        let cache = Cache {
            writeback: keys.writeback.unwrap_or(true),
            direct: keys.direct.unwrap_or(false),
            no_flush: keys.no_flush.unwrap_or(false),
        };
        let native = [Some(&self.node), file].into_iter().flatten().any(|n| n.native == Some(true));
        if native && !cache.direct {
            return Err(NEEDS_DIRECT);
        }
        let format = match self.format {
            Some(Driver::Qcow2) => ImageFormat::Qcow2,
            Some(_) => ImageFormat::Raw,
            None => ImageFormat::Probed,
        };
        if self.node.backing.is_some() && format == ImageFormat::Raw {
            return Err(Problem::Refused("backing= is of qcow2 images"));
        }
        Ok(Some(Image {
            name,
            drive: Some(self.policies),
            format,
            node: self.node.name.clone(),
            file_node: file.and_then(|file| file.name.clone()),
            path,
            kind,
            read_only: self.node.read_only,
            auto_read_only: self.node.auto_read_only.unwrap_or(true),
            cache,
            locking: file.and_then(|file| file.locking).unwrap_or(true),
            discard: self.node.discard.unwrap_or(false),
            detect_zeroes: self.node.detect_zeroes.unwrap_or_default(),
            throttle: self.throttle,
            backing: self.node.backing(of_name, DEEP, cache)?,
        }))
    }
}
