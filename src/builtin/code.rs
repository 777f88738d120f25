//! The assembled guest.
//!
//! Unsafe because its bytes are read from between two symbols.
#![allow(unsafe_code)]

use std::arch::global_asm;

global_asm!(include_str!("guest.S"), options(att_syntax, raw));

/// The guest's code and constants, to be placed at [`LOAD_ADDRESS`](super::LOAD_ADDRESS). Whole pages.
pub(crate) fn code() -> &'static [u8] {
    unsafe extern "C" {
        static godwit_guest_start: u8;
        static godwit_guest_end: u8;
    }
    let (start, end) = (&raw const godwit_guest_start, &raw const godwit_guest_end);
    // SAFETY: guest.S puts both symbols into one read-only section, the second behind the first,
    // and the bytes between them are part of this program's image for as long as it runs.
    unsafe { std::slice::from_raw_parts(start, end.addr() - start.addr()) }
}
