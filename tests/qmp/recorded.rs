//! Recordings of one process or two, with devices, migrations and dumps: replayed against processes
//! that are started as the recorded ones were, with a microvm in place of a q35.

use std::fs::File;
use std::path::Path;

use crate::common::vm::{Launch, Vm};
use crate::replay::{Beside, Peer, replay_with};

/// Processes with this topic's options, as the recording connects to them.
struct Machines<'a> {
    dir: &'a Path,
    options: &'a [&'a str],
    running: Vec<Vm>,
}

impl Machines<'_> {
    fn start(&mut self, name: &str) {
        let monitor = format!("socket,id=mon0,path=@DIR@/{name},server=on,wait=off");
        let mut launch = Launch::new(self.dir, &format!("of-{name}"))
            .bare()
            .guest("ws=1")
            .words(&["-chardev", &monitor, "-mon", "chardev=mon0,mode=control"])
            .words(self.options);
        if !["src", "vm0"].contains(&name) {
            launch = launch.no_guest().incoming("defer");
        }
        self.running.push(launch.spawn());
    }
}

fn check(topic: &str, options: &[&str], until: Option<&str>) {
    let dir = tempfile::tempdir().unwrap();
    for (name, bytes) in [("top.img", 1 << 20), ("b.img", 1 << 16)] {
        File::create(dir.path().join(name)).unwrap().set_len(bytes).unwrap();
    }
    let mut machines = Machines { dir: dir.path(), options, running: Vec::new() };
    let mut beside = |what: Beside<'_>| match what {
        Beside::Machine(name) => machines.start(name),
        Beside::Signal => unreachable!(),
    };
    replay_with(topic, dir.path(), Peer::Process, until, &mut beside);
}

macro_rules! topics {
    ($($topic:ident $([$($option:literal),*])? $(until $part:literal)?;)*) => {
        pub(crate) const TOPICS: &[&str] = &[$(stringify!($topic),)*];
$(
        #[test]
        fn $topic() {
            #[allow(unused_mut, unused_assignments)]
            let (mut options, mut until): (&[&str], _) = (&[], None);
            $(options = &[$($option),*];)?
            $(until = Some($part);)?
            check(stringify!($topic), options, until);
        }
    )*};
}

topics! {
    block ["-S", "-drive", "file=@DIR@/top.img,format=raw,if=none,id=d0,bps=1000000",
        "-device", "virtio-blk-device,drive=d0,id=vd0"];
    dump ["-S"];
    // A command without a stream: the target of an `exec:` that says nothing ends.
    incoming_errors until "exec:";
    introspection ["-S"];
    migrate_crash ["-S"];
    migrate_dst_dies;
    // What follows is about TLS, which is not built in.
    migrate_errors ["-S"] until "\"tls-creds\":\"tls0\"";
    migrate_multifd;
    migrate_noevents ["-S"];
    migrate_outgoing ["-S"];
    migrate_switchover;
    migrate_unix;
    net ["-S"];
    queries_microvm ["-S", "-name", "guest1", "-uuid", "550e8400-e29b-41d4-a716-446655440000",
        "-smp", "2,maxcpus=2"];
}
