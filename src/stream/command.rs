//! Commands on the main channel: `08`, be16 command, be16 length, data.

use super::cursor::{Cursor, put_pstr};
use super::error::{Error, Problem};

/// A command, decoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Answers may now be written on the same socket, in the other direction.
    OpenReturnPath,
    /// To be answered by PONG with the same value.
    Ping(u32),
    /// Postcopy may follow: `None` without the capability, else (OR of block page sizes, target
    /// page size).
    PostcopyAdvise(Option<(u64, u64)>),
    PostcopyListen,
    PostcopyRun,
    /// Ranges (start, length in bytes) of one block that the target must drop.
    PostcopyDiscard {
        block: String,
        ranges: Vec<(u64, u64)>,
    },
    /// This many bytes follow, outside the command: a nested list of sections and commands.
    Packaged(u32),
    EnableColo,
    PostcopyResume,
    /// The target is to send its bitmap of received pages for this block.
    ReceivedBitmap(String),
    /// The END sections come next.
    SwitchoverStart,
    /// A number of Godwit's own (0x4700 to 0x47ff, "G"). Only ever sent to a peer that asked for
    /// it.
    Private {
        number: u16,
        data: Vec<u8>,
    },
}

/// At most this many ranges are put in one discard command.
const DISCARD_RANGES_MAX: usize = 12;

impl Command {
    /// The command's number.
    pub(crate) fn number(&self) -> u16 {
        match self {
            Self::OpenReturnPath => 1,
            Self::Ping(_) => 2,
            Self::PostcopyAdvise(_) => 3,
            Self::PostcopyListen => 4,
            Self::PostcopyRun => 5,
            Self::PostcopyDiscard { .. } => 6,
            Self::Packaged(_) => 7,
            Self::EnableColo => 8,
            Self::PostcopyResume => 9,
            Self::ReceivedBitmap(_) => 10,
            Self::SwitchoverStart => 11,
            Self::Private { number, .. } => *number,
        }
    }

    /// The command's name in QEMU's spelling.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::OpenReturnPath => "OPEN_RETURN_PATH",
            Self::Ping(_) => "PING",
            Self::PostcopyAdvise(_) => "POSTCOPY_ADVISE",
            Self::PostcopyListen => "POSTCOPY_LISTEN",
            Self::PostcopyRun => "POSTCOPY_RUN",
            Self::PostcopyDiscard { .. } => "POSTCOPY_RAM_DISCARD",
            Self::Packaged(_) => "PACKAGED",
            Self::EnableColo => "ENABLE_COLO",
            Self::PostcopyResume => "POSTCOPY_RESUME",
            Self::ReceivedBitmap(_) => "RECV_BITMAP",
            Self::SwitchoverStart => "SWITCHOVER_START",
            Self::Private { .. } => "private",
        }
    }

    /// Appends the command, type byte included.
    ///
    /// # Panics
    /// When a discard has more than twelve ranges, the most QEMU puts in one command.
    pub(crate) fn write(&self, out: &mut Vec<u8>) {
        out.push(0x08);
        out.extend_from_slice(&self.number().to_be_bytes());
        let length_at = out.len();
        out.extend_from_slice(&[0, 0]);
        match self {
            Self::Ping(value) | Self::Packaged(value) => {
                out.extend_from_slice(&value.to_be_bytes())
            }
            Self::PostcopyAdvise(Some((blocks, target))) => {
                out.extend_from_slice(&blocks.to_be_bytes());
                out.extend_from_slice(&target.to_be_bytes());
            }
            Self::PostcopyDiscard { block, ranges } => {
                assert!(ranges.len() <= DISCARD_RANGES_MAX, "at most twelve ranges in one discard");
                out.push(0);
                put_pstr(out, block);
                out.push(0);
                for (start, length) in ranges {
                    out.extend_from_slice(&start.to_be_bytes());
                    out.extend_from_slice(&length.to_be_bytes());
                }
            }
            Self::ReceivedBitmap(block) => put_pstr(out, block),
            Self::Private { data, .. } => out.extend_from_slice(data),
            Self::OpenReturnPath
            | Self::PostcopyAdvise(None)
            | Self::PostcopyListen
            | Self::PostcopyRun
            | Self::EnableColo
            | Self::PostcopyResume
            | Self::SwitchoverStart => {}
        }
        let length = u16::try_from(out.len() - length_at - 2).expect("commands are short");
        out[length_at..length_at + 2].copy_from_slice(&length.to_be_bytes());
    }

    /// Decodes a command's number and data; `offset` is where the data begin, for messages.
    pub(crate) fn parse(number: u16, data: &[u8], offset: u64) -> Result<Self, Error> {
        let refuse = |field: &str, problem| {
            Err(Error::new(format!("command {number}"), field, offset, problem))
        };
        let fixed = |length: usize, value: Self| {
            if data.len() == length {
                return Ok(value);
            }
            let problem = Problem::Unexpected { found: data.len() as u64, expected: length as u64 };
            refuse("length", problem)
        };
        let word =
            || data.get(..4).map_or(0, |b| u32::from_be_bytes(b.try_into().expect("four bytes")));
        match number {
            1 => fixed(0, Self::OpenReturnPath),
            2 => fixed(4, Self::Ping(word())),
            3 if data.is_empty() => Ok(Self::PostcopyAdvise(None)),
            3 => {
                let mut cursor = Cursor::new(data);
                let sizes = (cursor.u64().unwrap_or(0), cursor.u64().unwrap_or(0));
                fixed(16, Self::PostcopyAdvise(Some(sizes)))
            }
            4 => fixed(0, Self::PostcopyListen),
            5 => fixed(0, Self::PostcopyRun),
            6 => parse_discard(data).map_or_else(
                || {
                    refuse(
                        "discard ranges",
                        Problem::Says("cut short or of an unknown version".into()),
                    )
                },
                Ok,
            ),
            7 => fixed(4, Self::Packaged(word())),
            8 => fixed(0, Self::EnableColo),
            9 => fixed(0, Self::PostcopyResume),
            10 => {
                let name = Cursor::new(data).pstr().and_then(|name| std::str::from_utf8(name).ok());
                match name {
                    Some(name) => fixed(1 + name.len(), Self::ReceivedBitmap(name.to_owned())),
                    None => refuse("block name", Problem::Says("cut short or not text".into())),
                }
            }
            11 => fixed(0, Self::SwitchoverStart),
            0x4700..=0x47ff => Ok(Self::Private { number, data: data.to_vec() }),
            _ => refuse("number", Problem::Unknown { name: number.to_string() }),
        }
    }
}

fn parse_discard(data: &[u8]) -> Option<Command> {
    let mut cursor = Cursor::new(data);
    if cursor.u8()? != 0 {
        return None;
    }
    let block = std::str::from_utf8(cursor.pstr()?).ok()?.to_owned();
    if cursor.u8()? != 0 || !(data.len() - cursor.at()).is_multiple_of(16) {
        return None;
    }
    let mut ranges = Vec::new();
    while cursor.at() < data.len() {
        ranges.push((cursor.u64()?, cursor.u64()?));
    }
    Some(Command::PostcopyDiscard { block, ranges })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_is_read_back() {
        let commands = [
            Command::OpenReturnPath,
            Command::Ping(0x4757_5431),
            Command::PostcopyAdvise(None),
            Command::PostcopyAdvise(Some((4096, 4096))),
            Command::PostcopyListen,
            Command::PostcopyRun,
            Command::PostcopyDiscard {
                block: "microvm.ram".into(),
                ranges: vec![(0, 4096), (8192, 65536)],
            },
            Command::Packaged(12345),
            Command::EnableColo,
            Command::PostcopyResume,
            Command::ReceivedBitmap("pc.bios".into()),
            Command::SwitchoverStart,
            Command::Private { number: 0x4757, data: vec![1, 2, 3] },
        ];
        for command in commands {
            let mut out = Vec::new();
            command.write(&mut out);
            assert_eq!(out[0], 8);
            assert_eq!(u16::from_be_bytes([out[3], out[4]]) as usize, out.len() - 5);
            let number = u16::from_be_bytes([out[1], out[2]]);
            assert_eq!(Command::parse(number, &out[5..], 5), Ok(command));
        }
    }

    #[test]
    fn wrong_length_and_unknown_number_are_refused() {
        let error = Command::parse(2, &[0; 3], 0x20).unwrap_err();
        assert_eq!(
            error.to_string(),
            "command 2, field length, offset 0x20: found 0x3, expected 0x4"
        );
        assert!(Command::parse(12, &[], 0).is_err());
        assert!(Command::parse(6, &[0, 1, b'a', 0, 1], 0).is_err());
    }
}
