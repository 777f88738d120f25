//! How pages are laid out in a stream: Godwit's frames, QEMU's records, QEMU's packets. The rest of
//! the source knows only that there are pages of zeros, pages that travel whole, and deltas.

use std::ops::Range;

use xbzrle::parallel::Output;

use super::Error;
use super::packets::Packets;
use crate::io::Gather;
use crate::memory::PAGE_BYTES;
use crate::pages::PageSource;
use crate::stream::godwit::Frame;
use crate::stream::ram::{FLAG_EOS, FLAG_PAGE, RamWriter};
use crate::stream::{SectionHeader, SectionKind};

/// Lays out what one channel sends. Everything goes to the end of the send being filled.
pub enum Framing {
    /// Runs and ranges; records only for deltas.
    Frames(Frames),
    /// Records in PART sections.
    Records(Records),
    /// Multifd packets.
    Packets { packets: Packets, zeros_for_main: Vec<Zeros> },
}

/// Pages of zeros: the block's number, the pages in it.
pub type Zeros = (u8, Range<u64>);

/// Where pages of zeros go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ZeroRules {
    /// From a channel with packets to the main one, which sends them once the channels have sent
    /// theirs: what a QEMU before 9.0 understands.
    pub on_main: bool,
    /// Nowhere, where frames are used: the target has them already.
    pub left_out: bool,
}

#[derive(Default)]
pub struct Frames {
    /// A range that may still grow.
    zeros: Option<Zeros>,
}

pub struct Records {
    section: SectionHeader,
    /// A section is open in the send being filled.
    open: bool,
    writer: RamWriter,
}

impl Framing {
    pub fn frames() -> Self {
        Self::Frames(Frames::default())
    }

    pub fn records(section: SectionHeader) -> Self {
        Self::Records(Records { section, open: false, writer: RamWriter::default() })
    }

    pub fn packets(packets: Packets) -> Self {
        Self::Packets { packets, zeros_for_main: Vec::new() }
    }

    pub fn is_packets(&self) -> bool {
        matches!(self, Self::Packets { .. })
    }

    /// Pages of zeros.
    pub fn zeros(
        &mut self,
        source: &PageSource,
        pages: Range<u64>,
        rules: ZeroRules,
        gather: &mut Gather,
    ) -> Result<(), Error> {
        match self {
            Self::Frames(_) if rules.left_out => {}
            Self::Frames(frames) => frames.zeros((source.index(), pages), gather),
            Self::Records(records) => records.zeros(source, pages, gather),
            Self::Packets { zeros_for_main, .. } if rules.on_main => {
                zeros_for_main.push((source.index(), pages));
            }
            Self::Packets { packets, .. } => {
                for page in pages {
                    if packets.zero(page) {
                        packets.write(source, gather)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Pages that travel whole, from where they are.
    pub fn run(
        &mut self,
        source: &PageSource,
        pages: Range<u64>,
        gather: &mut Gather,
    ) -> Result<(), Error> {
        match self {
            Self::Frames(frames) => frames.run(source, pages, gather),
            Self::Records(records) => records.run(source, pages, gather),
            Self::Packets { packets, .. } => {
                for page in pages {
                    if packets.page(page) {
                        packets.write(source, gather)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Records that the delta encoder made. Never with packets, whose deltas were refused.
    pub fn deltas(&mut self, output: &Output, gather: &mut Gather) {
        match self {
            Self::Frames(frames) => {
                frames.close(gather);
                Frame::Records { bytes: output.len() as u32 }.write(gather.own());
            }
            Self::Records(records) => records.open(gather),
            Self::Packets { .. } => unreachable!("deltas and packets were refused together"),
        }
        output.append_to(gather.own());
    }

    /// The pages that follow are of another block than `source`: a packet holds those of one.
    pub fn end_block(&mut self, source: &PageSource, gather: &mut Gather) -> Result<(), Error> {
        match self {
            Self::Packets { packets, .. } if !packets.is_empty() => packets.write(source, gather),
            _ => Ok(()),
        }
    }

    /// Completes the send being filled, which leaves now.
    pub fn seal(&mut self, gather: &mut Gather) {
        match self {
            Self::Frames(frames) => frames.close(gather),
            Self::Records(records) => records.close(gather),
            Self::Packets { .. } => {}
        }
    }

    /// What a channel says at the end of round `number`.
    pub fn end_round(&mut self, number: u32) -> Vec<u8> {
        let mut out = Vec::new();
        match self {
            Self::Packets { packets, .. } => packets.write_sync(&mut out),
            _ => Frame::Sync { round: number }.write(&mut out),
        }
        out
    }

    /// Tells on the main channel that the others have come to the end of a round of packets.
    pub fn flush_channels(&mut self, gather: &mut Gather) {
        if let Self::Records(records) = self {
            records.open(gather);
        }
        RamWriter::flush(gather.own());
    }

    /// The pages of zeros left to the main channel.
    pub fn take_zeros_for_main(&mut self) -> Vec<Zeros> {
        match self {
            Self::Packets { zeros_for_main, .. } => std::mem::take(zeros_for_main),
            _ => Vec::new(),
        }
    }
}

impl Frames {
    fn zeros(&mut self, (block, pages): Zeros, gather: &mut Gather) {
        match &mut self.zeros {
            Some((before, range)) if *before == block && range.end == pages.start => {
                range.end = pages.end;
            }
            _ => {
                self.close(gather);
                self.zeros = Some((block, pages));
            }
        }
    }

    fn run(&mut self, source: &PageSource, pages: Range<u64>, gather: &mut Gather) {
        self.close(gather);
        let (offset, bytes) = (pages.start * PAGE_BYTES, (pages.end - pages.start) * PAGE_BYTES);
        Frame::Run { block: source.index(), offset, bytes }.write(gather.own());
        source.gather(pages, gather);
    }

    fn close(&mut self, gather: &mut Gather) {
        if let Some((block, pages)) = self.zeros.take() {
            let bytes = (pages.end - pages.start) * PAGE_BYTES;
            Frame::Zero { block, offset: pages.start * PAGE_BYTES, bytes }.write(gather.own());
        }
    }
}

impl Records {
    fn zeros(&mut self, source: &PageSource, pages: Range<u64>, gather: &mut Gather) {
        self.open(gather);
        for page in pages {
            let (block, offset) = (source.index().into(), page * PAGE_BYTES);
            self.writer.zero(gather.own(), block, source.name(), offset);
        }
    }

    fn run(&mut self, source: &PageSource, pages: Range<u64>, gather: &mut Gather) {
        self.open(gather);
        for page in pages {
            let (block, offset) = (source.index().into(), page * PAGE_BYTES);
            self.writer.page_header(gather.own(), FLAG_PAGE, block, source.name(), offset);
            source.gather(page..page + 1, gather);
        }
    }

    fn open(&mut self, gather: &mut Gather) {
        if !std::mem::replace(&mut self.open, true) {
            self.section.write(SectionKind::Part, gather.own());
        }
    }

    fn close(&mut self, gather: &mut Gather) {
        if std::mem::replace(&mut self.open, false) {
            gather.own().extend_from_slice(&FLAG_EOS.to_be_bytes());
            self.section.write_footer(gather.own());
        }
    }
}
