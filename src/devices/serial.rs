//! The 16550A serial port.

/// All registers of the port, in the terms of QEMU's `serial` section.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SerialState {
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
    /// Bytes the guest wrote and that did not leave yet, oldest first; at most 16.
    pub xmit_fifo: Vec<u8>,
}
