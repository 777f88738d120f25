//! A guest that is a hypervisor itself, and its guest.

use crate::vmstate::{Layout, Visitor};

/// Nested paging of an emulated nested guest.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SvmNpt {
    pub nested_cr3: u64,
    pub nested_pg_mode: u32,
}

impl Layout for SvmNpt {
    const NAME: &'static str = "cpu/svn_npt";
    const VERSION: u32 = 1;

    fn fields<V: Visitor>(&mut self, v: &mut V) -> Result<(), V::Stop> {
        v.value("env.nested_cr3", &mut self.nested_cr3)?;
        v.value("env.nested_pg_mode", &mut self.nested_pg_mode)
    }
}

/// What `KVM_GET_NESTED_STATE` gave.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NestedState {
    pub state: KvmNested,
}

impl Layout for NestedState {
    const NAME: &'static str = "cpu/nested_state";
    const VERSION: u32 = 1;

    fn fields<V: Visitor>(&mut self, v: &mut V) -> Result<(), V::Stop> {
        v.structure("env.nested_state", &mut self.state)
    }
}

/// The header that all kinds share.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KvmNested {
    pub flags: u16,
    pub format: u16,
    pub size: u32,
    pub vmx: Option<NestedVmx>,
    pub svm: Option<NestedSvm>,
}

impl Layout for KvmNested {
    const NAME: &'static str = "cpu/kvm_nested_state";
    const VERSION: u32 = 1;

    fn fields<V: Visitor>(&mut self, v: &mut V) -> Result<(), V::Stop> {
        v.value("flags", &mut self.flags)?;
        v.value("format", &mut self.format)?;
        v.value("size", &mut self.size)
    }

    fn subsections<V: Visitor>(&mut self, v: &mut V) -> Result<(), V::Stop> {
        v.subsection(&mut self.vmx)?;
        v.subsection(&mut self.svm)
    }
}

/// A guest of VMX.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NestedVmx {
    pub vmxon_pa: u64,
    pub vmcs12_pa: u64,
    pub smm_flags: u16,
    pub vmcs12: Option<NestedVmcs>,
    pub shadow_vmcs12: Option<NestedShadowVmcs>,
}

impl Layout for NestedVmx {
    const NAME: &'static str = "cpu/kvm_nested_state/vmx";
    const VERSION: u32 = 1;

    fn fields<V: Visitor>(&mut self, v: &mut V) -> Result<(), V::Stop> {
        v.value("hdr.vmx.vmxon_pa", &mut self.vmxon_pa)?;
        v.value("hdr.vmx.vmcs12_pa", &mut self.vmcs12_pa)?;
        v.value("hdr.vmx.smm.flags", &mut self.smm_flags)
    }

    fn subsections<V: Visitor>(&mut self, v: &mut V) -> Result<(), V::Stop> {
        v.subsection(&mut self.vmcs12)?;
        v.subsection(&mut self.shadow_vmcs12)
    }
}

/// One page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NestedVmcs {
    pub bytes: Box<[u8; 4096]>,
}

impl Default for NestedVmcs {
    fn default() -> Self {
        Self { bytes: Box::new([0; 4096]) }
    }
}

impl Layout for NestedVmcs {
    const NAME: &'static str = "cpu/kvm_nested_state/vmx/vmcs12";
    const VERSION: u32 = 1;

    fn fields<V: Visitor>(&mut self, v: &mut V) -> Result<(), V::Stop> {
        v.array("data.vmx[0].vmcs12", &mut self.bytes)
    }
}

/// One page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NestedShadowVmcs {
    pub bytes: Box<[u8; 4096]>,
}

impl Default for NestedShadowVmcs {
    fn default() -> Self {
        Self { bytes: Box::new([0; 4096]) }
    }
}

impl Layout for NestedShadowVmcs {
    const NAME: &'static str = "cpu/kvm_nested_state/vmx/shadow_vmcs12";
    const VERSION: u32 = 1;

    fn fields<V: Visitor>(&mut self, v: &mut V) -> Result<(), V::Stop> {
        v.array("data.vmx[0].shadow_vmcs12", &mut self.bytes)
    }
}

/// A guest of SVM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NestedSvm {
    pub vmcb_pa: u64,
    pub bytes: Box<[u8; 4096]>,
}

impl Default for NestedSvm {
    fn default() -> Self {
        Self { vmcb_pa: 0, bytes: Box::new([0; 4096]) }
    }
}

impl Layout for NestedSvm {
    const NAME: &'static str = "cpu/kvm_nested_state/svm";
    const VERSION: u32 = 1;

    fn fields<V: Visitor>(&mut self, v: &mut V) -> Result<(), V::Stop> {
        v.value("hdr.svm.vmcb_pa", &mut self.vmcb_pa)?;
        v.array("data.svm[0].vmcb12", &mut self.bytes)
    }
}
