//! What the process gives up once the machine is built: the host's file system (`-run-with chroot=`),
//! its user (`user=`), system calls (`-sandbox`). All that a guest needs is open by then; what a
//! monitor asks for later is opened as the process is then.
//!
//! System calls are refused with EPERM, so that whoever asked for what needs them hears of it and the
//! guest goes on. A ring does not help around it: it has no operation for what is refused.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::io;
use std::path::{Path, PathBuf};

use nix::unistd::{self, Gid, Uid};
use seccompiler::{
    SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch,
};

use crate::config::{Process, Sandbox, User};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("-run-with user={0}: the host has no such user, and it is no UID:GID")]
    NoUser(String),
    #[error("-run-with user=: the host does not say who '{name}' is")]
    Users { name: String, source: io::Error },
    #[error("-run-with chroot={}: cannot be made the root", .path.display())]
    Root { path: PathBuf, source: io::Error },
    #[error("-run-with user=: cannot become the user; only root can")]
    User(#[source] io::Error),
    #[error("-run-with user=: root's rights could be had back")]
    NotGiven,
    #[error("-sandbox: system calls cannot be filtered")]
    Filter(#[from] seccompiler::Error),
    #[error("-name process={0}: cannot be the name of a process")]
    Name(String),
}

/// All of it, looked up while the host's tables can be read.
pub(super) struct Confinement<'a> {
    root: Option<&'a Path>,
    user: Option<Ids>,
    /// Compiled programs.
    filters: Vec<seccompiler::BpfProgram>,
}

struct Ids {
    uid: Uid,
    gid: Gid,
    /// By whose name further groups are found.
    name: Option<CString>,
}

/// Looks up what `process` says.
pub(super) fn prepare(process: &Process) -> Result<Confinement<'_>, Error> {
    let filters = process.sandbox.as_ref().map(filters).transpose()?.unwrap_or_default();
    let user = process.user.as_ref().map(Ids::of).transpose()?;
    Ok(Confinement { root: process.root.as_deref(), user, filters })
}

/// `-name process=`: the main thread's name, which is the process's.
pub(super) fn name(process: &Process) -> Result<(), Error> {
    let Some(name) = &process.name else { return Ok(()) };
    let set = CString::new(name.as_str())
        .ok()
        .is_some_and(|text| rustix::thread::set_name(&text).is_ok());
    set.then_some(()).ok_or_else(|| Error::Name(name.clone()))
}

impl Ids {
    fn of(user: &User) -> Result<Ids, Error> {
        match user {
            User::Numbers { uid, gid } => {
                Ok(Ids { uid: Uid::from_raw(*uid), gid: Gid::from_raw(*gid), name: None })
            }
            User::Named(name) => {
                let found = unistd::User::from_name(name)
                    .map_err(|errno| Error::Users { name: name.clone(), source: errno.into() })?;
                let found = found.ok_or_else(|| Error::NoUser(name.clone()))?;
                let name = CString::new(name.as_str()).map_err(|_| Error::NoUser(name.clone()))?;
                Ok(Ids { uid: found.uid, gid: found.gid, name: Some(name) })
            }
        }
    }

    /// Groups are looked up by now: a new root has no tables.
    fn groups(&self) -> Result<Vec<Gid>, Error> {
        match &self.name {
            Some(name) => unistd::getgrouplist(name, self.gid),
            None => Ok(vec![self.gid]),
        }
        .map_err(|errno| Error::User(errno.into()))
    }

    /// glibc does it for all threads.
    fn become_it(&self, groups: &[Gid]) -> Result<(), Error> {
        let failed = |errno: nix::Error| Error::User(errno.into());
        unistd::setgroups(groups).map_err(failed)?;
        unistd::setgid(self.gid).map_err(failed)?;
        unistd::setuid(self.uid).map_err(failed)?;
        let back = !self.uid.is_root() && unistd::setuid(Uid::from_raw(0)).is_ok();
        if back { Err(Error::NotGiven) } else { Ok(()) }
    }
}

impl Confinement<'_> {
    pub(super) fn is_any(&self) -> bool {
        self.root.is_some() || self.user.is_some() || !self.filters.is_empty()
    }

    /// Gives it up, for all threads and for good.
    pub(super) fn apply(self) -> Result<(), Error> {
        let groups = self.user.as_ref().map(Ids::groups).transpose()?;
        if let Some(root) = self.root {
            let failed = |errno: rustix::io::Errno| Error::Root {
                path: root.to_owned(),
                source: errno.into(),
            };
            rustix::process::chroot(root).map_err(failed)?;
            rustix::process::chdir("/").map_err(failed)?;
        }
        if let (Some(user), Some(groups)) = (&self.user, &groups) {
            user.become_it(groups)?;
        }
        for filter in &self.filters {
            seccompiler::apply_filter_all_threads(filter)?;
        }
        Ok(())
    }
}

/// The same call by a program with pointers of 32 bits, on kernels that run those
/// (arch/x86/include/uapi/asm/unistd.h: `__X32_SYSCALL_BIT`).
const X32: i64 = 0x4000_0000;

/// What no VMM does, whatever is allowed.
const NEVER: &[i64] = &[
    libc::SYS_reboot,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_syslog,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_kexec_load,
    libc::SYS_kexec_file_load,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_acct,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_afs_syscall,
    libc::SYS_getpmsg,
    libc::SYS_putpmsg,
    libc::SYS_security,
    libc::SYS_tuxcall,
    libc::SYS_vserver,
];
const OBSOLETE: &[i64] = &[libc::SYS__sysctl, libc::SYS_sysfs, libc::SYS_uselib, libc::SYS_ustat];
const ELEVATE: &[i64] = &[
    libc::SYS_setuid,
    libc::SYS_setgid,
    libc::SYS_setpgid,
    libc::SYS_setsid,
    libc::SYS_setreuid,
    libc::SYS_setregid,
    libc::SYS_setresuid,
    libc::SYS_setresgid,
    libc::SYS_setfsuid,
    libc::SYS_setfsgid,
    libc::SYS_setgroups,
];
const SPAWN: &[i64] = &[libc::SYS_fork, libc::SYS_vfork, libc::SYS_execve, libc::SYS_execveat];
const RESOURCES: &[i64] = &[
    libc::SYS_setpriority,
    libc::SYS_sched_setparam,
    libc::SYS_sched_setscheduler,
    libc::SYS_sched_setattr,
    libc::SYS_sched_setaffinity,
    libc::SYS_ioprio_set,
];

fn filters(sandbox: &Sandbox) -> Result<Vec<seccompiler::BpfProgram>, Error> {
    let lists = [
        (true, NEVER),
        (sandbox.obsolete, OBSOLETE),
        (sandbox.elevate, ELEVATE),
        (sandbox.spawn, SPAWN),
        (sandbox.resources, RESOURCES),
    ];
    let refused = lists.iter().filter(|(refused, _)| *refused).flat_map(|(_, calls)| *calls);
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
        refused.flat_map(|call| [*call, call | X32]).map(|call| (call, Vec::new())).collect();
    let mut filters = Vec::new();
    if sandbox.spawn {
        // A process, where a thread is let through.
        let thread = libc::CLONE_THREAD as u64;
        let process =
            SeccompCondition::new(0, SeccompCmpArgLen::Qword, SeccompCmpOp::MaskedEq(thread), 0);
        let process = process.map_err(seccompiler::Error::from)?;
        let rule = SeccompRule::new(vec![process]).map_err(seccompiler::Error::from)?;
        rules.insert(libc::SYS_clone, vec![rule.clone()]);
        rules.insert(libc::SYS_clone | X32, vec![rule]);
        // Its flags lie in memory, where a filter cannot look; told that the kernel has no such call,
        // libraries make threads by the other one.
        let newer = BTreeMap::from(
            [libc::SYS_clone3, libc::SYS_clone3 | X32].map(|call| (call, Vec::new())),
        );
        filters.push(program(newer, libc::ENOSYS)?);
    }
    filters.push(program(rules, libc::EPERM)?);
    Ok(filters)
}

fn program(
    rules: BTreeMap<i64, Vec<SeccompRule>>,
    errno: i32,
) -> Result<seccompiler::BpfProgram, Error> {
    let (otherwise, refused) = (SeccompAction::Allow, SeccompAction::Errno(errno as u32));
    let filter = SeccompFilter::new(rules, otherwise, refused, TargetArch::x86_64);
    let compiled = filter.and_then(|filter| filter.try_into());
    Ok(compiled.map_err(seccompiler::Error::from)?)
}
