#!/usr/bin/env python3
"""Live-migrate one guest between two VMM processes on this machine and print the figures as a JSON line.

--vmm is QEMU or anything that takes its microvm command line and QMP ("godwit run"). The guest is guest/dirtier.elf (PVH): it
sweeps a working set of --ws MiB for ever, adding one to --words 8-byte words of each page. RAM lies in files under /dev/shm, the
source's filled with random bytes or zeros (--fill), the target's touched beforehand unless --fresh: on a virtual machine fresh
memory costs more than the migration. --caps and --params go to both sides,
but x-godwit-… to the source only. --anonymous gives both anonymous memory, which nothing has filled. --target-vmm moves the guest to another VMM than it came from. Example:
  migrate_pair.py --vmm qemu-system-x86_64 --mem 2048 --ws 256 --words 2 --caps xbzrle --params xbzrle-cache-size=536870912
"""
import argparse, json, os, shlex, shutil, socket, subprocess, sys, tempfile, time

class Qmp:
    def __init__(self, path, timeout=20):
        end = time.time() + timeout
        while True:
            try:
                self.s = socket.socket(socket.AF_UNIX); self.s.connect(path); break
            except OSError:
                if time.time() > end: raise
                time.sleep(0.02)
        self.f = self.s.makefile('rw'); self.events = []
        json.loads(self.f.readline()); self.cmd('qmp_capabilities')
    def cmd(self, name, **a):
        self.f.write(json.dumps({'execute': name, 'arguments': a} if a else {'execute': name}) + '\n'); self.f.flush()
        while True:
            m = json.loads(self.f.readline())
            if 'event' in m: self.events.append(m); continue
            if 'error' in m: raise RuntimeError(f'{name}: {m["error"]}')
            return m['return']

def fill(path, mib, kind, data_mib):
    with open(path, 'wb') as f:
        f.truncate(mib << 20)
        if kind == 'random':
            block = os.urandom(64 << 20)
            f.seek(32 << 20)
            left = min(data_mib, mib - 32)
            while left > 0:
                f.write(block[:min(left, 64) << 20]); left -= 64

def anonymous(pid):
    """KiB of memory that is the process's own: guest RAM is a file"""
    for line in open(f'/proc/{pid}/status'):
        if line.startswith('RssAnon'): return int(line.split()[1])
    return 0

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--vmm', default='qemu-system-x86_64'); p.add_argument('--target-vmm')
    p.add_argument('--mem', type=int, default=2048); p.add_argument('--fill', default='random'); p.add_argument('--data', type=int, default=1 << 20)
    p.add_argument('--ws', type=int, default=64); p.add_argument('--words', type=int, default=1); p.add_argument('--spin', type=int, default=0); p.add_argument('--smp', type=int, default=1)
    p.add_argument('--caps', default=''); p.add_argument('--params', default=''); p.add_argument('--uri', default='unix')
    p.add_argument('--paused', action='store_true'); p.add_argument('--anonymous', action='store_true'); p.add_argument('--fresh', action='store_true'); p.add_argument('--limit', type=float, default=120); p.add_argument('--warm', type=float, default=1.0)
    a = p.parse_args()
    d = tempfile.mkdtemp(dir='/dev/shm'); here = os.path.dirname(os.path.abspath(__file__)); procs = []
    try:
        fill(f'{d}/src.ram', a.mem, 'zero' if a.anonymous else a.fill, a.data)
        with open(f'{d}/dst.ram', 'wb') as f:
            f.truncate(a.mem << 20)
            if not a.fresh and not a.anonymous:  # memory that was touched before: what is measured is the VMM, not the machine handing out memory
                for _ in range(a.mem // 16): f.write(b'\1' * (16 << 20))
                f.seek(0); [f.write(bytes(16 << 20)) for _ in range(a.mem // 16)]
        for vmm in (a.vmm, a.target_vmm or a.vmm):
            if not shutil.which(shlex.split(vmm)[0]): sys.exit(f'migrate_pair.py: there is no {shlex.split(vmm)[0]}')
        def start(name, extra):
            procs.append(subprocess.Popen(shlex.split(a.target_vmm or a.vmm if name == 'dst' else a.vmm) + ['-accel', 'kvm', '-M', 'microvm,acpi=off,memory-backend=m', '-m', str(a.mem), '-smp', str(a.smp),
                '-object', f'memory-backend-ram,id=m,size={a.mem}M' if a.anonymous else f'memory-backend-file,id=m,size={a.mem}M,mem-path={d}/{name}.ram,share=on', '-display', 'none', '-nodefaults',
                '-serial', f'file:{d}/{name}.serial', '-kernel', f'{here}/guest/dirtier.elf', '-append', f'ws={a.ws} words={a.words} spin={a.spin}',
                '-qmp', f'unix:{d}/{name}.qmp,server=on,wait=off'] + extra, stderr=open(f'{d}/{name}.err', 'w')))
            return Qmp(f'{d}/{name}.qmp')
        src = start('src', ['-S'] if a.paused else []); dst = start('dst', ['-incoming', 'defer'])
        caps = [c for c in a.caps.split(',') if c]
        params = dict(x.split('=') for x in a.params.split(',') if x)
        params = {k: (int(v) if v.lstrip('-').isdigit() else v) for k, v in params.items()}
        params.setdefault('max-bandwidth', 0)
        for q in (src, dst):
            q.cmd('migrate-set-capabilities', capabilities=[{'capability': c, 'state': True} for c in caps + ['events']])
            q.cmd('migrate-set-parameters', **{k: v for k, v in params.items() if q is src or not k.startswith('x-godwit')})
        uri = {'unix': f'unix:{d}/mig', 'tcp': 'tcp:127.0.0.1:0'}[a.uri]
        dst.cmd('migrate-incoming', uri=uri); time.sleep(a.warm)
        if a.uri == 'tcp': uri = 'tcp:127.0.0.1:' + dst.cmd('query-migrate')['socket-address'][0]['port']
        cpu0 = [os.times()] ; t0 = time.time(); src.cmd('migrate', uri=uri)
        own = {'src': 0, 'dst': 0}; advice = None; foreseen = None
        while True:
            i = src.cmd('query-migrate')
            for name, pr in zip(own, procs): own[name] = max(own[name], anonymous(pr.pid))
            if advice is None and (text := i.get('x-godwit', {}).get('advice')): advice = {'after_s': round(time.time() - t0, 2), 'text': text}
            if 'expected-downtime' in i: foreseen = i['expected-downtime']
            if i['status'] in ('completed', 'failed', 'cancelled'): break
            if time.time() - t0 > a.limit: src.cmd('migrate_cancel'); i = src.cmd('query-migrate'); i['status'] = 'gave up'; break
            time.sleep(0.01)
        wall = time.time() - t0
        r = {'vmm': os.path.basename(shlex.split(a.vmm)[0]), 'mem': a.mem, 'fill': a.fill, 'ws': a.ws, 'words': a.words, 'caps': caps, 'params': params, 'uri': a.uri, 'status': i['status'], 'wall_s': round(wall, 3)}
        for k in ('total-time', 'downtime', 'setup-time'): r[k] = i.get(k)
        ram = i.get('ram', {})
        for k in ('transferred', 'normal', 'duplicate', 'dirty-sync-count', 'mbps', 'pages-per-second'): r[k] = ram.get(k)
        if 'xbzrle-cache' in i: r['xbzrle'] = i['xbzrle-cache']
        for name in own: r[name + '_own_mib'] = own[name] >> 10
        if advice: r['advice'] = advice
        if parts := i.get('x-godwit', {}).get('downtime-parts'): r['downtime_parts_us'] = parts
        if foreseen is not None: r['foreseen_ms'] = foreseen
        if 'error-desc' in i: r['error'] = i['error-desc']
        for name, pr in zip(('src', 'dst'), procs):
            f = open(f'/proc/{pr.pid}/stat').read().rsplit(')', 1)[1].split(); r[name + '_cpu_s'] = (int(f[11]) + int(f[12])) / 100
        if i['status'] == 'completed':
            s0 = os.path.getsize(f'{d}/dst.serial'); time.sleep(1.5); r['dst_sweeps_after'] = os.path.getsize(f'{d}/dst.serial') - s0
        print(json.dumps(r), flush=True)
    finally:
        for pr in procs: pr.kill(); pr.wait()
        subprocess.run(['rm', '-rf', d])
if __name__ == '__main__': main()
