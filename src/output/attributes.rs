//! What a file takes over from the one it replaces, and whether it may replace it.

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Gid, Mode, Statx, StatxAttributes, StatxFlags, Uid};
use rustix::io::Errno;

/// Can another file be renamed over this one, as far as can be told beforehand?
pub(crate) fn can_be_replaced(path: &Path, old: &Metadata) -> io::Result<bool> {
    let attributes = statx(path)?.stx_attributes;
    let fixed = StatxAttributes::MOUNT_ROOT | StatxAttributes::IMMUTABLE | StatxAttributes::APPEND;
    if attributes.intersects(fixed) {
        return Ok(false);
    }
    // In a sticky folder (/tmp) only the owners of the file and of the folder may.
    let folder = path.parent().unwrap_or(Path::new("/")).metadata()?;
    let me = rustix::process::geteuid().as_raw();
    let sticky = folder.mode() & libc::S_ISVTX != 0;
    Ok(!sticky || [0, old.uid(), folder.uid()].contains(&me))
}

fn statx(path: &Path) -> io::Result<Statx> {
    Ok(rustix::fs::statx(CWD, path, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::TYPE)?)
}

/// Gives `new` owner, group, permissions and extended attributes (access control lists among them)
/// of the file at `path`, which is `old`.
pub(crate) fn take_over(new: &File, path: &Path, old: &Metadata) -> io::Result<()> {
    let now = new.metadata()?;
    if (now.uid(), now.gid()) != (old.uid(), old.gid()) {
        let (owner, group) = (Uid::from_raw(old.uid()), Gid::from_raw(old.gid()));
        rustix::fs::fchown(new, Some(owner), Some(group))?;
    }
    extended(new, path)?;
    // Last: a change of the owner takes bits away, and an access control list sets some. What is no
    // permission (set-user-id) is for the old contents.
    rustix::fs::fchmod(new, Mode::from_raw_mode(old.mode() & 0o777))?;
    Ok(())
}

/// The list that says who may do what; without it the permissions are others.
const ACCESS_LIST: &str = "system.posix_acl_access";

fn extended(new: &File, path: &Path) -> io::Result<()> {
    let mut names = vec![0; 64 << 10];
    let bytes = match rustix::fs::llistxattr(path, &mut names[..]) {
        Ok(bytes) => bytes,
        Err(Errno::NOTSUP) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    let mut value = vec![0; 64 << 10];
    for name in names[..bytes].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let copied = rustix::fs::lgetxattr(path, name, &mut value[..]).and_then(|bytes| {
            rustix::fs::fsetxattr(new, name, &value[..bytes], rustix::fs::XattrFlags::empty())
        });
        match copied {
            Err(error) if name == ACCESS_LIST.as_bytes() => return Err(error.into()),
            // Others are labels that the system may keep for itself.
            _ => {}
        }
    }
    Ok(())
}
