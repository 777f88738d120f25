//! Runs of the binary that end by themselves.

use std::process::{Command, Output, Stdio};

pub(crate) fn godwit(words: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_godwit")).args(words).stdin(Stdio::null()).output().unwrap()
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}
