//! A driver against a disk: requests well-formed and hostile, errors, state.

use super::super::mmio::Registers;
use super::super::model::Model;
use super::super::queue::{Buffer, Fault, Queue};
use super::super::transport::Transport;
use super::*;
use crate::block::ring::Memory;
use crate::config::DetectZeroes;
use crate::devices::bus::Window;
use crate::devices::{Device, DiskError, DiskErrorAction, DiskEvent, IrqLine};
use crate::memory::PageSet;
use proptest::prelude::*;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Mutex;
use std::time::Duration;

const DESC: u64 = 0x1_0000;
const AVAIL: u64 = 0x1_1000;
const USED: u64 = 0x1_2000;
const HEADER: u64 = 0x1_3000;
const STATUS: u64 = 0x1_4000;
const DATA: u64 = 0x2_0000;
const SIZE: u16 = 16;
const DISK_BYTES: u64 = 1 << 20;

const NEXT: u16 = 1;
const WRITE: u16 = 2;

struct Rig {
    disk: Disk,
    ram: GuestRam,
    queues: Vec<Queue>,
    file: File,
    errors: Arc<Mutex<Vec<DiskError>>>,
    added: u16,
    /// Those agreed upon.
    features: u64,
    _folder: tempfile::TempDir,
}

fn rig(keys: &[(&str, &str)], change: impl FnOnce(&mut config::Image)) -> Rig {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image");
    let options =
        || File::options().read(true).write(true).create(true).truncate(false).open(&path);
    let file = options().unwrap();
    file.set_len(DISK_BYTES).unwrap();
    let mut wanted = config::Image { name: "d".into(), path, ..config::Image::default() };
    change(&mut wanted);
    let image = Arc::new(Image::open(0, &wanted).unwrap());
    let pairs: Vec<_> = keys.iter().map(|(k, v)| (k.to_string(), Some(v.to_string()))).collect();
    let errors: Arc<Mutex<Vec<DiskError>>> = Arc::default();
    let told = errors.clone();
    let tell: DiskEvents = Arc::new(move |event| {
        if let DiskEvent::Error(error) = event {
            told.lock().unwrap().push(error);
        }
    });
    let keys = KEYS.fill("-device", &pairs).unwrap();
    let disk = Disk::new(&keys, image, "/disk".into(), tell).unwrap();
    let ram = crate::memory::for_tests(4 << 20);
    let mut queue = Queue::new(SIZE);
    (queue.desc, queue.avail, queue.used) = (DESC, AVAIL, USED);
    queue.start(&ram, false).unwrap();
    Rig { disk, ram, queues: vec![queue], file, errors, added: 0, features: 0, _folder: folder }
}

impl Rig {
    /// Puts a chain into the queue.
    fn add(&mut self, buffers: &[(u64, u32, u16)]) {
        for (index, (gpa, bytes, flags)) in buffers.iter().enumerate() {
            let more = if index + 1 < buffers.len() { NEXT } else { 0 };
            let mut entry = gpa.to_le_bytes().to_vec();
            entry.extend(bytes.to_le_bytes());
            entry.extend((flags | more).to_le_bytes());
            entry.extend((index as u16 + 1).to_le_bytes());
            self.ram.write(DESC + 16 * index as u64, &entry).unwrap();
        }
        self.ram.write(AVAIL + 4 + 2 * u64::from(self.added % SIZE), &0u16.to_le_bytes()).unwrap();
        self.added += 1;
        self.ram.write(AVAIL + 2, &self.added.to_le_bytes()).unwrap();
    }

    /// Serves until nothing is under way.
    fn serve(&mut self) -> Result<(), Fault> {
        self.disk.serve(&self.ram, &mut self.queues, self.features)?;
        while !self.disk.under_way.is_empty() {
            self.disk.wait();
            self.disk.arrivals(&self.ram, &mut self.queues, usize::MAX)?;
        }
        Ok(())
    }

    fn header(&self, kind: u32, sector: u64) {
        let mut header = kind.to_le_bytes().to_vec();
        header.extend([0; 4]);
        header.extend(sector.to_le_bytes());
        self.ram.write(HEADER, &header).unwrap();
    }

    /// The status of a request with these buffers of data; `None`: it is not done.
    fn ask(&mut self, kind: u32, sector: u64, data: &[(u64, u32, u16)]) -> Option<u8> {
        self.header(kind, sector);
        self.ram.write(STATUS, &[0xff]).unwrap();
        let all = [&[(HEADER, 16, 0)], data, &[(STATUS, 1, WRITE)]].concat();
        self.add(&all);
        self.serve().unwrap();
        Some(self.bytes(STATUS, 1)[0]).filter(|status| *status != 0xff)
    }

    fn segment(&self, sector: u64, sectors: u32, flags: u32) {
        let mut segment = sector.to_le_bytes().to_vec();
        segment.extend(sectors.to_le_bytes());
        segment.extend(flags.to_le_bytes());
        self.ram.write(DATA, &segment).unwrap();
    }

    fn bytes(&self, gpa: u64, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        self.ram.read(gpa, &mut bytes).unwrap();
        bytes
    }

    fn on_disk(&self, at: u64, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        self.file.read_exact_at(&mut bytes, at).unwrap();
        bytes
    }
}

#[test]
fn scattered_data_goes_to_the_file_and_back_and_is_marked() {
    for direct in [false, true] {
        let mut rig = rig(&[("write-cache", "off")], |image| image.cache.direct = direct);
        let pattern: Vec<u8> = (0..4096u32).map(|i| (i * 7 / 3) as u8).collect();
        rig.ram.write(DATA + 3, &pattern).unwrap();
        let scattered = [(DATA + 3, 700, 0), (DATA + 703, 1, 0), (DATA + 704, 3395, 0)];
        let mut dirty = PageSet::new(rig.ram.main().pages());
        rig.ram.take_vmm_dirty(&mut dirty);
        dirty.clear();
        assert_eq!(rig.ask(1, 8, &scattered), Some(0));
        assert_eq!(rig.on_disk(4096, 4096), pattern);
        rig.ram.take_vmm_dirty(&mut dirty);
        let pages: Vec<_> = dirty.iter().collect();
        assert!(pages.contains(&(STATUS / 4096)) && !pages.contains(&(DATA / 4096)), "{pages:?}");
        dirty.clear();
        let to = 0x30_0000;
        assert_eq!(rig.ask(0, 8, &[(to + 5, 1000, WRITE), (to + 1005, 3096, WRITE)]), Some(0));
        assert_eq!(rig.bytes(to + 5, 4096), pattern);
        rig.ram.take_vmm_dirty(&mut dirty);
        let pages: Vec<_> = dirty.iter().collect();
        assert!(pages.contains(&(to / 4096)) && pages.contains(&(to / 4096 + 1)), "{pages:?}");
    }
}

#[test]
fn requests_that_cannot_be_are_errors_of_theirs() {
    let mut rig = rig(&[("serial", "abc")], |_| {});
    let last = DISK_BYTES / 512;
    for (kind, sector, bytes, status) in [
        (0, last, 512, 1),
        (0, last - 1, 1024, 1),
        (0, u64::MAX, 512, 1),
        (0, 0, 513, 1),
        (1, u64::MAX / 512, 512, 1),
        (2, 0, 512, 2),
        (99, 0, 512, 2),
    ] {
        let flags = if kind == 0 { WRITE } else { 0 };
        assert_eq!(rig.ask(kind, sector, &[(DATA, bytes, flags)]), Some(status), "{kind} {sector}");
    }
    assert_eq!(rig.ask(8, 0, &[(DATA, 20, WRITE)]), Some(0));
    assert_eq!(rig.bytes(DATA, 4), b"abc\0");
    assert_eq!(rig.ask(4, 0, &[]), Some(0));
    // An empty read is one.
    assert_eq!(rig.ask(0, 0, &[]), Some(0));
}

#[test]
fn a_chain_without_header_or_status_breaks_the_device() {
    for chain in [
        &[(HEADER, 16, 0)][..],
        &[(STATUS, 1, WRITE)],
        &[(HEADER, 15, 0), (STATUS, 1, WRITE)],
        &[(HEADER, 16, 0), (u64::MAX - 5, 512, WRITE), (STATUS, 1, WRITE)],
        &[(HEADER, 16, 0), (4 << 20, 512, WRITE), (STATUS, 1, WRITE)],
    ] {
        let mut rig = rig(&[], |_| {});
        rig.header(0, 0);
        rig.add(chain);
        assert!(rig.serve().is_err(), "{chain:?}");
        rig.disk.broken();
    }
}

#[test]
fn discards_and_zeros_do_what_they_say() {
    let mut rig = rig(&[], |image| image.discard = true);
    rig.file.write_all_at(&[7; 65536], 0).unwrap();
    rig.segment(8, 8, 0);
    assert_eq!(rig.ask(11, 0, &[(DATA, 16, 0)]), Some(0));
    assert_eq!(rig.on_disk(4096, 4096), [0; 4096]);
    for flags in [0, 1] {
        rig.file.write_all_at(&[7; 65536], 0).unwrap();
        rig.segment(1, 9, flags);
        assert_eq!(rig.ask(13, 0, &[(DATA, 16, 0)]), Some(0));
        assert_eq!(rig.on_disk(512, 9 * 512), vec![0; 9 * 512]);
        assert_eq!(rig.on_disk(10 * 512, 8), [7; 8]);
    }
    for (sector, sectors, flags, bytes, status) in [
        (0, 8, 2, 16, 2),
        (0, 8, 0, 32, 2),
        (DISK_BYTES / 512, 1, 0, 16, 1),
        (u64::MAX, 1, 0, 16, 1),
        (0, u32::MAX, 0, 16, 1),
    ] {
        for kind in [11, 13] {
            rig.segment(sector, sectors, flags);
            assert_eq!(
                rig.ask(kind, 0, &[(DATA, bytes, 0)]),
                Some(status),
                "{kind} {sector} {flags}"
            );
        }
    }
    rig.segment(0, 8, 1);
    assert_eq!(rig.ask(11, 0, &[(DATA, 16, 0)]), Some(2), "discards have no such flag");
}

#[test]
fn zeros_are_detected() {
    let mut rig = rig(&[], |image| image.detect_zeroes = DetectZeroes::On);
    rig.file.write_all_at(&[7; 8192], 0).unwrap();
    assert_eq!(rig.ask(1, 0, &[(DATA, 4096, 0)]), Some(0));
    assert_eq!(rig.on_disk(0, 4097)[4095..], [0, 7]);
}

#[test]
fn a_guessed_image_stays_what_it_was_taken_for() {
    let mut rig = rig(&[], |image| image.format = config::ImageFormat::Probed);
    rig.ram.write(DATA, b"QFI\xfb").unwrap();
    assert_eq!(rig.ask(1, 0, &[(DATA, 512, 0)]), Some(1));
    assert_eq!(rig.errors.lock().unwrap()[0].reason, "Operation not permitted");
    assert_eq!(rig.ask(1, 1, &[(DATA, 512, 0)]), Some(0));
    // Looked at and written is the same, whatever the guest does meanwhile.
    rig.ram.write(DATA, &[5; 512]).unwrap();
    rig.header(1, 0);
    rig.add(&[(HEADER, 16, 0), (DATA, 512, 0), (STATUS, 1, WRITE)]);
    rig.disk.take(&rig.ram, &mut rig.queues).unwrap();
    rig.ram.write(DATA, b"QFI\xfb").unwrap();
    rig.serve().unwrap();
    assert_eq!((rig.bytes(STATUS, 1), rig.on_disk(0, 512)), (vec![0], vec![5; 512]));
}

#[test]
fn an_image_cut_short_reads_as_zeros() {
    for direct in [false, true] {
        let mut rig = rig(&[], |image| image.cache.direct = direct);
        rig.file.write_all_at(&[7; 1024], 0).unwrap();
        rig.file.set_len(600).unwrap();
        rig.ram.write(DATA, &[9; 2048]).unwrap();
        assert_eq!(rig.ask(0, 0, &[(DATA, 2048, WRITE)]), Some(0), "{direct}");
        assert_eq!(rig.bytes(DATA, 600), [7; 600]);
        assert_eq!(rig.bytes(DATA + 600, 1448), [0; 1448]);
    }
}

#[test]
fn what_is_stopped_travels_and_is_done_again() {
    // An image that can only be read, behind a device that does not know.
    let mut rig = rig(&[("werror", "stop")], |image| image.read_only = true);
    rig.ram.write(DATA, &[5; 512]).unwrap();
    assert_eq!(rig.ask(1, 3, &[(DATA, 512, 0)]), None);
    let told = rig.errors.lock().unwrap()[0].clone();
    assert_eq!((told.action, told.is_read), (DiskErrorAction::Stop, false));
    rig.disk.quiesce(&rig.ram, &mut rig.queues).unwrap();
    let saved = rig.disk.save(0);
    let VirtioDevice::Block(state) = &saved else { panic!() };
    assert_eq!(state.requests.len(), 1);

    let mut target = self::rig(&[], |_| {});
    target.ram.write(HEADER, &rig.bytes(HEADER, 16)).unwrap();
    target.ram.write(DATA, &[5; 512]).unwrap();
    target.disk.load(&saved, &target.ram).unwrap();
    assert_eq!(target.disk.save(0), saved);
    target.serve().unwrap();
    assert_eq!(target.on_disk(1536, 512), [5; 512]);
    assert_eq!(target.bytes(STATUS, 1), [0]);

    let mut bad = state.clone();
    bad.requests[0].queue = 1;
    assert!(target.disk.load(&VirtioDevice::Block(bad), &target.ram).is_err());
}

#[test]
fn a_write_is_flushed_where_the_guest_does_not_flush() {
    const WCE: u64 = features::CONFIG_WCE;
    const FLUSH: u64 = features::FLUSH;
    // (write-cache, cache.writeback, features, flushed)
    for (key, writeback, features, flushed) in [
        ("auto", true, 0, true),
        ("auto", true, FLUSH, false),
        ("auto", true, WCE | FLUSH, false),
        ("auto", true, WCE, false),
        ("auto", false, WCE | FLUSH, true),
        ("off", true, WCE | FLUSH, true),
        ("on", true, 0, true),
    ] {
        let mut rig = rig(&[("write-cache", key)], |image| image.cache.writeback = writeback);
        rig.features = features;
        assert_eq!(rig.ask(1, 0, &[(DATA, 512, 0)]), Some(0));
        assert_eq!(rig.disk.image.is_unflushed(), !flushed, "{key} {writeback} {features:#x}");
    }
}

#[test]
fn the_guests_switch_counts_once_agreed_upon_and_travels() {
    let mut source = rig(&[], |_| {});
    let at = space::WRITE_CACHE_AT;
    source.disk.write_config(at, &[0], features::FLUSH);
    assert!(source.disk.write_cache);
    let features = features::FLUSH | features::CONFIG_WCE;
    source.disk.write_config(at, &[0], features);
    assert!(!source.disk.write_cache);
    let mut target = rig(&[], |_| {});
    target.disk.load_config(&source.disk.config(), features);
    target.features = features;
    assert_eq!(target.ask(1, 0, &[(DATA, 512, 0)]), Some(0));
    assert!(!target.disk.write_cache && !target.disk.image.is_unflushed());
}

#[test]
fn no_flush_works_after_one_that_did_not() {
    let mut rig = rig(&[], |_| {});
    assert_eq!(rig.ask(4, 0, &[]), Some(0));
    rig.disk.image.flush_failed(libc::EIO);
    for _ in 0..2 {
        assert_eq!(rig.ask(4, 0, &[]), Some(1));
    }
    assert_eq!(rig.ask(1, 0, &[(DATA, 512, 0)]), Some(1), "it is flushed, too");
    assert_eq!(rig.errors.lock().unwrap()[0].reason, "Input/output error");
    assert_eq!(rig.ask(0, 0, &[(DATA, 512, WRITE)]), Some(0));
}

#[test]
fn a_stop_flushes_what_a_driver_wrote_that_is_gone() {
    struct NoLine;
    impl IrqLine for NoLine {
        fn set(&self, _: bool) {}
    }
    let rig = rig(&[], |_| {});
    rig.ram.write(STATUS, &[0xff]).unwrap();
    let image = rig.disk.image.clone();
    let registers = Registers::new(true, features::FLUSH);
    let (ram, irq) = (rig.ram.clone(), Box::new(NoLine));
    let transport = Transport::new(0xfeb0_0000, registers, Box::new(rig.disk), ram, irq).unwrap();
    transport.resume().unwrap();
    let write = |register: u64, value: u32| {
        assert!(transport.write(register, &value.to_le_bytes()).is_none());
    };
    for (register, value) in
        [(0x70, 3), (0x28, 4096), (0x20, features::FLUSH as u32), (0x38, 16), (0x40, 0x10)]
    {
        write(register, value);
    }
    write(0x70, 7);
    let mut header = [0; 16];
    header[0] = 1;
    rig.ram.write(HEADER, &header).unwrap();
    for (at, (gpa, bytes, flags)) in
        [(HEADER, 16u32, NEXT), (DATA, 512, NEXT), (STATUS, 1, WRITE)].into_iter().enumerate()
    {
        let mut entry = u64::to_le_bytes(gpa).to_vec();
        entry.extend(bytes.to_le_bytes());
        entry.extend(flags.to_le_bytes());
        entry.extend((at as u16 + 1).to_le_bytes());
        rig.ram.write(DESC + 16 * at as u64, &entry).unwrap();
    }
    // The avail ring of the legacy layout follows the descriptors.
    rig.ram.write(DESC + 16 * 16 + 2, &[1, 0, 0, 0]).unwrap();
    write(0x50, 0);
    let end = Instant::now() + Duration::from_secs(30);
    let status = || {
        let mut status = [0];
        rig.ram.read(STATUS, &mut status).unwrap();
        status[0]
    };
    while status() == 0xff {
        assert!(Instant::now() < end);
        std::thread::yield_now();
    }
    assert!(image.is_unflushed());
    write(0x70, 3);
    transport.quiesce().unwrap();
    assert!(!image.is_unflushed());
}

#[test]
fn a_reset_forgets_requests_and_not_that_they_wrote() {
    let mut rig = rig(&[], |_| {});
    rig.header(1, 0);
    assert!(!rig.disk.image.is_unflushed());
    rig.add(&[(HEADER, 16, 0), (DATA, 512, 0), (STATUS, 1, WRITE)]);
    rig.disk.take(&rig.ram, &mut rig.queues).unwrap();
    rig.disk.reset();
    assert!(rig.disk.under_way.is_empty() && rig.disk.image.is_unflushed());
}

#[test]
fn long_requests_are_done_in_pieces_and_longer_ones_are_not_done() {
    let mut rig = rig(&[], |image| image.cache.direct = true);
    let bytes = 3 << 19;
    rig.file.set_len(4 << 20).unwrap();
    rig.disk.image.top().measure().unwrap();
    let pattern: Vec<u8> = (0..bytes).map(|i: u32| (i / 3) as u8).collect();
    rig.ram.write(DATA + 3, &pattern).unwrap();
    assert_eq!(rig.ask(1, 8, &[(DATA + 3, bytes, 0)]), Some(0));
    assert_eq!(rig.on_disk(4096, pattern.len()), pattern);
    let data = [Buffer { gpa: DATA + 3, bytes }];
    let memory = rig.disk.memory(&rig.ram, &data, bytes.into(), false).unwrap();
    let Memory::Own(own) = memory else { panic!() };
    assert_eq!(own.get().len(), 1 << 20);
    let to = 0x20_0005;
    assert_eq!(rig.ask(0, 8, &[(to, bytes, WRITE)]), Some(0));
    assert_eq!(rig.bytes(to, pattern.len()), pattern);
    rig.file.set_len(0).unwrap();
    assert_eq!(rig.ask(0, 8, &[(to, bytes, WRITE)]), Some(0));
    assert_eq!(rig.bytes(to, pattern.len()), vec![0; pattern.len()]);

    // The last byte is the status.
    for (last, fits) in [((2 << 20) - 511, true), ((2 << 20) + 1, false)] {
        let mut writable = vec![Buffer { gpa: 0, bytes: 2 << 20 }; 1023];
        writable.push(Buffer { gpa: 0, bytes: last });
        let readable = vec![Buffer { gpa: HEADER, bytes: 16 }];
        let chain = Chain { head: 0, readable, writable };
        let asked = request::read(&rig.ram, 0, chain, &rig.disk.wanted, 1 << 40).unwrap().1;
        assert_eq!(matches!(asked, Asked::Work(_)), fits, "{last}");
    }
}

#[test]
fn what_found_no_room_is_served_without_another_bell() {
    let mut rig = rig(&[], |_| {});
    rig.header(0, 0);
    rig.add(&[(HEADER, 16, 0), (DATA, 512, WRITE), (STATUS, 1, WRITE)]);
    let chain = rig.queues[0].pop(&rig.ram).unwrap().unwrap();
    for _ in 0..FLIGHTS_MAX {
        let (chain, asked) = rig.disk.read(&rig.ram, 0, chain.clone()).unwrap();
        let pass = rig.disk.image.gate.enter().unwrap();
        rig.disk.begin(&rig.ram, &mut rig.queues[0], chain, asked, pass).unwrap();
    }
    rig.ram.write(STATUS + 1, &[0xff]).unwrap();
    rig.add(&[(HEADER, 16, 0), (DATA, 512, WRITE), (STATUS + 1, 1, WRITE)]);
    loop {
        let next = rig.disk.serve(&rig.ram, &mut rig.queues, 0).unwrap();
        if next == Next::Wait {
            if rig.disk.under_way.is_empty() {
                break;
            }
            rig.disk.wait();
        }
    }
    assert_eq!(rig.bytes(STATUS + 1, 1), [0]);
}

#[test]
fn queues_take_turns_and_are_reset_one_by_one() {
    let mut rig = rig(&[("num-queues", "2")], |_| {});
    // Another over the same ring.
    let mut queue = Queue::new(SIZE);
    (queue.desc, queue.avail, queue.used) = (DESC, AVAIL, USED);
    queue.start(&rig.ram, false).unwrap();
    rig.queues.push(queue);
    rig.header(0, 0);
    for turn in 0..4u64 {
        rig.add(&[(HEADER, 16, 0), (DATA, 512, WRITE), (STATUS, 1, WRITE)]);
        rig.disk.take(&rig.ram, &mut rig.queues).unwrap();
        assert_eq!(u64::from(rig.disk.under_way[&(2 * turn)].queue), turn % 2);
    }
    rig.disk.queue_reset(1);
    assert_eq!(rig.disk.under_way.len(), 4);
    rig.ram.write(STATUS, &[0xff]).unwrap();
    // None of it rings again.
    rig.disk.lanes.wait();
    while let Next::More = rig.disk.serve(&rig.ram, &mut rig.queues, 0).unwrap() {}
    assert!(rig.queues[0].has_news() && !rig.queues[1].has_news());
    assert_eq!((rig.disk.under_way.len(), rig.bytes(STATUS, 1)), (0, vec![0]));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever a driver asks, it is answered, or the device says that it is broken.
    #[test]
    fn random_requests_end(
        kind in prop_oneof![0u32..16, any::<u32>()],
        sector in prop_oneof![0u64..4096, any::<u64>()],
        buffers in prop::collection::vec(
            (prop_oneof![0u64..(5 << 20), any::<u64>()], 0u32..20_000, prop_oneof![Just(0u16), Just(WRITE)]),
            0..12,
        ),
        segment in any::<[u8; 16]>(),
    ) {
        let mut rig = rig(&[], |image| image.discard = true);
        rig.ram.write(DATA, &segment).unwrap();
        rig.header(kind, sector);
        let mut chain = vec![(HEADER, 16, 0)];
        chain.extend(buffers);
        chain.push((STATUS, 1, WRITE));
        rig.add(&chain);
        let served = rig.serve();
        prop_assert!(rig.disk.under_way.is_empty());
        prop_assert!(served.is_err() || rig.queues[0].has_news());
    }
}
