//! Deltas recorded from QEMU 10.0.2 during live migrations of a small guest.
//!
//! `vectors/qemu-10.0.2-deltas.bin` holds records of: the page before (4096 bytes), the length of
//! the delta (u16, little-endian), the delta.

use xbzrle::{Outcome, PAGE_SIZE, Path, plain};

#[test]
fn the_plain_encoder_writes_what_qemu_wrote_and_every_path_no_more() {
    let mut file: &[u8] = include_bytes!("vectors/qemu-10.0.2-deltas.bin");
    let mut records = 0;
    while let Some((old, rest)) = file.split_first_chunk::<PAGE_SIZE>() {
        let (len, rest) = rest.split_first_chunk().unwrap();
        let (delta, rest) = rest.split_at(u16::from_le_bytes(*len).into());
        file = rest;
        records += 1;

        let mut new = *old;
        Path::Scalar.decode(delta, &mut new).unwrap();
        let mut out = [0; PAGE_SIZE];
        assert_eq!(
            plain::encode(old, &new, &mut out),
            Outcome::Delta(delta.len()),
            "record {records}"
        );
        assert_eq!(&out[..delta.len()], delta, "record {records}");

        for path in Path::available() {
            let mut page = *old;
            path.decode(delta, &mut page).unwrap();
            assert!(page == new, "{path}, record {records}");
            let Outcome::Delta(len) = path.encode(old, &new, &mut out) else {
                panic!("{path}, record {records}: no delta")
            };
            assert!(len <= delta.len(), "{path}, record {records}: {len} bytes");
            let mut page = *old;
            path.decode(&out[..len], &mut page).unwrap();
            assert!(page == new, "{path}, record {records}");
        }
    }
    assert!(file.is_empty() && records > 10, "{records} records");
}
