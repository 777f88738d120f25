//! Character devices and objects that come and go while the machine runs.

use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::common::PATIENCE;
use crate::common::vm::{Launch, Vm};
use crate::process::{monitor, with_monitors};
use crate::replay::{Peer, replay};

#[test]
fn they_come_and_go_as_in_the_recording() {
    let chardev = "socket,id=mon0,path=@DIR@/vm0,server=on,wait=off";
    let words = ["-S", "-chardev", chardev, "-mon", "chardev=mon0,mode=control"];
    let godwit = Launch::alone().bare().words(&words).guest("").spawn();
    replay("chardev_object", godwit.folder(), Peer::Process, None);
}

fn socket(path: &std::path::Path, more: Value) -> Value {
    let mut data = json!({"addr": {"type": "unix", "data": {"path": path.to_str().unwrap()}}});
    for (name, value) in more.as_object().unwrap() {
        data[name] = value.clone();
    }
    json!({"type": "socket", "data": data})
}

#[test]
fn what_was_added_is_there_until_it_goes() {
    let mut vm = Launch::alone().words(&["-chardev", "null,id=idle"]).start();
    let (file, path, other) = (vm.path("out"), vm.path("listens"), vm.path("other"));
    std::fs::write(&file, "old").unwrap();
    let backend = json!({"type": "file", "data": {"out": file.to_str().unwrap()}});
    vm.ask("chardev-add", json!({"id": "f", "backend": backend}));
    assert_eq!(std::fs::read(&file).unwrap(), b"", "it is written from its beginning");
    // What the machine reads is not emptied, by whatever name.
    let (image, link) = (vm.path("image"), vm.path("link"));
    std::fs::write(&image, [7; 4096]).unwrap();
    std::os::unix::fs::symlink(&image, &link).unwrap();
    let node = json!({"driver": "file", "node-name": "n", "filename": image.to_str().unwrap()});
    vm.ask("blockdev-add", node);
    let over = json!({"type": "file", "data": {"out": link.to_str().unwrap()}});
    let refused = vm.try_ask("chardev-add", json!({"id": "i", "backend": over})).unwrap_err();
    assert!(refused.contains("would overwrite"), "{refused}");
    assert_eq!(std::fs::read(&image).unwrap(), [7; 4096]);
    let server = socket(&path, json!({"server": true, "wait": false}));
    vm.ask("chardev-add", json!({"id": "s", "backend": server}));
    UnixStream::connect(&path).unwrap();
    let again = vm.try_ask("chardev-add", json!({"id": "t", "backend": server})).unwrap_err();
    assert!(again.contains("listens"), "{again}");
    let listener = UnixListener::bind(&other).unwrap();
    let client = socket(&other, json!({"server": false}));
    vm.ask("chardev-add", json!({"id": "c", "backend": client}));
    let mut peer = listener.accept().unwrap().0;
    for id in ["f", "s", "c", "idle"] {
        vm.ask("chardev-remove", json!({"id": id}));
        let gone = vm.try_ask("chardev-remove", json!({"id": id})).unwrap_err();
        assert_eq!(gone, format!("Chardev '{id}' not found"));
    }
    assert_eq!(peer.read(&mut [0]).unwrap(), 0, "its connection went with it");
    assert!(UnixStream::connect(&path).is_err() && !path.exists());
    let used = vm.try_ask("chardev-remove", json!({"id": "serial0"})).unwrap_err();
    assert_eq!(used, "Chardev 'serial0' is busy");
    let refused = vm.try_ask("chardev-add", json!({"id": "c", "backend": client})).map(drop);
    drop(listener);
    assert!(
        refused.is_ok()
            && vm.try_ask("chardev-add", json!({"id": "d", "backend": client})).is_err()
    );
    vm.assert_alive();
}

/// What stands behind it, and whether it is used.
fn behind(vm: &mut Vm, label: &str) -> (String, bool) {
    let all = vm.ask("query-chardev", json!({}));
    let one = all.as_array().unwrap().iter().find(|one| one["label"] == label).unwrap();
    (one["filename"].as_str().unwrap().to_owned(), one["frontend-open"].as_bool().unwrap())
}

/// Waits until a file has something in it.
fn wait_for_output(path: &std::path::Path) {
    let end = Instant::now() + PATIENCE;
    while std::fs::metadata(path).map_or(0, |file| file.len()) == 0 {
        assert!(Instant::now() < end, "nothing comes to {path:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn the_serial_port_goes_on_behind_another_one() {
    let mut vm = Launch::alone().guest("ws=1").start();
    let (socket_path, second, third) = (vm.path("listens"), vm.path("second"), vm.path("third"));
    let file =
        |path: &std::path::Path| json!({"type": "file", "data": {"out": path.to_str().unwrap()}});
    let change = |backend: &Value| json!({"id": "serial0", "backend": backend});
    vm.wait_for_sweeps(1);
    vm.ask("chardev-change", change(&file(&second)));
    wait_for_output(&second);
    let first = vm.serial();
    let server = socket(&socket_path, json!({"server": true, "wait": false}));
    vm.ask("chardev-change", change(&server));
    let mut reader = UnixStream::connect(&socket_path).unwrap();
    reader.set_read_timeout(Some(PATIENCE)).unwrap();
    assert_ne!(reader.read(&mut [0; 16]).unwrap(), 0);
    assert!(behind(&mut vm, "serial0").0.starts_with("unix:"));
    // What cannot be opened changes nothing.
    let nowhere = file("/nonexistent/x".as_ref());
    let refused = vm.try_ask("chardev-change", change(&nowhere)).unwrap_err();
    assert!(refused.contains("/nonexistent/x"), "{refused}");
    let logged = json!({"type": "null", "data": {"logfile": second.to_str().unwrap()}});
    let refused = vm.try_ask("chardev-change", change(&logged)).unwrap_err();
    assert!(refused.contains("logfile"), "{refused}");
    assert_ne!(reader.read(&mut [0; 16]).unwrap(), 0);
    vm.ask("chardev-change", change(&json!({"type": "null", "data": {}})));
    // It ends, behind what was sent.
    reader.read_to_end(&mut Vec::new()).unwrap();
    assert!(UnixStream::connect(&socket_path).is_err() && !socket_path.exists());
    assert_eq!(behind(&mut vm, "serial0"), ("null".into(), true));
    vm.ask("chardev-change", change(&file(&third)));
    wait_for_output(&third);
    assert_eq!(vm.serial(), first, "nothing more came to the first one");
    let busy = vm.try_ask("chardev-remove", json!({"id": "serial0"})).unwrap_err();
    assert_eq!(busy, "Chardev 'serial0' is busy");
    assert_eq!(vm.status(), "running");
}

#[test]
fn one_that_nobody_uses_is_changed_and_others_stay() {
    let words = ["-chardev", "null,id=idle", "-chardev", "null,id=line", "-device"];
    let more = ["virtio-serial-device", "-device", "virtconsole,chardev=line"];
    let mut vm = Launch::alone().words(&words).words(&more).start();
    let path = vm.path("out");
    let file = json!({"type": "file", "data": {"out": path.to_str().unwrap()}});
    assert_eq!(behind(&mut vm, "idle"), ("null".into(), false));
    vm.ask("chardev-change", json!({"id": "idle", "backend": file}));
    assert_eq!(behind(&mut vm, "idle"), ("file".into(), false));
    for (id, why) in [
        ("compat_monitor0", "Chardev user does not support chardev hotswap"),
        ("line", "Chardev user does not support chardev hotswap"),
        ("nobody", "Chardev 'nobody' does not exist"),
    ] {
        let refused = vm.try_ask("chardev-change", json!({"id": id, "backend": file}));
        assert_eq!(refused.unwrap_err(), why);
    }
    // A terminal that is read cannot be let go of.
    let terminal = json!({"id": "serial0", "backend": {"type": "pty", "data": {}}});
    assert!(vm.ask("chardev-change", terminal.clone())["pty"].is_string());
    let refused = vm.try_ask("chardev-change", terminal).unwrap_err();
    assert!(refused.contains("input is read"), "{refused}");
    vm.ask("chardev-remove", json!({"id": "idle"}));
}

#[test]
fn a_descriptor_that_was_sent_becomes_one() {
    let godwit = with_monitors(1, &["-S"]);
    let mut client = monitor(&godwit, 0);
    let (ours, theirs) = UnixStream::pair().unwrap();
    client.ask_with("getfd", json!({"fdname": "x"}), &[theirs.as_fd()]);
    drop(theirs);
    let backend = json!({
        "type": "socket",
        "data": {"addr": {"type": "fd", "data": {"str": "x"}}, "server": false},
    });
    client.ask("chardev-add", json!({"id": "c", "backend": backend}));
    assert_eq!(
        client.try_ask("chardev-add", json!({"id": "d", "backend": backend})).unwrap_err(),
        "File descriptor named 'x' has not been found"
    );
    client.ask("chardev-remove", json!({"id": "c"}));
    assert_eq!((&ours).read(&mut [0]).unwrap(), 0, "no copy of it is left");
}

#[test]
fn yank_cuts_a_connection_and_leaves_the_others() {
    let serial = "unix:@DIR@/serial,server=on,wait=off";
    let godwit = with_monitors(2, &["-S", "-serial", serial]);
    let mut client = monitor(&godwit, 0);
    let mut victim = monitor(&godwit, 1);
    victim.ask("query-status", json!({}));
    let mut reader = UnixStream::connect(godwit.path("serial")).unwrap();
    reader.write_all(b"x").unwrap();
    let known = client.ask("query-yank", json!({}));
    let known = known.as_array().unwrap();
    assert_eq!(known.len(), 3, "{known:?}");
    let instance = |id: &str| json!({"type": "chardev", "id": id});
    let nothing = json!({"instances": [instance("serial0"), instance("nothing")]});
    let refused = client.refused("yank", nothing);
    assert_eq!(refused["class"], "DeviceNotFound");
    victim.ask("query-status", json!({}));
    let second = known.iter().map(|known| known["id"].as_str().unwrap());
    let labels: Vec<&str> = second.filter(|id| *id != "serial0").collect();
    // Whichever of the two is the other one's.
    let of_victim = labels.iter().find(|label| label.ends_with('1')).unwrap();
    client.ask("yank", json!({"instances": [instance("serial0"), instance(of_victim)]}));
    assert_eq!(victim.receive_text(), None);
    assert_eq!(reader.read(&mut [0]).unwrap(), 0);
    // The next ones are served.
    monitor(&godwit, 1).ask("query-status", json!({}));
    client.ask("query-status", json!({}));
}

#[test]
fn objects_hold_what_they_name() {
    let mut vm = Launch::alone().start();
    let add = |of: &str, id: &str, more: Value| {
        let mut all = json!({"qom-type": of, "id": id});
        all.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        all
    };
    let maps = |vm: &Vm| std::fs::read_to_string(format!("/proc/{}/maps", vm.pid())).unwrap();
    let file = vm.path("memory");
    let memory = json!({"size": 4 << 20, "mem-path": file.to_str().unwrap(), "share": true});
    vm.ask("object-add", add("memory-backend-file", "m", memory));
    assert!(maps(&vm).contains(file.to_str().unwrap()));
    let devices = vm.ask("query-memdev", json!({}));
    let added = devices.as_array().unwrap().iter().find(|memory| memory["id"] == "m").unwrap();
    assert_eq!((&added["size"], &added["share"]), (&json!(4 << 20), &json!(true)));
    vm.ask("object-add", add("iothread", "io", json!({"poll-max-ns": 7})));
    let threads = vm.ask("query-iothreads", json!({}));
    assert_eq!((&threads[0]["id"], &threads[0]["poll-max-ns"]), (&json!("io"), &json!(7)));
    let task = format!("/proc/{}/task/{}/comm", vm.pid(), threads[0]["thread-id"]);
    assert_eq!(std::fs::read_to_string(task).unwrap(), "iothread\n");
    vm.ask("object-add", add("rng-random", "r", json!({})));
    let listed = vm.ask("qom-list", json!({"path": "/objects"}));
    for (id, of) in [("m", "memory-backend-file"), ("io", "iothread"), ("r", "rng-random")] {
        let entry = json!({"name": id, "type": format!("child<{of}>")});
        assert!(listed.as_array().unwrap().contains(&entry), "{id}: {listed}");
        vm.ask("object-del", json!({"id": id}));
        let gone = vm.try_ask("object-del", json!({"id": id})).unwrap_err();
        assert_eq!(gone, format!("object '{id}' not found"));
    }
    vm.ask("object-add", add("secret", "k", json!({"data": "aGk=", "format": "base64"})));
    let of = |property: &str| json!({"path": "/objects/k", "property": property});
    assert_eq!(vm.ask("qom-get", of("data")), "aGk=");
    assert_eq!(vm.ask("qom-get", of("format")), "base64");
    vm.ask("object-del", json!({"id": "k"}));
    assert!(!maps(&vm).contains(file.to_str().unwrap()));
    assert_eq!(vm.ask("query-iothreads", json!({})), json!([]));
    for (arguments, why) in [
        (add("rng-random", "r", json!({"filename": "/nonexistent/r"})), "/nonexistent/r"),
        (add("rng-random", "r", json!({"filename": 7})), "expected: string"),
        (add("iothread", "i", json!({"poll-grow": -1})), "expected: integer"),
        (add("memory-backend-ram", "m", json!({"size": 5})), "8K"),
        (add("memory-backend-ram", "m", json!({"size": 1 << 20, "mem-path": "x"})), "mem-path"),
        (add("memory-backend-ram", "microvm.ram", json!({"size": 1 << 20})), "duplicate"),
        (add("secret", "s", json!({})), "Either 'file' or 'data' must be provided"),
        (add("secret", "s", json!({"data": "x", "file": "/x"})), "mutually exclusive"),
        (
            add("secret", "s", json!({"file": "/nonexistent/s"})),
            "Unable to read /nonexistent/s: No",
        ),
        (add("secret", "s", json!({"file": "/dev/zero"})), "more than 1048576 bytes"),
        (add("secret", "s", json!({"data": "!", "format": "base64"})), "invalid characters"),
        (add("secret", "s", json!({"data": "x", "format": "x"})), "does not accept value 'x'"),
        (add("secret", "s", json!({"data": "x", "keyid": "k"})), "encrypted secrets"),
    ] {
        let said = vm.try_ask("object-add", arguments.clone()).unwrap_err();
        assert!(said.contains(why), "{arguments}: {said}");
    }
    vm.assert_alive();
}
