//! Small guests in 32-bit code, and machines that run them.
//!
//! Unsafe because the code of the guests is found through symbols of the assembler.
#![allow(unsafe_code)]

use godwit::config::{Boot, Config, Kernel, Memory, MemoryBackend};
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
    ($name:ident, $start:ident, $end:ident, $($line:literal),+ $(,)?) => {
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
        pub fn $name() -> Vec<u8> {
            let (start, end) = (&raw const $start, &raw const $end);
            // SAFETY: both labels are in one section, with nothing but the code between them.
            unsafe { std::slice::from_raw_parts(start, end.offset_from(start) as usize) }.to_vec()
        }
    };
}

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

// Asks the entropy device for bytes for ever, counts at 0x210000 how often they came, and says `.`
// each eighth time; says `i` once if its interrupt (IRQ 12) had reached the second PIC by then, and
// `!` if what came is all zeros.
guest!(
    entropy,
    GUEST_ENTROPY,
    GUEST_ENTROPY_END,
    "mov esp, 0x300000",
    "call 30f",
    "xor edi, edi",
    "1: call 40f",
    "inc edi",
    "mov dword ptr [0x210000], edi",
    "cmp edi, 1",
    "jne 2f",
    "mov al, 0x0a",
    "out 0xa0, al",
    "in al, 0xa0",
    "test al, 0x10",
    "jz 2f",
    "mov al, 'i'",
    "call 60f",
    "2: test edi, 7",
    "jnz 1b",
    "mov al, '.'",
    "call 60f",
    "jmp 1b",
    // Queue 0 of the device on the last transport: descriptors at 0x200000, avail ring behind them,
    // used ring at 0x201000. Legacy or modern, as the transport is.
    "30: mov esi, 0xfeb00e00",
    "mov dword ptr [0x200080], 0",
    "mov dword ptr [0x201000], 0",
    "xor ebx, ebx",
    "mov dword ptr [esi + 0x70], 0",
    "mov dword ptr [esi + 0x70], 3",
    "mov dword ptr [esi + 0x30], 0",
    "cmp dword ptr [esi + 4], 1",
    "jne 31f",
    "mov dword ptr [esi + 0x28], 4096",
    "mov dword ptr [esi + 0x20], 0",
    "mov dword ptr [esi + 0x38], 8",
    "mov dword ptr [esi + 0x40], 0x200",
    "mov dword ptr [esi + 0x70], 7",
    "ret",
    "31: mov dword ptr [esi + 0x24], 1",
    "mov dword ptr [esi + 0x20], 1",
    "mov dword ptr [esi + 0x24], 0",
    "mov dword ptr [esi + 0x20], 0",
    "mov dword ptr [esi + 0x70], 11",
    "mov dword ptr [esi + 0x38], 8",
    "mov dword ptr [esi + 0x80], 0x200000",
    "mov dword ptr [esi + 0x90], 0x200080",
    "mov dword ptr [esi + 0xa0], 0x201000",
    "mov dword ptr [esi + 0x44], 1",
    "mov dword ptr [esi + 0x70], 15",
    "ret",
    // Asks for 8 bytes to 0x202000, and waits for them and for the interrupt status.
    "40: mov dword ptr [0x200000], 0x202000",
    "mov dword ptr [0x200004], 0",
    "mov dword ptr [0x200008], 8",
    "mov dword ptr [0x20000c], 2",
    "mov dword ptr [0x202000], 0",
    "mov dword ptr [0x202004], 0",
    "inc ebx",
    "mov word ptr [0x200082], bx",
    "mov dword ptr [esi + 0x50], 0",
    "41: pause",
    "cmp word ptr [0x201002], bx",
    "jne 41b",
    "42: mov eax, dword ptr [esi + 0x60]",
    "test eax, 1",
    "jz 42b",
    "mov dword ptr [esi + 0x64], eax",
    "mov eax, dword ptr [0x202000]",
    "or eax, dword ptr [0x202004]",
    "jz 50f",
    "ret",
    // Says what is in AL.
    "60: mov dx, 0x3f8",
    "out dx, al",
    "ret",
    "50: mov al, '!'",
    "call 60b",
    "51: hlt",
    "jmp 51b",
);

// Breaks the entropy device's ring again and again: a loop, memory that is not there, a table that
// is none, an avail index that is too far. Says `h` each time the (modern) device asks for a reset,
// resets it, and has bytes from it again, else `!`; at last `k`.
guest!(
    breaker,
    GUEST_BREAKER,
    GUEST_BREAKER_END,
    "mov esp, 0x300000",
    "xor ebp, ebp",
    "1: call 30f",
    "call 40f",
    "mov dword ptr [0x200008], 8",
    "cmp ebp, 0",
    "jne 2f",
    "mov dword ptr [0x20000c], 3",
    "2: cmp ebp, 1",
    "jne 3f",
    "mov dword ptr [0x200004], 0x100",
    "3: cmp ebp, 2",
    "jne 4f",
    "mov dword ptr [0x20000c], 4",
    "4: cmp ebp, 3",
    "jne 5f",
    "add ebx, 1000",
    "5: inc ebx",
    "mov word ptr [0x200082], bx",
    "mov dword ptr [esi + 0x50], 0",
    "mov ecx, 100000",
    "6: pause",
    "dec ecx",
    "jz 50f",
    "test dword ptr [esi + 0x70], 0x40",
    "jz 6b",
    "mov al, 'h'",
    "call 60f",
    "inc ebp",
    "cmp ebp, 4",
    "jne 1b",
    "call 30f",
    "call 40f",
    "mov al, 'k'",
    "call 60f",
    "jmp 51f",
    // Queue 0 of the device on the last transport: descriptors at 0x200000, avail ring behind them,
    // used ring at 0x201000. Legacy or modern, as the transport is.
    "30: mov esi, 0xfeb00e00",
    "mov dword ptr [0x200080], 0",
    "mov dword ptr [0x201000], 0",
    "xor ebx, ebx",
    "mov dword ptr [esi + 0x70], 0",
    "mov dword ptr [esi + 0x70], 3",
    "mov dword ptr [esi + 0x30], 0",
    "cmp dword ptr [esi + 4], 1",
    "jne 31f",
    "mov dword ptr [esi + 0x28], 4096",
    "mov dword ptr [esi + 0x20], 0",
    "mov dword ptr [esi + 0x38], 8",
    "mov dword ptr [esi + 0x40], 0x200",
    "mov dword ptr [esi + 0x70], 7",
    "ret",
    "31: mov dword ptr [esi + 0x24], 1",
    "mov dword ptr [esi + 0x20], 1",
    "mov dword ptr [esi + 0x24], 0",
    "mov dword ptr [esi + 0x20], 0",
    "mov dword ptr [esi + 0x70], 11",
    "mov dword ptr [esi + 0x38], 8",
    "mov dword ptr [esi + 0x80], 0x200000",
    "mov dword ptr [esi + 0x90], 0x200080",
    "mov dword ptr [esi + 0xa0], 0x201000",
    "mov dword ptr [esi + 0x44], 1",
    "mov dword ptr [esi + 0x70], 15",
    "ret",
    // Asks for 8 bytes to 0x202000, and waits for them and for the interrupt status.
    "40: mov dword ptr [0x200000], 0x202000",
    "mov dword ptr [0x200004], 0",
    "mov dword ptr [0x200008], 8",
    "mov dword ptr [0x20000c], 2",
    "mov dword ptr [0x202000], 0",
    "mov dword ptr [0x202004], 0",
    "inc ebx",
    "mov word ptr [0x200082], bx",
    "mov dword ptr [esi + 0x50], 0",
    "41: pause",
    "cmp word ptr [0x201002], bx",
    "jne 41b",
    "42: mov eax, dword ptr [esi + 0x60]",
    "test eax, 1",
    "jz 42b",
    "mov dword ptr [esi + 0x64], eax",
    "mov eax, dword ptr [0x202000]",
    "or eax, dword ptr [0x202004]",
    "jz 50f",
    "ret",
    // Says what is in AL.
    "60: mov dx, 0x3f8",
    "out dx, al",
    "ret",
    "50: mov al, '!'",
    "call 60b",
    "51: hlt",
    "jmp 51b",
);

// Reads from port 0 of the virtio console on the last transport and says it back, each byte with bit
// 5 changed. Buffers of 64 bytes: input at 0x20c000, output at 0x20d000. Queue 0 is at 0x200000, queue
// 1 at 0x204000.
guest!(
    talker,
    GUEST_TALKER,
    GUEST_TALKER_END,
    "mov esp, 0x300000",
    "mov esi, 0xfeb00e00",
    "mov dword ptr [esi + 0x70], 0",
    "mov dword ptr [esi + 0x70], 3",
    "cmp dword ptr [esi + 4], 1",
    "jne 1f",
    "mov dword ptr [esi + 0x28], 4096",
    "mov dword ptr [esi + 0x20], 0",
    "jmp 2f",
    "1: mov dword ptr [esi + 0x24], 1",
    "mov dword ptr [esi + 0x20], 1",
    "mov dword ptr [esi + 0x24], 0",
    "mov dword ptr [esi + 0x20], 0",
    "mov dword ptr [esi + 0x70], 11",
    "2: xor eax, eax",
    "mov edi, 0x200000",
    "call 20f",
    "mov eax, 1",
    "mov edi, 0x204000",
    "call 20f",
    "mov eax, dword ptr [esi + 0x70]",
    "or eax, 4",
    "mov dword ptr [esi + 0x70], eax",
    // The one descriptor of each.
    "mov dword ptr [0x200000], 0x20c000",
    "mov dword ptr [0x200008], 64",
    "mov dword ptr [0x20000c], 2",
    "mov dword ptr [0x204000], 0x20d000",
    "mov dword ptr [0x20400c], 0",
    "xor ebx, ebx",
    "3: inc ebx",
    "mov word ptr [0x200082], bx",
    "mov dword ptr [esi + 0x50], 0",
    "4: pause",
    "cmp word ptr [0x201002], bx",
    "jne 4b",
    // The length stands in the used ring's entry.
    "lea eax, [ebx - 1]",
    "and eax, 7",
    "mov ecx, dword ptr [0x201008 + eax * 8]",
    "mov dword ptr [0x204008], ecx",
    "test ecx, ecx",
    "jz 3b",
    "5: dec ecx",
    "mov al, byte ptr [0x20c000 + ecx]",
    "xor al, 0x20",
    "mov byte ptr [0x20d000 + ecx], al",
    "test ecx, ecx",
    "jnz 5b",
    "inc ebp",
    "mov word ptr [0x204082], bp",
    "mov dword ptr [esi + 0x50], 1",
    "6: pause",
    "cmp word ptr [0x205002], bp",
    "jne 6b",
    "jmp 3b",
    // Gives queue EAX the ring at EDI.
    "20: mov dword ptr [esi + 0x30], eax",
    "mov dword ptr [esi + 0x38], 8",
    "xor ebp, ebp",
    "cmp dword ptr [esi + 4], 1",
    "jne 21f",
    "shr edi, 12",
    "mov dword ptr [esi + 0x40], edi",
    "ret",
    "21: mov dword ptr [esi + 0x80], edi",
    "add edi, 0x80",
    "mov dword ptr [esi + 0x90], edi",
    "add edi, 0xf80",
    "mov dword ptr [esi + 0xa0], edi",
    "mov dword ptr [esi + 0x44], 1",
    "ret",
);

/// An ELF file with a PVH note that loads `code` at 1 MiB.
pub fn elf(code: &[u8]) -> Vec<u8> {
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
pub fn write(path: &std::path::Path, code: &[u8]) {
    std::fs::write(path, elf(code)).unwrap();
}

/// A machine with `mib` MiB of RAM and `cpus` vCPUs that starts `code`.
pub fn config(dir: &tempfile::TempDir, code: &[u8], mib: u64, cpus: u8) -> Config {
    let path: PathBuf = dir.path().join("kernel");
    write(&path, code);
    let backend = MemoryBackend::Memfd { share: true, seal: false, huge_pages: None };
    let block = "microvm.ram".into();
    let memory =
        Memory { bytes: mib << 20, block, backend, prealloc: false, merge: false, dump: true };
    Config {
        machine: Default::default(),
        devices: vec![],
        entropy: vec![],
        lines: vec![],
        kvm: Default::default(),
        cpu: godwit::config::Cpu::cores(cpus),
        memory,
        boot: Some(Boot { kernel: Kernel::File(path), initrd: None, cmdline: String::new() }),
        chardevs: vec![],
        serial: Some("serial0".into()),
        monitors: vec![],
        incoming: None,
        start_paused: false,
        actions: Default::default(),
        identity: Default::default(),
        pidfile: None,
        daemonize: false,
        notices: vec![],
    }
}

/// A machine, and what came out of it.
pub struct Guest {
    pub machine: Arc<Machine>,
    pub said: Said,
    pub events: Arc<Mutex<Vec<Event>>>,
}

/// What a guest said on its serial port.
#[derive(Clone, Default)]
pub struct Said(Arc<Mutex<Vec<u8>>>);

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
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap()).into_owned()
    }

    pub fn wait_for(&self, text: &str) {
        wait(
            || self.text().contains(text),
            || format!("{:?} does not contain {text:?}", self.text()),
        );
    }
}

impl Guest {
    pub fn build(config: &Config) -> Guest {
        let (said, events) = (Said::default(), Arc::new(Mutex::new(Vec::new())));
        let record = events.clone();
        let outside = Outside {
            serial: Some(Box::new(said.clone())),
            lines: Default::default(),
            events: Box::new(move |event| record.lock().unwrap().push(event)),
        };
        Guest { machine: Machine::build(config, outside).unwrap(), said, events }
    }

    /// What KVM holds of the processors, of a guest that stands still.
    pub fn vcpus(&self) -> Vec<VcpuState> {
        self.machine.device::<Processors>().unwrap().states().unwrap()
    }

    pub fn serial(&self) -> &Serial {
        self.machine.device().unwrap()
    }

    pub fn word(&self, gpa: u64) -> u32 {
        let mut word = [0; 4];
        self.machine.ram().read(gpa, &mut word).unwrap();
        u32::from_le_bytes(word)
    }

    pub fn events(&self) -> Vec<Event> {
        self.events.lock().unwrap().clone()
    }
}

/// Waits up to 20 s for `done`.
pub fn wait(done: impl Fn() -> bool, else_say: impl Fn() -> String) {
    let end = Instant::now() + Duration::from_secs(20);
    while !done() {
        assert!(Instant::now() < end, "{}", else_say());
        std::thread::sleep(Duration::from_millis(1));
    }
}
