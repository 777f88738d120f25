//! One network as its card sees it, whatever it is made of.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use super::bell::Bell;
use super::dgram::Dgram;
use super::stream::Stream;
use super::tap::Tap;
use super::user::Passt;
use crate::config::{self, Offloads};
use crate::devices::{Card, HEADER_BYTES, Network};
use crate::io::socket_file::SocketFile;

pub(super) struct Netdev {
    id: String,
    port: Mutex<Port>,
    offloads: Offloads,
    kind: &'static str,
    /// What it is connected to, for people.
    info: Mutex<String>,
    gone: AtomicBool,
    link_down: AtomicBool,
    card: OnceLock<Arc<Card>>,
    /// Wakes the thread that watches connections.
    bell: Option<Arc<Bell>>,
    /// The name that it listens under.
    file: Mutex<Option<SocketFile>>,
    /// Ends when it is dropped.
    passt: Mutex<Option<Passt>>,
}

pub(super) enum Port {
    Tap(Tap),
    Stream(Stream),
    Dgram(Dgram),
    /// Taken away.
    None,
}

/// What a network is made of.
pub(super) struct Parts {
    pub port: Port,
    pub offloads: Offloads,
    /// What it is connected to, for people.
    pub info: String,
    pub bell: Option<Arc<Bell>>,
    /// The name that it listens under.
    pub file: Option<SocketFile>,
    pub passt: Option<Passt>,
}

impl Netdev {
    /// A network of these parts. Its bell is there where a thread watches its connections.
    pub(super) fn new(config: &config::Netdev, parts: Parts) -> Netdev {
        let Parts { port, offloads, info, bell, file, passt } = parts;
        Netdev {
            id: config.id.clone(),
            port: Mutex::new(port),
            offloads,
            kind: config.backend.type_name(),
            info: Mutex::new(info),
            gone: AtomicBool::new(false),
            link_down: AtomicBool::new(false),
            card: OnceLock::new(),
            bell,
            file: Mutex::new(file),
            passt: Mutex::new(passt),
        }
    }

    pub(super) fn id(&self) -> &str {
        &self.id
    }

    pub(super) fn offloads(&self) -> Offloads {
        self.offloads
    }

    pub(super) fn describe(&self) -> String {
        let info = self.info.lock().unwrap_or_else(PoisonError::into_inner);
        let comma = if info.is_empty() { "" } else { "," };
        format!("{}: index=0,type={}{comma}{info}", self.id, self.kind)
    }

    pub(super) fn set_info(&self, info: String) {
        *self.info.lock().unwrap_or_else(PoisonError::into_inner) = info;
    }

    pub(super) fn plug(&self, card: &Arc<Card>) {
        let _ = self.card.set(card.clone());
        // Whoever read for want of a card stops.
        self.ring();
    }

    pub(super) fn has_card(&self) -> bool {
        self.card.get().is_some()
    }

    fn wake(&self) {
        if let Some(card) = self.card.get() {
            card.wake();
        }
    }

    fn ring(&self) {
        if let Some(bell) = &self.bell {
            bell.ring();
        }
    }

    pub(super) fn set_link(&self, up: bool) {
        self.link_down.store(!up, Ordering::SeqCst);
    }

    /// For good: names, descriptors and programs are given back at once, whoever has this still.
    pub(super) fn close(&self) {
        self.gone.store(true, Ordering::SeqCst);
        match std::mem::replace(&mut *self.port(), Port::None) {
            Port::Stream(mut stream) => stream.hang_up(),
            Port::Dgram(dgram) => dgram.close(),
            Port::Tap(_) | Port::None => {}
        }
        self.end_program();
        drop(self.file.lock().unwrap_or_else(PoisonError::into_inner).take());
        self.ring();
        self.wake();
    }

    /// Ends the program that makes this network, and waits until it is gone.
    pub(super) fn end_program(&self) {
        drop(self.passt.lock().unwrap_or_else(PoisonError::into_inner).take());
    }

    /// A connection was made.
    pub(super) fn connected(&self, socket: Arc<OwnedFd>) {
        if let Port::Stream(stream) = &mut *self.port() {
            stream.connect(socket);
        }
        self.wake();
    }

    /// It has ended.
    pub(super) fn disconnected(&self) {
        if let Port::Stream(stream) = &mut *self.port() {
            stream.disconnect();
        }
        self.wake();
    }

    /// There is no card that would read.
    pub(super) fn discard(&self) {
        if let Port::Stream(stream) = &mut *self.port() {
            stream.discard();
        }
    }

    /// Sends a frame of ours beside the guest's; it may be lost.
    pub(super) fn send_own(&self, frame: &[u8]) {
        self.send(&[0; HEADER_BYTES], frame);
    }

    fn port(&self) -> MutexGuard<'_, Port> {
        self.port.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Netdev {
    fn drop(&mut self) {
        self.gone.store(true, Ordering::SeqCst);
        self.ring();
    }
}

impl Network for Netdev {
    fn send(&self, header: &[u8; HEADER_BYTES], frame: &[u8]) -> bool {
        if self.link_down.load(Ordering::SeqCst) {
            return true;
        }
        match &mut *self.port() {
            Port::Tap(tap) => tap.send(header, frame),
            Port::Stream(stream) => stream.send(frame),
            Port::Dgram(dgram) => dgram.send(frame),
            Port::None => true,
        }
    }

    fn receive(&self, into: &mut [u8]) -> Option<usize> {
        let received = match &mut *self.port() {
            Port::Tap(tap) => tap.receive(into),
            Port::Stream(stream) => {
                stream.flush();
                stream.receive(into)
            }
            Port::Dgram(dgram) => dgram.receive(into),
            Port::None => None,
        };
        received.filter(|_| !self.link_down.load(Ordering::SeqCst))
    }

    fn wait(&self) -> Option<Arc<OwnedFd>> {
        match &*self.port() {
            Port::Tap(tap) => tap.wait(),
            Port::Stream(stream) => stream.wait(),
            Port::Dgram(dgram) => dgram.wait(),
            Port::None => None,
        }
    }

    fn has_unsent(&self) -> bool {
        matches!(&*self.port(), Port::Stream(stream) if stream.has_unsent())
    }

    fn set_offloads(&self, flags: u32) {
        if let Port::Tap(tap) = &*self.port() {
            tap.set_offloads(flags);
        }
    }

    fn is_gone(&self) -> bool {
        self.gone.load(Ordering::SeqCst)
    }
}
