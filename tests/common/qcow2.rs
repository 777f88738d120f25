//! A qcow2 image made by hand: the header, refcounts, and a first table without entries.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

const CLUSTER: u64 = 65536;

/// Makes an image of `bytes` bytes, 512 MiB at most, that stands on `below`: (name, format).
pub(crate) fn make(path: &Path, bytes: u64, below: Option<(&str, &str)>) -> File {
    let file = File::options().read(true).write(true).create_new(true).open(path).unwrap();
    file.set_len(4 * CLUSTER).unwrap();
    let put = |at: u64, bytes: &[u8]| file.write_all_at(bytes, at).unwrap();
    put(0, b"QFI\xfb\0\0\0\x03");
    put(20, &16u32.to_be_bytes());
    put(24, &bytes.to_be_bytes());
    put(36, &1u32.to_be_bytes());
    put(40, &(3 * CLUSTER).to_be_bytes());
    put(48, &CLUSTER.to_be_bytes());
    put(56, &1u32.to_be_bytes());
    put(96, &4u32.to_be_bytes());
    put(100, &104u32.to_be_bytes());
    if let Some((name, format)) = below {
        put(8, &512u64.to_be_bytes());
        put(16, &(name.len() as u32).to_be_bytes());
        put(104, &0xe279_2acau32.to_be_bytes());
        put(108, &(format.len() as u32).to_be_bytes());
        put(112, format.as_bytes());
        put(512, name.as_bytes());
    }
    put(CLUSTER, &(2 * CLUSTER).to_be_bytes());
    for cluster in 0..4 {
        put(2 * CLUSTER + 2 * cluster, &1u16.to_be_bytes());
    }
    file
}
