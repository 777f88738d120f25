//! The port's registers and their bits.

pub(super) const FIFO_BYTES: usize = 16;

/// Interrupt enable.
pub(super) const IER_RECEIVED: u8 = 1;
pub(super) const IER_EMPTY: u8 = 2;
pub(super) const IER_LINE: u8 = 4;
pub(super) const IER_MODEM: u8 = 8;
/// Interrupt identification.
pub(super) const IIR_NONE: u8 = 0x01;
pub(super) const IIR_EMPTY: u8 = 0x02;
pub(super) const IIR_RECEIVED: u8 = 0x04;
pub(super) const IIR_LINE: u8 = 0x06;
pub(super) const IIR_TIMEOUT: u8 = 0x0c;
pub(super) const IIR_ID: u8 = 0x0f;
pub(super) const IIR_FIFO: u8 = 0xc0;
/// FIFO control.
pub(super) const FCR_ENABLE: u8 = 0x01;
pub(super) const FCR_CLEAR_RECEIVED: u8 = 0x02;
pub(super) const FCR_CLEAR_SENT: u8 = 0x04;
/// Bits that stay: enable, DMA mode, trigger level.
pub(super) const FCR_KEPT: u8 = 0xc9;
pub(super) const LCR_DIVISOR: u8 = 0x80;
pub(super) const MCR_OUT2: u8 = 0x08;
pub(super) const MCR_LOOP: u8 = 0x10;
/// Line status.
pub(super) const LSR_READY: u8 = 0x01;
pub(super) const LSR_OVERRUN: u8 = 0x02;
pub(super) const LSR_BREAK: u8 = 0x10;
pub(super) const LSR_ERRORS: u8 = 0x1e;
pub(super) const LSR_EMPTY: u8 = 0x20;
pub(super) const LSR_IDLE: u8 = 0x40;
/// Modem status: carrier, data set ready, clear to send; and the bits that say what changed.
pub(super) const MSR_CONNECTED: u8 = 0xb0;
pub(super) const MSR_CHANGES: u8 = 0x0f;

/// All registers of the port, in the terms of QEMU's `serial` section.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Registers {
    pub divider: u16,
    pub rbr: u8,
    pub ier: u8,
    pub iir: u8,
    pub lcr: u8,
    pub mcr: u8,
    pub lsr: u8,
    pub msr: u8,
    pub scr: u8,
    pub fcr: u8,
    /// A "transmitter empty" interrupt is owed.
    pub thr_ipending: bool,
    /// A "character timeout" interrupt is owed.
    pub timeout_ipending: bool,
    /// Bytes received and not yet read, oldest first; at most 16.
    pub recv_fifo: Vec<u8>,
    /// Bytes the guest wrote and that did not leave yet, oldest first; at most 16. Always empty
    /// here, sent at once when a stream brings some.
    pub xmit_fifo: Vec<u8>,
}

/// After reset. 12 is 9600 baud; nobody waits for it.
impl Default for Registers {
    fn default() -> Registers {
        Registers {
            divider: 12,
            rbr: 0,
            ier: 0,
            iir: IIR_NONE,
            lcr: 0,
            mcr: MCR_OUT2,
            lsr: LSR_EMPTY | LSR_IDLE,
            msr: MSR_CONNECTED,
            scr: 0,
            fcr: 0,
            thr_ipending: false,
            timeout_ipending: false,
            recv_fifo: Vec::new(),
            xmit_fifo: Vec::new(),
        }
    }
}

impl Registers {
    pub(super) fn fifo(&self) -> bool {
        self.fcr & FCR_ENABLE != 0
    }

    /// Received bytes that raise the interrupt.
    pub(super) fn trigger(&self) -> usize {
        if !self.fifo() {
            return 1;
        }
        [1, 4, 8, 14][usize::from(self.fcr >> 6)]
    }

    pub(super) fn wants_irq(&self) -> bool {
        self.iir & IIR_NONE == 0
    }
}
