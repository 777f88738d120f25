//! Who may do what with an image, told to other processes by locks on single bytes of its file, as
//! QEMU's `file` driver does it.
//!
//! Byte 100 + p: somebody does p. Byte 200 + p: somebody bears nobody else who does p. Both are
//! read locks of an open file description (`F_OFD_SETLK`), so that a process may hold its own any
//! number of times; whoever takes one looks whether another has the byte on the other side.

use super::error::Error;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

const DOES: i64 = 100;
const BEARS_NOT: i64 = 200;

/// QEMU's permissions that images need: (bit, name, name of bearing it).
const CONSISTENT_READ: (i64, &str, &str) = (0, "\"consistent read\"", "shared \"consistent read\"");
const WRITE: (i64, &str, &str) = (1, "\"write\"", "shared \"write\"");
const RESIZE: (i64, &str, &str) = (3, "\"resize\"", "shared \"resize\"");
const ALL: [(i64, &str, &str); 3] = [CONSISTENT_READ, WRITE, RESIZE];

/// What is done with a file besides reading it, and what others may do meanwhile.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Permissions {
    pub write: bool,
    pub resize: bool,
    pub bears_writers: bool,
    pub bears_resizers: bool,
}

impl Permissions {
    fn does(self) -> [bool; 3] {
        [true, self.write, self.resize]
    }

    fn bears_not(self) -> [bool; 3] {
        [false, !self.bears_writers, !self.bears_resizers]
    }
}

/// Takes what `wanted` says, and gives back what it says no more. Nothing is held after an error.
pub(super) fn take(file: &File, path: &str, wanted: Permissions) -> Result<(), Error> {
    let taken = try_take(file, path, wanted);
    if taken.is_err() {
        release(file);
    }
    taken
}

fn try_take(file: &File, path: &str, wanted: Permissions) -> Result<(), Error> {
    let failed = |source| Error::Lock { path: path.into(), source };
    let locked = |what| Error::Locked { what, path: path.into() };
    let sides = [(DOES, wanted.does()), (BEARS_NOT, wanted.bears_not())];
    for (base, wants) in sides {
        for ((bit, ..), _) in ALL.iter().zip(wants).filter(|(_, wants)| *wants) {
            set(file, base + bit, libc::F_RDLCK).map_err(failed)?;
        }
    }
    for ((bit, name, bears), (does, bears_not)) in
        ALL.iter().zip(wanted.does().into_iter().zip(wanted.bears_not()))
    {
        if does && is_taken(file, BEARS_NOT + bit).map_err(failed)? {
            return Err(locked(name));
        }
        if bears_not && is_taken(file, DOES + bit).map_err(failed)? {
            return Err(locked(bears));
        }
    }
    for (base, wants) in sides {
        for ((bit, ..), _) in ALL.iter().zip(wants).filter(|(_, wants)| !*wants) {
            set(file, base + bit, libc::F_UNLCK).map_err(failed)?;
        }
    }
    Ok(())
}

/// Gives all of them back.
pub(super) fn release(file: &File) {
    for base in [DOES, BEARS_NOT] {
        for (bit, ..) in ALL {
            // A lock that is not there is none to lose.
            let _ = set(file, base + bit, libc::F_UNLCK);
        }
    }
}

fn byte(at: i64, kind: i32) -> libc::flock {
    libc::flock {
        l_type: kind as i16,
        l_whence: libc::SEEK_SET as i16,
        l_start: at,
        l_len: 1,
        l_pid: 0,
    }
}

fn set(file: &File, at: i64, kind: i32) -> io::Result<()> {
    call(file, libc::F_OFD_SETLK, &mut byte(at, kind))
}

#[allow(unsafe_code)]
fn call(file: &File, command: i32, lock: &mut libc::flock) -> io::Result<()> {
    // SAFETY: both commands take a flock, which outlives the call; the descriptor is open.
    match unsafe { libc::fcntl(file.as_raw_fd(), command, lock) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Whether another has the byte.
fn is_taken(file: &File, at: i64) -> io::Result<bool> {
    let mut found = byte(at, libc::F_WRLCK);
    call(file, libc::F_OFD_GETLK, &mut found)?;
    Ok(found.l_type != libc::F_UNLCK as i16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writers_and_readers_keep_each_other_out() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("image");
        let open = || {
            File::options().read(true).write(true).create(true).truncate(false).open(&path).unwrap()
        };
        let (one, two) = (open(), open());
        let reads = Permissions { bears_resizers: true, ..Permissions::default() };
        let writes = Permissions { write: true, ..reads };
        take(&one, "i", writes).unwrap();
        // The same description may have them again.
        take(&one, "i", writes).unwrap();
        let refused = take(&two, "i", writes).unwrap_err().to_string();
        assert!(refused.starts_with("Failed to get \"write\" lock"), "{refused}");
        let refused = take(&two, "i", reads).unwrap_err().to_string();
        assert!(refused.starts_with("Failed to get shared \"write\" lock"), "{refused}");
        release(&one);
        take(&two, "i", reads).unwrap();
        take(&one, "i", reads).unwrap();
        release(&two);
        take(&one, "i", writes).unwrap();
        // Who reads only lets others read, too.
        take(&one, "i", reads).unwrap();
        take(&two, "i", Permissions::default()).unwrap();
        let tables = Permissions { write: true, resize: true, ..Permissions::default() };
        release(&one);
        release(&two);
        take(&one, "i", Permissions { write: false, ..tables }).unwrap();
        let refused = take(&two, "i", Permissions::default()).unwrap_err().to_string();
        assert!(refused.starts_with("Failed to get shared \"resize\" lock"), "{refused}");
    }
}
