//! Nothing outside a page, a delta or an output is touched: each lies against pages that may not
//! be.
#![allow(unsafe_code)] // protects memory, and places pages in it

use memmap2::{MmapMut, MmapOptions};
use xbzrle::{Outcome, PAGE_SIZE, Path};

/// One page of memory between two that fault.
struct Guarded(MmapMut);

impl Guarded {
    fn new() -> Self {
        let map = MmapOptions::new().len(3 * PAGE_SIZE).map_anon().unwrap();
        for page in [0, 2] {
            // SAFETY: the pages are part of the mapping, and nothing refers to them.
            let refused = unsafe {
                libc::mprotect(
                    map.as_ptr().add(page * PAGE_SIZE).cast_mut().cast(),
                    PAGE_SIZE,
                    libc::PROT_NONE,
                )
            };
            assert_eq!(refused, 0);
        }
        Self(map)
    }

    fn page(&mut self) -> &mut [u8; PAGE_SIZE] {
        self.0[PAGE_SIZE..].first_chunk_mut().unwrap()
    }

    /// The last `len` bytes before the page that faults.
    fn end(&mut self, len: usize) -> &mut [u8] {
        &mut self.page()[PAGE_SIZE - len..]
    }
}

/// Changed bytes as (first, count): at the ends of the page, and in many short runs.
fn changes() -> Vec<Vec<(usize, usize)>> {
    vec![
        vec![],
        vec![(0, 1)],
        vec![(4095, 1)],
        vec![(4090, 6)],
        vec![(4060, 36)],
        vec![(0, 40), (4064, 32)],
        vec![(3, 4093)],
        vec![(0, 4096)],
        (0..1024).map(|i| (i * 4, 1)).collect(),
        (0..512).map(|i| (i * 8, 4)).collect(),
    ]
}

#[test]
fn encoders_stay_in_their_pages_and_output() {
    for changes in changes() {
        for path in Path::available() {
            let (mut old, mut new, mut out, mut cached) =
                (Guarded::new(), Guarded::new(), Guarded::new(), Guarded::new());
            for &(first, count) in &changes {
                new.page()[first..first + count].fill(1);
            }
            let outcome = path.encode(old.page(), new.page(), out.page());
            let live = new.page().as_ptr();
            // SAFETY: a page that nobody writes.
            let live_outcome = unsafe { path.encode_live(cached.page(), live, out.page()) };
            assert_eq!(live_outcome, outcome, "{path}");
            assert!(cached.page() == new.page(), "{path}");
            // SAFETY: a page that nobody writes.
            unsafe { path.copy_live(old.page(), live) };
            assert_eq!(path.is_zero(new.page()), changes.is_empty(), "{path}");
        }
    }
}

#[test]
fn the_decoder_stays_in_its_page_and_delta() {
    for changes in changes() {
        let (old, mut new) = ([0; PAGE_SIZE], [0; PAGE_SIZE]);
        for &(first, count) in &changes {
            new[first..first + count].fill(1);
        }
        let mut out = [0; PAGE_SIZE];
        let Outcome::Delta(len) = xbzrle::encode(&old, &new, &mut out) else { continue };
        for path in Path::available() {
            let (mut delta, mut page) = (Guarded::new(), Guarded::new());
            delta.end(len).copy_from_slice(&out[..len]);
            path.decode(delta.end(len), page.page()).unwrap();
            assert!(*page.page() == new, "{path}");
            // Every way to cut it short ends in an error or a shorter delta, and in the page.
            for cut in 1..len.min(50) {
                delta.end(len - cut).copy_from_slice(&out[..len - cut]);
                let _ = path.decode(delta.end(len - cut), page.page());
            }
        }
    }
}
