//! The `key=value,key=value` part of an option, driven by a table of its keys.

use super::error::{Error, Problem};
use super::value;
use crate::suggest::nearest;
use serde_json::Value as Json;

/// One key that an option knows. `T` is what the option fills in.
pub(crate) struct Key<T> {
    pub name: &'static str,
    /// What help shows behind the `=`.
    pub value: &'static str,
    pub does: Does<T>,
    /// What was set, for those who ask later.
    shows: Option<fn(&T) -> Json>,
}

pub(crate) enum Does<T> {
    Set(fn(&mut T, &str) -> Result<(), Problem>),
    /// These values change nothing here; any other is refused for the reason given.
    Only(&'static [&'static str], &'static str),
    /// Accepted with any value: it has no meaning here.
    Ignore,
    Refuse(&'static str),
}

impl<T> Key<T> {
    pub(crate) const fn set(
        name: &'static str,
        value: &'static str,
        set: fn(&mut T, &str) -> Result<(), Problem>,
    ) -> Key<T> {
        Key { name, value, does: Does::Set(set), shows: None }
    }

    /// One of which can be told what is set.
    pub(crate) const fn shown(
        name: &'static str,
        value: &'static str,
        set: fn(&mut T, &str) -> Result<(), Problem>,
        shows: fn(&T) -> Json,
    ) -> Key<T> {
        Key { name, value, does: Does::Set(set), shows: Some(shows) }
    }

    /// What can be known of its value: what was set, or the only one there is.
    fn value_in(&self, target: &T) -> Option<Json> {
        match (self.shows, &self.does) {
            (Some(shows), _) => Some(shows(target)),
            (None, Does::Only(accepted, _)) => Some(match value::switch(accepted[0]) {
                Ok(on) => on.into(),
                Err(_) => accepted[0].into(),
            }),
            _ => None,
        }
    }

    pub(crate) const fn only(
        name: &'static str,
        accepted: &'static [&'static str],
        reason: &'static str,
    ) -> Key<T> {
        Key { name, value: accepted[0], does: Does::Only(accepted, reason), shows: None }
    }

    pub(crate) const fn ignore(name: &'static str) -> Key<T> {
        Key { name, value: "…", does: Does::Ignore, shows: None }
    }

    pub(crate) const fn refuse(name: &'static str, reason: &'static str) -> Key<T> {
        Key { name, value: "…", does: Does::Refuse(reason), shows: None }
    }
}

/// A part of the machine that can be switched, and decides itself as long as nothing is said.
macro_rules! switch_or_auto {
    ($name:expr) => {
        $crate::args::Key::shown(
            $name,
            "on|off|auto",
            |switches, text| {
                switches.say($name, $crate::args::value::switch_or_auto(text)?);
                Ok(())
            },
            |switches| switches.said($name).into(),
        )
    };
}
pub(crate) use switch_or_auto;

/// A key as others see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Parameter {
    pub name: &'static str,
    /// What help shows behind the `=`.
    pub value: &'static str,
}

/// The types that QEMU has for what stands behind a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ParameterType {
    String,
    Boolean,
    Number,
    Size,
}

impl ParameterType {
    pub(crate) const NAMES: &[&str] = &["string", "boolean", "number", "size"];

    pub(crate) fn name(self) -> &'static str {
        Self::NAMES[self as usize]
    }
}

impl Parameter {
    /// Follows from what help shows.
    pub(crate) fn of(&self) -> ParameterType {
        match self.value {
            "on|off" | "on" | "off" => ParameterType::Boolean,
            "SIZE" => ParameterType::Size,
            "N" => ParameterType::Number,
            value if value::number(value, 0, u64::MAX).is_ok() => ParameterType::Number,
            _ => ParameterType::String,
        }
    }
}

/// For help: `name=value`.
pub(crate) fn rows(parameters: &[Parameter]) -> Vec<String> {
    parameters.iter().map(|of| format!("{}={}", of.name, of.value)).collect()
}

/// A key and its value, as typed.
pub(crate) type Pair = (String, Option<String>);

/// An option whose value is a list of keys.
pub(crate) struct Keys<T: 'static> {
    /// How error messages call it: "microvm", "a socket".
    pub owner: &'static str,
    /// The key that a first word without `=` stands for.
    pub implied: Option<&'static str>,
    pub table: &'static [Key<T>],
}

impl<T> Keys<T> {
    /// The keys that can be given.
    pub(crate) fn parameters(&self) -> Vec<Parameter> {
        let shown = self.table.iter().filter(|k| !matches!(k.does, Does::Refuse(_)));
        shown.map(|k| Parameter { name: k.name, value: k.value }).collect()
    }

    /// The keys whose values in `target` can be known, and these.
    pub(crate) fn values(&self, target: &T) -> Vec<(&'static str, Json)> {
        self.table.iter().filter_map(|key| Some((key.name, key.value_in(target)?))).collect()
    }

    /// The same for help: `name=value`.
    pub(crate) fn rows(&self) -> Vec<String> {
        rows(&self.parameters())
    }

    /// Reads `text` into `target`. `option` is the option as typed.
    pub(crate) fn read(&self, option: &str, text: &str, target: &mut T) -> Result<(), Error> {
        for (key, value) in split(text, self.implied) {
            self.set(option, &key, value.as_deref(), target)?;
        }
        Ok(())
    }

    /// A new target with `pairs` in it.
    pub(crate) fn fill(&self, option: &str, pairs: &[Pair]) -> Result<T, Error>
    where
        T: Default,
    {
        let mut target = T::default();
        for (key, value) in pairs {
            self.set(option, key, value.as_deref(), &mut target)?;
        }
        Ok(target)
    }

    /// Sets one key. A key without a value is a switch turned on, or off with `no` in front.
    pub(crate) fn set(
        &self,
        option: &str,
        key: &str,
        value: Option<&str>,
        target: &mut T,
    ) -> Result<(), Error> {
        let known = |name: &str| self.table.iter().find(|k| k.name == name);
        let bare = key.strip_prefix("no").and_then(known).map(|k| (k, "off"));
        let found =
            known(key).map(|k| (k, value.unwrap_or("on"))).or(bare.filter(|_| value.is_none()));
        let place = match (value, self.implied == Some(key)) {
            (Some(value), true) => format!("{option} {value}"),
            (Some(value), false) => format!("{option} {key}={value}"),
            (None, _) => format!("{option} {key}"),
        };
        let Some((known, value)) = found else {
            let names = self.table.iter().map(|k| k.name);
            let nearest = nearest(key, names).map(String::from);
            return Err(Problem::UnknownKey { owner: self.owner, nearest }.at(place));
        };
        match &known.does {
            Does::Set(set) => set(target, value),
            Does::Ignore => Ok(()),
            Does::Only(accepted, reason) => only(value, accepted, reason),
            Does::Refuse(reason) => Err(Problem::Refused(reason)),
        }
        .map_err(|problem| problem.at(place))
    }
}

fn only(value: &str, accepted: &[&'static str], reason: &'static str) -> Result<(), Problem> {
    let same = |name: &&str| {
        *name == value
            || matches!((value::switch(name), value::switch(value)), (Ok(a), Ok(b)) if a == b)
    };
    match accepted.iter().any(same) {
        true => Ok(()),
        false => Err(Problem::Refused(reason)),
    }
}

/// Splits at single commas (`,,` is a comma in a value) into keys and values.
pub(crate) fn split(text: &str, implied: Option<&str>) -> Vec<(String, Option<String>)> {
    let mut pairs = Vec::new();
    for (index, piece) in pieces(text).into_iter().enumerate() {
        if piece.is_empty() {
            continue;
        }
        pairs.push(match (piece.split_once('='), implied) {
            (Some((key, value)), _) => (key.into(), Some(value.into())),
            (None, Some(implied)) if index == 0 => (implied.into(), Some(piece)),
            (None, _) => (piece, None),
        });
    }
    pairs
}

fn pieces(text: &str) -> Vec<String> {
    let mut pieces = vec![String::new()];
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        if c == ',' && chars.next_if_eq(&',').is_none() {
            pieces.push(String::new());
        } else if let Some(piece) = pieces.last_mut() {
            piece.push(c);
        }
    }
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_help_shows_tells_the_type() {
        let of = |value| Parameter { name: "x", value }.of();
        assert_eq!(of("0x501"), ParameterType::Number);
        assert_eq!(of("65536"), ParameterType::Number);
        assert_eq!(of("N"), ParameterType::Number);
        assert_eq!(of("SIZE"), ParameterType::Size);
        assert_eq!(of("on|off"), ParameterType::Boolean);
        assert_eq!(of("PATH"), ParameterType::String);
    }

    #[test]
    fn pairs_are_split_and_double_commas_kept() {
        let pair = |k: &str, v: &str| (k.to_string(), Some(v.to_string()));
        assert_eq!(
            split("microvm,acpi=off", Some("type")),
            [pair("type", "microvm"), pair("acpi", "off")]
        );
        assert_eq!(
            split("path=a,,b=c,server", None),
            [pair("path", "a,b=c"), ("server".into(), None)]
        );
        assert_eq!(split("", Some("type")), []);
        assert_eq!(split(",,,", None), [(",".into(), None)]);
    }
}
