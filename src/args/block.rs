//! `-drive` and `-blockdev`: images, and how the two spell them.
//!
//! A `-blockdev` names one node. A node of format `raw` stands on one of `file` or `host_device`,
//! written out (`file.driver=…`) or named (`file=NAME`); a `-drive` makes both.

use super::error::{Error, Problem};
use super::keys::{Key, Keys, Pair, Parameter, split};
use super::value;
use crate::config::{
    Cache, DetectZeroes, DrivePolicies, FileKind, Image, ImageFormat, OnError, Throttle,
};
use serde_json::Value as Json;
use std::path::PathBuf;

const OTHER_FORMATS: &str = "only raw images are built yet; convert it: qemu-img convert -O raw";
const SHARED: &str = "limits of several disks together are not built yet";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Driver {
    Raw,
    File(FileKind),
}

/// A node as it is read.
#[derive(Default)]
pub(crate) struct Node {
    driver: Option<Driver>,
    name: Option<String>,
    filename: Option<PathBuf>,
    /// The node below, by its name.
    below: Option<String>,
    /// The node below, written out.
    file: Option<Box<Node>>,
    read_only: bool,
    auto_read_only: Option<bool>,
    cache: CacheKeys,
    locking: Option<bool>,
    discard: Option<bool>,
    detect_zeroes: Option<DetectZeroes>,
    native: bool,
}

#[derive(Clone, Copy, Default)]
struct CacheKeys {
    writeback: Option<bool>,
    direct: Option<bool>,
    no_flush: Option<bool>,
}

fn driver(text: &str) -> Result<Driver, Problem> {
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

fn switch_into(place: &mut Option<bool>, text: &str) -> Result<(), Problem> {
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

/// `werror=` and, with `read`, `rerror=`; `auto` is `None`.
pub fn on_error(text: &str, read: bool) -> Result<Option<OnError>, Problem> {
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

const NODE: Keys<Node> = Keys {
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
            n.native = aio(v)?;
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

/// A drive as it is read.
#[derive(Default)]
pub(crate) struct Drive {
    id: Option<String>,
    has_no_bus: bool,
    format: Option<Driver>,
    path: Option<PathBuf>,
    node: Node,
    policies: DrivePolicies,
    throttle: Throttle,
}

/// Keys of limits, behind `throttling.`; each also with `-max` and `-max-length`.
const LIMITS: [&str; 6] =
    ["bps-total", "bps-read", "bps-write", "iops-total", "iops-read", "iops-write"];

/// Every key that is about limits.
#[rustfmt::skip]
pub(crate) const THROTTLING: [&str; 19] = [
    "throttling.bps-total", "throttling.bps-total-max", "throttling.bps-total-max-length",
    "throttling.bps-read", "throttling.bps-read-max", "throttling.bps-read-max-length",
    "throttling.bps-write", "throttling.bps-write-max", "throttling.bps-write-max-length",
    "throttling.iops-total", "throttling.iops-total-max", "throttling.iops-total-max-length",
    "throttling.iops-read", "throttling.iops-read-max", "throttling.iops-read-max-length",
    "throttling.iops-write", "throttling.iops-write-max", "throttling.iops-write-max-length",
    "throttling.iops-size",
];

/// Sets a limit, by its key or by the older name of it (`bps_rd_max`). `None`: it is none.
fn limit(throttle: &mut Throttle, key: &str, text: &str) -> Option<Result<(), Problem>> {
    let number = || value::number(text, 0, i64::MAX as u64);
    if matches!(key, "iops_size" | "throttling.iops-size") {
        return Some(number().map(|size| throttle.iops_size = size));
    }
    let (name, what) = match key.strip_prefix("throttling.") {
        Some(key) => match (key.strip_suffix("-max-length"), key.strip_suffix("-max")) {
            (Some(name), _) => (name, "length"),
            (None, Some(name)) => (name, "max"),
            (None, None) => (key, "rate"),
        },
        None => match (key.strip_suffix("_max_length"), key.strip_suffix("_max")) {
            (Some(name), _) => (name, "length"),
            (None, Some(name)) => (name, "max"),
            (None, None) => (key, "rate"),
        },
    };
    let names = if key.starts_with("throttling.") { LIMITS } else { Throttle::NAMES };
    let at = names.iter().position(|known| *known == name)?;
    let limit = &mut *throttle.all_mut()[at];
    Some(match what {
        "length" => value::number(text, 1, u32::MAX.into()).map(|s| limit.seconds = s as u32),
        "max" => number().map(|max| limit.max = max),
        _ => number().map(|rate| limit.rate = rate),
    })
}

const DRIVE: Keys<Drive> = Keys {
    owner: "a drive",
    implied: Some("file"),
    table: &[
        Key::set("file", "PATH", |d, v| {
            d.path = Some(v.into());
            Ok(())
        }),
        Key::set("format", "raw", |d, v| match driver(v)? {
            Driver::Raw => {
                d.format = Some(Driver::Raw);
                Ok(())
            }
            Driver::File(_) => Err(Problem::Refused("that is no format; write raw")),
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
        Key::only("snapshot", &["off"], "throw-away overlays are not built yet; copy the image"),
        Key::only("copy-on-read", &["off"], "there are no backing files yet; write off"),
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
fn of_drive(key: &str) -> Option<&'static str> {
    Some(match key {
        "readonly" | "read-only" => "read-only",
        "auto-read-only" => "auto-read-only",
        "cache.direct" => "cache.direct",
        "cache.no-flush" => "cache.no-flush",
        "discard" => "discard",
        "detect-zeroes" => "detect-zeroes",
        "aio" => "aio",
        "node-name" => "node-name",
        _ => return None,
    })
}

/// The node that a drive's and a node's `file.…` keys are about.
fn below(node: &mut Node) -> &mut Node {
    node.file.get_or_insert_default()
}

/// What was written behind all `-drive` and `-blockdev`.
#[derive(Default)]
pub(crate) struct Blocks {
    drives: Vec<(String, Drive)>,
    nodes: Vec<(String, Node)>,
}

/// The keys of `-drive`.
pub(crate) fn drive_parameters() -> Vec<Parameter> {
    let mut all = DRIVE.parameters();
    all.extend(NODE.parameters().into_iter().filter(|key| of_drive(key.name).is_some()));
    all.push(Parameter { name: "file.locking", value: "on|off|auto" });
    all.extend(THROTTLING.map(|name| Parameter { name, value: "N" }));
    all
}

/// The keys of `-blockdev`.
pub(crate) fn node_parameters() -> Vec<Parameter> {
    NODE.parameters()
}

impl Blocks {
    pub(crate) fn drive(&mut self, option: &str, text: &str) -> Result<(), Error> {
        let mut drive = Drive::default();
        for (key, value) in split(text, Some("file")) {
            let value = value.as_deref();
            if let Some(set) = limit(&mut drive.throttle, &key, value.unwrap_or_default()) {
                set.map_err(|problem| {
                    problem.at(format!("{option} {key}={}", value.unwrap_or_default()))
                })?;
                continue;
            }
            match (key.strip_prefix("file."), of_drive(&key)) {
                (Some(rest), _) => NODE.set(option, rest, value, below(&mut drive.node))?,
                (None, Some(key)) => NODE.set(option, key, value, &mut drive.node)?,
                (None, None) if key == "driver" => {
                    DRIVE.set(option, "format", value, &mut drive)?;
                }
                (None, None) => DRIVE.set(option, &key, value, &mut drive)?,
            }
        }
        self.drives.push((format!("{option} {text}"), drive));
        Ok(())
    }

    pub(crate) fn blockdev(&mut self, option: &str, text: &str) -> Result<(), Error> {
        let pairs = match text.trim_start().starts_with('{') {
            true => json_pairs(text).map_err(|problem| problem.at(option))?,
            false => split(text, NODE.implied),
        };
        let mut node = Node::default();
        for (key, value) in &pairs {
            let value = value.as_deref();
            match key.strip_prefix("file.") {
                Some(rest) => NODE.set(option, rest, value, below(&mut node))?,
                None => NODE.set(option, key, value, &mut node)?,
            }
        }
        self.nodes.push((format!("{option} {text}"), node));
        Ok(())
    }

    /// The images that all of it describes.
    pub(crate) fn images(&self) -> Result<Vec<Image>, Error> {
        let mut images: Vec<Image> = Vec::new();
        for (place, drive) in &self.drives {
            images.extend(drive.image().map_err(|problem| problem.at(place.clone()))?);
        }
        let of_name = |name: &str| {
            let named = |(_, node): &&(String, Node)| node.name.as_deref() == Some(name);
            self.nodes.iter().find(named).map(|(_, node)| node)
        };
        for (place, node) in &self.nodes {
            let is_below =
                |(_, other): &(String, Node)| other.below.is_some() && other.below == node.name;
            let at = |problem: Problem| problem.at(place.clone());
            let image = node.image(&of_name).map_err(at)?;
            // What another stands on is that one's.
            if !self.nodes.iter().any(is_below) {
                images.push(image);
            }
        }
        let mut names: Vec<&str> = Vec::new();
        for image in &images {
            let own = [image.drive.is_some().then_some(&image.name), image.node.as_ref()];
            for name in own.into_iter().flatten().chain(&image.file_node) {
                if names.contains(&name.as_str()) {
                    return Err(Problem::DuplicateId("a block node or drive").at(name.clone()));
                }
                names.push(name);
            }
        }
        Ok(images)
    }
}

impl Drive {
    fn image(&self) -> Result<Option<Image>, Problem> {
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
        let kind = match file.and_then(|file| file.driver) {
            Some(Driver::Raw) => return Err(Problem::Refused("raw stands on file or host_device")),
            Some(Driver::File(kind)) => Some(kind),
            None => None,
        };
        self.throttle.check().map_err(Problem::Refused)?;
        let keys = self.node.cache;
        let cache = Cache {
            writeback: keys.writeback.unwrap_or(true),
            direct: keys.direct.unwrap_or(false),
            no_flush: keys.no_flush.unwrap_or(false),
        };
        if (self.node.native || file.is_some_and(|file| file.native)) && !cache.direct {
            return Err(NEEDS_DIRECT);
        }
        Ok(Some(Image {
            name,
            drive: Some(self.policies),
            format: if self.format.is_some() { ImageFormat::Raw } else { ImageFormat::Probed },
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
        }))
    }
}

const NEEDS_DIRECT: Problem = Problem::Refused(
    "aio=native was specified, but it requires cache.direct=on, which was not specified.",
);

impl Node {
    fn image<'a>(&'a self, of_name: &dyn Fn(&str) -> Option<&'a Node>) -> Result<Image, Problem> {
        let name = self
            .name
            .clone()
            .ok_or(Problem::Refused("'node-name' must be specified for the root node"))?;
        let driver = self.driver.ok_or(Problem::MissingKey("driver="))?;
        let (format, file) = match (driver, &self.below, &self.file) {
            (Driver::File(_), None, None) => (ImageFormat::Bare, self),
            (Driver::File(_), ..) => {
                return Err(Problem::Refused("a file stands on nothing; leave file= out"));
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
        let path = file.filename.clone().ok_or(Problem::MissingKey("filename="))?;
        let written_out = self.file.is_some();
        // A node that is written out inherits; one with a name has what was said of it.
        let direct = file.cache.direct.or(self.cache.direct.filter(|_| written_out));
        let no_flush = [self, file].iter().any(|node| node.cache.no_flush == Some(true));
        if file.native && direct != Some(true) {
            return Err(NEEDS_DIRECT);
        }
        if file.read_only && !self.read_only && file.auto_read_only != Some(true) {
            return Err(Problem::Refused("Block node is read-only"));
        }
        let below = format != ImageFormat::Bare;
        let discard_below = written_out || file.discard == Some(true);
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

/// The image that a node with these keys is, for `blockdev-add`; `found` gives the one of a node that
/// it stands on by name. The texts are QEMU's where it has one.
pub(crate) fn added(
    pairs: &[Pair],
    found: &dyn Fn(&str) -> Option<Image>,
) -> Result<Image, String> {
    const COMMAND: &str = "blockdev-add";
    let mut node = Node::default();
    for (key, value) in pairs {
        let own = key.strip_prefix("file.").unwrap_or(key);
        let target = if own == key { &mut node } else { below(&mut node) };
        match NODE.set(COMMAND, own, value.as_deref(), target).map_err(|error| error.problem) {
            Err(Problem::UnknownKey { .. }) => {
                return Err(format!("Parameter '{key}' is unexpected"));
            }
            Err(Problem::UnknownValue { .. }) => {
                let value = value.as_deref().unwrap_or_default();
                return Err(format!("Parameter '{key}' does not accept value '{value}'"));
            }
            Err(Problem::NotAnId) => {
                return Err(format!(
                    "Invalid node-name: '{}'",
                    value.as_deref().unwrap_or_default()
                ));
            }
            set => set.map_err(|problem| format!("{key}: {problem}"))?,
        }
    }
    let stands_on = node.below.take();
    if let Some(name) = &stands_on {
        let image =
            found(name).ok_or(format!("Cannot find device='{name}' nor node-name='{name}'"))?;
        let file = below(&mut node);
        file.driver = image.kind.map(Driver::File);
        file.filename = Some(image.path);
        file.name = Some(name.clone());
        file.read_only = image.read_only;
        file.auto_read_only = Some(image.auto_read_only);
        file.cache.direct = Some(image.cache.direct);
        file.cache.no_flush = Some(image.cache.no_flush);
        file.discard = Some(image.discard);
        file.locking = Some(image.locking);
    }
    node.image(&|_| None).map_err(|problem| match problem {
        Problem::MissingKey(key) => {
            format!("Parameter '{}' is missing", key.trim_end_matches('='))
        }
        other => other.to_string(),
    })
}

/// The members of a JSON object as keys and values, those of one inside with its name in front.
fn json_pairs(text: &str) -> Result<Vec<Pair>, Problem> {
    const SHAPE: Problem =
        Problem::Malformed("a JSON object of strings, numbers, booleans and objects");
    let Ok(Json::Object(members)) = serde_json::from_str(text) else { return Err(SHAPE) };
    let mut pairs = Vec::new();
    let mut open = vec![(String::new(), members)];
    while let Some((prefix, members)) = open.pop() {
        for (key, value) in members {
            let key = format!("{prefix}{key}");
            match value {
                Json::Object(inner) => open.push((format!("{key}."), inner)),
                Json::String(text) => pairs.push((key, Some(text))),
                Json::Bool(on) => pairs.push((key, Some(if on { "on" } else { "off" }.into()))),
                Json::Number(number) => pairs.push((key, Some(number.to_string()))),
                Json::Array(_) | Json::Null => return Err(SHAPE),
            }
        }
    }
    Ok(pairs)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn images(options: &[(&str, &str)]) -> Result<Vec<Image>, String> {
        let mut blocks = Blocks::default();
        for (option, text) in options {
            let read = match *option {
                "-drive" => blocks.drive(option, text),
                _ => blocks.blockdev(option, text),
            };
            read.map_err(|error| error.to_string())?;
        }
        blocks.images().map_err(|error| error.to_string())
    }

    #[test]
    fn a_chain_of_nodes_is_one_image_however_it_is_written() {
        let apart = [
            (
                "-blockdev",
                r#"{"driver":"file","filename":"F","node-name":"s","auto-read-only":true,"discard":"unmap","cache":{"direct":true,"no-flush":false}}"#,
            ),
            (
                "-blockdev",
                r#"{"node-name":"f","read-only":false,"driver":"raw","discard":"unmap","file":"s"}"#,
            ),
        ];
        let together = [(
            "-blockdev",
            "raw,node-name=f,file.driver=file,file.filename=F,file.node-name=s,discard=unmap,cache.direct=on",
        )];
        let [apart, together] = [&apart[..], &together].map(|options| images(options).unwrap());
        assert_eq!(apart, together);
        assert_eq!(apart.len(), 1);
        assert!(apart[0].discard && apart[0].cache.direct && apart[0].format == ImageFormat::Raw);
    }

    #[test]
    fn what_programs_pass_is_understood() {
        let one = images(&[("-drive", "file=F,format=raw,if=none,id=d,cache=unsafe,aio=threads,discard=unmap,detect-zeroes=unmap,werror=report,rerror=report,copy-on-read=off,file.locking=off,readonly=on")]).unwrap();
        let image = &one[0];
        assert!(image.cache.no_flush && !image.locking && image.read_only);
        assert_eq!(image.detect_zeroes, DetectZeroes::Unmap);
        assert_eq!(image.drive.unwrap().write, Some(OnError::Report));
    }

    #[test]
    fn limits_have_two_spellings_and_each_is_a_limit() {
        let drive = |keys: &str| {
            images(&[("-drive", &format!("file=F,if=none,id=d,format=raw,{keys}"))]).unwrap()
        };
        let old = drive("bps=10,bps_max=20,bps_max_length=3,iops_rd=4,iops_size=5");
        let new = drive(
            "throttling.bps-total=10,throttling.bps-total-max=20,throttling.bps-total-max-length=3,\
             throttling.iops-read=4,throttling.iops-size=5",
        );
        assert_eq!(old, new);
        for key in THROTTLING {
            let mut throttle = Throttle::default();
            limit(&mut throttle, key, "7").unwrap().unwrap();
            assert_ne!(throttle, Throttle::default(), "{key}");
        }
    }

    #[test]
    fn what_cannot_be_is_refused() {
        for (text, says) in [
            ("file=F,if=none,id=d,format=qcow2", "only raw"),
            ("file=F,if=none,id=d,format=foo", "expects raw"),
            ("file=F,if=none,id=d,bps=1,bps_rd=1", "cannot be used at the same time"),
            ("file=F,if=none,id=d,iops_max=1", "require corresponding"),
            ("file=F,if=none,id=d,group=g", "several disks"),
            ("file=F,if=none,id=d,bps=x", "expects a number"),
            ("file=F,if=none,id=d,rerror=enospc", "no read fails"),
            ("file=F,if=none,id=d,aio=native", "requires cache.direct=on"),
            ("file=F,if=virtio,id=d", "if=none"),
            ("file=F,id=d", "if=none"),
            ("if=none,id=d", "file= is missing"),
            ("file=F,if=none", "id= is missing"),
            ("file=F,if=none,id=d,x=y", "no such property"),
        ] {
            let refused = images(&[("-drive", text)]).unwrap_err();
            assert!(refused.contains(says), "{text}: {refused}");
        }
        for (text, says) in [
            ("driver=file,filename=F", "node-name"),
            ("driver=raw,node-name=r,filename=F", "'file' is missing"),
            ("driver=raw,node-name=r,file=s", "no block node"),
            ("driver=file,node-name=r", "filename= is missing"),
            ("driver=nbd,node-name=r", "not built"),
            ("{\"driver\":[]}", "a JSON object"),
        ] {
            let refused = images(&[("-blockdev", text)]).unwrap_err();
            assert!(refused.contains(says), "{text}: {refused}");
        }
        let twice = ("-drive", "file=F,if=none,id=d,format=raw");
        assert!(images(&[twice, twice]).unwrap_err().contains("already"));
    }
}
