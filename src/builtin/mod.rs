//! The built-in guest.

mod parameters;

pub use parameters::{Fill, ParameterError, Parameters, Pattern};
