//! The control plane: `godwit run` from its configuration to its exit status.
//!
//! The main thread runs one loop (tokio-uring) that owns monitors, character devices, listeners and
//! signals, and never blocks: what waits for vCPUs or names runs on helper threads, and each
//! migration or dump has a thread of its own. The guest runs on vCPU threads and needs nothing of
//! this loop, so it is started before the loop is.

mod daemon;
mod pidfile;
mod ring;

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

use serde_json::{Value as Json, json};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use crate::chardev::{self, Backend, Chardev, Port, bridge};
use crate::config::{Config, Incoming, PanicAction, ShutdownAction};
use crate::dump::Dumps;
use crate::io::{Address, AddressError};
use crate::machine::{self, ContRefused, Event, Machine, Outside, StopCause};
use crate::memory;
use crate::migrate::{self, Handle, Parts};
use crate::qmp::commands::migration::inherited;
use crate::qmp::{Events, Monitor, Server};
use crate::vmm::{self, Exit, Vmm};

use pidfile::Pidfile;

/// Why a guest could not be run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Ring(#[from] ring::Unavailable),
    #[error("SIGBUS cannot be handled")]
    Signal(#[source] std::io::Error),
    #[error(transparent)]
    Chardev(#[from] chardev::Error),
    #[error("cannot set up the connection of the serial port")]
    Serial(#[source] std::io::Error),
    #[error(transparent)]
    Machine(#[from] machine::Error),
    #[error("the guest cannot be started")]
    Start(#[from] ContRefused),
    #[error("-incoming: {0}")]
    Address(#[from] AddressError),
    #[error("-incoming: {0}")]
    Incoming(#[from] migrate::Refused),
    #[error(transparent)]
    Pidfile(#[from] pidfile::Error),
    #[error(transparent)]
    Daemon(#[from] daemon::Error),
}

/// Runs the machine until it ends, and gives out the process's exit status.
pub fn run(config: Config) -> Result<i32, Error> {
    let daemon = if config.daemonize { Some(daemon::background()?) } else { None };
    if let Some(daemon::Side::Parent(status)) = daemon {
        return Ok(status);
    }
    memory::say_when_full().map_err(Error::Signal)?;
    let runtime = ring::runtime()?;
    let events = Arc::new(Events::new());
    let exit = Arc::new(Exit::default());
    let outside = Connections::open(&config)?;
    let Connections { port, sink, monitors, idle, infos } = outside;

    let built = Arc::new(OnceLock::new());
    let report = reporter(events.clone(), exit.clone(), built.clone());
    let machine = Machine::build(&config, Outside { serial: sink, events: Box::new(report) })?;
    let _ = built.set(Arc::downgrade(&machine));
    let _pidfile = config.pidfile.as_deref().map(Pidfile::write).transpose()?;
    if !config.start_paused && config.incoming.is_none() {
        machine.cont()?;
    }

    let mut vmm = Vmm::new(machine.clone(), events, exit);
    vmm.identity = config.identity.clone();
    let dumps = Dumps::new(machine.clone());
    vmm.dumps = Some(dumps.clone());
    vmm.set_autostart(!config.start_paused);
    let migration = migrations(&config, &machine, &vmm);
    vmm.migration = Some(migration.clone());
    vmm.chardevs = Box::new(move || infos.iter().map(|info| info()).collect());
    if let Some(Incoming::Uri(uri)) = &config.incoming {
        migration.incoming(&Address::from_uri(uri)?, true, &mut inherited)?;
    }
    if let Some(daemon::Side::Child(child)) = daemon {
        child.ready()?;
    }
    let status = runtime.block_on(serve(Arc::new(vmm), machine.clone(), port, monitors));
    drop(idle);
    end_within(GUEST_END, move || {
        dumps.end();
        machine.quit();
    });
    Ok(status)
}

/// For dumps and vCPUs to end, which takes milliseconds unless something is stuck: a file system
/// that does not answer must not keep the process.
const GUEST_END: Duration = Duration::from_millis(300);

/// Does `work`, and goes on without it after `time`: the end of the process ends it, too.
fn end_within(time: Duration, work: impl FnOnce() + Send + 'static) {
    let (done, wait) = std::sync::mpsc::channel();
    let work = move || {
        work();
        // Nobody may wait any more.
        let _ = done.send(());
    };
    // Without a thread, or without an answer, the process ends all the same.
    if std::thread::Builder::new().name("end".into()).spawn(work).is_ok() {
        let _ = wait.recv_timeout(time);
    }
}

/// Migrations of the machine, connected to events and to the end of the process.
fn migrations(config: &Config, machine: &Arc<Machine>, vmm: &Vmm) -> Arc<Handle> {
    let (events, autostart) = (vmm.events.clone(), vmm.autostart.clone());
    let (exit, ending) = (vmm.exit.clone(), vmm.events.clone());
    Handle::new(Parts {
        guest: machine.clone(),
        events: Arc::new(move |event| match event {
            migrate::Event::Status(status) => {
                events.emit("MIGRATION", json!({"status": status.name()}))
            }
            migrate::Event::Pass(pass) => events.emit("MIGRATION_PASS", json!({"pass": pass})),
        }),
        autostart: Arc::new(move || autostart.load(Ordering::SeqCst)),
        on_failure: Arc::new(move |_| exit.shutdown(&ending, StopCause::HostError, 1)),
        is_incoming: config.incoming.is_some(),
        uuid: Some(config.identity.uuid).filter(|uuid| *uuid != [0; 16]),
    })
}

type Info = Box<dyn Fn() -> vmm::ChardevInfo + Send + Sync>;

/// Character devices, each with the one who uses it.
struct Connections {
    port: Option<Port>,
    sink: Option<Box<dyn std::io::Write + Send>>,
    monitors: Vec<(Chardev, bool)>,
    /// Open and used by nobody.
    idle: Vec<Chardev>,
    infos: Vec<Info>,
}

impl Connections {
    fn open(config: &Config) -> Result<Connections, Error> {
        let mut all = Connections {
            port: None,
            sink: None,
            monitors: Vec::new(),
            idle: Vec::new(),
            infos: Vec::new(),
        };
        for described in &config.chardevs {
            let chardev = Chardev::open(described)?;
            all.infos.push(Box::new(chardev.info()));
            let monitor = config.monitors.iter().find(|monitor| monitor.chardev == chardev.id);
            if let Some(monitor) = monitor {
                all.monitors.push((chardev, monitor.pretty));
            } else if config.serial.as_ref() == Some(&chardev.id) {
                let (sink, port) = Port::new(chardev).map_err(Error::Serial)?;
                all.sink = Some(Box::new(sink));
                all.port = Some(port);
            } else {
                all.idle.push(chardev);
            }
        }
        Ok(all)
    }
}

/// The loop, until someone asks for the end; everything that was said until then has left.
async fn serve(
    vmm: Arc<Vmm>,
    machine: Arc<Machine>,
    port: Option<Port>,
    monitors: Vec<(Chardev, bool)>,
) -> i32 {
    let server = Server::new(vmm.clone());
    end_on_signals(&vmm);
    let late = vmm.events.clone();
    tokio_uring::spawn(async move { late.send_late().await });
    let bridges = Rc::default();
    for (chardev, pretty) in monitors {
        tokio_uring::spawn(serve_monitor(server.clone(), chardev, pretty, Rc::clone(&bridges)));
    }
    if let Some(port) = port {
        tokio_uring::spawn(serve_port(port, machine));
    }
    let status = vmm.exit.requested().await;
    if let Some(dumps) = &vmm.dumps {
        // A command may wait for it.
        dumps.cancel();
    }
    let end = Instant::now() + LAST_WORDS;
    server.close(end).await;
    let bridges = bridges.take();
    let _ = tokio::time::timeout_at(end.into(), async {
        for bridge in bridges {
            // It has ended, or panicked with a message of its own.
            let _ = bridge.await;
        }
    })
    .await;
    status
}

/// Tasks that write what monitors on files said.
type Bridges = Rc<RefCell<Vec<JoinHandle<()>>>>;
/// For what monitors said last; who should read it may not. With [`GUEST_END`] less than a second:
/// then the process has ended, whatever is stuck.
const LAST_WORDS: Duration = Duration::from_millis(500);

fn end_on_signals(vmm: &Arc<Vmm>) {
    for kind in [SignalKind::terminate(), SignalKind::interrupt(), SignalKind::hangup()] {
        let vmm = vmm.clone();
        tokio_uring::spawn(async move {
            match signal(kind) {
                Ok(mut signals) => {
                    signals.recv().await;
                    vmm.exit.shutdown(&vmm.events, StopCause::HostSignal, 0);
                }
                Err(error) => tracing::warn!("signal {}: {error}", kind.as_raw_value()),
            }
        });
    }
}

/// One monitor: client after client, one at a time.
async fn serve_monitor(server: Rc<Server>, chardev: Chardev, pretty: bool, bridges: Bridges) {
    let monitor = Arc::new(Monitor { label: chardev.id.clone(), ..Monitor::default() });
    let status = chardev.status();
    status.used.store(true, Ordering::Relaxed);
    let converse = async |socket| {
        status.connected.store(true, Ordering::Relaxed);
        let served = server.serve(&monitor, socket, pretty).await;
        status.connected.store(false, Ordering::Relaxed);
        served
    };
    let ended = match chardev.backend {
        Backend::Null => Ok(()),
        Backend::Files(files) => match bridge(files) {
            Ok((socket, written)) => {
                bridges.borrow_mut().push(written);
                converse(socket).await
            }
            Err(error) => Err(error),
        },
        Backend::Server(listener) => match listener.into_async() {
            Ok(mut listener) => loop {
                let socket = listener.accept().await;
                report_connection(&monitor, converse(socket).await);
            },
            Err(error) => Err(error),
        },
        Backend::Client(mut client) => {
            while let Some(socket) = client.next().await {
                report_connection(&monitor, converse(socket).await);
            }
            Ok(())
        }
    };
    report_connection(&monitor, ended);
}

/// A monitor in trouble is no reason to end the guest.
fn report_connection(monitor: &Monitor, ended: std::io::Result<()>) {
    if let Err(error) = ended {
        eprintln!("godwit: monitor {}: {error}", monitor.label);
    }
}

async fn serve_port(port: Port, machine: Arc<Machine>) {
    let room = Arc::new(Notify::new());
    let wake = room.clone();
    machine.on_serial_room(Box::new(move || wake.notify_one()));
    if let Err(error) = port.run(&|bytes| machine.serial_input(bytes), &room).await {
        eprintln!("godwit: serial port: {error}");
    }
}

/// Turns what the machine tells into QMP events, and into the end of the process where that
/// follows.
fn reporter(
    events: Arc<Events>,
    exit: Arc<Exit>,
    machine: Arc<OnceLock<Weak<Machine>>>,
) -> impl Fn(Event) + Send + Sync + 'static {
    let cause_of = |cause: StopCause| json!({"guest": cause.by_guest(), "reason": cause.name()});
    // `set-action` may have changed them; before the machine is built, nothing asks.
    let actions = move || machine.get().and_then(Weak::upgrade).map(|machine| machine.actions());
    move |event| match event {
        Event::Stop => events.emit("STOP", Json::Null),
        Event::Resume => events.emit("RESUME", Json::Null),
        Event::Powerdown => events.emit("POWERDOWN", Json::Null),
        Event::Reset(cause) => events.emit("RESET", cause_of(cause)),
        Event::Shutdown(cause) => {
            let actions = actions().unwrap_or_default();
            let failed =
                cause == StopCause::GuestPanic && actions.panic == PanicAction::ExitFailure;
            match actions.shutdown {
                ShutdownAction::Poweroff => exit.shutdown(&events, cause, i32::from(failed)),
                ShutdownAction::Pause => events.emit("SHUTDOWN", cause_of(cause)),
            }
        }
        Event::GuestPanicked { action } => {
            events.emit("GUEST_PANICKED", json!({"action": action.name()}));
        }
        Event::InternalError { vcpu, why } => eprintln!("godwit: vCPU {vcpu} stopped: {why}"),
    }
}
