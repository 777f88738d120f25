//! What the guest says about what it wants to hear, and can do: the control queue (virtio 1.2,
//! 5.1.6.5).

use super::super::queue::{Fault, Queue};
use super::{ANNOUNCE, Net, feature};
use crate::devices::Mac;
use crate::memory::GuestRam;

const OK: u8 = 0;
const ERR: u8 = 1;

/// Addresses that are kept; with more all are taken.
const MACS_MAX: usize = 64;
/// The longest command is two tables of addresses. What is longer has addresses that nobody keeps.
const COMMAND_BYTES_MAX: usize = 64 << 10;
/// Commands of one turn.
const TURN: usize = 16;

/// What a guest may leave to be done, as features.
pub(super) const GUEST_OFFLOADS: u64 = feature::GUEST_CSUM
    | feature::GUEST_TSO4
    | feature::GUEST_TSO6
    | feature::GUEST_ECN
    | feature::GUEST_UFO
    | USO;
const USO: u64 = feature::GUEST_USO4 | feature::GUEST_USO6;

/// The same as the kernel's tap devices have it (`TUN_F_…`).
pub(super) fn tap_flags(offloads: u64) -> u32 {
    const FLAGS: [(u64, u32); 5] = [
        (feature::GUEST_CSUM, 1),
        (feature::GUEST_TSO4, 2),
        (feature::GUEST_TSO6, 4),
        (feature::GUEST_ECN, 8),
        (feature::GUEST_UFO, 0x10),
    ];
    if offloads & feature::GUEST_CSUM == 0 {
        return 0;
    }
    let set = FLAGS.iter().filter(|(feature, _)| offloads & feature != 0);
    let flags = set.map(|(_, flag)| flag).sum();
    // The kernel knows these two together only.
    let flags: u32 = if offloads & USO == USO { flags | 0x60 } else { flags };
    // And ECN as something of segments.
    if flags & 6 == 0 { flags & !8 } else { flags }
}

impl Net {
    /// Carries out commands. True: there may be more.
    pub(super) fn control(
        &mut self,
        ram: &GuestRam,
        queue: &mut Queue,
        features: u64,
    ) -> Result<bool, Fault> {
        for _ in 0..TURN {
            let Some(chain) = queue.pop(ram)? else { return Ok(false) };
            let bytes = chain.readable_bytes();
            if bytes < 2 || chain.writable_bytes() < 1 {
                return Err(Fault::Request(
                    "a command has no place for its two bytes, or the answer",
                ));
            }
            let mut command = vec![0; bytes.min(COMMAND_BYTES_MAX as u64) as usize];
            chain.read(ram, 0, &mut command)?;
            let done = self.command(command[0], command[1], &command[2..], features);
            let answer = if done.is_some() { OK } else { ERR };
            let written = chain.write(ram, &[answer])?;
            queue.push(ram, chain.head, written)?;
        }
        Ok(true)
    }

    /// `None`: it makes no sense, and nothing has happened.
    fn command(&mut self, class: u8, command: u8, data: &[u8], features: u64) -> Option<()> {
        let had = self.filter.clone();
        match (class, command) {
            (0, 0..=5) => {
                let on = *data.first()? != 0;
                let filter = &mut self.filter;
                *[
                    &mut filter.promiscuous,
                    &mut filter.all_multicast,
                    &mut filter.all_unicast,
                    &mut filter.no_multicast,
                    &mut filter.no_unicast,
                    &mut filter.no_broadcast,
                ][usize::from(command)] = on;
            }
            (1, 0) => self.set_tables(data)?,
            (1, 1) => self.filter.mac = data.try_into().ok()?,
            (2, 0..=1) => {
                let vlan = u16::from_le_bytes(*data.first_chunk()?);
                self.filter.set_vlan(vlan, command == 0).then_some(())?;
            }
            (3, 0) if self.status & ANNOUNCE != 0 => self.status &= !ANNOUNCE,
            (5, 0) if features & feature::CTRL_GUEST_OFFLOADS != 0 => {
                let wanted = u64::from_le_bytes(*data.first_chunk()?);
                if wanted & !(features & GUEST_OFFLOADS) != 0 {
                    return None;
                }
                self.offloads = Some(wanted);
                self.tell_offloads(features);
            }
            _ => return None,
        }
        if self.filter != had {
            self.filter_changed();
        }
        Some(())
    }

    /// Two tables, each its number of entries (le32) and so many addresses: of cards, of groups.
    fn set_tables(&mut self, data: &[u8]) -> Option<()> {
        let (unicast, rest) = table(data)?;
        let (multicast, _) = table(rest)?;
        let filter = &mut self.filter;
        filter.unicast_overflow = unicast.len() > MACS_MAX;
        filter.unicast = if filter.unicast_overflow { Vec::new() } else { unicast };
        filter.multicast_overflow = filter.unicast.len() + multicast.len() > MACS_MAX;
        filter.multicast = if filter.multicast_overflow { Vec::new() } else { multicast };
        Some(())
    }
}

/// A table and what stands behind it.
fn table(data: &[u8]) -> Option<(Vec<Mac>, &[u8])> {
    let (count, rest) = data.split_first_chunk()?;
    let bytes = (u32::from_le_bytes(*count) as usize).checked_mul(size_of::<Mac>())?;
    let (macs, rest) = rest.split_at_checked(bytes)?;
    Some((
        macs.chunks_exact(size_of::<Mac>()).filter_map(|mac| mac.try_into().ok()).collect(),
        rest,
    ))
}
