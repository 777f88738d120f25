//! A transport's state as QEMU's section has it.

use super::mmio::{DRIVER_OK, VERSION_1};
use super::state::State;
use super::{
    VirtioExtra, VirtioKind, VirtioMmioHolder, VirtioMmioState, VirtioRingSize, VirtioRingSizes,
    VirtioRings, VirtioState,
};
use crate::memory::GuestRam;

/// A field and why it has no place here.
type Misfit = (&'static str, String);

pub(super) fn save(state: &State, kind: VirtioKind) -> VirtioState {
    let (registers, queues) = (&state.registers, &state.queues);
    let mut saved = VirtioState::new(kind);
    saved.host_features_sel = registers.host_features_sel;
    saved.guest_features_sel = registers.guest_features_sel;
    saved.guest_page_shift = registers.guest_page_shift;
    saved.status = registers.status;
    saved.isr = registers.isr;
    saved.queue_sel = registers.queue_sel;
    saved.guest_features_low = registers.features as u32;
    saved.config = state.model.config();
    let there = queues.iter().take_while(|queue| queue.size != 0);
    saved.queues = there.map(|queue| queue.save()).collect();
    saved.device = state.model.save(registers.features);
    saved.guest_features = Some(registers.features);
    if !registers.legacy {
        saved.virtqueues =
            Some(VirtioRings(queues.iter().map(|queue| queue.save_ring()).collect()));
        saved.extra = Some(VirtioExtra {
            mmio: VirtioMmioHolder {
                state: Some(VirtioMmioState {
                    guest_features: registers.guest_features,
                    queues: queues.iter().map(|queue| queue.mmio).collect(),
                }),
            },
        });
    }
    if queues.iter().any(|queue| queue.size != u32::from(queue.size_default)) {
        let sizes = queues.iter().map(|queue| VirtioRingSize(queue.size_default.into()));
        saved.ring_sizes = Some(VirtioRingSizes(sizes.collect()));
    }
    saved.broken = registers.broken.then_some(1);
    saved.started = (registers.status & DRIVER_OK != 0).then_some(1);
    saved
}

/// Fills a transport. Rings are looked at afterwards, when they are taken into use.
pub(super) fn load(state: &mut State, brought: &VirtioState, ram: &GuestRam) -> Result<(), Misfit> {
    let registers = &mut state.registers;
    check(brought, registers.offered)?;
    if brought.queues.len() > state.queues.len() {
        let (theirs, ours) = (brought.queues.len(), state.queues.len());
        return Err(("num_queues", format!("{theirs} queues, this device has {ours}")));
    }
    registers.host_features_sel = brought.host_features_sel & 1;
    registers.guest_features_sel = brought.guest_features_sel & 1;
    registers.guest_page_shift = brought.guest_page_shift % 32;
    registers.status = brought.status;
    registers.isr = brought.isr;
    registers.queue_sel = brought.queue_sel;
    registers.features = features(brought);
    registers.broken = brought.broken.is_some_and(|broken| broken != 0);
    let mmio = brought.extra.as_ref().and_then(|extra| extra.mmio.state.as_ref());
    registers.guest_features = mmio.map_or([0; 2], |mmio| mmio.guest_features);
    for (index, queue) in state.queues.iter_mut().enumerate() {
        *queue = super::queue::Queue::new(queue.size_default);
        queue.mmio = mmio.and_then(|mmio| mmio.queues.get(index)).copied().unwrap_or_default();
        let rings = brought.virtqueues.as_ref().filter(|_| !registers.legacy);
        let ring = rings.map(|rings| rings.0.get(index).copied().unwrap_or_default());
        if let Some(from) = brought.queues.get(index) {
            queue.load(from, ring);
        }
    }
    state.model.load(&brought.device, ram).map_err(|why| ("device", why))?;
    state.model.load_config(&brought.config, state.registers.features);
    Ok(())
}

/// Whether a transport that offers these features can have this state.
pub(super) fn check(brought: &VirtioState, offered: u64) -> Result<(), Misfit> {
    let refuse = |field, why: String| Err((field, why));
    let features = features(brought);
    if features & !offered != 0 {
        let hint = match (features ^ offered) & VERSION_1 {
            0 => "",
            _ if offered & VERSION_1 == 0 => {
                "; the source has -global virtio-mmio.force-legacy=off"
            }
            _ => "",
        };
        return refuse(
            "guest_features",
            format!(
                "{features:#x} is agreed upon, of which {:#x} is not offered here{hint}",
                features & !offered
            ),
        );
    }
    let legacy = offered & VERSION_1 == 0;
    if legacy == brought.virtqueues.is_some() {
        let (theirs, switch) = if legacy { ("modern", "off") } else { ("legacy", "on") };
        let why = format!(
            "the source's transport is {theirs}; write -global virtio-mmio.force-legacy={switch}"
        );
        return refuse("virtqueues", why);
    }
    if brought.device_endian.is_some_and(|endian| endian != LITTLE_ENDIAN) {
        return refuse("device_endian", "a big-endian guest".into());
    }
    if brought.packed.is_some() {
        return refuse("packed_virtqueues", "packed rings are not built".into());
    }
    if brought.disabled.is_some_and(|disabled| disabled != 0) {
        return refuse("disabled", "the device was disabled".into());
    }
    Ok(())
}

/// QEMU's numbers: 0 unknown, 1 little, 2 big.
const LITTLE_ENDIAN: u8 = 1;

fn features(brought: &VirtioState) -> u64 {
    brought.guest_features.unwrap_or(brought.guest_features_low.into())
}
