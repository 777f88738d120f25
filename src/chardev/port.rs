//! A port's connection, in both directions.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileTypeExt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{AddressFamily, Shutdown, SocketFlags, SocketType, socketpair};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::{Notify, oneshot};
use tokio::task::JoinHandle;
use tokio_uring::fs::File as RingFile;

use super::device::{Backend, Chardev, Files, Status};
use super::line::PortLine;
use super::mux::Mux;
use super::output::{Output, Sink, To};

/// Bytes read at a time; the guest's port takes 16.
const INPUT_BYTES: usize = 256;
/// Between two looks at whether a client whose input waits is still there, and how many of them find
/// it gone before it is given up.
const LOOK_AGAIN: Duration = Duration::from_millis(100);
const GONE_LOOKS: u32 = 5;

/// The control plane's half of a serial port; the other half is the [`Sink`] in the device.
pub(crate) struct Port {
    backend: Backend,
    output: Arc<Output>,
    /// Of `output`, where that is a file.
    connection: u64,
    status: Arc<Status>,
}

/// The way into the guest: takes as many bytes as there is room for.
pub(super) type Receiver<'a> = dyn Fn(&[u8]) -> usize + 'a;

impl Port {
    /// Connects a port to `chardev`. Output is accepted from here on, input once [`Port::run`]
    /// runs. What is needed until a client comes is had then.
    pub(crate) fn new(chardev: Chardev) -> io::Result<(Sink, Port)> {
        let (output, log, port) = Port::open(chardev)?;
        Ok((Sink::new(output, log), port))
    }

    /// The same for a port that is told who is at the other end, and how much there is room for.
    pub(crate) fn with_line(chardev: Chardev) -> io::Result<(Arc<PortLine>, Port)> {
        let (output, log, port) = Port::open(chardev)?;
        if let Backend::Null = port.backend {
            output.connect(To::Nowhere);
        }
        Ok((PortLine::new(output, log), port))
    }

    /// The same for a port that several share; `escape` is the key that is for the device itself.
    pub(crate) fn shared(chardev: Chardev, escape: u8) -> io::Result<(Arc<Mux>, Port)> {
        let (output, log, port) = Port::open(chardev)?;
        if let Backend::Null = port.backend {
            output.connect(To::Nowhere);
        }
        Ok((Mux::new(output, log, escape), port))
    }

    /// [`Port::run`] for such a one.
    pub(crate) async fn run_shared(self, mux: Arc<Mux>) {
        self.run(&|bytes| mux.receive(bytes), &mux.go_on).await;
    }

    fn open(chardev: Chardev) -> io::Result<(Arc<Output>, Option<File>, Port)> {
        let status = chardev.status();
        status.used.store(true, Ordering::Relaxed);
        let output = Arc::new(Output::default());
        let connection = match &chardev.backend {
            Backend::Files(files) => output.connect(to_file(files)?),
            _ => 0,
        };
        let port = Port { backend: chardev.backend, output: output.clone(), connection, status };
        Ok((output, chardev.log, port))
    }

    /// [`Port::run`] until another character device comes to stand behind the port, and so on. What
    /// the last one had not read is lost, and its connection ends.
    pub(crate) async fn run_changing(
        mut self,
        receive: &Receiver<'_>,
        room: &Notify,
        changes: &mut UnboundedReceiver<Change>,
    ) {
        let output = self.output.clone();
        loop {
            let last = self.status.clone();
            let run = async {
                self.run(receive, room).await;
                std::future::pending::<()>().await;
            };
            let change = tokio::select! {
                () = run => return,
                change = changes.recv() => change,
            };
            let Some(Change { chardev, done }) = change else { return };
            last.cut();
            last.disconnect();
            output.disconnect();
            let connection = match &chardev.backend {
                Backend::Files(files) => match to_file(files) {
                    Ok(to) => output.connect(to),
                    Err(error) => {
                        say!("godwit: character device {}: {error}", chardev.id);
                        0
                    }
                },
                _ => 0,
            };
            let status = chardev.status();
            status.used.store(true, Ordering::Relaxed);
            self = Port { backend: chardev.backend, output: output.clone(), connection, status };
            // Who asked may be gone.
            let _ = done.send(());
        }
    }

    /// [`Port::run`] for a port with a line.
    pub(crate) async fn run_line(self, line: Arc<PortLine>) {
        self.run(&|bytes| line.receive(bytes), &line.room).await;
    }

    /// Carries bytes for as long as the process runs. `room` is notified when the guest has room
    /// for input again.
    pub(crate) async fn run(self, receive: &Receiver<'_>, room: &Notify) {
        let Port { backend, output, connection, status } = self;
        match backend {
            Backend::Null => {}
            Backend::Files(Files { input, output: file, terminal, pty }) => {
                let writer = RingFile::from_std(file);
                let draining = tokio_uring::spawn(drain(output, connection, writer));
                if let Some(input) = input {
                    feed(input, None, receive, room).await;
                }
                let _ = draining.await;
                drop((terminal, pty));
            }
            Backend::Server(mut listener) => loop {
                let client = listener.accept().await;
                report(converse(client, &output, &status, receive, room).await);
            },
            Backend::Client(mut client) => {
                while let Some(socket) = client.next().await {
                    report(converse(socket, &output, &status, receive, room).await);
                }
            }
        }
    }
}

/// Another character device for a port.
pub(crate) struct Change {
    pub(crate) chardev: Chardev,
    /// It stands behind the port.
    pub(crate) done: oneshot::Sender<()>,
}

fn to_file(files: &Files) -> io::Result<To> {
    let file = files.output.try_clone()?;
    let kind = file.metadata()?.file_type();
    let stream = kind.is_fifo() || kind.is_char_device() || kind.is_socket();
    let file = Arc::new(file);
    Ok(if stream { To::Stream(file) } else { To::Disk(file) })
}

/// One connection in trouble is no reason to have no others.
fn report(ended: io::Result<()>) {
    if let Err(error) = ended {
        say!("godwit: a port of the guest: {error}");
    }
}

/// One connection, from its first byte to its last.
async fn converse(
    socket: OwnedFd,
    output: &Arc<Output>,
    status: &Status,
    receive: &Receiver<'_>,
    room: &Notify,
) -> io::Result<()> {
    // The ring waits for a socket only if the socket itself would.
    rustix::io::ioctl_fionbio(&socket, false)?;
    let writer = RingFile::from_std(File::from(socket.try_clone()?));
    let shared = Arc::new(File::from(socket.try_clone()?));
    let input = File::from(socket.try_clone()?);
    let connection = output.connect(To::Socket(shared));
    status.connect(&socket);
    let draining = tokio_uring::spawn(drain(output.clone(), connection, writer));
    feed(input, Some(&socket), receive, room).await;
    status.disconnect();
    output.disconnect();
    // A write that waits for this reader ends with an error.
    let _ = rustix::net::shutdown(&socket, Shutdown::Both);
    let _ = draining.await;
    Ok(())
}

/// Brings input to the guest until it ends; what a client that is gone had said and the guest does
/// not take keeps no other client out.
async fn feed(input: File, socket: Option<&OwnedFd>, receive: &Receiver<'_>, room: &Notify) {
    let on_disk = is_on_disk(&input);
    let input = RingFile::from_std(input);
    let mut buffer = vec![0; INPUT_BYTES];
    let mut position = 0;
    'input: loop {
        let (result, filled) = input.read_at(buffer, position).await;
        buffer = filled;
        let count = match result {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(_) => break,
        };
        position += if on_disk { count as u64 } else { 0 };
        let mut rest = &buffer[..count];
        while !rest.is_empty() {
            let taken = receive(rest);
            if taken == 0 {
                tokio::select! {
                    biased;
                    () = room.notified() => {}
                    () = left(socket) => break 'input,
                }
            }
            rest = &rest[taken..];
        }
    }
    // An error here says what is known already: nothing more comes.
    let _ = input.close().await;
}

/// Waits until a client has been gone for a while.
async fn left(socket: Option<&OwnedFd>) {
    let Some(socket) = socket else { return std::future::pending().await };
    let is_gone = || {
        let mut polled = [PollFd::new(socket, PollFlags::empty())];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        poll(&mut polled, Some(&now)).is_ok_and(|count| count > 0)
    };
    let mut looks = 0;
    while looks < GONE_LOOKS {
        tokio::time::sleep(LOOK_AGAIN).await;
        looks = if is_gone() { looks + 1 } else { 0 };
    }
}

/// Writes what vCPU threads could not write at once.
async fn drain(output: Arc<Output>, connection: u64, to: RingFile) {
    while let Some(mut bytes) = output.take(connection).await {
        loop {
            let (result, buffer) = to.write_at(bytes, 0).submit().await;
            bytes = buffer;
            match result {
                Ok(count @ 1..) if count < bytes.len() => drop(bytes.drain(..count)),
                Ok(0) if !bytes.is_empty() => bytes.clear(),
                Ok(_) => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => {
                    bytes.clear();
                    break;
                }
            }
        }
        output.written(connection);
    }
    let _ = to.close().await;
}

/// Makes a socket of a pair of files, for a monitor on a terminal or on the standard input and
/// output. The task ends when the other end of the socket was closed and everything it sent is
/// written.
pub(crate) fn bridge(files: Files) -> io::Result<(OwnedFd, JoinHandle<()>)> {
    let Files { input, output, terminal, pty } = files;
    let (ours, theirs) =
        socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    let end = File::from(ours);
    let to_monitor = RingFile::from_std(end.try_clone()?);
    let output = RingFile::from_std(output);
    if let Some(input) = input {
        tokio_uring::spawn(carry(input, to_monitor));
    }
    let written = tokio_uring::spawn(async move {
        carry(end, output).await;
        drop((terminal, pty));
    });
    Ok((theirs, written))
}

/// Whether reads have a position. Sockets refuse any but zero.
fn is_on_disk(file: &File) -> bool {
    file.metadata().is_ok_and(|metadata| metadata.is_file())
}

/// Copies until the source ends or the target is gone.
async fn carry(from: File, to: RingFile) {
    let on_disk = is_on_disk(&from);
    let from = RingFile::from_std(from);
    let mut buffer = vec![0; 4096];
    let mut position = 0;
    loop {
        let (result, filled) = from.read_at(buffer, position).await;
        let Ok(count @ 1..) = result else { return };
        position += if on_disk { count as u64 } else { 0 };
        buffer = filled;
        let mut rest = buffer[..count].to_vec();
        while !rest.is_empty() {
            let (result, sent) = to.write_at(rest, 0).submit().await;
            let Ok(count) = result else { return };
            rest = sent;
            rest.drain(..count);
        }
    }
}
