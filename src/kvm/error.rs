//! Why the kernel refused.

use super::advice;
use super::tsc::TscRates;
use std::io;
use std::path::PathBuf;

/// Why the kernel did not do what a machine needs.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot open {}: {source}; {}", path.display(), advice::on_open(path, source))]
    Open { path: PathBuf, source: io::Error },
    #[error("{} is not KVM, or a KVM of another API than 12", .0.display())]
    NotKvm(PathBuf),
    #[error("this host's KVM lacks {0}")]
    Missing(&'static str),
    #[error("KVM offers {max} vCPUs at most, {wanted} were asked for")]
    TooManyCpus { wanted: u32, max: u32 },
    #[error("{call}: {source}{}", advice::on_call(source))]
    Call { call: &'static str, source: io::Error },
    #[error(
        "a dirty ring overflowed, so that nobody knows which pages were written; make it larger (dirty-ring-size)"
    )]
    RingOverflow,
    #[error("a dirty ring of {wanted} entries: KVM takes powers of two up to {max}")]
    RingSize { wanted: u32, max: u32 },
    #[error("{0}")]
    TscRate(TscRates),
    #[error("an XSAVE area of {found} bytes, this host wants {wanted}")]
    Xsave { found: usize, wanted: usize },
}

impl Error {
    /// Names the failing call of a kvm-ioctls method: `.map_err(Error::call("KVM_CREATE_VM"))`.
    pub(super) fn call(call: &'static str) -> impl Fn(kvm_ioctls::Error) -> Error {
        move |e| Error::Call { call, source: io::Error::from_raw_os_error(e.errno()) }
    }

    /// The same for raw ioctls.
    pub(super) fn raw(call: &'static str) -> impl Fn(io::Error) -> Error {
        move |source| Error::Call { call, source }
    }
}
