//! The command line of `godwit run`: QEMU's own spelling, read into a [`Config`].
//!
//! One table (`table::OPTIONS`) drives reading, help and suggestions. An option is written with one
//! dash or two. What Godwit cannot honour is refused by name, with the nearest thing it can;
//! nothing is ignored in silence.

pub mod block;
mod chardev;
mod device;
mod draft;
mod error;
mod firmware;
mod help;
mod json;
mod keys;
mod machine;
mod memory;
mod netdev;
mod object;
mod process;
mod smp;
mod table;
pub(crate) mod value;

pub(crate) use chardev::{chardev, monitor};
pub(crate) use draft::TOO_MANY;
pub(crate) use error::{Error, Error as OptionError, Errors, Problem};
pub use help::Style;
pub(crate) use keys::{Key, Keys, Pair, Parameter, ParameterType, split, switch_or_auto};
pub(crate) use machine::MODELS as CPU_MODELS;
pub(crate) use object::{
    Described, SecretOptions, describe as describe_object, keys_of as object_keys,
};
pub(crate) use value::size;

use crate::config::Config;
use crate::devices::Pluggable;
use crate::suggest::nearest;
use draft::Draft;
use std::ffi::OsString;
use table::Does;

/// What a command line asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    Run(Box<Config>),
    /// Print [`help()`].
    Help,
    /// Print what can be written behind this option, one per line.
    Keys(Vec<String>),
    Version,
}

/// Every option with its meaning, for people.
pub fn help(style: Style) -> String {
    help::page(style)
}

/// What `-version` says, in the form that clients of QEMU read.
pub fn version() -> String {
    let (major, minor, micro) = crate::qmp::version::QEMU_VERSION;
    let own = env!("CARGO_PKG_VERSION");
    format!("QEMU emulator version {major}.{minor}.{micro} (Godwit {own})")
}

/// An option that takes several keys.
pub(crate) struct Group {
    /// QEMU's name of it.
    pub name: &'static str,
    pub parameters: Vec<Parameter>,
}

/// Every option that takes keys.
pub(crate) fn groups() -> Vec<Group> {
    let group = |opt: &table::Opt| match opt.keys? {
        table::Listed::Keys(name, keys) => Some(Group { name, parameters: keys() }),
        table::Listed::Words(_) => None,
    };
    table::OPTIONS.iter().filter_map(group).collect()
}

/// What `-M` can set.
pub(crate) fn machine_parameters() -> Vec<Parameter> {
    machine::parameters()
}

/// To what it is set.
pub(crate) fn machine_values(config: &Config) -> Vec<(&'static str, serde_json::Value)> {
    machine::values(config).into_iter().filter(|(name, _)| *name != "type").collect()
}

/// What `-object memory-backend-…` can set.
pub(crate) fn memory_backend_parameters() -> Vec<Parameter> {
    memory::OBJECT.parameters()
}

/// What `-object rng-…` can set.
pub(crate) fn entropy_parameters() -> Vec<Parameter> {
    object::entropy_parameters()
}

/// A network back-end from its keys, as [`json_pairs`] makes them of a JSON object.
pub fn netdev(option: &str, pairs: &[Pair]) -> Result<crate::config::Netdev, Error> {
    netdev::of_pairs(option, pairs)
}

/// The members of a JSON object as keys and values.
pub fn json_pairs(
    members: serde_json::Map<String, serde_json::Value>,
) -> Result<Vec<Pair>, Problem> {
    json::flatten(members, json::Lists::Allowed).map_err(|_| json::SHAPE)
}

/// The driver that `-device` knows by this name, available or not.
pub(crate) fn device(driver: &str) -> Option<&'static Pluggable> {
    device::all().find(|device| device.driver == driver)
}

/// Every type that `-object` knows, and why it cannot be had, if so.
pub(crate) fn object_types() -> Vec<(&'static str, Option<&'static str>)> {
    object::types().collect()
}

/// Reads the words after `godwit run`.
pub fn parse(words: impl IntoIterator<Item = OsString>) -> Result<Request, Errors> {
    let mut draft = Draft::default();
    let mut errors = Vec::new();
    let mut words = words.into_iter().map(utf8).peekable();
    while let Some(word) = words.next() {
        let result = word.and_then(|word| {
            let (opt, value) = match option(&word) {
                Ok(found) => found,
                Err(error) => {
                    // What follows a word that means nothing is taken for its value, so that it
                    // draws no error of its own.
                    words.next_if(|next| next.as_ref().is_ok_and(|next| !next.starts_with('-')));
                    return Err(error);
                }
            };
            let value = match (opt.value, value) {
                (Some(_), Some(value)) => value,
                (Some(placeholder), None) => words
                    .next()
                    .unwrap_or_else(|| Err(Problem::NeedsValue { placeholder }.at(&*word)))?,
                (None, Some(_)) => return Err(Problem::TakesNoValue.at(word)),
                (None, None) => String::new(),
            };
            let asked = ["help", "?"].contains(&value.as_str());
            if let Some(names) = opt.names_help.filter(|_| asked) {
                return Ok(Some(Request::Keys(names())));
            }
            let behind = value.ends_with(",help") || value.ends_with(",?");
            if let Some(keys) = opt.keys.filter(|_| asked || behind && opt.names_help.is_some()) {
                return Ok(Some(Request::Keys(keys.rows())));
            }
            if let Some(keys) = device::properties(&value).filter(|_| opt.names[0] == "device") {
                return Ok(Some(Request::Keys(keys)));
            }
            draft.apply(opt, word.split('=').next().unwrap_or(&word), &value).map(|()| None)
        });
        match result {
            Ok(None) => {}
            Ok(Some(request)) => return Ok(request),
            Err(error) => errors.push(error),
        }
    }
    match () {
        () if draft.help => Ok(Request::Help),
        () if draft.version => Ok(Request::Version),
        () if !errors.is_empty() => Err(Errors(errors)),
        () => draft.finish().map(|config| Request::Run(Box::new(config))),
    }
}

fn utf8(word: OsString) -> Result<String, Error> {
    word.into_string().map_err(|word| Problem::NotUtf8.at(word.to_string_lossy()))
}

/// The option that a word names, and the value written behind `=` in the form `--option=value`.
fn option(word: &str) -> Result<(&'static table::Opt, Option<String>), Error> {
    let bare = word.strip_prefix("--").or_else(|| word.strip_prefix('-'));
    let Some(name) = bare.filter(|name| !name.is_empty()) else {
        let nearest = nearest(word, table::names()).map(|name| format!("-{name}"));
        return Err(Problem::StrayWord { nearest }.at(word));
    };
    if let Some(opt) = table::find(name) {
        return Ok((opt, None));
    }
    if let Some((name, value)) = name.split_once('=').filter(|_| word.starts_with("--"))
        && let Some(opt) = table::find(name)
    {
        return Ok((opt, Some(value.into())));
    }
    let nearest = nearest(name, table::names()).map(|name| format!("-{name}"));
    Err(Problem::UnknownOption { nearest }.at(word))
}

impl Draft {
    fn apply(&mut self, opt: &table::Opt, typed: &str, value: &str) -> Result<(), Error> {
        match &opt.does {
            Does::Set(set) => set(self, typed, value),
            Does::Ignore => {
                self.nodefaults |= opt.names[0] == "nodefaults";
                Ok(())
            }
            Does::Only(accepted) if accepted.contains(&value) => Ok(()),
            Does::Only(_) => Err(Problem::Refused(opt.help).at(format!("{typed} {value}"))),
            Does::Refuse => Err(Problem::Refused(opt.help).at(typed)),
        }
    }
}

#[cfg(test)]
mod every;
#[cfg(test)]
mod tests;
