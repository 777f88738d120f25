//! The second I/O APIC of `acpi=on`, for interrupts 24 to 47: a device of this process, whose
//! interrupts enter KVM as messages.
//!
//! | address | bytes | |
//! |---|---|---|
//! | 0xfec10000 | 1 | which register the next is about |
//! | 0xfec10010 | 4 | 0 id, 1 version, 2 arbitration, from 0x10 on two for each pin |
//! | 0xfec10040 | 4 | end of interrupt, by vector |
//!
//! (Intel's 82093AA, with the end-of-interrupt register of version 0x20.)
//!
//! KVM does not tell that a guest has ended an interrupt of this chip, unless the guest writes that
//! register. So no pin waits for it: a line that rises, or is asserted again while it is high, is a
//! message; a driver finds nothing to do at worst. The bit "remote IRR" always reads as zero.

use super::section::IoapicState;
use crate::arch::x86_64::acpi::SECOND_IOAPIC;
use crate::args::switch_or_auto;
use crate::config::Config;
use crate::devices::acpi;
use crate::devices::bus::Window;
use crate::devices::{
    Built, Device, DeviceRequest, Error, IrqLine, Kind, Loading, Missing, Sections, Slots,
};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub(crate) const KIND: Kind = Kind {
    missing: |config, sections| {
        let lost = wanted(config) && !sections.contains("ioapic", INSTANCE);
        let why =
            "missing; the stream is of a machine with one I/O APIC, write ioapic2=off".to_owned();
        lost.then(|| Missing { name: "ioapic".into(), instance: INSTANCE, why })
    },
    machine: &[switch_or_auto!(SWITCH)],
    build,
    ..Kind::NONE
};

const SWITCH: &str = "ioapic2";
const INSTANCE: u32 = 1;
const WINDOW_BYTES: u64 = 0x1000;
const PINS: u32 = 24;

const SELECT: u64 = 0x00;
const DATA: u64 = 0x10;
const END_OF_INTERRUPT: u64 = 0x40;
const VERSION: u32 = 0x20 | (PINS - 1) << 16;

/// Of a redirection entry.
const VECTOR: u64 = 0xff;
const LOGICAL: u64 = 1 << 11;
const SENT: u64 = 1 << 12;
const REMOTE_IRR: u64 = 1 << 14;
const LEVEL: u64 = 1 << 15;
const MASKED: u64 = 1 << 16;
/// As far as a guest can write it.
const WRITABLE: u64 = !(SENT | REMOTE_IRR);
/// A vector that comes from a PIC, of which this chip has none.
const EXTERNAL: u64 = 7;

/// Whether the machine has it. QEMU's own default is `auto`, which means on with ACPI.
pub(crate) fn wanted(config: &Config) -> bool {
    acpi::wanted(config) && config.machine.switches.get(SWITCH, true)
}

fn build(slots: &mut Slots<'_>) -> Result<Built, Error> {
    if !wanted(slots.config) {
        return Ok(Vec::new());
    }
    slots.vm.check_messages()?;
    let vm = slots.vm.clone();
    // Without a processor that takes it, a message is lost, as an interrupt on a bus would be.
    let send = Box::new(move |address, data| vm.send_message(address, data));
    let device = Arc::new(SecondIoapic { send, chip: Mutex::default() });
    slots.memory_window(SECOND_IOAPIC.into(), WINDOW_BYTES, device.clone())?;
    let lines = device.clone();
    slots.further_lines = Some(Box::new(move |pin| Box::new(lines.line(pin))));
    Ok(vec![device])
}

/// The device.
pub(crate) struct SecondIoapic {
    /// Takes a message's address and data.
    send: Box<dyn Fn(u32, u32) + Send + Sync>,
    chip: Mutex<Chip>,
}

struct Chip {
    id: u8,
    selected: u8,
    /// Lines that are high, or edges not sent yet, a bit each.
    raised: u32,
    redirections: [u64; PINS as usize],
}

impl Default for Chip {
    fn default() -> Chip {
        Chip { id: 0, selected: 0, raised: 0, redirections: [MASKED; PINS as usize] }
    }
}

impl SecondIoapic {
    /// The line of a pin, counted from 0.
    pub(crate) fn line(self: &Arc<Self>, pin: u32) -> Pin {
        Pin { ioapic: self.clone(), pin: pin.min(PINS - 1) }
    }

    fn lock(&self) -> MutexGuard<'_, Chip> {
        self.chip.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends what is raised of these pins and not masked.
    fn deliver(&self, chip: &mut Chip, pins: u32) {
        let raised = pins & chip.raised;
        for pin in (0..PINS).filter(|pin| raised & 1 << pin != 0) {
            let entry = chip.redirections[pin as usize];
            if entry & MASKED != 0 {
                continue;
            }
            if entry & LEVEL == 0 {
                chip.raised &= !(1 << pin);
            }
            let delivery = entry >> 8 & 7;
            if delivery != EXTERNAL {
                let address =
                    0xfee0_0000 | (entry >> 56) << 12 | u64::from(entry & LOGICAL != 0) << 2;
                let data = entry & VECTOR | delivery << 8 | entry & LEVEL;
                (self.send)(address as u32, data as u32);
            }
        }
    }

    fn set(&self, pin: u32, high: bool) {
        let mut chip = self.lock();
        let (bit, entry) = (1 << pin, chip.redirections[pin as usize]);
        match high {
            // An edge while the pin is masked is lost.
            true if entry & LEVEL != 0 || entry & MASKED == 0 => chip.raised |= bit,
            false if entry & LEVEL != 0 => chip.raised &= !bit,
            _ => return,
        }
        self.deliver(&mut chip, bit);
    }
}

impl Chip {
    fn register(&self) -> u32 {
        match self.selected {
            0 | 2 => u32::from(self.id & 0xf) << 24,
            1 => VERSION,
            _ => self.pin().map_or(0, |(pin, shift)| (self.redirections[pin] >> shift) as u32),
        }
    }

    /// The pin that the selected register belongs to, and which half of its entry.
    fn pin(&self) -> Option<(usize, u32)> {
        let at = usize::from(self.selected.checked_sub(0x10)?);
        (at / 2 < PINS as usize).then_some((at / 2, 32 * (at as u32 & 1)))
    }
}

impl Window for SecondIoapic {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let chip = self.lock();
        let value = match offset {
            SELECT => chip.selected.into(),
            DATA if data.len() == 4 => chip.register(),
            _ => 0,
        };
        data.fill(0);
        data.iter_mut().zip(value.to_le_bytes()).for_each(|(to, from)| *to = from);
    }

    fn write(&self, offset: u64, data: &[u8]) -> Option<DeviceRequest> {
        let mut chip = self.lock();
        match (offset, <[u8; 4]>::try_from(data)) {
            (SELECT, _) => chip.selected = *data.first()?,
            (DATA, Ok(word)) => {
                let word = u64::from(u32::from_le_bytes(word));
                match (chip.selected, chip.pin()) {
                    (0, _) => chip.id = (word >> 24) as u8 & 0xf,
                    (_, Some((pin, shift))) => {
                        let kept = chip.redirections[pin] & !(0xffff_ffff << shift);
                        chip.redirections[pin] = (kept | word << shift) & WRITABLE;
                        self.deliver(&mut chip, 1 << pin);
                    }
                    _ => {}
                }
            }
            (END_OF_INTERRUPT, Ok(word)) => {
                let vector = u64::from(word[0]);
                let ends = |entry: &u64| entry & VECTOR == vector && entry & LEVEL != 0;
                let pins = (0..PINS).filter(|pin| ends(&chip.redirections[*pin as usize]));
                let pins = pins.fold(0, |pins, pin| pins | 1 << pin);
                self.deliver(&mut chip, pins);
            }
            _ => {}
        }
        None
    }
}

impl Device for SecondIoapic {
    fn reset(&self) -> Result<(), Error> {
        *self.lock() = Chip::default();
        Ok(())
    }

    fn save(&self, sections: &mut Sections) -> Result<(), Error> {
        let chip = self.lock();
        let state = IoapicState {
            id: chip.id,
            ioregsel: chip.selected,
            irr: chip.raised,
            redirections: chip.redirections,
        };
        sections.push("ioapic", INSTANCE, state);
        Ok(())
    }

    fn load(&self, from: &mut Loading<'_>) -> Result<(), Error> {
        let brought = from.sections.get::<IoapicState>("ioapic", INSTANCE);
        *self.lock() = brought.map_or_else(Chip::default, |state| Chip {
            id: state.id,
            selected: state.ioregsel,
            raised: state.irr & ((1 << PINS) - 1),
            redirections: state.redirections.map(|entry| entry & WRITABLE),
        });
        Ok(())
    }
}

/// A line of the chip.
pub(crate) struct Pin {
    ioapic: Arc<SecondIoapic>,
    pin: u32,
}

impl IrqLine for Pin {
    fn set(&self, high: bool) {
        self.ioapic.set(self.pin, high);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Sent = Arc<Mutex<Vec<(u32, u32)>>>;

    fn chip() -> (Arc<SecondIoapic>, Sent) {
        let sent = Sent::default();
        let log = sent.clone();
        let send = Box::new(move |address, data| log.lock().unwrap().push((address, data)));
        (Arc::new(SecondIoapic { send, chip: Mutex::default() }), sent)
    }

    fn redirect(ioapic: &SecondIoapic, pin: u8, entry: u64) {
        for (register, word) in [(1, entry >> 32), (0, entry)] {
            ioapic.write(SELECT, &[0x10 + 2 * pin + register]);
            ioapic.write(DATA, &(word as u32).to_le_bytes());
        }
    }

    #[test]
    fn a_level_is_told_when_it_rises_and_when_it_is_unmasked() {
        let (ioapic, sent) = chip();
        let taken = || std::mem::take(&mut *sent.lock().unwrap());
        let line = ioapic.line(23);
        line.set(true);
        assert_eq!(taken(), [], "masked as after power-on, and an edge");
        redirect(&ioapic, 23, 0x0300_0000_0000_8000 | LOGICAL | MASKED | 0x41);
        line.set(true);
        assert_eq!(taken(), []);
        redirect(&ioapic, 23, 0x0300_0000_0000_8000 | LOGICAL | 0x41);
        assert_eq!(taken(), [(0xfee0_3004, 0x8041)]);
        line.set(false);
        line.set(true);
        line.set(true);
        assert_eq!(taken().len(), 2, "asserted again, told again");
        ioapic.write(END_OF_INTERRUPT, &0x41u32.to_le_bytes());
        assert_eq!(taken().len(), 1, "it is still high");
        line.set(false);
        ioapic.write(END_OF_INTERRUPT, &0x41u32.to_le_bytes());
        assert_eq!(taken(), []);
    }

    #[test]
    fn an_edge_is_told_once_and_lost_while_masked() {
        let (ioapic, sent) = chip();
        let line = ioapic.line(0);
        redirect(&ioapic, 0, MASKED | 0x30);
        line.set(true);
        line.set(false);
        redirect(&ioapic, 0, 0x30);
        assert_eq!(*sent.lock().unwrap(), []);
        line.set(true);
        ioapic.write(END_OF_INTERRUPT, &0x30u32.to_le_bytes());
        assert_eq!(*sent.lock().unwrap(), [(0xfee0_0000, 0x30)]);
    }

    #[test]
    fn registers_read_back_but_for_what_is_the_chips() {
        let (ioapic, _) = chip();
        redirect(&ioapic, 5, u64::MAX);
        let read = |register: u8| {
            ioapic.write(SELECT, &[register]);
            let mut data = [0; 4];
            ioapic.read(DATA, &mut data);
            u32::from_le_bytes(data)
        };
        assert_eq!((read(1), read(0x1a), read(0x1b)), (0x0017_0020, 0xffff_afff, u32::MAX));
        assert_eq!((read(0x3f), read(0x40), read(0xff)), (0, 0, 0));
        let mut sections = Sections::default();
        ioapic.save(&mut sections).unwrap();
        let state = sections.get::<IoapicState>("ioapic", 1).unwrap();
        assert_eq!(state.redirections[6], MASKED);
    }
}
