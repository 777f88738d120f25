//! A back end that answers, one that refuses, falls silent, lies or goes away, and what becomes of the
//! device.

use super::super::mmio::{EVENT_IDX, INDIRECT_DESC, VERSION_1};
use super::super::vhost_user::FrontEnd;
use super::*;
use crate::memory::for_tests;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::thread::JoinHandle;

/// What the back end does with the message of this number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Does {
    Refuse(u32),
    /// Closes the socket.
    Leave(u32),
    /// Answers something else.
    Lie(u32),
    /// Answers half, and leaves.
    Half(u32),
    /// Answers each time just before it would be silent.
    Slowly,
    Well,
}

const FEATURES: u64 = 1 << 30 | VERSION_1 | EVENT_IDX | INDIRECT_DESC;

/// A back end at the other end; returns the numbers of the messages that it got.
fn back_end(mut socket: UnixStream, does: Does) -> JoinHandle<Vec<u32>> {
    std::thread::spawn(move || {
        let mut heard = Vec::new();
        let mut header = [0; 12];
        while socket.read_exact(&mut header).is_ok() {
            let word = |at: usize| u32::from_le_bytes(std::array::from_fn(|i| header[4 * at + i]));
            let (number, flags) = (word(0), word(1));
            let mut body = vec![0; word(2) as usize];
            if socket.read_exact(&mut body).is_err() {
                break;
            }
            heard.push(number);
            let mut answer = match number {
                1 => FEATURES.to_le_bytes().to_vec(),
                15 => u64::MAX.to_le_bytes().to_vec(),
                11 => [&body[..4], &7u32.to_le_bytes()[..]].concat(),
                _ if flags & 8 != 0 => {
                    u64::from(does == Does::Refuse(number)).to_le_bytes().to_vec()
                }
                _ => continue,
            };
            let mut head = [number, 5, answer.len() as u32];
            match does {
                Does::Leave(at) if at == number => break,
                Does::Lie(at) if at == number => head[0] += 1,
                Does::Half(at) if at == number => answer.truncate(3),
                Does::Slowly => std::thread::sleep(ANSWERS / 2),
                _ => {}
            }
            let answer = [head.map(u32::to_le_bytes).concat(), answer].concat();
            if socket.write_all(&answer).is_err() {
                break;
            }
            if matches!(does, Does::Half(at) if at == number) {
                break;
            }
        }
        heard
    })
}

/// Goes through all that the device asks of its back end.
fn converse(does: Does) -> (Result<u16, Lost>, Vec<u32>) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let back_end = back_end(theirs, does);
    let ram = for_tests(4 << 20);
    let time = if does == Does::Slowly { ANSWERS } else { 60 * ANSWERS };
    let limit = Instant::now() + time;
    let talk = || {
        let end = FrontEnd::new(ours.into(), QUEUES, limit)?;
        assert_eq!(end.features, FEATURES);
        assert!(!end.has_ended());
        let part = MemoryPart { gpa: 0, bytes: 4 << 20, host: 1 << 40, offset: 0 };
        end.begin(VERSION_1, &[part], ram.main().descriptor().unwrap().as_fd(), limit)?;
        let ring =
            RingAt { index: 1, size: 8, desc: 1 << 40, avail: 2 << 40, used: 3 << 40, position: 5 };
        end.start(&ring, limit)?;
        end.stop(1, limit)
    };
    let said = talk();
    (said, back_end.join().unwrap())
}

#[test]
fn a_back_end_is_told_all_that_it_must_know() {
    let (position, heard) = converse(Does::Well);
    assert_eq!(position.unwrap(), 7);
    assert_eq!(heard, [1, 3, 15, 16, 2, 5, 8, 10, 9, 13, 12, 18, 11]);
}

#[test]
fn a_back_end_that_does_not_do_its_part_is_told_by_name() {
    for number in [1, 15, 2, 5, 8, 12, 18, 11] {
        for does in [Does::Leave(number), Does::Lie(number), Does::Half(number)] {
            let lost = converse(does).0.unwrap_err();
            let fits = match does {
                Does::Lie(_) => matches!(lost, Lost::Confused),
                _ => matches!(lost, Lost::Closed),
            };
            assert!(fits, "{does:?}: {lost}");
        }
    }
    let lost = converse(Does::Refuse(5)).0.unwrap_err();
    assert!(matches!(lost, Lost::Refuses(5)), "{lost}");
}

#[test]
fn a_silent_back_end_is_not_waited_for_for_ever() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let lost = FrontEnd::new(ours.into(), QUEUES, limit()).map(drop).unwrap_err();
    assert!(matches!(lost, Lost::Silent), "{lost}");
    drop(theirs);
    // Nor is one that is never quite silent.
    let lost = converse(Does::Slowly).0.unwrap_err();
    assert!(matches!(lost, Lost::Silent), "{lost}");
}

#[test]
fn a_back_end_that_accepts_nobody_is_not_waited_for() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("fs");
    let listener =
        socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None).unwrap();
    rustix::net::bind(&listener, &SocketAddrUnix::new(&path).unwrap()).unwrap();
    rustix::net::listen(&listener, 0).unwrap();
    let (tell, told) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let address = SocketAddress::Unix { path };
        let mut waiting = Vec::new();
        let refused = loop {
            match connect(&address) {
                Ok(socket) => waiting.push(socket),
                Err(why) => break why,
            }
        };
        tell.send((is_late(&refused), refused.to_string())).unwrap();
    });
    let (is_late, why) = told.recv_timeout(Duration::from_secs(30)).unwrap();
    assert!(is_late && why.contains("no room"), "{why}");
    drop(listener);
}
