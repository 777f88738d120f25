use super::*;
use proptest::prelude::*;

const BYTES: usize = 1 << 20;

fn file() -> Arc<File> {
    Arc::new(tempfile::tempfile().unwrap())
}

fn part(file: &Arc<File>, is_qcow2: bool) -> Part {
    Part {
        file: file.clone(),
        name: "t".into(),
        header: is_qcow2.then(|| Header::read(file).unwrap()),
        watch: Arc::default(),
        alignment: 1,
        no_flush: true,
        passed: None,
    }
}

/// A disk over two others, the lowest of which is raw and shorter.
fn layers() -> [Arc<File>; 3] {
    let all = [file(), file(), file()];
    all[2].set_len(BYTES as u64 / 2).unwrap();
    create(&all[1], BYTES as u64, ("low".into(), "raw".into())).unwrap();
    create(&all[0], BYTES as u64, ("middle".into(), "qcow2".into())).unwrap();
    all
}

fn open(files: &[Arc<File>]) -> Chain {
    let last = files.len() - 1;
    let parts = files.iter().enumerate().map(|(at, file)| part(file, at != last));
    Chain::open(parts.collect(), true).unwrap()
}

#[derive(Clone, Debug)]
enum Step {
    Write(usize, usize, u8),
    Zero(usize, usize, bool),
    Flush,
    Again,
}

fn step() -> impl Strategy<Value = Step> {
    let place = (0..BYTES / 512, 1usize..400);
    prop_oneof![
        (place.clone(), any::<u8>()).prop_map(|((at, count), byte)| Step::Write(at, count, byte)),
        (place, any::<bool>()).prop_map(|((at, count), unmap)| Step::Zero(at, count, unmap)),
        Just(Step::Flush),
        Just(Step::Again),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]
    #[test]
    fn a_chain_is_as_a_plain_disk(steps in proptest::collection::vec(step(), 1..30)) {
        let files = layers();
        let mut model = vec![0; BYTES];
        use std::os::unix::fs::FileExt;
        files[2].write_all_at(&[7; 5000], 300).unwrap();
        model[300..5300].fill(7);
        let mut chain = open(&files);
        for step in steps {
            match step {
                Step::Write(at, count, byte) => {
                    let (at, end) = (at * 512, ((at + count) * 512).min(BYTES));
                    chain.write(at as u64, &vec![byte; end - at]).unwrap();
                    model[at..end].fill(byte);
                }
                Step::Zero(at, count, unmap) => {
                    let (at, end) = (at * 512, ((at + count) * 512).min(BYTES));
                    chain.zero(at as u64, (end - at) as u64, unmap).unwrap();
                    model[at..end].fill(0);
                }
                Step::Flush => chain.flush().unwrap(),
                Step::Again => {
                    chain.close().unwrap();
                    chain = open(&files);
                }
            }
        }
        let mut found = vec![1; BYTES];
        chain.read(0, &mut found).unwrap();
        prop_assert!(found == model);
    }
}

#[test]
fn what_is_discarded_goes_back_to_the_host_and_reads_as_no_old_data() {
    use std::os::unix::fs::MetadataExt;
    let files = layers();
    let mut chain = open(&files);
    chain.write(0, &vec![3; BYTES]).unwrap();
    chain.flush().unwrap();
    let before = files[0].metadata().unwrap().blocks();
    chain.discard(100, BYTES as u64 - 100).unwrap();
    chain.flush().unwrap();
    let after = files[0].metadata().unwrap().blocks();
    assert!(after + 1024 < before, "{before} {after}");
    let mut start = [0; 100];
    chain.read(0, &mut start).unwrap();
    assert_eq!(start, [3; 100]);
    let mut rest = vec![1; BYTES - 65536];
    chain.read(65536, &mut rest).unwrap();
    assert!(rest.iter().all(|byte| *byte == 0));
}

#[test]
fn an_image_is_dirty_until_it_is_closed_and_all_is_there() {
    let files = layers();
    let is_dirty = || Header::read(&files[0]).unwrap().is_dirty;
    for alignment in [1, 4096] {
        let mut parts: Vec<_> = (0..3).map(|at| part(&files[at], at != 2)).collect();
        parts[0].alignment = alignment;
        let mut chain = Chain::open(parts, true).unwrap();
        assert!(is_dirty() && !Header::read(&files[1]).unwrap().is_dirty);
        // Opened once more on the way, and its header written.
        *chain.watch.fails.lock().unwrap() = Some(0);
        chain.write(14 << 16, &[1; 512]).unwrap_err();
        *chain.watch.fails.lock().unwrap() = None;
        chain.resize(chain.top.as_ref().unwrap().size() + 4096, false).unwrap();
        chain.flush().unwrap();
        assert!(is_dirty());
        chain.close().unwrap();
        assert!(!is_dirty());
    }
    drop(open(&files));
    assert!(!is_dirty());
    // Who only reads it leaves the header alone.
    let parts = (0..3).map(|at| part(&files[at], at != 2)).collect();
    drop(Chain::open(parts, false).unwrap());
    assert!(!is_dirty());
    let mut chain = open(&files);
    chain.write(15 << 16, &[1; 512]).unwrap();
    // What could not be closed is open as it was.
    *chain.watch.fails.lock().unwrap() = Some(0);
    assert_eq!(chain.close().unwrap_err().raw_os_error(), Some(libc::ENOSPC));
    assert!(is_dirty());
    *chain.watch.fails.lock().unwrap() = None;
    chain.write(0, &[2; 512]).unwrap();
    chain.close().unwrap();
    assert!(!is_dirty());
    let mut chain = open(&files);
    chain.write(13 << 16, &[1; 512]).unwrap();
    *chain.watch.fails.lock().unwrap() = Some(0);
    drop(chain);
    assert!(is_dirty());
}

#[test]
fn a_closed_image_is_written_no_more() {
    let files = layers();
    let mut chain = open(&files);
    chain.write(0, &[1; 512]).unwrap();
    chain.watch.close();
    assert!(chain.write(512, &[1; 512]).is_err());
    assert!(chain.flush().is_err());
}

#[test]
fn what_looks_like_a_header_but_names_another_file_is_not_written() {
    use std::os::unix::fs::FileExt;
    let files = layers();
    let mut header = vec![0; 65536];
    files[0].read_exact_at(&mut header, 0).unwrap();
    let storage = part(&files[0], true).storage(true);
    storage.may_write(0, &header[..72]).unwrap();
    storage.may_write(65536, &[0x51; 512]).unwrap();
    let name = u64::from_be_bytes(header[8..16].try_into().unwrap()) as usize;
    for (at, byte) in [(name, header[name] ^ 1), (20 + 3, 17), (7, 2)] {
        let mut other = header.clone();
        other[at] = byte;
        assert!(storage.may_write(0, &other).is_err(), "{at}");
    }
    assert!(storage.may_write(512, &header[512..1024]).is_err());
    assert!(storage.may_write(0, &[]).is_err());
}

#[test]
fn a_guest_never_writes_the_header() {
    use std::os::unix::fs::FileExt;
    let files = layers();
    // Refcounts that say that all is free.
    files[0].write_all_at(&[0; 65536], 2 * 65536).unwrap();
    let mut before = vec![0; 1024];
    files[0].read_exact_at(&mut before, 0).unwrap();
    let mut chain = open(&files);
    for cluster in 0..16 {
        let _ = chain.write(cluster * 65536, &[0x51; 65536]);
    }
    let _ = chain.flush();
    let mut after = vec![0; 1024];
    files[0].read_exact_at(&mut after, 0).unwrap();
    assert_eq!(before[..24], after[..24]);
    assert!(!after.starts_with(&[0x51; 8]));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]
    /// Whatever tables say, requests end, and the machine is not the worse for it.
    #[test]
    fn tables_that_lie_end_no_process(
        changes in proptest::collection::vec((0usize..7, 0u64..64, any::<u64>(), 0u8..4), 1..24),
        steps in proptest::collection::vec(step(), 1..12),
    ) {
        use std::os::unix::fs::FileExt;
        let files = layers();
        let mut chain = open(&files);
        chain.write(0, &vec![1; 300_000]).unwrap();
        chain.write(700_000, &vec![2; 100_000]).unwrap();
        chain.close().unwrap();
        for (table, entry, value, kind) in changes {
            // Whole clusters near by, with and without the flags; or anything.
            let value = match kind {
                0 => value,
                1 => (value % 16) << 16 | 1 << 63,
                2 => (value % 16) << 16 | 1 << 62,
                _ => (value % 16) << 16,
            };
            files[0].write_all_at(&value.to_be_bytes(), table as u64 * 65536 + 8 * entry).unwrap();
        }
        let Ok(header) = Header::read(&files[0]) else { return Ok(()) };
        if super::super::refcounts_are_apart(&files[0], &header).is_err() {
            return Ok(());
        }
        let parts = (0..3).map(|at| part(&files[at], at != 2)).collect();
        let Ok(mut chain) = Chain::open(parts, true) else { return Ok(()) };
        let size = header.bytes;
        for step in steps {
            let inside = |at: usize, count: usize| {
                let at = (at * 512) as u64;
                (at, (count as u64 * 512).min(size.saturating_sub(at)))
            };
            match step {
                Step::Write(at, count, byte) => {
                    let (at, bytes) = inside(at, count);
                    let _ = chain.write(at, &vec![byte; bytes as usize]);
                    let _ = chain.read(at, &mut vec![0; bytes as usize]);
                }
                Step::Zero(at, count, unmap) => {
                    let (at, bytes) = inside(at, count);
                    let _ = chain.zero(at, bytes, unmap);
                }
                Step::Flush => {
                    let _ = chain.flush();
                }
                Step::Again => {
                    let _ = chain.discard(0, size.min(1 << 20));
                }
            }
        }
    }
}

/// What an image of clusters of 512 bytes says: the refcount of each cluster, and what refers to it.
fn counts(file: &File) -> Vec<(u64, u64)> {
    use std::os::unix::fs::FileExt;
    let long = |at: u64| {
        let mut bytes = [0; 8];
        file.read_exact_at(&mut bytes, at).unwrap();
        u64::from_be_bytes(bytes)
    };
    const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
    let clusters = file.metadata().unwrap().len().div_ceil(512);
    let mut counts = vec![(0, 0); clusters as usize];
    let mut refers = |at: u64| counts[(at / 512) as usize].1 += 1;
    refers(0);
    let (l1, l1_entries) = (long(40), long(32) & 0xffff_ffff);
    let (table, table_clusters) = (long(48), long(56) >> 32);
    (0..l1_entries.div_ceil(64)).for_each(|cluster| refers(l1 + 512 * cluster));
    (0..table_clusters).for_each(|cluster| refers(table + 512 * cluster));
    for l2 in (0..l1_entries).map(|entry| long(l1 + 8 * entry) & OFFSET).filter(|l2| *l2 != 0) {
        refers(l2);
        let data = (0..64).map(|entry| long(l2 + 8 * entry) & OFFSET);
        data.filter(|data| *data != 0).for_each(&mut refers);
    }
    let blocks: Vec<u64> = (0..table_clusters * 64).map(|entry| long(table + 8 * entry)).collect();
    blocks.iter().filter(|block| **block != 0).for_each(|block| refers(*block));
    for (cluster, count) in counts.iter_mut().enumerate() {
        let block = blocks[cluster / 256];
        if block != 0 {
            let mut bytes = [0; 2];
            file.read_exact_at(&mut bytes, block + 2 * (cluster as u64 % 256)).unwrap();
            count.0 = u16::from_be_bytes(bytes).into();
        }
    }
    counts
}

/// Wherever room runs out, what was written before is there, and what is written when there is room
/// again, too.
#[test]
fn a_write_that_failed_takes_no_other_with_it() {
    use imago::FormatCreateBuilder;
    let mut failures = 0;
    for works in 0.. {
        let file = file();
        let storage = Part { header: None, ..part(&file, false) }.storage(true);
        let image = Qcow2::<Storage, Access>::create_builder(storage).size(BYTES as u64);
        image.cluster_size(512).create().unwrap();
        let parts = vec![part(&file, true)];
        let mut chain = Chain::open(parts, true).unwrap();
        let mut model = vec![0; BYTES];
        let watch = chain.watch.clone();
        *watch.fails.lock().unwrap() = Some(works);
        let mut has_failed = false;
        // Far from one another, so that tables of both kinds grow.
        for turn in 0..40u64 {
            let at = (turn * 37 % 40) * (BYTES as u64 / 40) / 512 * 512;
            let bytes = vec![turn as u8 + 1; 7 * 512];
            let mut done = chain.write(at, &bytes);
            while done.is_err() {
                assert_eq!(done.unwrap_err().raw_os_error(), Some(libc::ENOSPC));
                // Once more without room; then there is.
                let _ = chain.write(at, &bytes);
                has_failed = true;
                *watch.fails.lock().unwrap() = None;
                done = chain.write(at, &bytes);
            }
            model[at as usize..][..bytes.len()].copy_from_slice(&bytes);
        }
        *watch.fails.lock().unwrap() = None;
        let mut found = vec![1; BYTES];
        chain.read(0, &mut found).unwrap();
        assert!(found == model, "{works}");
        chain.close().unwrap();
        let is_lost = |(count, refers): &(u64, u64)| count < refers;
        assert!(!counts(&file).iter().any(is_lost), "{works}");
        let mut chain = Chain::open(vec![part(&file, true)], false).unwrap();
        chain.read(0, &mut found).unwrap();
        assert!(found == model, "{works}");
        failures += u32::from(has_failed);
        if !has_failed {
            break;
        }
    }
    assert!(failures > 100, "{failures}");
}
