//! Snapshots in files with pages at fixed places, of a guest that is a thread writing memory.

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::capabilities::Capability;
use super::fake_guest::{FakeGuest, RAM_BYTES};
use super::guest::Migratable;
use super::incoming::{Arrival, Error, Incoming, Origin};
use super::outgoing::{Destination, Source};
use super::progress::Progress;
use super::settings::Settings;
use super::status::Status;
use crate::config::MemoryBackend;
use crate::io::{Connection, Waker};
use crate::machine::RunState;
use crate::memory::{PAGE_BYTES, PageSet};
use crate::pages::hash_ram;
use crate::stream::mapped::MappedHeader;

pub(super) fn settings(capabilities: &[Capability], parameters: Value) -> Arc<Settings> {
    let settings = Settings::default();
    let on: Vec<_> = capabilities.iter().map(|capability| (*capability, true)).collect();
    settings.set_capabilities(settings.capabilities().with(&on).unwrap());
    settings.set_parameters(settings.parameters().with(parameters.as_object().unwrap()).unwrap());
    Arc::new(settings)
}

/// Saves a busy guest from `offset` on in a file.
fn save(capabilities: &[Capability], parameters: Value, offset: u64) -> (Arc<FakeGuest>, File) {
    let mut file = tempfile::tempfile().unwrap();
    std::io::Seek::seek(&mut file, std::io::SeekFrom::Start(offset)).unwrap();
    let guest = FakeGuest::busy();
    save_into(&guest, &file, capabilities, parameters);
    (guest, file)
}

pub(super) fn save_into(
    guest: &Arc<FakeGuest>,
    file: &File,
    capabilities: &[Capability],
    parameters: Value,
) {
    let progress = Arc::new(Progress::default());
    assert!(progress.life.enter(Status::Setup));
    let source = Source {
        guest: guest.clone(),
        settings: settings(capabilities, parameters),
        progress: progress.clone(),
        waker: Waker::new(),
        go_on: Arc::default(),
        uuid: None,
    };
    let connection = Connection::from_fd(file.try_clone().unwrap().into());
    source.run(Destination::Open(connection));
    assert_eq!(progress.status(), Status::Completed, "{:?}", progress.figures().error);
}

fn load(connection: Connection, multifd: bool) -> (Arc<FakeGuest>, Result<(), Error>) {
    let guest = FakeGuest::new(RunState::InMigrate);
    // A page that has anything in it is no page of zeros.
    guest.ram.write(5000 * PAGE_BYTES, &[7; 8192]).unwrap();
    let capabilities: &[_] = if multifd { &[Capability::Multifd] } else { &[] };
    let result = load_into(&guest, connection, settings(capabilities, json!({})));
    (guest, result)
}

fn load_into(
    guest: &Arc<FakeGuest>,
    connection: Connection,
    settings: Arc<Settings>,
) -> Result<(), Error> {
    let target = Incoming {
        guest: guest.clone(),
        settings,
        arrival: Arc::new(Arrival::default()),
        events: Arc::new(|_| {}),
        waker: Waker::new(),
        autostart: Arc::new(|| false),
        arrived: Arc::new(|_| {}),
        uuid: None,
        file_name: None,
    };
    target.run(Origin::Open(connection))
}

/// Maps the file instead of reading it.
fn map(guest: &Arc<FakeGuest>, file: &File) -> Result<(), Error> {
    std::io::Seek::rewind(&mut &*file).unwrap();
    let connection = Connection::from_fd(file.try_clone().unwrap().into());
    load_into(guest, connection, settings(&[], json!({"x-godwit-restore": "mapped"})))
}

fn anonymous() -> Arc<FakeGuest> {
    FakeGuest::over(MemoryBackend::Anonymous { share: false }, RunState::InMigrate)
}

fn load_from(file: &File, offset: u64) -> (Arc<FakeGuest>, Result<(), Error>) {
    let mut file = file.try_clone().unwrap();
    std::io::Seek::seek(&mut file, std::io::SeekFrom::Start(offset)).unwrap();
    load(Connection::from_fd(file.into()), false)
}

pub(super) fn assert_same(source: &FakeGuest, target: &FakeGuest) {
    let (mut a, mut b) = ([0; 4096], [0; 4096]);
    for page in 0..RAM_BYTES / PAGE_BYTES {
        source.ram.read(page * PAGE_BYTES, &mut a).unwrap();
        target.ram.read(page * PAGE_BYTES, &mut b).unwrap();
        assert!(a == b, "page {page} differs");
    }
}

/// Of the block in a file that begins at `offset`: the field of the list's entry is found by its
/// name.
fn header(file: &File, offset: u64) -> (u64, MappedHeader) {
    let mut head = [0; 256];
    file.read_exact_at(&mut head, offset).unwrap();
    let name = b"\x0bmicrovm.ram";
    let at = head.windows(name.len()).position(|window| window == name).unwrap() + name.len() + 8;
    let place = offset + at as u64;
    let bytes = &head[at..at + MappedHeader::BYTES];
    (place, MappedHeader::parse(bytes, place, RAM_BYTES).unwrap())
}

#[test]
fn a_busy_guest_is_saved_at_places_and_loaded_from_there() {
    for (capabilities, offset) in [
        (&[Capability::MappedRam][..], 0),
        (&[Capability::MappedRam], 0x3000),
        (&[Capability::MappedRam, Capability::Multifd], 0),
        (&[Capability::MappedRam, Capability::Multifd], 77),
    ] {
        // Slow enough that pages are dirtied again, and a limit that any guest keeps.
        let parameters = json!({"max-bandwidth": 60 << 20, "multifd-channels": 3});
        let (source, file) = save(capabilities, parameters, offset);
        let (target, result) = load_from(&file, offset);
        result.unwrap();
        assert_eq!(source.count(), target.count());
        assert_same(&source, &target);
        let (_, header) = header(&file, offset);
        assert_eq!(header.pages_offset, (offset + 1).next_multiple_of(1 << 20));
        let mut bitmap = vec![0; MappedHeader::bitmap_bytes(RAM_BYTES) as usize];
        file.read_exact_at(&mut bitmap, header.bitmap_offset).unwrap();
        let named = |page: u64| bitmap[page as usize / 8] >> (page % 8) & 1 == 1;
        let mut bytes = [0; 4096];
        for page in 0..RAM_BYTES / PAGE_BYTES {
            source.ram.read(page * PAGE_BYTES, &mut bytes).unwrap();
            assert_eq!(named(page), bytes != [0; 4096], "page {page}");
        }
        // Holes stay holes: of 24 MiB the guest wrote half at most.
        let metadata = file.metadata().unwrap();
        assert!(metadata.blocks() * 512 < 14 << 20, "{} blocks", metadata.blocks());
        assert!(metadata.len() > RAM_BYTES);
    }
}

#[test]
fn a_file_cut_short_anywhere_is_refused_and_says_what_is_missing() {
    let (_, file) = save(&[Capability::MappedRam], json!({"max-bandwidth": 0}), 0);
    let (_, header) = header(&file, 0);
    let mut whole = vec![0; file.metadata().unwrap().len() as usize];
    file.read_exact_at(&mut whole, 0).unwrap();
    let end = header.end(RAM_BYTES);
    let state = whole.len() as u64 - end;
    for (bytes, says) in [
        (header.bitmap_offset - 1, "closed"),
        (header.bitmap_offset + 3, "the pages of microvm.ram"),
        (header.pages_offset + 5, "offset 0x100000: the file ends at 0x100005"),
        (end - 1, "the pages of microvm.ram"),
        (end + 3, "closed"),
        (end + state / 2, "closed"),
    ] {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&whole[..bytes as usize], 0).unwrap();
        let (guest, result) = load_from(&file, 0);
        let error = result.unwrap_err().to_string();
        assert!(error.contains(says), "{bytes}: {error}");
        assert_eq!(guest.run_state(), RunState::InMigrate);
    }
}

#[test]
fn headers_and_bitmaps_that_lie_are_refused_by_name() {
    let (_, file) = save(&[Capability::MappedRam], json!({"max-bandwidth": 0}), 0);
    let (at, header) = header(&file, 0);
    let fields = [
        (0, 2, "field version"),
        (4, 8192, "field page size"),
        (12, header.bitmap_offset - 8, "field bitmap offset"),
        (12, header.pages_offset, "field pages offset"),
        (12, u64::MAX, "field pages offset"),
        (20, header.pages_offset + 1, "field pages offset"),
        (20, header.bitmap_offset & !0xfff, "field pages offset"),
        (20, !0xfff, "field pages offset"),
        (20, 1 << 40, "field mapped-ram pages, offset 0x10000000000"),
    ];
    for (field, value, says) in fields {
        let bytes = if field == 0 { 4 } else { 8 };
        let mut before = [0; 8];
        file.read_exact_at(&mut before[..bytes], at + field).unwrap();
        file.write_all_at(&u64::to_be_bytes(value)[8 - bytes..], at + field).unwrap();
        let (_, result) = load_from(&file, 0);
        let error = result.unwrap_err().to_string();
        assert!(error.contains(says), "{field} {value:#x}: {error}");
        file.write_all_at(&before[..bytes], at + field).unwrap();
    }
    load_from(&file, 0).1.unwrap();
}

#[test]
fn what_has_places_is_not_read_from_a_pipe_or_socket() {
    let (_, file) = save(&[Capability::MappedRam], json!({"max-bandwidth": 0}), 0);
    let mut head = [0; 4096];
    file.read_exact_at(&mut head, 0).unwrap();
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    let (reader, mut writer) = std::io::pipe().unwrap();
    std::io::Write::write_all(&mut ours, &head).unwrap();
    std::io::Write::write_all(&mut writer, &head).unwrap();
    for fd in [theirs.into(), reader.into()] {
        let (_, result) = load(Connection::from_fd(fd), false);
        let error = result.unwrap_err();
        assert!(matches!(error, Error::MappedNeedsFile), "{error}");
    }
}

#[test]
fn a_target_with_channels_reads_the_same_file() {
    let (source, file) = save(&[Capability::MappedRam], json!({"max-bandwidth": 0}), 0);
    std::io::Seek::rewind(&mut &file).unwrap();
    let (target, result) = load(Connection::from_fd(file.into()), true);
    result.unwrap();
    assert_same(&source, &target);
}

#[test]
fn a_file_that_is_mapped_has_what_was_read_and_is_never_written() {
    let (source, file) = save(&[Capability::MappedRam], json!({"max-bandwidth": 0}), 0);
    let (_, header) = header(&file, 0);
    // What earlier versions left under a bit that is 0.
    let mut bytes = [0; 4096];
    source.ram.read(4000 * PAGE_BYTES, &mut bytes).unwrap();
    assert_eq!(bytes, [0; 4096]);
    file.write_all_at(&[9; 4096], header.pages_offset + 4000 * PAGE_BYTES).unwrap();
    let mut before = vec![0; file.metadata().unwrap().len() as usize];
    file.read_exact_at(&mut before, 0).unwrap();
    let (one, other) = (anonymous(), anonymous());
    for guest in [&one, &other] {
        guest.ram.write(100 * PAGE_BYTES, &[3; 4096]).unwrap();
        map(guest, &file).unwrap();
        assert_same(&source, guest);
    }
    // Each has its own copy of what it writes.
    one.ram.write(0, &[1; 4096]).unwrap();
    assert_same(&source, &other);
    let mut after = vec![0; before.len()];
    file.read_exact_at(&mut after, 0).unwrap();
    assert!(before == after);
    // Holes are where the file has them, whether they were read or not, and what was written is
    // none.
    let hole = |page| !in_file(&file, header.pages_offset + page * PAGE_BYTES);
    other.ram.write(5000 * PAGE_BYTES, &[0; 1]).unwrap();
    let pages = other.ram.main().data_pages().unwrap();
    assert!(pages.contains(3) && pages.contains(5000) && pages.contains(4000));
    assert_eq!(
        pages.contains(5500),
        !hole(5500),
        "{} of {}",
        pages.count(),
        other.ram.main().pages()
    );
    assert!(map(&one, &file).unwrap_err().to_string().contains("mapped before"));
}

/// Whether the file has data in this place.
fn in_file(file: &File, at: u64) -> bool {
    rustix::fs::seek(file, rustix::fs::SeekFrom::Data(at)).is_ok_and(|data| data == at)
}

/// A guest that began with pages of a file is saved as another: what it never touched is in the new
/// file, and what it did, and the holes.
#[test]
fn a_guest_whose_memory_is_a_file_is_saved_and_hashed_as_any() {
    let (_, file) = save(&[Capability::MappedRam], json!({"max-bandwidth": 0}), 0);
    let guest = anonymous();
    map(&guest, &file).unwrap();
    guest.ram.write(17 * PAGE_BYTES, &[0xab; 100]).unwrap();
    guest.ram.write(5800 * PAGE_BYTES, &[0xcd; 100]).unwrap();
    let (read, result) = load_from(&file, 0);
    result.unwrap();
    read.ram.write(17 * PAGE_BYTES, &[0xab; 100]).unwrap();
    read.ram.write(5800 * PAGE_BYTES, &[0xcd; 100]).unwrap();
    let hash = |ram| hash_ram(ram, &PageSet::default()).unwrap();
    assert_eq!(hash(&guest.ram), hash(&read.ram));
    for capabilities in [&[][..], &[Capability::MappedRam]] {
        let second = tempfile::tempfile().unwrap();
        save_into(&guest, &second, capabilities, json!({"max-bandwidth": 0}));
        let (target, result) = load_from(&second, 0);
        result.unwrap();
        assert_same(&read, &target);
        let blocks = second.metadata().unwrap().blocks();
        assert!(blocks * 512 < 14 << 20, "holes stay holes: {blocks} blocks");
    }
}

#[test]
fn what_cannot_be_mapped_is_refused_by_name() {
    let (_, file) = save(&[Capability::MappedRam], json!({"max-bandwidth": 0}), 0);
    let shared = FakeGuest::new(RunState::InMigrate);
    let error = map(&shared, &file).unwrap_err().to_string();
    assert!(error.contains("private anonymous"), "{error}");
    let (_, plain) = save(&[], json!({"max-bandwidth": 0}), 0);
    let error = map(&anonymous(), &plain).unwrap_err().to_string();
    assert!(error.contains("written with capability mapped-ram"), "{error}");
}

#[test]
fn a_file_cut_short_while_it_is_mapped_is_named() {
    crate::memory::survive_missing_pages().unwrap();
    let (_, unnamed) = save(&[Capability::MappedRam], json!({"max-bandwidth": 0}), 0);
    let (_, header) = header(&unnamed, 0);
    let named = tempfile::NamedTempFile::new().unwrap();
    let file = named.reopen().unwrap();
    let mut bytes = vec![0; unnamed.metadata().unwrap().len() as usize];
    unnamed.read_exact_at(&mut bytes, 0).unwrap();
    file.write_all_at(&bytes, 0).unwrap();
    let guest = anonymous();
    map(&guest, &file).unwrap();
    let mut page = [0; 4096];
    guest.ram.read(0, &mut page).unwrap();
    assert_eq!(guest.ram.main().losses(), 0);
    file.set_len(header.pages_offset + (1 << 20)).unwrap();
    let error = guest.ram.read(2 << 20, &mut page).unwrap_err().to_string();
    let name = named.path().to_str().unwrap();
    assert!(error.contains(name), "{error}");
    assert!(error.contains("cut short") || error.contains("written to"), "{error}");
}

#[test]
fn a_file_that_is_written_to_while_it_is_mapped_is_lost_memory() {
    let (_, file) = save(&[Capability::MappedRam], json!({"max-bandwidth": 0}), 0);
    let guest = anonymous();
    map(&guest, &file).unwrap();
    file.write_all_at(&[1], 0).unwrap();
    let end = Instant::now() + Duration::from_secs(60);
    while guest.ram.main().losses() == 0 {
        assert!(Instant::now() < end, "nobody noticed");
        std::thread::yield_now();
    }
    let error = guest.ram.main().check_losses(0).unwrap_err().to_string();
    assert!(error.contains("was written to"), "{error}");
}

#[test]
fn a_load_that_fails_leaves_no_file_over_memory() {
    let (source, file) = save(&[Capability::MappedRam], json!({"max-bandwidth": 0}), 0);
    let cut = tempfile::tempfile().unwrap();
    let mut bytes = vec![0; file.metadata().unwrap().len() as usize];
    file.read_exact_at(&mut bytes, 0).unwrap();
    cut.write_all_at(&bytes[..bytes.len() - 10], 0).unwrap();
    let guest = anonymous();
    map(&guest, &cut).unwrap_err();
    assert!(!guest.ram.main().has_file_over());
    assert_eq!(guest.ram.main().next_data(0).unwrap(), None, "the memory is empty");
    map(&guest, &file).unwrap();
    // It is nobody's memory any more.
    cut.write_all_at(&[0x55; 4096], 0).unwrap();
    assert_same(&source, &guest);
    guest.ram.main().check_whole().unwrap();
    // One that is mapped stays so, whatever comes.
    assert!(map(&guest, &cut).is_err());
    assert!(guest.ram.main().has_file_over());
    assert_same(&source, &guest);
}
