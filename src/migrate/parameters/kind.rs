//! Values of parameters: their types, read and shown.

use serde_json::{Value, json};

/// A type as QMP has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Bool,
    U8,
    U32,
    U64,
    /// Text; null stands for none.
    Text,
    /// One of these words.
    Choice(&'static [&'static str]),
    /// Names of bitmaps.
    Mapping,
}

/// Why a change was refused. The texts are QEMU's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParameterError {
    #[error("Parameter '{0}' is unexpected")]
    Unexpected(String),
    #[error("Invalid parameter type for '{name}', expected: {expected}")]
    Type { name: &'static str, expected: &'static str },
    #[error("Parameter '{name}' expects {width}")]
    Width { name: &'static str, width: &'static str },
    #[error("Parameter '{name}' does not accept value '{value}'")]
    Choice { name: &'static str, value: String },
    #[error("migration with {name}={value} is not built in")]
    NotBuilt { name: &'static str, value: String },
    #[error("Parameter '{name}' {rule}")]
    Range { name: String, rule: &'static str },
}

/// A type that a parameter can have.
pub(super) trait Field {
    const KIND: Kind;

    fn slot(&mut self) -> Slot<'_>;
}

/// A parameter's place.
pub(super) enum Slot<'a> {
    Bool(&'a mut bool),
    U8(&'a mut u8),
    U32(&'a mut u32),
    U64(&'a mut u64),
    Text(&'a mut String),
    Choice(&'a mut &'static str),
    Mapping(&'a mut Option<Vec<Value>>),
}

macro_rules! fields {
    ($($type:ty => $kind:expr, $slot:ident;)+) => {$(
        impl Field for $type {
            const KIND: Kind = $kind;

            fn slot(&mut self) -> Slot<'_> {
                Slot::$slot(self)
            }
        }
    )+};
}

fields! {
    bool => Kind::Bool, Bool;
    u8 => Kind::U8, U8;
    u32 => Kind::U32, U32;
    u64 => Kind::U64, U64;
    String => Kind::Text, Text;
    &'static str => Kind::Choice(&[]), Choice;
    Option<Vec<Value>> => Kind::Mapping, Mapping;
}

impl Slot<'_> {
    /// Puts `value` there, if it is of the right type.
    pub(super) fn set(
        self,
        name: &'static str,
        kind: Kind,
        value: &Value,
    ) -> Result<(), ParameterError> {
        let wrong = |expected| ParameterError::Type { name, expected };
        let width = |width| ParameterError::Width { name, width };
        let integer = || {
            // Negative ones wrap, as in QEMU.
            let number = value.as_u64().or_else(|| value.as_i64().map(|number| number as u64));
            number.ok_or_else(|| match value.is_string() {
                true => width("uint64"),
                false => wrong("integer"),
            })
        };
        match self {
            Slot::Bool(place) => *place = value.as_bool().ok_or_else(|| wrong("boolean"))?,
            Slot::U8(place) => *place = integer()?.try_into().map_err(|_| width("uint8_t"))?,
            Slot::U32(place) => *place = integer()?.try_into().map_err(|_| width("uint32_t"))?,
            Slot::U64(place) => *place = integer()?,
            Slot::Text(place) if value.is_null() => place.clear(),
            Slot::Text(place) => {
                *place = value.as_str().ok_or_else(|| wrong("StrOrNull"))?.to_owned()
            }
            Slot::Choice(place) => {
                let text = value.as_str().ok_or_else(|| wrong("string"))?;
                let Kind::Choice(choices) = kind else { return Err(wrong("string")) };
                let refused = || ParameterError::Choice { name, value: text.to_owned() };
                *place = choices.iter().find(|choice| **choice == text).ok_or_else(refused)?;
            }
            Slot::Mapping(place) => {
                *place = Some(value.as_array().ok_or_else(|| wrong("array"))?.clone())
            }
        }
        Ok(())
    }

    /// As QMP shows it; `None` is not shown.
    pub(super) fn get(self) -> Option<Value> {
        Some(match self {
            Slot::Bool(value) => json!(value),
            Slot::U8(value) => json!(value),
            Slot::U32(value) => json!(value),
            Slot::U64(value) => json!(value),
            Slot::Text(value) => json!(value),
            Slot::Choice(value) => json!(value),
            Slot::Mapping(value) => json!(value.as_ref()?),
        })
    }

    pub(super) fn number(self) -> Option<u64> {
        match self {
            Slot::U8(value) => Some((*value).into()),
            Slot::U32(value) => Some((*value).into()),
            Slot::U64(value) => Some(*value),
            _ => None,
        }
    }
}
