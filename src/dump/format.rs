//! The names of the formats.

use std::{fmt, str::FromStr};

use super::codec::Codec;

/// The kind of file a dump becomes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Format {
    #[default]
    Elf,
    /// kdump-compressed: as a stream of records that a pipe can take, or `raw`, for seekable files.
    Kdump { codec: Codec, raw: bool },
}

impl Format {
    /// All of them, in the order in which QMP lists them.
    pub const ALL: [Format; 9] = [
        Format::Elf,
        Format::Kdump { codec: Codec::Zlib, raw: false },
        Format::Kdump { codec: Codec::Lzo, raw: false },
        Format::Kdump { codec: Codec::Snappy, raw: false },
        Format::Kdump { codec: Codec::Zstd, raw: false },
        Format::Kdump { codec: Codec::Zlib, raw: true },
        Format::Kdump { codec: Codec::Lzo, raw: true },
        Format::Kdump { codec: Codec::Snappy, raw: true },
        Format::Kdump { codec: Codec::Zstd, raw: true },
    ];

    /// QMP's name. `kdump-zstd` and `kdump-raw-zstd` are Godwit's own.
    pub fn name(self) -> &'static str {
        match self {
            Format::Elf => "elf",
            Format::Kdump { codec: Codec::Zlib, raw: false } => "kdump-zlib",
            Format::Kdump { codec: Codec::Lzo, raw: false } => "kdump-lzo",
            Format::Kdump { codec: Codec::Snappy, raw: false } => "kdump-snappy",
            Format::Kdump { codec: Codec::Zstd, raw: false } => "kdump-zstd",
            Format::Kdump { codec: Codec::Zlib, raw: true } => "kdump-raw-zlib",
            Format::Kdump { codec: Codec::Lzo, raw: true } => "kdump-raw-lzo",
            Format::Kdump { codec: Codec::Snappy, raw: true } => "kdump-raw-snappy",
            Format::Kdump { codec: Codec::Zstd, raw: true } => "kdump-raw-zstd",
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// No dump format is called so.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "'{0}' is no dump format; there are elf, kdump-{{zlib,lzo,snappy,zstd}} and kdump-raw-{{zlib,lzo,snappy,zstd}}"
)]
pub struct UnknownFormat(pub String);

impl FromStr for Format {
    type Err = UnknownFormat;

    fn from_str(name: &str) -> Result<Format, UnknownFormat> {
        let found = Format::ALL.into_iter().find(|format| format.name() == name);
        found.ok_or_else(|| UnknownFormat(name.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_leads_back_to_its_format() {
        for format in Format::ALL {
            assert_eq!(format.name().parse(), Ok(format));
        }
        assert!("win-dmp".parse::<Format>().is_err());
    }
}
