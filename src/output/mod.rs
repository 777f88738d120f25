//! Files made for people, by the name they gave: whole or not at all, and nothing else in their
//! place.
//!
//! | the name is | what happens |
//! | --- | --- |
//! | nothing yet, a regular file, a link to either | written under a random name in the folder of the (link's) target, and renamed once it is whole and on disk; the new file takes over owner, permissions and extended attributes of the one it replaces |
//! | a regular file that cannot be replaced: its folder is not ours to write, it is a mount point, its owner cannot be kept | emptied and written in place |
//! | a device or a FIFO | written in place; a FIFO's reader is waited for, a mounted disk refused |
//! | `-`, `/dev/stdout`, `/dev/fd/N`, `/proc/self/fd/N` | written to that descriptor, from where it stands |
//! | a folder, a socket, too many links | refused |
//!
//! Of two names of one file (hard links) the one that was given is replaced, the other keeps what it
//! was.
//!
//! [`Destination::look`] opens nothing: outputs are compared with inputs before any is touched. What
//! was begun and not finished is undone when its [`OutputFile`] is dropped, and by
//! [`undo_unfinished`] before a signal ends the process.

mod attributes;
mod destination;
mod elsewhere;
mod error;
mod file;
mod unfinished;

pub(crate) use destination::{Destination, Input};
pub(crate) use elsewhere::NamedOutput;
pub(crate) use error::Error;
pub(crate) use file::OutputFile;
pub(crate) use unfinished::undo_unfinished;
