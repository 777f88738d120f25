//! `serial`: the 16550 port.

use super::{Layout, Visitor};

/// The section: QEMU wraps the port's own struct, of the same name, in one of the ISA device.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SerialState {
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
pub struct SerialUart {
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
pub struct SerialTsr {
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
pub struct SerialFifo {
    pub data: [u8; 16],
    pub head: u32,
    pub num: u32,
}

impl SerialFifo {
    /// Holds `bytes`, at most sixteen, from its start on.
    pub fn holding(bytes: &[u8]) -> Self {
        let mut fifo = Self { num: bytes.len() as u32, ..Self::default() };
        fifo.data[..bytes.len()].copy_from_slice(bytes);
        fifo
    }

    /// What it holds, oldest first.
    pub fn contents(&self) -> Vec<u8> {
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
        pub struct $name(pub SerialFifo);

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
pub struct FifoTimeout(pub i64);

impl Layout for FifoTimeout {
    const NAME: &'static str = "serial/fifo_timeout_timer";
    const VERSION: u32 = 1;

    fn fields<V: Visitor>(&mut self, v: &mut V) -> Result<(), V::Stop> {
        v.timer("fifo_timeout_timer", &mut self.0)
    }
}

/// Polling of the modem lines.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SerialPoll {
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
