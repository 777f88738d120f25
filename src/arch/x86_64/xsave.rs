//! The XSAVE area: x87, vector and other extended registers, at offsets that partly depend on the
//! processor.

use super::cpu::{Amx, Avx512, Bound, CpuState, FpopIpDp, Mpx, Xmm, YmmHigh, ZmmHigh, ZmmUpper};
use kvm_bindings::kvm_cpuid_entry2;

/// Offsets in the fixed part (Intel SDM volume 1, 13.4.1 and 13.4.2).
const FCW: usize = 0;
const FSW: usize = 2;
const FTW: usize = 4;
const FOP: usize = 6;
const FIP: usize = 8;
const FDP: usize = 16;
const MXCSR: usize = 24;
const ST: usize = 32;
const XMM: usize = 160;
const XSTATE_BV: usize = 512;
const FIXED_BYTES: usize = 576;

/// State components by number.
const AVX: u32 = 2;
const BNDREGS: u32 = 3;
const BNDCSR: u32 = 4;
const OPMASK: u32 = 5;
const ZMM_HIGH: u32 = 6;
const ZMM_UPPER: u32 = 7;
const PKRU: u32 = 9;
const TILECFG: u32 = 17;
const TILEDATA: u32 = 18;

/// Where each state component lies, as CPUID leaf 0xd tells.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct XsaveLayout {
    offsets: [usize; 32],
}

impl XsaveLayout {
    pub(crate) fn from_cpuid(entries: &[kvm_cpuid_entry2]) -> Self {
        let mut layout = Self::default();
        for entry in entries.iter().filter(|entry| entry.function == 0xd) {
            // A component in an area of its own (supervisor state) has bit 0 of ECX set and no
            // offset.
            if (2..32).contains(&entry.index) && entry.eax != 0 && entry.ecx & 1 == 0 {
                layout.offsets[entry.index as usize] = entry.ebx as usize;
            }
        }
        layout
    }

    /// The component's place if it lies in the area and the processor has it.
    fn place(&self, component: u32, bytes: usize, area: usize) -> Option<std::ops::Range<usize>> {
        let start = self.offsets[component as usize];
        (start >= FIXED_BYTES && start + bytes <= area).then(|| start..start + bytes)
    }

    fn quads(&self, area: &[u8], component: u32, count: usize) -> Option<Vec<u64>> {
        let place = self.place(component, 8 * count, area.len())?;
        Some(area[place].as_chunks().0.iter().map(|quad| u64::from_le_bytes(*quad)).collect())
    }

    fn put_quads(
        &self,
        area: &mut [u8],
        component: u32,
        quads: impl Iterator<Item = u64> + Clone,
    ) -> bool {
        let Some(place) = self.place(component, 8 * quads.clone().count(), area.len()) else {
            return quads.into_iter().all(|quad| quad == 0);
        };
        for (bytes, quad) in area[place].as_chunks_mut::<8>().0.iter_mut().zip(quads) {
            *bytes = quad.to_le_bytes();
        }
        true
    }
}

fn u16_at(area: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([area[at], area[at + 1]])
}

fn u32_at(area: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(area[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(area: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(area[at..at + 8].try_into().expect("eight bytes"))
}

/// Copies the registers of `area`, which has at least 4096 bytes.
pub(crate) fn to_cpu(area: &[u8], layout: &XsaveLayout, cpu: &mut CpuState) {
    cpu.fpuc = u16_at(area, FCW);
    cpu.fpus = u16_at(area, FSW);
    cpu.fptag = area[FTW].into();
    cpu.mxcsr = u32_at(area, MXCSR);
    cpu.xstate_bv = u64_at(area, XSTATE_BV);
    for (i, register) in cpu.fpregs.iter_mut().enumerate() {
        register.parts.mantissa = u64_at(area, ST + 16 * i);
        register.parts.exponent = u16_at(area, ST + 16 * i + 8);
    }
    for (i, register) in cpu.xmm.iter_mut().enumerate() {
        *register = Xmm([u64_at(area, XMM + 16 * i), u64_at(area, XMM + 16 * i + 8)]);
    }
    let last =
        FpopIpDp { fpop: u16_at(area, FOP), fpip: u64_at(area, FIP), fpdp: u64_at(area, FDP) };
    cpu.more.fpop_ip_dp = (last != FpopIpDp::default()).then_some(last);
    if let Some(quads) = layout.quads(area, AVX, 32) {
        for (register, quads) in cpu.ymm_high.iter_mut().zip(quads.as_chunks().0) {
            *register = YmmHigh(*quads);
        }
    }
    let mpx = mpx(area, layout);
    cpu.more.mpx = (mpx != Mpx::default()).then_some(mpx);
    let avx512 = avx512(area, layout);
    cpu.more.avx512 = (avx512 != Avx512::default()).then_some(avx512);
    let pkru = layout.place(PKRU, 4, area.len()).map_or(0, |place| u32_at(area, place.start));
    cpu.more.pkru = (pkru != 0).then_some(pkru);
    let amx = amx(area, layout);
    cpu.more.amx = (amx != Amx::default()).then_some(amx);
}

fn mpx(area: &[u8], layout: &XsaveLayout) -> Mpx {
    let mut mpx = Mpx::default();
    if let Some(quads) = layout.quads(area, BNDREGS, 8) {
        for (bound, [lower, upper]) in mpx.bounds.iter_mut().zip(quads.as_chunks().0) {
            *bound = Bound { lower: *lower, upper: *upper };
        }
    }
    if let Some(quads) = layout.quads(area, BNDCSR, 2) {
        (mpx.cfgu, mpx.sts) = (quads[0], quads[1]);
    }
    mpx
}

fn avx512(area: &[u8], layout: &XsaveLayout) -> Avx512 {
    let mut avx512 = Avx512::default();
    if let Some(quads) = layout.quads(area, OPMASK, 8) {
        avx512.opmask.copy_from_slice(&quads);
    }
    if let Some(quads) = layout.quads(area, ZMM_HIGH, 64) {
        for (register, quads) in avx512.zmm_high.iter_mut().zip(quads.as_chunks().0) {
            *register = ZmmHigh(*quads);
        }
    }
    if let Some(quads) = layout.quads(area, ZMM_UPPER, 128) {
        for (register, quads) in avx512.zmm_upper.iter_mut().zip(quads.as_chunks().0) {
            *register = ZmmUpper(*quads);
        }
    }
    avx512
}

fn amx(area: &[u8], layout: &XsaveLayout) -> Amx {
    let mut amx = Amx::default();
    if let Some(place) = layout.place(TILECFG, 64, area.len()) {
        amx.config.copy_from_slice(&area[place]);
    }
    if let Some(place) = layout.place(TILEDATA, 8192, area.len()) {
        amx.data.copy_from_slice(&area[place]);
    }
    amx
}

/// Puts the registers into `area`, which has at least 4096 bytes; what the stream does not carry
/// stays.
///
/// # Errors
/// The name of a set of registers that the guest used and this host does not have.
pub(crate) fn from_cpu(
    cpu: &CpuState,
    layout: &XsaveLayout,
    area: &mut [u8],
) -> Result<(), &'static str> {
    area[FCW..FCW + 2].copy_from_slice(&cpu.fpuc.to_le_bytes());
    area[FSW..FSW + 2].copy_from_slice(&cpu.fpus.to_le_bytes());
    area[FTW] = cpu.fptag as u8;
    area[MXCSR..MXCSR + 4].copy_from_slice(&cpu.mxcsr.to_le_bytes());
    area[XSTATE_BV..XSTATE_BV + 8].copy_from_slice(&cpu.xstate_bv.to_le_bytes());
    for (i, register) in cpu.fpregs.iter().enumerate() {
        let at = ST + 16 * i;
        area[at..at + 8].copy_from_slice(&register.parts.mantissa.to_le_bytes());
        area[at + 8..at + 10].copy_from_slice(&register.parts.exponent.to_le_bytes());
    }
    for (i, register) in cpu.xmm.iter().enumerate() {
        let at = XMM + 16 * i;
        area[at..at + 8].copy_from_slice(&register.0[0].to_le_bytes());
        area[at + 8..at + 16].copy_from_slice(&register.0[1].to_le_bytes());
    }
    let last = cpu.more.fpop_ip_dp.unwrap_or_default();
    area[FOP..FOP + 2].copy_from_slice(&last.fpop.to_le_bytes());
    area[FIP..FIP + 8].copy_from_slice(&last.fpip.to_le_bytes());
    area[FDP..FDP + 8].copy_from_slice(&last.fpdp.to_le_bytes());
    extended_from_cpu(cpu, layout, area)
}

fn extended_from_cpu(
    cpu: &CpuState,
    layout: &XsaveLayout,
    area: &mut [u8],
) -> Result<(), &'static str> {
    let have = |there, name| if there { Ok(()) } else { Err(name) };
    have(layout.put_quads(area, AVX, cpu.ymm_high.iter().flat_map(|register| register.0)), "AVX")?;
    let mpx = cpu.more.mpx.unwrap_or_default();
    let bounds = mpx.bounds.iter().flat_map(|bound| [bound.lower, bound.upper]);
    have(layout.put_quads(area, BNDREGS, bounds), "MPX")?;
    have(layout.put_quads(area, BNDCSR, [mpx.cfgu, mpx.sts].into_iter()), "MPX")?;
    let avx512 = cpu.more.avx512.unwrap_or_default();
    have(layout.put_quads(area, OPMASK, avx512.opmask.into_iter()), "AVX-512")?;
    let high = avx512.zmm_high.iter().flat_map(|register| register.0);
    have(layout.put_quads(area, ZMM_HIGH, high), "AVX-512")?;
    let upper = avx512.zmm_upper.iter().flat_map(|register| register.0);
    have(layout.put_quads(area, ZMM_UPPER, upper), "AVX-512")?;
    let pkru = cpu.more.pkru.unwrap_or_default();
    match layout.place(PKRU, 4, area.len()) {
        Some(place) => area[place].copy_from_slice(&pkru.to_le_bytes()),
        None => have(pkru == 0, "protection keys")?,
    }
    if let Some(amx) = &cpu.more.amx {
        let places =
            (layout.place(TILECFG, 64, area.len()), layout.place(TILEDATA, 8192, area.len()));
        match places {
            (Some(config), Some(data)) => {
                area[config].copy_from_slice(&amx.config);
                area[data].copy_from_slice(&amx.data[..]);
            }
            _ => have(*amx == Amx::default(), "AMX")?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout() -> XsaveLayout {
        let places = [
            (2, 576, 256),
            (3, 960, 64),
            (4, 1024, 64),
            (5, 1088, 64),
            (6, 1152, 512),
            (7, 1664, 1024),
        ];
        let entries: Vec<_> = places
            .iter()
            .chain(&[(9, 2688, 8)])
            .map(|&(index, ebx, eax)| kvm_cpuid_entry2 {
                function: 0xd,
                index,
                eax,
                ebx,
                ..Default::default()
            })
            .collect();
        XsaveLayout::from_cpuid(&entries)
    }

    #[test]
    fn every_register_comes_back() {
        let mut area: Vec<u8> = (0..4096u32).map(|i| (i * 7 + i / 256) as u8).collect();
        area[XSTATE_BV..XSTATE_BV + 8].copy_from_slice(&0x2e7u64.to_le_bytes());
        let mut cpu = CpuState::default();
        to_cpu(&area, &layout(), &mut cpu);
        let mut back = vec![0; 4096];
        from_cpu(&cpu, &layout(), &mut back).unwrap();
        let mut again = CpuState::default();
        to_cpu(&back, &layout(), &mut again);
        assert_eq!(again, cpu);
        assert_eq!(cpu.more.pkru, Some(u32_at(&area, 2688)));
        assert_eq!(back[576..832], area[576..832]);
        assert_eq!(back[1088..2688], area[1088..2688]);
    }

    #[test]
    fn registers_the_host_lacks_are_named() {
        let mut cpu = CpuState::default();
        let none = XsaveLayout::default();
        assert_eq!(from_cpu(&cpu, &none, &mut [0; 4096]), Ok(()));
        cpu.more.pkru = Some(1);
        assert_eq!(from_cpu(&cpu, &none, &mut [0; 4096]), Err("protection keys"));
        cpu.ymm_high[3].0[1] = 1;
        assert_eq!(from_cpu(&cpu, &none, &mut [0; 4096]), Err("AVX"));
    }
}
