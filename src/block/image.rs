//! One image as a disk has it: the files that it is made of, and who may use it.

use super::error::Error;
use super::gate::Gate;
use super::layer::{self, Layer, Use};
use super::ordered::Ordered;
use super::qcow2::Chain;
use super::stats::Stats;
use super::throttle::Buckets;
use crate::config::{self, ImageFormat, Throttle};
use crate::devices::{DiskEvent, DiskEvents, WriteThreshold};
use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

pub(crate) use super::layer::SECTOR;

/// Called when the size of an image, or its limits, have changed.
type Changed = Box<dyn Fn() + Send + Sync>;

pub struct Image {
    /// Its place on the command line.
    pub(crate) number: usize,
    /// As it was asked for: what it is made of now, [`Image::layers`] says.
    pub(crate) config: config::Image,
    /// The image itself, then what it stands on.
    layers: Mutex<Arc<[Arc<Layer>]>>,
    /// Open while the guest is here, where the format has tables. Nobody holds it for longer than a
    /// piece of work takes; a discard of all of a disk is one.
    chain: Mutex<Option<Chain>>,
    /// A thread for the disk, which does what is asked of such an image: made once.
    ordered: Mutex<OrderedThread>,
    /// Requests pass it.
    pub(crate) gate: Arc<Gate>,
    pub(crate) stats: Stats,
    /// Who puts an image over it, or changes its length.
    changing: Mutex<()>,
    /// The device that uses it, told without a wait for what is done under the claim.
    user: OnceLock<String>,
    claim: Mutex<Claim>,
    buckets: Mutex<Buckets>,
    /// Something was written since it was last flushed.
    unflushed: AtomicBool,
    /// The errno of a flush that failed: nobody knows what of the image is on the disk. 0: none did.
    lost: AtomicI32,
    changed: Mutex<Option<Changed>>,
    /// Told of writes behind a threshold.
    told: Arc<Mutex<Option<DiskEvents>>>,
    /// Layers that it has had.
    serial: AtomicUsize,
    /// The guest was stopped because of it, for want of space or not.
    troubled: Mutex<Option<bool>>,
    /// It is stopped because of some errors.
    has_status: AtomicBool,
}

#[derive(Default)]
enum OrderedThread {
    #[default]
    Unmade,
    Made(Ordered),
    /// The disk has it.
    Taken,
}

/// What a device wants of it.
#[derive(Clone, Debug, Default)]
struct Claim {
    writes: bool,
    shared: bool,
    /// The guest is here, and the locks are taken.
    held: bool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Image {
    /// Opens its files. Nothing is locked before somebody wants it.
    pub(crate) fn open(number: usize, config: &config::Image) -> Result<Image, Error> {
        let layers = layer::open(number, config)?;
        Ok(Image {
            number,
            config: config.clone(),
            chain: Mutex::default(),
            ordered: Mutex::default(),
            gate: Arc::default(),
            stats: Stats::default(),
            changing: Mutex::default(),
            user: OnceLock::new(),
            claim: Mutex::default(),
            buckets: Mutex::new(Buckets::new(config.throttle)),
            unflushed: AtomicBool::new(false),
            lost: AtomicI32::new(0),
            changed: Mutex::new(None),
            told: Arc::default(),
            serial: AtomicUsize::new(layers.len()),
            troubled: Mutex::new(None),
            has_status: AtomicBool::new(false),
            layers: Mutex::new(layers.into()),
        })
    }

    /// The image itself, then what it stands on.
    pub(crate) fn layers(&self) -> Arc<[Arc<Layer>]> {
        lock(&self.layers).clone()
    }

    pub(crate) fn top(&self) -> Arc<Layer> {
        lock(&self.layers)[0].clone()
    }

    /// The name of the node of the format.
    pub(crate) fn node(&self) -> String {
        self.top().node.clone()
    }

    /// The name of the node below, or its own where there is none.
    pub(crate) fn file_node(&self) -> String {
        self.top().file_node.clone()
    }

    /// Whether a node of it, or its drive, is called so.
    pub(crate) fn has_name(&self, name: &str) -> bool {
        self.config.name == name || self.has_node(name)
    }

    pub(crate) fn has_node(&self, name: &str) -> bool {
        let is_of = |layer: &Arc<Layer>| layer.node == name || layer.file_node == name;
        self.layers().iter().any(is_of)
    }

    fn path(&self) -> String {
        self.top().path()
    }

    pub(crate) fn file(&self) -> Arc<File> {
        self.top().file.clone()
    }

    pub(crate) fn writable(&self) -> bool {
        self.top().writable
    }

    /// Its format was guessed, and a write could make the guess another one.
    pub(crate) fn is_guess(&self) -> bool {
        self.top().config.format == ImageFormat::Probed
    }

    /// It has tables: requests are done one after the other, by [`Image::with_chain`].
    pub(crate) fn is_ordered(&self) -> bool {
        self.top().header.is_some()
    }

    /// Its length now, a whole number of sectors: what a file lacks of the last reads as zeros.
    pub(crate) fn bytes(&self) -> u64 {
        self.top().bytes()
    }

    /// The same in sectors.
    pub(crate) fn sectors(&self) -> u64 {
        self.bytes() / SECTOR
    }

    /// What offsets and lengths must be a multiple of with `cache.direct=on`.
    pub(crate) fn alignment(&self) -> u32 {
        // A chain has memory of its own at such boundaries.
        if self.is_ordered() { 1 } else { self.top().alignment() }
    }

    /// A device will use it. Only one does.
    pub(crate) fn claim(&self, user: &str, writes: bool, shared: bool) -> Result<bool, Error> {
        let mut claim = lock(&self.claim);
        if self.is_used() {
            return Ok(false);
        }
        if writes && !self.writable() {
            return Err(Error::ReadOnly);
        }
        *claim = Claim { writes, shared, held: false };
        // Under the claim, which nobody else has.
        Ok(self.user.set(user.into()).is_ok())
    }

    /// The device that uses it.
    pub(crate) fn user(&self) -> Option<String> {
        self.user.get().cloned()
    }

    fn is_used(&self) -> bool {
        self.user.get().is_some()
    }

    /// The guest is here: takes the locks that its user needs, and opens what has tables.
    /// `was_away`: another process may have written it until now.
    pub(crate) fn take(&self, was_away: bool) -> Result<(), Error> {
        let mut claim = lock(&self.claim);
        if claim.held || !self.is_used() {
            return Ok(());
        }
        let layers = self.layers();
        let taken = self.lock_all(&layers, claim.writes, claim.shared).and_then(|()| {
            if was_away {
                layers.iter().try_for_each(|layer| layer.look_again())?;
            }
            self.open_chain(&layers, claim.writes)
        });
        if taken.is_err() {
            self.release_all(&layers);
        }
        claim.held = taken.is_ok();
        taken
    }

    fn lock_all(&self, layers: &[Arc<Layer>], writes: bool, shared: bool) -> Result<(), Error> {
        layers[0].lock(Use::Disk { writes, shared })?;
        layers[1..].iter().try_for_each(|layer| layer.lock(Use::Below))
    }

    fn release_all(&self, layers: &[Arc<Layer>]) {
        layers.iter().for_each(|layer| layer.unlock());
    }

    fn open_chain(&self, layers: &[Arc<Layer>], writes: bool) -> Result<(), Error> {
        if layers[0].header.is_none() {
            return Ok(());
        }
        let mut ordered = lock(&self.ordered);
        if matches!(*ordered, OrderedThread::Unmade) {
            let failed = |source| Error::Thread { path: layers[0].path(), source };
            *ordered = OrderedThread::Made(Ordered::new().map_err(failed)?);
        }
        *lock(&self.chain) = Some(self.chain_of(layers, writes)?);
        Ok(())
    }

    fn chain_of(&self, layers: &[Arc<Layer>], writes: bool) -> Result<Chain, Error> {
        let mut parts = layers.iter().map(|layer| layer.part()).collect::<Result<Vec<_>, _>>()?;
        let (top, told) = (&layers[0], self.told.clone());
        let node = top.file_node.clone();
        let passed = move |threshold, exceeded| {
            let node = node.clone();
            if let Some(told) = &*lock(&told) {
                told(DiskEvent::Threshold(WriteThreshold { node, threshold, exceeded }));
            }
        };
        parts[0].passed = Some(Arc::new(passed));
        let failed = |source| Error::Tables { path: top.path(), source };
        Chain::open(parts, writes).map_err(failed)
    }

    /// Who is told of writes behind a threshold.
    pub(crate) fn on_event(&self, told: DiskEvents) {
        *lock(&self.told) = Some(told);
    }

    /// A disk is about to write up to there.
    pub(crate) fn will_write(&self, end: u64) {
        let top = self.top();
        let is_raw = top.header.is_none();
        // Tables say themselves where in the file they write.
        let nodes = [(&top.watch, &top.node), (&top.file_watch, &top.file_node)];
        for (watch, node) in nodes.into_iter().take(if is_raw { 2 } else { 1 }) {
            if let Some((threshold, exceeded)) = watch.sees(end)
                && let Some(told) = &*lock(&self.told)
            {
                let node = node.clone();
                told(DiskEvent::Threshold(WriteThreshold { node, threshold, exceeded }));
            }
        }
    }

    /// The thread that does its requests; the disk has it from the first on.
    pub(crate) fn take_ordered(&self) -> Option<Ordered> {
        match std::mem::replace(&mut *lock(&self.ordered), OrderedThread::Taken) {
            OrderedThread::Made(ordered) => Some(ordered),
            _ => None,
        }
    }

    /// Does something with an image that has tables, while the guest is here.
    pub(super) fn with_chain<T>(
        &self,
        work: impl FnOnce(&mut Chain) -> io::Result<T>,
    ) -> io::Result<T> {
        match &mut *lock(&self.chain) {
            Some(chain) => work(chain),
            None => Err(io::Error::from_raw_os_error(libc::EIO)),
        }
    }

    /// The guest goes elsewhere.
    ///
    /// # Errors
    /// Its tables are not on the disk: it is open and locked as before, and [`Image::take`] leaves it
    /// so.
    pub(crate) fn let_go(&self) -> Result<(), Error> {
        let mut claim = lock(&self.claim);
        if claim.held {
            self.close_chain()?;
            claim.held = false;
            self.release_all(&self.layers());
        }
        Ok(())
    }

    /// It stays open after an error.
    fn close_chain(&self) -> Result<(), Error> {
        let mut chain = lock(&self.chain);
        if let Some(open) = &mut *chain {
            let failed = |source| Error::Flush { path: self.path(), source };
            open.close().map_err(failed)?;
        }
        *chain = None;
        Ok(())
    }

    /// Nobody else puts an image over it, or changes its length, meanwhile.
    pub(super) fn change(&self) -> MutexGuard<'_, ()> {
        lock(&self.changing)
    }

    /// The place of the next layer.
    pub(super) fn next_place(&self) -> usize {
        self.serial.fetch_add(1, Ordering::Relaxed)
    }

    /// Puts a layer that was made for `top` over it, while no request is under way.
    pub(super) fn put_over(&self, top: &Arc<Layer>, overlay: Arc<Layer>) -> Result<(), Error> {
        let claim = lock(&self.claim);
        let old = self.layers();
        if !Arc::ptr_eq(&old[0], top) {
            return Err(Error::Changed(top.path()));
        }
        let new: Arc<[_]> = [overlay.clone()].into_iter().chain(old.iter().cloned()).collect();
        if !self.is_used() {
            *lock(&self.layers) = new;
            return Ok(());
        }
        if !claim.held {
            return Err(Error::Inactive(self.path()));
        }
        let (writes, shared) = (claim.writes, claim.shared);
        overlay.lock(Use::Disk { writes, shared })?;
        if let Err(error) = self.close_chain() {
            overlay.unlock();
            return Err(error);
        }
        let done = old[0].lock(Use::Below).and_then(|()| self.open_chain(&new, writes));
        if done.is_ok() {
            *lock(&self.layers) = new;
            return Ok(());
        }
        // Nobody had it meanwhile, so that it can be had again.
        let back = old[0].lock(Use::Disk { writes, shared });
        if let Err(error) = back.and_then(|()| self.open_chain(&old, writes)) {
            say!("godwit: disk image {}: it cannot be gone on with: {error}", self.config.name);
        }
        overlay.unlock();
        done
    }

    /// Whether the guest is here, or nobody uses it.
    pub(crate) fn is_active(&self) -> bool {
        let claim = lock(&self.claim);
        claim.held || !self.is_used()
    }

    /// Its user stops the guest for some errors.
    pub(crate) fn has_status(&self) -> bool {
        self.has_status.load(Ordering::Relaxed)
    }

    pub(crate) fn set_has_status(&self, has: bool) {
        self.has_status.store(has, Ordering::Relaxed);
    }

    /// Something of it may be other than it was, whatever became of the request.
    pub(crate) fn touched(&self) {
        self.unflushed.store(true, Ordering::Release);
    }

    #[cfg(test)]
    pub(crate) fn is_unflushed(&self) -> bool {
        self.unflushed.load(Ordering::Acquire)
    }

    /// A flush of the guest's is under way.
    pub(crate) fn begin_flush(&self) {
        self.unflushed.store(false, Ordering::Release);
    }

    /// A flush came to nothing. The kernel tells of pages that it could not write once, and takes
    /// them for clean: a later flush that works says nothing of them, and none may.
    pub(crate) fn flush_failed(&self, errno: i32) {
        self.touched();
        // Tables that could not be written are still in memory.
        let is_lost = !self.is_ordered() || self.top().file_watch.has_lost();
        if is_lost && !self.top().config.cache.direct {
            self.lost.store(errno, Ordering::Release);
        }
    }

    /// Why no flush of it can work any more.
    pub(crate) fn lost(&self) -> Option<i32> {
        Some(self.lost.load(Ordering::Acquire)).filter(|errno| *errno != 0)
    }

    /// The guest is stopped because of it.
    pub(crate) fn is_in_trouble(&self, no_space: bool) {
        *lock(&self.troubled) = Some(no_space);
    }

    /// The guest goes on.
    pub(crate) fn is_well(&self) {
        *lock(&self.troubled) = None;
    }

    /// QEMU's `io-status`.
    pub(crate) fn io_status(&self) -> &'static str {
        match *lock(&self.troubled) {
            None => "ok",
            Some(true) => "nospace",
            Some(false) => "failed",
        }
    }

    /// Whether there is anything to do for a flush: with `cache.no-flush=on` the host's cache is as
    /// good as the disk, but tables in this process's memory are not.
    pub(crate) fn has_flush(&self) -> bool {
        !self.config.cache.no_flush || self.is_ordered()
    }

    /// Brings what was written to the disk.
    pub(crate) fn flush(&self) -> io::Result<()> {
        if !self.has_flush() {
            return Ok(());
        }
        if let Some(errno) = self.lost() {
            return Err(io::Error::from_raw_os_error(errno));
        }
        if self.unflushed.swap(false, Ordering::AcqRel) {
            let failed = |error: &io::Error| {
                self.flush_failed(error.raw_os_error().unwrap_or(libc::EIO));
            };
            match self.is_ordered() {
                true => self.with_chain(Chain::flush),
                false => self.file().sync_data(),
            }
            .inspect_err(failed)?;
        }
        Ok(())
    }

    /// Who is told that size or limits have changed.
    pub(crate) fn on_change(&self, told: Changed) {
        *lock(&self.changed) = Some(told);
    }

    /// Makes it so long; QEMU's rules: whole sectors, and devices are as long as they are. Only who
    /// has the guest may: with the locks of its user, or, where it has none, its own meanwhile.
    pub(crate) fn resize(&self, bytes: u64) -> Result<(), Error> {
        if !self.writable() {
            return Err(Error::ReadOnly);
        }
        let _turn = self.change();
        // Nobody takes it, or lets it go, before it is as long.
        let claim = lock(&self.claim);
        if self.is_used() {
            if !claim.held {
                return Err(Error::Inactive(self.path()));
            }
            return self.set_length(bytes);
        }
        let layers = self.layers();
        self.lock_all(&layers, true, false).inspect_err(|_| self.release_all(&layers))?;
        let done = self.resize_unused(&layers, bytes);
        let closed = self.close_chain();
        // Nobody else will close it.
        *lock(&self.chain) = None;
        self.release_all(&layers);
        done.and(closed)
    }

    fn resize_unused(&self, layers: &[Arc<Layer>], bytes: u64) -> Result<(), Error> {
        if layers[0].header.is_some() {
            layers[0].look_again()?;
            *lock(&self.chain) = Some(self.chain_of(layers, true)?);
        }
        self.set_length(bytes)
    }

    fn set_length(&self, bytes: u64) -> Result<(), Error> {
        let layers = self.layers();
        let top = &layers[0];
        let failed = |source| Error::Resize { path: top.path(), source };
        if top.header.is_some() {
            if !bytes.is_multiple_of(SECTOR) {
                return Err(Error::Sectors);
            }
            // What is below, and was behind the end, does not come to light.
            let hides = layers.get(1).is_some_and(|below| below.bytes() > top.bytes());
            self.with_chain(|chain| chain.resize(bytes, hides)).map_err(failed)?;
            top.set_bytes(bytes);
        } else if top.is_device {
            if bytes > top.file_bytes()? {
                return Err(Error::Device);
            }
            top.measure()?;
        } else {
            top.file.set_len(bytes).map_err(failed)?;
            top.measure()?;
        }
        self.tell();
        Ok(())
    }

    pub(super) fn tell(&self) {
        if let Some(told) = &*lock(&self.changed) {
            told();
        }
    }

    /// Begins a request, or says when its limits allow it.
    pub(crate) fn begin(&self, writes: bool, bytes: u64) -> Option<Instant> {
        let mut buckets = lock(&self.buckets);
        buckets.begin(Instant::now(), writes, bytes)
    }

    pub(crate) fn limits(&self) -> Throttle {
        *lock(&self.buckets).limits()
    }

    /// Sets its limits, which have passed [`Throttle::check`].
    pub(crate) fn set_limits(&self, limits: Throttle) {
        *lock(&self.buckets) = Buckets::new(limits);
        self.tell();
    }
}

#[cfg(test)]
mod tests;
