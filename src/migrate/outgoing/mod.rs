//! The source of a migration: one thread that goes through the phases in order.
//!
//! ```text
//! connect → negotiate → start the log → first round → rounds until converged → stop the guest → last round → state → hand over
//!                                                                                 ▲                                   ▲
//!                                      an error up to here: the guest never stopped │ an error up to here: it resumes   │
//!                                                                             from here on it never resumes by itself ─┘
//! ```
//!
//! Dirty bits are a debt: a page harvested is sent in the next round, whatever happens meanwhile.
//! When a migration fails the log is dropped with all its bits, and the next migration starts with
//! every page.

mod background;
mod channel;
mod differences;
mod error;
mod forecast;
mod framing;
mod handover;
mod increment;
mod mapped;
mod packets;
mod peer;
mod places;
mod return_path;
mod round;
mod rounds;
#[cfg(feature = "sabotage")]
mod sabotage;
mod scan;
mod source;

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::capabilities::Capability;
use super::status::Status;
use crate::io::{Ring, transport};
use crate::machine::RunState;
pub(super) use differences::blocks_of;
pub(crate) use error::Error;
use error::guarded;
use handover::Outcome;
use peer::Peer;
use rounds::Rounds;
pub(crate) use source::{Destination, Source};

impl Source {
    /// Runs the migration to its end. The progress tells the outcome.
    pub(crate) fn run(&self, destination: Destination) {
        let started = Instant::now();
        self.progress.figures().started = Some(started);
        let result = guarded(|| self.migrate(destination, started));
        self.guest.set_throttle(0);
        if let Err(error) = self.guest.limit_dirt(0, Duration::ZERO) {
            tracing::warn!("vCPUs stay limited after the migration: {error}");
        }
        let mut figures = self.progress.figures();
        figures.total = Some(started.elapsed());
        figures.throttle = 0;
        figures.limit = None;
        drop(figures);
        let last = match result {
            Ok(()) => Status::Completed,
            Err(error) if error.is_cancel() => Status::Cancelled,
            Err(error) => {
                tracing::warn!("migration failed: {error}");
                self.progress.figures().error = Some(error.to_string());
                Status::Failed
            }
        };
        self.progress.life.enter(last);
    }

    fn migrate(&self, destination: Destination, started: Instant) -> Result<(), Error> {
        self.guest.ram().main().check_whole()?;
        let mut ring = Ring::new(self.waker.clone())?;
        let timeout = Duration::from_millis(self.settings.parameters().x_godwit_peer_timeout);
        ring.set_operation_timeout(Some(timeout));
        let mut increment = None;
        let (connection, address) = match destination {
            Destination::Increment(save) => {
                let connection = differences::connection(&save)?;
                increment = Some(save);
                (connection, None)
            }
            Destination::Open(connection) => (connection, None),
            Destination::Fifo(path) => (transport::await_reader(&mut ring, &path)?, None),
            Destination::Address(address) => {
                (transport::connect(&mut ring, &address)?, Some(address))
            }
        };
        let in_background = self.settings.has(Capability::BackgroundSnapshot);
        // A snapshot's reader is not waited for for ever, from its first byte on.
        ring.set_operation_timeout(in_background.then_some(timeout));
        let increment =
            increment.map(|save| differences::Increment::new(self, save)).transpose()?;
        let mut peer = Peer::negotiate(self, ring, connection, address, increment)?;
        let result = guarded(|| match in_background {
            true => self.write_in_background(&mut peer, started, timeout),
            false => self.send(&mut peer, started),
        });
        // The reason that the target gave is better than the broken connection it caused.
        let result = result.map_err(|error| peer.better_reason(error));
        peer.close(result.is_ok());
        result
    }

    fn send(&self, peer: &mut Peer, started: Instant) -> Result<(), Error> {
        let losses = self.guest.ram().main().check_whole()?;
        let mut rounds = Rounds::start(self, peer)?;
        self.progress.figures().setup = started.elapsed();
        self.enter(Status::Active)?;
        rounds.until_converged(self, peer)?;
        let before = self.guest.run_state();
        // From the stop to the hand-over nothing holds back what the guest waits for, as in QEMU.
        let _lifted = self.settings.limit.lift();
        let stopped_at = Instant::now();
        let ran = self.guest.stop(RunState::FinishMigrate)?;
        self.progress.figures().downtime_parts.stop = stopped_at.elapsed();
        let result =
            guarded(|| self.finish(peer, &mut rounds, ran, losses)).or_else(|error| match error {
                Error::Panicked(_) if self.progress.life.is_given_away() => {
                    Ok(handover::indeterminate(error))
                }
                error => Err(error),
            });
        // Before the rounds' memory and threads go, for which no guest waits.
        let downtime = stopped_at.elapsed();
        drop(rounds);
        match result {
            Ok(Outcome::HandedOver) => {
                self.progress.figures().downtime = Some(downtime);
                self.guest.set_state(RunState::PostMigrate);
                Ok(())
            }
            Ok(Outcome::Indeterminate(error)) => {
                self.guest.set_state(RunState::PostMigrate);
                Err(error)
            }
            Err(error) => {
                self.resume(ran, before);
                Err(error)
            }
        }
    }

    /// With the guest stopped: its state, the last pages, the hand-over.
    fn finish(
        &self,
        peer: &mut Peer,
        rounds: &mut Rounds,
        ran: bool,
        losses: u64,
    ) -> Result<Outcome, Error> {
        self.pause_before_switchover(peer)?;
        self.enter(Status::Device)?;
        // The guest waits: from here to GO the target may not be silent for longer than the commit
        // takes, nor a command not read. A file is no target.
        let time = handover::commit_timeout(&self.settings.parameters());
        if peer.return_path.is_some() || peer.program.is_some() {
            peer.set_operation_timeout(time);
        }
        let started = Instant::now();
        rounds.end_hints();
        let state = self.guest.save(ran)?;
        let saved = Instant::now();
        rounds
            .last(self, peer)
            .map_err(|error| peer.silent(error, "the last pages, before GO", time))?;
        self.guest.ram().main().check_still_whole(losses)?;
        let sent = Instant::now();
        let outcome = handover::hand_over(self, peer, state.as_ref(), rounds.free_pages());
        let parts = &mut self.progress.figures().downtime_parts;
        (parts.save, parts.pages, parts.hand_over) =
            (saved - started, sent - saved, sent.elapsed());
        outcome
    }

    fn resume(&self, ran: bool, before: RunState) {
        if !ran {
            self.guest.set_state(before);
        } else if let Err(error) = self.guest.cont() {
            tracing::error!("the guest cannot be resumed after the failed migration: {error}");
        }
    }

    fn pause_before_switchover(&self, peer: &mut Peer) -> Result<(), Error> {
        if !self.settings.has(Capability::PauseBeforeSwitchover) {
            return Ok(());
        }
        self.go_on.store(false, Ordering::SeqCst);
        self.enter(Status::PreSwitchover)?;
        while !self.go_on.load(Ordering::SeqCst) {
            peer.check()?;
            peer.main.ring.sleep(None)?;
        }
        Ok(())
    }
}
