//! Real `godwit run` processes with the built-in guest, and their monitors.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// Longer than anything takes on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(90);

/// A command line.
pub struct Launch {
    dir: PathBuf,
    name: String,
    memory: u32,
    guest: String,
    processors: u8,
    words: Vec<String>,
    namespace: Option<String>,
    environment: Vec<(String, String)>,
    qemu: bool,
}

impl Launch {
    /// Files of the machine lie in `dir` under `name`.
    pub fn new(dir: &Path, name: &str) -> Self {
        Self {
            dir: dir.to_owned(),
            name: name.to_owned(),
            memory: 64,
            guest: "ws=8".into(),
            processors: 1,
            words: Vec::new(),
            namespace: None,
            environment: Vec::new(),
            qemu: false,
        }
    }

    /// QEMU in place of Godwit.
    pub fn qemu(mut self) -> Self {
        self.qemu = true;
        self
    }

    /// RAM in MiB.
    pub fn memory(mut self, mib: u32) -> Self {
        self.memory = mib;
        self
    }

    /// The built-in guest's parameters.
    pub fn guest(mut self, parameters: &str) -> Self {
        self.guest = parameters.into();
        self
    }

    pub fn processors(mut self, count: u8) -> Self {
        self.processors = count;
        self
    }

    pub fn incoming(self, uri: &str) -> Self {
        self.words(&["-incoming", uri])
    }

    pub fn words(mut self, words: &[&str]) -> Self {
        self.words.extend(words.iter().map(|word| (*word).to_owned()));
        self
    }

    /// Runs in this network namespace.
    pub fn namespace(mut self, name: &str) -> Self {
        self.namespace = Some(name.into());
        self
    }

    pub fn environment(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.into(), value.into()));
        self
    }

    fn command(&self) -> Command {
        if self.qemu {
            let mut command = Command::new("qemu-system-x86_64");
            command.args(["-accel", "kvm"]);
            return command;
        }
        let godwit = env!("CARGO_BIN_EXE_godwit");
        match &self.namespace {
            None => {
                let mut command = Command::new(godwit);
                command.arg("run");
                command
            }
            Some(namespace) => {
                let mut command = Command::new("ip");
                command.args(["netns", "exec", namespace, godwit, "run"]);
                command
            }
        }
    }

    pub fn start(self) -> Vm {
        let path = |what: &str| {
            self.dir.join(format!("{}.{what}", self.name)).to_str().unwrap().to_owned()
        };
        let (serial, monitor) = (format!("file:{}", path("serial")), path("qmp"));
        let _ = std::fs::remove_file(&monitor);
        let kernel = match self.qemu {
            false => "builtin".to_owned(),
            true => {
                std::fs::write(path("elf"), godwit::builtin::elf()).unwrap();
                path("elf")
            }
        };
        let child = self
            .command()
            .args(["-M", "microvm,acpi=off", "-nodefaults", "-display", "none"])
            .args(["-m", &self.memory.to_string(), "-smp", &self.processors.to_string()])
            .args(["-kernel", &kernel, "-append", &self.guest, "-serial", &serial])
            .args(["-qmp", &format!("unix:{monitor},server=on,wait=off")])
            .args(&self.words)
            .envs(self.environment.clone())
            .stdin(Stdio::null())
            .stderr(std::fs::File::create(path("err")).unwrap())
            .spawn()
            .unwrap();
        let came = self.words.iter().any(|word| word == "-incoming");
        let mut vm = Vm { child, dir: self.dir, name: self.name, came, qmp: None };
        vm.connect();
        vm
    }
}

/// A `godwit run`, ended with the test.
pub struct Vm {
    child: Child,
    dir: PathBuf,
    pub name: String,
    /// The guest began somewhere else.
    came: bool,
    qmp: Option<BufReader<UnixStream>>,
}

impl Drop for Vm {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Vm {
    /// Opens a monitor session.
    pub fn connect(&mut self) {
        let monitor = self.dir.join(format!("{}.qmp", self.name));
        let end = Instant::now() + PATIENCE;
        let socket = loop {
            match UnixStream::connect(&monitor) {
                Ok(socket) => break socket,
                Err(error) => {
                    let exited = self.child.try_wait().unwrap();
                    assert!(exited.is_none(), "{}: {exited:?} {}", self.name, self.stderr());
                    assert!(Instant::now() < end, "{}: {error}", self.name);
                }
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        self.qmp = Some(BufReader::new(socket));
        self.line();
        self.ask("qmp_capabilities", json!({}));
    }

    /// Closes the monitor session without a word.
    pub fn hang_up(&mut self) {
        self.qmp = None;
    }

    /// SIGKILL; returns when the process is gone.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Waits for the process to end by itself.
    pub fn exit_code(&mut self) -> Option<i32> {
        let end = Instant::now() + PATIENCE;
        while Instant::now() < end {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        panic!("{} does not end", self.name);
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    fn line(&mut self) -> Value {
        let mut line = String::new();
        let qmp = self.qmp.as_mut().expect("the monitor was not hung up");
        let read = qmp.read_line(&mut line);
        assert!(
            read.as_ref().is_ok_and(|bytes| *bytes > 0),
            "{} does not answer ({read:?}): {}",
            self.name,
            self.stderr()
        );
        serde_json::from_str(&line).unwrap()
    }

    /// The answer or the error's text.
    pub fn try_ask(&mut self, command: &str, arguments: Value) -> Result<Value, String> {
        let request = json!({"execute": command, "arguments": arguments}).to_string();
        let qmp = self.qmp.as_mut().expect("the monitor was not hung up");
        qmp.get_mut().write_all(request.as_bytes()).unwrap();
        loop {
            let mut message = self.line();
            if let Some(value) = message.get_mut("return") {
                return Ok(value.take());
            }
            if let Some(error) = message.get("error") {
                return Err(error["desc"].as_str().unwrap().to_owned());
            }
        }
    }

    pub fn ask(&mut self, command: &str, arguments: Value) -> Value {
        self.try_ask(command, arguments)
            .unwrap_or_else(|error| panic!("{} {command}: {error}", self.name))
    }

    /// Switches exactly these capabilities on, and sets parameters.
    pub fn set(&mut self, capabilities: &[&str], parameters: &Value) {
        let mut list = Vec::new();
        for known in [
            "xbzrle",
            "multifd",
            "auto-converge",
            "pause-before-switchover",
            "events",
            "return-path",
            "switchover-ack",
        ] {
            list.push(json!({"capability": known, "state": capabilities.contains(&known)}));
        }
        self.ask("migrate-set-capabilities", json!({"capabilities": list}));
        self.ask("migrate-set-parameters", parameters.clone());
    }

    pub fn serial(&self) -> String {
        let bytes =
            std::fs::read(self.dir.join(format!("{}.serial", self.name))).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    pub fn stderr(&self) -> String {
        std::fs::read_to_string(self.dir.join(format!("{}.err", self.name))).unwrap_or_default()
    }

    /// The numbers of the sweeps that the first processor told on this process's own serial port.
    pub fn sweeps(&self) -> Vec<u64> {
        let serial = self.serial();
        assert!(!serial.contains("CORRUPT"), "{}: {serial}", self.name);
        let number = |line: &str| {
            let line = line.strip_prefix("cpu 0 ").unwrap_or(line);
            line.strip_prefix("sweep ")?.split(' ').next()?.parse().ok()
        };
        // A guest may move in the middle of a line: "cpu 1 " is there and "sweep 7" is here. The
        // first line of one that came, and what has no end yet, say nothing.
        let whole = serial.rfind('\n').map_or("", |end| &serial[..end]);
        let skipped = usize::from(self.came);
        whole.split('\n').skip(skipped).map(str::trim_end).filter_map(number).collect()
    }

    /// Waits for so many sweeps on this process's own serial port.
    pub fn wait_for_sweeps(&self, count: usize) {
        let end = Instant::now() + PATIENCE;
        while self.sweeps().len() < count {
            assert!(Instant::now() < end, "{} stands still: {}", self.name, self.stderr());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// The guest goes on, here. It may still be about to: a QEMU's source is told before the target
    /// runs.
    pub fn assert_alive(&mut self) {
        let end = Instant::now() + PATIENCE;
        loop {
            let status = self.status();
            if status == "running" {
                break;
            }
            assert!(Instant::now() < end, "{} is {status}: {}", self.name, self.stderr());
            std::thread::sleep(Duration::from_millis(5));
        }
        let before = self.sweeps().len();
        self.wait_for_sweeps(before + 2);
    }

    pub fn status(&mut self) -> String {
        self.ask("query-status", json!({}))["status"].as_str().unwrap().to_owned()
    }

    /// Waits until `query-migrate` says something that `is` accepts.
    pub fn wait_for(&mut self, what: &str, is: impl Fn(&Value) -> bool) -> Value {
        let end = Instant::now() + PATIENCE;
        loop {
            let report = self.ask("query-migrate", json!({}));
            if is(&report) {
                return report;
            }
            assert!(Instant::now() < end, "{} waits for {what}: {report}", self.name);
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Waits for the end of a migration.
    pub fn outcome(&mut self) -> Value {
        self.wait_for("an outcome", |report| {
            matches!(report["status"].as_str(), Some("completed" | "failed" | "cancelled"))
        })
    }

    /// The TCP port that a target listens on.
    pub fn port(&mut self) -> String {
        let report = self.ask("query-migrate", json!({}));
        report["socket-address"][0]["port"]
            .as_str()
            .unwrap_or_else(|| panic!("{report}"))
            .to_owned()
    }
}
