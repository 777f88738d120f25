//! The kernel's interface to tap devices: `ioctl`s of `/dev/net/tun` and of its kind.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::OwnedFd;

use rustix::fs::{Mode, OFlags};
use vmm_sys_util::ioctl::{ioctl_with_mut_ref, ioctl_with_ref, ioctl_with_val};

pub(super) const CSUM: u32 = 1;
const TSO4: u32 = 2;
const UFO: u32 = 0x10;
const USO4: u32 = 0x20;
const USO6: u32 = 0x40;

const CONTROL: &str = "/dev/net/tun";

/// Opens the tap device `name`, or makes it; the kernel chooses a name that is empty. Returns the
/// name.
pub(super) fn open(name: &str, vnet_hdr: bool) -> io::Result<(OwnedFd, String)> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let fd = rustix::fs::open(CONTROL, flags, Mode::empty()).map_err(|errno| {
        let error = io::Error::from(errno);
        io::Error::new(error.kind(), format!("{CONTROL}: {error}"))
    })?;
    let mut request = empty_request();
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes().take(libc::IFNAMSIZ - 1)) {
        *to = from as libc::c_char;
    }
    let header = if vnet_hdr { libc::IFF_VNET_HDR } else { 0 };
    request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI | header) as i16;
    // SAFETY: TUNSETIFF reads and writes one `ifreq`, which this is.
    done(unsafe { ioctl_with_mut_ref(&fd, libc::TUNSETIFF as _, &mut request) })?;
    Ok((fd, name_of(&request)))
}

/// What a tap device that came open is called, and whether its frames have a header. Refuses what
/// carries something other than frames.
pub(super) fn describe(fd: &OwnedFd) -> io::Result<(String, bool)> {
    let mut request = empty_request();
    // SAFETY: TUNGETIFF writes one `ifreq`, which this is.
    done(unsafe { ioctl_with_mut_ref(fd, libc::TUNGETIFF as _, &mut request) })?;
    // SAFETY: the kernel has just written the flags; every bit pattern of the union is a number.
    let flags = i32::from(unsafe { request.ifr_ifru.ifru_flags });
    check(flags)?;
    Ok((name_of(&request), flags & libc::IFF_VNET_HDR != 0))
}

fn check(flags: i32) -> io::Result<()> {
    let why = match flags {
        flags if flags & libc::IFF_TAP == 0 => "it carries packets of IP (IFF_TUN), not frames",
        flags if flags & libc::IFF_NO_PI == 0 => {
            "its frames have the protocol before them; open it with IFF_NO_PI"
        }
        _ => return Ok(()),
    };
    Err(io::Error::new(io::ErrorKind::InvalidInput, why))
}

/// Bytes of the header in front of each frame.
pub(super) fn set_header(fd: &OwnedFd, bytes: usize) -> io::Result<()> {
    let bytes = bytes as libc::c_int;
    // SAFETY: TUNSETVNETHDRSZ reads one int.
    done(unsafe { ioctl_with_ref(fd, libc::TUNSETVNETHDRSZ as _, &bytes) })
}

/// Bytes that may wait to be sent.
pub(super) fn set_send_buffer(fd: &OwnedFd, bytes: i32) -> io::Result<()> {
    // SAFETY: TUNSETSNDBUF reads one int.
    done(unsafe { ioctl_with_ref(fd, libc::TUNSETSNDBUF as _, &bytes) })
}

/// What whoever reads can do by himself.
pub(super) fn set_offloads(fd: &OwnedFd, flags: u32) -> io::Result<()> {
    // SAFETY: TUNSETOFFLOAD takes a number.
    done(unsafe { ioctl_with_val(fd, libc::TUNSETOFFLOAD as _, flags.into()) })
}

/// Whether the device knows fragments, and segments, of UDP.
pub(super) fn knows(fd: &OwnedFd) -> (bool, bool) {
    let ufo = set_offloads(fd, CSUM | TSO4 | UFO).is_ok();
    let uso = set_offloads(fd, CSUM | USO4 | USO6).is_ok();
    // One that refuses this has refused the others, too.
    let _ = set_offloads(fd, 0);
    (ufo, uso)
}

fn empty_request() -> libc::ifreq {
    // SAFETY: all zeros are an `ifreq`: it consists of numbers.
    unsafe { std::mem::zeroed() }
}

fn name_of(request: &libc::ifreq) -> String {
    let bytes = request.ifr_name.iter().map(|byte| *byte as u8);
    let bytes: Vec<u8> = bytes.take_while(|byte| *byte != 0).collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

fn done(result: i32) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_frames_are_taken() {
        let refused = |flags| check(flags).unwrap_err().to_string();
        check(libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR).unwrap();
        assert!(refused(libc::IFF_TUN | libc::IFF_NO_PI).contains("IFF_TUN"));
        assert!(refused(libc::IFF_TAP).contains("IFF_NO_PI"));
    }
}
