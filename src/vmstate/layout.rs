//! The field table of a struct, and what walks it.

use crate::stream::Problem;

/// A number in the stream.
pub(crate) trait Scalar: Copy + Default + PartialEq + std::fmt::Debug {
    const BYTES: usize;
    /// The type's name in the description.
    const TYPE: &'static str;
    /// `bytes` has exactly `BYTES` bytes.
    fn get(bytes: &[u8]) -> Self;
    fn put(self, out: &mut Vec<u8>);
}

macro_rules! scalars {
    ($($type:ty = $name:literal),*) => {$(
        impl Scalar for $type {
            const BYTES: usize = size_of::<$type>();
            const TYPE: &'static str = $name;

            fn get(bytes: &[u8]) -> Self {
                <$type>::from_be_bytes(bytes.try_into().expect("BYTES bytes"))
            }

            fn put(self, out: &mut Vec<u8>) {
                out.extend_from_slice(&self.to_be_bytes());
            }
        }
    )*};
}

scalars!(
    u8 = "uint8",
    u16 = "uint16",
    u32 = "uint32",
    u64 = "uint64",
    i32 = "int32",
    i64 = "int64"
);

impl Scalar for bool {
    const BYTES: usize = 1;
    const TYPE: &'static str = "bool";

    fn get(bytes: &[u8]) -> Self {
        bytes[0] != 0
    }

    fn put(self, out: &mut Vec<u8>) {
        out.push(self.into());
    }
}

/// A struct of the stream: its name, version and field table.
pub(crate) trait Layout: Clone + Default {
    /// The description's name for it; the names of its subsections begin with it.
    const NAME: &'static str;
    const VERSION: u32;

    /// Visits every field, in the order of the stream.
    fn fields<V: Visitor>(&mut self, v: &mut V) -> Result<(), V::Stop>;

    /// Name and version of a section whose layout this is; those of the struct, unless several
    /// sections share it.
    fn section_name(&self) -> &'static str {
        Self::NAME
    }

    fn section_version(&self) -> u32 {
        Self::VERSION
    }

    /// Visits every subsection, in the order in which QEMU writes them.
    fn subsections<V: Visitor>(&mut self, _v: &mut V) -> Result<(), V::Stop> {
        Ok(())
    }
}

/// What walks a field table. Names are QEMU's, for messages and for the description.
pub(crate) trait Visitor: Sized {
    type Stop;

    /// Walks a struct's own table.
    fn body<T: Layout>(&mut self, state: &mut T) -> Result<(), Self::Stop> {
        state.fields(self)?;
        state.subsections(self)
    }
    fn value<T: Scalar>(&mut self, name: &'static str, value: &mut T) -> Result<(), Self::Stop>;
    /// Elements back to back, no count.
    fn array<T: Scalar, const N: usize>(
        &mut self,
        name: &'static str,
        values: &mut [T; N],
    ) -> Result<(), Self::Stop>;
    /// Raw bytes.
    fn buffer<const N: usize>(
        &mut self,
        name: &'static str,
        bytes: &mut [u8; N],
    ) -> Result<(), Self::Stop>;
    /// A timer's expiry, ns of the virtual clock; -1: not armed.
    fn timer(&mut self, name: &'static str, expiry: &mut i64) -> Result<(), Self::Stop> {
        self.value(name, expiry)
    }
    /// Bytes that mean nothing: skipped when read, written as zeros.
    fn unused(&mut self, name: &'static str, bytes: usize) -> Result<(), Self::Stop>;
    fn structure<T: Layout>(&mut self, name: &'static str, value: &mut T)
    -> Result<(), Self::Stop>;
    fn structures<T: Layout, const N: usize>(
        &mut self,
        name: &'static str,
        values: &mut [T; N],
    ) -> Result<(), Self::Stop>;
    /// A struct that QEMU makes up for the stream; differs from [`Visitor::structure`] in the
    /// description only.
    fn temporary<T: Layout>(
        &mut self,
        _name: &'static str,
        value: &mut T,
    ) -> Result<(), Self::Stop> {
        self.body(value)
    }
    /// A struct that the description shows as one field of type `kind`.
    fn opaque<T: Layout>(
        &mut self,
        _name: &'static str,
        _kind: &'static str,
        value: &mut T,
    ) -> Result<(), Self::Stop> {
        self.body(value)
    }
    /// A subsection, there or not.
    fn subsection<T: Layout>(&mut self, value: &mut Option<T>) -> Result<(), Self::Stop>;
    /// A subsection of one field.
    fn subsection_of<T: Scalar>(
        &mut self,
        name: &'static str,
        field: &'static str,
        value: &mut Option<T>,
    ) -> Result<(), Self::Stop>;

    /// `count` structs; a reader makes them. `count` has been checked.
    fn list<T: Layout>(
        &mut self,
        name: &'static str,
        count: usize,
        values: &mut Vec<T>,
    ) -> Result<(), Self::Stop>;
    /// `count` raw bytes.
    fn bytes(
        &mut self,
        name: &'static str,
        count: usize,
        bytes: &mut Vec<u8>,
    ) -> Result<(), Self::Stop>;
    /// A count that the field before gave: refused when it is above `limit`.
    fn check(&mut self, name: &'static str, found: u64, limit: u64) -> Result<(), Self::Stop> {
        if found <= limit { Ok(()) } else { self.refuse(name, Problem::TooLarge { found, limit }) }
    }
    /// Refuses what was read last. Writers, which are given sound structs, go on.
    fn refuse(&mut self, name: &'static str, problem: Problem) -> Result<(), Self::Stop>;
}
