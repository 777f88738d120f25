//! What stands behind the states: the description, and GO.

use super::item::{Item, Layouts};
use super::{Reader, State};
use crate::stream::cursor::{Cursor, Step};
use crate::stream::error::{Error, Problem};
use crate::stream::godwit::{self, Frame};
use crate::stream::limits::DESCRIPTION_BYTES_MAX;

impl<L: Layouts> Reader<L> {
    pub(super) fn tail<'a>(&mut self, input: &'a [u8]) -> Result<Step<Item<'a>>, Error> {
        self.name.clear();
        self.name.push_str("description");
        let mut cursor = Cursor::new(input);
        let Some(marker) = cursor.u8() else { return Ok(Step::Need(1)) };
        if marker == 0x08 {
            return self.behind_the_end(input);
        }
        if marker != 0x06 {
            let problem = Problem::Unexpected { found: marker.into(), expected: 6 };
            return Err(self.refuse("marker", 0, problem));
        }
        let Some(length) = cursor.u32() else { return Ok(Step::Need(5)) };
        if length > DESCRIPTION_BYTES_MAX {
            let limit = DESCRIPTION_BYTES_MAX.into();
            return Err(self.refuse(
                "length",
                1,
                Problem::TooLarge { found: length.into(), limit },
            ));
        }
        self.state =
            if length == 0 { State::Finished } else { State::Description { left: length } };
        Ok(self.item(Item::Description { text: &[], left: length }, 5))
    }

    pub(super) fn description<'a>(
        &mut self,
        left: u32,
        input: &'a [u8],
    ) -> Result<Step<Item<'a>>, Error> {
        if input.is_empty() {
            return Ok(Step::Need(1));
        }
        let text = &input[..input.len().min(left as usize)];
        let left = left - text.len() as u32;
        self.state = if left == 0 { State::Finished } else { State::Description { left } };
        Ok(self.item(Item::Description { text, left }, text.len()))
    }

    /// Only GO may come now.
    pub(super) fn behind_the_end<'a>(&mut self, input: &'a [u8]) -> Result<Step<Item<'a>>, Error> {
        let mut cursor = Cursor::new(input);
        let Some(marker) = cursor.u8() else { return Ok(Step::Need(1)) };
        if marker != 0x08 {
            let problem = Problem::Says(format!("byte {marker:#x} behind the end"));
            return Err(self.refuse("end", 0, problem));
        }
        let (Some(number), Some(length)) = (cursor.u16(), cursor.u16()) else {
            return Ok(Step::Need(5));
        };
        let Some(data) = cursor.take(length.into()) else { return Ok(Step::Need(cursor.needed())) };
        if number != godwit::NUMBER || Frame::parse(data, self.offset() + 5)? != Frame::Go {
            let problem = Problem::Says(format!("command {number} behind the end"));
            return Err(self.refuse("end", 1, problem));
        }
        self.state = State::Finished;
        Ok(self.item(Item::Frame(Frame::Go), cursor.at()))
    }
}
