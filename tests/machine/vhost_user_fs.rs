//! A guest that speaks FUSE with virtiofsd, which comes late, dies, and comes again.

use crate::common::vm::{Launch, Vm};
use crate::common::{guest, virtio_guest};
use serde_json::json;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Ends with this.
struct Virtiofsd(Child);

impl Virtiofsd {
    fn start(folder: &Path) -> Virtiofsd {
        let shared = folder.join("shared");
        std::fs::create_dir_all(&shared).unwrap();
        let socket = folder.join("fs");
        let _ = std::fs::remove_file(&socket);
        let mut command = Command::new("virtiofsd");
        command.arg(format!("--socket-path={}", socket.display()));
        command.arg(format!("--shared-dir={}", shared.display()));
        command.args(["--sandbox=none", "--seccomp=none", "--log-level=error"]);
        Virtiofsd(command.stdin(Stdio::null()).spawn().expect("virtiofsd is installed"))
    }
}

impl Drop for Virtiofsd {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn launch(folder: &Path, global: &str, chardev: &str) -> Launch {
    let kernel = folder.join("kernel");
    std::fs::write(&kernel, guest::elf(&virtio_guest::filer())).unwrap();
    let socket = folder.join("fs");
    let words = format!(
        "-global virtio-mmio.force-legacy={global} -chardev socket,id=c,path={}{chardev} \
         -object memory-backend-memfd,id=mem,size=64M,share=on -numa node,memdev=mem \
         -device vhost-user-fs-device,chardev=c,tag=myfs,queue-size=64 -kernel {}",
        socket.display(),
        kernel.display()
    );
    let words: Vec<&str> = words.split_whitespace().collect();
    Launch::new(folder, "vm").no_guest().words(&words)
}

/// Waits until the guest has said this so often.
fn said(vm: &mut Vm, what: char, times: usize) {
    let end = Instant::now() + Duration::from_secs(60);
    while vm.serial().matches(what).count() < times {
        let said = vm.serial();
        assert!(!said.contains('!') && Instant::now() < end, "{what} {said} {}", vm.stderr());
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
#[ignore = "needs virtiofsd"]
fn a_guest_has_a_file_system_of_another_process() {
    for global in ["off", "on"] {
        let folder = tempfile::tempdir().unwrap();
        // It comes when it is waited for.
        let path = folder.path().to_owned();
        let late = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(500));
            Virtiofsd::start(&path)
        });
        let mut vm = launch(folder.path(), global, ",reconnect-ms=50").start();
        let back_end = late.join().unwrap();
        said(&mut vm, '.', 3);
        // It stands still and goes on.
        vm.ask("stop", json!({}));
        let before = vm.serial().matches('.').count();
        vm.ask("cont", json!({}));
        said(&mut vm, '.', before + 3);
        vm.ask("system_reset", json!({}));
        said(&mut vm, 'f', 2);
        let why = "Migration disabled: the back end of vhost-user-fs-device cannot be moved";
        assert_eq!(vm.ask("query-migrate", json!({}))["blocked-reasons"], json!([why]));
        for (command, arguments) in [
            ("migrate", json!({"uri": "exec:cat > /dev/null"})),
            (
                "dump-guest-memory",
                json!({"paging": false, "protocol": "file:dump", "x-live": true}),
            ),
        ] {
            let refused = vm.try_ask(command, arguments).unwrap_err();
            assert!(refused.contains(why), "{refused}");
        }
        drop(back_end);
        if global == "off" {
            // The guest is told, lives, and has it again when it is there again.
            said(&mut vm, 'x', 1);
            let _again = Virtiofsd::start(folder.path());
            let before = vm.serial().matches('f').count();
            said(&mut vm, 'f', before + 1);
        }
        vm.wait_for_stderr("vhost-user file system at 0xfeb00e00 stands still");
        assert_eq!(vm.ask("query-status", json!({}))["status"], "running");
    }
}
