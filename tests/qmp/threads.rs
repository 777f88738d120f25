//! A process that cannot make any more threads.

use std::path::PathBuf;

use serde_json::json;

use crate::common::vm::Vm;
use crate::process::{monitor, with_monitors};

/// A control group in which nothing can be started.
struct NoThreads(PathBuf);

impl NoThreads {
    fn around(godwit: &Vm) -> NoThreads {
        let roots = ["/sys/fs/cgroup/pids", "/sys/fs/cgroup"];
        let root = roots.into_iter().find(|root| PathBuf::from(root).join("cgroup.procs").exists());
        let root = PathBuf::from(root.expect("control groups are mounted"));
        let group = root.join(format!("godwit-test-{}", godwit.pid()));
        std::fs::create_dir(&group).expect("root makes control groups");
        let group = NoThreads(group);
        group.write("cgroup.procs", &godwit.pid().to_string());
        group.write("pids.max", "1");
        group
    }

    fn write(&self, file: &str, value: &str) {
        std::fs::write(self.0.join(file), value).unwrap();
    }
}

impl Drop for NoThreads {
    fn drop(&mut self) {
        // Its process may still be there; an empty group costs nothing.
        let _ = std::fs::remove_dir(&self.0);
    }
}

#[test]
fn a_helper_that_cannot_start_is_an_error_and_the_monitor_lives_on() {
    let godwit = with_monitors(1, &["-append", "ws=1"]);
    let mut client = monitor(&godwit, 0);
    let file = godwit.path("file");
    let limit = NoThreads::around(&godwit);
    for (command, arguments) in [
        ("stop", json!({})),
        ("cont", json!({})),
        ("system_reset", json!({})),
        ("inject-nmi", json!({})),
        ("pmemsave", json!({"val": 0, "size": 1, "filename": file})),
        ("memsave", json!({"val": 0, "size": 1, "filename": file})),
        ("dump-guest-memory", json!({"paging": false, "protocol": "fd:x"})),
        ("migrate", json!({"uri": "unix:/nowhere"})),
        ("migrate-incoming", json!({"uri": "unix:/nowhere"})),
    ] {
        let refused = client.refused(command, arguments);
        let want = format!("no thread for the command {command}: Resource temporarily unavailable");
        assert_eq!(refused["desc"], json!(want));
        assert_eq!(client.ask("query-status", json!({}))["running"], json!(true));
    }
    limit.write("pids.max", "max");
    assert_eq!(client.ask("stop", json!({})), json!({}));
    assert_eq!(client.ask("query-status", json!({}))["running"], json!(false));
    drop(godwit);
}
