//! What is under a transport's lock: registers, queues, and the device's model.

use super::mmio::{EVENT_IDX, ISR_QUEUE, NOTIFY_ON_EMPTY, Registers};
use super::model::{Model, Next};
use super::queue::{Fault, Queue};
use crate::devices::IrqLine;
use crate::memory::GuestRam;

pub(super) struct State {
    pub registers: Registers,
    pub queues: Vec<Queue>,
    pub model: Box<dyn Model>,
    pub irq: Box<dyn IrqLine>,
    pub irq_high: bool,
    /// The machine runs: queues may be served.
    pub running: bool,
    /// That this device was broken was said.
    pub complained: bool,
}

impl State {
    pub(super) fn reset(&mut self) {
        self.registers.reset();
        self.queues.iter_mut().for_each(Queue::reset);
        self.model.reset();
        self.update_irq();
    }

    /// Takes all rings into use that are set up. Those that are in use already keep their positions.
    pub(super) fn start(&mut self, ram: &GuestRam) -> Result<(), Fault> {
        let event_idx = self.registers.has(EVENT_IDX);
        let mut rings =
            self.queues.iter_mut().filter(|queue| queue.is_set_up() && !queue.is_in_use());
        rings.try_for_each(|queue| queue.start(ram, event_idx))
    }

    pub(super) fn serve(&mut self, ram: &GuestRam) -> Result<Next, Fault> {
        let next = self.model.serve(ram, &mut self.queues, self.registers.features)?;
        self.look_for_config_change();
        self.tell(ram)?;
        Ok(next)
    }

    /// The line follows with [`State::update_irq`].
    pub(super) fn look_for_config_change(&mut self) {
        if self.model.take_config_change() {
            self.registers.config_changed();
        }
    }

    /// Interrupts the guest if it wants to know what was given back.
    pub(super) fn tell(&mut self, ram: &GuestRam) -> Result<(), Fault> {
        let on_empty = self.registers.has(NOTIFY_ON_EMPTY);
        for queue in self.queues.iter_mut().filter(|queue| queue.has_news()) {
            if queue.wants_interrupt(ram, on_empty)? {
                self.registers.isr |= ISR_QUEUE;
            }
        }
        if self.model.take_interrupt() {
            self.registers.isr |= ISR_QUEUE;
        }
        self.update_irq();
        Ok(())
    }

    pub(super) fn update_irq(&mut self) {
        let high = self.registers.isr != 0;
        if high != std::mem::replace(&mut self.irq_high, high) {
            self.irq.set(high);
        }
    }

    /// Sets the line whatever it was: KVM's chips are loaded separately.
    pub(super) fn force_irq(&mut self) {
        self.irq_high = self.registers.isr == 0;
        self.update_irq();
    }
}
