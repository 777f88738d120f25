#!/usr/bin/env python3
"""Measures a VMM's QMP monitors: query-status per second, pipelined on one connection, and how long another monitor
waits for its answer while 64 misbehave: clients that never read, one that sends a message without end, deep nesting,
half a character.

usage: tools/measure/qmp.py [--vmm PATH] [--requests N] [--clients N] [--endless MIB]

PATH is a godwit, target/release/godwit without it, or a qemu-system-x86_64, to measure beside it."""

import argparse
import json
import os
import pathlib
import socket
import subprocess
import tempfile
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
STATUS = b'{"execute":"query-status"}\n'


def start(vmm, folder, monitors):
    qemu = 'qemu' in os.path.basename(vmm)
    words = [vmm] + ([] if qemu else ['run'])
    words += ['-M', 'microvm,acpi=off', '-m', '64M', '-nodefaults', '-display', 'none', '-S']
    words += ['-accel', 'kvm', '-cpu', 'host,-arch-capabilities'] if qemu else ['-kernel', 'builtin']
    for number in range(monitors):
        words += ['-qmp', f'unix:{folder}/{number},server=on,wait=off']
    return subprocess.Popen(words, stdin=subprocess.DEVNULL)


def connect(path):
    end = time.time() + 20
    while True:
        client = socket.socket(socket.AF_UNIX)
        try:
            client.connect(path)
            break
        except OSError:
            if time.time() > end:
                raise
            time.sleep(0.05)
    lines = client.makefile('rb')
    lines.readline()
    client.sendall(b'{"execute":"qmp_capabilities"}\n')
    lines.readline()
    return client, lines


def throughput(client, lines, requests):
    """Requests sent as fast as they are taken, answers counted."""
    began = time.perf_counter()
    batch = STATUS * 100
    sender = threading.Thread(target=lambda: [client.sendall(batch) for _ in range(requests // 100)])
    sender.start()
    for _ in range(requests // 100 * 100):
        assert b'"return"' in lines.readline()
    sender.join()
    return requests // 100 * 100 / (time.perf_counter() - began)


def latency(client, lines, seconds):
    """The longest and the middle wait for an answer, in milliseconds."""
    waits = []
    end = time.time() + seconds
    while time.time() < end:
        began = time.perf_counter()
        client.sendall(STATUS)
        assert b'"return"' in lines.readline()
        waits.append((time.perf_counter() - began) * 1e3)
        time.sleep(0.01)
    return sorted(waits)[len(waits) // 2], max(waits)


def misbehave(path, what, stop, endless):
    client, _ = connect(path)
    client.settimeout(1)
    sent = 0
    pieces = {
        'never reads': STATUS * 50,
        'no end': b'"' + b'a' * 65535 if endless else b'[' ,
        'deep': b'[' * 4096 + b']' * 4096,
        'half a character': b'{"id":"\xc3',
    }
    piece = pieces[what]
    while not stop.is_set():
        try:
            if what == 'no end':
                if sent > endless << 20:
                    time.sleep(0.1)
                    continue
                client.sendall(piece if sent == 0 else piece[1:])
            else:
                client.sendall(piece)
                if what != 'never reads':
                    time.sleep(0.05)
                    client.setblocking(False)
                    try:
                        client.recv(1 << 20)
                    except BlockingIOError:
                        pass
                    client.settimeout(1)
            sent += len(piece)
        except TimeoutError:
            pass
        except OSError:
            return


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--vmm', default=str(ROOT / 'target/release/godwit'))
    parser.add_argument('--requests', type=int, default=20000)
    parser.add_argument('--clients', type=int, default=64)
    parser.add_argument('--endless', type=int, default=1024, help='MiB of the message without end')
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        machine = start(options.vmm, folder, options.clients + 1)
        try:
            client, lines = connect(f'{folder}/0')
            rate = throughput(client, lines, options.requests)
            alone = latency(client, lines, 1)
            stop = threading.Event()
            kinds = ['no end', 'deep', 'half a character'] + ['never reads'] * options.clients
            threads = [
                threading.Thread(target=misbehave, args=(f'{folder}/{n + 1}', kinds[n], stop, options.endless), daemon=True)
                for n in range(options.clients)
            ]
            for thread in threads:
                thread.start()
            crowd = latency(client, lines, 5)
            stop.set()
            for thread in threads:
                thread.join(5)
            client.sendall(b'{"execute":"quit"}\n')
            status = machine.wait(10)
        finally:
            machine.kill()
    print(json.dumps({
        'vmm': options.vmm,
        'query-status per second': round(rate),
        'ms alone, middle and longest': [round(ms, 2) for ms in alone],
        f'ms beside {options.clients} others': [round(ms, 2) for ms in crowd],
        'exit status': status,
    }, indent=2))


if __name__ == '__main__':
    main()
