//! Real `godwit run` processes, and QEMUs in their place, with the built-in guest and a monitor.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

pub(crate) use super::PATIENCE;
use super::filter;
use super::qmp::Client;

/// A command line.
pub(crate) struct Launch {
    dir: PathBuf,
    /// Removed with the machine, where the machine has a folder of its own.
    own: Option<tempfile::TempDir>,
    name: String,
    memory: u32,
    guest: Option<String>,
    processors: u8,
    words: Vec<String>,
    namespace: Option<String>,
    environment: Vec<(String, String)>,
    qemu: bool,
    bare: bool,
    /// A system call that fails, and how.
    forbidden: Option<(libc::c_long, i32)>,
}

impl Launch {
    /// Files of the machine lie in `dir` under `name`.
    pub(crate) fn new(dir: &Path, name: &str) -> Self {
        Self {
            dir: dir.to_owned(),
            own: None,
            name: name.to_owned(),
            memory: 64,
            guest: Some("ws=8".into()),
            processors: 1,
            words: Vec::new(),
            namespace: None,
            environment: Vec::new(),
            qemu: false,
            bare: false,
            forbidden: None,
        }
    }

    /// In a folder of its own.
    pub(crate) fn alone() -> Self {
        let own = tempfile::tempdir().unwrap();
        let mut launch = Self::new(own.path(), "vm");
        launch.own = Some(own);
        launch
    }

    /// A file of the machine's folder.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Without serial port and monitor but what the words ask for, and with pipes as standard input
    /// and output.
    pub(crate) fn bare(mut self) -> Self {
        self.bare = true;
        self
    }

    /// Without a kernel: the guest comes from elsewhere.
    pub(crate) fn no_guest(mut self) -> Self {
        self.guest = None;
        self
    }

    /// QEMU in place of Godwit.
    pub(crate) fn qemu(mut self) -> Self {
        self.qemu = true;
        self
    }

    /// On a host where this system call fails with this errno.
    pub(crate) fn forbid(mut self, call: libc::c_long, errno: i32) -> Self {
        self.forbidden = Some((call, errno));
        self
    }

    /// RAM in MiB.
    pub(crate) fn memory(mut self, mib: u32) -> Self {
        self.memory = mib;
        self
    }

    /// The built-in guest's parameters.
    pub(crate) fn guest(mut self, parameters: &str) -> Self {
        self.guest = Some(parameters.into());
        self
    }

    pub(crate) fn processors(mut self, count: u8) -> Self {
        self.processors = count;
        self
    }

    pub(crate) fn incoming(self, uri: &str) -> Self {
        self.words(&["-incoming", uri])
    }

    /// More options; `@DIR@` is the folder of the machine.
    pub(crate) fn words(mut self, words: &[&str]) -> Self {
        let dir = self.dir.to_str().unwrap();
        self.words.extend(words.iter().map(|word| word.replace("@DIR@", dir)));
        self
    }

    /// Runs in this network namespace.
    pub(crate) fn namespace(mut self, name: &str) -> Self {
        self.namespace = Some(name.into());
        self
    }

    pub(crate) fn environment(mut self, name: &str, value: &str) -> Self {
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

    /// Starts it and opens a monitor session.
    pub(crate) fn start(self) -> Vm {
        let mut vm = self.spawn();
        vm.connect();
        vm
    }

    /// Starts it.
    pub(crate) fn spawn(self) -> Vm {
        let path = |what: &str| {
            self.dir.join(format!("{}.{what}", self.name)).to_str().unwrap().to_owned()
        };
        let _ = std::fs::remove_file(path("qmp"));
        let mut command = self.command();
        command
            .args(["-M", "microvm,acpi=off", "-nodefaults", "-display", "none"])
            .args(["-m", &self.memory.to_string(), "-smp", &self.processors.to_string()])
            .stderr(File::create(path("err")).unwrap());
        if let Some(guest) = &self.guest {
            let kernel = if self.qemu { path("elf") } else { "builtin".into() };
            if self.qemu {
                std::fs::write(&kernel, godwit::builtin::elf()).unwrap();
            }
            command.args(["-kernel", &kernel, "-append", guest]);
        }
        if self.bare {
            command.stdin(Stdio::piped()).stdout(Stdio::piped());
        } else {
            command
                .args(["-serial", &format!("file:{}", path("serial"))])
                .args(["-qmp", &format!("unix:{},server=on,wait=off", path("qmp"))])
                .stdin(Stdio::null());
        }
        if let Some((call, errno)) = self.forbidden {
            filter::forbid(&mut command, call, errno);
        }
        let child = command.args(&self.words).envs(self.environment).spawn().unwrap();
        let came = self.words.iter().any(|word| word == "-incoming");
        Vm { child, dir: self.dir, name: self.name, came, qmp: None, _own: self.own }
    }
}

/// A `godwit run`, ended with the test.
pub(crate) struct Vm {
    pub child: Child,
    dir: PathBuf,
    pub name: String,
    /// The guest began somewhere else.
    came: bool,
    qmp: Option<Client>,
    _own: Option<tempfile::TempDir>,
}

impl Drop for Vm {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Vm {
    /// A file of the machine's folder.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.dir
    }

    /// The socket of the monitor.
    pub(crate) fn monitor(&self) -> PathBuf {
        self.dir.join(format!("{}.qmp", self.name))
    }

    /// Opens a monitor session.
    pub(crate) fn connect(&mut self) {
        let monitor = self.monitor();
        let end = Instant::now() + PATIENCE;
        let mut client = loop {
            match Client::try_connect(&monitor) {
                Ok(client) => break client,
                Err(error) => {
                    let exited = self.child.try_wait().unwrap();
                    assert!(exited.is_none(), "{}: {exited:?} {}", self.name, self.stderr());
                    assert!(Instant::now() < end, "{}: {error}", self.name);
                }
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        client.negotiate();
        self.qmp = Some(client);
    }

    /// Closes the monitor session without a word.
    pub(crate) fn hang_up(&mut self) {
        self.qmp = None;
    }

    /// SIGKILL; returns when the process is gone.
    pub(crate) fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Waits for the process to end by itself.
    pub(crate) fn exit_code(&mut self) -> Option<i32> {
        let end = Instant::now() + PATIENCE;
        while Instant::now() < end {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        panic!("{} does not end", self.name);
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What a bare one writes to its standard output.
    pub(crate) fn stdout(&mut self) -> ChildStdout {
        self.child.stdout.take().expect("a bare machine")
    }

    pub(crate) fn stdin(&mut self) -> ChildStdin {
        self.child.stdin.take().expect("a bare machine")
    }

    /// The session that is open.
    pub(crate) fn session(&mut self) -> &mut Client {
        self.qmp.as_mut().expect("the monitor was not hung up")
    }

    /// The answer or the error's text.
    pub(crate) fn try_ask(&mut self, command: &str, arguments: Value) -> Result<Value, String> {
        let message = self.session().try_message(command, arguments);
        let mut message =
            message.unwrap_or_else(|| panic!("{} does not answer: {}", self.name, self.stderr()));
        match message.get_mut("return") {
            Some(value) => Ok(value.take()),
            None => Err(message["error"]["desc"].as_str().unwrap().to_owned()),
        }
    }

    pub(crate) fn ask(&mut self, command: &str, arguments: Value) -> Value {
        self.try_ask(command, arguments)
            .unwrap_or_else(|error| panic!("{} {command}: {error}", self.name))
    }

    /// Switches exactly these capabilities on, and sets parameters.
    pub(crate) fn set(&mut self, capabilities: &[&str], parameters: &Value) {
        let mut list = Vec::new();
        for known in [
            "xbzrle",
            "multifd",
            "auto-converge",
            "pause-before-switchover",
            "events",
            "return-path",
            "switchover-ack",
            "mapped-ram",
            "background-snapshot",
        ] {
            list.push(json!({"capability": known, "state": capabilities.contains(&known)}));
        }
        self.ask("migrate-set-capabilities", json!({"capabilities": list}));
        self.ask("migrate-set-parameters", parameters.clone());
    }

    pub(crate) fn serial(&self) -> String {
        let bytes =
            std::fs::read(self.dir.join(format!("{}.serial", self.name))).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// What its guest said, once that is as it should be.
    pub(crate) fn wait_for_serial(&self, is: impl Fn(&str) -> bool) -> String {
        let end = Instant::now() + PATIENCE;
        loop {
            let said = self.serial();
            if is(&said) {
                return said;
            }
            assert!(Instant::now() < end, "{}: {said} {}", self.name, self.stderr());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Waits until the guest of a disk has found that so many more of its rounds were right.
    pub(crate) fn wait_for_points(&self, times: usize) {
        let before = self.serial().matches('.').count();
        self.wait_for_serial(|said| {
            assert!(!said.contains(['!', 'e']), "{}: {said} {}", self.name, self.stderr());
            said.matches('.').count() >= before + times
        });
    }

    pub(crate) fn stderr(&self) -> String {
        std::fs::read_to_string(self.dir.join(format!("{}.err", self.name))).unwrap_or_default()
    }

    /// Waits until it says something with this text in it on stderr.
    pub(crate) fn wait_for_stderr(&self, text: &str) {
        let end = Instant::now() + PATIENCE;
        while !self.stderr().contains(text) {
            assert!(Instant::now() < end, "{} does not say {text:?}: {}", self.name, self.stderr());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// The numbers of the sweeps that the first processor told on this process's own serial port.
    pub(crate) fn sweeps(&self) -> Vec<u64> {
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
    pub(crate) fn wait_for_sweeps(&self, count: usize) {
        let end = Instant::now() + PATIENCE;
        while self.sweeps().len() < count {
            assert!(Instant::now() < end, "{} stands still: {}", self.name, self.stderr());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// The guest goes on, here. It may still be about to: a QEMU's source is told before the target
    /// runs.
    pub(crate) fn assert_alive(&mut self) {
        self.wait_for_state(|state| state == "running");
        let before = self.sweeps().len();
        self.wait_for_sweeps(before + 2);
    }

    /// Waits until the run state is one that `is` accepts.
    pub(crate) fn wait_for_state(&mut self, is: impl Fn(&str) -> bool) {
        let end = Instant::now() + PATIENCE;
        loop {
            let state = self.status();
            if is(&state) {
                return;
            }
            assert!(Instant::now() < end, "{} stays {state}: {}", self.name, self.stderr());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub(crate) fn status(&mut self) -> String {
        self.ask("query-status", json!({}))["status"].as_str().unwrap().to_owned()
    }

    /// Waits for a run state.
    pub(crate) fn wait_for_status(&mut self, status: &str) {
        let end = Instant::now() + PATIENCE;
        loop {
            let found = self.status();
            if found == status {
                return;
            }
            assert!(
                Instant::now() < end,
                "{} is {found}, not {status}: {} {}",
                self.name,
                self.serial(),
                self.stderr()
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Waits until `query-migrate` says something that `is` accepts.
    pub(crate) fn wait_for(&mut self, what: &str, is: impl Fn(&Value) -> bool) -> Value {
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
    pub(crate) fn outcome(&mut self) -> Value {
        self.wait_for("an outcome", |report| {
            matches!(report["status"].as_str(), Some("completed" | "failed" | "cancelled"))
        })
    }

    /// The TCP port that a target listens on.
    pub(crate) fn port(&mut self) -> String {
        let report = self.ask("query-migrate", json!({}));
        report["socket-address"][0]["port"]
            .as_str()
            .unwrap_or_else(|| panic!("{report}"))
            .to_owned()
    }
}
