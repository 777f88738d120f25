//! A character device that several share, and those who do.

use std::rc::Rc;
use std::sync::{Arc, OnceLock, Weak};

use crate::chardev::{Front, Mux, Port};
use crate::devices::serial::Serial;
use crate::machine::{Machine, StopCause};
use crate::qmp::human::Inputs;
use crate::qmp::{Monitor, Server};

pub(super) struct Shared {
    pub(super) mux: Arc<Mux>,
    pub(super) port: Port,
    /// Each with its number among the users.
    pub(super) monitors: Vec<(Arc<Monitor>, Arc<Inputs>, usize)>,
    pub(super) serial: Option<Arc<SerialFront>>,
}

impl Shared {
    /// Starts to serve all of them.
    pub(super) fn serve(self, server: &Rc<Server>, machine: &Arc<Machine>) {
        let Shared { mux, port, monitors, serial } = self;
        if let (Some(front), Some(port)) = (serial, machine.device::<Serial>()) {
            let wake = mux.clone();
            port.on_room(Box::new(move || wake.has_room()));
            let _ = front.0.set(Arc::downgrade(machine));
        }
        for (monitor, inputs, number) in monitors {
            let (room, shown) = (mux.clone(), mux.clone());
            inputs.on_room(Box::new(move || room.has_room()));
            let server = server.clone();
            tokio_uring::spawn(async move {
                let show = async move |bytes: &[u8]| shown.show(number, bytes).await;
                server.serve_shared(&monitor, inputs, show).await;
            });
        }
        let vmm = server.vmm();
        let (exit, events) = (vmm.exit.clone(), vmm.events.clone());
        mux.begin(Box::new(move || exit.shutdown(&events, StopCause::HostQmpQuit, 0)));
        let handing_on = mux.clone();
        tokio_uring::spawn(async move { handing_on.run().await });
        tokio_uring::spawn(port.run_shared(mux));
    }
}

/// A monitor.
pub(super) struct Typed(pub(super) Arc<Inputs>);

impl Front for Typed {
    fn receive(&self, bytes: &[u8]) -> usize {
        self.0.push(bytes)
    }

    fn focus(&self, on: bool) -> bool {
        self.0.focus(on)
    }

    fn changed(&self, open: bool) {
        self.0.open(open);
    }
}

/// The serial port, once the machine is built.
#[derive(Default)]
pub(super) struct SerialFront(OnceLock<Weak<Machine>>);

impl Front for SerialFront {
    fn receive(&self, bytes: &[u8]) -> usize {
        // A machine without the port takes everything, and loses it.
        let machine = self.0.get().and_then(Weak::upgrade);
        let port = machine.as_ref().and_then(|machine| machine.device::<Serial>());
        port.map_or(bytes.len(), |port| port.enqueue(bytes))
    }

    fn send_break(&self) {
        let machine = self.0.get().and_then(Weak::upgrade);
        if let Some(port) = machine.as_ref().and_then(|machine| machine.device::<Serial>()) {
            port.receive_break();
        }
    }
}
