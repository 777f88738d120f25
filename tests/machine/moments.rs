//! Every command that changes a machine, at every moment of a migration and a dump: what the table
//! says is what a machine on real KVM does.

use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use godwit::config::Incoming;
use godwit::dump::{Dumpable, Dumps};
use godwit::io::Address;
use godwit::io::transport::NoDescriptors;
use godwit::machine::moment::{Moment, Request, Ruling, rule};
use godwit::machine::{Event, RunState, StopCause};
use godwit::migrate::guest::Migratable;
use godwit::migrate::{Handle, Parts};
use godwit::qmp::json::Value;
use godwit::qmp::{Error, Monitor, commands};
use godwit::vmm::{Events, Exit, Vmm};

use crate::common::guest::{self, Guest, config, wait};

/// A machine at one moment, with all that commands work on.
struct Stage {
    guest: Guest,
    vmm: Arc<Vmm>,
    dir: tempfile::TempDir,
}

impl Stage {
    fn at(moment: Moment) -> Stage {
        let dir = tempfile::tempdir().unwrap();
        let mut config = config(&dir, &guest::hello(), 16, 1);
        if moment == Moment::Arriving {
            config.incoming = Some(Incoming::Defer);
        }
        let guest = Guest::build(&config);
        let machine = guest.machine.clone();
        let mut vmm = Vmm::new(machine.clone(), Arc::new(Events::new()), Arc::new(Exit::default()));
        vmm.dumps = Some(Dumps::new(machine.clone()));
        vmm.migration = Some(Handle::new(Parts {
            guest: machine.clone(),
            events: Arc::new(|_| {}),
            autostart: Arc::new(|| true),
            arrived: Arc::new(|_| {}),
            on_failure: Arc::new(|_| {}),
            on_success: Arc::new(|| {}),
            is_incoming: moment == Moment::Arriving,
            uuid: None,
        }));
        let stage = Stage { guest, vmm: Arc::new(vmm), dir };
        stage.go_to(moment);
        stage
    }

    fn go_to(&self, moment: Moment) {
        let machine = &self.guest.machine;
        if moment == Moment::Arriving {
            return;
        }
        machine.cont().unwrap();
        self.guest.said.wait_for("k");
        match moment {
            Moment::Ordinary | Moment::Arriving => {}
            Moment::Leaving => {
                // A target that never answers.
                let path = self.dir.path().join("silent");
                let listener = UnixListener::bind(&path).unwrap();
                std::thread::spawn(move || {
                    let (mut socket, _) = listener.accept().unwrap();
                    let _ = socket.read_to_end(&mut Vec::new());
                });
                let address = Address::unix(path.to_str().unwrap());
                let migration = self.vmm.migration.as_ref().unwrap();
                drop(migration.start(address, &mut NoDescriptors, &|| None).unwrap());
            }
            Moment::Switching | Moment::HandingOver | Moment::Left => {
                assert!(Migratable::stop(&**machine, RunState::FinishMigrate).unwrap());
                if moment != Moment::Switching {
                    drop(Migratable::save(&**machine, true).unwrap());
                }
                if moment == Moment::Left {
                    Migratable::set_state(&**machine, RunState::PostMigrate);
                }
            }
            Moment::Dumping => assert!(machine.pause().unwrap()),
        }
        let seen = match moment {
            Moment::Leaving => Moment::Ordinary,
            other => other,
        };
        assert_eq!(machine.moment(), seen);
    }

    fn ask(&self, command: &str) -> Result<(), Error> {
        let text = |text: String| Value::Text(text);
        let number = |number: u64| Value::Number(number.to_string().into());
        let path = |name: &str| self.dir.path().join(name).to_str().unwrap().to_owned();
        let arguments = match command {
            "pmemsave" | "memsave" => vec![
                ("val".into(), number(0x10_0000)),
                ("size".into(), number(4096)),
                ("filename".into(), text(path("saved"))),
            ],
            "dump-guest-memory" => vec![
                ("paging".into(), Value::Bool(false)),
                ("protocol".into(), text(format!("file:{}", path("core")))),
            ],
            "migrate" | "migrate-incoming" => {
                vec![("uri".into(), text(format!("unix:{}", path("migrated"))))]
            }
            "set-action" => vec![("reboot".into(), text("shutdown".into()))],
            _ => Vec::new(),
        };
        let command = commands::find(command).expect("a command");
        command.call(&self.vmm, &Monitor::default(), &arguments).map(drop)
    }

    /// What a command must leave as it is: memory, the processor, the run state, what was told.
    fn fingerprint(&self) -> String {
        let machine = &self.guest.machine;
        let mut memory = vec![0; 1 << 20];
        machine.ram().read(0x10_0000, &mut memory).unwrap();
        let sum = memory
            .iter()
            .fold(0u64, |sum, byte| (sum ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3));
        let registers = match machine.run_state().is_running() {
            true => String::new(),
            false => {
                let vcpu = &self.guest.vcpus()[0];
                format!("{:?} {:?}", vcpu.regs, vcpu.events)
            }
        };
        format!("{sum:x} {registers} {:?} {:?}", machine.run_state(), self.guest.events())
    }

    /// The guest turns out to be this machine's.
    fn end(&self, moment: Moment) {
        match moment {
            Moment::Switching | Moment::HandingOver => {
                Migratable::cont(&*self.guest.machine).unwrap();
            }
            Moment::Dumping => self.guest.machine.resume(true),
            _ => {}
        }
    }

    /// What a command does when it is done at once.
    fn assert_done(&self, request: Request, moment: Moment) {
        let state = self.guest.machine.run_state();
        let told = |event: Event| assert!(self.guest.events().contains(&event), "{event:?}");
        match request {
            Request::Stop => assert!(!state.is_running()),
            Request::Cont => assert!(state.is_running()),
            Request::Reset => told(Event::Reset(StopCause::HostQmpSystemReset)),
            Request::Powerdown => told(Event::Powerdown),
            Request::SavePhysical | Request::SaveVirtual => {
                let saved = std::fs::read(self.dir.path().join("saved")).unwrap();
                assert_eq!(saved.len(), 4096);
            }
            Request::Dump => assert!(self.dir.path().join("core").exists()),
            Request::Quit => assert!(self.vmm.exit.is_requested()),
            Request::SetAction => {
                let actions = self.guest.machine.actions();
                assert_eq!(actions.reboot, godwit::config::RebootAction::Shutdown);
            }
            Request::Migrate => {
                assert!(self.vmm.migration.as_ref().unwrap().report().contains_key("status"))
            }
            Request::MigrateIncoming => assert_eq!(moment, Moment::Arriving),
            _ => {}
        }
    }

    /// What becomes of a request that was put off, once the guest is this machine's.
    fn assert_done_later(&self, request: Request, moment: Moment) {
        let autostart = || self.vmm.autostart.load(Ordering::SeqCst);
        match (request, moment) {
            (Request::Stop, Moment::Arriving) => assert!(!autostart()),
            (Request::Cont, Moment::Arriving) => assert!(autostart()),
            (Request::Stop, _) => {
                self.end(moment);
                assert_eq!(self.guest.machine.run_state(), RunState::Paused);
            }
            (Request::Reset, _) => {
                self.end(moment);
                // The guest starts over, and says its word once more.
                self.guest.said.wait_for("kk");
                let events = self.guest.events();
                let reset = Event::Reset(StopCause::HostQmpSystemReset);
                assert_eq!(events, [Event::Resume, Event::Stop, reset, Event::Resume]);
            }
            other => panic!("{other:?} is put off, and nobody says what comes of it"),
        }
    }
}

#[test]
fn every_command_at_every_moment_does_what_the_table_says() {
    for moment in Moment::ALL {
        for (request, command) in Request::all() {
            let Some(command) = command else { continue };
            let cell = format!("{command} at {moment:?}");
            let stage = Stage::at(moment);
            let before = stage.fingerprint();
            let answer = stage.ask(command);
            match rule(request, moment) {
                Ruling::Refused(why) => {
                    assert_eq!(answer.unwrap_err().desc, why, "{cell}");
                    assert_eq!(stage.fingerprint(), before, "{cell}");
                }
                Ruling::Later => {
                    answer.unwrap_or_else(|error| panic!("{cell}: {error}"));
                    // Twice is once.
                    stage.ask(command).unwrap();
                    assert_eq!(stage.fingerprint(), before, "{cell}");
                    stage.assert_done_later(request, moment);
                }
                Ruling::Now if request == Request::MigrateIncoming && answer.is_err() => {
                    assert_ne!(moment, Moment::Arriving, "{cell}");
                    assert_eq!(stage.fingerprint(), before, "{cell}");
                }
                Ruling::Now => {
                    answer.unwrap_or_else(|error| panic!("{cell}: {error}"));
                    stage.assert_done(request, moment);
                }
            }
            if let Some(all) = &stage.vmm.migration {
                all.cancel();
            }
        }
    }
}

#[test]
fn every_command_is_in_the_table_or_changes_no_machine() {
    // What is set for later is no change, and what a migration is told while it runs is its own.
    // What would make devices and their like come and go is refused at every moment so far; a disk's
    // size looks at the table by itself.
    let harmless = |name: &str| {
        name.starts_with("query-")
            || name.starts_with("qom-")
            || name.starts_with("migrate-set-")
            || name.ends_with("-fd")
            || matches!(
                name,
                "qmp_capabilities"
                    | "getfd"
                    | "closefd"
                    | "migrate_cancel"
                    | "migrate-continue"
                    | "migrate-start-postcopy"
                    | "migrate-pause"
                    | "migrate-recover"
                    | "announce-self"
                    | "human-monitor-command"
                    | "x-dump-cancel"
                    | "yank"
                    | "device-list-properties"
                    | "device_add"
                    | "device_del"
                    | "object-add"
                    | "object-del"
                    | "blockdev-add"
                    | "blockdev-del"
                    | "block_resize"
                    | "blockdev-snapshot-sync"
                    | "block-set-write-threshold"
                    | "block_set_io_throttle"
                    | "netdev_add"
                    | "netdev_del"
                    | "set_link"
                    | "balloon"
                    | "input-send-event"
                    | "system_wakeup"
                    | "chardev-add"
                    | "chardev-change"
                    | "chardev-remove"
                    | "calc-dirty-rate"
                    | "set-vcpu-dirty-limit"
                    | "cancel-vcpu-dirty-limit"
            )
    };
    for command in commands::all() {
        let ruled = Request::of_command(command.name).is_some();
        assert!(ruled != harmless(command.name), "{}", command.name);
    }
}

#[test]
fn a_reset_put_off_is_forgotten_when_the_guest_went_elsewhere() {
    let stage = Stage::at(Moment::HandingOver);
    stage.ask("system_reset").unwrap();
    Migratable::set_state(&*stage.guest.machine, RunState::PostMigrate);
    assert_eq!(stage.guest.events(), [Event::Resume, Event::Stop]);
    assert_eq!(stage.guest.machine.run_state(), RunState::PostMigrate);
}

#[test]
fn a_stop_before_the_state_is_read_travels_with_it() {
    let stage = Stage::at(Moment::Switching);
    stage.ask("stop").unwrap();
    let mut out = Vec::new();
    Migratable::save(&*stage.guest.machine, true).unwrap().write(&mut out).unwrap();
    let has = |word: &[u8]| out.windows(word.len()).any(|at| at == word);
    assert!(has(b"paused") && !has(b"running"));
}

/// A guest that resets itself again and again is stopped to be handed over: either it asked before,
/// and has been reset when its state is read, or it asks where it goes on.
#[test]
fn what_the_guest_asked_for_is_done_before_its_state_is_read() {
    for round in 0..12 {
        let dir = tempfile::tempdir().unwrap();
        let g = Guest::build(&config(&dir, &guest::restarter(), 16, 1));
        g.machine.cont().unwrap();
        std::thread::sleep(Duration::from_millis(7 * round));
        let ran = Migratable::stop(&*g.machine, RunState::FinishMigrate).unwrap();
        assert!(ran);
        drop(Migratable::save(&*g.machine, true).unwrap());
        let (said, events, count) = (g.said.text(), g.events(), g.word(0x30_0000));
        std::thread::sleep(Duration::from_millis(20));
        assert_eq!((g.said.text(), g.events(), g.word(0x30_0000)), (said, events, count));
        Migratable::cont(&*g.machine).unwrap();
        g.said.wait_for("rrrk");
        assert_eq!(g.said.text(), "rrrk");
        wait(
            || g.events().iter().filter(|event| matches!(event, Event::Reset(_))).count() == 3,
            || format!("{:?}", g.events()),
        );
    }
}

/// A whole migration whose target falls silent after the state has come: the reset waits until the
/// target says that it failed, and then the guest starts over here.
#[test]
fn a_reset_in_state_device_waits_for_the_outcome() {
    let stage = Stage::at(Moment::Ordinary);
    let path = stage.dir.path().join("target");
    let listener = UnixListener::bind(&path).unwrap();
    let (fail, failed) = std::sync::mpsc::channel::<()>();
    let target = std::thread::spawn(move || {
        let (mut socket, _) = listener.accept().unwrap();
        // PONG to the source's PING: what a QEMU says.
        socket.write_all(&[0, 2, 0, 4, 0x47, 0x57, 0x54, 0x31]).unwrap();
        let mut other = socket.try_clone().unwrap();
        let reader = std::thread::spawn(move || {
            let (mut bytes, mut piece) = (Vec::<u8>::new(), vec![0; 1 << 16]);
            while let Ok(count @ 1..) = other.read(&mut piece) {
                bytes.extend(&piece[..count]);
                // More of them come behind the pages, until the answer comes soon.
                let ping = [8, 0, 2, 0, 4, 0, 0, 0, 2];
                while let Some(at) = bytes.windows(ping.len()).position(|found| found == ping) {
                    bytes.drain(..at + ping.len());
                    let _ = other.write_all(&[0, 2, 0, 4, 0, 0, 0, 2]);
                }
                bytes.drain(..bytes.len().saturating_sub(ping.len() - 1));
            }
        });
        failed.recv().unwrap();
        socket.write_all(&[0, 1, 0, 4, 0, 0, 0, 1]).unwrap();
        reader.join().unwrap()
    });
    let migration = stage.vmm.migration.as_ref().unwrap();
    let address = Address::unix(path.to_str().unwrap());
    drop(migration.start(address, &mut NoDescriptors, &|| None).unwrap());
    let status = || migration.report()["status"].as_str().unwrap_or_default().to_owned();
    wait(|| status() == "device", status);
    wait(|| stage.guest.machine.moment() == Moment::HandingOver, || "no hold".into());
    let before = stage.fingerprint();
    stage.ask("system_reset").unwrap();
    assert_eq!(stage.ask("inject-nmi").unwrap_err().class.name(), "GenericError");
    assert_eq!(stage.fingerprint(), before);
    fail.send(()).unwrap();
    wait(|| status() == "failed", status);
    stage.guest.said.wait_for("kk");
    let reset = Event::Reset(StopCause::HostQmpSystemReset);
    assert_eq!(stage.guest.events(), [Event::Resume, Event::Stop, reset, Event::Resume]);
    target.join().unwrap();
}
