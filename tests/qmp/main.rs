//! QMP as clients see it: conversations recorded from QEMU, against a fake machine and against the
//! real process.

mod behaviour;
mod client;
mod fake;
mod process;
mod replay;
