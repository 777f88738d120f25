//! Files that clients name for what a command writes.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use super::command::Call;
use crate::io::name::{self, Create};
use crate::io::transport::{FD_SET, SetFd};
use crate::io::{OpenError, reason};
use crate::qmp::error::Error;

/// An open file.
pub(crate) struct Named {
    pub file: File,
    /// To be kept while the file is used: the set of descriptors it came from stays listed.
    pub in_use: Option<Arc<()>>,
}

/// Opens `path`, made with permissions `mode` if it is new, or a member of `/dev/fdset/N`. Waits
/// for the reader of a FIFO until `ended`, or until the process ends, which asks for no thread.
/// `verb` is what QEMU says could not be done: open or create.
pub(crate) fn create(
    call: Call<'_>,
    path: &str,
    verb: &str,
    mode: u32,
    ended: &dyn Fn() -> bool,
) -> Result<Named, Error> {
    if path.starts_with(FD_SET) {
        const FLAGS: i32 = libc::O_WRONLY | libc::O_CREAT | libc::O_TRUNC;
        let SetFd { fd, in_use } = call.vmm.fd_sets.open(path, FLAGS).map_err(Error::generic)?;
        return given(fd, path, Some(in_use));
    }
    let file = name::create(path.as_ref(), Create { mode, truncate: true }, ended);
    let file = file.map_err(|error| {
        Error::generic(format_args!("Could not {verb} '{path}': {}", reason(&error)))
    })?;
    Ok(Named { file, in_use: None })
}

/// A descriptor that a client sent under `name`, which may be of any file.
pub(crate) fn given(fd: OwnedFd, name: &str, in_use: Option<Arc<()>>) -> Result<Named, Error> {
    name::check_output(fd.as_fd())
        .map_err(|_| Error::generic(OpenError::OwnFile(name.to_owned())))?;
    Ok(Named { file: fd.into(), in_use })
}
