//! An open stream, and what may be asked of it.
//!
//! Unsafe for socket calls that std does not offer.
#![allow(unsafe_code)]

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use super::error::{Error, Result};
use super::program::Program;
use super::ring::Ring;
use super::socket::set_option;

/// What a stream runs over; decides what may be asked of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Medium {
    Tcp,
    /// A unix socket, or a socket somebody handed us.
    Socket,
    Pipe,
    File,
}

/// One open stream.
pub struct Connection {
    pub fd: Arc<OwnedFd>,
    pub medium: Medium,
    /// The command behind an `exec:` stream.
    pub program: Option<Program>,
    /// The set that the descriptor came from is in use.
    pub(super) in_use: Option<Arc<()>>,
}

impl Connection {
    /// Around a descriptor that is open already.
    pub fn from_fd(fd: OwnedFd) -> Self {
        let medium = medium(&fd);
        Self { fd: Arc::new(fd), medium, program: None, in_use: None }
    }

    /// The same stream once more.
    pub(crate) fn share(&self) -> Self {
        let (fd, program) = (self.fd.clone(), self.program.clone());
        Self { fd, medium: self.medium, program, in_use: None }
    }

    /// What has come, as far as `bytes` has room, left where it is. `None`: nothing yet; 0: nothing
    /// will.
    pub(crate) fn peek_now(&self, bytes: &mut [u8]) -> Result<Option<usize>> {
        let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT;
        // SAFETY: the buffer is borrowed for the call, and its length is given.
        let got = unsafe {
            libc::recv(self.fd.as_raw_fd(), bytes.as_mut_ptr().cast(), bytes.len(), flags)
        };
        match usize::try_from(got) {
            Ok(got) => Ok(Some(got)),
            Err(_) => match std::io::Error::last_os_error() {
                error if error.kind() == std::io::ErrorKind::WouldBlock => Ok(None),
                error => Err(error.into()),
            },
        }
    }

    /// Waits until a pipe has something to read, or had a writer that is gone: one that never had a
    /// writer reads as if it had ended.
    pub(crate) fn await_writer(&self, ring: &mut Ring) -> Result<()> {
        if self.medium != Medium::Pipe {
            return Ok(());
        }
        let token = ring.poll(self.fd.as_raw_fd(), libc::POLLIN)?;
        match ring.wait(token)? {
            0.. => Ok(()),
            error => Err(Error::from_result(error)),
        }
    }

    /// Nothing more will come than what is there already.
    pub(crate) fn is_hung_up(&self) -> Result<bool> {
        let mut polled = [rustix::event::PollFd::new(&self.fd, rustix::event::PollFlags::RDHUP)];
        let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
        let ready = rustix::event::poll(&mut polled, Some(&now)).map_err(std::io::Error::from)?;
        Ok(ready > 0)
    }

    /// It can be written at any place: a regular file, and not one that is only appended to.
    pub(crate) fn takes_places(&self) -> bool {
        use rustix::fs::{FileType, OFlags, fcntl_getfl, fstat};
        let kind = fstat(&self.fd).map(|stat| FileType::from_raw_mode(stat.st_mode));
        let appends = fcntl_getfl(&self.fd).map(|flags| flags.contains(OFlags::APPEND));
        kind.is_ok_and(FileType::is_file) && appends == Ok(false)
    }

    /// Answers can come back on it.
    pub(crate) fn is_two_way(&self) -> bool {
        matches!(self.medium, Medium::Tcp | Medium::Socket)
    }

    /// Sets how long sent bytes may stay unacknowledged before the connection counts as broken. TCP
    /// only.
    pub(crate) fn set_user_timeout(&self, time: Duration) -> std::io::Result<()> {
        if self.medium != Medium::Tcp {
            return Ok(());
        }
        let ms = u32::try_from(time.as_millis()).unwrap_or(u32::MAX);
        match set_option(&self.fd, libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT, &ms) {
            // Multipath TCP has none.
            Err(error) if error.raw_os_error() == Some(libc::ENOPROTOOPT) => {}
            set => set?,
        }
        // A silent peer is only noticed when there is something to acknowledge.
        set_option(&self.fd, libc::SOL_SOCKET, libc::SO_KEEPALIVE, &1i32)?;
        let seconds = (ms / 4000).clamp(1, 30) as i32;
        set_option(&self.fd, libc::IPPROTO_TCP, libc::TCP_KEEPIDLE, &seconds)?;
        set_option(&self.fd, libc::IPPROTO_TCP, libc::TCP_KEEPINTVL, &seconds)
    }

    /// Ends both directions, so that a blocked peer learns of it.
    pub(crate) fn shut_down(&self) {
        // SAFETY: shutdown has no memory arguments; on what is no socket it fails harmlessly.
        unsafe { libc::shutdown(self.fd.as_raw_fd(), libc::SHUT_RDWR) };
    }

    /// Sets what makes transfers quick, as far as the host allows.
    pub(super) fn tune(self) -> Self {
        // Neither is needed for the stream to work.
        match self.medium {
            Medium::Tcp => {
                let _ = set_option(&self.fd, libc::IPPROTO_TCP, libc::TCP_NODELAY, &1i32);
            }
            Medium::Socket => {
                // Without the privilege the host's limit (net.core.wmem_max) holds.
                let option =
                    |option| set_option(&self.fd, libc::SOL_SOCKET, option, &SEND_BUFFER_BYTES);
                let _ = option(libc::SO_SNDBUFFORCE).or_else(|_| option(libc::SO_SNDBUF));
            }
            _ => {}
        }
        self
    }
}

/// What the kernel holds between two processes on one host. Its own default, 208 KiB, makes the two
/// take turns ten thousand times per gigabyte. TCP finds its own size.
const SEND_BUFFER_BYTES: i32 = 4 << 20;

/// A descriptor that the process was started with, by number.
pub(crate) fn inherited(name: &str) -> Option<OwnedFd> {
    let number = name.parse::<i32>().ok().filter(|number| *number > 2)?;
    // What this process opened itself closes with a program that it starts.
    // SAFETY: fcntl takes integers only, and looks.
    let flags = unsafe { libc::fcntl(number, libc::F_GETFD) };
    if flags < 0 || flags & libc::FD_CLOEXEC != 0 {
        return None;
    }
    // A copy, so that whoever else knows the number cannot pull the stream away.
    // SAFETY: fcntl takes integers only and gives out a new descriptor or an error.
    let copy = unsafe { libc::fcntl(number, libc::F_DUPFD_CLOEXEC, 3) };
    // SAFETY: the descriptor is new and belongs to nobody else.
    (copy >= 0).then(|| unsafe { OwnedFd::from_raw_fd(copy) })
}

fn medium(fd: &OwnedFd) -> Medium {
    let mut domain: libc::c_int = 0;
    let mut length = size_of::<libc::c_int>() as libc::socklen_t;
    let raw = fd.as_raw_fd();
    // SAFETY: SO_DOMAIN writes one int, whose size is given.
    let result = unsafe {
        libc::getsockopt(
            raw,
            libc::SOL_SOCKET,
            libc::SO_DOMAIN,
            (&raw mut domain).cast(),
            &mut length,
        )
    };
    if result == 0 {
        return if domain == libc::AF_INET || domain == libc::AF_INET6 {
            Medium::Tcp
        } else {
            Medium::Socket
        };
    }
    // SAFETY: lseek has no memory arguments; it fails on what has no position.
    if unsafe { libc::lseek(raw, 0, libc::SEEK_CUR) } >= 0 { Medium::File } else { Medium::Pipe }
}
