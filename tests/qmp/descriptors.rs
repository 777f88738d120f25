//! Files that clients open and pass, real processes: sets of descriptors as file names, and files
//! that the machine itself lives from.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use serde_json::{Value, json};

use crate::common::vm::{Launch, Vm};

fn writing(path: &Path) -> File {
    File::options().write(true).create(true).truncate(false).open(path).unwrap()
}

/// Adds `file` to set `id`; gives out its number at the machine.
fn add(vm: &mut Vm, id: u32, file: &impl AsFd) -> Value {
    let fds: [BorrowedFd<'_>; 1] = [file.as_fd()];
    let (answer, _) = vm.session().ask_with("add-fd", json!({"fdset-id": id}), &fds);
    assert_eq!(answer["fdset-id"], id, "{answer}");
    answer["fd"].clone()
}

/// Gives `file` a name.
fn name(vm: &mut Vm, file: &impl AsFd) {
    let (answer, _) = vm.session().ask_with("getfd", json!({"fdname": "f"}), &[file.as_fd()]);
    assert_eq!(answer, json!({}));
}

/// Every command that writes to a file, with `to` as its name.
fn commands(to: &str) -> [(&'static str, Value); 4] {
    [
        ("pmemsave", json!({"val": 0, "size": 8192, "filename": to})),
        ("memsave", json!({"val": 0, "size": 8192, "filename": to})),
        ("dump-guest-memory", json!({"paging": false, "protocol": format!("file:{to}")})),
        ("migrate", json!({"uri": format!("file:{to}")})),
    ]
}

/// Carries it out to the end.
fn run(vm: &mut Vm, command: &str, arguments: Value) -> Result<(), String> {
    vm.try_ask(command, arguments)?;
    if command == "migrate" {
        let report = vm.outcome();
        if report["status"] != "completed" {
            return Err(report["error-desc"].as_str().unwrap().to_owned());
        }
        vm.ask("cont", json!({}));
    }
    vm.session().wait_until_running();
    Ok(())
}

#[test]
fn a_set_of_descriptors_is_a_file_name_everywhere() {
    let mut vm = Launch::alone().guest("ws=1").start();
    let path = vm.path("out");
    for (command, arguments) in commands("/dev/fdset/7") {
        let refused = |vm: &mut Vm, want: &str| {
            let error = run(vm, command, arguments.clone()).unwrap_err();
            assert!(error.contains(want), "{command}: {error}");
        };
        refused(&mut vm, "Failed to find fdset /dev/fdset/7");
        // The access mode must be the one that is asked for.
        std::fs::write(&path, vec![b'x'; 100]).unwrap();
        add(&mut vm, 7, &File::open(&path).unwrap());
        add(&mut vm, 7, &File::options().read(true).write(true).open(&path).unwrap());
        refused(&mut vm, "Failed to find file descriptor with matching flags=0x");
        assert_eq!(std::fs::read(&path).unwrap(), [b'x'; 100], "{command} has touched it");
        let number = add(&mut vm, 7, &writing(&path));
        run(&mut vm, command, arguments.clone())
            .unwrap_or_else(|error| panic!("{command}: {error}"));
        let written = std::fs::read(&path).unwrap();
        assert!(written.len() >= 8192 && written[..100] != [b'x'; 100], "{command}");
        // Used, and still there.
        let sets = vm.ask("query-fdsets", json!({}));
        assert_eq!(sets[0]["fds"].as_array().unwrap().len(), 3, "{command}: {sets}");
        vm.ask("remove-fd", json!({"fdset-id": 7, "fd": number}));
        refused(&mut vm, "Failed to find file descriptor with matching flags=0x");
        vm.ask("remove-fd", json!({"fdset-id": 7}));
        refused(&mut vm, "Failed to find fdset /dev/fdset/7");
        assert_eq!(vm.ask("query-fdsets", json!({})), json!([]));
        for odd in ["/dev/fdset/", "/dev/fdset/x", "/dev/fdset/-1", "/dev/fdset/7/8"] {
            let (_, arguments) =
                commands(odd).into_iter().find(|(name, _)| *name == command).unwrap();
            let error = run(&mut vm, command, arguments).unwrap_err();
            assert!(error.contains(&format!("Could not parse fdset {odd}")), "{command}: {error}");
        }
    }
    vm.assert_alive();
}

#[test]
fn a_guest_arrives_from_a_set_of_descriptors() {
    let mut source = Launch::alone().guest("ws=1").start();
    let path = source.path("state");
    source.wait_for_sweeps(1);
    run(&mut source, "migrate", json!({"uri": format!("file:{}", path.display())})).unwrap();
    let mut target = Launch::alone().guest("ws=1").incoming("defer").start();
    let arguments = json!({"uri": "file:/dev/fdset/0", "exit-on-error": false});
    let error = target.try_ask("migrate-incoming", arguments.clone()).unwrap_err();
    assert_eq!(error, "Failed to find fdset /dev/fdset/0");
    add(&mut target, 0, &writing(&path));
    let error = target.try_ask("migrate-incoming", arguments.clone()).unwrap_err();
    assert_eq!(error, "Failed to find file descriptor with matching flags=0x0");
    add(&mut target, 0, &File::open(&path).unwrap());
    // Taken away as soon as it is open: the descriptor in use is another.
    target.ask("migrate-incoming", arguments);
    target.ask("remove-fd", json!({"fdset-id": 0}));
    assert_eq!(target.outcome()["status"], "completed", "{}", target.stderr());
    target.assert_alive();
    assert_eq!(target.ask("query-fdsets", json!({})), json!([]));
}

#[test]
fn the_guests_memory_is_no_output_by_whatever_descriptor() {
    let backends = [
        "memory-backend-file,id=ram,size=64M,share=on,mem-path=@DIR@/ram",
        "memory-backend-file,id=ram,size=64M,share=off,mem-path=@DIR@/ram",
        "memory-backend-memfd,id=ram,size=64M,share=on",
    ];
    for backend in backends {
        let mut vm = Launch::alone()
            .guest("ws=1")
            .words(&["-object", backend, "-M", "microvm,acpi=off,memory-backend=ram"])
            .start();
        vm.wait_for_sweeps(1);
        let descriptors = std::fs::read_dir(format!("/proc/{}/fd", vm.pid())).unwrap();
        let mut descriptors = descriptors.map(|entry| entry.unwrap().path());
        let is_ram = |path: &std::path::PathBuf| {
            let link = std::fs::read_link(path).unwrap_or_default();
            link.ends_with("ram") || link.to_string_lossy().contains("memfd:ram")
        };
        let ram = descriptors.find(is_ram).unwrap_or_else(|| panic!("{backend}"));
        let number = ram.file_name().unwrap().to_str().unwrap().to_owned();
        let before = std::fs::metadata(&ram).unwrap().len();
        let refused = |vm: &mut Vm, command: &str, arguments: Value| {
            let error = run(vm, command, arguments.clone()).unwrap_err();
            assert!(
                error.contains("this machine uses"),
                "{backend} {command} {arguments}: {error}"
            );
            assert_eq!(std::fs::metadata(&ram).unwrap().len(), before, "{backend} {command}");
            vm.session().wait_until_running();
        };
        // By the names of its descriptors at the machine and elsewhere.
        for to in [
            format!("/dev/fd/{number}"),
            format!("/proc/self/fd/{number}"),
            ram.display().to_string(),
        ] {
            for (command, arguments) in commands(&to) {
                refused(&mut vm, command, arguments);
            }
        }
        add(&mut vm, 3, &writing(&ram));
        for (command, arguments) in commands("/dev/fdset/3") {
            refused(&mut vm, command, arguments);
        }
        for (command, arguments) in [
            ("dump-guest-memory", json!({"paging": false, "protocol": "fd:f"})),
            (
                "dump-guest-memory",
                json!({"paging": false, "protocol": "fd:f", "format": "kdump-zlib", "detach": true}),
            ),
            ("migrate", json!({"uri": "fd:f"})),
        ] {
            name(&mut vm, &File::options().read(true).write(true).open(&ram).unwrap());
            refused(&mut vm, command, arguments);
        }
        vm.assert_alive();
        // Two descriptors of one file that is not the machine's are no fault.
        let out = vm.path("out");
        add(
            &mut vm,
            4,
            &File::options().read(true).write(true).create(true).truncate(true).open(&out).unwrap(),
        );
        name(&mut vm, &writing(&out));
        run(&mut vm, "dump-guest-memory", json!({"paging": false, "protocol": "fd:f"})).unwrap();
        run(&mut vm, "pmemsave", json!({"val": 0, "size": 4096, "filename": out})).unwrap();
        let mut bytes = Vec::new();
        File::open(&out).unwrap().read_to_end(&mut bytes).unwrap();
        assert_eq!(bytes.len(), 4096);
    }
}
