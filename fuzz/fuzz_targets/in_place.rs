//! Two pages: encoding against a cached copy, in place, gives what encoding two pages gives, and
//! leaves the new page in the cache.
#![no_main]

use godwit_fuzz::{Aligned, pages};
use libfuzzer_sys::fuzz_target;
use xbzrle::{Outcome, PAGE_SIZE, Path};

fuzz_target!(|data: &[u8]| {
    let (old, new) = pages(data);
    let live = Aligned(*new);
    for path in Path::available() {
        let (mut expected, mut out) = ([0; PAGE_SIZE], [0; PAGE_SIZE]);
        let outcome = path.encode(&old, &new, &mut expected);
        let mut cached = old.clone();
        // SAFETY: a page that nothing writes.
        let in_place = unsafe { path.encode_live(&mut cached, live.0.as_ptr(), &mut out) };
        assert_eq!(in_place, outcome, "{path}");
        if let Outcome::Delta(len) = outcome {
            assert_eq!(out[..len], expected[..len], "{path}");
        }
        assert!(cached == new, "{path}");
    }
});
