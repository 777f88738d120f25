//! The recorded streams: every `*.json` under `tests/vectors/qemu-10.0.2` and in the folder
//! `GODWIT_VECTORS` names.

use serde_json::Value;
use std::path::{Path, PathBuf};

pub(crate) struct Vector {
    pub name: String,
    pub meta: Value,
    folder: PathBuf,
}

pub(crate) fn all() -> Vec<Vector> {
    let ours = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors/qemu-10.0.2");
    let more = std::env::var_os("GODWIT_VECTORS").map(PathBuf::from);
    let mut found: Vec<Vector> = Vec::new();
    for folder in more.into_iter().chain([ours]) {
        for entry in std::fs::read_dir(&folder).expect("the folder of vectors can be read") {
            let path = entry.unwrap().path();
            if path.extension().is_none_or(|extension| extension != "json") {
                continue;
            }
            let meta: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
            let name = meta["name"].as_str().expect("a vector has a name").to_owned();
            if found.iter().all(|vector| vector.name != name) {
                found.push(Vector { name, meta, folder: folder.clone() });
            }
        }
    }
    found.sort_by(|a, b| a.name.cmp(&b.name));
    assert!(!found.is_empty());
    found
}

impl Vector {
    pub(crate) fn named(name: &str) -> Vector {
        all().into_iter().find(|vector| vector.name == name).expect("the vector is here")
    }

    /// Uncompressed files of this role, in order. Roles: `main`, `main-resumed`, `multifd`.
    pub(crate) fn files(&self, role: &str) -> Vec<Vec<u8>> {
        self.matching(|file, to_source| file["role"] == role && !to_source)
    }

    /// What the destination sent back, one for each connection.
    pub(crate) fn replies(&self) -> Vec<Vec<u8>> {
        self.matching(|_, to_source| to_source)
    }

    pub(crate) fn main(&self) -> Vec<u8> {
        self.files("main").swap_remove(0)
    }

    /// (block, offset, size, SHA-256 in hex).
    pub(crate) fn regions(&self) -> Vec<(String, u64, u64, String)> {
        let list = self.meta["regions"].as_array().cloned().unwrap_or_default();
        list.iter()
            .map(|region| {
                let number = |key: &str| region[key].as_u64().unwrap();
                let text = |key: &str| region[key].as_str().unwrap().to_owned();
                (text("block"), number("block_offset"), number("size"), text("sha256"))
            })
            .collect()
    }

    fn matching(&self, wanted: impl Fn(&Value, bool) -> bool) -> Vec<Vec<u8>> {
        let files = self.meta["files"].as_array().expect("a vector has files");
        files
            .iter()
            .filter(|file| {
                let to_source =
                    file["direction"].as_str().is_some_and(|d| d.starts_with("destination"));
                wanted(file, to_source)
            })
            .map(|file| {
                let path = self.folder.join(file["file"].as_str().unwrap());
                zstd::decode_all(std::fs::File::open(&path).unwrap()).unwrap()
            })
            .collect()
    }
}
