//! Work that may take as long as it likes, each piece on a thread of its own that nobody joins: who
//! asked waits for the result and can give up, and the end of the process waits for none of it. A
//! pool would do neither: it is joined at the end, and a thread that it cannot start is a panic.

use std::io;

use tokio::sync::oneshot;

/// What a command may need before it can say that memory is short: stacks and buffers.
const ROOM_BYTES: usize = 4 << 20;

/// Starts `work` on a thread called `name` (at most 15 bytes are shown). The receiver fails if the
/// thread panicked; its message is on stderr.
///
/// # Errors
/// The system's, when there is no thread to be had, or not enough memory to work in (`RLIMIT_AS`,
/// `RLIMIT_DATA`): where memory ends in the middle of the work, the language ends the process.
pub(crate) fn aside<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<oneshot::Receiver<T>> {
    drop(memmap2::MmapMut::map_anon(ROOM_BYTES)?);
    let (sender, receiver) = oneshot::channel();
    let work = move || {
        // Whoever waited may have given up.
        let _ = sender.send(work());
    };
    std::thread::Builder::new().name(name.to_owned()).spawn(work)?;
    Ok(receiver)
}
