//! A driver of a controller, with lines that can be full, shut and opened.

use super::super::mmio::{EVENT_IDX, INDIRECT_DESC, Registers, VERSION_1, offered};
use super::super::{Transport, VirtioState};
use super::*;
use crate::config::{Memory, MemoryBackend};
use crate::devices::bus::Window;
use crate::devices::{Device, IrqLine, Line, LineEnd, Loading, Sections};
use crate::kvm::state::ForeignTsc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

const SIZE: u64 = 8;
const BUFFERS: u64 = 0x10_0000;
const NAME: &str = "virtio-mmio@00000000feb00e00/virtio-console";
const NEEDS_RESET: u32 = 64;

struct NoLine;

impl IrqLine for NoLine {
    fn set(&self, _high: bool) {}
}

/// The other end of a port.
#[derive(Default)]
struct Outside {
    heard: Mutex<Vec<u8>>,
    /// Bytes that it still takes.
    room: AtomicUsize,
    open: AtomicBool,
    told_of_room: AtomicUsize,
    end: OnceLock<Arc<dyn LineEnd>>,
}

impl Line for Outside {
    fn send(&self, bytes: &[u8]) -> usize {
        let taken = bytes.len().min(self.room.load(Ordering::SeqCst));
        self.room.fetch_sub(taken, Ordering::SeqCst);
        self.heard.lock().unwrap().extend(&bytes[..taken]);
        taken
    }

    fn is_open(&self) -> bool {
        self.open.load(Ordering::SeqCst)
    }

    fn has_room(&self) {
        self.told_of_room.fetch_add(1, Ordering::SeqCst);
    }

    fn attach(&self, end: Arc<dyn LineEnd>) {
        assert!(self.end.set(end).is_ok());
    }
}

impl Outside {
    fn heard(&self) -> Vec<u8> {
        self.heard.lock().unwrap().clone()
    }

    fn end(&self) -> &dyn LineEnd {
        &**self.end.get().unwrap()
    }

    fn make_room(&self, bytes: usize) {
        self.room.store(bytes, Ordering::SeqCst);
        self.end().changed();
    }

    fn open(&self, open: bool) {
        self.open.store(open, Ordering::SeqCst);
        self.end().changed();
    }
}

/// A controller with a console (port 0) and a port (1, "org.test") and what lies behind them.
struct Rig {
    /// What was told of ports being opened.
    opened: std::sync::mpsc::Receiver<(String, bool)>,
    transport: Transport,
    ram: GuestRam,
    console: Arc<Outside>,
    port: Arc<Outside>,
    /// Chains given to each queue.
    given: [u16; 8],
}

fn placed(number: u32, is_console: bool, name: Option<&str>, chardev: &str) -> Placed {
    Placed::new(number, is_console, name, Some(chardev))
}

fn rig() -> Rig {
    let backend = MemoryBackend::Anonymous { share: false };
    let block = "microvm.ram".into();
    let memory =
        Memory { bytes: 4 << 20, block, backend, prealloc: false, merge: false, dump: true };
    let ram = GuestRam::new(&memory).unwrap();
    let outside =
        || Arc::new(Outside { room: 1000.into(), open: true.into(), ..Outside::default() });
    let (console, port) = (outside(), outside());
    let mut lines = Lines::new();
    lines.insert("c".into(), console.clone());
    lines.insert("p".into(), port.clone());
    let controller = Controller::default();
    let ports = vec![placed(0, true, None, "c"), placed(1, false, Some("org.test"), "p")];
    let mut ports = ports;
    ports[1].id = Some("channel0".into());
    let (tell, opened) = std::sync::mpsc::channel();
    let tell = Mutex::new(tell);
    let opens = Arc::new(move |id: &str, open| {
        tell.lock().unwrap().send((id.to_owned(), open)).unwrap();
    });
    let model = Box::new(Console::new(&controller, ports, &lines, opens));
    let offered = offered(false, EVENT_IDX | INDIRECT_DESC, features(&controller));
    let registers = Registers::new(false, offered);
    let irq = Box::new(NoLine);
    let transport = Transport::new(0xfeb0_0e00, registers, model, ram.clone(), irq).unwrap();
    transport.resume().unwrap();
    Rig { transport, ram, console, port, opened, given: [0; 8] }
}

fn ring(queue: usize) -> (u64, u64, u64) {
    let base = 0x1_0000 + 0x3000 * queue as u64;
    (base, base + 0x1000, base + 0x2000)
}

impl Rig {
    fn write(&self, register: u64, value: u32) {
        self.transport.write(register, &value.to_le_bytes());
    }

    fn status(&self) -> u32 {
        let mut word = [0; 4];
        self.transport.read(0x70, &mut word);
        u32::from_le_bytes(word)
    }

    fn start(&mut self, features: u64) {
        self.given = [0; 8];
        self.write(0x70, 0);
        self.write(0x70, 3);
        let features = features | VERSION_1;
        for half in [0, 1] {
            self.write(0x24, half);
            self.write(0x20, (features >> (32 * half)) as u32);
        }
        self.write(0x70, 11);
        for queue in 0..6 {
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
    }

    /// Where the buffer of the `count`th chain of a queue is.
    fn buffer(queue: usize, count: u16) -> u64 {
        BUFFERS + 0x1_0000 * queue as u64 + 0x1000 * (u64::from(count) % SIZE)
    }

    fn give(&mut self, queue: usize, bytes: u32, write: bool) {
        self.add(queue, bytes, write);
        self.write(0x50, queue as u32);
    }

    /// Gives a chain without saying so.
    fn add(&mut self, queue: usize, bytes: u32, write: bool) {
        let (desc, avail, _) = ring(queue);
        let slot = u64::from(self.given[queue]) % SIZE;
        let mut entry = Rig::buffer(queue, self.given[queue]).to_le_bytes().to_vec();
        entry.extend(bytes.to_le_bytes());
        entry.extend([if write { 2 } else { 0 }, 0, 0, 0]);
        self.ram.write(desc + 16 * slot, &entry).unwrap();
        self.ram.write(avail + 4 + 2 * slot, &(slot as u16).to_le_bytes()).unwrap();
        self.given[queue] += 1;
        self.ram.write(avail + 2, &self.given[queue].to_le_bytes()).unwrap();
    }

    fn say(&mut self, queue: usize, bytes: &[u8]) {
        self.ram.write(Rig::buffer(queue, self.given[queue]), bytes).unwrap();
        self.give(queue, bytes.len() as u32, false);
    }

    fn control(&mut self, port: u32, event: u16, value: u16) {
        let mut message = port.to_le_bytes().to_vec();
        message.extend(event.to_le_bytes());
        message.extend(value.to_le_bytes());
        self.say(CONTROL_OUT, &message);
    }

    fn used(&self, queue: usize) -> u16 {
        let mut half = [0; 2];
        self.ram.read(ring(queue).2 + 2, &mut half).unwrap();
        u16::from_le_bytes(half)
    }

    /// What was written to the chain that was given back as number `count`.
    fn came(&self, queue: usize, count: u16) -> Vec<u8> {
        wait("input", || self.used(queue) > count);
        let mut length = [0; 4];
        let slot = u64::from(count) % SIZE;
        self.ram.read(ring(queue).2 + 4 + 8 * slot + 4, &mut length).unwrap();
        let mut bytes = vec![0; u32::from_le_bytes(length) as usize];
        self.ram.read(Rig::buffer(queue, count), &mut bytes).unwrap();
        bytes
    }

    /// The driver of a guest that has several ports: both are ready and open.
    fn open_ports(&mut self) {
        self.start(MULTIPORT);
        for _ in 0..SIZE {
            self.give(CONTROL_IN, 64, true);
        }
        self.control(0, event::DEVICE_READY, 1);
        for port in [0, 1] {
            self.control(port, event::PORT_READY, 1);
            self.control(port, event::PORT_OPEN, 1);
        }
        wait("six messages", || self.used(CONTROL_IN) >= 6);
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

fn message(port: u32, event: u16, value: u16, name: &[u8]) -> Vec<u8> {
    let mut message = port.to_le_bytes().to_vec();
    message.extend(event.to_le_bytes());
    message.extend(value.to_le_bytes());
    message.extend(name);
    message
}

#[test]
fn a_driver_that_knows_one_port_has_a_console() {
    let mut rig = rig();
    rig.start(0);
    rig.say(1, b"hello");
    wait("what was said", || rig.console.heard() == b"hello");
    wait("the buffer", || rig.used(1) == 1);
    assert_eq!(rig.console.end().receive(b"early"), 0, "the guest has given no buffer");
    rig.give(0, 3, true);
    wait("room", || rig.console.told_of_room.load(Ordering::SeqCst) > 0);
    assert_eq!(rig.console.end().receive(b"early"), 3, "and now it has given one of three bytes");
    assert_eq!(rig.came(0, 0), b"ear");
    // Who came before the driver's reset is asked again, too.
    assert_eq!(rig.console.end().receive(b"early"), 0);
    rig.start(0);
    let told = rig.console.told_of_room.load(Ordering::SeqCst);
    rig.give(0, 5, true);
    wait("room", || rig.console.told_of_room.load(Ordering::SeqCst) > told);
}

#[test]
fn ports_are_told_of_named_opened_and_shut() {
    let mut rig = rig();
    rig.open_ports();
    let mut expected = vec![
        message(0, event::PORT_ADD, 1, b""),
        message(1, event::PORT_ADD, 1, b""),
        message(0, event::CONSOLE_PORT, 1, b""),
        message(0, event::PORT_OPEN, 1, b""),
        message(1, event::PORT_NAME, 1, b"org.test\0"),
        message(1, event::PORT_OPEN, 1, b""),
    ];
    rig.port.open(false);
    expected.push(message(1, event::PORT_OPEN, 0, b""));
    wait("the port is shut", || rig.used(CONTROL_IN) == 7);
    rig.port.open(true);
    expected.push(message(1, event::PORT_OPEN, 1, b""));
    let came: Vec<_> = (0..8).map(|count| rig.came(CONTROL_IN, count)).collect();
    assert_eq!(came, expected);
}

#[test]
fn what_finds_no_room_stays_with_the_guest_and_what_nobody_hears_is_dropped() {
    let mut rig = rig();
    rig.open_ports();
    rig.port.make_room(4);
    rig.say(5, b"0123456789");
    wait("the first part", || rig.port.heard() == b"0123");
    assert_eq!(rig.used(5), 0, "the buffer is kept");
    rig.port.make_room(100);
    wait("the rest", || rig.port.heard() == b"0123456789" && rig.used(5) == 1);
    rig.port.open(false);
    wait("the port is shut", || rig.used(CONTROL_IN) == 7);
    rig.say(5, b"lost");
    wait("the buffer", || rig.used(5) == 2);
    assert_eq!(rig.port.heard(), b"0123456789");
    // A console's guest goes on whoever listens.
    rig.console.open(false);
    rig.say(1, b"kept");
    wait("what was said", || rig.console.heard() == b"kept");
}

#[test]
fn a_port_that_the_guest_has_not_opened_takes_nothing() {
    let mut rig = rig();
    rig.open_ports();
    rig.give(4, 16, true);
    wait("room", || rig.port.end().receive(b"") == 0 && rig.port.end().receive(b"x") == 1);
    assert_eq!(rig.came(4, 0), b"x");
    rig.control(1, event::PORT_OPEN, 0);
    wait("the message", || rig.used(CONTROL_OUT) == rig.given[CONTROL_OUT]);
    rig.give(4, 16, true);
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(rig.port.end().receive(b"y"), 0);
}

#[test]
fn the_state_moves_with_what_was_half_said_and_half_heard() {
    let mut first = rig();
    first.open_ports();
    first.port.make_room(4);
    first.say(5, b"0123456789");
    wait("the first part", || first.port.heard() == b"0123");
    first.give(4, 16, true);
    wait("room", || first.port.end().receive(b"in") == 2);
    let sections = first.save();
    assert_eq!(first.came(4, 0), b"in", "what was taken reaches the guest before it leaves");
    assert_eq!(first.port.end().receive(b"late"), 0);
    let state: &VirtioState = sections.get(NAME, 0).unwrap();
    assert_eq!((state.queues.len(), state.queues[2].size, state.queues[6].size), (64, 8, 128));
    let VirtioDevice::Console(part) = &state.device else { panic!("{state:?}") };
    assert_eq!((part.max_ports, &part.ports_map[..]), (31, &[PortsMapWord(3)][..]));
    let popped = part.ports[1].popped.as_ref().unwrap();
    assert_eq!((part.ports[1].guest_connected, popped.0, popped.1), (1, 0, 4));

    let mut second = rig();
    let mut bytes = vec![0; 0x20_0000];
    first.ram.read(0x1_0000, &mut bytes).unwrap();
    second.ram.write(0x1_0000, &bytes).unwrap();
    second.given = first.given;
    second.transport.quiesce().unwrap();
    let load = |sections: &Sections| {
        let report = Default::default();
        let mut from = Loading { sections, foreign: ForeignTsc::Refuse, report };
        second.transport.load(&mut from)
    };
    load(&sections).unwrap();
    second.transport.resume().unwrap();
    wait("the rest", || second.port.heard() == b"456789" && second.used(5) == 1);
    second.say(1, b"and more");
    wait("what was said", || second.console.heard() == b"and more");
    second.give(4, 16, true);
    wait("room", || second.port.end().receive(b"here") == 4);
    assert_eq!(second.came(4, 1), b"here");

    // What was kept lies nowhere.
    let mut state = state.clone();
    if let VirtioDevice::Console(part) = &mut state.device {
        let (_, _, element) = part.ports[1].popped.as_mut().unwrap();
        element[16 + 8 * 1024 + 7] = 1;
    }
    let mut sections = Sections::default();
    sections.push(NAME, 0, state);
    second.transport.quiesce().unwrap();
    let report = Default::default();
    let mut from = Loading { sections: &sections, foreign: ForeignTsc::Refuse, report };
    let text = second.transport.load(&mut from).unwrap_err().to_string();
    assert!(text.contains("not memory") && text.contains(NAME), "{text}");
}

#[test]
fn messages_that_make_no_sense_and_floods_of_them_do_no_harm() {
    let mut rig = rig();
    rig.start(MULTIPORT);
    for (port, event, value) in [(9, 3, 1), (u32::MAX, 6, 1), (0, 99, 1), (0, 3, 0), (0, 0, 0)] {
        rig.control(port, event, value);
    }
    rig.say(CONTROL_OUT, b"short");
    wait("all are read", || rig.used(CONTROL_OUT) == 6);
    // Each is answered by two, which find no buffers: the device stops listening.
    for _ in 0..100 {
        let end = Instant::now() + Duration::from_millis(200);
        let waiting = |rig: &Rig| rig.given[CONTROL_OUT] - rig.used(CONTROL_OUT);
        while u64::from(waiting(&rig)) == SIZE && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(1));
        }
        if u64::from(waiting(&rig)) == SIZE {
            break;
        }
        rig.control(1, event::PORT_READY, 1);
    }
    assert!(rig.given[CONTROL_OUT] < 100, "it has stopped");
    assert_eq!(rig.status() & NEEDS_RESET, 0);
    for _ in 0..4 {
        rig.give(CONTROL_IN, 4, true);
    }
    wait("short buffers", || rig.used(CONTROL_IN) == 4);
    rig.open_ports();
}

#[test]
fn a_queue_that_is_set_up_anew_leaves_the_others_where_they_are() {
    let mut rig = rig();
    rig.start(0);
    for count in 1..=3 {
        rig.say(1, b"x");
        wait("what was said", || rig.used(1) == count);
    }
    rig.write(0x30, 4);
    rig.write(0x44, 1);
    rig.say(1, b"y");
    wait("what was said", || rig.used(1) == 4);
    assert_eq!(rig.console.heard(), b"xxxy");
    assert_eq!(rig.status() & NEEDS_RESET, 0);
}

#[test]
fn a_queue_size_that_there_is_not_is_not_taken() {
    let rig = rig();
    for size in [0, 1025, 0xffff, 0x1_0000] {
        rig.write(0x30, 1);
        rig.write(0x38, size);
        rig.write(0x44, 1);
        let sections = &rig.save();
        let report = Default::default();
        let mut from = Loading { sections, foreign: ForeignTsc::Refuse, report };
        self::rig().transport.load(&mut from).unwrap();
    }
}

#[test]
fn messages_are_read_on_once_their_answers_have_found_places() {
    let mut rig = rig();
    rig.start(MULTIPORT);
    // Each is answered by two, for which there is no place yet; two came by themselves.
    let heard = (PENDING_MAX / 2 - 1) as u16;
    for count in 1..=heard {
        rig.control(0, event::PORT_READY, 1);
        wait("a message that is heard", || rig.used(CONTROL_OUT) == count);
    }
    for _ in 0..4 {
        rig.control(0, event::PORT_READY, 1);
    }
    // One notification for all places: nothing else wakes the device.
    for _ in 0..SIZE {
        rig.add(CONTROL_IN, 64, true);
    }
    rig.write(0x50, CONTROL_IN as u32);
    wait("all messages", || rig.used(CONTROL_OUT) == heard + 4);
}

#[test]
fn a_byte_in_an_emergency_needs_no_queue() {
    let mut rig = rig();
    // The console is told of once the device has been looked at; what was agreed on does not matter.
    rig.start(0);
    rig.write(0x70, 0);
    rig.transport.write(0x108, b"x");
    rig.transport.write(0x104, b"y");
    assert_eq!(rig.console.heard(), b"x");
    let mut config = [0; 12];
    rig.transport.read(0x100, &mut config);
    assert_eq!(config, [0, 0, 0, 0, 31, 0, 0, 0, 0, 0, 0, 0]);
}

/// What the command line makes of ports.
mod placing {
    use crate::args::{self, Request};
    use crate::config::Config;

    fn parse(ending: &str) -> Result<Config, String> {
        let line =
            format!("-M microvm,acpi=off -nodefaults -kernel builtin -chardev null,id=c {ending}");
        match args::parse(line.split_whitespace().map(Into::into)) {
            Ok(Request::Run(config)) => Ok(*config),
            Ok(other) => panic!("{other:?}"),
            Err(errors) => Err(errors.to_string()),
        }
    }

    const SERIAL: &str = "-device virtio-serial-device";

    #[test]
    fn ports_get_the_numbers_that_qemu_gives_them() {
        let numbers = |ending: &str| -> Vec<(usize, u32)> {
            let config = parse(ending).unwrap();
            let controllers = config.devices.iter().filter(|d| d.driver == super::CONTROLLER);
            let ports = controllers.enumerate().flat_map(|(index, controller)| {
                let ports = super::ports_of(&config, controller);
                ports.into_iter().map(move |port| (index, port.number)).collect::<Vec<_>>()
            });
            ports.collect()
        };
        let (console, port) = ("-device virtconsole", "-device virtserialport");
        assert_eq!(
            numbers(&format!("{SERIAL} {console} {port} {console}")),
            [(0, 0), (0, 1), (0, 2)]
        );
        assert_eq!(
            numbers(&format!("{SERIAL} {port} {console},nr=5 {port}")),
            [(0, 1), (0, 5), (0, 2)]
        );
        assert_eq!(numbers(&format!("{SERIAL} {SERIAL} {port} {port}")), [(0, 1), (0, 2)]);
        let named = format!("{SERIAL},id=a {SERIAL},id=b {port},bus=b.0 {console},bus=a.0");
        assert_eq!(numbers(&named), [(0, 0), (1, 1)]);
    }

    #[test]
    fn ports_without_a_place_are_refused() {
        let port = "-device virtserialport";
        for (ending, words) in [
            (port.to_owned(), "no such virtio-serial-device in front of it"),
            (format!("{port} {SERIAL}"), "no such virtio-serial-device in front of it"),
            (format!("{SERIAL} {port},bus=x.0"), "no such virtio-serial-device"),
            (format!("{SERIAL} {port},nr=0"), "number 0 is for a virtconsole"),
            (format!("{SERIAL} {port},nr=2 {port},nr=2"), "has this number"),
            (format!("{SERIAL} {port},nr=31"), "max_ports="),
            (format!("{SERIAL},max_ports=2 {port} {port}"), "max_ports="),
            (format!("{SERIAL} {port},name=a {port},name=a"), "has this name"),
            (format!("{SERIAL} {port},chardev=d"), "no character device"),
            (format!("{SERIAL} {port},chardev=c {port},chardev=c"), "already used by another port"),
            (
                format!("{SERIAL} {port},chardev=c -serial chardev:c"),
                "already used by the serial port",
            ),
            (format!("{SERIAL} {port},chardev=c -mon c,mode=control"), "already used by a monitor"),
        ] {
            let text = parse(&ending).unwrap_err();
            assert!(text.contains(words), "{ending}: {text}");
        }
    }
}

#[test]
fn who_watches_hears_of_ports_with_an_id() {
    let mut rig = rig();
    let told = |rig: &Rig| {
        let (id, open) = rig.opened.recv_timeout(Duration::from_secs(20)).unwrap();
        assert_eq!(id, "channel0");
        open
    };
    rig.open_ports();
    assert!(told(&rig));
    let sections = rig.save();
    let mut bytes = vec![0; 0x20_0000];
    rig.ram.read(0x1_0000, &mut bytes).unwrap();
    rig.transport.resume().unwrap();
    rig.control(1, event::PORT_OPEN, 0);
    assert!(!told(&rig));
    rig.control(1, event::PORT_OPEN, 1);
    assert!(told(&rig));
    rig.transport.quiesce().unwrap();
    rig.transport.reset().unwrap();
    assert!(!told(&rig));
    // A port that was closed already is not closed again.
    rig.transport.reset().unwrap();
    assert!(rig.opened.try_recv().is_err());

    let arrived = self::rig();
    arrived.ram.write(0x1_0000, &bytes).unwrap();
    arrived.transport.quiesce().unwrap();
    let report = Default::default();
    let mut from = Loading { sections: &sections, foreign: ForeignTsc::Refuse, report };
    arrived.transport.load(&mut from).unwrap();
    assert!(told(&arrived));
}
