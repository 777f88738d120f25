//! A tap device: the kernel's end of an Ethernet cable.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::io::Errno;

use super::tun;
use crate::chardev::inherited;
use crate::config::{self, Offloads};
use crate::devices::HEADER_BYTES;

pub(super) struct Tap {
    fd: Arc<OwnedFd>,
    offloads: Offloads,
    /// The interface was taken away.
    dead: bool,
    name: String,
}

impl Tap {
    pub(super) fn open(tap: &config::Tap, wanted: Offloads) -> io::Result<Tap> {
        let (fd, name, vnet_hdr) = match tap.fd {
            Some(number) => {
                let fd = inherited(number)?;
                let (name, vnet_hdr) = tun::describe(&fd).map_err(|error| {
                    io::Error::new(error.kind(), format!("descriptor {number} is no tap: {error}"))
                })?;
                rustix::io::ioctl_fionbio(&fd, true)?;
                (fd, name, vnet_hdr)
            }
            None => {
                let name = tap.ifname.as_deref().unwrap_or("");
                let (fd, name) = tun::open(name, wanted.vnet_hdr)?;
                (fd, name, wanted.vnet_hdr)
            }
        };
        let mut offloads = Offloads::default();
        if vnet_hdr {
            tun::set_header(&fd, HEADER_BYTES)?;
            let (ufo, uso) = tun::knows(&fd);
            offloads = Offloads { vnet_hdr, ufo, uso };
        }
        let room = if tap.sndbuf == 0 { i32::MAX } else { tap.sndbuf.min(i32::MAX as u64) as i32 };
        match tun::set_send_buffer(&fd, room) {
            Err(error) if tap.sndbuf != 0 => return Err(error),
            // macvtap may know none.
            _ => {}
        }
        Ok(Tap { fd: Arc::new(fd), offloads, dead: false, name })
    }

    pub(super) fn offloads(&self) -> Offloads {
        self.offloads
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn wait(&self) -> Option<Arc<OwnedFd>> {
        (!self.dead).then(|| self.fd.clone())
    }

    pub(super) fn set_offloads(&self, flags: u32) {
        if !self.offloads.vnet_hdr {
            return;
        }
        if let Err(error) = tun::set_offloads(&self.fd, flags) {
            // The guest may do this as often as it likes.
            tracing::debug!("tap {}: offloads {flags:#x}: {error}", self.name);
        }
    }

    pub(super) fn send(&mut self, header: &[u8; HEADER_BYTES], frame: &[u8]) -> bool {
        let parts = [IoSlice::new(header), IoSlice::new(frame)];
        let parts = if self.offloads.vnet_hdr { &parts[..] } else { &parts[1..] };
        loop {
            match rustix::io::writev(&self.fd, parts) {
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return false,
                // The interface is down, or the frame is none: lost, as on a wire.
                _ => return true,
            }
        }
    }

    pub(super) fn receive(&mut self, into: &mut [u8]) -> Option<usize> {
        if self.dead {
            return None;
        }
        let (header, frame) = into.split_at_mut(HEADER_BYTES);
        let read = loop {
            let read = match self.offloads.vnet_hdr {
                true => {
                    let mut parts = [IoSliceMut::new(header), IoSliceMut::new(frame)];
                    rustix::io::readv(&self.fd, &mut parts)
                }
                false => {
                    header.fill(0);
                    rustix::io::read(&self.fd, &mut *frame).map(|count| count + HEADER_BYTES)
                }
            };
            if read != Err(Errno::INTR) {
                break read;
            }
        };
        match read {
            Ok(count) if count > HEADER_BYTES => Some(count),
            Ok(_) | Err(Errno::AGAIN) => None,
            Err(errno) => {
                self.dead = true;
                say!("godwit: warning: tap {}: {errno}; its card is cut off", self.name);
                None
            }
        }
    }
}
