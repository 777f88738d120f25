//! Guest RAM: where it comes from, where the guest sees it, and which of its pages this process
//! wrote.
//!
//! A machine has one [`GuestRam`]. It is made of [`RamBlock`]s, the unit migration streams name and
//! number pages in; each block is one mapping in this process and appears to the guest in one or
//! more [`Region`]s (RAM above 3 GiB continues at 4 GiB). KVM logs what vCPUs write; everything
//! this process writes by guest address goes through [`GuestRam::write`], or `vm-memory` between
//! [`GuestRam::ask_to_write`] and the end of the write, and is marked in a bitmap of its own, see
//! [`GuestRam::take_vmm_dirty`].
//!
//! A [`Snapshot`] is RAM as it was at one moment, read while the guest goes on; whoever writes is
//! made to wait until the page was copied.

mod arrive;
mod backing;
mod block;
mod error;
mod full;
mod hints;
mod holes;
mod lay_over;
mod mapped;
mod over;
mod pages;
mod ram;
mod signal_stack;
mod snapshot;
mod uffd;
mod watch;

pub(crate) use block::{RamBlock, Region};
pub use error::Error;
pub(crate) use full::survive_missing_pages;
pub(crate) use hints::HintPhase;
pub use hints::Hints;
pub(crate) use pages::PAGE_BYTES;
pub use pages::PageSet;
pub(crate) use ram::layout;
pub use ram::{GuestRam, Mem};
pub use snapshot::{POOL_BYTES, Snapshot};
pub(crate) use uffd::Unavailable;

/// RAM with this backend.
#[cfg(test)]
fn with_backend(bytes: u64, backend: crate::config::MemoryBackend) -> Result<GuestRam, Error> {
    let (block, prealloc, merge, dump) = ("microvm.ram".into(), false, false, true);
    GuestRam::new(&crate::config::Memory { bytes, block, backend, prealloc, merge, dump })
}

/// Shared memory of so many bytes.
#[cfg(test)]
pub(crate) fn for_tests(bytes: u64) -> GuestRam {
    let backend =
        crate::config::MemoryBackend::Memfd { share: true, seal: false, huge_pages: None };
    with_backend(bytes, backend).unwrap()
}

/// Private anonymous memory of so many bytes.
#[cfg(test)]
pub(crate) fn private_for_tests(bytes: u64) -> GuestRam {
    with_backend(bytes, crate::config::MemoryBackend::Anonymous { share: false }).unwrap()
}
