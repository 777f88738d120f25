//! The 16550A serial port.
//!
//! Bytes leave as soon as the guest writes them: the transmitter is always empty again before the
//! guest can look. What comes in waits in the receive FIFO (16 bytes, one without FIFO mode) until
//! the guest reads it.
//!
//! Our own, because `vm_superio::Serial` cannot hold all that QEMU's `serial` section carries (FIFO
//! control, trigger level, owed interrupts).

mod registers;
mod section;

pub(crate) use section::SerialState;

pub(crate) use registers::Registers;

use super::bus::Window;
use super::slots::Place;
use super::{
    Built, Device, DeviceRequest, Error, IrqLine, Kind, Loading, SectionKind, Sections, Slots,
    lacks, only_one,
};
use crate::arch::x86_64::acpi;
use crate::args::{Key, value};
use crate::config::Config;
use acpi_tables::aml;
use registers::{
    FCR_CLEAR_RECEIVED, FCR_CLEAR_SENT, FCR_ENABLE, FCR_KEPT, FIFO_BYTES, IER_EMPTY, IER_LINE,
    IER_MODEM, IER_RECEIVED, IIR_EMPTY, IIR_FIFO, IIR_ID, IIR_LINE, IIR_NONE, IIR_RECEIVED,
    IIR_TIMEOUT, LCR_DIVISOR, LSR_BREAK, LSR_EMPTY, LSR_ERRORS, LSR_IDLE, LSR_OVERRUN, LSR_READY,
    MCR_LOOP, MSR_CHANGES,
};
use std::collections::VecDeque;
use std::io::Write;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub(crate) const KIND: Kind = Kind {
    type_name: "isa-serial",
    sections: &[SectionKind::of::<SerialState>(
        "16550 serial port",
        |config, instance| match wanted(config) {
            true => only_one(config, instance),
            false => Some(lacks("-serial none")),
        },
    )],
    machine: &[Key::shown(
        "isa-serial",
        "on|off",
        |switches, text| {
            switches.set("isa-serial", value::switch(text)?);
            Ok(())
        },
        |switches| switches.get("isa-serial", true).into(),
    )],
    build,
    ..Kind::NONE
};

/// First port of COM1, how many, and its interrupt.
const PORT: u64 = 0x3f8;
const PORTS: u64 = 8;
const IRQ: u32 = 4;

/// Whether the machine has the port: as in QEMU, not without somebody to talk to.
fn wanted(config: &Config) -> bool {
    config.serial.is_some()
}

fn build(slots: &mut Slots<'_>) -> Result<Built, Error> {
    if !wanted(slots.config) {
        return Ok(Vec::new());
    }
    let sink = slots.console.take().unwrap_or_else(|| Box::new(std::io::sink()));
    let port = Arc::new(Serial::new(slots.irq(IRQ), sink));
    slots.port_window(PORT, PORTS, port.clone())?;
    slots.describe(Place::Serial, describe());
    Ok(vec![port])
}

fn describe() -> Vec<u8> {
    let number = aml::Name::new("_UID".into(), &1u8);
    let status = aml::Name::new("_STA".into(), &0x0fu8);
    let ports = aml::IO::new(PORT as u16, PORT as u16, 0, PORTS as u8);
    let interrupt = acpi::Irq(IRQ as u8);
    let kind = aml::EISAName::new("PNP0501");
    acpi::device("COM1", &kind, vec![&number, &status], vec![&ports, &interrupt], vec![])
}

type Wake = Box<dyn Fn() + Send + Sync>;

/// The device. Its output goes to `sink` within the access that wrote it.
pub struct Serial {
    port: Mutex<Port>,
    /// Called, with no lock held, when the guest made room for input.
    wake: Mutex<Option<Wake>>,
}

struct Port {
    regs: Registers,
    received: VecDeque<u8>,
    irq: Box<dyn IrqLine>,
    irq_high: bool,
    sink: Box<dyn Write + Send>,
}

impl Serial {
    pub(crate) fn new(irq: Box<dyn IrqLine>, sink: Box<dyn Write + Send>) -> Serial {
        let (regs, received) = (Registers::default(), VecDeque::with_capacity(FIFO_BYTES));
        Serial {
            port: Mutex::new(Port { regs, received, irq, irq_high: false, sink }),
            wake: Mutex::new(None),
        }
    }

    /// Takes input as far as there is room; returns how much that was.
    pub fn enqueue(&self, bytes: &[u8]) -> usize {
        let mut port = self.lock();
        let taken = bytes.len().min(port.room());
        for &byte in &bytes[..taken] {
            port.receive(byte);
        }
        port.update_irq();
        taken
    }

    /// The line is broken: a zero byte, and the sign for it.
    pub(crate) fn receive_break(&self) {
        let mut port = self.lock();
        if port.room() > 0 {
            port.receive(0);
        }
        port.regs.lsr |= LSR_BREAK | LSR_READY;
        port.update_irq();
    }

    /// `wake` is called from vCPU threads whenever the guest has read something: there is room for
    /// input. It may call [`Serial::enqueue`].
    pub fn on_room(&self, wake: Wake) {
        *self.wake.lock().unwrap_or_else(PoisonError::into_inner) = Some(wake);
    }

    fn state(&self) -> Registers {
        let port = self.lock();
        Registers { recv_fifo: port.received.iter().copied().collect(), ..port.regs.clone() }
    }

    /// Replaces all registers. Bytes that were on their way out leave now.
    fn set_state(&self, state: &Registers) {
        let mut port = self.lock();
        port.regs = state.clone();
        port.received.clear();
        port.received.extend(state.recv_fifo.iter().take(FIFO_BYTES));
        port.regs.recv_fifo.clear();
        let sent = std::mem::take(&mut port.regs.xmit_fifo);
        if !sent.is_empty() {
            port.send(&sent);
        }
        // The level is set whatever it was: KVM's chips are loaded separately.
        port.irq_high = !port.regs.wants_irq();
        port.update_irq();
    }

    fn lock(&self) -> MutexGuard<'_, Port> {
        self.port.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn woken(&self) {
        if let Some(wake) = &*self.wake.lock().unwrap_or_else(PoisonError::into_inner) {
            wake();
        }
    }
}

impl Device for Serial {
    fn reset(&self) -> Result<(), Error> {
        self.set_state(&Registers::default());
        Ok(())
    }

    fn save(&self, sections: &mut Sections) -> Result<(), Error> {
        sections.push("serial", 0, section::of(&self.state()));
        Ok(())
    }

    fn load(&self, from: &mut Loading<'_>) -> Result<(), Error> {
        let brought = from.sections.get("serial", 0);
        self.set_state(&brought.map_or_else(Registers::default, section::registers));
        Ok(())
    }
}

impl Window for Serial {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let mut made_room = false;
        {
            let mut port = self.lock();
            for (i, byte) in data.iter_mut().enumerate() {
                let register = offset + i as u64;
                made_room |= register == 0 && port.regs.lsr & LSR_READY != 0;
                *byte = port.read(register);
            }
        }
        if made_room {
            self.woken();
        }
    }

    fn write(&self, offset: u64, data: &[u8]) -> Option<DeviceRequest> {
        let mut port = self.lock();
        for (i, &byte) in data.iter().enumerate() {
            port.write(offset + i as u64, byte);
        }
        None
    }

    fn write_burst(&self, offset: u64, size: usize, data: &[u8]) -> Option<DeviceRequest> {
        if offset == 0 && size == 1 {
            let mut port = self.lock();
            if port.regs.lcr & LCR_DIVISOR == 0 && port.regs.mcr & MCR_LOOP == 0 {
                port.send(data);
                return None;
            }
        }
        data.chunks_exact(size).find_map(|piece| self.write(offset, piece))
    }
}

impl Port {
    fn room(&self) -> usize {
        match (self.regs.mcr & MCR_LOOP != 0, self.regs.fifo()) {
            (true, _) => 0,
            (false, true) => FIFO_BYTES - self.received.len(),
            (false, false) => usize::from(self.regs.lsr & LSR_READY == 0),
        }
    }

    fn receive(&mut self, byte: u8) {
        if self.regs.fifo() {
            if self.received.len() == FIFO_BYTES {
                self.regs.lsr |= LSR_OVERRUN;
            } else {
                self.received.push_back(byte);
            }
            // Nothing is gained by the four character times that hardware would wait.
            self.regs.timeout_ipending = true;
        } else {
            if self.regs.lsr & LSR_READY != 0 {
                self.regs.lsr |= LSR_OVERRUN;
            }
            self.regs.rbr = byte;
        }
        self.regs.lsr |= LSR_READY;
    }

    /// Sends a burst. The interrupt line goes low and high again, as it does between bytes: an
    /// IOAPIC pin that triggers on edges would miss the next interrupt otherwise.
    fn send(&mut self, bytes: &[u8]) {
        // A sink that fails has nobody who could be told; the guest's bytes are lost as on a pulled
        // cable.
        let _ = self.sink.write_all(bytes).and_then(|()| self.sink.flush());
        self.regs.thr_ipending = false;
        self.update_irq();
        self.regs.thr_ipending = true;
        self.regs.lsr |= LSR_EMPTY | LSR_IDLE;
        self.update_irq();
    }

    fn read(&mut self, register: u64) -> u8 {
        let latch = self.regs.lcr & LCR_DIVISOR != 0;
        match register {
            0 if latch => self.regs.divider as u8,
            1 if latch => (self.regs.divider >> 8) as u8,
            0 => self.read_received(),
            1 => self.regs.ier,
            2 => {
                let iir = self.regs.iir;
                if iir & IIR_ID == IIR_EMPTY {
                    self.regs.thr_ipending = false;
                    self.update_irq();
                }
                iir
            }
            3 => self.regs.lcr,
            4 => self.regs.mcr,
            5 => {
                let lsr = self.regs.lsr;
                self.regs.lsr &= !(LSR_BREAK | LSR_OVERRUN);
                self.update_irq();
                lsr
            }
            6 if self.regs.mcr & MCR_LOOP != 0 => loop_status(self.regs.mcr),
            6 => {
                let msr = self.regs.msr;
                self.regs.msr &= !MSR_CHANGES;
                self.update_irq();
                msr
            }
            7 => self.regs.scr,
            _ => 0xff,
        }
    }

    fn read_received(&mut self) -> u8 {
        if self.regs.fifo() {
            if let Some(byte) = self.received.pop_front() {
                self.regs.rbr = byte;
            }
            self.regs.timeout_ipending = !self.received.is_empty();
        }
        if self.received.is_empty() {
            self.regs.lsr &= !(LSR_READY | LSR_BREAK);
        }
        self.update_irq();
        self.regs.rbr
    }

    fn write(&mut self, register: u64, value: u8) {
        let latch = self.regs.lcr & LCR_DIVISOR != 0;
        match register {
            0 if latch => self.regs.divider = (self.regs.divider & 0xff00) | u16::from(value),
            1 if latch => self.regs.divider = (self.regs.divider & 0x00ff) | u16::from(value) << 8,
            0 if self.regs.mcr & MCR_LOOP != 0 => {
                self.receive(value);
                self.regs.thr_ipending = true;
                self.update_irq();
            }
            0 => self.send(&[value]),
            1 => self.write_ier(value & 0x0f),
            2 => self.write_fcr(value),
            3 => self.regs.lcr = value,
            4 => self.regs.mcr = value & 0x1f,
            7 => self.regs.scr = value,
            _ => {}
        }
    }

    fn write_ier(&mut self, value: u8) {
        let changed = self.regs.ier ^ value;
        self.regs.ier = value;
        if changed & IER_EMPTY != 0 {
            self.regs.thr_ipending = value & IER_EMPTY != 0 && self.regs.lsr & LSR_EMPTY != 0;
        }
        self.update_irq();
    }

    fn write_fcr(&mut self, value: u8) {
        let toggled = (self.regs.fcr ^ value) & FCR_ENABLE != 0;
        if toggled || value & FCR_CLEAR_RECEIVED != 0 {
            self.received.clear();
            self.regs.lsr &= !(LSR_READY | LSR_BREAK);
            self.regs.timeout_ipending = false;
        }
        if toggled || value & FCR_CLEAR_SENT != 0 {
            self.regs.lsr |= LSR_EMPTY;
            self.regs.thr_ipending = true;
        }
        self.regs.fcr = value & FCR_KEPT;
        self.update_irq();
    }

    /// Finds the most urgent interrupt, and drives the line if it changes.
    fn update_irq(&mut self) {
        let r = &self.regs;
        let enabled = |bit| r.ier & bit != 0;
        let ready = r.lsr & LSR_READY != 0 && (!r.fifo() || self.received.len() >= r.trigger());
        let id = if enabled(IER_LINE) && r.lsr & LSR_ERRORS != 0 {
            IIR_LINE
        } else if enabled(IER_RECEIVED) && ready {
            IIR_RECEIVED
        } else if enabled(IER_RECEIVED) && r.timeout_ipending {
            IIR_TIMEOUT
        } else if enabled(IER_EMPTY) && r.thr_ipending {
            IIR_EMPTY
        } else if enabled(IER_MODEM) && r.msr & MSR_CHANGES != 0 {
            0
        } else {
            IIR_NONE
        };
        self.regs.iir = id | if self.regs.fifo() { IIR_FIFO } else { 0 };
        let high = self.regs.wants_irq();
        if high != self.irq_high {
            self.irq_high = high;
            self.irq.set(high);
        }
    }
}

/// Modem status in loopback: the modem control outputs come back as inputs.
fn loop_status(mcr: u8) -> u8 {
    (mcr & 0x0c) << 4 | (mcr & 0x02) << 3 | (mcr & 0x01) << 5
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[derive(Clone, Default)]
    struct Wires {
        sent: Arc<Mutex<Vec<u8>>>,
        /// Times two plus level.
        irq: Arc<AtomicUsize>,
    }

    impl IrqLine for Wires {
        fn set(&self, high: bool) {
            let edges = self.irq.load(Ordering::Relaxed) / 2;
            self.irq.store((edges + usize::from(high)) * 2 + usize::from(high), Ordering::Relaxed);
        }
    }

    impl Write for Wires {
        fn write(&mut self, data: &[u8]) -> std::io::Result<usize> {
            self.sent.lock().unwrap().extend(data);
            Ok(data.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    impl Wires {
        fn high(&self) -> bool {
            self.irq.load(Ordering::Relaxed) % 2 == 1
        }
        fn edges(&self) -> usize {
            self.irq.load(Ordering::Relaxed) / 2
        }
    }

    fn port() -> (Serial, Wires) {
        let wires = Wires::default();
        (Serial::new(Box::new(wires.clone()), Box::new(wires.clone())), wires)
    }

    fn get(serial: &Serial, register: u64) -> u8 {
        let mut byte = [0];
        serial.read(register, &mut byte);
        byte[0]
    }

    #[test]
    fn a_driver_finds_a_16550a() {
        let (serial, _) = port();
        serial.write(4, &[MCR_LOOP | 0x0a]);
        assert_eq!(get(&serial, 6) & 0xf0, 0x90);
        serial.write(4, &[0]);
        serial.write(2, &[FCR_ENABLE]);
        assert_eq!(get(&serial, 2) >> 6, 3);
        serial.write(7, &[0x5a]);
        assert_eq!(get(&serial, 7), 0x5a);
        serial.write(3, &[LCR_DIVISOR | 3]);
        serial.write(0, &[1, 0]);
        serial.write(3, &[3]);
        assert_eq!(serial.state().divider, 1);
    }

    #[test]
    fn each_byte_sent_raises_one_edge() {
        let (serial, wires) = port();
        serial.write(1, &[IER_EMPTY]);
        assert_eq!(wires.edges(), 1);
        assert_eq!(get(&serial, 2) & IIR_ID, IIR_EMPTY);
        assert!(!wires.high());
        for _ in 0..3 {
            serial.write(0, b"a");
        }
        assert_eq!(wires.edges(), 4);
        serial.write_burst(0, 1, b"bcd");
        assert_eq!(wires.edges(), 5);
        assert_eq!(*wires.sent.lock().unwrap(), b"aaabcd");
        assert_eq!(get(&serial, 5) & 0x60, 0x60);
    }

    #[test]
    fn input_waits_until_it_is_read() {
        let (serial, wires) = port();
        let woken = Arc::new(AtomicUsize::new(0));
        let counter = woken.clone();
        serial.on_room(Box::new(move || {
            counter.fetch_add(1, Ordering::Relaxed);
        }));
        assert_eq!(serial.enqueue(b"xy"), 1);
        serial.write(2, &[FCR_ENABLE | 0x80]);
        assert_eq!(get(&serial, 5) & LSR_READY, 0, "switching modes empties the receiver");
        serial.write(1, &[IER_RECEIVED]);
        assert_eq!(serial.enqueue(&[7; 20]), 16);
        assert!(wires.high());
        assert_eq!(get(&serial, 2) & IIR_ID, IIR_RECEIVED);
        for left in (0..16).rev() {
            assert_eq!(get(&serial, 5) & LSR_READY, LSR_READY);
            assert_eq!(get(&serial, 0), 7);
            assert_eq!(wires.high(), left > 0);
        }
        assert_eq!(woken.load(Ordering::Relaxed), 16);
        assert_eq!(serial.enqueue(b"z"), 1);
        assert_eq!(get(&serial, 2) & IIR_ID, IIR_TIMEOUT);
    }

    #[test]
    fn state_moves_to_another_port() {
        let (serial, _) = port();
        serial.write(2, &[FCR_ENABLE]);
        serial.write(1, &[IER_RECEIVED | IER_EMPTY]);
        serial.enqueue(b"abc");
        let state = serial.state();
        assert_eq!(state.recv_fifo, b"abc");
        let (other, wires) = port();
        other.set_state(&state);
        assert_eq!(other.state(), state);
        assert!(wires.high());
        assert_eq!(get(&other, 0), b'a');
        other.set_state(&Registers { xmit_fifo: b"late".to_vec(), ..state });
        assert_eq!(*wires.sent.lock().unwrap(), b"late");
    }
}
