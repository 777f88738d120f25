//! Opens what a network is made of: a tap device, sockets, passt.

use std::io;
use std::sync::Arc;

use super::bell::Bell;
use super::descriptor;
use super::dgram::Dgram;
use super::netdev::{Netdev, Parts, Port};
use super::stream::Stream;
use super::tap::Tap;
use super::user::Passt;
use super::watch::Watch;
use super::{Error, Tell};
use crate::chardev::describe;
use crate::config::{self, DgramAddress, NetBackend, NetRole, Offloads, SocketAddress};

/// Opens a network, and starts the thread that watches its connections, where it has any.
pub(super) fn open(config: &config::Netdev, tell: Tell) -> Result<Arc<Netdev>, Error> {
    let id = &config.id;
    let failed = |what: String| {
        let id = id.clone();
        move |source: io::Error| Error::Open { id, what, source }
    };
    let (mut offloads, mut watch, mut passt) = (Offloads::default(), None, None);
    let (mut info, mut name) = (String::new(), None);
    let port = match &config.backend {
        NetBackend::Tap(tap) => {
            let name = tap.ifname.clone().unwrap_or_default();
            let tap = Tap::open(tap, config.offloads).map_err(failed(format!("tap {name}")))?;
            offloads = tap.offloads();
            info = format!("ifname={}", tap.name());
            Port::Tap(tap)
        }
        NetBackend::Stream { address, role } => {
            let what = describe(address);
            watch = Some(match role {
                NetRole::Server => {
                    let (watch, file) = Watch::listen(address).map_err(failed(what))?;
                    name = file;
                    watch
                }
                NetRole::Client { .. } if matches!(address, SocketAddress::Fd(_)) => {
                    let SocketAddress::Fd(number) = address else { unreachable!() };
                    Watch::Socket(descriptor::stream(*number).map_err(failed(what))?)
                }
                NetRole::Client { reconnect_ms } => Watch::connect(address, *reconnect_ms),
            });
            Port::Stream(Stream::new(id))
        }
        NetBackend::Socket(number) => {
            let what = || failed(format!("fd:{number}"));
            if descriptor::has_datagrams(*number).map_err(what())? {
                let dgram = Dgram::open(id, Some(&DgramAddress::Fd(*number)), None);
                Port::Dgram(dgram.map_err(what())?)
            } else {
                let socket = descriptor::stream(*number).map_err(what())?;
                watch = Some(Watch::Socket(socket));
                Port::Stream(Stream::new(id))
            }
        }
        NetBackend::Dgram { local, remote } => {
            let dgram = Dgram::open(id, local.as_ref(), remote.as_ref());
            Port::Dgram(dgram.map_err(failed("datagrams".into()))?)
        }
        NetBackend::User(user) => {
            let (program, socket) = Passt::start(id, user)?;
            passt = Some(program);
            watch = Some(Watch::Program(socket));
            Port::Stream(Stream::new(id))
        }
    };
    let bell = watch.as_ref().map(|_| Bell::new().map(Arc::new)).transpose();
    let bell = bell.map_err(failed("connections".into()))?;
    let parts = Parts { port, offloads, info, bell: bell.clone(), file: name, passt };
    let netdev = Arc::new(Netdev::new(config, parts));
    if let (Some(watch), Some(bell)) = (watch, bell) {
        let ours = Arc::downgrade(&netdev);
        watch.start(ours, bell, tell).map_err(failed("connections".into()))?;
    }
    Ok(netdev)
}
