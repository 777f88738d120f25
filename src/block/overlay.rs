//! A new image put over that of a running guest, which writes only it from then on.

use super::error::Error;
use super::image::Image;
use super::layer::{Layer, Use};
use super::{locks, qcow2};
use crate::config::{self, Backing, ImageFormat};
use crate::io::name;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::path::PathBuf;
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

/// A file that is taken away again, unless all went well.
struct Made<'a>(Option<&'a PathBuf>);

impl Drop for Made<'_> {
    fn drop(&mut self) {
        if let Some(path) = self.0 {
            let _ = std::fs::remove_file(path);
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
        let mut made = Made(None);
        if !wanted.exists {
            made.0 = make(&top, wanted, all)?.then_some(&wanted.path);
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
        if overlay.bytes() != top.bytes() && !wanted.exists {
            return Err(Error::Changed(overlay.path()));
        }
        if self.layers().iter().any(|layer| layer.is_same_file(&overlay)) {
            return Err(Error::Loop { image: overlay.path(), twice: overlay.path() });
        }
        let used = |source| Error::Open { path: overlay.path(), source };
        nobody_has(&overlay.file, all).map_err(used)?;
        // Most of it beforehand, so that the guest does not wait for it.
        let flushed = |source| Error::Flush { path: top.path(), source };
        self.flush().map_err(flushed)?;
        let wake = || self.tell();
        let _closed =
            self.gate.close(DRAINED_WITHIN, &wake).ok_or_else(|| Error::Busy(top.path()))?;
        self.flush().map_err(flushed)?;
        self.put_over(&top, Arc::new(overlay))?;
        made.0 = None;
        Ok(())
    }
}

/// Makes the file. True: it was not there before.
///
/// # Errors
/// The texts are QEMU's. What is in use by anybody stays as it is.
fn make(top: &Layer, wanted: &Overlay, all: &[Arc<Image>]) -> Result<bool, Error> {
    let path = wanted.path.display().to_string();
    if wanted.path == top.config.path {
        return Err(Error::SameName);
    }
    let failed = |source| Error::Create { path: path.clone(), source };
    name::check_output_name(&wanted.path).map_err(failed)?;
    let is_new = !wanted.path.exists();
    let open =
        OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&wanted.path);
    let file = Arc::new(open.map_err(failed)?);
    let made = fill(&file, top, &path, all);
    locks::release(&file);
    if made.is_err() && is_new {
        let _ = std::fs::remove_file(&wanted.path);
    }
    made.map(|()| is_new)
}

/// Refuses a file that this process has open already: guest memory, another image, a console's.
fn nobody_has(file: &File, all: &[Arc<Image>]) -> io::Result<()> {
    // Descriptors cannot be looked at everywhere; images can.
    let has = |image: &Arc<Image>| image.layers().iter().any(|layer| layer.is_file(file));
    if all.iter().any(has) { Err(name::in_use()) } else { name::check_output(file.as_fd()) }
}

fn fill(file: &Arc<File>, top: &Layer, path: &str, all: &[Arc<Image>]) -> Result<(), Error> {
    let failed = |source: io::Error| Error::Create { path: path.into(), source };
    if !file.metadata().map_err(failed)?.is_file() {
        return Err(Error::NotRegular(path.into()));
    }
    nobody_has(file, all).map_err(failed)?;
    if top.config.locking {
        locks::take(
            file,
            path,
            locks::Permissions { write: true, resize: true, ..Default::default() },
        )?;
    }
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
        // In another process.
        let theirs = File::options().read(true).write(true).open(&path).unwrap();
        rustix::io::fcntl_setfd(&theirs, rustix::io::FdFlags::empty()).unwrap();
        locks::take(&theirs, "i", locks::Permissions { write: true, ..Default::default() })
            .unwrap();
        let wanted = Overlay { path, node: None, exists: true };
        assert!(matches!(image.lay_over(&wanted, &[]), Err(Error::Locked { .. })));
        assert!(woken.load(Ordering::Relaxed) > 0 && image.gate.enter().is_some());
        drop(theirs);
        image.lay_over(&wanted, &[]).unwrap();
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
