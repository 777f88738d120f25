//! x86-64: what the guest's processor and its chips look like, in KVM's structs and in the sections
//! of a migration stream, each made from the other; and how a kernel is started.
//!
//! Apart from `boot`, which writes guest memory, pure: numbers in, numbers out.

pub(crate) mod acpi;
pub(crate) mod boot;
pub mod cpu;
pub(crate) mod cpuid;
pub(crate) mod features;
pub(crate) mod lapic;
pub(crate) mod msrs;
pub(crate) mod registers;
pub(crate) mod smbios;
pub(crate) mod topology;
pub(crate) mod xsave;

/// The byte that makes all bytes sum up to zero.
pub(crate) fn checksum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)).wrapping_neg()
}
