//! QEMU's section layouts: what each device of the machine `microvm` puts into the migration
//! stream.
//!
//! Each section is one plain struct and **one field table**: the method [`Layout::fields`] (and
//! [`Layout::subsections`]) names every field once, in the order of the stream. Three visitors walk
//! the same table, so that they cannot drift apart: [`read`] fills a struct from bytes,
//! [`write`](fn@write) makes the bytes, [`Description`] makes the JSON text that QEMU puts at the
//! end of a stream.
//!
//! Everything is big-endian. A struct inside a struct is laid out in place, its own subsections
//! included. A subsection is `05`, pstr name, be32 version, fields, nested subsections; it is there
//! only if it is needed, and a reader that does not know its name must give up, since nothing tells
//! where it ends.
//!
//! The structs know nothing of KVM; `machine::{save, load}` map them.

mod cpu;
mod cpu_subsections;
mod describe;
mod irqchip;
mod platform;
mod read;
mod serial;
mod show;
mod timers;
mod virtio;
mod virtio_device;
mod write;

pub use cpu::{CpuState, Mtrr, Segment, X87, X87Parts, Xmm, YmmHigh, ZmmHigh, ZmmUpper};
pub use cpu_subsections::*;
pub use describe::Description;
pub use irqchip::{ApicSipi, ApicState, IoapicState, PicState};
pub use platform::{
    CpuCommonState, FwCfgAcpi, FwCfgDma, FwCfgState, GedCpuHotplug, GedCpuSelector, GedEvents,
    GedMemoryHotplug, GedMemorySelector, GedState, GlobalState, KvmClockState, TimerState,
    TprHandlers, TprOptState, TprRom, VmCoreInfoState,
};
pub use read::{Stop, read, read_section};
pub use serial::{
    FifoTimeout, RecvFifo, SerialFifo, SerialPoll, SerialState, SerialTsr, SerialUart, XmitFifo,
};
pub use show::{Row, rows};
pub use timers::{PitChannel, PitState, RtcState};
pub use virtio::{
    VirtioExtra, VirtioKind, VirtioMmioHolder, VirtioMmioQueue, VirtioMmioState, VirtioPackedRing,
    VirtioPackedRings, VirtioPayload, VirtioQueue, VirtioRing, VirtioRingSize, VirtioRingSizes,
    VirtioRings, VirtioState,
};
pub use virtio_device::{
    BalloonReport, BalloonState, BlockState, ConsolePort, ConsoleState, Element, NetRss, NetState,
    PortsMapWord, TxWaiting, VirtioDevice,
};
pub use write::{write, write_section};

use crate::stream::{Error, Extent, Layouts, Problem, SectionHeader};

/// A number in the stream.
pub trait Scalar: Copy + Default + PartialEq + std::fmt::Debug {
    const BYTES: usize;
    /// The type's name in the description.
    const TYPE: &'static str;
    /// `bytes` has exactly `BYTES` bytes.
    fn get(bytes: &[u8]) -> Self;
    fn put(self, out: &mut Vec<u8>);
}

macro_rules! scalars {
    ($($type:ty = $name:literal),*) => {$(
        impl Scalar for $type {
            const BYTES: usize = size_of::<$type>();
            const TYPE: &'static str = $name;

            fn get(bytes: &[u8]) -> Self {
                <$type>::from_be_bytes(bytes.try_into().expect("BYTES bytes"))
            }

            fn put(self, out: &mut Vec<u8>) {
                out.extend_from_slice(&self.to_be_bytes());
            }
        }
    )*};
}

scalars!(
    u8 = "uint8",
    u16 = "uint16",
    u32 = "uint32",
    u64 = "uint64",
    i32 = "int32",
    i64 = "int64"
);

impl Scalar for bool {
    const BYTES: usize = 1;
    const TYPE: &'static str = "bool";

    fn get(bytes: &[u8]) -> Self {
        bytes[0] != 0
    }

    fn put(self, out: &mut Vec<u8>) {
        out.push(self.into());
    }
}

/// A struct of the stream: its name, version and field table.
pub trait Layout: Clone + Default {
    /// The description's name for it; the names of its subsections begin with it.
    const NAME: &'static str;
    const VERSION: u32;

    /// Visits every field, in the order of the stream.
    fn fields<V: Visitor>(&mut self, v: &mut V) -> Result<(), V::Stop>;

    /// Visits every subsection, in the order in which QEMU writes them.
    fn subsections<V: Visitor>(&mut self, _v: &mut V) -> Result<(), V::Stop> {
        Ok(())
    }
}

/// What walks a field table. Names are QEMU's, for messages and for the description.
pub trait Visitor {
    type Stop;

    fn value<T: Scalar>(&mut self, name: &'static str, value: &mut T) -> Result<(), Self::Stop>;
    /// Elements back to back, no count.
    fn array<T: Scalar, const N: usize>(
        &mut self,
        name: &'static str,
        values: &mut [T; N],
    ) -> Result<(), Self::Stop>;
    /// Raw bytes.
    fn buffer<const N: usize>(
        &mut self,
        name: &'static str,
        bytes: &mut [u8; N],
    ) -> Result<(), Self::Stop>;
    /// A timer's expiry, ns of the virtual clock; -1: not armed.
    fn timer(&mut self, name: &'static str, expiry: &mut i64) -> Result<(), Self::Stop>;
    /// Bytes that mean nothing: skipped when read, written as zeros.
    fn unused(&mut self, name: &'static str, bytes: usize) -> Result<(), Self::Stop>;
    fn structure<T: Layout>(&mut self, name: &'static str, value: &mut T)
    -> Result<(), Self::Stop>;
    fn structures<T: Layout, const N: usize>(
        &mut self,
        name: &'static str,
        values: &mut [T; N],
    ) -> Result<(), Self::Stop>;
    /// A struct that QEMU makes up for the stream; differs from [`Visitor::structure`] in the
    /// description only.
    fn temporary<T: Layout>(&mut self, name: &'static str, value: &mut T)
    -> Result<(), Self::Stop>;
    /// A struct that the description shows as one field of type `kind`.
    fn opaque<T: Layout>(
        &mut self,
        name: &'static str,
        kind: &'static str,
        value: &mut T,
    ) -> Result<(), Self::Stop>;
    /// A subsection, there or not.
    fn subsection<T: Layout>(&mut self, value: &mut Option<T>) -> Result<(), Self::Stop>;
    /// A subsection of one field.
    fn subsection_of<T: Scalar>(
        &mut self,
        name: &'static str,
        field: &'static str,
        value: &mut Option<T>,
    ) -> Result<(), Self::Stop>;

    /// `count` structs; a reader makes them. `count` has been checked.
    fn list<T: Layout>(
        &mut self,
        name: &'static str,
        count: usize,
        values: &mut Vec<T>,
    ) -> Result<(), Self::Stop>;
    /// `count` raw bytes.
    fn bytes(
        &mut self,
        name: &'static str,
        count: usize,
        bytes: &mut Vec<u8>,
    ) -> Result<(), Self::Stop>;
    /// A count that the field before gave: refused when it is above `limit`.
    fn check(&mut self, name: &'static str, found: u64, limit: u64) -> Result<(), Self::Stop> {
        if found <= limit { Ok(()) } else { self.refuse(name, Problem::TooLarge { found, limit }) }
    }
    /// Refuses what was read last. Writers, which are given sound structs, go on.
    fn refuse(&mut self, name: &'static str, problem: Problem) -> Result<(), Self::Stop>;
}

macro_rules! sections {
    ($($variant:ident($state:ty) = $idstr:literal, $what:literal;)*) => {
        /// One device's section, by kind.
        #[derive(Debug, Clone, PartialEq)]
        #[expect(clippy::large_enum_variant, reason = "a few dozen live at a time")]
        pub enum Section {
            $(#[doc = $what] $variant($state),)*
            #[doc = "virtio over virtio-mmio"]
            Virtio(Box<VirtioState>),
        }

        impl Section {
            /// The empty section of this name; `None` if it is not one of ours.
            pub fn named(idstr: &str) -> Option<Self> {
                match idstr {
                    $($idstr => Some(Self::$variant(Default::default())),)*
                    _ => VirtioState::named(idstr).map(|state| Self::Virtio(Box::new(state))),
                }
            }

            /// The version that we read and write.
            pub fn version(&self) -> u32 {
                match self {
                    $(Self::$variant(_) => <$state as Layout>::VERSION,)*
                    Self::Virtio(state) => state.kind.version(),
                }
            }

            /// What the section is, in a few words.
            pub fn what(&self) -> &'static str {
                match self {
                    $(Self::$variant(_) => $what,)*
                    Self::Virtio(state) => state.kind.what(),
                }
            }

            fn walk<W: Walk>(&mut self, walk: W) -> W::Out {
                match self {
                    $(Self::$variant(state) => walk.layout(state),)*
                    Self::Virtio(state) => walk.layout(&mut **state),
                }
            }
        }
    };
}

sections! {
    Timer(TimerState) = "timer", "virtual clock";
    FwCfg(FwCfgState) = "fw_cfg", "firmware configuration interface";
    CpuCommon(CpuCommonState) = "cpu_common", "halted and pending interrupts of a vCPU";
    Cpu(CpuState) = "cpu", "registers of a vCPU";
    TprOpt(TprOptState) = "kvm-tpr-opt", "TPR patching of 32-bit guests";
    Apic(ApicState) = "apic", "local APIC of a vCPU";
    Ioapic(IoapicState) = "ioapic", "I/O APIC";
    KvmClock(KvmClockState) = "kvmclock", "paravirtual clock";
    Ged(GedState) = "acpi-ged", "ACPI generic event device";
    Pic(PicState) = "i8259", "legacy interrupt controller";
    Pit(PitState) = "i8254", "programmable interval timer";
    Rtc(RtcState) = "mc146818rtc", "real-time clock and CMOS";
    Serial(SerialState) = "serial", "16550 serial port";
    VmCoreInfo(VmCoreInfoState) = "vmcoreinfo", "place of the guest's crash note";
    Global(GlobalState) = "globalstate", "run state of the source";
}

/// Something done with whichever struct a [`Section`] holds.
trait Walk {
    type Out;
    fn layout<T: Layout>(self, state: &mut T) -> Self::Out;
}

/// The layouts of every section named in [`Section`], for [`crate::stream::Reader`].
#[derive(Debug, Clone, Copy, Default)]
pub struct Known;

impl Layouts for Known {
    fn extent(
        &mut self,
        section: &SectionHeader,
        input: &[u8],
        offset: u64,
    ) -> Result<Extent, Error> {
        match read_section(section, input, offset, false) {
            Ok((_, bytes)) => Ok(Extent::Bytes(bytes)),
            Err(Stop::Short(needed)) => Ok(Extent::Need(needed)),
            Err(Stop::Refused(error)) => Err(*error),
        }
    }
}
