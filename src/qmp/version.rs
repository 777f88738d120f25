//! What this program says it is.

use serde_json::{Value as Json, json};

/// The release of QEMU whose protocol is spoken; clients decide by these numbers.
pub(crate) const QEMU_VERSION: (u32, u32, u32) = (10, 0, 2);

/// The answer of `query-version`, which is also in the greeting.
pub(crate) fn version() -> Json {
    let (major, minor, micro) = QEMU_VERSION;
    json!({
        "qemu": {"micro": micro, "minor": minor, "major": major},
        "package": concat!("Godwit ", env!("CARGO_PKG_VERSION")),
    })
}
