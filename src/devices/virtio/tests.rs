//! A driver against a transport: registers, rings well-formed and hostile, state.

mod compared;

use super::mmio::{DRIVER_OK, ISR_CONFIG, ISR_QUEUE, VERSION_1};
use super::*;
use crate::config::{Entropy, EntropySource, Memory, MemoryBackend};
use crate::devices::{Device as _, IrqLine, Loading};
use crate::kvm::state::ForeignTsc;
use crate::memory::{GuestRam, PageSet};
use proptest::prelude::*;
use std::io::Write;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Where the tests' ring lies, its parts a page apart, and its buffers.
const DESC: u64 = 0x1_0000;
const AVAIL: u64 = 0x1_1000;
const USED: u64 = 0x1_2000;
const BUFFER: u64 = 0x2_0000;
const SIZE: u32 = 8;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;
const NEEDS_RESET: u8 = 64;

#[derive(Clone, Default)]
struct Line(Arc<AtomicBool>);

impl IrqLine for Line {
    fn set(&self, high: bool) {
        self.0.store(high, Ordering::SeqCst);
    }
}

/// A transport with an rng, and its driver.
struct Rig {
    transport: Transport,
    ram: GuestRam,
    line: Line,
    legacy: bool,
    added: u16,
}

fn ram() -> GuestRam {
    let backend = MemoryBackend::Anonymous { share: false };
    let block = "microvm.ram".into();
    let memory =
        Memory { bytes: 4 << 20, block, backend, prealloc: false, merge: false, dump: true };
    GuestRam::new(&memory).unwrap()
}

fn rig(legacy: bool, wanted: &[(&str, &str)], source: Option<&Path>) -> Rig {
    let pairs: Vec<_> =
        wanted.iter().map(|(key, value)| (key.to_string(), Some(value.to_string()))).collect();
    let wanted = rng::KEYS.fill("-device", &pairs).unwrap();
    let sources =
        source.map(|path| Entropy { id: "r".into(), source: EntropySource::File(path.into()) });
    let model = Box::new(rng::open(&wanted, sources.as_slice()).unwrap());
    let registers = Registers::new(legacy, offered(legacy, EVENT_IDX | INDIRECT_DESC, 0));
    let (ram, line) = (ram(), Line::default());
    let irq = Box::new(line.clone());
    let transport = Transport::new(0xfeb0_0e00, registers, model, ram.clone(), irq).unwrap();
    transport.resume().unwrap();
    Rig { transport, ram, line, legacy, added: 0 }
}

impl Rig {
    fn read(&self, register: u64) -> u32 {
        let mut word = [0; 4];
        self.transport.read(register, &mut word);
        u32::from_le_bytes(word)
    }

    fn write(&self, register: u64, value: u32) {
        assert_eq!(self.transport.write(register, &value.to_le_bytes()), None);
    }

    fn status(&self) -> u8 {
        self.read(0x70) as u8
    }

    /// Agrees on `features`, gives the device queue 0 and is ready.
    fn start(&mut self, features: u64) {
        self.added = 0;
        for at in [self.avail(), self.used()] {
            self.ram.write(at, &[0; 256]).unwrap();
        }
        self.write(0x70, 0);
        self.write(0x70, 3);
        if self.legacy {
            self.write(0x28, 4096);
            self.write(0x20, features as u32);
            self.write(0x38, SIZE);
            // The avail ring follows the descriptors, the used ring lies a page on.
            self.write(0x40, (DESC >> 12) as u32);
        } else {
            let features = features | VERSION_1;
            for half in [1, 0] {
                self.write(0x24, half);
                self.write(0x20, (features >> (32 * half)) as u32);
            }
            self.write(0x70, 11);
            self.write(0x38, SIZE);
            for (register, address) in [(0x80, DESC), (0x90, AVAIL), (0xa0, USED)] {
                self.write(register, address as u32);
                self.write(register + 4, 0);
            }
            self.write(0x44, 1);
        }
        self.write(0x70, if self.legacy { 7 } else { 15 });
    }

    fn avail(&self) -> u64 {
        if self.legacy { DESC + 16 * u64::from(SIZE) } else { AVAIL }
    }

    fn used(&self) -> u64 {
        if self.legacy { DESC + 0x1000 } else { USED }
    }

    fn descriptor(&self, table: u64, index: u16, (gpa, bytes, flags, next): (u64, u32, u16, u16)) {
        let mut entry = gpa.to_le_bytes().to_vec();
        entry.extend(bytes.to_le_bytes());
        entry.extend(flags.to_le_bytes());
        entry.extend(next.to_le_bytes());
        self.ram.write(table + 16 * u64::from(index), &entry).unwrap();
    }

    /// Makes the chain that begins at `head` available, and tells the device.
    fn add(&mut self, head: u16) {
        let slot = u64::from(self.added % SIZE as u16);
        self.ram.write(self.avail() + 4 + 2 * slot, &head.to_le_bytes()).unwrap();
        self.added = self.added.wrapping_add(1);
        self.ram.write(self.avail() + 2, &self.added.to_le_bytes()).unwrap();
        self.write(0x50, 0);
    }

    fn half(&self, gpa: u64) -> u16 {
        let mut half = [0; 2];
        self.ram.read(gpa, &mut half).unwrap();
        u16::from_le_bytes(half)
    }

    fn word(&self, gpa: u64) -> u32 {
        u32::from(self.half(gpa)) | u32::from(self.half(gpa + 2)) << 16
    }

    fn used_index(&self) -> u16 {
        self.half(self.used() + 2)
    }

    fn wait(&self, what: &str, done: impl Fn() -> bool) {
        let end = Instant::now() + Duration::from_secs(20);
        while !done() {
            assert!(Instant::now() < end, "{what}: status {:#x}", self.status());
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Asks for `bytes` bytes and returns what came.
    fn ask(&mut self, bytes: u32) -> Vec<u8> {
        let before = self.used_index();
        self.ram.write(BUFFER, &vec![0; bytes as usize]).unwrap();
        self.descriptor(DESC, 0, (BUFFER, bytes, WRITE, 0));
        self.add(0);
        self.wait("an answer", || self.used_index() != before);
        let slot = self.used() + 4 + 8 * u64::from(before % SIZE as u16);
        assert_eq!(self.word(slot), 0, "the chain that was given");
        let mut came = vec![0; self.word(slot + 4) as usize];
        self.ram.read(BUFFER, &mut came).unwrap();
        came
    }

    fn save(&self) -> Sections {
        let mut sections = Sections::default();
        self.transport.quiesce().unwrap();
        self.transport.save(&mut sections).unwrap();
        sections
    }

    fn load(&self, sections: &Sections) -> Result<(), Error> {
        let report = Default::default();
        self.transport.load(&mut Loading { sections, foreign: ForeignTsc::Refuse, report })
    }
}

const NAME: &str = "virtio-mmio@00000000feb00e00/virtio-rng";

/// Read from QEMU 10.0.2 register by register.
#[test]
fn a_legacy_transport_reads_as_qemus() {
    let rig = rig(true, &[], None);
    let shows = |register, value| assert_eq!(rig.read(register), value, "register {register:#x}");
    for (register, value) in
        [(0, 0x7472_6976), (4, 1), (8, 4), (0xc, 0x554d_4551), (0x10, 0x3900_0000), (0x34, 1024)]
    {
        shows(register, value);
    }
    rig.write(0x14, 7);
    shows(0x10, 0);
    for (register, value) in [(0x44, 0), (0x60, 0), (0x70, 0), (0xfc, 0), (0xb0, !0), (0xb4, !0)] {
        shows(register, value);
    }
    shows(0x100, !0);
    let mut byte = [7];
    rig.transport.read(0x70, &mut byte);
    assert_eq!(byte, [0], "only whole words are registers");
    rig.write(0x28, 4096);
    rig.write(0x30, 5);
    shows(0x34, 0);
    rig.write(0x30, 0);
    for size in [3, 16, 0, 2000] {
        rig.write(0x38, size);
    }
    rig.write(0x3c, 256);
    rig.write(0x40, 0x100);
    shows(0x40, 0x100);
    rig.write(0x70, 7);
    shows(0x70, 7);
    rig.write(0x70, 0);
    shows(0x40, 0);
    rig.write(0x40, 0x100);
    shows(0x40, 0x100);
    rig.write(0x40, 0);
    shows(0x40, 0);
    shows(0x10, 0);
    rig.write(0x14, 0);
    shows(0x10, 0x3900_0000);
}

#[test]
fn a_modern_transport_reads_as_qemus_and_keeps_what_was_not_offered() {
    let rig = rig(false, &[], None);
    let shows = |register, value| assert_eq!(rig.read(register), value, "register {register:#x}");
    for (register, value) in [(4, 2), (8, 4), (0x10, 0x3000_0000), (0x34, 1024), (0x40, 0)] {
        shows(register, value);
    }
    rig.write(0x14, 1);
    shows(0x10, 0x101);
    rig.write(0x24, 1);
    rig.write(0x20, 1);
    rig.write(0x24, 0);
    rig.write(0x20, 0x3000_0000);
    rig.write(0x70, 11);
    shows(0x70, 11);
    rig.write(0x38, 16);
    rig.write(0x80, DESC as u32);
    rig.write(0x90, AVAIL as u32);
    rig.write(0xa0, USED as u32);
    shows(0x44, 0);
    rig.write(0x44, 1);
    shows(0x44, 1);
    shows(0x80, 0);
    rig.write(0xc0, 1);
    shows(0xc0, 0);
    shows(0x44, 0);
    // A packed ring (bit 34) was not offered, and is not had.
    rig.write(0x70, 0);
    rig.write(0x24, 1);
    rig.write(0x20, 5);
    rig.write(0x70, 11);
    shows(0x70, 3);
}

#[test]
fn entropy_comes_with_an_interrupt_that_falls_when_it_is_acknowledged() {
    for (legacy, features) in
        [(true, 0), (true, EVENT_IDX | INDIRECT_DESC), (false, 0), (false, EVENT_IDX)]
    {
        let mut rig = rig(legacy, &[], None);
        rig.start(features);
        for _ in 0..20 {
            let came = rig.ask(64);
            assert_eq!(came.len(), 64);
            assert!(came.iter().any(|byte| *byte != 0));
            rig.wait("the interrupt", || rig.line.0.load(Ordering::SeqCst));
            assert_eq!(rig.read(0x60), u32::from(ISR_QUEUE));
            // What the driver wants to be told of next, if it says so.
            let event = rig.avail() + 4 + 2 * u64::from(SIZE);
            rig.ram.write(event, &rig.used_index().to_le_bytes()).unwrap();
            rig.write(0x64, 1);
            assert!(!rig.line.0.load(Ordering::SeqCst));
        }
        let mut dirty = PageSet::new(rig.ram.main().pages());
        rig.ram.take_vmm_dirty(&mut dirty);
        for gpa in [BUFFER, rig.used()] {
            let page = rig.ram.main().offset(gpa).unwrap() / 4096;
            assert!(dirty.contains(page), "page of {gpa:#x} is dirty");
        }
    }
}

#[test]
fn who_wants_no_interrupt_gets_none() {
    let mut rig = rig(false, &[], None);
    rig.start(0);
    rig.ram.write(AVAIL, &[1, 0]).unwrap();
    rig.ask(8);
    rig.start(EVENT_IDX);
    // Told at the third.
    rig.ram.write(AVAIL + 4 + 2 * u64::from(SIZE), &2u16.to_le_bytes()).unwrap();
    for expected in [false, false, true] {
        assert!(!rig.line.0.load(Ordering::SeqCst));
        rig.ask(8);
        if expected {
            rig.wait("the interrupt", || rig.line.0.load(Ordering::SeqCst));
        }
    }
}

#[test]
fn long_and_indirect_chains_are_filled_from_the_beginning() {
    let mut rig = rig(false, &[], None);
    rig.start(INDIRECT_DESC);
    let table = 0x3_0000;
    for index in 0..3 {
        let flags = if index == 2 { WRITE } else { WRITE | NEXT };
        let gpa = BUFFER + 0x1000 * u64::from(index);
        rig.descriptor(table, index, (gpa, 16, flags, index + 1));
    }
    rig.descriptor(DESC, 5, (table, 48, INDIRECT, 0));
    rig.add(5);
    rig.wait("an answer", || rig.used_index() == 1);
    assert_eq!((rig.word(USED + 4), rig.word(USED + 8)), (5, 48));
    assert_ne!(rig.word(BUFFER + 0x2000 + 12), 0, "one in 2^32");
}

/// What a hostile driver puts into the ring; each breaks the device, and only it.
#[test]
fn a_hostile_driver_breaks_its_own_device_until_it_resets_it() {
    type Deed = (&'static str, fn(&mut Rig));
    let deeds: [Deed; 13] = [
        ("a loop", |rig| rig.descriptor(DESC, 0, (BUFFER, 8, WRITE | NEXT, 0))),
        ("a successor that is none", |rig| rig.descriptor(DESC, 0, (BUFFER, 8, WRITE | NEXT, 8))),
        ("no memory", |rig| rig.descriptor(DESC, 0, (1 << 40, 8, WRITE, 0))),
        ("beyond memory", |rig| rig.descriptor(DESC, 0, ((4 << 20) - 4, 8, WRITE, 0))),
        ("around the corner", |rig| rig.descriptor(DESC, 0, (u64::MAX - 3, 8, WRITE, 0))),
        ("an empty buffer", |rig| rig.descriptor(DESC, 0, (BUFFER, 0, WRITE, 0))),
        ("read behind write", |rig| {
            rig.descriptor(DESC, 0, (BUFFER, 8, WRITE | NEXT, 1));
            rig.descriptor(DESC, 1, (BUFFER, 8, 0, 0));
        }),
        ("a table that is none", |rig| rig.descriptor(DESC, 0, (1 << 40, 32, INDIRECT, 0))),
        ("part of a table", |rig| rig.descriptor(DESC, 0, (0x3_0000, 24, INDIRECT, 0))),
        ("an empty table", |rig| rig.descriptor(DESC, 0, (0x3_0000, 0, INDIRECT, 0))),
        ("a table in a table", |rig| {
            rig.descriptor(0x3_0000, 0, (0x3_0000, 16, INDIRECT, 0));
            rig.descriptor(DESC, 0, (0x3_0000, 16, INDIRECT, 0));
        }),
        ("a table without an end", |rig| {
            let count = 2000;
            for index in 0..count {
                rig.descriptor(0x3_0000, index, (BUFFER, 8, WRITE | NEXT, (index + 1) % count));
            }
            rig.descriptor(DESC, 0, (0x3_0000, 16 * u32::from(count), INDIRECT, 0));
        }),
        ("more than fits", |rig| rig.added = 99),
    ];
    let mut rig = rig(false, &[], None);
    for (what, deed) in deeds {
        rig.start(INDIRECT_DESC);
        deed(&mut rig);
        rig.add(0);
        rig.wait(what, || rig.status() & NEEDS_RESET != 0);
        assert_eq!(rig.used_index(), 0, "{what}");
        assert_eq!(rig.read(0x60) as u8, ISR_QUEUE | ISR_CONFIG, "{what}");
        assert!(rig.line.0.load(Ordering::SeqCst), "{what}");
        rig.write(0x70, 15);
        assert_ne!(rig.status() & NEEDS_RESET, 0, "{what}: only a reset helps");
        rig.start(0);
        assert_eq!(rig.ask(8).len(), 8, "{what}: and it does");
    }
}

#[test]
fn a_ring_that_is_none_breaks_the_device_when_it_is_taken_into_use() {
    for (register, value) in [(0x38, 3), (0x80, 0x1_0008), (0x84, 1), (0xa0, 0x3f_fff0)] {
        let rig = rig(false, &[], None);
        rig.write(0x24, 1);
        rig.write(0x20, 1);
        rig.write(0x70, 11);
        rig.write(0x38, SIZE);
        for (register, address) in [(0x80, DESC), (0x90, AVAIL), (0xa0, USED)] {
            rig.write(register, address as u32);
        }
        rig.write(register, value);
        rig.write(0x44, 1);
        rig.write(0x70, 15);
        assert_ne!(rig.status() & NEEDS_RESET, 0, "register {register:#x} {value:#x}");
    }
}

#[test]
fn nothing_is_done_while_the_machine_stands_still() {
    let mut rig = rig(false, &[], None);
    rig.start(0);
    rig.transport.quiesce().unwrap();
    rig.descriptor(DESC, 0, (BUFFER, 8, WRITE, 0));
    rig.add(0);
    // The worker had every reason to look.
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(rig.used_index(), 0);
    rig.transport.resume().unwrap();
    rig.wait("what was asked for meanwhile", || rig.used_index() == 1);
}

#[test]
fn a_source_that_has_nothing_is_waited_for() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("fifo");
    rustix::fs::mkfifoat(rustix::fs::CWD, &path, rustix::fs::Mode::RWXU).unwrap();
    // A FIFO without a writer is at its end; with one it is empty.
    let mut writer = std::fs::OpenOptions::new().read(true).write(true).open(&path).unwrap();
    let mut rig = rig(false, &[("rng", "r")], Some(&path));
    rig.start(0);
    rig.descriptor(DESC, 0, (BUFFER, 64, WRITE, 0));
    rig.add(0);
    assert_eq!(rig.used_index(), 0);
    writer.write_all(b"from outside").unwrap();
    rig.wait("what was written", || rig.used_index() == 1);
    assert_eq!(rig.word(USED + 8), 12);
    let mut came = [0; 12];
    rig.ram.read(BUFFER, &mut came).unwrap();
    assert_eq!(&came, b"from outside");
}

#[test]
fn no_more_is_given_in_a_period_than_was_allowed() {
    let mut rig = rig(false, &[("max-bytes", "10"), ("period", "3600000")], None);
    rig.start(0);
    assert_eq!(rig.ask(6).len(), 6);
    assert_eq!(rig.ask(64).len(), 4);
    rig.descriptor(DESC, 0, (BUFFER, 64, WRITE, 0));
    rig.add(0);
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(rig.used_index(), 2);
    // A period that ends.
    let mut rig = self::rig(false, &[("max-bytes", "10"), ("period", "5")], None);
    rig.start(0);
    assert_eq!((0..3).map(|_| rig.ask(64).len()).collect::<Vec<_>>(), [10, 10, 10]);
}

#[test]
fn the_state_moves_to_another_transport_which_goes_on_where_the_first_stopped() {
    for (legacy, features) in [(true, EVENT_IDX), (false, 0), (false, EVENT_IDX)] {
        let mut rig = rig(legacy, &[], None);
        rig.start(features);
        for _ in 0..11 {
            rig.ask(8);
        }
        rig.wait("the interrupt", || rig.line.0.load(Ordering::SeqCst));
        // One more, which is not looked at any more.
        rig.transport.quiesce().unwrap();
        rig.add(0);
        let sections = rig.save();
        let state: &VirtioState = sections.get(NAME, 0).unwrap();
        assert_eq!(state.queues[0].last_avail_idx, 11);
        assert_eq!(state.extra.is_some(), !legacy);
        let mut other = self::rig(legacy, &[], None);
        other.transport.quiesce().unwrap();
        let mut bytes = vec![0; 0x2_0000];
        rig.ram.read(DESC, &mut bytes).unwrap();
        other.ram.write(DESC, &bytes).unwrap();
        other.load(&sections).unwrap();
        assert!(other.line.0.load(Ordering::SeqCst), "the interrupt came along");
        assert_eq!(other.save(), sections);
        other.transport.resume().unwrap();
        other.wait("what waited", || other.used_index() == 12);
        other.added = 12;
        assert_eq!(other.ask(8).len(), 8);
        // A machine that starts over has nothing of it left.
        other.transport.reset().unwrap();
        assert_eq!((other.status(), other.line.0.load(Ordering::SeqCst)), (0, false));
    }
}

#[test]
fn a_state_that_does_not_fit_is_refused() {
    let mut rig = rig(false, &[], None);
    rig.start(0);
    rig.ask(8);
    let sections = rig.save();
    let fits: &VirtioState = sections.get(NAME, 0).unwrap();
    let refusal = |change: fn(&mut VirtioState)| {
        let mut state = fits.clone();
        change(&mut state);
        let mut sections = Sections::default();
        sections.push(NAME, 0, state);
        rig.load(&sections).unwrap_err().to_string()
    };
    assert!(rig.load(&sections).is_ok());
    for (change, word) in [
        ((|s| s.guest_features = Some(1 << 34)) as fn(&mut VirtioState), "not offered"),
        (|s| s.virtqueues = None, "force-legacy=on"),
        (|s| s.queues = vec![s.queues[0]; 2], "2 queues"),
        (|s| s.queues[0].last_avail_idx = 100, "cannot be"),
        (|s| s.queues[0].size = 3, "no queue size"),
        (|s| s.virtqueues.as_mut().unwrap().0[0].used = 1 << 40, "not in memory"),
        (|s| s.packed = Some(Default::default()), "packed"),
    ] {
        let text = refusal(change);
        assert!(text.contains(word) && text.contains(NAME), "{text}");
    }
    assert_eq!(rig.status() & DRIVER_OK, DRIVER_OK);
}

/// What a driver without sense does, a step at a time.
#[derive(Clone, Debug)]
enum Step {
    Register(u64, u32),
    Memory(u64, [u8; 16]),
    Kick,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    // Values that mean something to some register, or nothing to any.
    let value = prop_oneof![0u32..16, Just(0x10), Just(0x101), Just(!0), any::<u32>()];
    let register = prop_oneof![0u64..0x120, (0u64..0x40).prop_map(|index| 4 * index)];
    // Descriptors and rings, small numbers and places in memory among them.
    let word = prop_oneof![0u32..9, Just(0x1_0000), Just(0x2_0000), Just(0x3f_fffc), any::<u32>()];
    let words = [word.clone(), word.clone(), word.clone(), word];
    let bytes = words.prop_map(|words| {
        let mut bytes = words.into_iter().flat_map(u32::to_le_bytes);
        std::array::from_fn(|_| bytes.next().unwrap())
    });
    let place = prop_oneof![0u64..0x110, 0x1000u64..0x1020, 0x2000u64..0x2050];
    prop::collection::vec(
        prop_oneof![
            (register, value).prop_map(|(register, value)| Step::Register(register, value)),
            (place, bytes).prop_map(|(place, bytes)| Step::Memory(DESC + (place & !1), bytes)),
            Just(Step::Kick),
        ],
        0..60,
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_a_driver_does_a_reset_makes_it_good(
        legacy: bool,
        features in prop_oneof![Just(0), Just(INDIRECT_DESC), Just(INDIRECT_DESC | EVENT_IDX)],
        steps in steps(),
    ) {
        let mut rig = rig(legacy, &[], None);
        rig.start(features);
        for step in steps {
            match step {
                Step::Register(register, value) => rig.write(register, value),
                Step::Memory(gpa, bytes) => rig.ram.write(gpa, &bytes).unwrap(),
                Step::Kick => rig.write(0x50, 0),
            }
        }
        rig.read(0x70);
        rig.save();
        rig.transport.resume().unwrap();
        // Whatever queue was selected.
        rig.write(0x30, 0);
        rig.start(0);
        prop_assert_eq!(rig.ask(8).len(), 8);
    }
}
