//! Images of disks, and what is asked of them.

use std::path::PathBuf;

/// An image that a disk can have: a `-drive`, or a `-blockdev` with what it stands on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Image {
    /// What `drive=` names: the id of a `-drive`, the node's name of a `-blockdev`.
    pub name: String,
    /// It came by `-drive`, which has policies of its own.
    pub drive: Option<DrivePolicies>,
    pub format: ImageFormat,
    /// Names of the node of the format, and of the one below, as far as they were given.
    pub node: Option<String>,
    pub file_node: Option<String>,
    pub path: PathBuf,
    /// `None`: as it is found.
    pub kind: Option<FileKind>,
    pub read_only: bool,
    /// An image that cannot be written is opened for reading.
    pub auto_read_only: bool,
    pub cache: Cache,
    /// Keep others from an image that is in use, by locks on its permission bytes.
    pub locking: bool,
    /// What the guest discards is given back to the host.
    pub discard: bool,
    pub detect_zeroes: DetectZeroes,
    pub throttle: Throttle,
    /// What it stands on, if its format knows of such.
    pub backing: Backing,
}

/// What an image stands on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Backing {
    /// What its header says.
    #[default]
    Header,
    Nothing,
    Image(Box<Image>),
}

/// What a disk may do in a second, and for a while.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Throttle {
    pub bps: Limit,
    pub bps_rd: Limit,
    pub bps_wr: Limit,
    pub iops: Limit,
    pub iops_rd: Limit,
    pub iops_wr: Limit,
    /// A request of more bytes counts as several; 0: none does.
    pub iops_size: u64,
}

/// Units per second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    /// 0: there is no limit.
    pub rate: u64,
    /// The rate of a burst; 0: there are none.
    pub max: u64,
    /// How long a burst may last.
    pub seconds: u32,
}

impl Default for Limit {
    fn default() -> Limit {
        Limit { rate: 0, max: 0, seconds: 1 }
    }
}

impl Throttle {
    /// QEMU's names of the limits, in the order of [`Throttle::all`].
    pub const NAMES: [&str; 6] = ["bps", "bps_rd", "bps_wr", "iops", "iops_rd", "iops_wr"];

    pub fn all(&self) -> [&Limit; 6] {
        [&self.bps, &self.bps_rd, &self.bps_wr, &self.iops, &self.iops_rd, &self.iops_wr]
    }

    pub fn all_mut(&mut self) -> [&mut Limit; 6] {
        [
            &mut self.bps,
            &mut self.bps_rd,
            &mut self.bps_wr,
            &mut self.iops,
            &mut self.iops_rd,
            &mut self.iops_wr,
        ]
    }

    /// Why these limits do not go together, in QEMU's words.
    pub fn check(&self) -> Result<(), &'static str> {
        const VALUE_MAX: u64 = 1_000_000_000_000_000;
        let all = self.all();
        for [total, read, write] in [[0, 1, 2], [3, 4, 5]] {
            let both = |of: fn(&Limit) -> u64| {
                of(all[total]) > 0 && (of(all[read]) > 0 || of(all[write]) > 0)
            };
            if both(|limit| limit.rate) || both(|limit| limit.max) {
                return Err(
                    "bps/iops/max total values and read/write values cannot be used at the same time",
                );
            }
        }
        if self.iops_size > 0 && all[3..].iter().all(|limit| limit.rate == 0) {
            return Err("iops size requires an iops value to be set");
        }
        for limit in all {
            if limit.rate > VALUE_MAX || limit.max > VALUE_MAX {
                return Err("bps/iops/max values must be within [0, 1000000000000000]");
            }
            if limit.seconds == 0 {
                return Err("the burst length cannot be 0");
            }
            if limit.seconds > 1 && limit.max == 0 {
                return Err("burst length set without burst rate");
            }
            if limit.max > 0 && limit.rate == 0 {
                return Err("bps_max/iops_max require corresponding bps/iops values");
            }
            if limit.max > 0 && limit.max < limit.rate {
                return Err("bps_max/iops_max cannot be lower than bps/iops");
            }
        }
        Ok(())
    }
}

/// How the bytes of a disk lie in its image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ImageFormat {
    /// As they are, by a node of its own.
    #[default]
    Raw,
    /// As it is found: qcow2, or the same because nothing else was found there; see `block::probe`.
    Probed,
    /// As its tables say.
    Qcow2,
    /// As they are, without such a node.
    Bare,
}

/// QEMU's two drivers of files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileKind {
    Regular,
    HostDevice,
}

/// `cache=`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cache {
    /// What was written is safe once the guest has flushed; else each write is flushed.
    pub writeback: bool,
    /// `O_DIRECT`.
    pub direct: bool,
    /// Flushes do nothing.
    pub no_flush: bool,
}

impl Default for Cache {
    fn default() -> Cache {
        Cache { writeback: true, direct: false, no_flush: false }
    }
}

/// What becomes of a write of zeros.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DetectZeroes {
    #[default]
    Off,
    /// The file system is told that there are zeros.
    On,
    /// It may give the place back.
    Unmap,
}

/// `werror=` and `rerror=` of `-drive`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DrivePolicies {
    pub write: Option<OnError>,
    pub read: Option<OnError>,
}

/// What becomes of a request that the host could not do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnError {
    /// The guest is told.
    Report,
    /// It is told that all is well.
    Ignore,
    /// The guest is stopped, and the request done again when it goes on.
    Stop,
    /// So where there is no space; other errors are reported.
    NoSpace,
}
