//! KVM's structs and the sections of a migration stream, each made from the other.
//!
//! Pure: numbers in, numbers out. `save` and `load`, one level up, decide what is converted and
//! when.

pub mod chips;
pub mod cpu;
pub mod msrs;
pub mod port;
pub mod xsave;
