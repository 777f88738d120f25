//! What stands at f000:fff0, where a processor begins, and where kernels jump in real mode to start
//! the machine over: Linux does with ACPI, whose tables know no other way to it
//! (hardware-reduced ACPI sends it to EFI, and without EFI to the BIOS). QEMU has firmware there, of
//! which nothing comes along with a guest. Here it is code that faults three times over, which is a
//! reset.
//!
//! It is put there whenever the guest is about to run, unless something else is: what a kernel's file
//! has there, or what a guest brought. Memory maps call the place reserved, QEMU's too.

use super::device::Device;
use super::error::Error;
use super::kind::Kind;
use super::sections::{Loading, Sections};
use super::slots::{Built, Slots};
use crate::memory::GuestRam;
use crate::pages;
use std::sync::Arc;

pub(crate) const KIND: Kind = Kind { build, ..Kind::NONE };

/// f000:fff0.
const PLACE: u64 = 0xf_fff0;

/// An interrupt table too short for any entry (its limit is the operand of the second instruction),
/// and a fault, in protected mode: in real mode not every KVM looks at the limit.
#[rustfmt::skip]
const CODE: [u8; 16] = [
    0x2e, 0x0f, 0x01, 0x1e, 0xf7, 0xff, // lidt cs:[0xfff7]
    0xb8, 0x01, 0x00,                   // mov ax, 1
    0x0f, 0x01, 0xf0,                   // lmsw ax
    0x8e, 0xd0,                         // mov ss, ax: null, and not of this level
    0xf4, 0xf4,                         // hlt
];

fn build(slots: &mut Slots<'_>) -> Result<Built, Error> {
    match slots.config.machine.none {
        true => Ok(Vec::new()),
        false => Ok(vec![Arc::new(ResetVector(slots.vm.ram().clone()))]),
    }
}

/// The code, in RAM; it has no state of its own.
struct ResetVector(GuestRam);

impl Device for ResetVector {
    fn reset(&self) -> Result<(), Error> {
        Ok(())
    }

    /// Not earlier: a guest that arrives is compared with its source, and its memory is its own
    /// until it runs.
    fn resume(&self) -> Result<(), Error> {
        let ResetVector(ram) = self;
        if ram.main().offset(PLACE).is_none() {
            return Ok(());
        }
        let mut found = [0; CODE.len()];
        pages::read(ram, PLACE, &mut found)?;
        if found == [0; CODE.len()] {
            ram.write(PLACE, &CODE)?;
        }
        Ok(())
    }

    fn save(&self, _sections: &mut Sections) -> Result<(), Error> {
        Ok(())
    }

    fn load(&self, _from: &mut Loading<'_>) -> Result<(), Error> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::{PageSet, for_tests};

    #[test]
    fn it_is_there_when_the_guest_runs_and_travels() {
        let ram = for_tests(2 << 20);
        let vector = ResetVector(ram.clone());
        let found = || {
            let mut found = [0; 16];
            ram.read(PLACE, &mut found).unwrap();
            found
        };
        let dirty = || {
            let mut dirty = PageSet::new(ram.main().pages());
            ram.take_vmm_dirty(&mut dirty);
            dirty.iter().collect::<Vec<_>>()
        };
        vector.reset().unwrap();
        assert_eq!(dirty(), [0; 0]);
        vector.resume().unwrap();
        assert_eq!((found(), dirty()), (CODE, vec![0xff]));
        vector.resume().unwrap();
        assert_eq!(dirty(), [0; 0]);
    }

    #[test]
    fn what_is_there_already_stays() {
        let ram = for_tests(2 << 20);
        let theirs = *b"\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x01";
        ram.write(PLACE, &theirs).unwrap();
        ResetVector(ram.clone()).resume().unwrap();
        let mut found = [0; 16];
        ram.read(PLACE, &mut found).unwrap();
        assert_eq!(found, theirs);
        // A machine that is smaller has no such place.
        ResetVector(for_tests(0x8_0000)).resume().unwrap();
    }
}
