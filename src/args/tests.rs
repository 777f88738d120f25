//! Good and bad command lines, with the exact words of every refusal.

use super::*;
use crate::config::*;
use std::path::PathBuf;

/// Splits at spaces; `'…'` keeps its spaces.
pub(super) fn words(line: &str) -> Vec<OsString> {
    let mut words = Vec::new();
    for (index, part) in line.split('\'').enumerate() {
        match index % 2 {
            0 => words.extend(part.split_whitespace().map(OsString::from)),
            _ => words.push(part.into()),
        }
    }
    words
}

pub(super) fn config(line: &str) -> Config {
    match parse(words(line)) {
        Ok(Request::Run(config)) => *config,
        other => panic!("{line}: {other:?}"),
    }
}

/// What is said about `extra`, added to a line that is good without it.
fn refusal(extra: &str) -> String {
    match parse(words(&format!("-M microvm,acpi=off -kernel K {extra}"))) {
        Err(errors) => errors.to_string(),
        Ok(request) => panic!("{extra}: {request:?}"),
    }
}

#[test]
fn the_line_of_a_migration_target_becomes_a_machine() {
    let line = "-accel kvm -M microvm,memory-backend=m -m 2048 -object \
                memory-backend-file,id=m,size=2048M,mem-path=F,share=on -display none -nodefaults -serial file:S \
                -kernel K -append A -qmp unix:Q,server=on,wait=off -incoming defer";
    let file = ChardevBackend::File { path: "S".into(), append: false, input: None };
    let socket = ChardevBackend::Socket(Socket {
        address: SocketAddress::Unix { path: "Q".into() },
        role: SocketRole::Server { wait: false },
    });
    let expected = Config {
        machine: MachineOptions::default(),
        devices: vec![],
        entropy: vec![],
        io_threads: vec![],
        images: vec![],
        lines: vec![],
        netdevs: vec![],
        kvm: Kvm::default(),
        cpu: Cpu::cores(1),
        memory: Memory {
            bytes: 2048 << 20,
            block: "m".into(),
            backend: MemoryBackend::File {
                path: "F".into(),
                share: true,
                offset: 0,
                readonly: false,
                discard_at_exit: false,
            },
            prealloc: false,
            merge: true,
            dump: true,
        },
        boot: Some(Boot { kernel: Kernel::File("K".into()), initrd: None, cmdline: "A".into() }),
        chardevs: vec![
            Chardev { id: "serial0".into(), backend: file, mux: false, log: None },
            Chardev { id: "compat_monitor0".into(), backend: socket, mux: false, log: None },
        ],
        back_ends: Vec::new(),
        serial: Some("serial0".into()),
        monitors: vec![Monitor {
            chardev: "compat_monitor0".into(),
            language: Language::Qmp { pretty: false },
        }],
        escape: 1,
        incoming: Some(Incoming::Defer),
        restore: None,
        restored_since: None,
        start_paused: false,
        actions: Actions::default(),
        identity: Identity::default(),
        exit_with_parent: false,
        process: Default::default(),
        firmware_files: vec![],
        smbios: None,
        pidfile: None,
        daemonize: false,
        notices: vec![],
    };
    assert_eq!(config(line), expected);
    assert_eq!(config(&line.replace(" -", " --")), expected, "two dashes");
}

#[test]
fn every_optional_part_can_be_asked_for() {
    let c = config(
        "-machine microvm,acpi=off,pit=off,pic=off,rtc=auto,suppress-vmdesc=on,accel=kvm:tcg -enable-kvm -accel \
         kvm,dirty-ring-size=4096 -cpu host -smp cpus=4,cores=4 -m 1.5G -name guest=a,,b,debug-threads=on -uuid \
         01020304-0506-0708-090a-0b0c0d0e0f10 -S -no-reboot -action panic=pause,shutdown=pause -pidfile P -kernel builtin \
         -append 'ws=64 rate=2000 pattern=zipf bytes=64 fill=text'",
    );
    let mut machine = MachineOptions { suppress_vmdesc: true, ..MachineOptions::default() };
    machine.switches.set("acpi", false);
    machine.switches.set("pit", false);
    machine.switches.set("pic", false);
    assert_eq!(c.machine, machine);
    assert_eq!(c.kvm.dirty_ring_entries, Some(4096));
    assert_eq!((c.cpu.count, c.memory.bytes, c.memory.block.as_str()), (4, 3 << 29, "microvm.ram"));
    assert_eq!(c.identity.name.as_deref(), Some("a,b"));
    assert_eq!(c.identity.uuid, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16]);
    assert!(c.start_paused);
    assert_eq!(
        c.actions,
        Actions {
            reboot: RebootAction::Shutdown,
            shutdown: ShutdownAction::Pause,
            panic: PanicAction::Pause
        }
    );
    assert_eq!(c.pidfile, Some(PathBuf::from("P")));
    assert_eq!(c.boot.map(|b| b.kernel), Some(Kernel::Builtin));
    assert_eq!(c.serial.as_deref(), Some("serial0"), "standard output without -nodefaults");
}

#[test]
fn memory_comes_from_where_it_was_said() {
    let memory = |extra: &str| {
        config(&format!("-M microvm,acpi=off,memory-backend=m -kernel K {extra}")).memory
    };
    let memfd = memory(
        "-object memory-backend-memfd,id=m,size=64M,hugetlb=on,hugetlbsize=2M,prealloc=on,share=on",
    );
    let huge_pages = Some(HugePages::Bytes(2 << 20));
    assert_eq!(memfd.backend, MemoryBackend::Memfd { share: true, seal: true, huge_pages });
    assert_eq!((memfd.bytes, memfd.prealloc), (64 << 20, true));
    let json = memory(
        r#"-object '{"qom-type":"memory-backend-ram","id":"m","size":268435456,"share":true}'"#,
    );
    assert_eq!((json.backend, json.bytes), (MemoryBackend::Anonymous { share: true }, 256 << 20));
    let bytes =
        |extra: &str| config(&format!("-M microvm,acpi=off -kernel K {extra}")).memory.bytes;
    for (extra, mib) in [
        ("-m 0", 128),
        ("-m size=0", 128),
        ("-m ''", 128),
        ("-m 1G -m 0", 128),
        ("-m size=64M", 64),
        ("-m ' 64'", 64),
        ("-m '\t+64M'", 64),
        ("-m 65536k", 64),
        ("-m 67108864B", 64),
        ("-m .5G", 512),
        ("-m 1M,size=2M", 2),
        ("-m 64,maxmem=64M,slots=0", 64),
        ("-m 64,slots=2,maxmem=128M", 64),
    ] {
        assert_eq!(bytes(extra), mib << 20, "{extra}");
    }
    let plain = config("-M microvm,acpi=off -kernel K").memory;
    assert_eq!(plain.backend, MemoryBackend::Anonymous { share: false });
    assert_eq!(plain.bytes, 128 << 20);
}

#[test]
fn character_devices_are_named_and_shared_out() {
    let c = config(
        "-M microvm,acpi=off -kernel K -nodefaults -chardev socket,id=q,path=Q,server=on,wait=off -mon \
         chardev=q,mode=control,pretty=on -chardev pty,id=con,logfile=L -serial chardev:con -serial null -qmp \
         tcp:[::1]:4444,server,nowait,ipv6",
    );
    assert_eq!(c.serial.as_deref(), Some("con"));
    let monitors: Vec<_> = c
        .monitors
        .iter()
        .map(|m| (m.chardev.as_str(), m.language == Language::Qmp { pretty: true }))
        .collect();
    assert_eq!(monitors, [("q", true), ("compat_monitor0", false)]);
    assert_eq!(c.chardevs[1].log, Some(LogFile { path: "L".into(), append: false }));
    let address = SocketAddress::Tcp {
        host: "::1".into(),
        port: 4444,
        port_to: None,
        family: IpFamily::V6,
        nodelay: false,
    };
    let socket = Socket { address, role: SocketRole::Server { wait: false } };
    assert_eq!(c.chardevs[2].backend, ChardevBackend::Socket(socket));
    assert_eq!(config("-M microvm,acpi=off -kernel K -nodefaults").serial, None);
    assert_eq!(config("-M microvm,acpi=off -kernel K -serial none").serial, None);
    let comma = config("-M microvm,acpi=off -kernel K -serial file:a,b=c");
    let path = PathBuf::from("a,b=c");
    assert_eq!(
        comma.chardevs[0].backend,
        ChardevBackend::File { path, append: false, input: None }
    );
}

#[test]
fn refusals_say_what_and_why_and_what_instead() {
    let table = [
        ("-kernal K", "-kernal: no such option, did you mean -kernel?"),
        ("--apend x", "--apend: no such option, did you mean -append?"),
        ("-zzzzzz", "-zzzzzz: no such option, `godwit run --help` lists them"),
        ("disk.img", "disk.img: not an option; every word of a command line belongs to one"),
        ("-initrd", "-initrd: needs a value: FILE"),
        ("--S=1", "--S=1: takes no value"),
        (
            "-drive file=x,if=virtio",
            "-drive if=virtio: write if=none, and -device virtio-blk-device,drive=ID",
        ),
        ("-netdev user", "-netdev: id= is missing"),
        (
            "-device virtio-net-device,netdev=n",
            "-device virtio-net-device,netdev=n: there is no network (-netdev) with this id",
        ),
        (
            "-device isa-serial",
            "-device isa-serial: expects vmcoreinfo, isa-debug-exit, virtio-blk-device, virtio-net-device, virtio-serial-device, virtconsole, virtserialport, virtio-rng-device, virtio-balloon-device or vhost-user-fs-device",
        ),
        ("-device vmcoreinfo,at=3", "-device at=3: vmcoreinfo has no such property"),
        (
            "-device vmcoreinfo -device vmcoreinfo,id=v",
            "-device vmcoreinfo: there can be one vmcoreinfo device only",
        ),
        (
            "-monitor mon:stdio",
            "-monitor mon:stdio: a monitor shares the device of -serial mon: only",
        ),
        ("-display gtk", "-display gtk: there is no display; the guest's console is -serial"),
        ("-M q35", "-M q35: Godwit has one machine: microvm"),
        ("-M apci=off", "-M apci=off: machine microvm has no such property, did you mean acpi?"),
        ("-M acpi=of", "-M acpi=of: expects on, off or auto, did you mean off?"),
        ("-M x-oem-id=SEVENTY", "-M x-oem-id=SEVENTY: expects at most 6 bytes"),
        ("-M usb=on", "-M usb=on: USB is not built; write usb=off"),
        ("-M memory-backend=x", "-M memory-backend=x: there is no memory backend with this id"),
        ("-accel tcg", "-accel tcg: Godwit runs on KVM only; write -accel kvm"),
        (
            "-accel kvm,dirty-ring-size=1000",
            "-accel dirty-ring-size=1000: expects a power of two from 1024 to 65536",
        ),
        (
            "-accel kvm,dirty-ring=4096",
            "-accel dirty-ring=4096: accelerator kvm has no such property, did you mean \
                                        dirty-ring-size?",
        ),
        (
            "-cpu Skylake",
            "-cpu Skylake: CPU models are not built yet: guests see the host's processor; write -cpu host",
        ),
        (
            "-cpu host,-avx",
            "-cpu -avx: this CPU feature cannot be chosen by itself; -cpu help lists those that can",
        ),
        (
            "-cpu host,+svm",
            "-cpu +svm: the state of a guest's own virtual machines cannot be moved yet, so that it has none; leave it out",
        ),
        ("-smbios type=2", "-smbios type=2: only the system's table, type=1, is built"),
        (
            "-fw_cfg etc/x,string=y",
            "-fw_cfg name=etc/x: this name is the machine's own; names of others begin with opt/",
        ),
        ("-fw_cfg opt/x", "-fw_cfg name=opt/x: expects one of file= and string="),
        ("-run-with user=1:", "-run-with user=1:: expects a user's name or UID:GID"),
        ("-sandbox on,spawn=maybe", "-sandbox spawn=maybe: expects allow or deny"),
        (
            "-add-fd fd=2,set=1",
            "-add-fd fd=2: standard input, output and errors stay what they are",
        ),
        ("-add-fd fd=3", "-add-fd: set= is missing"),
        ("-numa node", "-numa: memdev= is missing"),
        (
            "-numa dist,src=0,dst=1,val=20",
            "-numa dist: guests see one NUMA node; write one -numa node,memdev=ID",
        ),
        ("-smp 0", "-smp 0: expects a number from 1 to 254"),
        (
            "-smp 4,sockets=2,cores=2,threads=2",
            "-smp: sockets, cores and threads multiply to 8, not to 4",
        ),
        ("-smp 4,maxcpus=2", "-smp: 4 processors are more than maxcpus=2"),
        ("-m 12Q", "-m 12Q: expects a size: a number, with K, M, G or T behind it if you like"),
        ("-m 65T", "-m 65T: expects a size from 8K to 64T"),
        ("-m 1G,slots=2", "-m: slots= goes only with maxmem="),
        (
            "-m 1G,maxmem=512M",
            "-m maxmem=: 536870912 bytes are less than the 1073741824 of the beginning",
        ),
        (
            "-object iothread,id=i,poll-max-ns=x",
            "-object poll-max-ns=x: expects a number from 0 to 9223372036854775807",
        ),
        ("-object iothread,poll-max-ns=1", "-object: id= is missing"),
        (
            "-device virtio-balloon-device,free-page-hint=on",
            "-device virtio-balloon-device: 'free-page-hint' requires 'iothread' to be set (-object iothread,id=ID)",
        ),
        (
            "-device vhost-user-fs-device,tag=t",
            "-device vhost-user-fs-device: missing chardev; write chardev=ID (-chardev socket,id=ID,path=PATH)",
        ),
        (
            "-chardev socket,id=c,path=P -device vhost-user-fs-device,chardev=c",
            "-device vhost-user-fs-device: missing tag property; write tag=NAME, by which the guest mounts it",
        ),
        (
            "-chardev socket,id=c,path=P -device vhost-user-fs-device,chardev=d,tag=t",
            "-device vhost-user-fs-device,chardev=d: there is no character device with this id",
        ),
        (
            "-chardev socket,id=c,path=P,server=on -device vhost-user-fs-device,chardev=c,tag=t",
            "-device vhost-user-fs-device,chardev=c: a file system's process is reached over a unix socket on which it \
             listens; write -chardev socket,path=PATH",
        ),
        (
            "-chardev socket,id=c,path=P -qmp chardev:c -device vhost-user-fs-device,chardev=c,tag=t",
            "-device vhost-user-fs-device,chardev=c: is already used by a monitor",
        ),
        (
            "-chardev socket,id=c,path=P -device vhost-user-fs-device,chardev=c,tag=t",
            "-device vhost-user-fs-device: its process maps the guest's memory, which is private; write -object \
             memory-backend-memfd,id=mem,size=SIZE,share=on -M memory-backend=mem",
        ),
        (
            "-object iothread,id=io0 -device virtio-balloon-device,iothread=io",
            "-device virtio-balloon-device,iothread=io: there is no I/O thread (-object iothread) with this id, did you mean io0?",
        ),
        (
            "-object memory-backend-fil,id=m",
            "-object memory-backend-fil: expects memory-backend-ram, memory-backend-file, \
                                             memory-backend-memfd, rng-builtin, rng-random or iothread, did you mean memory-backend-file?",
        ),
        (
            "-object memory-backend-ram,id=m,size=1G",
            "-object id=m: is used by nothing; name it with -M \
                                                     microvm,memory-backend=ID",
        ),
        (
            "-object memory-backend-ram,id=m,mem-path=F",
            "-object mem-path=F: only memory-backend-file has this",
        ),
        (
            "-M memory-backend=m -m 1G -object memory-backend-ram,id=m,size=2G",
            "-object id=m: -m asks for 1073741824 bytes, this backend has 2147483648; the two must agree",
        ),
        ("-M memory-backend=m -object memory-backend-ram,id=m", "-object id=m: size= is missing"),
        (
            "-M memory-backend=m -object memory-backend-file,id=m,size=1G",
            "-object id=m: mem-path= is missing",
        ),
        ("-object memory-backend-ram,size=1G", "-object: id= is missing"),
        (
            "-object '{\"qom-type\":[]}'",
            "-object: expects a JSON object of strings, numbers and booleans",
        ),
        (
            "-serial fil:x",
            "-serial fil:x: expects stdio, null, none, pty, file:, unix:, tcp:, chardev:, fd: or mon:, did you mean \
                           file:?",
        ),
        (
            "-serial mon:chardev:x",
            "-serial mon:chardev:x: expects a new character device behind mon:",
        ),
        ("-serial chardev:x", "-serial chardev:x: there is no character device with this id"),
        ("-serial tcp:localhost", "-serial tcp:localhost: expects tcp:HOST:PORT"),
        ("-serial null -serial stdio", "-serial stdio: the machine has one serial port"),
        ("-serial unix:S,wait=off", "-serial unix:S,wait=off: wait= goes only with server=on"),
        (
            "-serial unix:S,sever=on",
            "-serial sever=on: a character device has no such property, did you mean server?",
        ),
        (
            "-qmp stdio",
            "chardev compat_monitor0: standard input and output are already taken by another device",
        ),
        (
            "-chardev null,id=a -mon a,mode=control -mon a,mode=control",
            "-mon chardev=a: is already used by -mon chardev=a",
        ),
        (
            "-chardev null,id=a -chardev null,id=a",
            "-chardev id=a: there is already a character device with this id",
        ),
        (
            "-chardev null,id=1",
            "-chardev id=1: expects a name: a letter, then letters, digits, '-', '.' and '_'",
        ),
        ("-chardev null", "-chardev: id= is missing"),
        (
            "-chardev null,id=a,logfile=L -mon a,mode=control",
            "-mon chardev=a: what monitors say is not logged; leave logfile= out",
        ),
        (
            "-M option-roms=off",
            "-M option-roms=off: machine microvm has no such property, did you mean x-option-roms?",
        ),
        ("-chardev ringbuf,id=r", "-chardev ringbuf: not built yet; write file"),
        ("-chardev null,id=n,path=x", "-chardev: path= cannot go with null"),
        (
            "-chardev socket,id=s,path=x,host=h,port=1",
            "-chardev: expects one of path=, host= with port=, and fd=",
        ),
        ("-mon q", "-mon chardev=q: there is no character device with this id"),
        (
            "-chardev null,id=c -mon c,pretty=on",
            "-mon c,pretty=on: pretty= goes only with mode=control",
        ),
        (
            "-chardev null,id=c,mux=on -mon c,mode=control",
            "-mon chardev=c: programs do not share a device; give QMP its own",
        ),
        (
            "-chardev null,id=c,mux=on -mon c -mon c -mon c -mon c -mon c",
            "-mon chardev=c: four users share the device already",
        ),
        (
            "-chardev null,id=c,mux=on -mon c -mon c -mon c -serial chardev:c -device virtio-serial-device -device virtconsole,chardev=c",
            "-device virtconsole,chardev=c: four users share the device already",
        ),
        (
            "-chardev null,id=c,mux=on -chardev null,id=c-base -mon c",
            "-chardev id=c-base: there is already a character device with this id",
        ),
        (
            "-daemonize -nodefaults -monitor stdio",
            "chardev compat_monitor0: standard input and output cannot go with -daemonize",
        ),
        (
            "-daemonize -nographic",
            "chardev serial0: standard input and output cannot go with -daemonize",
        ),
        ("-echr 256", "-echr 256: expects a number from 0 to 255"),
        (
            "-incoming file:f,x-godwit-restore=map",
            "-incoming file:f,x-godwit-restore=map: expects eager or mapped",
        ),
        (
            "-incoming file:f,x-godwit-restore=lazy,offset=1",
            "-incoming file:f,x-godwit-restore=lazy,offset=1: x-godwit-restore=lazy (pages read as the guest asks for \
             them) is not built; write mapped or eager",
        ),
        ("-incoming rdma:h:1", "-incoming rdma:h:1: RDMA is not built; write tcp:HOST:PORT"),
        (
            "-incoming tpc:h:1",
            "-incoming tpc:h:1: expects tcp:, unix:, fd:, exec:, file: or defer, did you mean tcp:?",
        ),
        ("-uuid x", "-uuid x: expects a UUID: 32 hexadecimal digits in groups of 8-4-4-4-12"),
        (
            "-action reboot=restart",
            "-action reboot=restart: expects reset or shutdown, did you mean reset?",
        ),
        (
            "-kernel builtin -append w=1",
            "-append w=1: the built-in guest knows no \"w=1\", did you mean ws=?",
        ),
        (
            "-kernel builtin -append bytes=9",
            "-append bytes=9: the built-in guest's bytes= expects a multiple of 8 from 8 to 4096, not \"9\"",
        ),
        ("-kernel builtin -initrd I", "-initrd cannot go with -kernel builtin"),
        (
            "-daemonize -run-with exit-with-parent=on",
            "-run-with exit-with-parent=on cannot go with -daemonize",
        ),
    ];
    let said = table.map(|(extra, _)| (extra, refusal(extra)));
    assert_eq!(said, table.map(|(extra, message)| (extra, message.to_string())));
}

#[test]
fn a_machine_that_is_none_starts_from_nothing() {
    assert_eq!(config("-M none").boot, None);
    for (given, option) in [
        ("-kernel K", "-kernel"),
        ("-initrd I", "-initrd"),
        ("-append x", "-append"),
        ("-incoming defer", "-incoming"),
    ] {
        let said = parse(words(&format!("-M none {given}"))).unwrap_err().to_string();
        assert_eq!(said, format!("{option} cannot go with -M none"));
    }
}

#[test]
fn the_invariant_tsc_is_shown_where_it_was_named_or_the_guest_is_not_to_move() {
    let cpu = |text: &str| {
        let cpu = config(&format!("-M microvm,acpi=off -kernel K -cpu {text}")).cpu;
        (cpu.features.get("invtsc").copied(), cpu.migratable)
    };
    assert_eq!(cpu("host"), (None, true));
    assert_eq!(cpu("host,+invtsc,migratable=on"), (Some(true), true));
    assert_eq!(cpu("host,migratable=on,+invtsc"), (Some(true), true));
    assert_eq!(cpu("host,migratable=off"), (None, false));
    assert_eq!(cpu("host,migratable=off,-invtsc"), (Some(false), false));
    assert_eq!(cpu("host,migratable=off -cpu host"), (None, true), "the last one counts");
}

#[test]
fn a_machine_must_be_named() {
    let said = |line: &str| parse(words(line)).unwrap_err().to_string();
    assert_eq!(said("-kernel K"), "no machine is named; write -M microvm");
    let nothing = "nothing to start; write -kernel FILE, -kernel builtin or -incoming URI";
    assert_eq!(said("-M microvm,acpi=off"), nothing);
    assert_eq!(
        said("-M microvm,acpi=off -incoming defer -append x"),
        "-append: it goes only with -kernel"
    );
}

#[test]
fn every_fault_of_a_line_is_told_at_once() {
    assert_eq!(
        refusal("-cdrom x -netdev user -smp many -kernal K"),
        "-cdrom: the machine has no IDE; write -drive file=FILE,if=none,id=ID -device virtio-blk-device,drive=ID\n-netdev: id= is missing\n-smp many: expects a number \
         from 1 to 254\n-kernal: no such option, did you mean -kernel?"
    );
}

#[test]
fn help_names_every_option_once() {
    let page = help(Style::Plain);
    for name in table::names() {
        assert!(page.contains(&format!("-{name}")), "-{name}");
    }
    let mut names: Vec<_> = table::names().collect();
    names.sort_unstable();
    assert!(names.windows(2).all(|pair| pair[0] != pair[1]), "{names:?}");
    assert!(page.lines().all(|line| line.chars().count() <= 120), "{page}");
}

#[test]
fn keys_are_listed_on_request() {
    for option in ["-M", "-accel", "-cpu", "-smp", "-m", "-object", "-chardev"] {
        match parse(words(&format!("{option} help"))) {
            Ok(Request::Keys(keys)) => assert!(!keys.is_empty(), "{option}"),
            other => panic!("{option}: {other:?}"),
        }
    }
    assert_eq!(parse(words("-version")), Ok(Request::Version));
    assert_eq!(parse(words("-h -drive x")), Ok(Request::Help));
}

proptest::proptest! {
    #[test]
    fn any_words_are_read_or_refused(words in proptest::collection::vec("(-{0,2}[a-zA-Z]{0,10}[=,:a-z0-9\\[\\]{}\"é.]{0,16})", 0..8)) {
        let _ = parse(words.into_iter().map(OsString::from));
    }

    #[test]
    fn any_value_of_any_option_is_read_or_refused(at in 0..table::OPTIONS.len(), value in "\\PC{0,40}") {
        let name = table::OPTIONS[at].names[0];
        if let Err(errors) = parse([format!("-{name}").into(), value.into()]) {
            assert!(!errors.to_string().is_empty());
        }
    }
}
