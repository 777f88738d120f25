//! What has come, read off the front.

/// What a step of a parser came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step<T> {
    /// One item, made of this many bytes from the front of the input.
    Item(T, usize),
    /// Nothing was consumed; the next item needs at least this many bytes of input.
    Need(usize),
}

/// Reads big-endian numbers and strings off the front of `bytes`; `None` when they have not all
/// arrived.
#[derive(Clone)]
pub(crate) struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
    /// Set by a read that found too little: the input length that would do.
    needed: usize,
}

impl<'a> Cursor<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0, needed: 0 }
    }

    pub(crate) fn at(&self) -> usize {
        self.at
    }

    /// Input length that the read which returned `None` wanted.
    pub(crate) fn needed(&self) -> usize {
        self.needed
    }

    pub(crate) fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        match self.bytes.get(self.at..).and_then(|rest| rest.get(..count)) {
            Some(found) => {
                self.at += count;
                Some(found)
            }
            None => {
                self.needed = self.at.saturating_add(count);
                None
            }
        }
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N).map(|found| found.try_into().expect("take returned N bytes"))
    }

    pub(crate) fn u8(&mut self) -> Option<u8> {
        self.array().map(|[byte]| byte)
    }

    pub(crate) fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    pub(crate) fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    pub(crate) fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_be_bytes)
    }

    pub(crate) fn pstr(&mut self) -> Option<&'a [u8]> {
        let count = self.u8()?;
        self.take(count.into())
    }
}

/// Appends a string with its one-byte length.
///
/// # Panics
/// When `text` is longer than 255 bytes, which no name of ours is.
pub(crate) fn put_pstr(out: &mut Vec<u8>, text: &str) {
    out.push(u8::try_from(text.len()).expect("names in the stream have at most 255 bytes"));
    out.extend_from_slice(text.as_bytes());
}
