//! Errors as QMP shows them: a class and a sentence. The one place where errors of other modules
//! get their class.

use serde_json::{Value as Json, json};

use super::json::SyntaxError;
use crate::vmm::FdSetError;
use crate::{machine, memory};

/// QMP's error classes. Clients decide by `CommandNotFound` and `DeviceNotFound`; everything else
/// is the general one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    GenericError,
    CommandNotFound,
    DeviceNotActive,
    DeviceNotFound,
    KvmMissingCap,
}

impl Class {
    pub fn name(self) -> &'static str {
        match self {
            Class::GenericError => "GenericError",
            Class::CommandNotFound => "CommandNotFound",
            Class::DeviceNotActive => "DeviceNotActive",
            Class::DeviceNotFound => "DeviceNotFound",
            Class::KvmMissingCap => "KVMMissingCap",
        }
    }
}

/// Why a command was refused or failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{desc}")]
pub struct Error {
    pub class: Class,
    pub desc: String,
}

impl Error {
    /// Class `GenericError`, which is nearly always the right one.
    pub(crate) fn generic(desc: impl ToString) -> Error {
        Error { class: Class::GenericError, desc: desc.to_string() }
    }

    pub(crate) fn command_not_found(desc: impl ToString) -> Error {
        Error { class: Class::CommandNotFound, desc: desc.to_string() }
    }

    pub(crate) fn device_not_found(desc: impl ToString) -> Error {
        Error { class: Class::DeviceNotFound, desc: desc.to_string() }
    }

    pub(crate) fn device_not_active(desc: impl ToString) -> Error {
        Error { class: Class::DeviceNotActive, desc: desc.to_string() }
    }

    /// The value of member `error` of an answer.
    pub(crate) fn to_json(&self) -> Json {
        json!({"class": self.class.name(), "desc": self.desc})
    }
}

/// Errors that are all of the general class.
macro_rules! generic {
    ($($error:ty),*) => {$(
        impl From<$error> for Error {
            fn from(error: $error) -> Error {
                Error::generic(error)
            }
        }
    )*};
}
generic!(SyntaxError, machine::Error, machine::ContRefused, memory::Error, FdSetError);
