//! The control plane's ring, and what to do when the host does not give one.

use std::io;

/// Enough for every read and write that waits at one time; the ring submits earlier when it is
/// full.
const ENTRIES: u32 = 64;

/// The kernel refused `io_uring_setup`.
#[derive(Debug, thiserror::Error)]
#[error("io_uring is not available here, and Godwit cannot do without: {advice}")]
pub struct Unavailable {
    advice: String,
    #[source]
    source: io::Error,
}

pub(crate) fn runtime() -> Result<tokio_uring::Runtime, Unavailable> {
    let mut builder = tokio_uring::builder();
    builder.entries(ENTRIES);
    tokio_uring::Runtime::new(&builder).map_err(|source| {
        let disabled = std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled").ok();
        Unavailable {
            advice: advice(source.raw_os_error(), disabled.as_deref().map(str::trim)),
            source,
        }
    })
}

/// `disabled` is the sysctl `kernel.io_uring_disabled`, if this kernel has it.
fn advice(errno: Option<i32>, disabled: Option<&str>) -> String {
    const SECCOMP: &str = "let the container's seccomp profile allow io_uring_setup, io_uring_enter and \
                           io_uring_register (docker run --security-opt seccomp=PROFILE)";
    match (errno, disabled) {
        (Some(libc::EPERM), Some("2")) => {
            "it is switched off; as root: sysctl -w kernel.io_uring_disabled=0".to_owned()
        }
        (Some(libc::EPERM), Some("1")) => {
            "it is kept for one group; add this user to the group that \
             sysctl kernel.io_uring_group names, or as root: sysctl -w kernel.io_uring_disabled=0"
                .to_owned()
        }
        (Some(libc::ENOSYS), _) => {
            format!(
                "a filter on system calls forbids it, or this kernel is older than 5.10; {SECCOMP}"
            )
        }
        (Some(libc::EPERM | libc::EACCES), _) => {
            format!("a filter on system calls forbids it; {SECCOMP}")
        }
        (Some(libc::ENOMEM), _) => {
            "no memory for it; raise the limit on locked memory (ulimit -l) or free some".to_owned()
        }
        (Some(libc::EMFILE | libc::ENFILE), _) => {
            "raise the limit on open files (ulimit -n)".to_owned()
        }
        _ => "the kernel refused it".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_cause_has_its_own_cure() {
        assert!(advice(Some(libc::EPERM), Some("2")).contains("kernel.io_uring_disabled=0"));
        assert!(advice(Some(libc::EPERM), Some("1")).contains("io_uring_group"));
        assert!(advice(Some(libc::EPERM), Some("0")).contains("seccomp"));
        assert!(advice(Some(libc::ENOSYS), None).contains("seccomp"));
        assert!(advice(Some(libc::ENOMEM), Some("0")).contains("ulimit -l"));
        assert!(advice(Some(libc::EMFILE), Some("0")).contains("ulimit -n"));
    }
}
