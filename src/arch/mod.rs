//! What belongs to one kind of processor, a folder each.

pub mod x86_64;
