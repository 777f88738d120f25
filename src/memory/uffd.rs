//! Write protection by userfaultfd: whoever writes a protected page, in the guest, in this process
//! or in the kernel on behalf of either, sleeps until the page is released.
//!
//! Unsafe because the ioctls name memory by address; the caller keeps it mapped. Structures,
//! numbers and features are those of `linux/userfaultfd.h`.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::mem::size_of;
use std::ops::Range;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

/// `UFFD_API`.
const API: u64 = 0xaa;
/// Write faults on protected pages; shared memory, holes included (Linux 5.19).
const FEATURE_WP: u64 = 1 << 0;
const FEATURE_WP_SHMEM: u64 = 1 << 12;
/// Anonymous memory that was never touched (Linux 6.4).
const FEATURE_WP_UNPOPULATED: u64 = 1 << 13;

const REGISTER_MODE_WP: u64 = 1 << 1;
const WRITEPROTECT_ON: u64 = 1 << 0;
const EVENT_PAGEFAULT: u8 = 0x12;

// _IOWR(0xaa, number, struct), _IOR for UNREGISTER; _IO(0xaa, 0) on /dev/userfaultfd.
const IOCTL_API: libc::c_ulong = 0xc018_aa3f;
const IOCTL_REGISTER: libc::c_ulong = 0xc020_aa00;
const IOCTL_UNREGISTER: libc::c_ulong = 0x8010_aa01;
const IOCTL_WRITEPROTECT: libc::c_ulong = 0xc018_aa06;
const IOCTL_DEVICE_NEW: libc::c_ulong = 0xaa00;

/// `struct uffd_msg`: an event byte, seven of padding, then for a page fault flags and address.
const MESSAGE_BYTES: usize = 32;
const MESSAGE_ADDRESS: usize = 16;
const MESSAGES: usize = 64;

/// Why memory cannot be write-protected.
#[derive(Debug, thiserror::Error)]
pub enum Unavailable {
    #[error(
        "userfaultfd is not permitted ({0}); run as root or with CAP_SYS_PTRACE, give access to /dev/userfaultfd, or \
         set vm.unprivileged_userfaultfd=1"
    )]
    Permission(io::Error),
    #[error("this kernel has no userfaultfd ({0})")]
    Missing(io::Error),
    #[error("this kernel's userfaultfd cannot write-protect {0}")]
    Feature(&'static str),
    #[error("guest RAM of this backend cannot be write-protected by userfaultfd ({0})")]
    Backend(io::Error),
    #[error("guest RAM on huge pages (hugetlbfs) cannot be dumped or saved while the guest runs")]
    HugePages,
    #[error("cannot write-protect guest RAM: {0}")]
    Protect(io::Error),
    #[error("cannot start the thread that answers write faults: {0}")]
    Thread(io::Error),
}

#[repr(C)]
struct Api {
    api: u64,
    features: u64,
    ioctls: u64,
}

#[repr(C)]
struct Register {
    start: u64,
    len: u64,
    mode: u64,
    ioctls: u64,
}

#[repr(C)]
struct WriteProtect {
    start: u64,
    len: u64,
    mode: u64,
}

/// One mapping under watch. Closing it ends all protection.
#[derive(Debug)]
pub(crate) struct Uffd {
    fd: OwnedFd,
    start: u64,
    bytes: u64,
}

impl Uffd {
    /// Watches `bytes` bytes at `host`. Nothing is protected yet.
    ///
    /// # Safety
    /// The mapping stays where it is for as long as the value lives.
    pub(crate) unsafe fn watch(
        host: *mut u8,
        bytes: u64,
        anonymous: bool,
    ) -> Result<Uffd, Unavailable> {
        let fd = open()?;
        let wanted =
            FEATURE_WP | FEATURE_WP_SHMEM | if anonymous { FEATURE_WP_UNPOPULATED } else { 0 };
        let mut api = Api { api: API, features: wanted, ioctls: 0 };
        ioctl(fd.as_raw_fd(), IOCTL_API, &mut api).map_err(|_| {
            Unavailable::Feature(if anonymous {
                "anonymous memory; Linux 6.4 can, and an older one protects a memory-backend-memfd"
            } else {
                "shared memory; Linux 5.19 can"
            })
        })?;
        let start = host as u64;
        let mut register = Register { start, len: bytes, mode: REGISTER_MODE_WP, ioctls: 0 };
        ioctl(fd.as_raw_fd(), IOCTL_REGISTER, &mut register).map_err(Unavailable::Backend)?;
        Ok(Uffd { fd, start, bytes })
    }

    /// Protects or releases `range`, in bytes from the start of the mapping and in whole pages. A
    /// release wakes who waits for one of its pages.
    pub(crate) fn protect(&self, range: Range<u64>, on: bool) -> io::Result<()> {
        assert!(range.start <= range.end && range.end <= self.bytes);
        if range.is_empty() {
            return Ok(());
        }
        let mode = if on { WRITEPROTECT_ON } else { 0 };
        let mut request =
            WriteProtect { start: self.start + range.start, len: range.end - range.start, mode };
        loop {
            match ioctl(self.fd.as_raw_fd(), IOCTL_WRITEPROTECT, &mut request) {
                // The address space is changing (a fork); the kernel asks to try again.
                Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => {
                    std::thread::yield_now()
                }
                done => return done,
            }
        }
    }

    /// Waits until a page was hit, or `wake` is readable, and appends the offsets of the pages hit.
    pub(crate) fn wait(&self, wake: RawFd, hit: &mut Vec<u64>) -> io::Result<()> {
        let event = |fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
        let mut fds = [event(self.fd.as_raw_fd()), event(wake)];
        // SAFETY: `fds` is an array of as many entries as said.
        let rc = unsafe { libc::poll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, -1) };
        if rc < 0 {
            let error = io::Error::last_os_error();
            return if error.kind() == io::ErrorKind::Interrupted { Ok(()) } else { Err(error) };
        }
        if fds[0].revents == 0 {
            return Ok(());
        }
        let mut messages = [0u8; MESSAGES * MESSAGE_BYTES];
        // SAFETY: the buffer is as long as said.
        let got = unsafe {
            libc::read(self.fd.as_raw_fd(), messages.as_mut_ptr().cast(), messages.len())
        };
        if got < 0 {
            let error = io::Error::last_os_error();
            // Somebody released the page meanwhile.
            return if error.kind() == io::ErrorKind::WouldBlock { Ok(()) } else { Err(error) };
        }
        for message in messages[..got as usize].chunks_exact(MESSAGE_BYTES) {
            if message[0] == EVENT_PAGEFAULT {
                let address = &message[MESSAGE_ADDRESS..MESSAGE_ADDRESS + 8];
                let address = u64::from_ne_bytes(address.try_into().expect("eight bytes"));
                hit.push(address.wrapping_sub(self.start));
            }
        }
        Ok(())
    }
}

impl Drop for Uffd {
    fn drop(&mut self) {
        // Pages are released first: before Linux 6.0, ending the watch left their mark in the page
        // tables.
        let released = self.protect(0..self.bytes, false);
        let mut range = [self.start, self.bytes];
        let ended = ioctl(self.fd.as_raw_fd(), IOCTL_UNREGISTER, &mut range);
        // Closing the descriptor, which follows, ends all of it in any case.
        if let Err(error) = released.and(ended) {
            tracing::warn!("write protection of guest RAM ends late: {error}");
        }
    }
}

/// The device node needs no privilege but access to it; the system call needs privilege or a
/// sysctl.
fn open() -> Result<OwnedFd, Unavailable> {
    let flags = libc::O_CLOEXEC | libc::O_NONBLOCK;
    // SAFETY: the call takes flags only.
    let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, flags) };
    let refused = io::Error::last_os_error();
    let fd = if fd >= 0 {
        fd as RawFd
    } else if let Ok(device) = File::options().read(true).write(true).open("/dev/userfaultfd") {
        // SAFETY: the ioctl takes flags only.
        unsafe { libc::ioctl(device.as_raw_fd(), IOCTL_DEVICE_NEW, flags) }
    } else {
        -1
    };
    if fd >= 0 {
        // SAFETY: the descriptor was just made and belongs to nobody else.
        return Ok(unsafe { OwnedFd::from_raw_fd(fd) });
    }
    Err(match refused.raw_os_error() {
        Some(libc::ENOSYS) => Unavailable::Missing(refused),
        _ => Unavailable::Permission(refused),
    })
}

/// `argument` is the structure that `request` was made for.
fn ioctl<T>(fd: RawFd, request: libc::c_ulong, argument: &mut T) -> io::Result<()> {
    debug_assert_eq!((request >> 16 & 0x3fff) as usize, size_of::<T>());
    // SAFETY: the structure has the size that the request's number says, and is ours alone.
    let rc = unsafe { libc::ioctl(fd, request as _, argument as *mut T) };
    if rc < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
