//! Frames out of the guest.

use super::super::queue::{Fault, Queue};
use super::{Net, TURN, header_bytes};
use crate::devices::{FRAME_BYTES_MAX, HEADER_BYTES};
use crate::memory::GuestRam;

/// What became of a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sent {
    All,
    More,
    /// The network takes no more now.
    Blocked,
}

impl Net {
    /// Carries frames of the guest to the network.
    pub(super) fn send(
        &mut self,
        ram: &GuestRam,
        queue: &mut Queue,
        features: u64,
    ) -> Result<Sent, Fault> {
        let header_bytes = header_bytes(features);
        for _ in 0..TURN {
            let Some(chain) = queue.pop(ram)? else { return Ok(Sent::All) };
            let bytes = chain.readable_bytes();
            if bytes < header_bytes as u64 {
                return Err(Fault::Request("a frame to be sent is shorter than its header"));
            }
            let frame_bytes = bytes - header_bytes as u64;
            let network = self.network.as_ref().filter(|_| self.is_link_up());
            // One that no wire takes is lost, as in QEMU.
            let fits = (1..=(FRAME_BYTES_MAX - HEADER_BYTES) as u64).contains(&frame_bytes);
            if let Some(network) = network.filter(|_| fits) {
                let mut header = [0; HEADER_BYTES];
                if self.has_vnet_hdr {
                    chain.read(ram, 0, &mut header)?;
                }
                // Copied: what is checked is what leaves.
                self.outgoing.resize(frame_bytes as usize, 0);
                chain.read(ram, header_bytes, &mut self.outgoing)?;
                if !network.send(&header, &self.outgoing) {
                    queue.unpop();
                    return Ok(Sent::Blocked);
                }
            }
            queue.push(ram, chain.head, 0)?;
        }
        Ok(Sent::More)
    }
}
