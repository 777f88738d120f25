//! Arguments that passed the check of their schema.

use super::json::Value;
use super::schema::wrapping_u64;

/// The members of a checked object, read by name and type.
///
/// The getters panic when the schema does not promise what they ask for: that is a fault in the
/// command's table entry, not in what the client sent.
#[derive(Clone, Copy, Debug)]
pub struct Args<'a> {
    members: &'a [(String, Value)],
}

impl<'a> Args<'a> {
    pub(super) fn new(members: &'a [(String, Value)]) -> Args<'a> {
        Args { members }
    }

    pub(crate) fn get(self, name: &str) -> Option<&'a Value> {
        self.members.iter().find(|(key, _)| key == name).map(|(_, value)| value)
    }

    /// All of them.
    pub(crate) fn to_json(self) -> serde_json::Map<String, serde_json::Value> {
        let member = |(name, value): &(String, Value)| {
            Some((name.clone(), serde_json::to_value(value).ok()?))
        };
        self.members.iter().filter_map(member).collect()
    }

    pub(crate) fn has(self, name: &str) -> bool {
        self.get(name).is_some()
    }

    /// A string, or the chosen value of an enumeration.
    pub(crate) fn text(self, name: &str) -> &'a str {
        self.text_if_given(name).unwrap_or_else(|| missing(name))
    }

    /// `None` if absent (or `null`, where the schema allows that).
    pub(crate) fn text_if_given(self, name: &str) -> Option<&'a str> {
        self.get(name).and_then(Value::as_str)
    }

    pub(crate) fn bool(self, name: &str) -> bool {
        self.bool_if_given(name).unwrap_or_else(|| missing(name))
    }

    pub(crate) fn bool_if_given(self, name: &str) -> Option<bool> {
        match self.get(name) {
            Some(Value::Bool(value)) => Some(*value),
            _ => None,
        }
    }

    pub(crate) fn int(self, name: &str) -> i64 {
        self.int_if_given(name).unwrap_or_else(|| missing(name))
    }

    pub(crate) fn int_if_given(self, name: &str) -> Option<i64> {
        self.get(name).and_then(Value::as_i64)
    }

    /// Of the unsigned types; negative numbers have wrapped.
    pub(crate) fn unsigned(self, name: &str) -> u64 {
        self.unsigned_if_given(name).unwrap_or_else(|| missing(name))
    }

    pub(crate) fn unsigned_if_given(self, name: &str) -> Option<u64> {
        self.get(name).and_then(wrapping_u64)
    }

    /// All members, by name.
    pub(crate) fn members(self) -> impl Iterator<Item = (&'a str, &'a Value)> {
        self.members.iter().map(|(name, value)| (name.as_str(), value))
    }

    /// An object inside.
    pub(crate) fn object_if_given(self, name: &str) -> Option<Args<'a>> {
        match self.get(name) {
            Some(Value::Object(members)) => Some(Args { members }),
            _ => None,
        }
    }

    pub(crate) fn object(self, name: &str) -> Args<'a> {
        self.object_if_given(name).unwrap_or_else(|| missing(name))
    }

    /// A list of anything; empty if absent.
    pub(crate) fn list(self, name: &str) -> &'a [Value] {
        match self.get(name) {
            Some(Value::Array(items)) => items,
            _ => &[],
        }
    }

    /// A list of objects; empty if absent.
    pub(crate) fn objects(self, name: &str) -> impl Iterator<Item = Args<'a>> {
        self.list(name).iter().filter_map(|item| match item {
            Value::Object(members) => Some(Args { members }),
            _ => None,
        })
    }
}

fn missing(name: &str) -> ! {
    panic!("the command's schema does not promise member '{name}'")
}
