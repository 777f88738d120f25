//! Writers of each kind against who reads slowly, goes away or has no room.

use super::*;
use crate::io::Waker;
use crate::io::gather::{BUFFER_BYTES, Pool};
use std::io::{Read, pipe};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;

fn pair() -> (Arc<OwnedFd>, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    (Arc::new(ours.into()), theirs)
}

fn ring() -> Ring {
    Ring::new(Waker::new()).unwrap()
}

fn unlimited() -> Arc<Limit> {
    Arc::new(Limit::new(0))
}

#[test]
fn batches_larger_than_the_socket_buffer_arrive_whole_and_in_order() {
    let (fd, mut peer) = pair();
    let reader = std::thread::spawn(move || {
        let mut all = Vec::new();
        peer.read_to_end(&mut all).unwrap();
        all
    });
    let memory: Vec<u8> = (0..3 << 20).map(|i: u32| (i >> 9) as u8).collect();
    let ram = crate::memory::for_tests(3 << 20);
    ram.write(0, &memory).unwrap();
    let mut ring = ring();
    let mut writer = Writer::new(fd, unlimited());
    let (mut gather, mut expected) = (Gather::default(), Vec::new());
    for round in 0..4u8 {
        gather.own().extend_from_slice(&[round; 5]);
        gather.memory(ram.main(), 0..3 << 20);
        expected.extend_from_slice(&[round; 5]);
        expected.extend_from_slice(&memory);
        writer.send(&mut ring, &mut gather).unwrap();
    }
    writer.finish(&mut ring).unwrap();
    assert_eq!(writer.sent(), expected.len() as u64);
    drop(writer);
    assert!(reader.join().unwrap() == expected);
}

#[test]
fn cancel_ends_a_send_that_nobody_reads() {
    let (fd, _peer) = pair();
    let waker = Waker::new();
    let mut ring = Ring::new(waker.clone()).unwrap();
    let mut writer = Writer::new(fd, unlimited());
    let canceller = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(30));
        waker.cancel();
    });
    let result = writer.write_all(&mut ring, &vec![1; 16 << 20]);
    assert!(matches!(result, Err(Error::Cancelled)), "{result:?}");
    canceller.join().unwrap();
}

#[test]
fn a_limit_lets_a_send_out_in_portions_that_are_whole_and_in_order() {
    let (fd, mut peer) = pair();
    let reader = std::thread::spawn(move || {
        let mut all = Vec::new();
        peer.read_to_end(&mut all).unwrap();
        all
    });
    let memory: Vec<u8> = (0..300_000u32).map(|i| (i / 7) as u8).collect();
    let ram = crate::memory::for_tests(1 << 20);
    ram.write(0, &memory).unwrap();
    let mut ring = ring();
    // A portion is 50,000 bytes.
    let mut writer = Writer::new(fd, Arc::new(Limit::new(1_000_000)));
    let (mut gather, mut expected) = (Gather::default(), Vec::new());
    let started = Instant::now();
    for send in 0..3 {
        for part in 0..2 {
            let start = send * 100_000 + part * 50_000;
            gather.own().extend_from_slice(b"head");
            gather.memory(ram.main(), start..start + 50_000);
            expected.extend_from_slice(b"head");
            expected.extend_from_slice(&memory[start as usize..start as usize + 50_000]);
        }
        writer.send(&mut ring, &mut gather).unwrap();
    }
    writer.finish(&mut ring).unwrap();
    // All but what may be caught up and the last portion have been waited for.
    assert!(started.elapsed() >= Duration::from_millis(195), "{:?}", started.elapsed());
    drop(writer);
    assert!(reader.join().unwrap() == expected);
}

#[test]
fn parts_in_any_order_read_back() {
    let file = tempfile::tempfile().unwrap();
    let mut writer = Writer::positioned(Arc::new(file.try_clone().unwrap().into()), unlimited());
    let (mut ring, mut pool) = (ring(), Pool::new(3));
    for chunk in (0..24u64).rev() {
        let mut buffer = loop {
            match pool.take().unwrap() {
                Some(buffer) => break buffer,
                None => assert!(writer.wait(&mut ring).unwrap(), "all are with the kernel"),
            }
        };
        buffer.room()[..70_000].fill(chunk as u8);
        let buffer = pool.give_back(buffer);
        for at in (0..70_000).step_by(1400).rev() {
            let mut gather = writer.gather();
            gather.part(&buffer, at + 700..at + 1400);
            gather.part(&buffer, at..at + 700);
            let offset = chunk * 70_000 + at as u64;
            writer.write(&mut ring, "chunk", gather, offset).unwrap();
        }
    }
    writer.finish(&mut ring).unwrap();
    assert_eq!(writer.sent(), 24 * 70_000);
    let mut bytes = vec![0; 24 * 70_000];
    file.read_exact_at(&mut bytes, 0).unwrap();
    assert!(bytes.chunks(70_000).enumerate().all(|(i, c)| c.iter().all(|b| *b == i as u8)));
    assert_eq!(file.metadata().unwrap().len(), bytes.len() as u64);
}

#[test]
fn a_stream_keeps_its_order_over_many_short_writes() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    let (reader, blocking) = pipe().unwrap();
    let targets: [(OwnedFd, Box<dyn Read + Send>); 2] =
        [(ours.into(), Box::new(theirs)), (blocking.into(), Box::new(reader))];
    for (target, mut source) in targets {
        let thread = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(20));
            let mut all = Vec::new();
            source.read_to_end(&mut all).unwrap();
            all
        });
        let (mut ring, mut writer) = (ring(), Writer::new(Arc::new(target), unlimited()));
        for number in 0..20u8 {
            let mut gather = writer.gather();
            gather.own().resize(BUFFER_BYTES, number);
            writer.write(&mut ring, "chunk", gather, 0).unwrap();
        }
        writer.finish(&mut ring).unwrap();
        drop(writer);
        let all = thread.join().unwrap();
        assert_eq!(all.len(), 20 * BUFFER_BYTES);
        assert!(all.chunks(BUFFER_BYTES).enumerate().all(|(i, c)| c.iter().all(|b| *b == i as u8)));
    }
}

#[test]
fn a_failure_names_the_write_and_leaves_nothing_in_flight() {
    let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
    let (mut ring, mut writer) = (ring(), Writer::new(Arc::new(full.into()), unlimited()));
    let mut write = |what| {
        let mut gather = Gather::default();
        gather.own().extend_from_slice(b"bytes");
        writer.write(&mut ring, what, gather, 0)
    };
    write("headers").and_then(|()| write("pages")).unwrap();
    let failed = writer.finish(&mut ring).unwrap_err();
    assert_eq!(failed.what, "headers");
    assert!(
        matches!(failed.error, Error::System(error) if error.raw_os_error() == Some(libc::ENOSPC))
    );
    assert!(writer.writes.is_empty());
}
