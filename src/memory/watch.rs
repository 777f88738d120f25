//! Writes of this process into guest memory, announced before they happen.
//!
//! While a snapshot is kept, a page's old bytes must be copied before its first write. vCPUs are
//! caught by a page fault; this process asks first, because a thread of its own that slept in a
//! page fault could be the one that the snapshot waits for.

use std::fmt;
use std::ops::Range;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

/// Asked before this process writes guest memory.
pub(crate) trait BeforeWrite: Send + Sync {
    /// `range` (bytes into the main block) will be written when this returns.
    fn before_write(&self, range: Range<u64>);
    /// Whether writers may be kept waiting for somebody outside of this process.
    fn keeps_waiting(&self) -> bool;
    /// Lets all who wait go on, now and from now on, if any do; costs the image.
    fn give_way(&self);
}

/// Who is asked, if anybody.
#[derive(Default)]
pub(crate) struct Watch(RwLock<Option<Arc<dyn BeforeWrite>>>);

/// Held while guest memory is written. The watch does not change while it is held, so it must end soon.
pub(crate) struct WriteGuard<'w>(
    #[expect(dead_code, reason = "held, not used")]
    RwLockReadGuard<'w, Option<Arc<dyn BeforeWrite>>>,
);

impl Watch {
    pub(crate) fn ask(&self, range: Range<u64>) -> WriteGuard<'_> {
        let watch = self.0.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(asked) = &*watch {
            asked.before_write(range);
        }
        WriteGuard(watch)
    }

    /// See [`BeforeWrite::keeps_waiting`].
    pub(crate) fn keeps_waiting(&self) -> bool {
        let watch = self.0.read().unwrap_or_else(PoisonError::into_inner);
        watch.as_ref().is_some_and(|asked| asked.keeps_waiting())
    }

    /// See [`BeforeWrite::give_way`].
    pub(crate) fn give_way(&self) {
        if let Some(asked) = &*self.0.read().unwrap_or_else(PoisonError::into_inner) {
            asked.give_way();
        }
    }

    /// Waits for every write in progress, then changes who is asked.
    pub(crate) fn set(&self, asked: Option<Arc<dyn BeforeWrite>>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = asked;
    }
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Watch")
    }
}
