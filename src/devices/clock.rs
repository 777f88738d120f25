//! The virtual clock as a part of every board.

use super::error::Error;
use super::kind::{Kind, SectionKind, only_one};
use super::slots::{Built, Slots};
use super::virtual_clock::TimerState;

pub(crate) const KIND: Kind = Kind {
    sections: &[SectionKind::of::<TimerState>("virtual clock", only_one)],
    build,
    ..Kind::NONE
};

fn build(slots: &mut Slots<'_>) -> Result<Built, Error> {
    Ok(vec![slots.clock.clone()])
}
