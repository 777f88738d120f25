//! How pages are laid out in a stream: Godwit's frames, QEMU's records, QEMU's packets (in
//! [`packets`](super::packets)), or without any at fixed places of a file (in
//! [`places`](super::places)). The rest of the source knows only that there are pages of zeros, pages
//! that travel whole, and deltas.

use std::ops::Range;

use xbzrle::parallel::Output;

use super::error::Error;
use crate::io::Gather;
use crate::memory::PAGE_BYTES;
use crate::pages::PageSource;
use crate::stream::godwit::Frame;
use crate::stream::ram::{FLAG_EOS, FLAG_PAGE, RamWriter};
use crate::stream::{SectionHeader, SectionKind};

/// Lays out what one channel sends. Everything goes to the end of the send being filled.
pub(super) trait Framing: Send {
    /// Pages of zeros.
    fn zeros(
        &mut self,
        source: &PageSource,
        pages: Range<u64>,
        rules: ZeroRules,
        gather: &mut Gather,
    ) -> Result<(), Error>;

    /// Pages that travel whole, from where they are.
    fn whole(
        &mut self,
        source: &PageSource,
        pages: Range<u64>,
        gather: &mut Gather,
    ) -> Result<(), Error>;

    /// A page whose bytes were copied, by a snapshot in the background.
    fn copied(
        &mut self,
        _source: &PageSource,
        _page: u64,
        _bytes: &[u8],
        _gather: &mut Gather,
    ) -> Result<(), Error> {
        unreachable!("a snapshot in the background goes out as records, or to places")
    }

    /// Where in a file the pages from `page` on go; `None`: behind what was sent before.
    fn place(&self, _source: &PageSource, _page: u64) -> Option<u64> {
        None
    }

    /// Records that the delta encoder made.
    fn deltas(&mut self, output: &Output, gather: &mut Gather);

    /// The pages that follow are of another block than `source`.
    fn end_block(&mut self, _source: &PageSource, _gather: &mut Gather) -> Result<(), Error> {
        Ok(())
    }

    /// Completes the send being filled, which leaves now.
    fn seal(&mut self, _gather: &mut Gather) {}

    /// What a channel says at the end of round `number`.
    fn end_round(&mut self, number: u32, out: &mut Vec<u8>) {
        Frame::Sync { round: number }.write(out);
    }

    /// Tells on the main channel that the others have come to the end of a round of packets.
    fn flush_channels(&mut self, gather: &mut Gather) {
        RamWriter::flush(gather.own());
    }

    /// The pages of zeros left to the main channel.
    fn take_zeros_for_main(&mut self) -> Vec<Zeros> {
        Vec::new()
    }
}

/// Pages of zeros: the block's number, the pages in it.
pub(super) type Zeros = (u8, Range<u64>);

/// Where pages of zeros go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ZeroRules {
    /// From a channel with packets to the main one, which sends them once the channels have sent
    /// theirs: what a QEMU before 9.0 understands.
    pub on_main: bool,
    /// Nowhere, where frames are used: the target has them already.
    pub left_out: bool,
}

/// Runs and ranges; records only for deltas.
#[derive(Default)]
pub(super) struct Frames {
    /// A range that may still grow.
    zeros: Option<Zeros>,
}

/// Records in PART sections.
pub(super) struct Records {
    section: SectionHeader,
    /// A section is open in the send being filled.
    open: bool,
    writer: RamWriter,
}

impl Framing for Frames {
    fn zeros(
        &mut self,
        source: &PageSource,
        pages: Range<u64>,
        rules: ZeroRules,
        gather: &mut Gather,
    ) -> Result<(), Error> {
        match &mut self.zeros {
            _ if rules.left_out => {}
            Some((block, before)) if *block == source.index() && before.end == pages.start => {
                before.end = pages.end;
            }
            _ => {
                self.seal(gather);
                self.zeros = Some((source.index(), pages));
            }
        }
        Ok(())
    }

    fn whole(
        &mut self,
        source: &PageSource,
        pages: Range<u64>,
        gather: &mut Gather,
    ) -> Result<(), Error> {
        self.seal(gather);
        let (offset, end) = (pages.start * PAGE_BYTES, pages.end * PAGE_BYTES);
        Frame::Run { block: source.index(), offset, bytes: end - offset }.write(gather.own());
        gather.memory(source.block(), offset..end);
        Ok(())
    }

    fn deltas(&mut self, output: &Output, gather: &mut Gather) {
        self.seal(gather);
        Frame::Records { bytes: output.len() as u32 }.write(gather.own());
        output.append_to(gather.own());
    }

    fn seal(&mut self, gather: &mut Gather) {
        if let Some((block, pages)) = self.zeros.take() {
            let bytes = (pages.end - pages.start) * PAGE_BYTES;
            Frame::Zero { block, offset: pages.start * PAGE_BYTES, bytes }.write(gather.own());
        }
    }
}

impl Framing for Records {
    fn zeros(
        &mut self,
        source: &PageSource,
        pages: Range<u64>,
        _: ZeroRules,
        gather: &mut Gather,
    ) -> Result<(), Error> {
        self.open(gather);
        let (block, name) = (source.index().into(), source.block().name());
        for page in pages {
            self.writer.zero(gather.own(), block, name, page * PAGE_BYTES);
        }
        Ok(())
    }

    fn whole(
        &mut self,
        source: &PageSource,
        pages: Range<u64>,
        gather: &mut Gather,
    ) -> Result<(), Error> {
        self.open(gather);
        let (block, name) = (source.index().into(), source.block().name());
        for offset in pages.map(|page| page * PAGE_BYTES) {
            self.writer.page_header(gather.own(), FLAG_PAGE, block, name, offset);
            gather.memory(source.block(), offset..offset + PAGE_BYTES);
        }
        Ok(())
    }

    fn copied(
        &mut self,
        source: &PageSource,
        page: u64,
        bytes: &[u8],
        gather: &mut Gather,
    ) -> Result<(), Error> {
        self.open(gather);
        let (block, name) = (source.index().into(), source.block().name());
        self.writer.page_header(gather.own(), FLAG_PAGE, block, name, page * PAGE_BYTES);
        gather.own().extend_from_slice(bytes);
        Ok(())
    }

    fn deltas(&mut self, output: &Output, gather: &mut Gather) {
        self.open(gather);
        output.append_to(gather.own());
    }

    fn seal(&mut self, gather: &mut Gather) {
        if std::mem::replace(&mut self.open, false) {
            gather.own().extend_from_slice(&FLAG_EOS.to_be_bytes());
            self.section.write_footer(gather.own());
        }
    }

    fn flush_channels(&mut self, gather: &mut Gather) {
        self.open(gather);
        RamWriter::flush(gather.own());
    }
}

impl Records {
    pub(super) fn new(section: SectionHeader) -> Self {
        Self { section, open: false, writer: RamWriter::default() }
    }

    fn open(&mut self, gather: &mut Gather) {
        if !std::mem::replace(&mut self.open, true) {
            self.section.write(SectionKind::Part, gather.own());
        }
    }
}
