//! Block nodes, as `-blockdev` names them: their keys, and the image that one is.

use std::path::{Path, PathBuf};

use crate::args::error::{Error, Problem};
use crate::args::keys::{Key, Keys, Parameter};
use crate::args::value;
use crate::config::{Backing, Cache, DetectZeroes, FileKind, Image, ImageFormat, Throttle};

const OTHER_FORMATS: &str =
    "only raw and qcow2 images are built yet; convert it: qemu-img convert -O qcow2";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Driver {
    Raw,
    Qcow2,
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
    pub backing: Option<BackingKey>,
    /// Whether `aio=native` was asked for, where it was given.
    pub native: Option<bool>,
}

/// What `backing=` says.
pub(super) enum BackingKey {
    Nothing,
    Name(String),
    Node(Box<Node>),
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
        "qcow2" => Ok(Driver::Qcow2),
        "file" => Ok(Driver::File(FileKind::Regular)),
        "host_device" => Ok(Driver::File(FileKind::HostDevice)),
        _ if is_known_format(text) => Err(Problem::Refused(OTHER_FORMATS)),
        _ if NOT_BUILT.contains(&text) => {
            Err(Problem::Refused("not built; write raw or qcow2 over file or host_device"))
        }
        _ => Err(value::unknown(text, &["raw", "qcow2", "file", "host_device"])),
    }
}

fn is_known_format(text: &str) -> bool {
    const FORMATS: [&str; 13] = [
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
        Key::set("driver", "raw|qcow2|file|host_device", |n, v| {
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
        Key::set("backing", "NAME", |n, v| {
            n.backing = Some(match v {
                "" => BackingKey::Nothing,
                name => BackingKey::Name(name.into()),
            });
            Ok(())
        }),
        Key::only("lazy-refcounts", &["off"], "refcounts are always kept; write off"),
        Key::only(
            "pass-discard-request",
            &["on"],
            "what is discarded is given back; write on, or discard=ignore",
        ),
        Key::only("pass-discard-snapshot", &["on"], "not built otherwise; write on"),
        Key::only("pass-discard-other", &["off"], "not built; write off"),
        Key::only("discard-no-unref", &["off"], "not built; write off"),
        Key::refuse("data-file", "external data files are not built"),
        Key::refuse("encrypt", "encrypted images are not built"),
        Key::ignore("l2-cache-size"),
        Key::ignore("l2-cache-entry-size"),
        Key::ignore("refcount-cache-size"),
        Key::ignore("cache-size"),
        Key::ignore("cache-clean-interval"),
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

/// Sets a key of `node`, or of one that it stands on, which has `file.` or `backing.` in front.
pub(super) fn set(
    option: &str,
    key: &str,
    value: Option<&str>,
    node: &mut Node,
) -> Result<(), Error> {
    if key.matches('.').count() > DEEP {
        return Err(Problem::Refused("too many nodes stand on one another").at(option));
    }
    if let Some(key) = key.strip_prefix("file.") {
        return set(option, key, value, node.file.get_or_insert_default());
    }
    let Some(rest) = key.strip_prefix("backing.") else {
        return NODE.set(option, key, value, node);
    };
    let place = node.backing.get_or_insert_with(|| BackingKey::Node(Box::default()));
    match place {
        BackingKey::Node(backing) => set(option, rest, value, backing),
        _ => {
            let place = format!("{option} {key}={}", value.unwrap_or("on"));
            Err(Problem::Conflict("backing=", "backing.…=").at(place))
        }
    }
}

/// Refuses what only looks like a file's name.
pub(super) fn check_path(path: &Path) -> Result<(), Problem> {
    match path.starts_with("/dev/fdset") {
        true => Err(Problem::Refused("images are not opened from descriptor sets; name the file")),
        false => Ok(()),
    }
}

/// Finds nodes by their names.
pub(super) type ByName<'a> = dyn Fn(&str) -> Option<&'a Node> + 'a;

/// Nodes that name one another are followed so far.
pub(super) const DEEP: usize = 200;

impl Node {
    /// It, or one that is written out in it, stands on the node `name`.
    pub(super) fn names(&self, name: &str) -> bool {
        self.below.as_deref() == Some(name)
            || match &self.backing {
                Some(BackingKey::Name(backing)) => backing == name,
                Some(BackingKey::Node(backing)) => backing.names(name),
                Some(BackingKey::Nothing) | None => false,
            }
    }

    /// Its name, and those of all that is written out in it.
    pub(super) fn written_names<'a>(&'a self, names: &mut Vec<&'a str>) {
        names.extend(self.name.as_deref());
        let backing = match &self.backing {
            Some(BackingKey::Node(node)) => Some(node),
            Some(BackingKey::Name(_) | BackingKey::Nothing) | None => None,
        };
        for node in self.file.iter().chain(backing) {
            node.written_names(names);
        }
    }

    pub(super) fn image<'a>(&'a self, of_name: &ByName<'a>) -> Result<Image, Problem> {
        if self.name.is_none() {
            return Err(Problem::Refused("'node-name' must be specified for the root node"));
        }
        self.image_at(of_name, DEEP)
    }

    /// What `backing=` says; an image below inherits what is said of the one above.
    pub(super) fn backing<'a>(
        &'a self,
        of_name: &ByName<'a>,
        left: usize,
        above: Cache,
    ) -> Result<Backing, Problem> {
        let node = match &self.backing {
            None => return Ok(Backing::Header),
            Some(BackingKey::Nothing) => return Ok(Backing::Nothing),
            Some(BackingKey::Name(name)) => {
                of_name(name).ok_or(Problem::UnknownId { kind: "block node", nearest: None })?
            }
            Some(BackingKey::Node(node)) => node,
        };
        let left = left.checked_sub(1).ok_or(Problem::Refused("it stands on itself"))?;
        let mut image = node.image_at(of_name, left)?;
        let written_out = matches!(&self.backing, Some(BackingKey::Node(_)));
        if written_out && node.cache.direct.is_none() {
            image.cache.direct = above.direct;
        }
        image.cache.no_flush |= above.no_flush;
        // Nobody writes what another stands on.
        (image.read_only, image.discard) = (true, false);
        Ok(Backing::Image(Box::new(image)))
    }

    fn image_at<'a>(&'a self, of_name: &ByName<'a>, left: usize) -> Result<Image, Problem> {
        let name = self.name.clone().unwrap_or_default();
        let driver = self.driver.ok_or(Problem::MissingKey("driver="))?;
        let (format, file) = match (driver, &self.below, &self.file) {
            (Driver::File(_), None, None) => (ImageFormat::Bare, self),
            (Driver::File(_), ..) => {
                return Err(STANDS_ON_NOTHING);
            }
            _ if self.filename.is_some() => {
                return Err(Problem::Refused("Parameter 'file' is missing"));
            }
            (_, Some(_), Some(_)) => return Err(Problem::Conflict("file=", "file.…=")),
            (_, Some(below), None) => {
                let file = of_name(below)
                    .ok_or(Problem::UnknownId { kind: "block node", nearest: None })?;
                (ImageFormat::Raw, file)
            }
            (_, None, Some(file)) => (ImageFormat::Raw, &**file),
            (_, None, None) => {
                return Err(Problem::Refused("Parameter 'file' is missing"));
            }
        };
        let format = if driver == Driver::Qcow2 { ImageFormat::Qcow2 } else { format };
        if self.backing.is_some() && format != ImageFormat::Qcow2 {
            return Err(Problem::Refused("backing= is of qcow2 nodes"));
        }
        let Some(Driver::File(kind)) = file.driver else {
            return Err(Problem::Refused("a format stands on file or host_device"));
        };
        if file.below.is_some() {
            return Err(STANDS_ON_NOTHING);
        }
        let path = file.filename.clone().ok_or(Problem::MissingKey("filename="))?;
        check_path(&path)?;
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
        let cache = Cache { writeback: true, direct: direct.unwrap_or(false), no_flush };
        Ok(Image {
            name,
            drive: None,
            format,
            node: self.name.clone(),
            file_node: file.name.clone().filter(|_| below),
            path,
            kind: Some(kind),
            read_only: self.read_only,
            auto_read_only: self.auto_read_only.unwrap_or(false),
            cache,
            locking: file.locking.unwrap_or(true),
            discard: self.discard == Some(true) && discard_below,
            detect_zeroes: self.detect_zeroes.unwrap_or_default(),
            throttle: Throttle::default(),
            backing: self.backing(of_name, left, cache)?,
        })
    }
}
