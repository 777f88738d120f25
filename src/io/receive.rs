//! A receive that is left pending in a ring while its owner does other things.
//!
//! Unsafe because the operation names the buffer, which is boxed and given up only after the
//! operation is.
#![allow(unsafe_code)]

use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use io_uring::{opcode, types};

use super::error::{Error, Result};
use super::ring::{Ring, Token};

/// Receives from a socket, at most `N` bytes at a time.
pub(crate) struct PendingReceive<const N: usize> {
    fd: Arc<OwnedFd>,
    pending: Option<Token>,
    /// The descriptor does not block and had nothing: what is pending waits for it to have.
    is_poll: bool,
    buffer: Box<[u8; N]>,
}

impl<const N: usize> PendingReceive<N> {
    pub(crate) fn new(fd: Arc<OwnedFd>) -> Self {
        Self { fd, pending: None, is_poll: false, buffer: Box::new([0; N]) }
    }

    /// What has come, empty at the stream's end. `None`: nothing yet; the ring wakes when there is.
    pub(crate) fn poll(&mut self, ring: &mut Ring) -> Result<Option<&[u8]>> {
        loop {
            let token = match self.pending {
                Some(token) => token,
                None => self.submit(ring)?,
            };
            let Some(result) = ring.ready(token) else { return Ok(None) };
            self.pending = None;
            let is_poll = std::mem::replace(&mut self.is_poll, false);
            match result {
                r if r == -libc::EINTR => {}
                r if r == -libc::EAGAIN => {
                    self.pending = Some(ring.poll(self.fd.as_raw_fd(), libc::POLLIN)?);
                    self.is_poll = true;
                }
                r if r < 0 => return Err(Error::from_result(r)),
                _ if is_poll => {}
                r => return Ok(Some(&self.buffer[..r as usize])),
            }
        }
    }

    /// Takes back what is pending; must be called before the ring goes.
    pub(crate) fn abandon(&mut self, ring: &mut Ring) {
        if let Some(token) = self.pending.take() {
            ring.cancel(token);
        }
    }

    fn submit(&mut self, ring: &mut Ring) -> Result<Token> {
        let fd = types::Fd(self.fd.as_raw_fd());
        let entry = opcode::Recv::new(fd, self.buffer.as_mut_ptr(), N as u32).build();
        // SAFETY: the buffer is boxed and stays until `poll` saw the result or `abandon` took the
        // operation back; drop leaks it otherwise.
        let token = unsafe { ring.submit(entry) }?;
        self.pending = Some(token);
        Ok(token)
    }
}

impl<const N: usize> Drop for PendingReceive<N> {
    fn drop(&mut self) {
        if self.pending.is_some() {
            // Nobody can wait for the kernel any more.
            std::mem::forget(std::mem::replace(&mut self.buffer, Box::new([0; N])));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::Waker;
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    #[test]
    fn nothing_yet_is_an_answer_whether_the_descriptor_blocks_or_not() {
        for blocks in [true, false] {
            let (ours, mut theirs) = UnixStream::pair().unwrap();
            ours.set_nonblocking(!blocks).unwrap();
            let mut ring = Ring::new(Waker::new()).unwrap();
            let mut receive = PendingReceive::<8>::new(Arc::new(ours.into()));
            for word in [b"one", b"two"] {
                assert_eq!(receive.poll(&mut ring).unwrap(), None, "{blocks}");
                theirs.write_all(word).unwrap();
                let got = loop {
                    if let Some(got) = receive.poll(&mut ring).unwrap() {
                        break got.to_vec();
                    }
                    ring.sleep(None).unwrap();
                };
                assert_eq!(got, word);
            }
            receive.abandon(&mut ring);
        }
    }
}
