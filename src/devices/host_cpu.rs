//! What loading has to know of the processor.

use crate::arch::x86_64::xsave::XsaveLayout;

/// What this host's processor offers a guest, as far as loading depends on it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostCpu {
    pub xsave: XsaveLayout,
    pub physical_bits: u32,
}

impl HostCpu {
    /// From the CPUID that vCPUs were given.
    pub fn from_cpuid(entries: &[kvm_bindings::kvm_cpuid_entry2]) -> Self {
        let widths = entries.iter().find(|entry| entry.function == 0x8000_0008);
        let physical_bits = widths.map_or(0, |entry| entry.eax & 0xff);
        let physical_bits = if physical_bits == 0 { 36 } else { physical_bits };
        Self { xsave: XsaveLayout::from_cpuid(entries), physical_bits }
    }
}
