//! Filling a section from its bytes.

use super::layout::{Layout, Scalar, Visitor};
use crate::stream::{Error, Problem, SectionHeader};

/// Why reading stopped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stop {
    /// The input ends inside the section: this many bytes of it are needed at least.
    Short(usize),
    Refused(Box<Error>),
}

impl Stop {
    pub(crate) fn refused(
        header: &SectionHeader,
        field: &str,
        offset: u64,
        problem: Problem,
    ) -> Stop {
        let error = Error::new(format!("section {header}"), field, offset, problem);
        Stop::Refused(Box::new(error))
    }
}

/// Reads the payload of the section `header` into `state` from the front of `input`, which stands at
/// `offset` of the stream. Returns the payload's length.
///
/// A payload has no length of its own: its end is where a byte comes that begins no subsection, so
/// `input` must go on behind it (with the footer). With `whole` it is the payload and nothing else,
/// and its end is the payload's end.
///
/// # Errors
/// [`Stop::Short`] when `input` ends too early; with `whole` that is a refusal too.
pub(crate) fn read<T: Layout>(
    state: &mut T,
    header: &SectionHeader,
    input: &[u8],
    offset: u64,
    whole: bool,
) -> Result<usize, Stop> {
    let path = Vec::new();
    let mut reader = Reader { header, input, offset, whole, at: 0, before: 0, path, pending: None };
    match reader.body(state) {
        Ok(()) => Ok(reader.at),
        Err(Stop::Short(_)) if whole => Err(reader.error("end", Problem::Ends)),
        Err(stop) => Err(stop),
    }
}

struct Reader<'a> {
    header: &'a SectionHeader,
    input: &'a [u8],
    offset: u64,
    whole: bool,
    at: usize,
    /// Where the field read last began.
    before: usize,
    /// The structs and subsections around the field in hand.
    path: Vec<(&'static str, Option<usize>)>,
    /// The subsection whose head was read and whose table entry is being looked for.
    pending: Option<(&'a str, u32)>,
}

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], Stop> {
        self.before = self.at;
        let found = self.peek(0, count)?;
        self.at += count;
        Ok(found)
    }

    fn peek(&self, ahead: usize, count: usize) -> Result<&'a [u8], Stop> {
        let start = self.at.saturating_add(ahead);
        let end = start.saturating_add(count);
        self.input.get(start..end).ok_or(Stop::Short(end))
    }

    /// Reads the subsections that stand here, as long as they are this struct's.
    fn subsections_of<T: Layout>(&mut self, state: &mut T) -> Result<(), Stop> {
        while let Some((name, version)) = self.subsection_head(T::NAME)? {
            self.pending = Some((name, version));
            state.subsections(self)?;
            if let Some((name, _)) = self.pending.take() {
                self.before = self.at;
                return Err(self.error("subsection", Problem::Unknown { name: name.to_owned() }));
            }
        }
        Ok(())
    }

    fn subsection_head(&mut self, owner: &str) -> Result<Option<(&'a str, u32)>, Stop> {
        if self.whole && self.at == self.input.len() {
            return Ok(None);
        }
        if self.peek(0, 1)?[0] != 0x05 {
            return Ok(None);
        }
        // The byte may also be a value of the struct around: then what follows is not a name of
        // ours.
        let Ok(length) = self.peek(1, 1) else { return self.no_more_if_whole() };
        let length = usize::from(length[0]);
        if length <= owner.len() {
            return Ok(None);
        }
        let Ok(name) = self.peek(2, length) else { return self.no_more_if_whole_or(2 + length) };
        if !name.starts_with(owner.as_bytes()) {
            return Ok(None);
        }
        let Ok(name) = std::str::from_utf8(name) else { return Ok(None) };
        let version = u32::get(self.peek(2 + length, 4)?);
        self.at += 2 + length + 4;
        Ok(Some((name, version)))
    }

    fn no_more_if_whole(&self) -> Result<Option<(&'a str, u32)>, Stop> {
        self.no_more_if_whole_or(2)
    }

    fn no_more_if_whole_or(&self, needed: usize) -> Result<Option<(&'a str, u32)>, Stop> {
        if self.whole { Ok(None) } else { Err(Stop::Short(self.at + needed)) }
    }

    /// Whether the pending subsection is `name`; then its version is checked and it is pending no
    /// more.
    fn is_pending(&mut self, name: &'static str, known: u32, there: bool) -> Result<bool, Stop> {
        let Some((_, found)) = self.pending.take_if(|(pending, _)| *pending == name) else {
            return Ok(false);
        };
        self.before = self.at;
        if there {
            return Err(self.error("subsection", Problem::Repeated { name: name.to_owned() }));
        }
        if found > known {
            return Err(self.error(name, Problem::Newer { found, known }));
        }
        if found < known {
            return Err(self.error(name, Problem::Older { found, oldest: known }));
        }
        Ok(true)
    }

    fn inside<T>(
        &mut self,
        name: &'static str,
        index: Option<usize>,
        then: impl FnOnce(&mut Self) -> Result<T, Stop>,
    ) -> Result<T, Stop> {
        self.path.push((name, index));
        let result = then(self)?;
        self.path.pop();
        Ok(result)
    }

    #[cold]
    fn error(&self, field: &'static str, problem: Problem) -> Stop {
        let mut name = String::new();
        for (part, index) in &self.path {
            name.push_str(part);
            if let Some(index) = index {
                name.push_str(&format!("[{index}]"));
            }
            name.push('.');
        }
        name.push_str(field);
        Stop::refused(self.header, &name, self.offset + self.before as u64, problem)
    }
}

impl Visitor for Reader<'_> {
    type Stop = Stop;

    fn body<T: Layout>(&mut self, state: &mut T) -> Result<(), Stop> {
        state.fields(self)?;
        self.subsections_of(state)
    }

    fn value<T: Scalar>(&mut self, _name: &'static str, value: &mut T) -> Result<(), Stop> {
        *value = T::get(self.take(T::BYTES)?);
        Ok(())
    }

    fn array<T: Scalar, const N: usize>(
        &mut self,
        _name: &'static str,
        values: &mut [T; N],
    ) -> Result<(), Stop> {
        let bytes = self.take(T::BYTES * N)?;
        for (value, bytes) in values.iter_mut().zip(bytes.chunks_exact(T::BYTES)) {
            *value = T::get(bytes);
        }
        Ok(())
    }

    fn buffer<const N: usize>(
        &mut self,
        _name: &'static str,
        bytes: &mut [u8; N],
    ) -> Result<(), Stop> {
        bytes.copy_from_slice(self.take(N)?);
        Ok(())
    }

    fn unused(&mut self, _name: &'static str, bytes: usize) -> Result<(), Stop> {
        self.take(bytes).map(|_| ())
    }

    fn structure<T: Layout>(&mut self, name: &'static str, value: &mut T) -> Result<(), Stop> {
        self.inside(name, None, |reader| reader.body(value))
    }

    fn structures<T: Layout, const N: usize>(
        &mut self,
        name: &'static str,
        values: &mut [T; N],
    ) -> Result<(), Stop> {
        for (index, value) in values.iter_mut().enumerate() {
            self.inside(name, Some(index), |reader| reader.body(value))?;
        }
        Ok(())
    }

    fn temporary<T: Layout>(&mut self, name: &'static str, value: &mut T) -> Result<(), Stop> {
        self.structure(name, value)
    }

    fn opaque<T: Layout>(
        &mut self,
        name: &'static str,
        _kind: &'static str,
        value: &mut T,
    ) -> Result<(), Stop> {
        self.structure(name, value)
    }

    fn subsection<T: Layout>(&mut self, value: &mut Option<T>) -> Result<(), Stop> {
        if self.is_pending(T::NAME, T::VERSION, value.is_some())? {
            let mut found = T::default();
            self.inside(T::NAME, None, |reader| reader.body(&mut found))?;
            *value = Some(found);
        }
        Ok(())
    }

    fn subsection_of<T: Scalar>(
        &mut self,
        name: &'static str,
        field: &'static str,
        value: &mut Option<T>,
    ) -> Result<(), Stop> {
        if self.is_pending(name, 1, value.is_some())? {
            let mut found = T::default();
            self.inside(name, None, |reader| reader.value(field, &mut found))?;
            *value = Some(found);
        }
        Ok(())
    }

    fn list<T: Layout>(
        &mut self,
        name: &'static str,
        count: usize,
        values: &mut Vec<T>,
    ) -> Result<(), Stop> {
        values.clear();
        for index in 0..count {
            let mut value = T::default();
            self.inside(name, Some(index), |reader| reader.body(&mut value))?;
            values.push(value);
        }
        Ok(())
    }

    fn bytes(
        &mut self,
        _name: &'static str,
        count: usize,
        bytes: &mut Vec<u8>,
    ) -> Result<(), Stop> {
        *bytes = self.take(count)?.to_vec();
        Ok(())
    }

    fn refuse(&mut self, name: &'static str, problem: Problem) -> Result<(), Stop> {
        Err(self.error(name, problem))
    }
}
