//! A dump out of a migration stream: the memory and the registers that would have arrived.

use super::Failure;
use crate::dump::{
    self, Cpu, Format, Guest, GuestView, Options, Output, Progress, Range, ReadFailed, VmCoreInfo,
};
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

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

/// Writes the dump. The file gets its name when it is whole.
pub fn write(
    arrived: Arrived,
    machine: Option<&str>,
    path: &Path,
    format: Format,
    paging: bool,
) -> Result<(), Failure> {
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
    let cpus: Vec<Cpu> = cpus.into_iter().map(|(_, cpu)| cpu).collect();
    let view = ImageView::new(memory).map_err(Failure::Image)?;
    let guest = Guest { view: &view, cpus: &cpus, vmcoreinfo: arrived.vmcoreinfo };
    let part = Part::create(path).map_err(|error| Failure::Core(path.to_owned(), error))?;
    let file = part.file.try_clone().map_err(|error| Failure::Core(path.to_owned(), error))?;
    let options = Options { paging: paging && format == Format::Elf, ..Options::new(format) };
    let output = Output::new(file).map_err(Failure::Dump)?;
    dump::write(&guest, &options, output, &Progress::default()).map_err(Failure::Dump)?;
    part.keep(path).map_err(|error| Failure::Core(path.to_owned(), error))
}

/// The file while it is not whole; removed unless it is kept.
struct Part {
    file: File,
    path: PathBuf,
    kept: bool,
}

impl Part {
    /// Readable by its owner alone: it is all that a guest knows.
    fn create(path: &Path) -> io::Result<Part> {
        let mut part = path.as_os_str().to_owned();
        part.push(".part");
        let path = PathBuf::from(part);
        let file =
            File::options().write(true).create(true).truncate(true).mode(0o600).open(&path)?;
        Ok(Part { file, path, kept: false })
    }

    fn keep(mut self, path: &Path) -> io::Result<()> {
        std::fs::rename(&self.path, path)?;
        self.kept = true;
        Ok(())
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        if !self.kept {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// A file without a name in the folder of `path`, for an image that nobody asked to keep.
pub fn unnamed_beside(path: &Path) -> io::Result<File> {
    let folder =
        path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::options().read(true).write(true).custom_flags(libc::O_TMPFILE).mode(0o600).open(folder)
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
