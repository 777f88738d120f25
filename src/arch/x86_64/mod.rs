//! x86-64: what the guest's processor and its chips look like, in KVM's structs and in the sections
//! of a migration stream, each made from the other; and how a kernel is started.
//!
//! Apart from `boot`, which writes guest memory, pure: numbers in, numbers out.

pub mod boot;
pub mod cpu;
pub mod cpuid;
pub mod features;
pub mod lapic;
pub mod msrs;
pub mod registers;
pub mod topology;
pub mod xsave;
