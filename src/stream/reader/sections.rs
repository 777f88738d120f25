//! The stream's header, and its sections.

use super::item::{Extent, Item, Layouts};
use super::{Reader, State};
use crate::stream::configuration::configuration;
use crate::stream::cursor::{Cursor, Step};
use crate::stream::error::{Error, Problem};
use crate::stream::limits::{MAGIC, PAYLOAD_BYTES_MAX, VERSION};
use crate::stream::ram::RamParser;
use crate::stream::{SectionHeader, SectionKind};
use std::sync::Arc;

/// The only version of section `ram`.
pub(crate) const RAM_VERSION: u32 = 4;

impl<L: Layouts> Reader<L> {
    pub(super) fn header<'a>(&mut self, input: &'a [u8]) -> Result<Step<Item<'a>>, Error> {
        let mut cursor = Cursor::new(input);
        for (field, expected) in [("magic", MAGIC), ("version", VERSION)] {
            let at = cursor.at() as u64;
            let Some(found) = cursor.u32() else { return Ok(Step::Need(cursor.needed())) };
            if found != expected {
                let problem =
                    Problem::Unexpected { found: found.into(), expected: expected.into() };
                return Err(self.refuse(field, at, problem));
            }
        }
        let found = match configuration(&mut cursor) {
            Ok(Some(found)) => found,
            Ok(None) => return Ok(Step::Need(cursor.needed())),
            Err((field, at, problem)) => {
                return Err(Error::new("configuration", field, self.offset() + at as u64, problem));
            }
        };
        self.rules.ignore_shared = found.capabilities.iter().any(|name| name == "x-ignore-shared");
        self.rules.mapped = found.capabilities.iter().any(|name| name == "mapped-ram");
        let offset = self.offset();
        self.ram = RamParser::new(self.rules.clone());
        self.ram.set_offset(offset);
        self.state = State::Between;
        Ok(self.item(Item::Configuration(found), cursor.at()))
    }

    pub(super) fn between<'a>(&mut self, input: &'a [u8]) -> Result<Step<Item<'a>>, Error> {
        if self.package_end == Some(self.offset()) {
            self.package_end = None;
            return Ok(Step::Item(Item::PackageEnd, 0));
        }
        self.state = State::Between;
        self.name.clear();
        self.name.push_str(if self.only_frames { "channel" } else { "section list" });
        let mut cursor = Cursor::new(input);
        let Some(kind) = cursor.u8() else { return Ok(Step::Need(1)) };
        match kind {
            0x08 => self.command(cursor),
            _ if self.only_frames => {
                let problem = Problem::Unexpected { found: kind.into(), expected: 8 };
                Err(self.refuse("frame", 0, problem))
            }
            0x00 if self.package_end.is_none() => {
                self.state = State::Tail;
                Ok(self.item(Item::EndOfStates, 1))
            }
            0x01 => self.section_start(SectionKind::Start, cursor),
            0x02 => self.section_again(SectionKind::Part, cursor),
            0x03 => self.section_again(SectionKind::End, cursor),
            0x04 => self.section_start(SectionKind::Full, cursor),
            _ => Err(self.refuse("section type", 0, Problem::Invalid { found: kind.into() })),
        }
    }

    fn section_start<'a>(
        &mut self,
        kind: SectionKind,
        mut cursor: Cursor<'a>,
    ) -> Result<Step<Item<'a>>, Error> {
        let (Some(id), Some(name), Some(instance), Some(version)) =
            (cursor.u32(), cursor.pstr(), cursor.u32(), cursor.u32())
        else {
            return Ok(Step::Need(cursor.needed()));
        };
        let Ok(name) = std::str::from_utf8(name) else {
            return Err(self.refuse("section name", 5, Problem::Says("not text".into())));
        };
        let header = Arc::new(SectionHeader { id, name: name.to_owned(), instance, version });
        self.name = format!("section {header}");
        if self.iterated.contains_key(&id) {
            return Err(self.refuse("section id", 1, Problem::Repeated { name: id.to_string() }));
        }
        if kind == SectionKind::Full && name != "ram" {
            self.state = State::Device(header.clone());
            return Ok(self.item(Item::Section { kind, header }, cursor.at()));
        }
        if kind == SectionKind::Full || name != "ram" {
            let problem = Problem::Says(format!("{} is not how this section travels", kind.name()));
            return Err(self.refuse("section type", 0, problem));
        }
        if instance != 0 {
            let problem = Problem::Unexpected { found: instance.into(), expected: 0 };
            return Err(self.refuse("instance", 6 + name.len() as u64, problem));
        }
        if version != RAM_VERSION {
            let problem = if version > RAM_VERSION {
                Problem::Newer { found: version, known: RAM_VERSION }
            } else {
                Problem::Older { found: version, oldest: RAM_VERSION }
            };
            return Err(self.refuse("version", 10 + name.len() as u64, problem));
        }
        // Each has a list of blocks; there is one.
        if !self.iterated.is_empty() {
            return Err(self.refuse("section name", 5, Problem::Repeated { name: "ram".into() }));
        }
        self.iterated.insert(id, header.clone());
        self.state = State::Ram { id };
        Ok(self.item(Item::Section { kind, header }, cursor.at()))
    }

    fn section_again<'a>(
        &mut self,
        kind: SectionKind,
        mut cursor: Cursor<'a>,
    ) -> Result<Step<Item<'a>>, Error> {
        let Some(id) = cursor.u32() else { return Ok(Step::Need(cursor.needed())) };
        let Some(header) = self.iterated.get(&id).cloned() else {
            return Err(self.refuse("section id", 1, Problem::Unknown { name: id.to_string() }));
        };
        self.name = format!("section {header}");
        self.state = State::Ram { id };
        Ok(self.item(Item::Section { kind, header }, cursor.at()))
    }

    pub(super) fn device<'a>(
        &mut self,
        header: &Arc<SectionHeader>,
        input: &'a [u8],
    ) -> Result<Step<Item<'a>>, Error> {
        let bytes = match self.layouts.extent(header, input, self.offset())? {
            Extent::Bytes(bytes) => bytes,
            Extent::Need(needed) if needed <= PAYLOAD_BYTES_MAX => return Ok(Step::Need(needed)),
            Extent::Need(needed) => {
                let problem =
                    Problem::TooLarge { found: needed as u64, limit: PAYLOAD_BYTES_MAX as u64 };
                return Err(self.refuse("payload", 0, problem));
            }
        };
        let Some(payload) = input.get(..bytes) else { return Ok(Step::Need(bytes)) };
        self.state = State::Footer { id: header.id };
        Ok(self.item(Item::Device { header: header.clone(), payload }, bytes))
    }

    pub(super) fn footer<'a>(&mut self, id: u32, input: &'a [u8]) -> Result<Step<Item<'a>>, Error> {
        let mut cursor = Cursor::new(input);
        let (Some(marker), Some(found)) = (cursor.u8(), cursor.u32()) else {
            return Ok(Step::Need(5));
        };
        if marker != 0x7e {
            let problem = Problem::Unexpected { found: marker.into(), expected: 0x7e };
            return Err(self.refuse("footer", 0, problem));
        }
        if found != id {
            let problem = Problem::Unexpected { found: found.into(), expected: id.into() };
            return Err(self.refuse("footer id", 1, problem));
        }
        self.state = State::Between;
        Ok(self.item(Item::SectionEnd, 5))
    }
}
