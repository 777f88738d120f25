//! A virtio-mmio transport with its device: the window that vCPUs see, and the thread that serves
//! the queues.
//!
//! ```text
//! driver ─ write to QueueNotify ─► KVM (ioeventfd) ─► doorbell ─► worker ─► Model::serve
//!        ─ any other register   ─► vCPU's thread ─► Registers                  │
//!        ◄────────────────────── interrupt line, high while isr ≠ 0 ◄──────────┘
//! ```
//!
//! One lock for registers, queues and model. The worker has it while it serves, which is a bounded
//! amount of work; a notification takes neither the lock nor an exit. The line is a level, so that
//! it is driven by KVM_IRQ_LINE and not by an irqfd: that would pulse it, and a pin that the guest
//! made level triggered would lose interrupts.

use super::mmio::{DRIVER_OK, Effect, QUEUE_NOTIFY, Registers};
use super::model::{Model, Next, Wait};
use super::queue::{Fault, Queue};
use super::state::State;
use super::worker::{Bell, Worker};
use super::{VirtioKind, saved};
use crate::devices::bus::Window;
use crate::devices::{Device, DeviceRequest, Error, IrqLine, Loading, Sections};
use crate::memory::GuestRam;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use virtio_bindings::virtio_mmio::VIRTIO_MMIO_CONFIG;

const CONFIG: u64 = VIRTIO_MMIO_CONFIG as u64;

/// The device.
pub(crate) struct Transport {
    /// Dropped first: its thread uses the rest.
    worker: Worker,
    inner: Arc<Inner>,
}

/// What vCPUs and the worker share.
struct Inner {
    address: u64,
    kind: VirtioKind,
    ram: GuestRam,
    bell: Arc<Bell>,
    state: Mutex<State>,
}

impl Transport {
    /// A transport whose window is at `address`, with its worker waiting for the machine to run.
    pub(crate) fn new(
        address: u64,
        registers: Registers,
        mut model: Box<dyn Model>,
        ram: GuestRam,
        irq: Box<dyn IrqLine>,
    ) -> Result<Transport, Error> {
        let kind = model.kind();
        let queues = model.queue_sizes().into_iter().map(Queue::new).collect();
        let failed =
            |source| Error::Host { what: format!("{} at {address:#x}", kind.what()), source };
        let bell = Arc::new(Bell::new().map_err(failed)?);
        let ringer = bell.clone();
        model.connect(Arc::new(move || ringer.ring()));
        let state = Mutex::new(State {
            registers,
            queues,
            model,
            irq,
            irq_high: false,
            running: false,
            complained: false,
        });
        let inner = Arc::new(Inner { address, kind, ram, bell, state });
        let served = inner.clone();
        let worker = Worker::start(kind.name(), inner.bell.clone(), move || served.serve());
        let worker = worker.map_err(failed)?;
        Ok(Transport { worker, inner })
    }

    /// What a notification rings; for KVM.
    pub(crate) fn bell(&self) -> &Bell {
        &self.inner.bell
    }
}

impl Drop for Transport {
    fn drop(&mut self) {
        self.worker.end(&self.inner.bell);
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One turn of the worker: serves the queues, if the driver is ready and the machine runs. Says
    /// what to wait for.
    fn serve(&self) -> (Next, Wait) {
        let mut state = self.lock();
        if !state.running || !state.registers.is_live() {
            return (Next::Wait, Wait::default());
        }
        match state.serve(&self.ram) {
            Ok(next) => (next, state.model.waits_for()),
            Err(fault) => {
                self.complain(&mut state, &fault);
                (Next::Wait, Wait::default())
            }
        }
    }

    /// The driver broke the rules. It is told, if it can be; people are told once, for a hostile
    /// guest does it as often as it likes.
    fn complain(&self, state: &mut State, fault: &Fault) {
        state.registers.break_down();
        state.model.broken();
        state.update_irq();
        if !std::mem::replace(&mut state.complained, true) {
            let (what, address) = (self.kind.what(), self.address);
            say!("godwit: {what} at {address:#x} stands still until the guest resets it: {fault}");
        }
    }

    /// Carries out what a write asks for.
    fn act(&self, state: &mut State, effect: Effect) {
        match effect {
            Effect::Nothing => {}
            Effect::Kick => self.bell.ring(),
            // A line that stays high is asserted again: not every chip looks at it when the
            // interrupt ends.
            Effect::Interrupt => state.force_irq(),
            Effect::Reset => state.reset(),
            Effect::QueueReset => {
                let State { registers, model, .. } = state;
                model.queue_reset(registers.queue_sel.into());
                // What it heard of other queues meanwhile is still to be done.
                self.bell.ring();
            }
            Effect::Start => match state.start(&self.ram) {
                // The driver may have filled its queues before.
                Ok(()) => self.bell.ring(),
                Err(fault) => self.complain(state, &fault),
            },
        }
    }
}

impl Window for Transport {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let state = self.inner.lock();
        if offset >= CONFIG {
            // Past its end, all ones.
            let config = state.model.config();
            let from = (offset - CONFIG) as usize;
            for (at, byte) in data.iter_mut().enumerate() {
                *byte = config.get(from + at).copied().unwrap_or(0xff);
            }
            return;
        }
        let value = match data.len() {
            4 => state.registers.read(offset, &state.queues, &*state.model),
            _ => 0,
        };
        data.fill(0);
        data.iter_mut().zip(value.to_le_bytes()).for_each(|(to, from)| *to = from);
    }

    fn write(&self, offset: u64, data: &[u8]) -> Option<DeviceRequest> {
        // The driver's commonest access, where KVM does not take it by itself.
        if offset == QUEUE_NOTIFY {
            self.inner.bell.ring();
            return None;
        }
        let mut state = self.inner.lock();
        let State { registers, queues, model, .. } = &mut *state;
        let effect = match <[u8; 4]>::try_from(data) {
            _ if offset >= CONFIG => {
                model.write_config(offset - CONFIG, data, registers.features);
                Effect::Nothing
            }
            Ok(word) => registers.write(offset, u32::from_le_bytes(word), queues),
            Err(_) => Effect::Nothing,
        };
        self.inner.act(&mut state, effect);
        None
    }
}

impl Device for Transport {
    fn reset(&self) -> Result<(), Error> {
        let mut state = self.inner.lock();
        let Registers { legacy, offered, .. } = state.registers;
        state.reset();
        state.registers = Registers::new(legacy, offered);
        for queue in &mut state.queues {
            *queue = Queue::new(queue.size_default);
        }
        state.force_irq();
        Ok(())
    }

    /// The worker serves under the lock: who has it afterwards knows that nothing is under way. Of a
    /// broken device nothing is; a driver that is not there any more may have left something.
    fn quiesce(&self) -> Result<(), Error> {
        let mut state = self.inner.lock();
        if std::mem::take(&mut state.running) && !state.registers.broken {
            let State { queues, model, .. } = &mut *state;
            let done = model.quiesce(&self.inner.ram, queues);
            let told = done.and_then(|()| state.tell(&self.inner.ram));
            told.unwrap_or_else(|fault| self.inner.complain(&mut state, &fault));
        }
        Ok(())
    }

    /// What the guest put into its queues meanwhile was not looked at.
    fn resume(&self) -> Result<(), Error> {
        self.inner.lock().running = true;
        self.inner.bell.ring();
        Ok(())
    }

    /// What the guest has not heard of since its worker stood still it hears where it goes on: before
    /// the state of any device is read, for the interrupt is also the chip's.
    fn store(&self) -> Result<(), Error> {
        let mut state = self.inner.lock();
        if state.registers.is_live() {
            state.look_for_config_change();
            state.update_irq();
        }
        Ok(())
    }

    fn keeps_guest(&self) -> Option<&'static str> {
        self.inner.lock().model.keeps_guest()
    }

    fn save(&self, sections: &mut Sections) -> Result<(), Error> {
        let saved = saved::save(&self.inner.lock(), self.inner.kind);
        sections.push(&self.inner.kind.section_at(self.inner.address), 0, saved);
        Ok(())
    }

    fn load(&self, from: &mut Loading<'_>) -> Result<(), Error> {
        let name = self.inner.kind.section_at(self.inner.address);
        let Some(brought) = from.sections.get(&name, 0) else { return self.reset() };
        let mut state = self.inner.lock();
        let misfit = |(field, why)| Error::Misfit { section: name.clone(), field, why };
        saved::load(&mut state, brought, &self.inner.ram).map_err(misfit)?;
        if state.registers.status & DRIVER_OK != 0 && !state.registers.broken {
            let lost = |why| misfit(("virtqueues", why));
            state.start(&self.inner.ram).map_err(|fault| lost(fault.to_string()))?;
            for queue in &state.queues {
                queue.check_positions(&self.inner.ram).map_err(lost)?;
            }
        }
        state.force_irq();
        Ok(())
    }
}
