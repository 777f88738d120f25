//! Serves clients: sockets in, commands out, one command at a time over all monitors.
//!
//! Each connection has a task that reads and one that writes. Without out-of-band execution the
//! reader runs each command before it looks for the next, so that what a client sent too early
//! stays in its socket. With it, up to [`QUEUED_MAX`] requests wait in a queue that a third task
//! works off, and `exec-oob` overtakes them.

use std::cell::RefCell;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinHandle;

use super::commands::{Answer, Run};
use super::error::Error;
use super::outbox::Outbox;
use super::session::{Item, Job, Message, Session};
use super::vmm::{Monitor, Vmm};
use super::wire::Wire;

/// Requests that wait in a connection's queue or are being executed, with out-of-band execution.
const QUEUED_MAX: usize = 8;
/// How long answers may take to leave after the client said that it sends nothing more, or at the
/// end of the process.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);

/// Every connection of every monitor.
pub struct Server {
    vmm: Arc<Vmm>,
    /// Held while a command runs. Waiting is in order of arrival, which makes it a round over the
    /// monitors.
    turn: Arc<Mutex<()>>,
    clients: RefCell<Vec<Weak<Outbox>>>,
}

impl Server {
    pub fn new(vmm: Arc<Vmm>) -> Rc<Server> {
        Rc::new(Server { vmm, turn: Arc::default(), clients: RefCell::default() })
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
        self.vmm.events.subscribe(Arc::downgrade(&outbox));
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

    /// Waits until every client has what was meant for it, for a while, and leaves them.
    pub async fn close(&self) {
        let clients: Vec<_> = self.clients.borrow().iter().filter_map(Weak::upgrade).collect();
        let all = async {
            for outbox in &clients {
                outbox.flushed().await;
            }
        };
        let _ = tokio::time::timeout(FLUSH_TIMEOUT, all).await;
        clients.iter().for_each(|outbox| outbox.hang_up());
    }

    fn enlist(&self, outbox: &Arc<Outbox>) {
        let mut clients = self.clients.borrow_mut();
        clients.retain(|client| client.strong_count() > 0);
        clients.push(Arc::downgrade(outbox));
    }

    async fn execute(&self, monitor: &Arc<Monitor>, job: Job) -> Message {
        let turn = self.turn.clone().lock_owned().await;
        // Someone else may have ended the process while this one waited; it stays unanswered.
        if self.vmm.exit.is_requested() {
            std::future::pending::<()>().await;
        }
        let Job { command, arguments, id, .. } = job;
        let answer = match command.run {
            Run::Now(_) => command.call(&self.vmm, monitor, &arguments),
            Run::Blocking(_) => {
                let (vmm, monitor) = (self.vmm.clone(), monitor.clone());
                let work = move || {
                    // Even if the client leaves meanwhile, its command is the one being executed.
                    let _turn = turn;
                    command.call(&vmm, &monitor, &arguments)
                };
                tokio::task::spawn_blocking(work).await.unwrap_or_else(|_| crashed(command.name))
            }
        };
        Job::finish(id, answer)
    }
}

/// The helper thread panicked; its message is on stderr, and the VMM goes on.
fn crashed(name: &str) -> Answer {
    Err(Error::generic(format_args!("internal error: the command {name} crashed")))
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
        while let Ok(received) = wire.receive().await {
            if received.bytes.is_empty() {
                break;
            }
            if !received.fds.is_empty() {
                fds = Some(received.fds);
            }
            let mut input = &received.bytes[..];
            while let Some(item) = session.next(&mut input) {
                let request = Request { item, fds: fds.take() };
                if session.oob() {
                    queue
                        .get_or_insert_with(|| Queue::start(self.clone()))
                        .put(self, request)
                        .await;
                } else {
                    self.run(request).await;
                }
                if self.server.vmm.exit.is_requested() || !self.outbox.has_room().await {
                    return;
                }
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
                let message = self.server.execute(&self.monitor, job).await;
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
