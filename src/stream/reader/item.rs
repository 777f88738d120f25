//! What is read from a channel, and what the reader asks of a caller who knows devices.

use crate::stream::error::{Error, Problem};
use crate::stream::godwit::Frame;
use crate::stream::ram::{PageAt, Record};
use crate::stream::{Command, Configuration, SectionHeader, SectionKind};
use std::sync::Arc;

/// Where a device's payload ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    /// After this many bytes.
    Bytes(usize),
    /// Cannot be told from fewer bytes than these.
    Need(usize),
}

/// Knows the layouts of device sections: their payloads have no length of their own.
pub trait Layouts {
    /// The extent of the payload at the front of `input`, which goes on behind it; `offset` is its
    /// place in the stream. It is asked until the answer is no [`Extent::Need`], so that one who
    /// has to decode the payload to find its end may keep what was decoded.
    fn extent(
        &mut self,
        section: &SectionHeader,
        input: &[u8],
        offset: u64,
    ) -> Result<Extent, Error>;
}

/// For channels, on which no device travels.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct NoDevices;

impl Layouts for NoDevices {
    fn extent(&mut self, section: &SectionHeader, _: &[u8], offset: u64) -> Result<Extent, Error> {
        let problem = Problem::Says("a device on a channel of RAM".into());
        Err(Error::new(format!("section {section}"), "name", offset, problem))
    }
}

/// One thing read from the main channel.
#[derive(Debug, Clone, PartialEq)]
pub enum Item<'a> {
    Configuration(Configuration),
    /// A section begins.
    Section {
        kind: SectionKind,
        header: Arc<SectionHeader>,
    },
    /// A record of section `ram`. Behind [`Record::Skip`] the input goes on at that offset of the
    /// file.
    Ram(Record<'a>),
    /// The whole payload of a device.
    Device {
        header: Arc<SectionHeader>,
        payload: &'a [u8],
    },
    /// The footer was right.
    SectionEnd,
    /// A command. Behind [`Command::Packaged`] come the items of the package, then
    /// [`Item::PackageEnd`].
    Command(Command),
    /// One of Godwit's own commands. Behind [`Frame::Run`] come [`Item::Run`]s, unless its bytes
    /// are taken elsewhere ([`Reader::take_run`](super::Reader::take_run)); behind [`Frame::Records`] come [`Item::Ram`]s.
    Frame(Frame),
    /// A piece of a run's bytes, which go to this place.
    Run {
        at: PageAt,
        bytes: &'a [u8],
    },
    PackageEnd,
    /// All sections were read. A description may follow; a stream that ends here is whole.
    EndOfStates,
    /// A piece of the description; `left` bytes of it follow.
    Description {
        text: &'a [u8],
        left: u32,
    },
}
