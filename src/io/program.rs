//! The command at the other end of an `exec:` stream: started in a process group of its own, its end
//! waited for, and nothing of it left behind when its stream has failed, or when this process has
//! ended in whatever way.
//!
//! The group's leader is a guard: a shell that waits for a word of this process, and ends the whole
//! group when its pipe closes without one. (The kernel's own way, `PR_SET_PDEATHSIG`, reaches the
//! command but nothing that it has started, comes already when the thread that started it ends, and
//! is set after a fork, which copies the page tables of the guest.) The group is signalled before the
//! guard is reaped: until then its number is nobody else's.

use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, kill_process_group, pidfd_open, waitid,
};

use super::error::{Error, ProgramFailed, Result};
use super::reader::SocketReader;
use super::ring::Ring;

/// A command that was started, shared by its stream and by those who may have to end it. One that
/// was not released ends when nobody has it any more.
#[derive(Clone, Debug)]
pub struct Program(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    group: Pid,
    /// Readable once the command has ended.
    pidfd: OwnedFd,
    /// `None` once they were reaped.
    running: Mutex<Option<Running>>,
}

#[derive(Debug)]
struct Running {
    guard: Child,
    command: Child,
}

/// What a command has to end in by itself when it is told to (SIGTERM), before it is made to
/// (SIGKILL).
const TO_END: Duration = Duration::from_millis(200);
/// How often a pipe is looked at that is being emptied.
const LOOK: Duration = Duration::from_millis(5);

/// Waits for a line. Told to end with the others of its group, it stays to see that they do.
const GUARD: &str = "trap '' TERM HUP INT; read word || kill -KILL 0";

impl Program {
    /// Starts `command`, whose standard streams are set.
    pub(crate) fn start(command: &mut Command) -> std::io::Result<Self> {
        let mut guard = Command::new("/bin/sh")
            .args(["-c", GUARD, "godwit-exec-guard"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()?;
        let group = Pid::from_child(&guard);
        let started = command.process_group(group.as_raw_nonzero().get()).spawn();
        let started = started.and_then(|mut command| {
            match pidfd_open(Pid::from_child(&command), PidfdFlags::empty()) {
                Ok(pidfd) => Ok((command, pidfd)),
                Err(error) => {
                    let _ = kill_process_group(group, Signal::KILL);
                    let _ = command.wait();
                    Err(error.into())
                }
            }
        });
        match started {
            Ok((command, pidfd)) => {
                let running = Mutex::new(Some(Running { guard, command }));
                Ok(Self(Arc::new(Shared { group, pidfd, running })))
            }
            Err(error) => {
                let _ = guard.kill();
                let _ = guard.wait();
                Err(error)
            }
        }
    }

    /// Its standard input and output, as far as they are pipes; once.
    pub(crate) fn streams(&self) -> (Option<OwnedFd>, Option<OwnedFd>) {
        let mut running = self.0.running();
        let Some(Running { command, .. }) = running.as_mut() else { return (None, None) };
        (command.stdin.take().map(OwnedFd::from), command.stdout.take().map(OwnedFd::from))
    }

    /// Waits until it has read what is in the pipe that it reads, whose other end is `pipe`. As long
    /// as it goes on reading that may take any time, but never more than `time` for nothing.
    pub(crate) fn read_all(&self, ring: &mut Ring, pipe: impl AsFd, time: Duration) -> Result<()> {
        let (mut left, mut since) = (u64::MAX, Instant::now());
        loop {
            let ended = self.0.ends_within(Duration::ZERO);
            let now = rustix::io::ioctl_fionread(&pipe).map_err(std::io::Error::from)?;
            if now == 0 {
                return Ok(());
            }
            if ended {
                return Err(self.failure().unwrap_or(ProgramFailed::Unread).into());
            }
            if now < left {
                (left, since) = (now, Instant::now());
            } else if since.elapsed() >= time {
                return Err(ProgramFailed::NotReading(time).into());
            }
            ring.sleep_until(Instant::now() + LOOK)?;
        }
    }

    /// Reads what it still writes, which nobody wants, until it has ended, for at most `time`.
    /// Refuses a failure.
    pub(crate) fn written_all(
        &self,
        ring: &mut Ring,
        reader: &mut SocketReader,
        time: Duration,
    ) -> Result<()> {
        let deadline = Instant::now() + time;
        loop {
            reader.consume(reader.bytes().len());
            let left = deadline.saturating_duration_since(Instant::now());
            match reader.fill_within(ring, left) {
                Ok(_) if left.is_zero() => return Err(ProgramFailed::NotEnded(time).into()),
                Ok(_) => {}
                Err(Error::Closed) => return self.wait(ring, left),
                Err(Error::TimedOut(_)) => return Err(ProgramFailed::NotEnded(time).into()),
                Err(error) => return Err(error),
            }
        }
    }

    /// Waits until it has ended, for at most `time`. Refuses a failure.
    pub(crate) fn wait(&self, ring: &mut Ring, time: Duration) -> Result<()> {
        let deadline = Instant::now() + time;
        let token = ring.poll(self.0.pidfd.as_raw_fd(), libc::POLLIN)?;
        let ended = loop {
            if ring.ready(token).is_some() {
                break Ok(());
            }
            if Instant::now() >= deadline {
                break Err(ProgramFailed::NotEnded(time).into());
            }
            if let Err(error) = ring.sleep(Some(deadline)) {
                break Err(error);
            }
        };
        if ended.is_err() {
            ring.cancel(token);
        }
        ended?;
        self.failure().map_or(Ok(()), |failed| Err(failed.into()))
    }

    /// Why its end of the pipe is closed, if it ends within `time`.
    pub(crate) fn why_closed(&self, time: Duration) -> Option<ProgramFailed> {
        self.0.ends_within(time).then(|| self.failure().unwrap_or(ProgramFailed::Unread))
    }

    /// Lets go of one that has ended well; what it has left running goes on.
    pub(crate) fn release(&self) {
        let Some(mut running) = self.0.running().take() else { return };
        let _ = running.command.wait();
        if let Some(mut word) = running.guard.stdin.take() {
            let _ = word.write_all(b"\n");
        }
        let _ = running.guard.wait();
    }

    /// Ends it and all that it has started in its group: told to first, made to soon after. Nothing
    /// happens to one that was released.
    pub(crate) fn end(&self) {
        self.0.end();
    }

    /// How one that has ended failed. It is not reaped by that.
    fn failure(&self) -> Option<ProgramFailed> {
        let running = self.0.running();
        running.as_ref()?;
        let how = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        let status = waitid(WaitId::PidFd(self.0.pidfd.as_fd()), how).ok()??;
        match status.exit_status() {
            Some(0) => None,
            Some(code) => Some(ProgramFailed::Status(code)),
            None => Some(ProgramFailed::Signal(status.terminating_signal().unwrap_or_default())),
        }
    }
}

impl Shared {
    fn ends_within(&self, time: Duration) -> bool {
        let mut polled = [PollFd::new(&self.pidfd, PollFlags::IN)];
        let time = rustix::event::Timespec {
            tv_sec: time.as_secs() as i64,
            tv_nsec: time.subsec_nanos().into(),
        };
        rustix::event::poll(&mut polled, Some(&time)).is_ok_and(|ready| ready > 0)
    }

    fn end(&self) {
        let Some(mut running) = self.running().take() else { return };
        let _ = kill_process_group(self.group, Signal::TERM);
        self.ends_within(TO_END);
        let _ = kill_process_group(self.group, Signal::KILL);
        let _ = running.command.wait();
        let _ = running.guard.wait();
    }

    fn running(&self) -> MutexGuard<'_, Option<Running>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.end();
    }
}

#[cfg(test)]
mod tests {
    use std::process::Stdio;

    use super::*;
    use crate::io::Waker;

    const SOON: Duration = Duration::from_secs(20);

    fn shell(script: &str) -> Program {
        let mut command = Command::new("/bin/sh");
        Program::start(command.args(["-c", script]).stdin(Stdio::piped()).stdout(Stdio::null()))
            .unwrap()
    }

    fn ring() -> Ring {
        Ring::new(Waker::new()).unwrap()
    }

    fn failed(result: Result<()>) -> ProgramFailed {
        match result {
            Err(Error::Program(failed)) => failed,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn its_end_is_told_as_it_was() {
        shell("exit 0").wait(&mut ring(), SOON).unwrap();
        assert_eq!(failed(shell("exit 3").wait(&mut ring(), SOON)), ProgramFailed::Status(3));
        assert_eq!(failed(shell("kill -9 $$").wait(&mut ring(), SOON)), ProgramFailed::Signal(9));
        let sleeper = shell("sleep 987");
        let time = Duration::from_millis(30);
        assert_eq!(failed(sleeper.wait(&mut ring(), time)), ProgramFailed::NotEnded(time));
        sleeper.end();
    }

    #[test]
    fn what_it_does_not_read_is_noticed() {
        let reads = |script| {
            let program = shell(script);
            let pipe = program.streams().0.unwrap();
            rustix::io::write(&pipe, b"stream").unwrap();
            let read = program.read_all(&mut ring(), &pipe, Duration::from_secs(2));
            program.end();
            read
        };
        reads("cat").unwrap();
        assert_eq!(failed(reads("sleep 0.3")), ProgramFailed::Unread);
        assert_eq!(failed(reads("sleep 0.3; exit 1")), ProgramFailed::Status(1));
        assert!(matches!(failed(reads("sleep 987")), ProgramFailed::NotReading(_)));
    }

    #[test]
    fn what_it_writes_too_much_is_read_until_it_ends() {
        let feed = |script| {
            let mut command = Command::new("/bin/sh");
            command.args(["-c", script]).stdin(Stdio::null()).stdout(Stdio::piped());
            let program = Program::start(&mut command).unwrap();
            let fd = program.streams().1.unwrap();
            let mut reader = SocketReader::new(Arc::new(fd));
            let mut ring = ring();
            assert_eq!(reader.need(&mut ring, 1).unwrap(), b"x");
            program.written_all(&mut ring, &mut reader, Duration::from_secs(2))
        };
        feed("echo x; head -c 3000000 /dev/zero").unwrap();
        assert_eq!(failed(feed("echo x; exit 9")), ProgramFailed::Status(9));
        assert!(matches!(failed(feed("echo x; cat /dev/zero")), ProgramFailed::NotEnded(_)));
    }

    #[test]
    fn nothing_of_its_group_is_left() {
        let program = shell("trap '' TERM; sleep 987 & echo $! >&2; wait; sleep 987");
        let group = program.0.group;
        program.end();
        // Orphans are reaped by init, which may take a moment.
        let end = Instant::now() + SOON;
        while rustix::process::test_kill_process_group(group).is_ok() {
            assert!(Instant::now() < end, "the group of {group:?} lives");
            std::thread::sleep(LOOK);
        }
    }
}
