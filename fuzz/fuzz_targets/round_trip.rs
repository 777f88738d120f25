//! Two pages: what is encoded decodes to the new page, in no more bytes than the plain encoder
//! takes, and the plain encoder's delta decodes too.
#![no_main]

use godwit_fuzz::pages;
use libfuzzer_sys::fuzz_target;
use xbzrle::{Outcome, PAGE_SIZE, decode, encode, plain};

fuzz_target!(|data: &[u8]| {
    let (old, new) = pages(data);
    let mut lens = [PAGE_SIZE; 2];
    for (encode, len_of) in [encode, plain::encode].into_iter().zip(&mut lens) {
        let mut out = [0; PAGE_SIZE];
        match encode(&old, &new, &mut out) {
            Outcome::Unchanged => {
                assert!(old == new);
                *len_of = 0;
            }
            Outcome::Delta(len) => {
                let mut page = old.clone();
                decode(&out[..len], &mut page).unwrap();
                assert!(page == new);
                *len_of = len;
            }
            Outcome::TooLong => {}
        }
    }
    assert!(lens[0] <= lens[1], "{} bytes, plain {}", lens[0], lens[1]);
});
