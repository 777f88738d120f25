//! Files that the machine would write over what it reads, or twice.

use std::path::{Path, PathBuf};

use crate::block;
use crate::config::{Chardev, ChardevBackend, Config, EntropySource, Kernel, MemoryBackend};
use crate::io::Address;
use crate::output::{Destination, Input};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{writer}: {} would overwrite {input}, which the machine reads", path.display())]
    Input { writer: String, path: PathBuf, input: String },
    #[error("-pidfile {}: {writer} writes that file", path.display())]
    Twice { writer: String, path: PathBuf },
}

/// Refuses a file that the machine writes if it is the kernel, the initrd, the guest's memory or the
/// stream it arrives by, under whatever name, and a process id in a console's file.
pub(super) fn check(config: &Config, incoming: Option<&Address>) -> Result<(), Error> {
    let files: Vec<Written<'_>> = config.chardevs.iter().flat_map(written).collect();
    let pidfile = config.pidfile.as_deref();
    let pidfile = pidfile.map(|path| Written { writer: "-pidfile".into(), path });
    if let Some(pidfile) = &pidfile {
        twice(pidfile, &files)?;
    }
    let disks = || images(config).iter().filter_map(|path| Input::at(path)).collect::<Vec<_>>();
    let mut read = inputs(config, incoming);
    if let MemoryBackend::File { path, share, .. } = &config.memory.backend {
        if *share {
            let memory = Written { writer: "mem-path=".into(), path };
            overwrites(&[memory], || at(&read).into_iter().chain(disks()).collect())?;
        }
        read.push(path);
    }
    let all: Vec<Written<'_>> = files.into_iter().chain(pidfile).collect();
    overwrites(&all, || at(&read).into_iter().chain(disks()).collect())
}

fn at(read: &[&Path]) -> Vec<Input> {
    read.iter().filter_map(|path| Input::at(path)).collect()
}

/// The same for a character device that comes later, where the machine reads `read`, and has
/// `open`.
pub(super) fn check_added(
    chardev: &Chardev,
    read: &[PathBuf],
    open: Vec<Input>,
) -> Result<(), Error> {
    let read = || read.iter().filter_map(|path| Input::at(path)).chain(open).collect();
    overwrites(&written(chardev).collect::<Vec<_>>(), read)
}

/// The files that the machine reads as long as it lives, but for its disks', which know theirs.
pub(super) fn read(config: &Config) -> Vec<PathBuf> {
    let memory = match &config.memory.backend {
        MemoryBackend::File { path, .. } => Some(path.as_path()),
        _ => None,
    };
    inputs(config, None).into_iter().chain(memory).map(Into::into).collect()
}

/// The files of its disks, and what those stand on.
fn images(config: &Config) -> Vec<PathBuf> {
    config.images.iter().flat_map(block::paths).collect()
}

/// The files that the machine reads, but for its memory's and its disks'.
fn inputs<'a>(config: &'a Config, incoming: Option<&'a Address>) -> Vec<&'a Path> {
    let mut read: Vec<&Path> = Vec::new();
    if let Some(boot) = &config.boot {
        if let Kernel::File(kernel) = &boot.kernel {
            read.push(kernel);
        }
        read.extend(boot.initrd.as_deref());
    }
    if let Some(Address::File { path, .. }) = incoming {
        read.push(Path::new(path));
    }
    read.extend(config.entropy.iter().filter_map(|entropy| match &entropy.source {
        EntropySource::File(path) => Some(path.as_path()),
        EntropySource::Builtin => None,
    }));
    read
}

/// A file that is written, and by what.
struct Written<'a> {
    writer: String,
    path: &'a Path,
}

/// The files that a character device writes.
fn written(chardev: &Chardev) -> impl Iterator<Item = Written<'_>> {
    let file = match &chardev.backend {
        ChardevBackend::File { path, .. } => Some(path),
        _ => None,
    };
    let log = chardev.log.as_ref().map(|log| &log.path);
    let writer = format!("chardev {}", chardev.id);
    file.into_iter().chain(log).map(move |path| Written { writer: writer.clone(), path })
}

fn overwrites(written: &[Written<'_>], read: impl FnOnce() -> Vec<Input>) -> Result<(), Error> {
    if written.is_empty() {
        // Names are not looked at for nothing: a file system may not answer.
        return Ok(());
    }
    let inputs = read();
    for Written { writer, path } in written {
        let Some(is) = Input::at(path) else { continue };
        if let Some(input) = inputs.iter().find(|input| is.is(input)) {
            let (writer, path, input) = (writer.clone(), path.to_path_buf(), input.name.clone());
            return Err(Error::Input { writer, path, input });
        }
    }
    Ok(())
}

/// The files need not be there yet.
fn twice(pidfile: &Written<'_>, files: &[Written<'_>]) -> Result<(), Error> {
    let Ok(place) = Destination::look(pidfile.path) else { return Ok(()) };
    for file in files {
        // What cannot be looked at cannot be opened either, and that is told.
        if Destination::look(file.path).is_ok_and(|other| place.is_not(&other).is_err()) {
            let path = pidfile.path.to_owned();
            return Err(Error::Twice { writer: file.writer.clone(), path });
        }
    }
    Ok(())
}
