//! Model specific registers: which there are, and reading and writing many although KVM refuses
//! some.

use super::error::Error;
use kvm_bindings::{KVM_MAX_MSR_ENTRIES, Msrs, kvm_msr_entry};
use kvm_ioctls::{Kvm, VcpuFd};

pub(crate) const TSC_DEADLINE: u32 = 0x6e0;
pub(crate) const FEATURE_CONTROL: u32 = 0x3a;

/// Machine check banks a vCPU gets, as in QEMU: MCG_CAP's count byte, with MCG_CTL_P (8) and
/// MCG_SER_P (24).
const MCE_BANKS: u64 = 10;
const MCE_CAP: u64 = MCE_BANKS | 1 << 8 | 1 << 24;

/// What a vCPU's MCG_CAP becomes on a host that knows the features `supported` and has `banks`.
pub(crate) fn mce_cap(supported: u64, banks: u32) -> u64 {
    (MCE_CAP & !0xff & supported) | MCE_BANKS.min(banks.into())
}

/// All MSRs that make up a vCPU's state: KVM's own list, and those that older kernels leave out of
/// it (MTRRs, PAT, machine check banks).
pub(crate) fn list(kvm: &Kvm, mce_cap: u64) -> Result<Vec<u32>, Error> {
    let listed = kvm.get_msr_index_list().map_err(Error::call("KVM_GET_MSR_INDEX_LIST"))?;
    let mut list = listed.as_slice().to_vec();
    let mtrrs =
        [0x250, 0x258, 0x259, 0x277, 0x2ff].into_iter().chain(0x268..=0x26f).chain(0x200..=0x20f);
    let banks = (mce_cap & 0xff) as u32;
    for msr in mtrrs.chain(0x400..0x400 + 4 * banks) {
        if !list.contains(&msr) {
            list.push(msr);
        }
    }
    Ok(list)
}

/// What [`read`] brought.
pub(crate) struct Read {
    pub values: Vec<(u32, u64)>,
    pub refused: Vec<u32>,
}

/// Reads the MSRs of `list`. KVM stops at the first it refuses; reading goes on behind it.
pub(crate) fn read(vcpu: &VcpuFd, list: &[u32]) -> Result<Read, Error> {
    let mut out = Read { values: Vec::with_capacity(list.len()), refused: Vec::new() };
    let mut rest = list;
    while !rest.is_empty() {
        let entries: Vec<_> = rest.iter().take(KVM_MAX_MSR_ENTRIES).map(|&i| entry(i, 0)).collect();
        let mut msrs = batch(&entries);
        let done = vcpu.get_msrs(&mut msrs).map_err(Error::call("KVM_GET_MSRS"))?;
        out.values.extend(msrs.as_slice()[..done].iter().map(|m| (m.index, m.data)));
        rest = &rest[done..];
        if done < entries.len() {
            out.refused.push(rest[0]);
            rest = &rest[1..];
        }
    }
    Ok(out)
}

/// Writes MSRs in the order given; returns those that KVM refused.
pub(crate) fn write(vcpu: &VcpuFd, values: &[(u32, u64)]) -> Result<Vec<(u32, u64)>, Error> {
    let mut refused = Vec::new();
    let mut rest = values;
    while !rest.is_empty() {
        let entries: Vec<_> = rest
            .iter()
            .take(KVM_MAX_MSR_ENTRIES)
            .map(|&(index, data)| entry(index, data))
            .collect();
        let done = vcpu.set_msrs(&batch(&entries)).map_err(Error::call("KVM_SET_MSRS"))?;
        rest = &rest[done..];
        if done < entries.len() {
            refused.push(rest[0]);
            rest = &rest[1..];
        }
    }
    Ok(refused)
}

fn entry(index: u32, data: u64) -> kvm_msr_entry {
    kvm_msr_entry { index, data, ..Default::default() }
}

fn batch(entries: &[kvm_msr_entry]) -> Msrs {
    Msrs::from_entries(entries).expect("a batch has at most KVM_MAX_MSR_ENTRIES entries")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machine_check_banks_never_exceed_the_host() {
        assert_eq!(mce_cap(0x0900_0100, 32), 1 << 24 | 1 << 8 | 10);
        assert_eq!(mce_cap(0, 6), 6);
    }
}
