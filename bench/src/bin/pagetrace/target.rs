//! The recorded process: started or attached to, and made to do one system call for us.
//!
//! A userfaultfd serves the address space of the process that makes it, so the recorded process
//! must make it itself. While it is stopped under ptrace we let it run the `syscall` instruction of
//! its vdso with our numbers in its registers, fetch the descriptor, and put the registers back.
//!
//! Unsafe because of ptrace, fork and waitpid.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::ptr::null_mut;

use super::maps;

/// A process under ptrace, or let go after [`Target::resume`].
pub(crate) struct Target {
    pub pid: i32,
    child: Option<Child>,
}

impl Target {
    /// Starts `command`, stopped before its first instruction.
    pub(crate) fn start(command: &[String]) -> io::Result<Target> {
        let (program, arguments) = command.split_first().expect("clap asks for a command");
        let mut command = Command::new(program);
        command.args(arguments);
        // SAFETY: between fork and exec the child makes one system call and touches no memory.
        unsafe {
            command.pre_exec(|| {
                check(libc::ptrace(libc::PTRACE_TRACEME, 0, null_mut::<u8>(), null_mut::<u8>()))
            });
        }
        let child = command.spawn()?;
        let target = Target { pid: child.id() as i32, child: Some(child) };
        target.wait_stopped()?;
        Ok(target)
    }

    /// Attaches to a running process and stops it.
    pub(crate) fn attach(pid: i32) -> io::Result<Target> {
        let target = Target { pid, child: None };
        // SAFETY: PTRACE_ATTACH takes no pointers.
        check(unsafe {
            libc::ptrace(libc::PTRACE_ATTACH, pid, null_mut::<u8>(), null_mut::<u8>())
        })?;
        target.wait_stopped()?;
        Ok(target)
    }

    /// Lets the process run, no longer under ptrace.
    pub(crate) fn resume(&mut self) -> io::Result<()> {
        // SAFETY: PTRACE_DETACH takes a signal number (0: none) and no pointers.
        check(unsafe {
            libc::ptrace(libc::PTRACE_DETACH, self.pid, null_mut::<u8>(), null_mut::<u8>())
        })
    }

    pub(crate) fn has_ended(&mut self) -> bool {
        match &mut self.child {
            Some(child) => !matches!(child.try_wait(), Ok(None)),
            None => !std::path::Path::new(&format!("/proc/{}", self.pid)).exists(),
        }
    }

    /// Makes the process open a userfaultfd on itself and hand it to us.
    pub(crate) fn userfaultfd(&mut self) -> io::Result<OwnedFd> {
        const UFFD_USER_MODE_ONLY: u64 = 1;
        let flags = libc::O_CLOEXEC as u64;
        let number = match self.syscall(libc::SYS_userfaultfd, [flags, 0]) {
            // Without privilege only faults of user code may be watched, which is all that write
            // tracking needs.
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => {
                self.syscall(libc::SYS_userfaultfd, [flags | UFFD_USER_MODE_ONLY, 0])?
            }
            other => other?,
        };
        let ours = self.fetch(number as i32);
        self.syscall(libc::SYS_close, [number, 0])?;
        ours
    }

    fn fetch(&self, number: i32) -> io::Result<OwnedFd> {
        // SAFETY: pidfd_open takes numbers only and returns a new descriptor, which is ours.
        let pidfd = unsafe {
            let fd = libc::syscall(libc::SYS_pidfd_open, self.pid, 0);
            check(fd)?;
            OwnedFd::from_raw_fd(fd as i32)
        };
        // SAFETY: as above, for pidfd_getfd.
        unsafe {
            let fd = libc::syscall(
                libc::SYS_pidfd_getfd,
                std::os::fd::AsRawFd::as_raw_fd(&pidfd),
                number,
                0,
            );
            check(fd)?;
            Ok(OwnedFd::from_raw_fd(fd as i32))
        }
    }

    /// One system call made by the stopped process.
    fn syscall(&mut self, number: i64, arguments: [u64; 2]) -> io::Result<u64> {
        let saved = self.registers()?;
        let mut registers = saved;
        registers.rip = self.syscall_instruction()?;
        registers.rax = number as u64;
        registers.orig_rax = u64::MAX; // no interrupted call of its own is to be restarted now
        [registers.rdi, registers.rsi] = arguments;
        self.set_registers(&registers)?;
        // SAFETY: PTRACE_SINGLESTEP takes no pointers.
        check(unsafe {
            libc::ptrace(libc::PTRACE_SINGLESTEP, self.pid, null_mut::<u8>(), null_mut::<u8>())
        })?;
        self.wait_stopped()?;
        let result = self.registers()?.rax;
        self.set_registers(&saved)?;
        match result as i64 {
            error @ -4095..0 => Err(io::Error::from_raw_os_error(-error as i32)),
            _ => Ok(result),
        }
    }

    fn syscall_instruction(&self) -> io::Result<u64> {
        let (start, end) = maps::vdso(self.pid)?;
        let mut code = vec![0; (end - start) as usize];
        File::open(format!("/proc/{}/mem", self.pid))?.read_exact_at(&mut code, start)?;
        let offset = code.windows(2).position(|bytes| bytes == [0x0f, 0x05]);
        let none = || io::Error::new(io::ErrorKind::NotFound, "no syscall instruction in the vdso");
        Ok(start + offset.ok_or_else(none)? as u64)
    }

    fn registers(&self) -> io::Result<libc::user_regs_struct> {
        // SAFETY: the struct is plain numbers, for which zeros are a value.
        let mut registers: libc::user_regs_struct = unsafe { std::mem::zeroed() };
        // SAFETY: PTRACE_GETREGS writes one user_regs_struct to its data pointer.
        check(unsafe {
            libc::ptrace(libc::PTRACE_GETREGS, self.pid, null_mut::<u8>(), &raw mut registers)
        })?;
        Ok(registers)
    }

    fn set_registers(&self, registers: &libc::user_regs_struct) -> io::Result<()> {
        // SAFETY: PTRACE_SETREGS reads one user_regs_struct from its data pointer.
        check(unsafe {
            libc::ptrace(libc::PTRACE_SETREGS, self.pid, null_mut::<u8>(), &raw const *registers)
        })
    }

    fn wait_stopped(&self) -> io::Result<()> {
        let mut status = 0;
        // SAFETY: waitpid writes one int to its second argument.
        check(i64::from(unsafe { libc::waitpid(self.pid, &raw mut status, libc::__WALL) }))?;
        if libc::WIFSTOPPED(status) {
            return Ok(());
        }
        Err(io::Error::other("the process ended before it could be recorded"))
    }
}

impl Drop for Target {
    /// A command that outlives the recording goes on by itself; what we started is at least waited
    /// for if it has ended.
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.try_wait();
        }
    }
}

fn check(result: i64) -> io::Result<()> {
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
