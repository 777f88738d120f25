//! Any bytes: the decoder ends in a page or an error, never leaves the page, and all paths agree.
#![no_main]

use godwit_fuzz::Page;
use libfuzzer_sys::fuzz_target;
use xbzrle::{PAGE_SIZE, Path};

const MARGIN: usize = 64;

fuzz_target!(|delta: &[u8]| {
    let mut expected: Page = [0x5a; PAGE_SIZE];
    let verdict = Path::Scalar.decode(delta, &mut expected);
    for path in Path::available() {
        let mut memory = [0x5a; PAGE_SIZE + 2 * MARGIN];
        let page = memory[MARGIN..].first_chunk_mut().unwrap();
        assert_eq!(path.decode(delta, page), verdict, "{path}");
        assert!(verdict.is_err() || *page == expected, "{path}");
        assert!(
            memory[..MARGIN].iter().chain(&memory[MARGIN + PAGE_SIZE..]).all(|&byte| byte == 0x5a),
            "{path}"
        );
    }
});
