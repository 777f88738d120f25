//! A driver that puts pages into the balloon, tells statistics, reports free pages, and lies.

use super::super::mmio::{EVENT_IDX, INDIRECT_DESC, Registers, VERSION_1, offered};
use super::super::{Transport, VirtioState};
use super::*;
use crate::config::{Memory, MemoryBackend};
use crate::devices::bus::Window;
use crate::devices::{Device, IrqLine, Loading, Sections};
use crate::kvm::state::ForeignTsc;
use crate::memory::{PAGE_BYTES, PageSet};
use proptest::prelude::*;
use serde_json::json;
use std::sync::Mutex;
use std::time::Duration;

const SIZE: u64 = 8;
const RAM: u64 = 16 << 20;
/// What the driver tells, and memory that it gives.
const TOLD: u64 = 0x10_0000;
const GIVEN: u64 = 0x40_0000;
const NAME: &str = "virtio-mmio@00000000feb00e00/virtio-balloon";
const NEEDS_RESET: u32 = 64;
const WRITE: u16 = 2;
/// With everything offered.
const HINT: usize = 3;
const REPORT: usize = 4;

struct NoLine;

impl IrqLine for NoLine {
    fn set(&self, _high: bool) {}
}

struct Rig {
    transport: Transport,
    ram: GuestRam,
    control: Arc<BalloonControl>,
    /// Sizes that were told.
    told: Arc<Mutex<Vec<u64>>>,
    /// Chains given to each queue.
    given: [u16; QUEUES],
}

fn memory(backend: MemoryBackend) -> GuestRam {
    let block = "microvm.ram".into();
    let memory = Memory { bytes: RAM, block, backend, prealloc: false, merge: false, dump: true };
    GuestRam::new(&memory).unwrap()
}

fn rig() -> Rig {
    rig_with(memory(MemoryBackend::Anonymous { share: false }))
}

fn rig_with(ram: GuestRam) -> Rig {
    let on = |key: &str| (key.to_owned(), Some("on".to_owned()));
    let pairs = [on("free-page-reporting"), on("free-page-hint")];
    let wanted = KEYS.fill("-device", &pairs).unwrap();
    let control = Arc::new(BalloonControl::new(RAM));
    let told = Arc::new(Mutex::new(Vec::new()));
    let tells = told.clone();
    control.on_change(Box::new(move |bytes| tells.lock().unwrap().push(bytes)));
    let model = Box::new(BalloonModel::new(&wanted, control.clone()));
    let offered = offered(false, EVENT_IDX | INDIRECT_DESC, wanted.features());
    let registers = Registers::new(false, offered);
    let irq = Box::new(NoLine);
    let transport = Transport::new(0xfeb0_0e00, registers, model, ram.clone(), irq).unwrap();
    transport.resume().unwrap();
    Rig { transport, ram, control, told, given: [0; QUEUES] }
}

fn ring(queue: usize) -> (u64, u64, u64) {
    let base = 0x1_0000 + 0x3000 * queue as u64;
    (base, base + 0x1000, base + 0x2000)
}

impl Rig {
    fn read(&self, register: u64) -> u32 {
        let mut word = [0; 4];
        self.transport.read(register, &mut word);
        u32::from_le_bytes(word)
    }

    fn write(&self, register: u64, value: u32) {
        self.transport.write(register, &value.to_le_bytes());
    }

    fn start(&mut self) {
        self.given = [0; QUEUES];
        self.write(0x70, 0);
        self.write(0x70, 3);
        let features = feature::STATS | feature::PAGE_POISON | feature::HINTS | feature::REPORTING;
        let features = features | VERSION_1;
        for half in [0, 1] {
            self.write(0x24, half);
            self.write(0x20, (features >> (32 * half)) as u32);
        }
        self.write(0x70, 11);
        for queue in 0..QUEUES {
            let (desc, avail, used) = ring(queue);
            for at in [avail, used] {
                self.ram.write(at, &[0; 256]).unwrap();
            }
            self.write(0x30, queue as u32);
            self.write(0x38, SIZE as u32);
            for (register, address) in [(0x80, desc), (0x90, avail), (0xa0, used)] {
                self.write(register, address as u32);
                self.write(register + 4, 0);
            }
            self.write(0x44, 1);
        }
        self.write(0x70, 15);
    }

    /// Makes a chain of these buffers available.
    fn give(&mut self, queue: usize, buffers: &[(u64, u32, u16)]) {
        let (desc, avail, _) = ring(queue);
        for (index, (gpa, bytes, flags)) in buffers.iter().enumerate() {
            let next = u16::from(index + 1 < buffers.len());
            let mut entry = gpa.to_le_bytes().to_vec();
            entry.extend(bytes.to_le_bytes());
            entry.extend((flags | next).to_le_bytes());
            entry.extend((index as u16 + 1).to_le_bytes());
            self.ram.write(desc + 16 * index as u64, &entry).unwrap();
        }
        let slot = u64::from(self.given[queue]) % SIZE;
        self.ram.write(avail + 4 + 2 * slot, &[0, 0]).unwrap();
        self.given[queue] = self.given[queue].wrapping_add(1);
        self.ram.write(avail + 2, &self.given[queue].to_le_bytes()).unwrap();
        self.write(0x50, queue as u32);
    }

    fn used(&self, queue: usize) -> u16 {
        let mut half = [0; 2];
        self.ram.read(ring(queue).2 + 2, &mut half).unwrap();
        u16::from_le_bytes(half)
    }

    fn wait(&self, what: &str, done: impl Fn() -> bool) {
        let end = Instant::now() + Duration::from_secs(20);
        while !done() {
            assert!(Instant::now() < end, "{what}: status {:#x}", self.read(0x70));
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn wait_for_all(&self, queue: usize) {
        self.wait("all chains", || self.used(queue) == self.given[queue]);
    }

    /// Tells the numbers of these pages.
    fn number(&mut self, queue: usize, pages: &[u32]) {
        let numbers: Vec<u8> = pages.iter().flat_map(|page| page.to_le_bytes()).collect();
        self.ram.write(TOLD, &numbers).unwrap();
        self.give(queue, &[(TOLD, numbers.len() as u32, 0)]);
        self.wait_for_all(queue);
    }

    /// Memory with something in it on each page, and the process's own writes forgotten.
    fn fill(&self, pages: u64) {
        for page in 0..pages {
            self.ram.write(GIVEN + page * PAGE_BYTES, &[7; 16]).unwrap();
        }
        self.dirty();
    }

    /// Pages that this process wrote, or gave back.
    fn dirty(&self) -> Vec<u64> {
        let mut dirty = PageSet::new(self.ram.main().pages());
        self.ram.take_vmm_dirty(&mut dirty);
        dirty.iter().collect()
    }

    fn is_empty(&self, page: u64) -> bool {
        self.ram.main().is_hole(page).unwrap()
    }

    fn save(&self) -> Sections {
        let mut sections = Sections::default();
        self.transport.quiesce().unwrap();
        self.transport.save(&mut sections).unwrap();
        sections
    }

    fn load(&self, sections: &Sections) {
        let report = Default::default();
        let mut from = Loading { sections, foreign: ForeignTsc::Refuse, report };
        self.transport.load(&mut from).unwrap();
    }
}

const FIRST: u64 = GIVEN / PAGE_BYTES;

#[test]
fn pages_in_the_balloon_are_the_hosts_and_travel_as_zeros() {
    let memfd = MemoryBackend::Memfd { share: true, seal: false, huge_pages: None };
    for backend in [MemoryBackend::Anonymous { share: false }, memfd] {
        let mut rig = rig_with(memory(backend));
        rig.ram.main().small_pages();
        rig.start();
        rig.fill(8);
        let pages: Vec<u32> = [5, 1, 2, 2, 3].map(|page| FIRST as u32 + page).to_vec();
        rig.number(INFLATE, &pages);
        let empty: Vec<u64> = (0..8).filter(|page| rig.is_empty(FIRST + page)).collect();
        assert_eq!(empty, [1, 2, 3, 5]);
        let dirty = rig.dirty();
        assert!(empty.iter().all(|page| dirty.contains(&(FIRST + page))), "{dirty:?}");
        assert!(!dirty.contains(&FIRST) && !dirty.contains(&(FIRST + 4)), "{dirty:?}");
        // Out of it again: they are memory when they are touched.
        rig.number(DEFLATE, &pages);
        rig.ram.write(GIVEN + PAGE_BYTES, &[9]).unwrap();
        assert!(!rig.is_empty(FIRST + 1));
    }
}

#[test]
fn memory_that_cannot_be_given_back_stays() {
    let dir = tempfile::tempdir().unwrap();
    let backend = MemoryBackend::File {
        path: dir.path().join("ram"),
        share: false,
        offset: 0,
        readonly: false,
        discard_at_exit: false,
    };
    let mut rig = rig_with(memory(backend));
    rig.start();
    rig.fill(1);
    rig.number(INFLATE, &[FIRST as u32]);
    let mut byte = [0];
    rig.ram.read(GIVEN, &mut byte).unwrap();
    assert_eq!(byte, [7]);
}

#[test]
fn the_size_that_is_wanted_is_told_and_the_one_that_is_comes_back() {
    let mut rig = rig();
    rig.start();
    for (wanted, pages) in [(RAM / 2, 2048), (RAM - 1, 0), (4096, 4095), (1 << 50, 0), (1, 4095)] {
        rig.control.set_target(wanted);
        rig.wait("an interrupt", || rig.read(0x60) & 2 != 0);
        rig.write(0x64, 2);
        assert_eq!(rig.read(0x100), pages, "{wanted}");
    }
    rig.write(0x104, 1024);
    rig.write(0x104, 1024);
    rig.write(0x104, u32::MAX);
    assert_eq!(*rig.told.lock().unwrap(), [RAM - (4 << 20), 0]);
    assert_eq!(rig.control.actual_bytes(), 0);
    // What it says is wanted is not the guest's to say.
    rig.write(0x100, 77);
    assert_eq!(rig.read(0x100), 4095);
}

#[test]
fn statistics_are_asked_for_as_often_as_wanted() {
    let mut rig = rig();
    rig.start();
    let balloon = Balloon::new(rig.control.clone(), Wanted::default());
    let property =
        |name: &str| balloon.properties().into_iter().find(|(known, _)| *known == name).unwrap().1;
    assert_eq!(property("guest-stats")["last-update"], 0);
    let entry = |tag: u16, value: u64| [&tag.to_le_bytes()[..], &value.to_le_bytes()].concat();
    let told = [entry(4, 5), entry(999, 1), entry(15, 6), vec![1, 2]].concat();
    rig.ram.write(TOLD, &told).unwrap();
    rig.give(STATS, &[(TOLD, told.len() as u32, 0)]);
    rig.wait("statistics", || property("guest-stats")["last-update"] != json!(0));
    let stats = property("guest-stats")["stats"].clone();
    assert_eq!(
        (&stats["stat-free-memory"], &stats["stat-direct-reclaims"]),
        (&json!(5), &json!(6))
    );
    assert_eq!(stats["stat-swap-in"], json!(u64::MAX));
    assert_eq!(rig.used(STATS), 0, "the buffer is kept");
    let set = |value| balloon.set_property("guest-stats-polling-interval", &value).unwrap();
    assert_eq!(set(json!(-1)).unwrap_err(), "timer value must be greater than zero");
    assert_eq!(set(json!(1u64 << 32)).unwrap_err(), "timer value is too big");
    assert!(set(json!("1")).unwrap_err().contains("expected: integer"));
    set(json!(1)).unwrap();
    rig.wait_for_all(STATS);
    assert!(balloon.set_property("guest-stats", &json!(1)).is_none());
}

#[test]
fn pages_that_are_free_are_the_hosts_unless_the_guest_wants_to_find_something_in_them() {
    let mut rig = rig();
    rig.ram.main().small_pages();
    rig.start();
    rig.fill(8);
    // Whole pages only.
    rig.give(REPORT, &[(GIVEN, 8192, WRITE), (GIVEN + 0x3800, 0x2000, WRITE)]);
    rig.wait_for_all(REPORT);
    let empty: Vec<u64> = (0..8).filter(|page| rig.is_empty(FIRST + page)).collect();
    assert_eq!(empty, [0, 1, 4]);
    rig.write(0x10c, 0xaa);
    rig.give(REPORT, &[(GIVEN + 0x7000, 4096, WRITE)]);
    rig.wait_for_all(REPORT);
    assert!(!rig.is_empty(FIRST + 7));
}

#[test]
fn what_is_asked_for_is_done_in_parts() {
    let mut rig = rig();
    rig.start();
    rig.fill(1024);
    // 24 MiB in one chain, of numbers that are mostly no pages, the same buffer again and again.
    rig.ram.write(TOLD + 4096, &vec![0xff; 1 << 20]).unwrap();
    rig.ram.write(TOLD + 4096, &(FIRST as u32 + 9).to_le_bytes()).unwrap();
    rig.give(INFLATE, &[(TOLD + 4096, 1 << 20, 0); 6]);
    rig.wait_for_all(INFLATE);
    assert_eq!(rig.read(0x70) & NEEDS_RESET, 0);
    // All of memory twice over, the rings' too: a guest that does so harms itself.
    rig.give(REPORT, &[(GIVEN, 12 << 20, WRITE); 7]);
    rig.wait_for_all(REPORT);
    assert!(rig.is_empty(FIRST) && rig.is_empty(FIRST + 1000));
}

/// Of a balloon that offers hints.
const NEVER_ASKED: Option<BalloonReport> =
    Some(BalloonReport { command_id: 0x8000_0000, status: 0 });

impl Rig {
    /// Asks the driver for free pages, as a migration does; what it reads then.
    fn ask(&self) -> u32 {
        self.wait("a driver that can be asked", || self.control.hints().ask());
        self.wait("an interrupt", || self.read(0x60) & 2 != 0);
        self.write(0x64, 2);
        self.read(0x108)
    }

    /// Begins an answer to this command, or ends one.
    fn answer(&mut self, command: u32) {
        self.ram.write(TOLD, &command.to_le_bytes()).unwrap();
        self.give(HINT, &[(TOLD, 4, 0)]);
        self.wait_for_all(HINT);
    }

    fn name(&mut self, buffers: &[(u64, u32, u16)]) {
        self.give(HINT, buffers);
        self.wait_for_all(HINT);
    }

    /// Pages from [`GIVEN`] on that were named, of the first 64.
    fn named(&self) -> u64 {
        self.control.hints().named::<1>((FIRST / 64) as usize)[0]
    }
}

#[test]
fn free_pages_are_named_while_a_migration_asks_for_them() {
    let mut rig = rig();
    rig.start();
    rig.fill(8);
    // Nobody asked.
    assert_eq!(rig.read(0x108), 0);
    rig.answer(0x8000_0001);
    rig.name(&[(GIVEN, 8192, WRITE)]);
    let command = rig.ask();
    assert_eq!((command, rig.named()), (0x8000_0001, 0));
    rig.answer(command);
    // Whole pages only; what it says they hold is not looked at, and stays.
    rig.name(&[(GIVEN + 4096, 8192, WRITE), (GIVEN + 0x4800, 0x2000, WRITE)]);
    assert_eq!(rig.named(), 0b10_0110);
    assert!(rig.dirty().iter().all(|page| *page < FIRST));
    assert!(!rig.is_empty(FIRST + 1));
    // The end of the answer, and then of the round.
    rig.answer(0);
    rig.name(&[(GIVEN, 4096, WRITE)]);
    assert_eq!(rig.named(), 0b10_0110);
    rig.control.hints().stop();
    assert_eq!((rig.read(0x108), rig.named()), (0, 0));
    let next = rig.ask();
    assert_eq!(next, command + 1);
    // A command and pages in one chain, of more than a turn takes.
    rig.ram.write(TOLD, &next.to_le_bytes()).unwrap();
    rig.name(&[(TOLD, 4, 0), (GIVEN, 12 << 20, WRITE), (GIVEN, 12 << 20, WRITE)]);
    rig.name(&[(GIVEN, 12 << 20, WRITE); 7]);
    assert_eq!(rig.named(), u64::MAX);
    rig.control.hints().done();
    assert_eq!(rig.read(0x108), 1);
    assert_eq!(rig.read(0x70) & NEEDS_RESET, 0);
}

#[test]
fn a_driver_is_not_asked_that_is_away_or_broken_or_fills_free_pages_with_something() {
    let mut rig = rig();
    assert!(!rig.control.hints().ask());
    rig.start();
    rig.ask();
    rig.write(0x10c, 0xaa);
    assert!(!rig.control.hints().ask());
    rig.start();
    rig.ask();
    rig.ram.write(TOLD, &[0; 4]).unwrap();
    rig.give(HINT, &[(TOLD, 3, 0)]);
    rig.wait("the end", || rig.read(0x70) & NEEDS_RESET != 0);
    assert!(!rig.control.hints().ask());
    rig.start();
    assert_eq!(rig.ask(), 0x8000_0003);
    // It forgets what it was asked.
    rig.write(0x70, 0);
    rig.control.hints().done();
    assert_eq!(rig.read(0x108), 0);
}

#[test]
fn that_all_is_done_is_told_where_the_guest_goes_on() {
    let mut source = rig();
    source.start();
    let command = source.ask();
    source.transport.quiesce().unwrap();
    source.control.hints().done();
    source.transport.store().unwrap();
    let mut sections = Sections::default();
    source.transport.save(&mut sections).unwrap();
    let state: &VirtioState = sections.get(NAME, 0).unwrap();
    assert_eq!(state.isr & 2, 2);
    let report = BalloonReport { command_id: command, status: 3 };
    assert!(matches!(&state.device,
        VirtioDevice::Balloon(part) if part.free_page_report == Some(report) && check(part).is_ok()));
    let target = rig_with(source.ram.clone());
    target.load(&sections);
    target.transport.resume().unwrap();
    assert_eq!((target.read(0x108), target.read(0x60) & 2), (1, 2));
    target.write(0x64, 2);
    assert_eq!(target.ask(), command + 1);
    let report = BalloonReport { command_id: 0, status: 4 };
    let part = BalloonState { free_page_report: Some(report), ..Default::default() };
    assert!(check(&part).unwrap_err().contains("free_page_hint_status: 4"));
}

#[test]
fn the_state_travels_with_the_buffer_of_statistics_and_comes_back() {
    let mut source = rig();
    source.start();
    source.control.set_target(RAM / 2);
    source.write(0x104, 5);
    source.write(0x10c, 3);
    source.ram.write(TOLD, &[0; 10]).unwrap();
    source.give(STATS, &[(TOLD, 10, 0)]);
    let updated = |rig: &Rig| {
        let balloon = Balloon::new(rig.control.clone(), Wanted::default());
        balloon.properties().iter().any(|(_, value)| value["last-update"].as_u64() > Some(0))
    };
    source.wait("statistics", || updated(&source));
    let mut sections = source.save();
    let state: &VirtioState = sections.get(NAME, 0).unwrap();
    assert_eq!(state.queues[STATS].last_avail_idx, 0);
    let part = BalloonState {
        num_pages: 2048,
        actual: 5,
        page_poison: Some(3),
        free_page_report: NEVER_ASKED,
    };
    assert_eq!(state.device, VirtioDevice::Balloon(part));
    // QEMU counts the buffer that it keeps as taken.
    for taken in [0, 1] {
        let target = rig_with(source.ram.clone());
        let mut state: VirtioState = sections.get::<VirtioState>(NAME, 0).unwrap().clone();
        state.queues[STATS].last_avail_idx = taken;
        sections = Sections::default();
        sections.push(NAME, 0, state);
        target.load(&sections);
        target.transport.resume().unwrap();
        target.wait("statistics", || updated(&target));
        assert_eq!((target.read(0x100), target.read(0x104), target.read(0x10c)), (2048, 5, 3));
        target.transport.quiesce().unwrap();
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever a driver puts into the queues, the device goes on or asks for a reset, and then works.
    #[test]
    fn hostile_drivers_harm_nobody(
        chains in prop::collection::vec(
            (0..QUEUES, prop::collection::vec((any::<u32>(), any::<u32>(), 0u16..8), 1..6)), 1..12),
        words in prop::collection::vec((0u64..0x20, any::<u32>()), 0..4),
    ) {
        let mut rig = rig();
        rig.start();
        for (queue, buffers) in chains {
            let buffers: Vec<_> = buffers.into_iter()
                .map(|(gpa, bytes, flags)| (u64::from(gpa) % (2 * RAM), bytes >> (bytes % 32), flags))
                .collect();
            rig.give(queue, &buffers);
        }
        for (at, value) in words {
            rig.write(0x100 + at, value);
        }
        rig.control.hints().ask();
        rig.save();
        rig.control.hints().done();
        rig.transport.resume().unwrap();
        rig.start();
        rig.fill(1);
        rig.number(INFLATE, &[FIRST as u32]);
        let mut byte = [1];
        rig.ram.read(GIVEN, &mut byte).unwrap();
        prop_assert_eq!(byte, [0]);
    }
}
