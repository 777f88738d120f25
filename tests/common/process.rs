//! `godwit run` with the built-in guest as a process of its own, and a QMP client.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// A running `godwit run` with the built-in guest, ended with the test.
pub struct Godwit {
    pub child: Child,
    folder: tempfile::TempDir,
}

impl Godwit {
    /// `set` is the built-in guest's command line. What it says goes to the file `serial`.
    pub fn start(cpus: &str, memory: &str, set: &str) -> Godwit {
        let folder = tempfile::tempdir().unwrap();
        let monitor = format!("unix:{}/q,server=on,wait=off", folder.path().display());
        let serial = format!("file:{}/serial", folder.path().display());
        let child = Command::new(env!("CARGO_BIN_EXE_godwit"))
            .args(["run", "-M", "microvm,acpi=off", "-nodefaults", "-display", "none"])
            .args([
                "-m", memory, "-smp", cpus, "-kernel", "builtin", "-append", set, "-qmp", &monitor,
            ])
            .args(["-serial", &serial])
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        Godwit { child, folder }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub fn qmp(&self) -> Qmp {
        let end = Instant::now() + Duration::from_secs(30);
        let stream = loop {
            match UnixStream::connect(self.path("q")) {
                Ok(stream) => break stream,
                Err(error) if Instant::now() > end => panic!("{error}"),
                Err(_) => std::thread::sleep(Duration::from_millis(10)),
            }
        };
        let mut qmp =
            Qmp { reader: BufReader::new(stream.try_clone().unwrap()), stream, events: Vec::new() };
        qmp.line();
        qmp.ask("qmp_capabilities", json!({})).unwrap();
        qmp
    }

    /// `godwit dump` to `file`.
    pub fn dump(&self, file: &Path, more: &[&str]) -> Output {
        let monitor = format!("unix:{}", self.path("q").display());
        Command::new(env!("CARGO_BIN_EXE_godwit"))
            .args(["dump", "--qmp", &monitor, file.to_str().unwrap()])
            .args(more)
            .output()
            .unwrap()
    }
}

impl Drop for Godwit {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub struct Qmp {
    reader: BufReader<UnixStream>,
    stream: UnixStream,
    events: Vec<Value>,
}

impl Qmp {
    pub fn line(&mut self) -> Value {
        let mut line = String::new();
        self.reader.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap()
    }

    pub fn ask(&mut self, command: &str, arguments: Value) -> Result<Value, String> {
        write!(self.stream, "{}", json!({"execute": command, "arguments": arguments})).unwrap();
        loop {
            let answer = self.line();
            if answer.get("event").is_some() {
                self.events.push(answer);
            } else if let Some(error) = answer.get("error") {
                return Err(error["desc"].as_str().unwrap().to_owned());
            } else {
                return Ok(answer["return"].clone());
            }
        }
    }

    pub fn event(&mut self, name: &str) -> Value {
        loop {
            if let Some(at) = self.events.iter().position(|event| event["event"] == name) {
                return self.events.remove(at);
            }
            let event = self.line();
            self.events.push(event);
        }
    }

    /// The guest goes on a moment after the dump's end was told, as QEMU's does.
    pub fn wait_until_running(&mut self) {
        let end = Instant::now() + Duration::from_secs(10);
        while self.status() != "running" {
            assert!(Instant::now() < end, "the guest stays in state {}", self.status());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub fn status(&mut self) -> String {
        self.ask("query-status", json!({})).unwrap()["status"].as_str().unwrap().to_owned()
    }
}
