//! The control plane: `godwit run` from its configuration to its exit status.
//!
//! The main thread runs one loop (tokio-uring) that owns monitors, character devices, listeners and
//! signals, and never blocks: what waits for vCPUs or names runs on helper threads, and each
//! migration or dump has a thread of its own. The guest runs on vCPU threads and needs nothing of
//! this loop; it is started when the loop has all that it will need.

mod chardevs;
mod confine;
mod connections;
mod daemon;
mod descriptors;
mod error;
mod outputs;
mod pidfile;
mod ring;
mod shared;

use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

use serde_json::{Value as Json, json};
use tokio::signal::unix::{SignalKind, signal};

use crate::aside::aside;
use crate::config::{Config, Incoming, PanicAction, ShutdownAction};
use crate::devices::{DiskError, DiskEvent};
use crate::dirty_rate::Meter;
use crate::dump::Dumps;
use crate::io::Address;
use crate::io::connection::inherited;
use crate::io::proc;
use crate::machine::{Event, Machine, Outside, RunState, StopCause};
use crate::memory;
use crate::migrate::{self, Handle, Parts};
use crate::net::{Nets, Rounds};
use crate::qmp::Server;
use crate::qmp::commands::{self, channels, migration::InheritedFds};
use crate::vmm::Events;
use crate::vmm::{Exit, Vmm};

use connections::Connections;
pub(crate) use error::Error;
use pidfile::Pidfile;

/// Runs the machine until it ends, and gives out the process's exit status.
///
/// A machine that cannot be started leaves everything as it found it, another one's monitor above
/// all: what can be checked by looking is checked first; then come the names that only one machine
/// can have; and files lose what they hold when all the rest is there.
///
/// `parent` is the process that had started this one when it began.
pub fn run(config: Config, parent: u32) -> Result<i32, Error> {
    let daemon = match config.daemonize.then(daemon::background).transpose()? {
        Some(daemon::Side::Parent(status)) => return Ok(status),
        Some(daemon::Side::Child(child)) => Some(child),
        None => None,
    };
    if config.exit_with_parent {
        end_with(parent)?;
    }
    config.notices.iter().for_each(|notice| say!("godwit: warning: {notice}"));
    descriptors::check(&config)?;
    confine::name(&config.process)?;
    memory::survive_missing_pages().map_err(Error::Signal)?;
    let incoming = match &config.incoming {
        Some(Incoming::Uri(text)) => Some(channels::incoming(text).map_err(Error::Address)?),
        Some(Incoming::Defer) | None => None,
    };
    outputs::check(&config, incoming.as_ref())?;
    let runtime = ring::runtime()?;
    Machine::check(&config)?;
    runtime.block_on(live(&Arc::new(config), incoming, daemon, parent))
}

/// `-run-with exit-with-parent=on`.
fn end_with(parent: u32) -> Result<(), Error> {
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::TERM))
        .map_err(|error| Error::Signal(error.into()))?;
    // For one that has ended before, no signal comes.
    match std::os::unix::process::parent_id() == parent {
        true => Ok(()),
        false => Err(Error::Parent),
    }
}

/// From the first name that is taken to the last word of the last monitor.
async fn live(
    config: &Arc<Config>,
    incoming: Option<Address>,
    daemon: Option<daemon::Child>,
    parent: u32,
) -> Result<i32, Error> {
    let confinement = confine::prepare(&config.process)?;
    let events = Arc::new(Events::new());
    let exit = Arc::new(Exit::default());
    end_on_signals(&events, &exit).map_err(Error::Signal)?;
    let built = Arc::new(OnceLock::new());
    let report = reporter(events.clone(), exit.clone(), built.clone());
    let begun = async {
        let described = config.clone();
        let claim = move || described.pidfile.as_deref().map(Pidfile::claim).transpose();
        let pidfile = apart(claim).await??;
        let mut connections = Connections::open(config).await?;
        let (config, nets) = networks(config, &events).await?;
        let outside = Outside {
            serial: connections.take_sink(),
            lines: connections.take_lines(),
            networks: nets.clone(),
            events: Box::new(report),
        };
        let machine = apart(move || Machine::build(&config, outside)).await??;
        Ok::<_, Error>((pidfile, connections, machine, nets))
    };
    let (_pidfile, mut connections, machine, nets) = tokio::select! {
        begun = begun => begun?,
        // While it waited for a client, a file system, memory.
        status = exit.requested() => return Ok(status),
    };
    let _ = built.set(Arc::downgrade(&machine));

    let mut vmm = Vmm::new(machine.clone(), events, exit);
    vmm.identity = config.identity.clone();
    vmm.objects.begin(config)?;
    for given in &config.process.descriptors {
        let number = given.number;
        let fd = inherited(&number.to_string()).ok_or(Error::AddFd(number))?;
        let added = vmm.fd_sets.add(Some(given.set), fd.into(), given.opaque.as_deref());
        added.expect("numbers on the command line are not negative");
    }
    vmm.nets = nets;
    let dumps = Dumps::new(machine.clone());
    vmm.dumps = Some(dumps.clone());
    vmm.meter = Some(Meter::new(machine.clone()));
    vmm.set_autostart(!config.start_paused);
    let migration = migrations(config, &machine, &vmm);
    vmm.migration = Some(migration.clone());
    vmm.chardevs = connections.registry();
    let vmm = Arc::new(vmm);

    connections.empty_files()?;
    let server = Server::new(vmm.clone());
    if let Some(address) = incoming {
        let (handle, mut fds) = (migration.clone(), InheritedFds(vmm.clone()));
        let mut started = Box::pin(apart(move || handle.incoming(&address, true, &mut fds)));
        // Whom a monitor answers may rely on it that the guest can come, as long as that takes no
        // time; where a file system does not answer, `quit` is heard all the same.
        match tokio::time::timeout(PROMPT, &mut started).await {
            Ok(started) => started??,
            Err(_) => {
                connections.serve(&server, &machine);
                tokio::select! {
                    started = started => started??,
                    _ = vmm.exit.requested() => {}
                }
            }
        }
    }
    if confinement.is_any() {
        // Which pages are holes is asked later, of a file that only root may open.
        machine.ram().main().prepare_holes();
        proc::prepare().map_err(Error::Proc)?;
        confinement.apply()?;
        if config.exit_with_parent {
            // The kernel forgets it where the user changes.
            end_with(parent)?;
        }
    }
    if !config.start_paused && config.incoming.is_none() {
        machine.cont()?;
    }
    if let Some(child) = daemon {
        child.ready()?;
    }
    let status = serve(&vmm, &server, &machine, &mut connections).await;
    drop(connections);
    migration.end();
    let ended = machine.clone();
    end_within(GUEST_END, move || {
        dumps.end();
        machine.quit();
    });
    end_within(IMAGES_END, move || ended.close());
    Ok(status)
}

/// Opens what network cards are connected to, and writes down what each can do.
async fn networks(
    config: &Arc<Config>,
    events: &Arc<Events>,
) -> Result<(Config, Arc<Nets>), Error> {
    let (mut config, events) = (Config::clone(config), events.clone());
    apart(move || {
        let nets = Arc::new(Nets::new(move |event| commands::network::emit(&events, event)));
        for netdev in &mut config.netdevs {
            netdev.offloads = nets.add(netdev)?;
        }
        Ok((config, nets))
    })
    .await?
}

/// How soon an address can be waited at, unless something is stuck.
const PROMPT: Duration = Duration::from_millis(300);

/// Does on a thread what names, hosts and memory may hold up.
async fn apart<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Error> {
    aside("start", work).map_err(Error::Thread)?.await.map_err(|_| Error::Panicked)
}

/// For dumps and vCPUs to end, which takes milliseconds unless something is stuck: a file system
/// that does not answer must not keep the process.
const GUEST_END: Duration = Duration::from_millis(300);

/// For images to be closed: a disk takes seconds where it has much to write. One that is not closed
/// has to be repaired before it is used again.
const IMAGES_END: Duration = Duration::from_secs(30);

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

/// No client can call its own announcement so.
const ARRIVED: &str = "\0arrived";

/// Migrations of the machine, connected to events and to the end of the process.
fn migrations(config: &Config, machine: &Arc<Machine>, vmm: &Vmm) -> Arc<Handle> {
    let (events, autostart) = (vmm.events.clone(), vmm.autostart.clone());
    let (exit, ending, nets) = (vmm.exit.clone(), vmm.events.clone(), vmm.nets.clone());
    let handle = Handle::new(Parts {
        guest: machine.clone(),
        events: Arc::new(move |event| match event {
            migrate::Event::Status(status) => {
                events.emit("MIGRATION", json!({"status": status.name()}))
            }
            migrate::Event::Pass(pass) => events.emit("MIGRATION_PASS", json!({"pass": pass})),
        }),
        autostart: Arc::new(move || autostart.load(Ordering::SeqCst)),
        arrived: Arc::new(move |parameters| {
            let rounds = Rounds {
                initial: parameters.announce_initial,
                step: parameters.announce_step,
                max: parameters.announce_max,
                count: parameters.announce_rounds,
            };
            if let Err(error) = nets.announce(rounds, None, ARRIVED) {
                say!(
                    "godwit: warning: network cards are not announced, for want of a thread: {error}"
                );
            }
        }),
        on_failure: Arc::new(move |_| exit.shutdown(&ending, StopCause::HostError, 1)),
        on_success: says_when_restored(config, machine),
        is_incoming: config.incoming.is_some(),
        uuid: Some(config.identity.uuid).filter(|uuid| *uuid != [0; 16]),
    });
    if let Some(restore) = config.restore {
        handle.set_restore(restore);
    }
    handle
}

/// For `godwit restore`.
fn says_when_restored(config: &Config, machine: &Arc<Machine>) -> Arc<dyn Fn() + Send + Sync> {
    let Some(since) = config.restored_since else { return Arc::new(|| {}) };
    let machine = Arc::downgrade(machine);
    Arc::new(move || {
        let state = machine.upgrade().map(|machine| machine.run_state());
        let ms = since.elapsed().as_millis();
        match state {
            Some(RunState::Running) => say!("godwit: the guest runs, {ms} ms after the start"),
            Some(state) => say!(
                "godwit: the guest is there and stands still ({}), {ms} ms after the start; cont lets it go on",
                state.name()
            ),
            None => {}
        }
    })
}

/// The loop, until someone asks for the end; everything that was said until then has left.
async fn serve(
    vmm: &Arc<Vmm>,
    server: &Rc<Server>,
    machine: &Arc<Machine>,
    connections: &mut Connections,
) -> i32 {
    let late = vmm.events.clone();
    tokio_uring::spawn(async move { late.send_late().await });
    connections.serve(server, machine);
    let status = vmm.exit.requested().await;
    if let Some(dumps) = &vmm.dumps {
        // A command may wait for it.
        dumps.cancel();
    }
    let end = Instant::now() + LAST_WORDS;
    server.close(end).await;
    connections.finish(end).await;
    status
}

/// For what monitors said last; who should read it may not. With [`GUEST_END`] less than a second:
/// then the process has ended, whatever is stuck, unless it is a disk.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// From here on a signal ends the machine as `quit` does.
fn end_on_signals(events: &Arc<Events>, exit: &Arc<Exit>) -> std::io::Result<()> {
    for kind in [SignalKind::terminate(), SignalKind::interrupt(), SignalKind::hangup()] {
        let (events, exit) = (events.clone(), exit.clone());
        let mut signals = signal(kind)?;
        tokio_uring::spawn(async move {
            signals.recv().await;
            exit.shutdown(&events, StopCause::HostSignal, 0);
        });
    }
    Ok(())
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
        Event::MemoryFailure { vcpu, why } => {
            say!("godwit: vCPU {vcpu} stopped: {why}");
            let flags = json!({"action-required": true, "recursive": false});
            events.emit(
                "MEMORY_FAILURE",
                json!({"recipient": "guest", "action": "fatal", "flags": flags, "x-godwit-reason": why}),
            );
        }
        Event::PortChange { id, open } => {
            events.emit("VSERPORT_CHANGE", json!({"open": open, "id": id}));
        }
        Event::BalloonChange { actual } => {
            events.emit("BALLOON_CHANGE", json!({"actual": actual}));
        }
        Event::Disk(DiskEvent::Error(error)) => events.emit("BLOCK_IO_ERROR", disk_error(&error)),
        Event::Disk(DiskEvent::Threshold(passed)) => events.emit(
            "BLOCK_WRITE_THRESHOLD",
            json!({
                "node-name": passed.node,
                "amount-exceeded": passed.exceeded,
                "write-threshold": passed.threshold,
            }),
        ),
        Event::Exit(status) => exit.shutdown(&events, StopCause::GuestShutdown, status),
        Event::InternalError { vcpu, why } => say!("godwit: vCPU {vcpu} stopped: {why}"),
    }
}

fn disk_error(error: &DiskError) -> Json {
    let operation = if error.is_read { "read" } else { "write" };
    let mut data = json!({
        "qom-path": error.qdev,
        "device": error.device,
        "operation": operation,
        "action": error.action.name(),
        "nospace": error.no_space,
        "reason": error.reason,
    });
    if let Some(node) = &error.node {
        data["node-name"] = json!(node);
    }
    data
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parent_that_has_ended_already_is_noticed() {
        let parent = std::os::unix::process::parent_id();
        let (ours, other) = (end_with(parent), end_with(parent + 1));
        rustix::process::set_parent_process_death_signal(None).unwrap();
        assert!(ours.is_ok() && matches!(other, Err(Error::Parent)));
    }
}
