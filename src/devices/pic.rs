//! The pair of 8259 interrupt controllers in the kernel. It is always there; `pic=off` hides it.

use super::device::Device;
use super::error::Error;
use super::kind::{Kind, SectionKind, lacks, only_one};
use super::sections::{Loading, Sections};
use super::slots::{Built, Slots};
use crate::args::{Key, value};
use crate::config::Config;
use crate::kvm::Vm;
use crate::vmstate::{Layout, Visitor};
use kvm_bindings::kvm_pic_state;
use std::sync::Arc;

pub(crate) const KIND: Kind = Kind {
    type_name: "isa-i8259",
    sections: &[SectionKind::of::<PicState>("legacy interrupt controller", |config, instance| {
        match instance {
            0 | 1 if shown(config) => None,
            0 | 1 => Some(lacks("pic=on is missing in -M")),
            _ => only_one(config, instance),
        }
    })],
    machine: &[Key::shown(
        "pic",
        "on|off",
        |switches, text| {
            switches.set("pic", value::switch_or_auto(text)?.unwrap_or(true));
            Ok(())
        },
        |switches| switches.said("pic").into(),
    )],
    build,
    ..Kind::NONE
};

fn shown(config: &Config) -> bool {
    config.machine.switches.get("pic", true)
}

fn build(slots: &mut Slots<'_>) -> Result<Built, Error> {
    let vm = slots.vm.clone();
    let power_on = [vm.read_pic(0)?, vm.read_pic(1)?];
    Ok(vec![Arc::new(Pics { vm, power_on, shown: shown(slots.config) })])
}

/// Master and slave.
struct Pics {
    vm: Arc<Vm>,
    power_on: [kvm_pic_state; 2],
    shown: bool,
}

impl Device for Pics {
    fn reset(&self) -> Result<(), Error> {
        for (number, state) in self.power_on.iter().enumerate() {
            self.vm.write_pic(number as u32, state)?;
        }
        Ok(())
    }

    fn save(&self, sections: &mut Sections) -> Result<(), Error> {
        for number in (0..2).filter(|_| self.shown) {
            sections.push("i8259", number, pic(&self.vm.read_pic(number)?));
        }
        Ok(())
    }

    fn load(&self, from: &mut Loading<'_>) -> Result<(), Error> {
        for (number, power_on) in self.power_on.iter().enumerate() {
            let brought = from.sections.get("i8259", number as u32);
            let state = brought.map_or(*power_on, |state| from_pic(state, number));
            self.vm.write_pic(number as u32, &state)?;
        }
        Ok(())
    }
}

/// `i8259`: instance 0 is the master, 1 the slave.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct PicState {
    pub last_irr: u8,
    pub irr: u8,
    pub imr: u8,
    pub isr: u8,
    pub priority_add: u8,
    pub irq_base: u8,
    pub read_reg_select: u8,
    pub poll: u8,
    pub special_mask: u8,
    pub init_state: u8,
    pub auto_eoi: u8,
    pub rotate_on_auto_eoi: u8,
    pub special_fully_nested_mode: u8,
    pub init4: u8,
    pub single_mode: u8,
    pub elcr: u8,
    pub ltim: Option<u8>,
}

impl Layout for PicState {
    const NAME: &'static str = "i8259";
    const VERSION: u32 = 1;

    fn fields<V: Visitor>(&mut self, v: &mut V) -> Result<(), V::Stop> {
        v.value("last_irr", &mut self.last_irr)?;
        v.value("irr", &mut self.irr)?;
        v.value("imr", &mut self.imr)?;
        v.value("isr", &mut self.isr)?;
        v.value("priority_add", &mut self.priority_add)?;
        v.value("irq_base", &mut self.irq_base)?;
        v.value("read_reg_select", &mut self.read_reg_select)?;
        v.value("poll", &mut self.poll)?;
        v.value("special_mask", &mut self.special_mask)?;
        v.value("init_state", &mut self.init_state)?;
        v.value("auto_eoi", &mut self.auto_eoi)?;
        v.value("rotate_on_auto_eoi", &mut self.rotate_on_auto_eoi)?;
        v.value("special_fully_nested_mode", &mut self.special_fully_nested_mode)?;
        v.value("init4", &mut self.init4)?;
        v.value("single_mode", &mut self.single_mode)?;
        v.value("elcr", &mut self.elcr)
    }

    fn subsections<V: Visitor>(&mut self, v: &mut V) -> Result<(), V::Stop> {
        v.subsection_of("i8259/ltim", "ltim", &mut self.ltim)
    }
}

/// A struct of KVM's or the stream's: the fields that both have, of the other one, and the rest.
macro_rules! converted {
    ($from:ident to $to:ident, $($more:tt)*) => {
        $to {
            last_irr: $from.last_irr,
            irr: $from.irr,
            imr: $from.imr,
            isr: $from.isr,
            priority_add: $from.priority_add,
            irq_base: $from.irq_base,
            read_reg_select: $from.read_reg_select,
            poll: $from.poll,
            special_mask: $from.special_mask,
            init_state: $from.init_state,
            auto_eoi: $from.auto_eoi,
            rotate_on_auto_eoi: $from.rotate_on_auto_eoi,
            special_fully_nested_mode: $from.special_fully_nested_mode,
            init4: $from.init4,
            elcr: $from.elcr,
            $($more)*
        }
    };
}

fn pic(from: &kvm_pic_state) -> PicState {
    // KVM's mode is always one of two.
    converted!(from to PicState, single_mode: 0, ltim: None)
}

/// Which lines of each controller can be level triggered.
const ELCR_MASKS: [u8; 2] = [0xf8, 0xde];

/// KVM's controller of that number: 0 master, 1 slave.
fn from_pic(from: &PicState, number: usize) -> kvm_pic_state {
    converted!(from to kvm_pic_state, elcr_mask: ELCR_MASKS[number])
}
