//! The return path, read by the source: one receive is always pending, so that a refusal is seen
//! while pages go out.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::error::Error;
use crate::io::receive::PendingReceive;
use crate::io::{self, Ring};
use crate::stream::Step;
use crate::stream::godwit::{Answer, NUMBER};
use crate::stream::return_path::Reply;

/// Two messages of the greatest length fit.
const BUFFER_BYTES: usize = 2048;

pub(super) struct ReturnPathReader {
    incoming: PendingReceive<BUFFER_BYTES>,
    received: Vec<u8>,
    consumed: u64,
    closed: bool,
}

impl ReturnPathReader {
    pub(super) fn new(fd: Arc<OwnedFd>) -> Self {
        let incoming = PendingReceive::new(fd);
        Self { incoming, received: Vec::new(), consumed: 0, closed: false }
    }

    /// The next message if one is there. [`io::Error::Closed`] when the target closed its side.
    pub(super) fn poll(&mut self, ring: &mut Ring) -> Result<Option<Reply>, Error> {
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
            match self.incoming.poll(ring)? {
                None => return Ok(None),
                Some([]) => self.closed = true,
                Some(bytes) => self.received.extend_from_slice(bytes),
            }
        }
    }

    /// The next message, waited for until `deadline`.
    pub(super) fn wait(
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
    pub(super) fn close_reason(&mut self, ring: &mut Ring) -> Option<Error> {
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
    pub(super) fn abandon(&mut self, ring: &mut Ring) {
        self.incoming.abandon(ring);
    }
}

/// How long to wait for a reason after the connection broke.
const CLOSE_REASON: Duration = Duration::from_millis(500);
