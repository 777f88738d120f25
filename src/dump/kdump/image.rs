//! The image of a kdump file, raw or flattened.
//!
//! The flattened form (`makedumpfile -F`) lets a pipe carry a file that is written back and forth:
//! a start header of 4096 bytes ("makedumpfile", then type 1 and version 1 as big-endian i64 at 16
//! and 24), records of {offset i64, size i64, both big-endian, bytes}, and a record of offset -1
//! and size -1 that ends it. What no record covers is zero.

use std::ops::Range as Span;

use crate::dump::error::{Error, What};
use crate::dump::output::Writer;
use crate::dump::ranges::PAGE;
use crate::io::gather::Buffer;

const TYPE: i64 = 1;
const VERSION: i64 = 1;
const END: i64 = -1;

pub(super) enum Image {
    Raw(Writer),
    /// with the place in the stream
    Flat(Writer, u64),
}

impl Image {
    pub(super) fn new(mut output: Writer, raw: bool) -> Result<Image, Error> {
        if raw {
            return if output.seekable() {
                Ok(Image::Raw(output))
            } else {
                Err(Error::NotSeekable)
            };
        }
        let mut start = b"makedumpfile".to_vec();
        start.resize(16, 0);
        start.extend(TYPE.to_be_bytes());
        start.extend(VERSION.to_be_bytes());
        start.resize(PAGE, 0);
        output.put(What::FlatHeader, 0, &start)?;
        Ok(Image::Flat(output, start.len() as u64))
    }

    /// Puts `bytes` at `offset` of the image.
    pub(super) fn put(&mut self, what: What, offset: u64, bytes: &[u8]) -> Result<(), Error> {
        match self {
            _ if bytes.is_empty() => Ok(()),
            Image::Raw(output) => output.put(what, offset, bytes),
            Image::Flat(output, at) => {
                output.put(what, *at, &record(offset as i64, bytes.len() as i64))?;
                output.put(what, *at + RECORD_BYTES, bytes)?;
                *at += RECORD_BYTES + bytes.len() as u64;
                Ok(())
            }
        }
    }

    /// A buffer for [`Image::put_parts`].
    pub(super) fn buffer(&mut self) -> Result<Buffer, Error> {
        let (Image::Raw(output) | Image::Flat(output, _)) = self;
        output.buffer()
    }

    /// Puts parts of `buffer` one after another, from `offset` of the image on; returns how many
    /// bytes they have.
    pub(super) fn put_parts(
        &mut self,
        what: What,
        offset: u64,
        buffer: Buffer,
        parts: &[Span<usize>],
    ) -> Result<u64, Error> {
        let bytes = parts.iter().map(|part| part.len() as u64).sum();
        match self {
            Image::Raw(output) => output.put_parts(what, offset, buffer, parts)?,
            Image::Flat(output, at) => {
                if bytes > 0 {
                    output.put(what, *at, &record(offset as i64, bytes as i64))?;
                    *at += RECORD_BYTES;
                }
                output.put_parts(what, *at, buffer, parts)?;
                *at += bytes;
            }
        }
        Ok(bytes)
    }

    /// Ends an image of `size` bytes.
    pub(super) fn finish(self, size: u64) -> Result<(), Error> {
        match self {
            Image::Raw(output) => output.finish(size),
            Image::Flat(mut output, at) => {
                output.put(What::FlatEnd, at, &record(END, END))?;
                output.finish(at + RECORD_BYTES)
            }
        }
    }
}

const RECORD_BYTES: u64 = 16;

fn record(offset: i64, size: i64) -> [u8; RECORD_BYTES as usize] {
    let mut header = [0; RECORD_BYTES as usize];
    header[..8].copy_from_slice(&offset.to_be_bytes());
    header[8..].copy_from_slice(&size.to_be_bytes());
    header
}
