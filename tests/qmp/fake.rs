//! The real server with a machine that only keeps its run state.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use godwit::chardev::{Backend, Chardev};
use godwit::config::{self, Actions, ChardevBackend, Socket, SocketAddress, SocketRole};
use godwit::machine::{ContRefused, Error, RunState, StopCause, VcpuInfo};
use godwit::memory;
use godwit::qmp::{Monitor, Server};
use godwit::vmm::{Controllable, Events, Exit, Vmm};
use serde_json::{Value, json};

struct FakeGuest {
    state: Mutex<RunState>,
    events: Arc<Events>,
}

impl Controllable for FakeGuest {
    fn run_state(&self) -> RunState {
        *self.state.lock().unwrap()
    }

    fn stop(&self) -> Result<(), Error> {
        if std::mem::replace(&mut *self.state.lock().unwrap(), RunState::Paused).is_running() {
            self.events.emit("STOP", Value::Null);
        }
        Ok(())
    }

    fn cont(&self) -> Result<(), ContRefused> {
        let mut state = self.state.lock().unwrap();
        if state.needs_reset() {
            return Err(ContRefused::NeedsReset);
        }
        if !std::mem::replace(&mut *state, RunState::Running).is_running() {
            self.events.emit("RESUME", Value::Null);
        }
        Ok(())
    }

    fn reset(&self) -> Result<(), Error> {
        let cause = StopCause::HostQmpSystemReset;
        self.events.emit("RESET", json!({"guest": cause.by_guest(), "reason": cause.name()}));
        Ok(())
    }

    fn inject_nmi(&self) -> Result<(), Error> {
        Ok(())
    }

    fn powerdown(&self) {
        self.events.emit("POWERDOWN", Value::Null);
    }

    fn vcpus(&self) -> Vec<VcpuInfo> {
        vec![VcpuInfo { index: 0, position: Default::default(), thread_id: 1 }]
    }

    fn ram_bytes(&self) -> u64 {
        64 << 20
    }

    fn read_physical(&self, _address: u64, bytes: &mut [u8]) -> Result<(), memory::Error> {
        bytes.fill(0);
        Ok(())
    }

    fn translate(&self, _index: u32, addresses: &[u64]) -> Result<Vec<Option<u64>>, Error> {
        Ok(addresses.iter().copied().map(Some).collect())
    }

    fn actions(&self) -> Actions {
        Actions::default()
    }

    fn set_actions(&self, _actions: Actions) {}
}

/// Serves on `DIR/vm0`, `DIR/vm1` … until a client says quit.
pub(crate) fn start(dir: &Path, monitors: usize) {
    let paths: Vec<PathBuf> = (0..monitors).map(|n| dir.join(format!("vm{n}"))).collect();
    let (listening, wait) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        tokio_uring::start(async move {
            let (events, exit) = (Arc::new(Events::new()), Arc::new(Exit::default()));
            let guest =
                FakeGuest { state: Mutex::new(RunState::Prelaunch), events: events.clone() };
            let vmm = Arc::new(Vmm::new(Arc::new(guest), events, exit));
            let server = Server::new(vmm.clone());
            for (n, path) in paths.iter().enumerate() {
                let (server, chardev) = (server.clone(), listener(n, path).await);
                tokio_uring::spawn(async move {
                    let monitor = Arc::new(Monitor { label: chardev.id, ..Monitor::default() });
                    let Backend::Server(mut listener) = chardev.backend else { unreachable!() };
                    loop {
                        let socket = listener.accept().await;
                        server.serve(&monitor, socket, false).await.unwrap();
                    }
                });
            }
            listening.send(()).unwrap();
            vmm.exit.requested().await;
            server.close(Instant::now() + Duration::from_secs(2)).await;
        });
    });
    wait.recv().unwrap();
}

async fn listener(n: usize, path: &Path) -> Chardev {
    let address = SocketAddress::Unix { path: path.to_owned() };
    let backend =
        ChardevBackend::Socket(Socket { address, role: SocketRole::Server { wait: false } });
    Chardev::open(&config::Chardev { id: format!("mon{n}"), backend, mux: false, log: None })
        .await
        .unwrap()
}
