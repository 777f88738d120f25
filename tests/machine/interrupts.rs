//! SIGINT, SIGTERM and SIGHUP to the verbs, at any moment, and machines that do not answer.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect()
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
    assert!(Command::new("mkfifo").arg(&main).status().unwrap().success());
    let words = ["inspect", main.to_str().unwrap(), "--ram", out.to_str().unwrap()];
    let mut client = Client::start(Command::new(env!("CARGO_BIN_EXE_godwit")).args(words));
    wait_until("the image is begun", || names(folder.path()).len() == 2);
    client.signal(Signal::TERM);
    assert_eq!(client.end().0.code(), Some(128 + 15));
    assert_eq!(names(folder.path()), ["main"]);
}

#[test]
fn an_interrupted_demo_takes_its_machines_with_it() {
    for signal in [Signal::INT, Signal::TERM, Signal::HUP] {
        let folder = tempfile::tempdir().unwrap();
        // Its name needs care on a command line.
        let folder = folder.path().join("a, b,c");
        std::fs::create_dir(&folder).unwrap();
        let mut demo = Command::new(env!("CARGO_BIN_EXE_godwit"));
        demo.args(["demo", "--memory", "64M", "--working-set", "2M"]).env("TMPDIR", &folder);
        let mut client = Client::start(&mut demo);
        let sweeps = || {
            let inside = names(&folder).pop().map(|name| folder.join(name).join("source.serial"));
            inside.is_some_and(|log| std::fs::read(log).is_ok_and(|log| !log.is_empty()))
        };
        wait_until("the guest counts", sweeps);
        client.signal(signal);
        let (status, words) = client.end();
        assert_eq!(status.code(), Some(1), "{words}");
        assert!(words.contains("interrupted") || words.contains("cancelled"), "{words}");
        assert_eq!(names(&folder), [""; 0]);
        let used = |process: &Path| {
            let line = std::fs::read(process.join("cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&line).contains(&*folder.to_string_lossy())
        };
        let left =
            std::fs::read_dir("/proc").unwrap().flatten().filter(|p| used(&p.path())).count();
        assert_eq!(left, 0, "machines that are left");
    }
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
