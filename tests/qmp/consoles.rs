//! People at a monitor of their own, and at a console that it shares with the guest.

use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde_json::json;

use crate::common::PATIENCE;
use crate::common::vm::{Launch, Vm};

const PROMPT: &str = "(qemu) ";

/// Somebody who types and reads.
struct Person<S> {
    line: S,
    read: String,
}

impl Person<UnixStream> {
    fn at(path: &Path) -> Person<UnixStream> {
        let end = Instant::now() + PATIENCE;
        loop {
            match UnixStream::connect(path) {
                Ok(line) => return Person { line, read: String::new() },
                Err(error) => assert!(Instant::now() < end, "{}: {error}", path.display()),
            }
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    }
}

impl<S: Read + Write + AsFd> Person<S> {
    fn types(&mut self, text: &str) {
        self.line.write_all(text.as_bytes()).unwrap();
    }

    /// What is shown up to `text`, and with it.
    fn until(&mut self, text: &str) -> String {
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(at) = self.read.find(text) {
                let rest = self.read.split_off(at + text.len());
                return std::mem::replace(&mut self.read, rest);
            }
            let mut polled = [PollFd::new(&self.line, PollFlags::IN)];
            let limit = Timespec { tv_sec: 1, tv_nsec: 0 };
            poll(&mut polled, Some(&limit)).unwrap();
            assert!(Instant::now() < end, "no {text:?} in {:?}", self.read);
            if !polled[0].revents().is_empty() {
                let mut bytes = [0; 4096];
                let count = self.line.read(&mut bytes).unwrap();
                assert!(count > 0, "no {text:?} in {:?}", self.read);
                self.read += &String::from_utf8_lossy(&bytes[..count]);
            }
        }
    }

    /// Types a line, and reads the answer to it.
    fn asks(&mut self, line: &str) -> String {
        self.types(&format!("{line}\r"));
        let shown = self.until(PROMPT);
        let answer = shown.strip_prefix(&format!("{line}\r\n")).expect(&shown);
        answer.strip_suffix(PROMPT).unwrap().to_owned()
    }
}

fn with_monitor() -> (Vm, Person<UnixStream>) {
    let vm = Launch::alone().words(&["-monitor", "unix:@DIR@/hmp,server=on,wait=off"]).start();
    let mut person = Person::at(&vm.path("hmp"));
    assert!(person.until(PROMPT).contains("monitor - type 'help' for more information\r\n"));
    (vm, person)
}

#[test]
fn a_person_types_at_a_monitor() {
    let (mut vm, mut person) = with_monitor();
    assert_eq!(person.asks("info status"), "VM status: running\r\n");
    assert_eq!(person.asks("stop"), "");
    assert_eq!(person.asks("info status"), "VM status: paused\r\n");
    assert_eq!(vm.ask("query-status", json!({}))["status"], "paused");
    assert_eq!(person.asks("frobnicate"), "unknown command: 'frobnicate'\r\n");
    assert_eq!(
        person.asks("stop now"),
        "stop|s: extraneous characters at the end of line\r\nTry \"help stop\" for more information\r\n"
    );
    assert_eq!(person.asks("balloon 10"), "Error: No balloon device has been activated\r\n");
    assert_eq!(person.asks("migrate_set_parameter max-bandwidth 10"), "");
    assert!(
        person.asks("info migrate_parameters").contains("max-bandwidth: 10485760 bytes/second\r\n")
    );
    assert_eq!(
        person.asks("migrate_set_parameter nothing 1"),
        "Error: invalid parameter value: nothing\r\n"
    );
    assert_eq!(person.asks("migrate_set_capability xbzrle on"), "");
    assert!(person.asks("info migrate_capabilities").contains("xbzrle: on\r\n"));
    assert_eq!(person.asks("chardev-add null,id=z"), "");
    assert_eq!(person.asks("chardev-change z null,id=y"), "Error: Unexpected 'id' parameter\r\n");
    assert_eq!(person.asks("chardev-change z null"), "");
    assert_eq!(person.asks("chardev-remove z"), "");
    assert_eq!(person.asks("chardev-remove z"), "Error: Chardev 'z' not found\r\n");
    let said = person.asks("chardev-add socket,id=z,fd=3");
    assert!(said.starts_with("Error: fd= is for the command line"), "{said}");
    assert_eq!(person.asks("object_add rng-builtin,id=r"), "");
    assert_eq!(person.asks("object_del r"), "");
    assert_eq!(person.asks("device_add foo"), "Error: 'foo' is not a valid device model name\r\n");
    let file = vm.path("memory").to_str().unwrap().to_owned();
    assert_eq!(person.asks(&format!("pmemsave 0 0x1000 \"{file}\"")), "");
    assert_eq!(std::fs::metadata(&file).unwrap().len(), 0x1000);
    assert_eq!(person.asks("c"), "");
    // It waits for the end, and the next line for it.
    let stream = vm.path("stream").to_str().unwrap().to_owned();
    assert_eq!(person.asks(&format!("migrate file:{stream}")), "");
    assert!(person.asks("info migrate").contains("Migration status: completed\r\n"));
    assert!(person.asks("info history").starts_with("0: 'stop'\r\n1: 'info status'\r\n"));
    person.types("q\r");
    assert_eq!(vm.exit_code(), Some(0));
}

#[test]
fn a_migration_that_waits_for_a_person_does_not_keep_him_waiting() {
    let (vm, mut person) = with_monitor();
    assert_eq!(person.asks("migrate_set_capability pause-before-switchover on"), "");
    let stream = vm.path("stream").to_str().unwrap().to_owned();
    assert_eq!(person.asks(&format!("migrate file:{stream}")), "");
    assert!(person.asks("info migrate").contains("Migration status: pre-switchover\r\n"));
    assert_eq!(person.asks("migrate_continue pre-switchover"), "");
    let end = Instant::now() + PATIENCE;
    while !person.asks("info migrate").contains("Migration status: completed\r\n") {
        assert!(Instant::now() < end);
    }
}

#[test]
fn who_types_without_end_or_never_reads_harms_nobody() {
    let (mut vm, mut person) = with_monitor();
    person.types(&"x".repeat(1 << 20));
    drop(person);
    let mut person = Person::at(&vm.path("hmp"));
    person.until(PROMPT);
    person.line.set_nonblocking(true).unwrap();
    // As much as is taken of somebody who does not read.
    let (flood, mut sent) = ("help\rinfo\t\x1b[A\x1b[D\x01".repeat(1000), 0);
    let end = Instant::now() + std::time::Duration::from_millis(300);
    while Instant::now() < end && sent < 64 << 20 {
        sent += person.line.write(flood.as_bytes()).unwrap_or(0);
    }
    let status = std::fs::read_to_string(format!("/proc/{}/status", vm.pid())).unwrap();
    let field = status.lines().find(|line| line.starts_with("RssAnon")).unwrap();
    let kib: u64 = field.split_whitespace().nth(1).unwrap().parse().unwrap();
    assert!(kib < (64 + 48) << 10, "{field} after {sent} bytes");
    assert_eq!(vm.ask("query-status", json!({}))["status"], "running");
    drop(person);
    assert_eq!(Person::at(&vm.path("hmp")).until(PROMPT).matches(PROMPT).count(), 1);
    vm.assert_alive();
}

#[test]
fn a_console_is_shared_with_a_monitor() {
    let shared = "socket,id=c,path=@DIR@/console,server=on,wait=off,mux=on";
    let mut vm = Launch::alone()
        .bare()
        .words(&["-chardev", shared, "-serial", "chardev:c", "-mon", "chardev=c"])
        .spawn();
    let mut person = Person::at(&vm.path("console"));
    person.until("sweep");
    person.types("\x01c");
    person.until("monitor - type 'help' for more information\r\n");
    person.until(PROMPT);
    person.types("info chardev\r");
    let shown = person.until("c-base: filename=unix:");
    assert!(shown.contains("c: filename=mux\r\n"), "{shown}");
    person.types("\x01h");
    person.until("C-a c    switch between console and monitor\n\r");
    // Back at the guest's, a key is the guest's, and what it says goes on.
    person.types("\x01cq\r");
    person.until("sweep");
    person.types("\x01t");
    person.until("[00:00:00.000] ");
    person.types("\x01c");
    person.until(PROMPT);
    // Another one comes to the same place.
    drop(person);
    let mut person = Person::at(&vm.path("console"));
    person.until(PROMPT);
    person.types("\x01x");
    person.until("QEMU: Terminated\n\r");
    assert_eq!(vm.exit_code(), Some(0));
}

#[test]
fn a_command_that_waits_keeps_a_shared_monitor_from_no_other_client() {
    let shared = "socket,id=c,path=@DIR@/console,server=on,wait=off,mux=on";
    let vm = Launch::alone().bare().words(&["-chardev", shared, "-mon", "chardev=c"]).spawn();
    let mut person = Person::at(&vm.path("console"));
    person.until(PROMPT);
    // Somebody has to open the other end.
    let pipe = vm.path("pipe");
    rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, 0o600.into()).unwrap();
    person.types(&format!("pmemsave 0 0x1000 \"{}\"\r", pipe.display()));
    person.until("pipe\"\r\n");
    drop(person);
    let mut person = Person::at(&vm.path("console"));
    person.until(PROMPT);
    assert_eq!(person.asks("info status"), "VM status: running\r\n");
}

/// The built-in guest reads nothing of its serial port.
#[test]
fn what_nobody_takes_keeps_no_other_client_out() {
    for more in ["", ",mux=on"] {
        let chardev = format!("socket,id=c,path=@DIR@/console,server=on,wait=off{more}");
        let vm =
            Launch::alone().bare().words(&["-chardev", &chardev, "-serial", "chardev:c"]).spawn();
        let mut person = Person::at(&vm.path("console"));
        person.types(&"x".repeat(5000));
        drop(person);
        Person::at(&vm.path("console")).until("sweep");
    }
}

#[test]
fn a_terminal_is_the_consoles_and_the_monitors() {
    let mut vm = Launch::alone().bare().words(&["-serial", "mon:pty", "-echr", "2"]).spawn();
    vm.wait_for_stderr("(label serial0-base)");
    let said = vm.stderr();
    let name = said.split_whitespace().find(|word| word.starts_with("/dev/pts/")).unwrap();
    let line = std::fs::File::options().read(true).write(true).open(name).unwrap();
    let mut person = Person { line, read: String::new() };
    person.until("sweep");
    person.types("\x02c");
    person.until(PROMPT);
    person.types("stop\rinfo status\r");
    person.until("VM status: paused\r\n");
    person.types("\x02x");
    assert_eq!(vm.exit_code(), Some(0));
}

#[test]
fn standard_input_and_output_are_a_monitors_or_both() {
    let quits = |words: &[&str], first: &[u8]| {
        let mut vm = Launch::alone().bare().words(words).spawn();
        let mut line = Piped(vm.stdin(), vm.stdout());
        line.write_all(first).unwrap();
        let mut all = Vec::new();
        while !String::from_utf8_lossy(&all).contains(PROMPT) {
            let mut bytes = [0; 4096];
            let count = line.read(&mut bytes).unwrap();
            assert!(count > 0, "{}", vm.stderr());
            all.extend(&bytes[..count]);
        }
        line.write_all(b"quit\r").unwrap();
        assert_eq!(vm.exit_code(), Some(0));
    };
    quits(&["-serial", "mon:stdio"], b"\x01c");
    quits(&["-monitor", "stdio"], b"");
}

struct Piped(std::process::ChildStdin, std::process::ChildStdout);

impl Read for Piped {
    fn read(&mut self, bytes: &mut [u8]) -> std::io::Result<usize> {
        self.1.read(bytes)
    }
}

impl Write for Piped {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.0.flush()
    }
}
