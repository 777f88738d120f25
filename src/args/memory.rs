//! `-m` and `-object memory-backend-…`: guest RAM.

use super::error::{Error, Problem};
use super::keys::{Key, Keys, Pair};
use super::machine::{MachineDraft, into};
use super::value;
use crate::config::{HugePages, Memory, MemoryBackend};
use std::path::PathBuf;

const MIB: u64 = 1 << 20;
const DEFAULT_BYTES: u64 = 128 * MIB;
/// RAM is rounded up to this, as QEMU does.
const GRAIN_BYTES: u64 = 8192;
/// More than any processor's physical addresses reach, less than would overflow a sum.
const BYTES_MAX: u64 = 1 << 46;

/// What `-m`, `-mem-path` and `-mem-prealloc` said.
#[derive(Default)]
pub(crate) struct MemoryDraft {
    pub bytes: Option<u64>,
    pub slots: Option<u64>,
    pub bytes_max: Option<u64>,
    pub path: Option<PathBuf>,
    pub prealloc: bool,
    pub objects: Vec<Object>,
}

pub(crate) const MEMORY: Keys<MemoryDraft> = Keys {
    owner: "-m",
    implied: Some("size"),
    table: &[
        Key::set("size", "SIZE", |m, v| {
            m.bytes = match value::size(v, MIB)? {
                // QEMU's word for the default.
                0 => None,
                bytes => Some(ram_size(bytes)?),
            };
            Ok(())
        }),
        Key::set("slots", "N", |m, v| {
            m.slots = Some(value::number(v, 0, 256)?);
            Ok(())
        }),
        Key::set("maxmem", "SIZE", |m, v| {
            m.bytes_max = Some(ram_size(value::size(v, 1)?)?);
            Ok(())
        }),
    ],
};

fn ram_size(bytes: u64) -> Result<u64, Problem> {
    match bytes {
        bytes @ 1..=BYTES_MAX => Ok(bytes.next_multiple_of(GRAIN_BYTES)),
        _ => Err(Problem::SizeOutOfRange { min: "8K", max: "64T" }),
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Ram,
    Memfd,
    File,
}

/// A memory backend as `-object` described it.
pub(crate) struct Object {
    kind: Kind,
    pub id: Option<String>,
    bytes: Option<u64>,
    path: Option<PathBuf>,
    share: Option<bool>,
    seal: bool,
    huge: bool,
    huge_page_bytes: Option<u64>,
    offset: u64,
    readonly: bool,
    discard: bool,
    prealloc: bool,
    merge: Option<bool>,
    dump: Option<bool>,
}

const NUMA: &str = "binding memory to NUMA nodes is not built yet; start Godwit with numactl";

const ONLY_FILE: Problem = Problem::Refused("only memory-backend-file has this");
const ONLY_MEMFD: Problem = Problem::Refused("only memory-backend-memfd has this");

pub(crate) const OBJECT: Keys<Object> = Keys {
    owner: "a memory backend",
    implied: None,
    table: &[
        Key::set("id", "ID", |o, v| {
            o.id = Some(value::id(v)?);
            Ok(())
        }),
        Key::set("size", "SIZE", |o, v| {
            // A bare number counts bytes here, as QEMU's objects have it.
            match value::size(v, 1)? {
                bytes @ GRAIN_BYTES..=BYTES_MAX => o.bytes = Some(bytes),
                _ => return Err(Problem::SizeOutOfRange { min: "8K", max: "64T" }),
            }
            Ok(())
        }),
        Key::set("mem-path", "FILE", |o, v| {
            o.only(Kind::File, ONLY_FILE)?;
            o.path = Some(PathBuf::from(v));
            Ok(())
        }),
        Key::set("share", "on|off", |o, v| {
            o.share = Some(value::switch(v)?);
            Ok(())
        }),
        Key::set("prealloc", "on|off", |o, v| into(v, &mut o.prealloc)),
        Key::set("hugetlb", "on|off", |o, v| {
            o.only(Kind::Memfd, ONLY_MEMFD)?;
            into(v, &mut o.huge)
        }),
        Key::set("hugetlbsize", "2M|1G", |o, v| {
            o.only(Kind::Memfd, ONLY_MEMFD)?;
            let bytes = value::size(v, 1)?;
            if !bytes.is_power_of_two() || !(4096..=1 << 40).contains(&bytes) {
                return Err(Problem::NotAPowerOfTwo { min: 4096, max: 1 << 40 });
            }
            o.huge_page_bytes = Some(bytes);
            Ok(())
        }),
        Key::set("seal", "on|off", |o, v| {
            o.only(Kind::Memfd, ONLY_MEMFD)?;
            into(v, &mut o.seal)
        }),
        Key::set("merge", "on|off", |o, v| {
            o.merge = Some(value::switch(v)?);
            Ok(())
        }),
        Key::set("dump", "on|off", |o, v| {
            o.dump = Some(value::switch(v)?);
            Ok(())
        }),
        Key::set("offset", "SIZE", |o, v| {
            o.only(Kind::File, ONLY_FILE)?;
            match value::size(v, 1)? {
                bytes @ 0..=BYTES_MAX if bytes % 4096 == 0 => o.offset = bytes,
                _ => return Err(Problem::Malformed("a multiple of 4096 up to 64T")),
            }
            Ok(())
        }),
        Key::set("readonly", "on|off", |o, v| {
            o.only(Kind::File, ONLY_FILE)?;
            into(v, &mut o.readonly)
        }),
        Key::set("discard-data", "on|off", |o, v| {
            o.only(Kind::File, ONLY_FILE)?;
            into(v, &mut o.discard)
        }),
        Key::only("rom", &["off", "auto"], "guest RAM cannot be a ROM; write rom=off"),
        Key::only("pmem", &["off"], "persistent memory is not built; write pmem=off"),
        Key::only("reserve", &["on"], "not built; write prealloc=on or leave it out"),
        Key::only("policy", &["default"], NUMA),
        Key::refuse("host-nodes", NUMA),
        Key::refuse("align", "not built; mappings are aligned to their page size"),
        Key::ignore("prealloc-threads"),
        Key::only(
            "x-use-canonical-path-for-ramblock-id",
            &["off"],
            "RAM has its backend's id in streams; write off",
        ),
    ],
};

/// Reads a memory backend of the type `name` from its keys; `None` if that is another type.
pub(crate) fn backend(option: &str, name: &str, pairs: &[Pair]) -> Option<Result<Object, Error>> {
    let (_, kind) = KINDS.iter().find(|(known, _)| *known == name)?;
    let mut object = Object::new(*kind);
    let set = |(key, value): &Pair| OBJECT.set(option, key, value.as_deref(), &mut object);
    Some(pairs.iter().try_for_each(set).map(|()| object))
}

pub(crate) const KINDS: [(&str, Kind); 3] = [
    (MemoryBackend::TYPES[0], Kind::Ram),
    (MemoryBackend::TYPES[1], Kind::File),
    (MemoryBackend::TYPES[2], Kind::Memfd),
];

impl Object {
    fn new(kind: Kind) -> Object {
        Object {
            kind,
            id: None,
            bytes: None,
            path: None,
            share: None,
            seal: true,
            huge: false,
            huge_page_bytes: None,
            offset: 0,
            readonly: false,
            discard: false,
            prealloc: false,
            merge: None,
            dump: None,
        }
    }

    fn only(&self, kind: Kind, otherwise: Problem) -> Result<(), Problem> {
        if self.kind == kind { Ok(()) } else { Err(otherwise) }
    }

    /// Memory that no machine has yet, under the name `id`.
    pub(super) fn memory(&self, place: &str, id: &str) -> Result<Memory, Error> {
        let bytes = self.bytes.ok_or_else(|| Problem::MissingKey("size=").at(place))?;
        Ok(Memory {
            bytes,
            block: id.to_owned(),
            backend: self.backend(place)?,
            prealloc: self.prealloc,
            merge: self.merge.unwrap_or(true),
            dump: self.dump.unwrap_or(true),
        })
    }

    fn backend(&self, place: &str) -> Result<MemoryBackend, Error> {
        let huge_pages = match (self.huge, self.huge_page_bytes) {
            (true, Some(bytes)) => Some(HugePages::Bytes(bytes)),
            (true, None) => Some(HugePages::Default),
            (false, None) => None,
            (false, Some(_)) => {
                return Err(Problem::NeedsOther("hugetlbsize=", "hugetlb=on").at(place));
            }
        };
        Ok(match self.kind {
            Kind::Ram => MemoryBackend::Anonymous { share: self.share.unwrap_or(false) },
            Kind::Memfd => MemoryBackend::Memfd {
                share: self.share.unwrap_or(true),
                seal: self.seal,
                huge_pages,
            },
            Kind::File => {
                let path =
                    self.path.clone().ok_or_else(|| Problem::MissingKey("mem-path=").at(place))?;
                let share = self.share.unwrap_or(false);
                if self.readonly && share {
                    return Err(
                        Problem::Conflict("readonly=on", "share=on: guests write to RAM").at(place)
                    );
                }
                MemoryBackend::File {
                    path,
                    share,
                    offset: self.offset,
                    readonly: self.readonly,
                    discard_at_exit: self.discard,
                }
            }
        })
    }
}

impl MemoryDraft {
    /// Guest RAM, once everything is known, and what to say about it.
    pub(crate) fn memory(&self, machine: &MachineDraft) -> Result<(Memory, Option<String>), Error> {
        let memory = self.of(machine)?;
        let bytes = memory.bytes;
        let notice = match (self.bytes_max, self.slots) {
            (Some(max), _) if max < bytes => {
                return Err(Problem::BelowSize { max, bytes }.at("-m maxmem="));
            }
            (None, Some(_)) => return Err(Problem::NeedsOther("slots=", "maxmem=").at("-m")),
            (Some(max), _) if max > bytes => Some(format!(
                "-m maxmem={max}: memory cannot be added later; there are {bytes} bytes"
            )),
            _ => None,
        };
        Ok((memory, notice))
    }

    fn of(&self, machine: &MachineDraft) -> Result<Memory, Error> {
        if let Some(unused) = self.objects.iter().find(|o| o.id != machine.memory_backend) {
            let id = unused.id.as_deref().unwrap_or_default();
            return Err(Problem::Unused("name it with -M microvm,memory-backend=ID")
                .at(format!("-object id={id}")));
        }
        let Some(id) = &machine.memory_backend else {
            return Ok(self.plain_memory(machine));
        };
        let place = format!("-M memory-backend={id}");
        if self.path.is_some() {
            return Err(Problem::Conflict("-mem-path", "memory-backend=").at(place));
        }
        let Some(object) = self.objects.first() else {
            return Err(Problem::UnknownId { kind: "memory backend", nearest: None }.at(place));
        };
        let Some(bytes) = object.bytes else {
            return Err(Problem::MissingKey("size=").at(format!("-object id={id}")));
        };
        let asked = self.bytes.unwrap_or(bytes.next_multiple_of(GRAIN_BYTES));
        if asked != bytes {
            return Err(
                Problem::SizesDiffer { asked, backend: bytes }.at(format!("-object id={id}"))
            );
        }
        Ok(Memory {
            bytes,
            block: id.clone(),
            backend: object.backend(&format!("-object id={id}"))?,
            prealloc: object.prealloc || self.prealloc,
            merge: object.merge.or(machine.merge).unwrap_or(true),
            dump: object.dump.or(machine.dump).unwrap_or(true),
        })
    }

    fn plain_memory(&self, machine: &MachineDraft) -> Memory {
        let backend = match &self.path {
            Some(path) => MemoryBackend::File {
                path: path.clone(),
                share: false,
                offset: 0,
                readonly: false,
                discard_at_exit: false,
            },
            None => MemoryBackend::Anonymous { share: false },
        };
        Memory {
            bytes: self.bytes.unwrap_or(DEFAULT_BYTES),
            block: "microvm.ram".into(),
            backend,
            prealloc: self.prealloc,
            merge: machine.merge.unwrap_or(true),
            dump: machine.dump.unwrap_or(true),
        }
    }
}
