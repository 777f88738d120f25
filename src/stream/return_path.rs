//! The return path: messages from target to source, on the same socket. be16 type, be16 length,
//! data.
//!
//! | type | message | data |
//! | --- | --- | --- |
//! | 1 | SHUT | be32, 0 = all is loaded; anything else = failed. The last message |
//! | 2 | PONG | be32 as in the PING |
//! | 3 | REQ_PAGES_ID | be64 start, be32 length, pstr block |
//! | 4 | REQ_PAGES | be64 start, be32 length; the block asked for last |
//! | 5 | RECV_BITMAP | pstr block; **behind** the counted data be64 size, bitmap, be64 0x0123456789abcdef |
//! | 6 | RESUME_ACK | be32 1 |
//! | 7 | SWITCHOVER_ACK | – |

use super::cursor::{Cursor, Step, put_pstr};
use super::error::{Error, Problem};

/// The longest counted data of a message.
pub(crate) const DATA_BYTES_MAX: usize = 512;
/// Stands behind a bitmap of received pages.
pub(crate) const BITMAP_END: u64 = 0x0123_4567_89ab_cdef;
/// The longest bitmap accepted: that of 16 TiB.
pub(crate) const BITMAP_BYTES_MAX: u64 = 1 << 29;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Reply {
    Shut(u32),
    Pong(u32),
    /// `block` is `None` when it is the one asked for last.
    PagesWanted {
        block: Option<String>,
        start: u64,
        length: u32,
    },
    /// A bitmap of this many bytes comes next, then [`BITMAP_END`]: bit i of the byte stream is
    /// page i, 1 = received.
    ReceivedBitmap {
        block: String,
        bytes: u64,
    },
    ResumeAck(u32),
    SwitchoverAck,
    /// A type this version does not know: Godwit's private messages among them, see the `migrate`
    /// module.
    Other {
        kind: u16,
        data: Vec<u8>,
    },
}

impl Reply {
    /// The message's name in QEMU's spelling.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Shut(_) => "SHUT",
            Self::Pong(_) => "PONG",
            Self::PagesWanted { block: Some(_), .. } => "REQ_PAGES_ID",
            Self::PagesWanted { block: None, .. } => "REQ_PAGES",
            Self::ReceivedBitmap { .. } => "RECV_BITMAP",
            Self::ResumeAck(_) => "RESUME_ACK",
            Self::SwitchoverAck => "SWITCHOVER_ACK",
            Self::Other { .. } => "private",
        }
    }

    /// Appends the message. Behind [`Reply::ReceivedBitmap`] the caller puts the bitmap and
    /// [`BITMAP_END`].
    ///
    /// # Panics
    /// When private data are longer than [`DATA_BYTES_MAX`].
    pub(crate) fn write(&self, out: &mut Vec<u8>) {
        let kind: u16 = match self {
            Self::Shut(_) => 1,
            Self::Pong(_) => 2,
            Self::PagesWanted { block: Some(_), .. } => 3,
            Self::PagesWanted { block: None, .. } => 4,
            Self::ReceivedBitmap { .. } => 5,
            Self::ResumeAck(_) => 6,
            Self::SwitchoverAck => 7,
            Self::Other { kind, .. } => *kind,
        };
        out.extend_from_slice(&kind.to_be_bytes());
        let length_at = out.len();
        out.extend_from_slice(&[0, 0]);
        match self {
            Self::Shut(value) | Self::Pong(value) | Self::ResumeAck(value) => {
                out.extend_from_slice(&value.to_be_bytes());
            }
            Self::PagesWanted { block, start, length } => {
                out.extend_from_slice(&start.to_be_bytes());
                out.extend_from_slice(&length.to_be_bytes());
                if let Some(block) = block {
                    put_pstr(out, block);
                }
            }
            Self::ReceivedBitmap { block, .. } => put_pstr(out, block),
            Self::SwitchoverAck => {}
            Self::Other { data, .. } => out.extend_from_slice(data),
        }
        let length = out.len() - length_at - 2;
        assert!(length <= DATA_BYTES_MAX, "a message has at most {DATA_BYTES_MAX} bytes of data");
        out[length_at..length_at + 2].copy_from_slice(&(length as u16).to_be_bytes());
        if let Self::ReceivedBitmap { bytes, .. } = self {
            out.extend_from_slice(&bytes.to_be_bytes());
        }
    }

    /// Reads one message off the front of `input`; `offset` is where it begins, for messages of
    /// refusal.
    pub(crate) fn parse(input: &[u8], offset: u64) -> Result<Step<Self>, Error> {
        let mut cursor = Cursor::new(input);
        let (Some(kind), Some(length)) = (cursor.u16(), cursor.u16()) else {
            return Ok(Step::Need(4));
        };
        let refuse = |field: &str, ahead: u64, problem| {
            Err(Error::new(format!("return path message {kind}"), field, offset + ahead, problem))
        };
        let limit = DATA_BYTES_MAX as u64;
        if u64::from(length) > limit {
            return refuse("length", 2, Problem::TooLarge { found: length.into(), limit });
        }
        let Some(data) = cursor.take(length.into()) else { return Ok(Step::Need(cursor.needed())) };
        let Some(mut reply) = decode(kind, data) else {
            return refuse("length", 2, Problem::Invalid { found: length.into() });
        };
        if let Self::ReceivedBitmap { bytes, .. } = &mut reply {
            let at = cursor.at() as u64;
            let Some(found) = cursor.u64() else { return Ok(Step::Need(cursor.needed())) };
            if found > BITMAP_BYTES_MAX || found % 8 != 0 {
                return refuse(
                    "bitmap size",
                    at,
                    Problem::TooLarge { found, limit: BITMAP_BYTES_MAX },
                );
            }
            *bytes = found;
        }
        Ok(Step::Item(reply, cursor.at()))
    }
}

fn decode(kind: u16, data: &[u8]) -> Option<Reply> {
    let mut cursor = Cursor::new(data);
    let text = |name: &[u8]| std::str::from_utf8(name).ok().map(str::to_owned);
    let reply = match kind {
        1 => Reply::Shut(cursor.u32()?),
        2 => Reply::Pong(cursor.u32()?),
        3 | 4 => {
            let (start, length) = (cursor.u64()?, cursor.u32()?);
            let block = if kind == 3 { Some(text(cursor.pstr()?)?) } else { None };
            Reply::PagesWanted { block, start, length }
        }
        5 => Reply::ReceivedBitmap { block: text(cursor.pstr()?)?, bytes: 0 },
        6 => Reply::ResumeAck(cursor.u32()?),
        7 => Reply::SwitchoverAck,
        _ => return Some(Reply::Other { kind, data: data.to_vec() }),
    };
    (cursor.at() == data.len()).then_some(reply)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_message_is_read_back() {
        let replies = [
            Reply::Shut(0),
            Reply::Pong(3),
            Reply::PagesWanted { block: Some("microvm.ram".into()), start: 0x1000, length: 4096 },
            Reply::PagesWanted { block: None, start: 0x2000, length: 4096 },
            Reply::ReceivedBitmap { block: "microvm.ram".into(), bytes: 512 },
            Reply::ResumeAck(1),
            Reply::SwitchoverAck,
            Reply::Other { kind: 0x4757, data: vec![1, 2, 3] },
        ];
        for reply in replies {
            let mut out = Vec::new();
            reply.write(&mut out);
            assert_eq!(Reply::parse(&out, 0), Ok(Step::Item(reply, out.len())));
            for cut in 0..out.len() {
                assert!(matches!(Reply::parse(&out[..cut], 0), Ok(Step::Need(more)) if more > cut));
            }
        }
    }

    #[test]
    fn wrong_lengths_are_refused() {
        assert!(Reply::parse(&[0, 1, 0, 3, 0, 0, 0], 0).is_err());
        assert!(Reply::parse(&[0, 7, 0, 1, 0], 0).is_err());
        assert!(Reply::parse(&[0x40, 0x57, 2, 1], 0).is_err());
    }
}
