//! `-drive` and `-blockdev`: images, and how the two spell them.
//!
//! A `-blockdev` names one node. A node of format `raw` or `qcow2` stands on one of `file` or
//! `host_device`, written out (`file.driver=…`) or named (`file=NAME`); a `-drive` makes both. Of
//! qcow2 `backing` says what it stands on besides, else its header.

mod drive;
mod limits;
mod node;

use std::collections::HashSet;

use super::error::{Error, Problem};
use super::json::{Lists, Members, flatten, json_pairs};
use super::keys::split;
use crate::config::{Backing, Image};
use drive::{DRIVE, Drive, NOT_BELOW, of_drive};
use limits::limit;
use node::{BackingKey, Driver, NODE, Node, set};

pub(crate) use drive::{drive_parameters, on_error};
#[cfg(test)]
pub(crate) use limits::THROTTLING;
pub(crate) use node::node_parameters;

/// What was written behind all `-drive` and `-blockdev`.
#[derive(Default)]
pub(crate) struct Blocks {
    drives: Vec<(String, Drive)>,
    nodes: Vec<(String, Node)>,
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
                (Some(rest), _) if NOT_BELOW.contains(&rest) => {
                    let place = format!("{option} {key}={}", value.unwrap_or("on"));
                    return Err(Problem::Refused("write it without file.").at(place));
                }
                (Some(_), _) => set(option, &key, value, &mut drive.node)?,
                (None, _) if key.starts_with("backing.") => {
                    set(option, &key, value, &mut drive.node)?;
                }
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
            true => json_pairs(text, Lists::Refused).map_err(|problem| problem.at(option))?,
            false => split(text, NODE.implied),
        };
        let mut node = Node::default();
        for (key, value) in &pairs {
            set(option, key, value.as_deref(), &mut node)?;
        }
        self.nodes.push((format!("{option} {text}"), node));
        Ok(())
    }

    /// The images that all of it describes.
    pub(crate) fn images(&self) -> Result<Vec<Image>, Error> {
        let mut images: Vec<Image> = Vec::new();
        let of_name = |name: &str| {
            let named = |(_, node): &&(String, Node)| node.name.as_deref() == Some(name);
            self.nodes.iter().find(named).map(|(_, node)| node)
        };
        for (place, drive) in &self.drives {
            images.extend(drive.image(&of_name).map_err(|problem| problem.at(place.clone()))?);
        }
        let all = self.drives.iter().map(|(_, drive)| &drive.node);
        let all: Vec<_> = all.chain(self.nodes.iter().map(|(_, node)| node)).collect();
        for (place, node) in &self.nodes {
            let is_below = |other: &&Node| node.name.as_ref().is_some_and(|name| other.names(name));
            let at = |problem: Problem| problem.at(place.clone());
            let image = node.image(&of_name).map_err(at)?;
            // What another stands on is that one's.
            if !all.iter().any(is_below) {
                images.push(image);
            }
        }
        let drives = images.iter().filter(|image| image.drive.is_some());
        let mut names: Vec<&str> = drives.map(|image| image.name.as_str()).collect();
        all.iter().for_each(|node| node.written_names(&mut names));
        let mut seen = HashSet::new();
        match names.into_iter().find(|name| !seen.insert(*name)) {
            Some(name) => Err(Problem::DuplicateId("a block node or drive").at(name.to_owned())),
            None => Ok(images),
        }
    }
}

/// A node of `blockdev-add`.
#[derive(Debug)]
pub(crate) struct Added {
    pub image: Image,
    /// Its name, and those of all that is written out in it: none of them may exist.
    pub names: Vec<String>,
}

/// The image that a node with these members is, for `blockdev-add`; `file` gives the one of a node of a
/// file, `any` that of any node, where it stands on one by name. The texts are QEMU's where it has one.
pub(crate) fn added(
    members: Members,
    file_node: &dyn Fn(&str) -> Option<Image>,
    any_node: &dyn Fn(&str) -> Option<Image>,
) -> Result<Added, String> {
    const COMMAND: &str = "blockdev-add";
    let pairs = flatten(members, Lists::Refused)
        .map_err(|key| format!("Invalid parameter type for '{key}', expected: string"))?;
    let mut node = Node::default();
    for (key, value) in &pairs {
        match set(COMMAND, key, value.as_deref(), &mut node).map_err(|error| error.problem) {
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
    let mut names = Vec::new();
    node.written_names(&mut names);
    let names = names.into_iter().map(str::to_owned).collect();
    if let Some(name) = node.below.take() {
        let image = file_node(&name)
            .ok_or(format!("Cannot find device='{name}' nor node-name='{name}'"))?;
        let file = node.file.get_or_insert_default();
        file.driver = image.kind.map(Driver::File);
        file.filename = Some(image.path);
        file.name = Some(name);
        file.read_only = image.read_only;
        file.auto_read_only = Some(image.auto_read_only);
        file.cache.direct = Some(image.cache.direct);
        file.cache.no_flush = Some(image.cache.no_flush);
        file.discard = Some(image.discard);
        file.detect_zeroes = Some(image.detect_zeroes);
        file.locking = Some(image.locking);
    }
    // The node that it names is there already, and is opened as it was.
    let named = match &node.backing {
        Some(BackingKey::Name(name)) => {
            let image = any_node(name).ok_or(format!(
                "Could not open backing file: Cannot find device='{name}' nor node-name='{name}'"
            ))?;
            Some(Image { read_only: true, discard: false, drive: None, ..image })
        }
        _ => None,
    };
    if named.is_some() {
        node.backing = Some(BackingKey::Nothing);
    }
    let image = node.image(&|_| None).map_err(|problem| match problem {
        Problem::MissingKey(key) => {
            format!("Parameter '{}' is missing", key.trim_end_matches('='))
        }
        other => other.to_string(),
    })?;
    let image = match named {
        Some(below) => Image { backing: Backing::Image(Box::new(below)), ..image },
        None => image,
    };
    Ok(Added { image, names })
}

#[cfg(test)]
mod tests {

    use super::*;
    use crate::config::{DetectZeroes, ImageFormat, OnError, Throttle};

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
    fn an_upper_node_discards_what_the_lower_one_does() {
        let inline = "raw,node-name=r,discard=unmap,file.driver=file,file.filename=F";
        let named = "raw,node-name=r,discard=unmap,file=s";
        let below = |more: &str| format!("file,node-name=s,filename=F{more}");
        for (lower, upper, discards) in [
            (None, inline.to_owned(), true),
            (None, format!("{inline},file.discard=ignore"), false),
            (Some(below("")), named.to_owned(), false),
            (Some(below(",discard=unmap")), named.to_owned(), true),
        ] {
            let lower = lower.iter().map(|lower| ("-blockdev", lower.as_str()));
            let options: Vec<_> = lower.chain([("-blockdev", upper.as_str())]).collect();
            assert_eq!(images(&options).unwrap()[0].discard, discards, "{options:?}");
        }
    }

    #[test]
    fn a_node_stands_on_one_that_is_there_as_that_is() {
        let members = |text: &str| serde_json::from_str(text).unwrap();
        let file = r#"{"driver":"file","node-name":"s","filename":"F""#;
        for (more, says) in [
            (r#"}"#, Ok(false)),
            (r#","discard":"unmap"}"#, Ok(true)),
            (r#","detect-zeroes":"on"}"#, Err("detect-zeroes=")),
            (r#","read-only":true}"#, Err("read-only")),
        ] {
            let below =
                added(members(&format!("{file}{more}")), &|_| None, &|_| None).unwrap().image;
            let upper = r#"{"driver":"raw","node-name":"r","file":"s","discard":"unmap"}"#;
            match (added(members(upper), &|_| Some(below.clone()), &|_| None), says) {
                (Ok(added), Ok(discards)) => assert_eq!(added.image.discard, discards, "{more}"),
                (Err(refused), Err(says)) => assert!(refused.contains(says), "{refused}"),
                (got, _) => panic!("{more}: {got:?}"),
            }
        }
        let list = added(members(r#"{"driver":["raw"],"node-name":"r"}"#), &|_| None, &|_| None);
        assert_eq!(list.unwrap_err(), "Invalid parameter type for 'driver', expected: string");
    }

    #[test]
    fn what_an_image_stands_on_is_named_or_written_out() {
        let apart = [
            ("-blockdev", "file,filename=B,node-name=bf"),
            ("-blockdev", r#"{"driver":"raw","node-name":"b","file":"bf","discard":"unmap"}"#),
            ("-blockdev", "file,filename=F,node-name=f"),
            ("-blockdev", "qcow2,node-name=q,file=f,backing=b"),
        ];
        let images_apart = images(&apart).unwrap();
        assert_eq!(images_apart.len(), 1);
        let Backing::Image(below) = &images_apart[0].backing else { panic!() };
        assert!(below.read_only && !below.discard && below.node.as_deref() == Some("b"));
        assert_eq!((below.format, below.path.as_path()), (ImageFormat::Raw, "B".as_ref()));
        let inline = "qcow2,node-name=q,file.driver=file,file.filename=F,file.node-name=f,backing.driver=raw,\
                      backing.node-name=b,backing.file.driver=file,backing.file.filename=B,backing.file.node-name=bf";
        assert_eq!(images(&[("-blockdev", inline)]).unwrap()[0].name, "q");
        assert_eq!(images(&[("-blockdev", inline)]).unwrap()[0].backing, images_apart[0].backing);
        let nothing = r#"{"driver":"qcow2","node-name":"q","file":"f","backing":null}"#;
        let alone = images(&[apart[2], ("-blockdev", nothing)]).unwrap();
        assert_eq!(alone[0].backing, Backing::Nothing);
        let circle = ["qcow2,node-name=a,file=f,backing=b", "qcow2,node-name=b,file=f,backing=a"];
        let circle = [apart[2], ("-blockdev", circle[0]), ("-blockdev", circle[1])];
        assert!(images(&circle).unwrap_err().contains("stands on itself"));
        let drive = "if=none,id=d,file=F,format=qcow2,backing.driver=raw,backing.file.driver=file,backing.file.filename=B";
        assert!(matches!(images(&[("-drive", drive)]).unwrap()[0].backing, Backing::Image(_)));
        for (text, says) in [
            ("raw,node-name=r,file=f,backing=b", "of qcow2"),
            ("qcow2,node-name=r,file=f,backing=b,backing.driver=raw", "backing="),
            ("qcow2,node-name=r,file=f,backing=nobody", "no block node"),
            ("qcow2,node-name=r,file=f,data-file=b", "data files"),
        ] {
            let refused = images(&[apart[0], apart[1], apart[2], ("-blockdev", text)]).unwrap_err();
            assert!(refused.contains(says), "{text}: {refused}");
        }
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
            ("file=F,if=none,id=d,format=qed", "only raw"),
            ("file=F,if=none,id=d,format=foo", "expects raw"),
            ("file=F,if=none,id=d,bps=1,bps_rd=1", "cannot be used at the same time"),
            ("file=F,if=none,id=d,iops_max=1", "require corresponding"),
            ("file=F,if=none,id=d,group=g", "several disks"),
            ("file=F,if=none,id=d,bps=x", "expects a number"),
            ("file=F,if=none,id=d,rerror=enospc", "no read fails"),
            ("file=F,if=none,id=d,aio=native", "requires cache.direct=on"),
            ("file=F,if=virtio,id=d", "if=none"),
            ("file=/dev/fdset/4,if=none,id=d", "not opened from descriptor sets"),
            ("file=F,id=d", "if=none"),
            ("if=none,id=d", "file= is missing"),
            ("file=F,if=none", "id= is missing"),
            ("file=F,if=none,id=d,x=y", "no such property"),
            ("file=F,if=none,id=d,file.read-only=on", "file.read-only=on: write it without file."),
            ("file=F,if=none,id=d,file.cache.direct=on", "write it without file."),
            ("file=F,if=none,id=d,file.x=y", "no such property"),
        ] {
            let refused = images(&[("-drive", text)]).unwrap_err();
            assert!(refused.contains(says), "{text}: {refused}");
        }
        let deep = format!("driver=qcow2,node-name=r,{}driver=raw", "backing.".repeat(1 << 16));
        for (text, says) in [
            ("driver=file,filename=F", "node-name"),
            ("driver=file,node-name=r,filename=/dev/fdset/4", "not opened from descriptor sets"),
            (&deep, "too many nodes"),
            ("driver=raw,node-name=r,filename=F", "'file' is missing"),
            ("driver=raw,node-name=r,file=s", "no block node"),
            ("driver=file,node-name=r", "filename= is missing"),
            ("driver=nbd,node-name=r", "not built"),
            ("raw,node-name=r,locking=off,file.driver=file,file.filename=F", "file.locking="),
            ("raw,node-name=r,aio=threads,file.driver=file,file.filename=F", "file.aio="),
            (
                "raw,node-name=r,file.driver=file,file.filename=F,file.detect-zeroes=on",
                "without file.",
            ),
            (
                "raw,node-name=r,file.driver=file,file.filename=F,file.read-only=on,file.auto-read-only=on",
                "Block node is read-only",
            ),
            (
                "raw,node-name=r,file.driver=file,file.filename=F,file.file=s",
                "a file stands on nothing",
            ),
            ("{\"driver\":[]}", "a JSON object"),
            ("{\"driver\":[\"raw\"]}", "a JSON object"),
        ] {
            let refused = images(&[("-blockdev", text)]).unwrap_err();
            assert!(refused.contains(says), "{text}: {refused}");
        }
        let twice = ("-drive", "file=F,if=none,id=d,format=raw");
        assert!(images(&[twice, twice]).unwrap_err().contains("already"));
    }
}
