//! Whether there are enough descriptors, asked before anything is done with them.
//!
//! A machine that starts with too few runs without what it got none for, and a library that gets
//! none panics. A limit that is too low is a matter for the person who starts the machine, and only
//! at the start is there one.

use std::os::fd::OwnedFd;

use rustix::event::{EventfdFlags, eventfd};
use rustix::io::{Errno, fcntl_dupfd_cloexec};
use rustix::process::{Resource, getrlimit};

use crate::config::Config;

#[derive(Debug, thiserror::Error)]
pub enum TooFew {
    #[error(
        "the limit on open files is {limit}, and this machine may need {more} more: raise it \
         (ulimit -n {})",
        limit + *more as u64
    )]
    Process { limit: u64, more: usize },
    #[error("the host has no more open files to give; raise fs.file-max")]
    Host,
    #[error("cannot open anything: {0}")]
    Other(Errno),
}

/// The control plane's rings and signals, files being read, what commands open, and the VM with
/// some devices.
const PROCESS: usize = 24;
/// A character device with a client.
const PER_CHARDEV: usize = 6;
/// A network: what it is made of, a listener, a connection, a program, a bell.
const PER_NETDEV: usize = 6;
/// Its own, and one of a machine made for a reset.
const PER_VCPU: usize = 2;

/// At most so many descriptors are open at one time, as long as nothing is moved or dumped.
fn needed(config: &Config) -> usize {
    let backends = PER_CHARDEV * config.chardevs.len() + PER_NETDEV * config.netdevs.len();
    PROCESS + backends + PER_VCPU * usize::from(config.cpu.count)
}

/// Fails if `config` needs more descriptors than can be had.
pub(crate) fn check(config: &Config) -> Result<(), TooFew> {
    let needed = needed(config);
    let mut had: Vec<OwnedFd> = Vec::with_capacity(needed);
    while had.len() < needed {
        let next = match had.first() {
            None => eventfd(0, EventfdFlags::CLOEXEC),
            Some(first) => fcntl_dupfd_cloexec(first, 0),
        };
        match next {
            Ok(fd) => had.push(fd),
            Err(Errno::MFILE) => {
                let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
                return Err(TooFew::Process { limit, more: needed - had.len() });
            }
            Err(Errno::NFILE) => return Err(TooFew::Host),
            Err(errno) => return Err(TooFew::Other(errno)),
        }
    }
    Ok(())
}
