//! The ways that a disk's requests go: by the ring to a file, or in order to an image with tables.
//! Only one is in use at a time: an image becomes another kind while nothing is under way.

use super::image::Image;
use super::ordered::Ordered;
use super::ring::{Arrival, Memory, Ring, Work};
use std::fs::File;
use std::io;
use std::sync::Arc;

pub(crate) struct Lanes {
    ring: Ring,
    ordered: Option<Ordered>,
}

impl Lanes {
    pub(crate) fn new() -> io::Result<Lanes> {
        Ok(Lanes { ring: Ring::new()?, ordered: None })
    }

    /// Readable when something has arrived.
    pub(crate) fn event(&self) -> &Arc<File> {
        match &self.ordered {
            Some(ordered) if !ordered.is_idle() => ordered.event(),
            _ => self.ring.event(),
        }
    }

    /// Prepares a request; [`Lanes::submit`] sends it off. `number` comes back with it.
    ///
    /// # Errors
    /// Memory that is not the guest's, or there is no room.
    pub(crate) fn push(
        &mut self,
        number: u64,
        image: &Arc<Image>,
        work: Work,
        memory: Memory,
    ) -> io::Result<()> {
        if !image.is_ordered() {
            return self.ring.push(number, &image.file(), work, memory);
        }
        if self.ordered.is_none() {
            self.ordered = image.take_ordered();
        }
        match &mut self.ordered {
            Some(ordered) => {
                let image = image.clone();
                ordered.push(number, memory, move |memory| do_work(&image, work, memory))
            }
            None => Err(io::Error::from_raw_os_error(libc::EIO)),
        }
    }

    /// Sends off what was prepared, and looks what has arrived.
    pub(crate) fn submit(&mut self) {
        self.ring.submit();
        if let Some(ordered) = &mut self.ordered {
            ordered.collect();
        }
    }

    /// Waits until something has arrived, if anything is under way.
    pub(crate) fn wait(&mut self) {
        match &mut self.ordered {
            Some(ordered) if ordered.has_arrived() || !ordered.is_idle() => ordered.wait(),
            _ => self.ring.wait(),
        }
    }

    /// The next that has arrived.
    pub(crate) fn take(&mut self) -> Option<Arrival> {
        self.ordered.as_mut().and_then(Ordered::take).or_else(|| self.ring.take())
    }

    /// Whether there is a next one already.
    pub(crate) fn has_arrived(&self) -> bool {
        self.ring.has_arrived() || self.ordered.as_ref().is_some_and(Ordered::has_arrived)
    }
}

/// Bytes that were moved.
fn do_work(image: &Image, work: Work, memory: &mut Memory) -> io::Result<i32> {
    let own = match memory {
        Memory::Own(own) => own.get_mut(),
        Memory::None => &mut [],
        // The guest would see, and change, what the tables' reader has in hand.
        Memory::Guest { .. } => return Err(io::ErrorKind::InvalidInput.into()),
    };
    let count = own.len() as i32;
    image.with_chain(|chain| match work {
        Work::Read { at } => chain.read(at, own).map(|()| count),
        Work::Write { at } => chain.write(at, own).map(|()| count),
        Work::Flush => chain.flush().map(|()| 0),
        Work::Discard { at, bytes } => chain.discard(at, bytes).map(|()| 0),
        Work::Zeroes { at, bytes, unmap } => chain.zero(at, bytes, unmap).map(|()| 0),
    })
}
