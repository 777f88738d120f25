//! A dump out of a migration stream: the memory and the registers that would have arrived.

use super::error::Failure;
use crate::dump::{
    self, Cpu, Format, GuestState, GuestView, Options, Output, Progress, Range, ReadFailed,
    VmCoreInfo,
};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// The machine whose memory we know how to place.
const MACHINE: &str = "microvm";
/// Its RAM, from zero up to [`LOW_END`] at most and from [`HIGH_START`] on.
pub const BLOCK: &str = "microvm.ram";
const LOW_END: u64 = 3 << 30;
const HIGH_START: u64 = 4 << 30;

/// What a stream held that a dump needs.
#[derive(Debug, Default)]
pub struct Arrived {
    /// The image of [`BLOCK`].
    pub memory: Option<File>,
    /// By instance, the last state of each.
    pub cpus: Vec<(u32, Cpu)>,
    /// Where the guest said that its note is.
    pub vmcoreinfo: Option<VmCoreInfo>,
}

impl Arrived {
    pub fn cpu(&mut self, instance: u32, cpu: Cpu) {
        self.cpus.retain(|(known, _)| *known != instance);
        self.cpus.push((instance, cpu));
    }
}

/// A dump that can be written.
pub struct Prepared {
    view: ImageView,
    cpus: Vec<Cpu>,
    vmcoreinfo: Option<VmCoreInfo>,
}

/// Looks whether all is there that a dump needs.
pub fn prepare(arrived: Arrived, machine: Option<&str>) -> Result<Prepared, Failure> {
    let not_microvm = || Failure::Machine(machine.unwrap_or("a machine without a name").to_owned());
    if machine.is_none_or(|machine| machine != MACHINE && !machine.starts_with("pc-microvm")) {
        return Err(not_microvm());
    }
    let memory = arrived.memory.ok_or_else(not_microvm)?;
    if arrived.cpus.is_empty() {
        return Err(Failure::NoRegisters);
    }
    let mut cpus = arrived.cpus;
    cpus.sort_by_key(|(instance, _)| *instance);
    let cpus = cpus.into_iter().map(|(_, cpu)| cpu).collect();
    let view = ImageView::new(memory).map_err(Failure::Image)?;
    Ok(Prepared { view, cpus, vmcoreinfo: arrived.vmcoreinfo })
}

impl Prepared {
    pub fn write(&self, file: &File, format: Format, paging: bool) -> Result<(), Failure> {
        let Prepared { view, cpus, vmcoreinfo } = self;
        let guest = GuestState { view, cpus, vmcoreinfo: *vmcoreinfo };
        let options = Options { paging: paging && format == Format::Elf, ..Options::new(format) };
        let file = file.try_clone().map_err(dump::Error::Destination).map_err(Failure::Dump)?;
        let output = Output::new(file).map_err(Failure::Dump)?;
        dump::write(&guest, &options, output, &Progress::default()).map_err(Failure::Dump)?;
        Ok(())
    }
}

/// The image, laid out as the machine lays out its RAM.
struct ImageView {
    file: File,
    ranges: Vec<Range>,
}

impl ImageView {
    fn new(file: File) -> io::Result<ImageView> {
        let bytes = file.metadata()?.len();
        let low = Range { start: 0, len: bytes.min(LOW_END) };
        let high = Range { start: HIGH_START, len: bytes - low.len };
        Ok(ImageView {
            file,
            ranges: [low, high].into_iter().filter(|range| range.len > 0).collect(),
        })
    }
}

impl GuestView for ImageView {
    fn ranges(&self) -> &[Range] {
        &self.ranges
    }

    fn read(&self, address: u64, out: &mut [u8]) -> Result<(), ReadFailed> {
        let offset = if address >= HIGH_START { address - HIGH_START + LOW_END } else { address };
        self.file
            .read_exact_at(out, offset)
            .map_err(|error| ReadFailed { address, reason: error.to_string() })
    }
}
