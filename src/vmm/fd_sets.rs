//! Sets of descriptors that clients sent.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::sync::{Arc, Mutex, MutexGuard};

use serde_json::{Value as Json, json};

use crate::io::OpenError;
use crate::io::name::Sent;
use crate::io::transport::{FD_SET, SetFd};

/// Why a set could not be changed; the texts are QEMU's.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FdSetError {
    #[error("Parameter 'fdset-id' expects a non-negative value")]
    NegativeId,
    #[error("File descriptor named 'fdset-id:{0}' not found")]
    NoSet(i64),
    #[error("File descriptor named 'fdset-id:{id}, fd:{number}' not found")]
    NoFd { id: i64, number: i64 },
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
    pub(crate) fn add(
        &self,
        id: Option<i64>,
        fd: Sent,
        opaque: Option<&str>,
    ) -> Result<(i64, RawFd), FdSetError> {
        let mut sets = self.reap();
        let id = match id {
            Some(id) if id < 0 => {
                return Err(FdSetError::NegativeId);
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
    pub(crate) fn remove(&self, id: i64, number: Option<i64>) -> Result<(), FdSetError> {
        let mut sets = self.reap();
        let named = || match number {
            Some(number) => FdSetError::NoFd { id, number },
            None => FdSetError::NoSet(id),
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
    pub(crate) fn list(&self) -> Json {
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
    pub(crate) fn open(&self, path: &str, flags: i32) -> Result<SetFd, OpenError> {
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
    use std::os::fd::OwnedFd;

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
