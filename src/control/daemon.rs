//! `-daemonize`: the command returns when the machine is built, and the machine goes on without a
//! terminal.
//!
//! KVM binds a VM to the process that made it, so the process that stays has to be there first. It
//! is a second run of the same command line; the first waits for its word on a pipe.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

/// Set for the process that stays.
const MARK: &str = "GODWIT_DAEMON";

#[derive(Debug, thiserror::Error)]
#[error("cannot go to the background")]
pub struct Error(#[from] io::Error);

pub(crate) enum Side {
    /// The command that was typed, with the status to return.
    Parent(i32),
    Child(Child),
}

pub(crate) struct Child {
    /// `/dev/null`, from before the process may lose sight of it.
    nothing: File,
}

pub(crate) fn background() -> Result<Side, Error> {
    if std::env::var_os(MARK).is_some() {
        rustix::process::setsid().map_err(io::Error::from)?;
        let nothing = File::options().read(true).write(true).open("/dev/null")?;
        return Ok(Side::Child(Child { nothing }));
    }
    let mut words = std::env::args_os();
    // Under the name that it was called by, which may be QEMU's.
    let name = words.next().unwrap_or_else(|| "godwit".into());
    let mut child = Command::new(std::env::current_exe()?)
        .arg0(name)
        .args(words)
        .env(MARK, "1")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut word = [0];
    let heard = child.stdout.take().expect("it was asked for").read(&mut word)?;
    if heard == 1 {
        return Ok(Side::Parent(0));
    }
    Ok(Side::Parent(child.wait()?.code().unwrap_or(1)))
}

impl Child {
    /// Tells the parent that the machine is built, and lets go of the terminal.
    pub(crate) fn ready(self) -> Result<(), Error> {
        io::stdout().write_all(b"+")?;
        io::stdout().flush()?;
        rustix::stdio::dup2_stdout(&self.nothing).map_err(io::Error::from)?;
        rustix::stdio::dup2_stderr(&self.nothing).map_err(io::Error::from)?;
        Ok(())
    }
}
