//! Godwit, a KVM virtual machine monitor built to move running guests.
//!
//! The library is what the program `godwit` is made of, open to its tests, benchmarks and fuzz
//! targets; it promises no stable interface. `ARCHITECTURE.md` in the repository is the map: the
//! road of a page and of a command, threads, locks, and what must stay true.
//!
//! | floor | modules |
//! | --- | --- |
//! | command lines and shell verbs | [`args`], [`client`], [`inspect`] |
//! | the running process | [`control`], [`vmm`], [`chardev`], [`net`], [`config`] |
//! | QEMU's machine protocol | [`qmp`] |
//! | jobs, a thread each | [`migrate`], [`dump`] |
//! | bytes, without I/O | [`stream`], [`vmstate`], `pages` |
//! | the machine | [`machine`], [`devices`], [`arch`], [`builtin`] |
//! | the kernel's interfaces, images of disks | [`kvm`], [`memory`], [`io`], [`block`] |
//!
//! Deltas are made by the crate [`xbzrle`], which knows nothing of all this.
//!
//! ```
//! // A command line becomes a machine's configuration, or all its faults at once.
//! let words = "-M microvm -m 64 -kernel builtin".split(' ').map(Into::into);
//! let Ok(godwit::args::Request::Run(config)) = godwit::args::parse(words) else { panic!() };
//! assert_eq!(config.memory.bytes, 64 << 20);
//! ```
// They end the thread where the reader is gone or the disk full.
#![cfg_attr(not(test), deny(clippy::print_stdout, clippy::print_stderr))]

#[macro_use]
pub mod stderr;

pub mod arch;
pub mod args;
mod aside;
pub mod block;
pub mod builtin;
pub mod chardev;
pub mod client;
pub mod config;
pub mod control;
pub mod devices;
pub mod dirty_rate;
pub mod dump;
pub mod inspect;
pub mod io;
pub mod kvm;
pub mod machine;
pub mod memory;
pub mod migrate;
pub mod net;
mod output;
mod pages;
pub mod qmp;
pub mod sabotage;
pub mod snapshot;
pub mod stream;
mod suggest;
pub mod vmm;
pub mod vmstate;
