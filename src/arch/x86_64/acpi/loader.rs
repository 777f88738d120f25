//! The linker script of `etc/table-loader`: what firmware does to make tables of the files it reads
//! through fw_cfg. Each command is 128 bytes, numbers little-endian:
//!
//! | command | then |
//! |---|---|
//! | le32 1, allocate | `file[56]`, le32 alignment, u8 zone (1 anywhere, 2 below 1 MiB) |
//! | le32 2, add pointer | in `file[56]`, to `file[56]`, le32 offset, u8 bytes: adds the other's address |
//! | le32 3, add checksum | `file[56]`, le32 place, le32 start, le32 bytes |

/// Files by the names that a script calls them.
pub(crate) const TABLES: &str = "etc/acpi/tables";
pub(crate) const RSDP: &str = "etc/acpi/rsdp";

const COMMAND_BYTES: usize = 128;
const NAME_BYTES: usize = 56;

/// Which file a command is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum File {
    Tables,
    Rsdp,
}

impl File {
    fn name(self) -> &'static str {
        match self {
            File::Tables => TABLES,
            File::Rsdp => RSDP,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Command {
    Allocate {
        file: File,
        alignment: u32,
        below_1m: bool,
    },
    /// `bytes` (4 or 8) at `offset` of the file count from where the tables begin.
    Pointer {
        file: File,
        offset: u32,
        bytes: u8,
    },
    Checksum {
        file: File,
        place: u32,
        start: u32,
        bytes: u32,
    },
}

impl Command {
    pub(crate) fn encode(self) -> [u8; COMMAND_BYTES] {
        let name = |file: File| {
            let mut padded = [0; NAME_BYTES];
            padded[..file.name().len()].copy_from_slice(file.name().as_bytes());
            padded
        };
        let mut out = Vec::with_capacity(COMMAND_BYTES);
        match self {
            Command::Allocate { file, alignment, below_1m } => {
                out.extend(1u32.to_le_bytes());
                out.extend(name(file));
                out.extend(alignment.to_le_bytes());
                out.push(if below_1m { 2 } else { 1 });
            }
            Command::Pointer { file, offset, bytes } => {
                out.extend(2u32.to_le_bytes());
                out.extend(name(file));
                out.extend(name(File::Tables));
                out.extend(offset.to_le_bytes());
                out.push(bytes);
            }
            Command::Checksum { file, place, start, bytes } => {
                out.extend(3u32.to_le_bytes());
                out.extend(name(file));
                out.extend([place, start, bytes].iter().flat_map(|word| word.to_le_bytes()));
            }
        }
        let mut padded = [0; COMMAND_BYTES];
        padded[..out.len()].copy_from_slice(&out);
        padded
    }

    /// Does to `file`, whichever of both it is, what the script wants of it, once it is known that
    /// the tables begin at `address`.
    pub(crate) fn apply(self, to: File, file: &mut [u8], address: u64) {
        match self {
            Command::Pointer { file: of, offset, bytes } if of == to => {
                let place = &mut file[offset as usize..][..usize::from(bytes)];
                let mut value = [0; 8];
                value[..place.len()].copy_from_slice(place);
                let sum = u64::from_le_bytes(value).wrapping_add(address).to_le_bytes();
                place.copy_from_slice(&sum[..place.len()]);
            }
            Command::Checksum { file: of, place, start, bytes } if of == to => {
                let covered = &file[start as usize..][..bytes as usize];
                let missing = crate::arch::x86_64::checksum(covered);
                file[place as usize] = file[place as usize].wrapping_add(missing);
            }
            _ => {}
        }
    }
}
