//! Two pages: every path gives the scalar path's outcome, byte for byte, with and without spare
//! room.
#![no_main]

use godwit_fuzz::pages;
use libfuzzer_sys::fuzz_target;
use xbzrle::{Outcome, PAGE_SIZE, Path};

fuzz_target!(|data: &[u8]| {
    let (old, new) = pages(data);
    let mut expected = [0; PAGE_SIZE];
    let outcome = Path::Scalar.encode(&old, &new, &mut expected);
    for path in Path::available() {
        for room in [PAGE_SIZE, PAGE_SIZE + 64] {
            let mut out = vec![0; room];
            assert_eq!(path.encode(&old, &new, &mut out), outcome, "{path}");
            if let Outcome::Delta(len) = outcome {
                assert_eq!(out[..len], expected[..len], "{path}");
            }
        }
        assert_eq!(path.is_zero(&*new), new.iter().all(|&byte| byte == 0), "{path}");
    }
});
