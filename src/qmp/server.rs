//! Serves clients: sockets in, commands out.
//!
//! The commands of one connection run one after the other. A command that waits, for a name or for a
//! peer, holds its own connection only: other monitors, `exec-oob` and the end of the process do not
//! wait for it, and a client that leaves meanwhile makes room for the next. Those that change the
//! machine run one at a time over all monitors.
//!
//! Each connection has a task that reads and one that writes. Without out-of-band execution the
//! reader runs each command before it looks for the next, so that what a client sent too early
//! stays in its socket. With it, up to [`QUEUED_MAX`] requests wait in a queue that a third task
//! works off, and `exec-oob` overtakes them.

use std::cell::RefCell;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinHandle;

use super::commands::{Answer, Command, Held, Run};
use super::error::Error;
use super::fds::Monitor;
use super::human;
use super::json::Value;
use super::outbox::Outbox;
use super::session::{Item, Job, Message, Session};
use super::wire::Wire;
use crate::aside::aside;
use crate::io::reason;
use crate::vmm::Vmm;

/// Requests that wait in a connection's queue or are being executed, with out-of-band execution.
const QUEUED_MAX: usize = 8;
/// How long answers may take to leave after the client said that it sends nothing more.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a client that is gone holds its monitor for a command that still waits.
const LEFT_TIMEOUT: Duration = Duration::from_millis(500);
/// How long one connection keeps the thread that serves all of them. Sixty that send as fast as they
/// can keep another one waiting for so many slices, twice: once for its turn, once for its bytes to
/// be looked for.
const SLICE: Duration = Duration::from_micros(100);
/// Commands that wait at one time. A monitor has one; clients that left may have left more.
const WAITING_MAX: usize = 64;

/// Every connection of every monitor.
pub struct Server {
    vmm: Arc<Vmm>,
    /// One permit for each [`Run::Waiting`] command.
    waiting: Arc<Semaphore>,
    clients: RefCell<Vec<Weak<Outbox>>>,
}

impl Server {
    pub fn new(vmm: Arc<Vmm>) -> Rc<Server> {
        Rc::new(Server {
            vmm,
            waiting: Arc::new(Semaphore::new(WAITING_MAX)),
            clients: RefCell::default(),
        })
    }

    /// Talks to one person until he leaves.
    pub(crate) async fn serve_human(
        self: &Rc<Server>,
        monitor: &Arc<Monitor>,
        socket: OwnedFd,
    ) -> std::io::Result<()> {
        let wire = Arc::new(Wire::new(socket)?);
        let outbox = Arc::new(Outbox::new(false));
        let cut = Arc::downgrade(&wire);
        outbox.on_overrun(move || cut.upgrade().iter().for_each(|wire| wire.hang_up()));
        self.enlist(&outbox);
        let writer = tokio_uring::spawn(write(wire.clone(), outbox.clone()));
        let mut session = human::Session::new(outbox.clone(), true);
        session.open();
        while let Ok(received) = wire.receive().await {
            if received.bytes.is_empty() {
                break;
            }
            if !received.fds.is_empty() {
                monitor.fds.arrived(received.fds);
            }
            tokio::select! {
                biased;
                goes_on = self.type_in(monitor, &mut session, &outbox, &received.bytes) => {
                    if !goes_on {
                        break;
                    }
                }
                () = gone_for(&wire, LEFT_TIMEOUT) => break,
            }
        }
        monitor.fds.drop_pending();
        outbox.finish();
        finish(writer).await;
        outbox.close();
        wire.hang_up();
        Ok(())
    }

    /// The same on a console that several share, for as long as the process runs. What is said goes
    /// to `show`, which waits until it can be shown.
    pub(crate) async fn serve_shared(
        self: &Rc<Server>,
        monitor: &Arc<Monitor>,
        inputs: Arc<human::Inputs>,
        show: impl AsyncFn(&[u8]) + 'static,
    ) {
        // Not enlisted: what another user's focus holds back is for nobody at the end.
        let outbox = Arc::new(Outbox::new(false));
        let shown = outbox.clone();
        tokio_uring::spawn(async move {
            while let Some(bytes) = shown.take().await {
                show(&bytes).await;
                shown.written(bytes.len());
            }
        });
        let mut session = human::Session::new(outbox.clone(), false);
        loop {
            match inputs.next().await {
                human::Input::Opened => session.open(),
                human::Input::Focus(focused) => session.focus(focused),
                // What runs is not given up with the one who typed it.
                human::Input::Bytes(bytes) => tokio::select! {
                    biased;
                    goes_on = self.type_in(monitor, &mut session, &outbox, &bytes) => {
                        if !goes_on {
                            return;
                        }
                    }
                    () = inputs.left_for(LEFT_TIMEOUT) => {}
                },
            }
        }
    }

    /// Runs the lines in what was typed. `false`: there is nobody to go on for.
    async fn type_in(
        &self,
        monitor: &Arc<Monitor>,
        session: &mut human::Session,
        outbox: &Outbox,
        bytes: &[u8],
    ) -> bool {
        let mut slice = Slice::begin();
        for &byte in bytes {
            if let Some(line) = session.key(byte) {
                let answer = self.line(monitor, line, session.history()).await;
                session.answered(&answer);
            }
            if self.vmm.exit.is_requested() || !outbox.has_room().await {
                return false;
            }
            slice.end().await;
        }
        true
    }

    /// A line of the human monitor, on a helper thread.
    async fn line(&self, monitor: &Arc<Monitor>, line: String, history: Vec<String>) -> String {
        self.until_the_end().await;
        if line.trim().is_empty() {
            return String::new();
        }
        let (vmm, monitor) = (self.vmm.clone(), monitor.clone());
        let Ok(permit) = self.waiting.clone().try_acquire_owned() else {
            return format!("Error: {WAITING_MAX} commands wait for files or peers already\r\n");
        };
        let work = move || {
            let _permit = permit;
            human::answer(&vmm, &monitor, &line, Some(&history))
        };
        match aside("hmp", work) {
            Ok(answer) => answer.await.unwrap_or_else(|_| "Error: the command crashed\r\n".into()),
            Err(error) => format!("Error: no thread for the command: {}\r\n", reason(&error)),
        }
    }

    /// Talks to one client until it leaves. `pretty`: answers over several lines.
    pub async fn serve(
        self: &Rc<Server>,
        monitor: &Arc<Monitor>,
        socket: OwnedFd,
        pretty: bool,
    ) -> std::io::Result<()> {
        let wire = Arc::new(Wire::new(socket)?);
        let outbox = Arc::new(Outbox::new(pretty));
        let cut = Arc::downgrade(&wire);
        outbox.on_overrun(move || cut.upgrade().iter().for_each(|wire| wire.hang_up()));
        self.vmm.events.subscribe(&outbox);
        self.enlist(&outbox);

        let mut session = Session::new(true);
        outbox.push(&session.greeting());
        let writer = tokio_uring::spawn(write(wire.clone(), outbox.clone()));
        let client =
            Client { server: self.clone(), monitor: monitor.clone(), outbox: outbox.clone() };
        client.read(&wire, &mut session).await;

        monitor.fds.drop_pending();
        outbox.finish();
        finish(writer).await;
        outbox.close();
        wire.hang_up();
        Ok(())
    }

    /// What the process is.
    pub(crate) fn vmm(&self) -> &Arc<Vmm> {
        &self.vmm
    }

    /// Waits until every client has what was meant for it, but not after `end`, and leaves them.
    pub async fn close(&self, end: Instant) {
        let clients: Vec<_> = self.clients.borrow().iter().filter_map(Weak::upgrade).collect();
        let all = async {
            for outbox in &clients {
                outbox.flushed().await;
            }
        };
        let _ = tokio::time::timeout_at(end.into(), all).await;
        clients.iter().for_each(|outbox| outbox.hang_up());
    }

    fn enlist(&self, outbox: &Arc<Outbox>) {
        let mut clients = self.clients.borrow_mut();
        clients.retain(|client| client.strong_count() > 0);
        clients.push(Arc::downgrade(outbox));
    }

    /// The answer, and what goes on once it is on its way.
    async fn execute(&self, monitor: &Arc<Monitor>, job: Job) -> (Message, Held) {
        let Job { command, arguments, id, .. } = job;
        let (answer, held) = match command.run {
            Run::Now(_) => {
                self.until_the_end().await;
                let held = Held::default();
                let answer = command.call_holding(&held, &self.vmm, monitor, &arguments);
                (answer, held)
            }
            Run::Blocking(_) => {
                let turn = self.vmm.turn.clone().lock_owned().await;
                self.help(monitor, command, arguments, turn).await
            }
            Run::Waiting(_) => match self.waiting.clone().try_acquire_owned() {
                Ok(permit) => self.help(monitor, command, arguments, permit).await,
                Err(_) => {
                    let full =
                        format_args!("{WAITING_MAX} commands wait for files or peers already");
                    (Err(Error::generic(full)), Held::default())
                }
            },
        };
        (Job::finish(id, answer), held)
    }

    /// Runs a command on a helper thread. What it may run by, `permit`, goes with it: even if the
    /// client leaves meanwhile, its command is the one being executed.
    async fn help(
        &self,
        monitor: &Arc<Monitor>,
        command: &'static Command,
        arguments: Vec<(String, Value)>,
        permit: impl Send + 'static,
    ) -> (Answer, Held) {
        self.until_the_end().await;
        let (vmm, monitor) = (self.vmm.clone(), monitor.clone());
        let work = move || {
            let (_permit, held) = (permit, Held::default());
            let answer = command.call_holding(&held, &vmm, &monitor, &arguments);
            (answer, held)
        };
        match aside(command.name, work) {
            Ok(answer) => answer.await.unwrap_or_else(|_| (crashed(command.name), Held::default())),
            Err(error) => {
                let reason = reason(&error);
                let none = format_args!("no thread for the command {}: {reason}", command.name);
                (Err(Error::generic(none)), Held::default())
            }
        }
    }

    /// Someone else may have ended the process while a request waited; it stays unanswered.
    async fn until_the_end(&self) {
        if self.vmm.exit.is_requested() {
            std::future::pending::<()>().await;
        }
    }
}

/// The helper thread panicked; its message is on stderr, and the VMM goes on.
fn crashed(name: &str) -> Answer {
    Err(Error::generic(format_args!("internal error: the command {name} crashed")))
}

/// Waits until the client is gone, and `time` more.
async fn gone_for(wire: &Wire, time: Duration) {
    wire.gone().await;
    tokio::time::sleep(time).await;
}

async fn finish(mut writer: JoinHandle<()>) {
    if tokio::time::timeout(FLUSH_TIMEOUT, &mut writer).await.is_err() {
        writer.abort();
    }
}

async fn write(wire: Arc<Wire>, outbox: Arc<Outbox>) {
    while let Some(bytes) = outbox.take().await {
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let Ok(count) = wire.send(rest).await else {
                outbox.close();
                wire.hang_up();
                return;
            };
            outbox.written(count);
            rest = &rest[count..];
        }
    }
}

/// A connection's turn.
struct Slice(Instant);

impl Slice {
    fn begin() -> Slice {
        Slice(Instant::now())
    }

    /// If it is over, lets the others have theirs.
    async fn end(&mut self) {
        if self.0.elapsed() >= SLICE {
            tokio::task::yield_now().await;
            *self = Slice::begin();
        }
    }
}

/// One connection's reader.
#[derive(Clone)]
struct Client {
    server: Rc<Server>,
    monitor: Arc<Monitor>,
    outbox: Arc<Outbox>,
}

/// Something to do, and the descriptors that came with it.
struct Request {
    item: Item,
    fds: Option<Vec<OwnedFd>>,
}

impl Client {
    /// Reads and executes until the client leaves or the process ends.
    async fn read(&self, wire: &Wire, session: &mut Session) {
        let mut queue = None;
        let mut fds = None;
        let mut slice = Slice::begin();
        while let Ok(received) = wire.receive().await {
            slice.end().await;
            if received.bytes.is_empty() {
                break;
            }
            if !received.fds.is_empty() {
                fds = Some(received.fds);
            }
            let mut input = &received.bytes[..];
            while let Some(item) = session.next(&mut input) {
                let request = Request { item, fds: fds.take() };
                let handled = async {
                    if session.oob() {
                        let queue = queue.get_or_insert_with(|| Queue::start(self.clone()));
                        queue.put(self, request).await;
                    } else {
                        self.run(request).await;
                    }
                };
                // What runs is not given up with its request: it has a thread of its own.
                tokio::select! {
                    biased;
                    () = handled => {}
                    () = gone_for(wire, LEFT_TIMEOUT) => return,
                }
                if self.server.vmm.exit.is_requested() || !self.outbox.has_room().await {
                    return;
                }
                slice.end().await;
            }
        }
        // What waits in the queue is thrown away with it.
    }

    async fn run(&self, request: Request) {
        if let Some(fds) = request.fds {
            self.monitor.fds.arrived(fds);
        }
        match request.item {
            Item::Answer(message) => self.outbox.push(&message),
            Item::Negotiated(message) => {
                self.outbox.negotiated();
                self.outbox.push(&message);
            }
            Item::Run(job) => {
                let (message, _held) = self.server.execute(&self.monitor, job).await;
                self.outbox.push(&message);
            }
        }
    }

    /// Out of band: here and now, whoever's turn it is.
    fn overtake(&self, request: Request) {
        if let (Item::Run(job), fds) = (request.item, request.fds) {
            fds.into_iter().for_each(|fds| self.monitor.fds.arrived(fds));
            let answer = job.command.call(&self.server.vmm, &self.monitor, &job.arguments);
            self.outbox.push(&Job::finish(job.id, answer));
        }
    }
}

/// Requests of a connection with out-of-band execution that wait for their turn.
struct Queue {
    slots: Arc<Semaphore>,
    requests: mpsc::UnboundedSender<(Request, OwnedSemaphorePermit)>,
    worker: JoinHandle<()>,
}

impl Queue {
    fn start(client: Client) -> Queue {
        let (requests, mut waiting) = mpsc::unbounded_channel::<(Request, OwnedSemaphorePermit)>();
        let worker = tokio_uring::spawn(async move {
            while let Some((request, slot)) = waiting.recv().await {
                client.run(request).await;
                drop(slot);
            }
        });
        Queue { slots: Arc::new(Semaphore::new(QUEUED_MAX)), requests, worker }
    }

    async fn put(&self, client: &Client, request: Request) {
        if matches!(&request.item, Item::Run(job) if job.oob) {
            client.overtake(request);
            return;
        }
        let slot = self.slots.clone().acquire_owned().await.expect("the semaphore is never closed");
        // The worker ends only with this queue.
        let _ = self.requests.send((request, slot));
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        self.worker.abort();
    }
}
