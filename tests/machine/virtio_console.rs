//! Guests that talk over a virtio console, natively: to files and sockets, moved, beside QEMU.

use crate::common::vm::{Launch, Vm};
use crate::common::{guest, virtio_guest};
use serde_json::json;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

fn launch(folder: &Path, name: &str, modern: bool, words: &[&str]) -> Launch {
    let kernel = folder.join("kernel");
    std::fs::write(&kernel, guest::elf(&virtio_guest::talker())).unwrap();
    let launch = Launch::new(folder, name).no_guest().words(&["-kernel", kernel.to_str().unwrap()]);
    let launch = launch.words(&["-device", "virtio-serial-device,id=s"]).words(words);
    if modern { launch.words(&["-global", "virtio-mmio.force-legacy=off"]) } else { launch }
}

const LIMIT: Duration = Duration::from_secs(60);

fn connect(path: &Path) -> UnixStream {
    let end = Instant::now() + LIMIT;
    loop {
        match UnixStream::connect(path) {
            Ok(stream) => {
                stream.set_read_timeout(Some(LIMIT)).unwrap();
                return stream;
            }
            Err(error) => assert!(Instant::now() < end, "{error}"),
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Says something, and reads what the guest makes of it: the same, each byte with bit 5 changed.
fn converse(stream: &mut UnixStream, words: &str) {
    stream.write_all(words.as_bytes()).unwrap();
    let mut answer = vec![0; words.len()];
    stream.read_exact(&mut answer).unwrap();
    let expected: Vec<u8> = words.bytes().map(|byte| byte ^ 0x20).collect();
    assert_eq!(String::from_utf8_lossy(&answer), String::from_utf8_lossy(&expected));
}

fn console(folder: &Path, name: &str) -> [String; 4] {
    let path = folder.join(format!("{name}.console"));
    let chardev = format!("socket,id=c,path={},server=on,wait=off", path.display());
    ["-chardev".into(), chardev, "-device".into(), "virtconsole,chardev=c".into()]
}

fn start(folder: &Path, name: &str, modern: bool, qemu: bool, more: &[&str]) -> (Vm, UnixStream) {
    let words = console(folder, name);
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let launch = launch(folder, name, modern, &words).words(more);
    let vm = if qemu { launch.qemu().start() } else { launch.start() };
    let stream = connect(&folder.join(format!("{name}.console")));
    (vm, stream)
}

#[test]
fn a_guest_answers_over_its_console() {
    for modern in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let (_vm, mut stream) = start(folder.path(), "vm", modern, false, &[]);
        for turn in 0..20 {
            converse(&mut stream, &format!("turn {turn}"));
        }
        // More than the guest's buffers hold, at once.
        converse(&mut stream, &"a long story ".repeat(300));
        // One who comes later finds it, too.
        drop(stream);
        let mut stream = connect(&folder.path().join("vm.console"));
        converse(&mut stream, "again");
    }
}

#[test]
fn a_console_reads_and_writes_files_and_ports_have_a_controller_each() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("in"), "FROM A FILE").unwrap();
    let console = ["-chardev", "file,id=f,path=@DIR@/out,input-path=@DIR@/in,logfile=@DIR@/log"];
    let more = ["-device", "virtconsole,chardev=f,bus=s.0", "-device", "virtio-serial-device,id=t"];
    let port =
        ["-chardev", "null,id=n", "-device", "virtserialport,chardev=n,bus=t.0,name=org.test"];
    let mut vm = launch(folder.path(), "vm", false, &console).words(&more).words(&port).start();
    let end = Instant::now() + LIMIT;
    let out = || std::fs::read_to_string(vm.path("out")).unwrap_or_default();
    while out() != "from\0a\0file" {
        assert!(Instant::now() < end, "{:?} {}", out(), vm.stderr());
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(std::fs::read_to_string(vm.path("log")).unwrap(), "from\0a\0file");
    let chardevs = vm.ask("query-chardev", json!({}));
    for label in ["n", "f"] {
        let found = chardevs.as_array().unwrap().iter().find(|chardev| chardev["label"] == label);
        assert_eq!(found.unwrap()["frontend-open"], true, "{chardevs}");
    }
}

/// Moves a guest that is in the middle of a conversation, there and back.
fn moves(source_is_qemu: bool, target_is_qemu: bool, modern: bool) {
    let folder = tempfile::tempdir().unwrap();
    let (mut source, mut stream) = start(folder.path(), "source", modern, source_is_qemu, &[]);
    converse(&mut stream, "before");
    for (turn, is_qemu) in [target_is_qemu, source_is_qemu].into_iter().enumerate() {
        let uri = format!("unix:{}", folder.path().join(format!("stream{turn}")).display());
        let name = format!("target{turn}");
        let (mut target, mut there) =
            start(folder.path(), &name, modern, is_qemu, &["-incoming", &uri]);
        source.ask("migrate", json!({"uri": uri}));
        let report = source.outcome();
        assert_eq!(report["status"], "completed", "{turn}: {report} {}", target.stderr());
        target.wait_for_state(|state| state == "running");
        converse(&mut there, "after");
        (source, stream) = (target, there);
    }
    drop(stream);
}

#[test]
fn a_conversation_goes_on_at_another_host() {
    moves(false, false, false);
    moves(false, false, true);
}

#[test]
#[ignore = "needs QEMU"]
fn a_conversation_goes_on_between_godwit_and_qemu() {
    for modern in [false, true] {
        moves(false, true, modern);
        moves(true, false, modern);
    }
}

#[test]
fn other_ports_than_the_streams_are_refused_by_name_and_the_guest_stays() {
    let folder = tempfile::tempdir().unwrap();
    let (mut source, mut stream) = start(folder.path(), "source", false, false, &[]);
    converse(&mut stream, "before");
    let ports = ["-device", "virtconsole"];
    let more = ["-device", "virtconsole", "-device", "virtserialport"];
    for (serial, ports, words) in [
        ("virtio-serial-device", &more[..], "ports [0], here [0, 1]"),
        ("virtio-serial-device,max_ports=2", &ports[..], "max_ports=31, here 2"),
    ] {
        let uri = format!("unix:{}", folder.path().join("stream").display());
        let target = Launch::new(folder.path(), "target").no_guest();
        let mut target = target.words(&["-device", serial]).words(ports).incoming(&uri).start();
        source.ask("migrate", json!({"uri": uri}));
        assert_eq!(source.outcome()["status"], "failed");
        assert_eq!(target.exit_code(), Some(1));
        let text = target.stderr();
        assert!(text.contains(words) && text.contains("feb00e00/virtio-console"), "{text}");
        converse(&mut stream, "still here");
    }
}
