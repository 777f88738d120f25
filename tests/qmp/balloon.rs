//! The balloon, without a driver in the guest: refusals and statistics as QEMU has them.

use crate::common::qmp::Client;
use crate::process::{monitor, with_monitors};
use crate::replay::{Peer, replay};
use serde_json::json;

const ARGUMENTS: &[&str] = &["-S", "-m", "64", "-device", "virtio-balloon-device,id=b0"];

#[test]
fn answers_are_those_of_the_recording() {
    let godwit = with_monitors(1, ARGUMENTS);
    replay("balloon", godwit.folder(), Peer::Process, None);
}

#[test]
fn the_interval_of_statistics_is_set_and_read() {
    let godwit = with_monitors(1, ARGUMENTS);
    let mut client = monitor(&godwit, 0);
    let get = |client: &mut Client, property: &str| {
        client.ask("qom-get", json!({"path": "b0", "property": property}))
    };
    let set = |property: &str, value| json!({"path": "b0", "property": property, "value": value});
    const INTERVAL: &str = "guest-stats-polling-interval";
    client.ask("qom-set", set(INTERVAL, json!(7)));
    assert_eq!(get(&mut client, INTERVAL), 7);
    for (value, words) in [
        (json!(-1), "timer value must be greater than zero"),
        (json!(1u64 << 32), "timer value is too big"),
        (
            json!(true),
            "Invalid parameter type for 'guest-stats-polling-interval', expected: integer",
        ),
    ] {
        assert_eq!(client.refused("qom-set", set(INTERVAL, value))["desc"], words);
    }
    assert_eq!(get(&mut client, INTERVAL), 7);
    client.ask("qom-set", set(INTERVAL, json!(0)));
    assert_eq!(get(&mut client, "deflate-on-oom"), false);
    let refused = client.refused("qom-set", set("deflate-on-oom", json!(true)));
    assert!(refused["desc"].as_str().unwrap().contains("after it was realized"), "{refused}");
}
