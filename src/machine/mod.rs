//! The machine: QEMU's `microvm` (acpi=off) on KVM.
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
pub mod load;
mod port;
mod run_state;
pub mod save;
mod saved;
mod state;
mod throttle;
mod translate;

pub use crate::arch::x86_64::boot::BootError;
pub use error::{ContRefused, Error};
pub use event::{Event, Panic, StopCause};
pub use run_state::RunState;
pub use saved::{LoadReport, SavedState};

pub use crate::kvm::monotonic_ns;

use crate::arch::x86_64::boot::Images;
use crate::config::{Config, PanicAction, RebootAction};
use crate::devices::vmcoreinfo::VmCoreInfoState;
use crate::kvm::{self, DirtyLog, Vm};
use crate::memory::GuestRam;
use cpus::{Cpus, Threads, Wish};
use kvm_bindings::kvm_pit_state2;
use std::io::Write;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, Once, PoisonError};

/// What a machine is connected to when it is built.
pub struct Outside {
    /// Where the serial port's output goes. `None` with no serial port, or to lose it. `write` is
    /// called on vCPU threads with one byte at a time, or a few; it should not block for long.
    pub serial: Option<Box<dyn Write + Send>>,
    /// Called for each event, in order, on whichever thread caused it, while the machine is busy:
    /// it may ask for the run state, but must not stop, start, save or load.
    pub events: Box<dyn Fn(Event) + Send + Sync>,
}

/// A vCPU as others see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VcpuInfo {
    pub index: u32,
    /// Kernel thread id (`gettid`).
    pub thread_id: i32,
}

/// One virtual machine. All methods may be called from any thread but a vCPU's; those that stop
/// vCPUs wait until all stand still.
pub struct Machine {
    config: Config,
    cpus: Arc<Cpus>,
    infos: Vec<VcpuInfo>,
    events: Box<dyn Fn(Event) + Send + Sync>,
    /// Copy of [`Control::state`] that can be read at any time.
    state: AtomicU8,
    control: Mutex<Control>,
    /// The guest is no longer frozen.
    thawed: Condvar,
    power_on: build::PowerOn,
    threads: Mutex<Threads>,
    throttle: Mutex<throttle::Throttle>,
    /// What happens after a guest's reset, changed by `set-action`.
    actions: Mutex<crate::config::Actions>,
    /// The guest has run here.
    started: Once,
}

/// What only one caller at a time may touch.
struct Control {
    state: RunState,
    /// The virtual clock: its value when it last stood still, and since when it runs.
    virtual_ns: i64,
    running_since: Option<i64>,
    /// Guest time of a guest that stood still, put back when it goes on. `None` before the first
    /// start.
    stopped_time: Option<StoppedTime>,
    gone: bool,
    /// A dump reads memory and vCPUs of the guest, which stands still.
    frozen: bool,
    /// How many wait for that to end, to do with the guest what must happen before it runs.
    waiting: usize,
    /// What the guest starts from, for a reset.
    images: Option<Images>,
}

#[derive(Clone, Copy)]
struct StoppedTime {
    /// kvmclock, ns.
    clock_ns: u64,
    pit: kvm_pit_state2,
}

impl Machine {
    pub fn config(&self) -> &Config {
        &self.config
    }

    pub fn run_state(&self) -> RunState {
        RunState::ALL[usize::from(self.state.load(Ordering::Acquire))]
    }

    /// Stops all vCPUs and goes to state `to`; emits STOP if the guest ran. False: it stood still
    /// already. The state changes then, too, except that `paused` does not replace another standing
    /// state (QEMU's `vm_stop`).
    pub fn stop(&self, to: RunState) -> Result<bool, Error> {
        let mut control = self.control();
        if !control.state.is_running() {
            if to != RunState::Paused {
                self.enter(&mut control, to);
            }
            return Ok(false);
        }
        self.halt(&mut control)?;
        self.enter(&mut control, to);
        (self.events)(Event::Stop);
        Ok(true)
    }

    /// Lets the guest run; emits RESUME. False: it ran already.
    pub fn cont(&self) -> Result<bool, ContRefused> {
        self.start(&mut self.control())
    }

    fn start(&self, control: &mut Control) -> Result<bool, ContRefused> {
        if control.gone {
            return Err(ContRefused::Gone);
        }
        if control.state.is_running() {
            return Ok(false);
        }
        if let Some(refused) = ContRefused::of(control.state) {
            return Err(refused);
        }
        self.set_time(control)?;
        self.enter(control, RunState::Running);
        (self.events)(Event::Resume);
        self.go(control);
        self.started.call_once(|| self.ram().main().map_in_background());
        Ok(true)
    }

    /// Keeps the guest as it is for a dump: stops one that runs (state `save-vm`), and has resets
    /// and the guest's own reset and shutdown wait until [`Machine::thaw`]. False: it stood still
    /// already. One at a time.
    pub fn freeze(&self) -> Result<bool, Error> {
        let mut control = self.control();
        let runs = control.state.is_running();
        if runs {
            self.halt(&mut control)?;
            self.enter(&mut control, RunState::SaveVm);
            (self.events)(Event::Stop);
        }
        control.frozen = true;
        Ok(runs)
    }

    /// Ends [`Machine::freeze`], which returned `ran`. A guest that ran goes on, unless its state
    /// has changed since.
    pub fn thaw(&self, ran: bool) -> Result<(), ContRefused> {
        let mut control = self.control();
        control.frozen = false;
        self.thawed.notify_all();
        if ran && control.state == RunState::SaveVm {
            self.start(&mut control)?;
        }
        Ok(())
    }

    /// Changes the state of a machine that stands still (`inmigrate` → `paused` …). A running
    /// machine stays as it is.
    pub fn set_state(&self, to: RunState) {
        let mut control = self.control();
        if !control.state.is_running() && !to.is_running() {
            self.enter(&mut control, to);
        }
    }

    /// `system_reset`: the kernel is loaded again, vCPUs and devices start over, RAM stays. Emits
    /// RESET. Waits while the guest is frozen.
    ///
    /// # Errors
    /// What the guest starts from is not as it was: nothing has happened. Anything else: the guest
    /// is lost, and the state `internal-error`.
    pub fn reset(&self) -> Result<(), Error> {
        self.reset_for(StopCause::HostQmpSystemReset)
    }

    /// An NMI to every vCPU whose LINT1 takes it.
    pub fn inject_nmi(&self) -> Result<(), Error> {
        let control = self.control();
        if !control.state.is_running() {
            for vcpu in &self.cpus.vcpus {
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

    /// `system_powerdown`: there is no button on this board, so that only the event is seen.
    pub fn powerdown(&self) {
        (self.events)(Event::Powerdown);
    }

    /// Ends the vCPU threads; the machine is dead afterwards. Emits nothing.
    pub fn quit(&self) {
        self.set_throttle(0);
        let mut control = self.control();
        if control.gone {
            return;
        }
        control.gone = true;
        let threads = self.threads();
        self.cpus.gate.quit();
        drop(threads);
        self.cpus.gate.close(|index| self.kick(index));
        self.threads().join();
    }

    pub fn vcpus(&self) -> &[VcpuInfo] {
        &self.infos
    }

    pub fn ram(&self) -> &GuestRam {
        self.vm().ram()
    }

    /// Where the guest said that its crash note is; `None` without `-device vmcoreinfo` too.
    pub fn vmcoreinfo(&self) -> Option<VmCoreInfoState> {
        self.cpus
            .board
            .vmcoreinfo
            .as_ref()
            .map(|device| device.state())
            .filter(|state| state.present)
    }

    /// The VM in the kernel.
    pub fn vm(&self) -> &Arc<Vm> {
        &self.cpus.vm
    }

    /// Switches the dirty log on. One at a time.
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

    /// Input for the guest's serial port; returns how many bytes it had room for (at most 16).
    pub fn serial_input(&self, bytes: &[u8]) -> usize {
        self.cpus.board.serial.as_ref().map_or(bytes.len(), |serial| serial.enqueue(bytes))
    }

    /// Called (on a vCPU thread) whenever the guest has read from the port: there is room for input
    /// again.
    pub fn on_serial_room(&self, wake: Box<dyn Fn() + Send + Sync>) {
        if let Some(serial) = &self.cpus.board.serial {
            serial.on_room(wake);
        }
    }

    /// QEMU's virtual clock, ns: stands still while the guest does.
    pub fn virtual_clock_ns(&self) -> i64 {
        self.control().virtual_now(monotonic_ns())
    }

    /// Stops the vCPUs and the clocks.
    fn halt(&self, control: &mut Control) -> Result<(), Error> {
        self.cpus.gate.close(|index| self.kick(index));
        let now = monotonic_ns();
        control.virtual_ns = control.virtual_now(now);
        control.running_since = None;
        let state = self.vm().read_time().map_err(|e| self.fail(control, e))?;
        control.stopped_time = Some(StoppedTime { clock_ns: state.clock.clock, pit: state.pit });
        Ok(())
    }

    /// Guest time goes on where it stood.
    fn set_time(&self, control: &mut Control) -> Result<(), kvm::Error> {
        let Some(time) = control.stopped_time.take() else { return Ok(()) };
        let vm = self.vm();
        let set = vm.set_clock(time.clock_ns).and_then(|()| {
            for vcpu in &self.cpus.vcpus {
                vcpu.lock().announce_pause();
            }
            vm.write_pit(&time.pit)
        });
        set.map_err(|e| self.fail(control, e))
    }

    /// Opens the gate, unless somebody waits to reset the guest or end it.
    fn go(&self, control: &mut Control) {
        control.running_since = Some(monotonic_ns());
        if control.waiting == 0 {
            self.cpus.gate.open();
        }
    }

    /// The guest cannot go on, because of `error`: it stands still, the state says so, and so do
    /// events.
    fn fail<E: std::fmt::Display>(&self, control: &mut Control, error: E) -> E {
        if control.state != RunState::InternalError {
            (self.events)(Event::InternalError { vcpu: 0, why: error.to_string() });
            self.cpus.gate.close(|index| self.kick(index));
            let ran = control.state.is_running();
            self.enter(control, RunState::InternalError);
            if ran {
                (self.events)(Event::Stop);
            }
        }
        error
    }

    fn reset_for(&self, cause: StopCause) -> Result<(), Error> {
        let mut control = self.control_when_thawed();
        if let Some(images) = &mut control.images {
            images.check(self.ram(), self.infos.len() as u32)?;
        }
        if control.state.is_running() {
            self.halt(&mut control)?;
        }
        // From here on the old guest is gone.
        let done = self.start_over(control.images.as_mut());
        done.map_err(|e| self.fail(&mut control, e))?;
        control.stopped_time = None;
        (self.events)(Event::Reset(cause));
        match control.state {
            RunState::Running => self.go(&mut control),
            RunState::InMigrate | RunState::FinishMigrate => {}
            _ => self.enter(&mut control, RunState::Prelaunch),
        }
        Ok(())
    }

    /// Does what a vCPU could not do by itself.
    fn fulfil(&self, wish: Wish) {
        let cause = wish.cause();
        let actions = self.actions();
        let done = match wish {
            Wish::Reset if actions.reboot == RebootAction::Reset => self.reset_for(cause),
            Wish::Reset | Wish::Shutdown => self.shut_down(cause),
            Wish::Panic => self.panicked(actions.panic),
            Wish::Broken { vcpu, why } => {
                (self.events)(Event::InternalError { vcpu, why });
                self.stop(RunState::InternalError).map(drop)
            }
        };
        if let Err(e) = done {
            self.fail(&mut self.control(), e);
        }
    }

    /// The guest is over: it stands still in state `shutdown`.
    fn shut_down(&self, cause: StopCause) -> Result<(), Error> {
        let mut control = self.control_when_thawed();
        (self.events)(Event::Shutdown(cause));
        if control.state.is_running() {
            self.halt(&mut control)?;
            self.enter(&mut control, RunState::Shutdown);
            (self.events)(Event::Stop);
        }
        Ok(())
    }

    fn panicked(&self, action: PanicAction) -> Result<(), Error> {
        let told = match action {
            PanicAction::None => Panic::Run,
            PanicAction::Pause => Panic::Pause,
            PanicAction::Shutdown | PanicAction::ExitFailure => Panic::Poweroff,
        };
        (self.events)(Event::GuestPanicked { action: told });
        match told {
            Panic::Run => {
                let control = self.control();
                if control.state.is_running() {
                    self.cpus.gate.open();
                }
                Ok(())
            }
            Panic::Pause => self.stop(RunState::GuestPanicked).map(drop),
            Panic::Poweroff => self.shut_down(StopCause::GuestPanic),
        }
    }

    fn enter(&self, control: &mut Control, state: RunState) {
        control.state = state;
        let index = RunState::ALL.iter().position(|s| *s == state).unwrap_or(0);
        self.state.store(index as u8, Ordering::Release);
    }

    fn kick(&self, index: usize) {
        self.cpus.vcpus[index].kick();
        self.threads().signals().send(index);
    }

    fn control(&self) -> MutexGuard<'_, Control> {
        self.control.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn control_when_thawed(&self) -> MutexGuard<'_, Control> {
        let mut control = self.control();
        control.waiting += 1;
        while control.frozen {
            control = self.thawed.wait(control).unwrap_or_else(PoisonError::into_inner);
        }
        control.waiting -= 1;
        control
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
    fn virtual_now(&self, monotonic: i64) -> i64 {
        self.virtual_ns + self.running_since.map_or(0, |since| monotonic - since)
    }
}
