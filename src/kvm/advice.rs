//! What a person can do about a KVM that does not answer.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// After opening the device failed.
pub(crate) fn on_open(path: &Path, error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::ENOENT) => {
            "load the module (modprobe kvm_intel or kvm_amd), switch virtualization on in the firmware, or in a \
             container pass the device in (--device /dev/kvm)"
                .into()
        }
        Some(libc::EACCES | libc::EPERM) => match std::fs::metadata(path) {
            Ok(device) => on_permissions(path, device.mode(), device.gid(), &groups()),
            Err(_) => "run as root".into(),
        },
        Some(libc::ENODEV | libc::ENXIO) => {
            "the module is not loaded: modprobe kvm_intel or kvm_amd; is virtualization switched on in the firmware?"
                .into()
        }
        Some(libc::EBUSY) => "another hypervisor holds the processor's virtualization".into(),
        _ => "guests need KVM".into(),
    }
}

/// Behind the failure of another call; begins with a semicolon unless it is empty.
pub(crate) fn on_call(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::ENOMEM) => "; the host is short of memory",
        Some(libc::EMFILE | libc::ENFILE) => "; too many open files, raise ulimit -n",
        Some(libc::EBUSY) => "; another hypervisor holds the processor's virtualization",
        Some(libc::EAGAIN) => {
            "; too many threads, raise ulimit -u or the limit on pids of the container"
        }
        _ => "",
    }
}

/// `groups` has the format of /etc/group.
fn on_permissions(path: &Path, mode: u32, gid: u32, groups: &str) -> String {
    const GROUP_MAY_USE_IT: u32 = 0o060;
    let path = path.display();
    if mode & GROUP_MAY_USE_IT != GROUP_MAY_USE_IT || gid == 0 {
        return format!("run as root, or as root: chgrp kvm {path} && chmod 660 {path}");
    }
    let line = groups.lines().find(|line| line.split(':').nth(2) == Some(&gid.to_string()));
    match line.and_then(|line| line.split(':').next()) {
        Some(name) => format!(
            "become a member of the group it belongs to (usermod -aG {name} $USER, then log in again), or run as root"
        ),
        None => format!(
            "it belongs to group {gid}, which has no name here: in a container add it (--group-add {gid}), or run as root"
        ),
    }
}

fn groups() -> String {
    std::fs::read_to_string("/etc/group").unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_may_not_open_the_device_is_told_how_to_become_one_who_may() {
        let advice =
            |mode, gid| on_permissions("/dev/kvm".as_ref(), mode, gid, "root:x:0:\nkvm:x:104:me\n");
        assert!(advice(0o20660, 104).contains("usermod -aG kvm"));
        assert!(advice(0o20660, 999).contains("--group-add 999"));
        assert!(advice(0o20600, 104).contains("chmod 660 /dev/kvm"));
        assert!(advice(0o20660, 0).contains("chgrp kvm /dev/kvm"));
    }
}
