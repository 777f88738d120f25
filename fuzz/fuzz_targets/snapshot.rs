//! Any file: a chain of snapshots opens or not; what opens is verified and merged. Sums are mended first, so that what
//! they guard is reached.
#![no_main]

use godwit::snapshot::{Chain, Description};
use libfuzzer_sys::fuzz_target;
use twox_hash::XxHash3_64;

fn seal(file: &mut [u8]) {
    let Some((header, _)) = file.split_first_chunk::<64>() else { return };
    let at = u64::from_be_bytes(header[32..40].try_into().unwrap());
    let catalogue = usize::try_from(at).ok().and_then(|at| file.get(at..));
    let Some(sum) = catalogue.map(XxHash3_64::oneshot) else { return };
    file[48..56].copy_from_slice(&sum.to_be_bytes());
    let sum = XxHash3_64::oneshot(&file[..56]);
    file[56..64].copy_from_slice(&sum.to_be_bytes());
}

fuzz_target!(|data: &[u8]| {
    let folder = tempfile::tempdir_in("/dev/shm").unwrap();
    let (mut bytes, name) = (data.to_vec(), folder.path().join("snapshot"));
    if bytes.starts_with(b"GODWITIN") {
        seal(&mut bytes);
    }
    std::fs::write(&name, &bytes).unwrap();
    let _ = Description::of(&name);
    let Ok(chain) = Chain::open(&name) else { return };
    let _ = chain.describe();
    let _ = chain.verify_all(&|| true);
    if chain.blocks().iter().map(|(_, bytes)| bytes).sum::<u64>() < 16 << 20 {
        let _ = chain.merge(&folder.path().join("merged"), &|| true);
    }
});
