//! The machines of a demonstration.

use super::error::Error;
use std::path::Path;
use std::process::Child;

/// A process that does not outlive its owner.
pub(crate) struct Running(pub Child);

impl Running {
    /// An error with the process's own words if it has ended.
    pub(crate) fn ended(&mut self, side: &'static str, errors: &Path) -> Result<(), Error> {
        match self.0.try_wait() {
            Ok(Some(status)) => {
                let words = std::fs::read_to_string(errors).unwrap_or_default();
                let words = words.trim().replace('\n', "; ");
                Err(Error::Ended {
                    side,
                    words: if words.is_empty() { status.to_string() } else { words },
                })
            }
            _ => Ok(()),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail only for a process that is gone already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
