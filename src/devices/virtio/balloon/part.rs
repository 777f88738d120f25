//! The balloon as a part of the board, with the properties that can be read and set of it.

use super::control::{BalloonControl, INTERVAL, STATS};
use super::options::{DRIVER, KEYS, Wanted};
use crate::devices::{Built, Device, Error, Loading, Sections, Slots};
use serde_json::Value as Json;
use std::sync::Arc;

/// The balloon on the board, beside its transport, which has its state.
pub(crate) struct Balloon {
    control: Arc<BalloonControl>,
    wanted: Wanted,
}

pub(crate) fn build(slots: &mut Slots<'_>) -> Result<Built, Error> {
    let balloons = slots.wanted::<Wanted>(DRIVER).into_iter();
    Ok(balloons
        .map(|wanted| -> Arc<dyn Device> {
            Arc::new(Balloon::new(slots.balloon.clone(), wanted.clone()))
        })
        .collect())
}

impl Balloon {
    pub(super) fn new(control: Arc<BalloonControl>, wanted: Wanted) -> Balloon {
        Balloon { control, wanted }
    }

    pub(crate) fn control(&self) -> &BalloonControl {
        &self.control
    }
}

impl Device for Balloon {
    fn reset(&self) -> Result<(), Error> {
        Ok(())
    }

    fn properties(&self) -> Vec<(&'static str, Json)> {
        let mut all = KEYS.values(&self.wanted);
        let interval = self.control.interval();
        all.extend([(STATS, self.control.guest_stats()), (INTERVAL, interval.into())]);
        all
    }

    fn set_property(&self, name: &str, value: &Json) -> Option<Result<(), String>> {
        (name == INTERVAL).then(|| self.control.set_interval(value))
    }

    fn save(&self, _sections: &mut Sections) -> Result<(), Error> {
        Ok(())
    }

    fn load(&self, _from: &mut Loading<'_>) -> Result<(), Error> {
        Ok(())
    }
}
