//! The port as streams have it.

use super::registers::{FIFO_BYTES, IER_EMPTY, IIR_EMPTY, Registers};
use crate::vmstate::{Layout, Visitor};

/// The bits of the interrupt identification that this section's rule looks at.
const IIR_LOW: u8 = 6;

/// The section: QEMU wraps the port's own struct, of the same name, in one of the ISA device.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct SerialState {
    pub uart: SerialUart,
}

impl Layout for SerialState {
    const NAME: &'static str = "serial";
    const VERSION: u32 = 3;

    fn fields<V: Visitor>(&mut self, v: &mut V) -> Result<(), V::Stop> {
        v.structure("state", &mut self.uart)
    }
}

/// Registers; each subsection is there only if its part is not as after a reset.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct SerialUart {
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
    pub thr_ipending: Option<i32>,
    pub tsr: Option<SerialTsr>,
    pub recv_fifo: Option<RecvFifo>,
    pub xmit_fifo: Option<XmitFifo>,
    pub fifo_timeout: Option<FifoTimeout>,
    pub timeout_ipending: Option<i32>,
    pub poll: Option<SerialPoll>,
}

impl Layout for SerialUart {
    const NAME: &'static str = "serial";
    const VERSION: u32 = 3;

    fn fields<V: Visitor>(&mut self, v: &mut V) -> Result<(), V::Stop> {
        v.value("divider", &mut self.divider)?;
        v.value("rbr", &mut self.rbr)?;
        v.value("ier", &mut self.ier)?;
        v.value("iir", &mut self.iir)?;
        v.value("lcr", &mut self.lcr)?;
        v.value("mcr", &mut self.mcr)?;
        v.value("lsr", &mut self.lsr)?;
        v.value("msr", &mut self.msr)?;
        v.value("scr", &mut self.scr)?;
        v.value("fcr_vmstate", &mut self.fcr)
    }

    fn subsections<V: Visitor>(&mut self, v: &mut V) -> Result<(), V::Stop> {
        v.subsection_of("serial/thr_ipending", "thr_ipending", &mut self.thr_ipending)?;
        v.subsection(&mut self.tsr)?;
        v.subsection(&mut self.recv_fifo)?;
        v.subsection(&mut self.xmit_fifo)?;
        v.subsection(&mut self.fifo_timeout)?;
        v.subsection_of("serial/timeout_ipending", "timeout_ipending", &mut self.timeout_ipending)?;
        v.subsection(&mut self.poll)
    }
}

/// A byte on its way out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct SerialTsr {
    pub retry: u32,
    pub thr: u8,
    pub tsr: u8,
}

impl Layout for SerialTsr {
    const NAME: &'static str = "serial/tsr";
    const VERSION: u32 = 1;

    fn fields<V: Visitor>(&mut self, v: &mut V) -> Result<(), V::Stop> {
        v.value("tsr_retry", &mut self.retry)?;
        v.value("thr", &mut self.thr)?;
        v.value("tsr", &mut self.tsr)
    }
}

/// A ring of sixteen bytes: `num` of them from `head` on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct SerialFifo {
    pub data: [u8; 16],
    pub head: u32,
    pub num: u32,
}

impl SerialFifo {
    /// Holds `bytes`, at most sixteen, from its start on.
    pub(crate) fn holding(bytes: &[u8]) -> Self {
        let mut fifo = Self { num: bytes.len() as u32, ..Self::default() };
        fifo.data[..bytes.len()].copy_from_slice(bytes);
        fifo
    }

    /// What it holds, oldest first.
    pub(crate) fn contents(&self) -> Vec<u8> {
        (0..self.num.min(16))
            .map(|i| self.data[(self.head.wrapping_add(i) % 16) as usize])
            .collect()
    }
}

impl Layout for SerialFifo {
    const NAME: &'static str = "Fifo8";
    const VERSION: u32 = 1;

    fn fields<V: Visitor>(&mut self, v: &mut V) -> Result<(), V::Stop> {
        v.buffer("data", &mut self.data)?;
        v.value("head", &mut self.head)?;
        v.check("head", self.head.into(), 15)?;
        v.value("num", &mut self.num)?;
        v.check("num", self.num.into(), 16)
    }
}

macro_rules! fifo_subsections {
    ($($name:ident = $section:literal, $field:literal;)*) => {$(
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
        pub(crate) struct $name(pub SerialFifo);

        impl Layout for $name {
            const NAME: &'static str = $section;
            const VERSION: u32 = 1;

            fn fields<V: Visitor>(&mut self, v: &mut V) -> Result<(), V::Stop> {
                v.structure($field, &mut self.0)
            }
        }
    )*};
}

fifo_subsections! {
    RecvFifo = "serial/recv_fifo", "recv_fifo";
    XmitFifo = "serial/xmit_fifo", "xmit_fifo";
}

/// When the character timeout strikes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct FifoTimeout(pub i64);

impl Layout for FifoTimeout {
    const NAME: &'static str = "serial/fifo_timeout_timer";
    const VERSION: u32 = 1;

    fn fields<V: Visitor>(&mut self, v: &mut V) -> Result<(), V::Stop> {
        v.timer("fifo_timeout_timer", &mut self.0)
    }
}

/// Polling of the modem lines.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct SerialPoll {
    pub poll_msl: i32,
    pub timer: i64,
}

impl Layout for SerialPoll {
    const NAME: &'static str = "serial/poll";
    const VERSION: u32 = 1;

    fn fields<V: Visitor>(&mut self, v: &mut V) -> Result<(), V::Stop> {
        v.value("poll_msl", &mut self.poll_msl)?;
        v.timer("modem_status_poll", &mut self.timer)
    }
}

/// What the other registers say about the "transmitter empty" interrupt; sent only if it is
/// otherwise.
fn thr_pending_by_registers(iir: u8) -> bool {
    iir & IIR_LOW == IIR_EMPTY
}

pub(crate) fn of(from: &Registers) -> SerialState {
    let expected =
        if from.ier & IER_EMPTY != 0 { thr_pending_by_registers(from.iir) } else { false };
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

pub(crate) fn registers(from: &SerialState) -> Registers {
    let uart = &from.uart;
    // A byte that QEMU was still trying to send goes out before those behind it.
    let retried = uart.tsr.filter(|tsr| tsr.retry > 0).map(|tsr| tsr.tsr);
    let behind = uart.xmit_fifo.map_or_else(Vec::new, |fifo| fifo.0.contents());
    Registers {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_register_of_the_port_comes_back() {
        for (ier, iir, pending) in
            [(2, 0xc2, true), (2, 0xc2, false), (0, 0xc1, true), (0, 0xc1, false), (2, 1, true)]
        {
            let port = Registers {
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
            assert_eq!(registers(&of(&port)), port);
        }
    }

    #[test]
    fn idle_port_has_no_subsections() {
        let uart = of(&Registers { iir: 1, lsr: 0x60, ..Default::default() }).uart;
        assert_eq!((uart.thr_ipending, uart.timeout_ipending, uart.tsr), (None, None, None));
        assert_eq!((uart.recv_fifo, uart.xmit_fifo, uart.poll), (None, None, None));
    }
}
