//! KVM's own statistics of a VM and its vCPUs, through the files that describe themselves
//! (`KVM_GET_STATS_FD`, Linux 5.14).

use super::ioctl;
use kvm_bindings::{
    KVM_STATS_BASE_MASK, KVM_STATS_BASE_POW2, KVM_STATS_TYPE_CUMULATIVE, KVM_STATS_TYPE_INSTANT,
    KVM_STATS_TYPE_LINEAR_HIST, KVM_STATS_TYPE_LOG_HIST, KVM_STATS_TYPE_MASK, KVM_STATS_TYPE_PEAK,
    KVM_STATS_UNIT_BOOLEAN, KVM_STATS_UNIT_BYTES, KVM_STATS_UNIT_CYCLES, KVM_STATS_UNIT_MASK,
    KVM_STATS_UNIT_SECONDS,
};
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

/// One number, or one histogram, with what it means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Statistic {
    pub name: String,
    pub kind: StatisticKind,
    pub unit: Option<Unit>,
    /// Values are to be multiplied by `base` to the power of `exponent`: base 10 or 2.
    pub base: u8,
    pub exponent: i16,
    /// One value, or a histogram's buckets.
    pub values: Vec<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StatisticKind {
    Cumulative,
    Instant,
    Peak,
    /// With buckets of this size.
    LinearHistogram(u32),
    Log2Histogram,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    Bytes,
    Seconds,
    Cycles,
    Boolean,
}

/// Header and descriptor of the files, in bytes (linux/kvm.h).
const HEADER_BYTES: usize = 24;
const DESCRIPTOR_BYTES: usize = 16;
/// More than any kernel has, so that a file cannot make us take memory without end.
const STATISTICS_MAX: u32 = 4096;
const NAME_BYTES_MAX: u32 = 256;

/// The statistics of one VM, or of one vCPU. Reading waits for nobody.
pub(super) struct Stats(File);

impl Stats {
    /// `None` where this KVM has none.
    pub(super) fn of(fd: &impl AsRawFd) -> Option<Stats> {
        ioctl::stats_fd(fd).ok().map(|fd| Stats(fd.into()))
    }

    pub(super) fn read(&self) -> io::Result<Vec<Statistic>> {
        read(|out, at| self.0.read_exact_at(out, at))
    }
}

/// From a file that `read_at` fills buffers from.
fn read(read_at: impl Fn(&mut [u8], u64) -> io::Result<()>) -> io::Result<Vec<Statistic>> {
    let mut header = [0; HEADER_BYTES];
    read_at(&mut header, 0)?;
    let word = |bytes: &[u8], at: usize| {
        u32::from_ne_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
    };
    let (name_bytes, count) = (word(&header, 4), word(&header, 8));
    let (descriptors_at, data_at) = (word(&header, 16), word(&header, 20));
    if count > STATISTICS_MAX || name_bytes > NAME_BYTES_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "KVM's statistics make no sense"));
    }
    let stride = DESCRIPTOR_BYTES + name_bytes as usize;
    let mut descriptors = vec![0; stride * count as usize];
    read_at(&mut descriptors, descriptors_at.into())?;
    let mut all = Vec::with_capacity(count as usize);
    for descriptor in descriptors.chunks_exact(stride) {
        let half = |at| [descriptor[at], descriptor[at + 1]];
        let (flags, bucket) = (word(descriptor, 0), word(descriptor, 12));
        let size = u16::from_ne_bytes(half(6));
        let mut data = vec![0; usize::from(size) * 8];
        read_at(&mut data, u64::from(data_at) + u64::from(word(descriptor, 8)))?;
        let Some(kind) = kind(flags, bucket) else { continue };
        let name = &descriptor[DESCRIPTOR_BYTES..];
        let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
        all.push(Statistic {
            name: String::from_utf8_lossy(name).into_owned(),
            kind,
            unit: unit(flags),
            base: if flags & KVM_STATS_BASE_MASK == KVM_STATS_BASE_POW2 { 2 } else { 10 },
            exponent: i16::from_ne_bytes(half(4)),
            values: data
                .chunks_exact(8)
                .map(|word| u64::from_ne_bytes(word.try_into().expect("eight bytes")))
                .collect(),
        });
    }
    Ok(all)
}

/// `None` for what a later kernel has, whose values nobody here could read.
fn kind(flags: u32, bucket: u32) -> Option<StatisticKind> {
    match flags & KVM_STATS_TYPE_MASK {
        KVM_STATS_TYPE_CUMULATIVE => Some(StatisticKind::Cumulative),
        KVM_STATS_TYPE_INSTANT => Some(StatisticKind::Instant),
        KVM_STATS_TYPE_PEAK => Some(StatisticKind::Peak),
        KVM_STATS_TYPE_LINEAR_HIST => Some(StatisticKind::LinearHistogram(bucket)),
        KVM_STATS_TYPE_LOG_HIST => Some(StatisticKind::Log2Histogram),
        _ => None,
    }
}

fn unit(flags: u32) -> Option<Unit> {
    match flags & KVM_STATS_UNIT_MASK {
        KVM_STATS_UNIT_BYTES => Some(Unit::Bytes),
        KVM_STATS_UNIT_SECONDS => Some(Unit::Seconds),
        KVM_STATS_UNIT_CYCLES => Some(Unit::Cycles),
        KVM_STATS_UNIT_BOOLEAN => Some(Unit::Boolean),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(words: &[u32]) -> Vec<u8> {
        words.iter().flat_map(|word| word.to_ne_bytes()).collect()
    }

    fn parse(file: &[u8]) -> io::Result<Vec<Statistic>> {
        read(|out, at| {
            let part = file.get(at as usize..at as usize + out.len());
            out.copy_from_slice(part.ok_or(io::ErrorKind::UnexpectedEof)?);
            Ok(())
        })
    }

    fn descriptor(flags: u32, exponent: i16, size: u16, at: u32, bucket: u32) -> Vec<u8> {
        let mut bytes = words(&[flags]);
        bytes.extend(exponent.to_ne_bytes());
        bytes.extend(size.to_ne_bytes());
        bytes.extend(words(&[at, bucket]));
        bytes.extend(b"name\0xyz");
        bytes
    }

    #[test]
    fn the_files_are_read_as_they_describe_themselves() {
        let mut file = words(&[0, 8, 3, 0, 24, 24 + 3 * 24]);
        file.extend(descriptor(KVM_STATS_UNIT_SECONDS, -9, 1, 0, 0));
        file.extend(descriptor(KVM_STATS_TYPE_LINEAR_HIST | KVM_STATS_BASE_POW2, 3, 2, 8, 16));
        file.extend(descriptor(15, 0, 1, 0, 0));
        file.extend([7u64, 8, 9].iter().flat_map(|value| value.to_ne_bytes()));
        let all = parse(&file).unwrap();
        assert_eq!(all.len(), 2, "a kind that nobody knows is left out");
        assert_eq!((all[0].name.as_str(), all[0].values.as_slice()), ("name", &[7u64][..]));
        assert_eq!((all[0].unit, all[0].base, all[0].exponent), (Some(Unit::Seconds), 10, -9));
        assert_eq!(all[1].kind, StatisticKind::LinearHistogram(16));
        assert_eq!((all[1].base, &all[1].values[..]), (2, &[8u64, 9][..]));
        assert!(parse(&file[..file.len() - 1]).is_err() && parse(&[]).is_err());
        assert!(parse(&words(&[0, 8, u32::MAX, 0, 24, 24])).is_err());
    }
}
