//! Files that are written by name: what the name is stays what it is, inputs stay as they are, and
//! what fails leaves nothing that looks whole.

use std::ffi::OsStr;
use std::fs::Permissions;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, chown, symlink};
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::common::cli::{godwit, text};
use crate::common::process::Godwit;
use godwit::dump::read::Core;
use rustix::process::{Pid, Resource, Rlimit, Signal, kill_process, prlimit};
use serde_json::json;

/// The command with a limit on the size of files of one block.
fn limited(words: &[&str]) -> Output {
    Command::new("sh")
        .args(["-c", "ulimit -f 1; exec \"$0\" \"$@\"", env!("CARGO_BIN_EXE_godwit")])
        .args(words)
        .output()
        .unwrap()
}

fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    let mut names: Vec<_> =
        entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

#[test]
fn a_limit_on_the_size_of_files_ends_commands_and_not_the_machine() {
    let guest = Godwit::start(1, 32, "ws=2");
    let mut qmp = guest.qmp();
    let pid = Pid::from_raw(guest.pid() as i32);
    let limit = Rlimit { current: Some(64 << 10), maximum: Some(64 << 10) };
    prlimit(pid, Resource::Fsize, limit).unwrap();
    let file = guest.path("out");
    let name = file.to_str().unwrap();
    let protocol = format!("file:{name}");
    for (command, arguments) in [
        ("pmemsave", json!({"val": 0, "size": 1 << 20, "filename": name})),
        ("dump-guest-memory", json!({"paging": false, "protocol": protocol})),
        (
            "dump-guest-memory",
            json!({"paging": false, "protocol": protocol, "format": "kdump-zlib"}),
        ),
        ("dump-guest-memory", json!({"paging": false, "protocol": protocol, "x-live": true})),
    ] {
        let _ = std::fs::remove_file(&file);
        let error = qmp.try_ask(command, arguments.clone()).unwrap_err();
        assert!(error.ends_with("File too large"), "{command} {arguments}: {error}");
        qmp.wait_until_running();
    }
    let _ = std::fs::remove_file(&file);
    qmp.ask("migrate", json!({"uri": protocol}));
    loop {
        let now = qmp.ask("query-migrate", json!({}));
        match now["status"].as_str() {
            Some("failed") => break,
            Some("setup" | "active" | "device") => {}
            _ => panic!("{now}"),
        }
    }
    qmp.wait_until_running();
    drop(qmp);
    // The client's own file is written by the machine.
    let before = names(guest.folder());
    let made = guest.dump(&guest.path("core"), &[]);
    assert!(text(&made.stderr).contains("File too large"), "{}", text(&made.stderr));
    assert_eq!(made.status.code(), Some(1));
    assert_eq!(names(guest.folder()), before);
    guest.qmp().wait_until_running();
}

#[test]
fn every_verb_survives_a_limit_on_the_size_of_files() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let made = limited(&["builtin-guest", out.to_str().unwrap()]);
    assert_eq!(made.status.code(), Some(1), "{made:?}");
    assert!(text(&made.stderr).contains("File too large"), "{}", text(&made.stderr));
    assert_eq!(names(folder.path()), [""; 0]);
}

/// `mknod NAME c 1 3`: a /dev/null of our own. Needs root.
fn null(at: &Path) {
    let made = Command::new("mknod").arg(at).args(["c", "1", "3"]).status().unwrap();
    assert!(made.success(), "a device node cannot be made; is this root?");
}

fn fifo(at: &Path) {
    assert!(Command::new("mkfifo").arg(at).status().unwrap().success());
}

#[test]
fn a_dump_leaves_what_its_name_is() {
    let guest = Godwit::start(1, 32, "ws=2");
    let mut qmp = guest.qmp();
    qmp.ask("stop", json!({}));
    drop(qmp);
    let path = |name: &str| guest.path(name);
    let dump = |name: &str| {
        let made = guest.dump(&path(name), &[]);
        assert!(made.status.success(), "{name}: {}", text(&made.stderr));
        made
    };
    let is_core = |bytes: &[u8]| Core::parse(bytes).is_ok();

    // A link's target is replaced, and keeps its permissions and its owner.
    std::fs::create_dir(path("there")).unwrap();
    std::fs::write(path("there/target"), b"old").unwrap();
    std::fs::set_permissions(path("there/target"), Permissions::from_mode(0o640)).unwrap();
    chown(path("there/target"), Some(4321), Some(8765)).unwrap();
    symlink("there/target", path("link")).unwrap();
    dump("link");
    assert!(path("link").symlink_metadata().unwrap().is_symlink());
    let is = path("there/target").metadata().unwrap();
    assert_eq!((is.mode() & 0o7777, is.uid(), is.gid()), (0o640, 4321, 8765));
    assert!(is_core(&std::fs::read(path("there/target")).unwrap()));
    assert_eq!(names(&path("there")), ["target"]);

    // One that leads to nothing yet.
    symlink("there/new", path("dangling")).unwrap();
    dump("dangling");
    assert!(is_core(&std::fs::read(path("there/new")).unwrap()));
    assert_eq!(path("there/new").metadata().unwrap().mode() & 0o777, 0o400);

    // A device stays one; so does a FIFO, whose reader comes late.
    null(&path("null"));
    dump("null");
    assert!(path("null").symlink_metadata().unwrap().file_type().is_char_device());
    fifo(&path("fifo"));
    let reader = std::thread::spawn({
        let fifo = path("fifo");
        move || {
            std::thread::sleep(Duration::from_millis(300));
            std::fs::read(fifo).unwrap()
        }
    });
    dump("fifo");
    assert!(is_core(&reader.join().unwrap()));
    assert!(path("fifo").symlink_metadata().unwrap().file_type().is_fifo());

    // Standard output, by three names; what is said goes elsewhere.
    for name in ["-", "/dev/stdout", "/proc/self/fd/1"] {
        let made = guest.dump(Path::new(name), &["--json"]);
        assert!(is_core(&made.stdout), "{name}");
        let said: serde_json::Value = serde_json::from_slice(&made.stderr).unwrap();
        assert_eq!(said["memory"], 32 << 20);
    }
    // Another descriptor, behind what is there.
    let made = Command::new("sh")
        .args(["-c", "exec 7>\"$1\"; echo before >&7; \"$0\" dump --qmp \"$2\" /dev/fd/7"])
        .arg(env!("CARGO_BIN_EXE_godwit"))
        .arg(path("behind"))
        .arg(guest.monitor())
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", text(&made.stderr));
    let behind = std::fs::read(path("behind")).unwrap();
    assert!(behind.starts_with(b"before\n") && is_core(&behind[7..]));

    // A name that is no text.
    let odd = path("x").with_file_name(OsStr::from_bytes(b"c\xff\xfere"));
    let made = guest.dump(&odd, &["--json"]);
    assert!(made.status.success(), "{}", text(&made.stderr));
    assert!(is_core(&std::fs::read(&odd).unwrap()));

    // Refused by name, and untouched.
    std::fs::write(path("ram"), b"").unwrap();
    symlink("loop", path("loop")).unwrap();
    let before = names(guest.folder());
    let name_of = |path: PathBuf| path.file_name().unwrap().to_str().unwrap().to_owned();
    let socket = name_of(guest.monitor());
    let serial = socket.replace("qmp", "serial");
    for (name, want) in [
        ("there", "is a folder"),
        ("new/", "is a folder"),
        ("", "is a folder"),
        (&*socket, "is a socket"),
        ("loop", "too many symbolic links"),
        ("nowhere/file", "No such file or directory"),
        (&*serial, "would overwrite"),
    ] {
        let made = guest.dump(&path(name), &[]);
        assert_eq!(made.status.code(), Some(1), "{name}");
        assert!(text(&made.stderr).contains(want), "{name}: {}", text(&made.stderr));
    }
    assert_eq!(names(guest.folder()), before);
    assert_eq!(guest.qmp().status(), "paused");
}

#[test]
fn two_dumps_to_one_name_are_each_whole() {
    let folder = tempfile::tempdir().unwrap();
    let guests = [32, 40].map(|memory| Godwit::start(1, memory, "ws=2"));
    for guest in &guests {
        drop(guest.qmp());
    }
    let file = folder.path().join("core");
    let made = std::thread::scope(|threads| {
        let dumps = guests.each_ref().map(|guest| threads.spawn(|| guest.dump(&file, &["--json"])));
        dumps.map(|dump| dump.join().unwrap())
    });
    for (made, mib) in made.iter().zip([32 << 20, 40 << 20]) {
        assert!(made.status.success(), "{}", text(&made.stderr));
        let said: serde_json::Value = serde_json::from_slice(&made.stdout).unwrap();
        assert_eq!(said["memory"], mib);
        assert!(said["size"].as_u64().unwrap() > mib, "its own size");
    }
    let bytes = std::fs::read(&file).unwrap();
    Core::parse(&bytes).unwrap();
    assert_eq!(names(folder.path()), ["core"]);
}

#[test]
fn a_signal_winds_up_what_runs_and_leaves_no_file() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("core");
    for signal in [Signal::INT, Signal::TERM, Signal::HUP] {
        let monitor = Monitor::silent_at("nothing");
        let mut client = monitor.client("dump", &[out.to_str().unwrap()]);
        wait_until("a dump is under way", || monitor.heard("query-dump"));
        assert_eq!(names(folder.path()).len(), 1);
        client.signal(signal);
        let (status, words) = client.end();
        assert_eq!(status.code(), Some(1), "{signal:?} {words}");
        assert!(words.contains("cancelled; the guest goes on"), "{words}");
        assert!(monitor.heard("x-dump-cancel"));
        assert_eq!(names(folder.path()), [""; 0]);

        let monitor = Monitor::silent_at("nothing");
        let mut client = monitor.client("migrate", &["tcp:h:1"]);
        wait_until("a migration is under way", || monitor.heard("query-migrate"));
        client.signal(signal);
        let (status, words) = client.end();
        assert_eq!(status.code(), Some(1), "{signal:?} {words}");
        assert!(words.contains("the guest runs on where it was"), "{words}");
        assert!(monitor.heard("migrate_cancel"));
    }
    // Who started us with a signal ignored (nohup) does not want to be asked.
    let monitor = Monitor::silent_at("nothing");
    let mut client = monitor.client_of_nohup(&["dump", out.to_str().unwrap()]);
    wait_until("a dump is under way", || monitor.heard("query-dump"));
    client.signal(Signal::HUP);
    client.signal(Signal::TERM);
    let (status, _) = client.end();
    assert_eq!(status.code(), Some(1));
    assert_eq!(names(folder.path()), [""; 0]);
}

#[test]
fn a_machine_that_does_not_answer_can_be_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("core");
    for (silent, verb, word) in [
        ("greeting", "dump", "interrupted before anything answered"),
        ("getfd", "dump", "does not answer getfd"),
        ("dump-guest-memory", "dump", "does not answer dump-guest-memory"),
        ("query-dump", "dump", "does not answer query-dump"),
        ("x-dump-cancel", "dump", "does not answer x-dump-cancel"),
        ("query-migrate", "migrate", "does not answer query-migrate"),
        ("migrate_cancel", "migrate", "does not answer migrate_cancel"),
    ] {
        let monitor = Monitor::silent_at(silent);
        let target = if verb == "dump" { out.to_str().unwrap() } else { "tcp:h:1" };
        let mut client = monitor.client(verb, &[target]);
        let reached = match silent {
            "x-dump-cancel" => "query-dump",
            "migrate_cancel" => "query-migrate",
            other => other,
        };
        wait_until(reached, || monitor.heard(reached));
        client.signal(Signal::INT);
        let (status, words) = client.end();
        assert_eq!(status.code(), Some(1), "{silent}: {words}");
        assert!(words.contains(word), "{silent}: {words}");
        assert_eq!(names(folder.path()), [""; 0], "{silent}");
    }
}

#[test]
fn an_interrupted_inspection_leaves_no_file() {
    let folder = tempfile::tempdir().unwrap();
    let (main, out) = (folder.path().join("main"), folder.path().join("ram"));
    fifo(&main);
    let words = ["inspect", main.to_str().unwrap(), "--ram", out.to_str().unwrap()];
    let mut client = Client::start(Command::new(env!("CARGO_BIN_EXE_godwit")).args(words));
    wait_until("the image is begun", || names(folder.path()).len() == 2);
    client.signal(Signal::TERM);
    assert_eq!(client.end().0.code(), Some(128 + 15));
    assert_eq!(names(folder.path()), ["main"]);
}

#[test]
fn an_output_that_is_an_input_is_refused_before_anything_is_touched() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    std::fs::write(path("main"), b"QEVM and more").unwrap();
    std::fs::write(path("channel"), b"pages").unwrap();
    std::fs::hard_link(path("main"), path("same")).unwrap();
    symlink("main", path("link")).unwrap();
    for (output, name) in [
        ("--ram", "main"),
        ("--core", "main"),
        ("--ram", "same"),
        ("--core", "link"),
        ("--ram", "channel"),
    ] {
        for extra in ["--channel", "--resume"] {
            let made =
                godwit(&["inspect", &path("main"), extra, &path("channel"), output, &path(name)]);
            assert_eq!(made.status.code(), Some(1));
            let words = text(&made.stderr);
            assert!(words.contains("would overwrite"), "{output} {name}: {words}");
        }
    }
    let out = path("out");
    let made = godwit(&["inspect", &path("main"), "--ram", &out, "--core", &out]);
    assert!(text(&made.stderr).contains("are the same file"), "{}", text(&made.stderr));
    assert_eq!(std::fs::read(path("main")).unwrap(), b"QEVM and more");
    assert_eq!(std::fs::read(path("channel")).unwrap(), b"pages");
    assert_eq!(names(folder.path()), ["channel", "link", "main", "same"]);
}

#[test]
fn who_may_not_replace_a_file_writes_it_in_place_or_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).unwrap();
    let nobody = |file: &Path| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_godwit"));
        command.args(["builtin-guest", file.to_str().unwrap()]).uid(65534).gid(65534);
        command.output().unwrap()
    };
    let guest = godwit::builtin::elf();
    // A folder that belongs to someone else; one in which everybody may make files, like /tmp.
    for (name, mode) in [("closed", 0o755), ("sticky", 0o1777)] {
        let folder = folder.path().join(name);
        std::fs::create_dir(&folder).unwrap();
        std::fs::set_permissions(&folder, Permissions::from_mode(mode)).unwrap();
        let file = folder.join("file");
        std::fs::write(&file, vec![7; 1 << 20]).unwrap();
        std::fs::set_permissions(&file, Permissions::from_mode(0o666)).unwrap();
        let before = file.metadata().unwrap();
        let made = nobody(&file);
        assert!(made.status.success(), "{name}: {}", text(&made.stderr));
        assert_eq!(std::fs::read(&file).unwrap(), guest);
        let after = file.metadata().unwrap();
        assert_eq!((before.ino(), before.uid()), (after.ino(), after.uid()), "{name}");

        std::fs::set_permissions(&file, Permissions::from_mode(0o644)).unwrap();
        let made = nobody(&file);
        assert!(text(&made.stderr).contains("Permission denied"), "{}", text(&made.stderr));
        assert_eq!(std::fs::read(&file).unwrap(), guest, "{name}: untouched");
        assert_eq!(names(&folder), ["file"]);
    }
    // A file that is mounted over another, as containers do.
    let (on, below) = (folder.path().join("mounted"), folder.path().join("below"));
    std::fs::write(&on, b"old").unwrap();
    std::fs::write(&below, b"older").unwrap();
    let mount = Command::new("mount").arg("--bind").arg(&below).arg(&on).status().unwrap();
    assert!(mount.success(), "nothing can be mounted; is this root?");
    let made = godwit(&["builtin-guest", on.to_str().unwrap()]);
    let unmount = Command::new("umount").arg(&on).status().unwrap();
    assert!(unmount.success() && made.status.success(), "{}", text(&made.stderr));
    assert_eq!(std::fs::read(&below).unwrap(), guest);
    assert_eq!(std::fs::read(&on).unwrap(), b"old");
}

fn wait_until(what: &str, is: impl Fn() -> bool) {
    let end = Instant::now() + Duration::from_secs(60);
    while !is() {
        assert!(Instant::now() < end, "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A verb that runs.
struct Client(Child);

impl Client {
    fn start(command: &mut Command) -> Client {
        let command = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        Client(command.spawn().unwrap())
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.0), signal).unwrap();
    }

    /// How it ended, and what it said.
    fn end(&mut self) -> (ExitStatus, String) {
        let mut words = String::new();
        self.0.stderr.take().unwrap().read_to_string(&mut words).unwrap();
        (self.0.wait().unwrap(), words)
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A machine whose dumps and migrations do not end by themselves, and which at one command falls
/// silent.
struct Monitor {
    folder: tempfile::TempDir,
    heard: Arc<Mutex<Vec<String>>>,
}

impl Monitor {
    fn silent_at(silent: &'static str) -> Monitor {
        let folder = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(folder.path().join("q")).unwrap();
        let heard = Arc::new(Mutex::new(Vec::new()));
        let hearing = heard.clone();
        std::thread::spawn(move || {
            let (mut socket, _) = listener.accept().unwrap();
            hearing.lock().unwrap().push("greeting".to_owned());
            let mut lines = BufReader::new(socket.try_clone().unwrap()).lines();
            if silent != "greeting" {
                writeln!(socket, "{}", json!({"QMP": {"version": {}, "capabilities": []}}))
                    .unwrap();
            }
            let mut cancelled = false;
            while let Some(Ok(line)) = lines.next() {
                let request: serde_json::Value = serde_json::from_str(&line).unwrap();
                let name = request["execute"].as_str().unwrap().to_owned();
                cancelled |= name == "migrate_cancel";
                let answer = match name.as_str() {
                    "query-dump" => json!({"status": "active", "completed": 1, "total": 2}),
                    "query-migrate" if cancelled => json!({"status": "cancelled"}),
                    "query-migrate" => json!({"status": "active"}),
                    _ => json!({}),
                };
                hearing.lock().unwrap().push(name.clone());
                if name == silent {
                    continue;
                }
                writeln!(socket, "{}", json!({"return": answer})).unwrap();
                if name == "x-dump-cancel" {
                    let data = json!({"result": {"status": "failed"}, "error": "dump: cancelled"});
                    writeln!(socket, "{}", json!({"event": "DUMP_COMPLETED", "data": data}))
                        .unwrap();
                }
            }
        });
        Monitor { folder, heard }
    }

    fn heard(&self, name: &str) -> bool {
        self.heard.lock().unwrap().iter().any(|heard| heard == name)
    }

    fn address(&self) -> String {
        format!("unix:{}", self.folder.path().join("q").display())
    }

    fn client(&self, verb: &str, words: &[&str]) -> Client {
        let mut command = Command::new(env!("CARGO_BIN_EXE_godwit"));
        Client::start(command.args([verb, "--qmp", &self.address()]).args(words))
    }

    fn client_of_nohup(&self, words: &[&str]) -> Client {
        let mut command = Command::new("sh");
        command.args(["-c", "trap '' HUP; exec \"$0\" \"$@\"", env!("CARGO_BIN_EXE_godwit")]);
        Client::start(command.args(words).args(["--qmp", &self.address()]))
    }
}
