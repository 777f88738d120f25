//! All images of a machine.

use super::error::Error;
use super::image::Image;
use crate::config::{self, Config, ImageFormat};
use crate::devices::{self, Built, Device, Kind, Loading, Sections, Slots};
use crate::io::reason;
use crate::output::Input;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// A machine that the guest leaves, or does not go to after all, gives the locks back by itself: it
/// has so long, and is looked at so often.
const GIVEN_BACK_WITHIN: Duration = Duration::from_secs(2);
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// What stands on the board for them; guests see nothing of it.
pub(crate) const KIND: Kind = Kind { build, ..Kind::NONE };

/// The images, in the order of the command line, then those of `blockdev-add`.
#[derive(Default)]
pub struct Images {
    all: Mutex<Vec<Arc<Image>>>,
    /// Who adds one, or a layer with a name.
    adding: Mutex<()>,
    /// The guest is, or was, in another process.
    away: AtomicBool,
}

/// Why an image was not added.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AddError {
    #[error("Duplicate nodes with node-name='{0}'")]
    Duplicate(String),
    #[error(transparent)]
    Open(#[from] Error),
}

/// Why a node stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RemoveError {
    Unknown,
    NotOwned,
    InUse,
}

/// Whether `name` is a node without one of a format above it.
pub(crate) fn is_bare(all: &[Arc<Image>], name: &str) -> bool {
    all.iter().any(|image| image.top().config.format == ImageFormat::Bare && image.node() == name)
}

impl Images {
    /// Opens all of them.
    pub(crate) fn open(config: &Config) -> Result<Images, devices::Error> {
        let open = |(number, wanted): (usize, &config::Image)| {
            let opened =
                Image::open(number, wanted).map_err(|error| refused(&wanted.name, &error))?;
            Ok(Arc::new(opened))
        };
        let all =
            config.images.iter().enumerate().map(open).collect::<Result<_, devices::Error>>()?;
        let away = AtomicBool::new(config.incoming.is_some());
        Ok(Images { all: Mutex::new(all), adding: Mutex::new(()), away })
    }

    pub(crate) fn all(&self) -> Vec<Arc<Image>> {
        self.lock().clone()
    }

    /// Their files, and those that they stand on.
    pub(crate) fn files(&self) -> Vec<Input> {
        let files = |image: Arc<Image>| {
            let layers = image.layers();
            layers.iter().filter_map(|layer| layer.input()).collect::<Vec<_>>()
        };
        self.all().into_iter().flat_map(files).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Arc<Image>>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// No node gets a name meanwhile but from who has this.
    pub(crate) fn name(&self) -> MutexGuard<'_, ()> {
        self.adding.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds what `open` makes of its number, unless one of `names`, which its nodes get, is there twice. No
    /// disk uses it.
    pub(crate) fn add(
        &self,
        names: &[String],
        open: impl FnOnce(usize) -> Result<Image, Error>,
    ) -> Result<(), AddError> {
        // Opening may take long, and holds up those who look only.
        let _turn = self.name();
        let all = self.all();
        let number = all.iter().map(|image| image.number + 1).max().unwrap_or(0);
        let taken = |(at, name): &(usize, &String)| {
            names[..*at].contains(name) || all.iter().any(|other| other.has_name(name))
        };
        if let Some((_, name)) = names.iter().enumerate().find(taken) {
            return Err(AddError::Duplicate(name.clone()));
        }
        let image = open(number)?;
        self.lock().push(Arc::new(image));
        Ok(())
    }

    /// Removes the node `name` of `-blockdev` or `blockdev-add`.
    pub(crate) fn remove(&self, name: &str) -> Result<(), RemoveError> {
        let mut all = self.lock();
        let Some(at) = all.iter().position(|image| image.node() == name) else {
            let is_below = all.iter().any(|image| image.has_node(name));
            return Err(if is_below { RemoveError::InUse } else { RemoveError::Unknown });
        };
        let image = &all[at];
        if image.config.drive.is_some() {
            return Err(RemoveError::NotOwned);
        }
        let stands_on = |other: &Arc<Image>| other.number != image.number && other.has_node(name);
        if image.user().is_some() || all.iter().any(stands_on) {
            return Err(RemoveError::InUse);
        }
        all.remove(at);
        Ok(())
    }

    /// The image that `drive=` names.
    pub(crate) fn find(&self, name: &str) -> Option<Arc<Image>> {
        let named = |image: &&Arc<Image>| {
            image.config.name == name || image.config.node.as_deref() == Some(name)
        };
        self.lock().iter().find(named).cloned()
    }

    /// Gives a device its image.
    pub(crate) fn claim(
        &self,
        name: &str,
        user: &str,
        writes: bool,
        shared: bool,
    ) -> Result<Arc<Image>, devices::Error> {
        let image = self.find(name).ok_or_else(|| devices::Error::Image {
            name: name.into(),
            why: "there is no such image".into(),
        })?;
        let writes = writes && !image.config.read_only;
        let free = image.claim(user, writes, shared).map_err(|error| refused(name, &error))?;
        if !free {
            let why = "it is already in use by another device".into();
            return Err(devices::Error::Image { name: name.into(), why });
        }
        if !self.away.load(Ordering::Acquire) {
            image.take(false).map_err(|error| refused(name, &error))?;
        }
        Ok(image)
    }
}

pub(super) fn refused(name: &str, error: &Error) -> devices::Error {
    devices::Error::Image { name: name.into(), why: error.to_string() }
}

fn build(slots: &mut Slots<'_>) -> Result<Built, devices::Error> {
    let images = Arc::new(Images::open(slots.config)?);
    slots.images = images.clone();
    Ok(vec![images])
}

impl Device for Images {
    fn reset(&self) -> Result<(), devices::Error> {
        Ok(())
    }

    fn claim(&self) -> Result<(), devices::Error> {
        let away = self.away.load(Ordering::Acquire);
        let deadline = Instant::now() + if away { GIVEN_BACK_WITHIN } else { Duration::ZERO };
        for image in &self.all() {
            loop {
                match image.take(away) {
                    Err(Error::Locked { .. }) if Instant::now() < deadline => {
                        std::thread::sleep(LOOK_AGAIN);
                    }
                    taken => break taken,
                }
            }
            .map_err(|error| refused(&image.config.name, &error))?;
        }
        self.away.store(false, Ordering::Release);
        Ok(())
    }

    fn resume(&self) -> Result<(), devices::Error> {
        self.all().iter().for_each(|image| image.is_well());
        Ok(())
    }

    fn store(&self) -> Result<(), devices::Error> {
        self.all().iter().try_for_each(|image| {
            let why = |error| {
                let why = format!("what was written is not on the disk: {}", reason(&error));
                devices::Error::Image { name: image.config.name.clone(), why }
            };
            image.flush().map_err(why)
        })
    }

    fn let_go(&self) -> Result<(), devices::Error> {
        self.away.store(true, Ordering::Release);
        let let_go = |image: &Arc<Image>| {
            image.let_go().map_err(|error| refused(&image.config.name, &error))
        };
        let given: Vec<_> = self.all().iter().map(let_go).collect();
        given.into_iter().collect()
    }

    /// Has no section. Whoever takes the guest over reads what is on the disk, so a guest whose
    /// writes are not there does not leave; a copy of it does not, either.
    fn save(&self, _sections: &mut Sections) -> Result<(), devices::Error> {
        self.store()
    }

    fn load(&self, _from: &mut Loading<'_>) -> Result<(), devices::Error> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_whose_writes_are_not_on_the_disk_does_not_leave() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let wanted = config::Image {
            name: "d".into(),
            path: file.path().into(),
            ..config::Image::default()
        };
        let images = Images::default();
        images.add(&[], |number| Image::open(number, &wanted)).unwrap();
        let image = images.find("d").unwrap();
        image.touched();
        images.save(&mut Sections::default()).unwrap();
        assert!(!image.is_unflushed());
        image.flush_failed(libc::EIO);
        let refused = images.save(&mut Sections::default()).unwrap_err().to_string();
        assert!(refused.contains("disk image d") && refused.contains("Input/output"), "{refused}");
    }
}
