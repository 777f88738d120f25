//! `-device virtio-serial-device`: a controller of ports, each a `virtconsole` or a `virtserialport`
//! over a character device.
//!
//! Queues 0 and 1 are input and output of port 0, 2 and 3 those of control messages, and port n has
//! 2n + 2 and 2n + 3 (virtio 1.2, 5.3).

mod options;
mod port;

pub(super) use options::{
    CONSOLE, CONTROLLER, CONTROLLER_KEYS, Controller, PORT, PORT_KEYS, complete, ports_of,
};

use super::model::{Model, Next};
use super::queue::{Fault, Queue};
use super::{ConsoleState, PortsMapWord, VirtioDevice, VirtioKind, Wake};
use crate::devices::{Lines, PortEvents};
use crate::memory::GuestRam;
use options::Placed;
use port::Port;
use std::collections::VecDeque;
use virtio_bindings::virtio_ids::VIRTIO_ID_CONSOLE;

const MULTIPORT: u64 = 1 << 1;
const EMERGENCY_WRITE: u64 = 1 << 2;
/// Of the byte to be said in an emergency, in the configuration space.
const EMERGENCY_AT: u64 = 8;

const PORT_QUEUE: u16 = 128;
const CONTROL_QUEUE: u16 = 32;
const CONTROL_IN: usize = 2;
const CONTROL_OUT: usize = 3;

/// Events of control messages: le32 port, le16 event, le16 value, and the name of PORT_NAME.
mod event {
    pub(super) const DEVICE_READY: u16 = 0;
    pub(super) const PORT_ADD: u16 = 1;
    pub(super) const PORT_READY: u16 = 3;
    pub(super) const CONSOLE_PORT: u16 = 4;
    pub(super) const PORT_OPEN: u16 = 6;
    pub(super) const PORT_NAME: u16 = 7;
}

const MESSAGE_BYTES: usize = 8;
/// Messages that wait for the guest's buffers; while there are so many, it is not listened to.
const PENDING_MAX: usize = 64;
/// Control messages of one turn.
const TURN_MESSAGES: usize = 64;

/// What a controller offers.
pub(super) fn features(controller: &Controller) -> u64 {
    let multiport = if controller.ports_max > 1 { MULTIPORT } else { 0 };
    multiport | if controller.emergency_write { EMERGENCY_WRITE } else { 0 }
}

/// The device.
pub(super) struct Console {
    ports_max: u32,
    emergency_write: bool,
    ports: Vec<Port>,
    /// Control messages to the guest.
    pending: VecDeque<Vec<u8>>,
    opened: PortEvents,
}

impl Console {
    pub(super) fn new(
        controller: &Controller,
        ports: Vec<Placed>,
        lines: &Lines,
        opened: PortEvents,
    ) -> Console {
        let port = |placed: Placed| {
            let line = placed.chardev.as_ref().and_then(|id| lines.get(id)).cloned();
            Port::new(placed, line)
        };
        let ports = ports.into_iter().map(port).collect();
        let (ports_max, emergency_write) = (controller.ports_max, controller.emergency_write);
        Console { ports_max, emergency_write, ports, pending: VecDeque::new(), opened }
    }

    fn tell(&mut self, port: u32, event: u16, value: u16, name: &[u8]) {
        let mut message = port.to_le_bytes().to_vec();
        message.extend(event.to_le_bytes());
        message.extend(value.to_le_bytes());
        message.extend(name);
        self.pending.push_back(message);
    }

    /// Reads and answers control messages, as long as the answers find a place.
    fn control(&mut self, ram: &GuestRam, queues: &mut [Queue]) -> Result<bool, Fault> {
        let mut messages = 0;
        while messages < TURN_MESSAGES && self.pending.len() < PENDING_MAX {
            let Some(chain) = queues[CONTROL_OUT].pop(ram)? else { break };
            let mut message = [0; MESSAGE_BYTES];
            if chain.read(ram, 0, &mut message)? == MESSAGE_BYTES {
                let half = |at| u16::from_le_bytes([message[at], message[at + 1]]);
                let port = u32::from(half(0)) | u32::from(half(2)) << 16;
                self.hear(port, half(4), half(6));
            }
            queues[CONTROL_OUT].push(ram, chain.head, 0)?;
            messages += 1;
        }
        // Nobody will say again what was left unread for want of places.
        let was_full = self.pending.len() >= PENDING_MAX;
        while let Some(message) = self.pending.front() {
            let Some(chain) = queues[CONTROL_IN].pop(ram)? else { break };
            let written = chain.write(ram, message)?;
            queues[CONTROL_IN].push(ram, chain.head, written)?;
            self.pending.pop_front();
        }
        let has_places = self.pending.len() < PENDING_MAX;
        Ok(messages == TURN_MESSAGES || was_full && has_places)
    }

    /// A message of the guest's. What makes no sense is not heard, as in QEMU.
    fn hear(&mut self, number: u32, event: u16, value: u16) {
        if event == event::DEVICE_READY {
            let numbers: Vec<u32> = self.ports.iter().map(|port| port.number).collect();
            if value != 0 {
                numbers.into_iter().for_each(|number| self.tell(number, event::PORT_ADD, 1, b""));
            }
            return;
        }
        let Some(port) = self.ports.iter_mut().find(|port| port.number == number) else { return };
        match event {
            event::PORT_READY if value != 0 => {
                let (is_console, open) = (port.is_console, port.host_connected);
                let name = port.name.clone();
                if is_console {
                    self.tell(number, event::CONSOLE_PORT, 1, b"");
                }
                if let Some(name) = name {
                    self.tell(number, event::PORT_NAME, 1, &[name.as_bytes(), b"\0"].concat());
                }
                if open {
                    self.tell(number, event::PORT_OPEN, 1, b"");
                }
            }
            event::PORT_OPEN => {
                port.guest_connected = value != 0;
                if let Some(id) = &port.id {
                    (self.opened)(id, value != 0);
                }
            }
            _ => {}
        }
    }

    /// Looks who is at the other ends now. While a guest takes no messages nobody comes or goes.
    fn look(&mut self, multiport: bool) {
        if multiport && self.pending.len() >= PENDING_MAX {
            return;
        }
        let changed: Vec<_> = self
            .ports
            .iter_mut()
            .filter(|port| port.is_open() != port.host_connected)
            .map(|port| {
                port.host_connected = !port.host_connected;
                (port.number, port.host_connected)
            })
            .collect();
        for (number, open) in changed.into_iter().filter(|_| multiport) {
            self.tell(number, event::PORT_OPEN, open.into(), b"");
        }
    }
}

impl Model for Console {
    fn kind(&self) -> VirtioKind {
        VirtioKind::Console
    }

    fn id(&self) -> u32 {
        VIRTIO_ID_CONSOLE
    }

    fn queue_sizes(&self) -> Vec<u16> {
        let mut sizes = vec![PORT_QUEUE; 2 * self.ports_max as usize + 2];
        sizes[CONTROL_IN..=CONTROL_OUT].fill(CONTROL_QUEUE);
        sizes
    }

    /// No size, for there is no screen.
    fn config(&self) -> Vec<u8> {
        let mut config = vec![0; 4];
        config.extend(self.ports_max.to_le_bytes());
        config.extend([0; 4]);
        config
    }

    /// A driver may say a byte in an emergency before it has agreed to anything (virtio 1.2, 5.3.4).
    fn write_config(&mut self, offset: u64, data: &[u8], _features: u64) {
        let console = self.ports.iter().find(|port| port.is_console && port.host_connected);
        if let (EMERGENCY_AT, Some(byte), Some(port)) = (offset, data.first(), console)
            && self.emergency_write
        {
            port.say(*byte);
        }
    }

    fn reset(&mut self) {
        self.pending.clear();
        for port in &mut self.ports {
            if let (Some(id), true) = (&port.id, port.guest_connected) {
                (self.opened)(id, false);
            }
            port.reset();
        }
    }

    fn queue_reset(&mut self, queue: usize) {
        self.ports.iter_mut().for_each(|port| port.queue_reset(queue));
    }

    fn connect(&mut self, wake: Wake) {
        self.ports.iter_mut().for_each(|port| port.connect(wake.clone()));
    }

    fn serve(
        &mut self,
        ram: &GuestRam,
        queues: &mut [Queue],
        features: u64,
    ) -> Result<Next, Fault> {
        let multiport = features & MULTIPORT != 0;
        self.look(multiport);
        let mut more = multiport && self.control(ram, queues)?;
        for port in &mut self.ports {
            let at = port.queue();
            // Without messages there is port 0 alone, and it is always open.
            if multiport || port.number == 0 {
                more |= port.output(ram, &mut queues[at + 1])?;
                let hears = !multiport || port.guest_connected;
                port.input(ram, &mut queues[at], hears)?;
            }
        }
        Ok(if more { Next::More } else { Next::Wait })
    }

    fn quiesce(&mut self, ram: &GuestRam, queues: &mut [Queue]) -> Result<(), Fault> {
        self.ports.iter_mut().try_for_each(|port| {
            let at = port.queue();
            port.quiesce(ram, &mut queues[at])
        })
    }

    fn save(&self, _: u64) -> VirtioDevice {
        let mut map = vec![PortsMapWord(0); self.ports_max.div_ceil(32) as usize];
        for port in &self.ports {
            map[port.number as usize / 32].0 |= 1 << (port.number % 32);
        }
        VirtioDevice::Console(ConsoleState {
            cols: 0,
            rows: 0,
            max_ports: self.ports_max,
            ports_map: map,
            ports: self.ports.iter().map(Port::save).collect(),
        })
    }

    fn load(&mut self, from: &VirtioDevice, ram: &GuestRam) -> Result<(), String> {
        let VirtioDevice::Console(from) = from else { return Ok(()) };
        self.pending.clear();
        for port in &mut self.ports {
            let brought = from.ports.iter().find(|brought| brought.id == port.number);
            port.load(brought.unwrap_or(&Default::default()), ram)?;
            // Whoever watches this process has not heard of it, as with QEMU.
            if let (Some(id), Some(brought)) = (&port.id, brought) {
                (self.opened)(id, brought.guest_connected != 0);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;

/// Whether a controller with these ports can have the state.
pub(super) fn check(
    controller: &Controller,
    ports: &[Placed],
    from: &ConsoleState,
) -> Result<(), String> {
    if from.max_ports != controller.ports_max {
        return Err(format!("max_ports={}, here {}", from.max_ports, controller.ports_max));
    }
    let sorted = |numbers: &mut dyn Iterator<Item = u32>| {
        let mut numbers: Vec<_> = numbers.collect();
        numbers.sort_unstable();
        numbers
    };
    let theirs = sorted(&mut from.ports.iter().map(|port| port.id));
    let ours = sorted(&mut ports.iter().map(|port| port.number));
    match theirs == ours {
        true => Ok(()),
        false => Err(format!("the controller has ports {theirs:?}, here {ours:?} (nr=)")),
    }
}
