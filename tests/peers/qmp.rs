//! Python's `qemu.qmp` and its `qmp-shell` as clients. `tools/install` installs
//! them.

use crate::common::vm::{Launch, Vm};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// The folder of the Python environment's programs.
fn peers() -> PathBuf {
    let bin = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/venv/bin");
    assert!(bin.join("qmp-shell").exists(), "run tools/install first");
    bin
}

/// A machine whose monitor is free.
fn start() -> Vm {
    let mut vm = Launch::alone().words(&["-S"]).start();
    vm.hang_up();
    vm
}

/// Runs `command` with this on its standard input.
fn run(command: &mut Command, input: &str) -> Output {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

#[test]
#[ignore = "needs qemu.qmp from PyPI"]
fn qmp_shell_starts_stops_and_quits() {
    let (bin, mut godwit) = (peers(), start());
    let socket = godwit.monitor();
    let commands = "query-version\nquery-status\ncont\nquery-status\nstop\nno-such-command\nquit\n";
    let output = run(Command::new(bin.join("qmp-shell")).arg(&socket), commands);
    let text = String::from_utf8_lossy(&output.stdout);
    for want in [
        "\"package\": \"Godwit ",
        "\"status\": \"prelaunch\"",
        "\"status\": \"running\"",
        "has not been found",
    ] {
        assert!(text.contains(want), "{want}: {text}\n{}", String::from_utf8_lossy(&output.stderr));
    }
    assert_eq!(godwit.exit_code(), Some(0));
}

/// Events are awaited, an error is caught by class, and many commands wait for their answers at
/// once.
const SCRIPT: &str = r#"
import asyncio, sys
from qemu.qmp import QMPClient, ExecuteError, EventListener

async def main():
    client = QMPClient('test')
    listener = EventListener()
    client.register_listener(listener)
    await client.connect(sys.argv[1])
    assert (await client.execute('query-status'))['status'] == 'prelaunch'
    await client.execute('cont')
    assert (await listener.get())['event'] == 'RESUME'
    await client.execute('stop')
    assert (await listener.get())['event'] == 'STOP'
    try:
        await client.execute('getfd', {'fdname': 'x'})
        raise AssertionError('accepted')
    except ExecuteError as error:
        assert error.error_class == 'GenericError', error
    with open('/dev/null') as file:
        client.send_fd_scm(file.fileno())
        await client.execute('getfd', {'fdname': 'x'})
    answers = await asyncio.gather(*[client.execute('query-version') for _ in range(1000)])
    assert all(answer['qemu']['major'] == 10 for answer in answers)
    names = {command['name'] for command in await client.execute('query-commands')}
    assert {'quit', 'query-commands', 'qmp_capabilities'} <= names
    await client.execute('quit')
    assert (await listener.get())['event'] == 'SHUTDOWN'
    try:
        await client.disconnect()
    except EOFError:
        pass
    print('done')

asyncio.run(main())
"#;

#[test]
#[ignore = "needs qemu.qmp from PyPI"]
fn qemu_qmp_speaks_to_it() {
    let (bin, mut godwit) = (peers(), start());
    let socket = godwit.monitor();
    let output = run(Command::new(bin.join("python")).arg("-c").arg(SCRIPT).arg(&socket), "");
    assert!(
        String::from_utf8_lossy(&output.stdout).contains("done"),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert_eq!(godwit.exit_code(), Some(0));
}
