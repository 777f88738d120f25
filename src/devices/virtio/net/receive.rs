//! Frames into the guest.

use super::super::queue::{Chain, Fault, Queue};
use super::{Net, TURN, feature, header_bytes};
use crate::devices::HEADER_BYTES;
use crate::memory::GuestRam;

/// Where a frame went.
#[derive(Debug, PartialEq, Eq)]
enum Placed {
    Done,
    /// The guest has not enough buffers now.
    NoRoom,
}

impl Net {
    /// Gives the guest what came, as far as it has buffers. True: there may be more.
    pub(super) fn receive(
        &mut self,
        ram: &GuestRam,
        queue: &mut Queue,
        features: u64,
    ) -> Result<bool, Fault> {
        for _ in 0..TURN {
            if self.held == 0 {
                let Some(network) = &self.network else { return Ok(false) };
                let Some(bytes) = network.receive(&mut self.frame) else { return Ok(false) };
                let wanted =
                    self.is_link_up() && self.filter.takes(&self.frame[HEADER_BYTES..bytes]);
                if !wanted || !queue.is_in_use() {
                    continue;
                }
                self.held = bytes;
            }
            match place(ram, queue, &self.frame[..self.held], features)? {
                Placed::Done => self.held = 0,
                Placed::NoRoom => return Ok(false),
            }
        }
        Ok(true)
    }
}

/// Puts a frame, its header in front, into the guest's next buffers.
fn place(ram: &GuestRam, queue: &mut Queue, frame: &[u8], features: u64) -> Result<Placed, Fault> {
    let header_bytes = header_bytes(features);
    let mergeable = features & feature::MRG_RXBUF != 0;
    let needed = (frame.len() - HEADER_BYTES + header_bytes) as u64;
    let (mut chains, mut room): (Vec<Chain>, u64) = (Vec::new(), 0);
    while room < needed {
        let Some(chain) = queue.pop(ram)? else {
            chains.iter().for_each(|_| queue.unpop());
            return Ok(Placed::NoRoom);
        };
        let bytes = chain.writable_bytes();
        if bytes < if chains.is_empty() { header_bytes as u64 } else { 1 } {
            return Err(Fault::Request("a buffer to receive into is too small for anything"));
        }
        if !mergeable && bytes < needed {
            // Lost, as in QEMU; the buffer is for another.
            queue.unpop();
            return Ok(Placed::Done);
        }
        room = room.saturating_add(bytes);
        chains.push(chain);
    }
    let mut data = frame[..HEADER_BYTES].to_vec();
    if header_bytes > HEADER_BYTES {
        data.extend((chains.len() as u16).to_le_bytes());
    }
    data.extend(&frame[HEADER_BYTES..]);
    let (mut rest, mut done) = (&data[..], Vec::with_capacity(chains.len()));
    for chain in &chains {
        let written = chain.write(ram, rest)?;
        done.push((chain.head, written));
        rest = &rest[written as usize..];
    }
    queue.push_all(ram, &done)?;
    Ok(Placed::Done)
}
