//! `-smp`: how many processors, and how the guest sees them. What is not given follows from the rest
//! as in QEMU, which prefers cores.

use super::error::{Error, Problem};
use super::keys::{Key, Keys};
use super::value;
use crate::config::{Cpu, Topology};

/// What `-smp` said.
#[derive(Default)]
pub(crate) struct Smp {
    cpus: Option<u64>,
    cpus_max: Option<u64>,
    sockets: Option<u64>,
    cores: Option<u64>,
    threads: Option<u64>,
}

const ONE_LEVEL: &str = "microvm has no such level (QEMU's has not either); leave it out";

pub(crate) const SMP: Keys<Smp> = Keys {
    owner: "-smp",
    implied: Some("cpus"),
    table: &[
        Key::set("cpus", "N", |s, v| count(v, &mut s.cpus)),
        Key::set("maxcpus", "N", |s, v| count(v, &mut s.cpus_max)),
        Key::set("sockets", "N", |s, v| count(v, &mut s.sockets)),
        Key::set("cores", "N", |s, v| count(v, &mut s.cores)),
        Key::set("threads", "N", |s, v| count(v, &mut s.threads)),
        Key::only("dies", &["1"], ONE_LEVEL),
        Key::only("clusters", &["1"], ONE_LEVEL),
        Key::only("modules", &["1"], ONE_LEVEL),
        Key::only("books", &["1"], ONE_LEVEL),
        Key::only("drawers", &["1"], ONE_LEVEL),
    ],
};

fn count(text: &str, place: &mut Option<u64>) -> Result<(), Problem> {
    *place = Some(value::number(text, 1, Cpu::COUNT_MAX.into())?);
    Ok(())
}

impl Smp {
    /// The processors, and what to say about them.
    pub(crate) fn cpu(&self) -> Result<(Cpu, Option<String>), Error> {
        let given = self.cpus_max.or(self.cpus);
        let (sockets, cores, threads) = match given {
            None => (self.sockets.unwrap_or(1), self.cores.unwrap_or(1), self.threads.unwrap_or(1)),
            Some(room) => self.fill(room),
        };
        // Every number fits a byte, so that three of them cannot overflow.
        let product = sockets * cores * threads;
        let room = given.unwrap_or(product);
        let count = self.cpus.unwrap_or(room);
        if product != room {
            return Err(Problem::TopologyDiffers { product, cpus: room }.at("-smp"));
        }
        let max = u64::from(Cpu::COUNT_MAX);
        if room > max {
            return Err(Problem::OutOfRange { min: 1, max }.at("-smp"));
        }
        if count > room {
            return Err(Problem::MoreThanMax { cpus: count, max: room }.at("-smp"));
        }
        let topology =
            Topology { sockets: sockets as u8, cores: cores as u8, threads: threads as u8 };
        let last = topology.apic_id(room as u32 - 1);
        if u64::from(last) >= max {
            return Err(Problem::ApicIds { last, max: Cpu::COUNT_MAX - 1 }.at("-smp"));
        }
        let notice = (room > count).then(|| {
            format!("-smp maxcpus={room}: processors cannot be added later; there are {count}")
        });
        Ok((Cpu::of(count as u8, topology), notice))
    }

    /// Sockets, cores and threads that make `room`, as far as they can. Zero where they cannot.
    fn fill(&self, room: u64) -> (u64, u64, u64) {
        match (self.sockets, self.cores, self.threads) {
            (sockets, None, threads) => {
                let (sockets, threads) = (sockets.unwrap_or(1), threads.unwrap_or(1));
                (sockets, room / (sockets * threads), threads)
            }
            (None, Some(cores), threads) => {
                let threads = threads.unwrap_or(1);
                (room / (cores * threads), cores, threads)
            }
            (Some(sockets), Some(cores), threads) => {
                (sockets, cores, threads.unwrap_or(room / (sockets * cores)))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<(Cpu, Option<String>), Error> {
        let mut smp = Smp::default();
        SMP.read("-smp", text, &mut smp)?;
        smp.cpu()
    }

    /// As QEMU 10.0.2 takes them on microvm.
    #[test]
    fn what_is_left_out_follows_from_the_rest() {
        for (text, count, sockets, cores, threads) in [
            ("", 1, 1, 1, 1),
            ("3", 3, 1, 3, 1),
            (" 3", 3, 1, 3, 1),
            ("+3", 3, 1, 3, 1),
            ("0x3", 3, 1, 3, 1),
            ("2,cores= 2", 2, 1, 2, 1),
            ("cpus=2,cpus=3", 3, 1, 3, 1),
            ("4,sockets=2", 4, 2, 2, 1),
            ("4,threads=2", 4, 1, 2, 2),
            ("4,cores=2", 4, 2, 2, 1),
            ("4,cores=2,threads=2", 4, 1, 2, 2),
            ("8,sockets=2,cores=2", 8, 2, 2, 2),
            ("6,sockets=2,cores=3,threads=1", 6, 2, 3, 1),
            ("sockets=2", 2, 2, 1, 1),
            ("cores=3,threads=2", 6, 1, 3, 2),
            ("maxcpus=4", 4, 1, 4, 1),
            ("2,maxcpus=4", 2, 1, 4, 1),
            ("1,maxcpus=4,sockets=4", 1, 4, 1, 1),
            ("4,dies=1,clusters=1,modules=1,books=1,drawers=1", 4, 1, 4, 1),
            ("254", 254, 1, 254, 1),
        ] {
            let (cpu, notice) = read(text).unwrap();
            let topology = Topology { sockets, cores, threads };
            assert_eq!(cpu, Cpu::of(count, topology), "{text}");
            assert_eq!(notice.is_some(), text.contains(",maxcpus"), "{text}");
        }
    }

    #[test]
    fn what_does_not_fit_together_is_refused() {
        for (text, why) in [
            ("3,cores=4", "-smp: sockets, cores and threads multiply to 0, not to 3"),
            ("3,sockets=2", "-smp: sockets, cores and threads multiply to 2, not to 3"),
            (
                "4,sockets=2,cores=2,threads=2",
                "-smp: sockets, cores and threads multiply to 8, not to 4",
            ),
            ("4,maxcpus=2", "-smp: 4 processors are more than maxcpus=2"),
            ("0", "-smp 0: expects a number from 1 to 254"),
            ("2 ", "-smp 2 : expects a number from 1 to 254"),
            ("sockets=0", "-smp sockets=0: expects a number from 1 to 254"),
            ("sockets=254,cores=254,threads=254", "-smp: expects a number from 1 to 254"),
            (
                "192,sockets=64,cores=3",
                "-smp: the last processor's APIC id would be 254, 253 is the highest",
            ),
            (
                "4,dies=2",
                "-smp dies=2: microvm has no such level (QEMU's has not either); leave it out",
            ),
        ] {
            assert_eq!(read(text).unwrap_err().to_string(), why, "{text}");
        }
    }
}
