//! A guest that says where its crash note is finds the note in its dumps, here and after a
//! migration, and QEMU hears of it too.

use crate::common::{guest, machines};
use godwit::dump::read::{Core, Kdump};
use godwit::dump::{Codec, Dumps, Format, Options, Output};
use godwit::machine::{Machine, RunState};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

const TEXT: &[u8] = b"OSRELEASE=9.9\n\n\nNUMBER(phys_base)=-4096\n";
const MACHINE: &str =
    "-accel kvm -M microvm,acpi=off -m 16 -nodefaults -display none -serial file:/dev/null";

fn kernel(folder: &Path) -> PathBuf {
    let kernel = folder.join("kernel");
    std::fs::write(&kernel, guest::elf(&guest::publisher())).unwrap();
    kernel
}

/// A guest that stands still after it has said where its note is.
fn published(folder: &Path) -> Arc<Machine> {
    let words = format!("{MACHINE} -device vmcoreinfo -kernel {}", kernel(folder).display());
    let (machine, output) = machines::build(&words);
    machine.cont().unwrap();
    guest::wait(|| output.text() == "k", || format!("the guest says {:?}", output.text()));
    machine.stop(RunState::Paused).unwrap();
    machine
}

fn dump(machine: &Arc<Machine>, format: Format) -> Vec<u8> {
    let file = tempfile::NamedTempFile::new().unwrap();
    let output = Output::new(file.reopen().unwrap()).unwrap();
    let claim = Dumps::new(machine.clone()).claim().unwrap();
    claim.run(output, Options::new(format), false, Box::new(|_, _| {})).unwrap();
    std::fs::read(file.path()).unwrap()
}

fn notes(core: &[u8]) -> Vec<(String, Vec<u8>)> {
    let notes = Core::parse(core).unwrap().notes;
    notes
        .into_iter()
        .map(|note| (note.name, note.desc))
        .filter(|(name, _)| name == "VMCOREINFO")
        .collect()
}

#[test]
fn the_guests_note_is_in_its_dumps() {
    let folder = tempfile::tempdir().unwrap();
    let machine = published(folder.path());
    assert_eq!(notes(&dump(&machine, Format::Elf)), [("VMCOREINFO".to_owned(), TEXT.to_vec())]);
    let bytes = dump(&machine, Format::Kdump { codec: Codec::Zlib, raw: true });
    let kdump = Kdump::parse(&bytes).unwrap();
    assert_eq!(kdump.vmcoreinfo, TEXT);
    assert_eq!(kdump.phys_base, -4096);
    assert_eq!(kdump.utsname[2], "9.9");
    machine.reset().unwrap();
    assert_eq!(notes(&dump(&machine, Format::Elf)), [], "a reset takes it back");
}

#[test]
fn the_note_is_found_after_a_migration_and_in_the_migrations_file() {
    let folder = tempfile::tempdir().unwrap();
    let stream = machines::save(&published(folder.path()));
    let (target, _) = machines::build(&format!("{MACHINE} -device vmcoreinfo -incoming defer"));
    machines::load(&target, &stream).unwrap();
    target.set_state(RunState::Paused);
    assert_eq!(notes(&dump(&target, Format::Elf)).len(), 1);

    let (without, _) = machines::build(&format!("{MACHINE} -incoming defer"));
    let refused = machines::load(&without, &stream).unwrap_err().to_string();
    assert!(refused.contains("-device vmcoreinfo is missing"), "{refused}");

    let path = |name: &str| folder.path().join(name);
    std::fs::write(path("stream"), stream).unwrap();
    let inspect = Command::new(env!("CARGO_BIN_EXE_godwit"))
        .args([
            "inspect".as_ref(),
            path("stream").as_os_str(),
            "--core".as_ref(),
            path("core").as_os_str(),
        ])
        .stdout(Stdio::null())
        .status();
    assert!(inspect.unwrap().success());
    assert_eq!(notes(&std::fs::read(path("core")).unwrap()).len(), 1);
}

#[test]
fn a_guest_finds_nothing_to_write_to_without_the_device() {
    let folder = tempfile::tempdir().unwrap();
    let (machine, output) =
        machines::build(&format!("{MACHINE} -kernel {}", kernel(folder.path()).display()));
    machine.cont().unwrap();
    guest::wait(|| output.text() == "!", || format!("the guest says {:?}", output.text()));
    machine.stop(RunState::Paused).unwrap();
    assert_eq!(notes(&dump(&machine, Format::Elf)), []);
}

/// QEMU loads our stream with its own vmcoreinfo device, and dumps the note.
#[test]
#[ignore = "needs QEMU"]
fn qemu_finds_the_note_of_a_guest_that_we_migrate_to_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    std::fs::write(path("stream"), machines::save(&published(folder.path()))).unwrap();
    let words = format!(
        "{MACHINE} -cpu host,arch-capabilities=off -S -device vmcoreinfo -kernel {} -incoming exec:cat~{} -qmp stdio",
        path("kernel"),
        path("stream"),
    );
    let mut qemu = Command::new("qemu-system-x86_64")
        .args(words.split_whitespace().map(|word| word.replace('~', " ")))
        .stdin(Stdio::piped())
        .stdout(std::fs::File::create(path("answers")).unwrap())
        .spawn()
        .unwrap();
    let mut monitor = qemu.stdin.take().unwrap();
    let answers = || std::fs::read_to_string(path("answers")).unwrap_or_default();
    let mut say = |command: &str, answer: &str| {
        use std::io::Write;
        let end = Instant::now() + Duration::from_secs(30);
        while Instant::now() < end && !answers().contains(answer) {
            // It may have gone by the time it is asked to go again.
            let _ = writeln!(monitor, "{command}");
            std::thread::sleep(Duration::from_millis(100));
        }
        assert!(answers().contains(answer), "{}", answers());
    };
    say(r#"{"execute": "qmp_capabilities"}"#, "return");
    say(r#"{"execute": "query-migrate"}"#, "completed");
    let core = path("core");
    let ask = format!(
        r#"{{"execute": "dump-guest-memory", "arguments": {{"paging": false, "protocol": "file:{core}"}}}}"#
    );
    say(&ask, "DUMP_COMPLETED");
    say(r#"{"execute": "quit"}"#, "SHUTDOWN");
    let _ = qemu.wait();
    let core = std::fs::read(core).unwrap();
    assert_eq!(notes(&core), [("VMCOREINFO".to_owned(), TEXT.to_vec())]);
}
