use serde_json::json;

use super::*;

fn change(value: Value) -> Result<Parameters, String> {
    Parameters::default().with(value.as_object().unwrap()).map_err(|error| error.to_string())
}

#[test]
fn every_default_passes_its_own_rules_and_reads_back() {
    let defaults = Parameters::default();
    let json = defaults.to_json();
    assert_eq!(change(json.clone()).unwrap(), defaults);
    assert_eq!(json["max-bandwidth"], 134217728);
    assert_eq!(json.get("block-bitmap-mapping"), None);
}

#[test]
fn refusals_have_qemus_texts() {
    for (arguments, text) in [
        (
            json!({"max-cpu-throttle": 10}),
            "Parameter 'max_cpu_throttle' expects an integer in the range of cpu_throttle_initial to 99",
        ),
        (
            json!({"cpu-throttle-increment": 0}),
            "Parameter 'cpu_throttle_increment' expects an integer in the range of 1 to 99",
        ),
        (
            json!({"announce-step": 0}),
            "Parameter 'announce_step' expects a value between 0 and 10000",
        ),
        (
            json!({"multifd-channels": 0}),
            "Parameter 'multifd_channels' expects a value between 1 and 255",
        ),
        (json!({"multifd-channels": 256}), "Parameter 'multifd-channels' expects uint8_t"),
        (
            json!({"downtime-limit": 2000001}),
            "Parameter 'downtime_limit' expects an integer in the range of 0 to (2000 * 1000) ms",
        ),
        (
            json!({"x-vcpu-dirty-limit-period": 0}),
            "Parameter 'x-vcpu-dirty-limit-period' expects a value between 1 and 1000",
        ),
        (
            json!({"vcpu-dirty-limit": 0}),
            "Parameter 'vcpu_dirty_limit' must be greater than 1 MB/s",
        ),
        (
            json!({"xbzrle-cache-size": 3 << 20}),
            "Parameter 'xbzrle_cache_size' expects a power of two no less than the target page size",
        ),
        (json!({"mode": "cpr-exec"}), "Parameter 'mode' does not accept value 'cpr-exec'"),
        (
            json!({"max-bandwidth": 1.5}),
            "Invalid parameter type for 'max-bandwidth', expected: integer",
        ),
        (json!({"max-bandwidth": "1G"}), "Parameter 'max-bandwidth' expects uint64"),
        (json!({"direct-io": 1}), "Invalid parameter type for 'direct-io', expected: boolean"),
        (json!({"nope": 1}), "Parameter 'nope' is unexpected"),
    ] {
        assert_eq!(change(arguments).unwrap_err(), text);
    }
}

#[test]
fn negative_sizes_wrap_and_null_text_is_empty() {
    let changed = change(json!({"max-bandwidth": -1, "tls-hostname": null})).unwrap();
    assert_eq!(changed.max_bandwidth, u64::MAX);
    assert_eq!(changed.tls_hostname, "");
    assert_eq!(
        change(json!({"xbzrle-cache-size": 9223372036854775808u64})).unwrap().xbzrle_cache_size,
        1 << 63
    );
}

#[test]
fn the_table_says_what_each_parameter_is() {
    let help = help();
    assert_eq!(help.lines().count(), TABLE.len());
    for (line, row) in help.lines().zip(TABLE) {
        assert!(line.trim_start().starts_with(row.name) && line.ends_with('.'), "{line}");
    }
    let find = |name| row::find(name).unwrap();
    assert_eq!(find("mode").kind, Kind::Choice(&["normal", "cpr-reboot", "cpr-transfer"]));
    assert_eq!(find("multifd-channels").kind, Kind::U8);
    assert_eq!(find("max-bandwidth").acts, Acts::Now);
}

#[test]
fn what_is_not_built_in_can_be_set_and_starts_no_migration() {
    assert_eq!(Parameters::default().check_built(), Ok(()));
    for (changes, text) in [
        (json!({"tls-creds": "tls0"}), "migration with tls-creds=tls0 is not built in"),
        (json!({"mode": "cpr-reboot"}), "migration with mode=cpr-reboot is not built in"),
    ] {
        assert_eq!(change(changes).unwrap().check_built().unwrap_err().to_string(), text);
    }
}
