//! A dump out of a migration stream: the memory and the registers that would have arrived.

use super::error::Failure;
use super::options::BLOCK;
use crate::dump::{self, Cpu, Format, GuestState, Options, Output, Progress, RamView, VmCoreInfo};
use crate::memory::GuestRam;
use std::fs::File;

/// The machine whose memory we know how to place.
const MACHINE: &str = "microvm";

/// More than a machine has, and what is kept for each page of it is still little.
const BYTES_MAX: u64 = 4 << 40;

/// What a stream held that a dump needs.
#[derive(Debug, Default)]
pub(super) struct Arrived {
    /// The image of [`BLOCK`].
    pub memory: Option<File>,
    /// By instance, the last state of each.
    pub cpus: Vec<(u32, Cpu)>,
    /// Where the guest said that its note is.
    pub vmcoreinfo: Option<VmCoreInfo>,
}

impl Arrived {
    pub(super) fn cpu(&mut self, instance: u32, cpu: Cpu) {
        self.cpus.retain(|(known, _)| *known != instance);
        self.cpus.push((instance, cpu));
    }
}

/// A dump that can be written.
pub(super) struct Prepared {
    view: RamView,
    cpus: Vec<Cpu>,
    vmcoreinfo: Option<VmCoreInfo>,
}

/// Looks whether all is there that a dump needs.
pub(super) fn prepare(arrived: Arrived, machine: Option<&str>) -> Result<Prepared, Failure> {
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
    let bytes = memory.metadata().map_err(Failure::Image)?.len();
    if bytes > BYTES_MAX {
        return Err(Failure::TooLarge(bytes));
    }
    let ram = GuestRam::of_file(BLOCK, memory).map_err(Failure::Memory)?;
    let view = RamView::stopped(&ram).map_err(Failure::Memory)?;
    Ok(Prepared { view, cpus, vmcoreinfo: arrived.vmcoreinfo })
}

impl Prepared {
    pub(super) fn write(&self, file: &File, format: Format, paging: bool) -> Result<(), Failure> {
        let Prepared { view, cpus, vmcoreinfo } = self;
        let guest = GuestState { view, cpus, vmcoreinfo: *vmcoreinfo };
        let options = Options { paging: paging && format == Format::Elf, ..Options::new(format) };
        let file = file.try_clone().map_err(dump::Error::Destination).map_err(Failure::Dump)?;
        let output = Output::new(file).map_err(Failure::Dump)?;
        dump::write(&guest, &options, output, &Progress::default()).map_err(Failure::Dump)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dump::read::Core;
    use std::os::unix::fs::{FileExt, MetadataExt};

    fn arrived(bytes: u64) -> (Arrived, File) {
        let memory = tempfile::tempfile().unwrap();
        memory.set_len(bytes).unwrap();
        let image = memory.try_clone().unwrap();
        let cpus = vec![(0, Cpu::default())];
        (Arrived { memory: Some(memory), cpus, vmcoreinfo: None }, image)
    }

    #[test]
    fn holes_of_the_image_stay_holes_and_what_is_there_is_dumped() {
        let (arrived, image) = arrived(8 << 20);
        image.write_all_at(b"low", 5000).unwrap();
        let allocated = image.metadata().unwrap().blocks();
        let prepared = prepare(arrived, Some("microvm")).unwrap();
        let file = tempfile::NamedTempFile::new().unwrap();
        prepared.write(file.as_file(), Format::Elf, false).unwrap();
        assert_eq!(image.metadata().unwrap().blocks(), allocated);
        let file = std::fs::read(file.path()).unwrap();
        let memory = Core::parse(&file).unwrap().physical(0, 8 << 20).unwrap();
        assert_eq!(&memory[5000..5003], b"low");
        assert_eq!(memory.iter().filter(|byte| **byte != 0).count(), 3);
    }

    #[test]
    fn memory_that_no_machine_has_is_refused() {
        let (arrived, _) = arrived(BYTES_MAX + 4096);
        let error = prepare(arrived, Some("microvm")).err().unwrap().to_string();
        assert!(error.ends_with("a block of 4398046515200 bytes"), "{error}");
    }
}
