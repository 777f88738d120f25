//! The return path, read by the source: one receive is always pending, so that a refusal is seen
//! while pages go out.
//!
//! Unsafe because the pending receive names the buffer, which is boxed and given up only after the
//! operation is.
#![allow(unsafe_code)]

use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use io_uring::{opcode, types};

use super::Error;
use crate::io::ring::Token;
use crate::io::{self, Ring};
use crate::stream::Step;
use crate::stream::godwit::{Answer, NUMBER};
use crate::stream::return_path::Reply;

/// Two messages of the greatest length fit.
const BUFFER_BYTES: usize = 2048;

pub struct ReturnPathReader {
    fd: Arc<OwnedFd>,
    pending: Option<Token>,
    incoming: Box<[u8; BUFFER_BYTES]>,
    received: Vec<u8>,
    consumed: u64,
    closed: bool,
}

impl ReturnPathReader {
    pub fn new(fd: Arc<OwnedFd>) -> Self {
        let incoming = Box::new([0; BUFFER_BYTES]);
        Self { fd, pending: None, incoming, received: Vec::new(), consumed: 0, closed: false }
    }

    /// The next message if one is there. [`io::Error::Closed`] when the target closed its side.
    pub fn poll(&mut self, ring: &mut Ring) -> Result<Option<Reply>, Error> {
        loop {
            if let Step::Item(reply, bytes) = Reply::parse(&self.received, self.consumed)? {
                self.received.drain(..bytes);
                self.consumed += bytes as u64;
                if let Reply::Other { kind: NUMBER, data } = &reply
                    && let Some(Answer::Refused(text)) = Answer::parse(data)
                {
                    return Err(Error::Refused(text));
                }
                return Ok(Some(reply));
            }
            if self.closed {
                return Err(io::Error::Closed.into());
            }
            let token = self.receive(ring)?;
            let Some(result) = ring.ready(token) else { return Ok(None) };
            self.pending = None;
            match result {
                r if r == -libc::EINTR || r == -libc::EAGAIN => {}
                r if r < 0 => {
                    return Err(io::Error::System(std::io::Error::from_raw_os_error(-r)).into());
                }
                0 => self.closed = true,
                r => self.received.extend_from_slice(&self.incoming[..r as usize]),
            }
        }
    }

    /// The next message, waited for until `deadline`.
    pub fn wait(
        &mut self,
        ring: &mut Ring,
        deadline: Option<(Instant, Duration)>,
    ) -> Result<Reply, Error> {
        loop {
            if let Some(reply) = self.poll(ring)? {
                return Ok(reply);
            }
            if let Some((at, time)) = deadline
                && Instant::now() >= at
            {
                return Err(io::Error::TimedOut(time).into());
            }
            ring.sleep(deadline.map(|(at, _)| at))?;
        }
    }

    /// Why the target hung up, if it said so before a send failed.
    pub fn close_reason(&mut self, ring: &mut Ring) -> Option<Error> {
        let end = Instant::now() + CLOSE_REASON;
        loop {
            match self.wait(ring, Some((end, CLOSE_REASON))) {
                Ok(Reply::Shut(code)) if code != 0 => return Some(Error::TargetFailed),
                Ok(_) => {}
                // The kernel tells why a connection broke once, and that to whoever asks first.
                Err(error @ (Error::Refused(_) | Error::Io(io::Error::System(_)))) => {
                    return Some(error);
                }
                Err(_) => return None,
            }
        }
    }

    /// Takes back the pending receive; must be called before the ring goes.
    pub fn abandon(&mut self, ring: &mut Ring) {
        if let Some(token) = self.pending.take() {
            ring.cancel(token);
        }
    }

    fn receive(&mut self, ring: &mut Ring) -> Result<Token, Error> {
        if let Some(token) = self.pending {
            return Ok(token);
        }
        let fd = types::Fd(self.fd.as_raw_fd());
        let entry = opcode::Recv::new(fd, self.incoming.as_mut_ptr(), BUFFER_BYTES as u32).build();
        // SAFETY: the buffer is boxed and stays until `poll` saw the result or `abandon` took the
        // operation back; drop leaks it otherwise.
        let token = unsafe { ring.submit(entry) }?;
        self.pending = Some(token);
        Ok(token)
    }
}

/// How long to wait for a reason after the connection broke.
const CLOSE_REASON: Duration = Duration::from_millis(500);

impl Drop for ReturnPathReader {
    fn drop(&mut self) {
        if self.pending.is_some() {
            // Nobody can wait for the kernel any more.
            std::mem::forget(std::mem::replace(&mut self.incoming, Box::new([0; BUFFER_BYTES])));
        }
    }
}
