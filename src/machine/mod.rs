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
mod global_state;
pub mod load;
pub mod moment;
pub mod objects;
mod run_state;
pub mod save;
mod throttle;
mod translate;

pub use crate::arch::x86_64::boot::BootError;
pub use board::PARTS;
pub use error::{ContRefused, Error};
pub use event::{Event, Panic, StopCause};
pub use moment::{Moment, Request, Ruling};
pub use objects::{Object, ObjectType, object_types};
pub use run_state::RunState;

pub use crate::kvm::monotonic_ns;

use crate::arch::x86_64::boot::Images;
use crate::arch::x86_64::topology::Position;
use crate::config::{Config, PanicAction, RebootAction};
use crate::devices::Device;
use crate::devices::clock::VirtualClock;
use crate::kvm::{DirtyLog, Vm};
use crate::memory::GuestRam;
use crate::sabotage::{self, Fault};
use cpus::{Cpus, Threads, VcpuRequest};
use std::io::Write;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
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
    events: Box<dyn Fn(Event) + Send + Sync>,
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

/// Who keeps the guest as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hold {
    Dump,
    /// `stopped`: it was told to stand still before its state was read, and does so at the target.
    HandOver {
        stopped: bool,
    },
}

/// What is done when the guest is this machine's again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PutOff {
    /// It does not go on.
    Stop,
    Reset(StopCause),
    Shutdown(StopCause),
    Panic(PanicAction),
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

    /// QMP's `stop`: see [`moment`].
    pub fn request_stop(&self) -> Result<(), Error> {
        let mut control = self.control();
        if self.is_now(&mut control, Request::Stop, PutOff::Stop)? && control.state.is_running() {
            self.halt(&mut control)?;
            self.enter(&mut control, RunState::Paused);
            (self.events)(Event::Stop);
        }
        Ok(())
    }

    /// Stops the guest to hand it over to another host (`finish-migrate`). What the guest asked for
    /// before is done first, for it would be lost. True if it ran, and would go on.
    pub fn stop_to_leave(&self) -> Result<bool, Error> {
        let ran = self.stop(RunState::FinishMigrate)?;
        let mut control = self.control();
        // A vCPU that wants something says so before it stands still.
        while self.vcpu_requests.load(Ordering::SeqCst) > 0 {
            control = self.request_done.wait(control).unwrap_or_else(PoisonError::into_inner);
        }
        Ok(ran && control.state == RunState::FinishMigrate)
    }

    /// From here on the state of a guest that stands still is read to be handed over. It stays as
    /// it is until [`Machine::hand_back`], or [`Machine::set_state`] says where it went. False:
    /// somebody stopped it meanwhile, so that it does not go on at the target.
    pub fn hold_to_leave(&self) -> bool {
        let mut control = self.control();
        let stopped = control.put_off.contains(&PutOff::Stop);
        self.hold(&mut control, Some(Hold::HandOver { stopped }));
        !stopped
    }

    /// The guest is this machine's: it did not leave, or has arrived. What was put off is done, and
    /// then it goes on, unless that was a stop.
    pub fn hand_back(&self) -> Result<(), ContRefused> {
        let mut control = self.control();
        if matches!(control.state, RunState::FinishMigrate | RunState::InMigrate) {
            self.enter(&mut control, RunState::Paused);
        }
        let stays = control.put_off.contains(&PutOff::Stop);
        if control.hold != Some(Hold::Dump) {
            self.settle(&mut control);
        }
        if !stays && !control.state.needs_reset() {
            self.start(&mut control)?;
        }
        Ok(())
    }

    /// Lets the guest run; emits RESUME. False: it ran already.
    pub fn cont(&self) -> Result<bool, ContRefused> {
        let mut control = self.control();
        match moment::rule(Request::Cont, control.moment()) {
            Ruling::Now => self.start(&mut control),
            Ruling::Later => Err(ContRefused::Arriving),
            Ruling::Refused(why) => Err(ContRefused::Moment(why)),
        }
    }

    fn start(&self, control: &mut Control) -> Result<bool, ContRefused> {
        if control.gone {
            return Err(ContRefused::Gone);
        }
        if control.state.is_running() {
            return Ok(false);
        }
        if control.state.needs_reset() {
            return Err(ContRefused::NeedsReset);
        }
        self.resume_devices(control)?;
        self.enter(control, RunState::Running);
        (self.events)(Event::Resume);
        self.go();
        self.started.call_once(|| self.ram().main().map_in_background());
        Ok(true)
    }

    /// Keeps the guest as it is for a dump: stops one that runs (state `save-vm`), and puts off
    /// resets and the guest's own reset and shutdown until [`Machine::thaw`]. False: it stood still
    /// already. One at a time.
    pub fn freeze(&self) -> Result<bool, Error> {
        let mut control = self.control();
        if let Ruling::Refused(why) = moment::rule(Request::Dump, control.moment()) {
            return Err(Error::Moment(why));
        }
        let runs = control.state.is_running();
        if runs {
            self.halt(&mut control)?;
            self.enter(&mut control, RunState::SaveVm);
            (self.events)(Event::Stop);
        }
        self.hold(&mut control, Some(Hold::Dump));
        Ok(runs)
    }

    /// Ends [`Machine::freeze`], which returned `ran`. A guest that ran goes on, unless its state
    /// has changed since.
    pub fn thaw(&self, ran: bool) -> Result<(), ContRefused> {
        let mut control = self.control();
        let goes_on = ran && control.state == RunState::SaveVm;
        self.settle(&mut control);
        if goes_on && !control.state.needs_reset() {
            self.start(&mut control)?;
        }
        Ok(())
    }

    /// Changes the state of a machine that stands still (`inmigrate` → `paused` …). A running
    /// machine stays as it is. Ends a hand-over: what was put off is done, unless the guest went
    /// elsewhere (`postmigrate`).
    pub fn set_state(&self, to: RunState) {
        let mut control = self.control();
        if control.state.is_running() {
            return;
        }
        if !to.is_running() {
            self.enter(&mut control, to);
        }
        match to {
            RunState::FinishMigrate | RunState::InMigrate => {}
            RunState::PostMigrate => self.forget(&mut control),
            _ => self.settle(&mut control),
        }
    }

    /// What the machine is in the middle of.
    pub fn moment(&self) -> Moment {
        Moment::ALL[usize::from(self.moment.load(Ordering::Acquire))]
    }

    /// `system_reset`: the kernel is loaded again, vCPUs and devices start over, RAM stays. Emits
    /// RESET. Put off while the guest must stay as it is. With `-no-reboot` the guest is shut down.
    ///
    /// # Errors
    /// What the guest starts from is not as it was, or this is no moment for it: nothing has
    /// happened. Anything else: the guest is lost, and the state `internal-error`.
    pub fn reset(&self) -> Result<(), Error> {
        let cause = StopCause::HostQmpSystemReset;
        let mut control = self.control();
        if self.is_now(&mut control, Request::Reset, PutOff::Reset(cause))? {
            self.reset_or_shut_down(&mut control, cause)?;
        }
        Ok(())
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

    /// The first device of this type on the board.
    pub fn device<D: Device>(&self) -> Option<&D> {
        self.cpus.board.device()
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

    /// QEMU's virtual clock, ns: stands still while the guest does.
    pub fn virtual_clock_ns(&self) -> i64 {
        self.clock.now()
    }

    /// Stops the vCPUs, then the devices.
    fn halt(&self, control: &mut Control) -> Result<(), Error> {
        self.cpus.gate.close(|index| self.kick(index));
        let stopped = self.cpus.board.quiesce();
        Ok(stopped.map_err(|e| self.fail(control, e))?)
    }

    /// Lets the devices go on, before the vCPUs.
    fn resume_devices(&self, control: &mut Control) -> Result<(), crate::devices::Error> {
        self.cpus.board.resume().map_err(|e| self.fail(control, e))
    }

    /// Opens the gate.
    fn go(&self) {
        self.cpus.gate.open();
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

    /// Whether `request` may be done now. If it is for later, `put_off` is remembered.
    fn is_now(
        &self,
        control: &mut Control,
        request: Request,
        put_off: PutOff,
    ) -> Result<bool, Error> {
        match moment::rule(request, control.moment()) {
            Ruling::Now => return Ok(true),
            Ruling::Later if control.put_off.contains(&put_off) => {}
            Ruling::Later => control.put_off.push(put_off),
            Ruling::Refused(why) => return Err(Error::Moment(why)),
        }
        Ok(false)
    }

    /// The guest need not stay as it is any more: does what was put off.
    fn settle(&self, control: &mut Control) {
        self.hold(control, None);
        for put_off in std::mem::take(&mut control.put_off) {
            let done = match put_off {
                PutOff::Stop => Ok(()),
                PutOff::Reset(cause) => self.reset_or_shut_down(control, cause),
                PutOff::Shutdown(cause) => self.shut_down(control, cause),
                PutOff::Panic(action) => self.panicked(control, action),
            };
            match (done, put_off) {
                (Ok(()), _) => {}
                // Nothing has happened, or the state says so.
                (Err(error), PutOff::Reset(cause)) if !cause.by_guest() => {
                    eprintln!("godwit: the reset that was put off is not done: {error}");
                }
                (Err(error), _) => drop(self.fail(control, error)),
            }
        }
    }

    /// The guest went elsewhere: what was put off is not done.
    fn forget(&self, control: &mut Control) {
        let travelled = control.hold == Some(Hold::HandOver { stopped: true });
        self.hold(control, None);
        let mut lost = std::mem::take(&mut control.put_off);
        lost.retain(|put_off| !travelled || *put_off != PutOff::Stop);
        if !lost.is_empty() {
            eprintln!(
                "godwit: what was asked for while the guest was handed over is not done here: {lost:?}; ask where the \
                 guest is"
            );
        }
    }

    fn hold(&self, control: &mut Control, hold: Option<Hold>) {
        control.hold = hold;
        self.moment.store(control.moment() as u8, Ordering::Release);
    }

    fn reset_or_shut_down(&self, control: &mut Control, cause: StopCause) -> Result<(), Error> {
        match self.actions().reboot {
            RebootAction::Reset => self.start_anew(control, cause),
            RebootAction::Shutdown => self.shut_down(control, cause),
        }
    }

    fn start_anew(&self, control: &mut Control, cause: StopCause) -> Result<(), Error> {
        if let Some(images) = &mut control.images {
            images.check(self.ram().bytes(), &self.config.cpu)?;
        }
        if control.state.is_running() {
            self.halt(control)?;
        }
        // From here on the old guest is gone.
        let done = self.start_over(control.images.as_mut());
        done.map_err(|e| self.fail(control, e))?;
        (self.events)(Event::Reset(cause));
        match control.state {
            RunState::Running => {
                self.resume_devices(control)?;
                self.go();
            }
            RunState::FinishMigrate | RunState::SaveVm => {}
            _ => self.enter(control, RunState::Prelaunch),
        }
        Ok(())
    }

    /// Does what a vCPU could not do by itself.
    fn fulfil(&self, wanted: VcpuRequest) {
        if matches!(wanted, VcpuRequest::Reset) {
            sabotage::panic_on(Fault::PanicInRequest);
        }
        let cause = wanted.cause();
        let mut control = self.control();
        let (request, put_off) = match wanted {
            VcpuRequest::Reset => (Request::GuestReset, PutOff::Reset(cause)),
            VcpuRequest::Shutdown => (Request::GuestShutdown, PutOff::Shutdown(cause)),
            VcpuRequest::Panic => (Request::GuestPanic, PutOff::Panic(self.actions().panic)),
            VcpuRequest::Exit(status) => {
                (self.events)(Event::Exit(status));
                drop(control);
                return self.request_is_done();
            }
            VcpuRequest::NoMemory { vcpu, why } => {
                drop(control);
                return self.cannot_go_on(Event::MemoryFailure { vcpu, why: why.to_string() });
            }
            VcpuRequest::Broken { vcpu, why } => {
                drop(control);
                return self.cannot_go_on(Event::InternalError { vcpu, why });
            }
        };
        let done = match self.is_now(&mut control, request, put_off) {
            Ok(true) => match put_off {
                PutOff::Reset(cause) => self.reset_or_shut_down(&mut control, cause),
                PutOff::Shutdown(cause) => self.shut_down(&mut control, cause),
                PutOff::Panic(action) => self.panicked(&mut control, action),
                PutOff::Stop => Ok(()),
            },
            Ok(false) => Ok(()),
            Err(error) => Err(error),
        };
        if let Err(error) = done {
            self.fail(&mut control, error);
        }
        drop(control);
        self.request_is_done();
    }

    /// The guest waits for what will not be done.
    fn request_panicked(&self) {
        let why = "what it asked for has panicked, which is a defect of Godwit".to_owned();
        self.cannot_go_on(Event::InternalError { vcpu: 0, why });
    }

    /// Stops a guest of which one vCPU cannot go on.
    fn cannot_go_on(&self, event: Event) {
        (self.events)(event);
        if let Err(error) = self.stop(RunState::InternalError) {
            self.fail(&mut self.control(), error);
        }
        self.request_is_done();
    }

    /// Another request was carried out, or is put off.
    fn request_is_done(&self) {
        let _control = self.control();
        self.vcpu_requests.fetch_sub(1, Ordering::SeqCst);
        self.request_done.notify_all();
    }

    /// The guest is over: it stands still in state `shutdown`.
    fn shut_down(&self, control: &mut Control, cause: StopCause) -> Result<(), Error> {
        (self.events)(Event::Shutdown(cause));
        if control.state.is_running() {
            self.halt(control)?;
            self.enter(control, RunState::Shutdown);
            (self.events)(Event::Stop);
        } else {
            self.enter(control, RunState::Shutdown);
        }
        Ok(())
    }

    fn panicked(&self, control: &mut Control, action: PanicAction) -> Result<(), Error> {
        let told = match action {
            PanicAction::None => Panic::Run,
            PanicAction::Pause => Panic::Pause,
            PanicAction::Shutdown | PanicAction::ExitFailure => Panic::Poweroff,
        };
        (self.events)(Event::GuestPanicked { action: told });
        match told {
            Panic::Run => {
                if control.state.is_running() {
                    self.cpus.gate.open();
                }
                Ok(())
            }
            Panic::Pause => {
                let ran = control.state.is_running();
                if ran {
                    self.halt(control)?;
                }
                self.enter(control, RunState::GuestPanicked);
                if ran {
                    (self.events)(Event::Stop);
                }
                Ok(())
            }
            Panic::Poweroff => self.shut_down(control, StopCause::GuestPanic),
        }
    }

    fn enter(&self, control: &mut Control, state: RunState) {
        control.state = state;
        let index = RunState::ALL.iter().position(|s| *s == state).unwrap_or(0);
        self.state.store(index as u8, Ordering::Release);
        self.moment.store(control.moment() as u8, Ordering::Release);
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
