//! Addresses as the kernel takes them, and the names that become some.
//!
//! Unsafe because the kernel takes addresses by pointer and writes its answers there.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use super::address::{Family, Tcp, UnixName};
use super::aside::aside;
use super::error::OpenError;
use super::ring::Ring;

/// Connections that wait to be accepted: the main channel and 255 multifd channels.
pub(super) const BACKLOG: i32 = 256;

/// A kernel socket address.
pub(super) struct SocketAddress {
    storage: libc::sockaddr_storage,
    length: libc::socklen_t,
}

impl SocketAddress {
    pub(super) fn unix(name: &UnixName) -> std::result::Result<Self, OpenError> {
        // SAFETY: all zeros is a valid sockaddr_storage.
        let mut storage = unsafe { std::mem::zeroed::<libc::sockaddr_storage>() };
        // SAFETY: sockaddr_storage is large and aligned enough for every address family.
        let unix = unsafe { &mut *(&raw mut storage).cast::<libc::sockaddr_un>() };
        unix.sun_family = libc::AF_UNIX as u16;
        // An abstract name stands behind a zero. The kernel asks for no zero at a path's end.
        let (text, start) = match name {
            UnixName::Path(path) => (path, 0),
            UnixName::Abstract { name, .. } => (name, 1),
        };
        let room = &mut unix.sun_path[start..];
        if text.len() > room.len() || (start == 0 && text.contains('\0')) {
            return Err(OpenError::PathTooLong(text.clone()));
        }
        for (to, from) in room.iter_mut().zip(text.bytes()) {
            *to = from as libc::c_char;
        }
        let length = match name {
            UnixName::Abstract { tight: true, .. } => {
                std::mem::offset_of!(libc::sockaddr_un, sun_path) + start + text.len()
            }
            _ => size_of::<libc::sockaddr_un>(),
        };
        Ok(Self { storage, length: length as u32 })
    }

    /// Of an internet address.
    pub(super) fn port(&self) -> u16 {
        // SAFETY: addresses of both families begin with the family and the port, two bytes each.
        u16::from_be(unsafe { (*(&raw const self.storage).cast::<libc::sockaddr_in>()).sin_port })
    }

    pub(super) fn with_port(&self, port: u16) -> Self {
        let mut storage = self.storage;
        // SAFETY: addresses of both families begin with the family and the port, two bytes each.
        unsafe { (*(&raw mut storage).cast::<libc::sockaddr_in>()).sin_port = port.to_be() };
        Self { storage, length: self.length }
    }

    pub(super) fn family(&self) -> i32 {
        i32::from(self.storage.ss_family)
    }

    pub(super) fn parts(&self) -> (*const libc::sockaddr, libc::socklen_t) {
        ((&raw const self.storage).cast(), self.length)
    }

    /// `protocol` 0 is the family's own.
    pub(super) fn socket(&self, protocol: i32) -> std::io::Result<OwnedFd> {
        let kind = libc::SOCK_STREAM | libc::SOCK_CLOEXEC;
        // SAFETY: socket has no memory arguments.
        let fd = unsafe { libc::socket(self.family(), kind, protocol) };
        if fd < 0 {
            return Err(std::io::Error::last_os_error());
        }
        // SAFETY: the descriptor is new and nobody else's.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }

    pub(super) fn listen(&self, fd: &OwnedFd) -> std::io::Result<()> {
        let (name, length) = self.parts();
        // SAFETY: `name` points to `length` valid bytes.
        let bound = unsafe { libc::bind(fd.as_raw_fd(), name, length) };
        // SAFETY: listen has no memory arguments.
        if bound < 0 || unsafe { libc::listen(fd.as_raw_fd(), BACKLOG) } < 0 {
            return Err(std::io::Error::last_os_error());
        }
        Ok(())
    }
}

/// Resolves on a helper thread; the ring's owner stays cancellable.
pub(super) fn resolve_aside(
    ring: &mut Ring,
    tcp: &Tcp,
    passive: bool,
) -> std::result::Result<Vec<SocketAddress>, OpenError> {
    let tcp = tcp.clone();
    aside(ring, "resolve", move || resolve(&tcp, passive))?
}

pub(super) fn resolve(
    tcp: &Tcp,
    passive: bool,
) -> std::result::Result<Vec<SocketAddress>, OpenError> {
    let fail = |text: String| OpenError::Resolve { address: tcp.to_string(), text };
    let family = match tcp.family {
        Family::Any => libc::AF_UNSPEC,
        Family::V4 => libc::AF_INET,
        Family::V6 => libc::AF_INET6,
        Family::Neither => return Err(OpenError::NoFamily),
    };
    // SAFETY: all zeros is a valid set of hints.
    let mut hints = unsafe { std::mem::zeroed::<libc::addrinfo>() };
    hints.ai_family = family;
    hints.ai_socktype = libc::SOCK_STREAM;
    // Only IPv6 wanted, and the name has IPv4 addresses: those are reached by IPv6 sockets.
    hints.ai_flags = if passive { libc::AI_PASSIVE } else { libc::AI_V4MAPPED };
    if passive && tcp.numeric {
        hints.ai_flags |= libc::AI_NUMERICHOST | libc::AI_NUMERICSERV;
    }
    let c_string =
        |text: &str| CString::new(text).map_err(|_| fail("Name or service not known".into()));
    let (host, port) = (c_string(&tcp.host)?, c_string(&tcp.port)?);
    let any = passive && tcp.host.is_empty();
    let host_pointer = if any { std::ptr::null() } else { host.as_ptr() };
    if tcp.port.parse::<u64>().is_ok_and(|port| port > 65535) {
        return Err(fail("Name or service not known".into()));
    }
    let mut list = std::ptr::null_mut();
    // SAFETY: strings are terminated, hints are initialised, `list` takes one pointer.
    let result = unsafe { libc::getaddrinfo(host_pointer, port.as_ptr(), &hints, &mut list) };
    if result != 0 {
        // SAFETY: gai_strerror returns a static string.
        let text = unsafe { CStr::from_ptr(libc::gai_strerror(result)) };
        return Err(fail(text.to_string_lossy().into_owned()));
    }
    let mut found = Vec::new();
    let mut entry = list;
    while !entry.is_null() {
        // SAFETY: getaddrinfo made a list that ends in null and is freed below.
        let info = unsafe { &*entry };
        // SAFETY: all zeros is a valid sockaddr_storage.
        let mut storage = unsafe { std::mem::zeroed::<libc::sockaddr_storage>() };
        let length = (info.ai_addrlen as usize).min(size_of::<libc::sockaddr_storage>());
        // SAFETY: `ai_addr` has `ai_addrlen` bytes and the storage has room for `length`.
        unsafe {
            std::ptr::copy_nonoverlapping(
                info.ai_addr.cast::<u8>(),
                (&raw mut storage).cast::<u8>(),
                length,
            )
        };
        found.push(SocketAddress { storage, length: length as u32 });
        entry = info.ai_next;
    }
    // SAFETY: the list came from getaddrinfo and is not used any more.
    unsafe { libc::freeaddrinfo(list) };
    Ok(found)
}

pub(super) fn no_address(tcp: &Tcp) -> OpenError {
    OpenError::Resolve {
        address: tcp.to_string(),
        text: "No address associated with hostname".into(),
    }
}
