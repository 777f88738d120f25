//! `-object`: what devices and the machine name by an id.

use super::draft::Draft;
use super::error::{Error, Problem};
use super::json::{Lists, json_pairs};
use super::keys::{Key, Keys, Pair, Parameter, split};
use super::{memory, value};
use crate::config::{Entropy, EntropySource, IoThread, IoThreadOptions, Memory};
use std::path::PathBuf;

const RNG_BUILTIN: &str = EntropySource::TYPES[0];
const RNG_RANDOM: &str = EntropySource::TYPES[1];

/// A source of entropy as it is read.
struct EntropyDraft {
    id: Option<String>,
    /// Of `rng-random`, QEMU's default at first.
    path: Option<PathBuf>,
}

const ENTROPY: Keys<EntropyDraft> = Keys {
    owner: "a source of entropy",
    implied: None,
    table: &[
        Key::set("id", "ID", |e, v| {
            e.id = Some(value::id(v)?);
            Ok(())
        }),
        Key::set("filename", "/dev/urandom", |e, v| match &mut e.path {
            Some(path) => {
                *path = v.into();
                Ok(())
            }
            None => Err(Problem::Refused("only rng-random has this")),
        }),
    ],
};

/// An object that is added while the machine runs, ready to be made.
pub(crate) enum Described {
    Memory(Memory),
    Entropy(EntropySource),
    IoThread(IoThreadOptions),
    Secret(SecretOptions),
}

/// A secret, as data or in a file: what passwords and keys are named by.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct SecretOptions {
    pub data: Option<String>,
    pub file: Option<PathBuf>,
    /// It is written in base64, not as it is.
    pub base64: bool,
}

impl SecretOptions {
    pub(crate) const TYPE: &str = "secret";
}

const ENCRYPTED: Problem = Problem::Refused("encrypted secrets are not built");

const SECRET: Keys<SecretOptions> = Keys {
    owner: "a secret",
    implied: None,
    table: &[
        Key::set("data", "TEXT", |o, v| {
            o.data = Some(v.to_owned());
            Ok(())
        }),
        Key::set("file", "PATH", |o, v| {
            o.file = Some(v.into());
            Ok(())
        }),
        Key::set("format", "raw|base64", |o, v| {
            o.base64 = match v {
                "raw" => false,
                "base64" => true,
                other => return Err(value::unknown(other, &["raw", "base64"])),
            };
            Ok(())
        }),
        Key::set("keyid", "TEXT", |_, _| Err(ENCRYPTED)),
        Key::set("iv", "TEXT", |_, _| Err(ENCRYPTED)),
    ],
};

const NS_MAX: u64 = i64::MAX as u64;

const IO_THREAD: Keys<IoThreadOptions> = Keys {
    owner: "an I/O thread",
    implied: None,
    table: &[
        Key::set("poll-max-ns", "N", |o, v| number(v, &mut o.poll_max_ns)),
        Key::set("poll-grow", "N", |o, v| number(v, &mut o.poll_grow)),
        Key::set("poll-shrink", "N", |o, v| number(v, &mut o.poll_shrink)),
        Key::set("aio-max-batch", "N", |o, v| number(v, &mut o.aio_max_batch)),
        Key::ignore("thread-pool-min"),
        Key::ignore("thread-pool-max"),
    ],
};

fn number(text: &str, place: &mut u64) -> Result<(), Problem> {
    *place = value::number(text, 0, NS_MAX)?;
    Ok(())
}

/// The keys of a type that can be added while the machine runs; `None` for others.
pub(crate) fn keys_of(name: &str) -> Option<Vec<Parameter>> {
    match name {
        IoThreadOptions::TYPE => Some(IO_THREAD.parameters()),
        SecretOptions::TYPE => Some(SECRET.parameters()),
        RNG_BUILTIN | RNG_RANDOM => Some(ENTROPY.parameters()),
        _ if memory::KINDS.iter().any(|(known, _)| *known == name) => {
            Some(memory::OBJECT.parameters())
        }
        _ => None,
    }
}

/// Reads an object that is added while the machine runs from its keys, without its id, which is
/// `id`.
pub(crate) fn describe(name: &str, id: &str, pairs: &[Pair]) -> Result<Described, Error> {
    if name == IoThreadOptions::TYPE {
        let mut options = IoThreadOptions::default();
        let set = |(key, value): &Pair| IO_THREAD.set(name, key, value.as_deref(), &mut options);
        return pairs.iter().try_for_each(set).map(|()| Described::IoThread(options));
    }
    if name == SecretOptions::TYPE {
        let mut options = SecretOptions::default();
        let set = |(key, value): &Pair| SECRET.set(name, key, value.as_deref(), &mut options);
        return pairs.iter().try_for_each(set).map(|()| Described::Secret(options));
    }
    match memory::backend(name, name, pairs) {
        Some(object) => object?.memory(name, id).map(Described::Memory),
        None => {
            let entropy = entropy(name, name, pairs)?;
            Ok(Described::Entropy(entropy.path.map_or(EntropySource::Builtin, EntropySource::File)))
        }
    }
}

/// What can be written behind `-object TYPE`.
pub(crate) fn parameters() -> Vec<Parameter> {
    let mut all = memory::OBJECT.parameters();
    all.extend(ENTROPY.parameters().into_iter().filter(|parameter| parameter.name != "id"));
    all.extend(IO_THREAD.parameters());
    all
}

/// Reads one `-object`, in key or in JSON form.
pub(crate) fn add(draft: &mut Draft, option: &str, text: &str) -> Result<(), Error> {
    let mut pairs = match text.trim_start().starts_with('{') {
        true => json_pairs(text, Lists::Allowed).map_err(|problem| problem.at(option))?,
        false => split(text, Some("qom-type")),
    };
    let at = pairs.iter().position(|(key, _)| key == "qom-type");
    let Some((_, Some(name))) = at.map(|at| pairs.remove(at)) else {
        return Err(Problem::MissingKey("the object's type").at(option));
    };
    if let Some(object) = memory::backend(option, &name, &pairs) {
        let object = object?;
        let id = new_id(draft, option, object.id.as_ref())?;
        draft.objects.push(id);
        draft.memory.objects.push(object);
    } else if name == IoThreadOptions::TYPE {
        let at = pairs.iter().position(|(key, _)| key == "id").map(|at| pairs.remove(at));
        let id = at.and_then(|(_, id)| id);
        let id =
            id.map(|id| value::id(&id).map_err(|problem| problem.at(format!("{option} id={id}"))));
        let id = new_id(draft, option, id.transpose()?.as_ref())?;
        let mut options = IoThreadOptions::default();
        for (key, value) in &pairs {
            IO_THREAD.set(option, key, value.as_deref(), &mut options)?;
        }
        draft.objects.push(id.clone());
        draft.io_threads.push(IoThread { id, options, in_use: false });
    } else {
        let entropy = entropy(option, &name, &pairs)?;
        let id = new_id(draft, option, entropy.id.as_ref())?;
        draft.objects.push(id.clone());
        let source = entropy.path.map_or(EntropySource::Builtin, EntropySource::File);
        draft.entropy.push(Entropy { id, source });
    }
    Ok(())
}

/// An object's id, which no other has.
fn new_id(draft: &Draft, option: &str, id: Option<&String>) -> Result<String, Error> {
    let id = id.ok_or_else(|| Problem::MissingKey("id=").at(option))?;
    match draft.objects.contains(id) {
        true => Err(Problem::DuplicateId("an object").at(format!("{option} id={id}"))),
        false => Ok(id.clone()),
    }
}

fn entropy(option: &str, name: &str, pairs: &[Pair]) -> Result<EntropyDraft, Error> {
    let path = match name {
        RNG_BUILTIN => None,
        RNG_RANDOM => Some("/dev/urandom".into()),
        other => return Err(unknown(other).at(format!("{option} {other}"))),
    };
    let mut entropy = EntropyDraft { id: None, path };
    for (key, value) in pairs {
        ENTROPY.set(option, key, value.as_deref(), &mut entropy)?;
    }
    Ok(entropy)
}

/// What the other types of `-object` are, as far as a microvm user may meet them.
const OTHER_OBJECTS: &[(&str, &str)] = &[
    ("rng-egd", "entropy from a socket is not built; write rng-random or rng-builtin"),
    ("tls-creds-x509", "TLS is not built yet"),
    ("tls-creds-psk", "TLS is not built yet"),
    ("tls-creds-anon", "TLS is not built yet"),
    ("secret", "nothing on the command line needs a secret yet; object-add takes one"),
    ("memory-backend-epc", "SGX memory is not built"),
    ("memory-backend-shm", "not built; write memory-backend-memfd,share=on"),
    (
        "throttle-group",
        "groups are not built; write the limits on the drive (throttling.bps-total=…)",
    ),
    ("filter-dump", "filters of networks are not built"),
];

/// Every type that is known, and why it cannot be had, if so.
pub(crate) fn types() -> impl Iterator<Item = (&'static str, Option<&'static str>)> {
    let built = memory::KINDS.iter().map(|(name, _)| *name).chain(EntropySource::TYPES);
    let built = built.chain([IoThreadOptions::TYPE]);
    built
        .map(|name| (name, None))
        .chain(OTHER_OBJECTS.iter().map(|(name, why)| (*name, Some(*why))))
}

/// What can be written behind the type of a source of entropy.
pub(crate) fn entropy_parameters() -> Vec<Parameter> {
    ENTROPY.parameters()
}

fn unknown(name: &str) -> Problem {
    match OTHER_OBJECTS.iter().find(|(known, _)| *known == name) {
        Some((_, reason)) => Problem::Refused(reason),
        None => {
            let [ram, file, memfd] = memory::KINDS.map(|(known, _)| known);
            value::unknown(
                name,
                &[ram, file, memfd, RNG_BUILTIN, RNG_RANDOM, IoThreadOptions::TYPE],
            )
        }
    }
}
