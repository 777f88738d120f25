//! The machine: QEMU's `microvm` on KVM.
//!
//! ```text
//!  control plane ──► Machine: run state, stop, cont, reset, save, load
//!                       │ opens and closes the Gate, kicks
//!                       ▼
//!  vCPU threads ──► KVM_RUN ──► Board: ports and MMIO ──► serial, fw_cfg …
//!        │
//!        └── the guest wants a reset, or fails ──► a thread that calls Machine
//! ```

mod board;
mod build;
mod cpus;
mod error;
mod event;
mod gate;
mod global_state;
mod life_cycle;
mod limit;
mod limits;
pub mod load;
pub mod moment;
pub(crate) mod objects;
mod put_off;
mod run_state;
pub mod save;
mod throttle;
mod translate;

pub(crate) use board::PARTS;
pub use error::{ContRefused, Error};
pub(crate) use event::Panic;
pub use event::{Event, StopCause};
pub(crate) use limits::{DirtyLimit, LimitCost};
pub(crate) use moment::{Moment, Request, Ruling};
pub(crate) use objects::{Object, ObjectType, object_types};
pub use run_state::RunState;

use crate::arch::x86_64::boot::Images;
use crate::arch::x86_64::topology::Position;
use crate::config::Config;
use crate::devices::virtio::Balloon;
use crate::devices::virtual_clock::VirtualClock;
use crate::devices::{BalloonControl, Device, Lines, Networks};
use crate::kvm::{DirtyLog, Vm};
use crate::memory::GuestRam;
use cpus::{Cpus, Threads};
use put_off::{Hold, PutOff};
use std::io::Write;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, Once, PoisonError};

/// What a machine is connected to when it is built.
pub struct Outside {
    /// Where the serial port's output goes. `None` with no serial port, or to lose it. `write` is
    /// called on vCPU threads with one byte at a time, or a few; it should not block for long.
    pub serial: Option<Box<dyn Write + Send>>,
    /// The other ends of [`Config::lines`]; one that is missing is a line with nobody there.
    pub lines: Lines,
    /// What network cards are connected to.
    pub networks: Arc<dyn Networks>,
    /// Called for each event, in order, on whichever thread caused it, while the machine is busy:
    /// it may ask for the run state, but must not stop, start, save or load.
    pub events: Box<dyn Fn(Event) + Send + Sync>,
}

/// A vCPU as others see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VcpuInfo {
    pub index: u32,
    pub position: Position,
    /// Kernel thread id (`gettid`).
    pub thread_id: i32,
}

/// One virtual machine. All methods may be called from any thread but a vCPU's; those that stop
/// vCPUs wait until all stand still.
pub struct Machine {
    config: Config,
    cpus: Arc<Cpus>,
    infos: Vec<VcpuInfo>,
    events: Arc<dyn Fn(Event) + Send + Sync>,
    /// Copies of what [`Control`] says, which can be read at any time.
    state: AtomicU8,
    moment: AtomicU8,
    control: Mutex<Control>,
    /// What the guest, or KVM, wants and did not get yet.
    vcpu_requests: Arc<AtomicUsize>,
    /// A request of theirs was carried out.
    request_done: Condvar,
    clock: Arc<VirtualClock>,
    threads: Mutex<Threads>,
    throttle: Mutex<throttle::Throttle>,
    limits: Mutex<limits::Limits>,
    /// What happens after a guest's reset, changed by `set-action`.
    actions: Mutex<crate::config::Actions>,
    /// The guest has run here.
    started: Once,
}

/// What only one caller at a time may touch.
struct Control {
    state: RunState,
    gone: bool,
    /// What the guest starts from, for a reset.
    images: Option<Images>,
    /// Somebody reads the guest, which must stay as it is.
    hold: Option<Hold>,
    /// What was put off meanwhile, each once.
    put_off: Vec<PutOff>,
}

impl Machine {
    pub fn config(&self) -> &Config {
        &self.config
    }

    pub fn run_state(&self) -> RunState {
        RunState::ALL[usize::from(self.state.load(Ordering::Acquire))]
    }

    /// What the machine is in the middle of.
    pub fn moment(&self) -> Moment {
        Moment::ALL[usize::from(self.moment.load(Ordering::Acquire))]
    }

    /// An NMI to every vCPU whose LINT1 takes it.
    pub fn inject_nmi(&self) -> Result<(), Error> {
        let control = self.control();
        if let Ruling::Refused(why) = moment::rule(Request::Nmi, control.moment()) {
            return Err(Error::Moment(why));
        }
        if !control.state.is_running() {
            for vcpu in self.cpus.vcpus.iter() {
                vcpu.lock().external_nmi()?;
            }
            return Ok(());
        }
        for (index, requests) in self.cpus.gate.requests.iter().enumerate() {
            requests.add(gate::request::NMI);
            self.kick(index);
        }
        Ok(())
    }

    /// `system_powerdown`: what the guest makes of it, if it has a power button, is its own affair.
    pub(crate) fn powerdown(&self) {
        (self.events)(Event::Powerdown);
        self.cpus.board.power_button();
    }

    pub fn vcpus(&self) -> &[VcpuInfo] {
        &self.infos
    }

    pub fn ram(&self) -> &GuestRam {
        self.vm().ram()
    }

    /// The first device of this type on the board.
    pub fn device<D: Device>(&self) -> Option<&D> {
        self.cpus.board.device()
    }

    /// Why its guest can be neither migrated nor dumped while it runs.
    pub(crate) fn keeps_guest(&self) -> Option<&'static str> {
        self.cpus.board.keeps_guest()
    }

    /// The balloon, if the machine has one.
    pub(crate) fn balloon(&self) -> Option<&BalloonControl> {
        self.device::<Balloon>().map(Balloon::control)
    }

    /// The VM in the kernel.
    pub fn vm(&self) -> &Arc<Vm> {
        &self.cpus.vm
    }

    /// Switches the dirty log on. One at a time: this waits until the one there is has ended.
    pub fn start_dirty_log(&self) -> Result<DirtyLog, Error> {
        Ok(DirtyLog::start(self.vm().clone())?)
    }

    /// What happens at the guest's own reset, shutdown and panic (`set-action`).
    pub fn actions(&self) -> crate::config::Actions {
        *self.actions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn set_actions(&self, actions: crate::config::Actions) {
        *self.actions.lock().unwrap_or_else(PoisonError::into_inner) = actions;
    }

    /// QEMU's virtual clock, ns: stands still while the guest does.
    pub fn virtual_clock_ns(&self) -> i64 {
        self.clock.now()
    }

    fn kick(&self, index: usize) {
        self.cpus.vcpus[index].kick();
        self.threads().signals().send(index);
    }

    fn control(&self) -> MutexGuard<'_, Control> {
        self.control.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn threads(&self) -> MutexGuard<'_, Threads> {
        self.threads.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.quit();
    }
}

impl Control {
    fn moment(&self) -> Moment {
        match self.hold {
            Some(Hold::Dump) => Moment::Dumping,
            Some(Hold::HandOver { .. }) => Moment::HandingOver,
            None => Moment::of(self.state),
        }
    }
}
