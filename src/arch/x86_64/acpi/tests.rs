use super::*;

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
}

fn quad(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

/// Follows every pointer from the root, as a kernel does, and checks every sum.
#[test]
fn every_table_is_found_from_the_root_and_sums_up_to_zero() {
    const AT: u64 = 0x9_e000;
    for cpus in [1, 2, 254] {
        for second_ioapic in [false, true] {
            let oem = Oem { id: "GODWIT".into(), table_id: "short".into() };
            let files = Tables::new(&oem, &Cpu::cores(cpus), second_ioapic, vec![0xa3; 3]);
            let (tables, rsdp) = files.place(AT);
            assert_eq!((sum(&rsdp[..20]), sum(&rsdp), &rsdp[9..15]), (0, 0, &b"GODWIT"[..]));
            let table = |address: u64| {
                let from = (address - AT) as usize;
                let bytes = u32::from_le_bytes(tables[from + 4..from + 8].try_into().unwrap());
                let table = &tables[from..][..bytes as usize];
                assert_eq!(sum(table), 0);
                assert_eq!(&table[10..24], b"GODWITshort\0\0\0");
                table
            };
            let xsdt = table(quad(&rsdp, 24));
            assert_eq!(&xsdt[..4], b"XSDT");
            let (fadt, madt) = (table(quad(xsdt, 36)), table(quad(xsdt, 44)));
            let dsdt = table(quad(fadt, 140));
            assert_eq!(
                (&fadt[..4], &madt[..4], &dsdt[..4]),
                (&b"FACP"[..], &b"APIC"[..], &b"DSDT"[..])
            );
            assert_eq!(fadt[40..44], fadt[140..144]);
            let ioapics = if second_ioapic { 2 } else { 1 };
            assert_eq!(madt.len(), 44 + usize::from(cpus) * 8 + ioapics * 12 + 6);
            assert!(dsdt.windows(3).any(|bytes| bytes == [0xa3; 3]));
        }
    }
}

#[test]
fn processors_that_could_be_are_named_as_absent() {
    let topology = Topology { sockets: 1, cores: 3, threads: 1 };
    let cpus = Cpu::of(2, topology);
    let madt = madt(&Oem::default(), &cpus, false);
    let there: Vec<_> = madt.as_slice()[44..68].chunks(8).map(|cpu| (cpu[3], cpu[4])).collect();
    assert_eq!(there, [(0, 1), (1, 1), (2, 0)]);
}

#[test]
fn the_script_is_made_of_whole_commands() {
    let files = Tables::new(&Oem::default(), &Cpu::cores(1), true, Vec::new());
    let script = files.script();
    assert_eq!(script.len(), 13 * 128);
    assert_eq!(&script[4..18], b"etc/acpi/rsdp\0");
    assert_eq!(script[128], 1);
}
