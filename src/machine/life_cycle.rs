//! The life of a guest: it runs, stands still, starts over, is handed over, ends.

use super::put_off::{Hold, PutOff};
use super::run_state::RunState;
use super::{
    ContRefused, Control, Error, Event, Machine, Panic, Request, Ruling, StopCause, moment,
};
use crate::arch::x86_64::boot::Firmware;
use crate::config::{PanicAction, RebootAction};
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// A guest that takes longer to be stopped has a host that is busy with something else.
const ROLL_CALL_MAX: Duration = Duration::from_millis(100);

impl Machine {
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
    ///
    /// # Errors
    /// What it wrote cannot be brought to where the target finds it: it stays.
    pub(crate) fn hold_to_leave(&self) -> Result<bool, Error> {
        let mut control = self.control();
        let goes_on = self.keep_as_it_is(&mut control);
        // All of it before anything is given away.
        self.cpus.board.store()?;
        self.cpus.board.let_go()?;
        Ok(goes_on)
    }

    /// The same for a guest that does not leave, and keeps what only one machine can have.
    pub(crate) fn hold_here(&self) -> bool {
        self.keep_as_it_is(&mut self.control())
    }

    fn keep_as_it_is(&self, control: &mut Control) -> bool {
        let stopped = control.put_off.contains(&PutOff::Stop);
        self.hold(control, Some(Hold::HandOver { stopped }));
        !stopped
    }

    /// Claims what only one machine can have: this one is about to be the guest's.
    pub(crate) fn claim(&self) -> Result<(), Error> {
        Ok(self.cpus.board.claim()?)
    }

    /// Gives it back.
    pub(crate) fn let_go(&self) {
        if let Err(error) = self.cpus.board.let_go() {
            say!("godwit: {error}");
        }
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

    pub(super) fn start(&self, control: &mut Control) -> Result<bool, ContRefused> {
        if control.gone {
            return Err(ContRefused::Gone);
        }
        if control.state.is_running() {
            return Ok(false);
        }
        if control.state.needs_reset() {
            return Err(ContRefused::NeedsReset);
        }
        self.cpus.board.claim()?;
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
    pub(crate) fn freeze(&self) -> Result<bool, Error> {
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
    pub(crate) fn thaw(&self, ran: bool) -> Result<(), ContRefused> {
        let mut control = self.control();
        let goes_on = ran && control.state == RunState::SaveVm;
        self.settle(&mut control);
        if goes_on && !control.state.needs_reset() {
            self.start(&mut control)?;
        }
        Ok(())
    }

    /// Changes the state of a machine that stands still (`inmigrate` → `paused` …). A running
    /// machine stays as it is, and one that is to be as it ran before was stopped by somebody since:
    /// it is `paused`. Ends a hand-over: what was put off is done, unless the guest went elsewhere
    /// (`postmigrate`).
    pub fn set_state(&self, to: RunState) {
        let mut control = self.control();
        if control.state.is_running() {
            return;
        }
        self.enter(&mut control, if to.is_running() { RunState::Paused } else { to });
        let is_here =
            !matches!(to, RunState::FinishMigrate | RunState::InMigrate | RunState::PostMigrate);
        if let (true, Err(error)) = (is_here, self.cpus.board.claim()) {
            say!("godwit: the guest is here, and yet another process has its disk: {error}");
        }
        match to {
            RunState::FinishMigrate | RunState::InMigrate => {}
            RunState::PostMigrate => self.forget(&mut control),
            _ => self.settle(&mut control),
        }
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

    /// How long the vCPUs take to stand still, tried without stopping them; at most 100 ms.
    pub(crate) fn stop_time(&self) -> Duration {
        // As where they are stopped, so that nobody ends the threads that are called.
        let control = self.control();
        if control.gone {
            return Duration::ZERO;
        }
        self.cpus.gate.roll_call(|index| self.kick(index), ROLL_CALL_MAX)
    }

    /// Stops the vCPUs. A snapshot's reader, for whom one of them may wait, keeps nobody for long.
    pub(super) fn close_gate(&self) {
        self.ram().not_kept_waiting(|| self.cpus.gate.close(|index| self.kick(index)));
    }

    /// Stops the vCPUs, then the devices.
    pub(super) fn halt(&self, control: &mut Control) -> Result<(), Error> {
        self.close_gate();
        let stopped = self.ram().not_kept_waiting(|| self.cpus.board.quiesce());
        Ok(stopped.map_err(|e| self.fail(control, e))?)
    }

    /// Lets the devices go on, before the vCPUs.
    pub(super) fn resume_devices(
        &self,
        control: &mut Control,
    ) -> Result<(), crate::devices::Error> {
        self.cpus.board.resume().map_err(|e| self.fail(control, e))
    }

    /// Opens the gate.
    pub(super) fn go(&self) {
        // An empty machine has nothing to run.
        if !self.config.machine.none {
            self.cpus.gate.open();
        }
    }

    /// The guest cannot go on, because of `error`: it stands still, the state says so, and so do
    /// events.
    pub(super) fn fail<E: std::fmt::Display>(&self, control: &mut Control, error: E) -> E {
        if control.state != RunState::InternalError {
            (self.events)(Event::InternalError { vcpu: 0, why: error.to_string() });
            self.close_gate();
            let ran = control.state.is_running();
            self.enter(control, RunState::InternalError);
            if ran {
                (self.events)(Event::Stop);
            }
        }
        error
    }

    pub(super) fn reset_or_shut_down(
        &self,
        control: &mut Control,
        cause: StopCause,
    ) -> Result<(), Error> {
        match self.actions().reboot {
            RebootAction::Reset => self.start_anew(control, cause),
            RebootAction::Shutdown => self.shut_down(control, cause),
        }
    }

    fn start_anew(&self, control: &mut Control, cause: StopCause) -> Result<(), Error> {
        if let Some(images) = &mut control.images {
            images.check(
                self.ram().bytes(),
                &Firmware { cpus: &self.config.cpu, acpi: None, smbios: None },
            )?;
        }
        if control.state.is_running() {
            self.halt(control)?;
        }
        // From here on the old guest is gone.
        let done = self.ram().not_kept_waiting(|| self.start_over(control.images.as_mut()));
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

    /// The guest is over: it stands still in state `shutdown`.
    pub(super) fn shut_down(&self, control: &mut Control, cause: StopCause) -> Result<(), Error> {
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

    /// The guest stands still from now on, in `state`.
    pub(super) fn stop_in(&self, control: &mut Control, state: RunState) -> Result<(), Error> {
        let ran = control.state.is_running();
        if ran {
            self.halt(control)?;
        }
        self.enter(control, state);
        if ran {
            (self.events)(Event::Stop);
        }
        Ok(())
    }

    pub(super) fn panicked(&self, control: &mut Control, action: PanicAction) -> Result<(), Error> {
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
            Panic::Pause => self.stop_in(control, RunState::GuestPanicked),
            Panic::Poweroff => self.shut_down(control, StopCause::GuestPanic),
        }
    }

    pub(super) fn enter(&self, control: &mut Control, state: RunState) {
        control.state = state;
        let index = RunState::ALL.iter().position(|s| *s == state).unwrap_or(0);
        self.state.store(index as u8, Ordering::Release);
        self.moment.store(control.moment() as u8, Ordering::Release);
    }

    /// Ends the vCPU threads; the machine is dead afterwards. Emits nothing.
    pub fn quit(&self) {
        self.set_throttle(0);
        self.end_limits();
        let mut control = self.control();
        if control.gone {
            return;
        }
        control.gone = true;
        self.cpus.gate.quit();
        self.close_gate();
        self.threads().join();
    }

    /// Ends what the devices of a dead machine have under way, and gives back what only one machine
    /// can have: images above all, which are closed.
    pub(crate) fn close(&self) {
        if let Err(error) = self.cpus.board.quiesce() {
            say!("godwit: a device did not end what it had begun: {error}");
        }
        self.let_go();
    }
}
