//! How processors stand in sockets, cores and threads: in their APIC ids, which give each level the
//! bits that its number needs, so that ids have gaps where a number is no power of two.

use crate::config::{Cpu, Topology};

/// Where one processor stands, each level counted from 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Position {
    pub socket: u32,
    pub core: u32,
    pub thread: u32,
}

/// Bits of an APIC id that tell `count` from each other.
fn bits(count: u8) -> u32 {
    u32::from(count).next_power_of_two().trailing_zeros()
}

impl Topology {
    /// Bits of an APIC id below the core's.
    pub(crate) fn core_shift(&self) -> u32 {
        bits(self.threads)
    }

    /// Bits of an APIC id below the socket's.
    pub(crate) fn socket_shift(&self) -> u32 {
        bits(self.threads) + bits(self.cores)
    }

    /// Processors in one socket.
    pub(crate) fn per_socket(&self) -> u32 {
        u32::from(self.cores) * u32::from(self.threads)
    }

    pub(crate) fn position(&self, index: u32) -> Position {
        let (cores, threads) = (u32::from(self.cores), u32::from(self.threads));
        Position {
            socket: index / (cores * threads),
            core: index / threads % cores,
            thread: index % threads,
        }
    }

    /// The APIC id of processor `index`, which is its number in KVM, too.
    pub(crate) fn apic_id(&self, index: u32) -> u32 {
        let Position { socket, core, thread } = self.position(index);
        socket << self.socket_shift() | core << self.core_shift() | thread
    }
}

impl Cpu {
    /// The APIC ids of all processors, ascending.
    pub(crate) fn apic_ids(&self) -> impl Iterator<Item = u32> + use<> {
        let topology = self.topology;
        (0..u32::from(self.count)).map(move |index| topology.apic_id(index))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_have_gaps_where_a_number_is_no_power_of_two() {
        let ids = |count, sockets, cores, threads| {
            let topology = Topology { sockets, cores, threads };
            Cpu::of(count, topology).apic_ids().collect::<Vec<_>>()
        };
        assert_eq!(ids(4, 1, 4, 1), [0, 1, 2, 3]);
        assert_eq!(ids(6, 2, 3, 1), [0, 1, 2, 4, 5, 6]);
        assert_eq!(ids(6, 1, 2, 3), [0, 1, 2, 4, 5, 6]);
        assert_eq!(ids(12, 2, 3, 2), [0, 1, 2, 3, 4, 5, 8, 9, 10, 11, 12, 13]);
        assert_eq!(ids(3, 254, 1, 1), [0, 1, 2]);
        let topology = Topology { sockets: 2, cores: 3, threads: 2 };
        assert_eq!(topology.position(9), Position { socket: 1, core: 1, thread: 1 });
    }
}
