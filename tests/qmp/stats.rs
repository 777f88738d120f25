//! `query-stats` and what its numbers mean, on a host whose KVM counts.

use serde_json::{Value, json};

use crate::common::vm::Launch;

#[test]
fn what_kvm_counts_is_told_and_described() {
    let mut vm = Launch::alone().processors(2).start();
    vm.wait_for_sweeps(1);
    let schemas = vm.ask("query-stats-schemas", json!({}));
    let described = |target: &str, name: &str| {
        let of_target = schemas.as_array().unwrap().iter().find(|s| s["target"] == target);
        let stats = of_target.unwrap_or_else(|| panic!("nothing of {target}: {schemas}"));
        stats["stats"].as_array().unwrap().iter().find(|s| s["name"] == name).cloned()
    };
    assert_eq!(described("vcpu", "exits").unwrap()["type"], "cumulative");
    let waited = described("vcpu", "halt_wait_ns").unwrap();
    assert_eq!(
        waited,
        json!({"name": "halt_wait_ns", "type": "cumulative", "unit": "seconds", "base": 10, "exponent": -9})
    );
    assert_eq!(described("vcpu", "halt_wait_hist").unwrap()["type"], "log2-histogram");
    let vcpus = vm.ask("query-cpus-fast", json!({}));
    let paths: Vec<Value> =
        vcpus.as_array().unwrap().iter().map(|vcpu| vcpu["qom-path"].clone()).collect();
    let all = vm.ask("query-stats", json!({"target": "vcpu"}));
    assert_eq!(all.as_array().unwrap().len(), 2);
    for (result, path) in all.as_array().unwrap().iter().zip(&paths) {
        assert_eq!((&result["provider"], &result["qom-path"]), (&json!("kvm"), path));
        for number in result["stats"].as_array().unwrap() {
            let name = number["name"].as_str().unwrap();
            assert!(described("vcpu", name).is_some(), "{name} is described nowhere");
        }
    }
    let exits = json!([{"provider": "kvm", "names": ["exits", "nonsense"]}]);
    let first = json!({"target": "vcpu", "vcpus": [paths[0]], "providers": exits});
    let answer = vm.ask("query-stats", first.clone());
    let numbers = answer[0]["stats"].as_array().unwrap();
    assert_eq!((answer.as_array().unwrap().len(), numbers.len()), (1, 1));
    let before = numbers[0]["value"].as_u64().unwrap();
    vm.ask("stop", json!({}));
    vm.ask("cont", json!({}));
    vm.wait_for_sweeps(vm.sweeps().len() + 1);
    let after = vm.ask("query-stats", first)[0]["stats"][0]["value"].as_u64().unwrap();
    assert!(after > before, "a guest that was stopped has left the guest mode: {before}, {after}");
    for nothing in [
        json!({"target": "vcpu", "vcpus": []}),
        json!({"target": "vm", "providers": []}),
        json!({"target": "vm", "providers": [{"provider": "kvm", "names": []}]}),
        json!({"target": "vm", "providers": [{"provider": "cryptodev"}]}),
        json!({"target": "cryptodev"}),
    ] {
        assert_eq!(vm.ask("query-stats", nothing.clone()), json!([]), "{nothing}");
    }
    let refused = vm.try_ask("query-stats", json!({"target": "vm", "vcpus": []})).unwrap_err();
    assert_eq!(refused, "Parameter 'vcpus' is unexpected");
}
