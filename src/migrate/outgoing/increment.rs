//! What differs from a snapshot, as a peer writes it: a channel of its own writes pages, and the main
//! one the stream around them.

use super::channel::Channel;
use super::error::Error;
use super::peer::Peer;
use super::source::Source;
use crate::io::{Ring, Writer};

impl Peer {
    /// Behind the list of blocks: makes the channel that writes what differs.
    pub(super) fn open_increment(&mut self, source: &Source) -> Result<(), Error> {
        let Some(increment) = &mut self.increment else { return Ok(()) };
        let head = self.main.writer.place().ok_or(Error::MappedNeedsFile)?;
        let framing = increment.begin_pages(head)?;
        let ring = Ring::new(source.waker.clone())?;
        let writer = Writer::positioned(self.file(), source.settings.limit.clone());
        let channel = Channel::new(0, false, ring, writer, framing, source.guest.ram());
        self.channels.push(channel);
        Ok(())
    }

    /// The rest of the stream stands behind the pages, all of which have been written.
    pub(super) fn go_on_behind_pages(&mut self) -> Result<(), Error> {
        let Some(increment) = &mut self.increment else { return Ok(()) };
        let tail = increment.end_pages();
        Ok(self.main.writer.go_on_at(&mut self.main.ring, tail)?)
    }
}
