//! `godwit run -incoming`: guests that QEMU recorded go on in a process of their own, from a file,
//! at whatever rate their time stamp counter ran.

use crate::common::vectors::Vector;
use std::fs;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A `godwit run` in a folder of its own.
struct Vm {
    child: Child,
    folder: tempfile::TempDir,
}

impl Drop for Vm {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Vm {
    /// Starts one that takes `stream` from the file `stream` of its folder, or from where
    /// `incoming` says.
    fn start(stream: &[u8], incoming: &str, more: &[&str]) -> Vm {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("stream"), stream).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_godwit"))
            .current_dir(folder.path())
            .args([
                "run",
                "-accel",
                "kvm",
                "-M",
                "microvm,acpi=off",
                "-m",
                "16",
                "-nodefaults",
                "-display",
                "none",
            ])
            .args([
                "-serial",
                "file:serial",
                "-qmp",
                "unix:qmp,server=on,wait=off",
                "-incoming",
                incoming,
            ])
            .args(more)
            .stdin(Stdio::null())
            .stderr(fs::File::create(folder.path().join("errors")).unwrap())
            .spawn()
            .unwrap();
        Vm { child, folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn errors(&self) -> String {
        fs::read_to_string(self.path("errors")).unwrap()
    }

    /// The answer to a QMP command, as text; `None` while there is no monitor.
    fn ask(&self, words: &[&str]) -> Option<String> {
        let socket = format!("unix:{}", self.path("qmp").display());
        let mut command = Command::new(env!("CARGO_BIN_EXE_godwit"));
        let done = command.args(["qmp", "--qmp", &socket]).args(words).output().unwrap();
        done.status.success().then(|| String::from_utf8(done.stdout).unwrap())
    }

    fn wait(&mut self, what: &str, mut done: impl FnMut(&mut Vm) -> bool) {
        let start = Instant::now();
        while !done(self) {
            assert!(
                start.elapsed() < Duration::from_secs(60),
                "waited in vain for {what}: {}",
                self.errors()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn wait_until_it_runs(&mut self) {
        self.wait("the guest", |vm| {
            vm.ask(&["query-status"]).is_some_and(|status| status.contains("\"running\": true"))
        });
    }

    /// The memory that the vector's guest writes.
    fn window(&self, vector: &Vector) -> Vec<u8> {
        let guest = &vector.meta["guest"];
        let number = |key: &str| guest[key].as_u64().unwrap();
        let (base, bytes) =
            (format!("val={}", number("base")), format!("size={}", number("pages") * 4096));
        let file = self.path("window");
        let name = format!("filename={}", file.display());
        self.ask(&["pmemsave", &base, &bytes, &name]).expect("memory is saved");
        fs::read(file).unwrap()
    }

    fn wait_for_changes(&mut self, vector: &Vector) {
        for _ in 0..2 {
            let now = self.window(vector);
            self.wait("the guest's memory to change", |vm| vm.window(vector) != now);
        }
    }
}

/// A TSC of `khz` in every vCPU.
fn at(mut stream: Vec<u8>, khz: u64) -> Vec<u8> {
    let name = b"cpu/tsc_khz\0\0\0\x01";
    let found: Vec<_> = stream.windows(name.len()).enumerate().filter(|(_, w)| w == name).collect();
    let places: Vec<_> = found.iter().map(|(at, _)| at + name.len()).collect();
    assert!(!places.is_empty());
    for place in places {
        stream[place..place + 8].copy_from_slice(&khz.to_be_bytes());
    }
    stream
}

/// Whether this host could not run a guest with a TSC of 1 MHz.
fn cannot_scale() -> bool {
    !kvm_ioctls::Kvm::new().unwrap().check_extension(kvm_ioctls::Cap::TscControl)
}

#[test]
fn recorded_guests_go_on() {
    for (name, more) in [
        ("kvm-acpi-off-16m", &[][..]),
        ("kvm-host-cpu-16m", &[][..]),
        ("kvm-2cpu-16m", &["-smp", "2"][..]),
    ] {
        let vector = Vector::named(name);
        let mut vm = Vm::start(&vector.main(), "file:stream", more);
        vm.wait_until_it_runs();
        vm.wait_for_changes(&vector);
    }
}

/// A file is the only copy of its guest, so that it goes on, and a person is told what may be wrong
/// then.
#[test]
fn a_tsc_that_cannot_be_scaled_is_told_when_the_stream_is_a_file() {
    let vector = Vector::named("kvm-acpi-off-16m");
    let mut vm = Vm::start(&at(vector.main(), 1000), "file:stream", &[]);
    if cannot_scale() {
        vm.wait_until_it_runs();
        vm.wait_for_changes(&vector);
        let errors = vm.errors();
        assert!(errors.contains("time stamp counter runs at 1000 kHz, this host's at"), "{errors}");
    }
}

/// A live source keeps its guest when it is refused.
#[test]
fn a_tsc_that_cannot_be_scaled_is_refused_when_the_stream_is_a_connection() {
    let stream = at(Vector::named("kvm-acpi-off-16m").main(), 1000);
    let mut vm = Vm::start(&stream, "unix:migrate", &[]);
    vm.wait("the listener", |vm| vm.path("migrate").exists());
    let mut source = UnixStream::connect(vm.path("migrate")).unwrap();
    source.write_all(&stream).unwrap();
    if cannot_scale() {
        vm.wait("the end", |vm| vm.child.try_wait().unwrap().is_some());
        let errors = vm.errors();
        assert!(errors.contains("time stamp counter runs at 1000 kHz, this host's at"), "{errors}");
        assert!(errors.contains("KVM cannot scale it"), "{errors}");
    }
}
