//! Commands that write guest memory to a file.

use std::fs::File;
use std::io::Write;

use memmap2::MmapMut;
use serde_json::json;

use super::command::{Answer, Call, Command, Run};
use super::file;
use crate::io::reason;
use crate::qmp::error::Error;
use crate::qmp::schema::{Member, Shape, Type, optional, required};

pub(crate) static COMMANDS: &[Command] = &[
    Command::new("pmemsave", Run::Waiting(pmemsave))
        .arguments(&PHYSICAL)
        .does("Writes physical guest memory to a file, as it stands."),
    Command::new("memsave", Run::Waiting(memsave))
        .arguments(&VIRTUAL)
        .does("Writes guest memory to a file by virtual addresses, as a processor sees it."),
];

const VAL: Member = required("val", Type::U64).means("the first address");
const SIZE: Member = required("size", Type::U64).means("how many bytes");
const FILENAME: Member = required("filename", Type::Text).means("the file, or /dev/fdset/ID");
static PHYSICAL: Shape = Shape::of(&[VAL, SIZE, FILENAME]);
static VIRTUAL: Shape = Shape::of(&[
    VAL,
    SIZE,
    FILENAME,
    optional("cpu-index", Type::Int).means("the processor whose page tables count (0)"),
]);

const PAGE_BYTES: u64 = 4096;
/// Physical memory is copied in pieces of this size.
const PIECE_BYTES: u64 = 1 << 20;
/// No file is longer.
const FILE_BYTES_MAX: u64 = i64::MAX as u64;
/// Virtual pages that are looked up in one stop of the guest.
const PAGES_AT_ONCE: usize = 1024;

fn pmemsave(call: Call<'_>) -> Answer {
    let Range { mut address, bytes: mut left } = Range::of(call)?;
    save(call, |file| {
        // Not from the heap: memory that cannot be had there ends the process.
        let mut room = MmapMut::map_anon(PIECE_BYTES as usize)
            .map_err(|error| Error::generic(format!("no memory to copy with: {error}")))?;
        while left > 0 {
            let piece = &mut room[..left.min(PIECE_BYTES) as usize];
            call.vmm.guest.read_physical(address, piece)?;
            write(call, file, piece)?;
            // Only the end of a range that ends at 2^64 wraps, and it is not looked at.
            address = address.wrapping_add(piece.len() as u64);
            left -= piece.len() as u64;
        }
        Ok(())
    })
}

fn memsave(call: Call<'_>) -> Answer {
    let index = call.args.int_if_given("cpu-index").unwrap_or(0);
    let vcpu = call.vmm.guest.vcpus().into_iter().find(|vcpu| i64::from(vcpu.index) == index);
    let vcpu = vcpu.ok_or_else(|| Error::generic("Parameter 'cpu-index' expects a CPU number"))?;
    let mut rest = Range::of(call)?;
    save(call, |file| {
        while rest.bytes > 0 {
            let pages: Vec<Range> =
                std::iter::from_fn(|| rest.take_page()).take(PAGES_AT_ONCE).collect();
            let addresses: Vec<u64> = pages.iter().map(|page| page.address).collect();
            let found = call.vmm.guest.translate(vcpu.index, &addresses)?;
            for (page, physical) in pages.iter().zip(found) {
                let mut bytes = [0; PAGE_BYTES as usize];
                let bytes = &mut bytes[..page.bytes as usize];
                call.vmm.guest.read_physical(physical.ok_or_else(|| invalid(call))?, bytes)?;
                write(call, file, bytes)?;
            }
        }
        Ok(())
    })
}

/// Memory still to be saved. It ends at 2^64 at the latest.
struct Range {
    address: u64,
    bytes: u64,
}

impl Range {
    /// What was asked for. (QEMU goes on at address zero.)
    fn of(call: Call<'_>) -> Result<Range, Error> {
        let (address, bytes) = (call.args.unsigned("val"), call.args.unsigned("size"));
        if bytes > FILE_BYTES_MAX {
            return Err(Error::generic("Parameter 'size' expects a value from 0 to 2^63 - 1"));
        }
        match u128::from(address) + u128::from(bytes) <= 1 << 64 {
            true => Ok(Range { address, bytes }),
            false => Err(invalid(call)),
        }
    }

    /// Cuts off what lies in the first page.
    fn take_page(&mut self) -> Option<Range> {
        let bytes = self.bytes.min(PAGE_BYTES - self.address % PAGE_BYTES);
        let page = Range { address: self.address, bytes };
        // Only behind the last byte of all.
        self.address = self.address.wrapping_add(bytes);
        self.bytes -= bytes;
        (bytes > 0).then_some(page)
    }
}

/// QEMU's words for memory that is not there.
fn invalid(call: Call<'_>) -> Error {
    let (start, size) = (call.args.unsigned("val"), call.args.unsigned("size"));
    Error::generic(format_args!("Invalid addr 0x{start:016x}/size {size} specified"))
}

/// Has `write` fill the file. Half an image would look like that of a smaller memory: after a failure
/// the file is empty.
fn save(call: Call<'_>, write: impl FnOnce(&mut File) -> Result<(), Error>) -> Answer {
    let name = call.args.text("filename");
    let mut named = file::create(call, name, "open", 0o666, &|| false)?;
    write(&mut named.file).inspect_err(|_| {
        // Devices and pipes cannot take it back, and say so.
        let _ = named.file.set_len(0);
    })?;
    Ok(json!({}))
}

fn write(call: Call<'_>, file: &mut File, bytes: &[u8]) -> Result<(), Error> {
    let name = call.args.text("filename");
    file.write_all(bytes).map_err(|error| {
        Error::generic(format_args!("writing memory to '{name}' failed: {}", reason(&error)))
    })
}
