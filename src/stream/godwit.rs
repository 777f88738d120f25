//! Godwit's extensions, spoken only between two Godwits.
//!
//! # How two Godwits find each other
//!
//! On a two-way connection the source opens the return path and sends PING [`PING`]. QEMU answers
//! PONG and nothing else. A Godwit answers with the private message [`NUMBER`] `Offer`, *then* with
//! the PONG. When the PONG has come the source knows; one round trip decides, without a time-out.
//! Nothing private is sent to a peer that made no offer. The source answers an offer with the frame
//! `Chosen`; only what it chose is used.
//!
//! # Frames: source to target
//!
//! A frame is a command (`08`, be16 [`NUMBER`], be16 length, data) wherever a command may stand,
//! and may be followed by bytes that the command's length does not count, as with PACKAGED. The
//! first byte of the data is the kind:
//!
//! | kind | name | data behind the kind byte | uncounted bytes |
//! | --- | --- | --- | --- |
//! | 1 | Chosen | be16 version, be64 features, u8 channels, be32 TSC kHz (0 unknown), be16 n, n × 7 be32 CPUID (function, index, flags, eax, ebx, ecx, edx), be16 m, m × be32 MSR | |
//! | 2 | Run | u8 block, be64 offset, be64 bytes | the bytes of these pages |
//! | 3 | Zero | u8 block, be64 offset, be64 bytes | |
//! | 4 | Records | be32 bytes | so many bytes of RAM records, without the one that ends a section |
//! | 5 | Sync | be32 round | |
//! | 6 | Hash | be64 hash of all RAM | |
//! | 7 | Go | | |
//!
//! `block` counts in the order of the list in section `ram`. Offsets and bytes are whole pages
//! inside the block. Records begin with a block's name. With several channels, channels carry
//! frames Run, Zero, Records and Sync and nothing else behind their hello; a channel has the chunks
//! of 256 pages whose number leaves its own number when divided by the number of channels, so that
//! all versions of a page travel in order. After each round every channel and the main channel
//! carry Sync with the same round; the target goes on when all have arrived. Hash comes before the
//! end of the states, Go after everything else.
//!
//! # Answers: target to source
//!
//! Return path message [`NUMBER`]; the first byte of the data is the kind:
//!
//! | kind | name | data behind the kind byte |
//! | --- | --- | --- |
//! | 1 | Offer | be16 version, be64 features, u8 channels at most, u8 1 if all its RAM is zero, be32 µs that its host takes to read and load the state of such a machine once (absent or 0: not known), be32 bytes of that state |
//! | 2 | Refused | text: why the target will not run this guest |
//! | 3 | Loaded | – : everything is decoded, applied and open; the guest runs once Go has arrived |
//!
//! Hand-over with feature COMMIT: Loaded, Go, then SHUT 0 when the guest runs (or stands paused, as
//! the target was told). From Go on the source never resumes by itself; before it, closing the
//! connection means that the target never runs.

use super::Command;
use super::cursor::Cursor;
use super::error::{Error, Problem};

/// The value of the PING that asks.
pub(crate) const PING: u32 = 0x4757_5431;
/// Number of the command and of the return path message: "GW".
pub(crate) const NUMBER: u16 = 0x4757;
/// The only version. A newer one may add kinds and feature bits, never change them.
pub(crate) const VERSION: u16 = 1;
/// CPUID leaves or MSRs at most; KVM has about a hundred of each.
const LIST_MAX: usize = 1024;
/// Bytes of one Records frame at most.
pub(crate) const RECORDS_BYTES_MAX: u32 = 64 << 20;

bitflags::bitflags! {
    /// What a Godwit can do beyond QEMU's stream. Unknown bits are ignored; a bit never changes its
    /// meaning.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Features: u64 {
        /// Hand-over by Loaded and Go.
        const COMMIT = 1;
        /// Run frames.
        const PAGE_RUNS = 1 << 1;
        /// Zero frames.
        const ZERO_RANGES = 1 << 2;
        /// Frames on several channels.
        const CHANNELS = 1 << 3;
        /// Hash frames.
        const RAM_HASH = 1 << 4;
    }
}

/// What the source's guest needs of the target's host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Requirements {
    pub tsc_khz: u32,
    /// Function, index, flags, eax, ebx, ecx, edx.
    pub cpuid: Vec<[u32; 7]>,
    pub msrs: Vec<u32>,
}

/// A frame from source to target. Bytes that follow uncounted are the caller's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    Chosen { features: Features, channels: u8, requirements: Requirements },
    Run { block: u8, offset: u64, bytes: u64 },
    Zero { block: u8, offset: u64, bytes: u64 },
    Records { bytes: u32 },
    Sync { round: u32 },
    Hash(u64),
    Go,
}

/// What the target's host took for the state of a machine like the one that is to come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rehearsal {
    /// To read it, lay it out and load it, in microseconds. 0: not known.
    pub us: u32,
    /// Its bytes in the stream.
    pub bytes: u32,
}

/// An answer from target to source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    Offer { features: Features, channels: u8, ram_is_zero: bool, rehearsal: Rehearsal },
    Refused(String),
    Loaded,
}

/// Bytes of a Run, Zero frame: command header and data.
pub(crate) const RANGE_FRAME_BYTES: usize = 5 + 18;

impl Frame {
    /// Appends the frame as a command.
    pub(crate) fn write(&self, out: &mut Vec<u8>) {
        match self {
            // The two that are written for every megabyte, without an allocation.
            Self::Run { block, offset, bytes } => write_range(out, 2, *block, *offset, *bytes),
            Self::Zero { block, offset, bytes } => write_range(out, 3, *block, *offset, *bytes),
            _ => Command::Private { number: NUMBER, data: self.data() }.write(out),
        }
    }

    fn data(&self) -> Vec<u8> {
        let mut data = Vec::new();
        match self {
            Self::Chosen { features, channels, requirements } => {
                data.push(1);
                data.extend_from_slice(&VERSION.to_be_bytes());
                data.extend_from_slice(&features.bits().to_be_bytes());
                data.push(*channels);
                data.extend_from_slice(&requirements.tsc_khz.to_be_bytes());
                let (leaves, msrs) = (
                    requirements.cpuid.iter().take(LIST_MAX),
                    requirements.msrs.iter().take(LIST_MAX),
                );
                data.extend_from_slice(&(leaves.len() as u16).to_be_bytes());
                leaves.flatten().for_each(|word| data.extend_from_slice(&word.to_be_bytes()));
                data.extend_from_slice(&(msrs.len() as u16).to_be_bytes());
                msrs.for_each(|msr| data.extend_from_slice(&msr.to_be_bytes()));
            }
            Self::Records { bytes } => {
                data.push(4);
                data.extend_from_slice(&bytes.to_be_bytes());
            }
            Self::Sync { round } => {
                data.push(5);
                data.extend_from_slice(&round.to_be_bytes());
            }
            Self::Hash(hash) => {
                data.push(6);
                data.extend_from_slice(&hash.to_be_bytes());
            }
            Self::Go => data.push(7),
            Self::Run { .. } | Self::Zero { .. } => unreachable!("written without an allocation"),
        }
        data
    }

    /// Decodes the data of a command [`NUMBER`]; `offset` is where they begin, for messages.
    pub(crate) fn parse(data: &[u8], offset: u64) -> Result<Self, Error> {
        let mut cursor = Cursor::new(data);
        let frame = Self::take(&mut cursor).filter(|_| cursor.at() == data.len());
        frame.ok_or_else(|| {
            let problem = Problem::Says(format!("kind {:?} of {} bytes", data.first(), data.len()));
            Error::new("Godwit frame", "data", offset, problem)
        })
    }

    fn take(cursor: &mut Cursor<'_>) -> Option<Self> {
        Some(match cursor.u8()? {
            1 => {
                let _version = cursor.u16()?;
                let features = Features::from_bits_retain(cursor.u64()?);
                let channels = cursor.u8()?;
                Self::Chosen { features, channels, requirements: Requirements::take(cursor)? }
            }
            2 => Self::Run { block: cursor.u8()?, offset: cursor.u64()?, bytes: cursor.u64()? },
            3 => Self::Zero { block: cursor.u8()?, offset: cursor.u64()?, bytes: cursor.u64()? },
            4 => Self::Records { bytes: cursor.u32().filter(|bytes| *bytes <= RECORDS_BYTES_MAX)? },
            5 => Self::Sync { round: cursor.u32()? },
            6 => Self::Hash(cursor.u64()?),
            7 => Self::Go,
            _ => return None,
        })
    }
}

impl Requirements {
    fn take(cursor: &mut Cursor<'_>) -> Option<Self> {
        let tsc_khz = cursor.u32()?;
        let leaves = usize::from(cursor.u16()?);
        let mut cpuid = Vec::with_capacity(leaves.min(LIST_MAX));
        for _ in 0..leaves {
            let mut leaf = [0; 7];
            for word in &mut leaf {
                *word = cursor.u32()?;
            }
            cpuid.push(leaf);
        }
        let count = usize::from(cursor.u16()?);
        let mut msrs = Vec::with_capacity(count.min(LIST_MAX));
        for _ in 0..count {
            msrs.push(cursor.u32()?);
        }
        Some(Self { tsc_khz, cpuid, msrs })
    }
}

impl Answer {
    /// The data of a return path message [`NUMBER`].
    pub(crate) fn data(&self) -> Vec<u8> {
        match self {
            Self::Offer { features, channels, ram_is_zero, rehearsal } => {
                let mut data = vec![1];
                data.extend_from_slice(&VERSION.to_be_bytes());
                data.extend_from_slice(&features.bits().to_be_bytes());
                data.extend_from_slice(&[*channels, u8::from(*ram_is_zero)]);
                data.extend_from_slice(&rehearsal.us.to_be_bytes());
                data.extend_from_slice(&rehearsal.bytes.to_be_bytes());
                data
            }
            Self::Refused(text) => {
                let mut end = text.len().min(super::return_path::DATA_BYTES_MAX - 1);
                while !text.is_char_boundary(end) {
                    end -= 1;
                }
                [&[2], &text.as_bytes()[..end]].concat()
            }
            Self::Loaded => vec![3],
        }
    }

    /// `None`: of a kind this version does not know.
    pub(crate) fn parse(data: &[u8]) -> Option<Self> {
        let mut cursor = Cursor::new(data);
        match cursor.u8()? {
            1 => {
                let _version = cursor.u16()?;
                let features = Features::from_bits_truncate(cursor.u64()?);
                Some(Self::Offer {
                    features,
                    channels: cursor.u8()?,
                    ram_is_zero: cursor.u8()? == 1,
                    rehearsal: Rehearsal {
                        us: cursor.u32().unwrap_or_default(),
                        bytes: cursor.u32().unwrap_or_default(),
                    },
                })
            }
            2 => Some(Self::Refused(String::from_utf8_lossy(&data[1..]).into_owned())),
            3 => Some(Self::Loaded),
            _ => None,
        }
    }
}

fn write_range(out: &mut Vec<u8>, kind: u8, block: u8, offset: u64, bytes: u64) {
    const DATA_BYTES: u16 = (RANGE_FRAME_BYTES - 5) as u16;
    out.push(0x08);
    out.extend_from_slice(&NUMBER.to_be_bytes());
    out.extend_from_slice(&DATA_BYTES.to_be_bytes());
    out.extend_from_slice(&[kind, block]);
    out.extend_from_slice(&offset.to_be_bytes());
    out.extend_from_slice(&bytes.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_frame_is_read_back_as_a_command() {
        let requirements = Requirements {
            tsc_khz: 2_000_000,
            cpuid: vec![[1, 0, 0, 5, 6, 7, 8]; 3],
            msrs: vec![0x10, 0xc000_0080],
        };
        for frame in [
            Frame::Chosen { features: Features::all(), channels: 4, requirements },
            Frame::Run { block: 1, offset: 4096, bytes: 1 << 20 },
            Frame::Zero { block: 0, offset: 0, bytes: 1 << 40 },
            Frame::Records { bytes: 77 },
            Frame::Sync { round: 3 },
            Frame::Hash(0x0123_4567_89ab_cdef),
            Frame::Go,
        ] {
            let mut out = Vec::new();
            frame.write(&mut out);
            let number = u16::from_be_bytes([out[1], out[2]]);
            let Ok(Command::Private { number: NUMBER, data }) =
                Command::parse(number, &out[5..], 5)
            else {
                panic!("{frame:?} is no private command");
            };
            assert_eq!(Frame::parse(&data, 5), Ok(frame));
            assert!(Frame::parse(&data[..data.len() - 1], 5).is_err());
        }
    }

    #[test]
    fn every_answer_is_read_back_and_unknown_kinds_are_none() {
        let rehearsal = Rehearsal { us: 70_000, bytes: 80_000 };
        let features = Features::COMMIT;
        let offer = Answer::Offer { features, channels: 16, ram_is_zero: true, rehearsal };
        for answer in [offer, Answer::Refused("no TSC scaling".into()), Answer::Loaded] {
            assert_eq!(Answer::parse(&answer.data()), Some(answer));
        }
        assert_eq!(Answer::parse(&[9]), None);
        assert_eq!(Answer::parse(&[]), None);
        assert_eq!(Answer::Refused("ä".repeat(400)).data().len(), 511);
    }
}
