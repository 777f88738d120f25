//! Why an image cannot be had. The texts are QEMU's where it has one.

use super::qcow2::Why;
use crate::io::reason;
use std::io;

#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("Could not open '{path}': {}", reason(source))]
    Open { path: String, source: io::Error },
    #[error("'file' driver requires '{0}' to be a regular file")]
    NotRegular(String),
    #[error("'host_device' driver requires '{0}' to be either a character or block device")]
    NotDevice(String),
    #[error("'{0}' is neither a regular file nor a block device")]
    NoImage(String),
    #[error("'{path}' looks like {format}; {advice}")]
    Format { path: String, format: &'static str, advice: &'static str },
    #[error("Block node is read-only")]
    ReadOnly,
    #[error(
        "Failed to get {what} lock: is another process using the image [{path}]? (file.locking=off, or locking=off, \
         does without)"
    )]
    Locked { what: &'static str, path: String },
    #[error("the image [{path}] cannot be locked: {}", reason(source))]
    Lock { path: String, source: io::Error },
    #[error("the length of '{path}' cannot be told: {}", reason(source))]
    Length { path: String, source: io::Error },
    #[error(
        "with cache.direct=on '{path}' takes requests of {needed} bytes only; write logical_block_size={needed} and \
         physical_block_size={needed}, or cache.direct=off"
    )]
    Alignment { path: String, needed: u32 },
    #[error(
        "the image '{0}' is not this machine's now: the guest is, or was, in another process; resize it where the guest \
         is"
    )]
    Inactive(String),
    #[error("Cannot grow device files")]
    Device,
    #[error("the image '{path}' cannot be resized: {}", reason(source))]
    Resize { path: String, source: io::Error },
    #[error("Could not open '{path}': {why}")]
    Qcow2 { path: String, why: Why },
    #[error("Could not open '{path}': {}", reason(source))]
    Tables { path: String, source: io::Error },
    #[error("Could not open backing file: {0}")]
    Backing(Box<Error>),
    #[error("the backing file '{name}' cannot be used: {why}")]
    BackingName { name: String, why: &'static str },
    #[error("'{0}' stands on more files than 200")]
    Deep(String),
    #[error("'{image}' stands on '{twice}' twice")]
    Loop { image: String, twice: String },
    #[error("'{0}' is another image than it was when it was opened")]
    Changed(String),
    #[error("there is no thread for '{path}': {}", reason(source))]
    Thread { path: String, source: io::Error },
    #[error("Could not create '{path}': {}", reason(source))]
    Create { path: String, source: io::Error },
    #[error("Error: Trying to create an image with the same filename as the backing file")]
    SameName,
    #[error("what was written is not on the disk of '{path}': {}", reason(source))]
    Flush { path: String, source: io::Error },
    #[error("requests to '{0}' are under way and do not end, or another command waits for them")]
    Busy(String),
    #[error("The new size must be a multiple of 512")]
    Sectors,
}
