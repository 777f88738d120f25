//! All images of a machine.

use super::error::Error;
use super::image::Image;
use crate::config::{self, Config};
use crate::devices::{self, Built, Device, Kind, Loading, Sections, Slots};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// A machine that the guest leaves, or does not go to after all, gives the locks back by itself: it
/// has so long, and is looked at so often.
const GIVEN_BACK_WITHIN: Duration = Duration::from_secs(2);
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// What stands on the board for them; guests see nothing of it.
pub(crate) const KIND: Kind = Kind { build, ..Kind::NONE };

/// The images, in the order of the command line.
#[derive(Default)]
pub struct Images {
    all: Vec<Arc<Image>>,
    /// The guest is, or was, in another process.
    away: AtomicBool,
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
        Ok(Images { all, away: AtomicBool::new(config.incoming.is_some()) })
    }

    pub(crate) fn all(&self) -> Vec<Arc<Image>> {
        self.all.clone()
    }

    /// The image that `drive=` names.
    pub(crate) fn find(&self, name: &str) -> Option<&Arc<Image>> {
        self.all
            .iter()
            .find(|image| image.config.name == name || image.config.node.as_deref() == Some(name))
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
        Ok(image.clone())
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
        for image in &self.all {
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
        self.all.iter().for_each(|image| image.is_well());
        Ok(())
    }

    fn let_go(&self) {
        self.away.store(true, Ordering::Release);
        self.all.iter().for_each(|image| image.let_go());
    }

    fn save(&self, _sections: &mut Sections) -> Result<(), devices::Error> {
        Ok(())
    }

    fn load(&self, _from: &mut Loading<'_>) -> Result<(), devices::Error> {
        Ok(())
    }
}
