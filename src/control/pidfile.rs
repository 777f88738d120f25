//! The file with our process id.

use std::io;
use std::path::{Path, PathBuf};

#[derive(Debug, thiserror::Error)]
#[error("cannot write the process id to {}", path.display())]
pub struct Error {
    path: PathBuf,
    source: io::Error,
}

/// Removes the file when dropped.
pub struct Pidfile {
    path: PathBuf,
}

impl Pidfile {
    pub fn write(path: &Path) -> Result<Pidfile, Error> {
        std::fs::write(path, format!("{}\n", std::process::id()))
            .map_err(|source| Error { path: path.to_owned(), source })?;
        Ok(Pidfile { path: path.to_owned() })
    }
}

impl Drop for Pidfile {
    fn drop(&mut self) {
        // Someone may have been faster.
        let _ = std::fs::remove_file(&self.path);
    }
}
