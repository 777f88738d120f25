//! Machines that start where another one runs, or where too little is to be had: all or nothing,
//! and nothing of anybody else's.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use crate::common::process::Ended;
use serde_json::{Value, json};

const TIME: Duration = Duration::from_secs(60);

/// Runs in `folder` with names that are relative to it.
fn godwit(folder: &Path, words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_godwit"));
    command.args(["run", "-M", "microvm,acpi=off,memory-backend=m", "-nodefaults", "-m", "16"]);
    command.args(words).current_dir(folder).stdin(Stdio::null()).stdout(Stdio::null());
    command
}

const RAM: [&str; 2] = ["-object", "memory-backend-file,id=m,size=16M,mem-path=ram,share=on"];
const GUEST: [&str; 4] = ["-kernel", "builtin", "-append", "ws=1 rate=100"];
const QMP: [&str; 2] = ["-qmp", "unix:q,server=on,wait=off"];
const ALL: [&str; 6] = ["-qmp", "unix:q,server=on,wait=off", "-pidfile", "p", "-serial", "file:s"];

fn words<'a>(parts: &[&[&'a str]]) -> Vec<&'a str> {
    parts.concat()
}

/// A machine that is started from here.
struct Running(Ended);

impl Running {
    fn start(folder: &Path, words: &[&str]) -> Running {
        let mut child = godwit(folder, words).spawn().unwrap();
        let end = Instant::now() + TIME;
        while UnixStream::connect(folder.join("q")).is_err() {
            assert!(child.try_wait().unwrap().is_none() && Instant::now() < end, "no monitor");
            std::thread::sleep(Duration::from_millis(5));
        }
        Running(Ended(child))
    }

    /// SIGTERM, and the end.
    fn end(mut self) {
        let pid = rustix::process::Pid::from_child(&self.0.0);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        assert!(self.0.0.wait().unwrap().success());
    }
}

fn ask(folder: &Path, command: &str) -> Value {
    let mut stream = UnixStream::connect(folder.join("q")).unwrap();
    stream.set_read_timeout(Some(TIME)).unwrap();
    for command in ["qmp_capabilities", command] {
        write!(stream, "{}", json!({"execute": command})).unwrap();
    }
    let mut answers = BufReader::new(stream).lines().map(|line| line.unwrap());
    let returns = |line: &String| line.starts_with("{\"return\"") || line.starts_with("{\"error\"");
    let answer = answers.by_ref().filter(returns).nth(1).unwrap();
    serde_json::from_str::<Value>(&answer).unwrap()
}

fn assert_runs(folder: &Path) {
    assert_eq!(ask(folder, "query-status")["return"]["status"], "running");
}

fn wait_for_a_sweep(folder: &Path) {
    let end = Instant::now() + TIME;
    while !fs::read_to_string(folder.join("s")).is_ok_and(|said| said.contains("sweep")) {
        assert!(Instant::now() < end, "the guest says nothing");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn refusal(output: Output) -> String {
    let text = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert_eq!(text.lines().count(), 1, "{text}");
    text
}

#[test]
fn a_machine_that_cannot_start_leaves_a_running_one_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    fs::write(folder.join("damaged"), "\x7fELF and no more").unwrap();
    let first = Running::start(folder, &words(&[&RAM, &GUEST, &ALL]));
    let pid = fs::read_to_string(folder.join("p")).unwrap();
    assert_eq!(pid, format!("{}\n", first.0.0.id()));
    let said = || fs::read_to_string(folder.join("s")).unwrap();
    wait_for_a_sweep(folder);

    let cases: [(&[&str], &str); 9] = [
        (&["-kernel", "none"], "cannot open none"),
        (&["-kernel", "damaged"], "cannot read damaged"),
        (&["-kernel", "builtin", "-append", "ws=64 what=3"], "-append ws=64 what=3"),
        (&["-kernel", "damaged", "-initrd", "none"], "cannot open none"),
        (&["-kernel", "builtin", "-incoming", "tcp:nowhere"], "-incoming: "),
        (&["-kernel", "builtin", "-accel", "kvm,device=/dev/no-kvm"], "cannot open /dev/no-kvm"),
        (&["-kernel", "builtin", "-smp", "many"], "-smp many"),
        (&["-kernel", "none", "-incoming", "defer"], "cannot open none"),
        // Nothing is wrong with it but that the other one runs.
        (&GUEST, "-pidfile p: a running machine holds it (process "),
    ];
    for (case, why) in cases {
        let text = refusal(godwit(folder, &words(&[&RAM, case, &ALL])).output().unwrap());
        assert!(text.starts_with(&format!("godwit: {why}")), "{case:?}: {text}");
        assert_runs(folder);
        assert_eq!(fs::read_to_string(folder.join("p")).unwrap(), pid);
    }
    // One name after the other.
    let refused = |words: &[&str]| refusal(godwit(folder, words).output().unwrap());
    let socket = refused(&words(&[&RAM, &GUEST, &QMP, &["-serial", "file:s"]]));
    assert!(socket.contains("unix:q: a running program listens there"), "{socket}");
    let console = refused(&words(&[&RAM, &GUEST, &["-serial", "unix:q,server=on,wait=off"]]));
    assert!(console.contains("unix:q: a running program listens there"), "{console}");
    let device = ["-chardev", "socket,id=c,path=q,server=on,wait=off"];
    let device = refused(&words(&[&RAM, &GUEST, &device]));
    assert!(device.contains("unix:q: a running program listens there"), "{device}");
    let incoming = refused(&words(&[&RAM, &["-incoming", "unix:q"]]));
    assert!(incoming.contains("a running program listens there"), "{incoming}");
    assert!(said().contains("sweep 1 "), "its output was not emptied");
    assert!(!said().contains("CORRUPT"));
    assert_runs(folder);
    first.end();
    let left: Vec<_> = fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(!left.iter().any(|name| name == "p" || name == "q"), "{left:?}");
}

#[test]
fn nothing_outside_is_made_before_line_and_kernel_are_checked() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    fs::write(folder.join("s"), "precious").unwrap();
    for line in ["-kernel none", "-kernel builtin -append x", "-kernel builtin -incoming tcp:x"] {
        let line: Vec<_> = line.split(' ').collect();
        let all = ["-serial", "pty:link", "-chardev", "file,id=f,path=s"];
        refusal(godwit(folder, &words(&[&RAM, &line, &ALL[..4], &all])).output().unwrap());
        let left: Vec<_> = fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(left, ["s"], "{line:?}");
        assert_eq!(fs::read_to_string(folder.join("s")).unwrap(), "precious");
    }
}

#[test]
fn what_a_dead_machine_left_is_taken_over() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    drop(Running::start(folder, &words(&[&RAM, &GUEST, &ALL])));
    assert!(folder.join("q").exists() && folder.join("p").exists());
    let next = Running::start(folder, &words(&[&RAM, &GUEST, &ALL]));
    assert_runs(folder);
    assert_eq!(fs::read_to_string(folder.join("p")).unwrap(), format!("{}\n", next.0.0.id()));
}

#[test]
fn what_is_not_a_machines_own_is_neither_replaced_nor_removed() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    fs::write(folder.join("file"), "precious").unwrap();
    rustix::fs::mkfifoat(rustix::fs::CWD, folder.join("fifo"), 0o600.into()).unwrap();
    for (extra, why) in [
        (["-qmp", "unix:file,server=on,wait=off"], "that is no socket"),
        (["-incoming", "unix:file"], "that is no socket"),
        (["-pidfile", "file"], "something else than a process id"),
        (["-pidfile", "fifo"], "no regular file"),
        (["-pidfile", "."], "Is a directory"),
        (["-pidfile", "none/p"], "No such file"),
    ] {
        let text = refusal(godwit(folder, &words(&[&RAM, &GUEST, &extra])).output().unwrap());
        assert!(text.contains(why), "{extra:?}: {text}");
        assert_eq!(fs::read_to_string(folder.join("file")).unwrap(), "precious");
    }
    // Names that somebody else has taken meanwhile are his at the end.
    let machine = Running::start(folder, &words(&[&RAM, &GUEST, &ALL]));
    for name in ["p", "q"] {
        fs::remove_file(folder.join(name)).unwrap();
        fs::write(folder.join(name), "new").unwrap();
    }
    machine.end();
    for name in ["p", "q"] {
        assert_eq!(fs::read_to_string(folder.join(name)).unwrap(), "new");
    }
}

#[test]
fn the_socket_of_an_incoming_migration_goes_with_the_machine() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let machine = Running::start(folder, &words(&[&RAM, &QMP, &["-incoming", "unix:i"]]));
    assert_eq!(ask(folder, "query-status")["return"]["status"], "inmigrate");
    assert!(folder.join("i").exists());
    machine.end();
    assert!(!folder.join("i").exists() && !folder.join("q").exists());
}

#[test]
fn a_machine_that_waits_for_its_first_client_is_ended_by_a_signal() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let waits = ["-qmp", "unix:q,server=on,wait=on", "-pidfile", "p"];
    let machine = Running(Ended(godwit(folder, &words(&[&RAM, &GUEST, &waits])).spawn().unwrap()));
    let end = Instant::now() + TIME;
    while !folder.join("q").exists() {
        assert!(Instant::now() < end, "no monitor");
        std::thread::sleep(Duration::from_millis(5));
    }
    // Another machine that wants the name is not taken for the client.
    let text = refusal(godwit(folder, &words(&[&RAM, &GUEST, &QMP])).output().unwrap());
    assert!(text.contains("a running program listens there"), "{text}");
    assert!(!folder.join("ram").exists());
    machine.end();
    assert_eq!(fs::read_dir(folder).unwrap().count(), 0);
}

/// The lock is the one that QEMU takes.
#[test]
fn a_pid_file_that_another_program_locks_is_refused() {
    use rustix::fs::{FlockOperation, fcntl_lock};
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let held = fs::File::create(folder.join("p")).unwrap();
    writeln!(&held, "4711").unwrap();
    fcntl_lock(&held, FlockOperation::NonBlockingLockExclusive).unwrap();
    let text = refusal(godwit(folder, &words(&[&RAM, &GUEST, &ALL])).output().unwrap());
    assert!(text.contains("-pidfile p: a running machine holds it (process 4711)"), "{text}");
    drop(held);
    let _machine = Running::start(folder, &words(&[&RAM, &GUEST, &ALL]));
    let free = fs::File::options().write(true).open(folder.join("p")).unwrap();
    assert!(fcntl_lock(&free, FlockOperation::NonBlockingLockExclusive).is_err());
}

#[test]
fn with_few_descriptors_a_machine_has_all_it_was_asked_for_or_says_which_limit_is_low() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let mut works = None;
    for limit in [6, 7, 8, 10, 12, 15, 16, 17, 18, 19, 20, 24, 28, 32, 36, 40, 44, 48, 64] {
        let line = words(&[&RAM, &GUEST, &ALL, &["-smp", "2"]]);
        let mut command = godwit(folder, &line);
        let program = format!("ulimit -n {limit}; exec \"$0\" \"$@\"");
        let mut shell = Command::new("sh");
        shell.args(["-c", &program]).arg(command.get_program()).args(command.get_args());
        shell.current_dir(folder).stdin(Stdio::null()).stdout(Stdio::null());
        command = shell;
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let end = Instant::now() + TIME;
        let ended = loop {
            if child.try_wait().unwrap().is_some() {
                break true;
            }
            if UnixStream::connect(folder.join("q")).is_ok() {
                break false;
            }
            assert!(Instant::now() < end, "{limit}: neither one nor the other");
            std::thread::sleep(Duration::from_millis(2));
        };
        if ended {
            let text = refusal(child.wait_with_output().unwrap());
            assert!(works.is_none() && text.contains("ulimit -n"), "{limit}: {text}");
            assert!(!folder.join("s").exists(), "{limit}");
            continue;
        }
        works.get_or_insert(limit);
        let machine = Running(Ended(child));
        assert_runs(folder);
        assert_eq!(ask(folder, "system_reset"), json!({"return": {}}), "{limit}");
        assert_runs(folder);
        wait_for_a_sweep(folder);
        machine.end();
        fs::remove_file(folder.join("s")).unwrap();
    }
    assert!(works.is_some_and(|limit| limit <= 64), "{works:?}");
}

#[test]
fn clients_reach_a_monitor_by_the_words_that_made_it() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let room = 108 - folder.as_os_str().len() - 1;
    let long = |bytes: usize| "x".repeat(bytes + room - 108);
    for (written, name) in [
        ("com,,ma", "com,ma"),
        (",,,,", ",,"),
        ("spa ce", "spa ce"),
        ("per%41", "per%41"),
        ("ha#sh", "ha#sh"),
        ("quo'te\"s", "quo'te\"s"),
        ("ünï", "ünï"),
        ("co:lon", "co:lon"),
        (&long(107), &long(107)),
        (&long(108), &long(108)),
    ] {
        let socket = format!("unix:{}/{written},server=on,wait=off", folder.display());
        let line = words(&[&RAM, &GUEST, &["-qmp", &socket]]);
        let machine = Running(Ended(godwit(folder, &line).spawn().unwrap()));
        let end = Instant::now() + TIME;
        while !folder.join(name).exists() {
            assert!(Instant::now() < end, "{name}: no monitor");
            std::thread::sleep(Duration::from_millis(5));
        }
        let alone = format!("{}/{written}", folder.display());
        for address in [&socket, &format!("unix:{alone}"), &alone] {
            // The name is there a moment before it is listened on.
            let (said, why) = loop {
                let status = Command::new(env!("CARGO_BIN_EXE_godwit"))
                    .args(["status", "--qmp", address])
                    .output()
                    .unwrap();
                let (said, why) = (text(&status.stdout), text(&status.stderr));
                if !why.contains("Connection refused") || Instant::now() > end {
                    break (said, why);
                }
            };
            assert!(said.contains("running"), "{address}: {said}{why}");
        }
        machine.end();
        assert!(!folder.join(name).exists(), "{name}");
    }
    let long = format!("unix:{}/{},server=on,wait=off", folder.display(), long(109));
    let text = refusal(godwit(folder, &words(&[&RAM, &GUEST, &["-qmp", &long]])).output().unwrap());
    assert!(text.contains("at most 108 bytes, this one 109"), "{text}");
}
