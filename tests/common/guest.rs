//! Small guests in 32-bit code, and machines that run them.
//!
//! Unsafe because the code of the guests is found through symbols of the assembler.
#![allow(unsafe_code)]

use godwit::config::{Boot, Config, Kernel, MachineOptions, Memory, MemoryBackend};
use godwit::devices::processors::Processors;
use godwit::devices::serial::Serial;
use godwit::kvm::state::VcpuState;
use godwit::machine::{Event, Machine, Outside};
use std::io::Write;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Where a guest's code is loaded and entered.
const LOAD: u64 = 0x10_0000;

/// A function that gives the machine code of a guest; the two labels around it are for the linker.
macro_rules! guest {
    ($name:ident, $start:ident, $end:ident, $($line:expr),+ $(,)?) => {
        std::arch::global_asm!(
            ".pushsection .rodata.guests,\"a\",@progbits",
            ".code32",
            concat!(".globl ", stringify!($start)),
            concat!(stringify!($start), ":"),
            $($line,)+
            concat!(".globl ", stringify!($end)),
            concat!(stringify!($end), ":"),
            ".code64",
            ".popsection",
        );
        unsafe extern "C" {
            static $start: u8;
            static $end: u8;
        }
        pub(crate) fn $name() -> Vec<u8> {
            let (start, end) = (&raw const $start, &raw const $end);
            // SAFETY: both labels are in one section, with nothing but the code between them.
            unsafe { std::slice::from_raw_parts(start, end.offset_from(start) as usize) }.to_vec()
        }
    };
}
pub(crate) use guest;

// Says `k` and halts for ever.
guest!(
    hello,
    GUEST_HELLO,
    GUEST_HELLO_END,
    "mov dx, 0x3f8",
    "mov al, 'k'",
    "out dx, al",
    "2: hlt",
    "jmp 2b"
);

// Counts in ECX and at 0x200000, and checks on each turn that an IN brought what the port holds
// (0x60 from the line status); says `!` and stops if not.
guest!(
    counter,
    GUEST_COUNTER,
    GUEST_COUNTER_END,
    "mov dx, 0x3f8",
    "mov al, 'k'",
    "out dx, al",
    "xor ecx, ecx",
    "mov dx, 0x3fd",
    "2: inc ecx",
    "mov dword ptr [0x200000], ecx",
    "mov al, 0",
    "in al, dx",
    "cmp al, 0x60",
    "je 2b",
    "mov dx, 0x3f8",
    "mov al, '!'",
    "out dx, al",
    "3: hlt",
    "jmp 3b",
);

// Says `k` as fast as it can.
guest!(
    chatter,
    GUEST_CHATTER,
    GUEST_CHATTER_END,
    "mov dx, 0x3f8",
    "mov al, 'k'",
    "2: out dx, al",
    "jmp 2b"
);

// Says back what it hears.
guest!(
    echo,
    GUEST_ECHO,
    GUEST_ECHO_END,
    "mov dx, 0x3fa",
    "mov al, 1",
    "out dx, al",
    "mov dx, 0x3f8",
    "mov al, 'k'",
    "out dx, al",
    "2: mov dx, 0x3fd",
    "in al, dx",
    "test al, 1",
    "jz 2b",
    "mov dx, 0x3f8",
    "in al, dx",
    "out dx, al",
    "jmp 2b",
);

// Counts its starts at 0x300000, says `r`, and faults three times over, until the fourth start,
// when it says `k`.
guest!(
    restarter,
    GUEST_RESTARTER,
    GUEST_RESTARTER_END,
    "inc dword ptr [0x300000]",
    "mov dx, 0x3f8",
    "cmp dword ptr [0x300000], 4",
    "jae 2f",
    "mov al, 'r'",
    "out dx, al",
    "lidt [0x300010]",
    "ud2",
    "2: mov al, 'k'",
    "out dx, al",
    "3: hlt",
    "jmp 3b",
);

// Says `k`, and when it hears something goes to real mode and jumps to f000:fff0, where kernels expect
// what starts the machine over.
guest!(
    real_mode,
    GUEST_REAL_MODE,
    GUEST_REAL_MODE_END,
    "mov esp, 0x300000",
    "mov dx, 0x3f8",
    "mov al, 'k'",
    "out dx, al",
    "mov dx, 0x3fd",
    "2: in al, dx",
    "test al, 1",
    "jz 2b",
    // A segment of 16-bit code, and one of data.
    "mov dword ptr [0x8100], 0",
    "mov dword ptr [0x8104], 0",
    "mov dword ptr [0x8108], 0x0000ffff",
    "mov dword ptr [0x810c], 0x00009a00",
    "mov dword ptr [0x8110], 0x0000ffff",
    "mov dword ptr [0x8114], 0x00009200",
    "mov word ptr [0x8120], 23",
    "mov dword ptr [0x8122], 0x8100",
    "lgdt [0x8120]",
    // At 0x8000: mov eax, cr0; and al, 0xfe; mov cr0, eax; jmp f000:fff0.
    "mov dword ptr [0x8000], 0x24c0200f",
    "mov dword ptr [0x8004], 0xc0220ffe",
    "mov dword ptr [0x8008], 0x00fff0ea",
    "mov byte ptr [0x800c], 0xf0",
    "mov eax, 16",
    "mov ds, ax",
    "mov es, ax",
    "mov ss, ax",
    "push 8",
    "push 0x8000",
    "retf",
);

// Writes a double word to port 0xf4, a byte to 0x501, and then says `!`.
guest!(
    exiter,
    GUEST_EXITER,
    GUEST_EXITER_END,
    "mov dx, 0xf4",
    "mov eax, 0x2a",
    "out dx, eax",
    "mov dx, 0x501",
    "mov al, 0x15",
    "out dx, al",
    "mov dx, 0x3f8",
    "mov al, '!'",
    "out dx, al",
    "2: hlt",
    "jmp 2b",
);

// Writes a turn number to each of the 1024 pages from 4 MiB on, in turn, saying `.` after each
// turn.
guest!(
    writer,
    GUEST_WRITER,
    GUEST_WRITER_END,
    "mov ecx, 0",
    "2: inc ecx",
    "mov edi, 0x400000",
    "3: mov dword ptr [edi], ecx",
    "add edi, 4096",
    "cmp edi, 0x800000",
    "jb 3b",
    "mov dx, 0x3f8",
    "mov al, '.'",
    "out dx, al",
    "jmp 2b",
);

// Looks for `etc/vmcoreinfo` in fw_cfg and says where its note is: at 0x230000, 64 bytes, with a
// release and a negative phys_base in it. Says `k` if the write was taken, else `!`, and halts.
guest!(
    publisher,
    GUEST_PUBLISHER,
    GUEST_PUBLISHER_END,
    // The directory of fw_cfg, at most 32 files, to 0x200000.
    "mov dx, 0x510",
    "mov ax, 0x19",
    "out dx, ax",
    "mov dx, 0x511",
    "mov edi, 0x200000",
    "mov ecx, 4 + 32 * 64",
    "2: in al, dx",
    "mov byte ptr [edi], al",
    "inc edi",
    "dec ecx",
    "jnz 2b",
    "mov edi, 0x200004",
    // "etc/", "vmco", "rein"
    "3: cmp dword ptr [edi + 8], 0x2f637465",
    "jne 4f",
    "cmp dword ptr [edi + 12], 0x6f636d76",
    "jne 4f",
    "cmp dword ptr [edi + 16], 0x6e696572",
    "je 5f",
    "4: add edi, 64",
    "cmp edi, 0x200804",
    "jb 3b",
    "6: mov al, '!'",
    "jmp 7f",
    // The note: name 11, descriptor 40, type 0, "VMCOREINFO", text.
    "5: mov ebx, 0x230000",
    "mov dword ptr [ebx], 11",
    "mov dword ptr [ebx + 4], 40",
    "mov dword ptr [ebx + 8], 0",
    "mov dword ptr [ebx + 12], 0x4f434d56",
    "mov dword ptr [ebx + 16], 0x4e494552",
    "mov dword ptr [ebx + 20], 0x4f46",
    // "OSRELEASE=9.9\n\n\n"
    "mov dword ptr [ebx + 24], 0x4552534f",
    "mov dword ptr [ebx + 28], 0x5341454c",
    "mov dword ptr [ebx + 32], 0x2e393d45",
    "mov dword ptr [ebx + 36], 0x0a0a0a39",
    // "NUMBER(phys_base)=-4096\n"
    "mov dword ptr [ebx + 40], 0x424d554e",
    "mov dword ptr [ebx + 44], 0x70285245",
    "mov dword ptr [ebx + 48], 0x5f737968",
    "mov dword ptr [ebx + 52], 0x65736162",
    "mov dword ptr [ebx + 56], 0x342d3d29",
    "mov dword ptr [ebx + 60], 0x0a363930",
    // What is written: both formats 1, 64 bytes, the address.
    "mov ebx, 0x220000",
    "mov dword ptr [ebx], 0x10001",
    "mov dword ptr [ebx + 4], 64",
    "mov dword ptr [ebx + 8], 0x230000",
    "mov dword ptr [ebx + 12], 0",
    // The request, big-endian: the file's key, select and write; 16 bytes; 0x220000.
    "mov ax, word ptr [edi + 4]",
    "mov ebx, 0x210000",
    "mov word ptr [ebx], ax",
    "mov word ptr [ebx + 2], 0x1800",
    "mov dword ptr [ebx + 4], 0x10000000",
    "mov dword ptr [ebx + 8], 0",
    "mov dword ptr [ebx + 12], 0x2200",
    "mov dx, 0x514",
    "xor eax, eax",
    "out dx, eax",
    "mov dx, 0x518",
    "mov eax, 0x2100",
    "out dx, eax",
    "cmp dword ptr [ebx], 0",
    "jne 6b",
    "mov al, 'k'",
    "7: mov dx, 0x3f8",
    "out dx, al",
    "8: hlt",
    "jmp 8b",
);

/// An ELF file with a PVH note that loads `code` at 1 MiB.
pub(crate) fn elf(code: &[u8]) -> Vec<u8> {
    const HEADERS: u64 = 64 + 2 * 56;
    let note_at = HEADERS;
    let mut note = Vec::new();
    note.extend([4u32, 4, 18].iter().flat_map(|w| w.to_le_bytes()));
    note.extend(b"Xen\0");
    note.extend((LOAD as u32).to_le_bytes());
    let code_at = 0x1000;
    let mut out = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    out.extend([2u16, 62].iter().flat_map(|w| w.to_le_bytes()));
    out.extend(1u32.to_le_bytes());
    out.extend([LOAD, 64, 0].iter().flat_map(|q| q.to_le_bytes()));
    out.extend(0u32.to_le_bytes());
    out.extend([64u16, 56, 2, 0, 0, 0].iter().flat_map(|w| w.to_le_bytes()));
    for (kind, at, bytes) in [(1u32, code_at, code.len() as u64), (4, note_at, note.len() as u64)] {
        out.extend([kind, 7].iter().flat_map(|w| w.to_le_bytes()));
        out.extend([at, LOAD, LOAD, bytes, bytes, 4].iter().flat_map(|q| q.to_le_bytes()));
    }
    out.extend(note);
    out.resize(code_at as usize, 0);
    out.extend(code);
    out
}

/// A kernel file of `code`.
pub(crate) fn write(path: &std::path::Path, code: &[u8]) {
    std::fs::write(path, elf(code)).unwrap();
}

/// A machine with `mib` MiB of RAM and `cpus` vCPUs that starts `code`.
pub(crate) fn config(dir: &tempfile::TempDir, code: &[u8], mib: u64, cpus: u8) -> Config {
    let path: PathBuf = dir.path().join("kernel");
    write(&path, code);
    let backend = MemoryBackend::Memfd { share: true, seal: false, huge_pages: None };
    let block = "microvm.ram".into();
    let memory =
        Memory { bytes: mib << 20, block, backend, prealloc: false, merge: false, dump: true };
    let mut machine = MachineOptions::default();
    machine.switches.set("acpi", false);
    Config {
        machine,
        devices: vec![],
        entropy: vec![],
        io_threads: vec![],
        images: vec![],
        lines: vec![],
        netdevs: vec![],
        kvm: Default::default(),
        cpu: godwit::config::Cpu::cores(cpus),
        memory,
        boot: Some(Boot { kernel: Kernel::File(path), initrd: None, cmdline: String::new() }),
        chardevs: vec![],
        back_ends: Vec::new(),
        serial: Some("serial0".into()),
        monitors: vec![],
        escape: 1,
        incoming: None,
        restore: None,
        restored_since: None,
        start_paused: false,
        actions: Default::default(),
        identity: Default::default(),
        exit_with_parent: false,
        process: Default::default(),
        firmware_files: vec![],
        smbios: None,
        pidfile: None,
        daemonize: false,
        notices: vec![],
    }
}

/// A machine, and what came out of it.
pub(crate) struct Guest {
    pub machine: Arc<Machine>,
    pub said: Said,
    pub events: Arc<Mutex<Vec<Event>>>,
}

/// What a guest said on its serial port.
#[derive(Clone, Default)]
pub(crate) struct Said(Arc<Mutex<Vec<u8>>>);

impl Write for Said {
    fn write(&mut self, data: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend(data);
        Ok(data.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Said {
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap()).into_owned()
    }

    pub(crate) fn wait_for(&self, text: &str) {
        wait(
            || self.text().contains(text),
            || format!("{:?} does not contain {text:?}", self.text()),
        );
    }
}

impl Guest {
    pub(crate) fn build(config: &Config) -> Guest {
        let (said, events) = (Said::default(), Arc::new(Mutex::new(Vec::new())));
        let record = events.clone();
        let outside = Outside {
            serial: Some(Box::new(said.clone())),
            lines: Default::default(),
            networks: std::sync::Arc::new(godwit::devices::NoNetworks),
            events: Box::new(move |event| record.lock().unwrap().push(event)),
        };
        Guest { machine: Machine::build(config, outside).unwrap(), said, events }
    }

    /// What KVM holds of the processors, of a guest that stands still.
    pub(crate) fn vcpus(&self) -> Vec<VcpuState> {
        self.machine.device::<Processors>().unwrap().states().unwrap()
    }

    pub(crate) fn serial(&self) -> &Serial {
        self.machine.device().unwrap()
    }

    pub(crate) fn word(&self, gpa: u64) -> u32 {
        let mut word = [0; 4];
        self.machine.ram().read(gpa, &mut word).unwrap();
        u32::from_le_bytes(word)
    }

    pub(crate) fn events(&self) -> Vec<Event> {
        self.events.lock().unwrap().clone()
    }
}

/// Waits up to 20 s for `done`.
pub(crate) fn wait(done: impl Fn() -> bool, else_say: impl Fn() -> String) {
    let end = Instant::now() + Duration::from_secs(20);
    while !done() {
        assert!(Instant::now() < end, "{}", else_say());
        std::thread::sleep(Duration::from_millis(1));
    }
}
