//! The registers of a virtio-mmio transport (virtio 1.2, 4.2.2; its legacy form 4.2.4), with the
//! values that QEMU's has where the specification leaves a choice.

use super::model::Model;
use super::queue::{Queue, SIZE_MAX};
use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET,
    VIRTIO_F_ANY_LAYOUT, VIRTIO_F_NOTIFY_ON_EMPTY, VIRTIO_F_RING_RESET, VIRTIO_F_VERSION_1,
};
use virtio_bindings::virtio_mmio as at;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

/// Bytes of the register window of one transport.
pub(super) const WINDOW_BYTES: u64 = 512;
/// Where the driver says that it has put something into a queue.
pub(super) const QUEUE_NOTIFY: u64 = at::VIRTIO_MMIO_QUEUE_NOTIFY as u64;

const MAGIC: u32 = u32::from_le_bytes(*b"virt");
const VENDOR: u32 = u32::from_le_bytes(*b"QEMU");
/// QueueReset, which the bindings lack.
const QUEUE_RESET: u32 = 0xc0;
/// Queue numbers that can be selected, whether there is a queue or not.
const QUEUES: u32 = 1024;

pub(super) const DRIVER_OK: u8 = VIRTIO_CONFIG_S_DRIVER_OK as u8;
const FEATURES_OK: u8 = VIRTIO_CONFIG_S_FEATURES_OK as u8;
const NEEDS_RESET: u8 = VIRTIO_CONFIG_S_NEEDS_RESET as u8;

pub(super) const ISR_QUEUE: u8 = 1;
pub(super) const ISR_CONFIG: u8 = 2;

const fn bit(number: u32) -> u64 {
    1 << number
}

pub(super) const VERSION_1: u64 = bit(VIRTIO_F_VERSION_1);
pub(super) const EVENT_IDX: u64 = bit(VIRTIO_RING_F_EVENT_IDX);
pub(super) const INDIRECT_DESC: u64 = bit(VIRTIO_RING_F_INDIRECT_DESC);
pub(super) const NOTIFY_ON_EMPTY: u64 = bit(VIRTIO_F_NOTIFY_ON_EMPTY);
/// What only legacy drivers are offered, and only modern ones.
const LEGACY: u64 = NOTIFY_ON_EMPTY | bit(VIRTIO_F_ANY_LAYOUT);
const MODERN: u64 = VERSION_1 | bit(VIRTIO_F_RING_RESET);

/// What a transport offers for a device with these features of its own; of the ring's features
/// those in `ring`.
pub(super) fn offered(legacy: bool, ring: u64, own: u64) -> u64 {
    own | ring & (EVENT_IDX | INDIRECT_DESC) | if legacy { LEGACY } else { MODERN }
}

/// Bits 31 to 0, or 63 to 32.
fn half(features: u64, high: u32) -> u32 {
    (features >> (32 * (high & 1))) as u32
}

/// What a transport without a device shows.
pub(super) fn empty(legacy: bool, offset: u64) -> u32 {
    match u32::try_from(offset).unwrap_or(u32::MAX) {
        at::VIRTIO_MMIO_MAGIC_VALUE => MAGIC,
        at::VIRTIO_MMIO_VERSION => version(legacy),
        at::VIRTIO_MMIO_VENDOR_ID => VENDOR,
        _ => 0,
    }
}

fn version(legacy: bool) -> u32 {
    if legacy { 1 } else { 2 }
}

/// The state of a transport: what a driver has written, and what it is shown.
#[derive(Debug, Default)]
pub(crate) struct Registers {
    pub legacy: bool,
    pub offered: u64,
    pub host_features_sel: u32,
    pub guest_features_sel: u32,
    pub guest_page_shift: u32,
    pub status: u8,
    pub isr: u8,
    pub queue_sel: u16,
    /// As a modern driver wrote them; they hold from FEATURES_OK on.
    pub guest_features: [u32; 2],
    /// Agreed upon.
    pub features: u64,
    /// Of the configuration.
    pub generation: u32,
    /// The driver did what no driver may do.
    pub broken: bool,
}

/// What the transport has to do about a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    Nothing,
    /// The device starts over.
    Reset,
    /// The driver is ready: rings that are set up and not in use are taken into use.
    Start,
    /// The interrupt line may have changed.
    Interrupt,
    /// Something was put into a queue.
    Kick,
    /// The selected queue has been reset.
    QueueReset,
}

impl Registers {
    pub(crate) fn new(legacy: bool, offered: u64) -> Registers {
        Registers { legacy, offered, ..Registers::default() }
    }

    /// The driver starts over: status, features and interrupts go; what it told the transport about
    /// itself stays, as in QEMU (Linux says its page size once).
    pub(crate) fn reset(&mut self) {
        let Registers { legacy, offered, host_features_sel, guest_features_sel, .. } = *self;
        *self = Registers {
            host_features_sel,
            guest_features_sel,
            guest_page_shift: self.guest_page_shift,
            guest_features: self.guest_features,
            generation: self.generation,
            ..Registers::new(legacy, offered)
        };
    }

    pub(crate) fn has(&self, feature: u64) -> bool {
        self.features & feature != 0
    }

    /// The driver uses the device, and may.
    pub(crate) fn is_live(&self) -> bool {
        self.status & DRIVER_OK != 0 && !self.broken
    }

    /// The driver has done what it must not: from here on nothing is done but for a reset.
    pub(crate) fn break_down(&mut self) {
        self.broken = true;
        if self.has(VERSION_1) {
            self.status |= NEEDS_RESET;
            self.config_changed();
        }
    }

    /// Tells a driver that is ready that the configuration has changed.
    pub(crate) fn config_changed(&mut self) {
        if self.status & DRIVER_OK != 0 {
            self.generation = self.generation.wrapping_add(1);
            self.isr |= ISR_QUEUE | ISR_CONFIG;
        }
    }

    pub(crate) fn read(&self, offset: u64, queues: &[Queue], model: &dyn Model) -> u32 {
        let queue = queues.get(usize::from(self.queue_sel));
        let modern = !self.legacy;
        match u32::try_from(offset).unwrap_or(u32::MAX) {
            at::VIRTIO_MMIO_DEVICE_ID => model.id(),
            at::VIRTIO_MMIO_DEVICE_FEATURES if modern || self.host_features_sel == 0 => {
                half(self.offered, self.host_features_sel)
            }
            at::VIRTIO_MMIO_QUEUE_NUM_MAX => queue.map_or(0, |_| SIZE_MAX.into()),
            at::VIRTIO_MMIO_QUEUE_PFN if self.legacy => {
                queue.map_or(0, |queue| (queue.desc >> self.guest_page_shift) as u32)
            }
            at::VIRTIO_MMIO_QUEUE_READY if modern => {
                queue.map_or(0, |queue| queue.mmio.enabled.into())
            }
            at::VIRTIO_MMIO_INTERRUPT_STATUS => self.isr.into(),
            at::VIRTIO_MMIO_STATUS => self.status.into(),
            at::VIRTIO_MMIO_CONFIG_GENERATION if modern => self.generation,
            // There is no shared memory.
            at::VIRTIO_MMIO_SHM_LEN_LOW | at::VIRTIO_MMIO_SHM_LEN_HIGH => u32::MAX,
            _ => empty(self.legacy, offset),
        }
    }

    pub(crate) fn write(&mut self, offset: u64, value: u32, queues: &mut [Queue]) -> Effect {
        let Ok(offset) = u32::try_from(offset) else { return Effect::Nothing };
        match offset {
            at::VIRTIO_MMIO_DEVICE_FEATURES_SEL => self.host_features_sel = (value != 0).into(),
            at::VIRTIO_MMIO_DRIVER_FEATURES_SEL => self.guest_features_sel = (value != 0).into(),
            at::VIRTIO_MMIO_DRIVER_FEATURES => self.write_features(value),
            at::VIRTIO_MMIO_QUEUE_SEL if value < QUEUES => self.queue_sel = value as u16,
            at::VIRTIO_MMIO_QUEUE_NOTIFY => return Effect::Kick,
            at::VIRTIO_MMIO_INTERRUPT_ACK => {
                self.isr &= !(value as u8);
                return Effect::Interrupt;
            }
            at::VIRTIO_MMIO_STATUS => return self.write_status(value as u8),
            QUEUE_RESET if !self.legacy && value != 0 => {
                let Some(queue) = queues.get_mut(usize::from(self.queue_sel)) else {
                    return Effect::Nothing;
                };
                queue.reset();
                return Effect::QueueReset;
            }
            at::VIRTIO_MMIO_GUEST_PAGE_SIZE if self.legacy => {
                self.guest_page_shift = value.trailing_zeros() % 32;
            }
            at::VIRTIO_MMIO_QUEUE_PFN if self.legacy && value == 0 => return Effect::Reset,
            _ => {
                let live = self.is_live();
                let Some(queue) = queues.get_mut(usize::from(self.queue_sel)) else {
                    return Effect::Nothing;
                };
                let placed = match self.legacy {
                    true => write_legacy_queue(queue, offset, value, self.guest_page_shift),
                    false => write_modern_queue(queue, offset, value),
                };
                if placed && live {
                    return Effect::Start;
                }
            }
        }
        Effect::Nothing
    }

    fn write_features(&mut self, value: u32) {
        match (self.legacy, self.guest_features_sel) {
            (true, 0) => self.features = u64::from(value) & self.offered,
            (true, _) => {}
            (false, high) => self.guest_features[high as usize & 1] = value,
        }
    }

    fn write_status(&mut self, value: u8) -> Effect {
        if value == 0 {
            return Effect::Reset;
        }
        let mut value = value;
        if !self.legacy && value & FEATURES_OK != 0 && self.status & FEATURES_OK == 0 {
            let [low, high] = self.guest_features;
            let wanted = u64::from(high) << 32 | u64::from(low);
            match wanted & !self.offered {
                0 => self.features = wanted,
                // What was not offered cannot be had: the driver sees that the bit stays clear.
                _ => value &= !FEATURES_OK,
            }
        }
        let starts = value & DRIVER_OK != 0 && self.status & DRIVER_OK == 0;
        // Only a reset helps a device that needs one.
        self.status = value | if self.broken { self.status & NEEDS_RESET } else { 0 };
        if starts { Effect::Start } else { Effect::Nothing }
    }
}

/// True: the queue has been given a ring.
fn write_legacy_queue(queue: &mut Queue, offset: u32, value: u32, page_shift: u32) -> bool {
    match offset {
        at::VIRTIO_MMIO_QUEUE_NUM if (1..=u32::from(SIZE_MAX)).contains(&value) => {
            queue.size = value
        }
        at::VIRTIO_MMIO_QUEUE_ALIGN => queue.align = value,
        at::VIRTIO_MMIO_QUEUE_PFN => {
            queue.place_legacy(u64::from(value) << page_shift);
            return true;
        }
        _ => return false,
    }
    // A ring that is there moves with what it is laid out by.
    if queue.is_set_up() {
        queue.place_legacy(queue.desc);
    }
    queue.is_set_up()
}

/// True: the queue has been given a ring.
fn write_modern_queue(queue: &mut Queue, offset: u32, value: u32) -> bool {
    let mmio = &mut queue.mmio;
    match offset {
        at::VIRTIO_MMIO_QUEUE_NUM => mmio.size = u16::try_from(value).unwrap_or(u16::MAX),
        at::VIRTIO_MMIO_QUEUE_DESC_LOW => mmio.desc[0] = value,
        at::VIRTIO_MMIO_QUEUE_DESC_HIGH => mmio.desc[1] = value,
        at::VIRTIO_MMIO_QUEUE_AVAIL_LOW => mmio.avail[0] = value,
        at::VIRTIO_MMIO_QUEUE_AVAIL_HIGH => mmio.avail[1] = value,
        at::VIRTIO_MMIO_QUEUE_USED_LOW => mmio.used[0] = value,
        at::VIRTIO_MMIO_QUEUE_USED_HIGH => mmio.used[1] = value,
        at::VIRTIO_MMIO_QUEUE_READY if value == 0 => queue.mmio.enabled = false,
        at::VIRTIO_MMIO_QUEUE_READY => {
            queue.place_modern();
            return true;
        }
        _ => {}
    }
    false
}
