//! The end of a migration: device state, and who owns the guest afterwards.
//!
//! Between two Godwits it is a commit: the target says LOADED, the source answers GO, the target
//! runs and says SHUT 0. Before GO any failure gives the guest back to the source. From GO on only
//! SHUT 0 tells; without it nobody can know, and the guest stays paused here until a person
//! decides. With a QEMU the point of no return is the stream's last byte.

use std::time::{Duration, Instant};

use super::error::Error;
use super::peer::{Peer, ram_section};
use super::source::Source;
use crate::memory::PageSet;
use crate::migrate::guest::State;
use crate::migrate::parameters::Parameters;
use crate::pages::hash_ram;
use crate::sabotage::{self, Fault};
use crate::stream::godwit::{self, Answer, Features, Frame};
use crate::stream::ram::FLAG_EOS;
use crate::stream::return_path::Reply;
use crate::stream::{Command, SectionKind, description, end_of_states};

pub(super) enum Outcome {
    /// The target owns the guest.
    HandedOver,
    /// The guest may run at the target or may not.
    Indeterminate(Error),
}

/// The least time the target has for LOADED.
const COMMIT: Duration = Duration::from_secs(5);
/// QEMU sends SHUT when it is done, however long that takes; a lost connection ends the wait.
const FOR_EVER: Duration = Duration::from_secs(24 * 3600);

pub(super) fn hand_over(
    source: &Source,
    peer: &mut Peer,
    state: &dyn State,
    free: &PageSet,
) -> Result<Outcome, Error> {
    let mut out = Vec::new();
    end_of_ram(&mut out);
    if source.settings.parameters().x_godwit_verify {
        Frame::Hash(hash_ram(source.guest.ram(), free)?).write(&mut out);
    }
    end_with(&mut out, state)?;
    let time = commit_timeout(&source.settings.parameters());
    peer.main
        .send_bytes(&source.progress.counters, false, &out)
        .map_err(|error| peer.silent(error, "the guest's state, before GO", time))?;
    if peer.return_path.is_none() {
        peer.end_stream(time)?;
        source.commit()?;
        return Ok(Outcome::HandedOver);
    }
    if peer.features.contains(Features::COMMIT) {
        commit(source, peer, time)
    } else {
        source.progress.life.give_away();
        wait_for_shut(peer, FOR_EVER)
    }
}

/// Behind the last page.
pub(super) fn end_of_ram(out: &mut Vec<u8>) {
    Command::SwitchoverStart.write(out);
    let section = ram_section();
    section.write(SectionKind::End, out);
    out.extend_from_slice(&FLAG_EOS.to_be_bytes());
    section.write_footer(out);
}

/// The guest's state, and what ends the stream.
pub(super) fn end_with(out: &mut Vec<u8>, state: &dyn State) -> Result<(), Error> {
    let json = state.write(out)?;
    end_of_states(out);
    if !json.is_empty() {
        description(out, &json);
    }
    Ok(())
}

/// How long the target may be silent while the guest stands still and has not been given away.
pub(super) fn commit_timeout(parameters: &Parameters) -> Duration {
    match parameters.x_godwit_commit_timeout {
        0 => COMMIT.max(Duration::from_millis(4 * parameters.downtime_limit)),
        told => Duration::from_millis(told),
    }
}

fn commit(source: &Source, peer: &mut Peer, time: Duration) -> Result<Outcome, Error> {
    let deadline = Instant::now() + time;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let what = "commit, before GO";
        match peer.wait(what, left).map_err(|error| peer.silent(error, what, time))? {
            Reply::Other { kind: godwit::NUMBER, data }
                if Answer::parse(&data) == Some(Answer::Loaded) =>
            {
                break;
            }
            Reply::Shut(_) => return Err(Error::TargetFailed),
            _ => {}
        }
    }
    let mut go = Vec::new();
    Frame::Go.write(&mut go);
    sabotage::panic_on(Fault::PanicBeforeGo);
    // From here on the guest never resumes here by itself, and a cancel comes too late.
    source.commit()?;
    match peer.main.send_bytes(&source.progress.counters, false, &go) {
        Ok(()) => {
            sabotage::panic_on(Fault::PanicAfterGo);
            wait_for_shut(peer, time)
        }
        Err(error) => Ok(indeterminate(error)),
    }
}

/// A target without the commit that says it failed has let go of the guest; one with it was told to
/// go.
fn wait_for_shut(peer: &mut Peer, time: Duration) -> Result<Outcome, Error> {
    let committed = peer.features.contains(Features::COMMIT);
    loop {
        match peer.wait("the target's word that it runs", time) {
            Ok(Reply::Shut(0)) => return Ok(Outcome::HandedOver),
            Ok(Reply::Shut(_)) if !committed => return Err(Error::TargetFailed),
            Ok(Reply::Shut(_)) => return Ok(indeterminate(Error::TargetFailed)),
            Ok(_) => {}
            Err(error) => return Ok(indeterminate(error)),
        }
    }
}

/// Whether the guest runs at the target nobody can know.
pub(super) fn indeterminate(error: Error) -> Outcome {
    Outcome::Indeterminate(Error::Refused(format!(
        "nothing that can be relied upon ({error}): the guest may run there or may not, nobody can know from here. It \
         stays paused; see whether the target runs it, and only if it does not, cont here"
    )))
}
