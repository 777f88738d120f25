//! Character devices and their users: who serves what.

use std::cell::RefCell;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use tokio::sync::Notify;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::task::JoinHandle;

use super::chardevs::{Keeper, Registry, User};
use super::error::Error;
use super::outputs;
use super::shared::{SerialFront, Shared, Typed};
use crate::chardev::{
    self, Backend, Chardev, Client, Listener, MuxLine, MuxSink, Port, PortLine, bridge,
};
use crate::config::{self, Config, Language};
use crate::devices::Lines;
use crate::devices::serial::Serial;
use crate::machine::Machine;
use crate::qmp::human::Inputs;
use crate::qmp::{Monitor, Server};

/// Character devices, open, each with the one who uses it.
pub(super) struct Connections {
    port: Option<Port>,
    /// Other character devices for it.
    changes: Option<UnboundedReceiver<chardev::Change>>,
    sink: Option<Box<dyn Write + Send>>,
    lines: Vec<(Arc<PortLine>, Port)>,
    line_ends: Lines,
    monitors: Vec<Served>,
    shared: Vec<Shared>,
    registry: Arc<Registry>,
    /// Has those that nobody uses.
    keeper: Option<Keeper>,
    /// To be emptied when the machine starts.
    stale: Vec<std::fs::File>,
    bridges: Bridges,
}

/// Tasks that write what monitors on files said.
type Bridges = RefCell<Vec<JoinHandle<()>>>;

/// A monitor, and where its clients come from.
struct Served {
    monitor: Arc<Monitor>,
    status: Arc<chardev::Status>,
    language: Language,
    clients: Clients,
}

enum Clients {
    Nobody,
    One(OwnedFd),
    Each(Listener),
    Ours(Client),
}

impl Connections {
    /// Opens all of them, on the control plane's runtime; those that another machine may hold come
    /// first.
    pub(super) async fn open(config: &Config) -> Result<Connections, Error> {
        let (registry, keeper, changes) = Registry::new(outputs::read(config));
        let mut all = Connections {
            port: None,
            changes: Some(changes),
            sink: None,
            lines: Vec::new(),
            line_ends: Lines::new(),
            monitors: Vec::new(),
            shared: Vec::new(),
            registry,
            keeper: None,
            stale: Vec::new(),
            bridges: Bridges::default(),
        };
        let mut described: Vec<_> = config.chardevs.iter().collect();
        described.sort_by_key(|chardev| !chardev.is_exclusive());
        for described in described {
            if described.mux {
                all.share(config, described).await?;
                continue;
            }
            let mut chardev = Chardev::open(described).await?;
            all.stale.extend(chardev.take_stale());
            let user = match &chardev.id {
                id if config.monitors.iter().any(|monitor| monitor.chardev == *id) => User::Stays,
                id if config.lines.contains(id) => User::Stays,
                id if config.serial.as_ref() == Some(id) && chardev.is_bound() => User::Bound,
                id if config.serial.as_ref() == Some(id) => User::Serial,
                _ => User::Nobody,
            };
            all.registry.insert(&chardev, user);
            let monitor = config.monitors.iter().find(|monitor| monitor.chardev == chardev.id);
            if let Some(monitor) = monitor {
                let id = chardev.id.clone();
                let served = all.served(chardev, monitor.language);
                all.monitors.push(served.map_err(|source| Error::Connection { id, source })?);
            } else if config.serial.as_ref() == Some(&chardev.id) {
                let id = chardev.id.clone();
                let (sink, port) =
                    Port::new(chardev).map_err(|source| Error::Connection { id, source })?;
                all.sink = Some(Box::new(sink));
                all.port = Some(port);
            } else if config.lines.contains(&chardev.id) {
                let id = chardev.id.clone();
                let (line, port) = Port::with_line(chardev)
                    .map_err(|source| Error::Connection { id: id.clone(), source })?;
                all.line_ends.insert(id, line.clone());
                all.lines.push((line, port));
            } else {
                keeper.keep(chardev);
            }
        }
        all.keeper = Some(keeper);
        Ok(all)
    }

    /// Opens one that several share: monitors come first, then the serial port, then virtio ports,
    /// which come by themselves.
    async fn share(&mut self, config: &Config, described: &config::Chardev) -> Result<(), Error> {
        let id = described.id.clone();
        let mut chardev = Chardev::open(&described.base()).await?;
        self.stale.extend(chardev.take_stale());
        self.registry.insert_shared(&id);
        self.registry.insert(&chardev, User::Stays);
        let failed = |source| Error::Connection { id: id.clone(), source };
        let (mux, port) = Port::shared(chardev, config.escape).map_err(failed)?;
        let mut shared = Shared { mux, port, monitors: Vec::new(), serial: None };
        for monitor in config.monitors.iter().filter(|monitor| monitor.chardev == id) {
            let monitor = Monitor { label: monitor.chardev.clone(), ..Monitor::default() };
            let inputs = Arc::<Inputs>::default();
            let number = shared.mux.add(Arc::new(Typed(inputs.clone())));
            shared.monitors.push((Arc::new(monitor), inputs, number));
        }
        if config.serial.as_ref() == Some(&id) {
            let front = Arc::<SerialFront>::default();
            shared.mux.add(front.clone());
            shared.serial = Some(front);
            self.sink = Some(Box::new(MuxSink(shared.mux.clone())));
        }
        if config.lines.contains(&id) {
            self.line_ends.insert(id, Arc::new(MuxLine(shared.mux.clone())));
        }
        self.shared.push(shared);
        Ok(())
    }

    fn served(&self, chardev: Chardev, language: Language) -> io::Result<Served> {
        let monitor = Arc::new(Monitor { label: chardev.id.clone(), ..Monitor::default() });
        let status = chardev.status();
        status.used.store(true, Ordering::Relaxed);
        let clients = match chardev.backend {
            Backend::Null => Clients::Nobody,
            Backend::Files(files) => {
                let (socket, written) = bridge(files)?;
                self.bridges.borrow_mut().push(written);
                Clients::One(socket)
            }
            Backend::Server(listener) => Clients::Each(listener),
            Backend::Client(client) => Clients::Ours(client),
        };
        Ok(Served { monitor, status, language, clients })
    }

    /// Where the serial port's output goes.
    pub(super) fn take_sink(&mut self) -> Option<Box<dyn Write + Send>> {
        self.sink.take()
    }

    /// The character devices of virtio ports.
    pub(super) fn take_lines(&mut self) -> Lines {
        std::mem::take(&mut self.line_ends)
    }

    /// What commands about character devices work on.
    pub(super) fn registry(&self) -> Arc<Registry> {
        self.registry.clone()
    }

    /// Empties the files that are written from their beginning.
    pub(super) fn empty_files(&mut self) -> Result<(), Error> {
        chardev::empty(std::mem::take(&mut self.stale)).map_err(Error::Empty)
    }

    /// Starts to serve them all.
    pub(super) fn serve(&mut self, server: &Rc<Server>, machine: &Arc<Machine>) {
        if let Some(keeper) = self.keeper.take() {
            tokio_uring::spawn(keeper.run());
        }
        for monitor in self.monitors.drain(..) {
            tokio_uring::spawn(monitor.serve(server.clone()));
        }
        for shared in self.shared.drain(..) {
            shared.serve(server, machine);
        }
        for (line, port) in self.lines.drain(..) {
            tokio_uring::spawn(port.run_line(line));
        }
        if let (Some(port), Some(changes)) = (self.port.take(), self.changes.take()) {
            tokio_uring::spawn(serve_port(port, machine.clone(), changes));
        }
    }

    /// Waits until what monitors on files said is written, but not after `end`.
    pub(super) async fn finish(&self, end: Instant) {
        let bridges = self.bridges.take();
        let all = async {
            for bridge in bridges {
                // It has ended, or panicked with a message of its own.
                let _ = bridge.await;
            }
        };
        let _ = tokio::time::timeout_at(end.into(), all).await;
    }
}

impl Served {
    /// Client after client, one at a time.
    async fn serve(self, server: Rc<Server>) {
        let Served { monitor, status, language, clients } = self;
        // A monitor in trouble is no reason to end the guest.
        let converse = async |socket| {
            status.connect(&socket);
            let served = match language {
                Language::Qmp { pretty } => server.serve(&monitor, socket, pretty).await,
                Language::Human => server.serve_human(&monitor, socket).await,
            };
            status.disconnect();
            if let Err(error) = served {
                say!("godwit: monitor {}: {error}", monitor.label);
            }
        };
        match clients {
            Clients::Nobody => {}
            Clients::One(socket) => converse(socket).await,
            Clients::Each(mut listener) => loop {
                let socket = listener.accept().await;
                converse(socket).await;
            },
            Clients::Ours(mut client) => {
                while let Some(socket) = client.next().await {
                    converse(socket).await;
                }
            }
        }
    }
}

async fn serve_port(
    port: Port,
    machine: Arc<Machine>,
    mut changes: UnboundedReceiver<chardev::Change>,
) {
    let room = Arc::new(Notify::new());
    let wake = room.clone();
    let Some(serial) = machine.device::<Serial>() else { return };
    serial.on_room(Box::new(move || wake.notify_one()));
    port.run_changing(&|bytes| serial.enqueue(bytes), &room, &mut changes).await;
}
