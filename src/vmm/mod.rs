//! The running process: its machine, and what goes on around it. QMP's commands and the control
//! plane meet here.

mod chardevs;
mod events;
mod exit;
mod fd_sets;
mod guest;
mod objects;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::config::Identity;
use crate::dirty_rate::Meter;
use crate::dump::Dumps;
use crate::machine::moment::{self, Moment, Request, Ruling};
use crate::machine::{Error, Object};
use crate::net::Nets;

pub(crate) use chardevs::Chardevs;
pub use chardevs::{ChardevError, ChardevInfo};
pub use events::Events;
pub(crate) use events::Listener;
pub use exit::Exit;
pub(crate) use fd_sets::{FdSetError, FdSets};
pub use guest::Controllable;
pub(crate) use objects::IoThreadInfo;
pub use objects::{ObjectError, Objects};

/// The whole VMM as commands see it: one per process, shared by every monitor.
pub struct Vmm {
    pub guest: Arc<dyn Controllable>,
    pub identity: Identity,
    pub events: Arc<Events>,
    pub fd_sets: FdSets,
    /// Those that came after the machine was built.
    pub objects: Objects,
    pub exit: Arc<Exit>,
    /// Held while a command that changes the machine runs. Waiting is in order of arrival, which
    /// makes it a round over the monitors.
    pub(crate) turn: Arc<tokio::sync::Mutex<()>>,
    /// In `inmigrate`: whether the guest starts once it has arrived. `-S` and `stop` clear it,
    /// `cont` sets it.
    pub autostart: Arc<AtomicBool>,
    pub(crate) chardevs: Arc<dyn Chardevs>,
    /// What network cards are connected to.
    pub nets: Arc<Nets>,
    /// Absent where there is no machine to dump.
    pub dumps: Option<Arc<Dumps>>,
    /// Absent where there is no machine to measure.
    pub meter: Option<Arc<Meter>>,
    /// Absent where there is no machine to migrate.
    pub migration: Option<Arc<crate::migrate::Handle>>,
}

impl Vmm {
    /// A VMM around `guest` with nothing else to it.
    pub fn new(guest: Arc<dyn Controllable>, events: Arc<Events>, exit: Arc<Exit>) -> Vmm {
        Vmm {
            guest,
            identity: Identity::default(),
            events,
            fd_sets: FdSets::default(),
            objects: Objects::default(),
            exit,
            turn: Arc::default(),
            autostart: Arc::new(AtomicBool::new(true)),
            chardevs: Arc::new(chardevs::Nothing),
            nets: Arc::new(Nets::new(|_| {})),
            dumps: None,
            meter: None,
            migration: None,
        }
    }

    /// The machine and all in it as a tree, with what came later.
    pub(crate) fn tree(&self) -> Object {
        let mut root = self.guest.objects();
        if let Some((_, objects)) = root.children.iter_mut().find(|(name, _)| name == "objects") {
            objects.children.extend(self.objects.shown());
        }
        root
    }

    /// Refuses a request that has no place at this moment; see [`moment`]. What is for later is
    /// left to whoever remembers it.
    pub(crate) fn admit(&self, request: Request) -> Result<(), Error> {
        let moment = self.guest.moment();
        // Dumps and migrations are asked only where it matters: that may take a while.
        let matters = |other| moment::rule(request, other) != moment::rule(request, moment);
        let moment = match (&self.dumps, &self.migration) {
            (Some(dumps), _) if matters(Moment::Dumping) && dumps.holds_guest() => Moment::Dumping,
            (_, Some(all))
                if moment == Moment::Ordinary && matters(Moment::Leaving) && all.is_busy() =>
            {
                Moment::Leaving
            }
            _ => moment,
        };
        match moment::rule(request, moment) {
            Ruling::Refused(why) => Err(Error::Moment(why)),
            Ruling::Now | Ruling::Later => Ok(()),
        }
    }

    /// Sets whether the guest starts by itself after it arrived by migration.
    pub(crate) fn set_autostart(&self, yes: bool) {
        self.autostart.store(yes, Ordering::SeqCst);
    }
}
