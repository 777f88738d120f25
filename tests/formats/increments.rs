//! Increments that an earlier release wrote.

use std::path::Path;

use godwit::snapshot::Chain;

fn vector(name: &str) -> Vec<u8> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors/increments");
    std::fs::read(folder.join(name)).unwrap()
}

fn unpack(dir: &Path, name: &str) {
    let packed = vector(&format!("{name}.zst"));
    std::fs::write(dir.join(name), zstd::decode_all(&packed[..]).unwrap()).unwrap();
}

#[test]
fn a_recorded_chain_is_sound_and_merges_into_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    for name in ["first", "second"] {
        std::fs::write(at(name), vector(name)).unwrap();
    }
    ["base", "merged"].into_iter().for_each(|name| unpack(dir.path(), name));
    let chain = Chain::open(&at("second")).unwrap();
    chain.verify_all(&|| true).unwrap();
    let pages: Vec<_> = chain
        .describe()
        .unwrap()
        .iter()
        .map(|file| file.changes.as_ref().map(|is| (is.whole, is.deltas, is.zeros)))
        .collect();
    assert_eq!(pages, [None, Some((0, 256, 0)), Some((0, 256, 0))]);
    chain.merge(&at("again"), &|| true).unwrap();
    let (again, merged) = (std::fs::read(at("again")), std::fs::read(at("merged")));
    assert!(again.unwrap() == merged.unwrap(), "the merged files differ");
    let cancelled = chain.merge(&at("none"), &|| false).unwrap_err();
    assert_eq!(cancelled.to_string(), "cancelled");
    assert!(!at("none").exists());
}
