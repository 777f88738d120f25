//! Why a guest did not arrive.

use crate::migrate::guest_error::GuestError;
use crate::{io, memory, snapshot, stream};

/// Why an incoming migration failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the connection to the source: {0}")]
    Io(#[from] io::Error),
    #[error("the stream cannot be read: {0}")]
    Stream(#[from] stream::Error),
    #[error("\"{0}\", this guest's RAM, is not among the source's blocks ({1})")]
    NoRam(String, String),
    #[error(transparent)]
    Guest(#[from] GuestError),
    #[error(transparent)]
    Memory(#[from] memory::Error),
    #[error("the source's machine type is \"{0}\", this is \"microvm\"")]
    Machine(String),
    #[error("the source's UUID is not this machine's")]
    Uuid,
    #[error("the source had x-ignore-shared on, which is not built in")]
    IgnoresShared,
    #[error(
        "the source had mapped-ram on: what it wrote is a file, to be read as file:PATH and not through a pipe or socket"
    )]
    MappedNeedsFile,
    #[error(
        "x-godwit-restore=mapped needs a file that was written with capability mapped-ram; x-godwit-restore=eager reads any"
    )]
    NothingToMap,
    #[error("the file was cut short while the pages of RAM block \"{0}\" were read")]
    FileCut(String),
    #[error(transparent)]
    Snapshot(#[from] snapshot::Error),
    #[error(
        "an increment names its base from its own folder on: it is read as file:PATH, not by a descriptor"
    )]
    IncrementNeedsName,
    #[error("RAM block \"{name}\" has {there} bytes at the source and {here} here")]
    BlockSize { name: String, here: u64, there: u64 },
    #[error("a range outside its block: block {block}, offset {offset:#x}, {bytes:#x} bytes")]
    Range { block: u8, offset: u64, bytes: u64 },
    #[error("a delta for the page at {offset:#x} is broken: {source}")]
    Delta { offset: u64, source: xbzrle::DecodeError },
    #[error("a multifd packet cannot be unpacked: {0}")]
    Packet(#[from] stream::multifd::CodecError),
    #[error("the stream has {0}, which has no place here")]
    Command(&'static str),
    #[error("the source chose features that were not offered")]
    NotOffered,
    #[error("{found} channels are more than {most}; set multifd-channels lower on both sides")]
    TooManyChannels { found: u8, most: u8 },
    #[error("a channel says it is number {0}, which is none or was there already")]
    Channel(u8),
    #[error("a channel ended in the middle of a round")]
    ChannelGone,
    #[error(
        "the source sends RAM over several channels, but capability multifd is off here; set it, and multifd-channels, as \
         at the source"
    )]
    MultifdOff,
    #[error(
        "the source has more than the {0} channels that are set here; set multifd-channels to the same on both sides"
    )]
    MoreChannels(usize),
    #[error(
        "only {have} of {wanted} channels came; set multifd-channels to the same on both sides"
    )]
    FewChannels { have: usize, wanted: usize },
    #[error("a thread of the migration has panicked, which is a defect of Godwit")]
    Panicked,
    #[error("RAM here differs from the source's (x-godwit-verify)")]
    RamDiffers,
    #[error("the source was gone before it gave the guest away: it stays there")]
    NeverGiven,
    #[error("the source may not have heard that the guest was loaded: it stays paused here")]
    NobodyKnows,
}
