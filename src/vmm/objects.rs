//! Objects that came after the machine was built (`object-add`).
//!
//! Nothing on this board can be given one any more, so that each may go again at any time. Until then
//! it holds what it names: its memory is mapped, its file open, its thread there.

use std::fs::File;
use std::io::{self, Read};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread::{Builder, JoinHandle};

use serde_json::json;

use crate::args::{Described, SecretOptions};
use crate::config::{Config, EntropySource, IoThreadOptions};
use crate::kvm;
use crate::machine::Object;
use crate::memory::{self, GuestRam};

/// Why an object could not be made.
#[derive(Debug, thiserror::Error)]
pub enum ObjectError {
    #[error("attempt to add duplicate property '{0}' to object (type 'container')")]
    Exists(String),
    #[error(transparent)]
    Memory(#[from] memory::Error),
    #[error("Could not open '{path}': {}", crate::io::reason(source))]
    Open { path: String, source: io::Error },
    #[error("no thread for it: {0}")]
    Thread(io::Error),
    #[error("Either 'file' or 'data' must be provided")]
    NoSecret,
    #[error("'file' and 'data' are mutually exclusive")]
    TwoSecrets,
    #[error("Unable to read {path}: {}", crate::io::reason(source))]
    Secret { path: String, source: io::Error },
    #[error("Unable to read {path}: it has more than {SECRET_BYTES_MAX} bytes")]
    LongSecret { path: String },
    #[error("Base64 data contains invalid characters")]
    NotBase64,
}

/// More than any key or password has.
const SECRET_BYTES_MAX: u64 = 1 << 20;

/// One that was added.
struct Added {
    id: String,
    /// A device names it.
    in_use: bool,
    described: Described,
    held: Held,
}

/// What it has of the host, given back when it goes.
enum Held {
    Nothing,
    Memory(#[expect(dead_code, reason = "mapped until it goes")] GuestRam),
    File(#[expect(dead_code, reason = "open until it goes")] File),
    Thread(IoThread),
}

/// A thread that waits to be given work. It ends when this is dropped.
struct IoThread {
    id: i32,
    end: Arc<(Mutex<bool>, Condvar)>,
    thread: Option<JoinHandle<()>>,
}

/// An I/O thread as others see it.
pub(crate) struct IoThreadInfo {
    pub id: String,
    pub thread_id: i32,
    pub options: IoThreadOptions,
}

/// All of them.
#[derive(Default)]
pub struct Objects(Mutex<Vec<Added>>);

impl Objects {
    /// Makes the object `id` of what is described. May take long: files are opened, memory touched.
    pub(crate) fn add(&self, id: &str, described: Described) -> Result<(), ObjectError> {
        let exists = |all: &[Added]| match all.iter().any(|added| added.id == id) {
            true => Err(ObjectError::Exists(id.to_owned())),
            false => Ok(()),
        };
        exists(&self.lock())?;
        let held = Held::of(&described)?;
        let mut all = self.lock();
        exists(&all)?;
        all.push(Added { id: id.to_owned(), in_use: false, described, held });
        Ok(())
    }

    /// Makes those of the command line, which stay while a device names them.
    pub(crate) fn begin(&self, config: &Config) -> Result<(), ObjectError> {
        for thread in &config.io_threads {
            self.add(&thread.id, Described::IoThread(thread.options))?;
        }
        let used =
            |id: &str| config.io_threads.iter().any(|thread| thread.in_use && thread.id == id);
        self.lock().iter_mut().for_each(|added| added.in_use = used(&added.id));
        Ok(())
    }

    /// False: there is none of this name, or it is in use.
    pub(crate) fn remove(&self, id: &str) -> bool {
        let mut all = self.lock();
        let at = all.iter().position(|added| added.id == id && !added.in_use);
        let gone = at.map(|at| all.remove(at));
        // A thread is waited for, memory unmapped: without the lock.
        drop(all);
        gone.is_some()
    }

    /// As the tree shows them, by their names.
    pub(crate) fn shown(&self) -> Vec<(String, Object)> {
        self.lock().iter().map(|added| (added.id.clone(), shown(&added.described))).collect()
    }

    pub(crate) fn io_threads(&self) -> Vec<IoThreadInfo> {
        let all = self.lock();
        let info = |added: &Added| match (&added.held, &added.described) {
            (Held::Thread(thread), Described::IoThread(options)) => {
                Some(IoThreadInfo { id: added.id.clone(), thread_id: thread.id, options: *options })
            }
            _ => None,
        };
        all.iter().filter_map(info).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Added>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn shown(described: &Described) -> Object {
    match described {
        Described::Memory(memory) => Object::of_memory(memory),
        Described::Entropy(source) => Object::of(source.type_name()),
        Described::IoThread(options) => {
            let mut object = Object::of(IoThreadOptions::TYPE);
            object.properties = vec![
                ("poll-max-ns", json!(options.poll_max_ns)),
                ("poll-grow", json!(options.poll_grow)),
                ("poll-shrink", json!(options.poll_shrink)),
                ("aio-max-batch", json!(options.aio_max_batch)),
            ];
            object
        }
        Described::Secret(secret) => {
            let file = secret.file.as_ref().map(|file| file.display().to_string());
            let mut object = Object::of(SecretOptions::TYPE);
            object.properties = vec![
                ("data", json!(secret.data.as_deref().unwrap_or(""))),
                ("file", json!(file.unwrap_or_default())),
                ("format", json!(if secret.base64 { "base64" } else { "raw" })),
                ("keyid", json!("")),
                ("iv", json!("")),
            ];
            object
        }
    }
}

/// Reads a secret and checks it, as it would be used. Nothing uses one yet, so that none is kept.
fn check(secret: &SecretOptions) -> Result<(), ObjectError> {
    let bytes = match (&secret.data, &secret.file) {
        (Some(_), Some(_)) => return Err(ObjectError::TwoSecrets),
        (None, None) => return Err(ObjectError::NoSecret),
        (Some(data), None) => data.clone().into_bytes(),
        (None, Some(file)) => {
            let path = file.display().to_string();
            let mut bytes = Vec::new();
            let opened = File::open(file);
            let read =
                opened.and_then(|file| file.take(SECRET_BYTES_MAX + 1).read_to_end(&mut bytes));
            match read {
                Err(source) => return Err(ObjectError::Secret { path, source }),
                Ok(_) if bytes.len() as u64 > SECRET_BYTES_MAX => {
                    return Err(ObjectError::LongSecret { path });
                }
                Ok(_) => bytes,
            }
        }
    };
    let known = |byte: &u8| byte.is_ascii_alphanumeric() || b"+/=\n".contains(byte);
    match !secret.base64 || bytes.iter().all(known) {
        true => Ok(()),
        false => Err(ObjectError::NotBase64),
    }
}

impl Held {
    fn of(described: &Described) -> Result<Held, ObjectError> {
        Ok(match described {
            Described::Memory(memory) => Held::Memory(GuestRam::new(memory)?),
            Described::Entropy(EntropySource::Builtin) => Held::Nothing,
            Described::Entropy(EntropySource::File(path)) => {
                let failed =
                    |source| ObjectError::Open { path: path.display().to_string(), source };
                Held::File(File::open(path).map_err(failed)?)
            }
            Described::Secret(secret) => check(secret).map(|()| Held::Nothing)?,
            Described::IoThread(_) => Held::Thread(IoThread::start().map_err(ObjectError::Thread)?),
        })
    }
}

impl IoThread {
    fn start() -> io::Result<IoThread> {
        let end = Arc::new((Mutex::new(false), Condvar::new()));
        let over = end.clone();
        let (tell, told) = mpsc::channel();
        let main = move || {
            let _ = tell.send(kvm::thread_id());
            let (over, changed) = &*over;
            let over = over.lock().unwrap_or_else(PoisonError::into_inner);
            drop(changed.wait_while(over, |over| !*over));
        };
        let thread = Builder::new().name("iothread".into()).stack_size(64 << 10).spawn(main)?;
        let id = told.recv().map_err(io::Error::other)?;
        Ok(IoThread { id, end, thread: Some(thread) })
    }
}

impl Drop for IoThread {
    fn drop(&mut self) {
        let (over, changed) = &*self.end;
        *over.lock().unwrap_or_else(PoisonError::into_inner) = true;
        changed.notify_all();
        if let Some(thread) = self.thread.take() {
            // It cannot panic.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_is_there_as_long_as_its_object() {
        let objects = Objects::default();
        let options = IoThreadOptions::default();
        objects.add("io0", Described::IoThread(options)).unwrap();
        let again = objects.add("io0", Described::IoThread(options)).unwrap_err().to_string();
        assert_eq!(again, "attempt to add duplicate property 'io0' to object (type 'container')");
        let thread = objects.io_threads().remove(0);
        let task = format!("/proc/self/task/{}/comm", thread.thread_id);
        assert_eq!(std::fs::read_to_string(&task).unwrap(), "iothread\n");
        assert!(objects.remove("io0") && !objects.remove("io0"));
        assert!(objects.io_threads().is_empty());
    }
}
