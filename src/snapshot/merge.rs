//! A chain as one plain mapped-ram file, which QEMU reads.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rayon::prelude::*;

use super::chain::{Chain, threads};
use super::error::{Error, failed};
use super::head;
use super::link::GoOn;
use crate::memory::PAGE_BYTES;
use crate::output::Destination;
use crate::stream::mapped::MappedHeader;
use crate::stream::ram::FLAG_EOS;
use crate::stream::{RamWriter, SectionKind};

/// Pages that one thread reads and writes at once: whole words of a bitmap.
const UNIT_PAGES: u64 = 256;

impl Chain {
    /// Verifies the chain and writes what it holds to `to`, which gets its name when it is whole. Bytes
    /// of the file come back.
    ///
    /// # Errors
    /// The snapshot is no increment; a file of the chain is broken; `to` is one of them.
    pub fn merge(&self, to: &Path, go_on: GoOn<'_>) -> Result<u64, Error> {
        let Some(stream) = self.stream()? else {
            return Err(Error::NoIncrement(self.name().to_owned()));
        };
        let head = head::read_bytes(&stream, self.name())?;
        let destination = Destination::look(to)?;
        destination.is_none_of(&self.inputs())?;
        self.verify_all(go_on)?;
        let output = destination.open_temporary(0o600)?;
        let output = output.ok_or_else(|| Error::InPlace(to.to_owned()))?;
        let (file, io) = (output.file(), failed(to));
        let mut configuration = head.configuration;
        configuration.capabilities.push("mapped-ram".into());
        let (mut out, mut place) = (Vec::new(), 0);
        configuration.write(&mut out);
        head.section.write(SectionKind::Start, &mut out);
        RamWriter::list_head(&mut out, head.blocks.iter().map(|block| block.bytes).sum());
        for listed in &head.blocks {
            RamWriter::list_entry(&mut out, &listed.name, listed.bytes);
            let header = MappedHeader::new(place + out.len() as u64, listed.bytes);
            header.write(&mut out);
            file.write_all_at(&out, place).map_err(&io)?;
            out.clear();
            let bitmap = self.write_block(file, to, &listed.name, listed.bytes, &header, go_on)?;
            file.write_all_at(&bitmap, header.bitmap_offset).map_err(&io)?;
            place = header.end(listed.bytes);
        }
        out.extend_from_slice(&FLAG_EOS.to_be_bytes());
        head.section.write_footer(&mut out);
        out.extend_from_slice(&stream[head.end as usize..]);
        file.write_all_at(&out, place).map_err(&io)?;
        self.check_unchanged()?;
        output.finish()?;
        Ok(place + out.len() as u64)
    }

    /// Writes the pages of a block to their places. The bitmap of those that are not zero comes back.
    fn write_block(
        &self,
        file: &File,
        name: &Path,
        block: &str,
        bytes: u64,
        header: &MappedHeader,
        go_on: GoOn<'_>,
    ) -> Result<Vec<u8>, Error> {
        let number = self.block(block, bytes)?;
        let (data, pages) = (self.data_pages(number), bytes / PAGE_BYTES);
        let units: Vec<u64> = (0..pages).step_by(UNIT_PAGES as usize).collect();
        let unit = |buffer: &mut Vec<u8>, first: u64| {
            go_on().then_some(()).ok_or(Error::Cancelled)?;
            let end = (first + UNIT_PAGES).min(pages);
            let mut words = [0u64; UNIT_PAGES as usize / 64];
            if data.next(first).is_none_or(|page| page >= end) {
                return Ok(words);
            }
            buffer.resize(((end - first) * PAGE_BYTES) as usize, 0);
            self.read(number, first, buffer)?;
            let (pages, _) = buffer.as_chunks::<{ PAGE_BYTES as usize }>();
            for (page, bytes) in (0..).zip(pages).filter(|(_, bytes)| !xbzrle::is_zero(*bytes)) {
                words[page / 64] |= 1 << (page % 64);
                let place = header.pages_offset + (first + page as u64) * PAGE_BYTES;
                file.write_all_at(bytes, place).map_err(failed(name))?;
            }
            Ok(words)
        };
        let words: Vec<_> = threads()?.install(|| {
            units
                .par_iter()
                .map_init(Vec::new, |buffer, first| unit(buffer, *first))
                .collect::<Result<Vec<_>, Error>>()
        })?;
        let mut bitmap: Vec<u8> = words.into_iter().flatten().flat_map(u64::to_le_bytes).collect();
        bitmap.truncate(MappedHeader::bitmap_bytes(bytes) as usize);
        Ok(bitmap)
    }
}
