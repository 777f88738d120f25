//! `-device virtio-serial-device`, `virtconsole`, `virtserialport`: what the command line says, and
//! which port is on which controller under which number.

use super::super::{NO_IOMMU, NO_PACKED, RingFeatures};
use crate::args::{Key, Keys, OptionError, Problem, TOO_MANY, value};
use crate::config::{Chardev, Config, Device};
use crate::suggest::nearest;

pub(crate) const CONTROLLER: &str = "virtio-serial-device";
pub(crate) const CONSOLE: &str = "virtconsole";
pub(crate) const PORT: &str = "virtserialport";

/// Half of the queues that a device can have, but for those of control messages.
const PORTS_MAX: u64 = 511;

/// A controller.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Controller {
    pub ports_max: u32,
    pub emergency_write: bool,
    pub ring: RingFeatures,
}

impl Default for Controller {
    fn default() -> Controller {
        Controller { ports_max: 31, emergency_write: true, ring: RingFeatures::default() }
    }
}

pub(crate) const CONTROLLER_KEYS: Keys<Controller> = Keys {
    owner: CONTROLLER,
    implied: None,
    table: &[
        Key::set("max_ports", "31", |c, v| {
            c.ports_max = value::number(v, 1, PORTS_MAX)? as u32;
            Ok(())
        }),
        Key::set("emergency-write", "on|off", |c, v| {
            c.emergency_write = value::switch(v)?;
            Ok(())
        }),
        Key::set("indirect_desc", "on|off", |c, v| c.ring.indirect_desc(v)),
        Key::set("event_idx", "on|off", |c, v| c.ring.event_idx(v)),
        Key::only("packed", &["off"], NO_PACKED),
        Key::only("iommu_platform", &["off"], NO_IOMMU),
    ],
};

/// A port of either kind.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Port {
    number: Option<u32>,
    name: Option<String>,
    chardev: Option<String>,
    bus: Option<String>,
}

pub(crate) const PORT_KEYS: Keys<Port> = Keys {
    owner: "a virtio port",
    implied: None,
    table: &[
        Key::set("nr", "N", |p, v| {
            p.number = Some(value::number(v, 0, PORTS_MAX)? as u32);
            Ok(())
        }),
        Key::set("name", "NAME", |p, v| {
            if v.len() > NAME_BYTES_MAX {
                return Err(Problem::Malformed("a name of 128 bytes at most"));
            }
            p.name = Some(v.into());
            Ok(())
        }),
        Key::set("chardev", "ID", |p, v| {
            p.chardev = Some(value::id(v)?);
            Ok(())
        }),
        Key::set("bus", "ID.0", |p, v| {
            p.bus = Some(v.into());
            Ok(())
        }),
    ],
};

/// It travels in one control message.
const NAME_BYTES_MAX: usize = 128;

/// A port that has found its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Placed {
    /// Of the controller among [`Config::devices`].
    controller: usize,
    /// The device's, which events name it by.
    pub id: Option<String>,
    pub number: u32,
    pub is_console: bool,
    pub name: Option<String>,
    pub chardev: Option<String>,
}

#[cfg(test)]
impl Placed {
    pub(crate) fn new(
        number: u32,
        is_console: bool,
        name: Option<&str>,
        chardev: Option<&str>,
    ) -> Placed {
        let (name, chardev) = (name.map(Into::into), chardev.map(Into::into));
        Placed { controller: 0, id: None, number, is_console, name, chardev }
    }
}

/// The ports of the controller `device`.
pub(crate) fn ports_of(config: &Config, device: &Device) -> Vec<Placed> {
    let at = config.devices.iter().position(|other| std::ptr::eq(other, device));
    let placed = place(config).unwrap_or_default();
    placed.into_iter().filter(|port| Some(port.controller) == at).collect()
}

/// Refuses ports that have no place, and remembers which character devices they use.
pub(crate) fn complete(config: &mut Config) -> Result<(), OptionError> {
    let placed = place(config)?;
    let mut lines: Vec<String> = Vec::new();
    for port in &placed {
        let Some(id) = &port.chardev else { continue };
        let at = format!("-device {},chardev={id}", driver(port.is_console));
        if !config.chardevs.iter().any(|chardev| chardev.id == *id) {
            let ids = config.chardevs.iter().map(|chardev| chardev.id.as_str());
            let nearest = nearest(id, ids).map(String::from);
            return Err(Problem::UnknownId { kind: "character device", nearest }.at(at));
        }
        let chardev = config.chardevs.iter().find(|chardev| chardev.id == *id);
        if chardev.is_some_and(|chardev| chardev.mux) {
            let users = usize::from(config.serial.as_ref() == Some(id))
                + config.monitors.iter().filter(|monitor| monitor.chardev == *id).count()
                + lines.iter().filter(|line| *line == id).count();
            if users >= Chardev::USERS_MAX {
                return Err(Problem::Refused(TOO_MANY).at(at));
            }
            lines.push(id.clone());
            continue;
        }
        let by = if config.serial.as_ref() == Some(id) {
            Some("the serial port")
        } else if config.monitors.iter().any(|monitor| monitor.chardev == *id) {
            Some("a monitor")
        } else {
            lines.contains(id).then_some("another port")
        };
        if let Some(by) = by {
            return Err(Problem::InUse { by: by.into() }.at(at));
        }
        lines.push(id.clone());
    }
    config.lines = lines;
    Ok(())
}

fn driver(is_console: bool) -> &'static str {
    if is_console { CONSOLE } else { PORT }
}

/// Gives each port its controller, the first without `bus=`, and its number, by QEMU's rules: 0 is
/// for a console, the first that asks for no number; others get the lowest that is free.
fn place(config: &Config) -> Result<Vec<Placed>, OptionError> {
    let mut placed: Vec<Placed> = Vec::new();
    for (index, device) in config.devices.iter().enumerate() {
        let Some(wanted) = device.properties.downcast_ref::<Port>() else { continue };
        let is_console = device.driver == CONSOLE;
        let refuse = |reason| Problem::Refused(reason).at(format!("-device {}", device.driver));
        let Some((controller, ports_max)) = controller_of(config, index, wanted) else {
            return Err(refuse("there is no such virtio-serial-device in front of it"));
        };
        let beside: Vec<_> = placed.iter().filter(|port| port.controller == controller).collect();
        let taken = |number: u32| beside.iter().any(|port| port.number == number);
        let number = match wanted.number {
            Some(0) if !is_console => {
                return Err(refuse("number 0 is for a virtconsole; write nr=1"));
            }
            Some(number) if taken(number) => {
                return Err(refuse("another port of the controller has this number"));
            }
            Some(number) => number,
            None if is_console && !taken(0) => 0,
            None => (1..).find(|number| !taken(*number)).unwrap_or(u32::MAX),
        };
        if number >= ports_max {
            return Err(refuse("the controller has no such port; raise its max_ports="));
        }
        if wanted.name.is_some() && beside.iter().any(|port| port.name == wanted.name) {
            return Err(refuse("another port of the controller has this name"));
        }
        placed.push(Placed {
            controller,
            id: device.id.clone(),
            number,
            is_console,
            name: wanted.name.clone(),
            chardev: wanted.chardev.clone(),
        });
    }
    Ok(placed)
}

/// The controller's place among the devices, and how many ports it has.
fn controller_of(config: &Config, port: usize, wanted: &Port) -> Option<(usize, u32)> {
    let mut unnamed = 0;
    let before = config.devices[..port].iter().enumerate().filter_map(|(index, device)| {
        let controller = device.properties.downcast_ref::<Controller>()?;
        let bus = match &device.id {
            Some(id) => format!("{id}.0"),
            None => {
                unnamed += 1;
                format!("virtio-serial-bus.{}", unnamed - 1)
            }
        };
        Some((bus, index, controller.ports_max))
    });
    let mut named = before.filter(|(bus, ..)| wanted.bus.as_ref().is_none_or(|name| name == bus));
    named.next().map(|(_, index, ports_max)| (index, ports_max))
}
