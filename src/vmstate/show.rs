//! A section as a list of names and values, for people.

use super::layout::{Layout, Scalar, Visitor};
use super::write;
use crate::stream::Problem;
use std::convert::Infallible;

/// A field, or the head of a subsection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// Bytes from the start of the payload.
    pub offset: usize,
    pub bytes: usize,
    /// How deep in subsections it stands.
    pub depth: usize,
    /// With the structs around it: `env.segs[1].base`; a subsection's full name.
    pub name: String,
    /// Empty for a subsection.
    pub value: String,
}

impl Row {
    pub(crate) fn is_subsection(&self) -> bool {
        self.value.is_empty()
    }
}

/// Every field of the struct, in the order of the stream.
pub(crate) fn rows<T: Layout>(state: &T) -> Vec<Row> {
    let mut show = Show { rows: Vec::new(), at: 0, depth: 0, path: String::new() };
    let Ok(()) = show.body(&mut state.clone());
    show.rows
}

struct Show {
    rows: Vec<Row>,
    at: usize,
    depth: usize,
    path: String,
}

impl Show {
    fn row(&mut self, name: &str, bytes: usize, value: String) -> Result<(), Infallible> {
        let name = format!("{}{name}", self.path);
        self.rows.push(Row { offset: self.at, bytes, depth: self.depth, name, value });
        self.at += bytes;
        Ok(())
    }

    fn inside<T: Layout>(&mut self, name: &str, value: &mut T) -> Result<(), Infallible> {
        let length = self.path.len();
        self.path.push_str(name);
        self.path.push('.');
        self.body(value)?;
        self.path.truncate(length);
        Ok(())
    }

    /// A subsection: its head, then what `fields` brings.
    fn under(
        &mut self,
        name: &str,
        fields: impl FnOnce(&mut Self) -> Result<(), Infallible>,
    ) -> Result<(), Infallible> {
        let around = std::mem::take(&mut self.path);
        self.row(name, 6 + name.len(), String::new())?;
        self.depth += 1;
        fields(self)?;
        self.depth -= 1;
        self.path = around;
        Ok(())
    }
}

/// Hex without leading zeros; small numbers read the same.
fn number<T: Scalar>(value: T) -> String {
    let mut bytes = Vec::new();
    value.put(&mut bytes);
    let digits: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let digits = digits.trim_start_matches('0');
    format!("0x{}", if digits.is_empty() { "0" } else { digits })
}

fn hex(bytes: &[u8]) -> String {
    match bytes.iter().rposition(|byte| *byte != 0) {
        None => "zeros".into(),
        Some(last) => {
            let shown = (last + 1).min(32);
            let digits: String = bytes[..shown].iter().map(|byte| format!("{byte:02x}")).collect();
            if last < shown { digits } else { format!("{digits}…") }
        }
    }
}

impl Visitor for Show {
    type Stop = Infallible;

    fn value<T: Scalar>(&mut self, name: &'static str, value: &mut T) -> Result<(), Infallible> {
        self.row(name, T::BYTES, number(*value))
    }

    fn array<T: Scalar, const N: usize>(
        &mut self,
        name: &'static str,
        values: &mut [T; N],
    ) -> Result<(), Infallible> {
        let used =
            values.iter().rposition(|value| *value != T::default()).map_or(0, |last| last + 1);
        let mut text: Vec<String> =
            values[..used.min(40)].iter().map(|value| number(*value)).collect();
        if used < N {
            text.push(format!("{} zeros", N - used));
        }
        self.row(name, T::BYTES * N, text.join(" "))
    }

    fn buffer<const N: usize>(
        &mut self,
        name: &'static str,
        bytes: &mut [u8; N],
    ) -> Result<(), Infallible> {
        self.row(name, N, hex(bytes))
    }

    fn timer(&mut self, name: &'static str, expiry: &mut i64) -> Result<(), Infallible> {
        let text = if *expiry == -1 { "not armed".to_owned() } else { format!("{expiry} ns") };
        self.row(name, 8, text)
    }

    fn unused(&mut self, name: &'static str, bytes: usize) -> Result<(), Infallible> {
        self.row(name, bytes, "-".into())
    }

    fn structure<T: Layout>(
        &mut self,
        name: &'static str,
        value: &mut T,
    ) -> Result<(), Infallible> {
        self.inside(name, value)
    }

    fn structures<T: Layout, const N: usize>(
        &mut self,
        name: &'static str,
        values: &mut [T; N],
    ) -> Result<(), Infallible> {
        for (index, value) in values.iter_mut().enumerate() {
            self.inside(&format!("{name}[{index}]"), value)?;
        }
        Ok(())
    }

    fn subsection<T: Layout>(&mut self, value: &mut Option<T>) -> Result<(), Infallible> {
        let Some(value) = value else { return Ok(()) };
        self.under(T::NAME, |show| show.body(value))
    }

    fn subsection_of<T: Scalar>(
        &mut self,
        name: &'static str,
        field: &'static str,
        value: &mut Option<T>,
    ) -> Result<(), Infallible> {
        let Some(value) = value else { return Ok(()) };
        self.under(name, |show| show.value(field, value))
    }

    fn list<T: Layout>(
        &mut self,
        name: &'static str,
        count: usize,
        values: &mut Vec<T>,
    ) -> Result<(), Infallible> {
        // Arrays with room for every queue are mostly zeros: those at the end are one row.
        let mut sizes = Vec::with_capacity(count);
        let mut used = 0;
        for value in values.iter() {
            let mut bytes = Vec::new();
            write(value, &mut bytes);
            sizes.push(bytes.len());
            if bytes.iter().any(|byte| *byte != 0) {
                used = sizes.len();
            }
        }
        for (index, value) in values.iter_mut().take(used).enumerate() {
            self.inside(&format!("{name}[{index}]"), value)?;
        }
        match sizes[used..].iter().sum() {
            0 => Ok(()),
            bytes => {
                self.row(&format!("{name}[{used}…]"), bytes, format!("{} of zeros", count - used))
            }
        }
    }

    fn bytes(
        &mut self,
        name: &'static str,
        count: usize,
        bytes: &mut Vec<u8>,
    ) -> Result<(), Infallible> {
        if count == 0 { Ok(()) } else { self.row(name, count, hex(bytes)) }
    }

    fn refuse(&mut self, _name: &'static str, _problem: Problem) -> Result<(), Infallible> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::x86_64::cpu::CpuState;

    #[test]
    fn rows_cover_every_byte_in_order() {
        let mut cpu = CpuState::default();
        cpu.more.tsc_khz = Some(2_445_432);
        cpu.segs[1].base = 0x1234;
        let mut bytes = Vec::new();
        write(&cpu, &mut bytes);
        let mut at = 0;
        for row in rows(&cpu) {
            assert_eq!(row.offset, at);
            at += row.bytes;
        }
        assert_eq!(at, bytes.len());
    }

    #[test]
    fn names_carry_their_structs() {
        let mut cpu = CpuState::default();
        cpu.segs[1].base = 0x1234;
        cpu.more.tsc_khz = Some(1);
        let rows = rows(&cpu);
        assert!(rows.iter().any(|row| row.name == "env.segs[1].base" && row.value == "0x1234"));
        let subsections: Vec<_> = rows.iter().filter(|row| row.is_subsection()).collect();
        assert_eq!(subsections[0].name, "cpu/tsc_khz");
    }
}
