//! Bytes in files: streams and dumps, read, written and damaged. Needs no privileges.

#[path = "../common/mod.rs"]
mod common;
mod dump_properties;
mod dump_vectors;
mod hostile_streams;
mod increments;
mod inspect;
mod inspect_core;
mod recorded_sections;
