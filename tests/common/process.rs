//! `godwit run` with the built-in guest, whose monitor is free for `godwit dump`.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output};

use super::qmp::Client;
use super::vm::{Launch, Vm};

/// A process that ends with the test.
pub(crate) struct Ended(pub Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Godwit under the name of QEMU, in a folder of its own.
pub(crate) fn qemus_name(folder: &Path) -> PathBuf {
    let link = folder.join("qemu-system-x86_64");
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_godwit"), &link).unwrap();
    link
}

/// A machine in a folder of its own, to which no monitor session is open.
pub(crate) struct Godwit(Vm);

impl std::ops::Deref for Godwit {
    type Target = Vm;

    fn deref(&self) -> &Vm {
        &self.0
    }
}

impl std::ops::DerefMut for Godwit {
    fn deref_mut(&mut self) -> &mut Vm {
        &mut self.0
    }
}

impl Godwit {
    /// `set` is the built-in guest's command line.
    pub(crate) fn start(cpus: u8, memory: u32, set: &str) -> Godwit {
        let mut vm = Launch::alone().processors(cpus).memory(memory).guest(set).start();
        vm.hang_up();
        Godwit(vm)
    }

    pub(crate) fn qmp(&self) -> Client {
        Client::negotiated(&self.monitor())
    }

    /// `godwit dump` to `file`.
    pub(crate) fn dump(&self, file: &Path, more: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_godwit"))
            .args(["dump", "--qmp", &format!("unix:{}", self.monitor().display())])
            .arg(file)
            .args(more)
            .output()
            .unwrap()
    }
}
