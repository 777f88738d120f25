//! A struct that is a whole section, whatever its type.

use super::layout::Layout;
use super::{Row, Stop};
use crate::stream::{Problem, SectionHeader};
use std::any::Any;
use std::fmt::Debug;

/// A section of a stream. Every [`Layout`] is one, if it is used as one.
pub trait Section: Any + Debug + Send + Sync {
    /// The version that we read and write.
    fn version(&self) -> u32;

    /// The description's name for it.
    fn name(&self) -> &'static str;

    /// Fills it from the payload at the front of `input`; as [`super::read()`], which see, after
    /// looking at the version.
    fn read(
        &mut self,
        header: &SectionHeader,
        input: &[u8],
        offset: u64,
        whole: bool,
    ) -> Result<usize, Stop>;

    /// Appends the payload.
    fn write(&self, out: &mut Vec<u8>);

    /// Appends name, version, fields and subsections as the description has them.
    fn describe(&self, text: &mut String);

    /// Every field, in the order of the stream.
    fn rows(&self) -> Vec<Row>;

    fn boxed(&self) -> Box<dyn Section>;

    fn equals(&self, other: &dyn Section) -> bool;
}

impl<T: Layout + Any + Debug + PartialEq + Send + Sync> Section for T {
    fn version(&self) -> u32 {
        self.section_version()
    }

    fn name(&self) -> &'static str {
        self.section_name()
    }

    fn read(
        &mut self,
        header: &SectionHeader,
        input: &[u8],
        offset: u64,
        whole: bool,
    ) -> Result<usize, Stop> {
        let known = self.section_version();
        let problem = match header.version {
            found if found > known => Problem::Newer { found, known },
            found if found < known => Problem::Older { found, oldest: known },
            _ => return super::read(self, header, input, offset, whole),
        };
        Err(Stop::refused(header, "version", offset, problem))
    }

    fn write(&self, out: &mut Vec<u8>) {
        super::write(self, out);
    }

    fn describe(&self, text: &mut String) {
        super::describe::section(self, text);
    }

    fn rows(&self) -> Vec<Row> {
        super::rows(self)
    }

    fn boxed(&self) -> Box<dyn Section> {
        Box::new(self.clone())
    }

    fn equals(&self, other: &dyn Section) -> bool {
        other.downcast_ref::<T>() == Some(self)
    }
}

impl dyn Section {
    pub(crate) fn downcast_ref<T: Section>(&self) -> Option<&T> {
        (self as &dyn Any).downcast_ref()
    }

    pub fn downcast_mut<T: Section>(&mut self) -> Option<&mut T> {
        (self as &mut dyn Any).downcast_mut()
    }
}

impl PartialEq for dyn Section {
    fn eq(&self, other: &Self) -> bool {
        self.equals(other)
    }
}

impl Clone for Box<dyn Section> {
    fn clone(&self) -> Self {
        (**self).boxed()
    }
}
