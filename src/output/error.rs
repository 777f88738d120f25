//! Why a file is not written.

use std::io;
use std::path::PathBuf;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("an output needs a name (`-` is standard output)")]
    Empty,
    #[error("{} is a folder; name a file in it", .0.display())]
    Folder(PathBuf),
    #[error("{} is a socket, which cannot be opened as a file", .0.display())]
    Socket(PathBuf),
    #[error("{} leads through too many symbolic links", .0.display())]
    Links(PathBuf),
    #[error("{} would overwrite {} before it is read; give it another name", .0.display(), .1)]
    Input(PathBuf, String),
    #[error("{} and {} are the same file", .0.display(), .1.display())]
    Twice(PathBuf, PathBuf),
    #[error("descriptor {0} is not open for writing")]
    Descriptor(i32),
    #[error("{} cannot be used", .name.display())]
    Look { name: PathBuf, source: io::Error },
    #[error("no file can be made in {}", .folder.display())]
    Create { folder: PathBuf, source: io::Error },
    #[error("{} cannot be opened for writing", .name.display())]
    Open { name: PathBuf, source: io::Error },
    #[error("{} became something else meanwhile", .0.display())]
    Changed(PathBuf),
    #[error("interrupted while {} had no reader", .0.display())]
    NoReader(PathBuf),
    #[error("{} cannot be written", .name.display())]
    Write { name: PathBuf, source: io::Error },
    #[error("the file is whole and stays at {}: it cannot become {}", .part.display(), .name.display())]
    Rename { part: PathBuf, name: PathBuf, source: io::Error },
    #[error(
        "{} is not there: whoever wrote it sees other files than this command (a container?)",
        .0.display()
    )]
    Elsewhere(PathBuf),
    #[error(
        "{} is a descriptor of this command, which only a machine with a monitor on a unix socket can be given",
        .0.display()
    )]
    NotPassed(PathBuf),
    #[error("the name of {} is not UTF-8, which only a machine with a monitor on a unix socket can take", .0.display())]
    NotUtf8(PathBuf),
}
