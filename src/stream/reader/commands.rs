//! Commands: QEMU's, the package that one of them carries, and Godwit's frames.

use super::item::{Item, Layouts};
use super::{Reader, State};
use crate::stream::Command;
use crate::stream::cursor::{Cursor, Step};
use crate::stream::error::{Error, Problem};
use crate::stream::godwit::{self, Frame};
use crate::stream::limits::{PACKAGE_BYTES_MAX, PAGE_BYTES};
use crate::stream::ram::PageAt;

impl<L: Layouts> Reader<L> {
    pub(super) fn command<'a>(&mut self, mut cursor: Cursor<'a>) -> Result<Step<Item<'a>>, Error> {
        let (Some(number), Some(length)) = (cursor.u16(), cursor.u16()) else {
            return Ok(Step::Need(5));
        };
        let at = cursor.at();
        let Some(data) = cursor.take(length.into()) else { return Ok(Step::Need(cursor.needed())) };
        let used = cursor.at();
        if number == godwit::NUMBER {
            return self.frame(data, used);
        }
        if self.only_frames {
            let problem = Problem::Says(format!("command {number} on a channel of frames"));
            return Err(self.refuse("command", 1, problem));
        }
        let command = Command::parse(number, data, self.offset() + at as u64)?;
        if let Command::Packaged(bytes) = command {
            if self.package_end.is_some() {
                return Err(self.refuse(
                    "command",
                    0,
                    Problem::Says("a package inside a package".into()),
                ));
            }
            if bytes > PACKAGE_BYTES_MAX {
                let limit = PACKAGE_BYTES_MAX.into();
                return Err(self.refuse(
                    "package length",
                    5,
                    Problem::TooLarge { found: bytes.into(), limit },
                ));
            }
            self.package_end = Some(self.offset() + cursor.at() as u64 + u64::from(bytes));
        }
        Ok(self.item(Item::Command(command), cursor.at()))
    }

    fn frame<'a>(&mut self, data: &[u8], used: usize) -> Result<Step<Item<'a>>, Error> {
        let frame = Frame::parse(data, self.offset() + used as u64 - data.len() as u64)?;
        if self.package_end.is_some() {
            return Err(self.refuse("command", 1, Problem::Says("a frame in a package".into())));
        }
        let behind = self.offset() + used as u64;
        match &frame {
            Frame::Run { block, offset, bytes } => {
                let at = self.range(*block, *offset, *bytes)?;
                self.state = State::Run { at, left: *bytes };
            }
            Frame::Zero { block, offset, bytes } => {
                self.range(*block, *offset, *bytes)?;
            }
            Frame::Records { bytes } => {
                self.ram.forget_last_block();
                self.state = State::Records { end: behind + u64::from(*bytes) };
            }
            Frame::Sync { .. } => {}
            Frame::Chosen { .. } | Frame::Hash(_) | Frame::Go if self.only_frames => {
                let problem = Problem::Says("this belongs on the main channel".into());
                return Err(self.refuse("frame", 5, problem));
            }
            Frame::Go => {
                let problem = Problem::Says("GO before the end of the states".into());
                return Err(self.refuse("frame", 5, problem));
            }
            Frame::Chosen { .. } | Frame::Hash(_) => {}
        }
        Ok(self.item(Item::Frame(frame), used))
    }

    /// The place of a range of whole pages inside its block.
    fn range(&self, block: u8, offset: u64, bytes: u64) -> Result<PageAt, Error> {
        let whole = |bytes: u64| bytes.is_multiple_of(PAGE_BYTES as u64);
        let listed = self.ram.blocks().get(usize::from(block));
        let inside = listed
            .is_some_and(|listed| offset.checked_add(bytes).is_some_and(|end| end <= listed.bytes));
        if !inside || !whole(offset) || !whole(bytes) {
            let why = format!(
                "a range outside its block: block {block}, offset {offset:#x}, {bytes:#x} bytes"
            );
            return Err(self.refuse("frame", 5, Problem::Says(why)));
        }
        Ok(PageAt { block: block.into(), offset })
    }

    /// Behind [`Frame::Run`]: its bytes are taken from the input elsewhere. Says how many they are.
    pub(crate) fn take_run(&mut self) -> u64 {
        let State::Run { left, .. } = self.state else { return 0 };
        self.state = State::Between;
        self.ram.set_offset(self.offset() + left);
        left
    }

    pub(super) fn run<'a>(
        &mut self,
        at: PageAt,
        left: u64,
        input: &'a [u8],
    ) -> Result<Step<Item<'a>>, Error> {
        if left == 0 {
            return self.between(input);
        }
        if input.is_empty() {
            return Ok(Step::Need(1));
        }
        let used = usize::try_from(left).map_or(input.len(), |left| left.min(input.len()));
        let next = PageAt { offset: at.offset + used as u64, ..at };
        self.state = State::Run { at: next, left: left - used as u64 };
        Ok(self.item(Item::Run { at, bytes: &input[..used] }, used))
    }
}
