//! Migrations between two processes over addresses that are easy to get wrong.

use serde_json::{Value, json};

use crate::process::{monitor, with_monitors};

/// Moves a guest to where the arguments of `migrate` and `migrate-incoming` say, and gives out
/// where the target listened.
fn moves(arguments: &Value) -> Value {
    let paused = ["-S", "-serial", "null"];
    let source = with_monitors(1, &paused);
    let target = with_monitors(1, &[&paused[..], &["-incoming", "defer"]].concat());
    let (mut from, mut to) = (monitor(&source, 0), monitor(&target, 0));
    assert_eq!(to.ask("migrate-incoming", arguments.clone()), json!({}), "{arguments}");
    let listening = to.ask("query-migrate", json!({}))["socket-address"].take();
    assert_eq!(from.ask("migrate", arguments.clone()), json!({}), "{arguments}");
    loop {
        let report = from.ask("query-migrate", json!({}));
        match report["status"].as_str().unwrap() {
            "completed" => return listening,
            "failed" => panic!("{arguments}: {report}"),
            _ => std::thread::sleep(std::time::Duration::from_millis(5)),
        }
    }
}

#[test]
fn odd_paths_are_the_same_on_both_sides() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().to_str().unwrap();
    let long = "a".repeat(108 - folder.len() - 1);
    for name in ["com,ma", "x,abstract", "s p", "%20#?&=", "quo\"te'", "ü€", &long] {
        let path = format!("{folder}/{name}");
        let listening = moves(&json!({"uri": format!("unix:{path}")}));
        assert_eq!(listening, json!([{"type": "unix", "path": path}]));
    }
}

#[test]
fn an_abstract_name_is_no_file() {
    let name = format!("godwit-test-{}", std::process::id());
    for tight in [true, false] {
        let address = json!({
            "transport": "socket", "type": "unix", "path": name, "abstract": true, "tight": tight,
        });
        let channels = json!([{"channel-type": "main", "addr": address}]);
        let listening = moves(&json!({"channels": channels}));
        let want = json!([{"type": "unix", "path": name, "abstract": true, "tight": tight}]);
        assert_eq!(listening, want);
        assert!(!std::path::Path::new(&name).exists());
    }
}

#[test]
fn the_command_line_takes_a_channel() {
    let address = json!({
        "transport": "socket", "type": "inet", "host": "127.0.0.1", "port": "0", "ipv4": true,
    });
    let channel = json!({"channel-type": "main", "addr": address}).to_string();
    let target = with_monitors(1, &["-S", "-incoming", &channel]);
    let report = monitor(&target, 0).ask("query-migrate", json!({}));
    assert_eq!(report["socket-address"][0]["host"], json!("127.0.0.1"), "{report}");
}
