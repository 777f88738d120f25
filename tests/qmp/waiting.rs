//! Commands that wait for a name, real processes: they hold their own client and nobody else.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{CWD, Mode, mkfifoat};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::common::qmp::Client;
use crate::common::vm::Vm;
use crate::process::{monitor, signal, with_monitors};

/// Every command that opens a file for writing, with `path` as its name.
fn commands(path: &Path) -> Vec<(&'static str, Value)> {
    vec![
        ("pmemsave", json!({"val": 0, "size": 4096, "filename": path})),
        ("memsave", json!({"val": 0, "size": 4096, "filename": path})),
        (
            "dump-guest-memory",
            json!({"paging": false, "protocol": format!("file:{}", path.display())}),
        ),
        ("migrate", json!({"uri": format!("file:{}", path.display())})),
    ]
}

fn fifo(godwit: &Vm) -> PathBuf {
    let path = godwit.path("fifo");
    mkfifoat(CWD, &path, Mode::from_raw_mode(0o600)).unwrap();
    path
}

fn send(client: &mut Client, command: &str, arguments: &Value) {
    let request = json!({"execute": command, "arguments": arguments, "id": 1});
    client.send(request.to_string().as_bytes(), &[]);
}

/// Reads what comes out of the FIFO, on a thread.
fn reader(path: PathBuf) -> std::thread::JoinHandle<usize> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        File::open(path).unwrap().read_to_end(&mut bytes).unwrap();
        bytes.len()
    })
}

/// Ends it by a signal, and checks that it ends soon: a second by the promise, and what a loaded
/// machine adds.
fn ends_soon(godwit: &mut Vm, ask: impl FnOnce(&mut Vm)) {
    let start = Instant::now();
    ask(godwit);
    assert_eq!(godwit.exit_code(), Some(0));
    assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
}

#[test]
fn a_fifo_without_a_reader_holds_its_own_client_only() {
    let godwit = with_monitors(2, &["-append", "ws=1"]);
    let path = fifo(&godwit);
    let mut other = monitor(&godwit, 1);
    for (command, arguments) in commands(&path) {
        let mut client = Client::connect(&godwit.path("vm0"));
        client.receive();
        client.ask("qmp_capabilities", json!({"enable": ["oob"]}));
        send(&mut client, command, &arguments);
        if command == "migrate" {
            assert_eq!(client.receive(), json!({"return": {}, "id": 1}));
        }
        client.send(b"{'exec-oob':'migrate-pause','id':2}", &[]);
        assert_eq!(client.receive()["id"], json!(2), "{command}");
        assert_eq!(other.ask("query-status", json!({}))["running"], json!(true), "{command}");
        assert!(other.ask("query-migrate", json!({})).is_object());
        if command != "dump-guest-memory" {
            assert_eq!(other.ask("stop", json!({})), json!({}), "{command}");
            assert_eq!(other.ask("cont", json!({})), json!({}), "{command}");
        }
        let read = reader(path.clone());
        if command == "migrate" {
            while other.ask("query-migrate", json!({}))["status"] != json!("completed") {
                std::thread::sleep(Duration::from_millis(5));
            }
            assert_eq!(other.ask("cont", json!({})), json!({}));
        } else {
            while client.receive() != json!({"return": {}, "id": 1}) {}
        }
        assert!(read.join().unwrap() >= 4096, "{command}");
    }
}

#[test]
fn the_process_ends_while_a_command_waits() {
    for number in 0..commands(Path::new("")).len() {
        for by_signal in [true, false] {
            let mut godwit = with_monitors(2, &["-S"]);
            let (command, arguments) = commands(&fifo(&godwit)).swap_remove(number);
            let mut client = monitor(&godwit, 0);
            send(&mut client, command, &arguments);
            let mut other = monitor(&godwit, 1);
            ends_soon(&mut godwit, |godwit| match by_signal {
                true => signal(godwit, Signal::TERM),
                false => assert_eq!(other.ask("quit", json!({})), json!({})),
            });
        }
    }
}

#[test]
fn waiting_is_cancelled() {
    let godwit = with_monitors(2, &["-S"]);
    let path = fifo(&godwit);
    let (mut client, mut other) = (monitor(&godwit, 0), monitor(&godwit, 1));
    let mut waiting = commands(&path).into_iter().skip(2);
    let (command, arguments) = waiting.next().unwrap();
    send(&mut client, command, &arguments);
    while !client.hears_within(Duration::from_millis(20)) {
        assert_eq!(other.ask("x-dump-cancel", json!({})), json!({}));
    }
    assert_eq!(client.receive()["error"]["desc"], json!("dump: cancelled"));
    let (command, arguments) = waiting.next().unwrap();
    send(&mut client, command, &arguments);
    assert_eq!(client.receive(), json!({"return": {}, "id": 1}));
    assert_eq!(client.ask("query-migrate", json!({}))["status"], json!("setup"));
    assert_eq!(client.ask("migrate_cancel", json!({})), json!({}));
    while client.ask("query-migrate", json!({}))["status"] != json!("cancelled") {
        std::thread::sleep(Duration::from_millis(5));
    }
    // Nobody is left who would end the next reader's file.
    assert!(name_is_free(&path));
}

fn name_is_free(path: &Path) -> bool {
    let open = rustix::fs::open(
        path,
        rustix::fs::OFlags::WRONLY | rustix::fs::OFlags::NONBLOCK,
        Mode::empty(),
    );
    open.is_err_and(|error| error == rustix::io::Errno::NXIO)
}

#[test]
fn a_client_that_leaves_makes_room_while_its_command_waits() {
    let godwit = with_monitors(1, &["-S"]);
    let path = fifo(&godwit);
    let mut client = monitor(&godwit, 0);
    let (command, arguments) = commands(&path).swap_remove(0);
    send(&mut client, command, &arguments);
    drop(client);
    let mut next = monitor(&godwit, 0);
    assert_eq!(next.ask("query-status", json!({}))["status"], json!("prelaunch"));
    // What was asked for is done all the same.
    assert_eq!(reader(path).join().unwrap(), 4096);
}

#[test]
fn an_incoming_fifo_is_waited_for() {
    let mut godwit = with_monitors(1, &["-incoming", "defer"]);
    let path = fifo(&godwit);
    let mut client = monitor(&godwit, 0);
    let uri = format!("file:{}", path.display());
    let arguments = json!({"uri": uri, "exit-on-error": false});
    assert_eq!(client.ask("migrate-incoming", arguments), json!({}));
    assert_eq!(client.ask("query-migrate", json!({}))["status"], json!("setup"));
    assert_eq!(client.ask("query-status", json!({}))["status"], json!("inmigrate"));
    // It is read once somebody writes: this is no stream.
    std::fs::write(&path, b"no stream, whatever it is").unwrap();
    while client.ask("query-migrate", json!({}))["status"] != json!("failed") {
        std::thread::sleep(Duration::from_millis(5));
    }
    ends_soon(&mut godwit, |godwit| signal(godwit, Signal::TERM));
}

#[test]
fn a_file_system_that_does_not_answer_holds_its_own_client_only() {
    for number in 0..commands(Path::new("")).len() {
        let mut godwit = with_monitors(2, &["-S"]);
        let dead = DeadFileSystem::mount(godwit.path("dead"));
        let (command, arguments) = commands(&dead.path.join("file")).swap_remove(number);
        let mut client = monitor(&godwit, 0);
        send(&mut client, command, &arguments);
        assert!(!client.hears_within(Duration::from_millis(100)), "{command}");
        let mut other = monitor(&godwit, 1);
        assert_eq!(other.ask("query-status", json!({}))["status"], json!("prelaunch"));
        if command == "migrate" {
            assert_eq!(other.ask("migrate_cancel", json!({})), json!({}));
            assert_eq!(client.receive()["error"]["desc"], json!("cancelled"));
            let report = other.ask("query-migrate", json!({}));
            assert_eq!(report["status"], json!("cancelled"), "{report}");
        }
        ends_soon(&mut godwit, |godwit| signal(godwit, Signal::TERM));
    }
}

#[test]
fn an_incoming_file_system_that_does_not_answer_holds_no_signal() {
    let dir = tempfile::tempdir().unwrap();
    let dead = DeadFileSystem::mount(dir.path().join("dead"));
    let uri = format!("file:{}", dead.path.join("file").display());
    let mut godwit = with_monitors(1, &["-incoming", &uri]);
    let threads = format!("/proc/{}/task", godwit.pid());
    let waits = || {
        let threads = std::fs::read_dir(&threads).unwrap();
        let stat = |thread: std::io::Result<std::fs::DirEntry>| {
            std::fs::read_to_string(thread.unwrap().path().join("stat")).unwrap_or_default()
        };
        threads.map(stat).any(|stat| stat.contains(") D "))
    };
    let end = Instant::now() + Duration::from_secs(30);
    while !waits() {
        assert!(Instant::now() < end, "it does not open its file");
        std::thread::sleep(Duration::from_millis(5));
    }
    let start = Instant::now();
    signal(&godwit, Signal::TERM);
    // By itself, or by the signal where the file is looked at before anything is begun.
    assert!(matches!(godwit.exit_code(), Some(0) | None));
    assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
}

/// Waits until it handles SIGTERM itself: from there on nothing may hold it.
fn handles_signals(godwit: &Vm) -> bool {
    let end = Instant::now() + Duration::from_secs(30);
    while Instant::now() < end {
        let status = std::fs::read_to_string(format!("/proc/{}/status", godwit.pid())).unwrap();
        let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).unwrap_or("0");
        if u64::from_str_radix(caught.trim(), 16).unwrap() & 1 << (libc::SIGTERM - 1) != 0 {
            return true;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    false
}

#[test]
fn a_name_that_holds_up_the_start_holds_no_signal() {
    let dir = tempfile::tempdir().unwrap();
    let dead = DeadFileSystem::mount(dir.path().join("dead"));
    let fifo = dir.path().join("fifo");
    mkfifoat(CWD, &fifo, Mode::from_raw_mode(0o600)).unwrap();
    let out = dir.path().join("out");
    // Where a name is looked at before anything is begun, the signal's own effect is the end.
    let dead = dead.path.join("f").display().to_string();
    let ram = format!("memory-backend-file,id=r,size=64M,mem-path={dead}");
    held(&["-object", &ram, "-M", "microvm,acpi=off,memory-backend=r"], false);
    held(&["-pidfile", &dead], false);
    held(&["-qmp", &format!("unix:{dead},server=on,wait=off")], false);
    for (name, handles) in [(fifo.display().to_string(), true), (dead, false)] {
        held(&["-serial", &format!("file:{name}")], handles);
        held(&["-qmp", &format!("file:{name}")], handles);
        let both = format!("file,id=c,path={},input-path={name}", out.display());
        held(&["-chardev", &both], handles);
        held(&["-chardev", &format!("null,id=c,logfile={name}")], handles);
    }
}

/// A machine with these words does not come up, and ends soon. `handles`: not before it handles
/// signals itself, and then as it always does.
fn held(words: &[&str], handles: bool) {
    let mut all = vec!["-S"];
    all.extend(words);
    let mut godwit = with_monitors(0, &all);
    if handles {
        assert!(handles_signals(&godwit), "{words:?}");
    }
    std::thread::sleep(Duration::from_millis(100));
    assert!(godwit.child.try_wait().unwrap().is_none(), "{words:?} {}", godwit.stderr());
    let start = Instant::now();
    signal(&godwit, Signal::TERM);
    let code = godwit.exit_code();
    assert!(code == Some(0) || code.is_none() && !handles, "{words:?}: {code:?}");
    assert!(start.elapsed() < Duration::from_secs(3), "{words:?}: {:?}", start.elapsed());
}

#[test]
fn a_machine_that_waits_for_its_incoming_file_hears_quit_and_signals() {
    let dir = tempfile::tempdir().unwrap();
    let dead = DeadFileSystem::mount(dir.path().join("dead"));
    let fifo = dir.path().join("fifo");
    mkfifoat(CWD, &fifo, Mode::from_raw_mode(0o600)).unwrap();
    let uri = format!("file:{}", fifo.display());
    for by_signal in [true, false] {
        let mut godwit = with_monitors(1, &["-incoming", &uri]);
        let mut client = monitor(&godwit, 0);
        assert_eq!(client.ask("query-migrate", json!({}))["status"], json!("setup"));
        assert_eq!(client.ask("query-status", json!({}))["status"], json!("inmigrate"));
        ends_soon(&mut godwit, |godwit| match by_signal {
            true => signal(godwit, Signal::TERM),
            false => assert_eq!(client.ask("quit", json!({})), json!({})),
        });
    }
    // One on a file system that does not answer: its monitor does.
    let uri = format!("file:{}", dead.path.join("f").display());
    for by_signal in [true, false] {
        let mut godwit = with_monitors(1, &["-incoming", &uri]);
        let mut client = monitor(&godwit, 0);
        assert_eq!(client.ask("query-status", json!({}))["status"], json!("inmigrate"));
        ends_soon(&mut godwit, |godwit| match by_signal {
            true => signal(godwit, Signal::TERM),
            false => assert_eq!(client.ask("quit", json!({})), json!({})),
        });
    }
}

/// A FUSE mount whose server never answers.
struct DeadFileSystem {
    path: PathBuf,
    _server: File,
}

impl DeadFileSystem {
    fn mount(path: PathBuf) -> DeadFileSystem {
        use std::os::fd::AsRawFd;
        std::fs::create_dir(&path).unwrap();
        let server = File::options().read(true).write(true).open("/dev/fuse").unwrap();
        let options = format!("fd={},rootmode=40000,user_id=0,group_id=0", server.as_raw_fd());
        let options = std::ffi::CString::new(options).unwrap();
        rustix::mount::mount("dead", &path, "fuse", rustix::mount::MountFlags::empty(), &*options)
            .expect("root mounts a file system");
        DeadFileSystem { path, _server: server }
    }
}

impl Drop for DeadFileSystem {
    fn drop(&mut self) {
        // A mount that is left fails the removal of the folder, which nobody minds.
        let _ = rustix::mount::unmount(&self.path, rustix::mount::UnmountFlags::DETACH);
    }
}
