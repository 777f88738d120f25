//! The description: JSON text at the end of a stream that tells each section's fields, names and
//! sizes.

use super::layout::{Layout, Scalar, Visitor};
use super::{Section, write};
use crate::stream::{PAGE_BYTES, Problem};
use std::convert::Infallible;
use std::fmt::Write;

/// Collects the description of a stream, section by section in the order of the stream. `ram` is
/// not described.
#[derive(Debug, Clone)]
pub struct Description {
    text: String,
    devices: usize,
}

impl Description {
    /// For the machine type `machine`.
    pub fn new(machine: &str) -> Self {
        let text = format!(
            "{{\"configuration\": {{\"vmsd_name\": \"configuration\", \"version\": 1, \"fields\": \
             [{{\"name\": \"len\", \"type\": \"uint32\", \"size\": 4}}, \
             {{\"name\": \"name\", \"type\": \"buffer\", \"size\": {}}}]}}, \
             \"page_size\": {PAGE_BYTES}, \"devices\": [",
            machine.len()
        );
        Self { text, devices: 0 }
    }

    pub fn device(&mut self, name: &str, instance: u32, section: &dyn Section) {
        if self.devices > 0 {
            self.text.push_str(", ");
        }
        self.devices += 1;
        let _ = write!(self.text, "{{\"name\": \"{name}\", \"instance_id\": {instance}, ");
        section.describe(&mut self.text);
        self.text.push('}');
    }

    /// The JSON text.
    pub fn finish(mut self) -> String {
        self.text.push_str("]}");
        self.text
    }
}

/// Appends what stands between the braces of one section.
pub(crate) fn section<T: Layout>(state: &T, text: &mut String) {
    let mut describer = Describer { text, size: 0, first: true };
    let (name, version) = (state.section_name(), state.section_version());
    let Ok(()) = describer.named(&mut state.clone(), name, version);
}

struct Describer<'a> {
    text: &'a mut String,
    /// Bytes of the stream described so far.
    size: usize,
    /// No element of the list in hand has been written yet.
    first: bool,
}

impl Describer<'_> {
    /// Name, version, fields and subsections, without the braces around.
    fn named<T: Layout>(
        &mut self,
        state: &mut T,
        name: &str,
        version: u32,
    ) -> Result<(), Infallible> {
        let _ =
            write!(self.text, "\"vmsd_name\": \"{name}\", \"version\": {version}, \"fields\": [");
        self.first = true;
        state.fields(self)?;
        self.text.push(']');
        let length = self.text.len();
        self.text.push_str(", \"subsections\": [");
        self.first = true;
        state.subsections(self)?;
        if self.first {
            self.text.truncate(length);
        } else {
            self.text.push(']');
        }
        self.first = false;
        Ok(())
    }

    fn comma(&mut self) {
        if !std::mem::take(&mut self.first) {
            self.text.push_str(", ");
        }
    }

    fn field(
        &mut self,
        name: &str,
        count: usize,
        kind: &str,
        size: usize,
    ) -> Result<(), Infallible> {
        self.comma();
        let _ = write!(self.text, "{{\"name\": \"{name}\", ");
        if count > 1 {
            let _ = write!(self.text, "\"array_len\": {count}, ");
        }
        let _ = write!(self.text, "\"type\": \"{kind}\", \"size\": {size}}}");
        self.size += size * count;
        Ok(())
    }

    fn nested<T: Layout>(&mut self, name: &str, values: &mut [T]) -> Result<(), Infallible> {
        let Some((first, rest)) = values.split_first_mut() else { return Ok(()) };
        self.comma();
        let _ = write!(self.text, "{{\"name\": \"{name}\", ");
        if !rest.is_empty() {
            let _ = write!(self.text, "\"array_len\": {}, ", rest.len() + 1);
        }
        self.text.push_str("\"type\": \"struct\", \"struct\": {");
        let before = self.size;
        self.named(first, T::NAME, T::VERSION)?;
        let size = self.size - before;
        let _ = write!(self.text, "}}, \"size\": {size}}}");
        self.size += size * rest.len();
        Ok(())
    }
}

impl Visitor for Describer<'_> {
    type Stop = Infallible;

    fn value<T: Scalar>(&mut self, name: &'static str, _value: &mut T) -> Result<(), Infallible> {
        self.field(name, 1, T::TYPE, T::BYTES)
    }

    fn array<T: Scalar, const N: usize>(
        &mut self,
        name: &'static str,
        _values: &mut [T; N],
    ) -> Result<(), Infallible> {
        self.field(name, N, T::TYPE, T::BYTES)
    }

    fn buffer<const N: usize>(
        &mut self,
        name: &'static str,
        _bytes: &mut [u8; N],
    ) -> Result<(), Infallible> {
        self.field(name, 1, "buffer", N)
    }

    fn timer(&mut self, name: &'static str, _expiry: &mut i64) -> Result<(), Infallible> {
        self.field(name, 1, "timer", 8)
    }

    fn unused(&mut self, name: &'static str, bytes: usize) -> Result<(), Infallible> {
        self.field(name, 1, "unused_buffer", bytes)
    }

    fn structure<T: Layout>(
        &mut self,
        name: &'static str,
        value: &mut T,
    ) -> Result<(), Infallible> {
        self.nested(name, std::slice::from_mut(value))
    }

    fn structures<T: Layout, const N: usize>(
        &mut self,
        name: &'static str,
        values: &mut [T; N],
    ) -> Result<(), Infallible> {
        self.nested(name, values)
    }

    fn temporary<T: Layout>(
        &mut self,
        name: &'static str,
        value: &mut T,
    ) -> Result<(), Infallible> {
        self.comma();
        let _ = write!(self.text, "{{\"name\": \"{name}\", \"type\": \"tmp\", ");
        let before = self.size;
        self.named(value, T::NAME, T::VERSION)?;
        let _ = write!(self.text, ", \"size\": {}}}", self.size - before);
        Ok(())
    }

    fn opaque<T: Layout>(
        &mut self,
        name: &'static str,
        kind: &'static str,
        value: &mut T,
    ) -> Result<(), Infallible> {
        let mut bytes = Vec::new();
        write(value, &mut bytes);
        self.field(name, 1, kind, bytes.len())
    }

    fn subsection<T: Layout>(&mut self, value: &mut Option<T>) -> Result<(), Infallible> {
        let Some(value) = value else { return Ok(()) };
        self.comma();
        self.size += 6 + T::NAME.len();
        self.text.push('{');
        self.named(value, T::NAME, T::VERSION)?;
        self.text.push('}');
        Ok(())
    }

    fn subsection_of<T: Scalar>(
        &mut self,
        name: &'static str,
        field: &'static str,
        value: &mut Option<T>,
    ) -> Result<(), Infallible> {
        let Some(value) = value else { return Ok(()) };
        self.comma();
        self.size += 6 + name.len();
        let _ = write!(self.text, "{{\"vmsd_name\": \"{name}\", \"version\": 1, \"fields\": [");
        self.first = true;
        self.value(field, value)?;
        self.text.push_str("]}");
        Ok(())
    }

    fn list<T: Layout>(
        &mut self,
        name: &'static str,
        _count: usize,
        values: &mut Vec<T>,
    ) -> Result<(), Infallible> {
        self.nested(name, values)
    }

    fn bytes(
        &mut self,
        name: &'static str,
        count: usize,
        _bytes: &mut Vec<u8>,
    ) -> Result<(), Infallible> {
        self.field(name, 1, "buffer", count)
    }

    fn refuse(&mut self, _name: &'static str, _problem: Problem) -> Result<(), Infallible> {
        Ok(())
    }
}
