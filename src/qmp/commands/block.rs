//! Commands about disks: what they are made of, what they did, how long they are.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use serde_json::{Value as Json, json};

use super::block_shapes::*;
use super::{Answer, Call, Command, Run};
use crate::args::block::{Added, added};
use crate::args::value;
use crate::block::{Image, Images, Layer, Operation, Overlay, RemoveError, full_name, is_bare};
use crate::config::{DetectZeroes, ImageFormat, Throttle};
use crate::machine::Request;
use crate::qmp::error::Error;
use crate::qmp::schema::Type;

pub(crate) static COMMANDS: &[Command] = &[
    Command::new("query-block", Run::Waiting(query_block))
        .returns(Type::List(&Type::Object(&DISK)))
        .does("Lists disks, and the images in them."),
    Command::new("query-named-block-nodes", Run::Waiting(query_nodes))
        .arguments(&FLAT)
        .returns(Type::List(&Type::Object(&NODE)))
        .does("Lists what images are made of."),
    Command::new("query-blockstats", Run::Now(query_stats))
        .arguments(&NODES)
        .returns(Type::List(&Type::Object(&STATS)))
        .does("Counts what was done with disks."),
    Command::new("block_resize", Run::Waiting(resize))
        .arguments(&RESIZE)
        .does("Makes an image longer or shorter; the guest is told."),
    Command::new("blockdev-add", Run::Waiting(blockdev_add))
        .arguments(&BLOCK_NODE)
        .does("Opens an image. No disk comes on this board, so that none will use it."),
    Command::new("blockdev-del", Run::Waiting(blockdev_del))
        .arguments(&NODE_NAME)
        .does("Closes an image that nobody uses."),
    Command::new("blockdev-snapshot-sync", Run::Waiting(snapshot))
        .arguments(&SNAPSHOT)
        .does("Puts a new image over that of a disk, which writes only the new one from then on."),
    Command::new("block-set-write-threshold", Run::Now(set_threshold))
        .arguments(&THRESHOLD)
        .does("Tells of the first write that ends behind it, by event BLOCK_WRITE_THRESHOLD."),
    Command::new("block_set_io_throttle", Run::Now(set_throttle))
        .arguments(&THROTTLE)
        .does("Limits bytes and requests of a disk per second; zeros end all limits."),
];

/// One node of an image.
#[derive(Clone, Copy)]
struct Shown<'a> {
    image: &'a Image,
    /// What it stands on behind it.
    layers: &'a [Arc<Layer>],
    /// The image itself is the one that a disk has.
    is_top: bool,
    /// The node of the file, and not that of the format.
    below: bool,
}

fn file_driver(layer: &Layer) -> &'static str {
    if layer.is_device { "host_device" } else { "file" }
}

fn driver(layer: &Layer, below: bool) -> &'static str {
    match layer.config.format {
        _ if below => file_driver(layer),
        ImageFormat::Bare => file_driver(layer),
        ImageFormat::Qcow2 => "qcow2",
        ImageFormat::Raw | ImageFormat::Probed => "raw",
    }
}

/// An image, and those that it stands on unless `flat`.
fn image_info(layers: &[Arc<Layer>], below: bool, flat: bool) -> Json {
    let Some((layer, rest)) = layers.split_first() else { return json!({}) };
    let driver = driver(layer, below);
    let bytes = if below { layer.file_bytes().unwrap_or(0) } else { layer.bytes() };
    let mut shown = json!({
        "virtual-size": bytes,
        "filename": layer.path(),
        "format": driver,
        "actual-size": layer.allocated(),
        "dirty-flag": false,
    });
    if driver == "file" {
        shown["format-specific"] = json!({"type": "file", "data": {}});
    }
    let Some(header) = layer.header.as_ref().filter(|_| !below) else { return shown };
    shown["cluster-size"] = json!(header.cluster());
    shown["format-specific"] = json!({"type": "qcow2", "data": {
        "compat": if header.version < 3 { "0.10" } else { "1.1" },
        "compression-type": "zlib",
        "refcount-bits": header.refcount_bits,
    }});
    if header.version >= 3 {
        let data = &mut shown["format-specific"]["data"];
        data["lazy-refcounts"] = json!(header.lazy_refcounts);
        data["corrupt"] = json!(false);
        data["extended-l2"] = json!(false);
    }
    if let Some(backing) = &header.backing {
        shown["backing-filename"] = json!(backing.name);
        shown["full-backing-filename"] = json!(full_name(&layer.config.path, &backing.name));
        if let Some(format) = &backing.format {
            shown["backing-filename-format"] = json!(format);
        }
    }
    if !rest.is_empty() && !flat {
        shown["backing-image"] = image_info(rest, false, false);
    }
    shown
}

/// `limits` are a disk's; a node for itself has none.
fn node(shown: Shown<'_>, flat: bool, limits: Throttle) -> Json {
    let Shown { image, layers, is_top, below } = shown;
    let layer = &layers[0];
    let config = &image.config;
    let detect_zeroes = match config.detect_zeroes {
        _ if below || !is_top => "off",
        DetectZeroes::Off => "off",
        DetectZeroes::On => "on",
        DetectZeroes::Unmap => "unmap",
    };
    let watch = if below { &layer.file_watch } else { &layer.watch };
    let depth = if below || flat { 0 } else { layers.len() - 1 };
    let cache = layer.config.cache;
    let mut node = json!({
        "file": layer.path(),
        "node-name": if below { &layer.file_node } else { &layer.node },
        "ro": !is_top || config.read_only || !layer.writable,
        "drv": driver(layer, below),
        "backing_file_depth": depth,
        "active": image.is_active(),
        "encrypted": false,
        "detect_zeroes": detect_zeroes,
        "image": image_info(layers, below, flat),
        "cache": {
            "writeback": cache.writeback,
            "direct": cache.direct,
            "no-flush": cache.no_flush,
        },
        "write_threshold": watch.threshold.load(Ordering::Relaxed),
    });
    if let Some(behind) = layers.get(1).filter(|_| !below) {
        node["backing_file"] = json!(behind.path());
    }
    for (name, limit) in Throttle::NAMES.into_iter().zip(limits.all()) {
        node[name] = json!(limit.rate);
        if limit.max > 0 {
            node[format!("{name}_max")] = json!(limit.max);
            node[format!("{name}_max_length")] = json!(limit.seconds);
        }
    }
    if limits.iops_size > 0 {
        node["iops_size"] = json!(limits.iops_size);
    }
    if limits != Throttle::default() {
        // Each has a group of its own.
        node["group"] = json!(image.config.name);
    }
    node
}

/// Does something with each node of all images, the newest first, as QEMU has them: those with a
/// name of their own once, however many stand on them.
fn for_each_node(call: Call<'_>, mut seen: impl FnMut(Shown<'_>)) {
    let all = images(call);
    let mut names = HashSet::new();
    for image in all.iter().rev() {
        let layers = image.layers();
        let mut places: Vec<usize> = (0..layers.len()).collect();
        places.sort_by_key(|at| std::cmp::Reverse(layers[*at].place));
        for place in places {
            let layer = &layers[place];
            let shown = Shown { image, layers: &layers[place..], is_top: place == 0, below: false };
            if names.insert(layer.node.clone()) {
                seen(shown);
            }
            let is_own =
                layer.config.format == ImageFormat::Bare || is_bare(&all, &layer.file_node);
            if !is_own && names.insert(layer.file_node.clone()) {
                seen(Shown { below: true, ..shown });
            }
        }
    }
}

/// All that there are.
fn images(call: Call<'_>) -> Vec<Arc<Image>> {
    call.vmm.guest.images().map(Images::all).unwrap_or_default()
}

/// Drives, and nodes that a disk has.
fn disks(call: Call<'_>) -> Vec<Arc<Image>> {
    let all = images(call);
    all.into_iter().filter(|image| image.config.drive.is_some() || image.user().is_some()).collect()
}

/// The id of the `-drive`; a node of `-blockdev` has none.
fn device(image: &Image) -> &str {
    image.config.drive.as_ref().map_or("", |_| &image.config.name)
}

fn query_block(call: Call<'_>) -> Answer {
    let disk = |image: Arc<Image>| {
        let mut disk = json!({
            "device": device(&image),
            "type": "unknown",
            "removable": image.user().is_none(),
            "locked": false,
            "inserted": node(
                Shown { image: &image, layers: &image.layers(), is_top: true, below: false },
                false,
                image.limits(),
            ),
        });
        if let Some(user) = image.user() {
            disk["qdev"] = json!(user);
            if image.has_status() {
                disk["io-status"] = json!(image.io_status());
            }
        }
        disk
    };
    Ok(disks(call).into_iter().map(disk).collect())
}

fn query_nodes(call: Call<'_>) -> Answer {
    let flat = call.args.bool_if_given("flat") == Some(true);
    let mut nodes = Vec::new();
    for_each_node(call, |shown| nodes.push(node(shown, flat, Throttle::default())));
    Ok(nodes.into())
}

/// What a disk did with the image, or what a node alone shows of it.
fn counts(image: &Image, of_disk: bool, highest: u64) -> Json {
    let mut counts = json!({
        "wr_highest_offset": highest,
        "account_invalid": of_disk,
        "account_failed": of_disk,
        "timed_stats": [],
        "zone_append_bytes": 0,
        "zone_append_operations": 0,
        "zone_append_total_time_ns": 0,
        "failed_zone_append_operations": 0,
        "invalid_zone_append_operations": 0,
        "zone_append_merged": 0,
    });
    for (name, operation) in [
        ("rd", Operation::Read),
        ("wr", Operation::Write),
        ("flush", Operation::Flush),
        ("unmap", Operation::Unmap),
    ] {
        let of = image.stats.of(operation);
        let shown = |count: &std::sync::atomic::AtomicU64| match of_disk {
            true => json!(count.load(Ordering::Relaxed)),
            false => json!(0),
        };
        counts[format!("{name}_operations")] = shown(&of.operations);
        counts[format!("{name}_total_time_ns")] = shown(&of.total_ns);
        counts[format!("failed_{name}_operations")] = shown(&of.failed);
        counts[format!("invalid_{name}_operations")] = shown(&of.invalid);
        if operation != Operation::Flush {
            counts[format!("{name}_bytes")] = shown(&of.bytes);
            counts[format!("{name}_merged")] = json!(0);
        }
    }
    counts
}

fn of_driver(layer: &Layer) -> Json {
    let driver = file_driver(layer);
    json!({"driver": driver, "discard-nb-ok": 0, "discard-nb-failed": 0, "discard-bytes-ok": 0})
}

/// What is counted of a node; of those behind it, too, if `deep`.
fn stats(shown: Shown<'_>, of_disk: bool, deep: bool) -> Json {
    let Shown { image, layers, is_top, below } = shown;
    let layer = &layers[0];
    let own = image.stats.wr_highest_offset.load(Ordering::Relaxed);
    let highest = match (is_top, below && layer.header.is_some()) {
        (false, _) => 0,
        (true, true) => layer.file_watch.highest.load(Ordering::Relaxed),
        (true, false) => own,
    };
    let is_file = below || layer.config.format == ImageFormat::Bare;
    let name = if below { &layer.file_node } else { &layer.node };
    let mut found = json!({"node-name": name, "stats": counts(image, of_disk, highest)});
    if is_file {
        found["driver-specific"] = of_driver(layer);
        return found;
    }
    found["parent"] = stats(Shown { below: true, ..shown }, false, false);
    if deep && layers.len() > 1 {
        let behind = Shown { layers: &layers[1..], is_top: false, ..shown };
        found["backing"] = stats(behind, false, true);
    }
    found
}

fn query_stats(call: Call<'_>) -> Answer {
    if call.args.bool_if_given("query-nodes") == Some(true) {
        let mut nodes = Vec::new();
        for_each_node(call, |shown| nodes.push(stats(shown, false, false)));
        // Here the oldest is the first.
        nodes.reverse();
        return Ok(nodes.into());
    }
    let disk = |image: Arc<Image>| {
        let layers = image.layers();
        let top = Shown { image: &image, layers: &layers, is_top: true, below: false };
        let mut shown = stats(top, true, true);
        shown["device"] = json!(device(&image));
        if let Some(user) = image.user() {
            shown["qdev"] = json!(user);
        }
        shown
    };
    Ok(disks(call).into_iter().map(disk).collect())
}

fn resize(call: Call<'_>) -> Answer {
    let name = |member| call.args.text_if_given(member).unwrap_or("");
    let (device, node) = (name("device"), name("node-name"));
    let images = images(call);
    let found = images.iter().find(|image| {
        let is_drive = image.config.drive.is_some() && image.config.name == device;
        // The file of an image with tables has a length of its own, which is not the disk's.
        is_drive || image.node() == node || !image.is_ordered() && image.file_node() == node
    });
    let image = found.ok_or_else(|| {
        Error::generic(format_args!("Cannot find device='{device}' nor node-name='{node}'"))
    })?;
    let size = u64::try_from(call.args.int("size"))
        .map_err(|_| Error::generic("Parameter 'size' expects a >0 size"))?;
    call.vmm.admit(Request::ChangeDevice)?;
    image.resize(size).map_err(Error::generic)?;
    Ok(json!({}))
}

fn snapshot(call: Call<'_>) -> Answer {
    let name = |member| call.args.text_if_given(member).unwrap_or("");
    let (device, node) = (name("device"), name("node-name"));
    // What is found here stays so until the overlay is there.
    let _turn = call.vmm.guest.images().map(Images::name);
    let all = images(call);
    let of_drive =
        |image: &&Arc<Image>| image.config.drive.is_some() && image.config.name == device;
    let of_node = |image: &&Arc<Image>| image.has_node(node);
    let found = all.iter().find(of_drive).or_else(|| all.iter().find(of_node));
    let image = found.ok_or_else(|| {
        Error::generic(format_args!("Cannot find device='{device}' nor node-name='{node}'"))
    })?;
    if !of_drive(&image) && image.node() != node {
        let why = format!(
            "node '{node}' has another above it; an image is put over the one that a disk has"
        );
        return Err(Error::generic(why));
    }
    let overlay = call.args.text_if_given("snapshot-node-name");
    if let Some(name) = overlay {
        value::id(name).map_err(|_| Error::generic(format_args!("Invalid node-name: '{name}'")))?;
        if all.iter().any(|image| image.has_name(name)) {
            return Err(Error::generic("New overlay node-name already in use"));
        }
    }
    match call.args.text_if_given("format") {
        None | Some("qcow2") => {}
        Some("raw") => {
            return Err(Error::generic("Backing file not supported for file format 'raw'"));
        }
        Some(format) => {
            return Err(Error::generic(format_args!("Unknown file format '{format}'")));
        }
    }
    call.vmm.admit(Request::ChangeDevice)?;
    let wanted = Overlay {
        path: call.args.text("snapshot-file").into(),
        node: overlay.map(String::from),
        exists: call.args.text_if_given("mode") == Some("existing"),
    };
    image.lay_over(&wanted, &all).map_err(Error::generic)?;
    Ok(json!({}))
}

fn set_threshold(call: Call<'_>) -> Answer {
    let name = call.args.text("node-name");
    let threshold = u64::try_from(call.args.int("write-threshold"))
        .map_err(|_| Error::generic("Parameter 'write-threshold' expects uint64"))?;
    let mut found = false;
    for_each_node(call, |shown| {
        let layer = &shown.layers[0];
        let (node, watch) = match shown.below {
            true => (&layer.file_node, &layer.file_watch),
            false => (&layer.node, &layer.watch),
        };
        if node == name {
            found = true;
            watch.threshold.store(threshold, Ordering::Relaxed);
        }
    });
    match found {
        true => Ok(json!({})),
        false => Err(Error::generic(format_args!("Device '{name}' not found"))),
    }
}

fn set_throttle(call: Call<'_>) -> Answer {
    let (device, id) = (call.args.text_if_given("device"), call.args.text_if_given("id"));
    let images = images(call);
    let (name, found) = match (device, id) {
        (Some(name), None) => {
            let is =
                |image: &&Arc<Image>| image.config.drive.is_some() && image.config.name == name;
            (name, images.iter().find(is))
        }
        (None, Some(id)) => (id, images.iter().find(|image| image.user().as_deref() == Some(id))),
        _ => return Err(Error::generic("Need exactly one of 'device' and 'id'")),
    };
    let image =
        found.ok_or_else(|| Error::device_not_found(format_args!("Device '{name}' not found")))?;
    if let Some(group) =
        call.args.text_if_given("group").filter(|group| *group != image.config.name)
    {
        let why = format!("group '{group}': limits of several disks together are not built yet");
        return Err(Error::generic(why));
    }
    let number = |member: &str| match call.args.int_if_given(member) {
        None => Ok(None),
        Some(value) => u64::try_from(value).map(Some).map_err(|_| {
            Error::generic("bps/iops/max values must be within [0, 1000000000000000]")
        }),
    };
    let mut limits = Throttle::default();
    for (name, limit) in Throttle::NAMES.into_iter().zip(limits.all_mut()) {
        limit.rate = number(name)?.unwrap_or(0);
        limit.max = number(&format!("{name}_max"))?.unwrap_or(0);
        let seconds = number(&format!("{name}_max_length"))?.unwrap_or(1);
        limit.seconds =
            u32::try_from(seconds).map_err(|_| Error::generic("a burst cannot last that long"))?;
    }
    limits.iops_size = number("iops_size")?.unwrap_or(0);
    limits.check().map_err(Error::generic)?;
    image.set_limits(limits);
    Ok(json!({}))
}

fn blockdev_add(call: Call<'_>) -> Answer {
    if !call.args.has("node-name") {
        return Err(Error::generic("'node-name' must be specified for the root node"));
    }
    let Some(images) = call.vmm.guest.images() else {
        return Err(Error::generic("this machine has no images"));
    };
    let all = images.all();
    let behind = call.args.get("backing").and_then(|value| value.as_str());
    let is_written = |image: &&Arc<Image>| {
        behind.is_some_and(|name| image.node() == name)
            && image.user().is_some()
            && !image.config.read_only
    };
    if let Some(image) = all.iter().find(is_written) {
        let why = format!("Block node '{}' is written by a device", image.node());
        return Err(Error::generic(why));
    }
    let any = |name: &str| {
        let found = all.iter().find(|image| image.node() == name);
        found.map(|image| image.config.clone())
    };
    let file = |name: &str| any(name).filter(|_| is_bare(&all, name));
    let Added { image, names } = added(call.args.to_json(), &file, &any).map_err(Error::generic)?;
    images.add(&names, |number| Image::open(number, &image)).map_err(Error::generic)?;
    Ok(json!({}))
}

fn blockdev_del(call: Call<'_>) -> Answer {
    let name = call.args.text("node-name");
    let unknown = || Err(RemoveError::Unknown);
    let removed = call.vmm.guest.images().map_or_else(unknown, |images| images.remove(name));
    match removed {
        Ok(()) => Ok(json!({})),
        Err(RemoveError::Unknown) => {
            Err(Error::generic(format_args!("Failed to find node with node-name='{name}'")))
        }
        Err(RemoveError::NotOwned) => {
            Err(Error::generic(format_args!("Node {name} is not owned by the monitor")))
        }
        Err(RemoveError::InUse) => {
            Err(Error::generic(format_args!("Block device {name} is in use")))
        }
    }
}
