#!/usr/bin/env python3
"""How soon a guest runs and what its VMM costs: Godwit and QEMU in turn, medians.

Measures, for a 128 MiB guest that says one byte and halts (guest/hello.elf, PVH):
  first byte   from before fork and exec to the first byte from the serial port, ms
  own memory   the VMM's Pss less guest RAM, half a second later, MiB
  idle CPU     processor time of all its threads while the guest sleeps, % of one processor

  start.py [--godwit target/release/godwit] [--qemu qemu-system-x86_64] [--runs 21] [--idle 5] [--json] [--check]

--check fails if Godwit needs more than 10/72 of QEMU's time to the first byte, more than 6 MiB, or more than 0.5 % idle.
"""
import argparse, glob, json, os, shutil, statistics, subprocess, sys, time

MIB = 128
HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
TIME_RATIO_MAX, MEMORY_MIB_MAX, IDLE_PERCENT_MAX = 10 / 72, 6.0, 0.5

def start(words):
    """(process, seconds to its guest's first byte)"""
    command = words + ['-M', 'microvm,acpi=off', '-accel', 'kvm', '-m', str(MIB), '-nodefaults', '-display', 'none',
                       '-serial', 'stdio', '-kernel', f'{HERE}/guest/hello.elf']
    began = time.monotonic()
    vmm = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    if not os.read(vmm.stdout.fileno(), 1):
        sys.exit(f'{words[0]} ended: {vmm.stderr.read().decode()}')
    return vmm, time.monotonic() - began

def own_mib(pid):
    """Pss of every mapping that is smaller than guest RAM."""
    kib, counts = 0, False
    for line in open(f'/proc/{pid}/smaps'):
        first, *rest = line.split()
        if not first.endswith(':'):
            low, high = (int(x, 16) for x in first.split('-')); counts = high - low < MIB << 20
        elif first == 'Pss:' and counts:
            kib += int(rest[0])
    return kib / 1024

def cpu_seconds(pid):
    return sum(int(open(task).read().split()[0]) for task in glob.glob(f'/proc/{pid}/task/*/schedstat')) / 1e9

def end(vmm):
    vmm.kill(); vmm.wait()

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--godwit', default=f'{ROOT}/target/release/godwit'); p.add_argument('--qemu', default='qemu-system-x86_64')
    p.add_argument('--runs', type=int, default=21); p.add_argument('--idle', type=float, default=5)
    p.add_argument('--json', action='store_true'); p.add_argument('--check', action='store_true')
    a = p.parse_args()
    if a.godwit == f'{ROOT}/target/release/godwit':
        subprocess.run(['cargo', 'build', '--release', '-q', '--bin', 'godwit'], cwd=ROOT, check=True)
    for program in (a.godwit, a.qemu):
        if not shutil.which(program):
            sys.exit(f'start.py: needs {program}')
    peers = {'godwit': [a.godwit, 'run'], 'qemu': [a.qemu]}
    times, memory, idle = ({name: [] for name in peers} for _ in range(3))
    for run in range(a.runs):
        for name, words in peers.items():
            vmm, seconds = start(words); times[name].append(seconds * 1000)
            if run < 5:
                time.sleep(0.5); memory[name].append(own_mib(vmm.pid))
            if run == 0:
                before = cpu_seconds(vmm.pid); time.sleep(a.idle)
                idle[name] = (cpu_seconds(vmm.pid) - before) / a.idle * 100
            end(vmm)
    out = {name: {'first_byte_ms': round(statistics.median(times[name]), 2), 'first_byte_ms_min': round(min(times[name]), 2),
                  'own_memory_mib': round(statistics.median(memory[name]), 2), 'idle_cpu_percent': round(idle[name], 3)} for name in peers}
    if a.json:
        print(json.dumps(out))
    else:
        print(f'{"":8} first byte ms (min)   own memory MiB   idle CPU %   ({a.runs} runs, median)')
        for name, x in out.items():
            print(f'{name:8} {x["first_byte_ms"]:10.1f} ({x["first_byte_ms_min"]:.1f}) {x["own_memory_mib"]:16.2f} {x["idle_cpu_percent"]:12.3f}')
    if a.check:
        g, q = out['godwit'], out['qemu']
        missed = [text for text, bad in ((f'first byte: {g["first_byte_ms"]} ms, more than {TIME_RATIO_MAX:.2f} of QEMU\'s {q["first_byte_ms"]}', g['first_byte_ms'] > TIME_RATIO_MAX * q['first_byte_ms']),
                                         (f'own memory: {g["own_memory_mib"]} MiB, more than {MEMORY_MIB_MAX}', g['own_memory_mib'] > MEMORY_MIB_MAX),
                                         (f'idle CPU: {g["idle_cpu_percent"]} %, more than {IDLE_PERCENT_MAX}', g['idle_cpu_percent'] > IDLE_PERCENT_MAX)) if bad]
        for text in missed: print('MISSED ' + text)
        sys.exit(bool(missed))

main()
