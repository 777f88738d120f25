//! One image: its file, its size, and who may use it.

use super::error::Error;
use super::stats::Stats;
use super::throttle::Buckets;
use super::{locks, probe};
use crate::config::{self, FileKind, ImageFormat, Throttle};
use rustix::fs::{Advice, AtFlags, OFlags, StatxFlags, fadvise, statx};
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Seek, SeekFrom};
use std::num::NonZeroU64;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

pub(crate) const SECTOR: u64 = 512;
/// What has to be aligned with `cache.direct=on` where the file system does not tell.
const DIRECT_ALIGNMENT: u32 = 512;

/// Called when the size of an image, or its limits, have changed.
type Changed = Box<dyn Fn() + Send + Sync>;

pub struct Image {
    /// Its place on the command line.
    pub(crate) number: usize,
    pub(crate) config: config::Image,
    file: Arc<File>,
    /// It is a block device.
    pub(crate) is_device: bool,
    pub(crate) writable: bool,
    bytes: AtomicU64,
    pub(crate) stats: Stats,
    claim: Mutex<Claim>,
    buckets: Mutex<Buckets>,
    /// Something was written since it was last flushed.
    unflushed: AtomicBool,
    /// The errno of a flush that failed: nobody knows what of the image is on the disk. 0: none did.
    lost: AtomicI32,
    changed: Mutex<Option<Changed>>,
    /// The guest was stopped because of it, for want of space or not.
    troubled: Mutex<Option<bool>>,
    /// It is stopped because of some errors.
    has_status: AtomicBool,
}

/// What a device wants of it.
#[derive(Clone, Debug, Default)]
struct Claim {
    /// The device; `None`: nobody uses it.
    user: Option<String>,
    writes: bool,
    shared: bool,
    /// The guest is here, and the locks are taken.
    held: bool,
}

impl Image {
    /// Opens the file. Nothing is locked before somebody wants it.
    pub(crate) fn open(number: usize, config: &config::Image) -> Result<Image, Error> {
        let path = config.path.display().to_string();
        let open = |write: bool| {
            let mut options = OpenOptions::new();
            let flags = OFlags::NONBLOCK
                | if config.cache.direct { OFlags::DIRECT } else { OFlags::empty() };
            options.read(true).write(write).custom_flags(flags.bits() as i32);
            options.open(&config.path)
        };
        let failed = |source| Error::Open { path: path.clone(), source };
        if std::fs::metadata(&config.path).map_err(failed)?.is_dir() {
            return Err(Error::NotRegular(path));
        }
        let (file, writable) = match open(!config.read_only) {
            Ok(file) => (file, !config.read_only),
            Err(error)
                if config.auto_read_only
                    && matches!(
                        error.kind(),
                        ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem
                    ) =>
            {
                (open(false).map_err(failed)?, false)
            }
            Err(error) => return Err(failed(error)),
        };
        let kind = file.metadata().map_err(failed)?.file_type();
        match (config.kind, kind.is_file(), kind.is_block_device()) {
            (None | Some(FileKind::Regular), true, _)
            | (None | Some(FileKind::HostDevice), _, true) => {}
            (Some(FileKind::Regular), ..) => return Err(Error::NotRegular(path)),
            (Some(FileKind::HostDevice), ..) => return Err(Error::NotDevice(path)),
            (None, ..) => return Err(Error::NoImage(path)),
        }
        let image = Image {
            number,
            config: config.clone(),
            file: Arc::new(file),
            is_device: kind.is_block_device(),
            writable,
            bytes: AtomicU64::new(0),
            stats: Stats::default(),
            claim: Mutex::default(),
            buckets: Mutex::new(Buckets::new(config.throttle)),
            unflushed: AtomicBool::new(false),
            lost: AtomicI32::new(0),
            changed: Mutex::new(None),
            troubled: Mutex::new(None),
            has_status: AtomicBool::new(false),
        };
        image.measure()?;
        if config.format == ImageFormat::Probed {
            image.look()?;
        }
        Ok(image)
    }

    /// The name of the node of the format.
    pub(crate) fn node(&self) -> String {
        self.config.node.clone().unwrap_or_else(|| format!("#block{:03}", 2 * self.number + 1))
    }

    /// The name of the node below, or its own where there is none.
    pub(crate) fn file_node(&self) -> String {
        match self.config.format {
            ImageFormat::Bare => self.node(),
            _ => {
                let made = || format!("#block{:03}", 2 * self.number);
                self.config.file_node.clone().unwrap_or_else(made)
            }
        }
    }

    /// Whether a node of it, or its drive, is called so.
    pub(crate) fn has_name(&self, name: &str) -> bool {
        self.config.name == name || self.node() == name || self.file_node() == name
    }

    fn path(&self) -> String {
        self.config.path.display().to_string()
    }

    /// Looks what the file is. Raw it is, whatever else it might be is refused.
    fn look(&self) -> Result<(), Error> {
        // Direct reads want aligned memory; a descriptor of its own does without.
        let failed = |source| Error::Open { path: self.path(), source };
        let file = File::open(&self.config.path).map_err(failed)?;
        let mut start = [0; probe::BYTES];
        let mut filled = 0;
        while filled < start.len() {
            match file.read_at(&mut start[filled..], filled as u64) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(failed(error)),
            }
        }
        let path = self.path();
        match probe::format(&start[..filled]) {
            Some(format) => Err(Error::Format {
                path,
                format,
                advice: "only raw images are built yet; convert it: qemu-img convert -O raw, or write format=raw if \
                         the guest shall see it as it is",
            }),
            None => {
                say!(
                    "godwit: warning: Image format was not specified for '{path}' and probing guessed raw.\n         \
                     Automatically detecting the format is dangerous for raw images, write operations on block 0 will \
                     be restricted.\n         Specify the 'raw' format explicitly to remove the restrictions."
                );
                Ok(())
            }
        }
    }

    pub(crate) fn file(&self) -> &Arc<File> {
        &self.file
    }

    /// Its length now, a whole number of sectors: what a file lacks of the last reads as zeros.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Acquire)
    }

    /// The same in sectors.
    pub(crate) fn sectors(&self) -> u64 {
        self.bytes() / SECTOR
    }

    /// Asks the host how long it is.
    pub(crate) fn measure(&self) -> Result<(), Error> {
        let failed = |source| Error::Length { path: self.path(), source };
        // A block device has no length in its attributes.
        let bytes = match self.is_device {
            true => (&*self.file).seek(SeekFrom::End(0)).map_err(failed)?,
            false => self.file.metadata().map_err(failed)?.len(),
        };
        self.bytes.store(bytes.next_multiple_of(SECTOR), Ordering::Release);
        Ok(())
    }

    /// Bytes that it takes on the host.
    pub(crate) fn allocated(&self) -> u64 {
        self.file.metadata().map_or(0, |metadata| metadata.blocks() * SECTOR)
    }

    /// What offsets and lengths must be a multiple of with `cache.direct=on`.
    pub(crate) fn alignment(&self) -> u32 {
        if !self.config.cache.direct {
            return 1;
        }
        let told = statx(&*self.file, c"", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN);
        let told = told.map_or(0, |told| told.stx_dio_offset_align);
        if told == 0 { DIRECT_ALIGNMENT } else { told }
    }

    /// A device will use it. Only one does.
    pub(crate) fn claim(&self, user: &str, writes: bool, shared: bool) -> Result<bool, Error> {
        let mut claim = self.claim.lock().unwrap_or_else(PoisonError::into_inner);
        if claim.user.is_some() {
            return Ok(false);
        }
        if writes && !self.writable {
            return Err(Error::ReadOnly);
        }
        *claim = Claim { user: Some(user.into()), writes, shared, held: false };
        Ok(true)
    }

    /// The device that uses it.
    pub(crate) fn user(&self) -> Option<String> {
        self.claim.lock().unwrap_or_else(PoisonError::into_inner).user.clone()
    }

    /// The guest is here: takes the locks that its user needs. `was_away`: another process may have
    /// written it until now.
    pub(crate) fn take(&self, was_away: bool) -> Result<(), Error> {
        let mut claim = self.claim.lock().unwrap_or_else(PoisonError::into_inner);
        if claim.held || claim.user.is_none() {
            return Ok(());
        }
        if self.config.locking {
            locks::take(&self.file, &self.path(), claim.writes, claim.shared)?;
        }
        if was_away {
            // What this host remembers of it may be old.
            let _ = fadvise(&*self.file, 0, NonZeroU64::new(0), Advice::DontNeed);
            self.measure()?;
        }
        claim.held = true;
        Ok(())
    }

    /// The guest goes elsewhere.
    pub(crate) fn let_go(&self) {
        let mut claim = self.claim.lock().unwrap_or_else(PoisonError::into_inner);
        if std::mem::take(&mut claim.held) && self.config.locking {
            locks::release(&self.file);
        }
    }

    /// Whether the guest is here, or nobody uses it.
    pub(crate) fn is_active(&self) -> bool {
        let claim = self.claim.lock().unwrap_or_else(PoisonError::into_inner);
        claim.held || claim.user.is_none()
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
        if !self.config.cache.direct {
            self.lost.store(errno, Ordering::Release);
        }
    }

    /// Why no flush of it can work any more.
    pub(crate) fn lost(&self) -> Option<i32> {
        Some(self.lost.load(Ordering::Acquire)).filter(|errno| *errno != 0)
    }

    /// The guest is stopped because of it.
    pub(crate) fn is_in_trouble(&self, no_space: bool) {
        *self.troubled.lock().unwrap_or_else(PoisonError::into_inner) = Some(no_space);
    }

    /// The guest goes on.
    pub(crate) fn is_well(&self) {
        *self.troubled.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// QEMU's `io-status`.
    pub(crate) fn io_status(&self) -> &'static str {
        match *self.troubled.lock().unwrap_or_else(PoisonError::into_inner) {
            None => "ok",
            Some(true) => "nospace",
            Some(false) => "failed",
        }
    }

    /// Brings what was written to the disk.
    pub(crate) fn flush(&self) -> io::Result<()> {
        if self.config.cache.no_flush {
            return Ok(());
        }
        if let Some(errno) = self.lost() {
            return Err(io::Error::from_raw_os_error(errno));
        }
        if self.unflushed.swap(false, Ordering::AcqRel) {
            let failed = |error: &io::Error| {
                self.flush_failed(error.raw_os_error().unwrap_or(libc::EIO));
            };
            self.file.sync_data().inspect_err(failed)?;
        }
        Ok(())
    }

    /// Who is told that size or limits have changed.
    pub(crate) fn on_change(&self, told: Changed) {
        *self.changed.lock().unwrap_or_else(PoisonError::into_inner) = Some(told);
    }

    /// Makes it so long; QEMU's rules: whole sectors, and devices are as long as they are. Only who
    /// has the guest may: with the locks of its user, or, where it has none, its own meanwhile.
    pub(crate) fn resize(&self, bytes: u64) -> Result<(), Error> {
        if !self.writable {
            return Err(Error::ReadOnly);
        }
        // Nobody takes it, or lets it go, before it is as long.
        let claim = self.claim.lock().unwrap_or_else(PoisonError::into_inner);
        if claim.user.is_some() {
            if !claim.held {
                return Err(Error::Inactive(self.path()));
            }
            return self.set_length(bytes);
        }
        if !self.config.locking {
            return self.set_length(bytes);
        }
        locks::take(&self.file, &self.path(), true, false)?;
        let done = self.set_length(bytes);
        locks::release(&self.file);
        done
    }

    fn set_length(&self, bytes: u64) -> Result<(), Error> {
        if self.is_device {
            if bytes > self.bytes() {
                return Err(Error::Device);
            }
        } else {
            let failed = |source| Error::Resize { path: self.path(), source };
            self.file.set_len(bytes).map_err(failed)?;
        }
        self.measure()?;
        self.tell();
        Ok(())
    }

    fn tell(&self) {
        if let Some(told) = &*self.changed.lock().unwrap_or_else(PoisonError::into_inner) {
            told();
        }
    }

    /// Begins a request, or says when its limits allow it.
    pub(crate) fn begin(&self, writes: bool, bytes: u64) -> Option<Instant> {
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        buckets.begin(Instant::now(), writes, bytes)
    }

    pub(crate) fn limits(&self) -> Throttle {
        *self.buckets.lock().unwrap_or_else(PoisonError::into_inner).limits()
    }

    /// Sets its limits, which have passed [`Throttle::check`].
    pub(crate) fn set_limits(&self, limits: Throttle) {
        *self.buckets.lock().unwrap_or_else(PoisonError::into_inner) = Buckets::new(limits);
        self.tell();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(change: impl FnOnce(&mut config::Image)) -> (Image, tempfile::NamedTempFile) {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(1 << 16).unwrap();
        let mut wanted = config::Image {
            name: "d".into(),
            path: file.path().into(),
            locking: true,
            ..config::Image::default()
        };
        change(&mut wanted);
        (Image::open(0, &wanted).unwrap(), file)
    }

    #[test]
    fn an_image_is_resized_only_where_the_guest_is() {
        let (image, file) = image(|_| {});
        let length = || file.as_file().metadata().unwrap().len();
        image.resize(1 << 17).unwrap();
        image.claim("disk", true, false).unwrap();
        // The guest has not come yet.
        assert!(matches!(image.resize(512), Err(Error::Inactive(_))));
        image.take(true).unwrap();
        image.resize(1 << 18).unwrap();
        let other = Image::open(1, &image.config).unwrap();
        assert!(matches!(other.resize(512), Err(Error::Locked { .. })));
        image.let_go();
        assert!(matches!(image.resize(512), Err(Error::Inactive(_))));
        assert_eq!(length(), 1 << 18);
        other.resize(1 << 16).unwrap();
        // It gave back what it took.
        image.take(true).unwrap();
    }

    #[test]
    fn a_flush_that_failed_is_never_forgotten() {
        for (direct, lost) in [(false, true), (true, false)] {
            let (image, _file) = image(|image| image.cache.direct = direct);
            image.flush().unwrap();
            image.flush_failed(libc::EIO);
            assert!(image.is_unflushed());
            for _ in 0..2 {
                assert_eq!(image.flush().is_err(), lost, "{direct}");
            }
        }
        let (image, _file) = image(|image| image.cache.no_flush = true);
        image.flush_failed(libc::EIO);
        image.flush().unwrap();
    }
}
