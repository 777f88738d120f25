//! Files that are written by name: what the name is stays what it is, inputs stay as they are, and
//! what fails leaves nothing that looks whole.

use std::ffi::OsStr;
use std::fs::Permissions;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, chown, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use crate::common::cli::{godwit, text};
use crate::common::process::Godwit;
use crate::common::vm::Launch;
use godwit::dump::read::Core;
use rustix::fs::{XattrFlags, getxattr, setxattr};
use rustix::io::Errno;
use rustix::process::{Pid, Resource, Rlimit, prlimit};
use serde_json::json;

/// The command with a limit on the size of files of one block.
fn limited(words: &[&str]) -> Output {
    Command::new("sh")
        .args(["-c", "ulimit -f 1; exec \"$0\" \"$@\"", env!("CARGO_BIN_EXE_godwit")])
        .args(words)
        .output()
        .unwrap()
}

fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    let mut names: Vec<_> =
        entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

#[test]
fn a_limit_on_the_size_of_files_ends_commands_and_not_the_machine() {
    let guest = Godwit::start(1, 32, "ws=2");
    let mut qmp = guest.qmp();
    let pid = Pid::from_raw(guest.pid() as i32);
    let limit = Rlimit { current: Some(64 << 10), maximum: Some(64 << 10) };
    prlimit(pid, Resource::Fsize, limit).unwrap();
    let file = guest.path("out");
    let name = file.to_str().unwrap();
    let protocol = format!("file:{name}");
    for (command, arguments) in [
        ("pmemsave", json!({"val": 0, "size": 1 << 20, "filename": name})),
        ("dump-guest-memory", json!({"paging": false, "protocol": protocol})),
        (
            "dump-guest-memory",
            json!({"paging": false, "protocol": protocol, "format": "kdump-zlib"}),
        ),
        ("dump-guest-memory", json!({"paging": false, "protocol": protocol, "x-live": true})),
    ] {
        let _ = std::fs::remove_file(&file);
        let error = qmp.try_ask(command, arguments.clone()).unwrap_err();
        assert!(error.ends_with("File too large"), "{command} {arguments}: {error}");
        let left = std::fs::metadata(&file).unwrap().len();
        assert_eq!(left, 0, "{command} {arguments} leaves half a file");
        qmp.wait_until_running();
    }
    let _ = std::fs::remove_file(&file);
    qmp.ask("migrate", json!({"uri": protocol}));
    loop {
        let now = qmp.ask("query-migrate", json!({}));
        match now["status"].as_str() {
            Some("failed") => break,
            Some("setup" | "active" | "device") => {}
            _ => panic!("{now}"),
        }
    }
    qmp.wait_until_running();
    drop(qmp);
    // The client's own file is written by the machine.
    let before = names(guest.folder());
    let made = guest.dump(&guest.path("core"), &[]);
    assert!(text(&made.stderr).contains("File too large"), "{}", text(&made.stderr));
    assert_eq!(made.status.code(), Some(1));
    assert_eq!(names(guest.folder()), before);
    guest.qmp().wait_until_running();
}

#[test]
fn every_verb_survives_a_limit_on_the_size_of_files() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let made = limited(&["builtin-guest", out.to_str().unwrap()]);
    assert_eq!(made.status.code(), Some(1), "{made:?}");
    assert!(text(&made.stderr).contains("File too large"), "{}", text(&made.stderr));
    assert_eq!(names(folder.path()), [""; 0]);
}

/// `mknod NAME c 1 3`: a /dev/null of our own. Needs root.
fn null(at: &Path) {
    let made = Command::new("mknod").arg(at).args(["c", "1", "3"]).status().unwrap();
    assert!(made.success(), "a device node cannot be made; is this root?");
}

fn fifo(at: &Path) {
    assert!(Command::new("mkfifo").arg(at).status().unwrap().success());
}

#[test]
fn a_dump_leaves_what_its_name_is() {
    let guest = Godwit::start(1, 32, "ws=2");
    let mut qmp = guest.qmp();
    qmp.ask("stop", json!({}));
    drop(qmp);
    let path = |name: &str| guest.path(name);
    let dump = |name: &str| {
        let made = guest.dump(&path(name), &[]);
        assert!(made.status.success(), "{name}: {}", text(&made.stderr));
        made
    };
    let is_core = |bytes: &[u8]| Core::parse(bytes).is_ok();

    // A link's target is replaced, and keeps its permissions and its owner.
    std::fs::create_dir(path("there")).unwrap();
    std::fs::write(path("there/target"), b"old").unwrap();
    std::fs::set_permissions(path("there/target"), Permissions::from_mode(0o640)).unwrap();
    chown(path("there/target"), Some(4321), Some(8765)).unwrap();
    symlink("there/target", path("link")).unwrap();
    let flags = XattrFlags::empty();
    let marked = setxattr(path("there/target"), "user.note", b"kept", flags);
    dump("link");
    let mut note = [0; 4];
    let kept = getxattr(path("there/target"), "user.note", &mut note);
    // Not every file system has them.
    assert!(
        marked == Err(Errno::NOTSUP) || kept == Ok(4) && note == *b"kept",
        "{marked:?} {kept:?}"
    );
    assert!(path("link").symlink_metadata().unwrap().is_symlink());
    let is = path("there/target").metadata().unwrap();
    assert_eq!((is.mode() & 0o7777, is.uid(), is.gid()), (0o640, 4321, 8765));
    assert!(is_core(&std::fs::read(path("there/target")).unwrap()));
    assert_eq!(names(&path("there")), ["target"]);

    // One that leads to nothing yet.
    symlink("there/new", path("dangling")).unwrap();
    dump("dangling");
    assert!(is_core(&std::fs::read(path("there/new")).unwrap()));
    assert_eq!(path("there/new").metadata().unwrap().mode() & 0o777, 0o400);

    // A device stays one; so does a FIFO, whose reader comes late.
    null(&path("null"));
    dump("null");
    assert!(path("null").symlink_metadata().unwrap().file_type().is_char_device());
    fifo(&path("fifo"));
    let reader = std::thread::spawn({
        let fifo = path("fifo");
        move || {
            std::thread::sleep(Duration::from_millis(300));
            std::fs::read(fifo).unwrap()
        }
    });
    dump("fifo");
    assert!(is_core(&reader.join().unwrap()));
    assert!(path("fifo").symlink_metadata().unwrap().file_type().is_fifo());

    // Standard output, by three names; what is said goes elsewhere.
    for name in ["-", "/dev/stdout", "/proc/self/fd/1"] {
        let made = guest.dump(Path::new(name), &["--json"]);
        assert!(is_core(&made.stdout), "{name}");
        let said: serde_json::Value = serde_json::from_slice(&made.stderr).unwrap();
        assert_eq!(said["memory"], 32 << 20);
    }
    // Another descriptor, behind what is there.
    let made = Command::new("sh")
        .args(["-c", "exec 7>\"$1\"; echo before >&7; \"$0\" dump --qmp \"$2\" /dev/fd/7"])
        .arg(env!("CARGO_BIN_EXE_godwit"))
        .arg(path("behind"))
        .arg(guest.monitor())
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", text(&made.stderr));
    let behind = std::fs::read(path("behind")).unwrap();
    assert!(behind.starts_with(b"before\n") && is_core(&behind[7..]));

    // A name that is no text.
    let odd = path("x").with_file_name(OsStr::from_bytes(b"c\xff\xfere"));
    let made = guest.dump(&odd, &["--json"]);
    assert!(made.status.success(), "{}", text(&made.stderr));
    assert!(is_core(&std::fs::read(&odd).unwrap()));

    // Refused by name, and untouched.
    std::fs::write(path("ram"), b"").unwrap();
    symlink("loop", path("loop")).unwrap();
    let before = names(guest.folder());
    let name_of = |path: PathBuf| path.file_name().unwrap().to_str().unwrap().to_owned();
    let socket = name_of(guest.monitor());
    let serial = socket.replace("qmp", "serial");
    for (name, want) in [
        ("there", "is a folder"),
        ("new/", "is a folder"),
        ("", "is a folder"),
        (&*socket, "is a socket"),
        ("loop", "too many symbolic links"),
        ("nowhere/file", "No such file or directory"),
        (&*serial, "would overwrite"),
    ] {
        let made = guest.dump(&path(name), &[]);
        assert_eq!(made.status.code(), Some(1), "{name}");
        assert!(text(&made.stderr).contains(want), "{name}: {}", text(&made.stderr));
    }
    assert_eq!(names(guest.folder()), before);
    assert_eq!(guest.qmp().status(), "paused");
}

/// A disk of our own, which is a file of so many bytes.
struct Loop(String);

impl Loop {
    fn over(file: &Path, bytes: u64) -> Loop {
        std::fs::File::create(file).unwrap().set_len(bytes).unwrap();
        let made = Command::new("losetup").args(["--show", "--find"]).arg(file).output().unwrap();
        assert!(made.status.success(), "{}", text(&made.stderr));
        Loop(text(&made.stdout).trim().to_owned())
    }

    /// Another name of it.
    fn node(&self, at: &Path) {
        let number = Path::new(&self.0).metadata().unwrap().rdev();
        let (major, minor) = (rustix::fs::major(number), rustix::fs::minor(number));
        let made = Command::new("mknod")
            .arg(at)
            .args(["b", &major.to_string(), &minor.to_string()])
            .status()
            .unwrap();
        assert!(made.success());
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["--detach", &self.0]).status();
    }
}

#[test]
#[ignore = "needs loop devices"]
fn a_disk_is_written_in_place_and_known_by_its_number() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let disk = Loop::over(&path("image"), 64 << 20);
    for name in ["one", "two"] {
        disk.node(&path(name));
    }
    let guest = Godwit::start(1, 32, "ws=2");
    drop(guest.qmp());
    let made = guest.dump(&path("one"), &["--json"]);
    assert!(made.status.success(), "{}", text(&made.stderr));
    let is = path("one").symlink_metadata().unwrap();
    assert!(is.file_type().is_block_device());
    assert!(Core::parse(&std::fs::read(path("two")).unwrap()).is_ok());

    // Its other name is the same disk.
    let (one, two) = (path("one"), path("two"));
    let made = godwit(&["inspect", one.to_str().unwrap(), "--ram", two.to_str().unwrap()]);
    assert_eq!(made.status.code(), Some(1));
    assert!(text(&made.stderr).contains("would overwrite"), "{}", text(&made.stderr));
    assert!(Core::parse(&std::fs::read(path("two")).unwrap()).is_ok());

    // One that is too small says so.
    let small = Loop::over(&path("small-image"), 8 << 20);
    small.node(&path("small"));
    let made = guest.dump(&path("small"), &[]);
    assert_eq!(made.status.code(), Some(1));
    assert!(text(&made.stderr).contains("No space left on device"), "{}", text(&made.stderr));
    guest.qmp().wait_until_running();
}

#[test]
fn two_dumps_to_one_name_are_each_whole() {
    let folder = tempfile::tempdir().unwrap();
    let guests = [32, 40].map(|memory| Godwit::start(1, memory, "ws=2"));
    for guest in &guests {
        drop(guest.qmp());
    }
    let file = folder.path().join("core");
    let made = std::thread::scope(|threads| {
        let dumps = guests.each_ref().map(|guest| threads.spawn(|| guest.dump(&file, &["--json"])));
        dumps.map(|dump| dump.join().unwrap())
    });
    for (made, mib) in made.iter().zip([32 << 20, 40 << 20]) {
        assert!(made.status.success(), "{}", text(&made.stderr));
        let said: serde_json::Value = serde_json::from_slice(&made.stdout).unwrap();
        assert_eq!(said["memory"], mib);
        assert!(said["size"].as_u64().unwrap() > mib, "its own size");
    }
    let bytes = std::fs::read(&file).unwrap();
    Core::parse(&bytes).unwrap();
    assert_eq!(names(folder.path()), ["core"]);
}

#[test]
fn an_output_that_is_an_input_is_refused_before_anything_is_touched() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    std::fs::write(path("main"), b"QEVM and more").unwrap();
    std::fs::write(path("channel"), b"pages").unwrap();
    std::fs::hard_link(path("main"), path("same")).unwrap();
    symlink("main", path("link")).unwrap();
    for (output, name) in [
        ("--ram", "main"),
        ("--core", "main"),
        ("--ram", "same"),
        ("--core", "link"),
        ("--ram", "channel"),
    ] {
        for extra in ["--channel", "--resume"] {
            let made =
                godwit(&["inspect", &path("main"), extra, &path("channel"), output, &path(name)]);
            assert_eq!(made.status.code(), Some(1));
            let words = text(&made.stderr);
            assert!(words.contains("would overwrite"), "{output} {name}: {words}");
        }
    }
    let out = path("out");
    let made = godwit(&["inspect", &path("main"), "--ram", &out, "--core", &out]);
    assert!(text(&made.stderr).contains("are the same file"), "{}", text(&made.stderr));
    assert_eq!(std::fs::read(path("main")).unwrap(), b"QEVM and more");
    assert_eq!(std::fs::read(path("channel")).unwrap(), b"pages");
    assert_eq!(names(folder.path()), ["channel", "link", "main", "same"]);
}

#[test]
fn who_may_not_replace_a_file_writes_it_in_place_or_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).unwrap();
    // The one that was built may lie where nobody gets to.
    let program = folder.path().join("godwit");
    std::fs::copy(env!("CARGO_BIN_EXE_godwit"), &program).unwrap();
    let nobody = |file: &Path| {
        let mut command = Command::new(&program);
        command.args(["builtin-guest", file.to_str().unwrap()]).uid(65534).gid(65534);
        command.output().unwrap()
    };
    let guest = godwit::builtin::elf();
    // A folder that belongs to someone else; one in which everybody may make files, like /tmp.
    for (name, mode) in [("closed", 0o755), ("sticky", 0o1777)] {
        let folder = folder.path().join(name);
        std::fs::create_dir(&folder).unwrap();
        std::fs::set_permissions(&folder, Permissions::from_mode(mode)).unwrap();
        let file = folder.join("file");
        std::fs::write(&file, vec![7; 1 << 20]).unwrap();
        std::fs::set_permissions(&file, Permissions::from_mode(0o666)).unwrap();
        let before = file.metadata().unwrap();
        let made = nobody(&file);
        assert!(made.status.success(), "{name}: {}", text(&made.stderr));
        assert_eq!(std::fs::read(&file).unwrap(), guest);
        let after = file.metadata().unwrap();
        assert_eq!((before.ino(), before.uid()), (after.ino(), after.uid()), "{name}");

        std::fs::set_permissions(&file, Permissions::from_mode(0o644)).unwrap();
        let made = nobody(&file);
        assert!(text(&made.stderr).contains("Permission denied"), "{}", text(&made.stderr));
        assert_eq!(std::fs::read(&file).unwrap(), guest, "{name}: untouched");
        assert_eq!(names(&folder), ["file"]);
    }
    // A file that is mounted over another, as containers do.
    let (on, below) = (folder.path().join("mounted"), folder.path().join("below"));
    std::fs::write(&on, b"old").unwrap();
    std::fs::write(&below, b"older").unwrap();
    let mount = Command::new("mount").arg("--bind").arg(&below).arg(&on).status().unwrap();
    assert!(mount.success(), "nothing can be mounted; is this root?");
    let made = godwit(&["builtin-guest", on.to_str().unwrap()]);
    let unmount = Command::new("umount").arg(&on).status().unwrap();
    assert!(unmount.success() && made.status.success(), "{}", text(&made.stderr));
    assert_eq!(std::fs::read(&below).unwrap(), guest);
    assert_eq!(std::fs::read(&on).unwrap(), b"old");
}

#[test]
fn what_the_machine_reads_is_not_written_by_its_commands() {
    let memory = "memory-backend-file,id=ram,size=64M,share=on,mem-path=@DIR@/ram";
    let mut vm = Launch::alone()
        .words(&["-object", memory, "-M", "microvm,acpi=off,memory-backend=ram"])
        .start();
    vm.wait_for_sweeps(1);
    let ram = vm.path("ram");
    symlink("ram", vm.path("link")).unwrap();
    std::fs::hard_link(&ram, vm.path("same")).unwrap();
    for name in ["ram", "link", "same"] {
        let path = vm.path(name);
        let protocol = format!("file:{}", path.display());
        for (command, arguments) in [
            ("pmemsave", json!({"val": 0, "size": 4096, "filename": path})),
            ("memsave", json!({"val": 0, "size": 4096, "filename": path})),
            ("dump-guest-memory", json!({"paging": false, "protocol": protocol})),
        ] {
            let error = vm.try_ask(command, arguments).unwrap_err();
            assert!(error.ends_with("this machine uses it"), "{command}: {error}");
        }
        let failure = match vm.try_ask("migrate", json!({"uri": protocol})) {
            Ok(_) => vm.outcome()["error-desc"].to_string(),
            Err(error) => error,
        };
        assert!(failure.contains("this machine uses it"), "{failure}");
    }
    assert_eq!(std::fs::metadata(&ram).unwrap().len(), 64 << 20);
    vm.assert_alive();
    vm.hang_up();
    let monitor = format!("unix:{}", vm.monitor().display());
    let made = godwit(&["dump", "--qmp", &monitor, ram.to_str().unwrap()]);
    assert!(text(&made.stderr).contains("would overwrite"), "{}", text(&made.stderr));
    assert_eq!(std::fs::metadata(&ram).unwrap().nlink(), 2, "it is still the same file");
}

#[test]
fn a_machine_does_not_log_over_what_it_starts_from() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    std::fs::write(path("kernel"), godwit::builtin::elf()).unwrap();
    std::fs::write(path("initrd"), b"initrd").unwrap();
    std::fs::write(path("stream"), b"stream").unwrap();
    symlink("kernel", path("link")).unwrap();
    let (serial, log) =
        (format!("file:{}", path("link")), format!("null,id=n,logfile={}", path("initrd")));
    let arriving = format!("file:{}", path("stream"));
    let kernel = path("kernel");
    // The guest's memory would be that of whoever writes the stream.
    std::fs::write(path("stream"), vec![b's'; 64 << 20]).unwrap();
    let memory = format!("memory-backend-file,id=m,size=64M,share=on,mem-path={}", path("stream"));
    let (both, twice) = (path("both"), format!("file:{}", path("both")));
    for words in [
        vec!["-incoming", &arriving, "-object", &memory, "-M", "microvm,acpi=off,memory-backend=m"],
        vec!["-kernel", &kernel, "-pidfile", &both, "-serial", &twice],
        vec!["-kernel", &kernel, "-serial", &serial],
        vec!["-kernel", &kernel, "-initrd", &path("initrd"), "-chardev", &log],
        vec!["-incoming", &arriving, "-serial", &arriving],
    ] {
        let mut all = vec!["run", "-M", "microvm,acpi=off", "-nodefaults", "-m", "64"];
        all.extend(&words);
        let made = godwit(&all);
        assert_eq!(made.status.code(), Some(1), "{words:?}");
        let said = text(&made.stderr);
        let refused = said.contains("would overwrite") || said.contains("writes that file");
        assert!(refused, "{words:?}: {said}");
    }
    assert!(!Path::new(&both).exists());
    assert_eq!(std::fs::read(path("kernel")).unwrap(), godwit::builtin::elf());
    assert_eq!(std::fs::read(path("initrd")).unwrap(), b"initrd");
    assert!(std::fs::read(path("stream")).unwrap().iter().all(|byte| *byte == b's'));
}
