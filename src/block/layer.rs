//! One file of an image: the image itself, or one that it stands on.

use super::error::Error;
use super::locks::Permissions;
use super::probe;
use super::qcow2::{self, Header, Part, Watch, read_up_to};
use crate::config::{self, Backing, FileKind, ImageFormat};
use crate::io::proc;
use crate::output::Input;
use rustix::fs::{Advice, AtFlags, OFlags, StatxFlags, fadvise, statx};
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Seek, SeekFrom};
use std::num::NonZeroU64;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

pub(crate) const SECTOR: u64 = 512;
/// What has to be aligned with `cache.direct=on` where the file system does not tell.
const DIRECT_ALIGNMENT: u32 = 512;
/// Files of one image: a chain that a header could make is followed no further.
const LAYERS_MAX: usize = 200;

pub(crate) struct Layer {
    pub(crate) config: config::Image,
    /// How many the image had before it was opened.
    pub(crate) place: usize,
    /// The name of the node of the format.
    pub(crate) node: String,
    /// The name of the node below, or its own where there is none.
    pub(crate) file_node: String,
    /// Of a qcow2 image, as it was opened.
    pub(crate) header: Option<Header>,
    /// It is a block device.
    pub(crate) is_device: bool,
    pub(crate) writable: bool,
    pub(crate) file: Arc<File>,
    bytes: AtomicU64,
    /// Of the two nodes.
    pub(crate) watch: Arc<Watch>,
    pub(crate) file_watch: Arc<Watch>,
}

/// Opens an image and all that it stands on. `number` is its own, for the names of its nodes.
pub(super) fn open(number: usize, config: &config::Image) -> Result<Vec<Arc<Layer>>, Error> {
    let mut layers = Vec::new();
    open_into(&mut layers, number, config).map(|()| layers)
}

/// `layers` has what was opened, also where that is not all.
fn open_into(
    layers: &mut Vec<Arc<Layer>>,
    number: usize,
    config: &config::Image,
) -> Result<(), Error> {
    layers.push(Arc::new(Layer::open(number, 0, config)?));
    while let Some(top) = layers.last() {
        let Some(below) = top.below()? else { break };
        if layers.len() == LAYERS_MAX {
            return Err(Error::Deep(layers[0].path()));
        }
        let opened = Layer::open(number, layers.len(), &below);
        let opened = opened.map_err(|error| Error::Backing(Box::new(error)))?;
        if layers.iter().any(|layer| layer.is_same_file(&opened)) {
            return Err(Error::Loop { image: layers[0].path(), twice: opened.path() });
        }
        layers.push(Arc::new(opened));
    }
    Ok(())
}

/// The files of an image, as far as they are found: none of them is to be written by anybody else.
pub(crate) fn paths(config: &config::Image) -> Vec<PathBuf> {
    let read_only = config::Image { read_only: true, ..config.clone() };
    let mut layers = Vec::new();
    // Why it ends is told when the image is opened to be used.
    let _ = open_into(&mut layers, 0, &read_only);
    let below = layers.iter().skip(1).map(|layer| layer.config.path.clone());
    std::iter::once(config.path.clone()).chain(below).collect()
}

impl Layer {
    /// Opens the file. Nothing is locked before somebody wants it.
    pub(super) fn open(
        number: usize,
        place: usize,
        config: &config::Image,
    ) -> Result<Layer, Error> {
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
        let at = 2 * number + 1000 * place;
        let node = config.node.clone().unwrap_or_else(|| format!("#block{:03}", at + 1));
        let file_node = match config.format {
            ImageFormat::Bare => node.clone(),
            _ => config.file_node.clone().unwrap_or_else(|| format!("#block{at:03}")),
        };
        let mut layer = Layer {
            config: config.clone(),
            place,
            node,
            file_node,
            header: None,
            is_device: kind.is_block_device(),
            writable,
            file: Arc::new(file),
            bytes: AtomicU64::new(0),
            watch: Arc::default(),
            file_watch: Arc::default(),
        };
        if config.format == ImageFormat::Probed {
            layer.look()?;
        }
        if layer.config.format == ImageFormat::Qcow2 {
            layer.header = Some(layer.read_header()?);
        }
        layer.measure()?;
        Ok(layer)
    }

    pub(crate) fn path(&self) -> String {
        self.config.path.display().to_string()
    }

    pub(super) fn is_same_file(&self, other: &Layer) -> bool {
        self.is_file(&other.file)
    }

    pub(super) fn is_file(&self, other: &File) -> bool {
        let of = |file: &File| file.metadata().map(|found| (found.dev(), found.ino())).ok();
        of(&self.file).is_some_and(|this| of(other) == Some(this))
    }

    /// For those who would write over it.
    pub(super) fn input(&self) -> Option<Input> {
        Input::of(self.path(), &self.file)
    }

    /// The same file, which needs no memory at a boundary.
    fn indirect(&self) -> Result<File, Error> {
        let failed = |source| Error::Open { path: self.path(), source };
        proc::open(&format!("fd/{}", self.file.as_raw_fd())).map_err(failed)
    }

    /// Looks what the file is: qcow2, or raw; whatever else it might be is refused.
    fn look(&mut self) -> Result<(), Error> {
        let file = self.indirect()?;
        let mut start = [0; probe::BYTES];
        let filled = read_up_to(&file, &mut start, 0)
            .map_err(|source| Error::Open { path: self.path(), source })?;
        let path = self.path();
        match probe::format(&start[..filled]) {
            Some("qcow2") => self.config.format = ImageFormat::Qcow2,
            Some(format) => {
                return Err(Error::Format {
                    path,
                    format,
                    advice: "only raw and qcow2 images are built yet; convert it: qemu-img convert -O qcow2, or write \
                             format=raw if the guest shall see it as it is",
                });
            }
            None if self.writable => say!(
                "godwit: warning: Image format was not specified for '{path}' and probing guessed raw.\n         \
                 Automatically detecting the format is dangerous for raw images, write operations on block 0 will \
                 be restricted.\n         Specify the 'raw' format explicitly to remove the restrictions."
            ),
            None => {}
        }
        Ok(())
    }

    fn read_header(&self) -> Result<Header, Error> {
        let failed = |why| Error::Qcow2 { path: self.path(), why };
        let file = self.indirect()?;
        let header = Header::read(&file).map_err(failed)?;
        if self.writable {
            header.refuses_writes().map_err(failed)?;
            qcow2::refcounts_are_apart(&file, &header).map_err(failed)?;
        }
        Ok(header)
    }

    /// What it stands on, as the command line or its header says.
    fn below(&self) -> Result<Option<config::Image>, Error> {
        let Some(header) = &self.header else { return Ok(None) };
        let said = match (&self.config.backing, &header.backing) {
            (Backing::Image(image), _) => {
                return Ok(Some(config::Image { read_only: true, ..(**image).clone() }));
            }
            (Backing::Nothing, _) | (Backing::Header, None) => return Ok(None),
            (Backing::Header, Some(said)) => said,
        };
        let refused = |why| Err(Error::BackingName { name: said.name.clone(), why });
        let format = match said.format.as_deref() {
            Some("raw") => ImageFormat::Raw,
            Some("qcow2") => ImageFormat::Qcow2,
            Some("file" | "host_device") => ImageFormat::Bare,
            // As QEMU: it is looked at.
            None => ImageFormat::Probed,
            Some(_) => {
                return refused("its format is not built; convert it: qemu-img convert -O qcow2");
            }
        };
        let name = match said.name.split_once(':') {
            Some(("file", name)) => name,
            Some((protocol, _)) if !protocol.contains('/') => {
                return refused("it is reached by a protocol that is not built; only files are");
            }
            _ => &said.name,
        };
        Ok(Some(config::Image {
            format,
            path: beside(&self.config.path, name),
            read_only: true,
            cache: self.config.cache,
            locking: self.config.locking,
            ..config::Image::default()
        }))
    }

    /// Its length now, a whole number of sectors: what a file lacks of the last reads as zeros.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Acquire)
    }

    /// Of the file.
    pub(crate) fn file_bytes(&self) -> Result<u64, Error> {
        let failed = |source| Error::Length { path: self.path(), source };
        // A block device has no length in its attributes.
        let bytes = match self.is_device {
            true => (&*self.file).seek(SeekFrom::End(0)).map_err(failed)?,
            false => self.file.metadata().map_err(failed)?.len(),
        };
        Ok(bytes.next_multiple_of(SECTOR))
    }

    /// Asks the host how long it is.
    pub(crate) fn measure(&self) -> Result<(), Error> {
        let bytes = match &self.header {
            Some(header) => header.whole_bytes(),
            None => self.file_bytes()?,
        };
        self.set_bytes(bytes);
        Ok(())
    }

    pub(super) fn set_bytes(&self, bytes: u64) {
        self.bytes.store(bytes, Ordering::Release);
    }

    /// Another process may have written it until now: looks again.
    ///
    /// # Errors
    /// It is another image than it was.
    pub(super) fn look_again(&self) -> Result<(), Error> {
        // What this host remembers of it may be old.
        let _ = fadvise(&*self.file, 0, NonZeroU64::new(0), Advice::DontNeed);
        let Some(was) = &self.header else { return self.measure() };
        // Whoever opens it looks at the rest.
        let header = Header::read(&self.indirect()?)
            .map_err(|why| Error::Qcow2 { path: self.path(), why })?;
        if header.shape() != was.shape() {
            return Err(Error::Changed(self.path()));
        }
        self.set_bytes(header.whole_bytes());
        Ok(())
    }

    /// Bytes that it takes on the host.
    pub(crate) fn allocated(&self) -> u64 {
        self.file.metadata().map_or(0, |metadata| metadata.blocks() * SECTOR)
    }

    /// What offsets and lengths must be a multiple of with `cache.direct=on`.
    pub(super) fn alignment(&self) -> u32 {
        if !self.config.cache.direct {
            return 1;
        }
        let told = statx(&*self.file, c"", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN);
        let told = told.map_or(0, |told| told.stx_dio_offset_align);
        if told == 0 { DIRECT_ALIGNMENT } else { told }
    }

    /// What others are told of its use: by a disk that writes it or not, or by an image above it.
    pub(super) fn permissions(&self, use_: Use) -> Permissions {
        let tables = self.header.is_some();
        match use_ {
            Use::Disk { writes, shared } => Permissions {
                write: writes,
                resize: writes && tables,
                bears_writers: shared && !tables,
                bears_resizers: !tables,
            },
            Use::Below => Permissions {
                write: false,
                resize: false,
                bears_writers: false,
                bears_resizers: false,
            },
        }
    }

    /// For [`qcow2::Chain::open`].
    pub(super) fn part(&self) -> Result<Part, Error> {
        let header = self.header.as_ref().map(|_| self.read_header()).transpose()?;
        let failed = |why| Error::Qcow2 { path: self.path(), why };
        header.as_ref().map_or(Ok(()), Header::refuses_use).map_err(failed)?;
        Ok(Part {
            file: self.file.clone(),
            name: self.path(),
            header,
            watch: self.file_watch.clone(),
            alignment: self.alignment(),
            no_flush: self.config.cache.no_flush,
            passed: None,
        })
    }
}

/// Who uses a layer.
#[derive(Clone, Copy, Debug)]
pub(super) enum Use {
    Disk { writes: bool, shared: bool },
    Below,
}

/// What `name`, in a file at `path`, means.
pub(super) fn beside(path: &Path, name: &str) -> PathBuf {
    path.parent().map_or_else(|| name.into(), |folder| folder.join(name))
}

/// `name`, in a file of the name `path`, as it is opened; for those who ask.
pub(crate) fn full_name(path: &Path, name: &str) -> String {
    beside(path, name).display().to_string()
}
