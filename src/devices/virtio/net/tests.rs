//! A driver of a card, on a network that can be full, empty and gone.

use super::super::mmio::{EVENT_IDX, INDIRECT_DESC, Registers, VERSION_1, offered};
use super::super::{NetState, Transport, VirtioState};
use super::*;
use crate::args::Request;
use crate::config::Offloads;
use crate::devices::bus::Window;
use crate::devices::{Device as _, Filter, IrqLine, Loading, Sections};
use crate::kvm::state::ForeignTsc;
use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

mod commands;

const SIZE: u64 = 8;
const BUFFERS: u64 = 0x10_0000;
const NAME: &str = "virtio-mmio@00000000feb00e00/virtio-net";
const MAC: Mac = [0x52, 0x54, 0, 0x12, 0x34, 0x56];
const NEEDS_RESET: u32 = 64;

struct NoLine;

impl IrqLine for NoLine {
    fn set(&self, _high: bool) {}
}

/// Frames that left, frames that are to come, and whether it takes any.
#[derive(Default)]
struct Wire {
    sent: Mutex<Vec<([u8; HEADER_BYTES], Vec<u8>)>>,
    coming: Mutex<VecDeque<Vec<u8>>>,
    full: AtomicBool,
    gone: AtomicBool,
    offloads: AtomicU32,
    ready: Mutex<Option<Arc<OwnedFd>>>,
}

impl Network for Wire {
    fn send(&self, header: &[u8; HEADER_BYTES], frame: &[u8]) -> bool {
        if self.full.load(Ordering::SeqCst) {
            return false;
        }
        self.sent.lock().unwrap().push((*header, frame.to_vec()));
        true
    }

    fn receive(&self, into: &mut [u8]) -> Option<usize> {
        let frame = self.coming.lock().unwrap().pop_front()?;
        into[..HEADER_BYTES].copy_from_slice(&[1; HEADER_BYTES]);
        into[HEADER_BYTES..][..frame.len()].copy_from_slice(&frame);
        Some(HEADER_BYTES + frame.len())
    }

    fn wait(&self) -> Option<Arc<OwnedFd>> {
        self.ready.lock().unwrap().clone()
    }

    fn has_unsent(&self) -> bool {
        false
    }

    fn set_offloads(&self, flags: u32) {
        self.offloads.store(flags, Ordering::SeqCst);
    }

    fn is_gone(&self) -> bool {
        self.gone.load(Ordering::SeqCst)
    }
}

#[derive(Default)]
struct Wires {
    wire: Arc<Wire>,
    cards: Mutex<Vec<Arc<Card>>>,
}

impl Networks for Wires {
    fn network(&self, _: &str) -> Option<(Arc<dyn Network>, Offloads)> {
        Some((self.wire.clone(), ALL))
    }

    fn plug(&self, card: Arc<Card>, _: Option<&str>) {
        self.cards.lock().unwrap().push(card);
    }
}

const ALL: Offloads = Offloads { vnet_hdr: true, ufo: true, uso: true };

struct Rig {
    transport: Transport,
    ram: GuestRam,
    wire: Arc<Wire>,
    card: Arc<Card>,
    given: [u16; 3],
}

fn config(words: &str) -> Config {
    let line = format!("-M microvm,acpi=off -kernel builtin -netdev tap,id=n {words}");
    match crate::args::parse(line.split_whitespace().map(Into::into)) {
        Ok(Request::Run(config)) => *config,
        other => panic!("{other:?}"),
    }
}

fn rig() -> Rig {
    let config = config("-m 4 -device virtio-net-device,netdev=n,id=nic,host_mtu=1400");
    let ram = GuestRam::new(&config.memory).unwrap();
    let wires = Wires::default();
    let device = &config.devices[0];
    let wanted: &Wanted = device.properties.downcast_ref().unwrap();
    let model = Box::new(Net::new(wanted, device, &config, &wires));
    let offered = offered(false, EVENT_IDX | INDIRECT_DESC, wanted.offers(&config));
    let registers = Registers::new(false, offered);
    let transport =
        Transport::new(0xfeb0_0e00, registers, model, ram.clone(), Box::new(NoLine)).unwrap();
    transport.resume().unwrap();
    let card = wires.cards.lock().unwrap()[0].clone();
    Rig { transport, ram, wire: wires.wire, card, given: [0; 3] }
}

fn ring(queue: usize) -> (u64, u64, u64) {
    let base = 0x1_0000 + 0x3000 * queue as u64;
    (base, base + 0x1000, base + 0x2000)
}

impl Rig {
    fn write(&self, register: u64, value: u32) {
        self.transport.write(register, &value.to_le_bytes());
    }

    fn read(&self, register: u64) -> u32 {
        let mut word = [0; 4];
        self.transport.read(register, &mut word);
        u32::from_le_bytes(word)
    }

    fn start(&mut self, features: u64) {
        self.given = [0; 3];
        self.write(0x70, 0);
        self.write(0x70, 3);
        let features = features | VERSION_1;
        for half in [0, 1] {
            self.write(0x24, half);
            self.write(0x20, (features >> (32 * half)) as u32);
        }
        self.write(0x70, 11);
        for queue in 0..3 {
            let (desc, avail, used) = ring(queue);
            self.ram.write(avail, &[0; 64]).unwrap();
            self.ram.write(used, &[0; 128]).unwrap();
            self.write(0x30, queue as u32);
            self.write(0x38, SIZE as u32);
            for (register, address) in [(0x80, desc), (0x90, avail), (0xa0, used)] {
                self.write(register, address as u32);
            }
            self.write(0x44, 1);
        }
        self.write(0x70, 15);
        assert_eq!(self.read(0x70), 15);
    }

    fn buffer(queue: usize, slot: u64) -> u64 {
        BUFFERS + 0x1_0000 * queue as u64 + 0x1000 * slot
    }

    /// Gives a chain of two: `read` to be read, and so many bytes to be written, either of which may
    /// be none.
    fn give(&mut self, queue: usize, read: &[u8], write: u32) {
        let (desc, avail, _) = ring(queue);
        let slot = u64::from(self.given[queue]) % (SIZE / 2);
        let head = 2 * slot;
        let at = Rig::buffer(queue, head);
        self.ram.write(at, read).unwrap();
        let entry = |gpa: u64, bytes: u32, flags: u16, next: u16| {
            let mut entry = gpa.to_le_bytes().to_vec();
            entry.extend(bytes.to_le_bytes());
            entry.extend([flags.to_le_bytes(), next.to_le_bytes()].concat());
            entry
        };
        let answer = Rig::buffer(queue, head + 1);
        let both = if write > 0 { 1 } else { 0 };
        let first = match read.len() as u32 {
            0 => entry(answer, write, 2, 0),
            bytes => entry(at, bytes, both, head as u16 + 1),
        };
        self.ram.write(desc + 16 * head, &first).unwrap();
        self.ram.write(desc + 16 * (head + 1), &entry(answer, write.max(1), 2, 0)).unwrap();
        let place = u64::from(self.given[queue]) % SIZE;
        self.ram.write(avail + 4 + 2 * place, &(head as u16).to_le_bytes()).unwrap();
        self.given[queue] += 1;
        self.ram.write(avail + 2, &self.given[queue].to_le_bytes()).unwrap();
        self.write(0x50, queue as u32);
    }

    fn used(&self, queue: usize) -> u16 {
        let mut half = [0; 2];
        self.ram.read(ring(queue).2 + 2, &mut half).unwrap();
        u16::from_le_bytes(half)
    }

    /// What was written to the chain that was given back as number `count`.
    fn came(&self, queue: usize, count: u16) -> Vec<u8> {
        wait("a chain", || self.used(queue) > count);
        let (mut entry, at) = ([0; 8], u64::from(count) % SIZE);
        self.ram.read(ring(queue).2 + 4 + 8 * at, &mut entry).unwrap();
        let word = |at| u32::from_le_bytes(std::array::from_fn(|byte| entry[at + byte]));
        let mut bytes = vec![0; word(4) as usize];
        self.ram.read(Rig::buffer(queue, u64::from(word(0)) + 1), &mut bytes).unwrap();
        bytes
    }

    fn comes(&self, frame: &[u8]) {
        self.wire.coming.lock().unwrap().push_back(frame.to_vec());
        self.card.wake();
    }

    /// The answer to a command.
    fn command(&mut self, class: u8, command: u8, data: &[u8]) -> u8 {
        let count = self.used(CONTROL);
        self.give(CONTROL, &[&[class, command], data].concat(), 1);
        self.came(CONTROL, count)[0]
    }

    fn filter(&self) -> Filter {
        self.card.look_at_filter()
    }

    fn save(&self) -> Sections {
        let mut sections = Sections::default();
        self.transport.quiesce().unwrap();
        self.transport.save(&mut sections).unwrap();
        sections
    }
}

fn wait(what: &str, done: impl Fn() -> bool) {
    let end = Instant::now() + Duration::from_secs(20);
    while !done() {
        assert!(Instant::now() < end, "{what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn frame(to: Mac, rest: &[u8]) -> Vec<u8> {
    [&to[..], &[2, 0, 0, 0, 0, 9], &[8, 0], rest].concat()
}

fn part(sections: &Sections) -> NetState {
    let state: &VirtioState = sections.get(NAME, 0).unwrap();
    let VirtioDevice::Net(part) = &state.device else { panic!() };
    (**part).clone()
}

#[test]
fn frames_go_both_ways_with_their_headers() {
    let mut rig = rig();
    rig.start(0);
    let coming = frame(MAC, b"hello");
    rig.comes(&coming);
    rig.give(RECEIVE, &[], 2000);
    // Ten bytes of the network's, and one buffer.
    assert_eq!(rig.came(RECEIVE, 0), [&[1; 10][..], &[1, 0], &coming].concat());
    let going = frame([0xff; 6], b"world");
    rig.give(SEND, &[&[3; 12][..], &going].concat(), 0);
    wait("the frame", || !rig.wire.sent.lock().unwrap().is_empty());
    assert_eq!(rig.wire.sent.lock().unwrap()[0], ([3; 10], going));
    wait("the buffer", || rig.used(SEND) == 1);
}

#[test]
fn a_frame_is_laid_over_as_many_buffers_as_it_takes_and_none_before() {
    let mut rig = rig();
    rig.start(feature::MRG_RXBUF | EVENT_IDX);
    let coming = frame(MAC, &[7; 100]);
    rig.comes(&coming);
    rig.give(RECEIVE, &[], 50);
    rig.give(RECEIVE, &[], 50);
    // A command behind it has been carried out: it was looked at, and there was no room.
    rig.command(0, 0, &[1]);
    assert_eq!(rig.used(RECEIVE), 0);
    rig.give(RECEIVE, &[], 50);
    wait("three buffers at once", || rig.used(RECEIVE) == 3);
    let all: Vec<u8> = (0..3).flat_map(|count| rig.came(RECEIVE, count)).collect();
    assert_eq!(all, [&[1; 10][..], &[3, 0], &coming].concat());
    // Without them it is lost, and the next finds the same buffer.
    rig.start(0);
    rig.comes(&coming);
    rig.comes(&frame(MAC, b"short"));
    rig.give(RECEIVE, &[], 50);
    assert_eq!(rig.came(RECEIVE, 0)[12..], frame(MAC, b"short"));
}

#[test]
fn a_full_network_keeps_the_guests_buffers_until_it_has_room() {
    let mut rig = rig();
    rig.start(0);
    rig.wire.full.store(true, Ordering::SeqCst);
    rig.give(SEND, &[&[0; 12][..], &frame(MAC, b"one")].concat(), 0);
    rig.command(0, 0, &[1]);
    assert_eq!(rig.used(SEND), 0);
    rig.wire.full.store(false, Ordering::SeqCst);
    rig.card.wake();
    wait("the buffer", || rig.used(SEND) == 1);
    assert_eq!(rig.wire.sent.lock().unwrap().len(), 1);
}

#[test]
fn a_card_that_stands_still_keeps_no_descriptor() {
    let mut rig = rig();
    let fd = rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).unwrap();
    let fd = Arc::new(fd);
    *rig.wire.ready.lock().unwrap() = Some(fd.clone());
    for broken in [false, true] {
        rig.start(0);
        wait("somebody who waits", || Arc::strong_count(&fd) >= 4);
        if broken {
            rig.give(SEND, &[0; 3], 0);
            wait("the complaint", || rig.read(0x70) & NEEDS_RESET != 0);
        } else {
            rig.transport.quiesce().unwrap();
        }
        rig.card.wake();
        wait("only the wire and the test", || Arc::strong_count(&fd) == 2);
        rig.transport.resume().unwrap();
    }
}

#[test]
fn a_hostile_driver_breaks_its_own_card() {
    for (queue, read, write) in [
        (SEND, &[0; 11][..], 0),
        (RECEIVE, &[][..], 5),
        (RECEIVE, &[1; 20][..], 0),
        (CONTROL, &[0, 0, 1][..], 0),
        (CONTROL, &[0][..], 1),
    ] {
        let mut rig = rig();
        rig.start(feature::CTRL_VQ);
        rig.comes(&frame(MAC, b"x"));
        rig.give(queue, read, write);
        wait("the complaint", || rig.read(0x70) & NEEDS_RESET != 0);
        rig.start(0);
        rig.give(SEND, &[&[0; 12][..], &frame(MAC, b"y")].concat(), 0);
        wait("the frame", || rig.used(SEND) == 1);
    }
}

#[test]
fn frames_that_no_wire_takes_are_lost() {
    let mut rig = rig();
    rig.start(0);
    rig.give(SEND, &[0; 12], 0);
    rig.give(SEND, &[&[0; 12][..], b"x"].concat(), 0);
    wait("both", || rig.used(SEND) == 2);
    assert_eq!(rig.wire.sent.lock().unwrap().len(), 1);
}

#[test]
fn a_cable_plugged_out_is_told_and_a_network_taken_away_is_let_go() {
    let mut rig = rig();
    rig.start(feature::STATUS);
    let status = |rig: &Rig| rig.read(0x104) >> 16;
    assert_eq!(status(&rig), 1);
    rig.card.set_link(false);
    wait("the link", || status(&rig) == 0 && rig.read(0x60) & 2 != 0);
    rig.give(SEND, &[&[0; 12][..], &frame(MAC, b"into the dark")].concat(), 0);
    wait("the buffer", || rig.used(SEND) == 1);
    assert!(rig.wire.sent.lock().unwrap().is_empty());
    rig.card.set_link(true);
    wait("the link", || status(&rig) == 1);
    rig.wire.gone.store(true, Ordering::SeqCst);
    rig.card.set_link(false);
    wait("the wire is let go", || Arc::strong_count(&rig.wire) == 1);
}

#[test]
fn a_guest_announces_itself_when_told_and_says_so() {
    let mut rig = rig();
    rig.start(feature::STATUS | feature::CTRL_VQ | feature::GUEST_ANNOUNCE);
    rig.card.announce();
    wait("the word", || rig.read(0x104) >> 16 == 3 && rig.read(0x60) & 2 != 0);
    assert_eq!(rig.command(3, 0, &[]), 0);
    assert_eq!(rig.read(0x104) >> 16, 1);
    assert_eq!(rig.command(3, 0, &[]), 1, "nobody asked");
}

#[test]
fn the_state_moves_to_another_card_which_goes_on_where_the_first_stopped() {
    let mut source = rig();
    let features = feature::CTRL_VQ | feature::CTRL_RX | feature::MRG_RXBUF | feature::CTRL_VLAN;
    source.start(features | feature::CTRL_MAC_ADDR);
    source.command(0, 0, &[0]);
    source.command(1, 1, &[4; 6]);
    source.command(2, 0, &9u16.to_le_bytes());
    source.give(RECEIVE, &[], 2000);
    source.card.set_link(false);
    wait("the link", || source.read(0x104) >> 16 == 0);
    let sections = source.save();
    let saved = part(&sections);
    assert_eq!((saved.mergeable_rx_bufs, saved.tx_waiting, saved.has_vnet_hdr), (1, 1, 1));
    let mut target = rig();
    let mut everything = vec![0; 4 << 20];
    source.ram.read(0, &mut everything).unwrap();
    target.ram.write(0, &everything).unwrap();
    let mut from =
        Loading { sections: &sections, foreign: ForeignTsc::Refuse, report: Default::default() };
    target.transport.load(&mut from).unwrap();
    // Before anything ran: it may go on to a third at once.
    assert_eq!(part(&target.save()), saved);
    target.given = source.given;
    target.transport.resume().unwrap();
    target.card.set_link(true);
    target.comes(&frame([4; 6], b"over there"));
    assert_eq!(target.came(RECEIVE, 0)[12..], frame([4; 6], b"over there"));
    assert!(target.filter().has_vlan(9) && !target.filter().has_vlan(8));
}

#[test]
fn states_of_other_cards_are_refused_by_name() {
    let config = config(
        "-netdev stream,id=s,addr.type=unix,addr.path=/s -device virtio-net-device,netdev=s",
    );
    let wanted: &Wanted = config.devices[0].properties.downcast_ref().unwrap();
    for (state, words) in [
        (NetState { has_vnet_hdr: 1, ..NetState::default() }, "has_vnet_hdr"),
        (NetState { has_ufo: 1, ..NetState::default() }, "has_ufo"),
        (NetState { pairs: Some((4, 1)), ..NetState::default() }, "max_queue_pairs"),
        (NetState { rss: Some(Default::default()), ..NetState::default() }, "rss"),
    ] {
        assert!(check(wanted, &config, &state).unwrap_err().contains(words));
    }
    assert_eq!(check(wanted, &config, &NetState::default()), Ok(()));
}

#[test]
fn cards_and_networks_find_each_other() {
    let refused = |words: &str| {
        let line = format!("-M microvm,acpi=off -kernel builtin {words}");
        crate::args::parse(line.split_whitespace().map(Into::into)).unwrap_err().to_string()
    };
    let card = "-device virtio-net-device";
    for (words, told) in [
        (format!("-netdev tap,id=net0 {card},netdev=net1"), "net0"),
        (format!("-netdev tap,id=n {card},netdev=n {card},netdev=n"), "another card"),
        (format!("{card},mq=on"), "mq=off"),
        (format!("{card},mac=1:2:3"), "MAC"),
        (format!("{card},rx_queue_size=100"), "power of two"),
    ] {
        let said = refused(&words);
        assert!(said.contains(told), "{words}: {said}");
    }
    let config = config(&format!("{card},netdev=n {card}"));
    assert_eq!(config.notices, ["nic virtio-net-device.1 has no peer"]);
    assert_eq!(options::card(&config, &config.devices[1]).state().filter.mac[5], 0x57);
}
