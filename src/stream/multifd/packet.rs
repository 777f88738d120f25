//! Hellos and packets' headers.

use crate::stream::cursor::Cursor;
use crate::stream::error::{Error, Problem};
use crate::stream::limits::PAGE_BYTES;

pub(crate) const MAGIC: u32 = 0x1122_3344;
pub(crate) const HELLO_BYTES: usize = 64;
pub(crate) const PACKET_BYTES: usize = 1344;
/// 512 KiB of pages.
pub(crate) const PACKET_PAGES_MAX: usize = 128;
/// No compressor makes 512 KiB larger than this.
pub(crate) const PACKET_DATA_BYTES_MAX: u32 = 1 << 20;

/// How a channel's data are packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    None,
    Zlib,
    Zstd,
    Qpl,
    Uadk,
    Qatzip,
}

impl Method {
    const FLAGS: [(u32, Self); 6] = [
        (0, Self::None),
        (1 << 1, Self::Zlib),
        (2 << 1, Self::Zstd),
        (4 << 1, Self::Qpl),
        (8 << 1, Self::Uadk),
        (16 << 1, Self::Qatzip),
    ];

    fn from_flags(flags: u32) -> Option<Self> {
        Self::FLAGS.iter().find(|(bits, _)| *bits == flags & 0x3e).map(|(_, method)| *method)
    }

    fn flags(self) -> u32 {
        Self::FLAGS.iter().find(|(_, method)| *method == self).map_or(0, |(bits, _)| *bits)
    }

    /// The value of parameter `multifd-compression`.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Zlib => "zlib",
            Self::Zstd => "zstd",
            Self::Qpl => "qpl",
            Self::Uadk => "uadk",
            Self::Qatzip => "qatzip",
        }
    }
}

/// The first 64 bytes of a channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Hello {
    /// The source's VM, zeros when it has no UUID.
    pub uuid: [u8; 16],
    pub channel: u8,
}

impl Hello {
    pub(crate) fn write(&self, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend_from_slice(&MAGIC.to_be_bytes());
        out.extend_from_slice(&1u32.to_be_bytes());
        out.extend_from_slice(&self.uuid);
        out.push(self.channel);
        out.resize(start + HELLO_BYTES, 0);
    }

    pub(crate) fn parse(bytes: &[u8; HELLO_BYTES]) -> Result<Self, Error> {
        check_magic(&mut Cursor::new(bytes), "multifd hello", 0)?;
        Ok(Self { uuid: bytes[8..24].try_into().expect("sixteen bytes"), channel: bytes[24] })
    }
}

/// A packet's header. `offsets` hold the normal pages first, then the zero pages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Packet {
    /// No pages: the channel has sent all of this round.
    pub sync: bool,
    pub method: Method,
    pub number: u64,
    pub block: String,
    pub normal: u32,
    /// Bytes behind the header.
    pub data_bytes: u32,
    pub offsets: Vec<u64>,
}

impl Packet {
    pub(crate) fn normal_pages(&self) -> &[u64] {
        &self.offsets[..self.normal as usize]
    }

    pub(crate) fn zero_pages(&self) -> &[u64] {
        &self.offsets[self.normal as usize..]
    }

    /// # Panics
    /// When there are more than 128 pages or the block's name is longer than 255 bytes.
    pub(crate) fn write(&self, out: &mut Vec<u8>) {
        assert!(
            self.offsets.len() <= PACKET_PAGES_MAX && self.block.len() < 256,
            "a packet has room for it"
        );
        let start = out.len();
        let zero = self.offsets.len() as u32 - self.normal;
        let allocated = if self.sync { 0 } else { PACKET_PAGES_MAX as u32 };
        let flags = u32::from(self.sync) | self.method.flags();
        for word in [MAGIC, 1, flags, allocated, self.normal, self.data_bytes] {
            out.extend_from_slice(&word.to_be_bytes());
        }
        out.extend_from_slice(&self.number.to_be_bytes());
        out.extend_from_slice(&zero.to_be_bytes());
        out.resize(start + 64, 0);
        out.extend_from_slice(self.block.as_bytes());
        out.resize(start + 320, 0);
        for offset in &self.offsets {
            out.extend_from_slice(&offset.to_be_bytes());
        }
        out.resize(start + PACKET_BYTES, 0);
    }

    /// Reads a header that stands at `offset` of its channel. Whether offsets lie inside the block
    /// is for the caller to check, who knows the block; that they are page aligned is checked here.
    pub(crate) fn parse(bytes: &[u8; PACKET_BYTES], offset: u64) -> Result<Self, Error> {
        let refuse = |field: &str, ahead, problem| {
            Err(Error::new("multifd packet", field, offset + ahead, problem))
        };
        let mut cursor = Cursor::new(bytes);
        check_magic(&mut cursor, "multifd packet", offset)?;
        let mut word = || cursor.u32().expect("inside the header");
        let (flags, allocated, normal, data_bytes) = (word(), word(), word(), word());
        let number = cursor.u64().expect("inside the header");
        let zero = cursor.u32().expect("inside the header");
        let sync = flags & 1 != 0;
        if flags & !0x3f != 0 {
            return refuse("flags", 8, Problem::Invalid { found: flags.into() });
        }
        let Some(method) = Method::from_flags(flags) else {
            return refuse("flags", 8, Problem::Invalid { found: flags.into() });
        };
        let limit = PACKET_PAGES_MAX as u64;
        for (field, ahead, found) in [
            ("pages allocated", 12, allocated),
            ("normal pages", 16, normal),
            ("zero pages", 32, zero),
        ] {
            if u64::from(found) > limit {
                return refuse(field, ahead, Problem::TooLarge { found: found.into(), limit });
            }
        }
        let pages = (normal + zero) as usize;
        if pages > PACKET_PAGES_MAX {
            return refuse("zero pages", 32, Problem::TooLarge { found: pages as u64, limit });
        }
        let expected = u64::from(normal) * PAGE_BYTES as u64;
        if method == Method::None && u64::from(data_bytes) != expected {
            return refuse(
                "data size",
                20,
                Problem::Unexpected { found: data_bytes.into(), expected },
            );
        }
        if data_bytes > PACKET_DATA_BYTES_MAX {
            let limit = PACKET_DATA_BYTES_MAX.into();
            return refuse("data size", 20, Problem::TooLarge { found: data_bytes.into(), limit });
        }
        let name = bytes[64..320].split(|byte| *byte == 0).next().unwrap_or_default();
        let Ok(block) = std::str::from_utf8(name) else {
            return refuse("block name", 64, Problem::Says("not text".into()));
        };
        let words = bytes[320..].as_chunks::<8>().0;
        let offsets: Vec<u64> =
            words[..pages].iter().map(|word| u64::from_be_bytes(*word)).collect();
        if let Some(at) = offsets.iter().position(|offset| offset % PAGE_BYTES as u64 != 0) {
            return refuse(
                "page offset",
                320 + 8 * at as u64,
                Problem::Invalid { found: offsets[at] },
            );
        }
        Ok(Self { sync, method, number, block: block.to_owned(), normal, data_bytes, offsets })
    }
}

fn check_magic(cursor: &mut Cursor<'_>, section: &str, offset: u64) -> Result<(), Error> {
    for (field, ahead, expected) in [("magic", 0, MAGIC), ("version", 4, 1)] {
        let found = cursor.u32().expect("headers hold both words");
        if found != expected {
            let problem = Problem::Unexpected { found: found.into(), expected: expected.into() };
            return Err(Error::new(section, field, offset + ahead, problem));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Packet {
        Packet {
            sync: false,
            method: Method::None,
            number: 7,
            block: "microvm.ram".into(),
            normal: 2,
            data_bytes: 8192,
            offsets: vec![0x1000, 0x3000, 0x2000],
        }
    }

    #[test]
    fn hello_and_packet_are_read_back() {
        let hello = Hello { uuid: [3; 16], channel: 1 };
        let mut out = Vec::new();
        hello.write(&mut out);
        assert_eq!(Hello::parse(&out.as_slice().try_into().unwrap()), Ok(hello));
        out.clear();
        sample().write(&mut out);
        let bytes: [u8; PACKET_BYTES] = out.try_into().unwrap();
        let packet = Packet::parse(&bytes, 64).unwrap();
        assert_eq!(
            (packet.normal_pages(), packet.zero_pages()),
            (&[0x1000, 0x3000][..], &[0x2000][..])
        );
        assert_eq!(packet, sample());
    }

    #[test]
    fn damage_is_refused_with_its_place() {
        let refused = |at: usize, value: u8| {
            let mut out = Vec::new();
            sample().write(&mut out);
            out[at] = value;
            Packet::parse(&out.try_into().unwrap(), 64).unwrap_err().to_string()
        };
        assert_eq!(
            refused(0, 0),
            "multifd packet, field magic, offset 0x40: found 0x223344, expected 0x11223344"
        );
        assert!(refused(10, 1).contains("field flags"));
        assert!(refused(19, 200).contains("normal pages"));
        assert!(refused(35, 127).contains("zero pages"));
        assert!(refused(23, 1).contains("data size"));
        assert!(refused(327, 1).contains("page offset"));
    }
}
