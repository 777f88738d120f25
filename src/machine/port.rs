//! The serial port, fw_cfg and what hangs on it.

use crate::devices::fw_cfg;
use crate::devices::serial;
use crate::devices::vmcoreinfo;
use crate::vmstate::{
    FwCfgDma, FwCfgState, RecvFifo, SerialFifo, SerialState, SerialUart, VmCoreInfoState, XmitFifo,
};

const IER_THRI: u8 = 2;
const IIR_ID: u8 = 6;
const IIR_THRI: u8 = 2;
const FIFO_BYTES: usize = 16;

/// What the other registers say about the "transmitter empty" interrupt; sent only if it is
/// otherwise.
fn thr_pending_by_registers(iir: u8) -> bool {
    iir & IIR_ID == IIR_THRI
}

pub fn serial(from: &serial::SerialState) -> SerialState {
    let expected =
        if from.ier & IER_THRI != 0 { thr_pending_by_registers(from.iir) } else { false };
    let fifo = |bytes: &[u8]| {
        (!bytes.is_empty()).then(|| SerialFifo::holding(&bytes[..bytes.len().min(FIFO_BYTES)]))
    };
    SerialState {
        uart: SerialUart {
            divider: from.divider,
            rbr: from.rbr,
            ier: from.ier,
            iir: from.iir,
            lcr: from.lcr,
            mcr: from.mcr,
            lsr: from.lsr,
            msr: from.msr,
            scr: from.scr,
            fcr: from.fcr,
            thr_ipending: (from.thr_ipending != expected).then(|| from.thr_ipending.into()),
            recv_fifo: fifo(&from.recv_fifo).map(RecvFifo),
            xmit_fifo: fifo(&from.xmit_fifo).map(XmitFifo),
            timeout_ipending: from.timeout_ipending.then_some(1),
            ..SerialUart::default()
        },
    }
}

pub fn from_serial(from: &SerialState) -> serial::SerialState {
    let uart = &from.uart;
    // A byte that QEMU was still trying to send goes out before those behind it.
    let retried = uart.tsr.filter(|tsr| tsr.retry > 0).map(|tsr| tsr.tsr);
    let behind = uart.xmit_fifo.map_or_else(Vec::new, |fifo| fifo.0.contents());
    serial::SerialState {
        divider: uart.divider,
        rbr: uart.rbr,
        ier: uart.ier,
        iir: uart.iir,
        lcr: uart.lcr,
        mcr: uart.mcr,
        lsr: uart.lsr,
        msr: uart.msr,
        scr: uart.scr,
        fcr: uart.fcr,
        thr_ipending: uart
            .thr_ipending
            .map_or_else(|| thr_pending_by_registers(uart.iir), |pending| pending != 0),
        timeout_ipending: uart.timeout_ipending.is_some_and(|pending| pending != 0),
        recv_fifo: uart.recv_fifo.map_or_else(Vec::new, |fifo| fifo.0.contents()),
        xmit_fifo: retried.into_iter().chain(behind).take(FIFO_BYTES).collect(),
    }
}

pub fn fw_cfg(from: &fw_cfg::FwCfgState) -> FwCfgState {
    let dma = Some(FwCfgDma { dma_addr: from.dma_addr });
    FwCfgState { cur_entry: from.entry, cur_offset: from.offset, dma, acpi: None }
}

pub fn from_fw_cfg(from: &FwCfgState) -> fw_cfg::FwCfgState {
    let dma_addr = from.dma.map_or(0, |dma| dma.dma_addr);
    fw_cfg::FwCfgState { entry: from.cur_entry, offset: from.cur_offset, dma_addr }
}

pub fn vmcoreinfo(from: &vmcoreinfo::VmCoreInfoState) -> VmCoreInfoState {
    let vmcoreinfo::VmCoreInfoState { present, host_format, guest_format, size, paddr } = *from;
    VmCoreInfoState { has_vmcoreinfo: present, host_format, guest_format, size, paddr }
}

pub fn from_vmcoreinfo(from: &VmCoreInfoState) -> vmcoreinfo::VmCoreInfoState {
    let VmCoreInfoState { has_vmcoreinfo, host_format, guest_format, size, paddr } = *from;
    vmcoreinfo::VmCoreInfoState { present: has_vmcoreinfo, host_format, guest_format, size, paddr }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_register_of_the_port_comes_back() {
        for (ier, iir, pending) in
            [(2, 0xc2, true), (2, 0xc2, false), (0, 0xc1, true), (0, 0xc1, false), (2, 1, true)]
        {
            let port = serial::SerialState {
                divider: 1,
                rbr: 2,
                ier,
                iir,
                lcr: 5,
                mcr: 6,
                lsr: 7,
                msr: 8,
                scr: 9,
                fcr: 10,
                thr_ipending: pending,
                timeout_ipending: true,
                recv_fifo: b"in".to_vec(),
                xmit_fifo: b"out".to_vec(),
            };
            assert_eq!(from_serial(&serial(&port)), port);
        }
    }

    #[test]
    fn idle_port_has_no_subsections() {
        let uart = serial(&serial::SerialState { iir: 1, lsr: 0x60, ..Default::default() }).uart;
        assert_eq!((uart.thr_ipending, uart.timeout_ipending, uart.tsr), (None, None, None));
        assert_eq!((uart.recv_fifo, uart.xmit_fifo, uart.poll), (None, None, None));
    }
}
