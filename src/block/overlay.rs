//! A new image put over that of a running guest, which writes only it from then on.

use super::error::Error;
use super::image::Image;
use super::layer::{Layer, Use};
use super::{locks, qcow2};
use crate::config::{self, Backing, ImageFormat};
use crate::io::name;
use std::fs::{File, Metadata};
use std::io::{
    self,
    ErrorKind::{AlreadyExists, InvalidInput, PermissionDenied},
};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// Requests under way are waited for so long.
const DRAINED_WITHIN: Duration = Duration::from_secs(30);

/// What is wanted.
pub(crate) struct Overlay {
    pub path: PathBuf,
    pub node: Option<String>,
    /// It is there already, and stands on a copy of what the guest has now.
    pub exists: bool,
}

/// Nobody else does anything with the file meanwhile.
const ALONE: locks::Permissions =
    locks::Permissions { write: true, resize: true, bears_writers: false, bears_resizers: false };

/// A file that was not there before, and is taken away again unless all went well or another process
/// uses it by now.
struct Made<'a> {
    path: &'a Path,
    file: Arc<File>,
    locking: bool,
    is_kept: bool,
}

impl Made<'_> {
    fn is_ours(&self) -> bool {
        let id = |is: Metadata| (is.dev(), is.ino());
        let named = self.path.symlink_metadata().map(id).ok();
        let is_there = named.is_some() && self.file.metadata().map(id).ok() == named;
        is_there && (!self.locking || locks::take(&self.file, "", ALONE).is_ok())
    }
}

impl Drop for Made<'_> {
    fn drop(&mut self) {
        if !self.is_kept && self.is_ours() {
            let _ = std::fs::remove_file(self.path);
        }
    }
}

impl Image {
    /// Puts an image over it, of a file that none of `all` images, nor anything else here, has open.
    /// Nothing has changed after an error.
    pub(crate) fn lay_over(&self, wanted: &Overlay, all: &[Arc<Image>]) -> Result<(), Error> {
        let _turn = self.change();
        let top = self.top();
        if !top.writable {
            return Err(Error::ReadOnly);
        }
        let mut made = None;
        if !wanted.exists {
            made = make(&top, wanted, all)?;
        }
        let config = config::Image {
            format: ImageFormat::Qcow2,
            node: wanted.node.clone(),
            file_node: None,
            path: wanted.path.clone(),
            kind: None,
            auto_read_only: false,
            backing: Backing::Header,
            ..top.config.clone()
        };
        let overlay = Layer::open(self.number, self.next_place(), &config)?;
        let is_other = made.as_ref().is_some_and(|made| !overlay.is_file(&made.file));
        if is_other || overlay.bytes() != top.bytes() && !wanted.exists {
            return Err(Error::Changed(overlay.path()));
        }
        if wanted.exists {
            let used = |source| Error::Open { path: overlay.path(), source };
            nobody_has(&overlay.file, all).map_err(used)?;
        }
        // Most of it beforehand, so that the guest does not wait for it.
        let flushed = |source| Error::Flush { path: top.path(), source };
        self.flush().map_err(flushed)?;
        let wake = || self.tell();
        let _closed =
            self.gate.close(DRAINED_WITHIN, &wake).ok_or_else(|| Error::Busy(top.path()))?;
        self.flush().map_err(flushed)?;
        self.put_over(&top, Arc::new(overlay))?;
        made.iter_mut().for_each(|made| made.is_kept = true);
        Ok(())
    }
}

/// Makes the file. `None`: it was there before.
///
/// # Errors
/// The texts are QEMU's. What is in use by anybody stays as it is.
fn make<'a>(
    top: &Layer,
    wanted: &'a Overlay,
    all: &[Arc<Image>],
) -> Result<Option<Made<'a>>, Error> {
    let path = wanted.path.display().to_string();
    if wanted.path == top.config.path {
        return Err(Error::SameName);
    }
    let failed = |source| Error::Create { path: path.clone(), source };
    name::check_output_name(&wanted.path).map_err(failed)?;
    let (file, is_new) = create(&wanted.path).map_err(failed)?;
    let file = Arc::new(file);
    let locking = top.config.locking;
    let mut made =
        is_new.then(|| Made { path: &wanted.path, file: file.clone(), locking, is_kept: false });
    if !file.metadata().map_err(failed)?.is_file() {
        return Err(Error::NotRegular(path));
    }
    nobody_has(&file, all).map_err(failed)?;
    if locking && let Err(error) = locks::take(&file, &path, ALONE) {
        // Who has it was faster, and it is his, though it was made here.
        made.iter_mut().for_each(|made| made.is_kept = true);
        return Err(error);
    }
    fill(&file, top, &path)?;
    if is_new && !top.config.cache.no_flush {
        // What the guest writes from now on is no good without its name.
        sync_folder(&wanted.path).map_err(failed)?;
    }
    locks::release(&file);
    Ok(made)
}

/// Opens `path` as it is. True: it was not there before, nor a link of that name.
fn create(path: &Path) -> io::Result<(File, bool)> {
    let mut options = File::options();
    options.read(true).write(true);
    match options.clone().create_new(true).open(path) {
        Err(error) if error.kind() == AlreadyExists => {
            Ok((options.create(true).truncate(false).open(path)?, false))
        }
        opened => Ok((opened?, true)),
    }
}

fn sync_folder(path: &Path) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    match File::open(folder.unwrap_or(Path::new("."))).and_then(|folder| folder.sync_all()) {
        // One that may not be read, or a file system that has no such thing.
        Err(error) if matches!(error.kind(), PermissionDenied | InvalidInput) => Ok(()),
        done => done,
    }
}

/// Refuses a file that this process has open already: guest memory, another image, a console's.
fn nobody_has(file: &File, all: &[Arc<Image>]) -> io::Result<()> {
    // Descriptors cannot be looked at everywhere; images can.
    let has = |image: &Arc<Image>| image.layers().iter().any(|layer| layer.is_file(file));
    if all.iter().any(has) { Err(name::in_use()) } else { name::check_output(file.as_fd()) }
}

fn fill(file: &Arc<File>, top: &Layer, path: &str) -> Result<(), Error> {
    let failed = |source: io::Error| Error::Create { path: path.into(), source };
    file.set_len(0).map_err(failed)?;
    let format = match top.config.format {
        ImageFormat::Qcow2 => "qcow2",
        _ => "raw",
    };
    let below = std::path::absolute(&top.config.path).map_err(failed)?;
    let below = below
        .to_str()
        .ok_or(Error::BackingName { name: top.path(), why: "a header has names of UTF-8 only" })?;
    qcow2::create(file, top.bytes(), (below.into(), format.into())).map_err(failed)
}

impl Layer {
    /// Takes the locks of a use, or changes those that it has to them.
    pub(super) fn lock(&self, use_: Use) -> Result<(), Error> {
        match self.config.locking {
            true => locks::take(&self.file, &self.path(), self.permissions(use_)),
            false => Ok(()),
        }
    }

    pub(super) fn unlock(&self) {
        if self.config.locking {
            locks::release(&self.file);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    fn image(path: PathBuf) -> Image {
        File::create(&path).unwrap().set_len(1 << 20).unwrap();
        let config =
            config::Image { name: "d".into(), path, locking: true, ..config::Image::default() };
        let image = Image::open(0, &config).unwrap();
        image.claim("disk", true, false).unwrap();
        image.take(false).unwrap();
        image
    }

    #[test]
    fn an_overlay_that_fails_wakes_the_disk() {
        let folder = tempfile::tempdir().unwrap();
        let image = image(folder.path().join("first"));
        let woken = Arc::new(AtomicUsize::new(0));
        let told = woken.clone();
        image.on_change(Box::new(move || {
            told.fetch_add(1, Ordering::Relaxed);
        }));
        let path = folder.path().join("over");
        let file = Arc::new(File::create_new(&path).unwrap());
        qcow2::create(&file, 1 << 20, ("first".into(), "raw".into())).unwrap();
        drop(file);
        let theirs = theirs(&path);
        locks::take(&theirs, "i", locks::Permissions { write: true, ..Default::default() })
            .unwrap();
        let wanted = Overlay { path, node: None, exists: true };
        assert!(matches!(image.lay_over(&wanted, &[]), Err(Error::Locked { .. })));
        assert!(woken.load(Ordering::Relaxed) > 0 && image.gate.enter().is_some());
        drop(theirs);
        image.lay_over(&wanted, &[]).unwrap();
    }

    /// A file as another process has it open.
    fn theirs(path: &Path) -> File {
        let file = File::options().read(true).write(true).open(path).unwrap();
        rustix::io::fcntl_setfd(&file, rustix::io::FdFlags::empty()).unwrap();
        file
    }

    #[test]
    fn only_a_file_that_was_made_and_nobody_has_is_taken_away() {
        let folder = tempfile::tempdir().unwrap();
        let image = image(folder.path().join("first"));
        let top = image.top();
        let wanted =
            |name: &str| Overlay { path: folder.path().join(name), node: None, exists: false };
        let gone = wanted("gone");
        drop(make(&top, &gone, &[]).unwrap().unwrap());
        assert!(!gone.path.exists());
        // Another process has taken it meanwhile, or there is another of its name.
        let taken = wanted("taken");
        let made = make(&top, &taken, &[]).unwrap().unwrap();
        let held = theirs(&taken.path);
        locks::take(&held, "i", ALONE).unwrap();
        drop(made);
        assert!(matches!(make(&top, &taken, &[]), Err(Error::Locked { .. })));
        assert!(taken.path.exists());
        let other = wanted("other");
        let made = make(&top, &other, &[]).unwrap().unwrap();
        std::fs::remove_file(&other.path).unwrap();
        std::fs::write(&other.path, "other").unwrap();
        drop(made);
        assert_eq!(std::fs::read(&other.path).unwrap(), b"other");
        // A link to nowhere is there already.
        let link = wanted("link");
        std::os::unix::fs::symlink("target", &link.path).unwrap();
        assert!(make(&top, &link, &[]).unwrap().is_none());
        assert!(link.path.is_symlink() && link.path.exists());
    }

    #[test]
    fn overlays_at_once_stand_on_each_other() {
        let folder = tempfile::tempdir().unwrap();
        let image = image(folder.path().join("first"));
        let start = std::sync::Barrier::new(5);
        std::thread::scope(|scope| {
            for number in 0..4 {
                let path = folder.path().join(format!("over{number}"));
                let wanted = Overlay { path, node: None, exists: false };
                let (image, start) = (&image, &start);
                scope.spawn(move || {
                    start.wait();
                    image.lay_over(&wanted, &[]).unwrap();
                });
            }
            start.wait();
            image.resize(2 << 20).unwrap();
        });
        let layers = image.layers();
        assert_eq!((layers.len(), image.bytes()), (5, 2 << 20));
        for (layer, below) in layers.iter().zip(&layers[1..]) {
            let backing = layer.header.as_ref().unwrap().backing.as_ref().unwrap();
            assert_eq!(backing.name, below.path());
            assert!(layer.bytes() >= below.bytes());
        }
    }
}
