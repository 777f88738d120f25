//! Snapshots that hold what differs from another one ([`crate::snapshot`]): the whole chain is verified,
//! then its pages are read as the stream lists their blocks. The stream itself is small, and lies in
//! memory of ours once it was verified: what is decoded is what the checksums were of.

use std::fs::File;
use std::io::{Seek, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rayon::ThreadPool;
use rayon::prelude::*;
use rustix::fs::{MemfdFlags, memfd_create};

use super::Error;
use super::apply::Blocks;
use crate::io::connection::Medium;
use crate::io::{self, Connection, Waker};
use crate::memory::PAGE_BYTES;
use crate::snapshot::{self, Chain, MAGIC, threads};
use crate::stream::ListedBlock;

/// Pages that one thread reads at once.
const UNIT_PAGES: u64 = 256;

/// Files whose pages make up the guest's memory.
pub(super) struct Increment {
    chain: Chain,
    pool: ThreadPool,
}

impl Increment {
    /// `None`: the connection is no increment's. Otherwise its stream takes the connection's place.
    /// `name` is the file's, if it was opened by one.
    pub(super) fn of(
        connection: &mut Connection,
        name: Option<&Path>,
        waker: &Waker,
    ) -> Result<Option<Self>, Error> {
        if connection.medium != Medium::File || !is_increment(&connection.fd)? {
            return Ok(None);
        }
        let Some(name) = name else { return Err(Error::IncrementNeedsName) };
        let file = connection.fd.try_clone().map_err(io::Error::from)?;
        let (chain, pool) = (Chain::of(file.into(), name)?, threads()?);
        chain.verify(&pool, &|| !waker.is_cancelled())?;
        let stream = chain.stream()?.unwrap_or_default();
        *connection = Connection::from_fd(in_memory(&stream).map_err(io::Error::from)?);
        Ok(Some(Self { chain, pool }))
    }

    /// Reads the pages of a block, which is number `number` of `blocks`.
    pub(super) fn restore(
        &self,
        blocks: &Blocks,
        number: u8,
        listed: &ListedBlock,
    ) -> Result<(), Error> {
        let block = self.chain.block(&listed.name, listed.bytes)?;
        let (mut units, mut done) = (Vec::new(), 0);
        for run in self.chain.data_pages(block).ranges() {
            blocks.zero(number, done * PAGE_BYTES, (run.start - done) * PAGE_BYTES)?;
            done = run.end;
            let firsts = run.clone().step_by(UNIT_PAGES as usize);
            units.extend(firsts.map(|first| first..(first + UNIT_PAGES).min(run.end)));
        }
        blocks.zero(number, done * PAGE_BYTES, listed.bytes - done * PAGE_BYTES)?;
        self.pool.install(|| {
            units.into_par_iter().try_for_each_init(Vec::new, |bytes, unit| {
                bytes.resize(((unit.end - unit.start) * PAGE_BYTES) as usize, 0);
                self.chain.read(block, unit.start, bytes)?;
                blocks.write(number, unit.start * PAGE_BYTES, bytes)
            })
        })
    }

    /// Nobody has written to the files meanwhile.
    pub(super) fn check_unchanged(&self) -> Result<(), snapshot::Error> {
        self.chain.check_unchanged()
    }
}

/// What begins where the descriptor stands. An increment is a file of its own.
fn is_increment(fd: &OwnedFd) -> Result<bool, Error> {
    let file = File::from(fd.try_clone().map_err(io::Error::from)?);
    let start = (&file).stream_position().map_err(io::Error::from)?;
    let mut magic = [0; MAGIC.len()];
    match file.read_exact_at(&mut magic, start) {
        Ok(()) if magic == MAGIC && start > 0 => Err(snapshot::Error::NotAlone("offset=").into()),
        // What cannot be read is found out by who reads on.
        read => Ok(read.is_ok() && magic == MAGIC),
    }
}

fn in_memory(bytes: &[u8]) -> std::io::Result<OwnedFd> {
    let mut file = File::from(memfd_create("increment", MemfdFlags::CLOEXEC)?);
    file.write_all(bytes)?;
    file.rewind()?;
    Ok(file.into())
}
