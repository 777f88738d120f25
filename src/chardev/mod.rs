//! Character devices: what a serial port or a monitor is connected to.
//!
//! Opening is done before the machine is built, may take as long as names and peers do (on threads of
//! its own, so that a signal is heard), and with `wait=on` waits for a client; everything later
//! happens on the control plane and does not block. All that a device needs until a client comes is
//! had when it is open, so that a host that lacks it is found out before the guest starts.

mod device;
mod error;
mod line;
mod mux;
mod output;
mod port;
mod socket;
mod terminal;

pub use device::{Backend, Chardev, Files};
pub(crate) use device::{Status, empty};
pub(crate) use error::Error;
pub(crate) use line::PortLine;
pub(crate) use mux::{Front, Mux, MuxLine, MuxSink};
pub(crate) use port::{Change, Port, bridge};
pub(crate) use socket::{Client, Listener, connect, describe};
pub(crate) use socket::{inherited, listen};
