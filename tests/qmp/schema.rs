//! What the schema says, beside QEMU's and beside what is answered.

use std::path::Path;
use std::process::Command;

use godwit::qmp::introspection;
use serde_json::Value;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every difference has its reason in `schema-differences.txt`, and every reason its difference.
#[test]
fn schema_differs_from_qemus_for_reasons_only() {
    let folder = tempfile::tempdir().unwrap();
    let ours = folder.path().join("schema.json");
    std::fs::write(&ours, Value::from(introspection()).to_string()).unwrap();
    let output = Command::new(root().join("tools/qmp-schema-diff"))
        .arg(&ours)
        .arg("--reasons")
        .arg(root().join("tests/qmp/schema-differences.txt"))
        .output()
        .expect("python3 is there");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
}
