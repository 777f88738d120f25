//! Descriptors that clients sent (`SCM_RIGHTS`): the ones not yet claimed, the named ones, and the
//! sets.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::sync::{Arc, Mutex, MutexGuard};

use serde_json::{Value as Json, json};

use super::error::Error;
use crate::io::OpenError;
use crate::io::name::Sent;
use crate::io::transport::{FD_SET, SetFd};

/// One `-qmp` or `-mon`: what stays when its client leaves and another comes.
#[derive(Default)]
pub struct Monitor {
    pub label: String,
    pub fds: MonitorFds,
}

/// The descriptors of one monitor. Names outlive the connection they came by, what was not claimed
/// does not.
#[derive(Default)]
pub struct MonitorFds {
    pending: Mutex<Vec<Sent>>,
    named: Mutex<BTreeMap<String, Sent>>,
}

impl MonitorFds {
    /// Descriptors that came with a request; they take the place of those that nobody claimed.
    pub fn arrived(&self, fds: Vec<OwnedFd>) {
        *lock(&self.pending) = fds.into_iter().map(Sent::from).collect();
    }

    /// The client left.
    pub fn drop_pending(&self) {
        lock(&self.pending).clear();
    }

    /// The first of the pending descriptors; the others are closed.
    pub fn claim(&self) -> Result<Sent, Error> {
        let pending = std::mem::take(&mut *lock(&self.pending));
        pending
            .into_iter()
            .next()
            .ok_or_else(|| Error::generic("No file descriptor supplied via SCM_RIGHTS"))
    }

    /// Gives a descriptor a name; one that had it before is closed.
    pub fn name(&self, name: &str, fd: Sent) {
        lock(&self.named).insert(name.to_owned(), fd);
    }

    /// `closefd`.
    pub fn close(&self, name: &str) -> Result<(), Error> {
        let closed = lock(&self.named).remove(name);
        closed.map(drop).ok_or_else(|| not_found(&format!("'{name}'")))
    }

    /// Takes a named descriptor away for good, as `migrate fd:NAME` and `dump-guest-memory fd:NAME`
    /// do.
    pub fn take(&self, name: &str) -> Result<OwnedFd, Error> {
        lock(&self.named).remove(name).map(Sent::into_fd).ok_or_else(|| {
            Error::generic(format_args!("File descriptor named '{name}' has not been found"))
        })
    }
}

fn not_found(name: &str) -> Error {
    Error::generic(format_args!("File descriptor named {name} not found"))
}

/// Sets of descriptors for the same file, one for each way of opening it (`/dev/fdset/N`). Shared
/// by all monitors.
#[derive(Default)]
pub struct FdSets {
    sets: Mutex<BTreeMap<i64, FdSet>>,
}

#[derive(Default)]
struct FdSet {
    fds: Vec<Member>,
    /// Copied into every duplicate handed out.
    in_use: Arc<()>,
}

struct Member {
    fd: Sent,
    opaque: Option<String>,
}

impl FdSets {
    /// Adds to set `id`, or to a new one with the lowest free id. Gives out the id and the
    /// descriptor's number.
    pub fn add(
        &self,
        id: Option<i64>,
        fd: Sent,
        opaque: Option<&str>,
    ) -> Result<(i64, RawFd), Error> {
        let mut sets = self.reap();
        let id = match id {
            Some(id) if id < 0 => {
                return Err(Error::generic("Parameter 'fdset-id' expects a non-negative value"));
            }
            Some(id) => id,
            None => (0..).find(|id| !sets.contains_key(id)).expect("ids do not run out"),
        };
        let number = fd.as_fd().as_raw_fd();
        let member = Member { fd, opaque: opaque.map(str::to_owned) };
        sets.entry(id).or_default().fds.push(member);
        Ok((id, number))
    }

    /// Removes one descriptor or all of a set.
    pub fn remove(&self, id: i64, number: Option<i64>) -> Result<(), Error> {
        let mut sets = self.reap();
        let named = || match number {
            Some(number) => not_found(&format!("'fdset-id:{id}, fd:{number}'")),
            None => not_found(&format!("'fdset-id:{id}'")),
        };
        let set = sets.get_mut(&id).ok_or_else(named)?;
        match number {
            None => set.fds.clear(),
            Some(number) => {
                let at = set.fds.iter().position(|member| i64::from(member.number()) == number);
                set.fds.remove(at.ok_or_else(named)?);
            }
        }
        reap(&mut sets);
        Ok(())
    }

    /// The answer of `query-fdsets`: newest ids first.
    pub fn list(&self) -> Json {
        let sets = self.reap();
        sets.iter()
            .rev()
            .map(|(id, set)| {
                let fds: Vec<Json> = set.fds.iter().map(Member::to_json).collect();
                json!({"fds": fds, "fdset-id": id})
            })
            .collect()
    }

    /// Duplicates a member of the set that `path`, `/dev/fdset/N`, names: the one whose access mode
    /// is exactly that of `flags` (`O_RDONLY`, `O_WRONLY`, `O_RDWR`, and `O_DIRECT` or not).
    pub fn open(&self, path: &str, flags: i32) -> Result<SetFd, OpenError> {
        const COMPARED: i32 = libc::O_ACCMODE | libc::O_DIRECT;
        let id =
            path.strip_prefix(FD_SET).filter(|id| id.starts_with(|c: char| c.is_ascii_digit()));
        let id = id.and_then(|id| id.parse::<i32>().ok());
        let id = id.ok_or_else(|| OpenError::FdSetName(path.to_owned()))?;
        let sets = self.reap();
        let set =
            sets.get(&id.into()).ok_or_else(|| OpenError::NoFdSet(format!("{FD_SET}{id}")))?;
        let same_mode = |member: &&Member| {
            rustix::fs::fcntl_getfl(&member.fd)
                .is_ok_and(|mode| mode.bits() as i32 & COMPARED == flags & COMPARED)
        };
        let member = set.fds.iter().find(same_mode).ok_or(OpenError::NoMatchingFd(flags))?;
        let fd = member.fd.as_fd().try_clone_to_owned().map_err(crate::io::Error::from)?;
        Ok(SetFd { fd, in_use: set.in_use.clone() })
    }

    fn reap(&self) -> MutexGuard<'_, BTreeMap<i64, FdSet>> {
        let mut sets = lock(&self.sets);
        reap(&mut sets);
        sets
    }
}

/// Drops sets that are empty and of which no duplicate is open.
fn reap(sets: &mut BTreeMap<i64, FdSet>) {
    sets.retain(|_, set| !set.fds.is_empty() || Arc::strong_count(&set.in_use) > 1);
}

impl Member {
    fn number(&self) -> RawFd {
        self.fd.as_fd().as_raw_fd()
    }

    fn to_json(&self) -> Json {
        let fd = self.number();
        match &self.opaque {
            Some(opaque) => json!({"fd": fd, "opaque": opaque}),
            None => json!({"fd": fd}),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;

    fn fd() -> Sent {
        OwnedFd::from(File::open("/dev/null").unwrap()).into()
    }

    #[test]
    fn set_stays_while_a_duplicate_is_open() {
        let sets = FdSets::default();
        sets.add(Some(20), fd(), None).unwrap();
        let open = sets.open("/dev/fdset/20", libc::O_RDONLY).unwrap();
        sets.remove(20, None).unwrap();
        assert_eq!(sets.list(), json!([{"fds": [], "fdset-id": 20}]));
        drop(open);
        assert_eq!(sets.list(), json!([]));
    }

    #[test]
    fn access_mode_has_to_match_exactly() {
        let sets = FdSets::default();
        sets.add(Some(3), fd(), None).unwrap();
        let refused = |path: &str, flags| sets.open(path, flags).unwrap_err().to_string();
        assert_eq!(
            refused("/dev/fdset/3", libc::O_RDWR),
            "Failed to find file descriptor with matching flags=0x2"
        );
        assert_eq!(refused("/dev/fdset/7", 0), "Failed to find fdset /dev/fdset/7");
        for name in ["", "x", "-1", "+3", "3/", "3 ", "9999999999"] {
            let path = format!("/dev/fdset/{name}");
            assert_eq!(refused(&path, 0), format!("Could not parse fdset {path}"));
        }
    }
}
