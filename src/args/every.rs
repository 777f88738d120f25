//! Nothing is ignored in silence: every option, and every key of an option, either changes what is
//! run or is named here as one that asks for what is so anyway.

use super::table::{Does, OPTIONS};
use super::tests::config;
use super::*;
use crate::machine::PARTS;

const GOOD: &str = "-M microvm,acpi=off";

/// An option, a key of it if it has keys, and two endings of a good line that differ in it.
#[rustfmt::skip]
const CHANGES: &[(&str, &str, &str, &str)] = &[
    ("M", "type", "", "-M none"),
    ("cpu", "", "", "-cpu host,-x2apic"),
    ("cpu", "", "", "-cpu host,+invtsc"),
    ("cpu", "", "", "-cpu host,topoext=off"),
    ("cpu", "", "", "-cpu host,migratable=off"),
    ("run-with", "exit-with-parent", "", "-run-with exit-with-parent=on"),
    ("run-with", "user", "", "-run-with user=nobody"),
    ("run-with", "chroot", "", "-run-with chroot=/"),
    ("sandbox", "enable", "", "-sandbox on"),
    ("sandbox", "obsolete", "-sandbox on", "-sandbox on,obsolete=allow"),
    ("sandbox", "elevateprivileges", "-sandbox on", "-sandbox on,elevateprivileges=deny"),
    ("sandbox", "spawn", "-sandbox on", "-sandbox on,spawn=deny"),
    ("sandbox", "resourcecontrol", "-sandbox on", "-sandbox on,resourcecontrol=deny"),
    ("add-fd", "fd", "-add-fd fd=3,set=1", "-add-fd fd=4,set=1"),
    ("add-fd", "set", "-add-fd fd=3,set=1", "-add-fd fd=3,set=2"),
    ("add-fd", "opaque", "-add-fd fd=3,set=1", "-add-fd fd=3,set=1,opaque=x"),
    ("numa", "memdev", "RAM,id=m,size=64M -M memory-backend=m", "RAM,id=n,size=64M -numa node,memdev=n"),
    ("name", "process", "", "-name process=x"),
    ("fw_cfg", "name", "-fw_cfg opt/a,string=x", "-fw_cfg name=opt/b,string=x"),
    ("fw_cfg", "file", "-fw_cfg opt/a,string=x", "-fw_cfg opt/a,file=x"),
    ("fw_cfg", "string", "-fw_cfg opt/a,string=x", "-fw_cfg opt/a,string=y"),
    ("smbios", "type", "", "-smbios type=1"),
    ("smbios", "manufacturer", "-smbios type=1", "-smbios type=1,manufacturer=x"),
    ("smbios", "product", "-smbios type=1", "-smbios type=1,product=x"),
    ("smbios", "version", "-smbios type=1", "-smbios type=1,version=x"),
    ("smbios", "serial", "-smbios type=1", "-smbios type=1,serial=x"),
    ("smbios", "uuid", "-smbios type=1", "-smbios type=1,uuid=01020304-0506-0708-090a-0b0c0d0e0f10"),
    ("smbios", "sku", "-smbios type=1", "-smbios type=1,sku=x"),
    ("smbios", "family", "-smbios type=1", "-smbios type=1,family=x"),
    ("M", "acpi", "", "-M acpi=on"),
    ("M", "ioapic2", "", "-M ioapic2=off"),
    ("M", "rtc", "", "-M rtc=on"),
    ("M", "x-oem-id", "", "-M x-oem-id=ME"),
    ("M", "x-oem-table-id", "", "-M x-oem-table-id=MINE"),
    ("M", "pic", "", "-M pic=off"),
    ("M", "pit", "", "-M pit=off"),
    ("M", "isa-serial", "", "-M isa-serial=off"),
    ("M", "auto-kernel-cmdline", "RNG", "RNG -M auto-kernel-cmdline=off"),
    ("M", "memory-backend", "", "-M memory-backend=m -object memory-backend-ram,id=m,size=128M"),
    ("M", "suppress-vmdesc", "", "-M suppress-vmdesc=on"),
    ("M", "mem-merge", "", "-M mem-merge=off"),
    ("M", "dump-guest-core", "", "-M dump-guest-core=off"),
    ("accel", "dirty-ring-size", "", "-accel kvm,dirty-ring-size=4096"),
    ("accel", "device", "", "-accel kvm,device=/dev/k"),
    ("smp", "cpus", "", "-smp 2"),
    ("smp", "maxcpus", "-smp 1", "-smp 1,maxcpus=2"),
    ("smp", "sockets", "-smp 4", "-smp 4,sockets=2"),
    ("smp", "cores", "-smp 4", "-smp 4,cores=2"),
    ("smp", "threads", "-smp 4", "-smp 4,threads=2"),
    ("m", "size", "", "-m 64M"),
    ("m", "maxmem", "", "-m 128,maxmem=256M"),
    ("object", "id", "RAM,id=m,size=128M -M memory-backend=m", "RAM,id=n,size=128M -M memory-backend=n"),
    ("object", "size", "RAM,id=m,size=128M -M memory-backend=m", "RAM,id=m,size=64M -M memory-backend=m"),
    ("object", "share", "RAM,id=m,size=1M -M memory-backend=m", "RAM,id=m,size=1M,share=on -M memory-backend=m"),
    ("object", "prealloc", "RAM,id=m,size=1M -M memory-backend=m", "RAM,id=m,size=1M,prealloc=on -M memory-backend=m"),
    ("object", "merge", "RAM,id=m,size=1M -M memory-backend=m", "RAM,id=m,size=1M,merge=off -M memory-backend=m"),
    ("object", "dump", "RAM,id=m,size=1M -M memory-backend=m", "RAM,id=m,size=1M,dump=off -M memory-backend=m"),
    ("object", "hugetlb", "MEMFD", "MEMFD,hugetlb=on"),
    ("object", "hugetlbsize", "MEMFD,hugetlb=on", "MEMFD,hugetlb=on,hugetlbsize=2M"),
    ("object", "seal", "MEMFD", "MEMFD,seal=off"),
    ("object", "mem-path", "FILE,mem-path=F", "FILE,mem-path=G"),
    ("object", "offset", "FILE,mem-path=F", "FILE,mem-path=F,offset=4096"),
    ("object", "readonly", "FILE,mem-path=F", "FILE,mem-path=F,readonly=on"),
    ("object", "discard-data", "FILE,mem-path=F", "FILE,mem-path=F,discard-data=on"),
    ("object", "poll-max-ns", "-object iothread,id=i", "-object iothread,id=i,poll-max-ns=0"),
    ("object", "poll-grow", "-object iothread,id=i", "-object iothread,id=i,poll-grow=2"),
    ("object", "poll-shrink", "-object iothread,id=i", "-object iothread,id=i,poll-shrink=2"),
    ("object", "aio-max-batch", "-object iothread,id=i", "-object iothread,id=i,aio-max-batch=2"),
    ("object", "filename", "-object rng-random,id=r", "-object rng-random,id=r,filename=F"),
    ("mem-path", "", "", "-mem-path F"),
    ("mem-prealloc", "", "", "-mem-prealloc"),
    ("device", "driver", "", "-device vmcoreinfo"),
    ("device", "id", "-device vmcoreinfo", "-device vmcoreinfo,id=v"),
    ("device", "iobase", "-device isa-debug-exit", "-device isa-debug-exit,iobase=0xf4"),
    ("device", "iosize", "-device isa-debug-exit", "-device isa-debug-exit,iosize=4"),
    ("device", "rng", "RNG -object rng-builtin,id=r", "RNG,rng=r -object rng-builtin,id=r"),
    ("device", "chardev", "FILES,tag=t,chardev=c", "FILES,tag=t,chardev=d"),
    ("device", "tag", "FILES,chardev=c,tag=t", "FILES,chardev=c,tag=u"),
    ("device", "queue-size", "FILES,chardev=c,tag=t", "FILES,chardev=c,tag=t,queue-size=64"),
    ("device", "deflate-on-oom", "BALLOON", "BALLOON,deflate-on-oom=on"),
    ("device", "free-page-hint", "THREAD BALLOON,iothread=i", "THREAD BALLOON,iothread=i,free-page-hint=on"),
    ("device", "iothread", "THREAD BALLOON", "THREAD BALLOON,iothread=i"),
    ("device", "free-page-reporting", "BALLOON", "BALLOON,free-page-reporting=on"),
    ("device", "page-poison", "BALLOON", "BALLOON,page-poison=off"),
    ("device", "max-bytes", "RNG", "RNG,max-bytes=9"),
    ("device", "period", "RNG", "RNG,period=9"),
    ("device", "indirect_desc", "RNG", "RNG,indirect_desc=off"),
    ("device", "event_idx", "RNG", "RNG,event_idx=off"),
    ("device", "max_ports", "SERIAL", "SERIAL,max_ports=2"),
    ("device", "emergency-write", "SERIAL", "SERIAL,emergency-write=off"),
    ("device", "nr", "SERIAL -device virtserialport", "SERIAL -device virtserialport,nr=3"),
    ("device", "name", "SERIAL -device virtserialport", "SERIAL -device virtserialport,name=n"),
    ("device", "chardev", "SERIAL -device virtserialport -chardev null,id=c", "SERIAL -device virtserialport,chardev=c -chardev null,id=c"),
    ("device", "bus", "SERIAL -device virtserialport", "SERIAL -device virtserialport,bus=virtio-serial-bus.0"),
    ("device", "drive", "DISK -drive if=none,id=e,file=F", "-drive if=none,id=d,file=F,format=raw -device virtio-blk-device,drive=e -drive if=none,id=e,file=F"),
    ("device", "serial", "DISK", "DISK,serial=s"),
    ("device", "num-queues", "DISK", "DISK,num-queues=2"),
    ("device", "queue-size", "DISK", "DISK,queue-size=128"),
    ("device", "logical_block_size", "DISK,physical_block_size=4096", "DISK,physical_block_size=4096,logical_block_size=1024"),
    ("device", "physical_block_size", "DISK", "DISK,physical_block_size=4096"),
    ("device", "min_io_size", "DISK", "DISK,min_io_size=4096"),
    ("device", "opt_io_size", "DISK", "DISK,opt_io_size=4096"),
    ("device", "discard_granularity", "DISK", "DISK,discard_granularity=4096"),
    ("device", "report-discard-granularity", "DISK", "DISK,report-discard-granularity=off"),
    ("device", "write-cache", "DISK", "DISK,write-cache=off"),
    ("device", "config-wce", "DISK", "DISK,config-wce=off"),
    ("device", "discard", "DISK", "DISK,discard=off"),
    ("device", "write-zeroes", "DISK", "DISK,write-zeroes=off"),
    ("device", "max-discard-sectors", "DISK", "DISK,max-discard-sectors=8"),
    ("device", "max-write-zeroes-sectors", "DISK", "DISK,max-write-zeroes-sectors=8"),
    ("device", "seg-max-adjust", "DISK", "DISK,seg-max-adjust=off"),
    ("device", "cyls", "DISK", "DISK,cyls=9"),
    ("device", "heads", "DISK", "DISK,heads=9"),
    ("device", "secs", "DISK", "DISK,secs=9"),
    ("device", "werror", "DISK", "DISK,werror=ignore"),
    ("device", "rerror", "DISK", "DISK,rerror=stop"),
    ("device", "iothread", "-object iothread,id=i DISK", "-object iothread,id=i DISK,iothread=i"),
    ("device", "share-rw", "DISK", "DISK,share-rw=on"),
    ("drive", "file", "DRIVE,file=F", "DRIVE,file=G"),
    ("drive", "format", "DRIVE,file=F", "DRIVE,file=F,format=raw"),
    ("drive", "id", "-drive if=none,file=F,id=a", "-drive if=none,file=F,id=b"),
    ("drive", "cache", "DRIVE,file=F", "DRIVE,file=F,cache=none"),
    ("drive", "cache.writeback", "DRIVE,file=F", "DRIVE,file=F,cache.writeback=off"),
    ("drive", "cache.direct", "DRIVE,file=F", "DRIVE,file=F,cache.direct=on"),
    ("drive", "cache.no-flush", "DRIVE,file=F", "DRIVE,file=F,cache.no-flush=on"),
    ("drive", "werror", "DRIVE,file=F", "DRIVE,file=F,werror=stop"),
    ("drive", "rerror", "DRIVE,file=F", "DRIVE,file=F,rerror=stop"),
    ("drive", "node-name", "DRIVE,file=F", "DRIVE,file=F,node-name=n"),
    ("drive", "read-only", "DRIVE,file=F", "DRIVE,file=F,readonly=on"),
    ("drive", "auto-read-only", "DRIVE,file=F", "DRIVE,file=F,auto-read-only=off"),
    ("drive", "discard", "DRIVE,file=F", "DRIVE,file=F,discard=unmap"),
    ("drive", "detect-zeroes", "DRIVE,file=F", "DRIVE,file=F,detect-zeroes=on"),
    ("drive", "file.locking", "DRIVE,file=F", "DRIVE,file=F,file.locking=off"),
    ("drive", "backing", "DRIVE,file=F,format=qcow2", "DRIVE,file=F,format=qcow2,backing="),
    ("blockdev", "backing", "TWO -blockdev qcow2,node-name=r,file=n", "TWO -blockdev qcow2,node-name=r,file=n,backing=m"),
    ("blockdev", "driver", "-blockdev file,NODE", "-blockdev host_device,NODE"),
    ("blockdev", "node-name", "-blockdev file,filename=F,node-name=a", "-blockdev file,filename=F,node-name=b"),
    ("blockdev", "filename", "-blockdev file,node-name=a,filename=F", "-blockdev file,node-name=a,filename=G"),
    ("blockdev", "file", "TWO -blockdev raw,node-name=r,file=n", "TWO -blockdev raw,node-name=r,file=m"),
    ("blockdev", "read-only", "-blockdev file,NODE", "-blockdev file,NODE,read-only=on"),
    ("blockdev", "auto-read-only", "-blockdev file,NODE", "-blockdev file,NODE,auto-read-only=on"),
    ("blockdev", "cache.direct", "-blockdev file,NODE", "-blockdev file,NODE,cache.direct=on"),
    ("blockdev", "cache.no-flush", "-blockdev file,NODE", "-blockdev file,NODE,cache.no-flush=on"),
    ("blockdev", "locking", "-blockdev file,NODE", "-blockdev file,NODE,locking=off"),
    ("blockdev", "discard", "-blockdev file,NODE", "-blockdev file,NODE,discard=unmap"),
    ("blockdev", "detect-zeroes", "-blockdev file,NODE", "-blockdev file,NODE,detect-zeroes=on"),
    ("device", "csum", "CARD", "CARD,csum=off"),
    ("device", "guest_csum", "CARD", "CARD,guest_csum=off"),
    ("device", "gso", "CARD", "CARD,gso=off"),
    ("device", "guest_tso4", "CARD", "CARD,guest_tso4=off"),
    ("device", "guest_tso6", "CARD", "CARD,guest_tso6=off"),
    ("device", "guest_ecn", "CARD", "CARD,guest_ecn=off"),
    ("device", "guest_ufo", "CARD", "CARD,guest_ufo=off"),
    ("device", "guest_uso4", "CARD", "CARD,guest_uso4=off"),
    ("device", "guest_uso6", "CARD", "CARD,guest_uso6=off"),
    ("device", "guest_announce", "CARD", "CARD,guest_announce=off"),
    ("device", "host_tso4", "CARD", "CARD,host_tso4=off"),
    ("device", "host_tso6", "CARD", "CARD,host_tso6=off"),
    ("device", "host_ecn", "CARD", "CARD,host_ecn=off"),
    ("device", "host_ufo", "CARD", "CARD,host_ufo=off"),
    ("device", "host_uso", "CARD", "CARD,host_uso=off"),
    ("device", "mrg_rxbuf", "CARD", "CARD,mrg_rxbuf=off"),
    ("device", "status", "CARD", "CARD,status=off"),
    ("device", "ctrl_vq", "CARD", "CARD,ctrl_vq=off"),
    ("device", "ctrl_rx", "CARD", "CARD,ctrl_rx=off"),
    ("device", "ctrl_vlan", "CARD", "CARD,ctrl_vlan=off"),
    ("device", "ctrl_rx_extra", "CARD", "CARD,ctrl_rx_extra=off"),
    ("device", "ctrl_mac_addr", "CARD", "CARD,ctrl_mac_addr=off"),
    ("device", "ctrl_guest_offloads", "CARD", "CARD,ctrl_guest_offloads=off"),
    ("device", "mac", "CARD", "CARD,mac=2:0:0:0:0:1"),
    ("device", "host_mtu", "CARD", "CARD,host_mtu=1400"),
    ("device", "rx_queue_size", "CARD", "CARD,rx_queue_size=512"),
    ("device", "tx_queue_size", "CARD", "CARD,tx_queue_size=512"),
    ("device", "netdev", "-netdev tap,id=n CARD", "-netdev tap,id=n CARD,netdev=n"),
    ("netdev", "type", "-netdev tap,id=n", "-netdev user,id=n"),
    ("netdev", "id", "-netdev tap,id=n", "-netdev tap,id=m"),
    ("netdev", "ifname", "-netdev tap,id=n", "-netdev tap,id=n,ifname=t"),
    ("netdev", "fd", "-netdev tap,id=n", "-netdev tap,id=n,fd=3"),
    ("netdev", "fds", "-netdev tap,id=n", "-netdev tap,id=n,fds=3"),
    ("netdev", "sndbuf", "-netdev tap,id=n", "-netdev tap,id=n,sndbuf=1M"),
    ("netdev", "vnet_hdr", "-netdev tap,id=n", "-netdev tap,id=n,vnet_hdr=off"),
    ("netdev", "server", "-netdev stream,id=n,addr.type=unix,addr.path=S", "-netdev stream,id=n,addr.type=unix,addr.path=S,server=on"),
    ("netdev", "reconnect-ms", "-netdev stream,id=n,addr.type=unix,addr.path=S", "-netdev stream,id=n,addr.type=unix,addr.path=S,reconnect-ms=9"),
    ("netdev", "reconnect", "-netdev stream,id=n,addr.type=unix,addr.path=S", "-netdev stream,id=n,addr.type=unix,addr.path=S,reconnect=9"),
    ("netdev", "listen", "-netdev socket,id=n,listen=:1", "-netdev socket,id=n,listen=:2"),
    ("netdev", "connect", "-netdev socket,id=n,connect=h:1", "-netdev socket,id=n,connect=h:2"),
    ("netdev", "mcast", "-netdev socket,id=n,mcast=230.0.0.1:1", "-netdev socket,id=n,mcast=230.0.0.1:2"),
    ("netdev", "udp", "-netdev socket,id=n,localaddr=:1,udp=h:1", "-netdev socket,id=n,localaddr=:1,udp=h:2"),
    ("netdev", "localaddr", "-netdev socket,id=n,localaddr=:1,udp=h:1", "-netdev socket,id=n,localaddr=:2,udp=h:1"),
    ("netdev", "hostfwd", "-netdev user,id=n", "-netdev user,id=n,hostfwd=tcp::1-:2"),
    ("netdev", "net", "-netdev user,id=n", "-netdev user,id=n,net=10.1.0.0/16"),
    ("netdev", "host", "-netdev user,id=n", "-netdev user,id=n,host=10.1.0.1"),
    ("netdev", "dns", "-netdev user,id=n", "-netdev user,id=n,dns=10.1.0.1"),
    ("netdev", "dhcpstart", "-netdev user,id=n", "-netdev user,id=n,dhcpstart=10.1.0.9"),
    ("netdev", "ipv4", "-netdev user,id=n", "-netdev user,id=n,ipv4=off"),
    ("netdev", "ipv6", "-netdev user,id=n", "-netdev user,id=n,ipv6=off"),
    ("netdev", "addr.type", "-netdev stream,id=n,addr.type=inet,addr.host=h,addr.port=1", "-netdev stream,id=n,addr.type=unix,addr.path=S"),
    ("netdev", "addr.path", "-netdev stream,id=n,addr.type=unix,addr.path=S", "-netdev stream,id=n,addr.type=unix,addr.path=T"),
    ("netdev", "addr.abstract", "-netdev stream,id=n,addr.type=unix,addr.path=S", "-netdev stream,id=n,addr.type=unix,addr.path=S,addr.abstract=on"),
    ("netdev", "addr.host", "-netdev stream,id=n,addr.type=inet,addr.host=h,addr.port=1", "-netdev stream,id=n,addr.type=inet,addr.host=i,addr.port=1"),
    ("netdev", "addr.port", "-netdev stream,id=n,addr.type=inet,addr.host=h,addr.port=1", "-netdev stream,id=n,addr.type=inet,addr.host=h,addr.port=2"),
    ("netdev", "addr.to", "-netdev stream,id=n,addr.type=inet,addr.host=h,addr.port=1,server=on", "-netdev stream,id=n,addr.type=inet,addr.host=h,addr.port=1,server=on,addr.to=9"),
    ("netdev", "addr.str", "-netdev stream,id=n,addr.type=fd,addr.str=3", "-netdev stream,id=n,addr.type=fd,addr.str=4"),
    ("netdev", "addr.ipv4", "-netdev stream,id=n,addr.type=inet,addr.host=h,addr.port=1", "-netdev stream,id=n,addr.type=inet,addr.host=h,addr.port=1,addr.ipv4=on"),
    ("netdev", "addr.ipv6", "-netdev stream,id=n,addr.type=inet,addr.host=h,addr.port=1", "-netdev stream,id=n,addr.type=inet,addr.host=h,addr.port=1,addr.ipv6=on"),
    ("netdev", "local.type", "-netdev dgram,id=n,local.type=unix,local.path=L,remote.type=unix,remote.path=R", "-netdev dgram,id=n,local.type=inet,local.host=h,local.port=1,remote.type=inet,remote.host=i,remote.port=2"),
    ("netdev", "local.path", "-netdev dgram,id=n,local.type=unix,local.path=L,remote.type=unix,remote.path=R", "-netdev dgram,id=n,local.type=unix,local.path=X,remote.type=unix,remote.path=R"),
    ("netdev", "local.host", "-netdev dgram,id=n,local.type=inet,local.host=h,local.port=1,remote.type=inet,remote.host=i,remote.port=2", "-netdev dgram,id=n,local.type=inet,local.host=x,local.port=1,remote.type=inet,remote.host=i,remote.port=2"),
    ("netdev", "local.port", "-netdev dgram,id=n,local.type=inet,local.host=h,local.port=1,remote.type=inet,remote.host=i,remote.port=2", "-netdev dgram,id=n,local.type=inet,local.host=h,local.port=7,remote.type=inet,remote.host=i,remote.port=2"),
    ("netdev", "remote.type", "-netdev dgram,id=n,local.type=unix,local.path=L,remote.type=unix,remote.path=R", "-netdev dgram,id=n,local.type=inet,local.host=h,local.port=1,remote.type=inet,remote.host=i,remote.port=2"),
    ("netdev", "remote.path", "-netdev dgram,id=n,local.type=unix,local.path=L,remote.type=unix,remote.path=R", "-netdev dgram,id=n,local.type=unix,local.path=L,remote.type=unix,remote.path=X"),
    ("netdev", "remote.host", "-netdev dgram,id=n,local.type=inet,local.host=h,local.port=1,remote.type=inet,remote.host=i,remote.port=2", "-netdev dgram,id=n,local.type=inet,local.host=h,local.port=1,remote.type=inet,remote.host=x,remote.port=2"),
    ("netdev", "remote.port", "-netdev dgram,id=n,local.type=inet,local.host=h,local.port=1,remote.type=inet,remote.host=i,remote.port=2", "-netdev dgram,id=n,local.type=inet,local.host=h,local.port=1,remote.type=inet,remote.host=i,remote.port=7"),
    ("netdev", "local.str", "-netdev dgram,id=n,local.type=fd,local.str=3", "-netdev dgram,id=n,local.type=fd,local.str=4"),
    ("netdev", "remote.str", "-netdev dgram,id=n,local.type=fd,local.str=3,remote.type=inet,remote.host=230.0.0.1,remote.port=1", "-netdev dgram,id=n,local.type=fd,local.str=3,remote.type=inet,remote.host=230.0.0.1,remote.port=2"),
    ("global", "virtio-mmio.force-legacy", "", "-global virtio-mmio.force-legacy=off"),
    ("name", "guest", "", "-name guest=x"),
    ("uuid", "", "", "-uuid 01020304-0506-0708-090a-0b0c0d0e0f10"),
    ("kernel", "", "", "-kernel builtin"),
    ("initrd", "", "", "-initrd I"),
    ("append", "", "", "-append A"),
    ("incoming", "", "", "-incoming defer"),
    ("S", "", "", "-S"),
    ("serial", "", "", "-serial null"),
    ("chardev", "backend", "-chardev null,id=c", "-chardev pty,id=c"),
    ("chardev", "id", "-chardev null,id=c", "-chardev null,id=d"),
    ("chardev", "path", "-chardev file,id=c,path=F", "-chardev file,id=c,path=G"),
    ("chardev", "append", "-chardev file,id=c,path=F", "-chardev file,id=c,path=F,append=on"),
    ("chardev", "input-path", "-chardev file,id=c,path=F", "-chardev file,id=c,path=F,input-path=I"),
    ("chardev", "signal", "-serial none -chardev stdio,id=c", "-serial none -chardev stdio,id=c,signal=off"),
    ("chardev", "host", "-chardev socket,id=c,port=1", "-chardev socket,id=c,port=1,host=h"),
    ("chardev", "port", "-chardev socket,id=c,port=1", "-chardev socket,id=c,port=2"),
    ("chardev", "to", "-chardev socket,id=c,port=1,server=on", "-chardev socket,id=c,port=1,server=on,to=9"),
    ("chardev", "ipv4", "-chardev socket,id=c,port=1", "-chardev socket,id=c,port=1,ipv4=on"),
    ("chardev", "ipv6", "-chardev socket,id=c,port=1", "-chardev socket,id=c,port=1,ipv6=on"),
    ("chardev", "nodelay", "-chardev socket,id=c,port=1", "-chardev socket,id=c,port=1,nodelay=on"),
    ("chardev", "abstract", "-chardev socket,id=c,path=S", "-chardev socket,id=c,path=S,abstract=on"),
    ("chardev", "fd", "-chardev socket,id=c,fd=3", "-chardev socket,id=c,fd=4"),
    ("chardev", "server", "-chardev socket,id=c,path=S", "-chardev socket,id=c,path=S,server=on"),
    ("chardev", "wait", "-chardev socket,id=c,path=S,server=on", "-chardev socket,id=c,path=S,server=on,wait=off"),
    ("chardev", "reconnect-ms", "-chardev socket,id=c,path=S", "-chardev socket,id=c,path=S,reconnect-ms=9"),
    ("chardev", "reconnect", "-chardev socket,id=c,path=S", "-chardev socket,id=c,path=S,reconnect=9"),
    ("chardev", "logfile", "-chardev null,id=c", "-chardev null,id=c,logfile=L"),
    ("chardev", "logappend", "-chardev null,id=c,logfile=L", "-chardev null,id=c,logfile=L,logappend=on"),
    ("chardev", "mux", "-chardev null,id=c", "-chardev null,id=c,mux=on"),
    ("monitor", "", "", "-monitor null"),
    ("echr", "", "", "-echr 2"),
    ("nographic", "", "", "-nographic"),
    ("mon", "mode", "-chardev null,id=c -mon c", "-chardev null,id=c -mon c,mode=control"),
    ("qmp", "", "", "-qmp null"),
    ("qmp-pretty", "", "-qmp null", "-qmp-pretty null"),
    ("mon", "chardev", "-chardev null,id=c", "-chardev null,id=c -mon c,mode=control"),
    ("mon", "pretty", "-chardev null,id=c -mon c,mode=control", "-chardev null,id=c -mon c,mode=control,pretty=on"),
    ("pidfile", "", "", "-pidfile P"),
    ("daemonize", "", "", "-daemonize"),
    ("no-reboot", "", "", "-no-reboot"),
    ("no-shutdown", "", "", "-no-shutdown"),
    ("action", "reboot", "", "-action reboot=shutdown"),
    ("action", "shutdown", "", "-action shutdown=pause"),
    ("action", "panic", "", "-action panic=none"),
    ("nodefaults", "", "", "-nodefaults"),
];

/// An option and a key of it, values to try, and why they ask for what is so anyway.
#[rustfmt::skip]
const SO_ANYWAY: &[(&str, &str, &[&str], &str)] = &[
    ("M", "accel", &["kvm", "kvm:tcg"], "there is one accelerator"),
    ("M", "kernel-irqchip", &["on"], "interrupt controllers are KVM's"),
    ("M", "x-option-roms", &["on", "off"], "there is no firmware that would run them"),
    ("M", "graphics", &["off"], "there is no display"),
    ("M", "pcie", &["off", "auto"], "there is no PCI"),
    ("M", "usb", &["off"], "there is no USB"),
    ("M", "hmat", &["off"], "there is no such ACPI table"),
    ("M", "smm", &["off", "auto"], "microvm has none"),
    ("M", "aux-ram-share", &["off", "on"], "matters to a process that replaces this one in place, which is refused itself"),
    ("M", "bus-lock-ratelimit", &["0"], "bus locks are not watched"),
    ("accel", "accel", &["kvm"], "there is one accelerator"),
    ("accel", "kernel-irqchip", &["on"], "interrupt controllers are KVM's"),
    ("accel", "eager-split-size", &["0"], "exists on ARM only"),
    ("accel", "notify-vmexit", &["disable"], "is not asked of KVM"),
    ("run-with", "async-teardown", &["on", "off"], "the end waits for nobody's memory: the kernel frees it"),
    ("numa", "type", &["node"], "there are no distances, caches or processors to name"),
    ("numa", "nodeid", &["0"], "there is one node"),
    ("numa", "cpus", &["0", "0-1"], "all processors are in the one node"),
    ("smp", "dies", &["1"], "microvm has no such level"),
    ("smp", "clusters", &["1"], "microvm has no such level"),
    ("smp", "modules", &["1"], "microvm has no such level"),
    ("smp", "books", &["1"], "microvm has no such level"),
    ("smp", "drawers", &["1"], "microvm has no such level"),
    ("m", "slots", &["0", "2"], "nothing can be added, as is said of the maxmem= that it goes with"),
    ("object", "rom", &["off", "auto"], "RAM is no ROM"),
    ("object", "pmem", &["off"], "memory is not persistent"),
    ("object", "reserve", &["on"], "memory is reserved as the host's overcommit rule says"),
    ("object", "policy", &["default"], "memory lies where the process may have it"),
    ("object", "thread-pool-min", &["0", "8"], "requests are the kernel's ring's, which has threads of its own"),
    ("object", "thread-pool-max", &["8"], "requests are the kernel's ring's, which has threads of its own"),
    ("object", "prealloc-threads", &["1", "4"], "the kernel touches memory in one call"),
    ("object", "x-use-canonical-path-for-ramblock-id", &["off"], "a block's name is its backend's id"),
    ("device", "packed", &["off"], "rings are split"),
    ("device", "iommu_platform", &["off"], "there is no IOMMU"),
    ("device", "account-invalid", &["on", "auto"], "every request is counted"),
    ("device", "account-failed", &["on", "auto"], "every request is counted"),
    ("device", "bootindex", &["1"], "there is no firmware: -kernel starts the guest"),
    ("device", "request-merging", &["on", "off"], "the kernel merges what it likes"),
    ("drive", "if", &["none"], "there is no bus"),
    ("drive", "media", &["disk"], "there are no other media"),
    ("drive", "snapshot", &["off"], "overlays to be thrown away are not made"),
    ("drive", "copy-on-read", &["off"], "reads do not copy"),
    ("drive", "aio", &["threads", "io_uring"], "the kernel's ring does what is asked"),
    ("blockdev", "aio", &["threads", "io_uring"], "the kernel's ring does what is asked"),
    ("blockdev", "lazy-refcounts", &["off"], "refcounts are always kept"),
    ("blockdev", "pass-discard-request", &["on"], "what is discarded is given back"),
    ("blockdev", "pass-discard-snapshot", &["on"], "inner snapshots are not made or removed"),
    ("blockdev", "pass-discard-other", &["off"], "what is freed is used again"),
    ("blockdev", "discard-no-unref", &["off"], "what is discarded is given back"),
    ("blockdev", "l2-cache-size", &["1M"], "caches are as large as they are"),
    ("blockdev", "l2-cache-entry-size", &["4k"], "caches are as large as they are"),
    ("blockdev", "refcount-cache-size", &["1M"], "caches are as large as they are"),
    ("blockdev", "cache-size", &["1M"], "caches are as large as they are"),
    ("blockdev", "cache-clean-interval", &["600"], "caches stay"),
    ("blockdev", "force-share", &["off"], "an image that others write is not built"),
    ("blockdev", "x-check-cache-dropped", &["off"], "is not checked"),
    ("device", "mq", &["off"], "there is one pair of queues"),
    ("device", "rss", &["off"], "there is one pair of queues"),
    ("device", "hash", &["off"], "frames are not hashed"),
    ("device", "guest_rsc_ext", &["off"], "segments are not joined"),
    ("device", "failover", &["off"], "no other device stands in"),
    ("device", "num-request-queues", &["1"], "there is one"),
    ("device", "x-qemu-4-0-config-size", &["off"], "no machine is as old"),
    ("netdev", "script", &["no"], "scripts are not run"),
    ("netdev", "downscript", &["no"], "scripts are not run"),
    ("netdev", "vhost", &["off"], "frames are carried by this process"),
    ("netdev", "vhostforce", &["off"], "frames are carried by this process"),
    ("netdev", "queues", &["1"], "there is one pair of queues"),
    ("netdev", "poll-us", &["0"], "belongs to vhost"),
    ("netdev", "restrict", &["off"], "passt has nothing like it"),
    ("netdev", "addr.tight", &["on"], "abstract names end where they end"),
    ("name", "debug-threads", &["on", "off"], "threads always have names"),
    ("chardev", "tight", &["on"], "abstract names end where they end"),
    ("chardev", "telnet", &["off"], "sockets are plain"),
    ("chardev", "tn3270", &["off"], "sockets are plain"),
    ("chardev", "websocket", &["off"], "sockets are plain"),
    ("mon", "id", &["x"], "nothing shows it, in QEMU either"),
    ("mon", "default", &["on", "off"], "QEMU itself has no use for it any more"),
    ("action", "watchdog", &["none", "reset"], "there is no watchdog"),
    ("no-user-config", "", &[""], "there are no configuration files"),
    ("enable-kvm", "", &[""], "there is one accelerator"),
    ("only-migratable", "", &[""], "every device can be migrated"),
    ("msg", "", &["timestamp=on"], "messages look as they look"),
    ("L", "", &["D"], "no file is looked for in QEMU's folders"),
    ("k", "", &["de"], "there is no keyboard"),
    ("boot", "", &["order=c"], "there is no firmware: -kernel starts the guest"),
    ("display", "", &["none"], "there is no display"),
    ("vga", "", &["none"], "there is no display"),
    ("parallel", "", &["none", "null"], "there is no parallel port"),
    ("nic", "", &["none"], "there is no network"),
    ("net", "", &["none"], "there is no network"),
    ("rtc", "", &["base=utc", "base=utc,clock=host", "base=utc,driftfix=none", "clock=host"], "the clock is the host's, in UTC"),
    ("overcommit", "", &["mem-lock=off", "cpu-pm=off", "mem-lock=off,cpu-pm=off"], "memory is not locked, idle processors sleep"),
];

/// They ask for something else than a machine.
const QUESTIONS: [&str; 2] = ["h", "version"];

/// The keys that help lists for an option; one without a name where it has none.
fn keys(opt: &table::Opt) -> Vec<String> {
    if opt.names[0] == "device" {
        // Help lists drivers, and each driver its own.
        let own = PARTS.iter().filter_map(|part| part.device.as_ref());
        let own = own.flat_map(|device| (device.properties)());
        let own = own.map(|key| key.name.to_owned());
        return ["driver".into(), "id".into()].into_iter().chain(own).collect();
    }
    let rows = opt.keys.map(table::Listed::rows).unwrap_or_default();
    let keys: Vec<_> =
        rows.iter().filter_map(|row| row.split_once('=')).map(|(key, _)| key.into()).collect();
    if keys.is_empty() { vec![String::new()] } else { keys }
}

fn line(ending: &str) -> Config {
    let backend =
        |kind| format!("-M memory-backend=m -object memory-backend-{kind},id=m,size=128M");
    let ending = ending
        .replace("SERIAL", "-device virtio-serial-device")
        .replace("DISK", "-drive if=none,id=d,file=F,format=raw -device virtio-blk-device,drive=d")
        .replace("DRIVE", "-drive if=none,id=d")
        .replace("NODE", "node-name=n,filename=F")
        .replace(
            "TWO",
            "-blockdev file,node-name=n,filename=F -blockdev file,node-name=m,filename=F",
        )
        .replace("CARD", "-device virtio-net-device")
        .replace("THREAD", "-object iothread,id=i")
        .replace(
            "FILES",
            "-M memory-backend=m -object memory-backend-memfd,id=m,size=128M -chardev socket,id=c,path=P \
             -chardev socket,id=d,path=P -device vhost-user-fs-device",
        )
        .replace("BALLOON", "-device virtio-balloon-device")
        .replace("RNG", "-device virtio-rng-device")
        .replace("RAM,", "-object memory-backend-ram,")
        .replace("MEMFD", &backend("memfd"))
        .replace("FILE", &backend("file"));
    // The empty machine starts from nothing.
    let kernel = if ending.contains("-M none") { "" } else { "-kernel K" };
    config(&format!("{GOOD} {kernel} {ending}"))
}

#[test]
fn every_option_changes_something_or_is_so_anyway() {
    let mut known: Vec<(String, String)> = Vec::new();
    for opt in OPTIONS {
        if matches!(opt.does, Does::Refuse) || QUESTIONS.contains(&opt.names[0]) {
            continue;
        }
        known.extend(keys(opt).into_iter().map(|key| (opt.names[0].to_owned(), key)));
    }
    let listed = |option: &str, key: &str| {
        // These have a test of their own.
        let limits = option == "drive" && block::THROTTLING.contains(&key);
        let changes = limits || CHANGES.iter().any(|(o, k, ..)| (*o, *k) == (option, key));
        let anyway = SO_ANYWAY.iter().any(|(o, k, ..)| (*o, *k) == (option, key));
        (changes, anyway)
    };
    for (option, key) in &known {
        let (changes, anyway) = listed(option, key);
        assert!(changes != anyway, "-{option} {key}: on one of the lists, and one only");
    }
    let rows = CHANGES.iter().map(|(o, k, ..)| (o, k));
    for (option, key) in rows.chain(SO_ANYWAY.iter().map(|(o, k, ..)| (o, k))) {
        let there = known.iter().any(|(o, k)| o == option && k == key);
        assert!(there, "-{option} {key}: no such option any more");
    }
}

#[test]
fn what_changes_something_changes_the_machine() {
    for (option, key, without, with) in CHANGES {
        assert_ne!(line(without), line(with), "-{option} {key}");
    }
}

#[test]
fn what_is_so_anyway_changes_nothing() {
    for (option, key, values, why) in SO_ANYWAY {
        for value in *values {
            // What the option needs besides.
            let (without, with) = match (*option, *key) {
                ("object", "thread-pool-min" | "thread-pool-max") => {
                    let thread = "-object iothread,id=i";
                    (thread.into(), format!("{thread},{key}={value}"))
                }
                ("object", _) => {
                    ("FILE,mem-path=F".into(), format!("FILE,mem-path=F,{key}={value}"))
                }
                (
                    "device",
                    "account-invalid" | "account-failed" | "bootindex" | "request-merging",
                ) => ("DISK".into(), format!("DISK,{key}={value}")),
                ("drive", _) => ("DRIVE,file=F".into(), format!("DRIVE,file=F,{key}={value}")),
                ("blockdev", _) => {
                    let node = "-blockdev file,NODE";
                    (node.into(), format!("{node},{key}={value}"))
                }
                ("device", "mq" | "rss" | "hash" | "guest_rsc_ext" | "failover") => {
                    ("CARD".into(), format!("CARD,{key}={value}"))
                }
                ("device", "num-request-queues") => {
                    let files = "FILES,chardev=c,tag=t";
                    (files.into(), format!("{files},{key}={value}"))
                }
                ("device", "x-qemu-4-0-config-size") => {
                    ("BALLOON".into(), format!("BALLOON,{key}={value}"))
                }
                ("netdev", "addr.tight") => {
                    let stream = "-netdev stream,id=n,addr.type=unix,addr.path=S,addr.abstract=on";
                    (stream.into(), format!("{stream},{key}={value}"))
                }
                ("netdev", "restrict") => {
                    ("-netdev user,id=n".into(), format!("-netdev user,id=n,{key}={value}"))
                }
                ("netdev", _) => {
                    ("-netdev tap,id=n".into(), format!("-netdev tap,id=n,{key}={value}"))
                }
                ("device", _) => ("RNG".into(), format!("RNG,{key}={value}")),
                ("chardev", "tight") => {
                    let device = "-chardev socket,id=c,path=S,abstract=on";
                    (device.into(), format!("{device},{key}={value}"))
                }
                ("chardev", _) => {
                    let device = "-chardev socket,id=c,path=S";
                    (device.into(), format!("{device},{key}={value}"))
                }
                ("mon", _) => {
                    let monitor = "-chardev null,id=c -mon c,mode=control";
                    (monitor.into(), format!("{monitor},{key}={value}"))
                }
                ("numa", _) => {
                    let node = "RAM,id=m,size=128M -numa node,memdev=m";
                    (node.into(), format!("{node},{key}={value}"))
                }
                ("m", _) => {
                    ("-m 128,maxmem=256M".into(), format!("-m 128,maxmem=256M,{key}={value}"))
                }
                (_, "") => (String::new(), format!("-{option} {value}")),
                _ => (String::new(), format!("-{option} {key}={value}")),
            };
            assert_eq!(line(&without), line(&with), "-{option} {key}={value}: {why}");
        }
    }
}

/// A part of the configuration that only the command line knows would be ignored in silence.
#[test]
fn every_part_of_the_configuration_is_read_by_someone() {
    let source = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let (mut readers, mut config) = (String::new(), String::new());
    let mut folders = vec![source];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.extend((!path.ends_with("src/args")).then_some(path));
            } else if path.extension().is_some_and(|e| e == "rs") {
                let of = if folder.ends_with("src/config") { &mut config } else { &mut readers };
                *of += &std::fs::read_to_string(path).unwrap();
            }
        }
    }
    let words: std::collections::HashSet<&str> =
        readers.split(|c: char| !c.is_alphanumeric() && c != '_').collect();
    let mut fields = 0;
    for line in config.lines().filter(|line| line.starts_with("    ") && !line.contains("fn ")) {
        let line = line.trim().trim_start_matches("pub ");
        let Some((name, rest)) = line.split_once(": ") else { continue };
        if name.chars().all(|c| c.is_ascii_lowercase() || c == '_') && rest.ends_with(',') {
            fields += 1;
            assert!(words.contains(name), "config's {name}: nobody reads it");
        }
    }
    assert!(fields > 60, "{fields}");
}
