//! Block nodes, as `-blockdev` names them: their keys, and the image that one is.

use std::path::PathBuf;

use crate::args::error::Problem;
use crate::args::keys::{Key, Keys, Parameter};
use crate::args::value;
use crate::config::{Cache, DetectZeroes, FileKind, Image, ImageFormat, Throttle};

const OTHER_FORMATS: &str = "only raw images are built yet; convert it: qemu-img convert -O raw";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Driver {
    Raw,
    File(FileKind),
}

/// A node as it is read.
#[derive(Default)]
pub(super) struct Node {
    pub driver: Option<Driver>,
    pub name: Option<String>,
    pub filename: Option<PathBuf>,
    /// The node below, by its name.
    pub below: Option<String>,
    /// The node below, written out.
    pub file: Option<Box<Node>>,
    pub read_only: bool,
    pub auto_read_only: Option<bool>,
    pub cache: CacheKeys,
    pub locking: Option<bool>,
    pub discard: Option<bool>,
    pub detect_zeroes: Option<DetectZeroes>,
    /// Whether `aio=native` was asked for, where it was given.
    pub native: Option<bool>,
}

#[derive(Clone, Copy, Default)]
pub(super) struct CacheKeys {
    pub writeback: Option<bool>,
    pub direct: Option<bool>,
    pub no_flush: Option<bool>,
}

pub(super) fn driver(text: &str) -> Result<Driver, Problem> {
    match text {
        "raw" => Ok(Driver::Raw),
        "file" => Ok(Driver::File(FileKind::Regular)),
        "host_device" => Ok(Driver::File(FileKind::HostDevice)),
        _ if is_known_format(text) => Err(Problem::Refused(OTHER_FORMATS)),
        _ if NOT_BUILT.contains(&text) => {
            Err(Problem::Refused("not built; write raw over file or host_device"))
        }
        _ => Err(value::unknown(text, &["raw", "file", "host_device"])),
    }
}

fn is_known_format(text: &str) -> bool {
    const FORMATS: [&str; 14] = [
        "qcow2",
        "qcow",
        "qed",
        "vmdk",
        "vdi",
        "vhdx",
        "vpc",
        "luks",
        "parallels",
        "bochs",
        "cloop",
        "dmg",
        "vvfat",
        "replication",
    ];
    FORMATS.contains(&text)
}

/// Drivers that QEMU has besides.
const NOT_BUILT: [&str; 16] = [
    "nbd",
    "https",
    "http",
    "ftp",
    "ftps",
    "ssh",
    "nfs",
    "iscsi",
    "rbd",
    "gluster",
    "null-co",
    "null-aio",
    "throttle",
    "host_cdrom",
    "quorum",
    "blkdebug",
];

pub(super) fn switch_into(place: &mut Option<bool>, text: &str) -> Result<(), Problem> {
    *place = Some(value::switch(text)?);
    Ok(())
}

/// What is asked of the host in which way makes no difference here: the kernel's ring does it.
fn aio(text: &str) -> Result<bool, Problem> {
    match text {
        "threads" | "io_uring" => Ok(false),
        "native" => Ok(true),
        _ => Err(value::unknown(text, &["threads", "native", "io_uring"])),
    }
}

fn discard(text: &str) -> Result<bool, Problem> {
    match text {
        "ignore" | "off" => Ok(false),
        "unmap" | "on" => Ok(true),
        _ => Err(value::unknown(text, &["ignore", "unmap"])),
    }
}

fn detect_zeroes(text: &str) -> Result<DetectZeroes, Problem> {
    match text {
        "off" => Ok(DetectZeroes::Off),
        "on" => Ok(DetectZeroes::On),
        "unmap" => Ok(DetectZeroes::Unmap),
        _ => Err(value::unknown(text, &["off", "on", "unmap"])),
    }
}

pub(super) const NODE: Keys<Node> = Keys {
    owner: "a block node",
    implied: Some("driver"),
    table: &[
        Key::set("driver", "raw|file|host_device", |n, v| {
            n.driver = Some(driver(v)?);
            Ok(())
        }),
        Key::set("node-name", "NAME", |n, v| {
            n.name = Some(value::id(v)?);
            Ok(())
        }),
        Key::set("filename", "PATH", |n, v| {
            n.filename = Some(v.into());
            Ok(())
        }),
        Key::set("file", "NAME", |n, v| {
            n.below = Some(v.into());
            Ok(())
        }),
        Key::set("read-only", "on|off", |n, v| {
            n.read_only = value::switch(v)?;
            Ok(())
        }),
        Key::set("auto-read-only", "on|off", |n, v| switch_into(&mut n.auto_read_only, v)),
        Key::set("cache.direct", "on|off", |n, v| switch_into(&mut n.cache.direct, v)),
        Key::set("cache.no-flush", "on|off", |n, v| switch_into(&mut n.cache.no_flush, v)),
        Key::set("locking", "on|off|auto", |n, v| {
            n.locking = value::switch_or_auto(v)?;
            Ok(())
        }),
        Key::set("discard", "ignore|unmap", |n, v| {
            n.discard = Some(discard(v)?);
            Ok(())
        }),
        Key::set("detect-zeroes", "off|on|unmap", |n, v| {
            n.detect_zeroes = Some(detect_zeroes(v)?);
            Ok(())
        }),
        Key::set("aio", "threads|native|io_uring", |n, v| {
            n.native = Some(aio(v)?);
            Ok(())
        }),
        Key::only("force-share", &["off"], "an image that others write is not built; write off"),
        Key::only("x-check-cache-dropped", &["off"], "not built"),
        Key::refuse("offset", "a part of an image is not built"),
        Key::refuse("size", "a part of an image is not built"),
        Key::refuse("pr-manager", "persistent reservations are not built"),
        Key::refuse("backing", OTHER_FORMATS),
    ],
};

/// The keys of `-blockdev`.
pub(crate) fn node_parameters() -> Vec<Parameter> {
    NODE.parameters()
}

const STANDS_ON_NOTHING: Problem = Problem::Refused("a file stands on nothing; leave file= out");

pub(super) const NEEDS_DIRECT: Problem = Problem::Refused(
    "aio=native was specified, but it requires cache.direct=on, which was not specified.",
);

impl Node {
    pub(super) fn image<'a>(
        &'a self,
        of_name: &dyn Fn(&str) -> Option<&'a Node>,
    ) -> Result<Image, Problem> {
        let name = self
            .name
            .clone()
            .ok_or(Problem::Refused("'node-name' must be specified for the root node"))?;
        let driver = self.driver.ok_or(Problem::MissingKey("driver="))?;
        let (format, file) = match (driver, &self.below, &self.file) {
            (Driver::File(_), None, None) => (ImageFormat::Bare, self),
            (Driver::File(_), ..) => {
                return Err(STANDS_ON_NOTHING);
            }
            (Driver::Raw, ..) if self.filename.is_some() => {
                return Err(Problem::Refused("Parameter 'file' is missing"));
            }
            (Driver::Raw, Some(_), Some(_)) => return Err(Problem::Conflict("file=", "file.…=")),
            (Driver::Raw, Some(below), None) => {
                let file = of_name(below)
                    .ok_or(Problem::UnknownId { kind: "block node", nearest: None })?;
                (ImageFormat::Raw, file)
            }
            (Driver::Raw, None, Some(file)) => (ImageFormat::Raw, &**file),
            (Driver::Raw, None, None) => {
                return Err(Problem::Refused("Parameter 'file' is missing"));
            }
        };
        let Some(Driver::File(kind)) = file.driver else {
            return Err(Problem::Refused("raw stands on file or host_device"));
        };
        if file.below.is_some() {
            return Err(STANDS_ON_NOTHING);
        }
        let path = file.filename.clone().ok_or(Problem::MissingKey("filename="))?;
        let written_out = self.file.is_some();
        // A node that is written out inherits; one with a name has what was said of it.
        let direct = file.cache.direct.or(self.cache.direct.filter(|_| written_out));
        let no_flush = [self, file].iter().any(|node| node.cache.no_flush == Some(true));
        if file.native == Some(true) && direct != Some(true) {
            return Err(NEEDS_DIRECT);
        }
        // Not with auto-read-only=on either: that is for what nobody said is read-only.
        if file.read_only && !self.read_only {
            return Err(Problem::Refused("Block node is read-only"));
        }
        let below = format != ImageFormat::Bare;
        if below {
            if self.locking.is_some() {
                return Err(Problem::Refused("locking= is of the file below; write file.locking="));
            }
            if self.native.is_some() {
                return Err(Problem::Refused("aio= is of the file below; write file.aio="));
            }
            if file.detect_zeroes.is_some_and(|detect| detect != DetectZeroes::Off) {
                return Err(Problem::Refused(
                    "detect-zeroes= is built for the upper node; write it without file.",
                ));
            }
        }
        let discard_below = file.discard.unwrap_or(written_out);
        Ok(Image {
            name: name.clone(),
            drive: None,
            format,
            node: Some(name),
            file_node: file.name.clone().filter(|_| below),
            path,
            kind: Some(kind),
            read_only: self.read_only,
            auto_read_only: self.auto_read_only.unwrap_or(false),
            cache: Cache { writeback: true, direct: direct.unwrap_or(false), no_flush },
            locking: file.locking.unwrap_or(true),
            discard: self.discard == Some(true) && discard_below,
            detect_zeroes: self.detect_zeroes.unwrap_or_default(),
            throttle: Throttle::default(),
        })
    }
}
