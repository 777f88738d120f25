//! A dump from its first byte to its last.

use super::error::Error;
use super::format::Format;
use super::guest::GuestState;
use super::options::Options;
use super::output::Output;
use super::progress::Progress;
use super::ranges::{self, Filter};
use super::view::GuestView;
use super::vmcoreinfo::NoteRefused;
use super::{elf, kdump, note, pipeline};

/// What a finished dump has to say.
#[derive(Debug, Default)]
pub struct Report {
    /// Why the guest's note was left out, if it named one. The dump is complete without it.
    pub note_refused: Option<NoteRefused>,
}

/// Bytes of guest memory that a dump with this filter holds.
pub fn memory_bytes(view: &dyn GuestView, filter: Option<Filter>) -> u64 {
    ranges::cut(view.ranges(), filter).iter().map(|range| range.len).sum()
}

/// Writes a dump of `guest` to `output`, in the order a pipe can take unless the format is a raw
/// kdump.
///
/// `progress` counts bytes of guest memory and is asked for a cancel once per chunk. The memory
/// used is bounded: the writer's buffers of 8 MiB, for a kdump a strip of pages and a compressor
/// for each thread, and the page-table mappings of a `paging` dump (24 bytes each, at most
/// `walk::MAPPINGS_MAX`).
pub fn write(
    guest: &GuestState<'_>,
    options: &Options,
    output: Output,
    progress: &Progress,
) -> Result<Report, Error> {
    let memory = ranges::cut(guest.view.ranges(), options.filter);
    if memory.is_empty() {
        return Err(Error::NoMemory);
    }
    progress.begin(memory.iter().map(|range| range.len).sum());
    let (guest_note, note_refused) = match guest.vmcoreinfo.map(|at| at.read(guest.view)) {
        Some(Ok(note)) => (Some(note), None),
        Some(Err(why)) => (None, Some(why)),
        None => (None, None),
    };
    let notes = note::Notes::new(guest.cpus, guest_note);
    let pool = pipeline::pool(options.threads)?;
    let output = output.open(progress.waker())?;
    match options.format {
        Format::Elf => elf::write(guest, options.paging, &memory, &notes, output, &pool, progress)?,
        Format::Kdump { codec, raw } => {
            kdump::write(guest, codec, raw, &memory, &notes, output, &pool, progress)?
        }
    }
    Ok(Report { note_refused })
}
