//! Making a section's bytes.

use super::layout::{Layout, Scalar, Visitor};
use crate::stream::{Problem, put_pstr};
use std::convert::Infallible;

/// Appends one struct, subsections included.
pub(crate) fn write<T: Layout>(state: &T, out: &mut Vec<u8>) {
    let Ok(()) = Writer { out }.body(&mut state.clone());
}

struct Writer<'a> {
    out: &'a mut Vec<u8>,
}

impl Writer<'_> {
    fn head(&mut self, name: &str, version: u32) {
        self.out.push(0x05);
        put_pstr(self.out, name);
        version.put(self.out);
    }
}

impl Visitor for Writer<'_> {
    type Stop = Infallible;

    fn value<T: Scalar>(&mut self, _name: &'static str, value: &mut T) -> Result<(), Infallible> {
        value.put(self.out);
        Ok(())
    }

    fn array<T: Scalar, const N: usize>(
        &mut self,
        _name: &'static str,
        values: &mut [T; N],
    ) -> Result<(), Infallible> {
        for value in values {
            value.put(self.out);
        }
        Ok(())
    }

    fn buffer<const N: usize>(
        &mut self,
        _name: &'static str,
        bytes: &mut [u8; N],
    ) -> Result<(), Infallible> {
        self.out.extend_from_slice(bytes);
        Ok(())
    }

    fn unused(&mut self, _name: &'static str, bytes: usize) -> Result<(), Infallible> {
        self.out.resize(self.out.len() + bytes, 0);
        Ok(())
    }

    fn structure<T: Layout>(
        &mut self,
        _name: &'static str,
        value: &mut T,
    ) -> Result<(), Infallible> {
        self.body(value)
    }

    fn structures<T: Layout, const N: usize>(
        &mut self,
        _name: &'static str,
        values: &mut [T; N],
    ) -> Result<(), Infallible> {
        values.iter_mut().try_for_each(|value| self.body(value))
    }

    fn subsection<T: Layout>(&mut self, value: &mut Option<T>) -> Result<(), Infallible> {
        let Some(value) = value else { return Ok(()) };
        self.head(T::NAME, T::VERSION);
        self.body(value)
    }

    fn subsection_of<T: Scalar>(
        &mut self,
        name: &'static str,
        _field: &'static str,
        value: &mut Option<T>,
    ) -> Result<(), Infallible> {
        if let Some(value) = value {
            self.head(name, 1);
            value.put(self.out);
        }
        Ok(())
    }

    fn list<T: Layout>(
        &mut self,
        name: &'static str,
        count: usize,
        values: &mut Vec<T>,
    ) -> Result<(), Infallible> {
        assert_eq!(count, values.len(), "{name}: as many elements as its count says");
        values.iter_mut().try_for_each(|value| self.body(value))
    }

    fn bytes(
        &mut self,
        name: &'static str,
        count: usize,
        bytes: &mut Vec<u8>,
    ) -> Result<(), Infallible> {
        assert_eq!(count, bytes.len(), "{name}: as many bytes as its count says");
        self.out.extend_from_slice(bytes);
        Ok(())
    }

    fn refuse(&mut self, name: &'static str, problem: Problem) -> Result<(), Infallible> {
        debug_assert!(false, "a section that we made ourselves is refused: {name}: {problem}");
        Ok(())
    }
}
