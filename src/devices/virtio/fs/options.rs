//! `-device vhost-user-fs-device`: what the command line says of it.

use super::super::{NO_IOMMU, NO_PACKED, RingFeatures};
use crate::args::{Key, Keys, OptionError, Problem, value};
use crate::config::{ChardevBackend, Config, Socket, SocketAddress, SocketRole};
use crate::suggest::nearest;

pub(crate) const DRIVER: &str = "vhost-user-fs-device";

/// Bytes of a tag, which a shorter one is filled up to.
pub(super) const TAG_BYTES: usize = 36;

/// A file system of another process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub(super) chardev: Option<String>,
    pub(super) tag: Option<String>,
    pub(super) queue_size: u16,
    pub(crate) ring: RingFeatures,
}

impl Default for Wanted {
    fn default() -> Wanted {
        Wanted { chardev: None, tag: None, queue_size: 128, ring: RingFeatures::default() }
    }
}

pub(crate) const KEYS: Keys<Wanted> = Keys {
    owner: DRIVER,
    implied: None,
    table: &[
        Key::set("chardev", "ID", |wanted, text| {
            wanted.chardev = Some(value::id(text)?);
            Ok(())
        }),
        Key::set("tag", "NAME", |wanted, text| {
            if text.is_empty() || text.len() > TAG_BYTES {
                return Err(Problem::Malformed("a name of 1 to 36 bytes"));
            }
            wanted.tag = Some(text.into());
            Ok(())
        }),
        Key::set("queue-size", "128", |wanted, text| {
            let size = value::number(text, 1, 1024)?;
            if !size.is_power_of_two() {
                return Err(Problem::NotAPowerOfTwo { min: 1, max: 1024 });
            }
            wanted.queue_size = size as u16;
            Ok(())
        }),
        Key::only(
            "num-request-queues",
            &["1"],
            "several queues of requests are not built; write 1",
        ),
        Key::refuse("bootindex", "nothing boots from a file system's tag; leave it out"),
        Key::set("indirect_desc", "on|off", |w, text| w.ring.indirect_desc(text)),
        Key::set("event_idx", "on|off", |w, text| w.ring.event_idx(text)),
        Key::only("packed", &["off"], NO_PACKED),
        Key::only("iommu_platform", &["off"], NO_IOMMU),
    ],
};

/// Finds the socket of each, which is nobody else's, and refuses memory that its other end cannot map.
pub(crate) fn complete(config: &mut Config) -> Result<(), OptionError> {
    let mut taken: Vec<String> = Vec::new();
    for device in &config.devices {
        let Some(wanted) = device.properties.downcast_ref::<Wanted>() else { continue };
        let refuse = |why| Err(Problem::Refused(why).at(format!("-device {DRIVER}")));
        let (Some(id), Some(tag)) = (&wanted.chardev, &wanted.tag) else {
            return refuse(match wanted.chardev {
                None => "missing chardev; write chardev=ID (-chardev socket,id=ID,path=PATH)",
                Some(_) => "missing tag property; write tag=NAME, by which the guest mounts it",
            });
        };
        if wanted.queue_size < 4 {
            // The command and its answer have four buffers at least.
            return refuse("queue-size is too small; write 4 or more");
        }
        let at = format!("-device {DRIVER},chardev={id}");
        let Some(chardev) = config.chardevs.iter().find(|chardev| chardev.id == *id) else {
            let ids = config.chardevs.iter().map(|chardev| chardev.id.as_str());
            let nearest = nearest(id, ids).map(String::from);
            return Err(Problem::UnknownId { kind: "character device", nearest }.at(at));
        };
        let by = if config.serial.as_ref() == Some(id) {
            Some("the serial port")
        } else if config.monitors.iter().any(|monitor| monitor.chardev == *id) {
            Some("a monitor")
        } else if config.lines.contains(id) {
            Some("a virtio port")
        } else {
            taken.contains(id).then_some("another file system")
        };
        if let Some(by) = by {
            return Err(Problem::InUse { by: by.into() }.at(at));
        }
        match &chardev.backend {
            _ if chardev.log.is_some() => {
                return Err(Problem::Refused(
                    "what a back end is told is not logged; leave logfile= out",
                )
                .at(at));
            }
            ChardevBackend::Socket(Socket {
                address: SocketAddress::Unix { .. } | SocketAddress::Abstract { .. },
                role: SocketRole::Client { .. },
            }) => {}
            _ => {
                let why = "a file system's process is reached over a unix socket on which it listens; write \
                           -chardev socket,path=PATH";
                return Err(Problem::Refused(why).at(at));
            }
        }
        if !config.memory.backend.is_shared() {
            return refuse(
                "its process maps the guest's memory, which is private; write -object \
                 memory-backend-memfd,id=mem,size=SIZE,share=on -M memory-backend=mem",
            );
        }
        if config.incoming.is_some() {
            return refuse("a guest with it cannot be moved yet, so that none can arrive");
        }
        let tag_taken = |other: &&crate::config::Device| {
            other
                .properties
                .downcast_ref::<Wanted>()
                .is_some_and(|other| other.tag.as_ref() == Some(tag))
        };
        if config.devices.iter().filter(tag_taken).count() > 1 {
            return refuse("two file systems have the same tag");
        }
        taken.push(id.clone());
    }
    let (theirs, others) = std::mem::take(&mut config.chardevs)
        .into_iter()
        .partition(|chardev| taken.contains(&chardev.id));
    (config.back_ends, config.chardevs) = (theirs, others);
    Ok(())
}
