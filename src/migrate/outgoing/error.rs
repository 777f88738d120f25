//! Why an outgoing migration failed.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use crate::io::{self, OpenError};
use crate::migrate::guest_error::GuestError;
use crate::{memory, snapshot, stream};

/// Why a migration failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Guest(#[from] GuestError),
    #[error(transparent)]
    Memory(#[from] memory::Error),
    #[error("the target's answer cannot be read: {0}")]
    Stream(#[from] stream::Error),
    #[error("the target refused: {0}")]
    Refused(String),
    #[error("the target reports that it could not load the guest; its own message says why")]
    TargetFailed,
    #[error(
        "capability 'switchover-ack' needs a connection on which the target can answer; turn it off"
    )]
    AckNeedsAnswers,
    #[error("the page cache: {0}")]
    Cache(#[from] xbzrle::CacheError),
    #[error("{what}: the target was silent for {} ms", .time.as_millis())]
    Silent { what: &'static str, time: Duration },
    #[error("x-godwit-verify needs a Godwit on the other side of a two-way connection")]
    VerifyNeedsGodwit,
    #[error(transparent)]
    Image(#[from] memory::Unavailable),
    #[error(
        "capability 'background-snapshot' writes to a file or a command, not to a socket: the guest stays here, and a \
         target would run it a second time"
    )]
    BackgroundNeedsFile,
    #[error("capability 'mapped-ram' needs a regular file")]
    MappedNeedsFile,
    #[error(transparent)]
    Snapshot(#[from] snapshot::Error),
    #[error("several channels need a target that takes several connections")]
    ChannelsNeedAddress,
    #[error(
        "capability 'xbzrle' together with 'multifd' needs a Godwit as target and x-godwit-stream=auto; turn one off"
    )]
    DeltasNeedGodwit,
    #[error("the target takes {0} channels at most; set multifd-channels lower")]
    TooManyChannels(u8),
    #[error(
        "capability 'xbzrle' together with 'multifd' does not go with multifd-compression; set it to none"
    )]
    DeltasAreNotCompressed,
    #[error("multifd compression: {0}")]
    Compression(#[from] stream::multifd::CodecError),
    #[error("no threads for the migration: {0}")]
    Pool(#[from] rayon::ThreadPoolBuildError),
    #[error("a thread of the migration has panicked, which is a defect of Godwit: {0}")]
    Panicked(String),
}

impl Error {
    pub(crate) fn is_cancel(&self) -> bool {
        matches!(
            self,
            Self::Io(io::Error::Cancelled)
                | Self::Open(OpenError::Io(io::Error::Cancelled))
                | Self::Snapshot(snapshot::Error::Cancelled)
        )
    }
}

/// Runs a part of a migration; a panic in it is an error like others, so that the guest goes on.
pub(super) fn guarded<T>(job: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
    catch_unwind(AssertUnwindSafe(job)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
        let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
        Err(Error::Panicked(text.unwrap_or_else(|| "no reason given".into())))
    })
}
