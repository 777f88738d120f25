//! Terminals: the one we were started in, and fresh ones.

use std::io;
use std::os::fd::OwnedFd;

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{
    InputModes, LocalModes, OptionalActions, OutputModes, SpecialCodeIndex, Termios, isatty,
    tcgetattr, tcsetattr,
};

/// Our own terminal, put back as it was when this is dropped.
pub struct Terminal {
    before: Termios,
}

impl Terminal {
    /// Hands every key to the guest, without echo; `signal` leaves Ctrl-C to us. `None` if standard
    /// input is no terminal.
    pub(crate) fn raw(signal: bool) -> Option<Terminal> {
        let stdin = io::stdin();
        if !isatty(&stdin) {
            return None;
        }
        let before = tcgetattr(&stdin).ok()?;
        let mut raw = before.clone();
        make_raw(&mut raw);
        raw.local_modes.set(LocalModes::ISIG, signal);
        // Output is still cooked: our own messages go to the same terminal.
        raw.output_modes |= OutputModes::OPOST;
        tcsetattr(&stdin, OptionalActions::Now, &raw).ok()?;
        Some(Terminal { before })
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // There is nobody left to tell.
        let _ = tcsetattr(io::stdin(), OptionalActions::Now, &self.before);
    }
}

fn make_raw(modes: &mut Termios) {
    modes.input_modes -= InputModes::IGNBRK
        | InputModes::BRKINT
        | InputModes::PARMRK
        | InputModes::ISTRIP
        | InputModes::INLCR
        | InputModes::IGNCR
        | InputModes::ICRNL
        | InputModes::IXON;
    modes.local_modes -=
        LocalModes::ECHO | LocalModes::ECHONL | LocalModes::ICANON | LocalModes::IEXTEN;
    modes.special_codes[SpecialCodeIndex::VMIN] = 1;
    modes.special_codes[SpecialCodeIndex::VTIME] = 0;
}

/// A fresh pseudo-terminal in raw mode: our end, the user's end, and its name.
pub(crate) fn open_pty() -> io::Result<(OwnedFd, OwnedFd, String)> {
    let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    grantpt(&ours)?;
    unlockpt(&ours)?;
    let name = ptsname(&ours, Vec::new())?.to_string_lossy().into_owned();
    let flags = rustix::fs::OFlags::RDWR | rustix::fs::OFlags::NOCTTY | rustix::fs::OFlags::CLOEXEC;
    let theirs = rustix::fs::open(&name, flags, rustix::fs::Mode::empty())?;
    // Without this the terminal would send the guest's output back to it.
    let mut modes = tcgetattr(&theirs)?;
    make_raw(&mut modes);
    modes.local_modes -= LocalModes::ISIG;
    modes.output_modes -= OutputModes::OPOST;
    tcsetattr(&theirs, OptionalActions::Now, &modes)?;
    Ok((ours, theirs, name))
}
