//! Python's `qemu.qmp` and its `qmp-shell` as clients, which `tools/install` installs, and the crate
//! `qapi`, whose session (`tests/peers/qapi`) is a project of its own.

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

/// Every command once, with arguments that do something where a table has some, and with what the
/// schema allows otherwise. Those that must work, do; nothing else than an error of QEMU's classes is
/// answered; the session survives all of it.
const EVERY: &str = r#"
import asyncio, os, sys
from qemu.qmp import QMPClient, ExecuteError

FOLDER = os.path.dirname(sys.argv[1])
FILE = os.path.join(FOLDER, 'made')
WORKS = {
    'add-fd': {'fdset-id': 1}, 'getfd': {'fdname': 'f'}, 'closefd': {'fdname': 'f'},
    'remove-fd': {'fdset-id': 1},
    'calc-dirty-rate': {'calc-time': 50, 'calc-time-unit': 'millisecond'},
    'chardev-add': {'id': 'c', 'backend': {'type': 'null', 'data': {}}}, 'chardev-remove': {'id': 'c'},
    'device-list-properties': {'typename': 'isa-debug-exit'},
    'dump-guest-memory': {'paging': False, 'protocol': 'file:' + FILE},
    'human-monitor-command': {'command-line': 'info status'},
    'memsave': {'val': 0, 'size': 4096, 'filename': FILE}, 'pmemsave': {'val': 0, 'size': 4096, 'filename': FILE},
    'migrate-set-capabilities': {'capabilities': [{'capability': 'events', 'state': True}]},
    'migrate-set-parameters': {'max-bandwidth': 1 << 30}, 'migrate-set-cache-size': {'value': 1 << 26},
    'object-add': {'qom-type': 'iothread', 'id': 'o'}, 'object-del': {'id': 'o'},
    'qom-get': {'path': '/machine', 'property': 'type'}, 'qom-list': {'path': '/'},
    'qom-list-properties': {'typename': 'iothread'}, 'qom-list-types': {},
    'query-cpu-model-expansion': {'type': 'full', 'model': {'name': 'host'}},
    'query-stats': {'target': 'vcpu'}, 'set-action': {'panic': 'pause'}, 'yank': {'instances': []},
}
FIRST = ['getfd', 'add-fd', 'chardev-add', 'object-add']
LAST = ['migrate', 'system_reset']
CLASSES = {'GenericError', 'DeviceNotActive', 'DeviceNotFound', 'KVMMissingCap'}

def filled(schema, name, depth=0):
    """A value of the type."""
    of = schema.get(name, {})
    kind = of.get('meta-type')
    if kind == 'enum':
        return of['values'][0]
    if kind == 'array':
        return []
    if kind == 'alternate':
        return filled(schema, of['members'][0]['type'], depth + 1)
    if kind == 'object':
        made = {m['name']: filled(schema, m['type'], depth + 1)
                for m in of['members'] if 'default' not in m}
        for variant in of.get('variants', []):
            if variant['case'] == made.get(of.get('tag')):
                made.update(filled(schema, variant['type'], depth + 1))
        return made
    return {'int': 0, 'bool': False, 'number': 0, 'null': None}.get(name, 'x')

async def main():
    client = QMPClient('test')
    await client.connect(sys.argv[1])
    schema = {entry['name']: entry for entry in await client.execute('query-qmp-schema')}
    names = {command['name'] for command in await client.execute('query-commands')}
    assert names == {n for n, entry in schema.items() if entry['meta-type'] == 'command'}
    assert set(WORKS) <= names, set(WORKS) - names
    rest = sorted(names - set(FIRST) - set(LAST) - {'quit', 'qmp_capabilities'})
    # What takes away comes behind what brings; what is cut is the last thing.
    rest.sort(key=lambda name: name.startswith(('closefd', 'remove-fd', 'object-del', 'chardev-remove')))
    worked = 0
    for name in FIRST + rest + LAST:
        if name in ('getfd', 'add-fd'):
            client.send_fd_scm(os.open('/dev/null', os.O_RDWR))
        arguments = WORKS.get(name, filled(schema, schema[name]['arg-type']))
        try:
            await client.execute(name, arguments)
            worked += 1
        except ExecuteError as error:
            assert error.error_class in CLASSES, (name, arguments, str(error))
            assert name not in WORKS, (name, arguments, str(error))
            without = [m for m in schema[schema[name]['arg-type']]['members'] if 'default' not in m]
            assert without or name not in QUERIES, (name, str(error))
        assert (await client.execute('query-name')) == {}, name
    print('done', worked, len(names))
    await client.execute('quit')
    try:
        await client.disconnect()
    except EOFError:
        pass

QUERIES = set('''query-block query-blockstats query-chardev query-chardev-backends query-command-line-options
query-commands query-cpu-definitions query-cpus-fast query-current-machine query-dirty-rate query-dump
query-dump-guest-memory-capability query-events query-fdsets query-iothreads query-jobs query-kvm query-machines
query-memdev query-memory-devices query-memory-size-summary query-migrate query-migrate-capabilities
query-migrate-parameters query-name query-named-block-nodes query-qmp-schema query-rx-filter query-stats-schemas
query-status query-target query-tpm-models query-tpm-types query-uuid query-vcpu-dirty-limit query-version
query-yank'''.split())

asyncio.run(main())
"#;

#[test]
#[ignore = "needs qemu.qmp from PyPI"]
fn qemu_qmp_drives_every_command() {
    let (bin, mut godwit) = (peers(), start());
    let socket = godwit.monitor();
    let output = run(Command::new(bin.join("python")).arg("-c").arg(EVERY).arg(&socket), "");
    assert!(
        String::from_utf8_lossy(&output.stdout).contains("done"),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert_eq!(godwit.exit_code(), Some(0));
}

/// Answers and events are decoded into the types that the crate made of QEMU's own schema.
#[test]
#[ignore = "builds the crate qapi from crates.io"]
fn qapi_decodes_every_answer() {
    let mut godwit = start();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let manifest = root.join("tests/peers/qapi/Cargo.toml");
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["run", "--quiet", "--locked", "--manifest-path"]).arg(manifest);
    cargo.arg("--target-dir").arg(root.join("target/peers")).arg("--");
    let output = run(cargo.arg(godwit.monitor()).arg(godwit.folder()), "");
    assert!(
        String::from_utf8_lossy(&output.stdout).contains("done"),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert_eq!(godwit.exit_code(), Some(0));
}
