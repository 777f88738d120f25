//! What is asked for while the guest must stay as it is, and done later; and what vCPUs ask for.

use super::cpus::VcpuRequest;
use super::run_state::RunState;
use super::{Control, Error, Event, Machine, Moment, Request, Ruling, StopCause, moment};
use crate::config::PanicAction;
use crate::sabotage::{self, Fault};
use std::sync::atomic::Ordering;

/// Who keeps the guest as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hold {
    Dump,
    /// `stopped`: it was told to stand still before its state was read, and does so at the target.
    HandOver {
        stopped: bool,
    },
}

/// What is done when the guest is this machine's again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PutOff {
    /// It does not go on.
    Stop,
    Reset(StopCause),
    Shutdown(StopCause),
    Panic(PanicAction),
    /// Memory may have been lost.
    Loss,
}

impl Machine {
    /// Whether `request` may be done now. If it is for later, `put_off` is remembered.
    pub(super) fn is_now(
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
    pub(super) fn settle(&self, control: &mut Control) {
        self.hold(control, None);
        for put_off in std::mem::take(&mut control.put_off) {
            let done = match put_off {
                PutOff::Stop => Ok(()),
                PutOff::Reset(cause) => self.reset_or_shut_down(control, cause),
                PutOff::Shutdown(cause) => self.shut_down(control, cause),
                PutOff::Panic(action) => self.panicked(control, action),
                PutOff::Loss => self.stop_if_lost(control),
            };
            match (done, put_off) {
                (Ok(()), _) => {}
                // Nothing has happened, or the state says so.
                (Err(error), PutOff::Reset(cause)) if !cause.by_guest() => {
                    say!("godwit: the reset that was put off is not done: {error}");
                }
                (Err(error), _) => drop(self.fail(control, error)),
            }
        }
    }

    /// The guest went elsewhere: what was put off is not done.
    pub(super) fn forget(&self, control: &mut Control) {
        let travelled = control.hold == Some(Hold::HandOver { stopped: true });
        self.hold(control, None);
        let mut lost = std::mem::take(&mut control.put_off);
        // Memory that was lost here since is no guest's.
        lost.retain(|put_off| match put_off {
            PutOff::Stop => !travelled,
            PutOff::Loss => false,
            _ => true,
        });
        if !lost.is_empty() {
            say!(
                "godwit: what was asked for while the guest was handed over is not done here: {lost:?}; ask where the \
                 guest is"
            );
        }
    }

    pub(super) fn hold(&self, control: &mut Control, hold: Option<Hold>) {
        control.hold = hold;
        self.moment.store(control.moment() as u8, Ordering::Release);
    }

    /// Does what a vCPU could not do by itself.
    pub(super) fn fulfil(&self, wanted: VcpuRequest) {
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
            VcpuRequest::DiskError => {
                self.stop_for_disk(&mut control);
                drop(control);
                return self.request_is_done();
            }
            VcpuRequest::Loss => {
                if let Err(error) = self.memory_was_lost_here(&mut control) {
                    self.fail(&mut control, error);
                }
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
                PutOff::Stop | PutOff::Loss => Ok(()),
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

    /// Stops a guest whose disk cannot go on. One that stands still to be handed over does not go
    /// on, here or there.
    fn stop_for_disk(&self, control: &mut Control) {
        match control.state {
            RunState::Running => match self.halt(control) {
                Ok(()) => {
                    self.enter(control, RunState::IoError);
                    (self.events)(Event::Stop);
                }
                Err(error) => drop(self.fail(control, error)),
            },
            RunState::Paused | RunState::FinishMigrate => self.enter(control, RunState::IoError),
            _ => {}
        }
    }

    /// Memory was lost without an access that would have told: stops the guest as if a vCPU had met
    /// it, if this is its memory by the time that is carried out.
    pub(crate) fn memory_was_lost(&self) {
        (self.cpus.request)(VcpuRequest::Loss);
    }

    fn memory_was_lost_here(&self, control: &mut Control) -> Result<(), Error> {
        match control.moment() {
            // Who moves it looks, too; if it stays all the same, it stops.
            Moment::Arriving | Moment::Switching | Moment::HandingOver => {
                if !control.put_off.contains(&PutOff::Loss) {
                    control.put_off.push(PutOff::Loss);
                }
                Ok(())
            }
            // It went elsewhere. If it is started here all the same, its vCPUs meet the loss.
            Moment::Left => Ok(()),
            Moment::Ordinary | Moment::Leaving | Moment::Dumping => self.stop_if_lost(control),
        }
    }

    fn stop_if_lost(&self, control: &mut Control) -> Result<(), Error> {
        // One that has shut down has no use for its memory.
        if control.state == RunState::Shutdown {
            return Ok(());
        }
        let Some(why) = self.cpus.new_loss() else { return Ok(()) };
        (self.events)(Event::MemoryFailure { vcpu: 0, why: why.to_string() });
        self.stop_in(control, RunState::InternalError)
    }

    /// Stops a guest of which one vCPU cannot go on.
    fn cannot_go_on(&self, event: Event) {
        (self.events)(event);
        let mut control = self.control();
        if let Err(error) = self.stop_in(&mut control, RunState::InternalError) {
            self.fail(&mut control, error);
        }
        drop(control);
        self.request_is_done();
    }

    /// Another request was carried out, or is put off.
    fn request_is_done(&self) {
        let _control = self.control();
        self.vcpu_requests.fetch_sub(1, Ordering::SeqCst);
        self.request_done.notify_all();
    }

    /// The guest waits for what will not be done.
    pub(super) fn request_panicked(&self) {
        let why = "what it asked for has panicked, which is a defect of Godwit".to_owned();
        self.cannot_go_on(Event::InternalError { vcpu: 0, why });
    }
}
