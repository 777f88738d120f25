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
pub mod moment;
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
pub use moment::{Moment, Request, Ruling};
pub use run_state::RunState;
pub use saved::{LoadReport, SavedState};

pub use crate::kvm::monotonic_ns;

use crate::arch::x86_64::boot::Images;
use crate::arch::x86_64::topology::Position;
use crate::config::{Config, PanicAction, RebootAction};
use crate::devices::vmcoreinfo::VmCoreInfoState;
use crate::kvm::{self, DirtyLog, Vm};
use crate::memory::GuestRam;
use cpus::{Cpus, Threads, Wish};
use kvm_bindings::kvm_pit_state2;
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
    wishes: Arc<AtomicUsize>,
    /// A wish was granted.
    granted: Condvar,
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
        while self.wishes.load(Ordering::SeqCst) > 0 {
            control = self.granted.wait(control).unwrap_or_else(PoisonError::into_inner);
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
        self.set_time(control)?;
        self.enter(control, RunState::Running);
        (self.events)(Event::Resume);
        self.go(control);
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

    /// Opens the gate.
    fn go(&self, control: &mut Control) {
        control.running_since = Some(monotonic_ns());
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
        control.stopped_time = None;
        (self.events)(Event::Reset(cause));
        match control.state {
            RunState::Running => self.go(control),
            RunState::FinishMigrate | RunState::SaveVm => {}
            _ => self.enter(control, RunState::Prelaunch),
        }
        Ok(())
    }

    /// Does what a vCPU could not do by itself.
    fn fulfil(&self, wish: Wish) {
        let cause = wish.cause();
        let mut control = self.control();
        let (request, put_off) = match wish {
            Wish::Reset => (Request::GuestReset, PutOff::Reset(cause)),
            Wish::Shutdown => (Request::GuestShutdown, PutOff::Shutdown(cause)),
            Wish::Panic => (Request::GuestPanic, PutOff::Panic(self.actions().panic)),
            Wish::NoMemory { vcpu, why } => {
                drop(control);
                return self.cannot_go_on(Event::MemoryFailure { vcpu, why: why.to_string() });
            }
            Wish::Broken { vcpu, why } => {
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
        self.wish_is_granted();
    }

    /// Stops a guest of which one vCPU cannot go on.
    fn cannot_go_on(&self, event: Event) {
        (self.events)(event);
        if let Err(error) = self.stop(RunState::InternalError) {
            self.fail(&mut self.control(), error);
        }
        self.wish_is_granted();
    }

    /// Another wish was granted, or is put off.
    fn wish_is_granted(&self) {
        let _control = self.control();
        self.wishes.fetch_sub(1, Ordering::SeqCst);
        self.granted.notify_all();
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

    fn virtual_now(&self, monotonic: i64) -> i64 {
        self.virtual_ns + self.running_since.map_or(0, |since| monotonic - since)
    }
}
